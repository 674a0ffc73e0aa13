"""From the text of a reply to a value of its schema, or the reason why there is none."""

import json
import re
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ..data.json_text import JSONGuard
from .completions import Completion
from .problems import Problem


Model = TypeVar("Model", bound=BaseModel)

FENCE = re.compile(r"\A\s*```(?:json|JSON)?\s*\n(.*)\n\s*```\s*\Z", re.DOTALL)
OBJECT_START = re.compile(r'\{\s*["}]')  # not a brace in prose
MAX_SHOWN = 120  # characters of a reply in a message


def read_reply(completion: Completion, model: type[Model]) -> tuple[Model | None, list[Problem]]:
    """
    The reply as a value of `model`, or `None` and what is wrong with it: one of `refusal`, `finish`, `json`, or one
    `schema` problem for each field.
    """
    if completion.refusal is not None:
        return None, [Problem("refusal", "", completion.refusal[:MAX_SHOWN])]
    if completion.finish_reason != "stop":
        return None, [Problem("finish", "", f"finish_reason is {completion.finish_reason!r}")]
    if not completion.text.strip():
        return None, [Problem("refusal", "", "the answer is empty")]
    try:
        value = parse_object(completion.text)
    except ValueError as error:
        return None, [Problem("json", "", str(error))]
    try:
        return model.model_validate(value), []
    except ValidationError as error:
        return None, [
            Problem("schema", _field(one["loc"]), one["msg"])
            for one in error.errors(include_url=False, include_context=False)
        ]


def _field(location: tuple) -> str:
    """`turns[2].answer` from a location of an error of pydantic."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return "".join(parts).removeprefix(".")


def parse_object(text: str) -> dict[str, Any]:
    """
    The one JSON object of a reply. A code fence around it and prose before or after it are ignored.

    Raises:
        ValueError: if there is none, or more than one, or it has duplicate keys, NaN, infinity or half a character.
    """
    fenced = FENCE.match(text)
    text = fenced[1] if fenced else text
    try:
        JSONGuard().check(text.encode())
    except UnicodeEncodeError:
        raise ValueError("it contains half of a Unicode character (a surrogate such as \\ud800)") from None
    except ValueError as error:
        raise ValueError(f"it {error}") from None
    decoder = json.JSONDecoder(object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant)
    start = OBJECT_START.search(text)
    if start is None:
        raise ValueError(f"it contains no JSON object, it begins with {' '.join(text.split())[:MAX_SHOWN]!r}")
    try:
        value, end = decoder.raw_decode(text, start.start())
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON: {error.msg} at character {error.pos}") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if OBJECT_START.search(text, end):
        raise ValueError("it contains more than one JSON object")
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for position, (key, _) in enumerate(pairs) if key in dict(pairs[:position]))
        raise ValueError(f"it has the key {twice[:MAX_SHOWN]!r} twice in one object")
    return found


def _refuse_constant(name: str):
    raise ValueError(f"it contains {name}, which is not a JSON number")
