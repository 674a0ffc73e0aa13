"""profiling/training.py: variants compute the same loss with the expected counts."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sama.modeling_sama import SamaForConditionalGeneration
from sama.profiling import training as profiled
from sama.profiling.training import (
    SavedBytes,
    Setup,
    count_rows,
    encoder_with_graph,
    frames_for_each_use,
    head_everywhere,
    larger_config,
    make_batch,
)
from sama.training.parts import PUBLISHED_PARTS, freeze_all_but


CHECKPOINT = Path(__file__).parents[2] / "checkpoints" / "sama-tiny"
pytestmark = pytest.mark.skipif(not CHECKPOINT.is_dir(), reason="no checkpoints/sama-tiny")


@pytest.fixture
def setup(monkeypatch):
    """The profiled model and batch with smaller sizes."""
    for name, value in {"FRAME_SIZE": 56, "FRAME_TOKENS": 4, "SAM_SIZE": 128, "SAMPLES": 2}.items():
        monkeypatch.setattr(profiled, name, value)
    text = {"vocab_size": 2000, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
    monkeypatch.setattr(profiled, "TEXT", profiled.TEXT | text | {"num_attention_heads": 2})
    monkeypatch.setattr(profiled, "VISION", profiled.VISION | {"num_hidden_layers": 1})
    monkeypatch.setattr(profiled, "WORLD", profiled.WORLD | {"height": 64, "width": 64})
    torch.manual_seed(0)
    model = SamaForConditionalGeneration(larger_config(str(CHECKPOINT))).eval()
    freeze_all_but(model, PUBLISHED_PARTS)
    return Setup(model, make_batch(str(CHECKPOINT)))


def run(setup: Setup) -> tuple[float, int]:
    """The loss, and the bytes saved for its backward pass."""
    saved = SavedBytes(setup.model)
    with saved.counting():
        loss = setup.model(**setup.batch, use_cache=False).loss
    return loss.item(), saved.total


def test_variants_change_counts_but_not_the_loss(setup):
    count_rows(setup)
    loss, saved_bytes = run(setup)
    default, labels = dict(setup.counts), setup.batch["labels"][:, 1:]
    objects = [len(masks) for masks in setup.batch["target_masks"]]
    assert default["head"] == (labels != -100).sum() and default["sam"] == setup.batch["sam_frame_counts"].sum()
    assert default["vision"] == len(setup.batch["pixel_values"])

    head_everywhere(setup)
    found, more_bytes = run(setup)
    assert found == pytest.approx(loss, rel=1e-5) and more_bytes > saved_bytes
    assert setup.counts == default | {"head": labels.numel()}

    num_uses = len(setup.batch["dense_frames"]) + len(setup.batch["region_frames"])
    frames_for_each_use(setup)
    found, _ = run(setup)
    assert found == pytest.approx(loss, rel=1e-5) and max(objects) > 1
    frames = setup.batch["sam_frame_counts"].tolist()
    assert setup.counts["vision"] == default["vision"] + num_uses
    assert setup.counts["sam"] == sum(count * of for count, of in zip(objects, frames, strict=True))


def test_frozen_encoder_saves_nothing(setup):
    tracker, pixels = setup.model.model.mask_tracker, setup.batch["sam_pixel_values"]
    for with_graph in (False, True):
        saved = SavedBytes(setup.model)
        with saved.counting():
            tracker.sam.vision_encoder(pixels)
        assert bool(saved.total) is with_graph
        encoder_with_graph(setup)


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs /proc")
def test_the_peak_of_a_process_is_not_that_of_its_parent():
    """getrusage of a child begins with the parent's peak."""
    held = bytearray(600 * 2**20)
    script = "from sama.profiling.training import peak_memory; print(peak_memory('cpu'))"
    child = float(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)
    assert len(held) < profiled.peak_memory("cpu") and child < profiled.peak_memory("cpu") - len(held) / 2
