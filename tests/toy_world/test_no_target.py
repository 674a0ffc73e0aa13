"""The task of descriptions that fit one object or none: true, balanced, and apart from the other tasks."""

import hashlib
import json
from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest

from sama.data.records import is_no_target, validate_record
from sama.toy_world.clip import DEFAULT_TASKS, OPTIONAL_TASKS, ToySettings
from sama.toy_world.export import write_sama239k
from sama.toy_world.motion import SOLO_MOTIONS
from sama.toy_world.no_target import BY_MOTION
from sama.toy_world.questions import FORMS, described, fits
from sama.toy_world.shapes import COLOURS, SHAPES, SIZES, UNSEEN_PAIRS
from sama.toy_world.tasks import TASKS
from sama.toy_world.world import ToyWorld


SMALL = ToySettings(frames=(8, 12), height=48, width=48, tasks={"no_target": 1})
NUM_CLIPS = 500
# Every description there can be -> what it names
DESCRIPTIONS = {
    described({"size": size, "colour": colour, "shape": shape, "motion": motion}, aspects): (
        {"size": size, "colour": colour, "shape": shape, "motion": motion},
        aspects,
    )
    for aspects in (*FORMS, BY_MOTION)
    for size in SIZES
    for colour in COLOURS
    for shape in SHAPES
    for motion in (SOLO_MOTIONS if aspects == BY_MOTION else SOLO_MOTIONS[:1])
}


@pytest.fixture(scope="module")
def generated():
    world = ToyWorld(SMALL, 3)
    return [world.generate(index, frames=False) for index in range(NUM_CLIPS)]


def description_of(turn) -> str:
    (named,) = [part["text"] for part in turn.answer_parts if part["type"] == "grounded"]
    return named.removeprefix("no ").removeprefix("the ")


def test_descriptions_fit_one_object_or_none(generated):
    for _, clip, turns in generated:
        assert 1 <= len(turns) <= 3
        assert len({description_of(turn) for turn in turns}) == len(turns)
        for turn in turns:
            look, aspects = DESCRIPTIONS[description_of(turn)]
            found = [str(i) for i, one in enumerate(clip.objects) if fits(look, aspects, one)]
            (named,) = [part["objects"] for part in turn.answer_parts if part["type"] == "grounded"]
            assert found == named and len(named) == (turn.kind == "refer")


def test_half_of_them_fit_nothing_whatever_they_name(generated):
    counts = defaultdict(Counter)
    for _, _, turns in generated:
        for turn in turns:
            counts[DESCRIPTIONS[description_of(turn)][1]][turn.kind] += 1
    assert len(counts) == len(FORMS) + 1
    for kinds in counts.values():
        number = sum(kinds.values())
        # 3.5 standard deviations of a fair coin
        assert abs(kinds["no_target"] - number / 2) < 3.5 * np.sqrt(number) / 2, counts


def test_the_words_do_not_tell(generated):
    """The more frequent answer to each colour, shape, size or motion, counted on every other turn, is a coin toss."""
    rows = []
    for _, _, turns in generated:
        for turn in turns:
            rows += [(word, turn.kind) for word in description_of(turn).split()]
    by_word = defaultdict(Counter)
    for word, kind in rows[::2]:
        by_word[word][kind] += 1
    hits = [by_word[word].most_common(1)[0][0] == kind for word, kind in rows[1::2] if word in by_word]
    assert np.mean(hits) < 0.5 + 3.5 * np.sqrt(0.25 / len(hits))


def test_training_never_names_an_unseen_pair(generated):
    unseen = {f"{colour} {shape}" for colour, shape in UNSEEN_PAIRS}
    texts = [turn.question_text for _, _, turns in generated for turn in turns]
    assert not [text for text in texts if any(pair in text for pair in unseen)]
    held_out = ToyWorld(replace(SMALL, split="unseen"), 3)
    texts = " ".join(turn.question_text for index in range(40) for turn in held_out.generate(index, frames=False)[2])
    assert any(pair in texts for pair in unseen)


def test_records_are_valid_and_the_same_each_time():
    world, again = ToyWorld(SMALL, 5), ToyWorld(SMALL, 5)
    records = [world.describe(index) for index in range(20)]
    assert records == [again.describe(index) for index in reversed(range(20))][::-1]
    kinds = set()
    for record in map(validate_record, records):
        for message in record["messages"]:
            if message["role"] == "assistant":
                assert is_no_target(message) == (message["info"]["kind"] == "no_target")
                kinds.add(message["info"]["kind"])
    assert kinds == {"refer", "no_target"}


def test_exported_answers_without_a_target_have_no_seg(tmp_path):
    path = write_sama239k(ToyWorld(SMALL, 5), tmp_path, range(8))
    rounds = [
        (answer["value"], truth)
        for video in json.loads(path.read_text())
        for answer, truth in zip(video["conversation"][1::2], video["groundtruth"], strict=True)
    ]
    assert all(text.count("[SEG]") == len(truth) for text, truth in rounds)
    assert {len(truth) for _, truth in rounds} == {0, 1}


def test_the_default_has_the_clips_that_it_had():
    """Tasks that were added later are no part of the default: clips, records and questions of earlier seeds are the
    same bytes."""
    assert tuple(TASKS) == (*DEFAULT_TASKS, *OPTIONAL_TASKS)
    world = ToyWorld(ToySettings(), 0)
    assert {world.task(index) for index in range(2000)} == set(DEFAULT_TASKS)
    text = json.dumps([world.describe(index) for index in range(6)], sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "2c42aecd77cbdce9"
