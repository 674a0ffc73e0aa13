"""A server on the loopback address for tests: the real app under the real uvicorn, in a thread."""

import http.client
import json
import socket
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from sama.serving.connections import make_server
from sama.serving.limits import Limits


class Answer(NamedTuple):
    """Status, headers with names in small letters, and body of an HTTP response."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict:
        """The error object, after a check that it has OpenAI's form and tells nothing of the machine."""
        error = self.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert 10 < len(error["message"]) <= 400 and error["message"].endswith((".", "..."))
        assert "Traceback" not in error["message"] and ".py" not in error["message"]
        return error


class Client:
    """Sends requests to a server, each on a connection of its own; `connections` are the server's that are open."""

    def __init__(self, port: int, connections: Collection = (), server: Any = None):
        self.port, self.url, self.connections, self.server = port, f"http://127.0.0.1:{port}", connections, server

    def request(self, method: str, path: str, body: bytes | None = None, headers: dict | None = None) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            names = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, names, response.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        return self.request("GET", path, headers=headers)

    def post(self, path: str, value: Any, **headers: str) -> Answer:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        return self.request("POST", path, body, {"Content-Type": "application/json"} | headers)

    def ask(self, messages: list[dict], **fields: Any) -> Answer:
        return self.post("/v1/chat/completions", {"messages": messages} | fields)

    def stream(self, messages: list[dict], **fields: Any) -> list[dict]:
        """The chunks of a streamed answer, after a check of how it ends."""
        answer = self.ask(messages, stream=True, **fields)
        assert answer.status == 200 and answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        events = answer.body.decode().split("\n\n")
        assert events[-2:] == ["data: [DONE]", ""]
        return [json.loads(event.removeprefix("data: ")) for event in events[:-2]]

    def upload(self, content: bytes, name: str = "clip.mp4", **headers: str) -> Answer:
        boundary = "-----boundary"
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
        body = head.encode() + content + f"\r\n--{boundary}--\r\n".encode()
        kind = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        return self.request("POST", "/v1/files", body, kind | headers)

    def raw(self, data: bytes) -> bytes:
        """Sends bytes as they are; returns what comes back until the server closes the connection."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as connection:
            connection.sendall(data)
            return read_all(connection)


def read_all(connection: socket.socket) -> bytes:
    """What arrives until the other side closes the connection."""
    received = b""
    try:
        while chunk := connection.recv(65_536):
            received += chunk
    except ConnectionResetError:
        pass
    return received


@contextmanager
def running_server(app, limits: Limits | None = None, **options: Any) -> Iterator[Client]:
    """Serves an app until the block ends; `options` are those of `make_server`."""
    server = make_server(app, limits or Limits(), **options)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        try:
            yield Client(listener.getsockname()[1], server.server_state.connections, server)
        finally:
            server.should_exit = True
            thread.join(timeout=30)
            assert not thread.is_alive()


def video_part(file_id: str) -> dict:
    """The content part of an uploaded video."""
    return {"type": "video_url", "video_url": {"file_id": file_id}}


def question(text: str, *parts: dict, video: str | None = None) -> dict:
    """A user message; each `<region>` of the text is the next of `parts`."""
    content: list[dict] = [video_part(video)] if video else []
    pieces, regions = text.split("<region>"), list(parts)
    for index, piece in enumerate(pieces):
        content += [{"type": "text", "text": piece}] if piece else []
        if index < len(pieces) - 1:
            content.append({"type": "region", "region": regions.pop(0)})
    return {"role": "user", "content": content}
