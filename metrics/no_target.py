"""
Referring expressions that fit nothing: no-target and target accuracy.

Definitions: GRES (Liu, Ding and Jiang, "GRES: Generalized Referring Expression Segmentation", CVPR 2023, section 3.3).
With TP and FN the no-target expressions that are answered without and with a mask, TN and FP the expressions with a
target that are answered with and without one:

    N-acc = TP / (TP + FN)        T-acc = TN / (TN + FP)

An answer without a mask is one in which no pixel of any frame is predicted. Always answering with a mask gives an
N-acc of 0 and a T-acc of 1, so the two belong together.

In GRES' gIoU a no-target expression counts 1 if it is answered without a mask and 0 otherwise; in its cIoU predicted
pixels without a target enlarge the union. [`giou`] and [`ciou`] compute both from empty true masks.
"""

from collections.abc import Iterable
from typing import NamedTuple

from .values import Value, mean


class Presence(NamedTuple):
    """Whether an expression has a target, and whether any pixel was predicted for it."""

    has_target: bool
    predicted: bool


def no_target_accuracy(expressions: Iterable[Presence]) -> Value:
    """N-acc in [0, 1]: share of the expressions without a target for which nothing is predicted."""
    silent = [float(not one.predicted) for one in expressions if not one.has_target]
    return mean(silent, "expressions without a target")


def target_accuracy(expressions: Iterable[Presence]) -> Value:
    """T-acc in [0, 1]: share of the expressions with a target for which something is predicted, right or wrong."""
    return mean([float(one.predicted) for one in expressions if one.has_target], "expressions with a target")
