"""Asks a model the questions of a benchmark, and scores the answers.

python evaluate.py --model checkpoints/sama-tiny --benchmark toy_world --split val --limit 40
torchrun --nproc_per_node 8 evaluate.py --model sama-1b --benchmark mevis --data_root data   # the same results
python evaluate.py --ray 8 --model sama-1b --benchmark mevis --data_root data   # the same, in a pool of Ray actors
python evaluate.py --benchmark toy_world --score_only --output outputs/evaluation/sama-tiny/toy_world-val-consistent

Answers are saved in predictions.jsonl, one line per question. An interrupted run continues where it stopped when it is
started again. Scores are computed from that file: --score_only needs no model and no GPU.

Exit codes: 0; 1 if the run failed, with one sentence that says why; 3 if some questions failed, see results.md.
"""

import argparse
import os
import sys
from collections.abc import Sequence


try:
    from sama.benchmarks.registry import BENCHMARKS
    from sama.bulk.benchmark_run import evaluate_on_ray
    from sama.bulk.pool import add_pool_arguments, pool_settings
    from sama.configuration_sama import check_preset
    from sama.data.files import user_path
    from sama.evaluation.processes import leave
    from sama.evaluation.run import evaluate
    from sama.metrics.values import PRESETS
    from sama.serving.loading import check_model_name
except ModuleNotFoundError as error:
    if __name__ != "__main__" or error.name is None or error.name.startswith("sama"):
        raise
    sys.exit(f"evaluate: The Python module {error.name} is not installed. Run: pip install 'sama[eval]'")


DTYPES = ("auto", "float32", "bfloat16", "float16")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="checkpoint folder, or a name on the Hub; not needed with --score_only")
    parser.add_argument("--benchmark", required=True, help=", ".join(BENCHMARKS))
    parser.add_argument("--split", help="default: the first split of the benchmark")
    parser.add_argument(
        "--preset", type=_preset, choices=PRESETS, default=PRESETS[0],
        help="frames, prompts and decoder; published reproduces the released evaluation",
    )  # fmt: skip
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="benchmark option")
    parser.add_argument("--data_root", default=os.environ.get("SAMA_DATA_ROOT"), help="default: $SAMA_DATA_ROOT")
    parser.add_argument("--max_new_tokens", type=int, help="maximum length of an answer; default: the benchmark's")
    parser.add_argument("--limit", type=int, help="ask only the first LIMIT questions")
    parser.add_argument("--output", help="default: outputs/evaluation/<model>/<benchmark>-<split>-<preset>")
    parser.add_argument("--score_only", action="store_true", help="score saved predictions without asking")
    parser.add_argument("--retry_failed", action="store_true", help="ask failed questions again")
    parser.add_argument("--accept_foreign", action="store_true", help="accept predictions of another model or version")
    parser.add_argument("--judge_url", help="OpenAI-compatible endpoint that compares texts, for CLAIR")
    parser.add_argument("--judge_model", help="model name at the endpoint; without --judge_url a local model folder")
    parser.add_argument("--judge_rpm", type=float, help="maximum requests per minute to the endpoint")
    parser.add_argument("--similarity_model", help="folder of a BERT that compares phrases, for recall")
    parser.add_argument("--submission", help="write and check a zip for the challenge server (MeViS, Ref-YouTube-VOS)")
    parser.add_argument("--no_gallery", action="store_true", help="skip plots and galleries")
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="of the weights; default on CPU: float32")
    add_pool_arguments(parser, "_")
    found = parser.parse_args(arguments)
    if not found.model and not (found.score_only and found.output):
        parser.error("--model is missing; it is optional only with --score_only and --output")
    if found.judge_rpm is not None and not found.judge_rpm > 0:
        parser.error("--judge_rpm must be more than 0")
    for name in ("model", "judge_model", "similarity_model"):  # a shell does not expand ~ behind "="
        folder = vars(found)[name] and user_path(vars(found)[name])
        if folder and folder.is_dir():
            setattr(found, name, str(folder))
    for name in ("limit", "max_new_tokens"):
        if vars(found)[name] is not None and vars(found)[name] < 1:
            parser.error(f"--{name} must be at least 1")
    if any("=" not in option for option in found.option):
        parser.error("--option takes NAME=VALUE")
    for name in ("data_root", "split", "preset"):
        if any(option.startswith(f"{name}=") for option in found.option):
            parser.error(f"{name} is no option of a benchmark: give --{name}")
    return found


def _preset(name: str) -> str:
    """A preset; `release`, its name in earlier versions, is accepted. argparse reports unknown names."""
    return check_preset(name) if name == "release" else name


def main(arguments: Sequence[str] | None = None) -> int:
    try:
        given = parse(arguments)
        if given.model and not given.score_only:
            check_model_name(given.model)
        pool = pool_settings(given)
        return evaluate(given) if pool is None or given.score_only else evaluate_on_ray(given, pool)
    except (ValueError, OSError) as error:  # among them BenchmarkError, PredictionError and DataError
        print(f"evaluate: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return 1
    finally:
        leave()


if __name__ == "__main__":
    sys.exit(main())
