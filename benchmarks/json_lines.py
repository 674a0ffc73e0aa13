"""
Your own questions: records with reference answers as JSON Lines (data_configs/README.md).

A conversation is one sample. Its turns are asked in order; by default the history holds the model's own answers. Masks
are scored by mIoU, recall and J&F, texts by the caption metrics over all answers. All values are percentages.

A question that nothing fits (an answer with `"objects": []`) is compared with empty masks: its mIoU is 1 without a
predicted pixel and 0 with one. Where there are such questions, two rows have N-acc and T-acc (`metrics/no_target.py`).
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from sama.data.frames import open_visual, trusted_folders, visual_key
from sama.data.readers import READERS
from sama.data.records import DataError, describe_error
from sama.metrics.captions import caption_scores
from sama.metrics.iou import greedy_pairs, matched_ious, miou
from sama.metrics.no_target import Presence
from sama.metrics.recall import IOU_THRESHOLD
from sama.metrics.values import mean
from sama.prompts_sama import parse_tagged_text
from sama.video_sama import SamaVideo

from .benchmark import (
    HISTORIES,
    Benchmark,
    BenchmarkError,
    BenchmarkTurn,
    Measures,
    PredictedTurn,
    Prediction,
    Question,
    Score,
    Tools,
)
from .frame_masks import any_pixel, frames, no_target_jf, track_jf, united
from .from_records import no_store, record_turns, system_texts
from .rows import mean_row, percent, presence_rows
from .tracks import track_overlaps


CAPTIONS = {"METEOR": "METEOR", "CIDEr": "CIDEr", "BLEU-4": "Bleu_4", "ROUGE-L": "ROUGE_L"}


class JsonLinesBenchmark(Benchmark):
    """The records of one file. Their paths are relative to the folder `media`."""

    name = "json_lines"
    # 1: without system messages; answers without a reference counted 0 in mIoU. 2: masks that matched nothing were
    # silence in J and F
    version = 3
    splits = ("all",)
    options = {"records": "records.jsonl", "media": ".", "history": "own"}

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        history = self.chosen["history"]
        if history not in HISTORIES:
            raise BenchmarkError(f"history is {history!r}, expected one of {', '.join(HISTORIES)}.")
        self.need(self.chosen["records"], self.chosen["media"])

    def annotation_files(self) -> list[Path]:
        return [self.data_root / self.chosen["records"]]

    @cached_property
    def records(self) -> dict[str, dict]:
        """Id -> valid record. Records without a question are left out. With reference answers in the history, every
        question but the last of a record needs one."""
        files = {name: self.chosen[name] for name in ("records", "media")}
        found = {}
        for record in READERS["json_lines"](files, self.data_root, {"source": self.name}):
            if record["id"] in found:
                raise BenchmarkError(f"Two records have the id {record['id']!r}; ids must be unique.")
            answered = list(_answered(record["messages"]))
            if self.chosen["history"] == "reference" and not all(answered[:-1]):
                raise BenchmarkError(
                    f"Question {answered.index(False) + 1} of {len(answered)} of the record {record['id']!r} has no "
                    "reference answer, which history=reference puts before the next question."
                )
            if answered:
                found[record["id"]] = record
        return found

    def outline(self) -> dict[str, list[str]]:
        """One group per video or image; a text-only record is a group of its own."""
        return self._outline

    @cached_property
    def _outline(self) -> dict[str, list[str]]:
        groups = defaultdict(list)
        for name, record in self.records.items():
            groups[self._group(record)].append(name)
        return dict(groups)

    def _group(self, record: dict) -> str:
        visual = record.get("video") or record.get("image")
        if visual is None:
            return record["id"]
        # Records about the same file are in different groups if they show different frames of it
        return f"{visual['path']} {hashlib.sha256(str(visual_key(record)).encode()).hexdigest()[:16]}"

    def open(self, group: str) -> SamaVideo | None:
        """The video of the group's records."""
        files = {name: self.chosen[name] for name in ("records", "media")}
        trusted = trusted_folders(self.data_root, files)
        return open_visual(self.records[self.outline()[group][0]], self.data_root, trusted)

    def questions(self, group: str) -> list[Question]:
        """One question per record. One whose masks do not fit the video cannot be asked; the others can."""
        video = self.open(group)
        return [self._question(name, group, video) for name in self.outline()[group]]

    def _question(self, name: str, group: str, video: SamaVideo | None) -> Question:
        record = self.records[name]
        try:
            turns = record_turns(record, video, no_store)
        except DataError as error:
            return Question(name, group, error=describe_error(error))
        return Question(name, group, turns, self.chosen["history"], video is not None, system=system_texts(record))

    def measure(self, question: Question, prediction: Prediction) -> Measures:
        """IoU, J and F of each true object, and the texts of answers with a reference."""
        pairs = list(zip(question.turns, prediction.turns, strict=True))
        judged = [measure_masks(turn, answer, prediction) for turn, answer in pairs]
        texts = [
            [parse_tagged_text(turn.reference)[0], parse_tagged_text(answer.text)[0]]
            for turn, answer in pairs
            if turn.reference is not None
        ]
        ious = [iou for one in judged for iou in one["ious"]]
        turn_values = [one["miou"] for one in judged]
        return Measures(
            question=question.id,
            group=question.group,
            value=mean(turn_values, "turns").value,
            ious=ious,
            num_frames=prediction.num_frames,
            num_objects=len(ious),
            turn_values=turn_values,
            facts={
                "mious": [value for value in turn_values if value is not None],
                "jf": [pair for one in judged for pair in one["jf"]],
                "presence": [one["presence"] for one in judged if one["presence"] is not None],
                "texts": texts,
            },
        )

    def summarise(self, samples: Sequence[Measures], tools: Tools) -> list[Score]:
        """Mask metrics, then caption metrics."""
        ious = [iou for sample in samples for iou in sample.ious]
        pairs = [pair for sample in samples for pair in sample.facts["jf"]]
        found = [iou >= IOU_THRESHOLD for iou in ious]
        presences = [Presence(*pair) for sample in samples for pair in sample.facts["presence"]]
        texts = [pair for sample in samples for pair in sample.facts["texts"]]
        words = caption_scores([pair[0] for pair in texts], [pair[1] for pair in texts]) if texts else {}
        return [
            _masks_row("mIoU", [value for sample in samples for value in sample.facts["mious"]]),
            _masks_row(f"recall at IoU {IOU_THRESHOLD}", found),
            _masks_row("J", [pair[0] for pair in pairs]),
            _masks_row("F", [pair[1] for pair in pairs]),
            _masks_row("J&F", [(pair[0] + pair[1]) / 2 for pair in pairs]),
            *presence_rows(presences, "masks"),
            *(
                Score(name, percent(words[key]), len(texts), "words", reason=words[key].reason)
                for name, key in CAPTIONS.items()
                if texts
            ),
        ]


def _answered(messages: Sequence[Mapping]) -> Iterator[bool]:
    """For each question whether an answer follows it."""
    roles = [message["role"] for message in messages if message["role"] != "system"]
    yield from (after == "assistant" for role, after in zip(roles, [*roles[1:], ""], strict=True) if role == "user")


def _masks_row(name: str, values: Sequence[float]) -> Score:
    return mean_row(name, [100 * value for value in values], "answers with masks", "masks")


def measure_masks(turn: BenchmarkTurn, answer: PredictedTurn, prediction: Prediction) -> dict:
    """`ious` and `jf` of the true objects under greedy matching, in which missed objects are compared with a mask that
    matches none, or an empty one if there is no such mask; the `miou` of the answer, which also counts surplus
    objects, `None` without a reference; and the `presence` of a target and of a prediction, `None` for a question that
    asks for no masks."""
    size, num_frames = (prediction.height, prediction.width), prediction.num_frames
    found = [item.masks for item in answer.objects if item.masks]  # text-only records have no masks
    predicted = any_pixel(found, size)
    if turn.no_target:
        pair = np.mean(no_target_jf(united(found, num_frames, size)), axis=0).tolist()
        return {"ious": [], "miou": float(not predicted), "jf": [pair], "presence": (False, predicted)}
    matrix = track_overlaps(turn.targets, found, num_frames, size).ious()
    pairs = dict(greedy_pairs(matrix))
    # A mask on something else is not silence, which is right on frames without the object
    others = iter([masks for guess, masks in enumerate(found) if guess not in pairs.values()])
    matched = [found[pairs[truth]] if truth in pairs else next(others, []) for truth in range(len(turn.targets))]
    return {
        "ious": matched_ious(matrix),
        "miou": None if turn.reference is None else miou(matrix),
        "presence": (True, predicted) if turn.targets else None,
        "jf": [
            np.mean(track_jf(*(frames(track, num_frames, size) for track in pair)), axis=0).tolist()
            for pair in zip(turn.targets, matched, strict=True)
        ],
    }
