"""No-target and target accuracy, and gIoU and cIoU of expressions that fit nothing, counted by hand (GRES 3.3)."""

import numpy as np
import pytest

from sama.metrics.iou import ciou, count_pair, giou
from sama.metrics.no_target import Presence, no_target_accuracy, target_accuracy


def test_accuracies_by_hand():
    # Without a target: 2 of 3 silent. With one: 3 of 4 answered, where the mask lies does not matter
    silent, spoken = Presence(False, False), Presence(False, True)
    found, missed = Presence(True, True), Presence(True, False)
    expressions = [silent, silent, spoken, found, found, found, missed]
    assert no_target_accuracy(expressions).value == pytest.approx(2 / 3)
    assert target_accuracy(expressions).value == pytest.approx(3 / 4)


def test_without_such_expressions_there_is_a_reason_and_no_value():
    assert no_target_accuracy([Presence(True, True)]).value is None
    assert target_accuracy([Presence(False, True)]).reason == "there are no expressions with a target"


def test_giou_and_ciou_of_grefcoco():
    # A target of 4 pixels of which 2 are found, a silent answer to nothing, 3 pixels where nothing is
    empty, target, half, wrong = (np.zeros((4, 4), dtype=bool) for _ in range(4))
    target[0], half[0, :2], wrong[3, :3] = True, True, True
    counts = [count_pair(target, half), count_pair(empty, None), count_pair(empty, wrong)]
    assert giou(counts).value == pytest.approx((0.5 + 1 + 0) / 3)
    assert ciou(counts).value == pytest.approx(2 / (4 + 0 + 3))
    assert giou([count_pair(empty, empty)]).value == 1  # a [SEG] whose mask has no pixel predicts nothing
