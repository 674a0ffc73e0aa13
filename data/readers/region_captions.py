"""RefCOCOg as region captioning: a COCO file whose annotations, or whose images, carry the caption."""

from collections.abc import Iterator, Mapping

from .. import wording
from ..masks import to_rle
from ..records import DataError, take
from .reading import Reading, assistant, region, text, user
from .streams import stream_list


def read_region_captions(files: Mapping, root, options: Mapping | None = None) -> Iterator[dict]:
    """One record an annotation, its mask as the region. Files: annotations, media."""
    reading = Reading(files, root, options, "region_captions", ["annotations", "media"])
    path, images = reading.path("annotations"), {}
    with reading.about(path):
        for index, image in stream_list(path, "images"):
            images[take(image, "id", (int, str), at=f"images[{index}]")] = image

    def read_item(index: int, item: Mapping) -> Iterator[dict]:
        key, number = take(item, "image_id", (int, str)), take(item, "id", (int, str))
        if key not in images:
            raise DataError(f"{key!r} is not among the images of the file", field="image_id")
        image = images[key]
        size = take(image, "height", int, at="image"), take(image, "width", int, at="image")
        caption = take(item, "caption", str, default=None) or take(image, "caption", str, at="image")
        try:
            code = to_rle(take(item, "segmentation", (list, dict)), size)
        except (ValueError, TypeError) as error:
            raise DataError(str(error), field="segmentation") from error
        starts = wording.region_list(1)
        yield {
            "id": f"{reading.source}/{number}",
            "source": reading.source,
            "image": {"path": reading.media(take(image, "file_name", str, at="image"), "image.file_name")},
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

    yield from reading.convert(stream_list(path, "annotations"), read_item, path)
