"""Clean-up of answers, and means over videos."""

import pytest

from sama.metrics.answers import (
    caption,
    current_tags,
    image_caption,
    mme_answer,
    named_choices,
    named_letters,
    phrases,
    region_caption,
    shortened,
    without_determiner_no,
)
from sama.metrics.values import Value, mean


ANSWER = "<p> The Man </p> [SEG] rides <p>a bike</p> [SEG].<|im_end|>"


def test_phrases_and_caption():
    assert phrases(ANSWER) == ["the man", "a bike"] and phrases(ANSWER, lower=False) == ["The Man", "a bike"]
    assert caption(ANSWER) == "The Man rides a bike ."
    assert current_tags(" <g_s> x <g_e> <seg> ") == "<p> x </p> [SEG]"


def test_shortened():
    assert shortened("a  b c", 3) == "a  b c" and shortened("a  b c d", 3) == "a b c"
    assert shortened("word " * 301).split() == ["word"] * 300 and len(shortened("x" * 3000)) == 2000


def test_image_caption():
    assert image_caption("USER: hi ASSISTANT: <p>A man</p> [SEG] runs") == ("A man runs", ["A man"])


@pytest.mark.parametrize(
    ("answer", "consistent", "published"),
    [
        ("The region marked by region1 is a red car.<|im_end|>", "a red car.", "a red car."),
        ("Region1 shows a fish on a dish.", "a fish on a dish.", "a fh on a dh."),
        ("This is his island: blue", "This is his island: blue", "Th h land blue"),
        ("<p> a man </p> [SEG]", "a man", "a man"),
        ("region 1 is: a cat", "a cat", None),
    ],
)
def test_region_caption(answer, consistent, published):
    assert region_caption(answer) == consistent
    if published is not None:
        assert region_caption(answer, "published") == published


def test_mme_answer():
    assert mme_answer("Yes.<|im_end|>") == "Yes"


def test_mean_leaves_out_what_has_no_value():
    assert mean([1.0, None, Value(0.0), Value(None, "x")]).value == 0.5
    assert mean([None], "videos") == (None, "none of the 1 videos has a value")


@pytest.mark.parametrize(
    ("text", "choices", "expected"),
    [
        ("It is dark red.", ["red", "dark red"], ["dark red"]),
        ("Blue, then red.", ["red", "blue"], ["red", "blue"]),
        ("Yes, there is no dog.", ["yes", "no"], ["yes"]),
        ("No dog is there.", ["yes", "no"], ["no"]),
        ("Yes. No, it stops.", ["yes", "no"], ["yes", "no"]),
        ("Yes, it is a no-entry sign.", ["yes", "no", "unclear"], ["yes"]),
        ("A dog runs, so B.", ["A", "B"], ["B"]),
        ("A dog", ["a dog", "a"], ["a dog"]),
        ("Anything.", [], []),
    ],
)
def test_named_choices(text, choices, expected):
    assert named_choices(text, choices) == expected


def test_no_before_the_word_it_belongs_to_is_left_out():
    assert without_determiner_no("No dog, no it runs, no-entry, no.") == "dog, no it runs, entry, no."


def test_letters_are_named_by_capitals():
    assert named_letters("A island, answer: I see, b.", ["A", "b", "I"]) == ["I"]
    assert named_letters("Option A or B.", ["a", "B"]) == ["a", "B"]
