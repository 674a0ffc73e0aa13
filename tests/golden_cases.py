"""The recorded inputs and outputs of the official metric and data functions, and a registry of their checks."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest


GOLDENS = Path(__file__).parent / "goldens" / "metrics.json"
CHECKS: dict[str, Callable[[dict], None]] = {}
RELATIVE = 1e-6


def recorded_cases() -> dict[str, dict]:
    """Id -> recorded case: its input, the official output, and where the function lies in the official repository."""
    return {case["id"]: case for case in json.loads(GOLDENS.read_text(encoding="utf-8"))["cases"]}


def checks(*names: str) -> Callable:
    """Registers a function as the check of the cases with these ids."""

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
