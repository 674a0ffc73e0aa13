"""JSON files read item by item: the annotation and mask files of some sources are too large for memory."""

from collections.abc import Iterator
from pathlib import Path

import ijson

from ..records import DataError


OPENING = {"[": "a list", "{": "an object"}


def stream_list(path: Path, key: str = "") -> Iterator[tuple[int, object]]:
    """Position and value of each element of the list in a JSON file, or of the list `key` of its object."""
    prefix = f"{key}.item" if key else "item"
    yield from _stream(path, key, "[", lambda file: enumerate(ijson.items(file, prefix, use_float=True)))


def stream_object(path: Path, key: str = "") -> Iterator[tuple[str, object]]:
    """Name and value of each entry of the object in a JSON file, or of the object `key` of it, in file order."""
    yield from _stream(path, key, "{", lambda file: ijson.kvitems(file, key, use_float=True))


def _stream(path: Path, key: str, opening: str, parse) -> Iterator[tuple]:
    last, expected = None, OPENING[opening]
    try:
        with open(path, "rb") as file:
            # Waiting for list elements, the parser would find none in an object and report no error
            found = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")[:1].decode("ascii", errors="replace")
            if found != (opening if not key else "{"):
                what = OPENING.get(found, "something else")
                raise DataError(f"contains {what} where {'an object' if key else expected} is expected", file=path)
            file.seek(0)
            for last, value in parse(file):
                yield last, value
    except FileNotFoundError:
        raise DataError("there is no such file", file=path) from None
    except (ijson.JSONError, UnicodeDecodeError) as error:
        after = "at its start" if last is None else f"after item {last}"
        reason = " ".join(str(error).split())[:120]
        raise DataError(f"is truncated or not JSON {after} ({reason})", file=path) from error
    if last is None:
        where = f" under '{key}'" if key else ""
        raise DataError(f"contains no items: {expected} with at least 1 is expected{where}", file=path)
