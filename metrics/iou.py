"""
Overlap of masks: spatio-temporal IoU, mIoU of grounded answers, cIoU and gIoU of referring segmentation.

Matrices are indexed `[truth, prediction]`: one row per true object, one column per predicted object. Formulas:
evaluation spec 1.6 (SAMA-Bench-G) and 3 (RefCOCO).
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from .values import CONSISTENT, PUBLISHED, Value, check_preset, mean


# Added to the denominators by the published evaluation
CIOU_EPSILON, GIOU_EPSILON = 1e-10, 1e-5


class Overlaps(NamedTuple):
    """
    Pixel counts of true and predicted objects. The counts of consecutive parts of a video can be added, so that a
    video never has to be in memory at once: `sum(parts[1:], parts[0])`.

    Attributes:
        intersections (`np.ndarray`): Number of common pixels, shape `(num_truths, num_predictions)`.
        truth_areas (`np.ndarray`): Shape `(num_truths,)`.
        prediction_areas (`np.ndarray`): Shape `(num_predictions,)`.
    """

    intersections: np.ndarray
    truth_areas: np.ndarray
    prediction_areas: np.ndarray

    def __add__(self, other: "Overlaps") -> "Overlaps":
        if self.intersections.shape != other.intersections.shape:
            raise ValueError(
                f"Cannot add overlaps of {self.intersections.shape} and {other.intersections.shape} objects (truths, "
                "predictions): the two parts do not describe the same objects."
            )
        return Overlaps(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))

    def ious(self, empty: float = 0.0) -> np.ndarray:
        """
        IoU of each pair, float array of shape `(num_truths, num_predictions)`.

        Args:
            empty (`float`): IoU of two empty masks. The published image GCG evaluation uses `nan`.
        """
        unions = self.truth_areas[:, None] + self.prediction_areas[None, :] - self.intersections
        return np.where(unions > 0, self.intersections / np.maximum(unions, 1), empty)


def overlaps(truths: Sequence[np.ndarray], predictions: Sequence[np.ndarray]) -> Overlaps:
    """
    Counts the pixels of two lists of masks.

    Args:
        truths, predictions (sequences of `np.ndarray`): One mask or one video of masks per object, all of the same
            shape; nonzero pixels belong to the object.

    Raises:
        `ValueError`: The masks differ in shape.
    """
    shapes = {np.shape(mask) for mask in (*truths, *predictions)}
    if len(shapes) > 1:
        raise ValueError(f"Cannot compare masks of different shapes: {sorted(shapes)}.")
    # Eight pixels per byte: every pair of objects reads both masks, and packing cuts the memory traffic by eight
    packed = [[np.packbits(np.asarray(mask) != 0) for mask in masks] for masks in (truths, predictions)]
    areas = [np.array([_count(bits) for bits in masks], dtype=np.int64) for masks in packed]
    common = np.array([[_count(truth & guess) for guess in packed[1]] for truth in packed[0]], dtype=np.int64)
    return Overlaps(common.reshape(len(truths), len(predictions)), *areas)


def _count(bits: np.ndarray) -> int:
    return int(np.bitwise_count(bits).sum(dtype=np.int64))


def iou(truth: np.ndarray, prediction: np.ndarray, empty: float = 0.0) -> float:
    """IoU of two masks or two videos of masks of the same shape, over the whole volume; `empty` if both are empty."""
    return float(overlaps([truth], [prediction]).ious(empty)[0, 0])


def matrix_shape(matrix: np.ndarray, name: str) -> tuple[int, int]:
    """Shape of a matrix `[truth, prediction]`; `ValueError` if it does not have two dimensions."""
    if matrix.ndim != 2:
        raise ValueError(f"{name} must have the shape (num_truths, num_predictions), got {matrix.shape}.")
    return matrix.shape


# mIoU


def greedy_pairs(ious: np.ndarray) -> list[tuple[int, int]]:
    """
    Greedy matching: repeatedly takes the pair `(truth, prediction)` with the largest IoU and removes its row and
    column, until the largest IoU is 0. A `nan` counts as the largest value and ends the matching, as in the published
    code.
    """
    rest, pairs = np.array(ious, dtype=float), []
    while rest.size:
        truth, guess = np.unravel_index(np.argmax(rest), rest.shape)
        if not rest[truth, guess] > 0:
            break
        pairs.append((int(truth), int(guess)))
        rest[truth, :], rest[:, guess] = 0, 0
    return pairs


def matched_ious(ious: np.ndarray) -> list[float]:
    """The IoU of each true object with its prediction under greedy matching, 0 without one."""
    pairs = dict(greedy_pairs(ious))
    return [float(ious[truth, pairs[truth]]) if truth in pairs else 0.0 for truth in range(len(ious))]


def miou(ious: np.ndarray, preset: str = CONSISTENT) -> float | None:
    """
    Mean IoU of the objects of one answer under greedy matching.

    Args:
        ious (`np.ndarray`): Shape `(num_truths, num_predictions)`.
        preset (`str`): "consistent" divides the sum over matched pairs by the larger number of objects, so that each
            missed and each surplus object counts as 0. "published" divides by the number of matched pairs, so that one
            correct object of five gives 1; without a match it gives 0.

    Returns:
        `float`, or `None` under "consistent" if there are neither true nor predicted objects.
    """
    check_preset(preset)
    num_truths, num_guesses = matrix_shape(ious, "ious")
    taken = [float(ious[pair]) for pair in greedy_pairs(ious)]
    if preset == PUBLISHED:
        return sum(taken) / len(taken) if taken else 0.0
    most = max(num_truths, num_guesses)
    return sum(taken) / most if most else None


def mean_miou(samples: Iterable[np.ndarray], preset: str = CONSISTENT) -> Value:
    """Mean of [`miou`] over the answers of a video or a benchmark; `samples` holds their IoU matrices."""
    return mean([miou(ious, preset) for ious in samples], "answers with masks to compare")


# cIoU and gIoU


class PairCounts(NamedTuple):
    """Pixels of one expression in both masks and in either mask, and whether a mask was predicted at all."""

    intersection: int
    union: int
    answered: bool


def count_pair(truth: np.ndarray, prediction: np.ndarray | None) -> PairCounts:
    """Pixel counts of one expression. Both masks have the same shape; `None` if the answer has no mask."""
    guess = np.zeros_like(truth) if prediction is None else prediction
    found = overlaps([truth], [guess])
    common = int(found.intersections[0, 0])
    union = int(found.truth_areas[0] + found.prediction_areas[0]) - common
    return PairCounts(common, union, prediction is not None)


def ciou(counts: Iterable[PairCounts], preset: str = CONSISTENT) -> Value:
    """
    Cumulative IoU: intersections summed over all expressions, divided by the summed unions.

    "published" leaves out expressions without a predicted mask, so that they do not lower the score. The original code
    also fails on an image without any predicted mask, which is not reproduced.
    """
    check_preset(preset)
    kept = [one for one in counts if one.answered or preset == CONSISTENT]
    if not kept:
        return Value(
            None, "there are no expressions" if preset == CONSISTENT else "no expression has a predicted mask"
        )
    common, union = sum(one.intersection for one in kept), sum(one.union for one in kept)
    if preset == PUBLISHED:
        return Value(common / (union + CIOU_EPSILON))
    return Value(common / union) if union else Value(None, "all masks are empty")


def giou(counts: Iterable[PairCounts], preset: str = CONSISTENT) -> Value:
    """
    Mean IoU over expressions. Two empty masks give 1; a missing mask is an empty one. "published" adds 1e-5 to each
    union, and a missing mask gives 0 even if the true mask is empty.
    """
    check_preset(preset)
    return mean([_expression_iou(one, preset) for one in counts], "expressions")


def _expression_iou(one: PairCounts, preset: str) -> float:
    if preset == CONSISTENT:
        return one.intersection / one.union if one.union else 1.0
    if not one.answered:
        return 0.0
    return one.intersection / (one.union + GIOU_EPSILON) + (one.union == 0)


def published_polygon_truth(layers: np.ndarray) -> np.ndarray:
    """
    The true mask that the published code derives from several polygons (evaluation spec 3). It run-length encodes
    their sum and starts a new run at every change of value, so that the mask is corrupted where polygons overlap.
    Without overlap it is the union of the polygons.

    Args:
        layers (`np.ndarray`): One mask per polygon, shape `(num_polygons, height, width)`.

    Returns:
        `np.ndarray` of shape `(height, width)`, bool.
    """
    flat = (np.asarray(layers) != 0).sum(axis=0).ravel(order="F")
    changes = np.concatenate(([flat[0] != 0], flat[1:] != flat[:-1]))
    return (np.cumsum(changes) % 2 == 1).reshape(layers.shape[1:], order="F")
