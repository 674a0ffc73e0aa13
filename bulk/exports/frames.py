"""What all formats need: names and pictures of frames, labels, and polygons of masks."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import contourpy
import numpy as np
from PIL import Image

from ...data.files import atomic_path
from ...data.frames import join_inside, open_visual, safe_path
from ...video_sama import SamaVideo
from ..answers import AnsweredVideo
from ..pool import BulkError


Videos = Callable[[], Iterator[AnsweredVideo]]  # may be called several times, each gives all videos
JPEG_OPTIONS: dict[str, Any] = {"quality": 95}
PICTURES = (".jpg", ".jpeg", ".png")  # written under their own names


def frame_name(video: AnsweredVideo, index: int, written: bool) -> str:
    """Name of the picture of a frame, with the folder of its video. A picture keeps its name, unless it is `written`
    anew and neither a JPEG nor a PNG."""
    inside = join_inside(".", video.name, "video")
    if not video.is_image:
        return f"{inside}/{index:05d}.jpg"
    return f"{inside}.png" if written and not inside.lower().endswith(PICTURES) else inside


class FrameWriter:
    """
    Writes frames as pictures, or nothing.

    Args:
        media (`Path`, *optional*): Folder of the videos.
        active (`bool`): Whether anything is written.
    """

    def __init__(self, media: Path | None, active: bool):
        self.media, self.active = media, active

    def open(self, video: AnsweredVideo) -> SamaVideo:
        """The frames that the model was shown. [`DataError`] if they cannot be read."""
        if self.media is None:
            raise BulkError("The folder of the videos is needed.")
        opened = open_visual({"id": video.name, "source": "export", **video.visual}, self.media)
        if opened is None:
            raise BulkError(f"The answers about {video.name!r} name no file.")
        found, expected = (len(opened), opened.height, opened.width), (video.num_frames, video.height, video.width)
        if found != expected:
            raise BulkError(
                f"{video.name!r} is (frames, height, width) = {found}, but its answers are about {expected}: it is "
                "another video than the one that was asked about."
            )
        return opened

    def path(self, video: AnsweredVideo) -> Path:
        """The file or folder of a video. [`DataError`] if it lies elsewhere."""
        if self.media is None:
            raise BulkError("The folder of the videos is needed.")
        return safe_path(self.media, video.name)

    def write(self, video: AnsweredVideo, frames: Iterator[int] | list[int] | range, folder: Path) -> None:
        """Writes frames of a video below a folder, named as by [`frame_name`]."""
        if not self.active:
            return
        opened = self.open(video)
        for index in frames:
            with atomic_path(folder / frame_name(video, index, written=True)) as temporary:
                picture, is_jpeg = Image.fromarray(opened[index]), temporary.suffix.lower() in (".jpg", ".jpeg")
                picture.save(temporary, **(JPEG_OPTIONS if is_jpeg else {}))


def labels_of(videos: Videos) -> dict[str, int]:
    """Label -> its position, from 0, in the order in which they first occur."""
    found: dict[str, int] = {}
    for video in videos():
        for one in video.objects:
            if one.masks:
                found.setdefault(one.label, len(found))
    return found


def to_json(value: object) -> str:
    """JSON in one line."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


# ---- polygons -------------------------------------------------------------------------------------------------------


def rings_of(mask: np.ndarray, level: float = 0.5) -> list[np.ndarray]:
    """
    The borders of a mask as rings: `(num_points, 2)` arrays of x and y in pixels, where the center of the first pixel
    is (0.5, 0.5). A pixel belongs to the mask where an odd number of rings surrounds its center. The largest part
    comes first, and each part is followed by its holes.

    Args:
        mask (`np.ndarray` of shape `(height, width)`, bool)
        level (`float`): 0.5 puts a border halfway between the centers of the pixels on both sides of it, a larger one
            closer to those of the mask: below 1.
    """
    padded = np.pad(mask, 1).astype(np.float32)
    generator = contourpy.contour_generator(z=padded, fill_type=contourpy.FillType.OuterOffset)
    points, offsets = cast(tuple[list[np.ndarray], list[np.ndarray]], generator.filled(level, np.inf))
    parts = []
    for one, ends in zip(points, offsets, strict=True):
        # Array index 1 is the first pixel behind the padding
        rings = [_corners(one[start:end][:-1] - 0.5) for start, end in zip(ends[:-1], ends[1:], strict=True)]
        parts.append(rings)
    parts.sort(key=lambda rings: -abs(_area(rings[0])))
    return [ring for rings in parts for ring in rings]


def joined(rings: list[np.ndarray]) -> np.ndarray:
    """
    One ring for formats that know only one: the rings are joined by bridges of no width, which surround nothing. The
    rule of [`rings_of`] holds for it, too.
    """
    ring = rings[0]
    for other in rings[1:]:
        distances = np.abs(ring[:, None] - other[None]).sum(axis=-1)
        here, there = np.unravel_index(int(distances.argmin()), distances.shape)
        loop = np.concatenate([other[there:], other[: there + 1]])
        ring = np.concatenate([ring[: here + 1], loop, ring[here:]])
    return ring


def _corners(ring: np.ndarray) -> np.ndarray:
    """A ring without the points in the middle of straight lines."""
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    turns = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
    return ring[np.abs(turns) > 1e-9]


def _area(ring: np.ndarray) -> float:
    x, y = ring[:, 0], ring[:, 1]
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)
