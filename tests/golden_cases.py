"""Recorded inputs and outputs of the official metric and data functions: which function checks which case."""

from collections.abc import Callable

import numpy as np
import pytest


CHECKS: dict[str, Callable[[dict], None]] = {}
RELATIVE = 1e-6


def checks(*names: str) -> Callable:
    """Marks a function of one case as the check of the cases of these names."""

    def mark(function: Callable[[dict], None]) -> Callable[[dict], None]:
        for name in names:
            assert name not in CHECKS, f"{name} is checked twice"
            CHECKS[name] = function
        return function

    return mark


def close(value, expected, relative: float = RELATIVE, absolute: float = 1e-9) -> None:
    """Numbers, lists and dictionaries of numbers agree."""
    assert value == pytest.approx(expected, rel=relative, abs=absolute)


def drawn(text: str, size: tuple[int, int]) -> np.ndarray:
    """A mask from its description: "y5:15 x5:10", ranges half open, or "none"."""
    mask = np.zeros(size, dtype=bool)
    if ":" in text:
        rows, columns = ([int(number) for number in part[1:].split(":")] for part in text.split()[-2:])
        mask[slice(*rows), slice(*columns)] = True
    return mask
