"""Overlap of masks, against values counted by hand."""

import numpy as np
import pytest

from sama.metrics.iou import (
    PairCounts,
    ciou,
    count_pair,
    giou,
    greedy_pairs,
    iou,
    mean_miou,
    miou,
    overlaps,
    published_polygon_truth,
)


def strip(first: int, last: int, length: int = 10) -> np.ndarray:
    """A video of two frames of one row, filled from `first` to `last`, end exclusive."""
    mask = np.zeros((2, 1, length), dtype=bool)
    mask[..., first:last] = True
    return mask


def test_iou_counts_the_whole_volume():
    truth, guess = strip(0, 4), strip(0, 4)
    guess[1] = False
    assert iou(truth, guess) == 4 / 8  # not the mean of 1 and 0 over the frames of another size
    guess[1, 0, 6:10] = True
    assert iou(truth, guess) == 4 / 12


def test_iou_of_empty_masks_is_an_argument():
    empty = strip(0, 0)
    assert iou(empty, empty) == 0 and iou(empty, empty, empty=1.0) == 1
    assert np.isnan(iou(empty, empty, empty=float("nan"))) and iou(empty, strip(0, 3)) == 0


def test_iou_takes_any_numbers():
    assert iou(strip(0, 4).astype(np.uint8) * 255, strip(2, 4).astype(np.int32) * 7) == 0.5


def test_matrix_is_truth_by_prediction():
    found = overlaps([strip(0, 4), strip(4, 8)], [strip(4, 8), strip(0, 2), strip(9, 10)]).ious()
    assert found.tolist() == [[0, 0.5, 0], [1, 0, 0]]
    assert overlaps([], [strip(0, 4)]).ious().shape == (0, 1)
    assert overlaps([strip(0, 4)], []).ious().shape == (1, 0)


def test_overlaps_of_parts_add_up():
    rng = np.random.default_rng(0)
    truths, guesses = rng.random((2, 9, 7, 13)) < 0.5, rng.random((3, 9, 7, 13)) < 0.5
    parts = [overlaps(truths[:, start : start + 4], guesses[:, start : start + 4]) for start in (0, 4, 8)]
    whole = overlaps(truths, guesses)
    for mine, theirs in zip(sum(parts[1:], parts[0]), whole, strict=True):
        assert (mine == theirs).all()
    assert (whole.intersections == np.einsum("athw,bthw->ab", truths.astype(int), guesses.astype(int))).all()


def test_overlaps_raises():
    with pytest.raises(ValueError, match="different shapes"):
        overlaps([strip(0, 4)], [strip(0, 4, length=11)])
    with pytest.raises(ValueError, match="Cannot add overlaps"):
        overlaps([strip(0, 4)], []) + overlaps([strip(0, 4)], [strip(0, 4)])


def test_greedy_pairs_take_the_largest_first():
    # The best sum would be 0.6 + 0.6; greedy takes 0.7 and is left with 0.1
    assert greedy_pairs(np.array([[0.7, 0.6], [0.6, 0.1]])) == [(0, 0), (1, 1)]
    assert greedy_pairs(np.zeros((2, 2))) == [] and greedy_pairs(np.zeros((0, 3))) == []


@pytest.mark.parametrize(
    ("ious", "published", "consistent"),
    [
        ([[1.0, 0.0]], 1.0, 0.5),  # a surplus mask
        ([[1.0], [0.0], [0.0]], 1.0, 1 / 3),  # two missed objects
        ([[0.5, 0.0], [0.0, 1.0]], 0.75, 0.75),
        ([[0.0]], 0.0, 0.0),
        (np.zeros((2, 0)), 0.0, 0.0),  # silent
        (np.zeros((0, 2)), 0.0, 0.0),  # masks where none belong
        (np.zeros((0, 0)), 0.0, None),  # rightly silent
    ],
)
def test_miou(ious, published, consistent):
    assert miou(np.array(ious), "published") == published
    assert miou(np.array(ious)) == pytest.approx(consistent)


def test_mean_miou_leaves_out_what_has_no_masks():
    samples = [np.array([[1.0]]), np.zeros((0, 0)), np.zeros((1, 0))]
    assert mean_miou(samples).value == 0.5 and mean_miou(samples, "published").value == pytest.approx(1 / 3)
    assert mean_miou([]) == (None, "there are no answers with masks to compare")
    assert mean_miou([np.zeros((0, 0))]).value is None


def test_miou_raises():
    with pytest.raises(ValueError, match="preset='official' is unknown, expected one of consistent, published"):
        miou(np.zeros((1, 1)), "official")
    with pytest.raises(ValueError, match=r"got \(3,\)"):
        miou(np.zeros(3))


def test_ciou_and_giou_by_hand():
    counts = [
        count_pair(strip(0, 4), strip(0, 2)),
        count_pair(strip(0, 5), strip(0, 5)),
        count_pair(strip(0, 2), None),
    ]
    assert counts == [PairCounts(4, 8, True), PairCounts(10, 10, True), PairCounts(0, 4, False)]
    assert ciou(counts).value == 14 / 22 and giou(counts).value == 1.5 / 3
    # the published does not count the missing mask's object in cIoU
    assert ciou(counts, "published").value == pytest.approx(14 / 18)
    assert giou(counts, "published").value == pytest.approx(0.5, abs=1e-6)


def test_empty_truth():
    empty = strip(0, 0)
    rightly_silent, answered = count_pair(empty, None), count_pair(empty, empty)
    assert giou([rightly_silent, answered]).value == 1 and giou([rightly_silent], "published").value == 0
    assert ciou([answered]) == (None, "all masks are empty")


def test_nothing_to_score_is_no_zero():
    assert ciou([]) == (None, "there are no expressions") and giou([]).value is None
    assert ciou([count_pair(strip(0, 2), None)], "published") == (None, "no expression has a predicted mask")


def test_release_polygon_truth():
    layers = np.zeros((2, 3, 4), dtype=bool)
    layers[0, :, :2], layers[1, :, 2:] = True, True
    assert (published_polygon_truth(layers) == layers.any(0)).all()
    layers[1, 1, 1] = True  # twice covered: the published has a hole there
    expected = layers.any(0)
    expected[1, 1] = False
    assert (published_polygon_truth(layers) == expected).all()
