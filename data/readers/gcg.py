"""Grounded captions of OpenPSG and GranDf, from GLaMM."""

from collections.abc import Iterator, Mapping

from ..records import require_field
from .grounded_captions import caption_record, phrase_span, strip_quotes
from .source_reader import SourceReader
from .streams import stream_list


def read_gcg(files: Mapping, root, options: Mapping | None = None) -> Iterator[dict]:
    """One record for each image. Captions have groundings by phrase, with spans. Files: annotations, media."""
    reader = SourceReader(files, root, options, "gcg", ["annotations", "media"])

    def read_item(index: int, item: Mapping) -> Iterator[dict]:
        caption, found = require_field(item, "caption", str), []
        for phrase, entry in require_field(item, "groundings", dict).items():
            field = f"groundings.{phrase}"
            if entry is not None:  # null for the phrases of other captions
                masks = require_field(entry, "rle_masks", list, at=field)
                positions = require_field(entry, "token_positives", list, at=field)
                found.append((phrase_span(positions, caption, phrase, field), masks, field))
        yield from caption_record(
            reader, index, require_field(item, "file_name", str), strip_quotes(caption), found, None
        )

    path = reader.path("annotations")
    yield from reader.convert(stream_list(path), read_item, path)
