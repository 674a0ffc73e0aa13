"""
A mixture: weighted sources as one torch Dataset.

    sources:
      mevis: 4                   # each record four times per epoch, with new random draws each time
      llava: 0.5                 # half of the records, different ones in each epoch
      mine: {weight: 1, format: json_lines, files: {records: mine/records.jsonl, media: mine}}
    rendering: {preset: consistent}
    on_error: raise
    catalogue: catalogue.yaml    # relative to this file; the default

The content of a sample depends on (seed, epoch, index) alone.
"""

import json
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from .catalogue import Entry, open_source, parse_entry, read_catalogue, read_yaml
from .collator import broken_sample
from .files import write_text_atomically
from .frames import MEDIA_ERRORS
from .lengths import estimate_lengths
from .records import DataError, require_field, require_type
from .rendering import NO_TARGET, NothingToAskError, Renderer, RenderSettings, Sample


logger = logging.getLogger(__name__)

MIXTURE_KEYS = {"sources", "rendering", "on_error", "catalogue"}
ON_ERROR = ("raise", "skip")
MAX_WEIGHT = 1_000_000  # times that a record is read in an epoch
COUNTER_NAMES = ("read", "skipped", "shortened", "rounds left out")
# Each loader worker has a row of counters; the last row belongs to the main process
COUNTER_ROWS = 257


class Mixture(Dataset):
    """
    `mixture[index]` is a [`Sample`], or `None` if it was skipped; always the same for one seed and index. Sample `i`
    of an epoch has the index `epoch * len(mixture) + i`, so loader workers need not know the epoch.

    Args:
        sources (sequence of `(source, weight)`): Opened sources, and how often each is read in an epoch.
        renderer ([`Renderer`]): Makes samples of records.
        seed (`int`): Seed of the run.
        on_error (`str`): "raise" the [`DataError`] of a broken sample, or "skip" it: the sample is counted and logged,
            and not replaced by another.
    """

    def __init__(self, sources: Sequence[tuple], renderer: Renderer, seed: int = 0, on_error: str = "raise"):
        if on_error not in ON_ERROR:
            raise DataError(f"is {on_error!r}, expected one of {', '.join(ON_ERROR)}", field="on_error")
        if not sources:
            raise DataError("is empty", field="sources")
        self.sources, self.weights = [source for source, _ in sources], [weight for _, weight in sources]
        self.renderer, self.seed, self.on_error = renderer, seed, on_error
        self._counts = [round(len(source) * weight) for source, weight in sources]
        self._ends = np.cumsum(self._counts)
        self._lengths: np.ndarray | None = None
        self._partial_order: tuple = (None, None)  # (epoch, source), order of its records
        self._announced: set[str] = set()  # sources of which this process said that questions are left out
        # Shared with the loader workers, who count what the main process reports
        self._counters = torch.zeros(COUNTER_ROWS, len(sources), len(COUNTER_NAMES), dtype=torch.int64).share_memory_()
        empty = [source.name for source, count in zip(self.sources, self._counts, strict=True) if count < 1]
        if empty:
            raise DataError("has no sample with this weight", field=f"sources.{empty[0]}")

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Sample | None:
        if index < 0:
            raise IndexError(f"a mixture has no sample {index}: its indices start at 0 and have no end")
        number, record = self.locate(index)
        try:
            sample = self.render(number, record, np.random.default_rng([self.seed, *divmod(index, len(self))]))
        except NothingToAskError:  # a choice of the preset, no error
            self._announce(number)
            self._count(number, {"skipped": 1, "rounds left out": self._num_questions(number, record)})
            return None
        except DataError as error:
            if self.on_error == "raise":
                raise
            self._count(number, {"skipped": 1})
            logger.warning("skipped: %s", error)
            return None
        if NO_TARGET in sample.left_out:
            self._announce(number)
        sample.source_number, left_out = number, sum(sample.left_out.values())
        self._count(number, {"read": 1, "shortened": int(left_out > 0), "rounds left out": left_out})
        return sample

    def leave_out(self, sample: Sample, error: Exception) -> None:
        """
        What a collator does with a sample whose video breaks when its frames are decoded: as with a sample that is
        broken from the beginning, it is counted and logged, or the error is raised.

        Raises:
            DataError: if `on_error` is "raise".
        """
        broken = broken_sample(sample, error)
        if self.on_error == "raise":
            raise broken from error
        self._count(sample.source_number, {"read": -1, "skipped": 1})
        logger.warning("skipped: %s", broken)

    def _announce(self, number: int) -> None:
        """Says once for each source that questions are left out; how many is counted."""
        name = self.sources[number].name
        if name not in self._announced:
            self._announced.add(name)
            logger.warning("%s: has %s", name, NO_TARGET)

    def _num_questions(self, number: int, record: int) -> int:
        return sum(message["role"] == "user" for message in self.sources[number].record(record)["messages"])

    def locate(self, index: int) -> tuple[int, int]:
        """The number of the source and the index of the record of a sample."""
        epoch, index = divmod(index, len(self))
        number = int(np.searchsorted(self._ends, index, side="right"))
        place = index - int(self._ends[number]) + self._counts[number]
        size = len(self.sources[number])
        repeat, record = divmod(place, size)
        # The last, partial repeat has only some of the records, different ones in each epoch
        if (repeat + 1) * size > self._counts[number]:
            if self._partial_order[0] != (epoch, number):
                order = np.random.default_rng([self.seed, epoch, number]).permutation(size)
                self._partial_order = (epoch, number), order
            record = int(self._partial_order[1][record])
        return number, record

    def render(self, number: int, index: int, rng: np.random.Generator) -> Sample:
        """Renders record `index` of source `number` with this generator; [`DataError`] if it is broken."""
        source = self.sources[number]
        record = source.record(index)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about damaged videos, which validation reports
                video = source.visual(record)
            return self.renderer(record, video, source.lookup, rng)
        except DataError as error:
            raise source.with_context(error).with_context(index=record["id"]) from error
        except MEDIA_ERRORS as error:
            raise DataError(str(error).rstrip("."), source=source.name, index=record["id"]) from error

    @property
    def lengths(self) -> np.ndarray:
        """Estimated tokens of each sample of an epoch, repeats included: int64 array of shape `(len(self),)`."""
        if self._lengths is None:
            found = []
            for source, count in zip(self.sources, self._counts, strict=True):
                each = estimate_lengths(source.columns(), self.renderer.processor, self.renderer.settings.turns)
                # The records of a partial repeat differ by epoch, so it gets the mean
                whole = np.tile(each, count // len(each))
                found += [whole, np.full(count - len(whole), int(each.mean()))]
            self._lengths = np.concatenate(found)
        return self._lengths

    def _count(self, number: int, counts: dict[str, int]) -> None:
        worker = get_worker_info()
        row = COUNTER_ROWS - 1 if worker is None else worker.id % (COUNTER_ROWS - 1)
        for name, count in counts.items():
            self._counters[row, number, COUNTER_NAMES.index(name)] += count

    def report(self) -> dict[str, dict[str, int]]:
        """Source -> samples read, skipped, shortened, and rounds left out so far by all workers of this process."""
        totals = self._counters.sum(dim=0).tolist()
        return {
            source.name: dict(zip(COUNTER_NAMES, row, strict=True))
            for source, row in zip(self.sources, totals, strict=True)
        }

    def resolved(self) -> dict:
        """Everything that determines the samples, for the records of a run."""
        sources = {}
        for source, weight, count in zip(self.sources, self.weights, self._counts, strict=True):
            entry = {key: value for key, value in vars(source.entry).items() if key != "name" and value}
            sources[source.name] = {"weight": weight, "records": len(source), "samples": count, **entry}
            sources[source.name] |= {"left out by the reader": dict(source.dropped)} if source.dropped else {}
        rendering = vars(self.renderer.settings)
        return {
            "samples": len(self), "seed": self.seed, "on_error": self.on_error, "rendering": rendering,
            "sources": sources,
        }  # fmt: skip

    def save(self, path: str | Path) -> None:
        """Writes [`Mixture.resolved`] as JSON."""
        write_text_atomically(path, json.dumps(self.resolved(), indent=2, default=list) + "\n")

    def __str__(self) -> str:
        rows = [("source", "weight", "records", "samples", "share")]
        for source, weight, count in zip(self.sources, self.weights, self._counts, strict=True):
            share = f"{count / len(self):.1%}"
            rows.append((source.name, f"{weight:g}", f"{len(source):,}", f"{count:,}", share))
        rows.append(("together", "", "", f"{len(self):,}", ""))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        return "\n".join(
            "  ".join(cell.ljust(width) if not column else cell.rjust(width)
                      for column, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip()
            for row in rows
        )  # fmt: skip


def read_mixture(path: str | Path) -> tuple[list[tuple[Entry, float]], dict]:
    """
    The entries and weights of the sources of a mixture file, and its settings `rendering` and `on_error`.

    Raises:
        DataError: if the file has an unknown key, or names a source that is not in the catalogue.
    """
    content = read_yaml(path)
    try:
        unknown = sorted(set(content) - MIXTURE_KEYS, key=str)
        if unknown:
            raise DataError(f"is unknown, expected {', '.join(sorted(MIXTURE_KEYS))}", field=str(unknown[0]))
        catalogue_path = Path(path).parent / require_field(content, "catalogue", str, default="catalogue.yaml")
        needs_catalogue = "catalogue" in content or catalogue_path.is_file()
        catalogue = read_catalogue(catalogue_path) if needs_catalogue else {}
        listed = require_field(content, "sources", dict)
        entries = [
            _weighted_entry(require_type(name, str, "sources"), value, catalogue) for name, value in listed.items()
        ]
        if not entries:
            raise DataError("is empty", field="sources")
    except DataError as error:
        raise error.with_context(file=path) from error
    return entries, {key: content[key] for key in ("rendering", "on_error") if key in content}


def _weighted_entry(name: str, value, catalogue: dict[str, Entry]) -> tuple[Entry, float]:
    field = f"sources.{name}"
    weight, changes = value, {}
    if isinstance(value, dict):
        weight = require_field(value, "weight", (int, float), default=1, at=field)
        changes = {key: content for key, content in value.items() if key != "weight"}
    if not 0 < require_type(weight, (int, float), field) <= MAX_WEIGHT:
        raise DataError(
            f"has the weight {weight}, expected a number greater than 0 and up to {MAX_WEIGHT}", field=field
        )
    if "format" in changes:
        return parse_entry(name, changes), weight
    if name not in catalogue:
        known = ", ".join(sorted(catalogue)) or "nothing"
        raise DataError(f"is not in the catalogue, which has {known}", field=field)
    entry = catalogue[name]
    if changes:  # options for this mixture alone
        known = vars(entry) | {
            "options": {**entry.options, **require_field(changes, "options", dict, default={}, at=field)}
        }
        unknown = sorted(set(changes) - {"options"}, key=str)
        if unknown:
            raise DataError("is unknown, expected weight, options or a whole source", field=f"{field}.{unknown[0]}")
        entry = Entry(**known)
    return entry, weight


def load_mixture(
    path: str | Path,
    processor,
    seed: int = 0,
    root=None,
    cache=None,
    on_error: str | None = None,
    rendering: dict | None = None,
) -> Mixture:
    """
    Opens a mixture file.

    Args:
        path (`str` or `Path`): The YAML file.
        processor ([`SamaProcessor`]): The processor that samples are rendered for.
        seed (`int`): Seed of the run.
        root, cache (*optional*): See [`open_source`].
        on_error (`str`, *optional*): Overrides `on_error` of the file.
        rendering (`dict`, *optional*): Overrides settings of the same name in the file's `rendering`.
    """
    entries, settings = read_mixture(path)
    action = on_error or settings.get("on_error", "raise")
    if action not in ON_ERROR:
        raise DataError(f"is {action!r}, expected one of {', '.join(ON_ERROR)}", file=path, field="on_error")
    try:
        written = require_type(settings.get("rendering", {}), dict, "rendering")
        rendered = RenderSettings(**{**written, **(rendering or {})})
    except (TypeError, ValueError) as error:
        raise DataError(str(error).rstrip("."), file=path, field="rendering") from error
    sources = [(open_source(entry, root, cache, action), weight) for entry, weight in entries]
    return Mixture(sources, Renderer(processor, rendered), seed, action)
