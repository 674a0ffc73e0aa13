"""
RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO: a COCO file of instances, and a pickled or JSON list of sentences about them.

In gRefCOCO (GRES, Liu et al., CVPR 2023) a sentence is about any number of objects: `ann_id` is a list, and `[-1]`,
with `"no_target": true`, says that the sentence fits nothing. An empty list says the same.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from ..masks import to_rle
from ..pickles import load_plain_pickle
from ..records import DataError, require_field, require_size, require_type
from .source_reader import SourceReader, add_union, assistant, grounded, text, user
from .streams import stream_list


NO_TARGET = -1  # `ann_id` of a sentence that fits nothing


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
    entries = _read_refs(reader, refs)

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


def _read_refs(reader: SourceReader, path: Path) -> list:
    with reader.about(path):
        if path.suffix == ".json":
            return [ref for _, ref in stream_list(path)]
        return require_type(load_plain_pickle(path), list, "")


def _read_image(reader: SourceReader, image: Mapping | None, refs: list, polygons: Mapping) -> Iterator[dict]:
    if image is None:
        raise DataError(f"is not among the images of {reader.files['instances']}", field="image_id")
    instances = reader.path("instances")
    with reader.about(instances, f"image {image['id']}"):
        size = require_size(image)
        path = reader.media(require_field(image, "file_name", str), "file_name")
    objects, messages = {}, []
    for index, ref in refs:
        keys, field = _annotation_ids(ref, f"refs[{index}]"), f"refs[{index}]"
        for key in keys:
            objects[str(key)] = {"masks": [_mask(reader, key, polygons, size, field)]}
        layers = {}
        if reader.options["layers"] and len(keys) == 1:
            layers = _layers(polygons[keys[0]]["segmentation"], size)
        for position, sentence in enumerate(require_field(ref, "sentences", list, at=field)):
            raw = require_field(sentence, "raw", str, at=f"{field}.sentences[{position}]")
            phrase = raw.lower().strip().removesuffix(".").strip()
            if not phrase:
                reader.drop("empty sentences")
                continue
            messages.append(user([text(phrase)], templates="segment_image", info={"sentence": raw, **layers}))
            if keys:
                target = add_union(objects, [str(key) for key in keys])
                messages.append(assistant([grounded("", [target])], templates="segment_answer"))
            else:
                messages.append(assistant([grounded("", [])]))
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


def _annotation_ids(ref: Mapping, field: str) -> list[int]:
    """The annotations that the sentences of an entry are about, each once; none if they fit nothing."""
    given = require_field(ref, "ann_id", (int, list), at=field)
    listed = given if isinstance(given, list) else [given]
    keys = [require_type(key, int, f"{field}.ann_id[{position}]") for position, key in enumerate(listed)]
    if NO_TARGET in keys and set(keys) != {NO_TARGET}:
        count = len(keys) - keys.count(NO_TARGET)
        problem = f"names {count} annotations beside {NO_TARGET}, which says that there is none"
        raise DataError(problem, field=f"{field}.ann_id")
    found = [key for key in dict.fromkeys(keys) if key != NO_TARGET]
    stated = require_field(ref, "no_target", (bool, int), default=not found, at=field)
    if bool(stated) == bool(found):
        raise DataError(f"is {stated}, but ann_id names {len(found)} annotations", field=f"{field}.no_target")
    return found


def _mask(reader: SourceReader, key: int, annotations: Mapping, size: tuple[int, int], field: str) -> dict:
    if key not in annotations:
        raise DataError(f"{key} is not among the annotations of the image", field=f"{field}.ann_id")
    with reader.about(reader.path("instances"), f"annotation {key}"):
        segmentation = require_field(annotations[key], "segmentation", (list, dict))
        try:
            return to_rle(segmentation, size)
        except (ValueError, TypeError) as error:
            raise DataError(str(error), field="segmentation") from error


def _layers(segmentation, size: tuple[int, int]) -> dict:
    several = isinstance(segmentation, list) and len(segmentation) > 1
    return {"layers": [to_rle([polygon], size) for polygon in segmentation]} if several else {}
