"""RefCOCOg as region captioning: a COCO file with captions at its annotations or its images."""

from collections.abc import Iterator, Mapping

from .. import wording
from ..masks import to_rle
from ..records import DataError, require_field, require_size
from .source_reader import SourceReader, assistant, region, text, user
from .streams import stream_list


def read_region_captions(files: Mapping, root, options: Mapping | None = None) -> Iterator[dict]:
    """One record for each annotation, whose mask is the region. Files: annotations, media."""
    reader = SourceReader(files, root, options, "region_captions", ["annotations", "media"])
    path, images = reader.path("annotations"), {}

    def keep(index: int, image: Mapping) -> None:
        images[require_field(image, "id", (int, str))] = image

    reader.collect(stream_list(path, "images"), keep, path, "images")

    def read_item(index: int, item: Mapping) -> Iterator[dict]:
        key, number = require_field(item, "image_id", (int, str)), require_field(item, "id", (int, str))
        if key not in images:
            raise DataError(f"{key!r} is not among the images of the file", field="image_id")
        image = images[key]
        size = require_size(image, at="image")
        caption = require_field(item, "caption", str, default=None) or require_field(image, "caption", str, at="image")
        try:
            code = to_rle(require_field(item, "segmentation", (list, dict)), size)
        except (ValueError, TypeError) as error:
            raise DataError(str(error), field="segmentation") from error
        starts = wording.region_list(1)
        yield {
            "id": f"{reader.source}/{number}",
            "source": reader.source,
            "image": {"path": reader.media(require_field(image, "file_name", str, at="image"), "image.file_name")},
            "objects": {"1": {"masks": [code]}},
            "messages": [
                user(
                    [text(wording.region_word(1))],
                    templates="caption_region_bench",
                    preamble=[text(starts[0]), region("1"), text(starts[1])],
                    info={"image_id": str(key), "caption": caption.strip()},
                ),
                assistant([text(caption.strip())]),
            ],
            "layout": "osprey",
            "region_shape": "mask",
        }

    yield from reader.convert(stream_list(path, "annotations"), read_item, path)
