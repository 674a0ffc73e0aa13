"""
Stage 2: the pictures that the models see. Frames with every object outlined and numbered for the writing model, the
same frames without drawings for the verifying one, and a close-up of each object.

Everything is a function of the video, its masks and the settings: the same input gives the same bytes.
"""

import base64
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ..data.masks import decode_rle, tight_box
from ..drawing.regions import label_masks
from ..overlay_sama import Color, color_from_hex, overlay_masks
from ..video_sama import SamaVideo
from .scenes import SceneObject, area


# Light and saturated, far apart, and each with a name of its own: the check for leaks needs the names
# No white: white boxes, frames and labels are common things
COLORS: dict[str, Color] = {
    name: color_from_hex(code)
    for name, code in {
        "red": "ff2a2a",
        "blue": "2a7bff",
        "green": "22d04a",
        "yellow": "ffe600",
        "orange": "ff9417",
        "purple": "b06bff",
        "cyan": "17e5f0",
        "magenta": "ff35d5",
        "lime": "b6ff1a",
        "pink": "ffa6c9",
    }.items()
}
CROP_MARGIN = 0.5  # of the object's box, on each side
QUALITY = 90  # of JPEG; with fewer, thin outlines get a halo
STYLES = ("contour", "box")


@dataclass(frozen=True)
class RenderSettings:
    """
    How pictures are drawn.

    Args:
        frames (`int`): Maximum number of frames, with the first and the last one.
        size (`int`): Length of the longer side in pixels; smaller frames are enlarged to it, so that numbers fit.
        style (`str`): "contour" or "box".
        seed (`int`): Seed of the colours.
    """

    frames: int = 16
    size: int = 640
    style: str = "contour"
    seed: int = 0

    def __post_init__(self):
        if self.frames < 2 or self.size < 64:
            raise ValueError(
                f"At least 2 frames of 64 pixels are needed, got {self.frames} frames of {self.size} pixels."
            )
        if self.style not in STYLES:
            raise ValueError(f"The style is {self.style!r}, expected one of {', '.join(STYLES)}.")


@dataclass(frozen=True)
class Rendering:
    """
    The pictures of a video, as JPEG files.

    Attributes:
        shown (`tuple[int, ...]`): The numbers of the frames.
        seconds (`tuple[float, ...]`): When they are shown.
        drawn, plain (`tuple[bytes, ...]`): The frames with and without drawings.
        crops (`tuple[bytes, ...]`): A close-up of each object, without drawings, from the frame with most of it.
        crop_frames (`tuple[int, ...]`): Those frames.
        colors (`tuple[str, ...]`): The name of the colour of each object.
    """

    shown: tuple[int, ...]
    seconds: tuple[float, ...]
    drawn: tuple[bytes, ...]
    plain: tuple[bytes, ...]
    crops: tuple[bytes, ...]
    crop_frames: tuple[int, ...]
    colors: tuple[str, ...]

    @property
    def drawn_frames(self) -> dict[int, bytes]:
        """The frames with drawings, by their numbers."""
        return dict(zip(self.shown, self.drawn, strict=True))


def shown_frames(num_frames: int, limit: int) -> tuple[int, ...]:
    """At most `limit` frames, evenly spread, the first and the last one included."""
    return tuple(dict.fromkeys(np.linspace(0, num_frames - 1, min(limit, num_frames)).round().astype(int).tolist()))


def object_colors(scene_id: str, count: int, seed: int) -> tuple[str, ...]:
    """A colour for each object of a video, none twice, drawn by the seed and the video's id."""
    if count > len(COLORS):
        raise ValueError(f"There are {count} objects but only {len(COLORS)} colours.")
    digest = hashlib.sha256(f"{seed}/{scene_id}".encode()).digest()
    order = np.random.default_rng(int.from_bytes(digest[:8])).permutation(len(COLORS))
    return tuple(tuple(COLORS)[i] for i in order[:count].tolist())


def render(scene_id: str, video: SamaVideo, objects: Sequence[SceneObject], settings: RenderSettings) -> Rendering:
    """
    Draws the pictures of a video.

    Args:
        scene_id (`str`): Decides the colours, with the seed.
        video ([`SamaVideo`]): The video.
        objects (sequence of [`SceneObject`]): Those that are numbered, from 1.
        settings ([`RenderSettings`]): How.
    """
    shown = shown_frames(len(video), settings.frames)
    colors = object_colors(scene_id, len(objects), settings.seed)
    triples, drawn, plain = [COLORS[color] for color in colors], [], []
    for index in shown:
        frame = resized(video[index], settings.size)
        masks = np.stack([_mask(one, index, frame.shape[:2]) for one in objects])
        outlined = _draw_boxes(frame, masks, triples) if settings.style == "box" else overlay_masks(
            frame, masks, triples, opacity=0.0
        )  # fmt: skip
        numbers = [str(number) for number in range(1, len(objects) + 1)]
        drawn.append(jpeg(label_masks(outlined, masks, numbers, triples)))
        plain.append(jpeg(frame))
    best = [max(shown, key=lambda f, one=one: (_pixels(one, f), -f)) for one in objects]
    crops = [jpeg(_crop(video[frame], one, frame, settings.size)) for one, frame in zip(objects, best, strict=True)]
    seconds = [video.times[frame] if video.times is not None else frame / video.fps for frame in shown]
    return Rendering(shown, tuple(seconds), tuple(drawn), tuple(plain), tuple(crops), tuple(best), colors)


def _pixels(one: SceneObject, frame: int) -> int:
    code = one.masks[frame]
    return 0 if code is None else area(code)


def _mask(one: SceneObject, frame: int, size: tuple[int, int]) -> np.ndarray:
    return decode_rle(one.masks[frame], size, resize=True)


def resized(frame: np.ndarray, size: int) -> np.ndarray:
    """The frame with a longer side of `size` pixels."""
    height, width = frame.shape[:2]
    scale = size / max(height, width)
    if scale == 1:
        return frame
    target = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(frame).resize(target, Image.Resampling.LANCZOS))


def _draw_boxes(frame: np.ndarray, masks: np.ndarray, colors: Sequence[Color]) -> np.ndarray:
    """Each object's bounding box as a rectangle that is outlined as a mask would be."""
    filled = np.zeros_like(masks)
    for mask, box in zip(filled, map(tight_box, masks), strict=True):
        if box is not None:
            mask[box[1] : box[3], box[0] : box[2]] = True
    return overlay_masks(frame, filled, colors, opacity=0.0)


def _crop(frame: np.ndarray, one: SceneObject, index: int, size: int) -> np.ndarray:
    """The part of a frame around an object. Half the size of the frames is enough for a close-up."""
    box = tight_box(decode_rle(one.masks[index], frame.shape[:2], resize=True))
    if box is None:
        raise ValueError(f"Object {one.name!r} is not visible in frame {index}: it should have been left out.")
    x1, y1, x2, y2 = box
    margin_x, margin_y = round((x2 - x1) * CROP_MARGIN), round((y2 - y1) * CROP_MARGIN)
    part = frame[max(0, y1 - margin_y) : y2 + margin_y, max(0, x1 - margin_x) : x2 + margin_x]
    return resized(np.ascontiguousarray(part), max(64, size // 2))


def jpeg(frame: np.ndarray) -> bytes:
    """The frame as a JPEG file, whose chroma is not reduced: outlines are thin and coloured."""
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "JPEG", quality=QUALITY, subsampling=0)
    return file.getvalue()


def image_part(picture: bytes) -> dict[str, Any]:
    """A picture as a content part of a chat message."""
    return {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64," + base64.b64encode(picture).decode()}}
