"""GLaMM's benchmark of grounded captions: a COCO file of masks, and a file of captions with labels of the masks."""

from collections.abc import Iterator, Mapping

from ..masks import to_rle
from ..records import DataError, require_field, require_size, require_type
from .source_reader import SourceReader, assistant, text, user
from .streams import stream_list


def read_gcg_bench(files: Mapping, root, options: Mapping | None = None) -> Iterator[dict]:
    """
    One record for each image of the caption file. Files: mask_annotations, captions, media. `info` of the question has
    `image_id`, `caption` and `labels`, of which the n-th belongs to object "n".
    """
    needs = ["mask_annotations", "captions", "media"]
    reader = SourceReader(files, root, options, "gcg_bench", needs)
    masks, captions = reader.path("mask_annotations"), reader.path("captions")
    images, shapes = {}, {}

    def keep_image(index: int, image: Mapping) -> None:
        images[str(require_field(image, "id", (int, str)))] = image

    def keep_shape(index: int, item: Mapping) -> None:
        key = str(require_field(item, "image_id", (int, str)))
        shapes.setdefault(key, []).append((f"annotations[{index}]", item))

    reader.collect(stream_list(masks, "images"), keep_image, masks, "images")
    reader.collect(stream_list(masks, "annotations"), keep_shape, masks, "annotations")

    def read_item(index: int, item: Mapping) -> Iterator[dict]:
        key = str(require_field(item, "image_id", (int, str)))
        if key not in images:
            raise DataError(f"{key!r} is not among the images of {reader.files['mask_annotations']}", field="image_id")
        name = require_field(images[key], "file_name", str, default=f"{key}.jpg")
        labels = [
            require_type(one, str, f"labels[{i}]").strip() for i, one in enumerate(require_field(item, "labels", list))
        ]
        found = shapes.get(key, [])
        if len(labels) != len(found):
            raise DataError(f"has {len(labels)} entries for {len(found)} masks of the image", field="labels")
        with reader.about(masks):
            objects = {str(i): {"masks": [_mask(shape, images[key], at)]} for i, (at, shape) in enumerate(found)}
        caption = require_field(item, "caption", str).strip()
        info = {"image_id": key, "caption": caption, "labels": labels}
        yield {
            "id": f"{reader.source}/{key}",
            "source": reader.source,
            "image": {"path": reader.media(name, "file_name")},
            "objects": objects,
            "messages": [user([], templates="caption_image_bench", info=info), assistant([text(caption)])],
            "layout": "gcg",
        }

    yield from reader.convert(stream_list(captions, "annotations"), read_item, captions)


def _mask(item: Mapping, image: Mapping, at: str) -> dict | None:
    size = require_size(image, at="image") if {"height", "width"} & set(image) else None
    try:
        return to_rle(require_field(item, "segmentation", (list, dict), at=at), size)
    except (ValueError, TypeError) as error:
        raise DataError(str(error), field=f"{at}.segmentation") from error
