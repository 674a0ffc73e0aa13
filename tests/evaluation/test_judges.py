"""Judges behind an endpoint on this machine, in a folder, and behind a cache."""

import json
import shutil
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from judge_worker import ask_often
from processes import CONTEXT
from processor_fixtures import language_tokenizer
from transformers import Qwen2Config, Qwen2ForCausalLM

from sama.evaluation.judges import CachedJudge, EndpointJudge, JudgeError, JudgeSettings, open_judge
from sama.evaluation.local_judge import LocalJudge
from sama.metrics.clair import clair
from sama.templates_sama import CHAT_TEMPLATES


QUICK = JudgeSettings(backoff_s=0.01, timeout_s=5)
MESSAGES = [{"role": "user", "content": "How alike are ä and b?"}]


def completion(text) -> bytes:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()


class Server:
    """An endpoint that gives prepared `(status, body, headers)` in turn, the last of them for ever."""

    def __init__(self, *replies):
        self.replies, self.requests, self.times = list(replies), [], []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.times.append(time.monotonic())
                outer.requests.append((self.path, dict(self.headers), json.loads(body)))
                status, body, headers = outer.replies[min(len(outer.requests), len(outer.replies)) - 1]
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def serve(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    servers = []

    def start(*replies) -> Server:
        full = [(*reply, {})[:3] if len(reply) < 3 else reply for reply in replies]
        servers.append(Server(*full))
        return servers[-1]

    yield start
    for server in servers:
        server.http.shutdown()
        server.http.server_close()


def test_request_and_answer(serve, monkeypatch):
    server = serve((200, completion("fine")))
    monkeypatch.setenv("MY_KEY", "secret")
    judge = EndpointJudge(server.url, "small", JudgeSettings(key_variable="MY_KEY"))
    assert judge(MESSAGES) == "fine"
    path, headers, body = server.requests[0]
    assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer secret"
    assert body == {"model": "small", "messages": MESSAGES, "temperature": 0.0, "max_tokens": 100}
    assert "secret" not in json.dumps(judge.identity)


def test_without_a_key_none_is_sent(serve):
    server = serve((200, completion("fine")))
    assert EndpointJudge(f"{server.url}/chat/completions", "small", QUICK)(MESSAGES) == "fine"
    path, headers, _ = server.requests[0]
    assert path == "/v1/chat/completions" and "Authorization" not in headers


@pytest.mark.parametrize("failure", [(500, b"oops"), (429, b"slow down"), (200, b"<html>"), (200, b'{"choices": []}')])
def test_a_failure_that_passes(serve, failure):
    server = serve(failure, (200, completion("fine")))
    assert EndpointJudge(server.url, "small", QUICK)(MESSAGES) == "fine"
    assert len(server.requests) == 2


def test_the_server_says_how_long_to_wait(serve):
    server = serve((429, b"", {"Retry-After": "0.5"}), (429, b"", {"Retry-After": "tomorrow"}), (200, completion("x")))
    assert EndpointJudge(server.url, "small", QUICK)(MESSAGES) == "x"
    first, second = (later - earlier for earlier, later in zip(server.times, server.times[1:], strict=False))
    assert first >= 0.5 and second < 0.45


@pytest.mark.parametrize(
    ("reply", "problem"),
    [((503, b"overloaded"), "HTTP 503: overloaded"), ((200, b"garbage"), "not a chat completion: 'garbage'")],
)
def test_a_failure_that_stays(serve, reply, problem):
    server = serve(reply)
    with pytest.raises(JudgeError, match=f"small at http.* gave no answer in 3 tries: .*{problem}"):
        EndpointJudge(server.url, "small", JudgeSettings(tries=3, backoff_s=0.01))(MESSAGES)
    assert len(server.requests) == 3


def test_a_refusal_is_not_repeated(serve):
    server = serve((401, b"wrong key"))
    with pytest.raises(JudgeError, match="refused the request: HTTP 401: wrong key"):
        EndpointJudge(server.url, "small", QUICK)(MESSAGES)
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_text_that_is_refused(serve, status):
    server = serve((status, b"too long"), (200, completion('{"score": 40}')))
    judge = EndpointJudge(server.url, "small", QUICK)
    verdict = clair("a", "b", judge)
    assert verdict.value is None and f"refused the request: HTTP {status}: too long" in verdict.reason
    assert clair("a", "b", judge).value == 0.4 and len(server.requests) == 2


def test_an_endpoint_that_is_down(serve):
    server = serve((200, b""))
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(OSError, match="gave no answer in 2 tries: .*refused"):
        EndpointJudge(server.url, "small", JudgeSettings(tries=2, backoff_s=0.01))(MESSAGES)


def test_requests_per_minute(serve):
    server = serve((200, completion("x")))
    judge = EndpointJudge(server.url, "small", JudgeSettings(requests_per_minute=300))
    threads = [threading.Thread(target=judge, args=(MESSAGES,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.times) == 4 and max(server.times) - min(server.times) > 0.5  # three pauses of 0.2 s


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x/v1", ""])
def test_wrong_addresses(url):
    with pytest.raises(ValueError, match="expected one such as"):
        EndpointJudge(url, "small")


# The cache


def test_kept_answers_are_not_asked_again(serve, tmp_path):
    server = serve((200, completion("Grüße, score: 80\u2028")))
    for _ in range(2):  # a second run
        judge = open_judge(server.url, "small", tmp_path / "new" / "cache", QUICK)
        assert judge(MESSAGES) == judge(MESSAGES) == "Grüße, score: 80\u2028"
    assert len(server.requests) == 1
    judge([{"role": "user", "content": "else"}])
    open_judge(server.url, "large", tmp_path / "new" / "cache", QUICK)(MESSAGES)
    assert len(server.requests) == 3 and len(list((tmp_path / "new" / "cache").iterdir())) == 3


def test_failures_are_not_kept(serve, tmp_path):
    server = serve((403, b"no"), (200, completion('{"score": 40}')))
    judge = open_judge(server.url, "small", tmp_path, QUICK)
    with pytest.raises(JudgeError):
        clair("a", "b", judge)
    assert list(tmp_path.iterdir()) == []
    assert clair("a", "b", judge).value == 0.4


def test_answers_without_a_score_are_not_kept(serve, tmp_path):
    server = serve(*[(200, completion("I cannot say."))] * 3, (200, completion('{"score": 40}')))
    judge = open_judge(server.url, "small", tmp_path, QUICK)
    assert clair("a", "b", judge).value is None and list(tmp_path.iterdir()) == []
    assert clair("a", "b", judge).value == clair("a", "b", judge).value == 0.4 and len(server.requests) == 4


@pytest.mark.parametrize("damage", ["", '{"answer"', "[1]", '{"answer": 3}', "{}", '{"answer": "no idea"}'])
def test_a_damaged_file_is_replaced(serve, tmp_path, damage):
    server = serve((200, completion("score: 80")))
    judge = CachedJudge(EndpointJudge(server.url, "small", QUICK), tmp_path)
    judge.path(MESSAGES).write_text(damage)
    assert judge(MESSAGES) == judge(MESSAGES) == "score: 80"
    assert len(server.requests) == 1


def test_processes_share_a_folder(tmp_path):
    with CONTEXT.Pool(2) as pool:
        found = pool.map(ask_often, [tmp_path] * 2)
    assert found == [[100_000] * 20] * 2
    assert len(list(tmp_path.glob("*.json"))) == len(list(tmp_path.iterdir())) == 20


# Opened by name


def test_open_judge(serve):
    assert open_judge() is None
    with pytest.raises(ValueError, match="--judge_model"):
        open_judge("http://localhost:1/v1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A chat model with random weights."""
    path = tmp_path_factory.mktemp("judge")
    tokenizer = language_tokenizer()
    tokenizer.chat_template = (
        CHAT_TEMPLATES["qwen_chat"].replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")
    )
    tokenizer.save_pretrained(path)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer), num_key_value_heads=2, **sizes)).save_pretrained(path)
    return path


def test_a_local_model_answers_alike_each_time(folder, tmp_path):
    judge = open_judge(model=str(folder), cache=tmp_path, settings=JudgeSettings(max_tokens=5))
    assert isinstance(judge.judge, LocalJudge)
    assert judge(MESSAGES) == judge.judge(MESSAGES) and "<|im_start|>" not in judge(MESSAGES)


def test_a_judge_without_a_system_role_and_with_other_weights(folder, tmp_path):
    judge = LocalJudge(folder, JudgeSettings(max_tokens=5))
    refusing = "{%- if messages[0]['role'] == 'system' -%}{{- raise_exception('no system role') -}}{%- endif -%}"
    copy = tmp_path / "judge"
    shutil.copytree(folder, copy)
    judge.tokenizer.chat_template = refusing + judge.tokenizer.chat_template
    judge.tokenizer.save_pretrained(copy)
    other = LocalJudge(copy, JudgeSettings(max_tokens=5))
    system, question = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Rate it."}
    assert other([system, question]) == other([{"role": "user", "content": "Be brief.\n\nRate it."}])
    assert other.identity != judge.identity, "answers of other weights or templates are not reused"


def test_folders_without_a_judge(folder, tmp_path):
    with pytest.raises(JudgeError, match="Cannot load a language model"):
        LocalJudge(tmp_path)
    tokenizer = language_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    for name in ("config.json", "model.safetensors", "generation_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(JudgeError, match="no chat template"):
        LocalJudge(tmp_path)
