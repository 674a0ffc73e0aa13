"""Videos and pictures on their way in and out through HTTP, for which no model is needed."""

import asyncio
import base64
import errno
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import av
import pytest
import torch
from http_server import Client, question, read_all, running_server
from PIL import Image
from pydantic import ValidationError
from starlette.responses import FileResponse
from video_files import damage, write_clip

from sama.serving import download
from sama.serving.answers import Answer
from sama.serving.files import FileStore
from sama.serving.limits import Limits
from sama.serving.schema import ChatRequest
from sama.serving.server import create_app
from sama.serving.session import Cancelled, Failed


class NoEngine:
    """Stands where no question is answered."""

    error: Exception | None = None

    def preview(self, *arguments):
        assert self.error is not None
        raise self.error


def png() -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (64, 48), "teal").save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def store(tmp_path, limits) -> FileStore:
    return FileStore(tmp_path / "store", limits)


@pytest.fixture
def serve(store, limits):
    """Runs a server with some limits changed."""

    @contextmanager
    def serve(**changed) -> Iterator[Client]:
        changed_limits: Limits = replace(limits, **changed)
        app = create_app(NoEngine(), store, changed_limits)  # type: ignore[arg-type]
        with running_server(app, changed_limits) as client:
            yield client

    return serve


def conversation(file_id: str) -> list[dict]:
    asked = question("What is it?")
    asked["content"] = [{"type": "image_url", "image_url": {"file_id": file_id}}, *asked["content"]]
    return [asked, {"role": "assistant", "content": "A colour.", "objects": []}]


def until(condition: Callable[[], bool]) -> None:
    """Waits for what other threads do."""
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "it did not happen within 30 seconds"
        time.sleep(0.01)


# ---- in


@pytest.fixture
def endless_conversion(tmp_path, monkeypatch) -> Path:
    """Processes that convert a file never end; the file is there when one has started."""
    note = tmp_path / "started"
    code = f"import pathlib, time; pathlib.Path({str(note)!r}).touch(); time.sleep(600)"
    (tmp_path / "sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    return note


def nothing_left(store: FileStore) -> bool:
    return [path.name for path in store.folder.iterdir()] == [".lock"]


DATA_PART = {"type": "image_url", "image_url": {"url": f"data:;base64,{base64.b64encode(png()).decode()}"}}
DATA_QUESTION = [{"role": "user", "content": [DATA_PART, {"type": "text", "text": "What is it?"}]}]


def test_a_question_ends_in_time_though_its_picture_is_being_converted(serve, store, endless_conversion):
    with serve(request_seconds=1.0) as client:
        answer = client.ask(DATA_QUESTION)
        assert answer.status == 504 and "1 seconds" in answer.error["message"]
        assert nothing_left(store)


@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/exports", "/v1/files"])
def test_a_client_that_leaves_ends_the_conversion(serve, store, endless_conversion, route):
    with serve() as client:
        content, body = "application/json", {"messages": DATA_QUESTION}
        form = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n%s\r\n--b--\r\n' % png()
        if route == "/v1/exports":
            body["messages"] = [*DATA_QUESTION, {"role": "assistant", "content": "A colour."}]
            body["format"] = "json"
        data = json.dumps(body).encode()
        if route == "/v1/files":
            content, data = "multipart/form-data; boundary=b", form
        head = f"POST {route} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {content}\r\n"
        head += f"Content-Length: {len(data)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", client.port)) as connection:
            connection.sendall(head.encode() + data)
            until(endless_conversion.exists)
        until(lambda: nothing_left(store))


def test_uploads_keep_nothing_else_waiting(store, limits, monkeypatch):
    app = create_app(NoEngine(), store, limits)  # type: ignore[arg-type]
    with running_server(app, limits) as client:
        file_id = client.upload(png(), "a.png").json()["id"]
        monkeypatch.setattr(app.state.service, "examples", list)  # rather than converting them
        proceed, add = threading.Event(), store.add
        monkeypatch.setattr(store, "add", lambda *arguments: proceed.wait() and add(*arguments))
        limiter = app.state.service.threads.storing
        uploads = [threading.Thread(target=client.upload, args=(png(),)) for _ in range(limiter.total_tokens)]
        for upload in uploads:
            upload.start()
        until(lambda: limiter.borrowed_tokens == limiter.total_tokens)
        assert client.get(f"/v1/files/{file_id}/frames/0").status == 200
        assert client.get("/v1/examples").status == 200
        export = {"messages": conversation(file_id), "format": "json"}
        assert client.post("/v1/exports", export).status == 200
        proceed.set()
        for upload in uploads:
            upload.join()


def test_damaged_frames_are_told(serve, tmp_path):
    number = damage(write_clip(tmp_path / "clip.mp4", 14), tmp_path / "damaged.mp4", 5)
    with serve() as client:
        stored = client.upload((tmp_path / "damaged.mp4").read_bytes()).json()
        sentence = f"1 of 14 frames cannot be decoded whole; the first is frame {number}."
        assert stored["warnings"] == [sentence]
        assert client.get(f"/v1/files/{stored['id']}").json()["warnings"] == [sentence]


@pytest.mark.parametrize(
    ("error", "status", "logged"),
    [
        (torch.OutOfMemoryError("full"), 503, []),
        (MemoryError(), 503, []),
        (ValueError("operands could not be broadcast"), 400, ["operands could not be broadcast"]),
    ],
)
def test_previews_that_fail(serve, monkeypatch, caplog, error, status, logged):
    monkeypatch.setattr(NoEngine, "error", error)
    with serve() as client:
        file_id = client.upload(png(), "a.png").json()["id"]
        answer = client.post("/v1/regions/preview", {"file_id": file_id, "region": {"points": [[1, 2]]}})
        assert answer.status == status and answer.error["message"]
        assert ("retry-after" in answer.headers) == (status == 503)
    assert [str(record.exc_info[1]) for record in caplog.records if record.name == "sama.serving"] == logged


@pytest.mark.parametrize("event", [Cancelled(), Failed("Full.", torch.OutOfMemoryError("full"))])
def test_what_to_ask_again_says_when(event):
    answer = Answer("model", str, lambda: None)
    answer.take(event)
    assert answer.error.status_code == 503 and int(answer.error.headers["Retry-After"]) > 0


@pytest.mark.parametrize(
    ("place", "field"), [((), "a0"), (("messages", 0), "messages[0].a0"), (("messages", 0, "content", 0), "a0")]
)
def test_many_unknown_fields_are_one_error(serve, place, field):
    """The errors of pydantic are made in the event loop, where they keep everybody waiting."""
    body: dict = {"messages": [{"role": "user", "content": [{"type": "text", "text": "What?"}]}]}
    inner = body
    for one in place:
        inner = inner[one]
    inner |= {f"a{number}": 1 for number in range(5_000)}
    with pytest.raises(ValidationError) as caught:
        ChatRequest.model_validate(body)
    assert caught.value.error_count() == 1
    with serve() as client:
        answer = client.post("/v1/chat/completions", body)
        assert answer.status == 400 and answer.error["code"] == "unknown_field"
        assert answer.error["message"].startswith("There is no field ") and answer.error["param"].endswith(field)


# ---- out


@pytest.mark.parametrize(("given", "status"), [("bytes=10000000-", 416), ("bytes=a-b", 400), ("lines=1-2", 400)])
def test_a_wrong_range_is_an_error(serve, given, status):
    with serve() as client:
        path = f"/v1/files/{client.upload(png(), 'a.png').json()['id']}/content"
        size = client.get(path).headers["content-length"]
        answer = client.get(path, Range=given)
        assert answer.status == status and "Range" in answer.error["message"]
        assert answer.headers.get("content-range") == (f"bytes */{size}" if status == 416 else None)


def test_a_client_that_does_not_read_loses_its_file(store, limits):
    limits = replace(limits, body_seconds=0.2, body_rate=10**10, header_seconds=0.2)
    app = create_app(NoEngine(), store, limits)  # type: ignore[arg-type]
    with running_server(app, limits) as client:
        file_id = client.upload(png(), "a.png").json()["id"]
        path, size = store.content(file_id), 2**26
        os.truncate(path, size)  # more than the system holds for a connection
        with socket.create_connection(("127.0.0.1", client.port)) as connection:
            connection.sendall(f"GET /v1/files/{file_id}/content HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            begin = connection.recv(17)
            client.request("DELETE", f"/v1/files/{file_id}")
            until(lambda: not path.exists())  # which waits for the last user of the file
            until(lambda: not client.connections)
            assert begin == b"HTTP/1.1 200 OK\r\n" and len(read_all(connection)) < size


def test_a_busy_server_cuts_no_file_short(serve, monkeypatch):
    """Only waiting for the client counts against its time."""
    read = FileResponse._handle_simple

    async def slow(self, *arguments):
        await asyncio.sleep(0.3)
        await read(self, *arguments)

    monkeypatch.setattr(FileResponse, "_handle_simple", slow)
    with serve(body_seconds=0.1) as client:
        answer = client.get(f"/v1/files/{client.upload(png(), 'a.png').json()['id']}/content")
        assert answer.status == 200 and len(answer.body) == int(answer.headers["content-length"])


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), av.error.OSError(errno.ENOSPC, "full", "a.mp4")])
def test_a_full_disk_is_told(serve, monkeypatch, error):
    def full(*arguments, **settings):
        raise error

    with serve() as client:
        messages = conversation(client.upload(png(), "a.png").json()["id"])
        monkeypatch.setattr(download, "write_export", full)
        answer = client.post("/v1/exports", {"messages": messages, "format": "mp4"})
        assert answer.status == 507 and answer.error["message"] == "There is no space left on the server."


def test_an_export_has_a_limit(serve):
    with serve(export_bytes=100) as client:
        messages = conversation(client.upload(png(), "a.png").json()["id"])
        answer = client.post("/v1/exports", {"messages": messages, "format": "json"})
        assert answer.status == 413
        assert answer.error["message"] == "The export has more than 100 bytes (--max-export-bytes)."
