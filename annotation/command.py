"""Makes training data: descriptions of the objects of videos and dialogues about them, written by a model and checked.

sama annotate --videos clips --masks clips/objects.jsonl --output outputs/annotation \\
    --endpoint http://localhost:8000/v1 --model WRITER --verifier-model VERIFIER --video-licence cc-by-4.0 ...

The API key is read from $OPENAI_API_KEY. Records are written to records.jsonl, which the format json_lines of a
mixture reads; what was rejected, and why, to rejected.jsonl; what a person should decide to review.jsonl; report.html
shows all of it with examples.
A run that was interrupted goes on where it stopped when it is started again: no reply is paid for twice.

Exit codes: 0; 1 if the run failed or was stopped, with one sentence that says why; 3 if some videos could not be
annotated, see errors.jsonl.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TextIO
from urllib.parse import urlsplit

from ..bulk.pool import ProcessLost, add_pool_arguments, connect, pool_settings
from ..data.catalogue import data_root
from ..data.files import write_text_atomically
from ..evaluation.endpoint_text import base_url
from ..resources import DATA_CONFIGS
from .annotator import Checkpoints
from .calls import ModelChoice
from .costs import Costs, parse_budget, parse_prices
from .endpoint import MAX_TOKENS_NAMES, STRUCTURED_OUTPUT, Endpoint, EndpointSettings
from .errors import OutputError, UnansweredError, output_errors
from .estimate import estimate_run
from .held_out import HeldOut
from .objects import list_videos, read_scenes, read_source, trusted_by_source
from .pipeline import Run, RunCounts
from .provenance import UNKNOWN, Origin
from .render import STYLES, RenderSettings
from .report import write_report
from .review_merge import RECORDS as REVIEWED_RECORDS
from .review_merge import merge_decisions
from .sama239k import write_sama239k
from .scenes import BrokenScene, Scene
from .score import ScoreSettings
from .video import AnnotationSettings


SHOWN_PROBLEMS = 20  # of a dry run
INCOMPLETE = 3  # exit code: some videos have an error
VERIFIER_KEY = "VERIFIER_API_KEY"  # environment variable
TERMS = ("yes", "no", UNKNOWN)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    _add_inputs(parser.add_argument_group("videos and objects"))
    _add_models(parser.add_argument_group("models"))
    _add_checks(parser.add_argument_group("pictures and checks"))
    _add_origin(parser.add_argument_group("origin of the data"))
    parser.add_argument("--output", type=Path, help="folder of all results, also of an earlier run; needed")
    parser.add_argument(
        "--merge-review", type=Path, metavar="FOLDER",
        help="write reviewed_records.jsonl with the decisions that are in this output folder, and end; needs no other "
             "option",
    )  # fmt: skip
    parser.add_argument("--sama239k", type=Path, metavar="FOLDER", help="also write the files of SAMA-239K there")
    parser.add_argument("--dry-run", action="store_true", help="estimate tokens and price, and ask nothing")
    add_pool_arguments(parser, "-")
    given = parser.parse_args(arguments)
    if given.merge_review is not None:
        return given
    needed = ("output", "endpoint", "model", "verifier_model")
    missing = [f"--{name.replace('_', '-')}" for name in needed if vars(given)[name] is None]
    if missing:
        parser.error(f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing")
    inputs = [given.masks is not None, given.propose is not None, given.source is not None]
    if sum(inputs) != 1:
        parser.error("give one of --masks, --propose and --source")
    if given.source is None and given.videos is None:
        parser.error("--videos is missing")
    _refuse_without_effect(parser, given)
    if given.dry_run and given.propose is not None:
        parser.error("--dry-run needs objects: it cannot be combined with --propose")
    return given


def _refuse_without_effect(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    """Ends the command for an option that says nothing together with the others."""
    has_source, has_proposals, has_blind = (
        vars(given)[name] is not None for name in ("source", "propose", "blind_model")
    )
    for name, other, is_idle in (
        ("videos", "with --source, whose catalogue names the videos", has_source),
        ("name", "with --source, which is the name", has_source),
        ("mask_origin", "with --propose, which is the origin", has_proposals),
        ("propose_request", "without --propose", not has_proposals),
        ("blind_terms", "without --blind-model", not has_blind),
        ("blind_revision", "without --blind-model", not has_blind),
    ):
        if is_idle and vars(given)[name] != parser.get_default(name):
            parser.error(f"--{name.replace('_', '-')} has no effect {other}")


def _add_inputs(group) -> None:
    group.add_argument("--videos", type=Path, help="folder of videos, or of folders of frames")
    group.add_argument("--masks", type=Path, help="JSON Lines of records, a mask file with keys video/object, or a "
                       "folder of PNG masks for each video")  # fmt: skip
    group.add_argument("--propose", metavar="CHECKPOINT", help="let this model find the objects")
    group.add_argument("--propose-request", metavar="TEXT", help="what it is asked; default: a grounded caption")
    group.add_argument("--catalogue", type=Path, default=DATA_CONFIGS / "catalogue.yaml", help="with --source")
    group.add_argument("--source", help="name of a data set in the catalogue")
    group.add_argument("--data-root", help="of the catalogue; default: $SAMA_DATA_ROOT")
    group.add_argument("--name", default="annotation", help="name of the data set in the records")
    group.add_argument(
        "--held-out", type=Path, action="append", default=[], metavar="FOLDER",
        help="videos that must not be annotated, such as those of a benchmark; may be given several times",
    )  # fmt: skip


def _add_models(group) -> None:
    group.add_argument("--endpoint", metavar="URL", help="OpenAI-compatible, such as http://host/v1; needed")
    group.add_argument("--model", help="writes the texts; reads pictures; needed")
    group.add_argument("--verifier-model", help="checks them; better another one than --model; needed")
    group.add_argument("--verifier-endpoint", metavar="URL", help="default: --endpoint")
    group.add_argument("--blind-model", help="answers questions without the video; default: this check is left out")
    group.add_argument("--relocate", metavar="CHECKPOINT", help="finds phrases again; default: left out")
    group.add_argument("--device", default="auto", help="of --propose and --relocate: auto, cpu, cuda or mps")
    group.add_argument("--key-variable", default="OPENAI_API_KEY", help="environment variable with the API key")
    group.add_argument(
        "--verifier-key-variable", metavar="NAME",
        help="that of --verifier-endpoint; default: --key-variable if both are on one host and port, "
             f"else {VERIFIER_KEY}",
    )  # fmt: skip
    group.add_argument("--structured-output", choices=STRUCTURED_OUTPUT, default=STRUCTURED_OUTPUT[0])
    group.add_argument("--concurrency", type=at_least_one, default=8, help="videos, and requests, at a time")
    group.add_argument("--requests-per-minute", type=float, help="rate limit")
    group.add_argument("--tokens-per-minute", type=float, help="rate limit")
    group.add_argument("--request-timeout", type=float, default=120.0, metavar="SECONDS", help="for a whole reply")
    group.add_argument(
        "--request-tries", type=at_least_one, default=6, help="for a reply, while the endpoint is busy or broken"
    )
    group.add_argument(
        "--request-failures", type=at_least_one, default=EndpointSettings.most_failures, metavar="N",
        help="requests in a row without an answer that end the run; refused ones count only until the model has "
             "answered once, charged replies that cannot be used always",
    )  # fmt: skip
    group.add_argument("--stream", action="store_true", help="get replies in parts, through gateways that need it")
    group.add_argument("--max-tokens-name", choices=MAX_TOKENS_NAMES, default=MAX_TOKENS_NAMES[0],
                       help="as the endpoint calls the limit")  # fmt: skip
    group.add_argument("--max-tokens", type=at_least_one, default=4096, help="of a reply")
    group.add_argument("--temperature", type=float, default=0.0)
    group.add_argument("--seed", type=int, default=0, help="of the models, the colours and the audit")
    group.add_argument("--budget", action="append", default=[], metavar="LIMIT",
                       help="'2000000 tokens', or '25' in money; both may be given")  # fmt: skip
    group.add_argument("--price", action="append", default=[], metavar="MODEL=PROMPT,COMPLETION[,CACHED]",
                       help="of a million tokens of each kind; once for each model")  # fmt: skip


def _add_checks(group) -> None:
    rendering, scores = RenderSettings(), ScoreSettings()
    group.add_argument("--frames", type=int, default=rendering.frames, help="that models are shown, at most")
    group.add_argument("--image-size", type=int, default=rendering.size, help="longer side in pixels")
    group.add_argument("--draw", choices=STYLES, default=rendering.style)
    group.add_argument("--refine-rounds", type=int, choices=(0, 1, 2), default=1, help="corrections of a reply")
    group.add_argument("--blind-tries", type=int, default=scores.blind_tries)
    group.add_argument("--blind-right", type=int, default=scores.blind_right, help="right answers that reject a turn")
    group.add_argument("--keep-iou", type=float, default=scores.keep_iou, help="of a relocated phrase")
    group.add_argument("--review-iou", type=float, default=scores.review_iou)
    group.add_argument("--palette-share", type=float, default=scores.palette_share, help="of videos drawn twice")
    group.add_argument("--audit-share", type=float, default=0.05, help="of accepted items in the review")


def _add_origin(group) -> None:
    group.add_argument("--video-licence", default=UNKNOWN)
    group.add_argument("--mask-licence", default=UNKNOWN)
    group.add_argument("--mask-origin", default=UNKNOWN, help="such as people, or the name of a model")
    group.add_argument("--split", default="train")
    for role in ("writer", "verifier", "blind"):
        group.add_argument(f"--{role}-terms", choices=TERMS, default=UNKNOWN, help="allow training on its output?")
        group.add_argument(f"--{role}-revision", default="", help="version of the model")
    group.add_argument("--allow-unknown", action="store_true", help="use data with unknown licences or terms")


def annotation_settings(given: argparse.Namespace) -> AnnotationSettings:
    """What decides the result, from the command line."""
    return AnnotationSettings(
        rendering=RenderSettings(given.frames, given.image_size, given.draw, given.seed),
        scores=ScoreSettings(
            given.blind_tries, given.blind_right, given.keep_iou, given.review_iou, given.palette_share
        ),
        origin=Origin(
            given.name, given.video_licence, given.mask_licence, given.mask_origin, given.split, given.allow_unknown
        ),
        rounds=given.refine_rounds,
        audit_share=given.audit_share,
        seed=given.seed,
    )


def model_choices(given: argparse.Namespace, costs: Costs) -> dict[str, ModelChoice]:
    """The models by role. Two of them at one address share its limits."""
    endpoints: dict[tuple, Endpoint] = {}
    urls = {"writer": given.endpoint, "verifier": given.verifier_endpoint or given.endpoint}
    # A key must not reach another host than its own
    other = given.key_variable if _origin(urls["verifier"]) == _origin(given.endpoint) else VERIFIER_KEY
    keys = {"writer": given.key_variable, "verifier": given.verifier_key_variable or other}
    urls["blind"], keys["blind"] = urls["verifier"], keys["verifier"]
    names = {"writer": given.model, "verifier": given.verifier_model, "blind": given.blind_model}
    found = {}
    for role, name in names.items():
        if name is None:
            continue
        url, key_variable = urls[role], keys[role]
        place = *_origin(url), urlsplit(base_url(url)).path, key_variable  # however the URL is written
        if place not in endpoints:
            settings = EndpointSettings(
                url,
                key_variable=key_variable,
                structured_output=given.structured_output,
                concurrency=given.concurrency,
                requests_per_minute=given.requests_per_minute,
                tokens_per_minute=given.tokens_per_minute,
                timeout_s=given.request_timeout,
                tries=given.request_tries,
                most_failures=given.request_failures,
                stream=given.stream,
                max_tokens_name=given.max_tokens_name,
            )
            endpoints[place] = Endpoint(settings, costs)
        found[role] = ModelChoice(
            endpoints[place],
            name,
            revision=vars(given)[f"{role}_revision"],
            terms=vars(given)[f"{role}_terms"],
            host=urlsplit(url).hostname or "",
            max_tokens=given.max_tokens,
            temperature=given.temperature,
            seed=given.seed,
        )
    return found


def at_least_one(text: str) -> int:
    """The type of an option that counts something."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"is {text}, expected a whole number of at least 1")
    return int(text)


def _origin(url: str) -> tuple[str, str | None, int | None]:
    """Scheme, host and port of a URL."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def input_scenes(given: argparse.Namespace) -> Iterator[Scene | BrokenScene]:
    """The videos that the command line names."""
    if given.source is not None:
        return read_source(given.catalogue, given.source, data_root(given.data_root))
    if given.masks is not None:
        return read_scenes(given.videos, given.masks, given.name)
    return list_videos(given.videos, given.name)


def checkpoint_state(checkpoint: str | None) -> str:
    """The name of a checkpoint with the sizes and times of its files, which change when it is trained again."""
    if checkpoint is None or not Path(checkpoint).is_dir():
        return str(checkpoint)
    files = sorted(path for path in Path(checkpoint).rglob("*") if path.is_file())
    states = [(path.relative_to(checkpoint).as_posix(), path.stat()) for path in files]
    return json.dumps([checkpoint, [[name, state.st_size, state.st_mtime_ns] for name, state in states]])


def annotate(given: argparse.Namespace) -> RunCounts:
    """Runs everything; returns the counts."""
    settings, scenes = annotation_settings(given), input_scenes(given)
    given.output.mkdir(parents=True, exist_ok=True)
    prices = parse_prices(given.price)
    number = 0

    def show(video: str) -> None:
        nonlocal number
        number += 1
        _write(sys.stderr, f"{number} videos, {costs.line()}", "\r" if sys.stderr.isatty() else "\n")

    costs = Costs(given.output / "costs.jsonl", prices, parse_budget(given.budget))
    try:
        models = model_choices(given, costs)
        held_out = HeldOut(given.held_out) if given.held_out else None
        names = ""
        if given.relocate is not None or given.propose is not None:
            names = f"{checkpoint_state(given.relocate)}/{checkpoint_state(given.propose)}/{given.propose_request}"
        run = Run(given.output, settings, models, names, held_out)
        in_pool = prepare(run, given)
        if costs.locked:
            run.remove_leftovers()
        counts = run.run(scenes, given.concurrency, show, in_pool)
        if not counts.videos and counts.stopped is None:  # what an earlier run wrote stays
            return counts
        _finish(given, (settings, models, counts), costs)
    finally:
        costs.close()  # not before: without its lock, another run may remove what this one is still writing
    return counts


def _finish(
    given: argparse.Namespace, run: tuple[AnnotationSettings, dict[str, ModelChoice], RunCounts], costs: Costs
) -> None:
    """Writes the summary, the exports and the report. Raises why the run was stopped, if it was."""
    # Without a data root, a source has no files: it is toy world
    root = given.videos if given.source is None else data_root(given.data_root) or Path()
    stopped = run[2].stopped
    try:
        with output_errors(given.output):
            write_summary(given.output, root, _trusted(given), run)
            if stopped is not None:
                write_report(given.output, costs.table())
    except OutputError as error:  # of a full disk, which may be why the run was stopped
        raise stopped or error from None
    if stopped is not None:
        raise stopped
    try:
        _export(given, root)
    finally:
        with output_errors(given.output):
            write_report(given.output, costs.table())


def prepare(run: Run, given: argparse.Namespace):
    """Loads the models with [SEG]; with `--ray`, connects to Ray instead, and returns the pool that loads them."""
    from ..serving.loading import check_model_name, load_model

    for name in filter(None, {given.relocate, given.propose}):
        check_model_name(name)  # an actor could only say it after the run has begun
    checkpoints = Checkpoints(given.relocate, given.propose, given.propose_request, given.device)
    pool = pool_settings(given)
    if pool is None:
        run.annotator = checkpoints.add_to(run.annotator, load_model)
        return None
    from .pool import AnnotationPool

    if given.relocate is None and given.propose is None and pool.gpus is None:
        pool = replace(pool, gpus=0.0)
    return AnnotationPool(connect(pool), given.concurrency, checkpoints, load_model)


def _trusted(given: argparse.Namespace) -> tuple[Path, ...]:
    """Folders in which the videos may lie, besides the folder of the videos."""
    if given.source is None:
        return ()
    return trusted_by_source(given.catalogue, given.source, data_root(given.data_root))


def _export(given: argparse.Namespace, root: Path) -> None:
    """The files that are made of the records."""
    records = given.output / "records.jsonl"
    if (given.output / "decisions.jsonl").exists():
        merge_decisions(given.output)
        records = given.output / REVIEWED_RECORDS
    if given.sama239k is not None:
        write_sama239k(records, root, given.sama239k, _trusted(given))


def estimate_lines(given: argparse.Namespace) -> Iterator[str]:
    """What the run would need, as text. What would end it, or a video's part in it, is found here, too."""
    from ..serving.loading import check_model_name

    if given.relocate is not None:
        check_model_name(given.relocate)
    prices = parse_prices(given.price)
    models = model_choices(given, Costs(prices=prices, budget=parse_budget(given.budget)))
    held_out = HeldOut(given.held_out) if given.held_out else None
    found = estimate_run(input_scenes(given), annotation_settings(given), models, held_out)
    for video, problem in found.problems[:SHOWN_PROBLEMS]:
        yield f"{video} cannot be annotated: {problem}"
    if len(found.problems) > SHOWN_PROBLEMS:
        yield f"... and {len(found.problems) - SHOWN_PROBLEMS} more"
    yield f"about, for {found.videos} videos ({len(found.problems)} others cannot be annotated):"
    for role, usage in found.usage.items():
        yield f"{role}: {usage.prompt:,} prompt and {usage.completion:,} completion tokens"
    money = found.money(models, prices)
    yield "price: unknown, give --price for every model" if money is None else f"price: {money:.2f}"


def write_summary(
    folder: Path,
    root: Path,
    trusted: Sequence[Path],
    run: tuple[AnnotationSettings, dict[str, ModelChoice], RunCounts],
) -> None:
    """`run.json`: what was run and what came out. `root`: of the videos; `trusted`: where else they may lie."""
    settings, models, counts = run
    summary = {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "root": str(root),
        "trusted": [str(folder) for folder in trusted],
        "settings": settings.to_dict(),
        "models": {role: model.provenance() for role, model in models.items()},
        "videos": dict(counts.videos),
        "items": {stage: dict(one) for stage, one in counts.items.items()},
        "findings": dict(counts.findings),
        "reasons": dict(counts.reasons),
        "duplicates": counts.duplicates,
    }
    write_text_atomically(folder / "run.json", json.dumps(summary, indent=2) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    try:
        given = parse(arguments)
        if given.merge_review is not None:
            line = merge_decisions(given.merge_review).line()
            _write(sys.stdout, f"{given.merge_review / REVIEWED_RECORDS}: {line}")
            return 0
        if given.dry_run:
            _write(sys.stdout, "\n".join(estimate_lines(given)))
            return 0
        counts = annotate(given)
    except ProcessLost as error:
        return _fail(error.sentence())
    except UnansweredError as error:
        return _fail(f"{' '.join(str(error).split())} --request-failures sets the number.")
    except (ValueError, OSError) as error:  # among them AnnotationError, BulkError and DataError
        return _fail(" ".join(str(error).split()))
    except KeyboardInterrupt:
        return _fail("interrupted; run again to go on", code=130)
    if not counts.videos:
        return _fail("there is no video to annotate")
    _write(sys.stdout, "\n".join(summary_lines(counts)))
    return INCOMPLETE if counts.videos["error"] else 0


def _write(file: TextIO, text: str, end: str = "\n") -> None:
    file.write(text + end)
    file.flush()


def _fail(problem: str, code: int = 1) -> int:
    """Says in one sentence why the command failed, and returns the exit code."""
    _write(sys.stderr, f"annotate: {problem}")
    return code


def summary_lines(counts: RunCounts) -> Iterator[str]:
    """The counts of a run as text."""
    states = [f"{number} {state}" for state, number in sorted(counts.videos.items())]
    yield f"videos: {', '.join(states)}" + (" (see errors.jsonl)" if counts.videos["error"] else "")
    for stage, found in counts.items.items():
        yield f"{stage}: " + ", ".join(f"{number} {name}" for name, number in found.items())
    if counts.reasons:
        yield "rejected for: " + ", ".join(f"{code} {number}" for code, number in counts.reasons.most_common())
