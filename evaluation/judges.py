"""
Judges: language models that compare texts, for CLAIR. A judge takes chat messages and returns the text of an answer.

A judge is an OpenAI-compatible endpoint ([`EndpointJudge`]) or a local Transformers model (`local_judge.py`), usually
behind a cache on disk ([`CachedJudge`]). A judge that cannot be reached raises [`JudgeError`], an `OSError`: the score
is then missing, with the reason, and not 0. A judge that rejects a text raises `RefusedTextError`: only the score of
that text is missing.
"""

import hashlib
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sama.data.files import write_text_atomically
from sama.metrics.clair import RefusedTextError, parse_clair

from .endpoint_text import (
    CHAT_PATH,
    base_url,
    check_url,
    has_surrogates,
    read_api_key,
    retry_after_s,
    shown_body,
    without_key,
)


Messages = list[dict]

TOO_MANY_REQUESTS = 429
# Client errors that do not depend on the text (key, quota, model, proxy); all other 4xx are about the text
NOT_ABOUT_THE_TEXT = {401, 402, 403, 404, 405, 407, 408}
LONGEST_WAIT_S = 120.0


class JudgeError(OSError):
    """The judge gave no answer; the message names the judge and the reason."""


class _TryAgain(Exception):
    """A temporary failure; `wait_s` is the delay that the server asks for, in seconds."""

    def __init__(self, problem: str, wait_s: float | None = None):
        super().__init__(problem)
        self.wait_s = wait_s


@dataclass(frozen=True)
class JudgeSettings:
    """
    Generation and request settings of a judge.

    Args:
        temperature (`float`): 0 for reproducible answers. The published evaluation uses 0.5.
        max_tokens (`int`): Maximum length of an answer, as in the published evaluation.
        key_variable (`str`): Environment variable with the API key; no key is sent if it is not set.
        requests_per_minute (`float`, *optional*): Rate limit of this process.
        tries (`int`): Maximum number of requests for one answer, if the endpoint is unreachable, busy (429) or broken
            (5xx, invalid JSON).
        backoff_s (`float`): Seconds before the second try; doubled before each further one. A `Retry-After` header
            takes precedence, up to two minutes.
        timeout_s (`float`): Seconds for one whole request, from the connection to the last byte of the reply.
    """

    temperature: float = 0.0
    max_tokens: int = 100
    key_variable: str = "OPENAI_API_KEY"
    requests_per_minute: float | None = None
    tries: int = 5
    backoff_s: float = 1.0
    timeout_s: float = 120.0


class EndpointJudge:
    """
    A model behind an OpenAI-compatible endpoint.

    Args:
        url (`str`): Such as `http://localhost:8000/v1`; `/chat/completions` is appended if necessary.
        model (`str`): Name of the model at the endpoint.
        settings ([`JudgeSettings`], *optional*): Request settings.

    Raises:
        `ValueError`: The URL is not an http or https URL, or contains a password or a query.
        [`JudgeError`]: The package `openai` is missing.
    """

    def __init__(self, url: str, model: str, settings: JudgeSettings | None = None):
        try:
            from .chat_endpoint import post_chat  # imports openai, which nothing else needs
        except ModuleNotFoundError as error:
            raise JudgeError(f"--judge_url needs the package {error.name}: pip install -e '.[eval]'.") from error
        self._post_chat = post_chat
        check_url(url, "judge")
        self.url = base_url(url) + CHAT_PATH
        self.model, self.settings = model, settings or JudgeSettings()
        self._lock, self._next_start = threading.Lock(), 0.0

    @property
    def identity(self) -> dict:
        """Everything the answers depend on; part of the results and of the cache keys. It does not contain the API
        key."""
        chosen = {"temperature": self.settings.temperature, "max_tokens": self.settings.max_tokens}
        return {"url": self.url, "model": self.model, **chosen}

    def __call__(self, messages: Messages) -> str:
        """The answer; [`JudgeError`] if all tries fail, `RefusedTextError` if the endpoint rejects this text."""
        wait_s, problem = self.settings.backoff_s, ""
        for number in range(self.settings.tries):
            if number:
                time.sleep(wait_s)
            self._wait_for_turn()
            try:
                return self._ask(messages)
            except _TryAgain as error:
                problem = str(error)
                planned = self.settings.backoff_s * 2**number
                wait_s = planned if error.wait_s is None else min(error.wait_s, LONGEST_WAIT_S)
        raise JudgeError(f"{self.model} at {self.url} gave no answer in {self.settings.tries} tries: {problem}")

    def _wait_for_turn(self) -> None:
        if self.settings.requests_per_minute is None:
            return
        with self._lock:
            start = max(self._next_start, time.monotonic())
            self._next_start = start + 60 / self.settings.requests_per_minute
        time.sleep(max(0.0, start - time.monotonic()))

    def _ask(self, messages: Messages) -> str:
        from .chat_endpoint import NoReplyError

        try:
            key = read_api_key(self.settings.key_variable)
        except ValueError as error:
            raise JudgeError(str(error)) from None
        chosen = {"temperature": self.settings.temperature, "max_tokens": self.settings.max_tokens}
        request = {"model": self.model, "messages": messages, **chosen}
        problem, temporary = None, False
        try:
            reply = self._post_chat(base_url(self.url), key, request, self.settings.timeout_s)
        except UnicodeEncodeError:
            raise RefusedTextError("the text contains surrogates, which are not Unicode characters") from None
        except NoReplyError as error:
            problem, temporary = without_key(str(error), key), error.temporary
        if problem is not None:
            raise _TryAgain(problem) if temporary else JudgeError(f"{self.model} at {self.url}: {problem}")
        if reply.status == 200:
            return without_key(_content(reply.body, key), key)
        problem = f"HTTP {reply.status}: {shown_body(reply.body, key)}"
        if reply.status == TOO_MANY_REQUESTS or reply.status >= 500:
            raise _TryAgain(problem, retry_after_s(reply.headers.get("retry-after")))
        if reply.status < 400:
            raise JudgeError(
                f"{self.model} at {self.url} gave no answer: HTTP {reply.status}. Redirects are not followed, because "
                "the request carries the API key; give the final URL."
            )
        kind = JudgeError if reply.status in NOT_ABOUT_THE_TEXT else RefusedTextError
        raise kind(f"{self.model} at {self.url} refused the request: {problem}")


def _content(body: bytes, key: str | None) -> str:
    """The text of a chat completion."""
    try:
        choice = json.loads(body)["choices"][0]
        message = choice["message"]
        content, refusal = message["content"], message.get("refusal")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        content = refusal = choice = None
    if choice is None:
        raise _TryAgain(f"its response is not a chat completion: {shown_body(body, key)!r}")
    if isinstance(refusal, str) or (content is None and choice.get("finish_reason") == "content_filter"):
        reason = refusal if isinstance(refusal, str) else "content filter"
        raise RefusedTextError(f"the judge refused the text: {shown_body(reason.encode(errors='replace'), key)}")
    if not isinstance(content, str):
        kind = "null" if content is None else type(content).__name__
        raise _TryAgain(f"its answer is {kind} where text is expected: {shown_body(body, key)!r}")
    if has_surrogates(content):
        raise _TryAgain("its answer contains surrogates, which are not Unicode characters")
    return content


class CachedJudge:
    """
    A judge whose answers are cached on disk, one file per request, named by a hash of judge and messages. Answers
    without a score ([`parse_clair`]) are not cached.

    Several processes may share a folder: files are written atomically.

    Args:
        judge: Any judge with an `identity`: everything its answers depend on, ready for JSON.
        folder (`str` or `Path`): Created if it does not exist.
    """

    def __init__(self, judge, folder: str | Path):
        self.judge, self.folder = judge, Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def identity(self) -> dict:
        """The identity of the judge."""
        return self.judge.identity

    def path(self, messages: Messages) -> Path:
        """The cache file of a request."""
        asked = json.dumps({"judge": self.identity, "messages": messages}, sort_keys=True)
        return self.folder / f"{hashlib.sha256(asked.encode()).hexdigest()}.json"

    def __call__(self, messages: Messages) -> str:
        """The answer, from the cache if possible."""
        path = self.path(messages)
        cached = _cached(path)
        if cached is not None:
            return cached
        answer = self.judge(messages)
        if parse_clair(answer) is None:
            return answer
        content = {"judge": self.identity, "messages": messages, "answer": answer}
        write_text_atomically(path, json.dumps(content, ensure_ascii=False, indent=1))
        return answer


def _cached(path: Path) -> str | None:
    """A cached answer; `None` if there is none, if it holds no score, or if the file is damaged."""
    try:
        answer = json.loads(path.read_text(encoding="utf-8"))["answer"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return answer if isinstance(answer, str) and parse_clair(answer) is not None else None


def open_judge(
    url: str | None = None,
    model: str | None = None,
    cache: str | Path | None = None,
    settings: JudgeSettings | None = None,
) -> Callable[[Messages], str] | None:
    """
    The judge for `--judge_url` and `--judge_model`; `None` without them.

    Args:
        url (`str`, *optional*): URL of an endpoint; `model` is then the name of the model there.
        model (`str`, *optional*): Without `url` the folder of a Transformers model.
        cache (`str` or `Path`, *optional*): Folder of the cached answers.
        settings ([`JudgeSettings`], *optional*): Generation and request settings.

    Raises:
        `ValueError`: A URL without the name of a model.
        [`JudgeError`]: The folder holds no model.
    """
    if url is None and model is None:
        return None
    if model is None:
        raise ValueError(f"The judge at {url} needs the name of its model: --judge_model.")
    if url is None:
        from .local_judge import LocalJudge  # imports torch and transformers

        judge = LocalJudge(model, settings)
    else:
        judge = EndpointJudge(url, model, settings)
    return judge if cache is None else CachedJudge(judge, cache)
