"""
Recall of grounded answers: the fraction of true objects that were found, judged by mask and by phrase.

Formulas: evaluation spec 1.6 (SAMA-Bench-G) and 5.1 (image GCG). Matrices are indexed `[truth, prediction]`.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from .iou import matrix_shape
from .values import CONSISTENT, PUBLISHED, Value, check_preset


GLAMM = "glamm"
IOU_THRESHOLD = TEXT_THRESHOLD = 0.5  # both inclusive


class GroundedPair(NamedTuple):
    """
    The true and the predicted objects of one answer.

    Attributes:
        ious (`np.ndarray`): IoU of masks, shape `(num_truths, num_predictions)`.
        similarities (`np.ndarray`): Similarity of phrases, shape `(num_true_phrases, num_predicted_phrases)`. Under
            "consistent" every mask has the phrase of its [SEG], so that both matrices have the same shape. The
            published code counts phrases and masks separately and pairs them by position.
    """

    ious: np.ndarray
    similarities: np.ndarray


def matches(
    pair: GroundedPair,
    preset: str = CONSISTENT,
    iou_threshold: float = IOU_THRESHOLD,
    text_threshold: float = TEXT_THRESHOLD,
) -> list[tuple[int, int]]:
    """
    Matched objects as `(truth, prediction)`; a match reaches both thresholds.

    Args:
        pair ([`GroundedPair`]): One answer.
        preset (`str`):
            - "consistent": a maximum one-to-one matching. It does not depend on the order of the objects, and a pair
              whose phrases differ blocks no other pair.
            - "glamm" (image GCG, as published): pairs in order of decreasing IoU, up to the first one that fails.
            - "published" (SAMA-Bench-G): as "glamm", but the IoU matrix is transposed against the similarity matrix,
              and both are cut to their common upper left block.
        iou_threshold, text_threshold (`float`): Minimum values, inclusive.

    Raises:
        `ValueError`: Under "consistent", the numbers of masks and phrases differ.
    """
    check_preset(preset, (CONSISTENT, PUBLISHED, GLAMM))
    masks, phrases = matrix_shape(pair.ious, "ious"), matrix_shape(pair.similarities, "similarities")
    if preset == CONSISTENT:
        if masks != phrases:
            raise ValueError(
                f"{masks} masks but {phrases} phrases (truths, predictions): under preset='consistent' each mask has "
                "the phrase of its [SEG]."
            )
        return _maximum_matching((pair.ious >= iou_threshold) & (pair.similarities >= text_threshold))
    if preset == GLAMM:
        return _greedy_matching(pair.ious, pair.similarities, iou_threshold, text_threshold)
    # The published code stores IoUs as [prediction, truth] and similarities as [truth, prediction], and reads both at
    # the same indices
    rows, columns = min(masks[1], phrases[0]), min(masks[0], phrases[1])
    ious, similarities = pair.ious.T[:rows, :columns], pair.similarities[:rows, :columns]
    found = _greedy_matching(ious, similarities, iou_threshold, text_threshold)
    return [(truth, prediction) for prediction, truth in found]


def recall(
    pairs: Iterable[GroundedPair],
    preset: str = CONSISTENT,
    iou_threshold: float = IOU_THRESHOLD,
    text_threshold: float = TEXT_THRESHOLD,
) -> Value:
    """
    Fraction of the true objects of a video or a benchmark that are matched, see [`matches`].

    The denominator is the number of true phrases. In an answer without masks all true objects count as missed;
    "published" skips such an answer.
    """
    check_preset(preset, (CONSISTENT, PUBLISHED, GLAMM))
    found = total = 0
    for pair in pairs:
        nothing_predicted = pair.ious.shape[1] == 0 or pair.similarities.shape[1] == 0
        if preset == PUBLISHED and nothing_predicted:
            continue
        found += len(matches(pair, preset, iou_threshold, text_threshold))
        total += pair.similarities.shape[0]
    return Value(found / total) if total else Value(None, "no answer has a phrase to be found")


def _greedy_matching(ious: np.ndarray, similarities: np.ndarray, min_iou: float, min_similarity: float) -> list:
    """
    Pairs in order of decreasing IoU, up to the first that fails a threshold. `nan` is the largest IoU and passes. The
    published code fails if a matched mask has no phrase at its index; here such an answer has no matches.
    """
    ious, similarities, pairs = np.array(ious, dtype=float), np.array(similarities, dtype=float), []
    while ious.size:
        row, column = (int(index) for index in np.unravel_index(np.argmax(ious), ious.shape))
        if ious[row, column] < min_iou:
            break
        if row >= similarities.shape[0] or column >= similarities.shape[1]:
            return []
        if similarities[row, column] < min_similarity:
            break
        pairs.append((row, column))
        ious[row, :] = ious[:, column] = similarities[row, :] = similarities[:, column] = 0
    return pairs


def _maximum_matching(allowed: np.ndarray) -> list[tuple[int, int]]:
    """
    Maximum bipartite matching by augmenting paths: the largest set of `(row, column)` with `allowed[row, column]` in
    which no row and no column occurs twice.
    """
    row_of: dict[int, int] = {}  # matched column -> its row

    def assign(row: int, visited: set[int]) -> bool:
        """Finds a column for `row`, if necessary by moving rows that are already matched to other columns."""
        for column in np.flatnonzero(allowed[row]).tolist():
            if column not in visited:
                visited.add(column)
                if column not in row_of or assign(row_of[column], visited):
                    row_of[column] = row
                    return True
        return False

    for row in range(len(allowed)):
        assign(row, set())
    return sorted((row, column) for column, row in row_of.items())
