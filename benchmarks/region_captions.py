"""
RefCOCOg as region captioning: a short description of a marked object in an image. Protocol: evaluation spec 5.2.

The published inference drops region and image from its prompt, so that its scores are meaningless. The question here
follows Osprey's data, with a list of regions first. METEOR and CIDEr over the whole split, in percent. The published
code removes "is", "shows" and ":" from the answers, even inside words.
"""

from collections.abc import Sequence
from typing import ClassVar

from sama.metrics.answers import region_caption
from sama.metrics.captions import CAPTION_METRICS, caption_scores_by_group
from sama.metrics.values import CONSISTENT, PRESETS
from sama.video_sama import SamaVideo

from .benchmark import Measures, Prediction, Question, Score, Tools
from .from_catalogue import CatalogueBenchmark
from .from_records import record_turns
from .per_video import word_overlap
from .rows import mean_row, percent


HEADLINES = ("METEOR", "CIDEr")


class RegionCaptions(CatalogueBenchmark):
    """RefCOCOg region captions."""

    name: ClassVar[str] = "region_captions"
    version: ClassVar[int] = 1
    splits: ClassVar[tuple[str, ...]] = ("val",)
    max_new_tokens: ClassVar[int] = 256
    headline: ClassVar[str] = "word F1"
    published_layout: ClassVar[str] = "osprey"

    def question_ids(self, records: list[dict]) -> list[str]:
        return [self.local_name(record) for record in records]

    def group_questions(self, records: list[dict], video: SamaVideo) -> list[Question]:
        (record,) = records
        name, turns = self.local_name(record), record_turns(record, video, self.source.lookup)
        return [Question(name, name, turns, masks=False, layout=self.layout)]

    def measure(self, question: Question, prediction: Prediction) -> Measures:
        texts = {preset: region_caption(prediction.turns[0].text, preset) for preset in PRESETS}
        facts = {"reference": question.turns[0].info["caption"], **texts}
        value = word_overlap(facts["reference"], facts[CONSISTENT])
        return Measures(question.id, question.group, value, [], 1, 1, facts)

    def summarise(self, samples: Sequence[Measures], tools: Tools) -> list[Score]:
        return corpus_rows([sample.facts for sample in samples], HEADLINES)


def corpus_rows(facts: Sequence[dict], first: Sequence[str]) -> list[Score]:
    """
    Rows of the caption metrics over all answers, in percent.

    Args:
        facts (sequence of `dict`): Of each answer its text as "consistent" and "published", and the "reference".
        first (sequence of `str`): Metrics that come first in the table.
    """
    references = [one["reference"] for one in facts]
    found = caption_scores_by_group({preset: (references, [one[preset] for one in facts]) for preset in PRESETS})
    rows = []
    for name in (*first, *(metric for metric in CAPTION_METRICS if metric not in first)):
        value, published = (found[preset][name] for preset in PRESETS)
        row = mean_row(name, [percent(value)], "corpora", published=[percent(published)], reason=value.reason)
        row.count = len(facts)
        rows.append(row)
    return rows
