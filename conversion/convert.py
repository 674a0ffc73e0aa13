"""Converts checkpoints: SAMA, Sa2VA, InternVL, Qwen-VL, SAM 2, SAM 3, EdgeTAM, InstructBLIP (docs/checkpoints.md).

    python scripts/convert_checkpoint.py --from SAMA-1B --kind sama --to sama-1b --qformer_tokenizer bert-base-uncased
    python scripts/convert_checkpoint.py --from sam2_hiera_large.pt --kind sam2 --into sama-1b --to sama-1b-full
    python scripts/convert_checkpoint.py --from Sa2VA-1B --kind sa2va --to sa2va-1b --preset consistent
    python scripts/convert_checkpoint.py --from Sa2VA-1B --kind sa2va --from instruct_blip_vicuna7b_trimmed.pth \\
        --kind instructblip --to sama-start --qformer_tokenizer bert-base-uncased

Every tensor of the source is either used or reported with the reason it is not; every tensor of the result is either
filled or reported as newly initialized. Anything else is an error. At most one shard is in memory at a time, and a
failed conversion leaves no files behind.
"""

import argparse
import json
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

import torch

from sama.configuration_sama import PRESETS, SamaConfig
from sama.conversion.configs import standalone_sam2_config
from sama.conversion.files import CheckpointError, explain_damage, explain_write_errors, write_weights
from sama.conversion.folder import card_facts, carry_processor, write_card, write_model_files, write_processor
from sama.conversion.pieces import HEAD, SAM, KeyMap
from sama.conversion.plan import (
    NO_MODEL,
    REPORT_FILE,
    Plan,
    Report,
    check_plan,
    meta_model,
    plan_into,
    plan_release,
)
from sama.conversion.sources import KINDS, ConversionRequest, Source, open_sources, read_sizes
from sama.conversion.trackers import map_tracker
from sama.data.files import atomic_path
from sama.modeling_sama import SamaForConditionalGeneration


FRESH_SEED = 0


def fresh_tensors(config: SamaConfig, names: list[str]) -> dict[str, torch.Tensor]:
    """Initial values of the parts that are not in the source, from a model whose backbones have no layers."""
    if not names:
        return {}
    small = SamaConfig.from_dict(config.to_dict())
    small.text_config.num_hidden_layers = small.vision_config.num_hidden_layers = 0
    small.text_config.vocab_size = 1
    small.text_config.pad_token_id = None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(FRESH_SEED)
        values = SamaForConditionalGeneration(small).state_dict()
    return {name: values[name] for name in names}


def write_tensors(
    folder: Path, plan: Plan, expected: dict[str, torch.Tensor], request: ConversionRequest
) -> torch.dtype:
    """Reads, converts and writes all tensors in the order in which they are stored; returns their dtype."""
    base = next(iter(plan.pieces.values()))[0]
    dtype = base.files.main_dtype() if request.dtype == "auto" else vars(torch)[request.dtype]
    fresh = fresh_tensors(plan.config, [name for name in plan.report.fresh if name not in plan.pieces])
    planned = {
        name: torch.empty(expected[name].shape, dtype=dtype, device="meta") for name in list(plan.pieces) + list(fresh)
    }
    needed = sum(tensor.nbytes for tensor in planned.values())
    if (free := shutil.disk_usage(folder).free) < needed:
        raise CheckpointError(f"{request.to} needs {needed / 1e9:.1f} GB but the disk has {free / 1e9:.1f} GB left.")

    def load(name: str) -> torch.Tensor:
        if name in fresh:
            return fresh[name].to(dtype)
        source, piece = plan.pieces[name]
        made = piece.make(*(source.files.read(key) for key in piece.keys))
        return made.to(dtype, copy=True, memory_format=torch.contiguous_format)

    write_weights(folder, planned, load, request.max_shard_size)
    return dtype


@contextmanager
def new_folder(to: Path) -> Iterator[Path]:
    """A temporary folder that is renamed to `to` on success and deleted on failure.

    Raises:
        CheckpointError: If `to` is a file or a folder that is not empty, or cannot be made.
    """
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise CheckpointError(f"{to} is not empty; give a folder that does not exist yet.")
    with ExitStack() as stack:
        try:
            to = to.resolve()  # "." has no name, and cannot be removed
            temporary = stack.enter_context(atomic_path(to))
            shutil.rmtree(temporary, ignore_errors=True)  # of a killed process with the same id
            temporary.mkdir()
        except OSError as error:
            raise CheckpointError(f"{to} cannot be made ({error}).") from error
        yield temporary
        if to.exists():
            to.rmdir()


def make_plan(base: Source | None, parts: dict[str, Source], request: ConversionRequest) -> tuple[Plan, tuple | None]:
    """The plan, and the tokenizers and the name of the chat template that are written anew, if any are."""
    if base is None:
        sam2 = parts["tracker"]
        plan = Plan(standalone_sam2_config(sam2.files.shapes, read_sizes(request, sam2.folder)))
        keys = map_tracker(sam2.files.tensors, original_decoder=False)
        plan.add(sam2, KeyMap({name.removeprefix(SAM): piece for name, piece in keys.pieces.items()}))
        return plan, None
    return (plan_into(base, parts, request), None) if base.kind == "into" else plan_release(base, parts, request)


def convert(request: ConversionRequest) -> Report:
    """
    Converts a checkpoint.

    Returns:
        [`Report`], which is also saved as `conversion.json`.

    Raises:
        CheckpointError: If a source is incomplete or does not fit the others. Nothing is written in that case.
    """
    with new_folder(request.to) as folder:
        base, parts = open_sources(request)
        described = parts["tracker"].folder if base is None else base.folder
        with explain_damage(described, *NO_MODEL):
            plan, texts = make_plan(base, parts, request)
            model = meta_model(plan)
        expected = model.state_dict()
        if isinstance(plan.config, SamaConfig) and plan.config.tie_word_embeddings:
            expected.pop(HEAD)
        check_plan(plan, expected)
        named = [(base.kind, base.path)] if base is not None and base.kind == "into" else []
        named += [(kind, path) for path, kind in request.sources]
        plan.report.sources = [{"kind": kind, "name": path.name, **card_facts(path)} for kind, path in named]
        plan.config.dtype = write_tensors(folder, plan, expected, request)
        with explain_write_errors(folder):
            write_others(folder, plan, model, base, texts)
    return plan.report


def write_others(folder: Path, plan: Plan, model: torch.nn.Module, base: Source | None, texts: tuple | None) -> None:
    """Writes every file of the folder except the weights."""
    if isinstance(plan.config, SamaConfig):
        plan.config.trained = not plan.report.fresh
        if texts is None:
            carry_processor(base.folder, folder)
        else:
            write_processor(folder, plan.config, *texts)
    write_model_files(folder, model, plan.config)
    report = json.dumps(asdict(plan.report), indent=2, ensure_ascii=False)
    (folder / REPORT_FILE).write_text(report + "\n", encoding="utf-8")
    write_card(folder, plan.config, plan.report.lines(), plan.report.sources)


def parse_arguments(argv: Sequence[str] | None = None) -> ConversionRequest:
    """The command line as a request."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--from", dest="paths", type=Path, action="append", required=True, metavar="DIR_OR_FILE",
        help="source checkpoint, repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--kind", dest="kinds", choices=KINDS, action="append", required=True, help="of the source, one per --from"
    )
    parser.add_argument("--to", type=Path, required=True, help="output folder, which must be new or empty")
    parser.add_argument("--into", type=Path, help="converted checkpoint whose parts the sources replace")
    parser.add_argument("--tokenizer", type=Path, help="folder of the tokenizer, if not in the source folder")
    parser.add_argument(
        "--qformer_tokenizer", type=Path, help="folder with bert-base-uncased's vocab.txt; never downloaded"
    )
    parser.add_argument(
        "--add_aggregator", action="store_true",
        help="give a Sa2VA a newly initialized context aggregator and region encoders, to train a SAMA from it; "
        "implied by --kind instructblip",
    )  # fmt: skip
    parser.add_argument(
        "--preset", choices=PRESETS,
        help="of a SAMA or Sa2VA, with every setting that belongs to it (default: that of its own inference)",
    )  # fmt: skip
    parser.add_argument(
        "--force_regions", action="store_true",
        help="let a Sa2VA read regions of stills even if it was never trained to",
    )  # fmt: skip
    parser.add_argument("--sizes", type=Path, help="JSON file with sizes that tensor shapes do not determine")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto")
    parser.add_argument(
        "--max_shard_size", type=_shard_size, default="2GB", help="of the written weight files (default: %(default)s)"
    )
    values = vars(parser.parse_args(argv))
    paths, kinds = values.pop("paths"), values.pop("kinds")
    if len(paths) != len(kinds):
        parser.error(f"{len(paths)} --from and {len(kinds)} --kind: give one --kind for each --from")
    return ConversionRequest(sources=list(zip(paths, kinds, strict=True)), **values)


def _shard_size(text: str) -> str:
    """A size as huggingface_hub reads it."""
    if not re.fullmatch(r"\d+(\.\d+)? *(KB|MB|GB|TB)", text, re.IGNORECASE):
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 500MB or 2GB")
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """Converts as the command line says; returns the exit code."""
    request = parse_arguments(argv)
    try:
        report = convert(request)
    except CheckpointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{request.to}:")
    print("\n".join(report.lines()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
