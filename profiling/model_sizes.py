"""The models of docs/models.md at their true sizes: configurations without weights, for computing memory.

The sizes are those of the base models' published `config.json` files; number of tokens as specified for each release.
"""

from collections.abc import Collection
from typing import Any

from sama.configuration_sama import SamaConfig
from sama.conversion.backbones import BACKBONES
from sama.conversion.configs import default_sam2_config
from sama.conversion.folder import PIXEL_LIMITS
from sama.conversion.released_sizes import LANGUAGE_MODELS, VISION, released_config
from sama.modeling_sama_backbones import backbone_family


Settings = dict[str, Any]


def text(hidden: int, mlp: int, layers: int, heads: int, groups: int, **others) -> Settings:
    """A language model: widths of states and of the perceptron, layers, query heads, key/value heads."""
    return {
        "hidden_size": hidden, "intermediate_size": mlp, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": groups, **others,
    }  # fmt: skip


QWEN2, INTERNLM2 = {"model_type": "qwen2"}, {"model_type": "internlm2"}
VISION_6B = VISION | {
    "hidden_size": 3200, "num_hidden_layers": 45, "num_attention_heads": 25, "intermediate_size": 12800,
    "qkv_bias": False, "qk_normalization": True, "norm_type": "rms_norm",
}  # fmt: skip
QWEN2_5_VISION = {
    "model_type": "qwen2_5_vl", "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16,
    "patch_size": 14, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31],
}  # fmt: skip
QWEN3_VISION = {
    "model_type": "qwen3_vl", "depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16,
    "patch_size": 16, "deepstack_visual_indexes": [5, 11, 17], "num_position_embeddings": 2304,
}  # fmt: skip
QWEN2_5_POSITIONS = {"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}
QWEN3_POSITIONS = {"head_dim": 128, "rope_scaling": {"mrope_section": [24, 20, 20], "mrope_interleaved": True}}
# Family, language model, vision tower, and embedding rows of a Sa2VA
BACKBONE_SIZES: dict[str, tuple[str, Settings, Settings, int]] = {
    **{
        f"InternVL2.5-{size.upper()}": ("internvl", language, VISION, rows)
        for size, (language, rows, _) in LANGUAGE_MODELS.items()
    },
    "InternVL2.5-26B": ("internvl", INTERNLM2 | text(6144, 16384, 48, 48, 8), VISION_6B, 92558),
    "InternVL3-2B": ("internvl", QWEN2 | text(1536, 8960, 28, 12, 2), VISION, 151679),
    "InternVL3-8B": ("internvl", QWEN2 | text(3584, 18944, 28, 28, 4), VISION, 151679),
    "InternVL3-14B": ("internvl", QWEN2 | text(5120, 13824, 48, 40, 8), VISION, 151679),
    "Qwen2.5-VL-3B": ("qwen2_5_vl", QWEN2_5_POSITIONS | text(2048, 11008, 36, 16, 2), QWEN2_5_VISION, 151670),
    "Qwen2.5-VL-7B": ("qwen2_5_vl", QWEN2_5_POSITIONS | text(3584, 18944, 28, 28, 4), QWEN2_5_VISION, 151670),
    "Qwen3-VL-2B": ("qwen3_vl", QWEN3_POSITIONS | text(2048, 6144, 28, 16, 8), QWEN3_VISION, 151674),
    "Qwen3-VL-4B": ("qwen3_vl", QWEN3_POSITIONS | text(2560, 9728, 36, 32, 8), QWEN3_VISION, 151674),
}
REPVIT = {
    "model_type": "timm_wrapper",
    "architecture": "repvit_m1",
    "num_classes": 1000,  # without it, the configuration asks the Hub for it
    "pretrained_cfg": {"num_classes": 1000},
    "model_args": {"in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3]},
}
EXTRAS_OF_2_1 = ("enable_temporal_pos_encoding_for_object_pointers", "enable_occlusion_spatial_embedding")
TRACKERS: dict[str, Settings] = {
    "SAM 2.0": default_sam2_config(),
    "SAM 2.1": default_sam2_config() | dict.fromkeys(EXTRAS_OF_2_1, True),
    "SAM 3's tracker": {"model_type": "sam3_tracker_video"},
    "EdgeTAM": {
        "model_type": "edgetam_video",
        "vision_config": {"model_type": "edgetam_vision_model", "backbone_config": REPVIT},
    },
}  # fmt: skip
# Embedding rows of the base models that a SAMA is started from, and whether their head is the embeddings
STARTS = {"Qwen3-VL-4B": (151936, True), "InternVL3-8B": (151679, False)}


def backbone_config(name: str, num_rows: int | None = None, tied: bool = False) -> Settings:
    """The `backbone_config` of a Sa2VA, or with that many rows of its base model."""
    family, language, vision, rows = BACKBONE_SIZES[name]
    names = ("llm_config", "vision_config") if family == "internvl" else ("text_config", "vision_config")
    if family != "internvl":
        vision = vision | {"out_hidden_size": language["hidden_size"]}
    settings = BACKBONES[family].config(dict(zip(names, (language, vision), strict=True)))
    both = {"vocab_size": num_rows or rows, "tie_word_embeddings": tied}
    return settings | {
        "model_type": family,
        "text_config": settings["text_config"] | both,
        "tie_word_embeddings": tied,
    }


def sa2va_config(backbone: str, tracker: str = "SAM 2.0", preset: str = "published") -> SamaConfig:
    """A Sa2VA: a model without context aggregator."""
    return SamaConfig(
        backbone_config=backbone_config(backbone), mask_config=TRACKERS[tracker], aggregator_config=None,
        tie_word_embeddings=False, preset=preset,
    )  # fmt: skip


def sama_config(backbone: str, tracker: str) -> SamaConfig:
    """A SAMA that starts from the base model `backbone`."""
    rows, tied = STARTS[backbone]
    return SamaConfig(
        backbone_config=backbone_config(backbone, rows, tied), mask_config=TRACKERS[tracker], tie_word_embeddings=tied
    )


def model_configs(trackers: Collection[str] = tuple(TRACKERS)) -> dict[str, SamaConfig]:
    """Every model of docs/models.md by name, as far as its mask tracker is among `trackers`."""
    found = {f"SAMA-{size.upper()}": released_config(size) for size in LANGUAGE_MODELS}
    for name in BACKBONE_SIZES:
        short = name.removeprefix("InternVL2.5-").replace("Qwen2.5", "Qwen2_5")
        found[f"Sa2VA-{short}"] = sa2va_config(name)
        if name.startswith("InternVL2.5-"):
            found[f"Sa2VA-i-{short}"] = sa2va_config(name, preset="consistent")
    found["Sa2VA-Qwen3-VL-4B-SAM3"] = sa2va_config("Qwen3-VL-4B", "SAM 3's tracker")
    for name in STARTS:
        found |= {
            f"SAMA on {name}, {tracker}": sama_config(name, tracker) for tracker in trackers if tracker != "SAM 2.0"
        }
    return found


def max_frame_tokens(config: SamaConfig) -> int:
    """The most tokens that a converted processor makes of a frame."""
    family = backbone_family(config.backbone_config)
    image_processor = family.make_image_processor()
    if "shortest_edge" in image_processor.size:
        fewest, most = PIXEL_LIMITS[config.preset]
        image_processor.size = type(image_processor.size)(shortest_edge=fewest, longest_edge=most)
    return family.max_frame_tokens(image_processor)
