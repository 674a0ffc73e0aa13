"""
MME: questions about stills that are answered by yes or no, two to a picture. Protocol: evaluation spec 6.

The score of a category is its accuracy (acc) plus the share of pictures of which both answers are right (acc+), each
in percent, so 200 at best; perception and reasoning are the sums over their categories, and stay open until all of
them have been asked.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from sama.metrics.answers import mme_answer
from sama.metrics.mme import PERCEPTION, REASONING, YesNo, mme_rating, yes_or_no
from sama.video_sama import SamaVideo

from .benchmark import Measures, Prediction, Question, Score, Tools
from .from_catalogue import CatalogueBenchmark
from .from_records import record_turns


CHANCE = 75.0  # a coin is right half of the time, and twice in a quarter of the pictures
SUMS = {"perception": len(PERCEPTION), "reasoning": len(REASONING)}


class MME(CatalogueBenchmark):
    """MME, in the folders of its release."""

    name: ClassVar[str] = "mme"
    version: ClassVar[int] = 1
    splits: ClassVar[tuple[str, ...]] = ("test",)
    max_new_tokens: ClassVar[int] = 64
    headline: ClassVar[str] = "accuracy"

    def annotation_files(self) -> list[Path]:
        """The texts that lie beside the pictures."""
        return sorted((self.data_root / self.source.entry.files["media"]).rglob("*.txt"))

    def question_ids(self, records: list[dict]) -> list[str]:
        (record,) = records
        count = sum(message["role"] == "user" for message in record["messages"])
        return [f"{self.local_name(record)}/{number}" for number in range(count)]

    def group_questions(self, records: list[dict], video: SamaVideo) -> list[Question]:
        (record,) = records
        turns = record_turns(record, video, self.source.lookup)
        return [
            Question(name, self.local_name(record), [turn], masks=False, layout=self.layout)
            for name, turn in zip(self.question_ids(records), turns, strict=True)
        ]

    def measure(self, question: Question, prediction: Prediction) -> Measures:
        info, answer = question.turns[0].info, prediction.turns[0].text
        right = info["answer"] == "Yes"
        facts = {"category": info["category"], "fixed": yes_or_no(answer) is right}
        facts["published"] = official_yes_or_no(answer) is right
        return Measures(question.id, question.group, float(facts["fixed"]), num_frames=1, facts=facts)

    def summarise(self, samples: Sequence[Measures], tools: Tools) -> list[Score]:
        fixed, release = (
            mme_rating(YesNo(one.facts["category"], one.group, one.facts[mode]) for one in samples)
            for mode in ("fixed", "published")
        )
        counts = {name: sum(one.facts["category"] == name for one in samples) for name in (*PERCEPTION, *REASONING)}
        counts |= {"perception": sum(map(counts.get, PERCEPTION)), "reasoning": sum(map(counts.get, REASONING))}
        return [
            Score(
                "score",
                points.value,
                counts[part],
                part,
                release[part].value,
                chance=CHANCE * SUMS.get(part, 1),
                reason=points.reason,
            )
            for part, points in fixed.items()
        ]


def official_yes_or_no(answer: str) -> bool | None:
    """
    What the benchmark's own calculator reads in what the release writes for it: of an answer without full stops and
    line breaks the first four letters count.
    """
    start = mme_answer(answer).lower()[:4]
    return True if "yes" in start else False if "no" in start else None
