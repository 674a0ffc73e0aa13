"""
The files of a run: who answered (`run.json`) and what (`predictions.jsonl`, one line a question).

While a run is going each process appends to a part of its own, `predictions.part0.jsonl`; at the end the parts are put
together in the order of the benchmark. A run that was cut off left parts, whatever their number: all complete lines in
them count as answered. A line that was cut by the end of the process is no answer, and is asked again. Where
the system has locks, a part is locked while it is written or put together.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TextIO

from sama.benchmarks.benchmark import Prediction


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


PREDICTIONS, RUN = "predictions.jsonl", "run.json"
# What must agree for two runs to be one
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


class PredictionError(ValueError):
    """A file of predictions that cannot be used; says in one sentence where, why, and what can be done."""


@dataclass(frozen=True)
class Line:
    """Where a prediction lies: its file, the place of its first byte, its length with its newline, if it has one, and
    whether the question failed."""

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
        """The file that process `rank` appends to."""
        return self.folder / f"predictions.part{rank}.jsonl"

    def parts(self) -> list[Path]:
        """All parts, in the order of their numbers."""
        found = self.folder.glob("predictions.part*.jsonl")
        return sorted(found, key=lambda path: (len(path.name), path.name))

    # Who answered

    def check_run(self, identity: dict, accept_foreign: bool = False) -> None:
        """
        Raise [`PredictionError`] if the predictions that lie here are another model's, or answers to other questions.

        Args:
            identity (`dict`): What `run.json` must say under the names in `IDENTITY`; those it lacks are not compared.
            accept_foreign (`bool`): Take them all the same.
        """
        if accept_foreign or not (self.merged.exists() or self.parts()):
            return
        if not self.run_file.exists():
            raise PredictionError(
                f"{self.folder} holds predictions but no {RUN} that says whose they are; give another --output, "
                "or --accept_foreign to take them for this model's."
            )
        before = self.read_run()
        for name in IDENTITY:
            if name in identity and before.get(name) != identity[name]:
                raise PredictionError(
                    f"The predictions in {self.folder} are of another run: {name} is {_short(before.get(name))} there "
                    f"and {_short(identity[name])} here; give another --output, or --accept_foreign to mix them."
                )

    def need_some(self, about: dict) -> None:
        """Raise [`PredictionError`] if there is nothing to score. Predictions of nobody are from now on those of the
        run `about`."""
        if not (self.merged.exists() or self.parts()):
            raise PredictionError(
                f"There are no predictions in {self.folder}; leave out --score_only to ask for some."
            )
        if not self.run_file.exists():
            self.write_run(about)

    def read_run(self) -> dict:
        """What `run.json` says."""
        try:
            return json.loads(self.run_file.read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError) as error:
            raise PredictionError(f"{self.run_file} is missing or no JSON ({error}).") from error

    def write_run(self, about: dict) -> None:
        """Writes `run.json`, whole or not at all; other runs that went before stay in it under "before"."""
        if self.run_file.exists():
            last = self.read_run()
            before = last.pop("before", [])
            if any(last.get(name) != about.get(name) for name in (*IDENTITY, "commit")):
                before = [*before, last]
            about = {**about, **({"before": before} if before else {})}
        write_whole(self.run_file, json.dumps(about, indent=2) + "\n")

    # What was answered

    def index(self) -> dict[str, Line]:
        """Question id -> where its last prediction lies; where one failed and another did not, the last that did not:
        the order of the parts says nothing about which is newer."""
        found: dict[str, Line] = {}
        for path in [self.merged, *self.parts()]:
            if path.exists():
                # Nobody appends to the merged file: what stands at its end is a line, with or without a newline
                for start, raw, prediction in complete_lines(path, torn=path == self.merged):
                    name, failed = prediction.question, prediction.error is not None
                    if name not in found or found[name].failed or not failed:
                        found[name] = Line(path, start, len(raw), failed)
        return found

    def merge(self, order: Iterable[str]) -> None:
        """Puts everything into one file, in this order, and removes the parts. Questions that are not in `order` (an
        earlier run with a larger limit) follow in the order in which they lie. [`PredictionError`] if another run
        still writes a part."""
        with ExitStack() as stack:
            parts = self.parts()
            for path in parts:
                _lock(stack.enter_context(open(path, "rb")), path)
            lines = self.index()
            wanted = {name: lines.pop(name) for name in list(order) if name in lines}
            temporary = self.merged.with_suffix(".tmp")
            with open(temporary, "wb") as file:
                for raw in self._raw([*wanted.values(), *lines.values()]):
                    file.write(raw.rstrip(b"\n") + b"\n")
            os.replace(temporary, self.merged)
            for path in parts:
                path.unlink()

    def read(self, names: Sequence[str], lines: Mapping[str, Line] | None = None) -> Iterator[Prediction]:
        """The predictions for these questions that exist, one by one; `lines` is what `index` gave, if it is known."""
        lines = self.index() if lines is None else lines
        for raw in self._raw(lines[name] for name in names if name in lines):
            yield Prediction.from_dict(json.loads(raw))

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
    """Appends predictions to a part, each flushed to the disk before the next is asked for. A line that was cut off at
    the end of the file is removed first. [`PredictionError`] if another run writes this part."""

    def __init__(self, path: Path):
        self.file = open(path, "a", encoding="utf-8")
        try:
            _lock(self.file, path)
        except PredictionError:
            self.file.close()
            raise
        os.truncate(path, sum(len(raw) for _, raw in _lines(path)))

    def write(self, prediction: Prediction) -> None:
        self.file.write(json.dumps(prediction.to_dict(), ensure_ascii=False, separators=(",", ":")) + "\n")
        self.file.flush()
        os.fsync(self.file.fileno())

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        self.file.close()


def _lock(file: BinaryIO | TextIO, path: Path) -> None:
    """Locks an open file until it is closed; [`PredictionError`] if another run has done so."""
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise PredictionError(f"Another run is writing {path}; wait for its end, or give another --output.") from error
    except OSError:  # a file system without locks
        return


def _lines(path: Path, torn: bool = False) -> Iterator[tuple[int, bytes]]:
    """Start and bytes of each line that ends in a newline, with `torn` also of a last one that does not."""
    start = 0
    with open(path, "rb") as file:
        for raw in file:
            if raw.endswith(b"\n") or torn:
                yield start, raw
            start += len(raw)


def complete_lines(path: Path, torn: bool = False) -> Iterator[tuple[int, bytes, Prediction]]:
    """Start, bytes and content of each complete line, with `torn` also of a last one without a newline;
    [`PredictionError`] with its number for one that is broken."""
    for number, (start, raw) in enumerate(_lines(path, torn), start=1):
        try:
            prediction = Prediction.from_dict(json.loads(raw))
        except (ValueError, KeyError, TypeError) as error:
            raise PredictionError(
                f"{path}, line {number} is no prediction ({type(error).__name__}: {error}); remove the line, and the "
                "question is asked again."
            ) from error
        yield start, raw, prediction


def write_whole(path: Path, text: str) -> None:
    """Writes a file under its name only when it is complete."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _short(value) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
