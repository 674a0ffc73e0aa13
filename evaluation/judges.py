"""
Judges: language models that compare texts, for CLAIR. A judge takes chat messages and returns the text of an answer.

A judge is an OpenAI-compatible endpoint ([`EndpointJudge`]) or a local Transformers model (`local_judge.py`), usually
behind a cache on disk ([`CachedJudge`]). A judge that cannot be reached raises [`JudgeError`], an `OSError`: the score
is then missing, with the reason, and not 0. A judge that rejects a text raises `RefusedTextError`: only the score of
that text is missing.
"""

import hashlib
import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from sama.data.files import write_text_atomically
from sama.metrics.clair import RefusedTextError, parse_clair


Messages = list[dict]

CHAT_PATH = "/chat/completions"
TOO_MANY_REQUESTS = 429
# Client errors that do not depend on the text (key, quota, model, proxy); all other 4xx are about the text
NOT_ABOUT_THE_TEXT = {401, 402, 403, 404, 405, 407, 408}
LONGEST_WAIT_S = 120.0
SHOWN_CHARACTERS = 300  # of an invalid response, in error messages


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
        timeout_s (`float`): Timeout of one request in seconds.
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
        `ValueError`: The URL is not an http or https URL.
    """

    def __init__(self, url: str, model: str, settings: JudgeSettings | None = None):
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
            raise ValueError(f"The URL of the judge is {url!r}, expected one such as http://localhost:8000/v1.")
        self.url = url if url.rstrip("/").endswith(CHAT_PATH) else url.rstrip("/") + CHAT_PATH
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
        chosen = {"temperature": self.settings.temperature, "max_tokens": self.settings.max_tokens}
        body = json.dumps({"model": self.model, "messages": messages, **chosen}).encode()
        headers = {"Content-Type": "application/json"}
        if os.environ.get(self.settings.key_variable):
            headers["Authorization"] = f"Bearer {os.environ[self.settings.key_variable]}"
        request = urllib.request.Request(self.url, data=body, headers=headers, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=self.settings.timeout_s) as response:
                return _content(response.read())
        except urllib.error.HTTPError as error:
            problem = f"HTTP {error.code}: {_shown(error.read())}"
            if error.code == TOO_MANY_REQUESTS or error.code >= 500:
                raise _TryAgain(problem, _seconds(error.headers.get("Retry-After"))) from error
            message = f"{self.model} at {self.url} refused the request: {problem}"
            kind = RefusedTextError if 400 <= error.code and error.code not in NOT_ABOUT_THE_TEXT else JudgeError
            raise kind(message) from error
        except OSError as error:  # unreachable, connection lost, or timed out
            raise _TryAgain(str(error)) from error


def _content(body: bytes) -> str:
    """The text of a chat completion."""
    try:
        content = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise _TryAgain(f"its response is not a chat completion: {_shown(body)!r}") from error
    return content or ""  # null if the model refuses to answer


def _shown(body: bytes) -> str:
    return body[:SHOWN_CHARACTERS].decode(errors="replace").strip()


def _seconds(header: str | None) -> float | None:
    """Seconds of a `Retry-After` header; a header with a date is ignored."""
    try:
        return None if header is None else max(0.0, float(header))
    except ValueError:
        return None


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
    except (ValueError, KeyError, TypeError):
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
