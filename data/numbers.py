"""Exact types of the numbers in annotation files."""

from sama import regions_sama


# Whatever annotations count or measure fits 64 bits; longer numbers overflow in NumPy, Arrow and C code
LARGEST = 2**63 - 1


def is_whole(value) -> bool:
    """[`regions_sama.is_whole`], of at most 64 bits."""
    return regions_sama.is_whole(value) and -LARGEST <= value <= LARGEST


def is_number(value) -> bool:
    """[`regions_sama.is_number`], finite and of at most 64 bits."""
    return regions_sama.is_number(value) and bool(-LARGEST <= value <= LARGEST)  # comparisons with NaN are false
