"""Rows of the results. All values are percentages unless a benchmark counts points."""

from collections.abc import Hashable, Sequence

from sama.metrics.intervals import bootstrap_mean
from sama.metrics.values import Value, mean

from .benchmark import Score


def percent(value: Value) -> float | None:
    """A value in percent; `None` if there is none."""
    return None if value.value is None else 100 * value.value


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
    A row with the mean of the values that exist.

    Args:
        name, part (`str`): Of the row.
        values (sequence of `float` or `None`): The values under "consistent".
        what (`str`): Plural name of what is averaged ("expressions"), for the reason if there is no value.
        published (sequence of `float` or `None`): The values under "published".
        reason (`str`): Why there is no value, if known.
        clusters (sequence, *optional*): The cluster of each value, such as its video. With clusters the row has a
            confidence interval.
    """
    found = mean(values, what)
    count = sum(value is not None for value in values)
    why = "" if found.value is not None else reason or found.reason
    interval = None
    if clusters is not None:
        known = [pair for pair in zip(values, clusters, strict=True) if pair[0] is not None]
        interval = bootstrap_mean(*zip(*known, strict=True)) if known else None
    return Score(name, found.value, count, part, mean(published, what).value, interval, reason=why)
