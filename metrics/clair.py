"""
CLAIR (Chan et al., 2023): a language model is asked how likely two captions describe the same thing, 0 to 100.

The question, the settings and the reading of the answer are those of evaluation spec 8.6. Who answers is an argument.
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from .values import FIXED, RELEASE, Value, check_mode


Judge = Callable[[list[dict]], str]  # messages -> the text of the answer

TRIES = 3
RELEASE_SETTINGS = {"model": "gpt-3.5-turbo", "max_tokens": 100, "temperature": 0.5}
SYSTEM = "You are a helpful assistant."
PROMPT = """\
You are trying to tell if a candidate set of captions is describing the same image as a reference set of captions.
Candidate set:
{candidates}
Reference set:
{references}
On a precise scale from 0 to 100, how likely is it that the candidate set is describing the same image as the \
reference set? (JSON format, with a key "score", value between 0 and 100, and a key "reason" with a string value.)
"""
UNKNOWN = "Unknown"
_NUMBER = re.compile(r"\d*\.?\d+")
_NAMED_SCORE = re.compile(r"[\"']?score[\"']?\s*[:=]\s*[\"']?(\d*\.?\d+)", re.IGNORECASE)
_REASON = re.compile("reason(.*)", re.IGNORECASE | re.DOTALL)


class RefusedTextError(Exception):
    """A judge that works, but not for this text, such as one that is too long or filtered; says why."""


class Verdict(NamedTuple):
    """
    What a judge said.

    Attributes:
        value (`float`, *optional*): In [0, 1]; `None` without one.
        reason (`str`, *optional*): The judge's reason, or why there is no value.
    """

    value: float | None
    reason: str | None


def clair_messages(candidates: Sequence[str], references: Sequence[str]) -> list[dict]:
    """The question as chat messages: `role` and `content`."""
    sides = ["".join(f"- {text}\n" for text in texts) for texts in (candidates, references)]
    prompt = PROMPT.format(candidates=sides[0], references=sides[1])
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": prompt}]


def parse_clair(answer: str, mode: str = FIXED) -> Verdict | None:
    """
    Read a judge's answer; `None` if it holds no score.

    Args:
        answer (`str`): The judge's text.
        mode (`str`): "fixed": the number that is named `score`, in JSON or not, else the first number of the text; one
            below 1 counts as a share, so that 0.85 and 85 and "85%" are the same; one above 100 is none. "published":
            the first `{...}` as JSON, whose score is taken as it stands, else the first number of the text.

    Raises:
        `ValueError`: In "published", the JSON's score is not a number, such as "85%".
    """
    check_mode(mode)
    if mode == RELEASE:
        return _parse_release(answer)
    named = _first_object(answer)
    text = str(named.get("score", "")).strip().removesuffix("%")
    found = _NUMBER.fullmatch(text) or _NAMED_SCORE.search(answer) or _NUMBER.search(answer)
    if found is None:
        return None
    score = _as_percent(float(found[found.lastindex or 0]))
    return Verdict(score / 100, str(named.get("reason", UNKNOWN))) if score <= 100 else None


def clair(candidate: str, reference: str, judge: Judge, mode: str = FIXED, tries: int = TRIES) -> Verdict:
    """
    Ask a judge about one answer, up to `tries` times until it gives a score.

    Args:
        candidate, reference (`str`): The predicted and the true text.
        judge (callable): Takes the messages, gives the text of the answer. A [`RefusedTextError`] leaves this answer
            without a value; what else it raises is passed on.
        mode (`str`): See [`parse_clair`]. Without a score the value is `None` in "fixed" and 0 in "published".
        tries (`int`): Questions at most.
    """
    messages = clair_messages([candidate], [reference])
    for _ in range(tries):
        try:
            verdict = parse_clair(judge(messages), mode)
        except RefusedTextError as error:
            return Verdict(None, str(error))
        if verdict is not None:
            return verdict
    if mode == RELEASE:
        return Verdict(0.0, None)
    return Verdict(None, f"the judge gave no score in {tries} answers")


def mean_clair(verdicts: Iterable[Verdict]) -> Value:
    """Mean over the answers of a video or a benchmark; those without a value are left out."""
    verdicts = list(verdicts)
    values = [one.value for one in verdicts if one.value is not None]
    if values:
        return Value(sum(values) / len(values))
    return Value(None, verdicts[0].reason if verdicts else "there are no answers to judge")


def _as_percent(score: float) -> float:
    return 100 * score if score < 1 else score


def _first_object(answer: str) -> dict:
    """The first JSON object in a text, or an empty one."""
    for match in re.finditer(r"\{", answer):
        try:
            found, _ = json.JSONDecoder().raw_decode(answer, match.start())
        except json.JSONDecodeError:
            continue
        return found
    return {}


def _parse_release(answer: str) -> Verdict | None:
    # Up to the first brace that closes, so that braces in the reason tear it
    braces = re.search(r"\{.*?\}", answer, re.DOTALL)
    try:
        found = json.loads(braces[0] if braces else "")
        return Verdict(float(found["score"]) / 100, found.get("reason", UNKNOWN))
    except (json.JSONDecodeError, KeyError):
        number, reason = _NUMBER.search(answer), _REASON.search(answer)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the judge's score is not a number: {error}") from error
    if number is None:
        return None
    words = reason[1].replace(":", "").strip() if reason else UNKNOWN
    return Verdict(_as_percent(float(number[0])) / 100, words)
