"""Two checkouts measured alternately in one run: ratios of wall and CPU time, and the largest difference of what they
give.

    git worktree add --detach ../before HEAD~1
    python profiling/compare_revisions.py --before ../before [--after .] [--rounds 9] [--threads 1]
        [--case "track 4 objects, Hiera-tiny" ...]

Each checkout has a process of its own, which loads a model once; runs alternate, A B B A, so that a machine that slows
down slows both. Ratios above 1 say that the second checkout is faster. They are medians over the rounds, with the 95 %
interval of the median by bootstrap.
"""

import argparse
import json
import math
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from sama.drawing.tables import markdown_table
from sama.profiling.cases import CASES
from sama.profiling.ratios import alternate, median_wall, ratio


ROOT = Path(__file__).resolve().parent.parent
WORKER = ROOT / "profiling" / "cases.py"


class Worker:
    """A process that measures cases of one checkout.

    Args:
        checkout (`Path`): its folder, which holds the package.
        threads (`int`): threads of torch.

    Raises:
        ValueError: if the folder holds no package.
    """

    def __init__(self, checkout: Path, threads: int):
        self.checkout = checkout.resolve()
        if not (self.checkout / "modeling_sama.py").is_file():
            raise ValueError(f"{checkout} is no checkout of this repository: modeling_sama.py is not in it.")
        self.folder = TemporaryDirectory()  # the package is the folder itself, whatever its name
        (Path(self.folder.name) / "sama").symlink_to(self.checkout, target_is_directory=True)
        environment = os.environ | {"PYTHONPATH": self.folder.name, "OMP_NUM_THREADS": str(threads)}
        environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        # -P: the folder of the script, whose modules have names like `training`, stays out of the path
        command = [sys.executable, "-P", str(WORKER)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def measure(self, case: str, save: Path | None = None) -> tuple[float, float]:
        """Wall and CPU seconds of one run.

        Raises:
            RuntimeError: if the run fails, with its message.
        """
        print(json.dumps({"case": case, "save": save and str(save)}), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"The process for {self.checkout} ended with {self.process.wait()} in {case!r}.")
        found = json.loads(answer)
        if "error" in found:
            raise RuntimeError(f"{case!r} failed in {self.checkout}: {found['error']}")
        return found["wall"], found["cpu"]

    def close(self) -> None:
        """Ends the process."""
        self.process.stdin.close()
        self.process.wait()
        self.folder.cleanup()


def difference(before: dict, after: dict) -> str:
    """The largest difference of two tensors of the same name, relative to the largest value of the first one; and the
    number of texts that differ, if any do."""
    if before.keys() != after.keys():
        return f"other results: {sorted(before.keys() ^ after.keys())}"
    largest, texts = 0.0, 0
    for name, wanted in before.items():
        found = after[name]
        if isinstance(wanted, str):
            texts += wanted != found
        elif wanted.shape != found.shape:
            return f"{name} has shape {tuple(found.shape)}, before {tuple(wanted.shape)}"
        elif not torch.allclose(found, wanted, rtol=0, atol=0, equal_nan=True):
            value = ((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-12)).item()
            largest = max(largest, value if math.isfinite(value) else math.inf)  # `max` would pass over NaN
    return f"{largest:.1e}" + (f", {texts} texts differ" if texts else "")


def compare(before: Worker, after: Worker, case: str, rounds: int) -> list[str]:
    """The row of a case: times of both, ratios and difference."""
    with TemporaryDirectory() as folder:  # these runs warm up
        paths = [Path(folder) / name for name in ("before.pt", "after.pt")]
        for worker, path in zip((before, after), paths, strict=True):
            worker.measure(case, path)
        found = difference(*(torch.load(path, weights_only=True) for path in paths))
    times = alternate([partial(worker.measure, case) for worker in (before, after)], rounds)
    medians = [f"{1000 * median_wall(one):.0f} ms" for one in times]
    return [case, *medians, ratio(*times, which=0), ratio(*times, which=1), found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="the checkout to compare with")
    parser.add_argument("--after", type=Path, default=ROOT, help="the other one (default: this one)")
    parser.add_argument("--rounds", type=int, default=9, help="runs of each case in each checkout")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES), help="default: all")
    arguments = parser.parse_args()
    try:
        workers = [Worker(checkout, arguments.threads) for checkout in (arguments.before, arguments.after)]
    except ValueError as error:
        parser.error(str(error))
    rows = []
    for case in arguments.case:
        rows.append(compare(*workers, case, arguments.rounds))
        print(" | ".join(rows[-1]), file=sys.stderr, flush=True)
    for worker in workers:
        worker.close()
    header = ["case", "before", "after", "ratio of wall times", "ratio of CPU times", "largest relative difference"]
    print(markdown_table(header, rows))
    print(f"\n{arguments.rounds} rounds, {arguments.threads} thread(s), torch {torch.__version__}.")


if __name__ == "__main__":
    main()
