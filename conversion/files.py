"""Weight files, read one tensor at a time and written one shard at a time."""

import json
import mmap
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from sama.data.json_text import parse_json
from sama.data.pickle_scan import check_opcodes


SAFETENSORS, PICKLES = (".safetensors",), (".pt", ".pth", ".bin")
SHARD_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.\w+)$")
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}


MAX_PICKLE = 2**28  # bytes of a pickle that lists the tensors of a file
OLD_PICKLES = 5  # magic number, protocol, facts about the machine, tensors, and names of their storages


class CheckpointError(ValueError):
    """A checkpoint that cannot be converted; the message is one sentence with the likely cause."""


@contextmanager
def explain_damage(
    file: Path, cause: str = "is truncated or damaged", advice: str = "download it again"
) -> Iterator[None]:
    """Raises [`CheckpointError`] with the name of the file for whatever reading a damaged one raises."""
    try:
        yield
    except CheckpointError:
        raise
    except ImportError as error:  # a package that is missing is no damage
        raise CheckpointError(" ".join(str(error).split())) from error
    except Exception as error:  # whatever torch, safetensors and transformers let escape; tokenizers raises this one
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise CheckpointError(f"{file} {cause} ({reason}); {advice}.") from error


@dataclass(frozen=True)
class StoredTensor:
    """File, shape and dtype of a tensor."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype

    def empty(self) -> torch.Tensor:
        """A tensor of this shape and dtype on the meta device."""
        return torch.empty(self.shape, dtype=self.dtype, device="meta")


class TensorShapes(dict[str, tuple[int, ...]]):
    """Names and shapes of a checkpoint's tensors; a missing name raises [`CheckpointError`]."""

    def __init__(self, path: Path, shapes: dict[str, tuple[int, ...]]):
        super().__init__(shapes)
        self.path = path

    def __missing__(self, name: str):
        raise CheckpointError(f"{self.path} has no tensor {name}; is it complete?")


class WeightFiles:
    """
    The tensors of a checkpoint. Names and shapes are read at once, values one by one; at most one file is open.

    Args:
        path (`Path`): A weight file, or a folder with one or more.
        matches (`Callable`, *optional*):
            Whether a set of tensor names is the wanted checkpoint, used if the folder holds several.

    Raises:
        CheckpointError: If a file is missing, truncated, not a weight file, or contradicts the index.
    """

    def __init__(self, path: Path, matches: Callable[[set[str]], bool] | None = None):
        with explain_damage(path, "cannot be read"):
            files, index = find_files(path)
        self.path = path
        tensors = {file: list_tensors(file) for file in files}
        if index is None and len(files) > 1 and not all(SHARD_NAME.search(file.name) for file in files):
            tensors = choose_file(path, tensors, matches)
        self.tensors: dict[str, StoredTensor] = {}
        for stored in tensors.values():
            if duplicates := sorted(self.tensors.keys() & stored.keys()):
                raise CheckpointError(f"{path}: {duplicates[0]} is in two files; remove files of other checkpoints.")
            self.tensors |= stored
        if index is not None and (absent := sorted(set(index) - self.tensors.keys())):
            raise CheckpointError(
                f"{path}: the index names {len(absent)} tensors that are not in the files, first {absent[0]} in "
                f"{index[absent[0]]}; download it again."
            )
        self._open_file: Path | None = None
        self._open: safe_open | dict[str, torch.Tensor] | None = None

    @property
    def shapes(self) -> TensorShapes:
        """Shape of each tensor by name."""
        return TensorShapes(self.path, {name: stored.shape for name, stored in self.tensors.items()})

    def main_dtype(self) -> torch.dtype:
        """The floating-point dtype of most values."""
        counts: dict[torch.dtype, int] = {}
        for stored in self.tensors.values():
            if stored.dtype.is_floating_point:
                counts[stored.dtype] = counts.get(stored.dtype, 0) + stored.empty().numel()
        return max(counts, key=counts.get, default=torch.float32)

    def read(self, name: str) -> torch.Tensor:
        """The values of one tensor, possibly memory-mapped: copy them before the file is closed."""
        file = self.tensors[name].file
        with explain_damage(file):
            if file != self._open_file:
                self.close()
                self._open = safe_open(file, "pt") if file.suffix in SAFETENSORS else load_pickle(file)
                self._open_file = file
            return self._open[name] if isinstance(self._open, dict) else self._open.get_tensor(name)

    def close(self) -> None:
        """Closes the open file."""
        self._open_file = self._open = None


def read_json(path: Path, needed: tuple[str, ...] = ()) -> dict:
    """A JSON file of a checkpoint, which must have the keys `needed`."""
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; it describes the weights.")
    try:
        content = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not a valid JSON file ({error}); download it again.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} contains {type(content).__name__} where an object is expected.")
    if absent := [name for name in needed if name not in content]:
        raise CheckpointError(f"{path} has no {', '.join(absent)}; does it belong to these weights?")
    return content


def find_files(path: Path) -> tuple[list[Path], dict[str, str] | None]:
    """The weight files at `path`, and the index (tensor name to file name) if there is one."""
    if not path.exists():
        raise CheckpointError(f"{path} does not exist.")
    if path.is_file():
        if path.suffix not in SAFETENSORS + PICKLES:
            raise CheckpointError(f"{path} is not a weight file: expected {', '.join(SAFETENSORS + PICKLES)}.")
        return [path], None
    for suffixes in (SAFETENSORS, PICKLES):
        for index_file in sorted(path.glob(f"*{suffixes[-1]}.index.json")):
            index = read_json(index_file, needed=("weight_map",))["weight_map"]
            # File names alone, so that an index cannot name a file outside the folder
            if not isinstance(index, dict) or not all(
                isinstance(name, str) and name not in ("", ".", "..") and Path(name).name == name and "\0" not in name
                for name in index.values()
            ):
                raise CheckpointError(f"{index_file}: weight_map is not an object of tensor names and file names.")
            names = sorted(set(index.values()))
            if absent := [name for name in names if not (path / name).is_file()]:
                raise CheckpointError(f"{path}: {len(absent)} of {len(names)} shards are missing, first {absent[0]}.")
            return [path / name for name in names], index
        if files := sorted(file for file in path.iterdir() if file.suffix in suffixes and file.is_file()):
            return check_shard_numbers(path, files), None
    raise CheckpointError(f"{path} contains no weight file ({', '.join(SAFETENSORS + PICKLES)}).")


def check_shard_numbers(path: Path, files: list[Path]) -> list[Path]:
    """Checks that shards without an index are complete: `x-00001-of-00003` has the number of shards."""
    names = {file.name for file in files}
    for file in files:
        if match := SHARD_NAME.search(file.name):
            stem, _, total, suffix = match.groups()
            expected = [f"{stem}-{number:05d}-of-{total}{suffix}" for number in range(1, int(total) + 1)]
            if absent := [name for name in expected if name not in names]:
                raise CheckpointError(f"{path}: {len(absent)} of {int(total)} shards are missing, first {absent[0]}.")
    return files


def choose_file(
    path: Path, tensors: dict[Path, dict[str, StoredTensor]], matches: Callable[[set[str]], bool] | None
) -> dict[Path, dict[str, StoredTensor]]:
    """The one file that holds the checkpoint, in a folder with several."""
    named = [file for file in tensors if file.stem in ("model", "pytorch_model")]
    candidates = named or [file for file, stored in tensors.items() if matches is not None and matches(set(stored))]
    if len(candidates) != 1:
        names = ", ".join(file.name for file in tensors)
        raise CheckpointError(f"{path} contains several weight files ({names}) and no index; name one of them.")
    return {candidates[0]: tensors[candidates[0]]}


def list_tensors(file: Path) -> dict[str, StoredTensor]:
    """Names, shapes and dtypes of the tensors in one file; no values are read."""
    if file.suffix in PICKLES:
        return {
            name: StoredTensor(file, tuple(tensor.shape), tensor.dtype) for name, tensor in load_pickle(file).items()
        }
    found = {}
    with explain_damage(file), safe_open(file, "pt") as opened:
        for name in opened.keys():  # noqa: SIM118, the handle is not a dictionary
            stored = opened.get_slice(name)
            if stored.get_dtype() not in DTYPES:
                raise CheckpointError(f"{file}: {name} has the unsupported dtype {stored.get_dtype()}.")
            found[name] = StoredTensor(file, tuple(stored.get_shape()), DTYPES[stored.get_dtype()])
    return found


def check_pickles(file: Path) -> None:
    """Refuses a file of torch whose pickles would take memory or time out of proportion to their size."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            for entry in archive.infolist():
                if entry.filename.endswith("data.pkl"):
                    if entry.file_size > MAX_PICKLE:
                        raise ValueError(f"{entry.filename} has {entry.file_size} bytes")
                    check_opcodes(archive.read(entry))
        return
    with open(file, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        position = 0
        for _ in range(OLD_PICKLES):
            position = check_opcodes(content, position)


def load_pickle(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a `.pt` or `.pth` file, memory-mapped if possible. No code in the file is run."""
    with explain_damage(file), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about old formats, which a damaged file may be taken for
        try:
            check_pickles(file)
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
        except pickle.UnpicklingError as error:
            raise CheckpointError(
                f"{file} is damaged, or holds more than tensors and cannot be read without running code; save only "
                "its state dictionary."
            ) from error
    for wrapper in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    tensors = {} if not isinstance(content, Mapping) else content
    tensors = {
        name: tensor
        for name, tensor in tensors.items()
        if isinstance(name, str) and isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided
    }
    if not tensors:
        raise CheckpointError(f"{file} contains no tensors.")
    return tensors


def write_weights(
    folder: Path, planned: dict[str, torch.Tensor], load: Callable[[str], torch.Tensor], max_shard_size: int | str
) -> None:
    """
    Writes `model.safetensors`, or several shards and their index, with one shard in memory at a time.

    Args:
        folder (`Path`): Output folder.
        planned (`dict[str, torch.Tensor]`): Every tensor on the meta device, in writing order.
        load (`Callable`): Returns the values of a tensor by name.
        max_shard_size (`int` or `str`): Bytes, or a string such as "2GB".
    """
    split = split_torch_state_dict_into_shards(planned, max_shard_size=max_shard_size)
    with tqdm(total=len(planned), desc="Converting", unit="tensor") as progress:
        for name, keys in split.filename_to_tensors.items():
            shard = {}
            for key in keys:
                shard[key] = load(key)
                progress.update()
            with explain_write_errors(folder):
                save_file(shard, folder / name, metadata={"format": "pt"})
            shard.clear()
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


@contextmanager
def explain_write_errors(folder: Path) -> Iterator[None]:
    """Raises [`CheckpointError`] for a failed write."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder.parent} cannot be written to ({error}); is the disk full?") from error
