"""What a judge is asked, and how its answer is read."""

import pytest

from sama.metrics.clair import Verdict, clair, clair_messages, mean_clair, parse_clair


def test_messages():
    system, user = clair_messages(["a cat"], ["two cats", "cats"])
    assert system["role"] == "system" and user["role"] == "user"
    assert "Candidate set:\n- a cat\n\nReference set:\n- two cats\n- cats\n\n" in user["content"]
    braces = clair_messages(["{x}"], ["{0}"])[1]["content"]
    assert "- {x}\n" in braces and "- {0}\n" in braces


@pytest.mark.parametrize(
    ("answer", "consistent", "published"),
    [
        ('{"score": 85, "reason": "same"}', 0.85, 0.85),
        ('{"score": "85", "reason": "same"}', 0.85, 0.85),
        ('{"score": 0.85}', 0.85, 0.0085),  # the published takes the JSON's number as it stands, but not the text's
        ("Score: 0.85", 0.85, 0.85),
        ('{"score": 0, "reason": "no"}', 0.0, 0.0),
        ('{"score": 80, "reason": "has {nested} braces"}', 0.8, 0.8),
        ('I rate 3 of 10: {"score": 30 "reason"}', 0.3, 0.03),
        ("Of the 2 captions, score = 40.", 0.4, 0.02),
        ('```json\n{"score": 55}\n```', 0.55, 0.55),
        ('{"other": 1} then {"score": 55}', 0.55, 0.01),
        ("no number", None, None),
        ("I cannot rate these 2 sets.", None, 0.02),
        ("On a scale from 0 to 100, I would say 85.", None, 0.0),
        ("85", 0.85, 0.85),
        ("85/100.", 0.85, 0.85),
        ("The **score** is 70%.", 0.7, 0.7),
        ("Score: 85/100", 0.85, 0.85),
        ("Score: 8/10", None, 0.08),
        ("The score is 4 out of 5.", None, 0.04),
        ("The score is 85 out of 100.", 0.85, 0.85),
        ('{"score": 1.0, "reason": "same"}', 1.0, 0.01),
        ('{"score": 1, "reason": "1.0 differs"}', 0.01, 0.01),
        ('{"score": "85/100"}', 0.85, ValueError),
        ('{"score": "N/A", "reason": "3 dogs"}', None, ValueError),
        ('{"score": null, "reason": "There are 2 captions"}', None, ValueError),
        ('{"score": -5}', None, -0.05),
        ("Score: -5", None, 0.05),
        ('{"score": 250}', None, 2.5),
    ],
)
def test_parse(answer, consistent, published):
    for mode, expected in (("consistent", consistent), ("published", published)):
        if expected is ValueError:
            with pytest.raises(ValueError, match="not a number"):
                parse_clair(answer, mode)
            continue
        found = parse_clair(answer, mode)
        assert (None if found is None else found.value) == pytest.approx(expected)


def test_percent_sign():
    assert parse_clair('{"score": "85%"}') == Verdict(0.85, "Unknown")
    for answer in ('{"score": "85%"}', '{"score": null}'):
        with pytest.raises(ValueError, match="not a number"):
            parse_clair(answer, "published")


def test_reason():
    assert parse_clair('Well: {"score": 10, "reason": "a dog"}').reason == "a dog"
    assert parse_clair("Score: 0.4 Reason: close match", "published").reason == "close match"


def test_a_judge_is_asked_again():
    answers = iter(["I cannot say", "none", '{"score": 20}'])
    assert clair("a", "b", lambda messages: next(answers)) == Verdict(0.2, "Unknown")
    calls = []
    assert clair("a", "b", lambda messages: calls.append(messages) or "?", tries=2) == (
        None,
        "the judge gave no score in 2 answers",
    )
    assert len(calls) == 2
    assert clair("a", "b", lambda messages: "?", "published").value == 0


def test_a_judge_that_is_down():
    def down(messages):
        raise ConnectionError("refused")

    with pytest.raises(ConnectionError, match="refused"):
        clair("a", "b", down)


def test_mean():
    assert mean_clair([Verdict(0.5, ""), Verdict(None, "no score"), Verdict(1.0, "")]).value == 0.75
    assert mean_clair([Verdict(None, "no score")]) == (None, "no score")
    assert mean_clair([]) == (None, "there are no answers to judge")
