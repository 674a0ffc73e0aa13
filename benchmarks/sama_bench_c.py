"""
SAMA-Bench-C: description of a marked object in a video. Protocol: evaluation spec 2.

One question per description; the region is the true mask of the object. Caption metrics and CLAIR are computed over
the answers about one video and averaged over videos.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from sama.metrics.answers import caption, shortened
from sama.metrics.captions import CAPTION_METRICS
from sama.video_sama import SamaVideo

from .benchmark import Measures, Prediction, Question, Score, Tools
from .from_catalogue import CatalogueBenchmark
from .from_records import record_turns
from .per_video import caption_values, clair_values, source_rows, word_overlap


HEADLINES = ("METEOR", "CIDEr", "CLAIR")
FURTHER = tuple(name for name in CAPTION_METRICS if name not in HEADLINES)


class SamaBenchC(CatalogueBenchmark):
    """SAMA-Bench-C."""

    name: ClassVar[str] = "sama_bench_c"
    version: ClassVar[int] = 1
    splits: ClassVar[tuple[str, ...]] = ("all",)
    max_new_tokens: ClassVar[int] = 2048
    headline: ClassVar[str] = "word F1"
    published_layout: ClassVar[str] = "sama_description"

    def group_of(self, record: Mapping) -> str:
        return record["messages"][0]["info"]["video"]

    def question_ids(self, records: list[dict]) -> list[str]:
        return [self.local_name(record) for record in records]

    def group_questions(self, records: list[dict], video: SamaVideo) -> list[Question]:
        return [
            Question(
                self.local_name(record),
                self.group_of(record),
                record_turns(record, video, self.source.lookup),
                masks=False,
                layout=self.layout,
            )
            for record in records
        ]

    def measure(self, question: Question, prediction: Prediction) -> Measures:
        both = (question.turns[0].reference, prediction.turns[0].text)
        texts = [shortened(caption(text)) for text in both]
        number = prediction.num_frames
        return Measures(question.id, question.group, word_overlap(*texts), [], number, 1, {"texts": texts})

    def summarise(self, samples: Sequence[Measures], tools: Tools) -> list[Score]:
        corpora: dict[str, tuple[list, list]] = {}
        for sample in samples:
            for side, text in zip(corpora.setdefault(sample.group, ([], [])), sample.facts["texts"], strict=True):
                side.append(text)
        if not corpora:
            return [Score("METEOR", None, 0, reason="there are no answers")]
        captions, clairs = caption_values(corpora), clair_values(corpora, tools.judge)
        videos = {video: captions[video] | {"CLAIR": clairs[video]} for video in corpora}
        return source_rows(videos, HEADLINES, only_all=FURTHER)
