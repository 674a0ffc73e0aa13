"""
The files of a run: its settings (`run.json`) and its answers (`predictions.jsonl`, one line per question).

During a run each process appends to its own part, `predictions.part0.jsonl`. At the end the parts are merged in the
order of the benchmark. After an interrupted run all complete lines in its parts count as answered; an incomplete last
line is dropped and its question asked again. A part is locked while it is written or merged, if the file system
supports locks.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TextIO

from sama.benchmarks.benchmark import Prediction
from sama.configuration_sama import check_preset
from sama.data.files import atomic_path, write_text_atomically
from sama.data.json_text import parse_json


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


PREDICTIONS, RUN = "predictions.jsonl", "run.json"
# Settings that must agree for a run to continue another one
IDENTITY = (
    "checkpoint",
    "benchmark",
    "version",
    "split",
    "preset",
    "options",
    "annotations",
    "dtype",
    "max_new_tokens",
)
# What is named instead where the first differs because of one of these, and how settings are called in messages
PARTS = {"annotations": ("questions", "videos")}
WORDS = {
    "checkpoint": "the digest of the model",
    "annotations": "the digest of what is asked",
    "questions": "the digest of the questions",
    "videos": "the digest of the videos and their files",
}


class PredictionError(ValueError):
    """Predictions that cannot be used; the message says in one sentence where, why and what to do."""


@dataclass(frozen=True)
class Line:
    """Location of a prediction: its file, the offset of its first byte, its length including the newline, and whether
    the question failed."""

    path: Path
    start: int
    length: int
    failed: bool


class PredictionFiles:
    """
    The predictions in a folder.

    Args:
        folder (`str` or `Path`): Made if it does not exist.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.merged, self.run_file = self.folder / PREDICTIONS, self.folder / RUN

    def part(self, rank: int) -> Path:
        """The file that the process `rank` appends to."""
        return self.folder / f"predictions.part{rank}.jsonl"

    def parts(self) -> list[Path]:
        """All parts in the order of their ranks."""
        found = self.folder.glob("predictions.part*.jsonl")
        return sorted(found, key=lambda path: (len(path.name), path.name))

    # The run

    def check_run(self, identity: dict, accept_foreign: bool | None = False) -> None:
        """
        Raises [`PredictionError`] if the folder holds predictions of another model or for other questions.

        Args:
            identity (`dict`): The settings of this run; those in `IDENTITY` must equal `run.json`. Missing ones are
                not compared.
            accept_foreign (`bool` or `None`): Skip the check; `None` where a program has no such option.
        """
        if accept_foreign or not (self.merged.exists() or self.parts()):
            return
        hint = "choose another --output" + ("" if accept_foreign is None else ", or pass --accept_foreign to use them")
        if not self.run_file.exists():
            raise PredictionError(f"{self.folder} holds predictions but no {RUN}, so their model is unknown; {hint}.")
        before = self.read_run()
        for name in IDENTITY:
            if name in identity and before.get(name) != identity[name]:
                parts = (part for part in PARTS.get(name, ()) if part in before and part in identity)
                name = next((part for part in parts if before[part] != identity[part]), name)
                raise PredictionError(
                    f"The predictions in {self.folder} are from another run: {WORDS.get(name, name)} is "
                    f"{_short(before.get(name))} there and {_short(identity[name])} here; {hint}."
                )

    def need_some(self, about: dict) -> None:
        """Raises [`PredictionError`] if there is nothing to score. Predictions without `run.json` are assigned to the
        run `about`."""
        if not (self.merged.exists() or self.parts()):
            raise PredictionError(f"There are no predictions in {self.folder}; run without --score_only first.")
        if not self.run_file.exists():
            self.write_run(about)

    def read_run(self) -> dict:
        """The content of `run.json`. The preset `release` of earlier versions is read as `published`."""
        try:
            about = parse_json(self.run_file.read_bytes())
        except (OSError, ValueError) as error:
            raise PredictionError(f"{self.run_file} is missing or not valid JSON ({error}).") from error
        if not isinstance(about, dict):
            raise PredictionError(f"{self.run_file} contains {type(about).__name__} where an object is expected.")
        if about.get("preset") == "release":
            about["preset"] = check_preset("release")
        return about

    def write_run(self, about: dict) -> None:
        """Writes `run.json`. If it belongs to another run, that run is kept in it under "before"."""
        if self.run_file.exists():
            last = self.read_run()
            before = last.pop("before", [])
            if any(last.get(name) != about.get(name) for name in (*IDENTITY, "commit")):
                before = [*before, last]
            about = {**about, **({"before": before} if before else {})}
        write_text_atomically(self.run_file, json.dumps(about, indent=2) + "\n")

    # The answers

    def index(self) -> dict[str, Line]:
        """Question id -> location of its last prediction. An answer takes precedence over a failure, because the order
        of the parts does not tell which is newer."""
        found: dict[str, Line] = {}
        for path in [self.merged, *self.parts()]:
            if path.exists():
                # The merged file is complete: its last line counts with or without a newline
                for start, raw, prediction in complete_lines(path, torn=path == self.merged):
                    name, failed = prediction.question, prediction.error is not None
                    if name not in found or found[name].failed or not failed:
                        found[name] = Line(path, start, len(raw), failed)
        return found

    def merge(self, order: Iterable[str]) -> None:
        """Merges everything into one file in this order and removes the parts. Questions that are not in `order`, from
        an earlier run with a larger limit, follow at the end. [`PredictionError`] if another run is writing a part."""
        with ExitStack() as stack:
            parts = self.parts()
            for path in parts:
                _lock(stack.enter_context(open(path, "rb")), path)
            lines = self.index()
            wanted = {name: lines.pop(name) for name in list(order) if name in lines}
            with atomic_path(self.merged) as temporary, open(temporary, "wb") as file:
                for raw in self._raw([*wanted.values(), *lines.values()]):
                    file.write(raw.rstrip(b"\n") + b"\n")
            for path in parts:
                path.unlink()

    def read(self, names: Sequence[str], lines: Mapping[str, Line] | None = None) -> Iterator[Prediction]:
        """Yields the existing predictions for these questions; `lines` is the result of `index`, if available."""
        lines = self.index() if lines is None else lines
        for raw in self._raw(lines[name] for name in names if name in lines):
            yield Prediction.from_dict(parse_json(raw))

    def _raw(self, lines: Iterable[Line]) -> Iterator[bytes]:
        opened = {}
        try:
            for line in lines:
                if line.path not in opened:
                    opened[line.path] = open(line.path, "rb")
                opened[line.path].seek(line.start)
                yield opened[line.path].read(line.length)
        finally:
            for file in opened.values():
                file.close()


class PredictionWriter:
    """Appends predictions to a part and flushes each one to disk. An incomplete line at the end of the file is removed
    first. [`PredictionError`] if another run is writing this part."""

    def __init__(self, path: Path):
        self.file = open(path, "a", encoding="utf-8")
        try:
            _lock(self.file, path)
        except PredictionError:
            self.file.close()
            raise
        os.truncate(path, sum(len(raw) for _, raw in _lines(path)))

    def write(self, prediction: Prediction) -> None:
        # NaN would be written as a line that no reader takes
        line = json.dumps(prediction.to_dict(), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        self.file.write(line + "\n")
        self.file.flush()
        os.fsync(self.file.fileno())

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        self.file.close()


def _lock(file: BinaryIO | TextIO, path: Path) -> None:
    """Locks an open file until it is closed; [`PredictionError`] if another run holds the lock."""
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise PredictionError(
            f"Another run is writing {path}; wait for its end, or choose another --output."
        ) from error
    except OSError:  # a file system without locks
        return


def _lines(path: Path, torn: bool = False) -> Iterator[tuple[int, bytes]]:
    """Offset and bytes of each line; a last line without a newline is included only if `torn` is set."""
    start = 0
    with open(path, "rb") as file:
        for raw in file:
            if raw.endswith(b"\n") or torn:
                yield start, raw
            start += len(raw)


def complete_lines(path: Path, torn: bool = False) -> Iterator[tuple[int, bytes, Prediction]]:
    """Offset, bytes and prediction of each line, see `_lines`; [`PredictionError`] with the line number for an invalid
    line."""
    for number, (start, raw) in enumerate(_lines(path, torn), start=1):
        try:
            prediction = Prediction.from_dict(parse_json(raw))
        except ValueError as error:
            raise PredictionError(
                f"{path}, line {number} is not a valid prediction ({type(error).__name__}: {error}); remove the line "
                "to ask its question again."
            ) from error
        yield start, raw, prediction


def _short(value) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
