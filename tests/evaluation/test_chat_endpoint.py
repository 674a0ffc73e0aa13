"""Endpoints that are broken or hostile: redirects, echoed keys, slow and endless replies, answers without text."""

import asyncio
import json
import threading
import time
import traceback
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from sama import evaluate
from sama.evaluation.endpoint_text import retry_after_s
from sama.evaluation.judges import EndpointJudge, JudgeError, JudgeSettings, open_judge
from sama.metrics.clair import RefusedTextError, clair, parse_clair
from sama.metrics.values import PUBLISHED


KEY = 'sk-"secret"/key'
MESSAGES = [{"role": "user", "content": "How alike are a and b?"}]
ONCE = JudgeSettings(tries=1, timeout_s=5)
TWICE = JudgeSettings(tries=2, backoff_s=0.01, timeout_s=5)
ENDLESS = 2**40  # bytes, more than a test could wait for


def completion(text, **message) -> bytes:
    choice = {"message": {"role": "assistant", "content": text, **message}}
    return json.dumps({"choices": [choice]}).encode()


@pytest.fixture
def serve(monkeypatch):
    """A function that starts a server whose POST handler is `reply(handler)`; it records requests and bytes sent."""
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    servers = []

    def start(reply) -> ThreadingHTTPServer:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                self.rfile.read(int(self.headers["Content-Length"]))
                self.server.requests.append(dict(self.headers))
                try:
                    reply(self)
                except OSError:
                    pass  # the client hung up

            def send(self, status, body=b"", **headers):
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                self.write(body)

            def write(self, body):
                self.wfile.write(body)
                self.server.sent += len(body)

            def log_message(self, *arguments):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.requests, server.sent, server.url = [], 0, f"http://127.0.0.1:{server.server_port}/v1"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def judge_error(server, settings=ONCE) -> str:
    with pytest.raises(JudgeError) as caught:
        EndpointJudge(server.url, "small", settings)(MESSAGES)
    assert "secret" not in "".join(traceback.format_exception(caught.value))
    return str(caught.value)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_gets_neither_the_key_nor_belief(serve, status):
    other = serve(lambda handler: handler.send(200, completion('{"score": 100}')))
    server = serve(lambda handler: handler.send(status, completion('{"score": 100}'), Location=other.url))
    assert f"HTTP {status}. Redirects are not followed" in judge_error(server, TWICE)
    assert other.requests == [] and len(server.requests) == 1
    assert server.requests[0]["Authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("status", [400, 401, 429, 500, 200])
@pytest.mark.parametrize("echo", [KEY, json.dumps({"bad key": KEY}), "x" * 290 + KEY], ids=["plain", "JSON", "cut"])
def test_an_echoed_key_is_hidden(serve, status, echo):
    server = serve(lambda handler: handler.send(status, echo.encode()))
    with pytest.raises((JudgeError, RefusedTextError)) as caught:
        EndpointJudge(server.url, "small", ONCE)(MESSAGES)
    shown = "".join(traceback.format_exception(caught.value))
    assert "***" in shown and "secret" not in shown and "sk-" not in shown


def test_an_answer_that_contains_the_key_is_saved_without_it(serve, tmp_path):
    server = serve(lambda handler: handler.send(200, completion(f'{{"score": 40, "reason": "{KEY}"}}')))
    open_judge(server.url, "small", tmp_path, ONCE)(MESSAGES)
    saved = "".join(path.read_text() for path in tmp_path.iterdir())
    assert "40" in saved and "secret" not in saved


@pytest.mark.parametrize("key", ["sk-secret\n", "sk secret", "sk-sécret"])
def test_a_key_that_no_header_can_carry(serve, monkeypatch, key):
    server = serve(lambda handler: handler.send(200, completion("fine")))
    monkeypatch.setenv("OPENAI_API_KEY", key)
    assert "The API key in OPENAI_API_KEY contains blanks" in judge_error(server)
    assert server.requests == []


def drip(write):
    """Far slower than the deadline as a whole, but each wait is short."""
    for _ in range(600):
        write(b" ")
        time.sleep(0.05)


def drip_body(handler):
    handler.send(200)
    drip(handler.write)
    handler.write(completion("late"))


def drip_headers(handler):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    drip(handler.write)


@pytest.mark.parametrize("reply", [drip_body, drip_headers])
def test_a_slow_drip_does_not_outlive_the_deadline(serve, reply):
    server = serve(reply)
    assert "no complete reply within 0.3 seconds" in judge_error(server, JudgeSettings(tries=1, timeout_s=0.3))
    assert server.sent < 600


@pytest.mark.parametrize("status", [200, 401, 500])
def test_an_endless_reply_is_not_read(serve, status):
    from sama.evaluation.chat_endpoint import MAX_REPLY_BYTES  # here, because it imports openai

    def reply(handler):
        handler.send(status)
        while handler.server.sent < ENDLESS:
            handler.write(bytes(2**16))

    server = serve(reply)
    assert "its reply is larger than 4,194,304 bytes" in judge_error(server, TWICE)
    assert len(server.requests) == 1
    # What the buffers of both sockets hold comes on top
    assert server.sent < 16 * MAX_REPLY_BYTES


def test_a_compressed_reply_is_not_unpacked(serve):
    server = serve(lambda handler: handler.send(200, bytes(100), Content_Encoding="gzip"))
    assert "its reply is compressed (gzip)" in judge_error(server)
    assert server.requests[0]["accept-encoding"] == "identity"


@pytest.mark.parametrize(
    "raw",
    [b"", b"no HTTP at all\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{}", b"HTTP/1.1 abc\r\n\r\n"],
)
def test_broken_http_is_retried(serve, raw):
    def reply(handler):
        if len(handler.server.requests) == 1:
            handler.wfile.write(raw)
            handler.close_connection = True
        else:
            handler.send(200, completion("fine"))

    server = serve(reply)
    assert EndpointJudge(server.url, "small", TWICE)(MESSAGES) == "fine" and len(server.requests) == 2


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (completion(5), "its answer is int where text is expected"),
        (completion(0.5), "its answer is float"),
        (completion(True), "its answer is bool"),
        (completion(None), "its answer is null"),
        (completion(["85"]), "its answer is list"),
        (completion({"score": 85}), "its answer is dict"),
        (completion("\ud800 85"), "its answer contains surrogates"),
        (b'{"choices": 5}', "not a chat completion"),
        (b'{"choices": [5]}', "not a chat completion"),
        (b'{"choices": [{"message": "85"}]}', "not a chat completion"),
        (b"null", "not a chat completion"),
        (b"9" * 5000, "not a chat completion"),
        (b'{"choices":' + b"[" * 100_000, "not a chat completion"),
        (b"\xff\xfe85", "not a chat completion"),
    ],
)
def test_answers_that_are_not_text(serve, body, problem):
    server = serve(lambda handler: handler.send(200, body))
    assert problem in judge_error(server, TWICE) and len(server.requests) == 2


@pytest.mark.parametrize("refusal", [{"refusal": "I will not."}, None])
def test_a_refused_text_costs_that_sample_alone(serve, refusal):
    body = completion(None, **(refusal or {}))
    if refusal is None:
        body = json.dumps({"choices": [{"finish_reason": "content_filter", "message": {"content": None}}]}).encode()
    judge = EndpointJudge(serve(lambda handler: handler.send(200, body)).url, "small", ONCE)
    assert "the judge refused the text" in clair("a", "b", judge).reason
    assert "surrogates" in clair("\ud800", "b", judge).reason


@pytest.mark.parametrize(
    "url",
    [
        "http://user:hunter2@localhost:1/v1",
        "https://hunter2@localhost/v1",
        "http://:hunter2@localhost/v1",
        "user:hunter2@localhost:1/v1",
        "http://user:hun/ter2@localhost/v1",
        "http://localhost/v1?key=hunter2",
        "http://localhost/v1#hunter2",
    ],
)
def test_secrets_in_the_url_are_refused_and_not_shown(url, tmp_path, capsys):
    with pytest.raises(ValueError, match="The URL of the judge") as caught:
        EndpointJudge(url, "small")
    assert "ter2" not in str(caught.value)
    run = ["--benchmark", "toy_world", "--score_only", "--output", str(tmp_path / "run"), "--judge_url", url]
    assert evaluate.main([*run, "--judge_model", "m"]) == 1
    assert "ter2" not in capsys.readouterr().err
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    "url", ["http://", "http://:80/v1", "http://a:99999/v1", "http://a:b/v1", "http://a b/v1", "http://[/v1"]
)
def test_urls_that_are_none(url):
    with pytest.raises(ValueError, match="expected one such as"):
        EndpointJudge(url, "small")


def test_waiting_time_as_a_date():
    assert retry_after_s(format_datetime(datetime.now(UTC) + timedelta(hours=1))) == pytest.approx(3600, abs=60)
    assert retry_after_s("Wed, 21 Oct 2015 07:28:00 GMT") == 0 and retry_after_s("tomorrow") is None
    assert retry_after_s("nan") is None and retry_after_s("inf") is None and retry_after_s("-3") == 0


def test_a_notebook_with_its_own_event_loop(serve):
    server = serve(lambda handler: handler.send(200, completion("fine")))

    async def cell():
        return EndpointJudge(server.url, "small", ONCE)(MESSAGES)

    assert asyncio.run(cell()) == "fine"


@pytest.mark.parametrize("answer", ['{"score": NaN}', '{"score": Infinity}', '{"score": 1' + "0" * 400 + "}"])
def test_a_published_score_is_a_finite_number(answer):
    with pytest.raises(ValueError, match="the judge's score is not a number"):
        parse_clair(answer, PUBLISHED)


@pytest.mark.parametrize("answer", ['{"a":' * 20_000, '{"score": ' + "9" * 5000])
def test_a_hostile_score_is_no_score(answer):
    assert parse_clair(answer) is None
