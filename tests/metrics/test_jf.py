"""J, F, and the measures of ReVOS, against values counted by hand and against plain dilation."""

import numpy as np
import pytest

from sama.metrics.jf import (
    accuracy,
    boundary_f,
    boundary_map,
    boundary_radius,
    disk,
    jf,
    region_similarity,
    revos_table,
    robustness,
)


def box(top: int, bottom: int, left: int, right: int, size=(20, 20)) -> np.ndarray:
    mask = np.zeros(size, dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def dilated_f(truth: np.ndarray, prediction: np.ndarray, radius: int) -> float:
    """F straight from its definition: every pixel of a boundary looks at every pixel of the other."""
    edges = [np.argwhere(boundary_map(mask)) for mask in (truth, prediction)]
    if not all(len(edge) for edge in edges):
        return float(not any(len(edge) for edge in edges))
    distances = np.square(edges[0][:, None] - edges[1][None]).sum(-1)
    near = distances <= radius**2
    recall, precision = near.any(1).mean(), near.any(0).mean()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def test_region_similarity():
    assert region_similarity(box(5, 15, 5, 15), box(5, 15, 5, 10)) == 0.5
    assert (
        region_similarity(box(0, 0, 0, 0), box(0, 0, 0, 0)) == 1
        and region_similarity(box(0, 1, 0, 1), box(0, 0, 0, 0)) == 0
    )


def test_boundary_map_lies_half_a_pixel_towards_the_origin():
    found = boundary_map(box(1, 3, 1, 3, (4, 4)))
    assert found.astype(int).tolist() == [[1, 1, 1, 0], [1, 0, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]]
    # the last pixel has no neighbours to compare with
    assert boundary_map(box(3, 4, 3, 4, (4, 4))).sum() == 3


def test_boundary_f_by_hand():
    # The box's boundary has 40 pixels; one pixel off is within the radius of 1
    truth = box(5, 15, 5, 15)
    assert boundary_radius(20, 20) == 1 and boundary_map(truth).sum() == 40
    assert boundary_f(truth, box(5, 15, 6, 16)) == 1
    # Two pixels off: the two vertical sides, less the pixels at their ends, are missed by both: 22 of 40 are found
    assert boundary_f(truth, box(5, 15, 7, 17)) == 22 / 40


@pytest.mark.parametrize(
    ("height", "width", "radius"), [(480, 854, 8), (720, 1280, 12), (1080, 1920, 18), (240, 320, 4), (30, 40, 1)]
)
def test_boundary_radius_by_hand(height, width, radius):
    """0.8 % of the diagonal, rounded up: 979.6 px give 7.84, 1468.6 give 11.7, 2202.9 give 17.6, 400 give 3.2."""
    assert boundary_radius(height, width) == radius


def test_boundary_f_of_masks_without_boundary():
    empty, full = box(0, 0, 0, 0), box(0, 20, 0, 20)
    assert boundary_f(empty, empty) == boundary_f(empty, full) == 1
    assert boundary_f(empty, box(2, 4, 2, 4)) == boundary_f(box(2, 4, 2, 4), empty) == 0


@pytest.mark.parametrize("size", [(20, 20), (33, 17), (5, 40), (1, 30), (30, 1), (61, 80)])
@pytest.mark.parametrize("density", [0.02, 0.5, 0.98])
def test_boundary_f_is_that_of_its_definition(size, density):
    rng = np.random.default_rng(size[0] * size[1])
    for tolerance in (0.008, 0.05, 0.2):
        truth, guess = rng.random((2, *size)) < density
        assert boundary_f(truth, guess, tolerance) == pytest.approx(
            dilated_f(truth, guess, boundary_radius(*size, tolerance)), abs=1e-12
        )


def test_boundary_f_at_the_edges_of_the_frame():
    corners = [(0, 4, 0, 4), (0, 4, 36, 40), (26, 30, 0, 4), (26, 30, 36, 40), (0, 30, 0, 40), (0, 30, 18, 22)]
    for one in corners:
        for other in corners:
            truth, guess = box(*one, (30, 40)), box(*other, (30, 40))
            assert boundary_f(truth, guess, 0.1) == dilated_f(truth, guess, boundary_radius(30, 40, 0.1))


def test_disk():
    assert disk(0).tolist() == [[True]]
    assert disk(3).sum() == 29 and disk(3).shape == (7, 7)


def test_jf_is_the_mean_over_all_frames():
    truth = np.stack([box(5, 15, 5, 15), box(0, 0, 0, 0), box(5, 15, 5, 15)])
    guess = np.stack([box(5, 15, 5, 10), box(0, 0, 0, 0), box(0, 0, 0, 0)])
    found = jf(truth, guess.astype(np.uint8) * 255)
    assert found.j == 0.5 and found.f == pytest.approx((0.6571428571 + 1 + 0) / 3)
    assert found.mean == (found.j + found.f) / 2


def test_jf_raises():
    with pytest.raises(ValueError, match="at least one frame"):
        jf(np.zeros((0, 4, 4)), np.zeros((0, 4, 4)))
    with pytest.raises(ValueError, match=r"\(2, 4, 4\).*\(3, 4, 4\)"):
        jf(np.zeros((2, 4, 4)), np.zeros((3, 4, 4)))
    with pytest.raises(ValueError, match="expected the same shape"):
        region_similarity(box(0, 1, 0, 1), box(0, 1, 0, 1, (20, 21)))


def test_accuracy_and_robustness():
    truth, guess = box(0, 10, 0, 10)[None], box(0, 12, 0, 10)[None]
    front = box(0, 20, 0, 10)[None]
    assert accuracy(truth, guess) == 380 / 400 and robustness(truth, guess, front) == pytest.approx(1 - 20 / 200)
    # of 0 and 255 no pixel of an object agrees, and each wrong one counts 255 times
    white = guess.astype(np.uint8) * 255
    assert accuracy(truth.astype(np.uint8), white, "published") == 280 / 400
    assert robustness(truth, white, front, "published") == 0
    assert accuracy(truth, white) == 380 / 400 and robustness(truth * 2, white, front) == pytest.approx(0.9)


def test_robustness_of_a_frame_without_objects():
    empty = box(0, 0, 0, 0)[None]
    assert robustness(empty, empty, empty) == 1 and robustness(empty, box(0, 1, 0, 1)[None], empty) == 0


def test_revos_table():
    rows = [
        (0, {"J": 1.0, "F": 1.0, "A": 1.0, "R": 1.0}),
        (1, {"J": 0.12345, "F": 0.5, "A": 0.5, "R": 0.0}),
        (1, {"J": 0.12345, "F": 0.5, "A": 0.5, "R": 0.0}),
        (2, {"J": 0.0, "F": 0.0, "A": 0.0, "R": 0.0}),  # in no group
    ]
    found = revos_table(rows)
    assert found["reasoning"]["J"].value == pytest.approx(12.345)
    assert found["overall"]["J"].value == pytest.approx((100 + 12.345) / 2)
    assert found["overall"]["J&F"].value == pytest.approx((100 + (12.345 + 50) / 2) / 2)
    assert revos_table(rows, "published")["reasoning"]["J"].value == pytest.approx(12.35, abs=0.0051)
    alone = revos_table(rows[:1])
    assert alone["referring"]["J"].value == 100
    assert alone["overall"]["J"] == alone["overall"]["J&F"] == (None, "there are no reasoning expressions")
