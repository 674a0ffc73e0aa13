"""Your own data: JSON Lines of records (see `records.py`), with paths relative to a media folder."""

from collections.abc import Iterator, Mapping
from typing import Any

from ..frames import frame_name
from ..json_text import parse_json
from ..masks import to_rle
from ..records import DataError, read_lines, require_field, require_type, validate_record
from .source_reader import SourceReader


def read_json_lines(files: Mapping, root, options: Mapping | None = None) -> Iterator[dict]:
    """
    The records of a file. Files: records, media. `id` and `source` are optional; masks may be any run-length code. A
    key that is null counts as missing, since tables write all their columns.
    """
    reader = SourceReader(files, root, options, "json_lines", ["records", "media"])
    path = reader.path("records")

    def read_item(line: str, content: bytes) -> Iterator[dict]:
        # Parsed here, so that a broken line is a broken item, which `on_error` may leave out
        try:
            item = require_type(parse_json(content), dict, "")
        except ValueError as error:
            raise error if isinstance(error, DataError) else DataError(str(error)) from error
        # Checked before it is modified, so that errors refer to the file
        item = without_nulls(item)
        record = validate_record({"id": f"{reader.source}/{line}", "source": reader.source, **item})
        yield record | _visual(reader, record) | {"objects": _objects(record)}

    lines = ((f"line {number}", content) for number, content in read_lines(path))
    yield from reader.convert(lines, read_item, path)


def _visual(reader: SourceReader, record: Mapping) -> dict:
    kind = next((kind for kind in ("video", "image") if kind in record), None)
    if kind is None:
        return {}
    if "toy" in record[kind]:
        raise DataError("is for generated clips, which have no file", field=f"{kind}.toy")
    visual = {**record[kind], "path": reader.media(record[kind]["path"], f"{kind}.path")}
    if visual.get("frames") is not None:
        visual["frames"] = [frame_name(name, f"video.frames[{i}]") for i, name in enumerate(visual["frames"])]
    return {kind: visual}


def without_nulls(value: Any) -> Any:
    """A JSON value without the keys that are null, except in `info`, whose form is free. Lists keep their nulls: where
    nothing is visible, a mask is null."""
    if isinstance(value, list):
        return [without_nulls(one) for one in value]
    if not isinstance(value, dict):
        return value
    return {key: one if key == "info" else without_nulls(one) for key, one in value.items() if one is not None}


def _objects(record: Mapping) -> dict:
    objects = {}
    for name, item in require_field(record, "objects", dict, default={}).items():
        objects[name] = dict(item)
        for position, mask in enumerate(item.get("masks", [])):
            try:
                objects[name].setdefault("codes", []).append(to_rle(mask))
            except (ValueError, TypeError) as error:
                raise DataError(str(error), field=f"objects.{name}.masks[{position}]") from error
        if "masks" in item:
            objects[name]["masks"] = objects[name].pop("codes", [])
    return objects
