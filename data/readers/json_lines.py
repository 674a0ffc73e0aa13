"""Your own data: JSON Lines of records (see `records.py`), with paths relative to a media folder."""

from collections.abc import Iterator, Mapping

from ..frames import frame_name
from ..masks import to_rle
from ..records import DataError, read_jsonl, require_field, require_type, validate_record
from .source_reader import SourceReader


def read_json_lines(files: Mapping, root, options: Mapping | None = None) -> Iterator[dict]:
    """
    The records of a file. Files: records, media. `id` and `source` are optional; masks may be any run-length code.
    """
    reader = SourceReader(files, root, options, "json_lines", ["records", "media"])
    path = reader.path("records")

    def read_item(line: int, item: Mapping) -> Iterator[dict]:
        require_type(item, dict, "")
        # Checked before it is modified, so that errors refer to the file
        record = validate_record({"id": f"{reader.source}/{line}", "source": reader.source, **item})
        yield record | _visual(reader, record) | {"objects": _objects(record)}

    yield from reader.convert(_lines(path), read_item, path)


def _lines(path) -> Iterator[tuple]:
    try:
        yield from ((f"line {number}", item) for number, item in read_jsonl(path))
    except FileNotFoundError:
        raise DataError("there is no such file", file=path) from None


def _visual(reader: SourceReader, record: Mapping) -> dict:
    kind = next((kind for kind in ("video", "image") if kind in record), None)
    if kind is None or "toy" in record[kind]:
        return {}
    visual = {**record[kind], "path": reader.media(record[kind]["path"], f"{kind}.path")}
    if visual.get("frames") is not None:
        visual["frames"] = [frame_name(name, f"video.frames[{i}]") for i, name in enumerate(visual["frames"])]
    return {kind: visual}


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
