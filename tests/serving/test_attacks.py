"""What hostile clients try through HTTP: each gets one sentence, and the server goes on. Wrong requests are in
test_server_requests.py; names, keys, pages and slow connections in test_server_security.py.

Nothing is connected to: addresses are refused before, which a stubbed resolver and a port that must stay silent show.
"""

import errno
import gzip
import io
import json
import socket
import struct
import time
import zipfile
import zlib
from dataclasses import replace

import numpy as np
import pytest
from http_server import question, running_server
from PIL import Image

from sama.resources import EXAMPLE_CLIPS
from sama.serving import files as files_module
from sama.serving.addresses import fetch
from sama.serving.files import FACTS, INCOMING, FileStore
from sama.serving.security import UPLOAD_PATH, Access
from sama.serving.server import create_app


TOY = EXAMPLE_CLIPS / "toy_world.mp4"
RING = {"frame": 12, "box": [48, 70, 137, 159]}
POINTS = 1_000_000


def incoming(store) -> list:
    return list(store.folder.glob(f"{INCOMING}*"))


# ---- files that grow ------------------------------------------------------------------------------------------------


def png_of_zeros(width: int, height: int) -> bytes:
    """A picture of one bit a pixel, of a thousandth of its size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer, row = zlib.compressobj(9), bytes(width // 8 + 1)
    data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def zip_of_zeros() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("clip.mp4", bytes(2**26))
    return file.getvalue()


def claimed_frames(entries: int) -> bytes:
    """The example clip with a table of times whose entries claim 4 billion frames each."""
    content, table = bytearray(TOY.read_bytes()), struct.pack(">II", 2**32 - 1, 1) * entries
    for name in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stts"):  # each box within the one before
        place = content.index(name)
        (size,) = struct.unpack(">I", content[place - 4 : place])
        content[place - 4 : place] = struct.pack(">I", size + len(table))
    (known,) = struct.unpack(">I", content[place + 8 : place + 12])
    content[place + 8 : place + 12] = struct.pack(">I", known + entries)
    content[place + 12 : place + 12] = table
    return bytes(content)


def many_pictures() -> bytes:
    """An animation of 21,000 frames, most of which are a copy of one."""
    file = io.BytesIO()
    frames = [Image.fromarray(np.full((8, 8), value, dtype=np.uint8)) for value in (0, 255)]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], loop=0, duration=20)
    content = file.getvalue()
    start = content.index(b"\x21\xf9", content.index(b"\x2c") + 1)  # the second frame
    return content[:start] + content[start:-1] * 21_000 + content[-1:]


BOMBS = {
    "picture of 400 million pixels": (lambda: png_of_zeros(20_000, 20_000), {413}),
    "archive": (zip_of_zeros, {415}),
    "compressed clip": (lambda: gzip.compress(TOY.read_bytes() + bytes(2**26)), {415}),
    "clip of 38 billion frames": (lambda: claimed_frames(9), {400, 413}),
    "animation of 21,000 frames": (many_pictures, {400, 413}),
}


@pytest.mark.parametrize("name", BOMBS)
def test_files_that_claim_more_than_they_hold(server, store, limits, name):
    make, expected = BOMBS[name]
    content = make()
    assert len(content) < limits.upload_bytes
    answer = server.upload(content)
    assert answer.status in expected and answer.error["message"]
    assert incoming(store) == []


# ---- uploads that are cut, disks that are full ----------------------------------------------------------------------


def test_an_upload_that_is_cut_leaves_nothing(server, store):
    before = sorted(store.folder.iterdir())
    body = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.mp4"\r\n\r\n' + TOY.read_bytes()[:20_000]
    lines = (f"POST {UPLOAD_PATH} HTTP/1.1", "Host: localhost", "Content-Type: multipart/form-data; boundary=x")
    for announced in (len(body) + 1, 10**6):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall("\r\n".join([*lines, f"Content-Length: {announced}", "", ""]).encode() + body)
    assert server.get("/health").status == 200
    assert sorted(store.folder.iterdir()) == before


def test_a_store_that_is_full(engine, limits, tmp_path):
    small = replace(limits, store_bytes=50_000)
    store = FileStore(tmp_path, small)
    with running_server(create_app(engine, store, small), small) as client:
        answer = client.upload(TOY.read_bytes())
        assert answer.status == 507 and "no space left" in answer.error["message"]
        assert client.get("/v1/examples").status == 507
        assert client.get("/health").status == 200 and incoming(store) == []


def test_a_disk_that_is_full(engine, limits, tmp_path, monkeypatch):
    class Full(io.BytesIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    store = FileStore(tmp_path, limits)
    with running_server(create_app(engine, store, limits), limits) as client:
        with monkeypatch.context() as patch:
            patch.setattr(files_module, "open", lambda *arguments, **options: Full(), raising=False)
            answer = client.upload(TOY.read_bytes())
        assert answer.status == 507 and "no space left" in answer.error["message"] and incoming(store) == []
        assert client.upload(TOY.read_bytes()).status == 200  # there is space again


# ---- requests that cost more than they say --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def default(engine, store):
    """A server with the default limits."""
    with running_server(create_app(engine, store, access=Access(urls=True))) as client:
        yield client


def test_a_million_points(default, clip):
    points = "[1,2]," * (POINTS - 1) + "[1,2]"
    content = f'[{{"type":"region","region":{{"frame":0,"points":[{points}]}}}}]'
    answer = default.post("/v1/chat/completions", f'{{"messages":[{{"role":"user","content":{content}}}]}}'.encode())
    assert answer.status == 400 and "--max-json-values" in answer.error["message"]
    region = f'{{"frame":0,"scribble":[{points[: 6 * 60_000 - 1]}]}}'  # nearly as many values as a body may have
    answer = default.post("/v1/regions/preview", f'{{"file_id":"{clip}","region":{region}}}'.encode())
    assert answer.status == 400 and "has 60,000 entries, at most 10,000 are expected" in answer.error["message"]


def test_a_field_that_is_given_twice_after_many_others(default):
    """Where each name is compared with all, the time is quadratic, and the client gives up after a minute."""
    names = [f'"{number}":0' for number in range(190_000)]
    answer = default.post("/v1/chat/completions", ("{" + ",".join([*names, names[-1]]) + "}").encode())
    assert answer.status == 400 and "189999 is given twice" in answer.error["message"]


def test_many_mistakes_in_one_body(default):
    answer = default.post("/v1/chat/completions", {"messages": [0] * 100_000})
    assert answer.status == 400 and answer.error["param"] == "messages[0]"


def test_messages_of_errors_lose_paths_whatever_they_hold(default, engine, store):
    """The time must not be exponential in the number of slashes: 2,000 would never end."""
    service = create_app(engine, store).state.service
    for text in ("/" * 2000, "/a" * 1000 + "/ ", "/ " * 1000, "//" * 500 + "x y"):
        assert service.public(ValueError(text))
    assert (
        service.public(ValueError("The file /secret/folder//model.bin is broken")) == "The file model.bin is broken."
    )


@pytest.mark.parametrize("ranges", ["0-0," * 5000 + "0-0", "-", "0-" + "9" * 5000, "x", "5-1", "0-0, 0-0, 1-2,-1"])
def test_ranges_of_a_file(server, clip, ranges):
    answer = server.get(f"/v1/files/{clip}/content", Range=f"bytes={ranges}")
    assert answer.status in (200, 206, 400, 416, 431)
    assert len(answer.body) < 2**20


def test_many_parts_of_a_form(server, store):
    part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.mp4"\r\n\r\nx\r\n'
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    assert server.request("POST", UPLOAD_PATH, part * 10_000 + b"--x--\r\n", form).status == 400
    field = b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n' + b"x" * 10_000 + b"\r\n"
    assert server.request("POST", UPLOAD_PATH, field + b"--x--\r\n", form).status == 400
    header = b"--x\r\n" + b"X-Header: y\r\n" * 10_000
    assert server.request("POST", UPLOAD_PATH, header, form).status == 400
    assert incoming(store) == []


def test_1000_tiny_questions_that_are_refused(server, engine):
    before = engine.status()
    bodies = [b"{}", b"[]", b'{"messages":[]}', b"x"]
    request = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    pipelined = b"".join(
        request + f"Content-Length: {len(body)}\r\n\r\n".encode() + body
        for body in (bodies[number % 4] for number in range(100))
    )
    last = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    for _ in range(10):
        received = server.raw(pipelined + last)
        assert received.count(b"HTTP/1.1 400 ") == 100 and received.count(b"HTTP/1.1 200 ") == 1
    assert engine.status() == before


# ---- addresses ------------------------------------------------------------------------------------------------------


def video(url: str) -> list[dict]:
    part = {"type": "video_url", "video_url": {"url": url}}
    return [{"role": "user", "content": [part, {"type": "text", "text": "What is it?"}]}]


@pytest.fixture
def silent():
    """The port of a server that nobody may connect to."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{port}/clip.mp4",
        "http://127.0.0.1/clip.mp4",
        "http://127.1/clip.mp4",
        "http://2130706433/clip.mp4",
        "http://0x7f000001/clip.mp4",
        "http://0/clip.mp4",
        "http://[::1]/clip.mp4",
        "http://[::ffff:127.0.0.1]/clip.mp4",
        "http://[64:ff9b::7f00:1]/clip.mp4",
        "http://localhost/clip.mp4",
        "http://169.254.169.254/latest/meta-data/",
        "http://10.0.0.1/clip.mp4",
        "http://[fe80::1]/clip.mp4",
        "http://user@127.0.0.1/clip.mp4",
        "http://127.0.0.1#@public.example/clip.mp4",
        "http://127.0.0.1\\@public.example/clip.mp4",
        "http://127.0.0.1%2f@public.example/",
        "http://public.example\r\nHost: 127.0.0.1/clip.mp4",
        "http://public.example/clip.mp4",  # whose address is that of this machine
        "file:///etc/passwd",
        "ftp://127.0.0.1/clip.mp4",
        "gopher://127.0.0.1:{port}/_GET",
        "//127.0.0.1/clip.mp4",
        "javascript:alert(1)",
        "http:///clip.mp4",
        "http://",
    ],
)
def test_urls_of_this_machine_and_its_network(default, silent, monkeypatch, url):
    def resolver(host, *arguments, **options):
        # Without a query to the outside; numbers and localhost are resolved by the system
        if host.endswith(".example"):
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 80))]
        return socket.getaddrinfo(host, *arguments, **options)

    monkeypatch.setattr(fetch, "__defaults__", (resolver, *fetch.__defaults__[1:]))
    answer = default.ask(video(url.format(port=silent)))
    assert answer.status == 400 and answer.error["param"] == "messages[0].content[0].video_url.url"


# ---- what others use ------------------------------------------------------------------------------------------------


def test_a_file_that_is_deleted_while_others_ask_about_it(server, store):
    stored = server.upload(TOY.read_bytes() + b"\0" * 16).json()
    body = json.dumps({"messages": [question("What is <region>?", RING, video=stored["id"])], "stream": True}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(head.encode() + body)
        received = connection.recv(65_536)
        assert received.startswith(b"HTTP/1.1 200 ")
        assert server.request("DELETE", f"/v1/files/{stored['id']}").status == 200
        assert server.get(f"/v1/files/{stored['id']}").status == 404
        while chunk := connection.recv(65_536):
            received += chunk
    assert b"data: [DONE]" in received and b'"error"' not in received
    folder = store.folder / stored["id"].removeprefix("file-")
    deadline = time.monotonic() + 20
    while (folder / FACTS).exists():  # removed when its last user is done
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_examples_come_again_when_somebody_deletes_them(server):
    first, *_ = server.get("/v1/examples").json()["data"]
    assert server.request("DELETE", f"/v1/files/{first['id']}").status == 200
    assert server.get("/v1/examples").json()["data"][0]["id"] == first["id"]
