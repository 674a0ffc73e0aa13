"""Reads every record of a mixture once and reports what is missing, broken, or does not fit."""

import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from sama.video_sama import SamaVideo

from .catalogue import Entry, open_source
from .mixture import read_mixture
from .records import DataError, decode_object
from .rendering import NO_TARGET, NothingToAskError, Renderer, RenderSettings


MISSING, UNDECODABLE, UNFIT = "missing files", "undecodable frames", "masks that do not fit"
DAMAGED = "damaged videos"
MISMATCH, BROKEN, UNREADABLE = "phrase/mask mismatches", "broken items", "source cannot be opened"
UNRENDERED, HIDDEN = "samples that cannot be rendered", "objects visible in no frame"
NOTES = {HIDDEN}  # counted, but not a failure
MAX_EXAMPLES = 20  # messages of each kind in a report
PRINTED_EXAMPLES = 3
FRAMES_PER_CHUNK = 8  # masks that are decoded at a time
RECORDS_PER_TASK = 16


class Finding(NamedTuple):
    """Something wrong with a record."""

    kind: str
    message: str


class ValidationSettings(NamedTuple):
    """
    What a worker process needs to open the sources by itself; everything in it can be pickled.

    Attributes:
        entries (`list[Entry]`): The sources that can be opened.
        rendering (`dict`): Arguments of [`RenderSettings`].
        load_processor (`callable`): Returns the [`SamaProcessor`] that samples are rendered for.
        root, cache (*optional*): See [`open_source`].
        all_frames (`bool`): Whether all frames of a video are decoded, not only those that training uses.
    """

    entries: list[Entry]
    rendering: dict
    load_processor: Callable
    root: str | None
    cache: str | None
    all_frames: bool


class RecordChecker:
    """Opened sources, and the check of one of their records."""

    def __init__(self, settings: ValidationSettings, sources: list | None = None):
        torch.set_num_threads(1)
        self.all_frames = settings.all_frames
        self.sources = sources or [
            open_source(entry, settings.root, settings.cache, "skip") for entry in settings.entries
        ]
        self.renderer = Renderer(settings.load_processor(), RenderSettings(**settings.rendering))

    def check_all(self, number: int, indices: range) -> tuple[int, Counter, list[Finding]]:
        """Checks some records of source `number`; returns the number, their counts and their findings."""
        counts, findings = Counter(), []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the report names the same problems
            for index in indices:
                more, found = self.check(number, index)
                counts.update(more)
                findings += found
        return number, counts, findings

    def check(self, number: int, index: int) -> tuple[Counter, list[Finding]]:
        """Counts of what record `index` of source `number` contains, and what is wrong with it."""
        source, counts, findings = self.sources[number], Counter(records=1), []
        record = source.record(index)
        counts["objects"] = len(record.get("objects", {}))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                video = source.visual(record)
            except DataError as error:
                kind = MISSING if error.missing else UNDECODABLE
                return counts, [Finding(kind, str(source.with_context(error)))]
            if video is not None:
                findings += self._check_frames(record, video, counts)
        place = f"{record['source']}, item {record['id']}"
        findings += [Finding(DAMAGED, f"{place}: {one.message}") for one in caught if one.category is UserWarning]
        if video is not None:
            for name in record.get("objects", {}):
                findings += self._check_masks(source, record, video, name, counts)
        if all(finding.kind in NOTES for finding in findings):
            findings += self._check_sample(number, index, record, video, counts)
        return counts, findings

    def _check_frames(self, record: dict, video: SamaVideo, counts: Counter) -> Iterator[Finding]:
        choice = self.renderer.processor.choose_frames(video)
        used = sorted({*choice.context, *choice.prompted})
        for frame in range(len(video)) if self.all_frames else used:
            try:
                video[frame]
            except (OSError, ValueError) as error:
                yield Finding(UNDECODABLE, f"{record['source']}, item {record['id']}: {error}")
                return
            counts["frames decoded"] += 1

    def _check_masks(self, source, record: dict, video: SamaVideo, name: str, counts: Counter) -> Iterator[Finding]:
        size, number, visible, found = (video.height, video.width), len(video), False, {}

        def lookup(store: str, key: str) -> list:
            if (store, key) not in found:
                found[store, key] = source.lookup(store, key)
            return found[store, key]

        for start in range(0, number, FRAMES_PER_CHUNK):
            frames = range(start, min(start + FRAMES_PER_CHUNK, number))
            try:
                masks = decode_object(record, name, size, number, lookup, frames)
            except DataError as error:
                yield Finding(UNFIT, str(source.with_context(error)))
                return
            counts["masks decoded"] += len(masks)
            visible = visible or bool(masks.any())
        if not visible:
            place = f"{record['source']}, item {record['id']}, field 'objects.{name}'"
            yield Finding(HIDDEN, f"{place}: is never visible.")

    def _check_sample(
        self, number: int, index: int, record: dict, video: SamaVideo | None, counts: Counter
    ) -> Iterator[Finding]:
        rng = np.random.default_rng([number, index])
        try:
            sample = self.renderer(record, video, self.sources[number].lookup, rng)
        except NothingToAskError:
            counts[NO_TARGET] += sum(message["role"] == "user" for message in record["messages"])
            return
        except DataError as error:
            yield Finding(UNRENDERED, str(self.sources[number].with_context(error)))
            return
        counts["questions"] += sum(message["role"] == "user" for message in sample.messages)
        counts["regions"] += sum("region" in part for message in sample.messages for part in message["content"])
        counts["[SEG]"] += len(sample.objects)
        text = self.renderer.processor.apply_chat_template(
            sample.messages,
            tokenize=False,
            add_generation_prompt=False,
            turn_format=sample.turn_format,
            frames=sample.frame_choice,
        )
        parts = [part for message in sample.messages for part in message["content"]]
        own_words = sum(part.get("text", "").count("[SEG]") for part in parts)  # of the data, which are plain text
        number = text.count("[SEG]") - own_words
        if number != len(sample.targets):
            problem = f"{number} [SEG] in the text but {len(sample.targets)} masks"
            yield Finding(MISMATCH, f"{record['source']}, item {record['id']}, field 'messages': {problem}.")
        counts.update(sample.left_out)


class FirstRecords:
    """The first records of a source, with the source's own interface."""

    def __init__(self, source, limit: int):
        self._source, self._limit = source, limit
        self.name, self.dropped, self.broken = source.name, source.dropped, source.broken
        self.record, self.visual = source.record, source.visual
        self.lookup, self.with_context = source.lookup, source.with_context

    def __len__(self) -> int:
        return min(self._limit, len(self._source))


class MixtureValidator:
    """
    Validates a mixture file.

    Args:
        path (`str` or `Path`): The mixture file.
        load_processor (`callable`): Returns the [`SamaProcessor`] that samples are rendered for. Worker processes call
            it too, so it must be possible to pickle it.
        root, cache (*optional*): See [`open_source`].
        all_frames (`bool`): Whether all frames of a video are decoded, not only those that training uses.
        limit (`int`, *optional*): Only the first so many records of each source.

    Attributes:
        sources (`list`): The sources that could be opened.

    Raises:
        DataError: if the mixture file itself is wrong. A source that cannot be opened is part of the report.
    """

    def __init__(
        self,
        path: str | Path,
        load_processor: Callable,
        root: str | None = None,
        cache: str | None = None,
        all_frames: bool = False,
        limit: int | None = None,
    ):
        self.path = path
        entries, settings = read_mixture(path)
        rendering = settings.get("rendering", {})
        try:
            RenderSettings(**rendering)
        except (TypeError, ValueError) as error:
            raise DataError(str(error).rstrip("."), file=path, field="rendering") from error
        self.sources, self._weights, self._reports, opened = [], [], {}, []
        for entry, weight in entries:
            try:
                source = open_source(entry, root, cache, "skip")
            except DataError as error:
                self._reports[entry.name] = {
                    "weight": weight,
                    "counts": {},
                    "problems": {UNREADABLE: 1},
                    "examples": {UNREADABLE: [str(error)]},
                }
            else:
                self.sources.append(source if limit is None else FirstRecords(source, limit))
                self._weights.append(weight)
                opened.append(entry)
        self._settings = ValidationSettings(opened, rendering, load_processor, root, cache, all_frames)

    def checker(self) -> RecordChecker:
        """A checker over the sources of this process."""
        return RecordChecker(self._settings, self.sources)

    def run(self, workers: int = 0) -> dict:
        """
        Checks all records.

        Args:
            workers (`int`): Number of processes; 0 stays in this one.

        Returns:
            `dict`: `mixture`, `problems` (how many) and `sources` (name -> `weight`, `counts`, `problems`, `notes`,
            `left out by the reader`, `examples`), ready for JSON.
        """
        results = [(Counter(), [Finding(BROKEN, str(error)) for error in source.broken]) for source in self.sources]
        tasks = [
            (number, range(start, min(start + RECORDS_PER_TASK, len(source))))
            for number, source in enumerate(self.sources)
            for start in range(0, len(source), RECORDS_PER_TASK)
        ]
        with tqdm(total=sum(map(len, self.sources)), unit="record", disable=None) as bar:
            for number, counts, findings in self._results(tasks, workers):
                results[number][0].update(counts)
                results[number][1].extend(findings)
                bar.update(counts["records"])
        reports = dict(self._reports)
        for source, weight, (counts, findings) in zip(self.sources, self._weights, results, strict=True):
            reports[source.name] = summarize(source, weight, counts, findings)
        problems = sum(sum(report["problems"].values()) for report in reports.values())
        return {"mixture": str(self.path), "problems": problems, "sources": reports}

    def _results(self, tasks: list[tuple[int, range]], workers: int) -> Iterator[tuple[int, Counter, list[Finding]]]:
        if not tasks:
            return
        if workers == 0:
            checker = self.checker()
            yield from (checker.check_all(*task) for task in tasks)
            return
        # Not forked: the threads of torch and of the video libraries do not survive a fork
        with ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (self._settings,)) as pool:
            yield from pool.map(_check_in_worker, *zip(*tasks, strict=True))


_checker: RecordChecker | None = None  # of a worker process


def _start_worker(settings: ValidationSettings) -> None:
    global _checker
    _checker = RecordChecker(settings)


def _check_in_worker(number: int, indices: range) -> tuple[int, Counter, list[Finding]]:
    return _checker.check_all(number, indices)


def summarize(source, weight: float, counts: Mapping, findings: list[Finding]) -> dict:
    """The report of one source."""
    by_kind = defaultdict(list)
    for finding in findings:
        by_kind[finding.kind].append(finding.message)
    problems = {kind: len(messages) for kind, messages in by_kind.items() if kind not in NOTES}
    # A store keeps the messages of the first broken items only, but counts all of them
    if source.dropped.get(BROKEN, 0) > problems.get(BROKEN, 0):
        problems[BROKEN] = source.dropped[BROKEN]
    return {
        "weight": weight,
        "counts": dict(counts),
        "problems": problems,
        "notes": {kind: len(messages) for kind, messages in by_kind.items() if kind in NOTES},
        "left out by the reader": {reason: count for reason, count in source.dropped.items() if reason != BROKEN},
        "examples": {kind: messages[:MAX_EXAMPLES] for kind, messages in by_kind.items()},
    }


def report_lines(report: dict) -> Iterator[str]:
    """The report as text: the counts of each source, then its problems with a few examples."""
    for name, source in report["sources"].items():
        counts = ", ".join(f"{count:,} {kind}" for kind, count in source["counts"].items())
        yield f"{name}: {counts or 'nothing read'}"
        for title in ("left out by the reader", "notes", "problems"):
            for kind, count in source.get(title, {}).items():
                yield f"    {'PROBLEM' if title == 'problems' else title}: {count:,} {kind}"
                yield from (f"        {message}" for message in source["examples"].get(kind, [])[:PRINTED_EXAMPLES])
    yield f"{report['problems']:,} problems" if report["problems"] else "no problems"
