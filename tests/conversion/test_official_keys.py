"""The key map covers every tensor of the three released sizes, by name and shape, without weights."""

import gzip
import json
from pathlib import Path

import pytest
import torch

from sama.conversion.backbones import INTERNVL
from sama.conversion.configs import aggregator_config, release_config, sam2_config
from sama.conversion.keys import map_release
from sama.conversion.pieces import ORIGINAL_DECODER
from sama.conversion.released_sizes import LANGUAGE_MODELS, VISION, released_config
from sama.modeling_sama import SamaForConditionalGeneration


OFFICIAL_KEYS = Path(__file__).parents[1] / "goldens" / "official_keys.json.gz"  # size -> key -> shape
SAM_PREFIX = "grounding_encoder.sam2_model."
NUM_KEYS = {"1b": 1897, "4b": 2041, "8b": 1833}


@pytest.mark.parametrize("size", NUM_KEYS)
def test_every_key_is_mapped(size: str):
    listed = json.loads(gzip.decompress(OFFICIAL_KEYS.read_bytes()))[size]
    shapes = {key: tuple(shape) for key, shape in listed.items()}
    language, vocab_size, tokens = LANGUAGE_MODELS[size]
    assert len(shapes) == NUM_KEYS[size]
    embeddings = next(key for key in shapes if key.endswith(("embed_tokens.weight", "tok_embeddings.weight")))
    parts = aggregator_config(shapes, {}) | {"mask_config": sam2_config(shapes, SAM_PREFIX, {})}
    backbone = INTERNVL.config({"llm_config": language, "vision_config": VISION})
    assert vocab_size == shapes[embeddings][0]
    config = release_config(INTERNVL, backbone, vocab_size, False, tokens, parts)
    with torch.device("meta"):
        ours = {
            name: tuple(tensor.shape) for name, tensor in SamaForConditionalGeneration(config).state_dict().items()
        }
    with torch.device("meta"):
        unread = SamaForConditionalGeneration(released_config(size)).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in unread.items()} == ours
    text = config.text_config
    keys = map_release(shapes, INTERNVL, text.num_key_value_heads, text.hidden_size // text.num_attention_heads)
    made = {
        name: tuple(piece.make(*(torch.empty(shapes[key], device="meta") for key in piece.keys)).shape)
        for name, piece in keys.pieces.items()
    }
    assert keys.unknown == []
    assert made == ours
    used = {key for piece in keys.pieces.values() for key in piece.keys}
    assert used | set(keys.unused) == set(shapes)
    assert sorted(keys.unused) == [f"{part}_Qformer.bert.embeddings.position_ids" for part in ("spatial", "temporal")]
    assert sum(name.startswith(ORIGINAL_DECODER) for name in ours) == 131


def test_8b_keeps_dynamic_rotary_scaling():
    config = released_config("8b")
    assert config.text_config.model_type == "llama"
    rope = config.text_config.rope_parameters
    assert (rope["rope_type"], rope["factor"], rope["rope_theta"]) == ("dynamic", 2.0, 1000000.0)
    assert config.text_config.eos_token_id == 92542  # <|im_end|>, not </s>
