"""What is pointed at: regions of a question, mask tracks and grounded phrases of an answer, and the tensors that the
model reads of a region.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np

from .regions_sama import (
    Region,
    as_list,
    checked_box,
    checked_mask,
    checked_points,
    checked_runs,
    is_whole,
    mask_of_runs,
    region_from_fields,
    shortened,
)
from .video_sama import FrameIndexError, SamaVideo


class MaskTrack:
    """
    The masks of one object through a video, as run lengths: column-major, beginning with zeros, as COCO counts them.

    Args:
        num_frames (`int`), height (`int`), width (`int`): Size of the video. All masks are empty at first.
    """

    def __init__(self, num_frames: int, height: int, width: int):
        self.num_frames, self.height, self.width = num_frames, height, width
        empty = np.array([height * width], dtype=np.int32)
        self._counts = [empty] * num_frames

    @classmethod
    def from_masks(cls, masks: np.ndarray) -> "MaskTrack":
        """From an array of shape `(num_frames, height, width)`; what is not zero belongs to the object."""
        if masks.ndim != 3:
            raise ValueError(f"Expected masks of shape (num_frames, height, width), got {masks.shape}.")
        track = cls(*masks.shape)
        for index, mask in enumerate(masks):
            track[index] = mask
        return track

    def __len__(self) -> int:
        return self.num_frames

    def __getitem__(self, index: int) -> np.ndarray:
        return mask_of_runs(self._counts_at(index), self.height, self.width)

    def __setitem__(self, index: int, mask: np.ndarray) -> None:
        self._counts_at(index)
        if mask.shape != (self.height, self.width):
            raise ValueError(f"A mask of shape {mask.shape} does not fit a track of {(self.height, self.width)}.")
        self._counts[index] = column_runs(mask.astype(bool))

    def set_rle(self, index: int, code: Mapping) -> None:
        """
        Sets the mask of frame `index` from COCO run lengths, compressed or not, without decoding it to pixels.

        Raises:
            ValueError: if the code is damaged or of another size than the track.
        """
        self._counts_at(index)
        runs, height, width = checked_runs(code)
        if (height, width) != (self.height, self.width):
            raise ValueError(f"A mask of shape {(height, width)} does not fit a track of {(self.height, self.width)}.")
        self._counts[index] = np.array(runs, dtype=np.int32)

    def _counts_at(self, index: int) -> np.ndarray:
        if not 0 <= index < self.num_frames:
            raise FrameIndexError(f"Frame {index} does not exist: the track has {self.num_frames} frames.")
        return self._counts[index]

    def area(self, index: int) -> int:
        """Pixels of the object in frame `index`."""
        return int(self._counts_at(index)[1::2].sum())

    def masks(self) -> np.ndarray:
        """All masks: bool array of shape `(num_frames, height, width)`."""
        return np.stack([self[index] for index in range(self.num_frames)])

    def visible_frames(self) -> list[int]:
        """Frames in which the object has at least one pixel."""
        return [index for index in range(self.num_frames) if self.area(index) > 0]

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the run lengths take."""
        return sum(counts.nbytes for counts in self._counts)

    def to_rle(self, index: int) -> dict:
        """Uncompressed COCO run lengths of frame `index`, ready for JSON."""
        return {"size": [self.height, self.width], "counts": self._counts_at(index).tolist()}


def column_runs(mask: np.ndarray) -> np.ndarray:
    """The run lengths of a bool mask of shape `(height, width)`: column by column, beginning with zeros."""
    height, width = mask.shape
    rows, columns = np.divmod(np.flatnonzero(mask[1:] != mask[:-1]), width)
    if len(rows) <= mask.size // 16:
        # The outline of a mask is short: to sort it takes less time than to transpose the mask
        between = np.flatnonzero(mask[0, 1:] != mask[-1, :-1])  # the end of a column and the begin of the next
        changes = np.sort(np.concatenate([columns * height + rows, (between + 1) * height - 1]))
    else:
        flat = mask.T.ravel()
        changes = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff(np.concatenate(([-1], changes, [mask.size - 1])))
    return np.concatenate(([0] if mask[0, 0] else [], counts)).astype(np.int32)


@dataclass
class GroundedPhrase:
    """
    A phrase of an answer and the object that it stands for. Can be given as the region of a later question.

    Attributes:
        text (`str`): The phrase.
        span (`tuple[int, int]`): Its characters in the clean answer.
        track ([`MaskTrack`], *optional*): The object's masks; `None` when the answer was parsed without masks.
        score (`float`, *optional*): The model's confidence. What is not finite becomes `None`.
    """

    text: str
    span: tuple[int, int]
    track: MaskTrack | None = None
    score: float | None = None

    def __post_init__(self):
        # A model that overflows scores with NaN, which JSON cannot hold: it has no confidence
        if self.score is not None and not math.isfinite(self.score):
            self.score = None

    @property
    def masks(self) -> np.ndarray:
        """Bool array of shape `(num_frames, height, width)`."""
        if self.track is None:
            raise ValueError(f"The phrase '{self.text}' has no masks: the answer was parsed without tracks.")
        return self.track.masks()


# Objects are recognised by what they can do and not by their class: transformers loads the model and the processor of
# a checkpoint from separate copies of this file, and a program may import a third one from the repository.
@runtime_checkable
class HasMaskTrack(Protocol):
    """A [`GroundedPhrase`]."""

    text: str
    track: MaskTrack | None


@runtime_checkable
class HasFrameMasks(Protocol):
    """A [`MaskTrack`]."""

    def visible_frames(self) -> list[int]: ...

    def area(self, index: int) -> int: ...


@runtime_checkable
class HasPrompts(Protocol):
    """A [`Region`]."""

    kind: str

    def at_frames(self, video: SamaVideo) -> Region: ...

    def per_frame(self) -> list[Region]: ...


def check_region_list(regions: Sequence) -> None:
    """Raises `ValueError` unless `regions` is a list: one region alone would be taken for several."""
    if isinstance(regions, (str, Mapping, HasPrompts, HasMaskTrack, HasFrameMasks)):
        raise ValueError(
            f"`regions` must be a list with one region for each <region>, got one {type(regions).__name__}; "
            "write regions=[...]."
        )
    if not isinstance(regions, Sequence):
        raise ValueError(f"`regions` must be a list with one region for each <region>, got {type(regions).__name__}.")


def as_region(value) -> Region | MaskTrack:
    """
    Everything that a user may point with, as one of two types.

    Args:
        value ([`Region`], `dict` of its fields, [`GroundedPhrase`] of an earlier answer, or [`MaskTrack`])

    Raises:
        ValueError: for anything else, for unknown fields, and for a phrase without masks.
    """
    if isinstance(value, Mapping):
        return region_from_fields(value)
    if isinstance(value, HasPrompts | HasFrameMasks):
        return cast(Region | MaskTrack, value)
    if not isinstance(value, HasMaskTrack):
        raise ValueError(
            f"A region must be a dict such as {{'frame': 0, 'box': [x1, y1, x2, y2]}}, a Region, or an object of an "
            f"earlier answer, got {type(value).__name__}."
        )
    if value.track is None:
        raise ValueError(f"The phrase '{value.text}' has no masks and cannot be used as a region.")
    return value.track


# ---- from regions to tensors ----------------------------------------------------------------------------------------

MAX_SCRIBBLE_POINTS = 8
# Labels of SAM 2's prompt encoder: 1 and 0 are points of the object and of the rest, 2 and 3 the corners of a box.
BOX_LABELS = (2, 3)


@dataclass(frozen=True)
class PreparedRegion:
    """
    A checked region on the one frame that is used for it.

    Attributes:
        frame (`int`): Frame of the video.
        area (`float`): Size of the region in pixels; 0 where it is not known yet.
        mask (`np.ndarray`, *optional*): Bool array of shape `(height, width)`.
        points (`np.ndarray`, *optional*): Instead of a mask: prompt points for SAM 2, shape `(num_points, 2)`.
        labels (`list[int]`, *optional*): Their labels.
    """

    frame: int
    area: float
    mask: np.ndarray | None = None
    points: np.ndarray | None = None
    labels: Sequence[int] | None = None

    @property
    def prompt(self) -> tuple[np.ndarray, Sequence[int]]:
        """Points and labels; raises `ValueError` for a region that has a mask instead."""
        if self.points is None or self.labels is None:
            raise ValueError(f"The region on frame {self.frame} has a mask and no points that SAM 2 could read.")
        return self.points, self.labels


def prepare_region(region, video: SamaVideo, dense_frames: Sequence[int], region_shape: str) -> PreparedRegion:
    """
    Check a region and choose the frame that is used for it: the first dense frame on which it is visible, else the
    frame on which it is largest.

    Args:
        region ([`Region`], a dict of its fields, [`GroundedPhrase`] or [`MaskTrack`]): What was pointed at.
        video ([`SamaVideo`]): The video it was pointed at in.
        dense_frames (`list[int]`): The frames that the language model sees in full.
        region_shape (`str`): "mask", or "box" when every mask is replaced by its filled bounding box.
    """
    region = as_region(region)
    if isinstance(region, HasFrameMasks):
        return _prepare_track(region, video, dense_frames, region_shape)
    region = region.at_frames(video)
    singles = region.per_frame()
    several = len(singles) > 1
    items = [
        _prepare_single(single, video, region_shape)
        for single in singles
        if not (several and single.kind == "mask" and not np.any(single.mask))
    ]
    prepared = {item.frame: item for item in items}
    if not singles and region.kind != "mask":
        raise ValueError(f"The region has no {region.kind} on any of the {len(as_list(region.frame))} frames given.")
    if not prepared:
        raise ValueError(f"The mask of the region is empty on all {len(as_list(region.frame))} frames given.")
    return prepared[_choose_frame({frame: item.area for frame, item in prepared.items()}, dense_frames)]


def _choose_frame(areas: dict[int, float], dense_frames: Sequence[int]) -> int:
    visible = [frame for frame in dense_frames if frame in areas]
    return visible[0] if visible else max(areas, key=lambda frame: (areas[frame], -frame))


def _prepare_track(
    track: MaskTrack, video: SamaVideo, dense_frames: Sequence[int], region_shape: str
) -> PreparedRegion:
    found, expected = (len(track), track.height, track.width), (len(video), video.height, video.width)
    if found != expected:
        raise ValueError(
            f"The masks of the region are (frames, height, width) = {found}, but '{video.name}' is {expected}."
        )
    areas = {frame: float(track.area(frame)) for frame in track.visible_frames()}
    if not areas:
        raise ValueError(f"The mask of the region is empty on all {len(track)} frames.")
    frame = _choose_frame(areas, dense_frames)
    return _prepare_single(Region(frame=frame, mask=track[frame]), video, region_shape)


def _prepare_single(region: Region, video: SamaVideo, region_shape: str) -> PreparedRegion:
    """A region on one frame; boxes, points and scribbles stay prompts unless a filled box is all that is wanted."""
    frame, prompt = cast(int, region.frame), vars(region)[region.kind]  # one of each: see `per_frame`
    video.check_frame(frame)
    if region.kind == "mask":
        mask = checked_mask(prompt, frame, video)
        mask = _filled_box(_tight_box(mask), mask.shape) if region_shape == "box" else mask
        return PreparedRegion(frame=frame, area=float(mask.sum()), mask=mask)
    if region.kind == "box":
        x1, y1, x2, y2 = box = checked_box(prompt, video)
        area = (x2 - x1) * (y2 - y1)
        if region_shape == "box":
            mask = _filled_box(box, (video.height, video.width))
            return PreparedRegion(frame=frame, area=area, mask=mask)
        corners = np.array([[x1, y1], [x2, y2]], dtype=np.float32)
        return PreparedRegion(frame=frame, area=area, points=corners, labels=BOX_LABELS)
    if region.kind == "scribble":
        points = _spread_along(checked_points(prompt, "scribble", video))
        return PreparedRegion(frame=frame, area=0.0, points=points, labels=[1] * len(points))
    points = checked_points(prompt, "points", video)
    labels = as_list([1] * len(points) if region.labels is None else region.labels)
    is_label = [is_whole(label) and label in (0, 1) for label in labels]
    if len(labels) != len(points) or not all(is_label) or 1 not in labels:
        raise ValueError(
            f"A region of {len(points)} points takes as many labels, each 1 or 0 and at least one 1; got "
            f"{shortened(labels)}."
        )
    return PreparedRegion(frame=frame, area=0.0, points=points, labels=[int(label) for label in labels])


def _tight_box(mask: np.ndarray) -> tuple[float, ...]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def _filled_box(box: Sequence[float], shape: tuple[int, int]) -> np.ndarray:
    """All pixels that the box touches."""
    (left, top), (right, bottom) = np.floor(box[:2]).astype(int), np.ceil(box[2:]).astype(int)
    mask = np.zeros(shape, dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def _spread_along(line: np.ndarray) -> np.ndarray:
    """Up to eight points at equal distances along a line through `(num_points, 2)` points."""
    steps = np.linalg.norm(np.diff(line, axis=0), axis=1)
    distance = np.concatenate(([0.0], np.cumsum(steps)))
    count = min(MAX_SCRIBBLE_POINTS, int(distance[-1]) + 1)
    at = np.linspace(0.0, distance[-1], count)
    spread = [np.interp(at, distance, line[:, axis]) for axis in (0, 1)]
    return np.stack(spread, axis=1).astype(np.float32)


def encode_masks(
    tracks: Sequence[MaskTrack], min_component_fraction: float, index: int, copied: Callable[[], Any]
) -> tuple[int, np.ndarray]:
    """Puts the masks of frame `index` into the tracks of their objects, without specks. `copied` gives them as a bool
    tensor on the CPU. Returns the index and the masks, a bool array of shape `(num_objects, height, width)`."""
    masks = without_specks(copied().numpy(), min_component_fraction)
    for track, mask in zip(tracks, masks, strict=True):
        track[index] = mask
    return index, masks


def without_specks(masks: np.ndarray, min_fraction: float) -> np.ndarray:
    """Bool masks of shape `(num_objects, height, width)` after [`drop_small_components`]; for 0 the same array."""
    if min_fraction == 0 or not len(masks):
        return masks
    return np.stack([drop_small_components(mask, min_fraction) for mask in masks])


def drop_small_components(mask: np.ndarray, min_fraction: float) -> np.ndarray:
    """
    A mask without its specks: connected components, diagonals included, that are smaller than a fraction of the mask.
    The largest component always stays.

    Args:
        mask (`np.ndarray` of shape `(height, width)`, bool)
        min_fraction (`float`): of the mask's area, from 0 (drops nothing) to 1 (keeps the largest component only).

    Raises:
        ValueError: if `min_fraction` does not lie between 0 and 1.
    """
    if not 0.0 <= min_fraction <= 1.0:
        raise ValueError(f"The fraction of a mask must lie between 0 and 1, got {min_fraction}.")
    # Runs of set pixels, row by row; a run joins the runs of the row above that it touches
    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    (rows, starts), (_, ends) = np.nonzero(edges == 1), np.nonzero(edges == -1)
    if min_fraction == 0 or len(rows) < 2:
        return mask.copy()
    parents = list(range(len(rows)))

    def root(run: int) -> int:
        while parents[run] != run:
            parents[run] = run = parents[parents[run]]
        return run

    above = 0
    for run in range(len(rows)):
        while rows[above] < rows[run] - 1:
            above += 1
        for other in range(above, run):
            if rows[other] == rows[run]:
                break
            if starts[other] <= ends[run] and starts[run] <= ends[other]:
                parents[root(other)] = root(run)
    components = np.array([root(run) for run in range(len(rows))])
    areas = np.bincount(components, weights=ends - starts)
    kept = areas >= min(areas.max(), min_fraction * mask.sum())
    output = np.zeros_like(mask)
    for row, start, end, component in zip(rows, starts, ends, components, strict=True):
        output[row, start:end] = kept[component]
    return output
