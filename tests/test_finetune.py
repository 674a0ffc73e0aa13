"""Runs the commands and the mixture of docs/finetune.md on ten clips of toy world."""

import contextlib
import io
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor

from sama.toy_world.export import write_records
from sama.toy_world.world import ToyWorld


ROOT = Path(__file__).parent.parent
TINY = ROOT / "checkpoints" / "sama-tiny"
PAGE = (ROOT / "docs" / "finetune.md").read_text(encoding="utf-8")
# Additional flags for a run of seconds on a CPU
SMALL = (
    "--use_cpu true --max_steps 2 --gradient_accumulation_steps 1 --lora_r 4 --turns 1 --report_to none "
    "--dataloader_num_workers 0 --disable_tqdm true --logging_steps 1 --save_strategy no"
)


def command(program: str) -> list[str]:
    """The arguments of the page's `python program` command."""
    lines = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
    (line,) = [line for line in lines if line.startswith(f"python {program} ")]
    return shlex.split(line)[1:]


def run(words: list[str], folder: Path) -> str:
    """What a program prints. It runs in this process, whose imports take longer than the rest; test_train.py starts
    train.py as a process of its own."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.chdir(folder)
        patch.setenv("SAMA_DATA_ROOT", str(folder))
        patch.setenv("SAMA_CACHE", str(folder / "cache"))
        patch.setattr(sys, "argv", words)
        try:
            runpy.run_path(str(ROOT / words[0]), run_name="__main__")
        except SystemExit as stop:
            assert not stop.code, printed.getvalue()[-6000:]
    return printed.getvalue()


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """The folder in which all commands of the page were run."""
    folder = tmp_path_factory.mktemp("finetune")
    records = write_records(ToyWorld(), folder / "mine", range(10))
    assert len(records.read_text(encoding="utf-8").splitlines()) == 10
    (mixture,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    (folder / "data_configs").mkdir()
    settings = yaml.safe_load(mixture) | {"catalogue": str(ROOT / "data_configs" / "catalogue.yaml")}
    (folder / "data_configs" / "mine.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    checked = run([*command("scripts/validate_data.py"), "--processor", str(TINY), "--workers", "0"], folder)
    words = [str(TINY) if word == "MODEL" else word for word in command("train.py")]
    trained = run([*words, *SMALL.split()], folder)
    run(command("scripts/merge_lora.py"), folder)
    return folder, checked, trained


def test_run_prints_data_and_trained_parts(walked):
    _, checked, trained = walked
    assert "mine" in checked and "mine" in trained
    (adapters,) = re.findall(r"^adapters +([\d,]+) +([\d,]+)$", trained, re.MULTILINE)
    assert int(adapters[0].replace(",", "")) > 0 and adapters[1] == "0"
    (language,) = re.findall(r"^language_model +([\d,]+) +([\d,]+)$", trained, re.MULTILINE)
    assert language[0] == "0"


def test_merged_model_is_complete_and_changed(walked):
    folder, *_ = walked
    merged = folder / "outputs" / "mine-merged"
    _, info = AutoModel.from_pretrained(merged, trust_remote_code=True, output_loading_info=True)
    assert not any(info.values())
    before, after = load_file(TINY / "model.safetensors"), load_file(merged / "model.safetensors")
    assert set(before) == set(after)
    moved = {name for name in before if not torch.equal(before[name].float(), after[name].float())}
    for part in ("language_model.layers", "context_aggregator", "seg_projection", "mask_decoder"):
        assert any(part in name for name in moved), part
    assert not any("vision_tower" in name or "original_mask_decoder" in name for name in moved)


def test_merged_model_answers(walked):
    folder, *_ = walked
    merged = folder / "outputs" / "mine-merged"
    model = AutoModel.from_pretrained(merged, trust_remote_code=True, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(merged, trust_remote_code=True)
    reply = model.start_chat(processor).ask("What is there?", max_new_tokens=4)
    assert isinstance(reply.text, str)
