"""How the releases store each family of vision-language models: one table for each."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sama.conversion import native
from sama.conversion.files import CheckpointError
from sama.conversion.pieces import BACKBONE, LANGUAGE, PROJECTOR, VISION, Prefixes, Rules
from sama.modeling_sama_backbones import FAMILIES


@dataclass(frozen=True)
class BackboneTable:
    """
    Names and settings of one family.

    Args:
        model_type (`str`): Of our `backbone_config`.
        part_types (`tuple[str]`): `model_type`s of parts of `config.json` that only this family has.
        mark (`str` or `tuple[str]`): Ends of names of which every checkpoint of this family has one.
        prefixes (`list`): Prefixes of source names, of ours, and rules for the rest of a name; the first match counts.
        config (`Callable`): From `config.json` to our `backbone_config`, without vocabulary and token ids.
        token_names (`dict[str, str]`): Entries of our `backbone_config` that are ids of tokens, and these tokens.
        tags (`tuple[str]`): Other tokens that the prompt needs.
        wrapper (`str`): What Sa2VA puts in front of these names.
        seg_state (`str`): The state of a `[SEG]` token that Sa2VA's projection reads.
        region_prompts (`str`): How Sa2VA reads regions.
        published_turn_format (`str`): The newlines of Sa2VA's published inference. In training they are always those
            of `newline_after`.
        training_template (`str`, *optional*): Sa2VA's chat template in training, where its published inference uses
            the tokenizer's own.
    """

    model_type: str
    part_types: tuple[str, ...]
    mark: str | tuple[str, ...]
    prefixes: Prefixes
    config: Callable[[Mapping[str, Any]], dict[str, Any]]
    token_names: dict[str, str]
    tags: tuple[str, ...] = ()
    wrapper: str = ""
    seg_state: str = "after_norm"
    region_prompts: str = "none"
    published_turn_format: str = "newline_after"
    training_template: str | None = None


def pick(foreign: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """The entries of `foreign` that have these names and a value."""
    return {name: foreign[name] for name in names if foreign.get(name) is not None}


def rope_parameters(foreign: Mapping[str, Any], theta: float = 10000.0) -> dict[str, Any]:
    """`rope_parameters` in transformers' current format, with scaling such as InternLM2's dynamic one or the sections
    of a rotary embedding in three dimensions. `theta` counts where the source names none."""
    scaling = dict(foreign.get("rope_parameters") or foreign.get("rope_scaling") or {})
    kind = scaling.pop("rope_type", None) or scaling.pop("type", None) or "default"
    scaling.pop("type", None)
    # Sections belong to the model; only files written before transformers 4.48 call them a type
    kind = "default" if kind == "mrope" else kind
    return {"rope_type": kind, "rope_theta": foreign.get("rope_theta", theta), **scaling}


# ---- InternVL 2.5 and 3 ------------------------------------------------------------

LANGUAGE_MODELS = {"qwen2": "qwen2", "qwen3": "qwen3", "internlm2": "llama", "llama": "llama"}  # `model_type`: ours
VISION_RULES: Rules = [
    (r"encoder\.layers\.", "encoder.layer."),
    (r"class_embedding$", "cls_token"),
    (r"position_embedding$", "position_embeddings"),
    (r"patch_embedding\.", "patch_embeddings.projection."),
    (r"\.attn\.proj\.", ".attention.projection_layer."),
    (r"\.attn\.", ".attention."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.ls(\d)$", r".lambda_\1"),
]
INTERNVL_TAGS = FAMILIES["internvl"].tags
PROJECTOR_RULES: Rules = [(r"^0\.", "layer_norm."), (r"^1\.", "linear_1."), (r"^3\.", "linear_2.")]
INTERNLM2_RULES: Rules = [
    (r"^tok_embeddings\.", "embed_tokens."),
    (r"\.attention\.wo\.", ".self_attn.o_proj."),
    (r"\.attention\.wqkv\.", ".self_attn.wqkv."),
    (r"\.feed_forward\.w1\.", ".mlp.gate_proj."),
    (r"\.feed_forward\.w2\.", ".mlp.down_proj."),
    (r"\.feed_forward\.w3\.", ".mlp.up_proj."),
    (r"\.attention_norm\.", ".input_layernorm."),
    (r"\.ffn_norm\.", ".post_attention_layernorm."),
]


def text_config(foreign: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of InternVL's language model. InternLM2 becomes Llama, which computes the same."""
    model_type = foreign.get("model_type")
    if model_type not in LANGUAGE_MODELS:
        raise CheckpointError(
            f"A language model of type {model_type!r} is not supported: expected one of {', '.join(LANGUAGE_MODELS)}."
        )
    names = (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "head_dim", "hidden_act", "max_position_embeddings", "rms_norm_eps", "initializer_range", "attention_dropout",
    )  # fmt: skip
    config = pick(foreign, names)
    config |= {"model_type": LANGUAGE_MODELS[model_type], "rope_parameters": rope_parameters(foreign)}
    if LANGUAGE_MODELS[model_type] == "llama":
        bias = bool(foreign.get("bias", foreign.get("attention_bias", False)))
        config |= {"attention_bias": bias, "mlp_bias": False}
    elif foreign.get("use_sliding_window"):
        config |= pick(foreign, ("use_sliding_window", "sliding_window", "max_window_layers"))
    return config


def vision_config(foreign: Mapping[str, Any], image_size: int | None) -> dict[str, Any]:
    """The configuration of InternVL's vision tower."""
    names = {
        "hidden_size": "hidden_size", "num_hidden_layers": "num_hidden_layers", "patch_size": "patch_size",
        "num_attention_heads": "num_attention_heads", "intermediate_size": "intermediate_size",
        "qkv_bias": "attention_bias", "qk_normalization": "use_qk_norm", "hidden_act": "hidden_act",
        "norm_type": "norm_type", "layer_norm_eps": "layer_norm_eps", "num_channels": "num_channels",
        "initializer_range": "initializer_range",
    }  # fmt: skip
    config = {own: foreign[name] for name, own in names.items() if name in foreign}
    return config | {"model_type": "internvl_vision", "image_size": image_size or foreign.get("image_size", 448)}


def internvl_config(foreign: Mapping[str, Any]) -> dict[str, Any]:
    """`backbone_config` of InternVL."""
    if "llm_config" not in foreign:
        return native.internvl_config(foreign)
    if foreign.get("ps_version", "v2") != "v2":
        raise CheckpointError(
            f"`ps_version` is {foreign['ps_version']!r}, but only InternVL2.5's pixel shuffle 'v2' is supported."
        )
    vision = vision_config(foreign["vision_config"], foreign.get("force_image_size"))
    ratio = foreign.get("downsample_ratio", 0.5)
    return {
        "text_config": text_config(foreign["llm_config"]),
        "vision_config": vision,
        "downsample_ratio": ratio,
        "vision_feature_layer": foreign.get("select_layer", -1),
        "image_seq_length": int((vision["image_size"] // vision["patch_size"] * ratio) ** 2),
    }


INTERNVL = BackboneTable(
    model_type="internvl",
    part_types=("internvl_vision",),
    mark=("mlp1.0.weight", native.INTERNVL_MARK),
    prefixes=[
        ("vision_model.", VISION, VISION_RULES),
        ("mlp1.", PROJECTOR, PROJECTOR_RULES),
        ("language_model.model.", LANGUAGE, INTERNLM2_RULES),
        ("language_model.lm_head.", "lm_head.", []),
        ("language_model.output.", "lm_head.", []),
        *native.INTERNVL_PREFIXES,
    ],
    config=internvl_config,
    token_names={"image_token_id": INTERNVL_TAGS.context},
    tags=(INTERNVL_TAGS.start, INTERNVL_TAGS.end),
    region_prompts="cells",
)


# ---- Qwen2.5-VL ------------------------------------------------------------

QWEN_PREFIXES: Prefixes = [
    ("model.visual.", f"{BACKBONE}visual.", []),
    ("model.language_model.", f"{BACKBONE}language_model.", []),
    ("lm_head.", "lm_head.", []),
    # Before transformers 4.52
    ("visual.", f"{BACKBONE}visual.", []),
    *((f"model.{part}.", f"{BACKBONE}language_model.{part}.", []) for part in ("embed_tokens", "layers", "norm")),
]
QWEN_TAGS = FAMILIES["qwen2_5_vl"].tags  # Qwen3-VL's, too
QWEN_TOKEN_NAMES = {
    "image_token_id": QWEN_TAGS.context, "video_token_id": "<|video_pad|>",
    "vision_start_token_id": QWEN_TAGS.start, "vision_end_token_id": QWEN_TAGS.end,
}  # fmt: skip
TEXT_SIZES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "hidden_act", "max_position_embeddings", "rms_norm_eps", "initializer_range", "attention_bias",
    "attention_dropout", "use_sliding_window", "sliding_window", "max_window_layers",
)  # fmt: skip
VISION_SIZES = (
    "depth", "hidden_size", "hidden_act", "intermediate_size", "num_heads", "in_channels", "patch_size",
    "spatial_merge_size", "temporal_patch_size", "out_hidden_size", "initializer_range",
)  # fmt: skip


def qwen2_5_vl_config(foreign: Mapping[str, Any]) -> dict[str, Any]:
    """`backbone_config` of Qwen2.5-VL, whose text settings stood at the top before transformers 4.52."""
    text, vision = foreign.get("text_config") or foreign, foreign["vision_config"]
    own = ("fullatt_block_indexes", "tokens_per_second", "window_size")
    return {
        "text_config": pick(text, TEXT_SIZES)
        | {"model_type": "qwen2_5_vl_text", "rope_parameters": rope_parameters(text, 1000000.0)},
        "vision_config": pick(vision, VISION_SIZES + own) | {"model_type": "qwen2_5_vl_vision"},
    }


QWEN2_5_VL = BackboneTable(
    model_type="qwen2_5_vl",
    part_types=("qwen2_5_vl_text", "qwen2_5_vl_vision"),
    mark="visual.merger.ln_q.weight",
    prefixes=QWEN_PREFIXES,
    wrapper="model.",
    config=qwen2_5_vl_config,
    token_names=QWEN_TOKEN_NAMES,
    published_turn_format="newline_after_frames",
    training_template="qwen_chat",
)


# ---- Qwen3-VL ------------------------------------------------------------


def qwen3_vl_config(foreign: Mapping[str, Any]) -> dict[str, Any]:
    """`backbone_config` of Qwen3-VL."""
    text, vision = foreign["text_config"], foreign["vision_config"]
    own = ("num_position_embeddings", "deepstack_visual_indexes")
    return {
        "text_config": pick(text, TEXT_SIZES)
        | {"model_type": "qwen3_vl_text", "rope_parameters": rope_parameters(text, 5000000.0)},
        "vision_config": pick(vision, VISION_SIZES + own) | {"model_type": "qwen3_vl_vision"},
    }


QWEN3_VL = BackboneTable(
    model_type="qwen3_vl",
    part_types=("qwen3_vl_text", "qwen3_vl_vision"),
    mark="visual.deepstack_merger_list.0.norm.weight",
    prefixes=QWEN_PREFIXES,
    wrapper="model.",
    config=qwen3_vl_config,
    token_names=QWEN_TOKEN_NAMES,
    published_turn_format="newline_after_frames",
    training_template="qwen_chat",
    # `hidden_states[-1]` of the transformers that it was trained with (4.57) is the input of the final norm
    seg_state="before_norm",
)


# ---- LLaVA 1.5 ------------------------------------------------------------


def llava_config(foreign: Mapping[str, Any]) -> dict[str, Any]:
    """`backbone_config` of LLaVA 1.5."""
    text, vision = foreign["text_config"], foreign["vision_config"]
    sizes = (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size",
        "hidden_act", "layer_norm_eps", "projection_dim",
    )  # fmt: skip
    return pick(foreign, ("projector_hidden_act", "vision_feature_layer", "vision_feature_select_strategy")) | {
        "text_config": pick(text, TEXT_SIZES) | {"model_type": "llama", "rope_parameters": rope_parameters(text)},
        "vision_config": pick(vision, sizes) | {"model_type": "clip_vision_model"},
        "image_seq_length": (vision["image_size"] // vision["patch_size"]) ** 2,
    }


LLAVA = BackboneTable(
    model_type="llava",
    part_types=("clip_vision_model",),
    mark="multi_modal_projector.linear_1.weight",
    prefixes=[
        ("model.vision_tower.vision_model.", f"{BACKBONE}vision_tower.", []),
        ("model.", BACKBONE, []),
        ("lm_head.", "lm_head.", []),
    ],
    wrapper="model.",
    config=llava_config,
    token_names={"image_token_index": "<image>"},
)


# ---- choice ------------------------------------------------------------

BACKBONES = {table.model_type: table for table in (INTERNVL, QWEN2_5_VL, QWEN3_VL, LLAVA)}


def has_mark(model_type: str, keys: Iterable[str]) -> bool:
    """Whether these tensor names are those of a family."""
    return any(key.endswith(BACKBONES[model_type].mark) for key in keys)


def backbone_table(file: Path, foreign: Mapping[str, Any]) -> BackboneTable:
    """
    The table for a `config.json`. All Sa2VA have the same `model_type`, so its parts decide.

    Raises:
        CheckpointError: If there is none.
    """
    if "llm_config" in foreign:
        return INTERNVL
    parts = [foreign.get(name) for name in ("text_config", "vision_config")]
    types = [part["model_type"] for part in parts if isinstance(part, Mapping) and "model_type" in part]
    if not types:
        raise CheckpointError(
            f"{file} has no llm_config (InternVL) and no text_config (other families); does it belong to these "
            "weights?"
        )
    for table in BACKBONES.values():
        if any(kind in (table.model_type, *table.part_types) for kind in types):
            return table
    raise CheckpointError(
        f"A vision-language model of type {types[0]!r} is not supported: expected one of {', '.join(BACKBONES)}."
    )
