"""
RefCOCOg as region captioning: a short description of a marked object of a still. Protocol: evaluation spec 5.2.

The released inference drops the region and the picture from its prompt, so that its numbers here say nothing; the
question is put as in Osprey's data, with the region in a list in front. METEOR and CIDEr over the whole split, in
percent. The release takes "is", "shows" and ":" out of the middle of words before it compares.
"""

from collections.abc import Sequence
from typing import ClassVar

from sama.metrics.answers import region_caption
from sama.metrics.captions import CAPTION_METRICS, caption_scores_by_group
from sama.metrics.values import FIXED, RELEASE
from sama.video_sama import SamaVideo

from .benchmark import Measures, Prediction, Question, Score, Tools
from .from_catalogue import CatalogueBenchmark
from .from_records import record_turns
from .per_video import word_overlap
from .rows import mean_row


HEADLINES = ("METEOR", "CIDEr")


class RegionCaptions(CatalogueBenchmark):
    """RefCOCOg region captions."""

    name: ClassVar[str] = "region_captions"
    version: ClassVar[int] = 1
    splits: ClassVar[tuple[str, ...]] = ("val",)
    max_new_tokens: ClassVar[int] = 256
    headline: ClassVar[str] = "word F1"
    release_layout: ClassVar[str] = "osprey"

    def question_ids(self, records: list[dict]) -> list[str]:
        return [self.local_name(record) for record in records]

    def group_questions(self, records: list[dict], video: SamaVideo) -> list[Question]:
        (record,) = records
        name, turns = self.local_name(record), record_turns(record, video, self.source.lookup)
        return [Question(name, name, turns, masks=False, layout=self.layout)]

    def measure(self, question: Question, prediction: Prediction) -> Measures:
        texts = {mode: region_caption(prediction.turns[0].text, mode) for mode in (FIXED, RELEASE)}
        facts = {"reference": question.turns[0].info["caption"], **texts}
        value = word_overlap(facts["reference"], facts[FIXED])
        return Measures(question.id, question.group, value, [], 1, 1, facts)

    def summarise(self, samples: Sequence[Measures], tools: Tools) -> list[Score]:
        return corpus_rows([sample.facts for sample in samples], HEADLINES)


def corpus_rows(facts: Sequence[dict], first: Sequence[str]) -> list[Score]:
    """Rows of the caption metrics over all answers in percent; of `facts`, "fixed" and "published" are compared with
    "reference". The metrics in `first` lead."""
    references = [one["reference"] for one in facts]
    corpora = {mode: (references, [one[mode] for one in facts]) for mode in (FIXED, RELEASE)}
    found = caption_scores_by_group(corpora)
    rows = []
    for name in (*first, *(metric for metric in CAPTION_METRICS if metric not in first)):
        fixed, release = (found[mode][name] for mode in (FIXED, RELEASE))
        percent = [None if value.value is None else 100 * value.value for value in (fixed, release)]
        row = mean_row(name, percent[:1], "corpora", published=percent[1:], reason=fixed.reason)
        row.count = len(facts)
        rows.append(row)
    return rows
