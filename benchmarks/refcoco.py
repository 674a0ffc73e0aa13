"""
RefCOCO, RefCOCO+ and RefCOCOg: a still, a phrase, one mask. Protocol: evaluation spec 3.

One question a sentence. cIoU is all pixels in common over all pixels in either mask, gIoU the mean over sentences,
both in percent. An answer without a mask counts as an empty one; the release leaves it out of cIoU. If an answer holds
several [SEG]s, their union counts; the release takes the first. The release also tears true masks whose polygons
overlap.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from sama.data.masks import decode_rle
from sama.data.wording import TEMPLATES
from sama.metrics.iou import PairCounts, ciou, count_pair, giou, release_polygon_truth
from sama.metrics.values import FIXED, RELEASE
from sama.video_sama import SamaVideo

from . import frame_masks
from .benchmark import Measures, Prediction, Question, Score, Tools, Turn
from .from_catalogue import CatalogueBenchmark
from .from_records import record_turns


class RefCOCO(CatalogueBenchmark):
    """RefCOCO; RefCOCO+ has the same splits."""

    name: ClassVar[str] = "refcoco"
    version: ClassVar[int] = 1
    splits: ClassVar[tuple[str, ...]] = ("val", "testA", "testB")
    max_new_tokens: ClassVar[int] = 2048

    def reader_options(self, options: Mapping) -> dict:
        return {**options, "layers": True}

    def question_ids(self, records: list[dict]) -> list[str]:
        (record,) = records
        count = sum(message["role"] == "user" for message in record["messages"])
        return [f"{self.local_name(record)}/{number}" for number in range(count)]

    def group_questions(self, records: list[dict], video: SamaVideo) -> list[Question]:
        (record,) = records
        turns = record_turns(record, video, self.source.lookup)
        asked = [message["content"] for message in record["messages"] if message["role"] == "user"]
        return [
            Question(name, self.local_name(record), [_asked(turn, content[0]["text"])], layout=self.layout)
            for name, turn, content in zip(self.question_ids(records), turns, asked, strict=True)
        ]

    def measure(self, question: Question, prediction: Prediction) -> Measures:
        turn, objects = question.turns[0], prediction.turns[0].objects
        frame_masks.check_shape(question, prediction, turn.targets)
        size, found = (prediction.height, prediction.width), [item.masks for item in objects]
        truth = decode_rle(turn.targets[0][0], size)
        fixed = count_pair(truth, next(frame_masks.united(found, 1, size)) if found else None)
        if "layers" in turn.info:
            truth = release_polygon_truth(np.stack([decode_rle(layer, size) for layer in turn.info["layers"]]))
        release = count_pair(truth, next(frame_masks.frames(found[0], 1, size)) if found else None)
        value = giou([fixed]).value
        facts = {FIXED: list(fixed), RELEASE: list(release)}
        return Measures(question.id, question.group, value, [value], 1, 1, facts)

    def summarise(self, samples: Sequence[Measures], tools: Tools) -> list[Score]:
        counts = {mode: [PairCounts(*sample.facts[mode]) for sample in samples] for mode in (FIXED, RELEASE)}
        rows = []
        for name, function in (("cIoU", ciou), ("gIoU", giou)):
            fixed, release = (function(counts[mode], mode) for mode in (FIXED, RELEASE))
            rows.append(
                Score(
                    name,
                    None if fixed.value is None else 100 * fixed.value,
                    len(samples),
                    published=None if release.value is None else 100 * release.value,
                    reason=fixed.reason or "",
                )
            )
        return rows


class RefCOCOPlus(RefCOCO):
    """RefCOCO+: without words for places."""

    name: ClassVar[str] = "refcoco+"


class RefCOCOg(RefCOCO):
    """RefCOCOg, the split of UMD: whole sentences."""

    name: ClassVar[str] = "refcocog"
    splits: ClassVar[tuple[str, ...]] = ("val", "test")


def _asked(turn: Turn, phrase: str) -> Turn:
    text = TEMPLATES["segment_image_bench"][0].format(phrase)
    return Turn(text, (), turn.reference, turn.targets, turn.info)


REFCOCO = {kind.name: kind for kind in (RefCOCO, RefCOCOPlus, RefCOCOg)}
