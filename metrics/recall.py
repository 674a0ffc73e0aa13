"""
Recall of grounded answers: how many of the true objects were found, by their masks and by the words for them.

Evaluation spec 1.6 (SAMA-Bench-G, whose release transposes, cuts and skips) and 5.1 (image GCG). Matrices are
`[truth, prediction]`.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from .iou import matrix_shape
from .values import FIXED, RELEASE, Value, check_mode


GLAMM = "glamm"
IOU_THRESHOLD = TEXT_THRESHOLD = 0.5  # both inclusive


class GroundedPair(NamedTuple):
    """
    One answer as recall sees it.

    Attributes:
        ious (`np.ndarray`): IoU of masks, shape `(num_truths, num_predictions)`.
        similarities (`np.ndarray`): Similarity of phrases, shape `(num_true_phrases, num_predicted_phrases)`. In
            "fixed" there is a phrase for each mask, the one that its [SEG] stands for; the release counts phrases and
            masks apart and pairs them by position.
    """

    ious: np.ndarray
    similarities: np.ndarray


def matches(
    pair: GroundedPair,
    mode: str = FIXED,
    iou_threshold: float = IOU_THRESHOLD,
    text_threshold: float = TEXT_THRESHOLD,
) -> list[tuple[int, int]]:
    """
    Which true object is found by which predicted one: `(truth, prediction)`, both thresholds reached.

    Args:
        pair ([`GroundedPair`]): One answer.
        mode (`str`): "fixed": as many pairs as can be had at once, each object in at most one. That does not depend on
            the order of the objects, and a pair that fails in its words takes nothing from the others. "glamm" (the
            release's image GCG): pairs by falling IoU until the first one that fails. "published" (SAMA-Bench-G): the
            same on matrices that are cut to their common upper left, the masks' one transposed against the words' one.
        iou_threshold (`float`), text_threshold (`float`): Least values; the thresholds themselves count.

    Raises:
        `ValueError`: In "fixed", masks and phrases differ in number.
    """
    check_mode(mode, (FIXED, RELEASE, GLAMM))
    masks, words = matrix_shape(pair.ious, "ious"), matrix_shape(pair.similarities, "similarities")
    if mode == FIXED:
        if masks != words:
            raise ValueError(
                f"{masks} masks but {words} phrases (truths, predictions): in mode='fixed' each mask has the phrase "
                "that its [SEG] stands for."
            )
        return _most_pairs((pair.ious >= iou_threshold) & (pair.similarities >= text_threshold))
    if mode == GLAMM:
        return _falling(pair.ious, pair.similarities, iou_threshold, text_threshold)
    # The masks' matrix is [prediction, truth], the words' [truth, prediction], and both are read at the same place
    rows, columns = min(masks[1], words[0]), min(masks[0], words[1])
    found = _falling(pair.ious.T[:rows, :columns], pair.similarities[:rows, :columns], iou_threshold, text_threshold)
    return [(truth, guess) for guess, truth in found]


def recall(
    pairs: Iterable[GroundedPair],
    mode: str = FIXED,
    iou_threshold: float = IOU_THRESHOLD,
    text_threshold: float = TEXT_THRESHOLD,
) -> Value:
    """
    Share of the true objects of a video or a benchmark that are found, see [`matches`].

    An answer without masks counts with all its true objects as missed; "published" leaves it out, so that silence is
    rewarded. The denominator counts true phrases.
    """
    check_mode(mode, (FIXED, RELEASE, GLAMM))
    found = total = 0
    for pair in pairs:
        silent = pair.ious.shape[1] == 0 or pair.similarities.shape[1] == 0
        if mode == RELEASE and silent:
            continue
        found += len(matches(pair, mode, iou_threshold, text_threshold))
        total += pair.similarities.shape[0]
    return Value(found / total) if total else Value(None, "no answer has a phrase to be found")


def _falling(ious: np.ndarray, similarities: np.ndarray, least_iou: float, least_text: float) -> list:
    """
    Pairs by falling IoU; ends at the first that fails. `nan` is the largest and fails no comparison. If the place of a
    mask has no phrase, where the release stops with an error, the whole answer has no pair.
    """
    ious, similarities, pairs = np.array(ious, dtype=float), np.array(similarities, dtype=float), []
    while ious.size:
        place = np.unravel_index(np.argmax(ious), ious.shape)
        if ious[place] < least_iou:
            break
        if any(index >= length for index, length in zip(place, similarities.shape, strict=True)):
            return []
        if similarities[place] < least_text:
            break
        pairs.append((int(place[0]), int(place[1])))
        ious[place[0], :] = ious[:, place[1]] = similarities[place[0], :] = similarities[:, place[1]] = 0
    return pairs


def _most_pairs(allowed: np.ndarray) -> list[tuple[int, int]]:
    """A largest set of allowed `(row, column)` without a row or column twice (augmenting paths)."""
    owner: dict[int, int] = {}  # column -> row

    def place(row: int, tried: set[int]) -> bool:
        for column in np.flatnonzero(allowed[row]).tolist():
            if column not in tried:
                tried.add(column)
                if column not in owner or place(owner[column], tried):
                    owner[column] = row
                    return True
        return False

    for row in range(len(allowed)):
        place(row, set())
    return sorted((row, column) for column, row in owner.items())
