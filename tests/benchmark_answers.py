"""Predictions written by hand for the tests of the benchmarks, without a model."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from sama.benchmarks.benchmark import (
    Benchmark,
    BenchmarkTurn,
    PredictedObject,
    PredictedTurn,
    Prediction,
    Question,
    RLETrack,
    Scores,
)
from sama.benchmarks.registry import open_benchmark
from sama.data.masks import encode_rle
from sama.prompts_sama import parse_tagged_text


ROOT = Path(__file__).parent / "benchmark_fixtures"
SIDE = 20


def box(x1: int, y1: int, x2: int, y2: int, side: int = SIDE) -> dict:
    """A rectangle as a run-length code; ends are exclusive."""
    mask = np.zeros((side, side), dtype=bool)
    mask[y1:y2, x1:x2] = True
    return encode_rle(mask)


def answer(*turns: tuple[str, Sequence[tuple]]) -> Callable[[Question, tuple], Prediction]:
    """A prediction with these turns: tagged text, and phrase, masks and maybe confidence of each object."""

    def make(question: Question, shape: tuple[int, int, int]) -> Prediction:
        made = [PredictedTurn(text, [PredictedObject(*item) for item in objects]) for text, objects in turns]
        return Prediction(question.id, made, *shape)

    return make


def masks(*found: RLETrack, confidence: float | None = None) -> Callable:
    """An answer with one [SEG] for each track."""
    return answer((" ".join(["[SEG]"] * len(found)) + ".", [("", track, confidence) for track in found]))


class NoMeteor:
    """Stands in for METEOR, whose Java program takes seconds to start; metrics/test_recorded_values.py
    runs the real one."""

    def compute_score(self, references: dict, predictions: dict) -> tuple[float, list]:
        return 0.5, []


def opened(name: str, root: Path = ROOT, **arguments) -> Benchmark:
    """A benchmark over the fixtures. The tests set $SAMA_CACHE."""
    return open_benchmark(name, data_root=root, **arguments)


def predictions(benchmark: Benchmark, answers: Mapping[str, Callable]) -> list[Prediction]:
    """The answers of the named questions, in the order of the benchmark."""
    made, left = [], dict(answers)
    for group in benchmark.outline():
        video = benchmark.open(group)
        shape = (len(video), video.height, video.width)
        for question in benchmark.questions(group):
            if question.id in left:
                made.append(left.pop(question.id)(question, shape))
    assert not left, f"no questions: {sorted(left)}"
    return made


def perfect(benchmark: Benchmark) -> list[Prediction]:
    """Every question answered with its reference."""
    made = []
    for group in benchmark.outline():
        video = benchmark.open(group)
        shape = (len(video), video.height, video.width)
        for question in benchmark.questions(group):
            turns = [PredictedTurn(turn.reference, _objects(turn)) for turn in question.turns]
            made.append(Prediction(question.id, turns, *shape))
    return made


def _objects(turn: BenchmarkTurn) -> list[PredictedObject]:
    phrases = [phrase for phrase, _ in parse_tagged_text(turn.reference)[1]]
    return [PredictedObject(*pair) for pair in zip(phrases, turn.targets, strict=True)]


def values(scores: Scores, part: str = "all", published: bool = False) -> dict[str, float | None]:
    """Name -> value of the rows of one part."""
    return {row.name: row.published if published else row.value for row in scores.rows if row.part == part}


def text_of(benchmark: Benchmark, question_id: str) -> list[str]:
    """What is asked in the turns of a question."""
    for group, names in benchmark.outline().items():
        if question_id in names:
            found = next(question for question in benchmark.questions(group) if question.id == question_id)
            return [turn.text for turn in found.turns]
    raise KeyError(question_id)
