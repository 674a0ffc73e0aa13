"""JSON files read item by item: the annotation and mask files of some sources are too large for memory."""

from collections.abc import Iterator
from pathlib import Path

import ijson

from ..json_text import BYTE_ORDER_MARK, JSONGuard
from ..records import DataError, reading


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
    with reading(path), open(path, "rb") as file:
        # Waiting for list elements, the parser would find none in an object and report no error
        start = file.read(64)
        found = start.removeprefix(BYTE_ORDER_MARK).lstrip(b" \t\r\n")[:1].decode("ascii", errors="replace")
        if found != (opening if not key else "{"):
            what = OPENING.get(found, "something else")
            raise DataError(f"contains {what} where {'an object' if key else expected} is expected", file=path)
        file.seek(len(BYTE_ORDER_MARK) if start.startswith(BYTE_ORDER_MARK) else 0)
        items = parse(JSONGuard(file))
        while True:
            # Only the parser's own errors are caught, not those of what is done with an item
            try:
                last, value = next(items)
            except StopIteration:
                break
            except (ijson.JSONError, ValueError, OverflowError) as error:
                after = "at its start" if last is None else f"after item {last}"
                reason = " ".join(str(error).split())[:120]
                raise DataError(f"is truncated or not JSON {after} ({reason})", file=path) from error
            yield last, value
    if last is None:
        where = f" under '{key}'" if key else ""
        raise DataError(f"contains no items: {expected} with at least 1 is expected{where}", file=path)
