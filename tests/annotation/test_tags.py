"""Tags of questions and answers: what is read, what is wrong, and the way back."""

import numpy as np
import pytest

from sama.annotation.schema import PhraseSpan
from sama.annotation.tags import (
    TAG,
    answer_from_spans,
    grounded_spans,
    object_number,
    read_answer,
    read_question,
    write_answer,
    write_question,
)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("<p> The dog </p> <obj1> runs.", [("The dog", (1,)), (" runs.", ())]),
        ("See <p>two cats</p> <obj2> <obj3>", [("See ", ()), ("two cats", (2, 3))]),
        ("Nothing moves.", [("Nothing moves.", ())]),
        ("Brackets ] } { [ and \N{DOG FACE}: <p> e\u0301 </p> <obj3>!", None),
        ("A < B and <b> is HTML, <p> x </p> <obj1>", None),
    ],
)
def test_answers_are_read(text, parts):
    found = read_answer(text, 3)
    assert not found.problems
    assert parts is None or found.parts == parts
    assert read_answer(write_answer(found.parts), 3).parts == found.parts


@pytest.mark.parametrize(
    ("text", "code", "place"),
    [
        ("<p> a </p> <obj99>", "tag_unknown", "[11:18]"),
        ("<p> a </p> <obj0>", "tag_unknown", "[11:17]"),
        ("<p> a </p> <obj01>", "tag_unknown", "[11:18]"),
        ("<p> a </p> <obj1> [SEG]", "tag_unknown", "[18:23]"),
        ("<p> a </p> <object1>", "tag_unknown", "[11:20]"),
        ("<p> a <obj1> runs", "tag_unbalanced", "[0:3]"),
        ("a </p> <obj1> runs", "tag_unbalanced", "[2:6]"),
        ("<p> a <obj1> sees <p> b </p> <obj2>", "tag_unbalanced", "[0:3]"),
        ("<p> a <p> b </p> <obj1> </p> <obj2>", "tag_nested", "[6:9]"),
        ("<p> a <obj1> </p> <obj1>", "tag_nested", "[6:12]"),
        ("a <obj1> runs", "tag_alone", "[2:8]"),
        ("<p> a </p>, <obj1>", "tag_alone", "[0:10]"),
        ("<p> a </p> runs", "tag_alone", "[0:10]"),
        ("I see<p> a dog </p> <obj1>.", "span", "[5:26]"),
        ("<p>  </p> <obj1>", "phrase_empty", "[0:16]"),
    ],
)
def test_broken_answers_have_a_code_and_a_place(text, code, place):
    problems = read_answer(text, 3).problems
    # A phrase that has lost its tag leaves the tag alone, too
    assert (problems[0].code, problems[0].at) == (code, place)
    assert {problem.code for problem in problems} == {code}


def test_questions_are_read():
    found = read_question("What is the dog <obj2> doing to <obj1>?", 2)
    assert found.parts == [("What is the dog ", ()), ("", (2,)), (" doing to ", ()), ("", (1,)), ("?", ())]
    assert write_question(found.parts) == "What is the dog <obj2> doing to <obj1>?"
    assert found.plain == "What is the dog doing to?"


@pytest.mark.parametrize(
    ("text", "code"),
    [("What happens?", "question_untagged"), ("Why <obj4>?", "tag_unknown"), ("<p> x </p> <obj1>?", "tag_unknown")],
)
def test_broken_questions_have_a_code(text, code):
    assert {problem.code for problem in read_question(text, 3).problems} == {code}


def span(name: str, phrase: str, start: int) -> PhraseSpan:
    return PhraseSpan(object=name, phrase=phrase, start=start, end=start + len(phrase))


def test_spans_count_characters_and_not_bytes_or_utf16_units():
    answer = "\N{DOG FACE}e\u0301: the dog runs"
    found = answer_from_spans(answer, [span("obj1", "the dog", 5)], 2)
    assert not found.problems and found.parts[1] == ("the dog", (1,))
    assert list(grounded_spans(found.parts)) == [(5, 12, "the dog", (1,))]


def test_equal_spans_are_one_phrase_of_several_objects():
    found = answer_from_spans("both dogs run", [span("obj1", "both dogs", 0), span("obj2", "both dogs", 0)], 2)
    assert found.parts == [("both dogs", (1, 2)), (" run", ())]


@pytest.mark.parametrize(
    ("spans", "code", "place"),
    [
        ([span("obj1", "the dog", 1)], "span", "phrases[0]"),
        ([span("obj1", "the dog", 40)], "span", "phrases[0]"),
        ([span("obj1", "the dog", -1)], "span", "phrases[0]"),
        ([span("obj1", "", 0)], "span", "phrases[0]"),
        ([span("obj1", "the dog", 0), span("obj2", "dog runs", 4)], "span", "phrases[1]"),
        ([span("obj3", "the dog", 0)], "tag_unknown", "phrases[0].object"),
        ([span("obj1", "the dog ", 0)], "span", "phrases[0]"),
        ([span("obj1", " runs", 7)], "span", "phrases[0]"),
        ([span("obj1", "runs\u00a0", 8)], "span", "phrases[0]"),
        ([span("obj1", " ", 3)], "phrase_empty", "phrases[0]"),
    ],
)
def test_wrong_spans(spans, code, place):
    (problem,) = answer_from_spans("the dog runs\u00a0", spans, 2).problems
    assert (problem.code, problem.at) == (code, place)


@pytest.mark.parametrize(
    ("name", "number"), [("obj2", 2), ("<obj2>", 2), ("obj3", None), ("2", None), ("obj02", None), ("objx", None)]
)
def test_object_names(name, number):
    assert object_number(name, 2) == number


PIECES = (
    "<p>",
    "</p>",
    "<obj1>",
    "<obj2>",
    "<obj9>",
    "<obj",
    ">",
    " ",
    "a dog",
    "\N{DOG FACE}",
    "[SEG]",
    "<region>",
    "\n",
    "<",
)


def test_any_text_has_problems_or_comes_back():
    rng, clean = np.random.default_rng(0), 0
    for _ in range(5000):
        text = "".join(PIECES[i] for i in rng.integers(len(PIECES), size=rng.integers(1, 9)))
        for read, write in ((read_answer, write_answer), (read_question, write_question)):
            found = read(text, 2)
            for problem in found.problems:
                start, _, end = problem.at.strip("[]").partition(":")
                assert problem.code == "question_untagged" or 0 <= int(start) < int(end) <= len(text)
            if not found.problems:
                clean += 1
                again = read(write(found.parts), 2)
                assert not again.problems
                assert [one for one in again.parts if one[1]] == [one for one in found.parts if one[1]]
    assert clean > 200


def test_any_spans_have_problems_or_come_back():
    """Blanks of all kinds, empty and overlapping spans, positions beyond the text, objects that do not exist."""
    rng, clean, codes = np.random.default_rng(1), 0, set()
    pieces = ("a dog", " ", "  ", "\n", "\u00a0", "\u2028", "\N{DOG FACE}", "<", ">", "<p", "[SE", "G]", "obj1>", "x")
    for _ in range(5000):
        answer = "".join(pieces[i] for i in rng.integers(len(pieces), size=rng.integers(1, 9)))
        if TAG.search(answer):
            continue  # such an answer is read by its tags
        spans = []
        for _ in range(rng.integers(1, 4)):
            start, end = sorted(rng.integers(-1, len(answer) + 2, size=2).tolist())
            name, phrase = f"obj{rng.integers(1, 4)}", answer[max(0, start) : max(0, end)]
            spans.append(PhraseSpan(object=name, phrase=phrase, start=start, end=end))
        found = answer_from_spans(answer, spans, 2)
        codes |= {problem.code for problem in found.problems}
        if not found.problems:
            clean += 1
            again = read_answer(write_answer(found.parts), 2)
            assert not again.problems
            assert list(grounded_spans(again.parts)) == list(grounded_spans(found.parts))
            assert "".join(text for text, _ in again.parts) == answer
    assert clean > 200 and codes == {"span", "phrase_empty", "tag_unknown"}
