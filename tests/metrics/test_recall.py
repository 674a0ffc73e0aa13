"""Recall of grounded answers, against values counted by hand and against trying every pairing."""

import itertools

import numpy as np
import pytest

from sama.metrics.recall import GLAMM, GroundedPair, matches, recall


def pair(ious, similarities) -> GroundedPair:
    return GroundedPair(np.array(ious, dtype=float), np.array(similarities, dtype=float))


ONE = [[1.0]]
PERFECT = pair(np.eye(2), np.eye(2))


def test_every_object_found():
    assert matches(PERFECT) == [(0, 0), (1, 1)] and recall([PERFECT]).value == 1


def test_thresholds_are_inclusive():
    assert recall([pair([[0.5]], [[0.5]])]).value == 1
    assert recall([pair([[0.4999]], ONE)]).value == 0 and recall([pair(ONE, [[0.4999]])]).value == 0
    assert recall([pair([[0.6]], ONE)], iou_threshold=0.7).value == 0


def test_a_cycle_of_three_is_right_in_fixed_only():
    # truth 0 is prediction 2, truth 1 is prediction 0, truth 2 is prediction 1
    found = np.roll(np.eye(3), -1, axis=1)
    cycle = pair(found, found)
    assert recall([cycle]).value == recall([cycle], GLAMM).value == 1 and recall([cycle], "published").value == 0


def test_a_failing_pair_stops_the_others_in_the_release_only():
    one = pair([[0.9, 0.0], [0.0, 0.8]], [[0.0, 0.0], [0.0, 1.0]])
    assert matches(one) == [(1, 1)]
    assert matches(one, GLAMM) == matches(one, "published") == []


def test_surplus_predictions_are_not_cut():
    late = pair([[0.0, 0.0, 1.0]], [[0.0, 0.0, 1.0]])
    assert recall([late]).value == 1 and recall([late], "published").value == 0


def test_silence_counts():
    silent, half = pair(np.zeros((2, 0)), np.zeros((2, 0))), pair([[1.0], [0.0]], [[1.0], [0.0]])
    assert recall([silent, half]).value == 1 / 4
    assert recall([silent, half], "published").value == 1 / 2


def test_fixed_does_not_depend_on_the_order():
    rng = np.random.default_rng(0)
    for _ in range(50):
        ious, words = rng.random((2, 4, 5))
        number = len(matches(pair(ious, words)))
        rows, columns = rng.permutation(4), rng.permutation(5)
        assert len(matches(pair(ious[rows][:, columns], words[rows][:, columns]))) == number
        assert number >= len(matches(pair(ious, words), GLAMM))


def test_fixed_finds_the_most_pairs():
    # The best IoU, of truth 0 and prediction 0, must be given up for two pairs
    assert matches(pair([[0.9, 0.6], [0.7, 0.0]], np.ones((2, 2)))) == [(0, 1), (1, 0)]
    rng = np.random.default_rng(1)
    for _ in range(50):
        ious, words = rng.random((2, 4, 4))
        allowed = (ious >= 0.5) & (words >= 0.5)
        most = max(sum(allowed[i, j] for i, j in enumerate(order)) for order in itertools.permutations(range(4)))
        found = matches(pair(ious, words))
        assert len(found) == most and all(allowed[place] for place in found)
        assert len({row for row, _ in found}) == len({column for _, column in found}) == len(found)


def test_a_phrase_for_each_mask():
    with pytest.raises(ValueError, match=r"\(1, 1\) masks but \(1, 2\) phrases"):
        matches(pair(ONE, [[0.1, 1.0]]))
    # The published pairs them by position: the mask gets the first phrase
    assert recall([pair(ONE, [[0.1, 1.0]])], "published").value == 0


def test_a_mask_without_a_phrase_matches_nothing_in_glamm():
    second = pair([[0.1, 0.9]], [[1.0]])
    assert matches(second, GLAMM) == [] and recall([second, pair(ONE, ONE)], GLAMM).value == 1 / 2
    # Also where a pair was found before it, on the other axis, and where nothing was said
    assert matches(pair([[0.9, 0.0], [0.0, 0.8]], [[1.0]]), GLAMM) == []
    assert matches(pair([[0.1], [0.9]], [[1.0]]), GLAMM) == matches(pair(ONE, np.zeros((1, 0))), GLAMM) == []
    assert matches(pair([[0.9, 0.1]], [[1.0]]), GLAMM) == [(0, 0)]


def test_nan_is_the_largest_in_glamm():
    one = pair([[1.0, 0.0], [0.0, np.nan]], np.ones((2, 2)))
    assert matches(one, GLAMM) == [(1, 1), (0, 0)]


def test_nothing_to_find_is_no_zero():
    assert recall([]) == (None, "no answer has a phrase to be found")
    assert recall([pair(np.zeros((0, 1)), np.zeros((0, 1)))]).value is None
    with pytest.raises(ValueError, match="preset='best' is unknown, expected one of consistent, published, glamm"):
        recall([], "best")
