"""Our configuration for a source checkpoint, from its `config.json` and, for what that lacks, from tensor shapes."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import Sam2VideoConfig

from sama.configuration_sama import SamaConfig
from sama.conversion.backbones import BackboneTable
from sama.conversion.files import CheckpointError, TensorShapes
from sama.conversion.trackers import SAM3_POSITIONS, tracker_names


Shapes = Mapping[str, tuple[int, ...]]
BERT_HEAD_DIM = 64

# Hiera sizes that SAM 2's tensor shapes do not determine: heads of the first stage, blocks with global attention and
# window sizes. Keyed by width of the first stage and blocks per stage. The same for SAM 2.0 and 2.1.
HIERA_SIZES: dict[tuple[int, tuple[int, ...]], tuple[int, list[int], list[int]]] = {
    (96, (1, 2, 7, 2)): (1, [5, 7, 9], [8, 4, 14, 7]),  # tiny
    (96, (1, 2, 11, 2)): (1, [7, 10, 13], [8, 4, 14, 7]),  # small
    (112, (2, 3, 16, 3)): (2, [12, 16, 20], [8, 4, 14, 7]),  # base+
    (144, (2, 6, 36, 4)): (2, [23, 33, 43], [8, 4, 16, 8]),  # large
}
SAM_IMAGE_SIZE, SAM3_IMAGE_SIZE = 1024, 1008
# The same of SAM 3's vision transformer: heads, window size and blocks with global attention, by width and depth
VIT_SIZES: dict[tuple[int, int], tuple[int, int, list[int]]] = {(1024, 32): (16, 24, [7, 15, 23, 31])}


@dataclass(frozen=True)
class TokenIds:
    """Token ids in the configuration: `visual` are entries of `backbone_config`, and the last two belong to the
    question tokenizer of a context aggregator."""

    visual: dict[str, int]
    seg: int
    end_of_turn: int
    beginning: int | None
    padding: int | None
    qformer_mask: int | None = None
    qformer_position: int | None = None


def tracker_config(shapes: Shapes, prefix: str, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """`mask_config` of a SAM 2 or SAM 3, see [`sam2_config`]."""
    own = tracker_names(shapes, prefix)
    if SAM3_POSITIONS not in own:
        return sam2_config(shapes, prefix, sizes)
    return sam3_config(TensorShapes(own[SAM3_POSITIONS], {name: shapes[key] for name, key in own.items()}), "", sizes)


# What --sizes gives of an image encoder that is not a published one
SIZES = {
    "hiera": ("num_heads", "global_attention_blocks", "window_spec"),
    "vit": ("num_heads", "window_size", "global_attention_blocks"),
}


def check_sizes(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """The sizes in the content of a file of --sizes, or below its key "sizes"; [`CheckpointError`] if some are
    missing."""
    sizes = content.get("sizes", content)
    for name, needed in SIZES.items():
        given = sizes.get(name, dict.fromkeys(needed)) if isinstance(sizes, dict) else sizes
        if not isinstance(given, dict):
            raise CheckpointError(f"{path} has {given!r} where an object of sizes is expected.")
        if absent := [key for key in needed if key not in given]:
            raise CheckpointError(f"{path} has no {', '.join(absent)} in {name!r}.")
    return sizes


def sam2_config(shapes: Shapes, prefix: str, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """
    SAM 2's configuration from its tensor shapes.

    Args:
        shapes (`Mapping`): Source names and shapes.
        prefix (`str`): Prefix of SAM 2's own names.
        sizes (`Mapping`): `hiera` and `sam_image_size`, for a SAM 2 other than the published ones.
    """
    width = shapes[f"{prefix}image_encoder.trunk.patch_embed.proj.weight"][0]
    blocks = blocks_per_stage(shapes, f"{prefix}image_encoder.trunk.blocks.")
    if hiera := sizes.get("hiera"):
        heads, global_blocks, windows = hiera["num_heads"], hiera["global_attention_blocks"], hiera["window_spec"]
    elif (width, tuple(blocks)) in HIERA_SIZES:
        heads, global_blocks, windows = HIERA_SIZES[width, tuple(blocks)]
    else:
        raise CheckpointError(
            f"A SAM 2 image encoder of width {width} with {blocks} blocks is not a published size; give "
            "its heads, windows and global blocks with --sizes."
        )
    image_size = sizes.get("sam_image_size", SAM_IMAGE_SIZE)
    widths = [width * 2**stage for stage in range(len(blocks))]
    levels = [[image_size // stride] * 2 for stride in (4, 8, 16)]
    background = list(shapes[f"{prefix}image_encoder.trunk.pos_embed"][-2:])
    hiera_config = {
        "model_type": "sam2_hiera_det_model", "hidden_size": width, "num_attention_heads": heads,
        "embed_dim_per_stage": widths, "num_attention_heads_per_stage": [heads * 2**s for s in range(len(blocks))],
        "blocks_per_stage": blocks, "global_attention_blocks": global_blocks, "window_size_per_stage": windows,
        "window_positional_embedding_background_size": background, "image_size": [image_size] * 2,
    }  # fmt: skip
    vision = {
        "model_type": "sam2_vision_model", "backbone_config": hiera_config, "backbone_channel_list": widths[::-1],
        "backbone_feature_sizes": levels,
        "fpn_hidden_size": shapes[f"{prefix}image_encoder.neck.convs.0.conv.weight"][0],
    }  # fmt: skip
    return {
        "model_type": "sam2_video", "image_size": image_size, "vision_config": vision,
        "prompt_encoder_config": {"image_size": image_size}, "memory_attention_rope_feat_sizes": levels[-1],
        "num_maskmem": shapes[f"{prefix}maskmem_tpos_enc"][0],
        # SAM 2.1 has both, SAM 2.0 neither
        "enable_temporal_pos_encoding_for_object_pointers": f"{prefix}obj_ptr_tpos_proj.weight" in shapes,
        "enable_occlusion_spatial_embedding": f"{prefix}no_obj_embed_spatial" in shapes,
    }  # fmt: skip


def sam3_config(shapes: Shapes, prefix: str, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """
    The configuration of SAM 3's tracker from its tensor shapes.

    Args:
        shapes (`Mapping`): Source names and shapes.
        prefix (`str`): Prefix of SAM 3's own names.
        sizes (`Mapping`): `vit` and `sam_image_size`, for a SAM 3 other than the published one.
    """
    trunk = f"{prefix}backbone.vision_backbone.trunk."
    width, _, patch, _ = shapes[f"{trunk}patch_embed.proj.weight"]
    depth = len({key[len(trunk) :].split(".")[1] for key in shapes if key.startswith(f"{trunk}blocks.")})
    if vit := sizes.get("vit"):
        heads, window, global_blocks = vit["num_heads"], vit["window_size"], vit["global_attention_blocks"]
    elif (width, depth) in VIT_SIZES:
        heads, window, global_blocks = VIT_SIZES[width, depth]
    else:
        raise CheckpointError(
            f"A SAM 3 image encoder of width {width} with {depth} blocks is not the published size; give its heads, "
            "window and global blocks with --sizes."
        )
    image_size = sizes.get("sam_image_size", SAM3_IMAGE_SIZE)
    positions = shapes[f"{trunk}pos_embed"][1] - 1  # the first is the class token's
    side, grid = math.isqrt(positions), image_size // patch
    if side**2 != positions or image_size % patch or grid % side:
        raise CheckpointError(
            f"SAM 3's {positions} positions do not tile an image of {image_size} pixels with patches of {patch} "
            f"({grid} x {grid}); do the weights belong to another image size? Give sam_image_size with --sizes."
        )
    backbone = {
        "model_type": "sam3_vit_model", "hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads,
        "intermediate_size": shapes[f"{trunk}blocks.0.mlp.fc1.weight"][0], "patch_size": patch, "window_size": window,
        "global_attn_indexes": global_blocks, "pretrain_image_size": side * patch, "image_size": image_size,
    }  # fmt: skip
    vision = {
        "model_type": "sam3_vision_model", "backbone_config": backbone,
        "fpn_hidden_size": shapes[f"{prefix}backbone.vision_backbone.sam2_convs.0.conv_1x1.weight"][0],
        "backbone_feature_sizes": [[grid * scale] * 2 for scale in (4, 2, 1)],
    }  # fmt: skip
    return {
        "model_type": "sam3_tracker_video", "image_size": image_size, "vision_config": vision,
        "num_maskmem": shapes[f"{prefix}maskmem_tpos_enc"][0],
    }  # fmt: skip


def blocks_per_stage(shapes: Shapes, prefix: str) -> list[int]:
    """Blocks per stage of a Hiera: a stage begins where a block widens its input."""
    numbers = sorted({int(key[len(prefix) :].split(".")[0]) for key in shapes if key.startswith(prefix)})
    starts = [0] + [number for number in numbers if f"{prefix}{number}.proj.weight" in shapes] + [len(numbers)]
    return [end - start for start, end in zip(starts, starts[1:], strict=False)]


def default_sam2_config() -> dict[str, Any]:
    """SAM 2.0 with Hiera-L, which the release uses, for a model without a SAM 2 source."""
    width, blocks = 144, (2, 6, 36, 4)
    trunk = "image_encoder.trunk."
    shapes = {f"{trunk}patch_embed.proj.weight": (width,), f"{trunk}pos_embed": (1, width, 7, 7)}
    shapes |= {"image_encoder.neck.convs.0.conv.weight": (256,), "maskmem_tpos_enc": (7,)}
    for number in range(sum(blocks)):
        shapes[f"{trunk}blocks.{number}.norm1.weight"] = (width,)
    for stage in range(1, len(blocks)):
        shapes[f"{trunk}blocks.{sum(blocks[:stage])}.proj.weight"] = (width,)
    return sam2_config(shapes, "", {})


def qformer_config(shapes: Shapes, prefix: str, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """A Q-Former's configuration from its shapes. Heads are 64 wide as in BERT unless `sizes` has `qformer_heads`."""
    layer = "encoder.layer.{}."
    numbers = {
        int(match[1]) for key in shapes if (match := re.match(rf"{re.escape(prefix)}encoder\.layer\.(\d+)\.", key))
    }
    crossing = sorted(n for n in numbers if f"{prefix}{layer.format(n)}crossattention.output.dense.weight" in shapes)
    first = prefix + layer.format(0)
    keys = (f"{first}crossattention.self.key.weight", f"{first}crossattention.attention.key.weight")
    encoder_width = next(shapes[key][1] for key in keys if key in shapes)
    hidden = shapes[f"{first}attention.output.dense.weight"][0]
    return {
        "hidden_size": hidden,
        "num_hidden_layers": len(numbers),
        "num_attention_heads": sizes.get("qformer_heads", max(1, hidden // BERT_HEAD_DIM)),
        "intermediate_size": shapes[f"{first}intermediate_query.dense.weight"][0],
        "cross_attention_frequency": crossing[1] - crossing[0] if len(crossing) > 1 else len(numbers),
        "encoder_hidden_size": encoder_width,
    }


def aggregator_config(shapes: Shapes, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Configuration entries of what SAMA adds to a backbone, from the shapes of a released SAMA."""
    tables = "temporal_Qformer.bert.embeddings."
    temporal = qformer_config(shapes, "temporal_Qformer.bert.", sizes) | {
        "vocab_size": shapes[f"{tables}word_embeddings.weight"][0],
        "max_position_embeddings": shapes[f"{tables}position_embeddings.weight"][0],
        "use_qformer_text_input": True,
    }
    aggregator = {
        "spatial_qformer_config": qformer_config(shapes, "spatial_Qformer.bert.", sizes),
        "temporal_qformer_config": temporal,
        "num_spatial_queries": shapes["spatial_Qformer_query_tokens"][1],
        "num_temporal_queries": shapes["temporal_Qformer_query_tokens"][1],
        "temporal_window": sizes.get("window_tokens", 512),
    }
    return {
        "aggregator_config": aggregator,
        "region_mask_size": math.isqrt(shapes["Qformer_mask_proj.layers.0.weight"][1]),
        "region_mlp_size": shapes["Qformer_mask_proj.layers.0.weight"][0],
        "null_region_scale": 1.0,
        "region_shape": "box",
    }


def instructblip_config(shapes: Shapes, qformer_vocab_size: int) -> dict[str, Any]:
    """`aggregator_config` with InstructBLIP's Q-Former as the spatial one and a new temporal one of two layers."""
    prefix = "Qformer.bert." if "Qformer.bert.encoder.layer.0.attention.output.dense.weight" in shapes else "qformer."
    spatial = qformer_config(shapes, prefix, {})
    same = {name: spatial[name] for name in ("hidden_size", "num_attention_heads", "intermediate_size")}
    temporal = default_temporal_config(qformer_vocab_size) | same | {"encoder_hidden_size": spatial["hidden_size"]}
    return {
        "spatial_qformer_config": spatial,
        "temporal_qformer_config": temporal,
        "num_spatial_queries": shapes["query_tokens"][1],
    }


def default_temporal_config(qformer_vocab_size: int) -> dict[str, Any]:
    """The temporal Q-Former's entries that differ from BERT's."""
    return {
        "vocab_size": qformer_vocab_size,
        "num_hidden_layers": 2,
        "cross_attention_frequency": 1,
        "encoder_hidden_size": 768,
        "use_qformer_text_input": True,
    }


def release_config(
    table: BackboneTable,
    backbone: Mapping[str, Any],
    vocab_size: int,
    tied: bool,
    tokens: TokenIds,
    parts: Mapping[str, Any],
) -> SamaConfig:
    """
    The complete configuration.

    Args:
        table ([`BackboneTable`]): The backbone's family.
        backbone (`Mapping`): `backbone_config` without vocabulary and token ids, from `table.config`.
        vocab_size (`int`): Number of embedding rows.
        tied (`bool`): Whether head and embeddings share weights.
        tokens ([`TokenIds`])
        parts (`Mapping`): `mask_config`, `aggregator_config` (None: a Sa2VA), `seg_state` and other entries.
    """
    # Some families read `tie_word_embeddings` from their text configuration too
    text = backbone["text_config"] | {
        "vocab_size": vocab_size,
        "tie_word_embeddings": tied,
        "bos_token_id": tokens.beginning,
        "eos_token_id": tokens.end_of_turn,
        "pad_token_id": tokens.padding,
    }
    backbone = {**backbone, "model_type": table.model_type, "tie_word_embeddings": tied, "text_config": text}
    qformer = {"qformer_mask_token_id": tokens.qformer_mask, "qformer_position_token_id": tokens.qformer_position}
    return SamaConfig(
        backbone_config=backbone | tokens.visual,
        tie_word_embeddings=tied,
        seg_token_id=tokens.seg,
        **({} if tokens.qformer_mask is None else qformer),
        **parts,
    )


def standalone_sam2_config(shapes: Shapes, sizes: Mapping[str, Any]) -> Sam2VideoConfig:
    """The configuration of a standalone SAM 2."""
    return Sam2VideoConfig(**sam2_config(shapes, "", sizes))
