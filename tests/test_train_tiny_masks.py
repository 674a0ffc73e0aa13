"""The first stage of the small model: what its prompts say, and that a killed run goes on to the same weights."""

from argparse import Namespace
from copy import deepcopy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from checkpoint import CHECKPOINT
from tiny_model import SAM_SIZE, tiny_model

from sama.processing_sama import SamaProcessor
from sama.scripts.train_tiny_masks import (
    JITTER,
    NOTHING,
    SHIFT,
    MaskExamples,
    MaskLesson,
    blur,
    describe,
    in_advance,
    learn,
    look_of,
    place_of,
    point_at,
)


RED_STAR, RED_RING, BLUE_STAR = ("red", "star", "small"), ("red", "ring", "small"), ("blue", "star", "large")


def clip_of(*looks: tuple[str, str, str]) -> SimpleNamespace:
    things = [SimpleNamespace(colour=colour, shape=shape, size=size) for colour, shape, size in looks]
    masks = np.zeros((len(looks), 2, 4, 8), dtype=bool)
    for number in range(len(looks)):
        masks[number, 0, number, :2] = True
    return SimpleNamespace(things=things, masks=masks)


def test_place_by_hand():
    masks = np.zeros((2, 3, 4, 8), dtype=bool)
    masks[0, 0, 0, :2] = True  # centre (1, 0.5) of 8 x 4
    masks[0, 2, 3, 6:] = True  # centre (7, 3.5)
    assert place_of(masks).tolist() == [[0.5, 0.5, 0.125, 0.125, 0.875, 0.875, 1], [0] * 7]


def test_what_is_left_out_never_decides():
    clip, words = clip_of(RED_STAR, RED_RING, BLUE_STAR), look_of(clip_of(RED_STAR, RED_RING, BLUE_STAR))
    seen = set()
    for seed in range(60):
        told, places = describe(clip, np.random.default_rng(seed))
        for number, (look, place) in enumerate(zip(told.numpy(), places, strict=True)):
            known = look == words[number]
            seen.add(tuple(known.tolist()) + (bool(place.any()),))
            alike = (words[:, known] == look[known]).all(1).sum()
            assert alike == 1 or place.any()
    assert len(seen) > 4  # something is left out, and not always the same


def test_twins_are_told_apart_by_their_place():
    for seed in range(20):
        _, places = describe(clip_of(RED_STAR, RED_STAR), np.random.default_rng(seed))
        assert places.any(1).all()


def test_a_point_lies_on_the_mask_and_a_box_around_it():
    mask = np.zeros((4, 8), dtype=bool)
    mask[1:3, 2:4] = True
    found = {
        tuple(labels): points for points, labels in (point_at(mask, 16, np.random.default_rng(i)) for i in range(9))
    }
    x, y = found[1, -10][0]
    assert mask[int(y / 4), int(x / 2)]
    assert found[2, 3] == [[4, 4], [8, 12]]


def lesson() -> MaskLesson:
    processor = SamaProcessor.from_pretrained(CHECKPOINT, trust_remote_code=True)
    processor.sam_image_size = SAM_SIZE
    return MaskLesson(tiny_model().model.mask_tracker.train(), processor, seed=0)


def steps(**changes) -> Namespace:
    few = {"image_steps": 1, "clip_steps": 2, "memory_steps": 3, "images": 3, "clips": 2}
    few |= {"keep": False, "from_points": False}
    few |= {"learning_rate": 1e-3, "seed": 0, "split": "train", "device": "cpu", "num_workers": 0}
    return Namespace(**few | {"log_steps": 9, "save_steps": 1} | changes)


def moved(part: torch.nn.Module, start: torch.nn.Module) -> float:
    """Share of parameters that differ."""
    pairs = list(zip(part.parameters(), start.parameters(), strict=True))
    return sum(not torch.equal(*pair) for pair in pairs) / len(pairs)


def test_a_killed_run_goes_on_as_if_nothing_had_been(tmp_path, monkeypatch):
    arguments = steps()
    whole, killed, resumed = lesson(), lesson(), lesson()
    learn(whole, arguments, tmp_path / "whole.pt")
    draw = MaskExamples.__getitem__
    with monkeypatch.context() as patch:
        patch.setattr(
            MaskExamples, "__getitem__", lambda self, step: draw(self, step) if step < 2 else pytest.fail("killed")
        )
        with pytest.raises(pytest.fail.Exception, match="killed"):
            learn(killed, arguments, tmp_path / "state.pt")
    learn(resumed, arguments, tmp_path / "state.pt")
    for (name, ours), theirs in zip(resumed.tracker.named_parameters(), whole.tracker.parameters(), strict=True):
        # Sums in another order, as memory happens to lie, change the last bits
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
    assert moved(whole.tracker, tiny_model().model.mask_tracker) > 0.5
    assert moved(whole.prompts, lesson().prompts) == 1


def test_prompts_that_another_stage_goes_by_stay_while_memory_is_learned(tmp_path):
    kept, start = lesson(), lesson()
    learn(kept, steps(keep=True, clip_steps=0), tmp_path / "state.pt")
    prompts, encoder = deepcopy(kept.prompts), deepcopy(kept.tracker.sam.vision_encoder)
    assert moved(prompts, start.prompts) == 1 and moved(encoder, start.tracker.sam.vision_encoder) > 0.5
    learn(kept, steps(keep=True), tmp_path / "state.pt")
    assert moved(kept.prompts, prompts) == moved(kept.tracker.sam.vision_encoder, encoder) == 0
    assert moved(kept.tracker.sam.memory_attention, start.tracker.sam.memory_attention) > 0.5


def test_what_points_go_through_stays_while_its_decoder_learns_words(tmp_path):
    kept, start = lesson(), lesson()
    learn(kept, steps(keep=True, from_points=True, clip_steps=0), tmp_path / "state.pt")
    assert moved(kept.prompts, start.prompts) == 1
    assert moved(kept.tracker.sam.mask_decoder, start.tracker.sam.mask_decoder) > 0.5
    for part in ("original_mask_decoder", "sam.vision_encoder", "sam.prompt_encoder"):
        assert moved(kept.tracker.get_submodule(part), start.tracker.get_submodule(part)) == 0


def test_a_blurred_place_is_near_and_an_unknown_one_stays_unknown():
    places = np.tile(np.float32([0.5, 0.4, 0.2, 0.1, 0.8, 0.7, 1]), (400, 1))
    places[0] = 0
    found = blur(places, np.random.default_rng(0))
    gaps = (found - places)[1:, :-1]
    assert not found[0].any() and (found[1:, -1] == 1).all()
    assert gaps.std() == pytest.approx((SHIFT**2 + JITTER**2) ** 0.5, rel=0.1)


def test_of_some_things_only_the_place_is_told():
    clips = lesson().examples(steps()).world
    rng = np.random.default_rng(0)
    looks, places = zip(*(describe(clips.play(index)[1], rng) for index in range(40)), strict=True)
    looks, places = torch.cat(looks), torch.cat(places)
    bare = (looks == torch.tensor(NOTHING)).all(1)
    assert 0.1 < bare.float().mean() < 0.5 and places[bare, -1].all()


def test_examples_from_other_processes_are_the_same():
    alone, helped = (
        list(in_advance(lesson().examples(steps(num_workers=number)), 1, steps(num_workers=number)))
        for number in (0, 2)
    )
    assert len(alone) == len(helped) == 2
    for ours, theirs in zip(alone, helped, strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_clips_that_are_followed_together_are_found_as_alone():
    teacher = lesson()
    teacher.tracker.eval()
    examples = teacher.examples(steps())
    clips = [examples.world.play(index)[1] for index in range(3)]
    words = [(torch.from_numpy(look_of(clip)), torch.from_numpy(place_of(clip.masks))) for clip in clips]

    def found(chosen: list[int]) -> torch.Tensor:
        example = examples.of_clips(
            [clips[number] for number in chosen], [range(3)] * len(chosen), [1], [words[number] for number in chosen]
        )
        with torch.no_grad():
            _, overlap, _, reached = teacher.follow(example, teacher.prompts(example["looks"], example["places"]))
        assert reached.float().mean() == pytest.approx(2 / 3)
        return overlap.view(3, -1)

    torch.testing.assert_close(found([0, 1, 2]), torch.cat([found([number]) for number in range(3)], 1))
