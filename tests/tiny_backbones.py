"""A SAMA on each family of backbones, at the smallest sizes and with random weights, for tests."""

import pytest
import torch
from processor_fixtures import language_tokenizer, qformer_tokenizer
from tiny_model import Templates, tiny_config

from sama.configuration_sama import SamaConfig
from sama.conversion.folder import turn_format
from sama.modeling_sama import SamaForConditionalGeneration
from sama.modeling_sama_backbones import FAMILIES
from sama.processing_sama import SamaProcessor
from sama.prompts_sama import LANGUAGE_TAGS


TOKEN_PIXELS = 8  # side of the square of a token, in Qwen's frames
TEXT = {
    "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 300, "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}  # fmt: skip
POSITIONS = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]}
PATCHES = {"patch_size": TOKEN_PIXELS // 2, "temporal_patch_size": 2, "spatial_merge_size": 2}
QWEN2_5_VISION = {
    "hidden_size": 32, "intermediate_size": 64, "depth": 2, "num_heads": 2, "out_hidden_size": 64,
    "window_size": 16, "fullatt_block_indexes": [1], **PATCHES,
}  # fmt: skip
QWEN3_VISION = {
    "hidden_size": 32, "intermediate_size": 64, "depth": 4, "num_heads": 2, "out_hidden_size": 64,
    "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1, 2], **PATCHES,
}  # fmt: skip
BACKBONES = {
    "internvl": {"text_config": {**TEXT, "model_type": "qwen2"}},
    "internvl, qwen3": {"text_config": {**TEXT, "model_type": "qwen3"}},
    "internvl, llama": {"text_config": {**TEXT, "model_type": "llama"}},
    "internvl, vision tower of 26B": {  # InternViT-6B
        "text_config": {**TEXT, "model_type": "llama"},
        "vision_config": {"norm_type": "rms_norm", "use_qk_norm": True, "attention_bias": False},
    },
    "qwen2_5_vl": {
        "text_config": {**TEXT, "model_type": "qwen2_5_vl_text", "rope_parameters": POSITIONS},
        "vision_config": QWEN2_5_VISION,
    },
    "qwen3_vl": {
        "text_config": {
            **TEXT,
            "model_type": "qwen3_vl_text",
            "rope_parameters": {**POSITIONS, "mrope_interleaved": True},
        },
        "vision_config": QWEN3_VISION,
    },
}
FAMILY = [name for name in BACKBONES if "," not in name]  # one language model of each family
# A Llama behind the vision tower of 26B is tested always; behind InternVL's other one, it is a slow test
CHECKED = [pytest.param(name, marks=pytest.mark.slow) if name == "internvl, llama" else name for name in BACKBONES]


def tiny_backbone_config(name: str, with_aggregator: bool = True, **settings) -> SamaConfig:
    """The configuration of a SAMA, or without aggregator of a Sa2VA, on the backbone `name`."""
    small, model_type = tiny_config().to_dict(), name.partition(",")[0]
    backbone = {**BACKBONES[name], "model_type": model_type, "tie_word_embeddings": False}
    if model_type == "internvl":
        vision = small["backbone_config"]["vision_config"] | BACKBONES[name].get("vision_config", {})
        backbone |= {"vision_config": vision, "image_seq_length": 4}
    small = {key: value for key, value in small.items() if key not in ("model_type", "auto_map", "region_prompts")}
    small |= {
        "backbone_config": backbone,
        "aggregator_config": small["aggregator_config"] if with_aggregator else None,
    }
    tokenizer = backbone_tokenizer(name)
    ids = {"seg_token_id": tokenizer.convert_tokens_to_ids("[SEG]")}
    backbone["image_token_id"] = tokenizer.convert_tokens_to_ids(FAMILIES[model_type].tags.context)
    marks = qformer_tokenizer().convert_tokens_to_ids(["<mask>", "<pos>"])
    ids |= dict(zip(("qformer_mask_token_id", "qformer_position_token_id"), marks, strict=True))
    return SamaConfig(**small | ids | settings)


def backbone_tokenizer(name: str):
    return language_tokenizer((*LANGUAGE_TAGS, *FAMILIES[name.partition(",")[0]].tags))


def build_backbone(name: str, with_aggregator: bool, seed: int, **settings) -> SamaForConditionalGeneration:
    config = tiny_backbone_config(name, with_aggregator, **settings)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = SamaForConditionalGeneration(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=0.1)
                elif not parameter.any():
                    parameter.normal_(std=0.02)
    return model


MODELS = Templates(build_backbone)


def tiny_backbone(
    name: str, with_aggregator: bool = True, seed: int = 0, **settings
) -> tuple[SamaForConditionalGeneration, SamaProcessor]:
    """The model in evaluation mode, every parameter of it random, and its processor."""
    model = MODELS.get(name, with_aggregator, seed, **settings)
    config = model.config
    sizes = {"image_size": 32, "max_tiles": 4} if name.startswith("internvl") else {}
    processor = SamaProcessor(
        tokenizer=backbone_tokenizer(name),
        qformer_tokenizer=qformer_tokenizer(),
        config=config,
        turn_format=turn_format(config, kind=config.backbone_config.model_type if with_aggregator else "sa2va"),
        **sizes,
    )
    if not sizes:
        pixels = TOKEN_PIXELS**2
        processor.image_processor.size = type(processor.image_processor.size)(
            shortest_edge=4 * pixels, longest_edge=16 * pixels
        )
    return model, processor
