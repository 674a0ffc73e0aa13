"""Grounded captions of RefCOCOg, from GLaMM."""

from collections.abc import Iterator, Mapping

from ..frames import image_size, safe_path
from ..records import DataError, require_field, require_type
from .grounded_captions import caption_record, find_phrase, strip_quotes
from .source_reader import SourceReader
from .streams import stream_list


UNMATCHED = "phrases that are not in their caption"


def read_gcg_refcocog(files: Mapping, root, options: Mapping | None = None) -> Iterator[dict]:
    """One record for each image. Phrases are searched in captions; masks are polygons. Files: annotations, media."""
    reader = SourceReader(files, root, options, "gcg_refcocog", ["annotations", "media"])

    def read_item(index: int, item: Mapping) -> Iterator[dict]:
        if len(require_type(item, dict, "")) != 1:
            raise DataError(f"has {len(item)} keys where 1 image is expected")
        (key, image) = next(iter(item.items()))
        name, caption = (
            require_field(image, "img_file_name", str, at=key),
            strip_quotes(require_field(image, "caption", str, at=key)).lower(),
        )
        path = safe_path(reader.root, reader.media(name, f"{key}.img_file_name"), reader.trusted)
        found = []
        for position, ref in enumerate(require_field(image, "refs", list, at=key)):
            field = f"{key}.refs[{position}]"
            span = find_phrase(caption, require_field(ref, "sentence", str, at=field))
            if span is None:
                reader.drop(UNMATCHED)
            else:
                found.append((span, require_field(ref, "segmentation", list, at=field), field))
        size = image_size(path, f"{key}.img_file_name") if found else None
        yield from caption_record(reader, index, name, caption, found, size)

    path = reader.path("annotations")
    yield from reader.convert(stream_list(path), read_item, path)
