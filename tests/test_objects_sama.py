"""Regions on their way to the sizes that the model reads."""

import numpy as np
import pytest

from sama.encoding_sama import mask_tensors
from sama.objects_sama import PreparedRegion
from sama.video_sama import SamaVideo


@pytest.mark.parametrize("keep_small", [True, False])
def test_a_region_between_the_sampled_pixels(keep_small):
    """Nearest neighbour at 4 x 4 reads pixels 0, 25, 50 and 75 of 100: a single pixel elsewhere would be lost."""
    mask = np.zeros((100, 100), dtype=bool)
    mask[60, 10] = True
    video = SamaVideo.open(np.zeros((1, 100, 100, 3), dtype=np.uint8))
    tensors = mask_tensors([(PreparedRegion(frame=0, area=1.0, mask=mask), video)], 8, 4, keep_small)
    expected = np.zeros((4, 4))
    expected[2, 0] = keep_small
    np.testing.assert_array_equal(tensors["region_grid_masks"][0], expected)
    assert int(tensors["region_masks"].sum()) == keep_small
