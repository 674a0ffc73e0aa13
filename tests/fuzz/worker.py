"""
The process that tries mutants: `python tests/fuzz/worker.py --seed 7 --first 0 --count 2000 --report report.jsonl`.

Mutant `n` of a seed is always the same. Before each one its number and target are written to the report, so that
whoever started this process knows which one ended it: a crash, or too much time (`SIGPROF`). Too much memory is a
`MemoryError` (`RLIMIT_AS`), which no target permits.
"""

import argparse
import json
import resource
import signal
import tempfile
import traceback
import warnings
from pathlib import Path

import numpy as np
import torch
from fuzz_targets import Target, all_targets


SECONDS = 5  # of CPU time for a mutant, about a hundred times what the slowest good one takes
MEMORY = 2**30  # bytes in addition to what is in use after the imports
ROOT = Path(__file__).resolve().parents[2]


def is_permitted(error: BaseException, target: Target) -> bool:
    """Whether an error is one of the target's, exactly, and comes from this project where that is required."""
    kind = type(error)
    if kind not in target.errors and not (ValueError in target.errors and kind.__module__.startswith("sama.")):
        return False
    frames = traceback.extract_tb(error.__traceback__)
    last = Path(frames[-1].filename).resolve()
    return not target.own or (last.is_relative_to(ROOT) and "site-packages" not in last.parts)


def try_mutant(target: Target, rng: np.random.Generator) -> str | None:
    """Why the mutant is a failure, or `None`."""
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        target.try_one(rng)
    except Exception as error:
        if is_permitted(error, target):
            return None
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        return f"{type(error).__name__} at {where}: {' '.join(str(error).split())[:200]}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--report", type=Path, required=True)
    parser.add_argument("--only", default="", help="part of the names of the targets")
    found = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, open(found.report, "w", encoding="utf-8") as report:
        targets = all_targets(Path(folder))
        weights = np.array([target.weight for target in targets], dtype=float)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        for number in range(found.first, found.first + found.count):
            rng = np.random.default_rng([found.seed, number])
            target = targets[rng.choice(len(targets), p=weights / weights.sum())]
            if found.only not in target.name:
                continue
            print(json.dumps([number, target.name]), file=report, flush=True)
            problem = try_mutant(target, rng)
            if problem:
                print(json.dumps([number, target.name, problem]), file=report, flush=True)
        print(json.dumps(["done"]), file=report)


if __name__ == "__main__":
    main()
