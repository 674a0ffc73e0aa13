"""How an object of an answer is written in JSON and in file names: its id and its colour; and which number it has."""

from collections.abc import Mapping, Sequence
from itertools import count

import numpy as np

from ..overlay_sama import Color


SAME_OBJECT_IOU = 0.5  # of masks on one frame, from which an object of an answer is the one that is asked about


def object_id(number: int) -> str:
    """The id of an object, `o1` for the first one."""
    return f"o{number}"


def object_number(id: str) -> int:
    """The number of an object from its id."""
    return int(id.removeprefix("o"))


def hex_color(color: Color) -> str:
    """A colour as `#ff4068`."""
    return "#{:02x}{:02x}{:02x}".format(*color)


def object_numbers(masks: Sequence[np.ndarray], known: Mapping[int, np.ndarray], first_new: int) -> tuple[int, ...]:
    """
    The numbers of an answer's objects, from their masks on one frame.

    Args:
        masks (sequence of `np.ndarray` of shape `(height, width)`, bool): one per object of the answer.
        known (mapping of `int` to `np.ndarray`): number and mask of the objects that the question points at. Each is
            found again at most once, where it overlaps most.
        first_new (`int`): the number of the first object that is none of these.
    """
    pairs = [
        ((mask & other).sum() / max(1, (mask | other).sum()), -place, number)
        for place, mask in enumerate(masks)
        for number, other in known.items()
    ]
    found: dict[int, int] = {}  # place in the answer to number
    for overlap, place, number in sorted(pairs, reverse=True):
        if overlap >= SAME_OBJECT_IOU and -place not in found and number not in found.values():
            found[-place] = number
    new = count(first_new)
    return tuple(found[place] if place in found else next(new) for place in range(len(masks)))
