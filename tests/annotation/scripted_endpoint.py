"""
An OpenAI-compatible endpoint on the loopback address for tests: a real HTTP server whose answers come from a function,
and which is overloaded, broken or wrong when the test says so.

    with scripted_endpoint(lambda request: '{"answer": "a dog"}', by_call({2: "503"})) as server:
        ask(server.url)
    assert [call.fault for call in server.calls] == [None, "503"]
"""

import base64
import hashlib
import io
import json
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image


KEY = "sk-scripted-0123456789"
TOKENS_PER_PICTURE = 256

# name -> (status, headers, error code)
STATUS_FAULTS: dict[str, tuple[int, dict[str, str], str]] = {
    "429": (429, {}, "rate_limit_exceeded"),
    "429 seconds": (429, {"Retry-After": "7"}, "rate_limit_exceeded"),
    "429 zero": (429, {"Retry-After": "0"}, "rate_limit_exceeded"),
    "429 date": (429, {"Retry-After": "date"}, "rate_limit_exceeded"),  # an hour after the reply
    "429 long": (429, {"Retry-After": "86400"}, "rate_limit_exceeded"),
    "insufficient_quota": (429, {}, "insufficient_quota"),
    "400": (400, {}, "invalid_value"),
    "401": (401, {}, "invalid_api_key"),
    "403": (403, {}, "unsupported_country"),
    "404": (404, {}, "model_not_found"),
    "500": (500, {}, "server_error"),
    "503": (503, {}, "overloaded"),
    "503 seconds": (503, {"Retry-After": "7"}, "overloaded"),
    "content_filter 400": (400, {}, "content_filter"),
}
# Of the connection. "end": a stream that ends properly, but before the answer does
CONNECTION_FAULTS = ("reset", "stall", "cut", "end", "no JSON")
# Of the completion around the text
REPLY_FAULTS = ("no usage", "length", "refusal", "content_filter", "empty", "null", "surrogates")


# What a model writes wrongly. Each function takes the right text and returns the wrong one.


def _in_answers(change: Callable[[str], str]) -> Callable[[str], str]:
    """Applies `change` to the first answer of a conversation, or to the whole text if there is none."""

    def apply(text: str) -> str:
        value = json.loads(text)
        turn = next(_turns(value), None)
        if turn is None:
            return json.dumps(_first_string(value, change), ensure_ascii=False)
        turn["answer"] = change(turn["answer"])
        return json.dumps(value, ensure_ascii=False)

    return apply


def _turns(value: Any) -> Iterator[dict]:
    """The question-answer pairs in a JSON value."""
    if isinstance(value, dict) and "answer" in value:
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _turns(part)


def _first_string(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict) and value:
        name = next(iter(value))
        return value | {name: _first_string(value[name], change)}
    return [_first_string(value[0], change), *value[1:]] if isinstance(value, list) and value else value


def _duplicate_keys(text: str) -> str:
    name, value = next(iter(json.loads(text).items()))
    return "{" + json.dumps(name) + ": " + json.dumps(value) + ", " + text.strip()[1:]


def _repeat_turn(text: str) -> str:
    value = json.loads(text)
    turns = next(part for part in value.values() if isinstance(part, list))
    turns.append(turns[0])
    return json.dumps(value, ensure_ascii=False)


def _drop_turns(text: str) -> str:
    value = json.loads(text)
    del next(part for part in value.values() if isinstance(part, list))[1:]
    return json.dumps(value, ensure_ascii=False)


def _with_evidence(first: int, last: int) -> Callable[[str], str]:
    def apply(text: str) -> str:
        value = json.loads(text)
        next(_turns(value))["evidence"][0].update(first=first, last=last)
        return json.dumps(value, ensure_ascii=False)

    return apply


TEXT_FAULTS: dict[str, Callable[[str], str]] = {
    "fence": lambda text: f"```json\n{text}\n```",
    "prose": lambda text: f"Here is the JSON you asked for:\n\n{text}\n\nLet me know if I can help further.",
    "malformed": lambda text: text.rstrip()[:-1] + ",,",
    "truncated": lambda text: text[: len(text) // 2],
    "two objects": lambda text: f"{text}\n{text}",
    "duplicate keys": _duplicate_keys,
    "NaN": lambda text: text.rstrip()[:-1] + ', "score": NaN}',
    "unknown tag": _in_answers(lambda answer: re.sub(r"<obj\d+>", "<obj99>", answer, count=1)),
    "unbalanced": _in_answers(lambda answer: answer.replace("</p>", "", 1)),
    "nested": _in_answers(lambda answer: answer.replace("<p>", "<p> <p>", 1).replace("</p>", "</p> </p>", 1)),
    "brackets": _in_answers(lambda answer: f"{answer} ]}} {{[ \N{DOG FACE}"),
    "leak": _in_answers(lambda answer: f"{answer} It is marked with a red bounding box as obj1."),
    "duplicate": _repeat_turn,
    "count": _drop_turns,
    "interval": _with_evidence(5, 2),
}  # fmt: skip
FAULTS = (*STATUS_FAULTS, *CONNECTION_FAULTS, *REPLY_FAULTS, *TEXT_FAULTS)
Answer = Callable[[dict], str | dict[str, Any]]
Faults = Callable[
    [int, dict, int], str | None
]  # number of the call from 1, its request, how often it was asked before


def by_call(faults: Mapping[int, str]) -> Faults:
    """The fault of the n-th call, from 1."""
    assert set(faults.values()) <= set(FAULTS)
    return lambda number, request, repetition: faults.get(number)


def always(fault: str) -> Faults:
    """The same fault at every call."""
    assert fault in FAULTS
    return lambda number, request, repetition: fault


def by_request(share: float, faults: Sequence[str], seed: int = 0) -> Faults:
    """The same fault whenever one of a share of the requests is asked, chosen by its hash."""
    assert set(faults) <= set(FAULTS)
    return lambda number, request, repetition: _drawn(share, faults, [seed, request])


def by_rate(share: float, faults: Sequence[str], seed: int = 0) -> Faults:
    """
    A fault at a share of the calls. It depends on the request and on how often it was asked before, so that it does
    not depend on the order in which threads ask.
    """
    assert set(faults) <= set(FAULTS)
    return lambda number, request, repetition: _drawn(share, faults, [seed, request, repetition])


def _drawn(share: float, faults: Sequence[str], chance: list) -> str | None:
    number = int.from_bytes(hashlib.sha256(json.dumps(chance, sort_keys=True).encode()).digest()[:8])
    return faults[number % len(faults)] if number / 2**64 < share else None


@dataclass(frozen=True)
class Call:
    """One request: its number from 1, its JSON body, fault, status (0: none was sent) and authorization."""

    number: int
    request: dict
    fault: str | None
    status: int
    authorization: str | None


class ScriptedEndpoint:
    """
    What a test sees of the server. Times are the server's own; a test compares numbers of calls, not times.

    Args:
        answer (`Callable`): From a request, the JSON body of a chat completion request, to the text of its answer; or
            to a dict with `content` and any of `finish_reason` and `refusal`.
        faults (`Callable`, *optional*): [`by_call`], [`always`], [`by_request`] or [`by_rate`].
        models (`Sequence[str]`): Names it knows.
        formats (`Sequence[str]`): Types of `response_format` that it supports.
    """

    def __init__(self, answer: Answer, faults: Faults | None, models: Sequence[str], formats: Sequence[str]):
        self.answer, self.models, self.formats = answer, models, formats
        self.faults: Faults = faults or (lambda number, request, repetition: None)
        self.calls: list[Call] = []
        self.most_at_a_time = self.at_a_time = 0
        self._seen: Counter[str] = Counter()
        self._number, self._lock = 0, threading.Lock()
        self.url = ""  # set when the server runs

    @property
    def requests(self) -> list[dict]:
        """The bodies of all calls."""
        return [call.request for call in self.calls]

    def begin(self, request: dict) -> tuple[int, str | None]:
        """Number and fault of a call."""
        with self._lock:
            self._number += 1
            body = json.dumps(request, sort_keys=True)
            repetition = self._seen[body]
            self._seen[body] += 1
            self.at_a_time += 1
            self.most_at_a_time = max(self.most_at_a_time, self.at_a_time)
            return self._number, self.faults(self._number, request, repetition)

    def end(self, call: Call) -> None:
        with self._lock:
            self.at_a_time -= 1
            self.calls.append(call)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    endpoint: ScriptedEndpoint
    call: Call | None = None  # the call being answered

    def log_message(self, *arguments) -> None:
        pass

    def do_GET(self) -> None:
        if self.path != "/v1/models":
            return self.send_fault(404, {}, "not_found")
        models = [{"id": name, "object": "model"} for name in self.endpoint.models]
        self.send_json(200, {"object": "list", "data": models})

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        number, fault = self.endpoint.begin(request)
        self.call = Call(number, request, fault, 0, self.headers["Authorization"])
        try:
            self.reply(request, fault)
        except OSError:  # the client hung up
            self.close_connection = True
        finally:
            self.end_call(0)

    def end_call(self, status: int) -> None:
        """Counts the call, once, before its reply is sent: whoever has the reply sees the call counted."""
        call, self.call = self.call, None
        if call is not None:
            self.endpoint.end(replace(call, status=status))

    def reply(self, request: dict, fault: str | None) -> None:
        if self.path != "/v1/chat/completions":
            return self.send_fault(404, {}, "not_found")
        if self.headers["Authorization"] != f"Bearer {KEY}":
            return self.send_fault(401, {}, "invalid_api_key")
        if fault in STATUS_FAULTS:
            return self.send_fault(*STATUS_FAULTS[fault])
        if fault in ("reset", "stall"):
            return self.break_connection(fault)
        if fault == "no JSON":
            return self.send_body(200, "text/html", b"<html>Bad gateway</html>")
        if problem := self.problem(request):
            return self.send_fault(*problem)
        completion = make_completion(request, self.endpoint.answer(request), fault)
        if request.get("stream"):
            self.send_stream(completion, request, fault)
        elif fault in ("cut", "end"):
            body = json.dumps(completion).encode()
            self.send_body(200, "application/json", body, sent=len(body) // 2)
        else:
            self.send_json(200, completion)

    def problem(self, request: dict) -> tuple[int, dict, str] | None:
        """What a real endpoint refuses."""
        if request["model"] not in self.endpoint.models:
            return 404, {}, "model_not_found"
        wanted = request.get("response_format", {"type": "text"})["type"]
        if wanted not in ("text", *self.endpoint.formats):
            return 400, {}, f"response_format {wanted} is not supported"
        parts = [part for message in request["messages"] for part in message["content"] if isinstance(part, dict)]
        for part in parts:
            if part["type"] == "image_url" and not _is_picture(part["image_url"]["url"]):
                return 400, {}, "invalid_image"
        return None

    def break_connection(self, fault: str) -> None:
        if fault == "stall":
            self.connection.settimeout(60)
            self.connection.recv(1)  # until the client hangs up
        else:  # without lingering, closing sends a reset; the socket closes when its files are closed, too
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            for part in (self.rfile, self.wfile, self.connection):
                part.close()
        self.close_connection = True

    def send_fault(self, status: int, headers: Mapping[str, str], code: str) -> None:
        headers = dict(headers)
        if headers.get("Retry-After") == "date":
            headers["Retry-After"] = formatdate(time.time() + 3600, usegmt=True)
        message = f"Error {code} for the key {self.headers['Authorization']}."  # as some endpoints quote it
        self.send_json(status, {"error": {"message": message, "type": code, "code": code}}, headers)

    def send_json(self, status: int, value: Any, headers: Mapping[str, str] | None = None) -> None:
        self.send_body(status, "application/json", json.dumps(value).encode(), headers)

    def send_body(self, status: int, kind: str, body: bytes, headers=None, sent: int | None = None) -> None:
        self.end_call(status)
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[:sent])
        self.close_connection = self.close_connection or sent is not None

    def send_stream(self, completion: dict, request: dict, fault: str | None) -> None:
        self.end_call(200)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        events = [f"data: {json.dumps(chunk)}\n\n".encode() for chunk in stream_chunks(completion, request)]
        events.append(b"data: [DONE]\n\n")
        if fault in ("cut", "end"):
            events = events[: len(events) // 2]
        for event in events:
            self.wfile.write(f"{len(event):x}\r\n".encode() + event + b"\r\n")
        if fault == "cut":
            self.close_connection = True
        else:
            self.wfile.write(b"0\r\n\r\n")


def _is_picture(url: str) -> bool:
    try:
        header, _, data = url.partition(",")
        Image.open(io.BytesIO(base64.b64decode(data, validate=True))).verify()
        return header.startswith("data:image/") and header.endswith(";base64")
    except (ValueError, OSError, SyntaxError):  # SyntaxError: of a broken PNG
        return False


def make_completion(request: dict, answer: str | dict[str, Any], fault: str | None) -> dict:
    """The body of a reply without a stream."""
    fields = {"content": answer} if isinstance(answer, str) else dict(answer)
    reason, text = fields.pop("finish_reason", "stop"), fields["content"] or ""
    message: dict[str, Any] = {"role": "assistant", **fields}
    if fault in TEXT_FAULTS:
        message["content"] = TEXT_FAULTS[fault](text)
    elif fault == "length":
        message["content"], reason = text[: len(text) // 2], "length"
    elif fault == "refusal":
        message |= {"content": None, "refusal": "I cannot describe this person."}
    elif fault == "content_filter":
        message["content"], reason = None, "content_filter"
    elif fault in ("empty", "null"):
        message["content"] = "" if fault == "empty" else None
    elif fault == "surrogates":
        message["content"] = f"{text} \ud800"
    completion = {"id": "1", "object": "chat.completion", "model": f"{request['model']}-2026", "choices": [
        {"index": 0, "message": message, "finish_reason": reason}]}  # fmt: skip
    return (
        completion if fault == "no usage" else completion | {"usage": count_usage(request, message["content"] or "")}
    )


def count_usage(request: dict, text: str) -> dict:
    """Four characters are a token, and so many are a picture. The system message, if any, was in the cache."""
    tokens = [0, 0]
    for message in request["messages"]:
        parts = message["content"]
        for part in [{"type": "text", "text": parts}] if isinstance(parts, str) else parts:
            number = len(part["text"]) // 4 if part["type"] == "text" else TOKENS_PER_PICTURE
            tokens[message["role"] == "system"] += number
    usage: dict[str, Any] = {"prompt_tokens": sum(tokens), "completion_tokens": len(text) // 4}
    usage["total_tokens"] = sum(usage.values())
    return usage | {"prompt_tokens_details": {"cached_tokens": tokens[1]}}


def stream_chunks(completion: dict, request: dict) -> Iterator[dict]:
    """The same reply as the events of a stream."""
    head = {"id": "1", "object": "chat.completion.chunk", "model": completion["model"]}
    choice = completion["choices"][0]
    message = choice["message"]
    text = message["content"] or ""
    deltas = [{"role": "assistant"}, *({"content": text[at : at + 20]} for at in range(0, len(text), 20))]
    deltas += [{"refusal": message["refusal"]}] if "refusal" in message else []
    for delta in deltas:
        yield head | {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
    yield head | {"choices": [{"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]}]}
    if request.get("stream_options", {}).get("include_usage") and "usage" in completion:
        yield head | {"choices": [], "usage": completion["usage"]}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request, client_address) -> None:
        """A connection that a client or a fault broke is no error of the test."""


@contextmanager
def scripted_endpoint(
    answer: Answer,
    faults: Faults | None = None,
    models: Sequence[str] = ("writer", "verifier"),
    formats: Sequence[str] = ("json_schema", "json_object"),
) -> Iterator[ScriptedEndpoint]:
    """Serves until the block ends; see [`ScriptedEndpoint`]. Requests need the key `KEY`."""
    endpoint = ScriptedEndpoint(answer, faults, models, formats)
    handler = type("Handler", (_Handler,), {"endpoint": endpoint})
    with _Server(("127.0.0.1", 0), handler) as server:
        endpoint.url = f"http://127.0.0.1:{server.server_port}/v1"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield endpoint
        finally:
            server.shutdown()
            thread.join(timeout=30)
