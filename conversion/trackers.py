"""Tensor names of mask trackers: SAM 2 and the tracker of SAM 3 as their authors store them."""

import re
from collections.abc import Iterable

from sama.conversion.native import map_native_decoder, map_native_tracker, native_tracker_kind
from sama.conversion.pieces import (
    ORIGINAL_DECODER,
    SAM,
    KeyMap,
    Piece,
    Rules,
    add_tensor,
    concatenate,
    drop_class_position,
    identity,
    rename,
)


# Each three-layer perceptron of SAM 2
THREE_LAYERS: Rules = [
    (r"\.layers\.0\.", ".proj_in."),
    (r"\.layers\.1\.", ".layers.0."),
    (r"\.layers\.2\.", ".proj_out."),
]
MEMORY_ATTENTION_RULES: Rules = [
    ("^", "memory_attention."),
    (r"\.norm(\d)\.", r".layer_norm\1."),
    (r"^memory_attention\.norm\.", "memory_attention.layer_norm."),
    (r"\.out_proj\.", ".o_proj."),
]
MEMORY_ENCODER_RULES: Rules = [
    ("^", "memory_encoder."),
    (r"\.out_proj\.", ".projection."),
    (r"\.pix_feat_proj\.", ".feature_projection."),
    (r"\.fuser\.", ".memory_fuser."),
    (r"\.dwconv\.", ".depthwise_conv."),
    (r"\.pwconv", ".pointwise_conv"),
    (r"\.norm\.", ".layer_norm."),
    (r"\.(gamma|g_weight)$", ".scale"),
    (r"\.encoder\.12\.", ".final_conv."),
]
SAM2_RULES: dict[str, Rules] = {
    "image_encoder.trunk.": [
        ("^", "vision_encoder.backbone."),
        (r"patch_embed\.proj\.", "patch_embed.projection."),
        (r"\.mlp\.layers\.0\.", ".mlp.proj_in."),
        (r"\.mlp\.layers\.1\.", ".mlp.proj_out."),
        (r"\.norm(\d)\.", r".layer_norm\1."),
    ],
    "image_encoder.neck.": [("^", "vision_encoder.neck."), (r"convs\.(\d+)\.conv\.", r"convs.\1.")],
    "sam_prompt_encoder.": [
        ("^", "prompt_encoder."),
        (r"pe_layer\.positional_encoding_gaussian_matrix$", "shared_embedding.positional_embedding"),
        (r"mask_downscaling\.0\.", "mask_embed.conv1."),
        (r"mask_downscaling\.1\.", "mask_embed.layer_norm1."),
        (r"mask_downscaling\.3\.", "mask_embed.conv2."),
        (r"mask_downscaling\.4\.", "mask_embed.layer_norm2."),
        (r"mask_downscaling\.6\.", "mask_embed.conv3."),
    ],
    "sam_mask_decoder.transformer.": [
        ("^", "mask_decoder.transformer."),
        (r"\.mlp\.(layers\.0|lin1)\.", ".mlp.proj_in."),
        (r"\.mlp\.(layers\.1|lin2)\.", ".mlp.proj_out."),
        (r"\.out_proj\.", ".o_proj."),
        (r"\.norm(\d)\.", r".layer_norm\1."),
        (r"\.norm_final_attn\.", ".layer_norm_final_attn."),
    ],
    "sam_mask_decoder.": [
        ("^", "mask_decoder."),
        (r"output_upscaling\.0\.", "upscale_conv1."),
        (r"output_upscaling\.1\.", "upscale_layer_norm."),
        (r"output_upscaling\.3\.", "upscale_conv2."),
        *THREE_LAYERS,
    ],
    "memory_attention.": MEMORY_ATTENTION_RULES,
    "memory_encoder.": MEMORY_ENCODER_RULES,
    "obj_ptr_proj.": [("^", "object_pointer_proj."), *THREE_LAYERS],
    "obj_ptr_tpos_proj.": [("^", "temporal_positional_encoding_projection_layer.")],
    "": [
        (r"^maskmem_tpos_enc$", "memory_temporal_positional_encoding"),
        (r"^no_mem_embed$", "no_memory_embedding"),
        (r"^no_mem_pos_enc$", "no_memory_positional_encoding"),
        (r"^no_obj_ptr$", "no_object_pointer"),
        (r"^no_obj_embed_spatial$", "occlusion_spatial_embedding_parameter"),
    ],
}


# SAM 3 stores its tracker like SAM 2, with another image encoder and other names for the memory
SAM3_RULES: dict[str, Rules] = {
    "backbone.vision_backbone.trunk.": [
        ("^", "vision_encoder.backbone."),
        (r"\.pos_embed$", ".embeddings.position_embeddings"),
        (r"\.patch_embed\.proj\.", ".embeddings.patch_embeddings.projection."),
        (r"\.ln_pre\.", ".layer_norm."),
        (r"\.blocks\.", ".layers."),
        (r"\.norm(\d)\.", r".layer_norm\1."),
        (r"\.attn\.proj\.", ".attention.o_proj."),
        (r"\.attn\.", ".attention."),
    ],
    # The neck of the tracker. That of the detector, `convs`, has the same shapes
    "backbone.vision_backbone.sam2_convs.": [
        ("^", "vision_encoder.neck.fpn_layers."),
        (r"\.dconv_2x2(_0)?\.", ".scale_layers.0."),
        (r"\.dconv_2x2_1\.", ".scale_layers.2."),
        (r"\.conv_1x1\.", ".proj1."),
        (r"\.conv_3x3\.", ".proj2."),
    ],
    "transformer.encoder.": MEMORY_ATTENTION_RULES,
    "maskmem_backbone.": MEMORY_ENCODER_RULES,
}
SAM3_POSITIONS = "backbone.vision_backbone.trunk.pos_embed"
SAM3_UNUSED = {
    r"^backbone\.vision_backbone\.convs\.": "the neck of SAM 3's detector; its tracker has another, `sam2_convs`",
    r"\.freqs_cis": "rotary table, which is computed",  # a complex buffer of each block of the image encoder
}
# Sa2VA-i stores both decoders: the tuned one under this name, SAM 2's original one under the usual name
TUNED_DECODER, DECODER = "sam_mask_decoder_modified.", "sam_mask_decoder."


# Where the published SAM 3 holds the tracker and its image encoder
SAM3_PARTS = {"tracker.": "", "detector.backbone.vision_backbone.": "backbone.vision_backbone."}


def tracker_names(keys: Iterable[str], prefix: str = "") -> dict[str, str]:
    """Names within a mask tracker, and the source names that hold them, which begin with `prefix`."""
    keys = list(keys)
    parts = SAM3_PARTS if any(key.startswith(f"{prefix}tracker.") for key in keys) else {"": ""}
    names = {}
    for key in keys:
        for part, own in parts.items():
            if key.startswith(prefix + part):
                names[own + key[len(prefix + part) :]] = key
    return names


def rename_tracker(key: str) -> str:
    """The name in `Sam2VideoModel` or `Sam3TrackerVideoModel` of a name of the authors."""
    for prefix, rules in (SAM3_RULES | SAM2_RULES).items():
        if key.startswith(prefix):
            name = rename(key[len(prefix) :], rules)
            break
    # Convolution, norm and activation repeat, numbered 0 1 (2) 3 4 (5) ...
    if match := re.match(r"(memory_encoder\.mask_downsampler\.)encoder\.(\d+)\.(.+)", name):
        number = int(match[2])
        name = f"{match[1]}layers.{number // 3}.{('conv', 'layer_norm')[number % 3]}.{match[3]}"
    return name


def map_tracker(keys: Iterable[str], prefix: str = "", original_decoder: bool = True) -> KeyMap:
    """
    Maps the names of a SAM 2 or of the tracker of a SAM 3.

    Args:
        keys (`Iterable[str]`): Source names.
        prefix (`str`): Prefix of each name in the source file.
        original_decoder (`bool`): Whether the decoder used for propagation gets values: those of a second decoder if
            the source has one, and otherwise the same.
    """
    keys = list(keys)
    if native_tracker_kind(keys):
        return map_native_tracker(keys, original_decoder)
    names = tracker_names(keys, prefix)
    two_decoders = any(name.startswith(TUNED_DECODER) for name in names)
    others = dict.fromkeys(set(keys) - set(names.values()), "SAM 3's detector finds objects by text")
    result, points = KeyMap(unused=others), {}
    for name, key in names.items():
        if match := re.fullmatch(r"sam_prompt_encoder\.point_embeddings\.(\d)\.weight", name):
            points[int(match[1])] = key
            continue
        if reason := next((reason for pattern, reason in SAM3_UNUSED.items() if re.search(pattern, name)), None):
            result.unused[key] = reason
            continue
        tuned = name.startswith(TUNED_DECODER)
        own = rename_tracker(name.replace(TUNED_DECODER, DECODER, 1) if tuned else name)
        if own.startswith("mask_decoder.") and original_decoder and not tuned:
            add_tensor(result, ORIGINAL_DECODER + own.removeprefix("mask_decoder."), key)
        if not own.startswith("mask_decoder.") or tuned or not two_decoders:
            add_tensor(result, SAM + own, key)
        if own == "prompt_encoder.shared_embedding.positional_embedding":
            add_tensor(result, f"{SAM}shared_image_embedding.positional_embedding", key)
        elif name == SAM3_POSITIONS:
            result.pieces[SAM + own] = Piece((key,), drop_class_position)
    if points:
        result.pieces[f"{SAM}prompt_encoder.point_embed.weight"] = Piece(
            tuple(points[number] for number in sorted(points)), concatenate
        )
    return result


def map_original_decoder(keys: Iterable[str]) -> KeyMap:
    """Maps only the mask decoder of a SAM 2 or SAM 3, to the decoder used for propagation."""
    reason = "the checkpoint keeps its own mask tracker; only the original mask decoder is taken"
    keys = list(keys)
    if native_tracker_kind(keys):
        return map_native_decoder(keys)
    decoder = {name: key for name, key in tracker_names(keys).items() if name.startswith(DECODER)}
    result = KeyMap(unused=dict.fromkeys(set(keys) - set(decoder.values()), reason))
    for name, key in decoder.items():
        result.pieces[ORIGINAL_DECODER + rename_tracker(name).removeprefix("mask_decoder.")] = Piece((key,), identity)
    return result
