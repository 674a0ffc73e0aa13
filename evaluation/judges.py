"""
Judges: language models that compare texts, for CLAIR. A judge takes chat messages and gives the text of an answer.

An OpenAI-compatible endpoint ([`EndpointJudge`]) or a Transformers model in a folder (`local_judge.py`), behind a
cache on the disk ([`CachedJudge`]); [`open_judge`] makes one of what the command line says. A judge that cannot answer
raises [`JudgeError`], an `OSError`: the score is then missing, with that reason, and not 0. One that works but refuses
a text raises `RefusedTextError`: only the score of that text is missing.
"""

import hashlib
import json
import os
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from sama.metrics.clair import RefusedTextError, parse_clair


Messages = list[dict]

CHAT_PATH = "/chat/completions"
TOO_MANY_REQUESTS = 429
# Refusals of whatever is asked: no key, no money, no such model, a proxy; other 4xx are about the text
NOT_ABOUT_THE_TEXT = {401, 402, 403, 404, 405, 407, 408}
LONGEST_WAIT_S = 120.0
SHOWN_CHARACTERS = 300  # of a body that is no answer


class JudgeError(OSError):
    """A judge that gave no answer; says which one and why."""


class _TryAgain(Exception):
    """A failure that may pass; with the seconds that the server asks to wait, if it does."""

    def __init__(self, problem: str, wait_s: float | None = None):
        super().__init__(problem)
        self.wait_s = wait_s


@dataclass(frozen=True)
class JudgeSettings:
    """
    How a judge answers and how it is asked.

    Args:
        temperature (`float`): 0: the likeliest answer, so that a run can be repeated. The release asks with 0.5.
        max_tokens (`int`): Of the answer; the release's number.
        key_variable (`str`): Environment variable that holds the endpoint's key; without it none is sent.
        requests_per_minute (`float`, *optional*): Most requests of this process.
        tries (`int`): Requests for one answer, where the endpoint is down, busy (429) or broken (5xx, no JSON).
        backoff_s (`float`): Seconds before the second try, twice as many before each further one. A `Retry-After` of
            the server counts instead, up to two minutes.
        timeout_s (`float`): Of one request.
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
        url (`str`): Such as `http://localhost:8000/v1`; `/chat/completions` is added where it is not there.
        model (`str`): The model's name there.
        settings ([`JudgeSettings`], *optional*): How it is asked.

    Raises:
        `ValueError`: The address is not one of http or https.
    """

    def __init__(self, url: str, model: str, settings: JudgeSettings | None = None):
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
            raise ValueError(f"The judge's address is {url!r}, expected one such as http://localhost:8000/v1.")
        self.url = url if url.rstrip("/").endswith(CHAT_PATH) else url.rstrip("/") + CHAT_PATH
        self.model, self.settings = model, settings or JudgeSettings()
        self._lock, self._next_start = threading.Lock(), 0.0

    @property
    def identity(self) -> dict:
        """What the answers depend on; in the results and in the names of cached answers. The key is not in it."""
        chosen = {"temperature": self.settings.temperature, "max_tokens": self.settings.max_tokens}
        return {"url": self.url, "model": self.model, **chosen}

    def __call__(self, messages: Messages) -> str:
        """The answer. Raises [`JudgeError`] if there is none after all tries, `RefusedTextError` for this text."""
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
            message = f"{self.model} at {self.url} refuses: {problem}"
            kind = RefusedTextError if 400 <= error.code and error.code not in NOT_ABOUT_THE_TEXT else JudgeError
            raise kind(message) from error
        except OSError as error:  # not reached, cut off, or timed out
            raise _TryAgain(str(error)) from error


def _content(body: bytes) -> str:
    """The text of a chat completion."""
    try:
        content = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise _TryAgain(f"its answer is no chat completion: {_shown(body)!r}") from error
    return content or ""  # null where the model refuses to answer


def _shown(body: bytes) -> str:
    return body[:SHOWN_CHARACTERS].decode(errors="replace").strip()


def _seconds(header: str | None) -> float | None:
    """Seconds of a `Retry-After`; one that holds a date is left aside."""
    try:
        return None if header is None else max(0.0, float(header))
    except ValueError:
        return None


class CachedJudge:
    """
    A judge whose answers are kept on the disk, one file each, named by what was asked of whom. The same question is
    not asked again, in this run or in a later one, unless the answer holds no score ([`parse_clair`]).

    Several processes may share a folder: a file appears whole or not at all.

    Args:
        judge: Any judge with an `identity`, what its answers depend on, ready for JSON.
        folder (`str` or `Path`): Made if it is missing.
    """

    def __init__(self, judge, folder: str | Path):
        self.judge, self.folder = judge, Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def identity(self) -> dict:
        """That of the judge."""
        return self.judge.identity

    def path(self, messages: Messages) -> Path:
        """The file of an answer."""
        asked = json.dumps({"judge": self.identity, "messages": messages}, sort_keys=True)
        return self.folder / f"{hashlib.sha256(asked.encode()).hexdigest()}.json"

    def __call__(self, messages: Messages) -> str:
        """The answer, from the disk if it is there."""
        path = self.path(messages)
        kept = _kept(path)
        if kept is not None:
            return kept
        answer = self.judge(messages)
        if parse_clair(answer) is None:
            return answer
        content = {"judge": self.identity, "messages": messages, "answer": answer}
        # Beside its place, so that moving it there is one step of the file system
        with tempfile.NamedTemporaryFile("w", dir=self.folder, suffix=".part", delete=False, encoding="utf-8") as part:
            json.dump(content, part, ensure_ascii=False, indent=1)
        os.replace(part.name, path)
        return answer


def _kept(path: Path) -> str | None:
    """A kept answer; `None` without one, also where it holds no score or the file was damaged from outside."""
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
    The judge that the command line names; `None` if it names none.

    Args:
        url (`str`, *optional*): Address of an endpoint; `model` is then the model's name there.
        model (`str`, *optional*): Without `url` the folder of a Transformers model.
        cache (`str` or `Path`, *optional*): Folder of the answers.
        settings ([`JudgeSettings`], *optional*): How it is asked.

    Raises:
        `ValueError`: An address without a model's name. [`JudgeError`]: no model in the folder.
    """
    if url is None and model is None:
        return None
    if model is None:
        raise ValueError(f"The judge at {url} needs the name of its model: --judge_model.")
    if url is None:
        from .local_judge import LocalJudge  # torch and transformers are needed for it alone

        judge = LocalJudge(model, settings)
    else:
        judge = EndpointJudge(url, model, settings)
    return judge if cache is None else CachedJudge(judge, cache)
