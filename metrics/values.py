"""What a metric gives back: a number, or no number and the reason why; and how numbers become one number."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple


FIXED, RELEASE = "fixed", "published"


class Value(NamedTuple):
    """
    A metric's value.

    Attributes:
        value (`float`, *optional*): `None` where it could not be computed, which is not the same as 0.
        reason (`str`): Why there is no value; empty where there is one.
    """

    value: float | None
    reason: str = ""


def check_mode(mode: str, modes: Sequence[str] = (FIXED, RELEASE)) -> None:
    """Raise `ValueError` for an unknown mode."""
    if mode not in modes:
        raise ValueError(f"mode={mode!r} is unknown, expected one of {', '.join(modes)}.")


def mean(values: Iterable[float | None | Value], what: str = "samples") -> Value:
    """
    Unweighted mean of the values that exist.

    Args:
        values (iterable of `float`, `None` or [`Value`]): Those without a value are left out, not counted as 0.
        what (`str`): Names them where none is left.
    """
    plain = [value.value if isinstance(value, Value) else value for value in values]
    found = [float(value) for value in plain if value is not None]
    if not found:
        return Value(None, f"none of the {len(plain)} {what} has a value" if plain else f"there are no {what}")
    return Value(sum(found) / len(found))
