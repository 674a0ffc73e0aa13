"""Stage 1 of sama-tiny: what each step trains, and that an interrupted run resumes to the same weights."""

from argparse import Namespace
from copy import deepcopy

import numpy as np
import pytest
import torch
from checkpoint import CHECKPOINT
from tiny_model import SAM_SIZE, tiny_model

from sama.configuration_sama import PADDING_LABEL
from sama.processing_sama import SamaProcessor
from sama.recipes.sama_tiny.mask_examples import MaskExamples, look_classes, place_of
from sama.recipes.sama_tiny.phases import BLOCK, prefetch, settings_of
from sama.recipes.sama_tiny.phases import train as train_phases
from sama.recipes.sama_tiny.train_masks import MaskLosses, plan
from sama.training.checkpoints import TrainingError


def training() -> MaskLosses:
    processor = SamaProcessor.from_pretrained(CHECKPOINT, trust_remote_code=True)
    processor.config.mask_config.image_size = SAM_SIZE
    return MaskLosses(tiny_model().model.mask_tracker.train(), processor, seed=0)


def train(losses: MaskLosses, arguments: Namespace, path) -> None:
    train_phases(plan(losses, losses.tracker.config, arguments), losses.modules, arguments, path)


def steps(**changes) -> Namespace:
    few = {"point_steps": 1, "prompt_steps": 1, "clip_steps": 2, "memory_steps": 3, "images": 3, "clips": 2}
    few |= {"learning_rate": 1e-3, "seed": 0, "device": "cpu", "num_workers": 0, "bf16": False}
    return Namespace(**few | {"log_steps": 9, "save_steps": 1} | changes)


def moved(part: torch.nn.Module, start: torch.nn.Module) -> float:
    """Fraction of parameters that differ."""
    pairs = list(zip(part.parameters(), start.parameters(), strict=True))
    return sum(not torch.equal(*pair) for pair in pairs) / len(pairs)


def test_an_interrupted_run_resumes_to_the_same_weights(tmp_path, monkeypatch):
    arguments = steps()
    whole, killed, resumed = training(), training(), training()
    train(whole, arguments, tmp_path / "whole.pt")
    follow = MaskLosses.follow
    with monkeypatch.context() as patch:
        steps_with_memory = iter(range(1))
        patch.setattr(
            MaskLosses,
            "follow",
            lambda *words: pytest.fail("killed") if next(steps_with_memory, None) is None else follow(*words),
        )
        with pytest.raises(pytest.fail.Exception, match="killed"):
            train(killed, arguments, tmp_path / "state.pt")
    train(resumed, arguments, tmp_path / "state.pt")
    for (name, ours), theirs in zip(resumed.tracker.named_parameters(), whole.tracker.parameters(), strict=True):
        # The order of summation may differ, which changes the last bits
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
    assert moved(whole.tracker, tiny_model().model.mask_tracker) > 0.5
    for changes, problem in (
        ({"seed": 1}, "seed 0, and this one has 1"),
        ({"clips": 3}, "clips 2, and this one has 3"),
    ):
        with pytest.raises(TrainingError, match=problem):
            train(training(), steps(**changes), tmp_path / "state.pt")
    train(training(), steps(log_steps=5), tmp_path / "state.pt")
    assert moved(whole.prompts, training().prompts) == 1


def test_each_phase_trains_its_own_parts(tmp_path):
    kept, start = training(), training()

    def parts(of: MaskLosses) -> dict[str, torch.nn.Module]:
        sam = of.tracker.sam
        own = {
            "encoder": sam.vision_encoder,
            "points": sam.prompt_encoder,
            "by points": of.tracker.original_mask_decoder,
        }
        own |= {"by prompts": sam.mask_decoder, "memory": sam.memory_attention}
        return own | {"prompts": of.prompts, "heads": of.heads}

    def changed(before: MaskLosses) -> set[str]:
        return {name for name, part in parts(kept).items() if moved(part, parts(before)[name])}

    def go_on(arguments: Namespace) -> None:
        """With further steps than the run in the file, which a run must not have."""
        state = torch.load(tmp_path / "state.pt", weights_only=True)
        torch.save(state | {"settings": settings_of(arguments)}, tmp_path / "state.pt")
        train(kept, arguments, tmp_path / "state.pt")

    train(kept, steps(prompt_steps=0, clip_steps=0), tmp_path / "state.pt")
    assert changed(start) == {"encoder", "points", "by points", "heads"}
    before = deepcopy(kept)
    go_on(steps(clip_steps=0))
    assert changed(before) == {"by prompts", "prompts"}
    # The decoder of prompts began as a copy of the other one
    pairs = zip(
        kept.tracker.sam.mask_decoder.parameters(), before.tracker.original_mask_decoder.parameters(), strict=True
    )
    assert all((one - other).abs().max() < 2e-3 for one, other in pairs)
    before = deepcopy(kept)
    go_on(steps())
    assert changed(before) == {"by prompts", "memory"}


def test_worker_processes_give_the_same_examples():
    def blocks(number: int) -> list:
        losses = training()
        examples = MaskExamples(losses.processor, losses.tracker.config, steps(), 2 * BLOCK + 1, memory_steps=3)
        return list(prefetch(examples, 1, steps(num_workers=number)))

    alone, helped = blocks(0), blocks(2)
    assert [len(block) for block in alone] == [len(block) for block in helped] == [BLOCK, 1]
    for ours, theirs in zip(sum(alone, []), sum(helped, []), strict=True):
        for part in ("inputs", "labels"):
            assert ours[part].keys() == theirs[part].keys()
            assert all(torch.equal(ours[part][name], theirs[part][name]) for name in ours[part])


def test_tracking_clips_in_a_batch_equals_tracking_them_alone():
    trained = training()
    trained.tracker.eval()
    examples = MaskExamples(trained.processor, trained.tracker.config, steps(), 0)
    clips = [examples.world.generate(index)[1] for index in range(3)]
    words = [(torch.from_numpy(look_classes(clip)), torch.from_numpy(place_of(clip.masks))) for clip in clips]

    def found(chosen: list[int]) -> torch.Tensor:
        batch = examples.collate_clips(
            [clips[number] for number in chosen], [range(3)] * len(chosen), [1], [words[number] for number in chosen]
        )
        inputs, masks = batch["inputs"], batch["labels"]["masks"]
        with torch.no_grad():
            _, overlap, _, reached = trained.follow(inputs, masks, trained.prompts(inputs["looks"], inputs["places"]))
        assert reached.float().mean() == pytest.approx(2 / 3)
        return overlap.view(3, -1)

    torch.testing.assert_close(found([0, 1, 2]), torch.cat([found([number]) for number in range(3)], 1))


@torch.no_grad()
def test_the_padding_of_clicks_has_no_effect(monkeypatch):
    trained = training()
    trained.tracker.eval()
    examples = MaskExamples(trained.processor, trained.tracker.config, steps(), 0)
    batch = examples.frame_batch([examples.clip(index) for index in range(3)], np.random.default_rng(0))
    inputs = batch["inputs"] | {"seed": torch.tensor(0)}
    clicks = (inputs["labels"] == PADDING_LABEL).any(1)
    assert 0 < clicks.sum() < len(clicks)
    # The first candidate of each: which one is drawn depends on the number of prompts
    first = torch.zeros(1, dtype=torch.long)
    monkeypatch.setattr(torch, "randint", lambda most, size, generator: first.expand(size))

    def total_overlap(chosen: torch.Tensor, num_points: int) -> torch.Tensor:
        own = {name: inputs[name][chosen] for name in ("seen", "points", "labels")}
        own |= {name: own[name][:, :num_points] for name in ("points", "labels")}
        return trained.point_losses(batch | {"inputs": inputs | own})[1]["points"] * len(own["seen"])

    apart = total_overlap(clicks, 1) + total_overlap(~clicks, 2)
    torch.testing.assert_close(total_overlap(clicks | True, 2), apart)
