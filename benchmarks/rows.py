"""Rows of the results. All values are percentages unless a benchmark counts points."""

from collections.abc import Hashable, Sequence

from sama.metrics.intervals import bootstrap_mean, wilson
from sama.metrics.no_target import Presence, no_target_accuracy, target_accuracy
from sama.metrics.values import Value, mean

from .benchmark import Score


def percent(value: Value) -> float | None:
    """A value in percent; `None` if there is none."""
    return None if value.value is None else 100 * value.value


def presence_rows(expressions: Sequence[Presence], part: str = "all", scale: float = 100) -> list[Score]:
    """
    Rows of N-acc and T-acc (see `metrics/no_target.py`) with Wilson intervals; none if every expression has a target.

    Args:
        expressions (sequence of [`Presence`]): One per scored expression.
        part (`str`): Of the rows.
        scale (`float`): 100 for percentages, 1 for fractions.
    """
    if all(one.has_target for one in expressions):
        return []
    rows = []
    for name, function, with_target in (("N-acc", no_target_accuracy, False), ("T-acc", target_accuracy, True)):
        value = function(expressions)
        count = sum(one.has_target == with_target for one in expressions)
        interval = None
        if value.value is not None:
            interval = tuple(scale * bound for bound in wilson(round(value.value * count), count))
        shown = None if value.value is None else scale * value.value
        rows.append(Score(name, shown, count, part, interval=interval, reason=value.reason))
    return rows


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
