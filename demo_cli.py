"""What the user of demo.py types: regions, and which question each of them belongs to. Pure functions.

frame=10,box=x1,y1,x2,y2
frame=10,point=x,y[,point=x,y][,negative=x,y]
frame=10,scribble=x,y,x,y,...
frame=10,mask=FILE.png
object=2
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image


REGION_MARK = "<region>"


@dataclass(frozen=True)
class RegionRequest:
    """A region as the user typed it: a prompt on a frame, or the number of an answer's object (counted from 1)."""

    text: str
    frame: int = 0
    box: tuple[float, ...] | None = None
    points: tuple[tuple[float, float], ...] | None = None
    labels: tuple[int, ...] | None = None
    scribble: tuple[tuple[float, float], ...] | None = None
    mask_file: str | None = None
    object_number: int | None = None


def parse_region(text: str) -> RegionRequest:
    """Reads a region in the grammar at the top of this file; a `ValueError` names the piece that is wrong."""
    # A file name may hold commas and equals signs, so a mask is the last piece and runs to the end.
    head, mask_mark, mask_file = text.strip().partition("mask=")
    pieces = _split_pieces(text, head.rstrip(", ") if mask_mark else head)
    if mask_mark and not mask_file.strip():
        raise ValueError(f'In the region "{text}": mask= needs the name of a picture file.')
    names = [name for name, _ in pieces] + ["mask"] * bool(mask_mark)
    kinds = {"point" if name == "negative" else name for name in names} - {"frame"}
    if len(kinds) != 1:
        found = " and ".join(sorted(kinds)) or "none"
        raise ValueError(
            f'In the region "{text}": give exactly one of box, point, scribble, mask and object, got {found}.'
        )
    for name in ("frame", "object", "box", "scribble"):
        if names.count(name) > 1:
            raise ValueError(f'In the region "{text}": {name}= is given {names.count(name)} times, at most once.')
    if "object" in kinds and "frame" in names:
        raise ValueError(f'In the region "{text}": an object of an answer is known on every frame; leave frame= out.')
    if "negative" in names and "point" not in names:
        raise ValueError(f'In the region "{text}": negative= needs a point= on the thing itself.')
    values = {"text": text, "mask_file": mask_file.strip() or None}
    points = [(name, _numbers(text, name, value, 2)) for name, value in pieces if name in ("point", "negative")]
    if points:
        values["points"] = tuple(point for _, point in points)
        values["labels"] = tuple(int(name == "point") for name, _ in points)
    for name, value in pieces:
        if name == "frame":
            values["frame"] = _whole_number(text, name, value, minimum=0)
        elif name == "object":
            values["object_number"] = _whole_number(text, name, value, minimum=1)
        elif name == "box":
            values["box"] = _numbers(text, name, value, 4)
        elif name == "scribble":
            values["scribble"] = _polyline(text, value)
    return RegionRequest(**values)


def _split_pieces(text: str, head: str) -> list[tuple[str, list[str]]]:
    """("box", ["40", "60", "210", "300"]) and so on; a piece without a name belongs to the name before it."""
    pieces: list[tuple[str, list[str]]] = []
    for piece in head.split(",") if head else []:
        name, equals, value = (part.strip() for part in piece.partition("="))
        if not equals and pieces:
            pieces[-1][1].append(name)
        elif equals and name in ("frame", "box", "point", "negative", "scribble", "object"):
            pieces.append((name, [value]))
        else:
            raise ValueError(
                f'In the region "{text}": "{piece.strip()}" is none of frame=, box=, point=, negative=, scribble=, '
                "mask= and object=."
            )
    return pieces


def _numbers(text: str, name: str, values: list[str], count: int | None = None) -> tuple[float, ...]:
    numbers = []
    for value in values:
        try:
            numbers.append(float(value))
        except ValueError:
            raise ValueError(f'In the region "{text}": "{value}" in {name}= is not a number.') from None
    if not np.isfinite(numbers).all():
        raise ValueError(f'In the region "{text}": {name}={",".join(values)} is not finite.')
    if count is not None and len(numbers) != count:
        raise ValueError(f'In the region "{text}": {name}= takes {count} numbers, got {len(numbers)}.')
    return tuple(numbers)


def _whole_number(text: str, name: str, values: list[str], minimum: int) -> int:
    if len(values) != 1 or not values[0].isdecimal() or int(values[0]) < minimum:
        found = ",".join(values)
        raise ValueError(f'In the region "{text}": {name}={found} is not a whole number from {minimum} on.')
    return int(values[0])


def _polyline(text: str, values: list[str]) -> tuple[tuple[float, float], ...]:
    numbers = _numbers(text, "scribble", values)
    if len(numbers) % 2 or len(numbers) < 4:
        raise ValueError(
            f'In the region "{text}": scribble= takes x,y of two points or more, got {len(numbers)} numbers.'
        )
    return tuple(zip(numbers[0::2], numbers[1::2], strict=True))


def group_turns(script: Iterable[tuple[str, str]]) -> list[tuple[str, list[RegionRequest]]]:
    """
    Gives each question the regions it needs: every `<region>` mark takes the next --region after its --ask.

    Args:
        script: ("ask", question) and ("region", text) in the order of the command line.
    """
    turns: list[tuple[str, list[RegionRequest]]] = []
    for kind, text in script:
        if kind == "ask":
            turns.append((text, []))
            continue
        waiting = [regions for question, regions in turns if len(regions) < question.count(REGION_MARK)]
        if not waiting:
            raise ValueError(
                f'--region "{text}" belongs to no question: no {REGION_MARK} before it is left without one.'
            )
        waiting[0].append(parse_region(text))
    for number, (question, regions) in enumerate(turns, start=1):
        if len(regions) != question.count(REGION_MARK):
            raise ValueError(
                f'Question {number}, "{question}", has {question.count(REGION_MARK)} {REGION_MARK} marks but '
                f"{len(regions)} --region values."
            )
    return turns


def read_mask(path: str) -> np.ndarray:
    """A picture as a mask (H, W): what is not black (in a palette picture: not entry 0) belongs to it."""
    try:
        with Image.open(path) as image:
            return np.array(image if image.mode == "P" else image.convert("L")) > 0
    except FileNotFoundError:
        raise FileNotFoundError(f'There is no mask file "{path}".') from None
    except OSError as error:
        raise ValueError(f'The mask file "{path}" cannot be read as a picture: {error}.') from error
