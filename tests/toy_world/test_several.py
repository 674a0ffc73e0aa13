"""Questions about several objects that the benchmark does not ask: answers are those of the clip."""

import numpy as np
import pytest

from sama.toy_world.clip import ToySettings
from sama.toy_world.motion import MOTIONS
from sama.toy_world.questions import LOOK, Scene, full_name, in_reading_order
from sama.toy_world.several import ask_all, ask_identities
from sama.toy_world.wording import NUMBERS
from sama.toy_world.world import ToyWorld


@pytest.fixture(scope="module")
def clips():
    settings = ToySettings(frames=(8, 12), height=48, width=48, tasks={"caption": 1})
    return [ToyWorld(settings, 5).generate(index, frames=False)[1] for index in range(60)]


def marked(turn) -> list[list[int]]:
    """The objects of each grounded phrase."""
    return [[int(name) for name in part["objects"]] for part in turn.answer_parts if part["type"] == "grounded"]


@pytest.mark.parametrize("aspect", ["colour", "shape"])
def test_all_objects_of_a_look_are_one_phrase_that_says_how_many(clips, aspect):
    counts = set()
    for clip in clips:
        values = [vars(one)[aspect] for one in clip.objects]
        for value in {*values, "red", "square"}:
            turn = ask_all(Scene(clip, np.random.default_rng(0)), aspect, value)
            expected = {i for i, own in enumerate(values) if own == value}
            assert {i for phrase in marked(turn) for i in phrase} == expected
            assert turn.discloses == {(i, aspect) for i in range(len(values))}
            assert f" {NUMBERS[len(expected)]}" in turn.answer_text and len(marked(turn)) == min(len(expected), 1)
            assert turn.answer_text.split()[:2] == (
                ["Here", "is" if len(expected) == 1 else "are"] if expected else ["There", "are"]
            )
            counts.add(len(expected))
    assert {0, 1, 2} <= counts


def test_all_objects_with_a_motion_are_named(clips):
    counts = set()
    for clip in clips:
        for motion in {one.motion for one in clip.objects if one.motion != "hide"} | {"still"}:
            scene = Scene(clip, np.random.default_rng(0))
            turn = ask_all(scene, "motion", motion)
            if turn is None:  # one that moves like this for another reason
                continue
            expected = in_reading_order(clip, [i for i, one in enumerate(clip.objects) if one.motion == motion])
            assert marked(turn) == [[i] for i in expected]
            names = [part["text"].lower() for part in turn.answer_parts if part["type"] == "grounded"]
            assert names == [scene.name_of(i).lower() for i in expected]
            known = {(i, "motion") for i in range(len(clip.objects))}
            known |= {(i, aspect) for i in expected for aspect in ("colour", "shape", "beside")}
            assert turn.discloses == known
            assert turn.answer_text.endswith(f" {MOTIONS[motion][len(expected) > 1]}.")
            assert turn.answer_text.startswith("The " if expected else "Nothing ")
            counts.add(len(expected))
    assert {0, 1, 2} <= counts


def test_two_regions_are_named_in_their_order(clips):
    asked = 0
    for clip in clips:
        scene = Scene(clip, np.random.default_rng(1))
        turn = ask_identities(scene)
        if turn is not None:
            a, b = (int(part["object"]) for part in turn.question if part["type"] == "region")
            assert a != b and marked(turn) == [[a], [b]]
            assert (
                turn.answer_text == f"This is {full_name(clip.objects[a])} and this is {full_name(clip.objects[b])}."
            )
            # Without a size it grows or shrinks, so the motion is known in part
            assert turn.discloses == {(i, aspect) for i in (a, b) for aspect in (*LOOK, "motion")}
            asked += 1
    assert asked > 30
