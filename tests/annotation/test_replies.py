"""From the text of a reply to a value, or the code of what is wrong with it."""

import json

import pytest

from sama.annotation.completions import Completion, Usage
from sama.annotation.replies import read_reply
from sama.annotation.schema import Dialogue, Verdicts, json_schema


GOOD = {"verdicts": [{"claim": 1, "verdict": "true"}]}
TEXT = json.dumps(GOOD)


def completion(text: str, finish: str = "stop", refusal: str | None = None) -> Completion:
    return Completion(text, finish, refusal, Usage(), 0.0, 1, "m")


@pytest.mark.parametrize(
    "text",
    [TEXT, f"```json\n{TEXT}\n```", f"```\n{TEXT}\n```\n", f"Here you are: {{so}}\n{TEXT}\nBye.", f"\ufeff{TEXT}"],
)
def test_fences_and_prose_are_ignored(text):
    value, problems = read_reply(completion(text), Verdicts)
    assert not problems and value.model_dump() == GOOD


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("I cannot see a video.", "no JSON object, it begins with 'I cannot"),
        (TEXT[:-3], "is not JSON"),
        (f"{TEXT}\n{TEXT}", "more than one JSON object"),
        ('{"verdicts": [], "verdicts": []}', "the key 'verdicts' twice"),
        ('{"verdicts": [{"claim": NaN, "verdict": "true"}]}', "NaN"),
        ('{"verdicts": [{"claim": Infinity, "verdict": "true"}]}', "Infinity"),
        ('{"verdicts": "\\ud800"}', "half of a Unicode character"),
        ('{"verdicts": "\ud800"}', "half of a Unicode character"),
        ('{"verdicts": ' + "[" * 5000 + "]" * 5000 + "}", "nested more than"),
        ('{"verdicts": [' + "1" * 5000 + "]}", "digits"),
        ('"x"', "no JSON"),
    ],
)
def test_what_is_not_one_json_object(text, words):
    value, (problem,) = read_reply(completion(text), Verdicts)
    assert value is None and problem.code == "json" and words in problem.detail


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({}, "verdicts"),
        ({"verdicts": {}}, "verdicts"),
        ({"verdicts": [{"claim": "1", "verdict": "true"}]}, "verdicts[0].claim"),
        ({"verdicts": [{"claim": True, "verdict": "true"}]}, "verdicts[0].claim"),
        ({"verdicts": [*GOOD["verdicts"], {"claim": 2, "verdict": "maybe"}]}, "verdicts[1].verdict"),
        ({"verdicts": [{"claim": 1, "verdict": "true", "why": ""}]}, "verdicts[0].why"),
    ],
)
def test_the_schema_names_the_field(value, place):
    _, (problem,) = read_reply(completion(json.dumps(value)), Verdicts)
    assert (problem.code, problem.at) == ("schema", place)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ((TEXT, "length"), "finish"),
        ((TEXT, "tool_calls"), "finish"),
        (("", "stop"), "refusal"),
        ((TEXT, "stop", "I will not"), "refusal"),
        (("", "length", "content_filter"), "refusal"),
    ],
)
def test_incomplete_replies(arguments, code):
    value, (problem,) = read_reply(completion(*arguments), Verdicts)
    assert value is None and problem.code == code


def test_the_schema_that_is_sent_is_strict_and_asks_for_every_field():
    schema = json_schema(Dialogue)
    turn = schema["$defs"]["Turn"]
    assert sorted(turn["properties"]) == sorted(turn["required"]) and "phrases" not in turn["properties"]
    assert "PhraseSpan" not in schema["$defs"] and "Evidence" in schema["$defs"]
    assert all(one["additionalProperties"] is False for one in (schema, *schema["$defs"].values()))
