"""How an object of an answer is written in JSON and in file names: its id and its colour."""

from ..overlay_sama import Color


def object_id(number: int) -> str:
    """The id of an object, `o1` for the first one."""
    return f"o{number}"


def object_number(id: str) -> int:
    """The number of an object from its id."""
    return int(id.removeprefix("o"))


def hex_color(color: Color) -> str:
    """A colour as `#ff4068`."""
    return "#{:02x}{:02x}{:02x}".format(*color)
