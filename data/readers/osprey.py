"""Osprey: questions about numbered regions of COCO images, given as polygons or run-length codes."""

import re
from collections.abc import Iterator, Mapping

from .. import wording
from ..masks import to_rle
from ..records import DataError, require_field, require_size, require_type
from .conversations import conversation_rounds
from .source_reader import SourceReader, assistant, region, text, user
from .streams import stream_list


REGION_NUMBER = re.compile(r"region(\d+)")


def read_osprey(files: Mapping, root, options: Mapping | None = None) -> Iterator[dict]:
    """
    One record for each item. Its regions are the objects "1", "2", ...; the preamble of the first question lists them.

    Files: annotations, media (a list of image folders, searched in this order). Option `short_answers`: append the
    request for a word or phrase to every question (the short form).
    """
    reader = SourceReader(files, root, options, "osprey", ["annotations", "media"], short_answers=False)

    def read_item(index: int, item: Mapping) -> Iterator[dict]:
        objects = _regions(item)
        read_messages = _descriptions if "description" in item else _dialogue
        messages = list(read_messages(reader, item, objects))
        if not messages:
            reader.drop("items without a complete round")
            return
        starts = wording.region_list(len(objects))
        preamble = [part for start, name in zip(starts, objects, strict=False) for part in (text(start), region(name))]
        messages[0]["preamble"] = [*preamble, text(starts[-1])]
        yield {
            "id": f"{reader.source}/{index}",
            "source": reader.source,
            "image": {"path": _find_image(reader, require_field(item, "file_name", str))},
            "objects": objects,
            "messages": messages,
            "layout": "osprey",
            "region_shape": "mask",
        }

    path = reader.path("annotations")
    yield from reader.convert(stream_list(path), read_item, path)


def _regions(item: Mapping) -> dict:
    size = require_size(item)
    objects = {}
    for position, annotation in enumerate(require_field(item, "annotation", list)):
        field = f"annotation[{position}]"
        segmentation = require_field(annotation, "segmentation", (list, dict), at=field)
        try:
            code = to_rle(segmentation, size)
        except (ValueError, TypeError) as error:
            raise DataError(str(error), field=f"{field}.segmentation") from error
        objects[str(position + 1)] = {"masks": [code]}
    if not objects:
        raise DataError("is empty", field="annotation")
    return objects


def _descriptions(reader: SourceReader, item: Mapping, objects: dict) -> Iterator[dict]:
    descriptions = require_field(item, "description", list)
    if len(descriptions) != len(objects):
        raise DataError(f"describes {len(descriptions)} of {len(objects)} regions", field="description")
    for number, description in enumerate(descriptions, start=1):
        answer = _without_brackets(require_type(description, str, f"description[{number - 1}]")).strip()
        if not answer:
            reader.drop("empty descriptions")
            continue
        yield user([text(wording.region_word(number))], templates="describe_region_image")
        yield assistant([text(answer)])


def _dialogue(reader: SourceReader, item: Mapping, objects: dict) -> Iterator[dict]:
    for question, answer, position in conversation_rounds(require_field(item, "conversations", list), reader):
        question = _without_brackets(question)
        for number in REGION_NUMBER.findall(question):
            if number not in objects:
                raise DataError(
                    f"asks about region {number} of {len(objects)}", field=f"conversations[{position}].value"
                )
        yield user([text(question + (wording.SHORT_ANSWER if reader.options["short_answers"] else ""))])
        yield assistant([text(_without_brackets(answer))])


def _without_brackets(text: str) -> str:
    """Without angle brackets, as in the published training: `<region1>` becomes region1."""
    return text.replace("<", "").replace(">", "")


def _find_image(reader: SourceReader, name: str) -> str:
    folders = reader.files["media"]
    paths = [
        reader.media(name, "file_name", folder) for folder in ([folders] if isinstance(folders, str) else folders)
    ]
    found = next(filter(reader.has_file, paths), None)
    if found is None:
        raise DataError(f"{name!r} is in none of the image folders", field="file_name", missing=paths)
    return found
