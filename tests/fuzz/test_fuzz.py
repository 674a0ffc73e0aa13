"""Mutants of annotation files, masks, pickles, weights, messages and regions: a result, or our own error."""

import json
from pathlib import Path

import pytest
from processes import run_script, start


WORKER = Path(__file__).parent / "worker.py"
SEED = 20261128


def run_worker(folder: Path, count: int) -> tuple[list[str], int]:
    """Failures of the mutants of `SEED`, among them the one that ended the worker, and how many mutants were tried."""
    report, log = folder / "report.jsonl", folder / "log.txt"
    process = start(log, run_script, WORKER, "--seed", SEED, "--count", count, "--report", report)
    # Each mutant has a limit of CPU time of its own; this one is for a worker that waits for something
    process.join(3600)
    entries = [json.loads(line) for line in report.read_text().splitlines()] if report.exists() else []
    again = f"python tests/fuzz/worker.py --seed {SEED} --count 1 --report report.jsonl --first"
    failures = [f"{target}: {problem} ({again} {number})" for number, target, problem in filter(is_failure, entries)]
    tried = [entry for entry in entries if len(entry) == 2]
    if entries[-1:] != [["done"]]:
        number, target = tried[-1] if tried else (0, "the start")
        printed = log.read_text(encoding="utf-8")[-2000:]
        failures.append(f"the worker ended with {process.exitcode} in {target} ({again} {number}): {printed}")
    return failures, len(tried)


def is_failure(entry: list) -> bool:
    return len(entry) == 3


@pytest.mark.parametrize("count", [1000, pytest.param(20_000, marks=pytest.mark.slow)])
def test_mutants(tmp_path, count):
    failures, tried = run_worker(tmp_path, count)
    assert failures == [] and tried == count
