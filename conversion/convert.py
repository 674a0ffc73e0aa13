"""Converts released checkpoints to ours: SAMA, Sa2VA, SAM 2, InternVL 2.5 and InstructBLIP (see docs/checkpoints.md).

    python conversion/convert.py --from SAMA-1B --kind sama --to sama-1b --qformer_tokenizer bert-base-uncased
    python conversion/convert.py --from sam2_hiera_large.pt --kind sam2 --into sama-1b --to sama-1b-consistent
    python conversion/convert.py --from Sa2VA-1B --kind sa2va --from instruct_blip_vicuna7b_trimmed.pth \\
        --kind instructblip --to sama-start --qformer_tokenizer bert-base-uncased

Every tensor of the foreign checkpoint is used or listed with the reason, every one of ours is filled or listed as
fresh; anything else is an error. Memory holds one shard at a time, and nothing half-written stays behind.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch

from sama.configuration_sama import SamaConfig
from sama.conversion.configs import standalone_sam2_config
from sama.conversion.files import CheckpointError, full_disk_is_an_error, write_weights
from sama.conversion.folder import copy_other_files, write_card, write_model_files, write_texts
from sama.conversion.keys import HEAD, SAM, KeyMap, map_sam2
from sama.conversion.plan import (
    KINDS,
    REPORT_FILE,
    Order,
    Plan,
    Report,
    Source,
    check_plan,
    meta_model,
    open_sources,
    plan_into,
    plan_release,
    read_sizes,
)
from sama.modeling_sama import SamaForConditionalGeneration


FRESH_SEED = 0


def fresh_tensors(config: SamaConfig, names: list[str]) -> dict[str, torch.Tensor]:
    """Initial values of the parts that are still to be trained, from a model whose large parts have no layers."""
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


def write_tensors(folder: Path, plan: Plan, wanted: dict[str, torch.Tensor], order: Order) -> torch.dtype:
    """Reads, changes and writes all tensors in the order in which they are stored; returns their type."""
    base = next(iter(plan.pieces.values()))[0]
    dtype = base.files.main_dtype() if order.dtype == "auto" else vars(torch)[order.dtype]
    fresh = fresh_tensors(plan.config, [name for name in plan.report.fresh if name not in plan.pieces])
    planned = {
        name: torch.empty(wanted[name].shape, dtype=dtype, device="meta") for name in list(plan.pieces) + list(fresh)
    }
    needed = sum(tensor.nbytes for tensor in planned.values())
    if (free := shutil.disk_usage(folder).free) < needed:
        raise CheckpointError(f"{order.to} needs {needed / 1e9:.1f} GB but the disk has {free / 1e9:.1f} GB left.")

    def load(name: str) -> torch.Tensor:
        if name in fresh:
            return fresh[name].to(dtype)
        source, piece = plan.pieces[name]
        made = piece.make(*(source.files.read(key) for key in piece.keys))
        return made.to(dtype, copy=True, memory_format=torch.contiguous_format)

    write_weights(folder, planned, load, order.max_shard_size)
    return dtype


@contextmanager
def new_folder(to: Path) -> Iterator[Path]:
    """A temporary folder that becomes `to` when all went well, and vanishes otherwise."""
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise CheckpointError(f"{to} is not empty; give a folder that does not exist yet.")
    to.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{to.name}-", dir=to.parent))
    try:
        yield temporary
        os.chmod(temporary, 0o755)  # a temporary folder is for its owner alone
        if to.exists():
            to.rmdir()
        temporary.rename(to)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def convert(order: Order) -> Report:
    """
    Converts what `order` says.

    Returns:
        [`Report`], which is also saved as `conversion.json`.

    Raises:
        CheckpointError: If anything does not fit; nothing is written then.
    """
    with new_folder(order.to) as folder:
        base, parts = open_sources(order)
        if base is None:
            plan = Plan(standalone_sam2_config(parts["sam2"].files.shapes, read_sizes(order, parts["sam2"].folder)))
            keys = map_sam2(parts["sam2"].files.tensors, original_decoder=False)
            plan.add(parts["sam2"], KeyMap({name.removeprefix(SAM): piece for name, piece in keys.pieces.items()}))
            texts = None
        elif base.kind == "into":
            plan, texts = plan_into(base, parts, order), None
        else:
            plan, texts = plan_release(base, parts, order)
        model = meta_model(plan)
        wanted = model.state_dict()
        if isinstance(plan.config, SamaConfig) and plan.config.tie_word_embeddings:
            wanted.pop(HEAD)
        check_plan(plan, wanted)
        named = [(base.kind, base.path)] if base is not None and base.kind == "into" else []
        plan.report.sources = [{"kind": kind, "name": path.name} for kind, path in named] + [
            {"kind": kind, "name": path.name} for path, kind in order.sources
        ]
        plan.config.dtype = write_tensors(folder, plan, wanted, order)
        with full_disk_is_an_error(folder):
            write_others(folder, plan, model, base, texts)
    return plan.report


def write_others(folder: Path, plan: Plan, model: torch.nn.Module, base: Source | None, texts: tuple | None) -> None:
    """Everything in the folder that is no weight."""
    if isinstance(plan.config, SamaConfig):
        plan.config.trained = not plan.report.fresh
        if texts is None:
            copy_other_files(base.folder, folder, leave=(REPORT_FILE, "README.md", "config.json"))
        else:
            write_texts(folder, plan.config, *texts, published=base.kind == "sama")
    write_model_files(folder, model, plan.config)
    report = json.dumps(asdict(plan.report), indent=2, ensure_ascii=False)
    (folder / REPORT_FILE).write_text(report + "\n", encoding="utf-8")
    write_card(folder, plan.config, plan.report.lines(), plan.report.sources)


def read_order(arguments: list[str] | None = None) -> Order:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="paths", type=Path, action="append", required=True, metavar="DIR_OR_FILE")
    parser.add_argument(
        "--kind", dest="kinds", choices=KINDS, action="append", required=True, help="one for each --from"
    )
    parser.add_argument("--to", type=Path, required=True, help="folder to write; must not exist or be empty")
    parser.add_argument("--into", type=Path, help="a checkpoint of ours that the sources fill")
    parser.add_argument("--tokenizer", type=Path, help="its folder, where it is not in the checkpoint's")
    parser.add_argument(
        "--qformer_tokenizer", type=Path, help="folder with bert-base-uncased's vocab.txt; never downloaded"
    )
    parser.add_argument("--sizes", type=Path, help="JSON with the sizes that no shape tells, for unpublished sizes")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto")
    parser.add_argument("--max_shard_size", default="2GB", help="of the written files")
    values = vars(parser.parse_args(arguments))
    paths, kinds = values.pop("paths"), values.pop("kinds")
    if len(paths) != len(kinds):
        parser.error(f"{len(paths)} --from and {len(kinds)} --kind: give one --kind for each --from")
    return Order(sources=list(zip(paths, kinds, strict=True)), **values)


def main(argv: list[str] | None = None) -> int:
    """Converts as the command line says; returns the exit code."""
    order = read_order(argv)
    try:
        report = convert(order)
    except CheckpointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{order.to}:")
    print("\n".join(report.lines()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
