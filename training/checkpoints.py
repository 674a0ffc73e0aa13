"""Whole checkpoints: what a checkpoint must hold, its manifest, and which checkpoint of a run to resume from."""

import json
import os
import re
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path

from sama.data.files import write_text_atomically


STATE_FILE, ORDER_FILE, FINGERPRINT_FILE = "trainer_state.json", "order.json", "fingerprint.json"
MANIFEST = "manifest.json"  # written last: sizes and checksums of all other files
CHUNK_BYTES = 2**24
# At least one of these files or folders holds the weights, and at least one the optimizer's state: those of one
# process or DDP, of DeepSpeed and of FSDP. A trailing slash is a folder
WEIGHTS = (
    "model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors", "global_step*/",
    "pytorch_model_fsdp*",
)  # fmt: skip
OPTIMIZER = ("optimizer.pt", "global_step*/", "optimizer_*/", "optimizer.bin")


class TrainingError(RuntimeError):
    """The run cannot start or continue; the message has the cause and, during training, the step and the last complete
    checkpoint."""


def read_json(path: Path) -> dict:
    """The content of a JSON file of a run; [`TrainingError`] if it cannot be read or is not an object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TrainingError(f"{path} cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise TrainingError(f"{path} contains {type(content).__name__} where an object is expected")
    return content


def checksum(path: Path) -> int:
    """CRC-32 of a file, which finds damage and costs about as much time as reading it."""
    found = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            found = zlib.crc32(chunk, found)
    return found


def write_manifest(folder: Path) -> None:
    """Flushes the files of a checkpoint to disk, in case of a power failure, and lists them in its manifest."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != MANIFEST:
            with path.open("rb+") as file:
                os.fsync(file.fileno())
            files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "crc32": checksum(path)}
    write_text_atomically(folder / MANIFEST, json.dumps({"files": files}, indent=1) + "\n")
    with (folder / MANIFEST).open("rb+") as file:
        os.fsync(file.fileno())


def find_damage(checkpoint: Path) -> str | None:
    """What a checkpoint lacks, in words and with the names of the files; `None` if it is whole."""
    if not checkpoint.is_dir():
        return "is a file, not a folder" if checkpoint.exists() else "does not exist"
    try:
        listed = read_json(checkpoint / MANIFEST)["files"] if (checkpoint / MANIFEST).exists() else None
        missing = [] if listed is None else [name for name in listed if not (checkpoint / name).is_file()]
        missing += [name for name in missing_files(checkpoint) if name not in missing]
        if listed is None:
            missing.append(MANIFEST)
        if missing:
            return f"lacks {', '.join(missing)}"
        for name, entry in listed.items():
            path = checkpoint / name
            if path.stat().st_size != entry["bytes"]:
                return f"has {path.stat().st_size:,} bytes of the {entry['bytes']:,} of {name}"
            if checksum(path) != entry["crc32"]:
                return f"has a damaged {name}: its checksum is not the recorded one"
    except (OSError, TrainingError, KeyError, TypeError, AttributeError, ValueError) as error:
        return f"cannot be read ({' '.join(str(error).split())})"
    return None


def missing_files(checkpoint: Path) -> list[str]:
    """Files without which no run can continue. What a checkpoint lacks from the beginning, because it was saved with
    `--save_only_model`, is missing too."""
    needed = [STATE_FILE, ORDER_FILE, FINGERPRINT_FILE]
    missing = [name for name in needed if not (checkpoint / name).is_file()]
    missing += missing_weights(checkpoint)
    if not any(_exists(checkpoint, kind) for kind in OPTIMIZER):
        missing.append(OPTIMIZER[0])
    if not _exists(checkpoint, "scheduler.pt") and not _exists(checkpoint, "global_step*/"):
        missing.append("scheduler.pt")  # DeepSpeed's own schedulers are part of its state
    processes = 1
    if (checkpoint / ORDER_FILE).is_file():
        processes = read_json(checkpoint / ORDER_FILE).get("num_ranks", 1)
    states = ["rng_state.pth"] if processes == 1 else [f"rng_state_{rank}.pth" for rank in range(processes)]
    return missing + [name for name in states if not (checkpoint / name).is_file()]


def missing_weights(folder: Path) -> list[str]:
    """Files that hold weights and are missing, among them the parts that an index of weights lists."""
    if not any(_exists(folder, kind) for kind in WEIGHTS):
        return [WEIGHTS[0]]
    index = folder / "model.safetensors.index.json"
    parts = read_json(index).get("weight_map", {}).values() if index.is_file() else ()
    return [name for name in dict.fromkeys(parts) if not (folder / name).is_file()]


def _exists(folder: Path, pattern: str) -> bool:
    return any(path.is_dir() or not pattern.endswith("/") for path in folder.glob(pattern.rstrip("/")))


def numbered_checkpoints(folder: str | Path) -> dict[int, Path]:
    """Step -> checkpoint folder, in the order of the steps. Other names, such as `checkpoint-final`, are ignored."""
    found = {}
    for path in Path(folder).glob("checkpoint-*"):
        name = re.fullmatch(r"checkpoint-([0-9]{1,18})", path.name)
        if name and path.is_dir():
            found[int(name[1])] = path
    return dict(sorted(found.items()))


def whole_checkpoints(paths: list[Path]) -> Iterator[tuple[Path, str | None]]:
    """Each path, the newest first, with its damage if any; stops after the first whole one."""
    for path in reversed(paths):
        damage = find_damage(path)
        yield path, damage
        if damage is None:
            return


def find_checkpoint(folder: str | Path) -> Path | None:
    """The newest whole checkpoint of a run, or `None`."""
    found = whole_checkpoints(list(numbered_checkpoints(folder).values()))
    return next((path for path, damage in found if damage is None), None)


def choose_checkpoint(newest: Path, older: list[Path]) -> tuple[Path, list[str]]:
    """
    The checkpoint to resume from: `newest`, or if it is damaged the newest of `older` that is whole.

    Returns:
        `tuple(Path, list[str])`: The checkpoint, and a sentence about each damaged one that was passed over.

    Raises:
        [`TrainingError`]: No checkpoint is whole; the message names them all.
    """
    passed = []
    for path, damage in whole_checkpoints([*older, newest]):
        if damage is None:
            return path, [f"{problem}; resuming from {path} instead." for problem in passed]
        passed.append(f"{path} {damage}")
    hint = "no other checkpoint of the run is whole" if len(passed) == 1 else "none is whole"
    raise TrainingError(f"there is no checkpoint to resume from: {'; '.join(passed)}; {hint}")


def resume_point(wanted: str | Path, output_dir: str | Path, last: str) -> tuple[Path | None, list[str]]:
    """
    The checkpoint that `--resume_from_checkpoint` means, and sentences about damaged ones that were passed over.

    Args:
        wanted (`str` or `Path`): The folder of a checkpoint, or `last`.
        output_dir (`str` or `Path`): Output folder of the run.
        last (`str`): The word for its newest whole checkpoint.

    Returns:
        `None` in place of a path for `last` if there is no checkpoint at all.
    """
    if wanted == last:
        found = list(numbered_checkpoints(output_dir).values())
        return choose_checkpoint(found[-1], found[:-1]) if found else (None, [])
    path = Path(wanted)
    if not path.is_dir():
        kind = "is a file, not the folder of a checkpoint" if path.exists() else "does not exist"
        newest = find_checkpoint(output_dir)
        hint = f"; the newest whole checkpoint of {output_dir} is {newest}" if newest else ""
        raise TrainingError(f"the checkpoint {path} {kind}{hint}")
    own = re.fullmatch(r"checkpoint-([0-9]{1,18})", path.name)
    siblings = numbered_checkpoints(path.parent)
    return choose_checkpoint(path, [other for step, other in siblings.items() if own and step < int(own[1])])


def delete_old_checkpoints(folder: Path, step: int, limit: int | None) -> None:
    """Keeps the `limit` newest checkpoints up to `step`. Those of later steps, which a run that went back to an older
    checkpoint left behind, go first, so that they never displace the checkpoint that was just written."""
    if not limit or limit < 1:
        return
    found = sorted(numbered_checkpoints(folder).items(), key=lambda item: (item[0] <= step, item[0]))
    for _, path in found[:-limit]:
        shutil.rmtree(path, ignore_errors=True)
