"""The result of a metric: a number, or the reason why there is none; and the mean of such results."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple


# "consistent": as the metric is defined; "published": as the released evaluation code computes it, errors included
PRESETS = CONSISTENT, PUBLISHED = "consistent", "published"


class Value(NamedTuple):
    """
    A metric's value.

    Attributes:
        value (`float`, *optional*): `None` if it could not be computed; never 0 instead.
        reason (`str`): Why there is no value; empty if there is one.
    """

    value: float | None
    reason: str = ""


def check_preset(preset: str, presets: Sequence[str] = (CONSISTENT, PUBLISHED)) -> None:
    """Raises `ValueError` if `preset` is not one of `presets`."""
    if preset not in presets:
        raise ValueError(f"preset={preset!r} is unknown, expected one of {', '.join(presets)}.")


def mean(values: Iterable[float | None | Value], what: str = "samples") -> Value:
    """
    Unweighted mean. Entries without a value are left out; they do not count as 0.

    Args:
        values (iterable of `float`, `None` or [`Value`]): The numbers to average.
        what (`str`): Plural name of an entry, for the reason if none has a value.
    """
    plain = [value.value if isinstance(value, Value) else value for value in values]
    found = [float(value) for value in plain if value is not None]
    if not found:
        return Value(None, f"none of the {len(plain)} {what} has a value" if plain else f"there are no {what}")
    return Value(sum(found) / len(found))
