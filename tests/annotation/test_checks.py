"""The exact checks, one case for each rule, and texts that look wrong and are right."""

import pytest

from sama.annotation.checks import CheckLimits, VideoFacts, check_descriptions, check_dialogue, check_turn
from sama.annotation.duplicates import duplicates_across, duplicates_within
from sama.annotation.leaks import find_leaks
from sama.annotation.problems import CODES, Problem
from sama.annotation.schema import Descriptions, Dialogue, Turn


# obj1 is visible in all 20 frames, obj2 from 10 on, obj3 in frame 7 alone, which is not shown
FACTS = VideoFacts(
    num_frames=20,
    shown=(0, 5, 10, 15, 19),
    visible=(frozenset(range(20)), frozenset(range(10, 20)), frozenset({7})),
    expressions=(("a man in the red box",), (), ()),
    colors=("red", "blue", "lime"),
)
LIMITS = CheckLimits()
ANSWER = "<p> The man </p> <obj1> throws <p> a ball </p> <obj2>."


def evidence(*rows) -> list[dict]:
    return [dict(zip(("object", "first", "last"), row, strict=True)) for row in rows]


BOTH = evidence(("obj1", 0, 19), ("obj2", 10, 19))


def turn(**changes) -> Turn:
    fields = {"turn": 1, "question": "What does the man <obj1> do?", "answer": ANSWER, "kind": "action"}
    return Turn(**{**fields, "evidence": BOTH, **changes})


def codes(**changes) -> list[tuple[str, str]]:
    return [(one.code, one.at) for one in check_turn(turn(**changes), FACTS, LIMITS, "turns[3]").problems]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"answer": "Yes, <p> the man </p> <obj1> sits in the brown frame of a door.", "evidence": BOTH[:1]},
        {"answer": "<p> Two men on a bike </p> <obj1> ride by.", "evidence": BOTH[:1]},
        {"answer": "<p> Both things </p> <obj1> <obj2> move."},
        {"answer": "<p> The three-wheeled bike and the car </p> <obj1> <obj2> move."},
        *({"answer": f"<p> {phrase} </p> <obj1> <obj2> move."} for phrase in (
            "The 2 dogs", "All of the two dogs", "Two of the three dogs", "The 3-wheeled bikes", "The 2020 models",
            "The 2.5 m boards", "The players in lane 7", "The 10 m boards", "The ten year old boys",
            "The 5 gallon buckets", "The 10 litre bottles", "The 20 yard lines", "The 50 pound weights",
            "Both team 3 players", "Both 3D printers", "The Formula 1 cars", "One dog of the two")),
        {"answer": "He wears <p> a shirt ] } with \N{DOG FACE} </p> <obj1>.", "evidence": BOTH[:1]},
        {"answer": "<p> The man </p> <obj1> frames a picture, boxes and labels parcels.", "evidence": BOTH[:1]},
        {"answer": "The man runs.", "phrases": [{"object": "obj1", "phrase": "The man", "start": 0, "end": 7}],
         "evidence": BOTH[:1]},
    ],
)  # fmt: skip
def test_right_turns_have_no_problems(changes):
    assert codes(**changes) == []


@pytest.mark.parametrize(
    ("changes", "code", "place"),
    [
        ({"question": "What does he do?"}, "question_untagged", "question"),
        ({"question": "What does <obj9> do?"}, "tag_unknown", "question[10:16]"),
        ({"answer": "<p> The man </p> <obj7> runs."}, "tag_unknown", "answer[17:23]"),
        ({"answer": "<p> The man <obj1> runs."}, "tag_unbalanced", "answer[0:3]"),
        ({"answer": "<p> The <p> man </p> </p> <obj1> runs."}, "tag_nested", "answer[8:11]"),
        ({"answer": "The man <obj1> runs."}, "tag_alone", "answer[8:14]"),
        *[({"answer": f"{mark} {ANSWER}"}, "tag_unknown", f"answer[0:{len(mark)}]") for mark in (
            "<video>", "<|im_end|>", "</s>", "<VP>", "<img src=x>", "[seg]", "<IMG_CONTEXT>", "<Obj1>", "</P>",
            "<P>")],
        ({"question": "What does the man <obj1> do? <|im_end|>"}, "tag_unknown", "question[29:39]"),
        ({"answer": "<p> </p> <obj1> runs away."}, "phrase_empty", "answer[0:15]"),
        ({"answer": "He runs away.", "phrases": [{"object": "obj1", "phrase": "He", "start": 1, "end": 3}]}, "span",
         "phrases[0]"),
        ({"answer": "The man runs away.", "evidence": BOTH[:1]}, "object_missing", "answer"),
        ({"evidence": BOTH[:1]}, "object_missing", "evidence"),
        ({"evidence": [*BOTH, *evidence(("obj3", 7, 7))]}, "object_missing", "evidence[2].object"),
        ({"evidence": [*BOTH, *evidence(("obj12", 7, 7))]}, "tag_unknown", "evidence[2].object"),
        ({"answer": f"{ANSWER} <p> He </p> <obj1> wins."}, "object_twice", "answer"),
        ({"question": "Is <obj1> the same man as <obj1>?"}, "object_twice", "question"),
        ({"evidence": [BOTH[0], *evidence(("obj2", 0, 9))]}, "not_visible", "evidence[1]"),
        ({"evidence": [BOTH[0], *evidence(("obj2", 11, 14))]}, "not_visible", "evidence[1]"),  # between shown frames
        ({"evidence": [*evidence(("obj1", 9, 3)), BOTH[1]]}, "interval", "evidence[0]"),
        ({"evidence": [*evidence(("obj1", -1, 3)), BOTH[1]]}, "interval", "evidence[0]"),
        ({"evidence": [*evidence(("obj1", 0, 20)), BOTH[1]]}, "interval", "evidence[0]"),
        ({"answer": "<p> The three things </p> <obj1> <obj2> move."}, "count", "answer"),
        *(({"answer": f"<p> {phrase} </p> <obj1> <obj2> move."}, "count", "answer") for phrase in (
            "The 3 dogs", "The ten dogs", "nine dogs", "All of the three dogs", "The 12 dogs", "the other\n4 dogs",
            "Their first three dogs", "a group of three dogs", "the big three", "three brown dogs")),
        ({"answer": f"{ANSWER} It is obj2."}, "leak", "answer[61:65]"),
        ({"question": "Do <obj1>?"}, "length", "question"),
        ({"answer": f"{ANSWER} {'very ' * 200}"}, "length", "answer"),
    ],
)  # fmt: skip
def test_each_rule_of_a_turn(changes, code, place):
    assert codes(**changes) == [(code, f"turns[3].{place}")]


def dialogue(*turns: Turn) -> tuple[list[list[str]], list[str]]:
    checked, whole = check_dialogue(Dialogue(turns=list(turns)), FACTS, CheckLimits(turns=(2, 4)))
    return [[one.code for one in found.problems] for found in checked], [one.code for one in whole]


def test_turns_must_be_numbered_counted_and_different():
    other = turn(turn=2, question="What is thrown by the man <obj1> in the end?")
    assert dialogue(turn(), other) == ([[], []], [])
    assert dialogue(turn()) == ([[]], ["count"])
    assert dialogue(*[turn(turn=n, question=f"Is it {n} <obj1>?") for n in range(1, 6)])[1] == ["count"]
    assert dialogue(turn(), turn(turn=3, question=other.question)) == ([[], ["turn_order"]], [])
    assert dialogue(turn(), turn(turn=2, question="what does the MAN <obj1> do")) == ([[], ["duplicate"]], [])


def test_the_same_question_about_another_object_is_no_duplicate():
    long = "Please tell me in your own words what exactly it is that this thing <obj{}> does in this clip all along"
    second = turn(turn=2, question=long.format(2), answer="<p> A ball </p> <obj2> flies away.", evidence=BOTH[1:])
    assert dialogue(turn(question=long.format(1)), second) == ([[], []], [])


def describe(**objects) -> dict:
    entries = [
        {
            "object": name.rstrip("_"),
            "statements": [{"text": text, "first": f, "last": last} for text, f, last in rows],
        }
        for name, rows in objects.items()
    ]
    found = check_descriptions(Descriptions(objects=entries), FACTS, LIMITS, wanted=[1, 2])
    return {number: [(one.code, one.at) for one in listed] for number, listed in found.items()}


MAN, BALL = [("It is a man.", 0, 19), ("It throws something round.", 5, 10)], [("It is a ball.", 10, 19)]


@pytest.mark.parametrize(
    ("objects", "found"),
    [
        ({"obj1": MAN, "obj2": BALL}, {}),
        ({"obj1": MAN}, {2: [("object_missing", "obj2")]}),
        ({"obj1": MAN, "obj2": []}, {2: [("object_missing", "obj2.statements")]}),
        ({"obj1": MAN, "obj2": BALL, "obj2_": BALL}, {2: [("object_twice", "obj2")]}),
        ({"obj1": MAN, "obj2": BALL, "obj9": BALL}, {0: [("tag_unknown", "objects[2].object")]}),
        ({"obj1": MAN, "obj2": [("It is hit by <obj1>.", 10, 19)]},
         {2: [("tag_unknown", "obj2.statements[0].text[13:19]")]}),
        ({"obj1": MAN, "obj2": [("It is a ball.", 0, 5)]}, {2: [("not_visible", "obj2.statements[0]")]}),
        ({"obj1": MAN, "obj2": [("It is a ball.", 10, 99)]}, {2: [("interval", "obj2.statements[0]")]}),
        ({"obj1": [*MAN, MAN[0]], "obj2": BALL}, {1: [("duplicate", "obj1.statements[2].text")]}),
        ({"obj1": MAN, "obj2": [("A ball.", 10, 19)]}, {2: [("length", "obj2.statements[0].text")]}),
        ({"obj1": MAN, "obj2": [("It is in a blue frame.", 10, 19)]},
         {2: [("leak", "obj2.statements[0].text[11:21]")]}),
    ],
)  # fmt: skip
def test_each_rule_of_a_description(objects, found):
    assert describe(**objects) == found


# ---- leaks


@pytest.mark.parametrize(
    "text",
    [
        "It is obj3.", "This is object 2.", "See Obj_4 there", "the bounding box of the dog", "two bounding-boxes",
        "a bbox", "mask 2 moves", "label #3 falls", "the red outline moves", "a lime-coloured outline",
        "the blue contour", "outlined in red", "an outline in red", "its segmentation mask", "the red bounding box",
        "It is outlined in bright red.", "A red dashed box is around it.", "a dashed red box", "a thin red outline",
        "a red box surrounds him", "outlined with a thick box", "Object one is running.", "Then object two, the dog",
        "boxed in lime-coloured", "annotated in thick red, it runs", "outlined in red and running",
        "a red box around it", "Object two throws it.", "It follows object three.", "the man with the red outline",
        "outlined by a red box", "objects 1 and 2", "the dotted lime-coloured box",
    ],
)  # fmt: skip
def test_leaks_are_found(text):
    assert [leak.review for leak in find_leaks(text, ("red", "blue", "lime"))] == [False]


@pytest.mark.parametrize(
    "text",
    [
        "A green box is opened.", "He marks the ball.", "The frame of the door is brown.", "The dog objects.",
        "It is circled by birds.", "A box on a red table", "It wears a mask.", "the region of Tuscany",
        "She labels jars.", "<p> The man </p> <obj1> runs", "the border between them", "It is highlighted by the sun.",
        "the white box truck", "the blue-eyed cat", "a red border collie runs", "surrounded by red flowers",
        "a red circle and a blue square", "a red line on the road", "a yellow dashed line", "framed by blue curtains",
        "a framed red picture", "red lines of the shirt", "a red truck in line", "a labelled red jar",
        "a blue square sits at the left", "a box of red flowers", "the red box van", "He objects to one of them.",
        "puts on his mask 2 seconds later", "track 20 hours of it", "the white outline", "an overlaid picture",
    ],
)  # fmt: skip
def test_words_that_only_look_like_leaks_pass(text):
    assert list(find_leaks(text, ("red", "blue", "lime"))) == []


@pytest.mark.parametrize(
    ("text", "expressions"),
    [
        ("He sits in the red box.", ["a man in the RED box"]), ("The player with number 10 scores.", []),
        *((text, []) for text in (
            "the train on track 2", "segment 2 of the race", "region 1 is blue", "a jersey numbered 23",
            "a bus labelled 15", "a car marked with the number 7", "circled with the number 3", "the red-outlined dog",
            "the highlighted person", "the outlined man", "dog #2", "the object numbered one", "the numbered object",
            "He carries a red box.", "a red mask over his face", "inside the red circle", "surrounded by a red line",
            "The red number is on it.", "in the bright red square", "a red circle around it", "the wide red border",
            "a field marked with red flags", "a pole marked with red and white stripes", "marked in the box",
            "a red box next to a dotted line",
            "marked in red, white and blue", "the object two men carry", "an object 2 metres away",
            "object three runs", "a marked box", "a jar marked with a label", "labelled in red",
            "the frame in red", "a bright red label", "surrounded by an outline", "marked red", "marked with red",
            "highlighted in a bright red color", "circled in red and running", "marked by a red box",
            "a dashed red frame", "picks up the objects one at a time", "stacks the objects one on top of the other",
            "objects two at a time", "moves the object 20 yards away", "two objects 30 centimeters apart",
            "moves the objects 3 times", "moves objects 1.5 metres", "hits the object 4-5 times",
            "stacks red boxes around the stall", "pushes a red box around the yard", "the outlines of red mountains",
            "contours of red hills", "the parking bay is marked in red", "the trail is marked with red",
            "words circled in red", "the route is highlighted in red on the map", "a number with a red outline",
            "the parking space is marked with a rectangle", "the tape has a dashed red border", "objects one and two",
            "the object one is holding", "the letters have a thick red outline", "the red outlines of the letters",
            "the contours in red on the map", "objects 2 at a time", "a superimposed number",
            "the dotted red rectangle",
        )),
    ],
)  # fmt: skip
def test_what_may_be_true_is_for_a_person(text, expressions):
    (leak,) = find_leaks(text, ("red",), expressions)
    assert leak.review


def test_a_leak_that_may_be_true_does_not_reject_a_turn():
    changes = {"answer": "<p> The man </p> <obj1> sits in the red box.", "evidence": BOTH[:1]}
    (problem,) = check_turn(turn(**changes), FACTS, LIMITS, "turns[0]").problems
    assert problem.code == "leak" and problem.review
    (problem,) = check_turn(
        turn(**{**changes, "answer": changes["answer"].replace("red box", "blue outline")}), FACTS, LIMITS, "t"
    ).problems
    assert problem.code == "leak" and not problem.review


# ---- duplicates


WORDS = "the quick brown fox jumps over the lazy dog and runs away from the angry old farmer at dawn"


def test_duplicates_within_a_video():
    changed = WORDS.replace("dawn", "dusk")  # 13 of 15 sequences of five words are the same
    assert duplicates_within([WORDS, "another text", WORDS.upper() + "!", changed]) == {2: 0, 3: 0}
    assert duplicates_within(["a dog", "a cat", "A dog."]) == {2: 0}
    assert duplicates_within(["What does <obj1> do?", "What does <obj2> do?"]) == {}


def test_duplicates_across_videos_are_found_by_minhash():
    texts = {f"v{i}": " ".join(f"{word}{i}" for word in WORDS.split()) for i in range(200)}
    assert duplicates_across(texts) == {}
    assert duplicates_across(texts | {"again": texts["v7"].replace("dawn7", "dusk")}) == {"again": "v7"}


def test_a_problem_has_a_known_code():
    with pytest.raises(ValueError, match="'tpyo' is not one of json, "):
        Problem("tpyo", "", "")
    assert all(code.meaning for code in CODES.values())


def stated(phrase: str, number: int = 2) -> list[tuple[str, bool]]:
    """Code, and whether it is for a person, of a phrase about so many objects that are always visible."""
    facts = VideoFacts(20, FACTS.shown, (frozenset(range(20)),) * number, ((),) * number, ())
    tags = " ".join(f"<obj{one}>" for one in range(1, number + 1))
    seen = evidence(*((f"obj{one}", 0, 19) for one in range(1, number + 1)))
    checked = check_turn(turn(answer=f"<p> {phrase} </p> {tags} move here.", evidence=seen), facts, LIMITS, "")
    return [(one.code, one.review) for one in checked.problems]


@pytest.mark.parametrize(
    ("phrase", "number"),
    [
        *((phrase, 2) for phrase in (
            "Three bikes and a car", "Dogs of three men", "the dogs with three collars", "the big three",
            "The 4 door cars", "The 7 Up cans", "The four wheel drive cars", "The three teams",
            "The 12 volt batteries", "Three boxes of eggs", "The 3 Series cars")),
        ("two pairs of dancers", 4), ("The two teams", 10), ("three rows of cars", 9), ("both couples", 4),
    ],
)  # fmt: skip
def test_a_number_that_may_count_something_else_is_for_a_person(phrase, number):
    assert stated(phrase, number) == [("count", True)]


@pytest.mark.parametrize(
    "phrase",
    ["The 3 bikes", "All of the three dogs", "The ten dogs", "All three", "three small brown dogs", "The 3 men",
     "Three of the dogs"],
)  # fmt: skip
def test_a_wrong_number_of_objects_is_a_mistake(phrase):
    assert stated(phrase) == [("count", False)]


def test_a_full_stop_behind_a_tag_is_no_word():
    assert codes(answer="<p> dog </p> <obj1>.", evidence=BOTH[:1]) == [("length", "turns[3].answer")]


def test_a_sure_leak_is_not_hidden_by_one_that_may_be_true():
    assert [leak.review for leak in find_leaks("the numbered label 3", ())] == [True, False]
    # The first is in the source, the second is not
    leaks = find_leaks("boxed with a red outline 2", ("red",), ["boxed with a red outline"])
    assert [leak.review for leak in leaks] == [True, False]


def test_the_source_excuses_whole_words_alone():
    assert [leak.review for leak in find_leaks("object 1 runs", (), ["object 12"])] == [False]
    assert [leak.review for leak in find_leaks("object  1 runs", (), ["the\nObject 1"])] == [True]
