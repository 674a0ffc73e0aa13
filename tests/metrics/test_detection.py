"""Average precision of masks, against values counted by hand."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from sama.metrics.detection import AP_NAMES, average_precision


def box(top: int, bottom: int, left: int, right: int) -> np.ndarray:
    mask = np.zeros((20, 20), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


ONE, OTHER = box(0, 10, 0, 10), box(10, 20, 10, 20)


def test_perfect(capsys):
    found = average_precision({"a": [ONE, OTHER], "b": [ONE]}, {"a": [OTHER, ONE], "b": [ONE]})
    assert list(found) == list(AP_NAMES) and found["AP"].value == pytest.approx(1)
    assert found["AP50"].value == found["AP_small"].value == pytest.approx(1)
    assert found["AP_large"] == (None, "there are no true masks of that size")
    assert capsys.readouterr().out == ""


def test_threshold():
    # 6 of 10 columns: IoU 0.6, right at 0.5, 0.55 and 0.6 of the ten thresholds
    found = average_precision({"a": [ONE]}, {"a": [box(0, 10, 0, 6)]})
    assert found["AP50"].value == pytest.approx(1) and found["AP75"].value == 0
    assert found["AP"].value == pytest.approx(0.3)


def test_scores_order_the_predictions():
    truths, guesses = {"a": [ONE]}, {"a": [OTHER, ONE]}
    # The wrong one comes first: precision 1/2 at every recall
    assert average_precision(truths, guesses)["AP50"].value == pytest.approx(0.5)
    assert average_precision(truths, guesses, {"a": [0.1, 0.9]})["AP50"].value == pytest.approx(1)


def test_silence_and_missing_images():
    assert average_precision({"a": [ONE], "b": [ONE]}, {"a": [ONE]})["AP50"].value == pytest.approx(51 / 101)
    assert average_precision({"a": [ONE], "b": []}, {})["AP50"].value == 0


def test_run_lengths():
    code = coco_mask.encode(np.asfortranarray(ONE, dtype=np.uint8))
    text = {"size": code["size"], "counts": code["counts"].decode()}
    assert average_precision({1: [text]}, {1: [code]})["AP"].value == pytest.approx(1)


def test_errors():
    assert average_precision({"a": []}, {"a": [ONE]})["AP50"] == (None, "there are no true masks")
    with pytest.raises(ValueError, match="1 predicted images are not among the true ones, such as 'c'"):
        average_precision({"a": [ONE]}, {"c": [ONE]})
    with pytest.raises(ValueError, match="image 'a' have different sizes"):
        average_precision({"a": [ONE]}, {"a": [ONE[:10]]})
    with pytest.raises(ValueError, match="1 scores were given for 2"):
        average_precision({"a": [ONE]}, {"a": [ONE, OTHER]}, {"a": [0.5]})
