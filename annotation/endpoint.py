"""
The client of an OpenAI-compatible endpoint: one request, its answer, and everything between them that is no business
of a stage: the form of structured output, retries, waiting, limits of rate and concurrency, and costs.

The texts of replies are not read here: whether an answer is valid JSON, names known objects or makes sense is checked
by the stages, whose checks have codes.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from .errors import AnnotationError


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
        temperature (`float`): 0 for the most likely answer.
        seed (`int`, *optional*): Seed of the sampling, for endpoints that have one.
    """

    model: str
    messages: list[dict]
    schema: dict[str, Any] | None = None
    max_tokens: int = 2048
    temperature: float = 0.0
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


@dataclass(frozen=True)
class EndpointSettings:
    """
    Where and how an endpoint is asked.

    Args:
        url (`str`): Such as `http://localhost:8000/v1`.
        key_variable (`str`): Environment variable with the API key; no key is sent if it is not set.
        structured_output (`str`): How the schema of a request is sent: `"json_schema"`, `"json_object"` (without the
            schema) or `"none"`. An endpoint that refuses one of them is asked with the next.
        stream (`bool`): Whether answers are sent in parts, for gateways that close connections that are silent.
        concurrency (`int`): Maximum number of requests at a time; less while the endpoint is overloaded.
        requests_per_minute (`float`, *optional*): Rate limit.
        tokens_per_minute (`float`, *optional*): Rate limit, on the estimated prompt plus `max_tokens`.
        tries (`int`): Maximum number of requests for one answer if the endpoint is unreachable, overloaded or broken.
        backoff_s (`float`): Seconds before the second try, doubled before each further one, with random jitter. The
            wait is never shorter than a `Retry-After` header asks for.
        longest_wait_s (`float`): A `Retry-After` of more seconds stops the run.
        timeout_s (`float`): Seconds for one whole request, from the connection to the last byte of the reply.
    """

    url: str
    key_variable: str = "OPENAI_API_KEY"
    structured_output: str = "json_schema"
    stream: bool = False
    concurrency: int = 8
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    tries: int = 6
    backoff_s: float = 1.0
    longest_wait_s: float = 600.0
    timeout_s: float = 120.0


class Endpoint:
    """
    A model behind an endpoint. One object serves all threads of a run.

    Args:
        settings ([`EndpointSettings`]): Where and how it is asked.
        costs ([`~annotation.costs.Costs`], *optional*): Counts every call, and refuses calls beyond its budget.
            Several endpoints may share it.
        sleep (`Callable`, *optional*): Waits a number of seconds; by default until then or until the run stops.
    """

    def __init__(self, settings: EndpointSettings, costs=None, sleep: Callable[[float], Any] | None = None):
        raise NotImplementedError

    def complete(self, request: CompletionRequest, stage: str = "", record: str = "") -> Completion:
        """
        The answer to a request. Blocks; called from many threads at a time.

        Args:
            request ([`CompletionRequest`]): What is asked.
            stage (`str`): Name of the stage, for the costs.
            record (`str`): Id of the record, for the costs.

        Raises:
            [`TransientError`]: No answer in all tries.
            [`RejectedRequestError`]: The endpoint refuses this request.
            [`PermanentError`]: No request can succeed; all later calls raise it, too.
            [`BudgetError`]: The call could cost more than is left of the budget; all later calls raise it, too.
        """
        raise NotImplementedError
