"""Many clients at once get their own answers; clients and servers that are killed leave nothing behind."""

import asyncio
import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import pytest
import torch
from checkpoint import load_checkpoint
from http_server import Client, question, read_all, running_server
from processes import start

from sama.feature_store_sama import FEATURE_PREFIX
from sama.resources import EXAMPLE_CLIPS
from sama.serving import connections
from sama.serving.engine import Engine
from sama.serving.errors import ApiError
from sama.serving.files import INCOMING
from sama.serving.limits import Limits
from sama.serving.routes import preview_region, run_until_closed
from sama.serving.schema import PreviewRequest
from sama.serving.security import UPLOAD_PATH, Access
from sama.serving.server import create_app
from sama.serving.service import Service


pytest.importorskip("httpx2", reason="the clients of the load test use httpx2: pip install -e .[eval]")
from serving_processes import read_answer, run_server  # noqa: E402

from sama.profiling import serving_load  # noqa: E402


RING = {"frame": 12, "box": [48, 70, 137, 159]}
SECONDS = 120  # until a test gives up
NUM_CLIENTS = 4


def wait_until(condition) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def chat_request(**body) -> bytes:
    content = json.dumps(body).encode()
    lines = ("POST /v1/chat/completions HTTP/1.1", "Host: localhost", "Content-Type: application/json")
    return "\r\n".join([*lines, f"Content-Length: {len(content)}", "", ""]).encode() + content


# ---- many clients ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def answers():
    """Two conversations about one clip, of two turns each, as they are without a server."""
    engine = Engine(*load_checkpoint())
    scripts = [replace(script, questions=script.questions[:2]) for script in serving_load.SCRIPTS[:2]]
    found = [(script.clip, serving_load.expected_answers(engine, script)) for script in scripts]
    engine.close()
    return found


def test_many_clients_get_their_own_answers(answers, store):
    """Each conversation is had by two clients at once, one of which streams."""
    engine, (one, other) = Engine(*load_checkpoint()), answers
    with running_server(create_app(engine, store)) as client:
        load = serving_load.run_clients(client.url, [one, other, other], NUM_CLIENTS, lambda had: had < 1)
        result = asyncio.run(load)
    assert result.problems == []
    assert (result.conversations, result.questions) == (NUM_CLIENTS, 2 * NUM_CLIENTS)
    assert len(result.first_token_seconds) == NUM_CLIENTS  # every second client streams
    status = engine.status()
    assert (status.answered, status.failed, status.cancelled, status.running) == (2 * NUM_CLIENTS, 0, 0, 0)
    assert status.reused_tokens > 0 and status.files == 1
    engine.close()


def test_clients_notice_answers_that_are_not_theirs(answers, server, clip):
    """The check of the test above can fail."""
    (_, one), (_, other) = answers
    message = server.ask([question("What is <region>?", RING, video=clip)]).json()["choices"][0]["message"]
    assert serving_load.differences(message, one[0]) == []
    assert "expected" in serving_load.differences(message, other[0])[0]
    renamed = message | {"objects": [message["objects"][0] | {"id": "o2"}]}
    assert "objects" in serving_load.differences(renamed, one[0])[0]
    masks = message["objects"][0]["masks"]
    half = masks | {"counts": dict(list(masks["counts"].items())[::2])}
    assert (
        "IoU" in serving_load.differences(message | {"objects": [message["objects"][0] | {"masks": half}]}, one[0])[0]
    )


def test_waiting_for_tracking_ends_when_tracking_fails():
    async def fail():
        raise RuntimeError("no frames")

    async def wait():
        async with serving_load.background([fail()]) as tasks:
            await serving_load.until(lambda: False, tasks)

    with pytest.raises(RuntimeError, match="no frames"):
        asyncio.run(wait())


@pytest.mark.slow
def test_ten_minutes_of_sixteen_clients(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["serving_load.py", "--out", str(tmp_path / "table.md")])
    memory: list[float] = []
    report = serving_load.report
    monkeypatch.setattr(serving_load, "report", lambda *found: memory.extend(found[1]) or report(*found))
    assert serving_load.main() == 0, capsys.readouterr().out
    middle = memory[len(memory) // 2]
    assert memory[-1] < 1.1 * middle, "the memory of the server grows"


# ---- previews -------------------------------------------------------------------------------------------------------


class Connection:
    """Stands in for a request; `closed` says when its client leaves."""

    def __init__(self):
        self.closed = asyncio.Event()

    async def receive(self) -> dict:
        await self.closed.wait()
        return {"type": "http.disconnect"}


def test_previews_wait_in_a_line_with_an_end_and_those_whose_client_left_are_not_computed(
    engine, store, clip, limits, monkeypatch
):
    service, computed = Service(engine, store, limits, Access(), "sama-tiny"), []
    body = PreviewRequest(file_id=clip, region={"frame": 12, "points": [[92, 76]]})
    preview = engine.preview
    monkeypatch.setattr(engine, "preview", lambda *args: computed.append(args) or preview(*args))

    async def run() -> list:
        limiter, holders = service.threads.previewing, [object() for _ in range(4)]
        for holder in holders:  # every thread is taken
            limiter.acquire_on_behalf_of_nowait(holder)
        connections = [Connection() for _ in range(limits.waiting)]
        tasks = [asyncio.create_task(preview_region(one, body, service)) for one in connections]
        while limiter.statistics().tasks_waiting < limits.waiting:
            await asyncio.sleep(0)
        with pytest.raises(ApiError, match="2 previews are waiting") as refused:
            await preview_region(Connection(), body, service)
        assert refused.value.status_code == 429 and refused.value.headers["Retry-After"] == "1"
        connections[0].closed.set()
        await asyncio.sleep(0.01)  # the server notices
        for holder in holders:
            limiter.release_on_behalf_of(holder)
        return await asyncio.gather(*tasks)

    left, answered = asyncio.run(run())
    assert len(computed) == 1
    assert json.loads(left.body) == {} and json.loads(answered.body)["area"] > 0


def test_work_of_a_request_that_is_cancelled_is_told_to_stop():
    """As uvicorn cancels requests when the server ends."""
    stop = threading.Event()

    async def run() -> None:
        task = asyncio.create_task(run_until_closed(Connection().receive, stop, asyncio.sleep(SECONDS)))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    assert stop.is_set()


# ---- clients and servers that are killed ----------------------------------------------------------------------------


@contextmanager
def answers_without_end() -> Iterator[Engine]:
    """An engine whose answers end at their limit of tokens only."""
    model, processor = load_checkpoint()
    end = torch.tensor([processor.tokenizer.eos_token_id])
    hook = model.lm_head.register_forward_hook(lambda _, __, logits: logits.index_fill(-1, end, -torch.inf))
    engine = Engine(model, processor, Limits(running=1))
    yield engine
    hook.remove()
    engine.close()


def test_clients_learn_why_their_answers_end_when_the_server_does(store, monkeypatch):
    monkeypatch.setattr(connections, "SHUTDOWN_SECONDS", 0.1)
    limits = Limits()
    with ExitStack() as stack:
        engine = stack.enter_context(answers_without_end())
        app = create_app(engine, store, limits)
        client = stack.enter_context(running_server(app, limits, end_answers=engine.close))
        clip = client.get("/v1/examples").json()["data"][0]["id"]
        messages = [question("Describe it.", video=clip)]
        sampling = {"temperature": 2.0, "max_tokens": limits.new_tokens, "masks": "none"}
        streamed = stack.enter_context(socket.create_connection(("127.0.0.1", client.port), timeout=SECONDS))
        streamed.sendall(chat_request(messages=messages, stream=True, **sampling))
        assert streamed.recv(15) == b"HTTP/1.1 200 OK"
        waiting = stack.enter_context(socket.create_connection(("127.0.0.1", client.port), timeout=SECONDS))
        waiting.sendall(chat_request(messages=messages, **sampling))
        wait_until(lambda: engine.status().waiting == 1)
        client.server.should_exit = True
        events, refused = (read_all(connection).decode() for connection in (streamed, waiting))
        assert engine.status().cancelled == 2
    *_, last, done, rest = re.findall(r"data: .*|\r\n0\r\n\r\n", events)
    assert "server is shutting down" in last and done == "data: [DONE]" and rest  # the body is complete
    head, _, body = refused.partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 503") and "\r\nretry-after: 30" in head.lower()
    assert json.loads(body)["error"]["message"] == "The answer was cancelled because the server is shutting down."


def test_an_answer_ends_when_its_client_is_killed(store, tmp_path):
    """Generation stops: far fewer tokens are computed than were asked for, and none afterwards."""
    limits, steps = Limits(), []
    language_model = load_checkpoint()[0].model.backbone.language_model
    count = language_model.register_forward_pre_hook(lambda *_: steps.append(None))
    with answers_without_end() as engine, running_server(create_app(engine, store, limits), limits) as client:
        clip = client.get("/v1/examples").json()["data"][0]["id"]
        sampling = {"temperature": 2.0, "max_tokens": limits.new_tokens, "stream": True, "masks": "none"}
        request = chat_request(messages=[question("Describe it.", video=clip)], **sampling)
        received = tmp_path / "received.txt"
        process = start(tmp_path / "log.txt", read_answer, client.port, request, received)
        wait_until(lambda: received.exists() and received.read_bytes().count(b"data: ") > 3)
        process.kill()
        process.join()
        wait_until(lambda: engine.status().running == 0)
        computed = len(steps)
        assert engine.status().cancelled == 1 and computed < limits.new_tokens / 2
        answer = client.ask([question("Hello", video=clip)], max_tokens=3, masks="none")
        assert answer.json()["usage"]["completion_tokens"] == 3
        assert len(steps) <= computed + 3 + 2  # the video and the question are read in two steps
    count.remove()


@pytest.fixture
def start_server(tmp_path):
    """A function that starts a server as a process, in the folders of the one before: the process and a client."""
    processes = []

    def run() -> tuple:
        log = tmp_path / f"log{len(processes)}.txt"
        processes.append(start(log, run_server, tmp_path / "files", tmp_path / "scratch"))
        address = re.compile(r"^SAMA: http://127\.0\.0\.1:(\d+)/", re.MULTILINE)

        def found():
            assert processes[-1].is_alive(), log.read_text(encoding="utf-8")[-2000:]
            return log.exists() and address.search(log.read_text(encoding="utf-8"))

        wait_until(found)
        return processes[-1], Client(int(found()[1]))

    yield run
    for process in processes:
        process.kill()
        process.join()


def test_conversations_go_on_after_the_server_was_killed(start_server, answers, tmp_path):
    files, scratch = tmp_path / "files", tmp_path / "scratch"
    process, client = start_server()
    stored = client.upload((EXAMPLE_CLIPS / "toy_world.mp4").read_bytes()).json()
    messages = [question("What is <region>?", RING, video=stored["id"])]
    messages.append(client.ask(messages).json()["choices"][0]["message"])
    messages.append(question("What does <region> do?", {"object": "o1"}))
    # Killed with an upload that is being converted, and in the middle of an answer
    with socket.create_connection(("127.0.0.1", client.port)) as upload:
        content = (EXAMPLE_CLIPS / "bigbuckbunny.mp4").read_bytes()
        head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="film.mp4"\r\n\r\n'
        body = head + content + b"\r\n--x--\r\n"
        lines = (f"POST {UPLOAD_PATH} HTTP/1.1", "Host: localhost", "Content-Type: multipart/form-data; boundary=x")
        upload.sendall("\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body)
        with socket.create_connection(("127.0.0.1", client.port)) as answer:
            answer.sendall(chat_request(messages=messages, stream=True))
            assert answer.recv(15) == b"HTTP/1.1 200 OK"
            wait_until(lambda: list(files.glob(f"{INCOMING}*/*")))
            process.kill()
            process.join()
    left = list(files.glob(f"{INCOMING}*")), list(scratch.glob(f"{FEATURE_PREFIX}*"))
    assert all(left)

    _, client = start_server()
    again = client.ask(messages).json()["choices"][0]["message"]
    assert serving_load.differences(again, answers[0][1][1]) == []  # the same conversation
    assert not any(path.exists() for paths in left for path in paths)
    assert [path.name for path in files.iterdir() if path.is_dir()] == [stored["id"].removeprefix("file-")]
    assert os.listdir(files / stored["id"].removeprefix("file-"))
