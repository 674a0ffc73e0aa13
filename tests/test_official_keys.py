"""The three released sizes at their true shapes, without weights: every key and shape of each has its place."""

import json
from pathlib import Path

import pytest
import torch

from sama.modeling_sama import SamaForConditionalGeneration
from sama.scripts.checkpoint_configs import TokenIds, aggregator_config, release_config, sam2_config
from sama.scripts.checkpoint_keys import ORIGINAL_DECODER, map_release


SAM_PREFIX = "grounding_encoder.sam2_model."
VISION = {
    "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
    "patch_size": 14, "image_size": 448, "qkv_bias": True, "qk_normalization": False, "norm_type": "layer_norm",
}  # fmt: skip
QWEN = {"model_type": "qwen2", "rope_theta": 1000000.0, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6}
INTERNLM = {"model_type": "internlm2", "rope_theta": 1000000.0, "max_position_embeddings": 32768, "rms_norm_eps": 1e-5}
# What the releases' own config.json say of their language models
SIZES = {
    "1b": (1897, QWEN | {
        "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
        "num_key_value_heads": 2,
    }),
    "4b": (2041, QWEN | {
        "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16,
        "num_key_value_heads": 2,
    }),
    "8b": (1833, INTERNLM | {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "rope_scaling": {"type": "dynamic", "factor": 2.0}, "bias": False,
    }),
}  # fmt: skip
QWEN_TOKENS = TokenIds(151667, 151674, 151645, None, 151643, 30523, 30524)
INTERNLM_TOKENS = TokenIds(92546, 92553, 92542, 1, 2, 30523, 30524)


@pytest.mark.parametrize("size", SIZES)
def test_every_key_and_shape_has_its_place(golden_dir: Path, size: str):
    listed = golden_dir.parent / f"official_keys_{size}.json"
    if not listed.is_file():
        pytest.skip(f"no list of the release's keys in {listed}")
    shapes = {key: tuple(shape) for key, shape in json.loads(listed.read_text(encoding="utf-8")).items()}
    num_keys, language = SIZES[size]
    assert len(shapes) == num_keys
    embeddings = next(key for key in shapes if key.endswith(("embed_tokens.weight", "tok_embeddings.weight")))
    parts = aggregator_config(shapes, {}) | {"sam_config": sam2_config(shapes, SAM_PREFIX, {})}
    foreign = {"llm_config": language, "vision_config": VISION}
    tokens = INTERNLM_TOKENS if size == "8b" else QWEN_TOKENS
    config = release_config(foreign, shapes[embeddings][0], False, tokens, parts)
    with torch.device("meta"):
        ours = {
            name: tuple(tensor.shape) for name, tensor in SamaForConditionalGeneration(config).state_dict().items()
        }
    text = config.text_config
    keys = map_release(shapes, text.num_key_value_heads, text.hidden_size // text.num_attention_heads)
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


def test_the_8b_keeps_its_dynamic_rotary_scaling():
    _, language = SIZES["8b"]
    foreign = {"llm_config": language, "vision_config": VISION}
    config = release_config(foreign, 92558, False, INTERNLM_TOKENS, {})
    assert config.text_config.model_type == "llama"
    rope = config.text_config.rope_parameters
    assert (rope["rope_type"], rope["factor"], rope["rope_theta"]) == ("dynamic", 2.0, 1000000.0)
    assert config.text_config.eos_token_id == 92542  # <|im_end|>, not </s>
