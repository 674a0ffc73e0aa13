"""Checkpoints in transformers' own format: mask trackers, whose names are ours already, and InternVL."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sama.conversion.files import CheckpointError, read_json
from sama.conversion.pieces import (
    LANGUAGE,
    ORIGINAL_DECODER,
    PROJECTOR,
    SAM,
    VISION,
    KeyMap,
    Piece,
    Prefixes,
    identity,
)
from sama.modeling_sama_tracker import TRACKERS


# `model_type` of the mask tracker of each `--kind`: sam2, sam3, edgetam
TRACKER_TYPES = {model_type.partition("_")[0]: model_type for model_type in TRACKERS}
# The first of these tensors that a checkpoint has tells its kind: SAM 3's and EdgeTAM's trackers have SAM 2's, too
MARKS = {
    "spatial_perceiver.latents_1d": "edgetam",
    "vision_encoder.backbone.embeddings.position_embeddings": "sam3",
    "no_memory_embedding": "sam2",
}
# A whole SAM 3 holds the parts of its tracker under these names, of which `save_pretrained` nests the last two in the
# first
TRACKER_MODEL = "tracker_model."
SAM3_PARTS = {
    "tracker_neck.": "vision_encoder.neck.",
    "detector_model.vision_encoder.backbone.": "vision_encoder.backbone.",
}
DETECTOR = "detector_model."
# One random table of SAM 2 under two names; a file may hold either
POSITIONS = ("prompt_encoder.shared_embedding.positional_embedding", "shared_image_embedding.positional_embedding")
DECODER = "mask_decoder."
NOT_SETTINGS = ("architectures", "dtype", "torch_dtype", "transformers_version", "_name_or_path")

INTERNVL_MARK = "multi_modal_projector.layer_norm.weight"
# Before transformers 4.52 the language model was a whole one, whose names are those of InternVL's authors
INTERNVL_PREFIXES: Prefixes = [
    ("model.vision_tower.", VISION, []),
    ("model.multi_modal_projector.", PROJECTOR, []),
    ("model.language_model.", LANGUAGE, []),
    ("lm_head.", "lm_head.", []),
    ("vision_tower.", VISION, []),
    ("multi_modal_projector.", PROJECTOR, []),
]
INTERNVL_SETTINGS = (
    "downsample_ratio", "image_seq_length", "projector_hidden_act", "vision_feature_layer",
    "vision_feature_select_strategy",
)  # fmt: skip


def settings_of(config: Any) -> Any:
    """A `config.json` without what describes a file instead of a model, at every level."""
    if isinstance(config, Mapping):
        return {name: settings_of(value) for name, value in config.items() if name not in NOT_SETTINGS}
    return config


# ---- mask trackers ------------------------------------------------------------


def native_name(key: str) -> str:
    """The name within the tracker's model of a stored name."""
    key = key.removeprefix(TRACKER_MODEL)
    for stored, own in SAM3_PARTS.items():
        if key.startswith(stored):
            return own + key.removeprefix(stored)
    return key


def native_tracker_kind(keys: Iterable[str]) -> str | None:
    """The `--kind` of a mask tracker with transformers' names, or None for anything else."""
    names = {native_name(key) for key in keys}
    if not names & set(POSITIONS):  # every mask tracker has them, and nothing else
        return None
    return next((kind for mark, kind in MARKS.items() if mark in names), None)


def native_tracker_config(folder: Path, kind: str) -> dict[str, Any]:
    """
    `mask_config` of a mask tracker in transformers' format: its `config.json`, or the part about the tracker in that
    of a whole SAM 3.

    Raises:
        CheckpointError: If it describes another model.
    """
    file, wanted = folder / "config.json", TRACKER_TYPES[kind]
    config = read_json(file)
    tracker = config.get("tracker_config")
    if config.get("model_type") == "sam3_video" and isinstance(tracker, Mapping):
        config = {"model_type": wanted, **tracker}
    if config.get("model_type") != wanted:
        raise CheckpointError(
            f"{file} describes a {config.get('model_type')!r}, but these are the weights of a {wanted!r}; do they "
            "belong to the same checkpoint?"
        )
    return settings_of(config)


def map_native_tracker(keys: Iterable[str], original_decoder: bool = True) -> KeyMap:
    """
    Maps a mask tracker in transformers' format.

    Args:
        keys (`Iterable[str]`): Source names.
        original_decoder (`bool`): Whether the decoder used for propagation gets the same values.
    """
    result = KeyMap()
    for key in keys:
        name, piece = native_name(key), Piece((key,), identity)
        if name.startswith(DETECTOR):
            result.unused[key] = "SAM 3's detector finds objects by text"
            continue
        result.pieces[SAM + name] = piece
        if name.startswith(DECODER) and original_decoder:
            result.pieces[ORIGINAL_DECODER + name.removeprefix(DECODER)] = piece
        elif name in POSITIONS:
            for other in POSITIONS:
                result.pieces.setdefault(SAM + other, piece)
    return result


def map_native_decoder(keys: Iterable[str]) -> KeyMap:
    """Maps only the mask decoder of a tracker in transformers' format, to the decoder used for propagation."""
    whole, result = map_native_tracker(keys), KeyMap()
    result.pieces = {own: piece for own, piece in whole.pieces.items() if own.startswith(ORIGINAL_DECODER)}
    taken = {key for piece in result.pieces.values() for key in piece.keys}
    reason = "the checkpoint keeps its own mask tracker; only the original mask decoder is taken"
    others = {key for piece in whole.pieces.values() for key in piece.keys} - taken
    result.unused = whole.unused | dict.fromkeys(sorted(others), reason)
    return result


# ---- InternVL ------------------------------------------------------------


def internvl_config(foreign: Mapping[str, Any]) -> dict[str, Any]:
    """`backbone_config` of an InternVL in transformers' format, without vocabulary and token ids."""
    return {name: foreign[name] for name in INTERNVL_SETTINGS if foreign.get(name) is not None} | {
        name: settings_of(foreign[name]) for name in ("text_config", "vision_config")
    }
