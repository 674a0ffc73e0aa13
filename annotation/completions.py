"""
What an endpoint is asked and what it answers, as values, and the reading of the bodies of its replies: a JSON object,
or a stream of events.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from ..evaluation.endpoint_text import has_surrogates
from .errors import AnnotationError


class BrokenReplyError(Exception):
    """The reply holds no answer, because the endpoint or a proxy is broken."""


@dataclass(frozen=True)
class CompletionRequest:
    """
    What a model is asked.

    Args:
        model (`str`): Name of the model at the endpoint.
        messages (`list[dict]`): OpenAI chat messages. Pictures are `image_url` parts with `data:` URLs.
        schema (`dict`, *optional*): JSON schema of the answer.
        max_tokens (`int`): Maximum length of the answer. An answer that is cut there is asked for once more with
            twice as many.
        temperature (`float`, *optional*): 0 for the most likely answer; `None` for models that refuse a value.
        seed (`int`, *optional*): Seed of the sampling, for endpoints that have one.
    """

    model: str
    messages: list[dict]
    schema: dict[str, Any] | None = None
    max_tokens: int = 2048
    temperature: float | None = 0.0
    seed: int | None = None

    def key(self) -> str:
        """SHA-256, in hexadecimal digits, of everything that decides the answer. The endpoint's address and API key do
        not belong to it."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Usage:
    """Numbers of tokens of one or more calls; `cached` is the part of `prompt` that the endpoint had in its cache."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(self.prompt + other.prompt, self.cached + other.cached, self.completion + other.completion)


@dataclass(frozen=True)
class Completion:
    """
    An answer as the endpoint gave it.

    Args:
        text (`str`): Its text; `""` if the endpoint gave none.
        finish_reason (`str`): `"stop"`; `"length"` if the answer is cut at `max_tokens` a second time.
        refusal (`str`, *optional*): Why there is no answer: the model's refusal, `"content_filter"` or `"empty"`.
        usage ([`Usage`], *optional*): Tokens of the call that gave the answer; `None` if the endpoint does not count.
        seconds (`float`): From the first attempt to the answer, with the waits between them.
        attempts (`int`): Number of requests that were sent.
        model (`str`): The name that the endpoint gives its model, which may contain a version.
    """

    text: str
    finish_reason: str
    refusal: str | None
    usage: Usage | None
    seconds: float
    attempts: int
    model: str

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> "Completion":
        """
        The completion that [`to_json`] wrote.

        Raises:
            [`AnnotationError`]: A field is missing or of another type.
        """
        kinds = {"text": str, "finish_reason": str, "refusal": str | None, "usage": dict | None}
        kinds |= {"seconds": float | int, "attempts": int, "model": str}
        if not isinstance(value, dict) or set(value) != set(kinds):
            raise AnnotationError(f"A saved completion needs the fields {', '.join(kinds)}, got {str(value)[:200]}.")
        wrong = [name for name, kind in kinds.items() if not isinstance(value[name], kind)]
        usage = value["usage"]
        counts = {"prompt": int, "cached": int, "completion": int}
        if not wrong and usage is not None and {name: type(count) for name, count in usage.items()} != counts:
            wrong = ["usage"]
        if wrong:
            raise AnnotationError(f"Field {wrong[0]!r} of a saved completion is {value[wrong[0]]!r:.200}.")
        return cls(**{**value, "usage": None if usage is None else Usage(**usage)})


def read_completion(body: bytes, stream: bool) -> Completion:
    """
    The answer in the body of a reply with status 200. Its `seconds` and `attempts` are 0.

    Args:
        body (`bytes`): One JSON object, or with `stream` server-sent events.
        stream (`bool`): Whether a stream was asked for.

    Raises:
        [`BrokenReplyError`]: It is neither, its text is no text, or the stream ends before the answer.
    """
    try:
        reply = _joined(body) if stream else json.loads(body)
        choice = reply["choices"][0]
        message, reason = choice["message"], choice.get("finish_reason")
        # Some servers leave the key out where there is no text
        text, refusal, model = message.get("content"), message.get("refusal"), reply.get("model")
        usage = _usage(reply.get("usage"))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise BrokenReplyError("is not a chat completion") from None
    if text is not None and not isinstance(text, str):
        raise BrokenReplyError(f"has an answer of type {type(text).__name__} where text is expected")
    if any(isinstance(one, str) and has_surrogates(one) for one in (text, refusal, reason, model)):
        raise BrokenReplyError("contains surrogates, which are not Unicode characters")
    if not isinstance(refusal, str) or not refusal:
        refusal = "content_filter" if reason == "content_filter" else None if (text or "").strip() else "empty"
        # What was cut before its first character is not a refusal, but needs a larger limit
        refusal = None if reason == "length" else refusal
    known = reason if isinstance(reason, str) else "unknown"
    return Completion(text or "", known, refusal, usage, 0.0, 0, model if isinstance(model, str) else "")


def _joined(body: bytes) -> dict:
    """The completion whose parts the events of a stream are."""
    texts: list[str] = []
    refusals: list[str] = []
    reason, found = None, {}
    for event in _events(body):
        if event == "[DONE]":
            break
        chunk = json.loads(event)
        found |= {name: chunk[name] for name in ("model", "usage") if chunk.get(name) is not None}
        for choice in chunk["choices"][:1]:
            texts.append(choice["delta"].get("content") or "")
            refusals.append(choice["delta"].get("refusal") or "")
            reason = choice.get("finish_reason") or reason
    if reason is None:
        raise BrokenReplyError("is a stream that ends before the answer does")
    message = {"content": "".join(texts) or None, "refusal": "".join(refusals)}
    return found | {"choices": [{"message": message, "finish_reason": reason}]}


def _events(body: bytes) -> Iterator[str]:
    """The data of each server-sent event; an event is over only at the empty line behind it."""
    data: list[str] = []
    for line in body.decode().replace("\r\n", "\n").split("\n")[:-1]:
        if line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
        elif not line and data:
            yield "\n".join(data)
            data = []


def _usage(value: Any) -> Usage | None:
    """The numbers of tokens, or `None` if one of them is missing or is no count."""
    if not isinstance(value, dict):
        return None
    details = value.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    counts = [value.get("prompt_tokens"), cached or 0, value.get("completion_tokens")]
    if any(type(count) is not int or count < 0 for count in counts) or counts[1] > counts[0]:
        return None
    return Usage(*counts)
