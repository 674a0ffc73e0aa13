"""Tensor names of SAMA, Sa2VA and InstructBLIP, and how each of their tensors is converted."""

import re
from collections.abc import Iterable

from sama.conversion.backbones import BACKBONES, BackboneTable, has_mark
from sama.conversion.native import native_tracker_kind
from sama.conversion.pieces import AGGREGATOR, KeyMap, Piece, Prefixes, Rules, add_tensor, identity, rename_by_prefix
from sama.conversion.trackers import map_tracker


SAM_PREFIX = "grounding_encoder.sam2_model."
QFORMER_RULES: Rules = [
    (r"^bert\.", ""),
    (r"^embeddings\.(LayerNorm|layernorm)\.", "layernorm."),
    (r"attention\.self\.", "attention.attention."),
]
# What SAMA and Sa2VA add to a backbone, longest prefix first; the rest of a name is renamed by the rules.
RELEASE_PREFIXES: Prefixes = [
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
]
# The Q-Former of InstructBLIP, as stored by its authors and by transformers
INSTRUCTBLIP_PREFIXES: Prefixes = [
    ("query_tokens", f"{AGGREGATOR}spatial_queries", []),
    ("ln_vision.", f"{AGGREGATOR}spatial_norm.", []),
    ("vision_model.post_layernorm.", f"{AGGREGATOR}spatial_norm.", []),
    ("Qformer.", f"{AGGREGATOR}spatial_qformer.", QFORMER_RULES),
    ("qformer.", f"{AGGREGATOR}spatial_qformer.", QFORMER_RULES),
]
UNUSED: dict[str, list[tuple[str, str]]] = {
    "published": [
        (r"_Qformer\.bert\.embeddings\.position_ids$", "constant 0, 1, 2, ..."),
        (r"rotary_emb\.inv_freq$|freqs_cis", "rotary table, which is computed"),
    ],
    "instructblip": [
        (r"embeddings\.position_ids$", "constant 0, 1, 2, ..."),
        (r"^[Qq]former\.(bert\.)?embeddings\.(word|position)_embeddings\.", "the spatial Q-Former takes no text"),
        (r"^[Qq]former\.(bert\.)?encoder\.layer\.\d+\.(intermediate|output)\.", "the spatial Q-Former takes no text"),
        (r"^Qformer\.cls\.", "the spatial Q-Former generates no text"),
        (r"^(visual_encoder|vision_model)\.", "SAMA has the vision tower of its own backbone"),
        (r"^(llm_model|t5_model|language_model)\.", "SAMA has the language model of its own backbone"),
        (r"^(llm_proj|t5_proj|language_projection)\.", "SAMA projects into the language model of its own backbone"),
    ],
}


def map_release(
    keys: Iterable[str], table: BackboneTable, num_key_value_heads: int, head_dim: int, alone: bool = False
) -> KeyMap:
    """
    Maps the names of SAMA, Sa2VA or a backbone.

    Args:
        keys (`Iterable[str]`): Source names.
        table ([`BackboneTable`]): The backbone's family.
        num_key_value_heads, head_dim (`int`): Of its language model.
        alone (`bool`): Whether the backbone is not part of another model.
    """
    result, sam_keys, wrapper = KeyMap(), [], "" if alone else table.wrapper
    prefixes = RELEASE_PREFIXES + [(wrapper + prefix, own, rules) for prefix, own, rules in table.prefixes]
    for key in keys:
        if reason := known_unused(key, "published"):
            result.unused[key] = reason
        elif key.startswith(SAM_PREFIX):
            sam_keys.append(key)
        elif match := re.fullmatch(r"Qformer_mask_proj(_st)?\.layers\.(\d)\.(\w+)", key):
            owner = AGGREGATOR if match[1] else "model."
            layer = 2 * int(match[2])  # a ReLU in between
            result.pieces[f"{owner}region_encoder.shape_projection.{layer}.{match[3]}"] = Piece((key,), identity)
        elif (own := rename_by_prefix(key, prefixes)) is None:
            result.unknown.append(key)
        else:
            add_tensor(result, own, key, num_key_value_heads, head_dim)
    if sam_keys:
        sam = map_tracker(sam_keys, SAM_PREFIX)
        result.pieces |= sam.pieces
        result.unused |= sam.unused
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


def known_unused(key: str, kind: str) -> str | None:
    """Why a source tensor is skipped, or None if it is not."""
    return next((reason for pattern, reason in UNUSED[kind] if re.search(pattern, key)), None)


def guess_kind(keys: set[str]) -> str | None:
    """The kind of checkpoint with these tensor names, or None."""
    marks = {
        "into": "model.mask_tracker.sam.no_memory_embedding",
        "sama": "temporal_Qformer_query_tokens",
        "sa2va": "text_hidden_fcs.0.weight",
        "sam2": "sam_mask_decoder.mask_tokens.weight",
        "sam3": "tracker.sam_mask_decoder.mask_tokens.weight",
        "instructblip": "query_tokens",
    }
    marks = {kind: mark for kind, mark in marks.items() if mark in keys}
    found = next(iter(marks), None) or native_tracker_kind(keys)
    return found or next((kind for kind in BACKBONES if has_mark(kind, keys)), None)
