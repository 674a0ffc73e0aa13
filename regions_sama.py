"""Regions as users give them: the fields of a region, the forms of a mask, and the checks that every prompt lies in
its video."""

import reprlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from PIL import Image

from .video_sama import SamaVideo, tensor_array


PROMPT_KINDS = ("mask", "box", "points", "scribble")
REGION_FIELDS = ("frame", "time", *PROMPT_KINDS, "labels")
# Names that other libraries use for a field
SIMILAR_FIELDS = {"bbox": "box", "point": "points", "mask_input": "mask", "label": "labels", "line": "scribble"}
# More points than anybody clicks; SAM 2 attends to each of them
MAX_POINTS, MAX_LINE_POINTS = 1_000, 10_000
# Run lengths of a larger mask are not decoded: no video has such frames
MAX_MASK_PIXELS = 2**27
# A run length is written in chunks of five bits; one of more chunks would exceed the limit
MAX_CHUNKS = 6
DAMAGED = "the run-length code of the mask is truncated or damaged"

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 2, 60, 60


@dataclass
class Region:
    """
    Something pointed at in a video: exactly one of a mask, a box, points or a scribble, in pixels of the video.

    Args:
        frame (`int` or sequence of `int`): The frame the prompt is drawn on. Several frames take one prompt each.
        mask: Shape `(height, width)`; what is not zero belongs to the region. An array, a PIL image, a tensor, or COCO
            run lengths `{"size": [height, width], "counts": ...}`.
        box (`tuple`): `(x1, y1, x2, y2)`.
        points (`list`): `[(x, y), ...]`, with `labels` 1 (belongs to it) or 0 (does not); all 1 by default.
        labels (`list[int]`): One label a point.
        scribble (`list`): A line through the points `[(x, y), ...]`.
        time (`float` or sequence of `float`): Instead of `frame`: seconds from the beginning of the video. The frame
            is the one that a player shows at that time.

    Raises:
        ValueError: for fields that are missing, that contradict each other, or that are of a wrong type.
    """

    frame: int | Sequence[int] = 0
    mask: Any = None
    box: Sequence | None = None
    points: Sequence | None = None
    labels: Sequence | None = None
    scribble: Sequence | None = None
    time: float | Sequence[float] | None = None

    def __post_init__(self):
        given = [name for name in PROMPT_KINDS if vars(self)[name] is not None]
        if len(given) != 1:
            found = f"{len(given)}: {', '.join(given)}" if given else "none"
            raise ValueError(f"A region takes exactly one of {', '.join(PROMPT_KINDS)}; got {found}.")
        if self.labels is not None and self.points is None:
            raise ValueError(f"A region takes labels only with points, got labels with a {given[0]}.")
        self.kind = given[0]
        if self.time is not None:
            if not is_whole(self.frame) or self.frame != 0:
                raise ValueError(
                    f"A region takes either a frame or a time, got frame {shortened(self.frame)} and "
                    f"{shortened(self.time)} s."
                )
            for time in as_list(self.time):
                if not is_number(time) or not 0 <= time <= sys.float_info.max:
                    raise ValueError(
                        f"A region's time must be seconds from 0 on, or a list of them, got {shortened(time)}."
                    )
        frames = as_list(self.frame)
        wrong = [frame for frame in frames if not is_whole(frame)]
        if wrong:
            raise ValueError(f"A region's frame must be a whole number or a list of them, got {shortened(wrong[0])}.")
        if len(set(frames)) != len(frames):
            raise ValueError(f"A region takes one prompt a frame, but its frames {shortened(frames)} repeat.")
        if self.kind == "mask" and not self.on_several_frames:
            self.mask = mask_array(self.mask)

    @property
    def on_several_frames(self) -> bool:
        """Whether the region has a list of frames or times, with one prompt each."""
        return is_list(self.frame if self.time is None else self.time)

    def at_frames(self, video: SamaVideo) -> "Region":
        """The region with its frame instead of its time."""
        if self.time is None:
            return self
        frames = [video.frame_at(time) for time in as_list(self.time)]
        frame = frames if self.on_several_frames else frames[0]
        return Region(frame=frame, labels=self.labels, **{self.kind: vars(self)[self.kind]})

    def per_frame(self) -> list["Region"]:
        """The region as one single-frame region a frame; without those on which it is `None`, not visible."""
        if not self.on_several_frames:
            return [self]
        frames, prompts = list(cast(Sequence[int], self.frame)), vars(self)[self.kind]
        labels = [None] * len(frames) if self.labels is None else self.labels
        lists = [is_list(values) for values in (frames, prompts, labels)]
        counts = [len(values) if found else 1 for values, found in zip((frames, prompts, labels), lists, strict=True)]
        if not frames or not all(lists) or len(set(counts)) != 1:
            raise ValueError(
                f"A region over several frames takes one prompt a frame, got {counts[0]} frames, "
                f"{counts[1]} {self.kind} prompts and {counts[2]} lists of labels; give each as a list."
            )
        return [
            Region(frame=int(frame), labels=label, **{self.kind: prompt})
            for frame, prompt, label in zip(frames, prompts, labels, strict=True)
            if prompt is not None
        ]


def shortened(value) -> str:
    """`repr` of a value for a message: at most a few entries and characters of it."""
    try:
        return _SHORT.repr(value)
    except (RecursionError, ValueError):  # nested too deeply, or a number of more digits than Python prints
        return f"a {type(value).__name__} that is too long to show"


def as_list(value) -> list:
    """A list of the values, of one value a list of it."""
    value = value.tolist() if isinstance(value, torch.Tensor) else value
    return list(value) if is_list(value) else [value]


def is_list(value) -> bool:
    """Whether a value is a list of any content. `np.ndim` is not used: it fails on rows of different lengths."""
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return value.ndim > 0
    return isinstance(value, (list, tuple, range))


def is_whole(value) -> bool:
    """Whether a value is a whole number; booleans and floats such as 3.0 are not."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def is_number(value) -> bool:
    """Whether a value is a number; booleans and strings are not."""
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def mask_array(mask) -> np.ndarray:
    """
    A mask in any of its forms as a bool array of shape `(height, width)`.

    Args:
        mask: An array or tensor of numbers, nested lists of them, a PIL image, or COCO run lengths, compressed or not.
            Of a picture, black and transparent pixels do not belong to the mask, nor entry 0 of a palette.

    Raises:
        ValueError: for anything else, for NaN, and for run lengths that do not fill their size.
    """
    if isinstance(mask, Mapping):
        return decode_rle(mask)
    try:
        if isinstance(mask, Image.Image):
            mask = mask if mask.mode in ("P", "1", "I", "F", "I;16") else visible_pixels(mask)
        array = tensor_array(mask) if isinstance(mask, torch.Tensor) else np.asarray(mask)
    except OSError as error:
        raise ValueError(f"The picture of a region's mask cannot be decoded: {error}.") from error
    except ValueError:
        raise ValueError("The mask of a region has rows of different lengths.") from None
    if array.dtype.kind not in "biuf":
        raise ValueError(f"The mask of a region must be numbers, a picture or COCO run lengths, got {array.dtype}.")
    if array.dtype.kind == "f" and np.isnan(array).any():
        raise ValueError(f"The mask of a region is NaN in {int(np.isnan(array).sum())} of its {array.size} pixels.")
    return array != 0


def visible_pixels(picture: Image.Image) -> np.ndarray:
    """Bool array of shape `(height, width)`: the pixels of a picture that are neither black nor transparent. As grey,
    the darkest colours would be black: (1, 0, 0) may be the number of an object."""
    channels = np.asarray(picture.convert("RGBA"))
    return channels[..., :3].any(axis=-1) & (channels[..., 3] > 0)


def decode_rle(code: Mapping) -> np.ndarray:
    """
    COCO run lengths as a bool array of shape `(height, width)`.

    Args:
        code (`dict`): `size`, `[height, width]`, and `counts`: a list of whole numbers, or COCO's compressed text.

    Raises:
        ValueError: for fields of a wrong type, a size above 2^27 pixels, and counts that do not add up to the size.
    """
    return mask_of_runs(*checked_runs(code))


def checked_runs(code: Mapping) -> tuple[list[int], int, int]:
    """Run lengths, height and width of COCO run lengths; raises `ValueError` as [`decode_rle`] does."""
    size, counts = code.get("size"), code.get("counts")
    if not isinstance(size, (list, tuple)) or len(size) != 2 or not all(is_whole(side) and side > 0 for side in size):
        found = shortened(size)
        raise ValueError(f"Run lengths of a mask need a size [height, width] of whole numbers above 0, got {found}.")
    height, width = int(size[0]), int(size[1])
    if height * width > MAX_MASK_PIXELS:
        raise ValueError(f"Run lengths of a {height} x {width} mask have more than {MAX_MASK_PIXELS} pixels.")
    if isinstance(counts, (str, bytes)):
        runs = run_lengths(counts if isinstance(counts, str) else counts.decode("ascii", "replace")).tolist()
    elif isinstance(counts, (list, tuple)) and all(is_whole(count) for count in counts):
        runs = [int(count) for count in counts]
    else:
        raise ValueError("Run lengths of a mask need counts: a list of whole numbers, or COCO's compressed text.")
    if min(runs, default=0) < 0 or sum(runs) != height * width:
        raise ValueError(
            f"The run lengths of a mask add up to {sum(runs)}, with {min(runs, default=0)} as the smallest, but its "
            f"size {height} x {width} has {height * width} pixels."
        )
    return runs, height, width


def run_lengths(counts: str) -> np.ndarray:
    """
    The run lengths of a compressed code (COCO's `rleFrString`, for all runs at once).

    A character minus 48 is a chunk of six bits. Its lower five bits are part of a number, the lowest part first; bit 5
    says that the number goes on in the next chunk, and bit 4 of the last chunk is the sign. From the fourth number on
    a number is the difference from the run two places before.

    Raises:
        ValueError: for text that is not such a code.
    """
    if not counts.isascii():
        raise ValueError(DAMAGED)
    chunks = np.frombuffer(counts.encode("ascii"), dtype=np.uint8).astype(np.int64) - 48
    if chunks.size == 0 or chunks.min() < 0 or chunks.max() > 63 or chunks[-1] & 32:
        raise ValueError(DAMAGED)
    is_last = (chunks & 32) == 0
    starts = np.flatnonzero(np.concatenate(([True], is_last[:-1])))  # of each number
    num_chunks = np.diff(np.concatenate((starts, [chunks.size])))
    if num_chunks.max() > MAX_CHUNKS:
        raise ValueError(DAMAGED)
    shifts = 5 * (np.arange(chunks.size) - np.repeat(starts, num_chunks))
    runs = np.add.reduceat((chunks & 31) << shifts, starts)
    is_negative = (chunks[is_last] & 16) != 0
    runs = np.where(is_negative, runs - (np.int64(1) << (5 * num_chunks)), runs)
    # Undo the differences: every second run is a cumulative sum. Run 0 is stored as it is, and so are runs 1 and 2.
    runs[1::2], runs[2::2] = np.cumsum(runs[1::2]), np.cumsum(runs[2::2])
    return runs


def mask_of_runs(runs: Sequence[int] | np.ndarray, height: int, width: int) -> np.ndarray:
    """The bool array of shape `(height, width)` of run lengths: column by column, beginning with zeros."""
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def region_from_fields(fields: Mapping) -> Region:
    """The [`Region`] of a dict; raises `ValueError` for fields that it does not have."""
    unknown = sorted(str(name)[:40] for name in fields if name not in REGION_FIELDS)
    if "object" in unknown:
        raise ValueError(
            "A region gives an object by its number, which a `ChatSession` knows; otherwise give the object itself, "
            "such as reply.objects[0]."
        )
    if unknown:
        meant = [f"'{SIMILAR_FIELDS[name]}' instead of '{name}'" for name in unknown if name in SIMILAR_FIELDS]
        hint = f" Write {' and '.join(meant)}." if meant else ""
        raise ValueError(
            f"A region has unknown fields {', '.join(unknown[:5])}; it takes {', '.join(REGION_FIELDS)}.{hint}"
        )
    if "frame" in fields and fields.get("time") is not None:  # frame 0 too, which [`Region`] cannot tell from none
        raise ValueError(
            f"A region takes either a frame or a time, got frame {shortened(fields['frame'])} and "
            f"{shortened(fields['time'])} s."
        )
    return Region(**fields)


# ---- prompts that lie in a video ------------------------------------------------------------------------------------


def checked_mask(mask: np.ndarray, frame: int, video: SamaVideo) -> np.ndarray:
    """The mask, if it has the size of the video's frames and is not empty; raises `ValueError` otherwise."""
    if mask.shape != (video.height, video.width):
        raise ValueError(
            f"The mask of the region on frame {frame} has shape {mask.shape}, the frames of '{video.name}' are "
            f"{(video.height, video.width)}."
        )
    if not mask.any():
        raise ValueError(f"The mask of the region on frame {frame} is empty.")
    return mask


def checked_box(box: Sequence, video: SamaVideo) -> tuple[float, ...]:
    """`(x1, y1, x2, y2)`, clipped where it sticks out by less than a pixel; raises `ValueError` if it sticks out by
    more, has its corners in the wrong order, is empty, looks normalised, or is not 4 numbers."""
    numbers = numbers_of(box, limit=4)
    if numbers is None or numbers.shape != (4,):
        count = "" if numbers is None or numbers.ndim != 1 else f"{len(numbers)}: "
        raise ValueError(f"A box takes 4 numbers (x1, y1, x2, y2), got {count}{shortened(box)}.")
    values = tuple(numbers.tolist())
    if values[0] > values[2] or values[1] > values[3]:
        raise ValueError(
            f"The box {values} has its second corner above or to the left of its first one (expected x1 < x2 and "
            "y1 < y2). Perhaps it is (x, y, width, height)."
        )
    limits = (video.width, video.height, video.width, video.height)
    # A detector's box may stick out by a fraction of a pixel
    x1, y1, x2, y2 = inside = tuple(
        min(max(value, 0.0), float(limit)) if -1 < value < limit + 1 else value
        for value, limit in zip(values, limits, strict=True)
    )
    if not (0 <= x1 <= x2 <= video.width and 0 <= y1 <= y2 <= video.height):
        raise ValueError(
            f"The box {values} does not lie inside the {video.width}x{video.height} pixels of '{video.name}' "
            "(expected 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height)."
        )
    if x1 == x2 or y1 == y2:
        raise ValueError(f"The box {values} has zero area.")
    refuse_normalised("box", numbers, video)
    return inside


def checked_points(points: Sequence, kind: str, video: SamaVideo) -> np.ndarray:
    """Float array of shape `(num_points, 2)`; raises `ValueError` if a point lies outside, if there are too many, or
    if they look normalised. `kind` is "points" or "scribble"."""
    limit = MAX_POINTS if kind == "points" else MAX_LINE_POINTS
    if is_list(points) and len(points) > limit:
        raise ValueError(f"A region takes at most {limit} {kind} coordinates, got {len(points)}.")
    array = numbers_of(points, limit)
    if array is None or array.ndim != 2 or array.shape[1] != 2 or len(array) == 0:
        raise ValueError(f"A region's {kind} must be a list of (x, y) pairs, got {shortened(points)}.")
    for x, y in array.tolist():
        if not (0 <= x < video.width and 0 <= y < video.height):
            raise ValueError(
                f"The point ({x:g}, {y:g}) lies outside the {video.width}x{video.height} pixels of '{video.name}'."
            )
    refuse_normalised(kind, array, video)
    return array.astype(np.float32)


def refuse_normalised(kind: str, numbers: np.ndarray, video: SamaVideo) -> None:
    """Raises `ValueError` for fractions from 0 to 1: they would all point into the pixel at the top left."""
    if (numbers <= 1).all() and (numbers % 1 != 0).any():
        raise ValueError(
            f"The {kind} {shortened(numbers.tolist())} looks normalised to 0..1; a region is in pixels, so multiply "
            f"by the width {video.width} and the height {video.height} of '{video.name}'."
        )


def numbers_of(values, limit: int) -> np.ndarray | None:
    """As an array, or `None` for what is not made of numbers in rows of equal length; strings and booleans are not
    numbers."""
    if isinstance(values, torch.Tensor):
        values = tensor_array(values)
    if isinstance(values, np.ndarray):
        return values.astype(np.float64) if values.dtype.kind in "iuf" else None
    if not isinstance(values, (list, tuple)) or len(values) > limit:
        return None
    for value in values:
        row = as_list(value)
        if len(row) > limit or not all(is_number(number) for number in row):
            return None
    try:
        return np.asarray(values, dtype=np.float64)
    except (OverflowError, ValueError):
        return None
