"""Asks a model the questions of a benchmark, and scores the answers.

python evaluate.py --model checkpoints/sama-tiny --benchmark toy_world --split val --limit 40
torchrun --nproc_per_node 8 evaluate.py --model sama-1b --benchmark mevis --data_root data   # the same results
python evaluate.py --benchmark toy_world --score_only --output outputs/evaluation/sama-tiny/toy_world-val-consistent

The answers are kept, a line each, in predictions.jsonl. A run that was cut off goes on where it stopped when it is
started again. Scores come from that file alone: --score_only needs no model and no GPU.

Exit code: 0; 1 if the run could not be done, with one sentence why; 3 if questions failed, which results.md names.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from sama.benchmarks.benchmark import PRESETS, Benchmark, BenchmarkError, Scores, Tools
from sama.benchmarks.registry import BENCHMARKS, open_benchmark
from sama.configuration_sama import SamaConfig
from sama.drawing.gallery import write_gallery
from sama.evaluation.inference import Interviewer
from sama.evaluation.judges import JudgeSettings, open_judge
from sama.evaluation.plots import write_plots
from sama.evaluation.predictions import PredictionFiles, PredictionWriter
from sama.evaluation.processes import device, join, leave, rank_and_size, wait_for_all
from sama.evaluation.provenance import checkpoint_hash, commit_of
from sama.evaluation.report import terminal_table, write_report
from sama.evaluation.similarity import BertSimilarity
from sama.evaluation.submission import check_submission, need_server, write_submission
from sama.modeling_sama import SamaForConditionalGeneration
from sama.processing_sama import SamaProcessor
from sama.resources import PACKAGE


SOME_FAILED = 3
DTYPES = ("auto", "float32", "bfloat16", "float16")
JUDGE_ANSWERS = "judge"  # folder below the output: what a judge said is not asked again


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="checkpoint folder, or a name on the Hub; not needed with --score_only")
    parser.add_argument("--benchmark", required=True, help=", ".join(BENCHMARKS))
    parser.add_argument("--split", help="the benchmark's first one by default")
    parser.add_argument("--preset", choices=PRESETS, default=PRESETS[0], help="whose frames, prompts and wording")
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="of the benchmark")
    parser.add_argument("--data_root", default=os.environ.get("SAMA_DATA_ROOT"), help="default: $SAMA_DATA_ROOT")
    parser.add_argument("--max_new_tokens", type=int, help="of an answer, instead of the benchmark's own number")
    parser.add_argument("--limit", type=int, help="ask only the first questions")
    parser.add_argument("--output", help="folder; outputs/evaluation/<model>/<benchmark>-<split>-<preset> by default")
    parser.add_argument("--score_only", action="store_true", help="ask nothing, score what was answered before")
    parser.add_argument("--retry_failed", action="store_true", help="ask the questions again that failed")
    parser.add_argument("--accept_foreign", action="store_true", help="predictions of another model or version too")
    parser.add_argument("--judge_url", help="OpenAI-compatible endpoint that compares texts, for CLAIR")
    parser.add_argument("--judge_model", help="its model's name; without --judge_url the folder of a local model")
    parser.add_argument("--judge_rpm", type=float, help="most requests a minute to the endpoint")
    parser.add_argument("--similarity_model", help="folder of a BERT that compares phrases, for recall")
    parser.add_argument("--submission", help="write and check a zip for the challenge server (MeViS, Ref-YouTube-VOS)")
    parser.add_argument("--no_gallery", action="store_true", help="draw neither plots nor sheets of cases")
    parser.add_argument(
        "--dtype", choices=DTYPES, default=DTYPES[0], help="of the weights; float32 by default on a CPU"
    )
    found = parser.parse_args(arguments)
    if not found.model and not (found.score_only and found.output):
        parser.error("--model is missing; only --score_only with --output goes without")
    if found.judge_rpm is not None and not found.judge_rpm > 0:
        parser.error("--judge_rpm must be more than 0")
    if any("=" not in option for option in found.option):
        parser.error("--option takes NAME=VALUE")
    return found


def dtype_of(arguments: argparse.Namespace) -> str:
    """Name of the dtype of the weights; "auto" stays where the checkpoint does not say."""
    if arguments.dtype != "auto":
        return arguments.dtype
    if device() == "cpu":
        return "float32"
    return str(SamaConfig.from_pretrained(arguments.model).dtype or "auto").removeprefix("torch.")


def load(arguments: argparse.Namespace) -> tuple[SamaForConditionalGeneration, SamaProcessor]:
    """Model and processor on the device of this process, both under the preset."""
    policy, dtype = arguments.preset, dtype_of(arguments)
    model = SamaForConditionalGeneration.from_pretrained(arguments.model, dtype=dtype, preset=policy)
    processor = SamaProcessor.from_pretrained(arguments.model, trust_remote_code=True, preset=policy)
    model.check_processor(processor)
    return model.to(device()).eval(), processor


def asked_groups(benchmark: Benchmark, limit: int | None) -> dict[str, list[str]]:
    """Group -> the questions of it that are among the first `limit` of the benchmark."""
    left, groups = limit, {}
    for group, names in benchmark.outline().items():
        if left is not None:
            names, left = names[:left], left - len(names[:left])
        if names:
            groups[group] = names
    return groups


def predict(arguments: argparse.Namespace, benchmark: Benchmark, groups: dict, files: PredictionFiles) -> None:
    """Asks what is not answered yet of the groups of this process; whole groups are dealt out in turn."""
    rank, size = rank_and_size()
    known = {name for name, line in files.index().items() if not (line.failed and arguments.retry_failed)}
    mine = [(group, [name for name in groups[group] if name not in known]) for group in list(groups)[rank::size]]
    total, values = sum(len(names) for _, names in mine), []
    if not total:
        return
    model, processor = load(arguments)
    interviewer = Interviewer(model, processor, benchmark, arguments.max_new_tokens or benchmark.max_new_tokens)
    bar = tqdm(total=total, desc=benchmark.name, unit="question", disable=rank > 0)
    with PredictionWriter(files.part(rank)) as writer:
        for group, names in mine:
            for question, prediction in interviewer.ask_group(group, names) if names else ():
                writer.write(prediction)
                if prediction.error is None and rank == 0:
                    value = benchmark.running_value(question, prediction)
                    values += [] if value is None else [value]
                bar.set_postfix({benchmark.headline: f"{sum(values) / len(values):.3f}"} if values else {})
                bar.update()
    bar.close()


def about_run(arguments: argparse.Namespace, benchmark: Benchmark) -> dict:
    """What `run.json` says of this run."""
    model = {"model": arguments.model, "checkpoint": checkpoint_hash(arguments.model)} if arguments.model else {}
    program = ["sama", "evaluate"] if sys.argv[0] == "sama evaluate" else ["python", "evaluate.py"]
    command = shlex.join([*program, *sys.argv[1:]])
    about = {**model, "commit": commit_of(PACKAGE), **benchmark.identity, "command": command}
    if arguments.max_new_tokens or not arguments.score_only:  # how long answers could be does not matter afterwards
        about["max_new_tokens"] = arguments.max_new_tokens or benchmark.max_new_tokens
    if not arguments.score_only:
        about["dtype"] = dtype_of(arguments)
    return about


def output_folder(arguments: argparse.Namespace, benchmark: Benchmark) -> Path:
    """Where everything is written."""
    if arguments.output:
        return Path(arguments.output)
    name = f"{benchmark.name}-{benchmark.split}-{benchmark.preset}"
    return Path("outputs") / "evaluation" / Path(arguments.model).name / name


def evaluate(arguments: argparse.Namespace) -> int:
    """Predictions, then scores; the exit code."""
    options = dict(option.split("=", 1) for option in arguments.option)
    where = {"data_root": arguments.data_root, "split": arguments.split, "preset": arguments.preset}
    benchmark = open_benchmark(arguments.benchmark, **where, **options)
    if arguments.submission:
        need_server(benchmark)  # said before hours of answers
    files = PredictionFiles(output_folder(arguments, benchmark))
    about = about_run(arguments, benchmark)
    files.check_run(about, arguments.accept_foreign)
    groups = asked_groups(benchmark, arguments.limit)
    tools, named = open_tools(arguments, files) if rank_and_size()[0] == 0 else (None, None)
    if arguments.score_only:
        files.need_some(about)
    else:
        join()
        if rank_and_size()[0] == 0:
            files.write_run(about)
        predict(arguments, benchmark, groups, files)
        wait_for_all()
    if rank_and_size()[0] > 0:
        return 0
    if files.parts() and not arguments.score_only:  # a run may be going on that is only looked at
        files.merge(name for group in benchmark.outline().values() for name in group)
    names = [name for group in groups.values() for name in group]
    scored_by = {name: about[name] for name in ("commit", "version", "command")}
    scores, about = score(benchmark, files, names, tools)
    code = report(files.folder, {**about, **named, "scored_by": scored_by}, scores)
    if arguments.submission:
        submit(arguments.submission, benchmark, files)
    if not arguments.no_gallery:  # last: a picture that fails loses no results
        draw(benchmark, files, scores)
    return code


def submit(path: str, benchmark: Benchmark, files: PredictionFiles) -> None:
    """The zip for the challenge server; `BenchmarkError` where answers are missing, or the server would refuse it."""
    write_submission(files.read([name for names in benchmark.outline().values() for name in names]), benchmark, path)
    problems = check_submission(path, benchmark)
    if problems:
        raise BenchmarkError(" ".join(problems))
    print(f"Zip for the server, complete: {path}")


def open_tools(arguments: argparse.Namespace, files: PredictionFiles) -> tuple[Tools, dict]:
    """Judge and similarity that the command line names, and what to write of them into the results."""
    settings = JudgeSettings(requests_per_minute=arguments.judge_rpm)
    judge = open_judge(arguments.judge_url, arguments.judge_model, files.folder / JUDGE_ANSWERS, settings)
    similarity = BertSimilarity(arguments.similarity_model) if arguments.similarity_model else None
    named = {"judge": judge and judge.identity, "similarity": similarity and similarity.identity}
    return Tools(judge, similarity), named


def score(benchmark: Benchmark, files: PredictionFiles, names: Sequence[str], tools: Tools) -> tuple[Scores, dict]:
    """Scores of these questions from the files alone, and what was run, with counts and failures."""
    lines = files.index()
    failures = [
        {"question": prediction.question, "error": prediction.error}
        for prediction in files.read([name for name in names if name in lines and lines[name].failed], lines)
    ]
    scores = benchmark.score(files.read(names, lines), tools)
    scored, every = len(scores.samples), sum(len(group) for group in benchmark.outline().values())
    counts = {"scored": scored, "failed": len(failures), "skipped": every - scored - len(failures)}
    return scores, {**files.read_run(), "left_out": benchmark.left_out, "samples": counts, "failures": failures}


def draw(benchmark: Benchmark, files: PredictionFiles, scores: Scores) -> None:
    """Plots, and sheets of cases."""
    lines = files.index()
    write_plots(files.folder, scores.samples, benchmark.headline)
    write_gallery(files.folder / "gallery", benchmark, scores.samples, lambda names: list(files.read(names, lines)))


def report(folder: Path, about: dict, scores: Scores) -> int:
    """Writes the results and prints them; the exit code."""
    write_report(folder, about, scores)
    samples, failures = about["samples"], about["failures"]
    print(f"\n{terminal_table(scores.rows)}\n")
    print("{scored} questions scored, {failed} failed, {skipped} not asked.".format(**samples), f"Files: {folder}")
    if failures:
        first = failures[0]
        print(f"evaluate: {len(failures)} failed, first {first['question']}: {first['error']}", file=sys.stderr)
    return SOME_FAILED if failures else 0


def main(arguments: Sequence[str] | None = None) -> int:
    try:
        return evaluate(parse(arguments))
    except (ValueError, OSError) as error:  # BenchmarkError, PredictionError and DataError are of the first
        print(f"evaluate: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return 1
    finally:
        leave()


if __name__ == "__main__":
    sys.exit(main())
