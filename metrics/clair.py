"""
CLAIR (Chan et al., 2023): a language model rates from 0 to 100 how likely two captions describe the same thing.

Prompt, settings and answer parsing follow evaluation spec 8.6. The judge is an argument.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from .values import CONSISTENT, PUBLISHED, Value, check_preset


Judge = Callable[[list[dict]], str]  # messages -> the text of the answer

TRIES = 3
PUBLISHED_SETTINGS = {"model": "gpt-3.5-turbo", "max_tokens": 100, "temperature": 0.5}
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
# Of the consistent preset: a whole text that is a score, and a score that a text names
_SCORE = re.compile(r"\s*(\d*\.?\d+)\s*(?:%|/\s*100)?\s*\.?\s*")
# One on another scale, such as 8/10, is no score
_NAMED_SCORE = re.compile(
    r"\bscore[\"'*\s]*(?:[:=]|\bis\b)[\"'*\s]*(-?\d*\.?\d+)(?!\.?\d|\s*(?:/|out of)\s*(?!100\b)\d)", re.IGNORECASE
)
_REASON = re.compile("reason(.*)", re.IGNORECASE | re.DOTALL)


class RefusedTextError(Exception):
    """The judge works but rejects this text, for example because it is too long or filtered; the message says why."""


class Verdict(NamedTuple):
    """
    The judge's rating of one answer.

    Attributes:
        value (`float`, *optional*): In [0, 1]; `None` if the judge gave no score.
        reason (`str`, *optional*): The judge's reason, or why there is no value.
    """

    value: float | None
    reason: str | None


def clair_messages(candidates: Sequence[str], references: Sequence[str]) -> list[dict]:
    """The prompt as chat messages with `role` and `content`."""
    sides = ["".join(f"- {text}\n" for text in texts) for texts in (candidates, references)]
    prompt = PROMPT.format(candidates=sides[0], references=sides[1])
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": prompt}]


def parse_clair(answer: str, preset: str = CONSISTENT) -> Verdict | None:
    """
    Parses a judge's answer; `None` if it holds no score.

    Args:
        answer (`str`): The judge's text.
        preset (`str`): "consistent" takes the `score` of the JSON, else the number that the text calls a score, else
            an answer that is only a number; another number of the text, such as that of the dogs, is no score. A
            number below 1 and 1.0 are fractions, so that 0.85, 85, "85%" and "85/100" mean the same; one below 0 or
            above 100 is no score. "published" parses the first `{...}` as JSON and takes its score unchanged, else the
            first number in the text.

    Raises:
        `ValueError`: Under "published", the score in the JSON is not a number, such as "85%".
    """
    check_preset(preset)
    if preset == PUBLISHED:
        return _parse_published(answer)
    named = _first_object(answer)
    if "score" in named:
        found = _SCORE.fullmatch(str(named["score"]))
    else:
        found = _NAMED_SCORE.search(answer) or _SCORE.fullmatch(answer)
    if found is None:
        return None
    score = 100.0 if found[1] == "1.0" else _as_percent(float(found[1]))
    return Verdict(score / 100, str(named.get("reason", UNKNOWN))) if 0 <= float(found[1]) and score <= 100 else None


def clair(candidate: str, reference: str, judge: Judge, preset: str = CONSISTENT, tries: int = TRIES) -> Verdict:
    """
    Asks a judge about one answer, up to `tries` times until it gives a score.

    Args:
        candidate, reference (`str`): The predicted and the reference text.
        judge (callable): Takes chat messages and returns the text of the answer. After a [`RefusedTextError`] this
            answer has no value; other exceptions are not caught.
        preset (`str`): See [`parse_clair`]. Without a score the value is `None` under "consistent" and 0 under
            "published".
        tries (`int`): Maximum number of requests.
    """
    messages = clair_messages([candidate], [reference])
    for _ in range(tries):
        try:
            verdict = parse_clair(judge(messages), preset)
        except RefusedTextError as error:
            return Verdict(None, str(error))
        if verdict is not None:
            return verdict
    if preset == PUBLISHED:
        return Verdict(0.0, None)
    return Verdict(None, f"the judge gave no score in {tries} answers")


def mean_clair(verdicts: Iterable[Verdict]) -> Value:
    """Mean over the answers of a video or a benchmark. Answers without a value are left out."""
    verdicts = list(verdicts)
    values = [one.value for one in verdicts if one.value is not None]
    if values:
        return Value(sum(values) / len(values))
    return Value(None, (verdicts[0].reason if verdicts else "there are no answers to judge") or "")


def _as_percent(score: float) -> float:
    return 100 * score if score < 1 else score


def _first_object(answer: str) -> dict:
    """The first JSON object in a text, or an empty dictionary."""
    for match in re.finditer(r"\{", answer):
        try:
            found, _ = json.JSONDecoder().raw_decode(answer, match.start())
        except json.JSONDecodeError:
            continue
        except (RecursionError, ValueError):  # nested too deeply, or a number with thousands of digits
            break
        return found
    return {}


def _parse_published(answer: str) -> Verdict | None:
    # Ends at the first closing brace, so that braces inside the reason break the JSON
    braces = re.search(r"\{.*?\}", answer, re.DOTALL)
    try:
        found = json.loads(braces[0] if braces else "")
        score = float(found["score"])
        if not math.isfinite(score):
            raise ValueError(f"it is {score}")
        return Verdict(score / 100, found.get("reason", UNKNOWN))
    except (json.JSONDecodeError, KeyError):
        number, reason = _NUMBER.search(answer), _REASON.search(answer)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"the judge's score is not a number: {error}") from error
    if number is None:
        return None
    words = reason[1].replace(":", "").strip() if reason else UNKNOWN
    return Verdict(_as_percent(float(number[0])) / 100, words)
