"""Rows of the results from the values behind them. All are in percent, except where a benchmark counts points."""

from collections.abc import Hashable, Sequence

from sama.metrics.intervals import bootstrap_mean
from sama.metrics.values import mean

from .benchmark import Score


def mean_row(
    name: str,
    values: Sequence[float | None],
    what: str,
    part: str = "all",
    published: Sequence[float | None] = (),
    reason: str = "",
    clusters: Sequence[Hashable] | None = None,
) -> Score:
    """
    Mean of the values that exist, as a row.

    Args:
        name, part (`str`): Of the row.
        values (sequence of `float` or `None`): As they should be computed.
        what (`str`): What a value is of, for the reason where there is none: "expressions".
        published (sequence of `float` or `None`): The same as the release computes them.
        reason (`str`): Why there is no value, where that is known.
        clusters (sequence, *optional*): What each value belongs to, such as its video; given for an interval.
    """
    found = mean(values, what)
    count = sum(value is not None for value in values)
    why = "" if found.value is not None else reason or found.reason
    interval = None
    if clusters is not None:
        known = [pair for pair in zip(values, clusters, strict=True) if pair[0] is not None]
        interval = bootstrap_mean(*zip(*known, strict=True)) if known else None
    return Score(name, found.value, count, part, mean(published, what).value, interval, reason=why)
