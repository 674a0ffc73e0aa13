"""The clips and dialogues that stages 2 and 3 practise on."""

from collections import Counter, defaultdict

import numpy as np
import pytest

from sama.recipes.sama_tiny.practice import MOTION_WEIGHTS, TURNS, draw_alike, practice_clips, practice_dialogues
from sama.toy_world.wording import YES_NO


@pytest.fixture(scope="module")
def drawn():
    """The clip and the turns of dialogues of the practised kind."""
    world = practice_dialogues(0)
    found = [world.generate(index, frames=False) for index in range(2000)]
    return [(clip, turns) for task, clip, turns in found if task == "dialogue"]


def test_answers_are_among_their_choices(drawn):
    lengths = {len(turns) for _, turns in drawn}
    assert min(lengths) >= TURNS[0] and max(lengths) == TURNS[1]
    for _, turns in drawn:
        for turn in turns:
            assert not turn.choices or turn.answer in turn.choices, (turn.kind, turn.answer, turn.choices)


def test_yes_and_no_are_balanced(drawn):
    answers = defaultdict(Counter)
    for _, turns in drawn:
        for turn in turns:
            if turn.choices == YES_NO:
                answers[turn.kind][turn.answer] += 1
    assert set(answers) == {"check_motion", "at_start", "at_end", "hides_behind"}
    for kind, found in answers.items():
        number = found.total()
        assert number > 15 and abs(found["yes"] - number / 2) < 3.5 * np.sqrt(number) / 2, (kind, found)


def test_several_objects_of_a_kind_are_counted(drawn):
    counts = Counter(
        turn.answer for _, turns in drawn for turn in turns if turn.kind in ("count_look", "count_motion")
    )
    assert set(counts) == {"none", "one", "two", "three"}
    assert counts["two"] + counts["three"] > 0.3 * counts.total()


def test_some_counts_are_of_clips_with_more_than_two_motions(drawn):
    """Few clips do: many have few objects, or objects that are alike. If none did, objects of other clips would be
    counted too high."""
    kinds = [len({one.motion for one in clip.objects}) > 2 for clip, turns in drawn if turns[0].kind == "count_motion"]
    assert len(kinds) > 40 and 0.1 < np.mean(kinds) < 0.4


def test_what_the_benchmark_does_not_ask_is_practised(drawn):
    kinds = Counter(turn.kind for _, turns in drawn for turn in turns)
    assert all(kinds[kind] > 20 for kind in ("identities", "all_look", "all_motion"))


def test_the_number_of_all_objects_is_asked_first_but_in_shuffled_dialogues(drawn):
    """An earlier answer may show how many there are at least. Where all of them came first, counts were wrong at
    later turns."""
    places = np.array([place for _, turns in drawn for place, turn in enumerate(turns) if turn.kind == "count_all"])
    assert len(places) > 40 and 0.6 < np.mean(places == 0) < 0.95


def test_named_objects_are_answered_with_masks():
    world = practice_dialogues(0)
    turns = [
        turn for index in range(400) if world.task(index) == "video_qa" for turn in world.generate(index, False)[2]
    ]
    marked = [any(part["type"] == "grounded" for part in turn.answer_parts) for turn in turns]
    assert len(turns) > 30 and np.mean(marked) > 0.9
    assert not any(part["type"] == "region" for turn in turns for part in turn.question)


def test_objects_that_are_alike_share_two_motions_and_two_colours_or_shapes():
    rng = np.random.default_rng(0)
    for _ in range(50):
        constraints = draw_alike(4, rng, "train")
        assert len(set(constraints.motions)) <= 2
        assert min(len(set(words)) for words in zip(*constraints.pairs, strict=True)) <= 2
        assert len(set(constraints.pairs)) == 4


def test_clips_have_hard_motions_more_often_and_no_turns():
    world = practice_clips(0)
    found = [world.generate(index, frames=False) for index in range(400)]
    motions = Counter(one.motion for task, clip, _ in found if task == "dialogue" for one in clip.objects)
    assert not any(turns for task, _, turns in found if task == "dialogue")
    usual = np.mean([motions[name] for name in ("left", "right", "up", "down", "circle")])
    assert motions["hide"] and all(motions[name] > 1.3 * usual for name in MOTION_WEIGHTS)
