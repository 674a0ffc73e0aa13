"""GLaMM's benchmark of grounded captions: one COCO file of masks and one of captions with a label for each mask."""

from collections.abc import Iterator, Mapping

from ..masks import to_rle
from ..records import DataError, expect, take
from .reading import Reading, assistant, text, user
from .streams import stream_list


def read_gcg_bench(files: Mapping, root, options: Mapping | None = None) -> Iterator[dict]:
    """
    One record an image of the caption file. Files: mask_annotations, captions, media. `info` of the question holds
    `caption` and `labels`, of which the n-th belongs to object "n".
    """
    needs = ["mask_annotations", "captions", "media"]
    reading = Reading(files, root, options, "gcg_bench", needs)
    masks, captions = reading.path("mask_annotations"), reading.path("captions")
    images, shapes = {}, {}
    with reading.about(masks):
        for index, image in stream_list(masks, "images"):
            images[str(take(image, "id", (int, str), at=f"images[{index}]"))] = image
        for index, item in stream_list(masks, "annotations"):
            key = str(take(item, "image_id", (int, str), at=f"annotations[{index}]"))
            shapes.setdefault(key, []).append((f"annotations[{index}]", item))

    def read_item(index: int, item: Mapping) -> Iterator[dict]:
        key = str(take(item, "image_id", (int, str)))
        if key not in images:
            raise DataError(
                f"{key!r} is not among the images of {reading.files['mask_annotations']}", field="image_id"
            )
        name = take(images[key], "file_name", str, default=f"{key}.jpg")
        labels = [expect(one, str, f"labels[{i}]").strip() for i, one in enumerate(take(item, "labels", list))]
        found = shapes.get(key, [])
        if len(labels) != len(found):
            raise DataError(f"has {len(labels)} entries for {len(found)} masks of the image", field="labels")
        with reading.about(masks):
            objects = {str(i): {"masks": [_mask(shape, images[key], at)]} for i, (at, shape) in enumerate(found)}
        caption = take(item, "caption", str).strip()
        info = {"image_id": key, "caption": caption, "labels": labels}
        yield {
            "id": f"{reading.source}/{key}",
            "source": reading.source,
            "image": {"path": reading.media(name, "file_name")},
            "objects": objects,
            "messages": [user([], templates="caption_image_bench", info=info), assistant([text(caption)])],
            "layout": "gcg",
        }

    yield from reading.convert(stream_list(captions, "annotations"), read_item, captions)


def _mask(item: Mapping, image: Mapping, at: str) -> dict | None:
    size = (image["height"], image["width"]) if {"height", "width"} <= set(image) else None
    try:
        return to_rle(take(item, "segmentation", (list, dict), at=at), size)
    except (ValueError, TypeError) as error:
        raise DataError(str(error), field=f"{at}.segmentation") from error
