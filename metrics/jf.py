"""
Video segmentation: region similarity J, boundary measure F, and the accuracy A and robustness R of ReVOS.

Definitions: evaluation spec 4.2 and 4.3, those of DAVIS 2016 (Perazzi et al.) with the pixel tolerance of 0.8 % of the
image diagonal.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from .values import FIXED, RELEASE, Value, check_mode, mean


TOLERANCE = 0.008  # of the image diagonal
ROBUSTNESS_EPSILON = 1e-6
# ReVOS: `type_id` of an expression -> group; 2 is in no group
REVOS_GROUPS = {0: "referring", 1: "reasoning"}
REVOS_METRICS = ("J", "F", "A", "R")


class JF(NamedTuple):
    """J and F of a video: unweighted means over its frames, each in [0, 1]."""

    j: float
    f: float

    @property
    def mean(self) -> float:
        """J&F."""
        return (self.j + self.f) / 2


def jf(truth: np.ndarray, prediction: np.ndarray) -> JF:
    """
    J and F of one expression or object through a video.

    Args:
        truth, prediction (`np.ndarray`): Masks of shape `(num_frames, height, width)`; what is not zero belongs to the
            object. The first and last frame count, unlike in the semi-supervised protocol of DAVIS: leave them out of
            the arrays for that.
    """
    frames = [(np.asarray(t) != 0, np.asarray(p) != 0) for t, p in _frames(truth, prediction)]
    j = [region_similarity(t, p) for t, p in frames]
    f = [boundary_f(t, p) for t, p in frames]
    return JF(sum(j) / len(j), sum(f) / len(f))


def region_similarity(truth: np.ndarray, prediction: np.ndarray) -> float:
    """J of one frame: IoU of two masks of shape `(height, width)`; 1 for two empty ones."""
    truth, prediction = _masks(truth, prediction)
    union = np.count_nonzero(truth | prediction)
    return np.count_nonzero(truth & prediction) / union if union else 1.0


# Boundary


def boundary_radius(height: int, width: int, tolerance: float = TOLERANCE) -> int:
    """How far a boundary may be off, in pixels: a part of the diagonal, rounded up."""
    return int(np.ceil(tolerance * np.hypot(height, width)))


def boundary_map(mask: np.ndarray) -> np.ndarray:
    """
    Pixels that differ from their right, lower or lower right neighbour, so that the boundary lies half a pixel towards
    the origin. The last row compares only to the right, the last column only downwards. Shape `(height, width)`, bool.
    """
    mask = np.asarray(mask) != 0
    found = np.zeros_like(mask)
    found[:, :-1] = mask[:, :-1] ^ mask[:, 1:]
    found[:-1] |= mask[:-1] ^ mask[1:]
    found[:-1, :-1] |= mask[:-1, :-1] ^ mask[1:, 1:]
    return found


def disk(radius: int) -> np.ndarray:
    """All offsets of at most `radius` as a square mask of side `2 * radius + 1`."""
    steps = np.arange(-radius, radius + 1)
    return steps[:, None] ** 2 + steps**2 <= radius**2


def boundary_f(truth: np.ndarray, prediction: np.ndarray, tolerance: float = TOLERANCE) -> float:
    """
    F of one frame: harmonic mean of the shares of either boundary that lie within [`boundary_radius`] of the other.

    Two masks without a boundary give 1, one without gives 0. Both boundaries are dilated by a disk, as in DAVIS, but
    written as one long whole number each, a bit a pixel, which moves and unites by shifts.

    Args:
        truth, prediction (`np.ndarray`): Masks of shape `(height, width)`.
        tolerance (`float`): Part of the image diagonal.
    """
    truth, prediction = _masks(truth, prediction)
    radius = boundary_radius(*truth.shape, tolerance)
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
    """Rows and columns that hold all that is in the masks, and one more on each side: all boundaries lie inside."""
    window = []
    for axis, length in ((1, masks[0].shape[0]), (0, masks[0].shape[1])):
        filled = np.flatnonzero(np.logical_or.reduce([mask.any(axis=axis) for mask in masks])).tolist() or [0]
        window.append(slice(max(0, filled[0] - 1), min(length, filled[-1] + 2)))
    return tuple(window)


def _packed(edge: np.ndarray, margin: int) -> int:
    """One bit for each pixel of a bool array `(height, width)`, rows below each other with `margin` zeros between."""
    wide = np.zeros((edge.shape[0], edge.shape[1] + margin), dtype=bool)
    wide[:, : edge.shape[1]] = edge
    return int.from_bytes(np.packbits(wide, bitorder="little").tobytes(), "little")


def _dilated(bits: int, stride: int, radius: int) -> int:
    """The disk of `radius` around each bit; the `stride` of a row has at least `radius` zeros at its end."""
    reaches = {step: int(np.sqrt(radius**2 - step**2)) for step in range(radius + 1)}
    # Bits and those up to `width` behind them, for all widths from the narrowest row of the disk to the widest
    result, run, width = 0, bits, 0
    for step, reach in sorted(reaches.items(), key=lambda item: item[1]):
        while width < 2 * reach:
            more = min(width + 1, 2 * reach - width)
            run, width = run | run << more, width + more
        for rows in {step, -step}:
            shift = rows * stride - reach
            result |= run << shift if shift >= 0 else run >> -shift
    return result


# ReVOS


def accuracy(truth: np.ndarray, prediction: np.ndarray, mode: str = FIXED) -> float:
    """
    A of a video: share of the pixels on which both masks agree, mean over frames.

    Args:
        truth, prediction (`np.ndarray`): Masks of shape `(num_frames, height, width)`.
        mode (`str`): "fixed": what is not zero belongs to the object. "published": values are compared as they are. It
            reads predictions as 0 and 255 but the truth as the sum of an expression's objects, so that no pixel of an
            object ever agrees. Give it such arrays.
    """
    check_mode(mode)
    values = []
    for true, guess in _frames(truth, prediction):
        if mode == FIXED:
            true, guess = true != 0, guess != 0
        values.append(np.count_nonzero(true == guess) / true.size)
    return sum(values) / len(values)


def robustness(truth: np.ndarray, prediction: np.ndarray, foreground: np.ndarray, mode: str = FIXED) -> float:
    """
    R of a video: 1 minus the wrong pixels per pixel of all objects in the frame, at least 0, mean over frames.

    Args:
        truth, prediction (`np.ndarray`): Masks of shape `(num_frames, height, width)`.
        foreground (`np.ndarray`): Union of all annotated objects of the video, same shape.
        mode (`str`): "fixed" or "published"; in the latter the values are taken as they are, in 8 bits: 255 wrong
            pixels for each one, and where two objects overlap, 1 - 2 = 255. See [`accuracy`].
    """
    check_mode(mode)
    values = []
    for (true, guess), front in zip(_frames(truth, prediction), foreground, strict=True):
        if mode == FIXED:
            wrong = np.count_nonzero((guess != 0) & (true == 0))
        else:
            true, guess = true.astype(np.uint8), guess.astype(np.uint8)
            wrong = int((guess * (1 - true)).sum(dtype=np.int64))
        values.append(max(1 - wrong / (np.count_nonzero(front) + ROBUSTNESS_EPSILON), 0.0))
    return sum(values) / len(values)


# Tables


def jf_table(videos: Iterable[JF]) -> dict[str, Value]:
    """`J`, `F` and `J&F` of a benchmark in percent: unweighted means over its expressions."""
    videos = list(videos)
    values = {"J": [one.j for one in videos], "F": [one.f for one in videos], "J&F": [one.mean for one in videos]}
    found = {name: mean(column, "expressions") for name, column in values.items()}
    return {name: Value(one.value and 100 * one.value, one.reason) for name, one in found.items()}


def revos_table(
    expressions: Sequence[tuple[int, Mapping[str, float]]], mode: str = FIXED
) -> dict[str, dict[str, Value]]:
    """
    The table of ReVOS in percent: its groups `referring` and `reasoning`, and `overall`, the plain mean of both.

    Args:
        expressions (sequence of `(type_id, values)`): `values` has J, F, A and R in [0, 1].
        mode (`str`): "published" rounds each expression's percentages to two decimals before averaging.

    Returns:
        `dict`: Group -> `J`, `F`, `A`, `R` and `J&F`.
    """
    check_mode(mode)
    table: dict[str, dict[str, Value]] = {}
    for type_id, group in REVOS_GROUPS.items():
        rows = [values for kind, values in expressions if kind == type_id]
        table[group] = {name: mean([_percent(row[name], mode) for row in rows], f"{group} expressions")
                        for name in REVOS_METRICS}  # fmt: skip
    groups = list(table.values())
    # With one group missing, the mean would be that of the other under the name of both
    table["overall"] = {
        name: next((group[name] for group in groups if group[name].value is None), None)
        or mean([group[name] for group in groups])
        for name in REVOS_METRICS
    }
    for row in table.values():
        row["J&F"] = row["J"] if row["J"].value is None else mean([row["J"], row["F"]])
    return table


def _percent(value: float, mode: str) -> float:
    return round(100 * value, 2) if mode == RELEASE else 100 * value


def _masks(truth: np.ndarray, prediction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    truth, prediction = np.asarray(truth), np.asarray(prediction)
    if truth.shape != prediction.shape or truth.ndim != 2:
        raise ValueError(
            f"The true mask has the shape {truth.shape}, the predicted one {prediction.shape}; expected one shape "
            "(height, width)."
        )
    return truth != 0, prediction != 0


def _frames(truth: np.ndarray, prediction: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    truth, prediction = np.asarray(truth), np.asarray(prediction)
    if truth.shape != prediction.shape or truth.ndim != 3 or not len(truth):
        raise ValueError(
            f"The true masks have the shape {truth.shape}, the predicted ones {prediction.shape}; expected one shape "
            "(num_frames, height, width) with at least one frame."
        )
    return list(zip(truth, prediction, strict=True))
