"""
MME: yes-or-no questions about images, two per image. Protocol: evaluation spec 6.

The score of a category is the accuracy (acc) plus the fraction of images with both answers correct (acc+), each in
percent, so at most 200. Perception and reasoning are sums over their categories and have no value until every category
has answers.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from sama.metrics.mme import PERCEPTION, REASONING, YesNo, mme_rating, yes_or_no
from sama.video_sama import SamaVideo

from .benchmark import BenchmarkError, Measures, Prediction, Question, Score, Tools
from .from_catalogue import CatalogueBenchmark
from .from_records import record_turns
from .published import published_yes_or_no


CHANCE = 75.0  # guessing gives 50 % accuracy, and both answers are correct for 25 % of the images
SUMS = {"perception": len(PERCEPTION), "reasoning": len(REASONING)}


class MME(CatalogueBenchmark):
    """MME, in the folder structure of its release."""

    name: ClassVar[str] = "mme"
    # 1: "Yes, there is no dog." named both yes and no in the consistent scores
    version: ClassVar[int] = 2
    splits: ClassVar[tuple[str, ...]] = ("test",)
    max_new_tokens: ClassVar[int] = 64
    headline: ClassVar[str] = "accuracy"

    def annotation_files(self) -> list[Path]:
        """The text files next to the images."""
        return sorted((self.data_root / self.source.entry.files["media"]).rglob("*.txt"))

    def _read_outline(self) -> dict[str, list[str]]:
        outline = super()._read_outline()
        unknown = sorted({group.partition("/")[0] for group in outline} - {*PERCEPTION, *REASONING})
        if unknown:
            folder = self.data_root / self.source.entry.files["media"]
            raise BenchmarkError(
                f"'{folder / unknown[0]}' is none of the {len(PERCEPTION) + len(REASONING)} categories of MME "
                f"({', '.join((*PERCEPTION, *REASONING))}); remove the folder."
            )
        return outline

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
        facts = {"category": info["category"], "consistent": yes_or_no(answer) is right}
        facts["published"] = published_yes_or_no(answer) is right
        return Measures(question.id, question.group, float(facts["consistent"]), num_frames=1, facts=facts)

    def summarise(self, samples: Sequence[Measures], tools: Tools) -> list[Score]:
        consistent, published = (
            mme_rating(
                YesNo(one.facts["category"], one.group, one.facts[preset], len(self.outline()[one.group]))
                for one in samples
            )
            for preset in ("consistent", "published")
        )
        counts = {name: sum(one.facts["category"] == name for one in samples) for name in (*PERCEPTION, *REASONING)}
        counts |= {"perception": sum(map(counts.get, PERCEPTION)), "reasoning": sum(map(counts.get, REASONING))}
        return [
            Score(
                "score",
                points.value,
                counts[part],
                part,
                published[part].value,
                chance=CHANCE * SUMS.get(part, 1),
                reason=points.reason,
            )
            for part, points in consistent.items()
        ]
