"""
The interface of a benchmark: questions about videos, and the scoring of answers. A benchmark never sees a model.

    outline()            the ids of all questions in order, grouped by video; opens no video
    open(group)          the video of a group
    questions(group)     the questions of a group, with everything needed to ask and to score them
    measure(...)         scores one prediction
    summarise(...)       computes the table from the measures of all predictions

A run asks `questions(group)` about the video `open(group)` and writes one line per question ([`Prediction`]). `score`
needs these lines and the data of the benchmark, but no model.

A new benchmark is a subclass with these five methods, a name in `registry.py`, and a test with scores computed by
hand.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from sama.data.catalogue import data_root as find_data_root
from sama.data.records import DataError, require_field, require_type
from sama.metrics.values import PRESETS
from sama.objects_sama import MaskTrack, Region
from sama.video_sama import SamaVideo


HISTORIES = ("own", "reference")
MAX_LENGTH = 2**24  # frames of a video or pixels of a side: more would only keep a loop busy
HASH_DIGITS, WHOLE_UP_TO, END = 16, 2**28, 2**24  # of larger annotation files only both ends are hashed
# The masks of an object in a video: a compressed COCO RLE for each frame, `None` if the object is not visible
RLETrack = list[dict | None]


class BenchmarkError(ValueError):
    """The benchmark cannot be run; the message says in one sentence what is missing and where it was expected."""


# Questions


@dataclass(frozen=True)
class BenchmarkTurn:
    """
    One question of a conversation, and its reference answer.

    Args:
        text (`str`): The question; the n-th `<region>` refers to the n-th of `regions`.
        regions (sequence of [`Region`] or [`MaskTrack`]): The objects pointed at. From a track the processor uses the
            first dense frame on which the object is visible.
        reference (`str`, *optional*): The reference answer with tags, `<p> a dog </p> [SEG] runs.`; `None` if it is
            not public.
        targets (sequence of `RLETrack`): The true masks, one track per [SEG] of the reference.
        info (`dict`): What the benchmark needs to score the answer.
        no_target (`bool`): Whether the expression fits nothing, so that an answer should have no mask. Otherwise empty
            `targets` mean that the masks are not public or not asked for.
    """

    text: str
    regions: Sequence[Region | MaskTrack] = ()
    reference: str | None = None
    targets: Sequence[RLETrack] = ()
    info: Mapping[str, Any] = field(default_factory=dict)
    no_target: bool = False


@dataclass(frozen=True)
class Question:
    """
    One sample: a conversation of one or more turns about the video of its group.

    Args:
        id (`str`): Unique in the benchmark and the same in every run.
        group (`str`): The video. All questions of a group share its features.
        turns (sequence of [`BenchmarkTurn`]): At least one; all of them are asked.
        history (`str`): Which answers precede a later turn: the model's "own" or the "reference" answers.
        masks (`bool`): Whether the objects of the answers are tracked.
        system (sequence of `str`): System messages, which the conversation begins with.
        layout (`str`, *optional*): Format of a turn, a name of `templates_sama.TURN_FORMATS` or `SOURCE_TURN_FORMATS`;
            the checkpoint's by default.
        error (`str`, *optional*): Why the question cannot be asked. It has no turns then, and its prediction fails.
    """

    id: str
    group: str
    turns: Sequence[BenchmarkTurn] = ()
    history: str = "own"
    masks: bool = True
    layout: str | None = None
    system: Sequence[str] = ()
    error: str | None = None

    def __post_init__(self):
        if not self.turns and self.error is None:
            raise ValueError(f"The question {self.id!r} has no turns.")
        if self.history not in HISTORIES:
            raise ValueError(f"history is {self.history!r}, expected one of {', '.join(HISTORIES)}.")


# Predictions


@dataclass(frozen=True)
class PredictedObject:
    """A phrase of an answer, its masks (empty if they were not requested), and the model's confidence."""

    phrase: str
    masks: RLETrack
    score: float | None = None


@dataclass(frozen=True)
class PredictedTurn:
    """An answer: the generated `text` with tags, and one object per [SEG]."""

    text: str
    objects: list[PredictedObject] = field(default_factory=list)


@dataclass(frozen=True)
class Prediction:
    """
    The answers to a question; one line of the predictions file.

    Args:
        question (`str`): Id of the question.
        turns (`list[PredictedTurn]`): One per turn; empty if the question failed.
        num_frames, height, width (`int`): Of the video; 0 without a video.
        error (`str`, *optional*): Why there is no answer, for example because the video could not be read.
    """

    question: str
    turns: list[PredictedTurn] = field(default_factory=list)
    num_frames: int = 0
    height: int = 0
    width: int = 0
    error: str | None = None

    def to_dict(self) -> dict:
        """The prediction as a dictionary for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, line: Mapping) -> "Prediction":
        """The inverse of [`to_dict`]; `ValueError` with the field if `line` is not a prediction."""
        _check_fields(line, cls, "")
        turns = []
        for position, turn in enumerate(require_field(line, "turns", list)):
            at = f"turns[{position}]"
            _check_fields(turn, PredictedTurn, at)
            objects = [
                _predicted_object(item, f"{at}.objects[{number}]")
                for number, item in enumerate(require_field(turn, "objects", list, at=at))
            ]
            turns.append(PredictedTurn(require_field(turn, "text", str, at=at), objects))
        sizes = {name: require_field(line, name, int, default=0) for name in ("num_frames", "height", "width")}
        for name, number in sizes.items():
            if not 0 <= number <= MAX_LENGTH:
                raise DataError(f"is {number}, expected 0 to {MAX_LENGTH}", field=name)
        return cls(
            require_field(line, "question", str), turns, **sizes, error=require_field(line, "error", str, default=None)
        )


def _check_fields(item, kind: type, at: str) -> None:
    known = {one.name for one in fields(kind)}
    unknown = sorted(set(require_type(item, dict, at)) - known, key=str)
    if unknown:
        raise DataError(f"is unknown, expected {', '.join(sorted(known))}", field=f"{at}.{unknown[0]}".lstrip("."))


def _predicted_object(item, at: str) -> PredictedObject:
    """An object of a line. Its masks are checked when they are decoded."""
    _check_fields(item, PredictedObject, at)
    masks = require_field(item, "masks", list, at=at)
    for position, mask in enumerate(masks):
        if mask is not None:
            require_type(mask, dict, f"{at}.masks[{position}]")
    score = require_field(item, "score", (int, float), default=None, at=at)
    return PredictedObject(require_field(item, "phrase", str, at=at), masks, score)


# Scores


@dataclass
class Measures:
    """
    The scores of one prediction.

    Args:
        question, group (`str`): Id of the question and its group.
        value (`float`, *optional*): One number from 0 to 1, for the progress bar and to rank the cases of the gallery.
        ious (`list[float]`): IoU of each true object with the prediction matched to it, for the plots.
        num_frames, num_objects (`int`): Number of frames of the video and number of true objects.
        facts (`dict`): What [`Benchmark.summarise`] needs, ready for JSON: counts, texts, categories.
        turn_values (`list[float | None]`): What each turn contributes to `value`, for the gallery, which draws the
            lowest ones if a conversation is too long. Empty if the benchmark does not tell.
    """

    question: str
    group: str
    value: float | None = None
    ious: list[float] = field(default_factory=list)
    num_frames: int = 0
    num_objects: int = 0
    facts: dict[str, Any] = field(default_factory=dict)
    turn_values: list[float | None] = field(default_factory=list)


@dataclass
class Score:
    """
    One row of the results.

    Args:
        name (`str`): Name of the metric: "mIoU".
        value (`float`, *optional*): The consistent value. If it could not be computed it is `None`, never 0, and
            `reason` says why.
        count (`int`): Number of samples, objects or questions it is computed from.
        part (`str`): The subset it is computed on, such as a source or a category; "all" for everything.
        published (`float`, *optional*): The value that the published evaluation code computes, if it differs.
        interval (`(float, float)`, *optional*): 95 % confidence interval.
        chance (`float`, *optional*): The score of random guessing.
        reason (`str`): Why there is no value.
    """

    name: str
    value: float | None
    count: int
    part: str = "all"
    published: float | None = None
    interval: tuple[float, float] | None = None
    chance: float | None = None
    reason: str = ""

    def __post_init__(self):
        if self.value is None and not self.reason:
            raise ValueError(f"The score {self.name!r} of {self.part!r} has no value and no reason.")


@dataclass
class Scores:
    """The table and the measures it was computed from."""

    rows: list[Score]
    samples: list[Measures]


@dataclass(frozen=True)
class Tools:
    """
    Models that scoring may use. A score that needs a missing one is `None`, with the reason.

    Args:
        judge (`Callable`, *optional*): A language model that compares texts: takes chat messages and returns the text
            of its answer; raises `OSError` if it cannot be reached. See `evaluation/judges.py`.
        similarity (`Callable`, *optional*): Takes two lists of phrases and returns their similarities, a float array
            of shape `(len(first), len(second))`. See `evaluation/similarity.py`.
    """

    judge: Callable[[list[dict]], str] | None = None
    similarity: Callable[[Sequence[str], Sequence[str]], np.ndarray] | None = None


class Benchmark(ABC):
    """
    One split of a benchmark.

    Args:
        data_root (`str` or `Path`, *optional*): Folder of the data; default: $SAMA_DATA_ROOT.
        split (`str`, *optional*): One of `splits`; the first by default.
        preset (`str`): "consistent", or "published" for the exact prompts of the published evaluation.
        options: Overrides of the class's `options`, by name.

    Raises:
        BenchmarkError: for an unknown split, preset or option, and for missing files.

    Attributes, set by a subclass:
        name (`str`): Used in file names and tables.
        version (`int`): Increased whenever questions or scores change.
        splits (`tuple[str, ...]`): Names of the splits; the first is the default.
        options (`dict`): Further options with their defaults. An option has the type of its default.
        max_new_tokens (`int`): Maximum length of an answer.
        headline (`str`): Name of `Measures.value` in the progress bar.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    splits: ClassVar[tuple[str, ...]]
    options: ClassVar[Mapping[str, Any]] = {}
    max_new_tokens: ClassVar[int] = 512
    headline: ClassVar[str] = "IoU"

    def __init__(self, data_root: str | Path | None = None, split=None, preset: str = "consistent", **options):
        self.data_root = find_data_root(data_root)
        self.split, self.preset = split or self.splits[0], preset
        for kind, value, known in (("split", self.split, self.splits), ("preset", preset, PRESETS)):
            if value not in known:
                raise BenchmarkError(f"{self.name} has no {kind} {value!r}, only {', '.join(known)}.")
        self.chosen = {**self.options, **{name: self._option(name, value) for name, value in options.items()}}

    def _option(self, name: str, value):
        if name not in self.options:
            known = ", ".join(self.options) or "none"
            raise BenchmarkError(f"{self.name} has no option {name!r}; it has {known}.")
        kind = type(self.options[name])
        try:
            return kind(value)
        except ValueError:
            raise BenchmarkError(f"The option {name} of {self.name} is {value!r}, expected {kind.__name__}.") from None

    def need(self, *names: str) -> list[Path]:
        """Paths of files or folders below the data root; a `BenchmarkError` names all that are missing."""
        if self.data_root is None:
            raise BenchmarkError(f"{self.name} needs the folder of its data: pass --data_root or set SAMA_DATA_ROOT.")
        paths = [self.data_root / name for name in names]
        missing = [str(path) for path in paths if not path.exists()]
        if missing:
            raise BenchmarkError(f"{self.name} ({self.split}): missing {', '.join(missing)}; see docs/data.md.")
        return paths

    @property
    def identity(self) -> dict:
        """Everything that determines the questions, ready for JSON. Image and video files are not part of it."""
        settings = {"split": self.split, "preset": self.preset, "options": dict(self.chosen)}
        return {"benchmark": self.name, "version": self.version, **settings, "annotations": self.annotations}

    @cached_property
    def annotations(self) -> str | None:
        """Hash of the contents of the annotation files; `None` without any."""
        return digest_of(self.annotation_files()) or None

    def annotation_files(self) -> list[Path]:
        """The files that questions and answers come from, in a fixed order."""
        return []

    @property
    def left_out(self) -> dict[str, int]:
        """Reason -> number of entries of the annotation files that are not asked."""
        return {}

    # Implemented by a subclass

    @abstractmethod
    def outline(self) -> dict[str, list[str]]:
        """Group -> ids of its questions, in the order in which they are asked and written."""

    @abstractmethod
    def open(self, group: str) -> SamaVideo | None:
        """The video of a group; `None` for text-only questions. `OSError` or `ValueError` if it cannot be read."""

    @abstractmethod
    def questions(self, group: str) -> list[Question]:
        """The questions of a group, in the order of `outline`."""

    @abstractmethod
    def measure(self, question: Question, prediction: Prediction) -> Measures:
        """The scores of one prediction. Never called for a prediction with an error."""

    @abstractmethod
    def summarise(self, samples: Sequence[Measures], tools: Tools) -> list[Score]:
        """The table. `samples` may cover only a part of the questions, or none."""

    # Shared

    def paired(self, predictions: Iterable[Prediction]) -> Iterator[tuple[Question, Prediction]]:
        """Predictions with their questions. Predictions with an error are skipped; one of an unknown question raises
        `BenchmarkError`. The questions of one group are in memory at a time, so predictions should come in order."""
        where = {name: group for group, names in self.outline().items() for name in names}
        group, held = None, {}
        for prediction in predictions:
            if prediction.question not in where:
                raise BenchmarkError(
                    f"The predictions contain {prediction.question!r}, which is not a question of {self.name} "
                    f"({self.split}, version {self.version})."
                )
            if prediction.error is not None:
                continue
            if where[prediction.question] != group:
                group = where[prediction.question]
                held = {question.id: question for question in self.questions(group)}
            yield held[prediction.question], prediction

    def measured(self, question: Question, prediction: Prediction) -> Measures:
        """[`Benchmark.measure`]; a prediction that does not fit its question raises `BenchmarkError` with its id."""
        if len(prediction.turns) != len(question.turns):
            raise BenchmarkError(
                f"The prediction for {question.id!r} has {len(prediction.turns)} turns, the question "
                f"{len(question.turns)}: the prediction was probably made with other files."
            )
        if question.masks and any(turn.no_target for turn in question.turns):
            for name in ("num_frames", "height", "width"):
                if not getattr(prediction, name):
                    raise BenchmarkError(
                        f"The prediction for {question.id!r} has {name} 0; where nothing is to be found it is needed."
                    )
        try:
            return self.measure(question, prediction)
        except BenchmarkError:
            raise
        except ValueError as error:
            problem = str(error).removesuffix(".")
            named = problem if repr(question.id) in problem else f"The prediction for {question.id!r}: {problem}"
            raise BenchmarkError(f"{named}.") from error

    def score(
        self,
        predictions: Iterable[Prediction],
        tools: Tools | None = None,
        measured: Mapping[str, Measures] | None = None,
    ) -> Scores:
        """
        The results of predictions.

        Args:
            predictions (iterable of [`Prediction`]): Best in the order of `outline`.
            tools ([`Tools`], *optional*): Models that scoring may use.
            measured (mapping, *optional*): Question id -> measures that were computed while asking. Their questions
                are not built and their predictions not measured again.
        """
        found = dict(measured or {})
        new = (prediction for prediction in predictions if prediction.question not in found)
        new_measures = [self.measured(*pair) for pair in self.paired(new)]
        found.update((measures.question, measures) for measures in new_measures)
        samples = [found[name] for names in self.outline().values() for name in names if name in found]
        return Scores(self.summarise(samples, tools or Tools()), samples)


def digest_of(paths: Sequence[Path]) -> str:
    """The first digits of the SHA-256 of the contents of files; "" without files. Of a file of more than 256 MiB only
    the size and the first and last 16 MiB are hashed, so a change in its middle that keeps the size goes unnoticed."""
    digest = hashlib.sha256()
    for path in paths:
        size = path.stat().st_size
        digest.update(f"{size} ".encode())
        with open(path, "rb") as file:
            if size > WHOLE_UP_TO:
                digest.update(file.read(END))
                file.seek(-END, 2)
            while block := file.read(END):
                digest.update(block)
    return digest.hexdigest()[:HASH_DIGITS] if paths else ""
