"""Training examples of stage 1: attributes identify their object, and objects are often hidden."""

from argparse import Namespace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from checkpoint import CHECKPOINT

from sama.processing_sama import SamaProcessor
from sama.recipes.sama_tiny.mask_examples import (
    BESIDE,
    HIDDEN,
    HIDING,
    JITTER,
    NOTHING,
    SHIFT,
    MaskExamples,
    frame_of,
    frames_beside_hiding,
    look_classes,
    perturb_places,
    place_of,
    point_at,
    sample_attributes,
)
from sama.toy_world import wording
from sama.toy_world.clip import draw
from sama.toy_world.motion import ToyObject
from sama.toy_world.world import ToyWorld


RED_STAR, RED_RING, BLUE_STAR = ("red", "star", "small"), ("red", "ring", "small"), ("blue", "star", "large")


@pytest.fixture(scope="module")
def examples():
    processor = SamaProcessor.from_pretrained(CHECKPOINT, trust_remote_code=True)
    return MaskExamples(processor, processor.config, Namespace(seed=0), 0)


def clip_of(*looks: tuple[str, str, str]) -> SimpleNamespace:
    objects = [SimpleNamespace(colour=colour, shape=shape, size=size) for colour, shape, size in looks]
    masks = np.zeros((len(looks), 2, 4, 8), dtype=bool)
    for number in range(len(looks)):
        masks[number, 0, number, :2] = True
    return SimpleNamespace(objects=objects, masks=masks)


def test_place_by_hand():
    masks = np.zeros((2, 3, 4, 8), dtype=bool)
    masks[0, 0, 0, :2] = True  # centre (1, 0.5) of 8 x 4
    masks[0, 2, 3, 6:] = True  # centre (7, 3.5)
    assert place_of(masks).tolist() == [[0.5, 0.5, 0.125, 0.125, 0.875, 0.875, 1], [0] * 7]


def test_attributes_that_are_needed_are_never_left_out():
    clip, words = clip_of(RED_STAR, RED_RING, BLUE_STAR), look_classes(clip_of(RED_STAR, RED_RING, BLUE_STAR))
    seen = set()
    for seed in range(60):
        given, places = sample_attributes(clip, np.random.default_rng(seed))
        for number, (look, place) in enumerate(zip(given.numpy(), places, strict=True)):
            known = look == words[number]
            seen.add(tuple(known.tolist()) + (bool(place.any()),))
            alike = (words[:, known] == look[known]).all(1).sum()
            assert alike == 1 or place.any()
    assert len(seen) > 4  # different attributes are left out


def test_twins_always_have_a_place():
    for seed in range(20):
        _, places = sample_attributes(clip_of(RED_STAR, RED_STAR), np.random.default_rng(seed))
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


def test_a_perturbed_place_is_near_and_an_unknown_one_stays_unknown():
    places = np.tile(np.float32([0.5, 0.4, 0.2, 0.1, 0.8, 0.7, 1]), (400, 1))
    places[0] = 0
    found = perturb_places(places, np.random.default_rng(0))
    gaps = (found - places)[1:, :-1]
    assert not found[0].any() and (found[1:, -1] == 1).all()
    assert gaps.std() == pytest.approx((SHIFT**2 + JITTER**2) ** 0.5, rel=0.1)


def test_some_objects_have_a_place_only(examples):
    rng = np.random.default_rng(0)
    looks, places = zip(
        *(sample_attributes(examples.world.generate(index)[1], rng) for index in range(40)), strict=True
    )
    looks, places = torch.cat(looks), torch.cat(places)
    bare = (looks == torch.tensor(NOTHING)).all(1)
    assert 0.1 < bare.float().mean() < 0.5 and places[bare, -1].all()


def test_an_object_hides_in_many_clips(examples):
    clips = [examples.clip(index) for index in range(60)]
    hiding = [clip for clip in clips if clip.objects[0].motion == "hide"]
    assert all(clip.visible_again(0) and clip.frames is not None for clip in hiding)
    assert len(hiding) == pytest.approx(HIDING * len(clips), abs=12)


def test_clips_do_not_depend_on_the_wording_of_questions(examples, monkeypatch):
    before = [examples.clip(index).frames for index in range(24)]
    more = {kind: (2 * questions, 3 * answers) for kind, (questions, answers) in wording.TEMPLATES.items()}
    monkeypatch.setattr(wording, "TEMPLATES", more)
    for index, frames in enumerate(before):
        np.testing.assert_array_equal(examples.clip(index).frames, frames)


def test_clips_of_another_split_have_other_backgrounds(examples):
    other = MaskExamples(examples.processor, examples.config, Namespace(seed=0), 0, split="val")
    for index in range(6):
        ours, theirs = (one.clip(index, hiding=0).frames[0] for one in (examples, other))
        assert (ours == theirs).all(-1).mean() < 0.5


def test_frames_with_hidden_objects_are_preferred():
    covered = np.array([[False] * 8, [False] * 6 + [True] * 2])
    clip, rng = SimpleNamespace(covered=covered, seen=~covered), np.random.default_rng(0)
    frames = [frame_of(clip, [1], rng) for _ in range(400)]
    assert np.mean([covered[1, frame] for frame in frames]) == pytest.approx(HIDDEN, abs=0.08)
    assert {frame_of(clip, [0], rng) for _ in range(200)} == set(range(8))


def test_frames_beside_those_in_which_an_object_is_hidden():
    passing = ToyObject("square", "red", "small", start=(0.2, 0.5), motion="right", amount=0.6, depth=1)
    clip = draw([passing, ToyObject("square", "blue", "large")], 12, (64, 64), None)
    assert np.flatnonzero(clip.covered[0]).tolist() == [4, 5, 6] and BESIDE == 3
    assert frames_beside_hiding(clip, [0]).tolist() == [1, 2, 3, 7, 8, 9]
    assert not len(frames_beside_hiding(clip, [1]))
    assert frames_beside_hiding(clip, [1, 0]).tolist() == [1, 2, 3, 7, 8, 9]


def test_an_object_that_leaves_the_picture_is_not_hidden():
    clip = ToyWorld({"tasks": {"dialogue": 1}}, 0).generate(274, frames=False)[1]
    assert clip.objects[1].motion == "leave" and clip.invisible[1].any()
    assert not len(frames_beside_hiding(clip, [1]))
    assert {frame_of(clip, [1], np.random.default_rng(seed)) for seed in range(60)} == set(range(6))
