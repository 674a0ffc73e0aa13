"""
The client of an OpenAI-compatible endpoint: one request, its answer, and everything between them that does not concern
a stage: the form of structured output, retries, waiting, limits of rate and concurrency, and costs.

The texts of answers are not read here: whether one is valid JSON, names known objects or makes sense is checked by the
stages, whose checks have codes.
"""

import json
import logging
import math
import os
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol
from urllib.parse import urlsplit

from ..evaluation.chat_endpoint import EndpointReply, NoReplyError, post_chat
from ..evaluation.endpoint_text import base_url, check_url, read_api_key, retry_after_s, shown_body, without_key
from .completions import BrokenReplyError, Completion, CompletionRequest, Usage, read_completion
from .costs import Costs, Spent
from .errors import (
    AnnotationError,
    LedgerError,
    PermanentError,
    RejectedRequestError,
    StopError,
    TransientError,
    UnansweredError,
    UnusableReplyError,
)
from .rate_limit import ConcurrencyLimit, RateLimit


logger = logging.getLogger(__name__)

STRUCTURED_OUTPUT = ("json_schema", "json_object", "none")  # from the strictest to the loosest
MAX_TOKENS_NAMES = ("max_tokens", "max_completion_tokens")  # the second of models that reason first
TEMPORARY = {408, 409, 425, 429}  # and all from 500
ABOUT_THIS_REQUEST = {400, 413, 415, 422}  # other client errors are about the key, the model or the URL
NO_QUOTA, NO_MODEL = {"insufficient_quota", "billing_hard_limit_reached"}, {"model_not_found"}
# Estimates, for the budget and the token limit, before an endpoint has counted
CHARACTERS_PER_TOKEN, TOKENS_PER_PICTURE = 3, 1000
LONGEST_BACKOFF_S = 60.0
NOT_SENT = "not sent"  # outcome of an attempt without a connection
LOOPBACK = ("localhost", "127.0.0.1", "::1")
SHORTEST_SECRET = 16  # characters; shorter API keys are those of local servers, such as "EMPTY"


@dataclass(frozen=True)
class EndpointSettings:
    """
    Where and how an endpoint is asked.

    Args:
        url (`str`): Such as `http://localhost:8000/v1`.
        key_variable (`str`): Environment variable with the API key; no key is sent if it is not set. It is sent to
            `url`, whatever that is.
        structured_output (`str`): How the schema of a request is sent: `"json_schema"`, `"json_object"` (without the
            schema) or `"none"`. An endpoint that refuses one of them is asked with the next.
        max_tokens_name (`str`): Name of the limit on the answer's length; `"max_completion_tokens"` for models that
            reason first.
        stream (`bool`): Whether answers are sent in parts, for gateways that close connections that are silent.
        concurrency (`int`): Maximum number of requests at a time; less while the endpoint is overloaded.
        requests_per_minute (`float`, *optional*): Rate limit.
        tokens_per_minute (`float`, *optional*): Rate limit, on the estimated prompt plus `max_tokens`.
        tries (`int`): Maximum number of requests for one answer if the endpoint is unreachable, overloaded or broken.
        backoff_s (`float`): Seconds before the second try, doubled before each further one, with random jitter. The
            wait is never shorter than a `Retry-After` header asks for.
        longest_wait_s (`float`): A `Retry-After` of more seconds stops the run.
        timeout_s (`float`): Seconds for one whole request, from the connection to the last byte of the reply.
        most_failures (`int`): Requests in a row without a usable answer that stop the run. Refused requests are among
            them only while the model has answered nothing yet: later, they say something of themselves alone.
    """

    url: str
    key_variable: str = "OPENAI_API_KEY"
    structured_output: str = "json_schema"
    max_tokens_name: str = "max_tokens"
    stream: bool = False
    concurrency: int = 8
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    tries: int = 6
    backoff_s: float = 1.0
    longest_wait_s: float = 600.0
    timeout_s: float = 120.0
    most_failures: int = 20


class KeepsCut(Protocol):
    """Keeps an answer that was cut at its limit."""

    def get(self) -> Completion | None: ...

    def put(self, completion: Completion) -> None: ...


class _Again(Exception):
    """A temporary failure. `wait_s` is what the endpoint asks for; `busy` says that it is overloaded."""

    def __init__(self, problem: str, outcome: str, wait_s: float | None = None, busy: bool = False):
        super().__init__(problem)
        self.outcome, self.wait_s, self.busy = outcome, wait_s, busy


class Endpoint:
    """
    A model behind an endpoint. One object serves all threads of a run.

    Args:
        settings ([`EndpointSettings`]): Where and how it is asked.
        costs ([`~annotation.costs.Costs`], *optional*): Counts every call, and refuses calls beyond its budget.
            Several endpoints may share it.
        rate ([`~annotation.rate_limit.RateLimit`], *optional*): When requests may start; by default one with the
            limits of the settings. Several endpoints may share it.
        clock (`Callable`): Seconds that never go back.
        sleep (`Callable`, *optional*): Waits a number of seconds; by default until then or until the run stops.
        jitter (`Callable`, *optional*): Returns a random number from 0 to 1.

    Raises:
        `ValueError`: The URL is not an http or https URL, or contains a password or a query.
        [`AnnotationError`]: A setting is out of range.
    """

    def __init__(
        self,
        settings: EndpointSettings,
        costs: Costs | None = None,
        rate: RateLimit | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Any] | None = None,
        jitter: Callable[[], float] | None = None,
    ):
        check_url(settings.url, "endpoint")
        _check_settings(settings)
        self.settings, self.costs, self.clock = settings, costs or Costs(), clock
        parts = urlsplit(settings.url)
        if parts.scheme == "http" and parts.hostname not in LOOPBACK and settings.key_variable in os.environ:
            logger.warning("The key in %s is sent to %s without encryption.", settings.key_variable, settings.url)
        self._jitter = jitter or secrets.SystemRandom().random
        self.rate = rate or RateLimit(settings.requests_per_minute, settings.tokens_per_minute, clock)
        self.concurrency = ConcurrencyLimit(settings.concurrency)
        self._stopping = threading.Event()
        self._stop_error: StopError | None = None
        self._sleep = sleep or self._stopping.wait
        self._lock = threading.Lock()
        self._failures = 0  # requests without an answer since the last answer
        self._factors: dict[str, float] = {}  # model -> largest ratio of counted and estimated prompt tokens, from 1
        self._modes: dict[str, str] = {}  # model -> form of structured output, where it differs from the settings

    def complete(
        self, request: CompletionRequest, stage: str = "", record: str = "", cut: KeepsCut | None = None
    ) -> Completion:
        """
        The answer to a request. Blocks; called from many threads at a time.

        Args:
            request ([`CompletionRequest`]): What is asked.
            stage (`str`): Name of the stage, for the costs.
            record (`str`): Id of the record, for the costs.
            cut ([`KeepsCut`], *optional*): Keeps an answer that is cut at its limit until there is a longer one.

        Raises:
            [`TransientError`]: No answer in all tries.
            [`RejectedRequestError`]: The endpoint refuses this request.
            [`PermanentError`]: No request can succeed; all later calls raise it, too.
            [`BudgetError`]: The call could cost more than is left of the budget; all later calls raise it, too.
        """
        started = self.clock()
        try:
            completion = None if cut is None else cut.get()
            if completion is None:
                completion = self._answer(request, stage, record)
                if cut is not None and _is_cut(completion):
                    cut.put(completion)
            if _is_cut(completion):
                completion = self._longer(request, completion, stage, record)
        except StopError as error:
            self.stop(error)
            raise
        return replace(completion, seconds=self.clock() - started)

    def stop(self, error: StopError | None = None) -> None:
        """Lets all calls that wait, and all later ones, end with this error."""
        with self._lock:
            self._stop_error = self._stop_error or error or PermanentError("The run was stopped.")
        self._stopping.set()

    def _longer(self, request: CompletionRequest, cut: Completion, stage: str, record: str) -> Completion:
        """The answer with twice as many tokens; the cut one if the endpoint does not allow as many."""
        try:
            found = self._answer(replace(request, max_tokens=2 * request.max_tokens), stage, record)
        except RejectedRequestError:
            return replace(cut, attempts=cut.attempts + 1)
        return replace(found, attempts=cut.attempts + found.attempts)

    def _answer(self, request: CompletionRequest, stage: str, record: str) -> Completion:
        """The answer after as many tries as it takes."""
        attempts, failures = 0, 0
        while True:
            mode, attempts = self._mode(request), attempts + 1
            try:
                completion = self._try(request, mode, stage, record)
            except _Again as error:
                failures += 1
                self._check_wait(error)
                if failures == self.settings.tries:
                    if error.busy:
                        self.rate.pause(error.wait_s or 0.0)  # of the others
                    where = f"{request.model} at {self.settings.url}"
                    problem = TransientError(f"{where} gave no answer in {failures} tries: {error}.")
                    raise self._unanswered(problem, request.model) from None
                self._wait_after(error, failures)
            except RejectedRequestError as error:
                if mode == "none" or not self._loosen(request.model, mode, str(error)):
                    raise self._unanswered(error, request.model) from None
            else:
                with self._lock:
                    self._failures = 0
                return replace(completion, attempts=attempts)

    def _unanswered(self, error: AnnotationError, model: str) -> AnnotationError:
        """The error of a request without an answer; another one if there have been too many of them in a row."""
        # Videos whose requests are refused come first again in each run: counted for ever, they would block all
        # others. An unusable reply was charged, so that it always counts
        refused = isinstance(error, RejectedRequestError) and not isinstance(error, UnusableReplyError)
        if refused and self.costs.has_answered(model):
            return error
        with self._lock:
            self._failures += 1
            failures = self._failures
        if failures < self.settings.most_failures:
            return error
        return UnansweredError(
            f"None of the last {failures} requests was answered, and most_failures allows no more. The last one: "
            f"{error} What is finished is saved."
        )

    def _check_wait(self, error: _Again) -> None:
        """[`PermanentError`] if the endpoint asks for a longer wait than is allowed."""
        if error.wait_s is not None and error.wait_s > self.settings.longest_wait_s:
            raise PermanentError(
                f"{self.settings.url} asks to wait {error.wait_s:,.0f} seconds, more than the "
                f"{self.settings.longest_wait_s:,.0f} that are allowed. What is finished is saved; run again then."
            )

    def _wait_after(self, error: _Again, number: int) -> None:
        """Waits before the next try. An overloaded endpoint is left alone by all threads."""
        planned = min(self.settings.backoff_s * 2 ** (number - 1), LONGEST_BACKOFF_S)
        wait_s = max(error.wait_s or 0.0, planned * (1 + self._jitter()) / 2)
        if error.busy:
            self.rate.pause(wait_s)
        else:
            self._sleep(wait_s)

    def _try(self, request: CompletionRequest, mode: str, stage: str, record: str) -> Completion:
        """One attempt, counted in the costs."""
        body = request_body(request, mode, self.settings)
        estimate = self._estimate(request)
        with self.concurrency.slot() as slot:
            self._wait_for_start(estimate)
            self._raise_if_stopped()
            reserved = self.costs.reserve(request.model, estimate)
            try:
                self._raise_if_stopped()  # the reservation may have waited for others
            except StopError:
                self.costs.release(request.model, reserved)
                raise
            started = self.clock()
            # Unless it is known better, the whole answer was made and charged, and was lost on its way
            outcome, usage, estimated = "no reply", estimate, True
            try:
                completion = self._post(body)
                outcome = _outcome(completion)
                estimated = completion.usage is None
                usage = completion.usage or replace(estimate, completion=_tokens(completion.text))
                self._learn(request, usage)
            except _Again as error:
                outcome = error.outcome
                if outcome.isdigit() or outcome == NOT_SENT:  # nothing was answered, and nothing is charged
                    usage, estimated = Usage(), False
                if error.busy:
                    self.concurrency.overloaded(slot)
                raise
            except UnusableReplyError as error:  # it was made, and charged
                outcome = type(error).__name__
                raise
            except AnnotationError as error:
                outcome, usage, estimated = type(error).__name__, Usage(), False
                raise
            finally:
                seconds = self.clock() - started
                spent = Spent(stage, record, request.model, outcome, usage, estimated, seconds)
                try:
                    self.costs.settle(reserved, spent)
                except LedgerError as error:  # ends the run, but not before the paid reply is stored
                    logger.error("%s", error)
                    self.stop(error)
        self.concurrency.succeeded()
        self._check_answer(completion)
        return completion

    def _estimate(self, request: CompletionRequest) -> Usage:
        """About how many tokens a request needs at most, as far as earlier replies of its model have told."""
        estimate = estimate_tokens(request)
        with self._lock:
            return replace(estimate, prompt=math.ceil(estimate.prompt * self._factors.get(request.model, 1.0)))

    def _learn(self, request: CompletionRequest, usage: Usage) -> None:
        # Of the estimate without a factor: other replies may have raised it while this one was on its way
        ratio = usage.prompt / max(estimate_tokens(request).prompt, 1)
        with self._lock:
            self._factors[request.model] = max(self._factors.get(request.model, 1.0), ratio)

    def _wait_for_start(self, estimate: Usage) -> None:
        tokens = estimate.prompt + estimate.completion
        start = self.rate.reserve(tokens)
        while (delay := self.rate.delay(start)) > 0:
            self._raise_if_stopped()
            self._sleep(delay)
            start = self.rate.renew(start, tokens)

    def _raise_if_stopped(self) -> None:
        with self._lock:
            if self._stop_error is not None:
                raise type(self._stop_error)(str(self._stop_error))

    def _post(self, body: dict) -> Completion:
        """The answer to one HTTP request. No error that leaves this method holds the key."""
        try:
            key = read_api_key(self.settings.key_variable)
        except ValueError as error:
            raise PermanentError(str(error)) from None
        try:
            reply = post_chat(base_url(self.settings.url), key, body, self.settings.timeout_s)
        except UnicodeEncodeError:
            raise RejectedRequestError("The request contains surrogates, which are not Unicode characters.") from None
        except NoReplyError as error:
            problem = without_key(str(error), key)
            if not error.temporary:
                raise UnusableReplyError(f"{self.settings.url} gave no usable reply: {problem}.") from None
            raise _Again(problem, "no reply" if error.sent else NOT_SENT) from None
        if reply.status != 200:
            return self._refused(reply, key)
        try:
            completion = read_completion(reply.body, self.settings.stream)
        except BrokenReplyError as error:
            raise _Again(f"its reply {error}: {shown_body(reply.body, key)!r}", "no reply") from None
        # The text stays as it is: a local server's key, such as "local", is a word like others
        refusal = None if completion.refusal is None else without_key(completion.refusal, key)
        return replace(completion, refusal=refusal)

    def _check_answer(self, completion: Completion) -> None:
        """[`UnusableReplyError`] for an answer that contains the API key, which must not be stored."""
        key = read_api_key(self.settings.key_variable)
        if key is not None and len(key) >= SHORTEST_SECRET and without_key(completion.text, key) != completion.text:
            raise UnusableReplyError(
                f"The answer from {self.settings.url} contains the API key in {self.settings.key_variable}; it is not "
                "stored."
            )

    def _refused(self, reply: EndpointReply, key: str | None) -> Completion:
        """What a status other than 200 means: an error, or a refusal by a content filter."""
        codes, status = _error_codes(reply.body), reply.status
        shown = f"HTTP {status}: {shown_body(reply.body, key)}"
        if codes & NO_QUOTA:
            raise PermanentError(f"The quota at {self.settings.url} is used up ({shown}). What is finished is saved.")
        if status in TEMPORARY or status >= 500:
            wait_s = retry_after_s(reply.headers.get("retry-after"))
            raise _Again(shown, str(status), wait_s, busy=status == 429 or wait_s is not None)
        if "content_filter" in codes:
            # The prompt was read, and is usually charged: it is estimated
            return Completion("", "content_filter", "content_filter", None, 0.0, 0, "")
        if status in ABOUT_THIS_REQUEST and not codes & NO_MODEL:
            raise RejectedRequestError(f"{self.settings.url} refused the request: {shown}")
        hint = "Redirects are not followed, because the request carries the API key. " if status < 400 else ""
        raise PermanentError(
            f"{self.settings.url} refuses all requests ({shown}). {hint}Check the URL, the model and the key in "
            f"{self.settings.key_variable}. What is finished is saved."
        )

    def _mode(self, request: CompletionRequest) -> str:
        """How the schema of a request is sent."""
        with self._lock:
            return (
                "none" if request.schema is None else self._modes.get(request.model, self.settings.structured_output)
            )

    def _loosen(self, model: str, mode: str, problem: str) -> bool:
        """Goes on to the next form of structured output if the endpoint refused this one for its form."""
        words = ("response_format", "json_schema", "json_object", "schema", "structured", "guided")
        if not any(word in problem.lower() for word in words):
            return False
        following = STRUCTURED_OUTPUT[STRUCTURED_OUTPUT.index(mode) + 1]
        with self._lock:
            if self._modes.get(model, self.settings.structured_output) == mode:
                self._modes[model] = following
                logger.warning("%s does not support %s output, asking for %s: %s", model, mode, following, problem)
        return True


def _check_settings(settings: EndpointSettings) -> None:
    """[`AnnotationError`] for a setting that is out of range."""
    if settings.max_tokens_name not in MAX_TOKENS_NAMES:
        raise AnnotationError(
            f"max_tokens_name is {settings.max_tokens_name!r}, expected one of {', '.join(MAX_TOKENS_NAMES)}."
        )
    if settings.structured_output not in STRUCTURED_OUTPUT:
        raise AnnotationError(
            f"structured_output is {settings.structured_output!r}, expected one of {', '.join(STRUCTURED_OUTPUT)}."
        )
    for name in ("concurrency", "tries", "most_failures"):
        if getattr(settings, name) < 1:
            raise AnnotationError(f"{name} is {getattr(settings, name)}, expected at least 1.")
    for name in ("requests_per_minute", "tokens_per_minute", "backoff_s", "longest_wait_s", "timeout_s"):
        value = getattr(settings, name)
        if value is not None and not 0 < value < float("inf"):
            raise AnnotationError(f"{name} is {value}, expected a number above 0.")


def request_body(request: CompletionRequest, mode: str, settings: EndpointSettings) -> dict[str, Any]:
    """The JSON body of a request, with its schema in one of the forms of `STRUCTURED_OUTPUT`."""
    body: dict[str, Any] = {"model": request.model, "messages": request.messages}
    body[settings.max_tokens_name] = request.max_tokens
    chosen = {"temperature": request.temperature, "seed": request.seed}
    body |= {name: value for name, value in chosen.items() if value is not None}
    if mode == "json_schema":
        name = (request.schema or {}).get("title", "answer")
        schema = {"name": name, "schema": request.schema, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif mode == "json_object":
        body["response_format"] = {"type": "json_object"}
    if settings.stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return body


def estimate_tokens(request: CompletionRequest) -> Usage:
    """About how many tokens a request needs at most. Pictures count the same whatever their size."""
    tokens = _tokens(json.dumps(request.schema)) if request.schema is not None else 0
    for message in request.messages:
        parts = message["content"]
        for part in [{"type": "text", "text": parts}] if isinstance(parts, str) else parts:
            tokens += _tokens(part["text"]) if part["type"] == "text" else TOKENS_PER_PICTURE
    return Usage(prompt=tokens, completion=request.max_tokens)


def _tokens(text: str) -> int:
    return -(-len(text.encode(errors="replace")) // CHARACTERS_PER_TOKEN)


def _is_cut(completion: Completion) -> bool:
    return completion.finish_reason == "length" and completion.refusal is None


def _outcome(completion: Completion) -> str:
    if completion.refusal is not None:
        return "refusal"
    return "length" if completion.finish_reason == "length" else "answer"


def _error_codes(body: bytes) -> set[str]:
    """The code and the type of an OpenAI error object; empty if the body is none."""
    try:
        error = json.loads(body)["error"]
        found = [error.get("code"), error.get("type")]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return set()
    return {value for value in found if isinstance(value, str)}
