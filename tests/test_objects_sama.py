"""Regions on their way to the sizes that the model reads, and the objects of answers."""

import numpy as np
import pytest

from sama.encoding_sama import mask_tensors
from sama.objects_sama import GroundedPhrase, PreparedRegion, drop_small_components
from sama.video_sama import SamaVideo


@pytest.mark.parametrize("keep_small", [True, False])
def test_a_region_between_the_sampled_pixels(keep_small):
    """Nearest neighbour at 4 x 4 reads pixels 0, 25, 50 and 75 of 100: a single pixel elsewhere would be lost."""
    mask = np.zeros((100, 100), dtype=bool)
    mask[60, 10] = True
    video = SamaVideo.open(np.zeros((1, 100, 100, 3), dtype=np.uint8))
    tensors = mask_tensors([(PreparedRegion(frame=0, area=1.0, mask=mask), video)], 8, [(4, 4)], keep_small)
    expected = np.zeros((4, 4))
    expected[2, 0] = keep_small
    np.testing.assert_array_equal(tensors["region_grid_masks"][0], expected)
    assert int(tensors["region_masks"].sum()) == keep_small


# Specks


def test_components_below_a_fraction_of_the_mask_are_dropped():
    mask = np.zeros((40, 60), bool)
    mask[5:25, 5:25] = True  # 400 pixels
    mask[10:20, 10:20] = False  # a hole stays a hole
    mask[25:27, 25:27] = True  # touches at a corner only: part of the square
    mask[35, 50:53] = True  # 3 pixels of 307
    expected = mask.copy()
    expected[35, 50:53] = False
    assert (drop_small_components(mask, 0.05) == expected).all()
    assert (drop_small_components(mask, 0.005) == mask).all() and (drop_small_components(mask, 0) == mask).all()
    assert not drop_small_components(np.zeros((4, 4), bool), 0.5).any()
    with pytest.raises(ValueError, match=r"between 0 and 1, got 1\.5"):
        drop_small_components(mask, 1.5)


@pytest.mark.parametrize("seed", range(4))
def test_components_are_those_of_scipy(seed):
    ndimage = pytest.importorskip("scipy.ndimage")
    mask = np.random.default_rng(seed).random((24, 31)) < 0.35
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    areas = ndimage.sum_labels(mask, labels, range(1, count + 1))
    kept = [place + 1 for place, area in enumerate(areas) if area >= min(areas.max(), 0.1 * mask.sum())]
    assert (drop_small_components(mask, 0.1) == np.isin(labels, kept)).all()


@pytest.mark.parametrize("score", [float("nan"), float("inf"), np.float32("nan")])
def test_a_confidence_that_is_not_finite_is_none(score):
    assert GroundedPhrase("it", (0, 2), score=score).score is None
    assert GroundedPhrase("it", (0, 2), score=0.5).score == 0.5
