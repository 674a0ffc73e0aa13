"""profiling/compare_sam2.py: both trackers give the same masks, and a difference is an error."""

import argparse

import pytest
import torch


pytest.importorskip(
    "sam2", reason="the package that is compared with: pip install --no-deps sam2, and hydra-core iopath"
)
from sama.profiling import compare_sam2  # noqa: E402


SETTINGS = {"encoder": "tiny", "image_size": 64, "version": "2.1", "device": "cpu", "dtype": "float32", "rounds": 1}
ARGUMENTS = argparse.Namespace(**SETTINGS, frames=4, objects=[2], compile=False)


def test_masks_are_equal_and_not_empty():
    with torch.no_grad():
        predictor = compare_sam2.package_predictor("tiny", 64, "2.1")
        tracker = compare_sam2.our_tracker(predictor, "tiny", "2.1")
        frames, points = compare_sam2.drifting_frames(3, 64), compare_sam2.clicks(2, 64)
        theirs = list(compare_sam2.package_masks(predictor, frames, points))
        ours = list(compare_sam2.our_masks(tracker, frames, points))
    assert compare_sam2.largest_difference(ours, theirs) < 1e-4
    assert all(mask.shape == (2, 64, 64) and 0.01 < (mask > 0).float().mean() < 0.99 for mask in theirs)


def test_a_difference_is_an_error(monkeypatch):
    table = compare_sam2.comparison(ARGUMENTS)
    assert table.splitlines()[2].startswith("| 2 | ") and table.splitlines()[2].count("x [") == 2
    monkeypatch.setattr(compare_sam2, "TOLERANCE", {torch.float32: 0.0})
    with pytest.raises(compare_sam2.MasksDifferError, match=r"Masks of 2 object\(s\) differ by .* more than 0.0e\+00"):
        compare_sam2.comparison(ARGUMENTS)
