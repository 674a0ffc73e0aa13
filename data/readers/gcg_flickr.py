"""Grounded captions of Flickr30k, from GLaMM."""

from collections.abc import Iterator, Mapping

from ..records import DataError, require_field, require_size, require_type
from .grounded_captions import caption_record, checked_span
from .source_reader import SourceReader
from .streams import stream_list


MIN_WORDS, MIN_SIDE = 3, 32  # as in the published training


def read_gcg_flickr(files: Mapping, root, options: Mapping | None = None) -> Iterator[dict]:
    """One record for each image of a COCO file with captions. Files: annotations, media."""
    reader = SourceReader(files, root, options, "gcg_flickr", ["annotations", "media"])
    path, by_image = reader.path("annotations"), {}

    def keep(index: int, item: Mapping) -> None:
        by_image.setdefault(require_field(item, "image_id", int), []).append((index, item))

    reader.collect(stream_list(path, "annotations"), keep, path, "annotations")

    def read_item(index: int, image: Mapping) -> Iterator[dict]:
        caption = require_field(image, "caption", str)
        size = require_size(image)
        if len(caption.split(" ")) < MIN_WORDS or min(size) < MIN_SIDE:
            reader.drop("short captions and small images")
            return
        found = []
        for position, item in by_image.get(require_field(image, "id", int), []):
            field = f"annotations[{position}]"
            if _usable(item, size, field):
                span = checked_span(
                    require_field(item, "tokens_positive", list, at=field)[:1], caption, f"{field}.tokens_positive"
                )
                found.append((span, require_field(item, "sam_mask", dict, at=field), field))
            else:
                reader.drop("ignored and empty boxes")
        yield from caption_record(reader, index, require_field(image, "file_name", str), caption, found, size)

    yield from reader.convert(stream_list(path, "images"), read_item, path)


def _usable(item: Mapping, size: tuple[int, int], field: str) -> bool:
    box = require_field(item, "bbox", list, at=field)
    if len(box) != 4:
        raise DataError(f"has {len(box)} numbers where 4 are expected", field=f"{field}.bbox")
    numbers = (require_type(number, (int, float), f"{field}.bbox[{i}]") for i, number in enumerate(box))
    x, y, width, height = numbers
    ignored = require_field(item, "ignore", (bool, int), default=False, at=field)
    if not ignored and 0 < width < 1 and 0 < height < 1 and 0 <= x <= 1 and 0 <= y <= 1:
        raise DataError(f"is {box}, which looks normalised: pixels are expected", field=f"{field}.bbox")
    inside = min(x + width, size[1]) > max(x, 0) and min(y + height, size[0]) > max(y, 0)
    return (
        not ignored and inside and require_field(item, "area", (int, float), at=field) > 0 and min(width, height) >= 1
    )
