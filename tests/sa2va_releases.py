"""The released Sa2VA family: settings, tensor names and shapes of each, and tiny ones of the same kinds.

Written from the names that the releases store, not from those of our converter.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import foreign_checkpoints as foreign
import torch
from foreign_checkpoints import Shapes, linear, norm
from safetensors.torch import save_file


SAM = "grounding_encoder.sam2_model."
HIERA_LARGE = ((144, 2), (288, 6), (576, 36), (1152, 4))
Settings = dict[str, Any]


@dataclass(frozen=True)
class Release:
    """`config.json`, tensor shapes, and the token `[SEG]`, the first of five that end the vocabulary."""

    config: Settings
    shapes: Shapes
    seg_token_id: int
    chat_tokens: list[str] = field(default_factory=list)


# ---- vision towers ------------------------------------------------------------


def intern_vit_shapes(c: Settings, prefix: str = "vision_model.") -> Shapes:
    w, mlp, patch = c["hidden_size"], c["intermediate_size"], c["patch_size"]
    tokens = (c["image_size"] // patch) ** 2 + 1
    shapes = {f"{prefix}embeddings.class_embedding": (1, 1, w)}
    shapes |= {f"{prefix}embeddings.position_embedding": (1, tokens, w)}
    shapes |= linear(f"{prefix}embeddings.patch_embedding", w, 3, patch, patch)
    for n in range(c["num_hidden_layers"]):
        layer = f"{prefix}encoder.layers.{n}."
        shapes |= {f"{layer}ls1": (w,), f"{layer}ls2": (w,), f"{layer}attn.qkv.weight": (3 * w, w)}
        shapes |= {f"{layer}attn.qkv.bias": (3 * w,)} if c["qkv_bias"] else {}
        if c["qk_normalization"]:
            shapes |= {f"{layer}attn.q_norm.weight": (w,), f"{layer}attn.k_norm.weight": (w,)}
        for name in ("norm1", "norm2"):
            shapes |= {f"{layer}{name}.weight": (w,)}
            shapes |= {f"{layer}{name}.bias": (w,)} if c["norm_type"] == "layer_norm" else {}
        shapes |= linear(f"{layer}attn.proj", w, w)
        shapes |= linear(f"{layer}mlp.fc1", mlp, w) | linear(f"{layer}mlp.fc2", w, mlp)
    return shapes


def qwen2_5_visual_shapes(c: Settings, prefix: str) -> Shapes:
    w, mlp, merged = c["hidden_size"], c["intermediate_size"], c["hidden_size"] * c["spatial_merge_size"] ** 2
    patch = c["patch_size"]
    shapes = {f"{prefix}patch_embed.proj.weight": (w, 3, c["temporal_patch_size"], patch, patch)}
    for n in range(c["depth"]):
        block = f"{prefix}blocks.{n}."
        shapes |= {f"{block}norm1.weight": (w,), f"{block}norm2.weight": (w,)}
        shapes |= linear(f"{block}attn.qkv", 3 * w, w) | linear(f"{block}attn.proj", w, w)
        shapes |= linear(f"{block}mlp.gate_proj", mlp, w) | linear(f"{block}mlp.up_proj", mlp, w)
        shapes |= linear(f"{block}mlp.down_proj", w, mlp)
    shapes |= {f"{prefix}merger.ln_q.weight": (w,)} | linear(f"{prefix}merger.mlp.0", merged, merged)
    return shapes | linear(f"{prefix}merger.mlp.2", c["out_hidden_size"], merged)


def qwen3_visual_shapes(c: Settings, prefix: str) -> Shapes:
    w, mlp, merged = c["hidden_size"], c["intermediate_size"], c["hidden_size"] * c["spatial_merge_size"] ** 2
    patch, out = c["patch_size"], c["out_hidden_size"]
    shapes = linear(f"{prefix}patch_embed.proj", w, 3, c["temporal_patch_size"], patch, patch)
    shapes |= {f"{prefix}pos_embed.weight": (c["num_position_embeddings"], w)}
    for n in range(c["depth"]):
        block = f"{prefix}blocks.{n}."
        shapes |= norm(f"{block}norm1", w) | norm(f"{block}norm2", w)
        shapes |= linear(f"{block}attn.qkv", 3 * w, w) | linear(f"{block}attn.proj", w, w)
        shapes |= linear(f"{block}mlp.linear_fc1", mlp, w) | linear(f"{block}mlp.linear_fc2", w, mlp)
    mergers = {f"{prefix}merger.": w}
    mergers |= {f"{prefix}deepstack_merger_list.{n}.": merged for n in range(len(c["deepstack_visual_indexes"]))}
    for merger, width in mergers.items():
        shapes |= norm(f"{merger}norm", width) | linear(f"{merger}linear_fc1", merged, merged)
        shapes |= linear(f"{merger}linear_fc2", out, merged)
    return shapes


def clip_shapes(c: Settings, prefix: str) -> Shapes:
    w, mlp, patch = c["hidden_size"], c["intermediate_size"], c["patch_size"]
    shapes = {f"{prefix}embeddings.class_embedding": (w,)}
    shapes |= {f"{prefix}embeddings.patch_embedding.weight": (w, 3, patch, patch)}
    shapes |= {f"{prefix}embeddings.position_embedding.weight": ((c["image_size"] // patch) ** 2 + 1, w)}
    shapes |= norm(f"{prefix}pre_layrnorm", w) | norm(f"{prefix}post_layernorm", w)
    for n in range(c["num_hidden_layers"]):
        layer = f"{prefix}encoder.layers.{n}."
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= linear(f"{layer}self_attn.{name}", w, w)
        shapes |= norm(f"{layer}layer_norm1", w) | norm(f"{layer}layer_norm2", w)
        shapes |= linear(f"{layer}mlp.fc1", mlp, w) | linear(f"{layer}mlp.fc2", w, mlp)
    return shapes


# ---- language models ------------------------------------------------------------


def decoder_layers(c: Settings, prefix: str, rows: int, bias: bool = False, qk_norm: bool = False) -> Shapes:
    """Qwen2 (with biases), Qwen3 (with norms of queries and keys) or Llama, without the head."""
    w, mlp, heads, groups = (
        c[name] for name in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    )
    dim = c.get("head_dim", w // heads)
    shapes = {f"{prefix}embed_tokens.weight": (rows, w), f"{prefix}norm.weight": (w,)}
    for n in range(c["num_hidden_layers"]):
        layer = f"{prefix}layers.{n}."
        for name, out in (("q", heads), ("k", groups), ("v", groups)):
            shapes |= {f"{layer}self_attn.{name}_proj.weight": (out * dim, w)}
            shapes |= {f"{layer}self_attn.{name}_proj.bias": (out * dim,)} if bias else {}
        if qk_norm:
            shapes |= {f"{layer}self_attn.q_norm.weight": (dim,), f"{layer}self_attn.k_norm.weight": (dim,)}
        shapes |= {f"{layer}self_attn.o_proj.weight": (w, heads * dim), f"{layer}mlp.down_proj.weight": (w, mlp)}
        shapes |= {f"{layer}mlp.gate_proj.weight": (mlp, w), f"{layer}mlp.up_proj.weight": (mlp, w)}
        shapes |= {f"{layer}input_layernorm.weight": (w,), f"{layer}post_attention_layernorm.weight": (w,)}
    return shapes


def internlm2_shapes(c: Settings, prefix: str, rows: int) -> Shapes:
    w, mlp, heads, groups = (
        c[name] for name in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    )
    shapes = {f"{prefix}tok_embeddings.weight": (rows, w), f"{prefix}norm.weight": (w,)}
    for n in range(c["num_hidden_layers"]):
        layer = f"{prefix}layers.{n}."
        shapes |= {f"{layer}attention.wqkv.weight": ((heads + 2 * groups) * w // heads, w)}
        shapes |= {f"{layer}attention.wo.weight": (w, w), f"{layer}feed_forward.w2.weight": (w, mlp)}
        shapes |= {f"{layer}feed_forward.w1.weight": (mlp, w), f"{layer}feed_forward.w3.weight": (mlp, w)}
        shapes |= {f"{layer}attention_norm.weight": (w,), f"{layer}ffn_norm.weight": (w,)}
    return shapes


# ---- mask trackers ------------------------------------------------------------


def sam2_shapes(stages: foreign.Stages, modified: bool = False) -> Shapes:
    """SAM 2.0 in a release; Sa2VA-i stores the tuned decoder as a second, `modified` one."""
    shapes = foreign.sam2_shapes(SAM, "2.0", stages, scale="g_weight")
    decoder = f"{SAM}sam_mask_decoder."
    tuned = {name.replace(decoder, f"{SAM}sam_mask_decoder_modified."): shape for name, shape in shapes.items()}
    return shapes | (tuned if modified else {})


def sam3_shapes(c: Settings) -> Shapes:
    """SAM 3's image encoder with the necks of tracker and detector, and its tracker."""
    w, mlp, vision = c["width"], c["mlp"], "backbone.vision_backbone."
    shapes = {f"{vision}trunk.pos_embed": (1, c["positions"] + 1, w)}
    shapes |= {f"{vision}trunk.patch_embed.proj.weight": (w, 3, 14, 14)} | norm(f"{vision}trunk.ln_pre", w)
    for n in range(c["layers"]):
        block = f"{vision}trunk.blocks.{n}."
        shapes |= norm(f"{block}norm1", w) | norm(f"{block}norm2", w)
        shapes |= linear(f"{block}attn.qkv", 3 * w, w) | linear(f"{block}attn.proj", w, w)
        shapes |= linear(f"{block}mlp.fc1", mlp, w) | linear(f"{block}mlp.fc2", w, mlp)
    for neck in ("convs", "sam2_convs"):
        up = {f"{neck}.0.dconv_2x2_0": (w, w // 2), f"{neck}.0.dconv_2x2_1": (w // 2, w // 4)}
        up |= {f"{neck}.1.dconv_2x2": (w, w // 2)}
        for name, (into, out) in up.items():  # transposed convolutions
            shapes |= {f"{vision}{name}.weight": (into, out, 2, 2), f"{vision}{name}.bias": (out,)}
        for level, into in enumerate((w // 4, w // 2, w, w)):
            shapes |= linear(f"{vision}{neck}.{level}.conv_1x1", 256, into, 1, 1)
            shapes |= linear(f"{vision}{neck}.{level}.conv_3x3", 256, 256, 3, 3)
    tracker = foreign.memory_shapes("g_weight") | foreign.decoder_shapes()
    tracker |= {"no_obj_embed_spatial": (1, 64)} | linear("obj_ptr_tpos_proj", 64, 256)
    names = {"memory_attention.": "transformer.encoder.", "memory_encoder.": "maskmem_backbone."}
    for name, shape in tracker.items():
        for old, new in names.items():
            name = name.replace(old, new, 1) if name.startswith(old) else name
        shapes[name.replace(".mlp.layers.0.", ".mlp.lin1.").replace(".mlp.layers.1.", ".mlp.lin2.")] = shape
    return {f"{SAM}{name}": shape for name, shape in shapes.items()}


def sam3_file(shapes: Shapes, layers: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random tensors under the names of the authors' `sam3.pt`, which has a rotary table in each block of the image
    encoder.

    Args:
        shapes (`Shapes`): From [`sam3_shapes`].
        layers (`int`): Blocks of its image encoder.
    """
    names = {key: key.replace(SAM, "detector." if "vision_backbone" in key else "tracker.") for key in shapes}
    tensors = foreign.random_weights({names[key]: shape for key, shape in shapes.items()}, seed)
    block = "detector.backbone.vision_backbone.trunk.blocks"
    return tensors | {f"{block}.{n}.attn.freqs_cis": torch.ones(4, 4, dtype=torch.complex64) for n in range(layers)}


# ---- families ------------------------------------------------------------


def seg_projection_shapes(width: int) -> Shapes:
    return linear("text_hidden_fcs.0", width, width) | linear("text_hidden_fcs.2", 256, width)


INTERNVL_TOKENS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<img>", "</img>", "<IMG_CONTEXT>"]


def internvl(vision: Settings, language: Settings, template: str, seg: int, sam: Shapes) -> Release:
    rows, width = seg + 5, language["hidden_size"]
    tokens = width_of_tokens = vision["hidden_size"] * 4
    shapes = intern_vit_shapes(vision) | norm("mlp1.0", width_of_tokens)
    shapes |= linear("mlp1.1", width, tokens) | linear("mlp1.3", width, width)
    if language["model_type"] == "internlm2":
        shapes |= internlm2_shapes(language, "language_model.model.", rows)
        shapes |= {"language_model.output.weight": (rows, width)}
    else:
        shapes |= decoder_layers(language, "language_model.model.", rows, bias=True)
        shapes |= {"language_model.lm_head.weight": (rows, width)}
    config = {
        "model_type": "sa2va_chat", "architectures": ["Sa2VAChatModel"], "template": template, "ps_version": "v2",
        "auto_map": {"AutoModel": "modeling_sa2va_chat.Sa2VAChatModel"}, "llm_config": language,
        "vision_config": vision, "downsample_ratio": 0.5, "select_layer": -1, "force_image_size": vision["image_size"],
        "max_dynamic_patch": 12, "torch_dtype": "bfloat16",
    }  # fmt: skip
    return Release(config, shapes | seg_projection_shapes(width) | sam, seg, INTERNVL_TOKENS)


QWEN_TOKENS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
QWEN_TOKENS += ["<|video_pad|>"]


def qwen_vl(model_type: str, vision: Settings, text: Settings, seg: int, sam: Shapes, old: bool = False) -> Release:
    """Qwen2.5-VL or Qwen3-VL; `old` is the layout before transformers 4.52."""
    rows, width = seg + 5, text["hidden_size"]
    visual, language = (
        ("model.visual.", "model.model.") if old else ("model.model.visual.", "model.model.language_model.")
    )
    if model_type == "qwen2_5_vl":
        shapes = qwen2_5_visual_shapes(vision, visual) | decoder_layers(text, language, rows, bias=True)
    else:
        shapes = qwen3_visual_shapes(vision, visual) | decoder_layers(text, language, rows, qk_norm=True)
    shapes |= {"model.lm_head.weight": (rows, width)}
    text = text | {"model_type": f"{model_type}_text", "tie_word_embeddings": True, "vocab_size": rows}
    config = {
        "model_type": "sa2va_chat", "architectures": ["Sa2VAChatModelQwen"], "template": "qwen_chat",
        "auto_map": {"AutoModel": "modeling_sa2va_qwen.Sa2VAChatModelQwen"}, "tie_word_embeddings": True,
        "vision_config": vision | {"model_type": model_type}, "image_token_id": 151655, "video_token_id": 151656,
    }  # fmt: skip
    config |= text | {"model_type": "sa2va_chat"} if old else {"text_config": text}
    return Release(config, shapes | seg_projection_shapes(width) | sam, seg, QWEN_TOKENS)


LLAVA_TOKENS = ["<s>", "</s>", "<|endoftext|>", "<image>", "<pad>"]


def llava(vision: Settings, text: Settings, seg: int, sam: Shapes) -> Release:
    rows, width = seg + 5, text["hidden_size"]
    shapes = clip_shapes(vision, "model.model.vision_tower.vision_model.")
    shapes |= decoder_layers(text, "model.model.language_model.", rows)
    shapes |= linear("model.model.multi_modal_projector.linear_1", width, vision["hidden_size"])
    shapes |= linear("model.model.multi_modal_projector.linear_2", width, width)
    shapes |= {"model.lm_head.weight": (rows, width)}
    config = {
        "model_type": "sa2va_chat", "architectures": ["Sa2VAChatModelLlava"], "template": "vicuna",
        "auto_map": {"AutoModel": "modeling_sa2va_llava.Sa2VAChatModelLlava"}, "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default", "image_token_index": 32000, "projector_hidden_act": "gelu",
        "text_config": text | {"model_type": "llama"}, "vision_config": vision | {"model_type": "clip_vision_model"},
    }  # fmt: skip
    return Release(config, shapes | seg_projection_shapes(width) | sam, seg, LLAVA_TOKENS)


# ---- released sizes ------------------------------------------------------------

VIT = {"image_size": 448, "patch_size": 14, "hidden_act": "gelu", "layer_norm_eps": 1e-6, "num_channels": 3}
VIT_300M = VIT | {
    "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
    "norm_type": "layer_norm", "qkv_bias": True, "qk_normalization": False,
}  # fmt: skip
VIT_6B = VIT | {
    "hidden_size": 3200, "num_hidden_layers": 45, "num_attention_heads": 25, "intermediate_size": 12800,
    "norm_type": "rms_norm", "qkv_bias": False, "qk_normalization": True,
}  # fmt: skip
QWEN25 = {"model_type": "qwen2", "rope_theta": 1e6, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6}
INTERNLM25 = {"model_type": "internlm2", "rope_theta": 1e6, "max_position_embeddings": 32768, "rms_norm_eps": 1e-5}
DYNAMIC = {"rope_scaling": {"type": "dynamic", "factor": 2.0}}
QWEN25_VISUAL = {
    "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "patch_size": 14, "window_size": 112,
    "spatial_merge_size": 2, "temporal_patch_size": 2, "fullatt_block_indexes": [7, 15, 23, 31],
    "tokens_per_second": 2, "hidden_act": "silu",
}  # fmt: skip
QWEN3_VISUAL = {
    "depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16, "patch_size": 16,
    "spatial_merge_size": 2, "temporal_patch_size": 2, "deepstack_visual_indexes": [5, 11, 17],
    "num_position_embeddings": 2304, "hidden_act": "gelu_pytorch_tanh",
}  # fmt: skip
QWEN25_ROPE = {"rope_theta": 1e6, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}
QWEN3_ROPE = {
    "rope_theta": 5e6, "rms_norm_eps": 1e-6,
    "rope_scaling": {"rope_type": "default", "mrope_section": [24, 20, 20], "mrope_interleaved": True},
}  # fmt: skip
CLIP_LARGE = {
    "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
    "image_size": 336, "patch_size": 14,
}  # fmt: skip
SAM3 = {"width": 1024, "mlp": 4736, "layers": 32, "positions": 576}


def sizes(hidden: int, mlp: int, layers: int, heads: int, groups: int) -> Settings:
    return {
        "hidden_size": hidden, "intermediate_size": mlp, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": groups,
    }  # fmt: skip


LANGUAGE_1B, LANGUAGE_4B = QWEN25 | sizes(896, 4864, 24, 14, 2), QWEN25 | sizes(2048, 11008, 36, 16, 2)
LANGUAGE_8B = INTERNLM25 | DYNAMIC | sizes(4096, 14336, 32, 32, 8)
LANGUAGE_26B = INTERNLM25 | DYNAMIC | sizes(6144, 16384, 48, 48, 8)
INTERNVL25 = {
    "1B": (VIT_300M, LANGUAGE_1B, "qwen_chat", 151674),
    "4B": (VIT_300M, LANGUAGE_4B, "phi3_chat", 151674),
    "8B": (VIT_300M, LANGUAGE_8B, "internlm2_chat", 92553),
    "26B": (VIT_6B, LANGUAGE_26B, "internlm2_chat", 92553),
}
INTERNVL3 = {
    "InternVL3-2B": sizes(1536, 8960, 28, 12, 2),
    "InternVL3-8B": sizes(3584, 18944, 28, 28, 4),
    "InternVL3-14B": sizes(5120, 13824, 48, 40, 8),
}
QWEN3_2B = QWEN3_ROPE | sizes(2048, 6144, 28, 16, 8) | {"head_dim": 128}
QWEN3_4B = QWEN3_ROPE | sizes(2560, 9728, 36, 32, 8) | {"head_dim": 128}


def releases() -> Mapping[str, Release]:
    """All releases at their true sizes."""
    sam2, both = sam2_shapes(HIERA_LARGE), sam2_shapes(HIERA_LARGE, modified=True)
    found = {f"Sa2VA-{size}": internvl(*settings, sam2) for size, settings in INTERNVL25.items()}
    found |= {f"Sa2VA-i-{size}": internvl(*settings, both) for size, settings in INTERNVL25.items()}
    for name, size in INTERNVL3.items():
        found[f"Sa2VA-{name}"] = internvl(VIT_300M, QWEN25 | DYNAMIC | size, "qwen_chat", 151674, sam2)
    for name, size in (("3B", sizes(2048, 11008, 36, 16, 2)), ("7B", sizes(3584, 18944, 28, 28, 4))):
        visual = QWEN25_VISUAL | {"out_hidden_size": size["hidden_size"]}
        found[f"Sa2VA-Qwen2_5-VL-{name}"] = qwen_vl("qwen2_5_vl", visual, QWEN25_ROPE | size, 151665, sam2)
    for name, text, sam in (("2B", QWEN3_2B, sam2), ("4B", QWEN3_4B, sam2), ("4B-SAM3", QWEN3_4B, sam3_shapes(SAM3))):
        visual = QWEN3_VISUAL | {"out_hidden_size": text["hidden_size"]}
        found[f"Sa2VA-Qwen3-VL-{name}"] = qwen_vl("qwen3_vl", visual, text, 151669, sam)
    vicuna = {"rms_norm_eps": 1e-5, "max_position_embeddings": 4096} | sizes(4096, 11008, 32, 32, 32)
    found["Sa2VA-LLaVA-1.5-7B"] = llava(CLIP_LARGE, vicuna, 32002, sam2)
    return found


# ---- tiny ones of the same kinds ------------------------------------------------------------

TINY_VIT = VIT | {
    "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 56,
    "norm_type": "layer_norm", "qkv_bias": True, "qk_normalization": False,
}  # fmt: skip
TINY_QWEN25_VISUAL = QWEN25_VISUAL | {
    "depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "fullatt_block_indexes": [1],
    "out_hidden_size": 16,
}  # fmt: skip
TINY_QWEN3_VISUAL = QWEN3_VISUAL | {
    "depth": 3, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "deepstack_visual_indexes": [0, 1],
    "num_position_embeddings": 16, "out_hidden_size": 16,
}  # fmt: skip
TINY_CLIP = CLIP_LARGE | sizes(8, 16, 3, 2, 2) | {"image_size": 28}
TINY_SAM3 = {"width": 16, "mlp": 24, "layers": 2, "positions": 16}
# What tensor shapes do not determine, for --sizes
TINY_SIZES = foreign.SIZES | {"vit": {"num_heads": 2, "window_size": 4, "global_attention_blocks": [1]}}
SAM3_IMAGE_SIZE = 112


def seg_after(chat_tokens: list[str]) -> int:
    return len(foreign.WORDS + chat_tokens)


def tiny_releases() -> dict[str, Release]:
    """One of each kind, with sizes that tests can compute with."""
    sam2, both = sam2_shapes(foreign.TINY_STAGES), sam2_shapes(foreign.TINY_STAGES, modified=True)
    sam3 = sam3_shapes(TINY_SAM3)
    text, seg = sizes(16, 24, 2, 4, 2), seg_after(INTERNVL_TOKENS)
    rms_vit = TINY_VIT | {"norm_type": "rms_norm", "qkv_bias": False, "qk_normalization": True}
    internlm2 = INTERNLM25 | DYNAMIC | sizes(48, 24, 2, 12, 2)  # six query heads for each key/value head
    qwen2_5 = {"rope_theta": 1e6, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 0]}} | text
    qwen3 = QWEN3_ROPE | text | {"head_dim": 8}
    qwen3["rope_scaling"] = {"rope_type": "default", "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    qwen_seg = seg_after(QWEN_TOKENS)
    return {
        "internvl": internvl(TINY_VIT, QWEN25 | text, "phi3_chat", seg, sam2),
        "internvl with internlm2": internvl(rms_vit, internlm2, "internlm2_chat", seg, sam2),
        "sa2va-i": internvl(TINY_VIT, QWEN25 | text, "qwen_chat", seg, both),
        "qwen2_5_vl": qwen_vl("qwen2_5_vl", TINY_QWEN25_VISUAL, qwen2_5, qwen_seg, sam2),
        "qwen3_vl": qwen_vl("qwen3_vl", TINY_QWEN3_VISUAL, qwen3, qwen_seg, sam2),
        "qwen3_vl with sam3": qwen_vl("qwen3_vl", TINY_QWEN3_VISUAL, qwen3, qwen_seg, sam3),
        "llava": llava(TINY_CLIP, {"rms_norm_eps": 1e-5} | text, seg_after(LLAVA_TOKENS), sam2),
    }


def write_release(folder: Path, release: Release, grounding: bool = True) -> dict[str, torch.Tensor]:
    """Writes the folder of a release, its tokenizer with the grounding tokens or not; returns its random weights."""
    folder.mkdir()
    weights = foreign.random_weights(release.shapes, seed=0)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(release.config), encoding="utf-8")
    foreign.write_tokenizers(folder, grounding, release.chat_tokens)
    image_size = SAM3_IMAGE_SIZE if any("sam2_convs" in name for name in weights) else TINY_SIZES["sam_image_size"]
    tiny = TINY_SIZES | {"sam_image_size": image_size}
    (folder / "sizes.json").write_text(json.dumps(tiny), encoding="utf-8")
    return weights
