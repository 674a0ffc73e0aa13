"""Names and grey values for the challenge servers."""

import numpy as np
import pytest

from sama.metrics.submission import grey_mask, member_name


def test_member_name():
    assert member_name("mevis", "v", "0", "00000") == "v/0/00000.png"
    assert member_name("ref_youtube_vos", "v", "0", "00000") == "Annotations/v/0/00000.png"
    with pytest.raises(ValueError, match="'davis' takes no archive"):
        member_name("davis", "v", "0", "00000")


def test_grey_mask():
    found = grey_mask(np.array([[0, 1], [2, 0]]))
    assert found.dtype == np.uint8 and found.tolist() == [[0, 255], [255, 0]]
    with pytest.raises(ValueError, match=r"got \(2,\)"):
        grey_mask(np.zeros(2))
