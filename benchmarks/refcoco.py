"""
RefCOCO, RefCOCO+ and RefCOCOg: an image, a sentence, one mask. Protocol: evaluation spec 3. gRefCOCO: a sentence about
any number of objects, or none.

One question per sentence. cIoU is the summed intersection divided by the summed union, gIoU the mean IoU over
sentences, both in percent. An answer without a mask is an empty mask; the published code leaves it out of cIoU. The
masks of an answer with several [SEG]s are united; the published code takes the first. The published code also corrupts
true masks whose polygons overlap.

A sentence that fits nothing has an empty true mask: its IoU is 1 without a predicted pixel and 0 with one. Further
rows have N-acc and T-acc (`metrics/no_target.py`). The published code asks no such sentences, so that there are no
published values beside them.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from sama.data.masks import decode_rle
from sama.data.wording import TEMPLATES
from sama.metrics.iou import PairCounts, ciou, count_pair, giou, published_polygon_truth
from sama.metrics.no_target import Presence
from sama.metrics.values import CONSISTENT, PRESETS, PUBLISHED
from sama.video_sama import SamaVideo

from . import frame_masks
from .benchmark import BenchmarkTurn, Measures, Prediction, Question, Score, Tools
from .from_catalogue import CatalogueBenchmark
from .from_records import record_turns
from .rows import percent, presence_rows


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
        truth = decode_rle(None if turn.no_target else turn.targets[0][0], size)
        consistent = count_pair(truth, next(frame_masks.united(found, 1, size)) if found else None)
        if "layers" in turn.info:
            truth = published_polygon_truth(np.stack([decode_rle(layer, size) for layer in turn.info["layers"]]))
        published = count_pair(truth, next(frame_masks.frames(found[0], 1, size)) if found else None)
        value = giou([consistent]).value
        presence = {"has_target": not turn.no_target, "predicted": frame_masks.any_pixel(found, size)}
        facts = {CONSISTENT: list(consistent), PUBLISHED: list(published), "presence": presence}
        ious = [] if turn.no_target else [value]
        return Measures(question.id, question.group, value, ious, 1, len(ious), facts)

    def summarise(self, samples: Sequence[Measures], tools: Tools) -> list[Score]:
        counts = {preset: [PairCounts(*sample.facts[preset]) for sample in samples] for preset in PRESETS}
        presences = [Presence(**sample.facts["presence"]) for sample in samples]
        has_published, rows = all(one.has_target for one in presences), []
        for name, function in (("cIoU", ciou), ("gIoU", giou)):
            value, published = (function(counts[preset], preset) for preset in PRESETS)
            shown = percent(published) if has_published else None
            rows.append(Score(name, percent(value), len(samples), published=shown, reason=value.reason))
        return [*rows, *presence_rows(presences)]


class RefCOCOPlus(RefCOCO):
    """RefCOCO+: sentences without location words."""

    name: ClassVar[str] = "refcoco+"


class RefCOCOg(RefCOCO):
    """RefCOCOg (UMD split): longer sentences."""

    name: ClassVar[str] = "refcocog"
    splits: ClassVar[tuple[str, ...]] = ("val", "test")


class GRefCOCO(RefCOCO):
    """gRefCOCO (GRES, Liu et al., CVPR 2023): sentences about several objects, one, or none."""

    name: ClassVar[str] = "grefcoco"


def _asked(turn: BenchmarkTurn, phrase: str) -> BenchmarkTurn:
    text = TEMPLATES["segment_image_bench"][0].format(phrase)
    return BenchmarkTurn(text, (), turn.reference, turn.targets, turn.info, turn.no_target)


REFCOCO = {kind.name: kind for kind in (RefCOCO, RefCOCOPlus, RefCOCOg, GRefCOCO)}
