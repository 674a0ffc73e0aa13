"""
SAMA-Bench-G: grounded questions about objects of videos, in rounds. Protocol: evaluation spec 1.

Asked in three ways, each with rows of its own:

    single       every round by itself, as published: no round knows of those before it
    own          the rounds of a conversation one after the other, with the model's own answers between them
    reference    the same with the reference answers between them

mIoU, recall, caption metrics and CLAIR are computed over the answers about one video, then averaged over videos.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from sama.metrics.answers import caption, current_tags, phrases, shortened
from sama.metrics.captions import CAPTION_METRICS
from sama.metrics.values import Value
from sama.video_sama import SamaVideo

from .benchmark import BenchmarkError, Measures, Prediction, Question, Score, Tools, Turn
from .from_catalogue import CatalogueBenchmark
from .from_records import record_turns
from .grounded import glamm_recall, miou_values, overlap_facts, recall_values, seg_phrases, turn_value
from .per_video import caption_values, clair_values, source_rows
from .rows import mean_row


SINGLE, OWN, REFERENCE = "single", "own", "reference"
WAYS = {SINGLE: "", OWN: "own history, ", REFERENCE: "reference history, "}
HEADLINES = ("mIoU", "Recall", "METEOR", "CIDEr", "CLAIR")
FURTHER = ("Recall (GLaMM)", *(name for name in CAPTION_METRICS if name not in HEADLINES))


class SamaBenchG(CatalogueBenchmark):
    """The option `asked` names the ways, with commas between them."""

    name: ClassVar[str] = "sama_bench_g"
    version: ClassVar[int] = 1
    splits: ClassVar[tuple[str, ...]] = ("all",)
    options: ClassVar[Mapping[str, Any]] = {**CatalogueBenchmark.options, "asked": ",".join(WAYS)}
    max_new_tokens: ClassVar[int] = 2048
    headline: ClassVar[str] = "mIoU"
    release_layout: ClassVar[str] = "sama_conversation"

    def __init__(self, data_root=None, split=None, preset: str = "consistent", **options):
        super().__init__(data_root, split, preset, **options)
        unknown = [way for way in self.chosen["asked"].split(",") if way not in WAYS]
        if unknown:
            raise BenchmarkError(f"asked holds {unknown[0]!r}, expected some of {', '.join(WAYS)}.")

    @property
    def ways(self) -> list[str]:
        """The ways in which it is asked, in their order."""
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
        found = [value for value in map(turn_value, answers) if value is not None]
        last = question.id.rpartition("/")[2]
        return Measures(
            question.id,
            question.group,
            sum(found) / len(found) if found else None,
            [max(row, default=0.0) for one in answers for row in one["ious"]],
            prediction.num_frames,
            sum(len(turn.targets) for turn in question.turns),
            {"way": last if last in (OWN, REFERENCE) else SINGLE, "answers": answers},
        )

    def _answer(self, question: Question, prediction: Prediction, number: int) -> dict:
        turn, text = question.turns[number], prediction.turns[number].text
        reference = current_tags(turn.info["answer"])
        return {
            **overlap_facts(question, prediction, turn.targets, number),
            "wanted": seg_phrases(turn.reference),
            "rows": release_rows(turn),
            "release_wanted": phrases(reference),
            "release_found": phrases(text),
            "texts": [shortened(caption(words)) for words in (reference, text)],
        }

    def summarise(self, samples: Sequence[Measures], tools: Tools) -> list[Score]:
        answers: dict[tuple[str, str], list[dict]] = {}
        for sample in samples:
            answers.setdefault((sample.facts["way"], sample.group), []).extend(sample.facts["answers"])
        corpora = {key: _corpus(found) for key, found in answers.items()}
        # Inside one video words are hardly ever rare: beside the published CIDEr stands that of all answers together
        together = {way: _corpus(one for (of, _), found in answers.items() if of == way for one in found)
                    for way in self.ways}  # fmt: skip
        together = {way: corpus for way, corpus in together.items() if corpus[0]}
        captions, clairs = caption_values({**corpora, **together}), clair_values(corpora, tools.judge)
        rows = []
        for way in self.ways:
            videos = {
                video: self._video_values(found, tools) | captions[way, video] | {"CLAIR": clairs[way, video]}
                for (of, video), found in answers.items()
                if of == way
            }
            rows += source_rows(videos, HEADLINES, WAYS[way], FURTHER) if videos else [_nothing(way)]
            if videos:
                value = captions[way]["CIDEr"][0]
                percent = None if value.value is None else 100 * value.value
                rows.append(mean_row("CIDEr (one corpus)", [percent], "corpora", f"{WAYS[way]}all", (), value.reason))
        return rows

    def _video_values(self, answers: Sequence[Mapping], tools: Tools) -> dict:
        glamm = glamm_recall(answers, tools.similarity)
        return {
            "mIoU": miou_values(answers),
            "Recall": recall_values(answers, tools.similarity),
            "Recall (GLaMM)": (glamm, Value(None, glamm.reason)),
        }


def release_rows(turn: Turn) -> list[int]:
    """
    For each true mask of the release its place among ours. Of an empty entry of `groundtruth` the release makes the
    mask before it once more; where there is none before it, it crashes, and here the entry is left out.
    """
    rows, position = [], 0
    for entry in turn.info["entries"]:
        position += bool(entry)
        if position:
            rows.append(position - 1)
    return rows


def _conversations(names) -> dict[str, list[str]]:
    """Conversation -> its rounds; "mevis/0/2" is round 2 of conversation 0 of a file."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(name.rpartition("/")[0], []).append(name)
    return found


def _corpus(answers) -> tuple[list[str], list[str]]:
    texts = [one["texts"] for one in answers]
    return [reference for reference, _ in texts], [prediction for _, prediction in texts]


def _nothing(way: str) -> Score:
    return Score("mIoU", None, 0, f"{WAYS[way]}all", reason="there are no answers")
