"""`evaluate.py --ray N`: the questions of a benchmark in a pool of actors. Answers are kept, merged and scored as
without Ray, so the results are the same."""

import argparse
import json
from collections.abc import Mapping, Sequence
from functools import partial

from tqdm import tqdm

from ..benchmarks.benchmark import Benchmark, Measures
from ..benchmarks.registry import open_benchmark
from ..data.files import user_path
from ..evaluation.inference import PredictionRunner
from ..evaluation.predictions import PredictionFiles, PredictionWriter
from ..evaluation.processes import rank_and_size
from ..evaluation.run import evaluate, load
from .gpu_errors import fatal_gpu_errors
from .pool import BulkError, Job, PoolSettings, absolute_path, connect, run_jobs
from .workers import predictions_of, predictions_to_json, resolved_dtype


class BenchmarkWorker:
    """
    Answers the questions of a group with a model and a benchmark of its own.

    Args:
        arguments (`argparse.Namespace`): Those of evaluate.py.
        max_new_tokens (`int`): Maximum length of an answer.
    """

    def __init__(self, arguments: argparse.Namespace, max_new_tokens: int):
        options = dict(option.split("=", 1) for option in arguments.option)
        where = {"data_root": arguments.data_root, "split": arguments.split, "preset": arguments.preset}
        benchmark = open_benchmark(arguments.benchmark, **where, **options)
        self.runner = PredictionRunner(*load(arguments), benchmark, max_new_tokens)

    def __call__(self, text: str) -> str:
        """Maps the JSON `[group, [ids]]` to that of the predictions."""
        group, names = json.loads(text)
        with fatal_gpu_errors():
            return predictions_to_json([prediction for _, prediction in self.runner.ask_group(group, names)])


def evaluate_on_ray(arguments: argparse.Namespace, pool: PoolSettings) -> int:
    """
    Runs evaluate.py with a pool and returns the exit code.

    Raises:
        BulkError: if the pool cannot be used, or this process is one of several.
    """
    if rank_and_size()[1] > 1:
        raise BulkError("--ray starts its own processes; run evaluate.py itself, without torchrun.")
    pool = connect(pool)
    if not arguments.score_only:
        arguments = argparse.Namespace(**{**vars(arguments), "dtype": resolved_dtype(arguments, pool)})
    return evaluate(arguments, partial(predict_on_ray, pool))


def predict_on_ray(
    pool: PoolSettings,
    arguments: argparse.Namespace,
    benchmark: Benchmark,
    groups: Mapping[str, Sequence[str]],
    files: PredictionFiles,
) -> dict[str, Measures]:
    """
    Asks the open questions, group by group; scoring measures the answers.

    Raises:
        BulkError: for an error that is neither a video that cannot be read nor a question that cannot be asked, which
            ends a run without Ray, too.
    """
    known = {name for name, line in files.index().items() if not (line.failed and arguments.retry_failed)}
    open_names = {group: [name for name in names if name not in known] for group, names in groups.items()}
    waiting = [(group, names) for group, names in open_names.items() if names]
    jobs = [Job(index, json.dumps(pair, ensure_ascii=False)) for index, pair in enumerate(waiting)]
    max_new_tokens = arguments.max_new_tokens or benchmark.max_new_tokens
    make_worker = partial(BenchmarkWorker, with_absolute_paths(arguments), max_new_tokens)
    bar = tqdm(total=sum(len(names) for _, names in waiting), desc=benchmark.name, unit="question")
    with PredictionWriter(files.part(0)) as writer, bar:
        for result in run_jobs(jobs, make_worker, pool):
            group, names = waiting[result.index]
            if result.error is not None:
                raise BulkError(f"The questions about {group!r} failed: {result.error}")
            for prediction in predictions_of(result, names):
                writer.write(prediction)
                bar.update()
    return {}


def with_absolute_paths(arguments: argparse.Namespace) -> argparse.Namespace:
    """The arguments for workers, which have another working directory."""
    given = argparse.Namespace(**vars(arguments))
    given.model = absolute_path(given.model)
    given.data_root = given.data_root and str(user_path(given.data_root).resolve())
    return given
