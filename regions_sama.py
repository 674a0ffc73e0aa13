"""From what a user points at to what the model reads: checked masks and prompts on one frame of the video."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from .video_sama import GroundedPhrase, MaskTrack, Region, SamaVideo, is_a


MAX_SCRIBBLE_POINTS = 8
# Labels of SAM 2's prompt encoder: 1 and 0 are points of the object and of the rest, 2 and 3 the corners of a box.
BOX_LABELS, PADDING_LABEL = (2, 3), -10


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
    if is_a(region, GroundedPhrase):
        if region.track is None:
            raise ValueError(f"The phrase '{region.text}' has no masks and cannot be used as a region.")
        region = region.track
    if is_a(region, MaskTrack):
        _check_track(region, video)
        candidates = {frame: float(region.area(frame)) for frame in region.visible_frames()}
        if not candidates:
            raise ValueError(f"The mask of the region is empty on all {len(region)} frames.")
        frame = _choose_frame(candidates, dense_frames)
        return _prepare_single(Region(frame=frame, mask=region[frame]), video, region_shape)
    if isinstance(region, Mapping):
        region = Region(**region)
    if not is_a(region, Region):
        raise ValueError(f"A region must be a Region, GroundedPhrase or MaskTrack, got {type(region).__name__}.")
    singles = region.per_frame()
    several = len(singles) > 1
    prepared = {
        single.frame: _prepare_single(single, video, region_shape)
        for single in singles
        if not (several and single.kind == "mask" and not np.any(single.mask))
    }
    if not prepared:
        raise ValueError(f"The mask of the region is empty on all {len(singles)} frames given.")
    return prepared[_choose_frame({frame: item.area for frame, item in prepared.items()}, dense_frames)]


def _choose_frame(areas: dict[int, float], dense_frames: Sequence[int]) -> int:
    visible = [frame for frame in dense_frames if frame in areas]
    return visible[0] if visible else max(areas, key=lambda frame: (areas[frame], -frame))


def _check_track(track: MaskTrack, video: SamaVideo) -> None:
    found, expected = (len(track), track.height, track.width), (len(video), video.height, video.width)
    if found != expected:
        raise ValueError(
            f"The masks of the region are (frames, height, width) = {found}, but '{video.name}' is {expected}."
        )


def _prepare_single(region: Region, video: SamaVideo, region_shape: str) -> PreparedRegion:
    """A region on one frame; boxes, points and scribbles stay prompts unless a filled box is all that is wanted."""
    video.check_frame(region.frame)
    if region.kind == "mask":
        mask = _checked_mask(region.mask, region.frame, video)
        mask = _filled_box(_tight_box(mask), mask.shape) if region_shape == "box" else mask
        return PreparedRegion(frame=region.frame, area=float(mask.sum()), mask=mask)
    if region.kind == "box":
        x1, y1, x2, y2 = box = _checked_box(region.box, video)
        area = (x2 - x1) * (y2 - y1)
        if region_shape == "box":
            mask = _filled_box(box, (video.height, video.width))
            return PreparedRegion(frame=region.frame, area=area, mask=mask)
        corners = np.array([[x1, y1], [x2, y2]], dtype=np.float32)
        return PreparedRegion(frame=region.frame, area=area, points=corners, labels=BOX_LABELS)
    if region.kind == "scribble":
        points = _spread_along(_checked_points(region.scribble, "scribble", video))
        return PreparedRegion(frame=region.frame, area=0.0, points=points, labels=[1] * len(points))
    points = _checked_points(region.points, "points", video)
    labels = [1] * len(points) if region.labels is None else list(region.labels)
    if len(labels) != len(points) or not set(labels) <= {0, 1} or 1 not in labels:
        raise ValueError(
            f"A region of {len(points)} points takes as many labels, each 1 or 0 and at least one 1; got {labels}."
        )
    return PreparedRegion(frame=region.frame, area=0.0, points=points, labels=labels)


def _checked_mask(mask, frame: int, video: SamaVideo) -> np.ndarray:
    mask = np.asarray(mask) != 0
    if mask.shape != (video.height, video.width):
        raise ValueError(
            f"The mask of the region on frame {frame} has shape {mask.shape}, the frames of '{video.name}' are "
            f"{(video.height, video.width)}."
        )
    if not mask.any():
        raise ValueError(f"The mask of the region on frame {frame} is empty.")
    return mask


def _checked_box(box: Sequence, video: SamaVideo) -> tuple[float, ...]:
    numbers = _numbers(box)
    if numbers is None or numbers.shape != (4,):
        found = f"{box!r}" if numbers is None or numbers.ndim != 1 else f"{len(numbers)}: {box!r}"
        raise ValueError(f"A box takes 4 numbers (x1, y1, x2, y2), got {found}.")
    x1, y1, x2, y2 = values = tuple(numbers.tolist())
    if not (0 <= x1 <= x2 <= video.width and 0 <= y1 <= y2 <= video.height):
        raise ValueError(
            f"The box {values} does not lie inside the {video.width}x{video.height} pixels of '{video.name}' "
            "(expected 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height)."
        )
    if x1 == x2 or y1 == y2:
        raise ValueError(f"The box {values} has zero area.")
    return values


def _checked_points(points: Sequence, kind: str, video: SamaVideo) -> np.ndarray:
    array = _numbers(points)
    if array is None or array.ndim != 2 or array.shape[1] != 2 or len(array) == 0:
        raise ValueError(f"A region's {kind} must be a list of (x, y) pairs, got {points!r}.")
    for x, y in array.tolist():
        if not (0 <= x < video.width and 0 <= y < video.height):
            raise ValueError(
                f"The point ({x:g}, {y:g}) lies outside the {video.width}x{video.height} pixels of '{video.name}'."
            )
    return array.astype(np.float32)


def _numbers(values) -> np.ndarray | None:
    """As an array, or `None` for what is not made of numbers in rows of equal length."""
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        return None


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


def mask_tensors(
    regions: Sequence[tuple[PreparedRegion, SamaVideo]], mask_size: int, grid_size: int, keep_small: bool
) -> dict:
    """
    Masks of all regions at the two sizes that the model reads, both by nearest neighbour straight from the video's
    size; zeros for those that SAM 2 still has to make from a prompt. Empty without regions.

    Args:
        regions (`list` of `(PreparedRegion, SamaVideo)`): All regions of the batch.
        mask_size (`int`), grid_size (`int`): Sides of the two sizes.
        keep_small (`bool`): A region between the sampled pixels vanishes in nearest neighbour, as it does in the
            release. With `keep_small` it keeps every cell that it touches.

    Returns:
        `dict`: `region_masks` of shape `(num_regions, mask_size, mask_size)` and `region_grid_masks` of shape
        `(num_regions, grid_size, grid_size)`, both float.
    """
    sizes = {"region_masks": mask_size, "region_grid_masks": grid_size} if regions else {}
    return {
        name: torch.stack([_resized(region.mask, size, keep_small) for region, _ in regions])
        for name, size in sizes.items()
    }


def _resized(mask: np.ndarray | None, size: int, keep_small: bool) -> torch.Tensor:
    if mask is None:
        return torch.zeros(size, size)
    pixels = torch.from_numpy(np.ascontiguousarray(mask)).float()[None, None]
    resized = F.interpolate(pixels, size=(size, size), mode="nearest")
    if keep_small and not resized.any():
        resized = F.adaptive_max_pool2d(pixels, size)
    return resized[0, 0]


def prompt_tensors(
    regions: Sequence[tuple[PreparedRegion, SamaVideo]],
    sam_image_size: int,
    sam_pixel_values: Callable[[np.ndarray], torch.Tensor],
) -> dict:
    """
    Boxes, points and scribbles, which SAM 2 turns into masks, with the SAM 2 input of the frames they are drawn on.

    Args:
        regions (`list` of `(PreparedRegion, SamaVideo)`): All regions of the batch; those with a mask are passed over.
        sam_image_size (`int`): Side of SAM 2's square input.
        sam_pixel_values (callable): Makes a SAM 2 input of a frame.

    Returns:
        `dict`: Empty without prompts, else `region_prompt_indices` (rows of the regions), `region_prompt_points` of
        shape `(num_prompts, num_points, 2)`, `region_prompt_labels` of shape `(num_prompts, num_points)`,
        `region_prompt_pixel_values`, one row a frame, and `region_prompt_frames`, the row of each prompt.
    """
    indices = [index for index, (region, _) in enumerate(regions) if region.mask is None]
    if not indices:
        return {}
    prompts = [regions[index] for index in indices]
    # Two conversations may share one video; its frame is then encoded once.
    frames = {(id(video), region.frame): video[region.frame] for region, video in prompts}
    rows = {key: row for row, key in enumerate(frames)}
    return {
        "region_prompt_indices": torch.tensor(indices),
        **_padded_points(prompts, sam_image_size),
        "region_prompt_frames": torch.tensor([rows[id(video), region.frame] for region, video in prompts]),
        "region_prompt_pixel_values": torch.stack([sam_pixel_values(frame) for frame in frames.values()]),
    }


def _padded_points(prompts: Sequence[tuple[PreparedRegion, SamaVideo]], sam_image_size: int) -> dict:
    """Prompt points in the pixels of SAM 2's square input, padded to the longest prompt."""
    length = max(len(region.points) for region, _ in prompts)
    points = torch.zeros(len(prompts), length, 2)
    labels = torch.full((len(prompts), length), PADDING_LABEL, dtype=torch.long)
    for row, (region, video) in enumerate(prompts):
        scale = torch.tensor([sam_image_size / video.width, sam_image_size / video.height])
        points[row, : len(region.points)] = torch.from_numpy(region.points) * scale
        labels[row, : len(region.points)] = torch.tensor(region.labels)
    return {"region_prompt_points": points, "region_prompt_labels": labels}
