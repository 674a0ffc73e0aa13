"""95 % confidence intervals of scores."""

import math
from collections.abc import Hashable, Sequence

import numpy as np


Z95 = 1.959964
RESAMPLES = 1000


def wilson(successes: int, count: int) -> tuple[float, float] | None:
    """Wilson score interval of a proportion, 95 %; `None` if `count` is 0."""
    if not 0 <= successes <= count:
        raise ValueError(f"{successes} successes of {count} trials: expected a number from 0 to {count}.")
    if not count:
        return None
    share, extra = successes / count, Z95**2 / count
    centre = (share + extra / 2) / (1 + extra)
    half = Z95 / (1 + extra) * math.sqrt(share * (1 - share) / count + extra / (4 * count))
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap_mean(
    values: Sequence[float], clusters: Sequence[Hashable], seed: int = 0, resamples: int = RESAMPLES
) -> tuple[float, float] | None:
    """
    Percentile bootstrap interval (95 %) of a mean over values that are correlated within clusters, such as the objects
    of one video: whole clusters are drawn with replacement. `None` with fewer than two clusters.

    Args:
        values (sequence of `float`): The values whose mean is reported.
        clusters (sequence): The cluster of each value.
        seed (`int`): The same values and seed give the same interval.
        resamples (`int`): Number of bootstrap samples.
    """
    if len(values) != len(clusters):
        raise ValueError(f"Got {len(values)} values but {len(clusters)} clusters; every value needs its cluster.")
    names = {name: place for place, name in enumerate(dict.fromkeys(clusters))}
    if len(names) < 2:
        return None
    places = np.array([names[name] for name in clusters])
    sums = np.bincount(places, weights=np.asarray(values, dtype=float))
    counts = np.bincount(places)
    drawn = np.random.default_rng(seed).integers(len(names), size=(resamples, len(names)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
