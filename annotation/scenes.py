"""A video with the objects that are to be annotated, and which of its objects are worth it."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco

from ..data.frames import open_visual
from ..data.json_text import without_surrogates
from ..video_sama import SamaVideo
from .errors import AnnotationError


MAX_OBJECTS = 10
MIN_AREA = 0.001  # of the frame, mean of the frames in which the object is visible
MIN_FRAMES = 3  # in which it is visible
SAME_OBJECT_IOU = 0.8  # of two tracks, from which they are the same object


class LeftOut(NamedTuple):
    """Why an object of a video is not annotated: a code, for counts, and a sentence with the numbers."""

    code: str
    reason: str


@dataclass(frozen=True)
class SceneObject:
    """
    An object of a video.

    Args:
        name (`str`): Its name in records.
        masks (`tuple[dict or None, ...]`): A run-length code for each frame, `None` where it is not visible.
        expressions (`tuple[str, ...]`): What the source says about it.
    """

    name: str
    masks: tuple[dict | None, ...]
    expressions: tuple[str, ...] = ()

    @property
    def visible(self) -> frozenset[int]:
        """The frames that have pixels of the object."""
        return frozenset(frame for frame, code in enumerate(self.masks) if code is not None and area(code))


@dataclass(frozen=True)
class Scene:
    """
    A video that is to be annotated.

    Args:
        id (`str`): Name of the video, from which the ids of its records are made.
        source (`str`): Name of the data set.
        visual (`dict`): `video` of its records: path relative to `root`, frames, stride.
        objects (`tuple[SceneObject, ...]`): Its objects; `<obj1>` is the first one.
        root (`Path`): Folder of the videos.
        info (`dict`): What is known of its origin: `dataset`, `url`, `licence`, `mask_licence`, `mask_origin`,
            `split`.
        trusted (`tuple[str, ...]`): Folders in which files may lie, see [`trusted_folders`]; without any, the root.
    """

    id: str
    source: str
    visual: dict
    objects: tuple[SceneObject, ...]
    root: Path
    info: dict = field(default_factory=dict)
    trusted: tuple[str, ...] = ()

    def open(self) -> SamaVideo:
        """The video, opened; `DataError` if it cannot be read."""
        record, trusted = {"source": self.source, "id": self.id, "video": self.visual}, list(map(Path, self.trusted))
        video = open_visual(record, self.root, trusted)
        assert video is not None  # only a record of text alone has none
        return video

    def to_json(self) -> str:
        """The scene as text, for [`from_json`]."""
        return json.dumps(asdict(self) | {"root": str(self.root)})

    @classmethod
    def from_json(cls, text: str) -> "Scene":
        """The scene from its text."""
        value = json.loads(text)
        objects = tuple(
            SceneObject(one["name"], tuple(one["masks"]), tuple(one["expressions"])) for one in value["objects"]
        )
        return cls(**value | {"objects": objects, "root": Path(value["root"]), "trusted": tuple(value["trusted"])})

    def digest(self) -> str:
        """A hash of everything but the pixels of the video."""
        objects = [[one.name, one.masks, one.expressions] for one in self.objects]
        content = [self.id, self.source, self.visual, objects, self.info]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class BrokenScene:
    """A video, or a line of a file, that could not be read, and why."""

    id: str
    error: Exception


def writable(scene: Scene | BrokenScene) -> Scene | BrokenScene:
    """The video, or a broken one in its place if its records could not be written. Its id always can."""
    name = without_surrogates(scene.id)
    if isinstance(scene, BrokenScene):
        return BrokenScene(name, scene.error)
    objects = [[one.name, one.expressions] for one in scene.objects]
    text = json.dumps([scene.id, scene.source, scene.visual, objects, scene.info], ensure_ascii=False)
    if text == without_surrogates(text):
        return scene
    return BrokenScene(name, AnnotationError(f"A name or a text of {name} is not Unicode: rename its files in UTF-8."))


def area(code: dict) -> int:
    """Pixels of a compressed run-length code."""
    return int(coco.area(_encoded(code)))


def _encoded(code: dict) -> Any:
    """The code as pycocotools takes it."""
    return {"size": code["size"], "counts": code["counts"].encode("ascii")}


def track_iou(first: Sequence[dict | None], second: Sequence[dict | None]) -> float:
    """IoU of two mask tracks over all frames together; 0 if both are empty."""
    shared = total = 0
    for codes in zip(first, second, strict=True):
        present = [_encoded(code) for code in codes if code is not None]
        total += sum(int(coco.area(code)) for code in present)
        if len(present) == 2:
            shared += int(coco.area(coco.merge(present, intersect=True)))
    return shared / (total - shared) if total > shared else 0.0


def select_objects(
    objects: Sequence[SceneObject], shown: Sequence[int] | None = None
) -> tuple[tuple[SceneObject, ...], dict[str, LeftOut]]:
    """
    The objects that are annotated, and by name why each of the others is not: `merged`, `brief`, `small`, `not shown`
    or `surplus`.

    Objects with tracks that overlap by `SAME_OBJECT_IOU` or more are one, with the expressions of both. Left out are
    objects that are small, visible in few frames, or visible in no shown frame, and beyond `MAX_OBJECTS` the smallest.
    """
    kept: list[SceneObject] = []
    left_out: dict[str, LeftOut] = {}
    for one in objects:
        seen = sorted(one.visible)
        codes = [code for code in one.masks if code is not None and area(code)]
        share = float(np.mean([area(code) / np.prod(code["size"]) for code in codes])) if codes else 0.0
        twin = next((i for i, other in enumerate(kept) if track_iou(one.masks, other.masks) >= SAME_OBJECT_IOU), None)
        if len(seen) < min(MIN_FRAMES, len(one.masks)):
            left_out[one.name] = LeftOut("brief", f"visible in {len(seen)} frames, fewer than {MIN_FRAMES}")
        elif share < MIN_AREA:
            left_out[one.name] = LeftOut("small", f"{share:.3%} of the frame, less than {MIN_AREA:.1%}")
        elif shown is not None and not set(shown) & set(seen):
            left_out[one.name] = LeftOut("not shown", "visible in none of the shown frames")
        elif twin is not None:
            left_out[one.name] = LeftOut("merged", f"the same object as {kept[twin].name}")
            expressions = tuple(dict.fromkeys((*kept[twin].expressions, *one.expressions)))
            kept[twin] = SceneObject(kept[twin].name, kept[twin].masks, expressions)
        else:
            kept.append(one)
    sizes = [sum(map(area, filter(None, one.masks))) for one in kept]
    largest = set(np.argsort(sizes, kind="stable")[::-1][:MAX_OBJECTS].tolist())
    for index, one in enumerate(kept):
        if index not in largest:
            left_out[one.name] = LeftOut("surplus", f"beyond the {MAX_OBJECTS} largest objects")
    return tuple(one for index, one in enumerate(kept) if index in largest), left_out
