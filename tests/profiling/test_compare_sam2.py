"""profiling/compare_sam2.py: both trackers give the same masks, and a difference is an error."""

from importlib.util import find_spec

import pytest
import torch


if find_spec("sam2") is None:  # imported where it is used: every test process imports this file
    pytest.skip(
        "compared with the package: pip install --no-deps sam2, and hydra-core iopath", allow_module_level=True
    )


@pytest.fixture(scope="module")
def compare_sam2():
    from sama.profiling import compare_sam2

    return compare_sam2


@torch.no_grad()
def test_masks_are_equal_and_not_empty(compare_sam2):
    predictor = compare_sam2.package_predictor("tiny", 64, "2.1")
    tracker = compare_sam2.our_tracker(predictor, "tiny", "2.1")
    frames, points = compare_sam2.drifting_frames(3, 64), compare_sam2.clicks(2, 64)
    theirs = list(compare_sam2.package_masks(predictor, frames, points))
    ours = list(compare_sam2.our_masks(tracker, frames, points))
    assert compare_sam2.largest_difference(ours, theirs) < compare_sam2.TOLERANCE[torch.float32]
    assert all(mask.shape == (2, 64, 64) and 0.01 < (mask > 0).float().mean() < 0.99 for mask in theirs)


def test_a_difference_is_an_error(compare_sam2):
    frames = torch.ones(2, 3, 8, 8)

    def masks(scale: float):
        return lambda frames, points: (scale * frame for frame in frames)

    row = compare_sam2.compare(masks(1.0), masks(1.0), frames, 2, rounds=1, tolerance=0.0)
    assert row[0] == "2" and row[-1] == "0.0e+00" and all("x [" in cell for cell in row[3:5])
    with pytest.raises(compare_sam2.MasksDifferError, match=r"Masks of 2 object\(s\) differ by 5.0e-01 .* 1.0e-04"):
        compare_sam2.compare(masks(1.0), masks(2.0), frames, 2, rounds=1, tolerance=1e-4)
    for value in (float("nan"), float("inf")):
        with pytest.raises(compare_sam2.MasksDifferError, match="differ by inf"):
            compare_sam2.compare(masks(1.0), masks(value), frames, 2, rounds=1, tolerance=1e-4)
        with pytest.raises(compare_sam2.MasksDifferError, match="differ by"):
            compare_sam2.compare(masks(value), masks(1.0), frames, 2, rounds=1, tolerance=1e-4)
