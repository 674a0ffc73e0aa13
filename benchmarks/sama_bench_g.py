"""
SAMA-Bench-G: multi-round grounded questions about objects in videos. Protocol: evaluation spec 1.

It is asked in three ways, each with its own rows:

    single       every round on its own without history, as in the published evaluation
    own          the rounds of a conversation in order, with the model's own answers as history
    reference    the same with the reference answers as history

mIoU, recall, caption metrics and CLAIR are computed over the answers about one video and averaged over videos.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from sama.metrics.answers import caption, current_tags, phrases, shortened
from sama.metrics.captions import CAPTION_METRICS
from sama.metrics.values import Value, mean
from sama.video_sama import SamaVideo

from .benchmark import BenchmarkError, Measures, Prediction, Question, Score, Tools
from .from_catalogue import CatalogueBenchmark
from .from_records import record_turns
from .grounded import (
    glamm_recall,
    miou_values,
    object_ious,
    overlap_facts,
    recall_values,
    seg_phrases,
    turn_value,
)
from .per_video import caption_values, clair_values, source_rows
from .published import published_rows
from .rows import mean_row, percent


SINGLE, OWN, REFERENCE = "single", "own", "reference"
WAYS = {SINGLE: "", OWN: "own history, ", REFERENCE: "reference history, "}
HEADLINES = ("mIoU", "Recall", "METEOR", "CIDEr", "CLAIR")
FURTHER = ("Recall (GLaMM)", *(name for name in CAPTION_METRICS if name not in HEADLINES))


class SamaBenchG(CatalogueBenchmark):
    """The option `asked` is a comma-separated list of ways to ask."""

    name: ClassVar[str] = "sama_bench_g"
    version: ClassVar[int] = 1
    splits: ClassVar[tuple[str, ...]] = ("all",)
    options: ClassVar[Mapping[str, Any]] = {**CatalogueBenchmark.options, "asked": ",".join(WAYS)}
    max_new_tokens: ClassVar[int] = 2048
    headline: ClassVar[str] = "mIoU"
    published_layout: ClassVar[str] = "sama_conversation"

    def __init__(self, data_root=None, split=None, preset: str = "consistent", **options):
        super().__init__(data_root, split, preset, **options)
        unknown = [way for way in self.chosen["asked"].split(",") if way not in WAYS]
        if unknown:
            raise BenchmarkError(
                f"asked contains {unknown[0]!r}, expected a comma-separated list of {', '.join(WAYS)}."
            )

    @property
    def ways(self) -> list[str]:
        """The chosen ways to ask, in the order of the table."""
        return [way for way in WAYS if way in self.chosen["asked"].split(",")]

    def group_of(self, record: Mapping) -> str:
        return record["messages"][0]["info"]["video"]

    def question_ids(self, records: list[dict]) -> list[str]:
        names = [self.local_name(record) for record in records]
        single = names if SINGLE in self.ways else []
        return single + [f"{name}/{way}" for way in self.ways if way != SINGLE for name in _conversations(names)]

    def group_questions(self, records: list[dict], video: SamaVideo) -> list[Question]:
        turns = {}
        for record in records:
            (turn,) = record_turns(record, video, self.source.lookup, box=True)
            turns[self.local_name(record)] = turn
        group, questions = self.group_of(records[0]), []
        if SINGLE in self.ways:
            questions += [Question(name, group, [turn], layout=self.layout) for name, turn in turns.items()]
        for way in (OWN, REFERENCE):
            for name, members in _conversations(turns).items() if way in self.ways else ():
                rounds = [turns[member] for member in members]
                questions.append(Question(f"{name}/{way}", group, rounds, history=way, layout=self.layout))
        return questions

    def measure(self, question: Question, prediction: Prediction) -> Measures:
        answers = [self._answer(question, prediction, number) for number in range(len(question.turns))]
        turn_values = [turn_value(answer) for answer in answers]
        last = question.id.rpartition("/")[2]
        return Measures(
            question.id,
            question.group,
            mean(turn_values, "turns").value,
            [iou for one in answers for iou in object_ious(one)],
            prediction.num_frames,
            sum(len(turn.targets) for turn in question.turns),
            {"way": last if last in (OWN, REFERENCE) else SINGLE, "answers": answers},
            turn_values,
        )

    def _answer(self, question: Question, prediction: Prediction, number: int) -> dict:
        turn, text = question.turns[number], prediction.turns[number].text
        reference = current_tags(turn.info["answer"])
        return {
            **overlap_facts(question, prediction, turn.targets, number),
            "wanted": seg_phrases(turn.reference),
            "rows": published_rows(turn),
            "published_wanted": phrases(reference),
            "published_found": phrases(text),
            "texts": [shortened(caption(words)) for words in (reference, text)],
        }

    def summarise(self, samples: Sequence[Measures], tools: Tools) -> list[Score]:
        answers: dict[tuple[str, str], list[dict]] = {}  # (way, video) -> answers
        for sample in samples:
            answers.setdefault((sample.facts["way"], sample.group), []).extend(sample.facts["answers"])
        corpora = {key: _corpus(found) for key, found in answers.items()}
        # Within one video hardly any word is rare, so CIDEr is also computed over all answers together
        whole = {way: _corpus(one for key, found in answers.items() if key[0] == way for one in found)
                 for way in {key[0] for key in answers}}  # fmt: skip
        captions, clairs = caption_values({**corpora, **whole}), clair_values(corpora, tools.judge)
        rows = []
        for way in self.ways:
            videos = {
                video: self._video_values(found, tools) | captions[way, video] | {"CLAIR": clairs[way, video]}
                for (asked_as, video), found in answers.items()
                if asked_as == way
            }
            count = sum(len(found) for (asked_as, _), found in answers.items() if asked_as == way)
            rows += self._rows(way, videos, captions, count)
        return rows

    def _rows(self, way: str, videos: Mapping, captions: Mapping, count: int) -> list[Score]:
        """The rows of one way of asking, by which `count` questions were answered."""
        if not videos:
            return [Score("mIoU", None, 0, f"{WAYS[way]}all", reason="there are no answers")]
        cider = captions[way]["CIDEr"][0]
        one_corpus = mean_row("CIDEr (one corpus)", [percent(cider)], "corpora", f"{WAYS[way]}all", (), cider.reason)
        one_corpus.count = count
        return [*source_rows(videos, HEADLINES, WAYS[way], FURTHER), one_corpus]

    def _video_values(self, answers: Sequence[Mapping], tools: Tools) -> dict:
        glamm = glamm_recall(answers, tools.similarity)
        return {
            "mIoU": miou_values(answers),
            "Recall": recall_values(answers, tools.similarity),
            "Recall (GLaMM)": (glamm, Value(None, glamm.reason)),
        }


def _conversations(names) -> dict[str, list[str]]:
    """Conversation -> its rounds; "mevis/0/2" is round 2 of conversation 0 in a file."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(name.rpartition("/")[0], []).append(name)
    return found


def _corpus(answers) -> tuple[list[str], list[str]]:
    texts = [one["texts"] for one in answers]
    return [reference for reference, _ in texts], [prediction for _, prediction in texts]
