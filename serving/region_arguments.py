"""Regions as typed on a command line, and the questions that they belong to.

    frame=10,box=x1,y1,x2,y2
    frame=10,point=x,y[,point=x,y][,negative=x,y]
    frame=10,scribble=x,y,x,y,...
    frame=10,mask=FILE.png
    object=2

Coordinates are pixels of the video, frames are counted from 0 and objects from 1.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from sama.objects_sama import prepare_region
from sama.pictures_sama import opened_picture
from sama.prompts_sama import REGION_WORD
from sama.regions_sama import mask_array


REGION_FORMS = """\
    frame=10,box=x1,y1,x2,y2
    frame=10,point=x,y[,point=x,y][,negative=x,y]       points on the object and outside it
    frame=10,scribble=x,y,x,y,...
    frame=10,mask=FILE.png                              all that is neither black nor transparent
    object=2                                            the 2nd object of the answers so far"""


@dataclass(frozen=True)
class RegionArgument:
    """
    A region as it was typed.

    Attributes:
        text (`str`): what was typed.
        values (`dict`): the region as [`ChatSession.ask`] takes it, without the mask of a file.
        mask_file (`str`, *optional*): a picture of the mask.
    """

    text: str
    values: dict
    mask_file: str | None = None

    def region(self) -> dict:
        """The region as [`ChatSession.ask`] takes it; the mask file is read now."""
        return self.values if self.mask_file is None else self.values | {"mask": read_mask(self.mask_file)}


def parse_region(text: str) -> RegionArgument:
    """Parses a region in the grammar at the top of this file; a `ValueError` names the part that is wrong."""
    # A file name may contain commas and equals signs, so a mask comes last and extends to the end.
    head, mask_mark, mask_file = text.strip().partition("mask=")
    pieces = _split_pieces(text, head.rstrip(", ") if mask_mark else head)
    if mask_mark and not mask_file.strip():
        raise ValueError(f'In the region "{text}": mask= needs the name of a picture file.')
    _check_names(text, [name for name, _ in pieces] + ["mask"] * bool(mask_mark))
    values: dict = {"frame": 0}
    points = [(name, _numbers(text, name, value, 2)) for name, value in pieces if name in ("point", "negative")]
    if points:
        values["points"] = [point for _, point in points]
        values["labels"] = [int(name == "point") for name, _ in points]
    for name, value in pieces:
        if name == "frame":
            values["frame"] = _whole_number(text, name, value, minimum=0)
        elif name == "object":
            values = {"object": _whole_number(text, name, value, minimum=1)}
        elif name == "box":
            values["box"] = _numbers(text, name, value, 4)
        elif name == "scribble":
            values["scribble"] = _polyline(text, value)
    return RegionArgument(text, values, mask_file.strip() or None)


def _check_names(text: str, names: list[str]) -> None:
    """Raises `ValueError` unless the names of the parts make exactly one prompt."""
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
        raise ValueError(f'In the region "{text}": negative= needs a point= on the object itself.')


def _split_pieces(text: str, head: str) -> list[tuple[str, list[str]]]:
    """`("box", ["40", "60", "210", "300"])` and so on; a number without a name belongs to the name before it."""
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


def _polyline(text: str, values: list[str]) -> list[tuple[float, float]]:
    numbers = _numbers(text, "scribble", values)
    if len(numbers) % 2 or len(numbers) < 4:
        raise ValueError(
            f'In the region "{text}": scribble= takes x,y of two points or more, got {len(numbers)} numbers.'
        )
    return list(zip(numbers[0::2], numbers[1::2], strict=True))


def check_region(region: RegionArgument, video, num_objects: int) -> None:
    """
    Checks that a region lies in a video, so that a mistake costs no model and no typed question.

    Args:
        region ([`RegionArgument`])
        video ([`SamaVideo`])
        num_objects (`int`): how many objects the answers so far have, which `object=` may name.

    Raises:
        ValueError: if it does not.
    """
    number = region.values.get("object")
    if number is None:
        frame = region.values["frame"]
        if frame >= len(video):
            raise ValueError(
                f'In the region "{region.text}": there is no frame {frame}; the video has {len(video)}, counted '
                "from 0."
            )
        prepare_region(region.region(), video, [frame], "mask")
    elif number > num_objects:
        raise ValueError(
            f'In the region "{region.text}": there is no object {number}; the answers so far have {num_objects}, '
            "counted from 1."
        )


def group_questions(script: Iterable[tuple[str, str]]) -> list[tuple[str, list[RegionArgument]]]:
    """
    The questions with their regions: each `<region>` takes the next --region given after its question.

    Args:
        script: `("ask", question)` and `("region", text)` in the order of the command line.

    Raises:
        ValueError: if a region cannot be parsed, or a question has more or fewer `<region>` than regions.
    """
    questions: list[tuple[str, list[RegionArgument]]] = []
    for kind, text in script:
        if kind == "ask":
            questions.append((text, []))
            continue
        waiting = [regions for question, regions in questions if len(regions) < question.count(REGION_WORD)]
        if not waiting:
            raise ValueError(
                f'--region "{text}" belongs to no question: every {REGION_WORD} before it already has its region.'
            )
        waiting[0].append(parse_region(text))
    for number, (question, regions) in enumerate(questions, start=1):
        if len(regions) != question.count(REGION_WORD):
            raise ValueError(
                f'Question {number}, "{question}", has {question.count(REGION_WORD)} {REGION_WORD} marks but '
                f"{len(regions)} --region values."
            )
    return questions


def read_mask(path: str) -> np.ndarray:
    """
    A picture as a bool mask of shape `(height, width)`: what is neither black nor transparent, in a
    palette picture what is not entry 0.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a picture.
    """
    try:
        with opened_picture(path) as image:
            return mask_array(image)
    except FileNotFoundError:
        raise FileNotFoundError(f'There is no mask file "{path}".') from None
    except ValueError as error:
        raise ValueError(f'The mask file "{path}" cannot be used: {error}') from error
