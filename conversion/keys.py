"""Tensor names of other projects' checkpoints, and how each of their tensors is converted."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch


SAM, ORIGINAL_DECODER = "model.mask_tracker.sam.", "model.mask_tracker.original_mask_decoder."
AGGREGATOR = "model.context_aggregator."
BACKBONE = "model.backbone."
LANGUAGE, VISION = f"{BACKBONE}language_model.", f"{BACKBONE}vision_tower."
PROJECTOR = f"{BACKBONE}multi_modal_projector."
EMBEDDINGS, HEAD = f"{LANGUAGE}embed_tokens.weight", "lm_head.weight"

Rules = list[tuple[str, str]]

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
QFORMER_RULES: Rules = [
    (r"^bert\.", ""),
    (r"^embeddings\.(LayerNorm|layernorm)\.", "layernorm."),
    (r"attention\.self\.", "attention.attention."),
]
# Each three-layer perceptron of SAM 2
THREE_LAYERS: Rules = [
    (r"\.layers\.0\.", ".proj_in."),
    (r"\.layers\.1\.", ".layers.0."),
    (r"\.layers\.2\.", ".proj_out."),
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
        (r"\.mlp\.layers\.0\.", ".mlp.proj_in."),
        (r"\.mlp\.layers\.1\.", ".mlp.proj_out."),
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
    "memory_attention.": [
        ("^", "memory_attention."),
        (r"\.norm(\d)\.", r".layer_norm\1."),
        (r"^memory_attention\.norm\.", "memory_attention.layer_norm."),
        (r"\.out_proj\.", ".o_proj."),
    ],
    "memory_encoder.": [
        ("^", "memory_encoder."),
        (r"\.out_proj\.", ".projection."),
        (r"\.pix_feat_proj\.", ".feature_projection."),
        (r"\.fuser\.", ".memory_fuser."),
        (r"\.dwconv\.", ".depthwise_conv."),
        (r"\.pwconv", ".pointwise_conv"),
        (r"\.norm\.", ".layer_norm."),
        (r"\.(gamma|g_weight)$", ".scale"),
        (r"\.encoder\.12\.", ".final_conv."),
    ],
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
# Prefixes of a SAMA or Sa2VA checkpoint, longest first; the rest of a name is renamed by the rules.
RELEASE_PREFIXES: list[tuple[str, str, Rules]] = [
    ("Qformer_mask_pooling_proj_st.", f"{AGGREGATOR}region_encoder.pooled_projection.", []),
    ("Qformer_mask_pooling_proj.", "model.region_encoder.pooled_projection.", []),
    ("vlm2spatial_Qformer_proj.", f"{AGGREGATOR}spatial_projection.", []),
    ("Qformer_temp_attn_q.", f"{AGGREGATOR}injection.query_projection.", []),
    ("Qformer_temp_attn_k.", f"{AGGREGATOR}injection.key_projection.", []),
    ("Qformer_temp_attn_v.", f"{AGGREGATOR}injection.value_projection.", []),
    ("Qformer_temp_proj.", f"{AGGREGATOR}injection.attention_projection.", []),
    ("Qformer_final_proj.", f"{AGGREGATOR}injection.output_projection.", []),
    ("spatial_Qformer_query_tokens", f"{AGGREGATOR}spatial_queries", []),
    ("temporal_Qformer_query_tokens", f"{AGGREGATOR}temporal_queries", []),
    ("spatial_Qformer_ln.", f"{AGGREGATOR}spatial_norm.", []),
    ("temporal_Qformer.bert.embeddings.word_embeddings.", f"{AGGREGATOR}word_embeddings.", []),
    ("temporal_Qformer.bert.embeddings.position_embeddings.", f"{AGGREGATOR}position_embeddings.", []),
    ("spatial_Qformer.", f"{AGGREGATOR}spatial_qformer.", QFORMER_RULES),
    ("temporal_Qformer.", f"{AGGREGATOR}temporal_qformer.", QFORMER_RULES),
    ("text_hidden_fcs.", "model.seg_projection.", []),
    ("vision_model.", VISION, VISION_RULES),
    ("mlp1.", PROJECTOR, PROJECTOR_RULES),
    ("language_model.model.", LANGUAGE, INTERNLM2_RULES),
    ("language_model.lm_head.", "lm_head.", []),
    ("language_model.output.", "lm_head.", []),
]
# The Q-Former of InstructBLIP, as stored by its authors and by transformers
INSTRUCTBLIP_PREFIXES: list[tuple[str, str, Rules]] = [
    ("query_tokens", f"{AGGREGATOR}spatial_queries", []),
    ("ln_vision.", f"{AGGREGATOR}spatial_norm.", []),
    ("vision_model.post_layernorm.", f"{AGGREGATOR}spatial_norm.", []),
    ("Qformer.", f"{AGGREGATOR}spatial_qformer.", QFORMER_RULES),
    ("qformer.", f"{AGGREGATOR}spatial_qformer.", QFORMER_RULES),
]
UNUSED: dict[str, list[tuple[str, str]]] = {
    "published": [(r"_Qformer\.bert\.embeddings\.position_ids$", "constant 0, 1, 2, ...")],
    "instructblip": [
        (r"embeddings\.position_ids$", "constant 0, 1, 2, ..."),
        (r"^[Qq]former\.(bert\.)?embeddings\.(word|position)_embeddings\.", "the spatial Q-Former takes no text"),
        (r"^[Qq]former\.(bert\.)?encoder\.layer\.\d+\.(intermediate|output)\.", "the spatial Q-Former takes no text"),
        (r"^Qformer\.cls\.", "the spatial Q-Former generates no text"),
        (r"^(visual_encoder|vision_model)\.", "SAMA has InternVL's vision tower"),
        (r"^(llm_model|t5_model|language_model)\.", "SAMA has InternVL's language model"),
        (r"^(llm_proj|t5_proj|language_projection)\.", "SAMA projects into InternVL's language model"),
    ],
}


@dataclass(frozen=True)
class Piece:
    """The source tensors from which one of our tensors is made, and how."""

    keys: tuple[str, ...]
    make: Callable[..., torch.Tensor]


@dataclass
class KeyMap:
    """Our names with their pieces, the source names that are skipped with the reason, and the unknown ones."""

    pieces: dict[str, Piece] = field(default_factory=dict)
    unused: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)


def identity(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def split_qkv(part: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Query (0), key (1) or value (2) of a matrix that stacks the three."""
    return lambda tensor: tensor.chunk(3)[part]


def split_grouped_qkv(part: str, num_groups: int, head_dim: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Query, key or value of InternLM2's fused matrix: per key/value head its query heads, then key, then value."""
    rows = {"q": slice(0, -2), "k": slice(-2, -1), "v": slice(-1, None)}[part]

    def split(tensor: torch.Tensor) -> torch.Tensor:
        groups = tensor.unflatten(0, (num_groups, -1, head_dim))  # (groups, query heads + 2, head_dim, ...)
        return groups[:, rows].flatten(0, 2)

    return split


def append_mean_rows(num_rows: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Appends rows for new tokens, initialized with the mean of all rows, up to `num_rows`."""

    def grow(tensor: torch.Tensor) -> torch.Tensor:
        mean = tensor.float().mean(0, keepdim=True).to(tensor.dtype)
        return torch.cat([tensor, mean.expand(num_rows - len(tensor), *tensor.shape[1:])])

    return grow


def concatenate(*tensors: torch.Tensor) -> torch.Tensor:
    return torch.cat(tensors)


def rename(name: str, rules: Rules) -> str:
    """Applies all rules in turn."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def rename_by_prefix(key: str, prefixes: list[tuple[str, str, Rules]]) -> str | None:
    """Our name for a source name, or None if no prefix matches."""
    for prefix, own, rules in prefixes:
        if key.startswith(prefix):
            return own + rename(key[len(prefix) :], rules)
    return None


def rename_sam2(key: str) -> str:
    """The `Sam2VideoModel` name of a `sam2` package name."""
    for prefix, rules in SAM2_RULES.items():
        if key.startswith(prefix):
            name = rename(key[len(prefix) :], rules)
            break
    # Convolution, norm and activation repeat, numbered 0 1 (2) 3 4 (5) ...
    if match := re.match(r"(memory_encoder\.mask_downsampler\.)encoder\.(\d+)\.(.+)", name):
        number = int(match[2])
        name = f"{match[1]}layers.{number // 3}.{('conv', 'layer_norm')[number % 3]}.{match[3]}"
    return name


def map_sam2(keys: Iterable[str], prefix: str = "", original_decoder: bool = True) -> KeyMap:
    """
    Maps the names of a SAM 2.

    Args:
        keys (`Iterable[str]`): Source names.
        prefix (`str`): Prefix of each name in the source file.
        original_decoder (`bool`): Whether the decoder used for propagation gets the same values.
    """
    result, points = KeyMap(), {}
    for key in keys:
        name = key[len(prefix) :]
        if match := re.fullmatch(r"sam_prompt_encoder\.point_embeddings\.(\d)\.weight", name):
            points[int(match[1])] = key
            continue
        own, piece = rename_sam2(name), Piece((key,), identity)
        result.pieces[SAM + own] = piece
        if own == "prompt_encoder.shared_embedding.positional_embedding":
            result.pieces[f"{SAM}shared_image_embedding.positional_embedding"] = piece
        if own.startswith("mask_decoder.") and original_decoder:
            result.pieces[ORIGINAL_DECODER + own.removeprefix("mask_decoder.")] = piece
    if points:
        result.pieces[f"{SAM}prompt_encoder.point_embed.weight"] = Piece(
            tuple(points[number] for number in sorted(points)), concatenate
        )
    return result


def map_original_decoder(keys: Iterable[str]) -> KeyMap:
    """Maps only the mask decoder of a SAM 2, to the decoder used for propagation."""
    result = KeyMap()
    for key in keys:
        if key.startswith("sam_mask_decoder."):
            own = ORIGINAL_DECODER + rename_sam2(key).removeprefix("mask_decoder.")
            result.pieces[own] = Piece((key,), identity)
        else:
            result.unused[key] = "the checkpoint keeps its own SAM 2; only the original mask decoder is taken"
    return result


def map_release(keys: Iterable[str], num_key_value_heads: int, head_dim: int) -> KeyMap:
    """Maps the names of SAMA, Sa2VA or InternVL with a Qwen2, Llama or InternLM2 language model."""
    result, sam_prefix, sam_keys = KeyMap(), "grounding_encoder.sam2_model.", []
    for key in keys:
        if key.startswith(sam_prefix):
            sam_keys.append(key)
        elif reason := known_unused(key, "published"):
            result.unused[key] = reason
        elif match := re.fullmatch(r"Qformer_mask_proj(_st)?\.layers\.(\d)\.(\w+)", key):
            owner = AGGREGATOR if match[1] else "model."
            layer = 2 * int(match[2])  # a ReLU in between
            result.pieces[f"{owner}region_encoder.shape_projection.{layer}.{match[3]}"] = Piece((key,), identity)
        elif (own := rename_by_prefix(key, RELEASE_PREFIXES)) is None:
            result.unknown.append(key)
        elif ".attention.qkv." in own:
            for part, letter in enumerate("qkv"):
                result.pieces[own.replace(".qkv.", f".{letter}_proj.")] = Piece((key,), split_qkv(part))
        elif ".self_attn.wqkv." in own:
            for letter in "qkv":
                split = split_grouped_qkv(letter, num_key_value_heads, head_dim)
                result.pieces[own.replace(".wqkv.", f".{letter}_proj.")] = Piece((key,), split)
        else:
            result.pieces[own] = Piece((key,), identity)
    if sam_keys:
        result.pieces |= map_sam2(sam_keys, sam_prefix).pieces
    return result


def map_instructblip(keys: Iterable[str]) -> KeyMap:
    """Maps the Q-Former of InstructBLIP to the spatial Q-Former."""
    result = KeyMap()
    for key in keys:
        own = rename_by_prefix(key, INSTRUCTBLIP_PREFIXES)
        reason = known_unused(key, "instructblip")
        if own is not None and (reason is None or own.startswith(f"{AGGREGATOR}spatial_norm.")):
            result.pieces[own] = Piece((key,), identity)
        elif reason is not None:
            result.unused[key] = reason
        else:
            result.unknown.append(key)
    return result


def map_own(keys: Iterable[str]) -> KeyMap:
    """Maps a converted checkpoint to itself."""
    return KeyMap({key: Piece((key,), identity) for key in keys})


def known_unused(key: str, kind: str) -> str | None:
    """Why a source tensor is skipped, or None if it is not."""
    return next((reason for pattern, reason in UNUSED[kind] if re.search(pattern, key)), None)


def guess_kind(keys: set[str]) -> str | None:
    """The kind of checkpoint with these tensor names, or None."""
    marks = {
        "into": "model.mask_tracker.sam.no_memory_embedding",
        "sama": "temporal_Qformer_query_tokens",
        "sa2va": "text_hidden_fcs.0.weight",
        "internvl": "mlp1.0.weight",
        "sam2": "sam_mask_decoder.mask_tokens.weight",
        "instructblip": "query_tokens",
    }
    return next((kind for kind, mark in marks.items() if mark in keys), None)
