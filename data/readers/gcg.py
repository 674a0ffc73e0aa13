"""GLaMM's grounded captions of OpenPSG and GranDf."""

from collections.abc import Iterator, Mapping

from ..records import take
from .grounded_captions import caption_record, phrase_span, tidy
from .reading import Reading
from .streams import stream_list


def read_gcg(files: Mapping, root, options: Mapping | None = None) -> Iterator[dict]:
    """OpenPSG and GranDf: groundings by phrase, with character spans. Files: annotations, media."""
    reading = Reading(files, root, options, "gcg", ["annotations", "media"])

    def read_item(index: int, item: Mapping) -> Iterator[dict]:
        caption, found = take(item, "caption", str), []
        for phrase, entry in take(item, "groundings", dict).items():
            field = f"groundings.{phrase}"
            if entry is not None:  # written by a table whose columns are the phrases of all captions
                masks = take(entry, "rle_masks", list, at=field)
                positions = take(entry, "token_positives", list, at=field)
                found.append((phrase_span(positions, caption, phrase, field), masks, field))
        yield from caption_record(reading, index, take(item, "file_name", str), tidy(caption), found, None)

    path = reading.path("annotations")
    yield from reading.convert(stream_list(path), read_item, path)
