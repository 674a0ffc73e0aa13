"""profiling/gpu.py and gpu.sh: every section works at small sizes without a GPU, and what is there is not measured
again."""

import os
import subprocess
from pathlib import Path

import pytest
import torch

from sama.profiling import gpu
from sama.profiling.gpu_scale import CHECKPOINT, Scale, utilisation
from sama.profiling.operations import count
from sama.resources import PACKAGE


SCRIPT = Path(__file__).parents[2] / "profiling" / "gpu.sh"
TINY = Scale(tiny=True)


@pytest.fixture
def small(monkeypatch):
    """Even smaller."""
    for name, value in {"objects": (1,), "num_frames": 4, "batches": (1,)}.items():
        monkeypatch.setattr(Scale, name, property(lambda self, value=value: value))


@pytest.mark.skipif(not CHECKPOINT.is_dir(), reason="no checkpoints/sama-tiny")
@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("training", ["| off | ", "| on | ", "2 objects in 2 frames each"]),
        ("tracking", ["| 1 | ", "4 frames of an H.264 file of 64x48 pixels", "eager"]),
        ("turns", ["ms to the first token", "answers of 5 tokens"]),
        ("attention", ["| sdpa, flash | ", "| 0.000 |", "A prompt of 32 tokens."]),
    ],
)
def test_sections_at_small_sizes(small, name, wanted, tmp_path):
    text = gpu.measure_section(name, TINY, tmp_path)
    assert text.startswith(f"### {name}, tiny\n\n{gpu.where(TINY)}\n\n| ") and all(part in text for part in wanted)
    assert [path.name for path in tmp_path.iterdir()] == [f"{name}_tiny.md"]


def test_complete_sections_are_not_measured_again(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setitem(gpu.SECTIONS, "turns", lambda scale: calls.append(scale) or "times")
    first = gpu.measure_section("turns", TINY, tmp_path)
    assert gpu.measure_section("turns", TINY, tmp_path) == first == f"### turns, tiny\n\n{gpu.where(TINY)}\n\ntimes\n"
    assert gpu.measure_section("turns", Scale("4b"), tmp_path) != first and calls == [TINY, Scale("4b")]
    monkeypatch.setattr(gpu, "commit_of", lambda folder: "another")  # whose figures are others
    assert "commit another" in gpu.measure_section("turns", TINY, tmp_path) and len(calls) == 3


@pytest.mark.parametrize(
    ("name", "share"), [("NVIDIA H100 PCIe", "100%"), ("NVIDIA H100 NVL", "91%"), ("NVIDIA H100 80GB HBM3", "76%")]
)
def test_the_peak_is_that_of_the_variant(name, share, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)
    assert utilisation(756 * 10**12, 1.0) == share


@pytest.mark.parametrize("given", [["--tiny"], ["outputs/gpu", "--tiny"]])
def test_the_script_takes_tiny_alone(given, tmp_path):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$@"\n')
    python.chmod(0o755)
    done = subprocess.run(
        ["bash", str(PACKAGE / "profiling" / "gpu.sh"), *given],
        env={**os.environ, "PYTHON": str(python)}, capture_output=True, text=True,
    )  # fmt: skip
    calls = done.stdout.splitlines()
    assert done.returncode == 0 and len(calls) == 5
    assert all(call.startswith("profiling/gpu.py --output outputs/gpu --size ") and "--tiny" in call for call in calls)


def test_released_sizes_with_the_tokens_at_hand():
    config, tiny = Scale("4b").chat_config(), TINY.released()
    assert config.text_config.hidden_size == 2048 and config.mask_config.image_size == 1024
    assert config.seg_token_id == tiny.seg_token_id
    assert config.backbone_config.image_token_id == tiny.backbone_config.image_token_id


def test_share_of_the_peak(monkeypatch):
    assert utilisation(10**12, 1.0) == "-"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    assert utilisation(4947 * 10**11, 1.0) == "50%"
    assert count(lambda: torch.ones(2, 3) @ torch.ones(3, 5)) == 2 * 2 * 3 * 5


def run_script(folder: Path, **environment: str) -> tuple[subprocess.CompletedProcess, list[str]]:
    """gpu.sh with an interpreter that writes down what it is called with, and the calls."""
    python, calls = folder / "python", folder / "calls"
    python.write_text(f'#!/bin/sh\necho "$@" >> {calls}\ncase "$*" in *training*) exit 3;; esac\n')
    python.chmod(0o755)
    result = subprocess.run(
        [SCRIPT, str(folder / "results"), "--tiny"],
        env=os.environ | {"PYTHON": str(python)} | environment,
        capture_output=True,
        text=True,
    )
    return result, calls.read_text().splitlines() if calls.exists() else []


@pytest.mark.skipif(os.name == "nt", reason="a shell script")
def test_script_goes_through_all_sections(tmp_path):
    result, calls = run_script(tmp_path)
    named = [word for call in calls for word in call.split("--section ")[1].split()]
    assert set(named) == set(gpu.SECTIONS) - {"attention"} and all("--tiny" in call for call in calls)
    # One that fails does not stop the others, but is said
    assert result.returncode == 1 and result.stdout.count("incomplete, status 3") == 2
    limits = [int(line.split()[0]) for line in SCRIPT.read_text().splitlines() if line[:1].isdigit()]
    assert len(limits) == len(calls) and sum(limits) <= 480


@pytest.mark.skipif(os.name == "nt", reason="a shell script")
def test_script_keeps_within_its_time(tmp_path):
    result, calls = run_script(tmp_path, LIMIT="0")
    assert calls == [] and result.returncode == 1 and result.stdout.count("the time is up") == 5
