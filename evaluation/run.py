"""One evaluation run: ask the questions, save the answers, score them and write the results."""

import argparse
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from sama.benchmarks.benchmark import Benchmark, BenchmarkError, Measures, Scores, Tools
from sama.benchmarks.registry import open_benchmark
from sama.configuration_sama import SamaConfig
from sama.data.files import user_path
from sama.drawing.gallery import write_gallery
from sama.modeling_sama import SamaForConditionalGeneration
from sama.processing_sama import SamaProcessor
from sama.resources import PACKAGE

from .inference import PredictionRunner
from .judges import JudgeSettings, open_judge
from .plots import write_plots
from .predictions import PredictionFiles, PredictionWriter
from .processes import device, join, rank_and_size, wait_for_all
from .provenance import checkpoint_hash, commit_of
from .report import terminal_table, write_report
from .similarity import BertSimilarity
from .submission import check_submission, need_server, write_submission


SOME_FAILED = 3  # exit code
JUDGE_ANSWERS = "judge"  # folder below the output with the cached answers of the judge


def evaluate(arguments: argparse.Namespace, ask: Callable | None = None) -> int:
    """
    Runs `evaluate.py` with parsed arguments and returns the exit code.

    Args:
        arguments (`argparse.Namespace`)
        ask (`Callable`, *optional*): Called with the arguments of [`predict`] instead of it, and returns the same.
    """
    options = dict(option.split("=", 1) for option in arguments.option)
    where = {"data_root": arguments.data_root, "split": arguments.split, "preset": arguments.preset}
    benchmark = open_benchmark(arguments.benchmark, **where, **options)
    if arguments.submission:
        need_server(benchmark)  # fails now, not after hours of inference
    files = PredictionFiles(output_folder(arguments, benchmark))
    about = about_run(arguments, benchmark)
    files.check_run(about, arguments.accept_foreign)
    groups = asked_groups(benchmark, arguments.limit)
    is_main = rank_and_size()[0] == 0
    tools, named = open_tools(arguments, files) if is_main else (None, None)
    measured: Mapping[str, Measures] = {}
    if arguments.score_only:
        files.need_some(about)
    else:
        join()
        if is_main:
            files.write_run(about)
        measured = (ask or predict)(arguments, benchmark, groups, files)
        wait_for_all()
    if not is_main:
        return 0
    if files.parts() and not arguments.score_only:  # with --score_only another run may still be writing the parts
        files.merge(name for group in benchmark.outline().values() for name in group)
    names = [name for group in groups.values() for name in group]
    scored_by = {name: about[name] for name in ("commit", "version", "command")}
    scores, about = score(benchmark, files, names, tools, measured)
    code = report(files.folder, {**about, **named, "scored_by": scored_by}, scores)
    if arguments.submission:
        submit(arguments.submission, benchmark, files)
    if not arguments.no_gallery:  # last, so that an error while drawing loses no results
        draw(benchmark, files, scores)
    return code


# Set-up


def dtype_of(arguments: argparse.Namespace) -> str:
    """Name of the dtype of the weights; "auto" if neither the arguments nor the checkpoint name one."""
    if arguments.dtype != "auto":
        return arguments.dtype
    if device() == "cpu":
        return "float32"
    return str(SamaConfig.from_pretrained(arguments.model).dtype or "auto").removeprefix("torch.")


def load(arguments: argparse.Namespace) -> tuple[SamaForConditionalGeneration, SamaProcessor]:
    """Model and processor with the chosen preset, on the device of this process."""
    preset, dtype = arguments.preset, dtype_of(arguments)
    model = SamaForConditionalGeneration.from_pretrained(arguments.model, dtype=dtype, preset=preset)
    local = Path(arguments.model).is_dir()  # code of the Hub is not run
    processor = SamaProcessor.from_pretrained(arguments.model, trust_remote_code=local, preset=preset)
    model.check_processor(processor)
    return model.to(device()).eval(), processor


def open_tools(arguments: argparse.Namespace, files: PredictionFiles) -> tuple[Tools, dict]:
    """The judge and the text similarity that the arguments name, and their descriptions for the results."""
    settings = JudgeSettings(requests_per_minute=arguments.judge_rpm)
    judge = open_judge(arguments.judge_url, arguments.judge_model, files.folder / JUDGE_ANSWERS, settings)
    similarity = BertSimilarity(arguments.similarity_model) if arguments.similarity_model else None
    named = {"judge": judge and judge.identity, "similarity": similarity and similarity.identity}
    return Tools(judge, similarity), named


def output_folder(arguments: argparse.Namespace, benchmark: Benchmark) -> Path:
    """The folder of all output files."""
    if arguments.output:
        return user_path(arguments.output)  # a shell does not expand ~ behind "="
    name = f"{benchmark.name}-{benchmark.split}-{benchmark.preset}"
    return Path("outputs") / "evaluation" / Path(arguments.model).name / name


def about_run(arguments: argparse.Namespace, benchmark: Benchmark) -> dict:
    """The content of `run.json`."""
    model = {"model": arguments.model, "checkpoint": checkpoint_hash(arguments.model)} if arguments.model else {}
    program = ["sama", "evaluate"] if sys.argv[0] == "sama evaluate" else ["python", "evaluate.py"]
    command = shlex.join([*program, *sys.argv[1:]])
    about = {**model, "commit": commit_of(PACKAGE), **benchmark.identity, "command": command}
    if arguments.max_new_tokens or not arguments.score_only:  # irrelevant for scoring unless it is given
        about["max_new_tokens"] = arguments.max_new_tokens or benchmark.max_new_tokens
    if not arguments.score_only:
        about["dtype"] = dtype_of(arguments)
    return about


# Asking


def asked_groups(benchmark: Benchmark, limit: int | None) -> dict[str, list[str]]:
    """Group -> those of its questions that are among the first `limit` questions of the benchmark."""
    left, groups = limit, {}
    for group, names in benchmark.outline().items():
        if left is not None:
            names, left = names[:left], left - len(names[:left])
        if names:
            groups[group] = names
    return groups


def predict(
    arguments: argparse.Namespace, benchmark: Benchmark, groups: dict, files: PredictionFiles
) -> dict[str, Measures]:
    """
    Asks the open questions of this process; groups are distributed round-robin.

    Returns:
        `dict`: Question id -> measures. The main process measures its answers for the progress bar, and scoring uses
        these measures again. Other processes return nothing.
    """
    rank, size = rank_and_size()
    known = {name for name, line in files.index().items() if not (line.failed and arguments.retry_failed)}
    mine = [(group, [name for name in groups[group] if name not in known]) for group in list(groups)[rank::size]]
    total, measured, values = sum(len(names) for _, names in mine), {}, []
    if not total:
        return measured
    model, processor = load(arguments)
    runner = PredictionRunner(model, processor, benchmark, arguments.max_new_tokens or benchmark.max_new_tokens)
    bar = tqdm(total=total, desc=benchmark.name, unit="question", disable=rank > 0)
    with PredictionWriter(files.part(rank)) as writer:
        for group, names in mine:
            for question, prediction in runner.ask_group(group, names) if names else ():
                writer.write(prediction)
                if prediction.error is None and rank == 0:
                    sample = measured[question.id] = benchmark.measure(question, prediction)
                    values += [] if sample.value is None else [sample.value]
                bar.set_postfix({benchmark.headline: f"{sum(values) / len(values):.3f}"} if values else {})
                bar.update()
    bar.close()
    return measured


# Scoring


def score(
    benchmark: Benchmark,
    files: PredictionFiles,
    names: Sequence[str],
    tools: Tools,
    measured: Mapping[str, Measures] | None = None,
) -> tuple[Scores, dict]:
    """The scores of the named questions, and the description of the run with counts and failures."""
    lines = files.index()
    failures = [
        {"question": prediction.question, "error": prediction.error}
        for prediction in files.read([name for name in names if name in lines and lines[name].failed], lines)
    ]
    scores = benchmark.score(files.read(names, lines), tools, measured)
    scored, total = len(scores.samples), sum(len(group) for group in benchmark.outline().values())
    counts = {"scored": scored, "failed": len(failures), "skipped": total - scored - len(failures)}
    return scores, {**files.read_run(), "left_out": benchmark.left_out, "samples": counts, "failures": failures}


def report(folder: Path, about: dict, scores: Scores) -> int:
    """Writes and prints the results; returns the exit code."""
    write_report(folder, about, scores)
    samples, failures = about["samples"], about["failures"]
    summary = "{scored} questions scored, {failed} failed, {skipped} not asked.".format(**samples)
    sys.stdout.write(f"\n{terminal_table(scores.rows)}\n\n{summary} Files: {folder}\n")
    if failures:
        first = failures[0]
        sys.stderr.write(f"evaluate: {len(failures)} failed, first {first['question']}: {first['error']}\n")
    return SOME_FAILED if failures else 0


def submit(path: str, benchmark: Benchmark, files: PredictionFiles) -> None:
    """Writes and checks the zip for the challenge server; `BenchmarkError` if answers are missing or a check fails."""
    path = user_path(path)
    write_submission(files.read([name for names in benchmark.outline().values() for name in names]), benchmark, path)
    problems = check_submission(path, benchmark)
    if problems:
        raise BenchmarkError(" ".join(problems))
    sys.stdout.write(f"Complete submission: {path}\n")


def draw(benchmark: Benchmark, files: PredictionFiles, scores: Scores) -> None:
    """Writes the plots and the gallery."""
    lines = files.index()
    write_plots(files.folder, scores.samples, benchmark.headline, str(files.folder.name))
    write_gallery(files.folder / "gallery", benchmark, scores.samples, lambda names: list(files.read(names, lines)))
