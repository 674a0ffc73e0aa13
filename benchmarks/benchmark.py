"""
What a benchmark is: questions about videos, and what answers to them are worth. It never sees a model.

    outline()            which questions there are, in order, under the video that they are about; nothing is opened
    open(group)          the video of a group, opened
    questions(group)     the questions of a group with everything that is needed to ask and to judge them
    measure(...)         what one answer is worth: numbers and texts of one sample
    summarise(...)       the table, from the measures of all samples

A run asks `questions(group)` of the video `open(group)`, writes a line for each ([`Prediction`]), and scores the lines
afterwards: `score` needs the file and the benchmark's own data, no model.

A new benchmark is a subclass with these five methods, a name in `registry.py`, and a test with scores counted by hand.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from sama.objects_sama import MaskTrack, Region
from sama.video_sama import SamaVideo


PRESETS = ("consistent", "published")
HISTORIES = ("own", "reference")
HASH_DIGITS, WHOLE_UP_TO, END = 16, 2**28, 2**24  # annotation files beyond this size are hashed by their ends
# The masks of an object through a video: a compressed run-length code for each frame, `None` where it is not seen
Track = list[dict | None]


class BenchmarkError(ValueError):
    """A benchmark that cannot be run as asked; says in one sentence what is missing, and where it was expected."""


# What is asked


@dataclass(frozen=True)
class Turn:
    """
    A question of a conversation, and what is known about its answer.

    Args:
        text (`str`): The words; every `<region>` in them stands for the next of `regions`.
        regions (sequence of [`Region`] or [`MaskTrack`]): What is pointed at. Of a track the processor takes the first
            of the frames that the model sees in full on which the object is visible.
        reference (`str`, *optional*): The right answer with its tags, `<p> a dog </p> [SEG] runs.`; `None` where only
            a server knows it.
        targets (sequence of `Track`): The true masks, one track for each [SEG] of the reference.
        info (`dict`): What the benchmark needs to judge the answer. The run does not look at it.
    """

    text: str
    regions: Sequence[Region | MaskTrack] = ()
    reference: str | None = None
    targets: Sequence[Track] = ()
    info: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Question:
    """
    One sample: a conversation of one or several turns, all of them asked, about the video of its group.

    Args:
        id (`str`): Its name, unique in the benchmark and the same in every run.
        group (`str`): The video, whose features all questions of the group share.
        turns (sequence of [`Turn`]): At least one.
        history (`str`): What stands before a later turn: the model's "own" answers, or the "reference" ones.
        masks (`bool`): Whether the objects of the answers are tracked; without it a [SEG] costs nothing.
        layout (`str`, *optional*): Newlines of the text, of `prompts_sama.TURN_FORMATS`, instead of the checkpoint's.
    """

    id: str
    group: str
    turns: Sequence[Turn]
    history: str = "own"
    masks: bool = True
    layout: str | None = None

    def __post_init__(self):
        if not self.turns:
            raise ValueError(f"The question {self.id!r} has no turn.")
        if self.history not in HISTORIES:
            raise ValueError(f"history is {self.history!r}, expected one of {', '.join(HISTORIES)}.")


# What is answered: one line of the predictions file


@dataclass(frozen=True)
class PredictedObject:
    """A phrase of an answer, its masks (empty if they were not asked for), and the model's confidence in them."""

    phrase: str
    masks: Track
    score: float | None = None


@dataclass(frozen=True)
class PredictedTurn:
    """An answer as the model wrote it, `text` with tags, and an object for each of its [SEG]s."""

    text: str
    objects: list[PredictedObject] = field(default_factory=list)


@dataclass(frozen=True)
class Prediction:
    """
    The answers to a question; one line of the predictions file.

    Args:
        question (`str`): Its id.
        turns (`list[PredictedTurn]`): One for each turn; none if it failed.
        num_frames, height, width (`int`): Of the video, 0 if there is none.
        error (`str`, *optional*): Why there is no answer: the video could not be read, or the question not asked.
    """

    question: str
    turns: list[PredictedTurn] = field(default_factory=list)
    num_frames: int = 0
    height: int = 0
    width: int = 0
    error: str | None = None

    def to_dict(self) -> dict:
        """Ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, line: Mapping) -> "Prediction":
        """The inverse of [`to_dict`]; `KeyError` or `TypeError` if the line is not a prediction."""
        turns = [
            PredictedTurn(turn["text"], [PredictedObject(**item) for item in turn["objects"]])
            for turn in line["turns"]
        ]
        return cls(**{**line, "turns": turns})


# What it is worth


@dataclass
class Measures:
    """
    What the answers to one question are worth.

    Args:
        question, group (`str`): Which question.
        value (`float`, *optional*): The one number that says how good the sample is, from 0 to 1: for the progress
            bar, and to find the best and the worst cases.
        ious (`list[float]`): Of the true objects with what was found for them, for the plots.
        num_frames, num_objects (`int`): Of the video, and true objects asked for.
        facts (`dict`): Whatever [`Benchmark.summarise`] needs, ready for JSON: counts, texts, kinds.
    """

    question: str
    group: str
    value: float | None = None
    ious: list[float] = field(default_factory=list)
    num_frames: int = 0
    num_objects: int = 0
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class Score:
    """
    One row of the results.

    Args:
        name (`str`): What was computed: "mIoU".
        value (`float`, *optional*): As it should be computed. `None` if it was not, and `reason` says why; never 0.
        count (`int`): Samples, objects or questions behind it.
        part (`str`): Of what: a source, a kind of question; "all" for everything.
        published (`float`, *optional*): As the release computes it, where that differs.
        interval (`(float, float)`, *optional*): 95 % confidence.
        chance (`float`, *optional*): What guessing gives.
        reason (`str`): Why there is no value.
        lower_is_better (`bool`): For the reader; most scores are better when higher.
    """

    name: str
    value: float | None
    count: int
    part: str = "all"
    published: float | None = None
    interval: tuple[float, float] | None = None
    chance: float | None = None
    reason: str = ""
    lower_is_better: bool = False

    def __post_init__(self):
        if self.value is None and not self.reason:
            raise ValueError(f"The score {self.name!r} of {self.part!r} has no value and no reason.")


@dataclass
class Scores:
    """The table, and the samples behind it."""

    rows: list[Score]
    samples: list[Measures]


@dataclass(frozen=True)
class Tools:
    """
    What scoring may use besides the predictions; a score that needs what is missing is `None` with the reason.

    Args:
        judge (`Callable`, *optional*): A language model that compares texts: chat messages to the text of its answer;
            `OSError` if it cannot be reached. See `evaluation/judges.py`.
        similarity (`Callable`, *optional*): Two lists of phrases to their similarities, float array of shape
            `(len(first), len(second))`. See `evaluation/similarity.py`.
    """

    judge: Callable[[list[dict]], str] | None = None
    similarity: Callable[[Sequence[str], Sequence[str]], np.ndarray] | None = None


class Benchmark(ABC):
    """
    A benchmark, opened for one split.

    Args:
        data_root (`str` or `Path`, *optional*): Folder of the data; $SAMA_DATA_ROOT where that is set.
        split (`str`, *optional*): One of `splits`; the first by default.
        preset (`str`): "consistent", or "published": questions worded and laid out as the published evaluation does.
        options: Instead of the class's own `options`, by name.

    Raises:
        BenchmarkError: for an unknown split, preset or option, and for files that are missing.

    Attributes, set by a subclass:
        name (`str`): In file names and tables. version (`int`): Raised when questions or scores change meaning.
        splits (`tuple[str, ...]`)
        options (`dict`): What else can be chosen, with defaults; their types are those of the defaults.
        max_new_tokens (`int`): Of an answer.
        headline (`str`): Name of `Measures.value` in the progress bar.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    splits: ClassVar[tuple[str, ...]]
    options: ClassVar[Mapping[str, Any]] = {}
    max_new_tokens: ClassVar[int] = 512
    headline: ClassVar[str] = "IoU"

    def __init__(self, data_root: str | Path | None = None, split=None, preset: str = "consistent", **options):
        self.data_root = None if data_root is None else Path(data_root)
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
            raise BenchmarkError(f"The option {name} of {self.name} is {value!r}, no {kind.__name__}.") from None

    def need(self, *names: str) -> list[Path]:
        """Paths of files or folders below the data root, or one sentence that names all that are missing."""
        if self.data_root is None:
            raise BenchmarkError(f"{self.name} needs the folder of its data: --data_root, or set SAMA_DATA_ROOT.")
        paths = [self.data_root / name for name in names]
        missing = [str(path) for path in paths if not path.exists()]
        if missing:
            raise BenchmarkError(f"{self.name} ({self.split}) lacks {', '.join(missing)}; see docs/data.md.")
        return paths

    @property
    def identity(self) -> dict:
        """Everything that decides what is asked, ready for JSON: two runs with the same one have the same questions
        (pictures and videos on the disk excepted)."""
        settings = {"split": self.split, "preset": self.preset, "options": dict(self.chosen)}
        return {"benchmark": self.name, "version": self.version, **settings, "annotations": self.annotations}

    @cached_property
    def annotations(self) -> str | None:
        """Digest of the annotation files, wherever they lie; `None` without any."""
        return digest_of(self.annotation_files()) or None

    def annotation_files(self) -> list[Path]:
        """The files that say what is asked and what is true, in an order of their own."""
        return []

    @property
    def left_out(self) -> dict[str, int]:
        """What of the annotation files is not asked, with the reason; for the results."""
        return {}

    # What a subclass says

    @abstractmethod
    def outline(self) -> dict[str, list[str]]:
        """Group -> ids of its questions; both in the order in which they are asked and written."""

    @abstractmethod
    def open(self, group: str) -> SamaVideo | None:
        """The video of a group; `None` for text alone. `OSError` or `ValueError` if it cannot be read."""

    @abstractmethod
    def questions(self, group: str) -> list[Question]:
        """The questions of a group, as many and in the same order as `outline` has them."""

    @abstractmethod
    def measure(self, question: Question, prediction: Prediction) -> Measures:
        """What the answers to one question are worth. Never called for a prediction with an error."""

    @abstractmethod
    def summarise(self, samples: Sequence[Measures], tools: Tools) -> list[Score]:
        """The table. `samples` may be fewer than there are questions, or none."""

    # What follows from it

    def running_value(self, question: Question, prediction: Prediction) -> float | None:
        """For the progress bar; a benchmark whose `measure` takes long has something quicker here."""
        return self.measure(question, prediction).value

    def paired(self, predictions: Iterable[Prediction]) -> Iterator[tuple[Question, Prediction]]:
        """Predictions with their questions; only one group is held at a time if they come in order. Predictions with
        an error are left out, and those of no question are a `BenchmarkError`."""
        where = {name: group for group, names in self.outline().items() for name in names}
        group, held = None, {}
        for prediction in predictions:
            if prediction.question not in where:
                raise BenchmarkError(
                    f"The predictions hold {prediction.question!r}, which is no question of {self.name} "
                    f"({self.split}, version {self.version})."
                )
            if prediction.error is not None:
                continue
            if where[prediction.question] != group:
                group = where[prediction.question]
                held = {question.id: question for question in self.questions(group)}
            yield held[prediction.question], prediction

    def score(self, predictions: Iterable[Prediction], tools: Tools | None = None) -> Scores:
        """The results of a file of predictions."""
        samples = [self.measure(*pair) for pair in self.paired(predictions)]
        return Scores(self.summarise(samples, tools or Tools()), samples)


def digest_of(paths: Sequence[Path]) -> str:
    """SHA-256 (its first digits) over the contents of files, "" for none. Of a file of more than 256 MiB its size and
    its first and last 16 MiB count, so that a change in its middle that keeps its size is not seen."""
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
