"""Where a record comes from: its video, its masks, the models that wrote and checked it, and what the checks said."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import prompts
from .calls import ModelChoice, VideoCalls
from .errors import AnnotationError
from .problems import CODES
from .scenes import Scene


UNKNOWN = "unknown"


@dataclass(frozen=True)
class Origin:
    """
    What holds for all videos of a run unless the source says otherwise for one of them.

    Args:
        dataset, licence, mask_licence, mask_origin, split (`str`): "unknown" where it is not known.
        allow_unknown (`bool`): Whether videos without a licence, and models whose terms are unknown, are used.
    """

    dataset: str = UNKNOWN
    licence: str = UNKNOWN
    mask_licence: str = UNKNOWN
    mask_origin: str = UNKNOWN
    split: str = "train"
    allow_unknown: bool = False

    def of(self, scene: Scene) -> dict[str, str]:
        """The fields for one video."""
        known = {"dataset": self.dataset, "licence": self.licence, "mask_licence": self.mask_licence}
        known |= {"mask_origin": self.mask_origin, "split": self.split, "url": ""}
        return known | {name: text for name, text in scene.info.items() if text.strip()}

    def check(self, scene: Scene, models: Mapping[str, ModelChoice]) -> None:
        """Raises [`AnnotationError`] for a video, masks or a model that must not be used for training data."""
        fields = self.of(scene)
        for name, flag in (("licence", "--video-licence"), ("mask_licence", "--mask-licence")):
            if fields[name].strip().lower() in ("", UNKNOWN) and not self.allow_unknown:
                raise AnnotationError(
                    f"The {name} of {scene.id} is unknown: state it with {flag}, or --allow-unknown."
                )
        for role, model in models.items():
            if model.terms == "no":
                raise AnnotationError(
                    f"The terms of the {role} {model.name} do not allow training on its output (--{role}-terms no)."
                )
            if model.terms == UNKNOWN and not self.allow_unknown:
                raise AnnotationError(
                    f"Whether the terms of the {role} {model.name} allow training on its output is unknown: state it "
                    f"with --{role}-terms yes, or --allow-unknown."
                )


def prompt_hash() -> str:
    """A hash of all sentences that models are sent."""
    sentences = {name: text for name, text in vars(prompts).items() if name.isupper() and isinstance(text, str)}
    return hashlib.sha256(json.dumps(sentences, sort_keys=True).encode()).hexdigest()[:16]


def video_hash(scene: Scene) -> str:
    """SHA-256 of the bytes of the video file, or of all its frames in order."""
    path = scene.root / scene.visual["path"]
    frames = scene.visual.get("frames")
    digest = hashlib.sha256()
    for file in [path] if frames is None else [path / name for name in frames]:
        _add_file(digest, file)
    return digest.hexdigest()


def _add_file(digest, path: Path) -> None:
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)


def provenance_row(record_id: str, scene: Scene, origin: Origin, calls: VideoCalls, about: dict[str, Any]) -> dict:
    """
    The line of `provenance.jsonl` about a record. It has no times: these are in the store, under its keys, and two
    runs over the same replies write the same bytes.

    Args:
        about (`dict`): `video_sha256`; `objects` by tag with name and drawn colour, `left_out` objects by name with
            the reason, `frames` that were shown, `damaged_frames`; `scores` and `refined` of the record's items.
    """
    fields = origin.of(scene)
    return {
        "id": record_id,
        "video": {
            "id": scene.id,
            "path": scene.visual["path"],
            "sha256": about["video_sha256"],
            **{name: fields[name] for name in ("dataset", "url", "licence")},
        },
        "masks": {"licence": fields["mask_licence"], "origin": fields["mask_origin"]},
        **calls.provenance(),
        "prompts": prompt_hash(),
        "keys": list(calls.keys()),
        "checks": [code for code, meaning in CODES.items() if meaning.exact],
        **{name: about[name] for name in ("objects", "left_out", "frames", "damaged_frames")},
        **{name: about[name] for name in ("scores", "refined")},
        "audited": False,
        "split": fields["split"],
    }
