"""
Video segmentation: region similarity J, boundary measure F, and the accuracy A and robustness R of ReVOS.

Definitions: evaluation spec 4.2 and 4.3, as in DAVIS 2016 (Perazzi et al.), with a tolerance of 0.8 % of the image
diagonal.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from .values import CONSISTENT, PUBLISHED, Value, check_preset, mean


TOLERANCE = 0.008  # fraction of the image diagonal
ROBUSTNESS_EPSILON = 1e-6
# ReVOS: `type_id` of an expression -> group; expressions of type 2 are in no group
REVOS_GROUPS = {0: "referring", 1: "reasoning"}
REVOS_METRICS = ("J", "F", "A", "R")


class JF(NamedTuple):
    """J and F of a video: unweighted means over its frames, in [0, 1]."""

    j: float
    f: float

    @property
    def mean(self) -> float:
        """J&F."""
        return (self.j + self.f) / 2


def jf(truth: np.ndarray, prediction: np.ndarray) -> JF:
    """
    J and F of one expression or object in a video.

    Args:
        truth, prediction (`np.ndarray`): Masks of shape `(num_frames, height, width)`; nonzero pixels belong to the
            object. All frames count. The semi-supervised protocol of DAVIS excludes the first and the last frame:
            slice the arrays for that.
    """
    frames = [(np.asarray(t) != 0, np.asarray(p) != 0) for t, p in _frames(truth, prediction)]
    j = [region_similarity(t, p) for t, p in frames]
    f = [boundary_f(t, p) for t, p in frames]
    return JF(sum(j) / len(j), sum(f) / len(f))


def region_similarity(truth: np.ndarray, prediction: np.ndarray) -> float:
    """J of one frame: IoU of two masks of shape `(height, width)`; 1 if both are empty."""
    truth, prediction = _masks(truth, prediction)
    union = np.count_nonzero(truth | prediction)
    return np.count_nonzero(truth & prediction) / union if union else 1.0


# Boundary


def boundary_radius(height: int, width: int, tolerance: float = TOLERANCE) -> int:
    """Tolerated distance between boundaries in pixels: a fraction of the image diagonal, rounded up."""
    return int(np.ceil(tolerance * np.hypot(height, width)))


def boundary_map(mask: np.ndarray) -> np.ndarray:
    """
    Pixels that differ from their right, lower or lower right neighbour, bool array of shape `(height, width)`. The
    boundary therefore lies half a pixel towards the origin. The last row has only right neighbours, the last column
    only lower ones.
    """
    mask = np.asarray(mask) != 0
    found = np.zeros_like(mask)
    found[:, :-1] = mask[:, :-1] ^ mask[:, 1:]
    found[:-1] |= mask[:-1] ^ mask[1:]
    found[:-1, :-1] |= mask[:-1, :-1] ^ mask[1:, 1:]
    return found


def disk(radius: int) -> np.ndarray:
    """Disk-shaped structuring element: bool array of side `2 * radius + 1`."""
    steps = np.arange(-radius, radius + 1)
    return steps[:, None] ** 2 + steps**2 <= radius**2


def boundary_f(truth: np.ndarray, prediction: np.ndarray, tolerance: float = TOLERANCE) -> float:
    """
    F of one frame: harmonic mean of boundary precision and recall, the fractions of either boundary that lie within
    [`boundary_radius`] of the other. If neither mask has a boundary F is 1, if one of them has none F is 0.

    As in DAVIS both boundaries are dilated by a disk. For speed a boundary map is stored as one arbitrary-precision
    integer with a bit per pixel, row after row. Shifting the integer by `dy * stride + dx` translates the whole map,
    and `|` unites maps, so that a dilation needs a few operations on integers instead of a convolution. Nothing
    beyond numpy is needed; profiling/metrics.py compares the speed with OpenCV, scikit-image and scipy.

    Args:
        truth, prediction (`np.ndarray`): Masks of shape `(height, width)`.
        tolerance (`float`): Fraction of the image diagonal.
    """
    truth, prediction = _masks(truth, prediction)
    height, width = truth.shape
    radius = boundary_radius(height, width, tolerance)
    window = _window(truth, prediction)
    edges = [_packed(boundary_map(mask[window]), radius) for mask in (truth, prediction)]
    counts = [edge.bit_count() for edge in edges]
    if 0 in counts:
        return 1.0 if counts == [0, 0] else 0.0
    stride = window[1].stop - window[1].start + radius
    near = [_dilated(edge, stride, radius) for edge in edges]
    recall, precision = ((edges[i] & near[1 - i]).bit_count() / counts[i] for i in (0, 1))
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _window(*masks: np.ndarray) -> tuple[slice, slice]:
    """Row and column slices of the smallest window with all foreground pixels, plus one pixel on each side, so that
    all boundary pixels lie inside."""
    window = []
    for axis, length in ((1, masks[0].shape[0]), (0, masks[0].shape[1])):
        filled = np.flatnonzero(np.logical_or.reduce([mask.any(axis=axis) for mask in masks])).tolist() or [0]
        window.append(slice(max(0, filled[0] - 1), min(length, filled[-1] + 2)))
    return tuple(window)


def _packed(edge: np.ndarray, margin: int) -> int:
    """A boundary map `(height, width)` as an integer with one bit per pixel. `margin` zero bits follow each row, so
    that a horizontal shift does not run into the next row."""
    wide = np.zeros((edge.shape[0], edge.shape[1] + margin), dtype=bool)
    wide[:, : edge.shape[1]] = edge
    return int.from_bytes(np.packbits(wide, bitorder="little").tobytes(), "little")


def _dilated(bits: int, stride: int, radius: int) -> int:
    """
    Dilation of a packed boundary map by the disk of `radius`.

    A disk is a stack of horizontal segments: the row at vertical distance `dy` reaches `sqrt(radius**2 - dy**2)`
    pixels to each side. Going from the shortest segment to the longest, `run` is the map dilated to the right by
    `width` pixels; it grows by shifts of itself, at most doubling each time. `run` moved back by `reach` is the
    dilation by a centred segment, and shifted by `dy` rows it is one row of the disk.

    Args:
        bits (`int`): The map, see [`_packed`].
        stride (`int`): Bits per row, including the margin of at least `radius` zeros.
        radius (`int`): Of the disk, in pixels.
    """
    reach_by_row = {dy: int(np.sqrt(radius**2 - dy**2)) for dy in range(radius + 1)}
    dilated, run, width = 0, bits, 0
    for dy, reach in sorted(reach_by_row.items(), key=lambda item: item[1]):
        while width < 2 * reach:
            step = min(width + 1, 2 * reach - width)  # a larger step would leave gaps
            run, width = run | run << step, width + step
        for row in {dy, -dy}:
            shift = row * stride - reach
            dilated |= run << shift if shift >= 0 else run >> -shift
    return dilated


# ReVOS


def accuracy(truth: np.ndarray, prediction: np.ndarray, preset: str = CONSISTENT) -> float:
    """
    A of a video: fraction of pixels on which both masks agree, mean over frames.

    Args:
        truth, prediction (`np.ndarray`): Masks of shape `(num_frames, height, width)`.
        preset (`str`): Under "consistent" nonzero pixels belong to the object. "published" compares the values: the
            published code reads predictions as 0 and 255 but the truth as the sum of the masks of an expression, so
            that no object pixel ever agrees. Pass such arrays to reproduce it.
    """
    check_preset(preset)
    values = []
    for true, guess in _frames(truth, prediction):
        if preset == CONSISTENT:
            true, guess = true != 0, guess != 0
        values.append(np.count_nonzero(true == guess) / true.size)
    return sum(values) / len(values)


def robustness(truth: np.ndarray, prediction: np.ndarray, foreground: np.ndarray, preset: str = CONSISTENT) -> float:
    """
    R of a video: 1 minus the number of false positive pixels divided by the number of pixels of all objects in the
    frame, at least 0, mean over frames.

    Args:
        truth, prediction (`np.ndarray`): Masks of shape `(num_frames, height, width)`.
        foreground (`np.ndarray`): Union of all annotated objects of the video, same shape.
        preset (`str`): "published" computes with the values as 8-bit integers, see [`accuracy`]: each false positive
            counts 255 times, and where two true objects overlap 1 - 2 wraps to 255.
    """
    check_preset(preset)
    values = []
    for (true, guess), front in zip(_frames(truth, prediction), foreground, strict=True):
        if preset == CONSISTENT:
            wrong = np.count_nonzero((guess != 0) & (true == 0))
        else:
            true, guess = true.astype(np.uint8), guess.astype(np.uint8)
            wrong = int((guess * (1 - true)).sum(dtype=np.int64))
        values.append(max(1 - wrong / (np.count_nonzero(front) + ROBUSTNESS_EPSILON), 0.0))
    return sum(values) / len(values)


# Tables


def revos_table(
    expressions: Sequence[tuple[int, Mapping[str, float]]], preset: str = CONSISTENT
) -> dict[str, dict[str, Value]]:
    """
    The table of ReVOS in percent: the groups `referring` and `reasoning`, and `overall`, the unweighted mean of both.

    Args:
        expressions (sequence of `(type_id, values)`): `values` has J, F, A and R in [0, 1].
        preset (`str`): "published" rounds each expression's percentages to two decimals before averaging.

    Returns:
        `dict`: Group -> `J`, `F`, `A`, `R` and `J&F`.
    """
    check_preset(preset)
    table: dict[str, dict[str, Value]] = {}
    for type_id, group in REVOS_GROUPS.items():
        rows = [values for kind, values in expressions if kind == type_id]
        table[group] = {name: mean([_percent(row[name], preset) for row in rows], f"{group} expressions")
                        for name in REVOS_METRICS}  # fmt: skip
    groups = list(table.values())
    # If a group has no expressions there is no overall value either: it would be that of the other group
    table["overall"] = {
        name: next((group[name] for group in groups if group[name].value is None), None)
        or mean([group[name] for group in groups])
        for name in REVOS_METRICS
    }
    for row in table.values():
        row["J&F"] = row["J"] if row["J"].value is None else mean([row["J"], row["F"]])
    return table


def _percent(value: float, preset: str) -> float:
    return round(100 * value, 2) if preset == PUBLISHED else 100 * value


def _masks(truth: np.ndarray, prediction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    truth, prediction = np.asarray(truth), np.asarray(prediction)
    if truth.shape != prediction.shape or truth.ndim != 2:
        raise ValueError(
            f"The true mask has the shape {truth.shape} and the predicted mask {prediction.shape}; expected the same "
            "shape (height, width)."
        )
    return truth != 0, prediction != 0


def _frames(truth: np.ndarray, prediction: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    truth, prediction = np.asarray(truth), np.asarray(prediction)
    if truth.shape != prediction.shape or truth.ndim != 3 or not len(truth):
        raise ValueError(
            f"The true masks have the shape {truth.shape} and the predicted masks {prediction.shape}; expected the "
            "same shape (num_frames, height, width) with at least one frame."
        )
    return list(zip(truth, prediction, strict=True))
