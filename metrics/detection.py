"""
COCO average precision of masks: the AP and AP50 of image GCG (evaluation spec 5.1).

All objects belong to one class and, unless scores are given, have the same confidence, as in the published evaluation.
"""

import contextlib
import io
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, cast

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from .values import Value


AP_NAMES = (
    "AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large",
    "AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large",
)  # fmt: skip
ONE_CLASS = 1
Masks = Mapping[Hashable, Sequence]


def average_precision(
    truths: Masks, predictions: Masks, scores: Mapping[Hashable, Sequence[float]] | None = None
) -> dict[str, Value]:
    """
    The twelve numbers of COCO's segmentation evaluation; `AP50` is the average precision at IoU 0.5.

    Args:
        truths (mapping): Image -> its true masks, each a compressed COCO RLE or an array of shape `(height, width)`.
            All images of the evaluation are keys.
        predictions (mapping): Image -> its predicted masks. Images may be missing.
        scores (mapping, *optional*): Image -> confidence of each predicted mask; 1 by default.

    Returns:
        `dict`: Name from `AP_NAMES` -> [`Value`] in [0, 1], without a value if no true mask has that size.

    Raises:
        `ValueError`: A predicted image is not among the true ones, the masks of an image differ in size, or the
            numbers of scores and masks differ.
    """
    unknown = sorted(str(name) for name in set(predictions) - set(truths))
    if unknown:
        raise ValueError(f"{len(unknown)} predicted images are not among the true ones, such as {unknown[0]!r}.")
    if not any(len(masks) for masks in truths.values()):
        return dict.fromkeys(AP_NAMES, Value(None, "there are no true masks"))
    found = {}
    for side, masks in (("true", truths), ("predicted", predictions)):
        found[side] = {name: [_coco_rle(mask) for mask in masks.get(name, ())] for name in truths}
    numbers = {name: number for number, name in enumerate(truths, 1)}
    images = [{"id": numbers[name], **_size(name, found["true"][name] + found["predicted"][name])} for name in truths]
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        true, predicted = (
            _dataset(images, [_annotation(numbers[name], code) for name in truths for code in codes[name]])
            for codes in found.values()
        )
        _set_scores(predicted, [number for name in truths for number in (scores or {}).get(name, ())])
        evaluation = COCOeval(true, predicted, "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    missing = Value(None, "there are no true masks of that size")
    return {
        name: Value(float(value)) if value >= 0 else missing
        for name, value in zip(AP_NAMES, evaluation.stats, strict=True)
    }


def _coco_rle(mask) -> Any:
    """A mask as compressed COCO RLE with `counts` as bytes, the form that pycocotools works on."""
    if isinstance(mask, Mapping):
        counts = mask["counts"]
        return {"size": list(mask["size"]), "counts": counts.encode("ascii") if isinstance(counts, str) else counts}
    return coco_mask.encode(np.asfortranarray(np.asarray(mask) != 0, dtype=np.uint8))


def _size(name: Hashable, codes: list[dict]) -> dict[str, int]:
    sizes = {tuple(code["size"]) for code in codes} or {(0, 0)}
    if len(sizes) > 1:
        raise ValueError(f"The masks of image {name!r} have different sizes (height, width): {sorted(sizes)}.")
    height, width = sizes.pop()
    return {"height": int(height), "width": int(width)}


def _annotation(image: int, code: Any) -> dict:
    area, box = float(coco_mask.area(code)), coco_mask.toBbox(code).tolist()
    return {
        "image_id": image, "category_id": ONE_CLASS, "segmentation": code, "area": area, "bbox": box, "iscrowd": 0,
    }  # fmt: skip


def _set_scores(predicted: COCO, scores: list[float]) -> None:
    annotations: list[Any] = predicted.dataset["annotations"]
    if scores and len(scores) != len(annotations):
        raise ValueError(f"{len(scores)} scores were given for {len(annotations)} predicted masks.")
    for annotation, score in zip(annotations, scores or [1.0] * len(annotations), strict=True):
        annotation["score"] = float(score)


def _dataset(images: list[dict], annotations: list[dict]) -> COCO:
    dataset = COCO()
    dataset.dataset = cast(
        Any,
        {
            "info": {},  # pycocotools 2.0.9 and 2.0.10 fail without this key
            "images": images,
            "categories": [{"id": ONE_CLASS, "name": "object"}],
            "annotations": [{**one, "id": number} for number, one in enumerate(annotations, 1)],
        },
    )
    dataset.createIndex()
    return dataset
