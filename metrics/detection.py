"""
COCO's average precision of masks: the AP and AP50 of image GCG (evaluation spec 5.1).

All objects are of one class and, unless scores are given, equally certain, as in the release.
"""

import contextlib
import io
from collections.abc import Hashable, Mapping, Sequence

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
    The twelve numbers of COCO's segmentation evaluation; `AP50` is the one at IoU 0.5.

    Args:
        truths (mapping): Image -> its true masks, each a compressed run-length code or an array of shape
            `(height, width)`. The images of the evaluation are those that are named here.
        predictions (mapping): Image -> its predicted masks. An image may be absent.
        scores (mapping, *optional*): Image -> a number for each predicted mask; 1 by default.

    Returns:
        `dict`: A name of `AP_NAMES` -> [`Value`] in [0, 1], without a value where no true mask is of that size.

    Raises:
        `ValueError`: A prediction is of an image that has no truth.
    """
    unknown = sorted(str(name) for name in set(predictions) - set(truths))
    if unknown:
        raise ValueError(f"{len(unknown)} predicted images are not among the true ones, such as {unknown[0]!r}.")
    if not any(len(masks) for masks in truths.values()):
        return dict.fromkeys(AP_NAMES, Value(None, "there are no true masks"))
    numbers = {name: number for number, name in enumerate(truths, 1)}
    found = [
        {**one, "score": 1.0 if scores is None else float(scores[name][position])}
        for name, masks in predictions.items()
        for position, one in enumerate(_annotations(numbers[name], masks))
    ]
    with contextlib.redirect_stdout(io.StringIO()):  # the library reports its progress
        true = _dataset([one for name, masks in truths.items() for one in _annotations(numbers[name], masks)], numbers)
        evaluation = COCOeval(true, _dataset(found, numbers), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    missing = Value(None, "there are no true masks of that size")
    return {
        name: Value(float(value)) if value >= 0 else missing
        for name, value in zip(AP_NAMES, evaluation.stats, strict=True)
    }


def _annotations(image: int, masks: Sequence) -> list[dict]:
    codes = [_run_lengths(mask) for mask in masks]
    return [
        {"image_id": image, "category_id": ONE_CLASS, "segmentation": code, "area": float(coco_mask.area(code)),
         "bbox": coco_mask.toBbox(code).tolist(), "iscrowd": 0}
        for code in codes
    ]  # fmt: skip


def _run_lengths(mask) -> dict:
    if isinstance(mask, Mapping):
        counts = mask["counts"]
        return {"size": list(mask["size"]), "counts": counts.encode("ascii") if isinstance(counts, str) else counts}
    return coco_mask.encode(np.asfortranarray(np.asarray(mask) != 0, dtype=np.uint8))


def _dataset(annotations: list[dict], images: Mapping) -> COCO:
    dataset = COCO()
    # "info": two releases of pycocotools read it without asking
    dataset.dataset = {
        "info": {},
        "images": [{"id": number} for number in images.values()],
        "categories": [{"id": ONE_CLASS, "name": "object"}],
        "annotations": [{**one, "id": number} for number, one in enumerate(annotations, 1)],
    }
    dataset.createIndex()
    return dataset
