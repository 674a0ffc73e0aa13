"""Exact types of the numbers in annotation files, and values shortened for messages."""

import reprlib

import numpy as np


# Whatever annotations count or measure fits 64 bits; longer numbers overflow in NumPy, Arrow and C code
LARGEST = 2**63 - 1

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 2, 60, 60


def is_whole(value) -> bool:
    """Whether a value is a whole number of at most 64 bits. True and False, "1" and 1.0 are not."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and -LARGEST <= value <= LARGEST


def is_number(value) -> bool:
    """Whether a value is a finite number. True and False, text, NaN and infinity are not."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        return False
    return bool(-LARGEST <= value <= LARGEST)  # comparisons with NaN are false


def shorten(value) -> str:
    """`repr` of a value for a message: at most a few entries and characters of it."""
    try:
        return _SHORT.repr(value)
    except (ValueError, RecursionError):  # Python does not write numbers of more than 4,300 digits
        return f"a {type(value).__name__} that is too long to show"
