"""Who may do what, and what hostile clients get: wrong names, pages and keys, bodies without end, bytes one by one."""

import json
import re
import socket
import time
from dataclasses import replace

import pytest
from http_server import Answer, question, read_all, running_server

from sama.serving.security import Access, access_for, host_name, is_loopback
from sama.serving.server import create_app


KEY = "sk-" + "k" * 40
PAGE = "https://page.example"
HELLO = {"messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture(scope="module")
def closed(engine, store, limits):
    """A server with a key and one allowed page."""
    access = Access(api_key=KEY, origins=(PAGE,))
    with running_server(create_app(engine, store, limits, access), limits) as client:
        yield client


@pytest.fixture(scope="module")
def hasty(engine, store, limits):
    """A server that does not wait long for a client."""
    limits = replace(limits, header_seconds=0.5, body_seconds=0.5)
    with running_server(create_app(engine, store, limits), limits) as client:
        yield client


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


# ---- keys


@pytest.mark.parametrize(
    "headers",
    [
        {},
        bearer(KEY[:-1]),
        bearer(KEY + "x"),
        bearer(""),
        bearer("é" * 43),
        {"Authorization": KEY},
        {"Authorization": f"Basic {KEY}"},
        {"X-Api-Key": KEY},
        {"Cookie": f"Authorization=Bearer {KEY}"},
    ],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/models"),
        ("HEAD", "/v1/models"),
        ("GET", "/metrics"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/files"),
        ("DELETE", "/v1/files/file-" + "0" * 64),
        ("GET", "/v1"),
        ("GET", "/v1/anything"),
        ("GET", "/v1/../v1/models"),
    ],
)
def test_wrong_keys(closed, method, path, headers):
    headers = {name: value.encode("latin-1") for name, value in headers.items()}
    answer = closed.request(method, path, b"{}" if method == "POST" else None, headers)
    assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
    if method != "HEAD":
        assert answer.error["code"] == "invalid_api_key" and KEY not in answer.body.decode()


def test_right_key_and_what_needs_none(closed, clip):
    for scheme in ("Bearer", "bearer", "BEARER"):
        assert closed.get("/v1/models", Authorization=f"{scheme} {KEY}").status == 200
    assert closed.get("/metrics", **bearer(KEY)).status == 200
    assert closed.get(f"/v1/files/{clip}", **bearer(KEY)).status == 200
    for path in ("/health", "/docs", "/docs/style.css", "/openapi.json"):
        assert closed.get(path).status == 200
    assert closed.get("/").status in (200, 404)  # the page, where it is there
    assert "HTTPBearer" in closed.get("/openapi.json").json()["components"]["securitySchemes"]
    assert closed.get("//metrics").status == closed.get("/METRICS").status == 404


def test_key_is_in_no_log(closed, caplog, capfd):
    closed.get("/v1/models", **bearer(KEY))
    closed.get("/v1/models", **bearer(KEY[:-1]))
    captured = capfd.readouterr()
    assert KEY[:-1] not in caplog.text + captured.out + captured.err
    assert KEY not in repr(Access(api_key=KEY))


@pytest.mark.parametrize("key", ["", "a b", "a\n", "é", "x" * 513])
def test_keys_that_no_header_can_carry(key):
    with pytest.raises(ValueError, match="1 to 512 printable ASCII characters"):
        Access(api_key=key)


# ---- addresses, names and pages


def test_other_addresses_need_a_key():
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org", ""):
        assert not is_loopback(host)
        with pytest.raises(ValueError, match="needs an API key: set SAMA_API_KEY"):
            access_for(host, None, (), (), False)
        assert access_for(host, KEY, (), (), False).hosts is None
    for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
        assert is_loopback(host) and access_for(host, None, (), ("Box",), False).hosts >= {"localhost", host, "box"}
    assert access_for("0.0.0.0", KEY, (), ("Sama.Example",), False).hosts == {"sama.example"}


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("LOCALHOST:99", 200),
        ("[::1]:8000", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost.", 403),
        ("localhost@evil.example", 403),
        ("", 403),
        ("[::1", 200),
        (":80", 403),
    ],
)
def test_names_of_the_server(server, host, status):
    answer = server.get("/health", Host=host)
    assert answer.status == status and (status == 200 or "--allow-host" in answer.error["message"])


def test_host_names():
    assert host_name("Example.org:80") == "example.org" and host_name("[::1]:80") == "::1" and host_name("a") == "a"


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "http://[broken"},
        {"Origin": "https://page.example.evil.example"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"},
    ],
)
def test_other_pages_are_refused(server, headers):
    for answer in (server.get("/health", **headers), server.post("/v1/chat/completions", HELLO, **headers)):
        assert answer.status == 403 and "--allow-origin" in answer.error["message"]
        assert "access-control-allow-origin" not in answer.headers
    preflight = server.request("OPTIONS", "/v1/files", headers=headers | {"Access-Control-Request-Method": "POST"})
    assert preflight.status == 403


def test_own_page_and_links_to_it(server):
    assert server.get("/v1/models", Origin=server.url).status == 200
    assert server.get("/health", **{"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}).status == 200
    assert server.get("/health", **{"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}).status == 200


def test_allowed_pages(closed):
    headers = {
        "Origin": PAGE,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization",
    }
    preflight = closed.request("OPTIONS", "/v1/chat/completions", headers=headers)
    assert preflight.status == 200 and preflight.headers["access-control-allow-origin"] == PAGE
    assert "access-control-allow-credentials" not in preflight.headers
    for key, status in ((KEY, 200), ("wrong", 401)):
        answer = closed.get("/v1/models", Origin=PAGE, **bearer(key))
        assert answer.status == status and answer.headers["access-control-allow-origin"] == PAGE
    assert closed.get("/v1/models", Origin="https://evil.example", **bearer(KEY)).status == 403
    assert PAGE in closed.get("/health").headers["content-security-policy"].partition("frame-ancestors")[2]


@pytest.mark.parametrize(
    "origin", ["*", "https://a.example/", "https://a.example/x", "a.example", "HTTPS://A", "null"]
)
def test_origins_that_are_none(origin):
    with pytest.raises(ValueError, match="An allowed origin looks like"):
        Access(origins=(origin,))


def test_headers_of_every_answer(server):
    for answer in (
        server.get("/health"),
        server.get("/v1/none"),
        server.post("/v1/chat/completions", b"{"),
        server.get("/health", Host="evil.example"),
    ):
        assert answer.headers["content-security-policy"].startswith("default-src 'self'; ")
        assert "'unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert not {"set-cookie", "server", "x-powered-by"} & set(answer.headers)


def test_an_error_in_the_server_tells_nothing(engine, store, limits, monkeypatch):
    app = create_app(engine, store, limits)
    monkeypatch.setattr(app.state.service, "examples", lambda: 1 / 0)
    with running_server(app, limits) as client:
        answer = client.get("/v1/examples")
        assert (
            answer.status == 500 and answer.error["message"] == "There was an error in the server; its log has more."
        )
        assert answer.headers["content-security-policy"]
        assert 'route="/v1/examples",status="500"' in client.get("/metrics").body.decode()


# ---- bodies


def head(path: str, *lines: str, method: str = "POST") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *lines, "", ""]).encode()


JSON = "Content-Type: application/json"


def parsed(received: bytes) -> Answer:
    top, _, body = received.partition(b"\r\n\r\n")
    return Answer(int(top.split()[1]), {}, body)


def test_a_body_is_counted_as_it_arrives(server, limits):
    lines = ("/v1/chat/completions", JSON, "Connection: close")  # so that nobody waits for another request
    claimed = server.raw(head(*lines, f"Content-Length: {limits.json_bytes + 1}"))
    assert parsed(claimed).status == 413 and "--max-json-bytes" in parsed(claimed).error["message"]
    chunks = b"10000\r\n" + b" " * 65_536 + b"\r\n"
    endless = head(*lines, "Transfer-Encoding: chunked") + chunks * 17
    assert parsed(server.raw(endless)).status == 413


def test_a_body_that_arrives_too_slowly(hasty):
    with socket.create_connection(("127.0.0.1", hasty.port)) as connection:
        connection.sendall(head("/v1/chat/completions", JSON, "Content-Length: 1000") + b"{")
        assert parsed(connection.recv(65_536)).status == 408
        # What goes on being sent is thrown away, but not forever
        start = time.monotonic()
        try:
            while time.monotonic() < start + 20:
                connection.sendall(b" ")
                time.sleep(0.1)
        except OSError:
            pass
        assert time.monotonic() < start + 20


@pytest.mark.parametrize("sent", [b"", b"GET /he", b"GET /health HTTP/1.1\r\nHost: local"])
def test_headers_that_do_not_arrive(hasty, sent):
    with socket.create_connection(("127.0.0.1", hasty.port), timeout=20) as connection:
        connection.sendall(sent)
        assert read_all(connection) == b""  # closed by the server


def test_many_slow_clients_keep_nobody_waiting(server):
    slow = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(100)]
    for connection in slow:
        connection.sendall(b"POST /v1/files HTTP/1.1\r\n")
    assert server.get("/health").status == 200
    for connection in slow:
        connection.close()


def test_connections_beyond_the_limit_are_closed(server, limits):
    held = [socket.create_connection(("127.0.0.1", server.port), timeout=5) for _ in range(limits.connections + 5)]
    try:
        assert read_all(held[-1]) == b""
    finally:
        for connection in held:
            connection.close()
    deadline = time.monotonic() + 10
    while True:
        try:
            assert server.get("/health").status == 200
            return
        except OSError:
            assert time.monotonic() < deadline


def test_expect_continue(server, clip):
    body = json.dumps({"file_id": clip, "region": {"frame": 12, "points": [[92, 76]]}}).encode()
    expecting = ("/v1/regions/preview", JSON, "Expect: 100-continue", "Connection: close")
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(head(*expecting, f"Content-Length: {len(body)}"))
        assert connection.recv(65_536).startswith(b"HTTP/1.1 100 ")
        connection.sendall(body)
        assert parsed(read_all(connection)).status == 200
    # A body that is refused by its headers is not asked for
    assert server.raw(head(*expecting, "Content-Length: 99999999")).startswith(b"HTTP/1.1 413 ")


def test_pipelined_requests_are_answered_in_order(server):
    requests = head("/health", method="GET") + head("/v1/none", method="GET")
    received = server.raw(requests + head("/health", "Connection: close", method="GET"))
    assert re.findall(rb"HTTP/1.1 (\d+) ", received) == [b"200", b"404", b"200"]


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 50 + b"\r\n\r\n",  # TLS
        b"GET / HTTP/9.9\r\nConnection: close\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\0b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
        b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_what_is_not_http(server, data):
    received = server.raw(data)
    assert received == b"" or received.split()[1] in (b"400", b"403", b"404")
    assert server.get("/health").status == 200


def test_websockets_are_refused(server):
    lines = ("Upgrade: websocket", "Connection: Upgrade, close", "Sec-WebSocket-Key: x", "Sec-WebSocket-Version: 13")
    for path in ("/", "/v1/chat/completions"):
        answer = parsed(server.raw(head(path, *lines, method="GET")))
        assert answer.status == 400 and answer.error["message"] == "There are no WebSockets here."


@pytest.mark.parametrize(
    "name", ['x"\r\nSet-Cookie: a=b\r\n\r\n.mp4', "x%0d%0aSet-Cookie: a=b", "\u202e4pm.exe", "a" * 5000]
)
def test_file_names_get_into_no_header(server, clip, name):
    boundary = "x"
    content = server.get(f"/v1/files/{clip}/frames/0").body
    quoted = name.replace('"', '\\"')
    body = (
        f'--x\r\nContent-Disposition: form-data; name="file"; filename="{quoted}"\r\n\r\n'.encode()
        + content
        + b"\r\n--x--"
    )
    answer = server.request("POST", "/v1/files", body, {"Content-Type": f"multipart/form-data; boundary={boundary}"})
    if answer.status == 200:
        stored = answer.json()
        assert stored["filename"].isprintable() and len(stored["filename"]) <= 200
        answer = server.get(f"/v1/files/{stored['id']}/content")
        assert answer.status == 200 and "content-disposition" not in answer.headers
    assert "set-cookie" not in answer.headers


def test_model_text_reaches_the_client_as_text_only(server, clip):
    script = "<script>alert(1)</script><img src=x onerror=alert(1)>"
    for fields in ({}, {"stream": True}):
        answer = server.ask([question(script, video=clip)], max_tokens=4, masks="none", **fields)
        assert answer.status == 200 and not answer.headers["content-type"].startswith("text/html")
