"""
GLaMM's grounded captions of images (GranD-f): captions whose phrases have masks. Protocol: evaluation spec 5.1.

AP50 is COCO's, with all masks in one class and with equal confidence. mIoU and recall are those of SAMA-Bench-G, but
over the whole split, as are METEOR and CIDEr. All values are percentages. The published code joins the lines of a
caption without a space, and gives two empty masks an IoU of NaN.
"""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from sama.data.masks import encode_rle
from sama.data.wording import RELEASE_CAPTION_QUESTION
from sama.metrics.answers import caption, image_caption
from sama.metrics.detection import average_precision
from sama.metrics.recall import GLAMM
from sama.metrics.values import Value
from sama.video_sama import SamaVideo

from .benchmark import BenchmarkTurn, Measures, Prediction, Question, Score, Tools
from .from_catalogue import CatalogueBenchmark
from .from_records import masks_on_video, record_turns
from .grounded import miou_values, object_ious, overlap_facts, recall_values, turn_value
from .region_captions import corpus_rows
from .rows import mean_row, percent


class GroundedCaptions(CatalogueBenchmark):
    """Grounded captions of images."""

    name: ClassVar[str] = "grounded_captions"
    version: ClassVar[int] = 1
    splits: ClassVar[tuple[str, ...]] = ("val", "test")
    max_new_tokens: ClassVar[int] = 2048
    headline: ClassVar[str] = "mIoU"

    def question_ids(self, records: list[dict]) -> list[str]:
        return [self.local_name(record) for record in records]

    def group_questions(self, records: list[dict], video: SamaVideo) -> list[Question]:
        (record,) = records
        (turn,) = record_turns(record, video, self.source.lookup)
        text = RELEASE_CAPTION_QUESTION if self.preset == "published" else turn.text
        size = (video.height, video.width)
        tracks = (masks_on_video(record, name, video, self.source.lookup) for name in record["objects"])
        truth = [[_empty_if_none(track[0], size)] for track in tracks]
        asked = BenchmarkTurn(text, (), turn.reference, truth, turn.info)
        name = self.local_name(record)
        return [Question(name, name, [asked], layout=self.layout)]

    def measure(self, question: Question, prediction: Prediction) -> Measures:
        turn, answer = question.turns[0], prediction.turns[0]
        facts = overlap_facts(question, prediction, turn.targets, 0, empty_is_nan=True)
        text, found = image_caption(answer.text)
        size = (prediction.height, prediction.width)
        facts |= {
            "wanted": [label.lower() for label in turn.info["labels"]],
            "published_wanted": turn.info["labels"],
            "published_found": found,
            "reference": turn.info["caption"],
            "consistent": caption(answer.text),
            "published": text,
            "truths": [track[0] for track in turn.targets],
            "guesses": [_empty_if_none(item.masks[0] if item.masks else None, size) for item in answer.objects],
        }
        ious = object_ious(facts)
        return Measures(question.id, question.group, turn_value(facts), ious, 1, len(ious), facts)

    def summarise(self, samples: Sequence[Measures], tools: Tools) -> list[Score]:
        facts = [sample.facts for sample in samples]
        sides = ({sample.question: sample.facts[side] for sample in samples} for side in ("truths", "guesses"))
        precision = average_precision(*sides)
        both = {
            "AP50": (precision["AP50"], Value(None)),
            "mIoU": miou_values(facts),
            "Recall": recall_values(facts, tools.similarity, GLAMM),
            "AP": (precision["AP"], Value(None)),
        }
        rows = {name: _row(name, values, len(facts)) for name, values in both.items()}
        captions = corpus_rows(facts, ("METEOR", "CIDEr"))
        return [*(rows[name] for name in ("AP50", "mIoU", "Recall")), *captions, rows["AP"]]


def _empty_if_none(code: dict | None, size: tuple[int, int]) -> dict:
    """The RLE itself, or that of an empty mask for `None`."""
    return encode_rle(np.zeros(size, dtype=bool)) if code is None else code


def _row(name: str, values: tuple[Value, Value], count: int) -> Score:
    value, published = values
    row = mean_row(name, [percent(value)], "images", published=[percent(published)], reason=value.reason)
    row.count = count
    return row
