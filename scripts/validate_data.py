"""Reads every record of a mixture and says what is missing or broken.

    python scripts/validate_data.py data_configs/toy.yaml --preview 12
    python scripts/validate_data.py data_configs/sama_1b.yaml --workers 8 --report outputs/data.json

Looks at every record once: opens its video or image, decodes the frames that training uses (--all-frames: all of them)
and all masks of its objects, and renders it. Exit code 0: nothing is wrong; 1: something is, the report says what;
2: the mixture file itself is wrong.
"""

import argparse
import json
import os
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from sama.data.catalogue import Entry, open_source
from sama.data.mixture import read_mixture
from sama.data.records import DataError, decode_object
from sama.data.rendering import Renderer, RenderSettings
from sama.drawing.preview import preview_sheet
from sama.processing_sama import SamaProcessor


DEFAULT_PROCESSOR = Path(__file__).resolve().parent.parent / "checkpoints" / "sama-tiny"
MISSING, UNDECODABLE, UNFIT = "missing files", "undecodable frames", "masks that do not fit"
MISMATCH, BROKEN, UNREADABLE = "phrase/mask mismatches", "broken items", "source cannot be opened"
UNRENDERED, HIDDEN = "samples that cannot be rendered", "objects visible in no frame"
NOTES = {HIDDEN}  # counted, but no reason to fail
EXAMPLES = 20  # messages that the report keeps of each kind
FRAMES_AT_ONCE = 8
RECORDS_AT_ONCE = 16


class Finding(NamedTuple):
    """One thing that is wrong with a record."""

    kind: str
    message: str


class Job(NamedTuple):
    """What a worker needs to open the sources for itself."""

    entries: list[tuple[Entry, float]]
    rendering: dict
    processor: str
    root: str | None
    cache: str | None
    all_frames: bool


class Checker:
    """Opened sources and the check of one of their records."""

    def __init__(self, job: Job, opened: list | None = None):
        warnings.simplefilter("ignore")
        torch.set_num_threads(1)
        self.job = job
        self.sources = opened or [open_source(entry, job.root, job.cache, "skip") for entry, _ in job.entries]
        self.renderer = Renderer(
            SamaProcessor.from_pretrained(job.processor, trust_remote_code=True), RenderSettings(**job.rendering)
        )

    def check(self, number: int, index: int) -> tuple[Counter, list[Finding]]:
        """What record `index` of source `number` holds, and what is wrong with it."""
        source, counts, findings = self.sources[number], Counter(records=1), []
        record = source.record(index)
        counts["objects"] = len(record.get("objects", {}))
        try:
            video = source.visual(record)
        except DataError as error:
            kind = MISSING if error.problem.startswith("there is no") else UNDECODABLE
            return counts, [Finding(kind, str(source.located(error)))]
        if video is not None:
            choice = self.renderer.processor.choose_frames(video)
            used = sorted({*choice.context, *choice.prompted})
            findings += self._frames(record, video, range(len(video)) if self.job.all_frames else used, counts)
            for name in record.get("objects", {}):
                findings += self._masks(source, record, video, name, counts)
        if not findings or all(finding.kind in NOTES for finding in findings):
            findings += self._sample(number, index, record, video, counts)
        return counts, findings

    def _frames(self, record: dict, video, frames, counts: Counter) -> Iterator[Finding]:
        for frame in frames:
            try:
                video[frame]
            except (OSError, ValueError) as error:
                yield Finding(UNDECODABLE, f"{record['source']}, item {record['id']}: {error}")
                return
            counts["frames decoded"] += 1

    def _masks(self, source, record: dict, video, name: str, counts: Counter) -> Iterator[Finding]:
        size, number, seen, found = (video.height, video.width), len(video), False, {}

        def lookup(store: str, key: str) -> list:
            if (store, key) not in found:
                found[store, key] = source.lookup(store, key)
            return found[store, key]

        for start in range(0, number, FRAMES_AT_ONCE):
            frames = range(start, min(start + FRAMES_AT_ONCE, number))
            try:
                masks = decode_object(record, name, size, number, lookup, frames)
            except DataError as error:
                yield Finding(UNFIT, str(source.located(error)))
                return
            counts["masks decoded"] += len(masks)
            seen = seen or bool(masks.any())
        if not seen:
            yield Finding(
                HIDDEN, f"{record['source']}, item {record['id']}, field 'objects.{name}': is never visible."
            )

    def _sample(self, number: int, index: int, record: dict, video, counts: Counter) -> Iterator[Finding]:
        rng = np.random.default_rng([number, index])
        try:
            sample = self.renderer(record, video, self.sources[number].lookup, rng)
        except DataError as error:
            yield Finding(UNRENDERED, str(self.sources[number].located(error)))
            return
        counts["questions"] += sum(message["role"] == "user" for message in sample.messages)
        counts["regions"] += sum("region" in part for message in sample.messages for part in message["content"])
        counts["[SEG]"] += len(sample.objects)
        text = self.renderer.processor.apply_chat_template(
            sample.messages, tokenize=False, add_generation_prompt=False, layout=sample.layout
        )
        if text.count("[SEG]") != len(sample.targets):
            message = f"{text.count('[SEG]')} [SEG] in the text but {len(sample.targets)} masks"
            yield Finding(MISMATCH, f"{record['source']}, item {record['id']}, field 'messages': {message}.")
        counts.update(sample.left_out)


_checker: Checker | None = None


def _start(job: Job) -> None:
    global _checker
    _checker = Checker(job)


def _check_some(number: int, indices: range) -> tuple[int, Counter, list[Finding]]:
    return number, *_checked(_checker, number, indices)


def _checked(checker: Checker, number: int, indices: range) -> tuple[Counter, list[Finding]]:
    counts, findings = Counter(), []
    for index in indices:
        more, found = checker.check(number, index)
        counts.update(more)
        findings += found
    return counts, findings


def validate(job: Job, sources: list, workers: int) -> list[tuple[Counter, list[Finding]]]:
    """Counts and findings of each source. `workers` 0 stays in this process."""
    results = [(Counter(), [Finding(BROKEN, str(error)) for error in source.broken]) for source in sources]
    tasks = [
        (number, range(start, min(start + RECORDS_AT_ONCE, len(source))))
        for number, source in enumerate(sources)
        for start in range(0, len(source), RECORDS_AT_ONCE)
    ]
    bar = tqdm(total=sum(map(len, sources)), unit="record", disable=None)

    def add(number: int, counts: Counter, findings: list[Finding]) -> None:
        results[number][0].update(counts)
        results[number][1].extend(findings)
        bar.update(counts["records"])

    if workers == 0:
        checker = Checker(job, sources)
        for number, indices in tasks:
            add(number, *_checked(checker, number, indices))
    else:
        # Not forked: the threads of torch and of the video libraries do not survive that
        with ProcessPoolExecutor(workers, get_context("spawn"), _start, (job,)) as pool:
            for result in pool.map(_check_some, *zip(*tasks, strict=True)):
                add(*result)
    bar.close()
    return results


def summarize(source, weight: float, counts: Counter, findings: list[Finding]) -> dict:
    """The report of one source."""
    by_kind = defaultdict(list)
    for finding in findings:
        by_kind[finding.kind].append(finding.message)
    problems = {kind: len(messages) for kind, messages in by_kind.items() if kind not in NOTES}
    # A build keeps the first broken items and counts all of them
    if source.dropped.get(BROKEN, 0) > problems.get(BROKEN, 0):
        problems[BROKEN] = source.dropped[BROKEN]
    return {
        "weight": weight,
        "counts": dict(counts),
        "problems": problems,
        "notes": {kind: len(messages) for kind, messages in by_kind.items() if kind in NOTES},
        "left out by the reader": {reason: count for reason, count in source.dropped.items() if reason != BROKEN},
        "examples": {kind: messages[:EXAMPLES] for kind, messages in by_kind.items()},
    }


def write_previews(job: Job, sources: list, number: int, folder: Path) -> list[Path]:
    """Contact sheets of `number` records, from all sources in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    checker, rng, written = Checker(job, sources), np.random.default_rng(0), []
    for position in range(number):
        source = sources[position % len(sources)]
        index = int(rng.integers(len(source)))
        try:
            record = source.record(index)
            video = source.visual(record)
            sample = checker.renderer(record, video, source.lookup, rng)
            plain = checker.renderer.processor.choose_frames(video).dense if video is not None else []
            sheet = preview_sheet(sample, plain)
        except (DataError, ValueError, OSError) as error:
            print(f"no preview: {error}")
            continue
        written.append(folder / f"{position:03d}_{source.name}.png")
        sheet.save(written[-1])
    return written


def open_all(job: Job) -> tuple[list, list[tuple[Entry, float]], dict[str, dict]]:
    """The sources that can be opened, their entries, and the reports of the others."""
    opened, entries, failed = [], [], {}
    for entry, weight in job.entries:
        try:
            opened.append(open_source(entry, job.root, job.cache, "skip"))
            entries.append((entry, weight))
        except DataError as error:
            failed[entry.name] = {
                "weight": weight, "counts": {}, "problems": {UNREADABLE: 1}, "examples": {UNREADABLE: [str(error)]},
            }  # fmt: skip
    return opened, entries, failed


def print_report(reports: dict[str, dict]) -> None:
    """A line of counts for each source, then what is wrong with it."""
    for name, report in reports.items():
        counts = ", ".join(f"{count:,} {what}" for what, count in report["counts"].items())
        print(f"{name}: {counts or 'nothing read'}")
        for title in ("left out by the reader", "notes", "problems"):
            for kind, count in report.get(title, {}).items():
                print(f"    {'PROBLEM' if title == 'problems' else title}: {count:,} {kind}")
                for message in report["examples"].get(kind, [])[:3]:
                    print(f"        {message}")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mixture", type=Path, help="a mixture file, such as data_configs/toy.yaml")
    parser.add_argument("--processor", default=str(DEFAULT_PROCESSOR), help="checkpoint whose processor renders")
    parser.add_argument("--root", help="folder of the data (default: $SAMA_DATA_ROOT)")
    parser.add_argument("--cache", help="folder of the stores (default: $SAMA_CACHE, else in the home folder)")
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), help="processes; 0: only this one")
    parser.add_argument("--all-frames", action="store_true", help="decode every frame, not only those that are used")
    parser.add_argument("--limit", type=int, help="look at the first so many records of each source")
    parser.add_argument("--report", type=Path, help="write the report as JSON")
    parser.add_argument("--preview", type=int, default=0, metavar="N", help="write N contact sheets to look at")
    parser.add_argument("--out", type=Path, default=Path("outputs/preview"), help="their folder")
    return parser.parse_args(arguments)


class _First:
    """The first records of a source."""

    def __init__(self, source, limit: int):
        self._source, self._limit = source, limit
        self.name, self.dropped, self.broken = source.name, source.dropped, source.broken
        self.record, self.visual = source.record, source.visual
        self.lookup, self.located = source.lookup, source.located

    def __len__(self) -> int:
        return min(self._limit, len(self._source))


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    try:
        entries, settings = read_mixture(options.mixture)
        rendering = settings.get("rendering", {})
        RenderSettings(**rendering)
    except (DataError, TypeError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    job = Job(entries, rendering, options.processor, options.root, options.cache, options.all_frames)
    sources, entries, reports = open_all(job)
    if options.limit:
        sources = [_First(source, options.limit) for source in sources]
    job = job._replace(entries=entries)
    results = validate(job, sources, options.workers) if sources else []
    for source, (_, weight), (counts, findings) in zip(sources, entries, results, strict=True):
        reports[source.name] = summarize(source, weight, counts, findings)
    print_report(reports)
    problems = sum(sum(report["problems"].values()) for report in reports.values())
    if options.report:
        options.report.parent.mkdir(parents=True, exist_ok=True)
        report = {"mixture": str(options.mixture), "problems": problems, "sources": reports}
        options.report.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if options.preview and sources:
        sheets = write_previews(job, sources, options.preview, options.out)
        print(f"{len(sheets)} sheets in {options.out}")
    print(f"{problems:,} problems" if problems else "nothing is wrong")
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
