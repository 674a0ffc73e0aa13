"""95 % intervals: values from textbooks, and what must not change them."""

import numpy as np
import pytest

from sama.metrics.intervals import bootstrap_mean, wilson


def test_wilson_by_hand():
    # 5 of 10: (0.5 + 0.19207) / 1.38415 -+ 1.95996 / 1.38415 * sqrt(0.025 + 0.0096036)
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert wilson(0, 0) is None
    with pytest.raises(ValueError, match="3 successes of 2"):
        wilson(3, 2)


def test_bootstrap_agrees_with_theory_and_with_itself():
    values = np.random.default_rng(0).normal(0.5, 0.2, 400)
    low, high = bootstrap_mean(values, list(range(400)))
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.005)
    assert bootstrap_mean(values, list(range(400))) == (low, high)


def test_values_of_a_cluster_are_drawn_together():
    alone = bootstrap_mean([0.0, 1.0] * 50, list(range(100)))
    # The same values, but those of a cluster are equal: ten times fewer things that vary
    together = bootstrap_mean(sorted([0.0, 1.0] * 50), [place // 10 for place in range(100)])
    assert together[1] - together[0] > 2 * (alone[1] - alone[0])
    assert bootstrap_mean([0.1, 0.9], ["a", "a"]) is None and bootstrap_mean([], []) is None
    with pytest.raises(ValueError, match="2 values but 1 clusters"):
        bootstrap_mean([0.1, 0.2], ["a"])
