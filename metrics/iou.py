"""
Overlap of masks: spatio-temporal IoU, mIoU of grounded answers, cIoU and gIoU of referring segmentation.

Matrices are `[truth, prediction]` everywhere: a row for each true object, a column for each predicted one. Formulas:
evaluation spec 1.6 (SAMA-Bench-G), 3 (RefCOCO).
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from .values import FIXED, RELEASE, Value, check_mode, mean


# What the release adds to the denominators
CIOU_EPSILON, GIOU_EPSILON = 1e-10, 1e-5


class Overlaps(NamedTuple):
    """
    Pixel counts of true and predicted objects. Those of the parts of a video add up to those of the whole, so that no
    video has to be in memory at once: `sum(parts[1:], parts[0])`.

    Attributes:
        intersections (`np.ndarray`): Pixels in common, shape `(num_truths, num_predictions)`.
        truth_areas (`np.ndarray`): Shape `(num_truths,)`.
        prediction_areas (`np.ndarray`): Shape `(num_predictions,)`.
    """

    intersections: np.ndarray
    truth_areas: np.ndarray
    prediction_areas: np.ndarray

    def __add__(self, other: "Overlaps") -> "Overlaps":
        if self.intersections.shape != other.intersections.shape:
            raise ValueError(
                f"Overlaps of {self.intersections.shape} and {other.intersections.shape} objects (truths, predictions)"
                " cannot be added: they are not of the same objects."
            )
        return Overlaps(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))

    def ious(self, empty: float = 0.0) -> np.ndarray:
        """
        IoU of each pair, float array of shape `(num_truths, num_predictions)`.

        Args:
            empty (`float`): What two empty masks give: 0; the release's image GCG gives `nan`.
        """
        unions = self.truth_areas[:, None] + self.prediction_areas[None, :] - self.intersections
        return np.where(unions > 0, self.intersections / np.maximum(unions, 1), empty)


def overlaps(truths: Sequence[np.ndarray], predictions: Sequence[np.ndarray]) -> Overlaps:
    """
    Count pixels of two lists of masks.

    Args:
        truths, predictions (sequences of `np.ndarray`): One mask or one video of masks for each object, all of one
            shape; what is not zero belongs to the object.

    Raises:
        `ValueError`: The masks differ in shape.
    """
    shapes = {np.shape(mask) for mask in (*truths, *predictions)}
    if len(shapes) > 1:
        raise ValueError(f"Masks of the shapes {sorted(shapes)} cannot be compared.")
    # Eight pixels a byte: counting reads an eighth of the memory, and a video of masks is read once for each pair
    packed = [[np.packbits(np.asarray(mask) != 0) for mask in masks] for masks in (truths, predictions)]
    areas = [np.array([_count(bits) for bits in masks], dtype=np.int64) for masks in packed]
    common = np.array([[_count(truth & guess) for guess in packed[1]] for truth in packed[0]], dtype=np.int64)
    return Overlaps(common.reshape(len(truths), len(predictions)), *areas)


def _count(bits: np.ndarray) -> int:
    return int(np.bitwise_count(bits).sum(dtype=np.int64))


def iou(truth: np.ndarray, prediction: np.ndarray, empty: float = 0.0) -> float:
    """IoU over the whole volume of two masks or two videos of masks of one shape; `empty` for two empty ones."""
    return float(overlaps([truth], [prediction]).ious(empty)[0, 0])


def iou_matrix(truths: Sequence[np.ndarray], predictions: Sequence[np.ndarray], empty: float = 0.0) -> np.ndarray:
    """IoU of each pair, shape `(num_truths, num_predictions)`; see [`overlaps`] and [`Overlaps.ious`]."""
    return overlaps(truths, predictions).ious(empty)


def matrix_shape(matrix: np.ndarray, name: str) -> tuple[int, int]:
    """Shape of a matrix `[truth, prediction]`; `ValueError` if it is none."""
    if matrix.ndim != 2:
        raise ValueError(f"{name} has the shape (num_truths, num_predictions), got {matrix.shape}.")
    return matrix.shape


# mIoU


def greedy_pairs(ious: np.ndarray) -> list[tuple[int, int]]:
    """
    Pairs `(truth, prediction)`: the largest IoU of the matrix as long as it is above 0, then without its row and
    column. A `nan` counts as the largest and ends the pairing, as in the release.
    """
    rest, pairs = np.array(ious, dtype=float), []
    while rest.size:
        truth, guess = np.unravel_index(np.argmax(rest), rest.shape)
        if not rest[truth, guess] > 0:
            break
        pairs.append((int(truth), int(guess)))
        rest[truth, :], rest[:, guess] = 0, 0
    return pairs


def miou(ious: np.ndarray, mode: str = FIXED) -> float | None:
    """
    Mean IoU of one answer's objects under greedy matching.

    Args:
        ious (`np.ndarray`): Shape `(num_truths, num_predictions)`.
        mode (`str`): "published": the mean over the pairs that were found, 0 without any, so that one right object of
            five counts as 1. "fixed": the sum over the pairs divided by the larger of both numbers of objects, so that
            each missed and each surplus object counts as 0.

    Returns:
        `float`, or `None` in "fixed" where nothing was to be found and nothing was predicted: there is no mask to
        judge.
    """
    check_mode(mode)
    num_truths, num_guesses = matrix_shape(ious, "ious")
    taken = [float(ious[pair]) for pair in greedy_pairs(ious)]
    if mode == RELEASE:
        return sum(taken) / len(taken) if taken else 0.0
    most = max(num_truths, num_guesses)
    return sum(taken) / most if most else None


def mean_miou(samples: Iterable[np.ndarray], mode: str = FIXED) -> Value:
    """Mean of [`miou`] over the answers of a video or a benchmark, given their matrices `[truth, prediction]`."""
    return mean([miou(ious, mode) for ious in samples], "answers with masks to compare")


# cIoU and gIoU


class PairCounts(NamedTuple):
    """Pixels of one expression: in common, in either mask, and whether a mask was predicted at all."""

    intersection: int
    union: int
    answered: bool


def count_pair(truth: np.ndarray, prediction: np.ndarray | None) -> PairCounts:
    """Counts of one expression; both masks of one shape, `None` where the answer has no mask."""
    guess = np.zeros_like(truth) if prediction is None else prediction
    found = overlaps([truth], [guess])
    common = int(found.intersections[0, 0])
    union = int(found.truth_areas[0] + found.prediction_areas[0]) - common
    return PairCounts(common, union, prediction is not None)


def ciou(counts: Iterable[PairCounts], mode: str = FIXED) -> Value:
    """
    Cumulative IoU: all pixels in common over all pixels in either mask, of all expressions.

    "published" leaves out the expressions without a predicted mask, so that they do not lower it. It ends in an error
    where an image has none at all, which is not repeated here.
    """
    check_mode(mode)
    kept = [one for one in counts if one.answered or mode == FIXED]
    if not kept:
        return Value(None, "there are no expressions" if mode == FIXED else "no expression has a predicted mask")
    common, union = sum(one.intersection for one in kept), sum(one.union for one in kept)
    if mode == RELEASE:
        return Value(common / (union + CIOU_EPSILON))
    return Value(common / union) if union else Value(None, "all masks are empty")


def giou(counts: Iterable[PairCounts], mode: str = FIXED) -> Value:
    """
    Mean over expressions of the IoU of each; two empty masks count 1, a missing mask that of an empty one. "published"
    adds 1e-5 to each union, and a missing mask counts 0 even where the truth is empty.
    """
    check_mode(mode)
    return mean([_expression_iou(one, mode) for one in counts], "expressions")


def _expression_iou(one: PairCounts, mode: str) -> float:
    if mode == FIXED:
        return one.intersection / one.union if one.union else 1.0
    if not one.answered:
        return 0.0
    return one.intersection / (one.union + GIOU_EPSILON) + (one.union == 0)


def release_polygon_truth(layers: np.ndarray) -> np.ndarray:
    """
    The true mask that the release makes of an annotation with several polygons (evaluation spec 3): their sum is
    written as run lengths that change at every change of value, so that it is torn where polygons overlap. Without
    overlap it is their union.

    Args:
        layers (`np.ndarray`): One mask for each polygon, shape `(num_polygons, height, width)`.

    Returns:
        `np.ndarray` of shape `(height, width)`, bool.
    """
    flat = (np.asarray(layers) != 0).sum(axis=0).ravel(order="F")
    changes = np.concatenate(([flat[0] != 0], flat[1:] != flat[:-1]))
    return (np.cumsum(changes) % 2 == 1).reshape(layers.shape[1:], order="F")
