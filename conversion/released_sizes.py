"""Configurations of the three released sizes, with the values of their `config.json` files."""

from typing import Any

from sama.configuration_sama import SamaConfig
from sama.conversion.backbones import INTERNVL
from sama.conversion.configs import TokenIds, default_sam2_config, release_config


VISION = {
    "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
    "patch_size": 14, "image_size": 448, "qkv_bias": True, "qk_normalization": False, "norm_type": "layer_norm",
}  # fmt: skip
QWEN = {"model_type": "qwen2", "rope_theta": 1000000.0, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6}
INTERNLM = {"model_type": "internlm2", "rope_theta": 1000000.0, "max_position_embeddings": 32768, "rms_norm_eps": 1e-5}
QWEN_TOKENS = TokenIds({"image_token_id": 151667}, 151674, 151645, None, 151643, 30523, 30524)
INTERNLM_TOKENS = TokenIds({"image_token_id": 92546}, 92553, 92542, 1, 2, 30523, 30524)

# Language model, number of embedding rows, and token ids of each size
LANGUAGE_MODELS: dict[str, tuple[dict[str, Any], int, TokenIds]] = {
    "1b": (QWEN | {
        "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
        "num_key_value_heads": 2,
    }, 151679, QWEN_TOKENS),
    "4b": (QWEN | {
        "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16,
        "num_key_value_heads": 2,
    }, 151679, QWEN_TOKENS),
    "8b": (INTERNLM | {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "rope_scaling": {"type": "dynamic", "factor": 2.0}, "bias": False,
    }, 92558, INTERNLM_TOKENS),
}  # fmt: skip


def released_config(size: str) -> SamaConfig:
    """The configuration of a released SAMA (`"1b"`, `"4b"` or `"8b"`). Other entries keep [`SamaConfig`]'s defaults,
    which are the release's."""
    language, vocab_size, tokens = LANGUAGE_MODELS[size]
    parts = {"mask_config": default_sam2_config(), "preset": "published", "null_region_scale": 1.0}
    parts["round_rotary_to_bfloat16"] = language["model_type"] == "qwen2"
    backbone = INTERNVL.config({"llm_config": language, "vision_config": VISION})
    return release_config(INTERNVL, backbone, vocab_size, False, tokens, parts)
