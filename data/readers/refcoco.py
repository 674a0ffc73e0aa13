"""RefCOCO, RefCOCO+ and RefCOCOg: a COCO file of instances, and a pickled list of sentences about them."""

from collections.abc import Iterator, Mapping

from ..masks import to_rle
from ..pickles import load_plain_pickle
from ..records import DataError, require_field, require_size, require_type
from .source_reader import SourceReader, assistant, grounded, text, user
from .streams import stream_list


def read_refcoco(files: Mapping, root, options: Mapping | None = None) -> Iterator[dict]:
    """
    One record for each image, with all sentences about all its objects as turns. Files: instances, refs, media (folder
    of images). Option `split`: "train", "val", "testA", "testB", or "test" for the last two. With the option `layers`,
    `info` of a question about an object of several polygons has the mask of each of them, for a benchmark that
    combines them as the published evaluation does.

    The published training draws one sentence for each object at start-up, and five objects with replacement for each
    sample.
    """
    reader = SourceReader(files, root, options, "refcoco", ["instances", "refs", "media"], split="train", layers=False)
    by_image: dict[int, list] = {}
    refs, instances = reader.path("refs"), reader.path("instances")
    with reader.about(refs):
        entries = require_type(load_plain_pickle(refs), list, "")

    def keep_ref(index: int, ref: Mapping) -> None:
        if reader.options["split"] in require_field(ref, "split", str):
            by_image.setdefault(require_field(ref, "image_id", int), []).append((index, ref))

    reader.collect(enumerate(entries), keep_ref, refs)
    polygons, images = {}, {}
    for key, wanted, found in (("annotations", "image_id", polygons), ("images", "id", images)):

        def keep(index: int, item: Mapping, wanted: str = wanted, found: dict = found) -> None:
            if require_field(item, wanted, int) in by_image:
                found[require_field(item, "id", int)] = item

        reader.collect(stream_list(instances, key), keep, instances, key)
    yield from reader.convert(
        by_image.items(), lambda image_id, group: _read_image(reader, images.get(image_id), group, polygons), refs
    )


def _read_image(reader: SourceReader, image: Mapping | None, refs: list, polygons: Mapping) -> Iterator[dict]:
    if image is None:
        raise DataError(f"is not among the images of {reader.files['instances']}", field="image_id")
    instances = reader.path("instances")
    with reader.about(instances, f"image {image['id']}"):
        size = require_size(image)
        path = reader.media(require_field(image, "file_name", str), "file_name")
    objects, messages = {}, []
    for index, ref in refs:
        ann_id, field = require_field(ref, "ann_id", int), f"refs[{index}]"
        if ann_id not in polygons:
            raise DataError(f"{ann_id} is not among the annotations of the image", field=f"{field}.ann_id")
        with reader.about(instances, f"annotation {ann_id}"):
            segmentation = require_field(polygons[ann_id], "segmentation", (list, dict))
            try:
                objects[str(ann_id)] = {"masks": [to_rle(segmentation, size)]}
            except (ValueError, TypeError) as error:
                raise DataError(str(error), field="segmentation") from error
        for position, sentence in enumerate(require_field(ref, "sentences", list, at=field)):
            raw = require_field(sentence, "raw", str, at=f"{field}.sentences[{position}]")
            phrase = raw.lower().strip().removesuffix(".").strip()
            if not phrase:
                reader.drop("empty sentences")
                continue
            layers = _layers(segmentation, size) if reader.options["layers"] else {}
            messages.append(user([text(phrase)], templates="segment_image", info={"sentence": raw, **layers}))
            messages.append(assistant([grounded("", [str(ann_id)])], templates="segment_answer"))
    if not messages:
        reader.drop("images without a sentence")
        return
    yield {
        "id": f"{reader.source}/{image['id']}",
        "source": reader.source,
        "image": {"path": path},
        "objects": objects,
        "messages": messages,
        "sampling": {"turns": 5, "replace": True, "unit": "object"},
        "layout": "refcoco",
    }


def _layers(segmentation, size: tuple[int, int]) -> dict:
    several = isinstance(segmentation, list) and len(segmentation) > 1
    return {"layers": [to_rle([polygon], size) for polygon in segmentation]} if several else {}
