"""What a conversion starts from: the request, its source checkpoints, and which of them go together."""

from dataclasses import dataclass
from pathlib import Path

from sama.conversion.backbones import BACKBONES
from sama.conversion.configs import check_sizes
from sama.conversion.files import CheckpointError, WeightFiles, read_json
from sama.conversion.keys import guess_kind
from sama.conversion.native import TRACKER_TYPES, native_tracker_kind


TRACKERS = tuple(TRACKER_TYPES)
KINDS = ("sama", "sa2va", *BACKBONES, *TRACKERS, "instructblip")
BASES = ("into", "sama", "sa2va", *BACKBONES)  # these contain a language model; the others replace a part


@dataclass(frozen=True)
class ConversionRequest:
    """
    What to convert.

    Args:
        sources (`list[tuple[Path, str]]`): Source files or folders, each with its kind.
        to (`Path`): Output folder, which must be new or empty.
        into (`Path`, *optional*): Converted checkpoint whose parts the sources replace.
        tokenizer, qformer_tokenizer (`Path`, *optional*): Folders of the tokenizers, if not in the first source's.
        sizes (`Path`, *optional*): JSON file with sizes that tensor shapes do not determine.
        add_aggregator (`bool`): Whether a Sa2VA gets a newly initialized context aggregator: the start of a SAMA.
        preset (`str`, *optional*): Of a released model; by default that of its own inference.
        force_regions (`bool`): Whether a Sa2VA reads regions even if it was never trained to.
        dtype (`str`): "auto" keeps the dtype of most weights.
        max_shard_size (`str`): Size limit of the written weight files.
    """

    sources: list[tuple[Path, str]]
    to: Path
    into: Path | None = None
    tokenizer: Path | None = None
    qformer_tokenizer: Path | None = None
    sizes: Path | None = None
    add_aggregator: bool = False
    preset: str | None = None
    force_regions: bool = False
    dtype: str = "auto"
    max_shard_size: str = "2GB"


@dataclass
class Source:
    """One source checkpoint."""

    kind: str
    path: Path
    files: WeightFiles

    @property
    def folder(self) -> Path:
        return self.path if self.path.is_dir() else self.path.parent


def open_source(path: Path, kind: str) -> Source:
    """Opens a checkpoint and checks its kind."""
    source = Source(kind, path, WeightFiles(path, lambda names: guess_kind(names) == kind))
    found = guess_kind(set(source.files.tensors))
    if found != kind:
        looks = f"it looks like --kind {found}" if found in KINDS else "it looks like a converted checkpoint"
        raise CheckpointError(
            f"{path} is not a {'converted checkpoint' if kind == 'into' else f'checkpoint of --kind {kind}'}: "
            f"{looks if found else 'its tensor names are of no known kind'}."
        )
    return source


def read_sizes(request: ConversionRequest, folder: Path) -> dict:
    """Sizes that tensor shapes do not determine, from --sizes or from the recorded test checkpoint's own file."""
    recorded = folder / "golden.json"
    path = request.sizes or (recorded if recorded.is_file() else None)
    return {} if path is None else check_sizes(read_json(path), path)


def open_sources(request: ConversionRequest) -> tuple[Source | None, dict[str, Source]]:
    """The checkpoint with the language model, if any, and the other sources by kind."""
    sources = [open_source(path, kind) for path, kind in request.sources]
    if request.into is not None:
        sources.insert(0, open_source(request.into, "into"))
    bases = [source for source in sources if source.kind in BASES]
    parts = {
        "tracker" if source.kind in TRACKERS else source.kind: source for source in sources if source.kind not in BASES
    }
    if len(bases) > 1 or len(bases) + len(parts) < len(sources):
        raise CheckpointError(
            f"{' and '.join(source.kind for source in sources)} cannot be combined: give one of sama, sa2va, "
            f"{', '.join(BACKBONES)} or --into, and at most one of {', '.join(TRACKERS)} and one instructblip."
        )
    if not bases and [source.kind for source in sources] != ["sam2"]:
        names = {"sam3": "SAM 3", "edgetam": "EdgeTAM"}
        part = names.get(sources[0].kind, "InstructBLIP") if set(parts) == {"tracker"} else "InstructBLIP"
        raise CheckpointError(f"{part} replaces one part of a SAMA: also give --into, sama, sa2va or a backbone.")
    if not bases and native_tracker_kind(sources[0].files.tensors):
        raise CheckpointError(f"{sources[0].path} is in transformers' format already; also give --into or a backbone.")
    check_options(request, [source.kind for source in bases], starts="instructblip" in parts)
    base = bases[0] if bases else None
    if base is not None and base.kind in ("into", *BACKBONES):  # the others have a tracker as its authors store it
        check_new_tracker(request, parts.get("tracker"))
    return base, parts


def check_new_tracker(request: ConversionRequest, tracker: Source | None) -> None:
    """Raises [`CheckpointError`] for --sizes without a mask tracker that it could describe: a new one, as its authors
    store it."""
    if request.sizes is not None and (tracker is None or native_tracker_kind(tracker.files.tensors)):
        raise CheckpointError(
            "--sizes describes a mask tracker as its authors store it: give one that is not in transformers' format, "
            "for a checkpoint without a trained one."
        )


def check_options(request: ConversionRequest, bases: list[str], starts: bool) -> None:
    """
    Checks options that belong to sources of one kind.

    Args:
        request ([`ConversionRequest`])
        bases (`list[str]`): Kinds of the sources with a language model.
        starts (`bool`): Whether an InstructBLIP is given, which makes the start of a SAMA of a Sa2VA.

    Raises:
        CheckpointError: If an option would have no effect.
    """
    if request.tokenizer is not None and bases in ([], ["into"]):
        raise CheckpointError(
            "--tokenizer is that of a language model: a checkpoint given with --into keeps its own, and mask "
            "trackers have none."
        )
    if request.add_aggregator and bases != ["sa2va"]:
        raise CheckpointError("--add_aggregator makes a SAMA of a Sa2VA: give one source of --kind sa2va.")
    sa2va = bases == ["sa2va"] and not (request.add_aggregator or starts)
    if request.qformer_tokenizer is not None and (sa2va or bases in ([], ["into"])):
        raise CheckpointError(
            "--qformer_tokenizer is that of a context aggregator: a checkpoint given with --into keeps its own, and a "
            "Sa2VA gets one with --add_aggregator or an InstructBLIP."
        )
    if request.preset is not None and not sa2va and bases != ["sama"]:
        raise CheckpointError(
            "--preset chooses the inference of a released model: give --kind sama, or --kind sa2va without a context "
            "aggregator to be trained."
        )
    if request.force_regions and not sa2va:
        raise CheckpointError(
            "--force_regions lets a Sa2VA read regions: give --kind sa2va without a context aggregator to be trained. "
            "A SAMA has region encoders."
        )
