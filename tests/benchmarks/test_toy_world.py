"""The toy world benchmark: its questions, and scores computed by hand."""

import hashlib
import json

import numpy as np
import pytest

from sama.benchmarks.benchmark import (
    BenchmarkError,
    BenchmarkTurn,
    Measures,
    PredictedObject,
    PredictedTurn,
    Prediction,
)
from sama.benchmarks.frame_masks import are_touching
from sama.benchmarks.registry import open_benchmark
from sama.benchmarks.toy_world import DIALOGUE, LOOK, MOTION, ToyWorldBenchmark, is_right, measure_turn, object_facts
from sama.data.catalogue import Entry, open_source
from sama.data.masks import decode_rle, encode_rle
from sama.data.records import DataError
from sama.objects_sama import MaskTrack
from sama.toy_world import backgrounds
from sama.toy_world.clip import ToySettings
from sama.toy_world.world import ToySample, ToyWorld


SIZE = (10, 20)


def track(*columns: tuple[int, int] | None) -> list:
    """Full-height stripes between two columns, one per frame; `None` where nothing is visible."""
    codes = []
    for ends in columns:
        mask = np.zeros(SIZE, dtype=bool)
        if ends is not None:
            mask[:, ends[0] : ends[1]] = True
        codes.append(encode_rle(mask) if mask.any() else None)
    return codes


def turn(*targets, **info) -> BenchmarkTurn:
    info_of_turn = {"kind": "colour", "answer": "red", "choices": ["red", "blue"], "late": [], "hidden": []}
    return BenchmarkTurn("?", [], "It is red.", list(targets), info_of_turn | info)


def answer(text: str, *tracks) -> tuple[PredictedTurn, Prediction]:
    said = PredictedTurn(text, [PredictedObject("", masks) for masks in tracks])
    return said, Prediction("0", [said], 2, *SIZE)


def test_other_questions_have_another_version():
    """Where this fails because questions have changed, raise `version`: predictions of earlier ones are refused."""
    digest = hashlib.sha256()
    for split in ("val", "unseen", "no_target", "long"):
        benchmark = open_benchmark("toy_world", split=split)
        for group in benchmark.outline():
            record = benchmark.world.describe(int(group))
            digest.update(json.dumps([record["messages"], record["video"]["toy"]]).encode())
    assert (ToyWorldBenchmark.version, digest.hexdigest()[:16]) == (6, "7232ebec2954609c")


def test_long_conversations_replace_clips_with_too_little_to_ask():
    """Each of these two first draws three objects that all grow, and a question that counts them."""
    benchmark = open_benchmark("toy_world", split="long", clips=107)
    for group in ("81", "106"):
        (question,) = benchmark.questions(group)
        assert len(question.turns) == 5


def test_long_conversations_need_several_objects():
    settings = ToySettings(things=(1, 1), tasks={"long_dialogue": 1})
    with pytest.raises(ValueError, match="no clip with 5 questions fits these settings"):
        ToyWorld(settings, 0).generate(0)


def reference_answers(benchmark, change=lambda number, turn: turn.reference) -> list[Prediction]:
    """Answers with the reference masks and the text that `change` returns."""
    found = []
    for group in benchmark.outline():
        for question in benchmark.questions(group):
            video = benchmark.open(group)
            turns = [
                PredictedTurn(change(number, turn), [PredictedObject("", masks) for masks in turn.targets])
                for number, turn in enumerate(question.turns)
            ]
            found.append(Prediction(question.id, turns, len(video), video.height, video.width))
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It is red.", True),
        ("<p> Red </p> [SEG] it is", True),
        ("It is red or blue.", False),
        ("It is reddish.", False),
        ("It is blue.", False),
        ("", False),
    ],
)
def test_the_expected_word_is_the_only_choice_in_a_right_answer(text, expected):
    assert is_right(text, "red", ["blue", "red"]) is expected


def test_choices_of_several_words():
    choices = ["moves left", "moves right", "leaves the picture"]
    assert is_right("The red star moves left.", "moves left", choices)
    assert not is_right("The red star moves left, moves right.", "moves left", choices)
    assert is_right("It is a letter T.", "letter T", ["letter T", "letter H"])
    assert is_right("It is dark red.", "dark red", ["red", "dark red"])
    assert not is_right("It is dark red, no, red.", "dark red", ["red", "dark red"])


def test_iou_of_half_a_stripe_is_a_half():
    found = measure_turn(turn(track((0, 4), (0, 4))), *answer("It is red.", track((0, 2), (0, 2))))
    assert (found["ious"], found["miou"], found["right"], found["chance"]) == ([0.5], 0.5, True, 0.5)


def test_a_missed_and_a_surplus_object_count_as_nothing():
    one, other = track((0, 4), (0, 4)), track((10, 14), None)
    missed = measure_turn(turn(one, other), *answer("It is blue.", other))
    assert (missed["ious"], missed["miou"], missed["right"]) == ([0.0, 1.0], 0.5, False)
    surplus = measure_turn(turn(one), *answer("It is red.", other, one))
    assert (surplus["ious"], surplus["miou"]) == ([1.0], 0.5)
    silent = measure_turn(turn(one), *answer(""))
    assert (silent["ious"], silent["miou"]) == ([0.0], 0.0)
    words = measure_turn(turn(), *answer("It is red."))
    assert (words["ious"], words["miou"], words["right"]) == ([], None, True)


@pytest.mark.parametrize(("drawn", "chosen"), [((0, 3), True), ((10, 14), False), ((5, 8), False), (None, False)])
def test_choice_between_twins(drawn, chosen):
    asked = turn(track((0, 4), (0, 4)), twin=track((10, 14), (10, 14)), touching=False, choices=[])
    tracks = [] if drawn is None else [track(drawn, drawn)]
    found = measure_turn(asked, *answer("", *tracks))
    assert found["chosen"] is chosen and found["right"] is None and found["chance"] is None


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([(2, 2), None], [(3, 3), (9, 9)], True),  # at a corner
        ([(2, 2), (0, 0)], [(2, 4), (0, 0)], True),  # in the second frame
        ([(2, 2), (5, 5)], [(2, 4), (5, 7)], False),  # a pixel between them
        ([(2, 2), None], [None, (2, 2)], False),  # in different frames
    ],
)
def test_objects_touch_where_their_pixels_are_neighbours(first, second, expected):
    tracks = np.zeros((2, 2, *SIZE), dtype=bool)
    for track, places in zip(tracks, (first, second), strict=True):
        for frame, place in enumerate(places):
            if place is not None:
                track[(frame, *place)] = True
    assert are_touching(*tracks) is expected and are_touching(*tracks[::-1]) is expected


def test_rows_of_several_objects_and_of_twins_that_touch():
    one, other = track((0, 4), None), track((8, 12), None)
    asked = [
        turn(one, other, late=[False] * 2, hidden=[False] * 2),
        turn(one, late=[False], hidden=[False]),
        turn(one, twin=other, touching=True, choices=[]),
        turn(other, twin=one, touching=False, choices=[]),
    ]
    turns = [measure_turn(each, *answer("It is red.", one)) for each in asked]
    samples = [
        Measures(task, task, None, [], 2, 0, {"task": task, "turns": found})
        for task, found in (("dialogue", turns[:2]), ("refer_motion", turns[2:]))
    ]
    rows = {(row.part, row.name): row for row in open_benchmark("toy_world").summarise(samples, None)}
    several, twins = rows[DIALOGUE, "mask mIoU, several objects"], "choice between the twins"
    assert (several.value, several.count) == (0.5, 1)
    assert [(rows[MOTION, name].value, rows[MOTION, name].count) for name in (twins, f"{twins}, touching")] == [
        (0.5, 2),
        (1.0, 1),
    ]


def test_questions_are_the_same_in_every_run_and_ask_with_regions():
    first, again = (open_benchmark("toy_world", clips=3) for _ in range(2))
    assert first.outline() == {"0": ["0"], "1": ["1"], "2": ["2"]}
    for group in first.outline():
        (one,), (other,) = first.questions(group), again.questions(group)
        assert [(t.text, t.reference, t.targets, t.info) for t in one.turns] == [
            (t.text, t.reference, t.targets, t.info) for t in other.turns
        ]
        np.testing.assert_array_equal(first.open(group)[0], again.open(group)[0])
        for asked in one.turns:
            assert asked.text.count("<region>") == len(asked.regions)
            assert asked.reference.count("[SEG]") == len(asked.targets) == len(asked.info["late"])
            assert all(isinstance(region, MaskTrack) for region in asked.regions)
    other_split = open_benchmark("toy_world", split="unseen", clips=3)
    assert other_split.identity != first.identity
    assert other_split.questions("0")[0].turns[0].text != first.questions("0")[0].turns[0].text or not np.array_equal(
        other_split.open("0")[0], first.open("0")[0]
    )


def test_reference_answers_are_all_right_and_others_are_not():
    benchmark = open_benchmark("toy_world", clips=12)
    scores = benchmark.score(reference_answers(benchmark))
    rows = {(row.part, row.name): row for row in scores.rows}
    for row in scores.rows:
        assert row.value in (None, 1.0) and (row.value is None) == (row.count == 0)
    assert rows[LOOK, "mask mIoU"].count and rows[MOTION, "choice between the twins"].chance == 0.5
    assert rows["region questions", "accuracy, colour"].chance in (None, 1 / 8)
    # Meaningless text from the second turn on
    wrong = benchmark.score(reference_answers(benchmark, lambda number, turn: "?" if number else turn.reference))
    rows = {(row.part, row.name): row for row in wrong.rows}
    assert rows["region questions", "accuracy, turn 1"].value == 1.0
    assert rows["region questions", "accuracy, turn 2"].value == 0.0
    assert 0 < rows["region questions", "accuracy"].value < 1
    low, high = rows["region questions", "accuracy"].interval
    assert 0 <= low < rows["region questions", "accuracy"].value < high <= 1


def test_dialogues_of_five_turns_ask_in_any_order():
    benchmark = open_benchmark("toy_world", split="long", clips=40)
    counts, questions = [], [benchmark.questions(group)[0] for group in benchmark.outline()]
    for question in questions:
        kinds = [turn.info["kind"] for turn in question.turns]
        assert len(kinds) == 5
        counts += [number for number, kind in enumerate(kinds) if kind.startswith("count")]
    assert len(set(counts)) > 2  # in the other splits a count opens the dialogue
    rows = {row.name: row for row in benchmark.score(reference_answers(benchmark)).rows}
    assert rows["mask mIoU"].value == rows["accuracy"].value == rows["accuracy, turn 5"].value == 1
    assert rows["accuracy"].chance is rows["accuracy, count_all"].chance is None  # which guesses of "four" exceed
    assert not any(row.part in (LOOK, MOTION) for row in rows.values())


def test_objects_that_appear_late_are_marked():
    """Against the masks themselves."""
    benchmark, late = open_benchmark("toy_world", clips=20), 0
    for group in benchmark.outline():
        for asked in benchmark.questions(group)[0].turns:
            for target, marked in zip(asked.targets, asked.info["late"], strict=True):
                seen = [frame for frame, code in enumerate(target) if code is not None]
                assert marked == (bool(seen) and seen[0] >= len(target) / 2)
                late += marked
    assert late


def test_twins_that_touch_are_marked():
    """Against the distances of all their pixels."""
    benchmark, found = open_benchmark("toy_world", clips=40), []
    for group in benchmark.outline():
        for asked in benchmark.questions(group)[0].turns:
            if "twin" in asked.info:
                pairs = [
                    [np.argwhere(decode_rle(code)) for code in codes]
                    for codes in zip(asked.targets[0], asked.info["twin"], strict=True)
                    if None not in codes
                ]
                near = [abs(one[:, None] - other).max(-1).min() <= 1 for one, other in pairs]
                assert asked.info["touching"] == any(near)
                found.append(any(near))
    assert set(found) == {False, True}


def test_objects_that_are_hidden_and_come_back_are_marked():
    seen = np.array([[1, 1, 0, 1], [1, 0, 0, 0], [0, 0, 1, 1]], dtype=bool)
    sample = ToySample(None, {}, seen[:, :, None, None])
    about = {
        "task": "dialogue",
        "events": [
            {"kind": "hidden", "thing": 0, "first": 2, "last": 2},
            {"kind": "hidden", "thing": 1, "first": 1, "last": 3},  # does not come back
            {"kind": "first seen", "thing": 2, "first": 2, "last": 2},
        ],
    }
    parts = [{"text": "It"}, {"text": "a", "objects": ["1", "0"]}, {"text": "b", "objects": ["2"]}]
    facts = object_facts(sample, {"content": parts}, about)
    assert facts == {"late": [False, False, True], "hidden": [False, True, False]}


def test_nothing_answered_gives_a_table_of_reasons():
    rows = open_benchmark("toy_world", clips=2).score([]).rows
    assert rows and all(row.value is None and row.reason for row in rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "train"}, "no split 'train', only val, unseen"),
        ({"preset": "new"}, "no preset 'new', only consistent, published"),
        ({"clip": 3}, "no option 'clip'; it has clips, seed, size, background"),
        ({"clips": "many"}, "option clips of toy_world is 'many', expected int"),
        ({"size": 8}, "cannot be drawn: 8 x 8"),
        ({"name": "x"}, "toy_world has no option 'name'"),
        ({"clips": 0}, "option clips of toy_world is 0, expected 1 or more"),
        ({"seed": -1}, "option seed of toy_world is -1, expected 0 or more"),
    ],
)
def test_invalid_arguments_are_errors(arguments, message):
    with pytest.raises(BenchmarkError, match=message):
        open_benchmark("toy_world", **arguments)


def test_an_unknown_benchmark_is_an_error():
    with pytest.raises(BenchmarkError, match="no benchmark 'toy'; known are .*toy_world"):
        open_benchmark("toy")


def test_photographs_that_are_not_installed_are_named_at_once(monkeypatch):
    monkeypatch.setattr(backgrounds, "find_spec", lambda name: None)
    for background in ("photo", "mixed"):
        with pytest.raises(BenchmarkError, match="toy_world cannot be drawn: photographs come with scikit-image"):
            open_benchmark("toy_world", background=background)
        entry = Entry("toys", "toy_world", options={"settings": {"background": background}})
        with pytest.raises(DataError, match="toys, field 'options.settings': photographs come with scikit-image"):
            open_source(entry)
    assert open_benchmark("toy_world").open("0") is not None
