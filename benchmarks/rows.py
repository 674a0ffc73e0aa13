"""Rows of the results from the values behind them. All are in percent, except where a benchmark counts points."""

from collections.abc import Sequence

from sama.metrics.values import mean

from .benchmark import Score


def mean_row(
    name: str,
    values: Sequence[float | None],
    what: str,
    part: str = "all",
    release: Sequence[float | None] = (),
    reason: str = "",
) -> Score:
    """
    Mean of the values that exist, as a row.

    Args:
        name, part (`str`): Of the row.
        values (sequence of `float` or `None`): As they should be computed.
        what (`str`): What a value is of, for the reason where there is none: "expressions".
        release (sequence of `float` or `None`): The same as the release computes them.
        reason (`str`): Why there is no value, where that is known.
    """
    found = mean(values, what)
    count = sum(value is not None for value in values)
    why = "" if found.value is not None else reason or found.reason
    return Score(name, found.value, count, part, mean(release, what).value, reason=why)
