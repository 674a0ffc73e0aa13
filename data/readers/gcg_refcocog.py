"""GLaMM's grounded captions of RefCOCOg."""

from collections.abc import Iterator, Mapping

from ..frames import image_size, safe_path
from ..records import DataError, expect, take
from .grounded_captions import caption_record, find_phrase, tidy
from .reading import Reading
from .streams import stream_list


UNMATCHED = "phrases that are not in their caption"


def read_gcg_refcocog(files: Mapping, root, options: Mapping | None = None) -> Iterator[dict]:
    """RefCOCOg: phrases to be found in the caption, and polygons. Files: annotations, media."""
    reading = Reading(files, root, options, "gcg_refcocog", ["annotations", "media"])

    def read_item(index: int, item: Mapping) -> Iterator[dict]:
        if len(expect(item, dict, "")) != 1:
            raise DataError(f"has {len(item)} keys where 1 image is expected")
        (key, image) = next(iter(item.items()))
        name, caption = take(image, "img_file_name", str, at=key), tidy(take(image, "caption", str, at=key)).lower()
        path = safe_path(reading.root, reading.media(name, f"{key}.img_file_name"), reading.trusted)
        found = []
        for position, ref in enumerate(take(image, "refs", list, at=key)):
            field = f"{key}.refs[{position}]"
            span = find_phrase(caption, take(ref, "sentence", str, at=field))
            if span is None:
                reading.drop(UNMATCHED)
            else:
                found.append((span, take(ref, "segmentation", list, at=field), field))
        size = image_size(path, f"{key}.img_file_name") if found else None
        yield from caption_record(reading, index, name, caption, found, size)

    path = reading.path("annotations")
    yield from reading.convert(stream_list(path), read_item, path)
