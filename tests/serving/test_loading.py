"""What loading a model reads, copies and imports, counted."""

import shutil
import sys
from collections import Counter

import pytest
import safetensors
import torch
from checkpoint import CHECKPOINT
from processes import finish, run_script_anew, start
from safetensors import safe_open
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedConfig, modeling_utils

from sama.modeling_sama import SamaForConditionalGeneration
from sama.processing_sama import SamaProcessor
from sama.serving.loading import has_code_of_package, load_model


def names_of_checkpoint() -> list[str]:
    with safe_open(CHECKPOINT / "model.safetensors", "pt") as file:
        return sorted(file.keys())


class Slice:
    """A slice of a file that counts how often its values are read."""

    def __init__(self, found, name: str, read: Counter):
        self.found, self.name, self.read = found, name, read

    def __getitem__(self, index):
        self.read[self.name] += 1
        return self.found[index]

    def __getattr__(self, name: str):
        return getattr(self.found, name)


@pytest.fixture
def reads(monkeypatch) -> Counter:
    """How often each tensor, and each file, is read."""
    found = Counter()

    class File:
        def __init__(self, file, *arguments, **settings):
            found[str(file).rpartition("/")[2]] += 1
            self.opened = safetensors.safe_open(file, *arguments, **settings)

        def get_slice(self, name: str) -> Slice:
            return Slice(self.opened.get_slice(name), name, found)

        def __getattr__(self, name: str):
            return getattr(self.opened, name)

    def read_json(cls, file):
        found[str(file).rpartition("/")[2]] += 1
        return read.__func__(cls, file)

    read = PreTrainedConfig._dict_from_json_file
    monkeypatch.setattr(PreTrainedConfig, "_dict_from_json_file", classmethod(read_json))
    monkeypatch.setattr(modeling_utils, "safe_open", File)
    return found


def test_the_small_model_is_read_once(reads):
    before = {name for name in sys.modules if name.startswith("transformers_modules")}
    model, processor = load_model(str(CHECKPOINT), "cpu", preset="published")
    assert (type(model), type(processor)) == (SamaForConditionalGeneration, SamaProcessor)
    assert model.config.preset == processor.config.preset == "published" and model.config is not processor.config
    assert {name for name in sys.modules if name.startswith("transformers_modules")} == before
    assert reads == Counter([*names_of_checkpoint(), "model.safetensors", "config.json"])


class Allocations(TorchDispatchMode):
    """Counts the values of new tensors by type, what is on no device left out."""

    def __init__(self):
        super().__init__()
        self.values = Counter()

    def __torch_dispatch__(self, function, types, arguments=(), settings=None):
        output = function(*arguments, **settings or {})
        if torch.is_tensor(output) and output.device.type != "meta":
            self.values[output.dtype] += output.numel()
        return output


def test_a_model_in_bfloat16_is_not_copied_in_float32(monkeypatch):
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")  # a dispatch mode sees its own thread
    allocated = Allocations()
    with allocated:
        model, _ = load_model(str(CHECKPOINT), "cpu", "bfloat16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    total = sum(parameter.numel() for parameter in model.parameters())
    assert allocated.values[torch.bfloat16] >= total and allocated.values[torch.float32] < total / 1000


@pytest.fixture
def folder(tmp_path):
    """The small model in a folder of the user's."""
    copy = tmp_path / "mine"
    shutil.copytree(CHECKPOINT, copy)
    return copy


def test_code_of_a_folder_is_used_where_it_differs(folder):
    assert has_code_of_package(folder)
    assert type(load_model(str(folder), "cpu")[0]) is SamaForConditionalGeneration
    with (folder / "losses_sama.py").open("a") as file:
        file.write("CHANGED = True\n")
    assert not has_code_of_package(folder)
    model, processor = load_model(str(folder), "cpu", preset="published")
    for loaded in (model, processor):
        assert type(loaded).__module__.startswith("transformers_modules.mine.")
        assert loaded.config.preset == "published"


@pytest.mark.parametrize("change", ["no code", "another class", "a file of its own", "no config"])
def test_a_folder_without_the_code_of_the_package(folder, change):
    if change == "no code":
        for file in folder.glob("*.py"):
            file.unlink()
    elif change == "another class":
        config = (folder / "config.json").read_text()
        (folder / "config.json").write_text(
            config.replace('"AutoModel": "modeling_sama', '"AutoModel": "modeling_mine')
        )
    elif change == "a file of its own":
        (folder / "modeling_mine.py").write_text("")
    else:
        (folder / "config.json").write_text("[]")
    assert not has_code_of_package(folder)


HEAVY = ("datasets", "fastapi", "matplotlib", "pandas", "peft", "ray", "trl", "transformers_modules", "uvicorn")


def test_what_is_not_needed_is_not_imported(tmp_path):
    """In a process that has imported PyTorch and transformers, but neither this project nor a heavy package."""
    script, log = tmp_path / "script.py", tmp_path / "log.txt"
    script.write_text(
        "import sys\n"
        "from sama.serving.loading import DEFAULT_MODEL, load_model\n"
        "import sama.serving.session, sama.serving.terminal_chat\n"
        "load_model(str(DEFAULT_MODEL), 'cpu')\n"
        "print('imported:', *sorted({name.partition('.')[0] for name in sys.modules}))\n"
    )
    finish(start(log, run_script_anew, HEAVY, script), log)
    (line,) = [line for line in log.read_text(encoding="utf-8").splitlines() if line.startswith("imported: ")]
    found = set(line.split()[1:])
    assert {"torch", "transformers", "sama"} <= found and not set(HEAVY) & found
