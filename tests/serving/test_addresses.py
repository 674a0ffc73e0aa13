"""Fetching URLs: what is refused is refused before any connection, and no packet leaves this machine.

The resolver is a stub, and the only servers are on loopback, which is allowed by an argument.
"""

import contextlib
import ipaddress
import shutil
import socket
import ssl
import subprocess
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from upload_limits import SmallLimits

from sama.serving.addresses import fetch, is_public
from sama.serving.media import FileRefused


LIMITS = SmallLimits()
LOOPBACK = "127.0.0.1"
NOT_PUBLIC = "is not one of the public Internet"


@pytest.fixture(autouse=True)
def connections(monkeypatch):
    """Where sockets were connected to. Anything but loopback fails, and so does a look-up of a name."""
    made, connect, look_up = [], socket.socket.connect, socket.getaddrinfo

    def guarded_connect(self, address):
        made.append(address[0])
        assert address[0] == LOOPBACK, f"a connection to {address}"
        return connect(self, address)

    def guarded_look_up(host, *arguments, **options):
        ipaddress.ip_address(host)
        return look_up(host, *arguments, **options)

    monkeypatch.setattr(socket.socket, "connect", guarded_connect)
    monkeypatch.setattr(socket, "getaddrinfo", guarded_look_up)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://192.0.2.1:3128")
    return made


class Resolver:
    """Answers the look-ups of names with one list of addresses after the other, the last one for ever."""

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []

    def __call__(self, host, port, type):
        self.asked.append(host)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if answer is None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, type, 6, "", (address, port)) for address in answer]


def is_loopback(address) -> bool:
    return address == ipaddress.ip_address(LOOPBACK)


@pytest.fixture
def serve():
    """A function that starts a server on loopback whose GET handler is `reply(handler)`; returns its port."""
    servers = []

    def start(reply, tls=None):
        class Handler(BaseHTTPRequestHandler):
            requests = []
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                self.requests.append((self.path, dict(self.headers)))
                self.close_connection = True
                with contextlib.suppress(OSError):
                    reply(self)

            def log_message(self, *arguments): ...

        server = ThreadingHTTPServer((LOOPBACK, 0), Handler)
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        server.handle_error = lambda *arguments: None
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return server.server_port, Handler.requests

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def answer(handler, body=b"0123456789", status=200, **headers) -> None:
    handler.send_response(status)
    for name, value in ({"Content_Length": len(body)} | headers).items():
        if value is not None:
            handler.send_header(name.replace("_", "-"), str(value))
    handler.end_headers()
    handler.wfile.write(body)


def fetched(port, path="/clip.mp4", host="files.example", limits=LIMITS, resolver=None, **options):
    """The bytes and the name of a file from a server on loopback."""
    resolver = resolver or Resolver([LOOPBACK])
    url = f"{options.pop('scheme', 'http')}://{host}:{port}{path}"
    chunks, name = fetch(url, limits, resolver, is_loopback, ports={port}, **options)
    return b"".join(chunks), name


def refused(port, sentence, status=400, **options) -> None:
    with pytest.raises(FileRefused, match=sentence) as caught:
        fetched(port, **options)
    assert caught.value.status == status
    assert str(caught.value).endswith(".") and LOOPBACK not in str(caught.value)


# ---- addresses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    "0.0.0.0 10.0.0.1 100.64.0.1 127.0.0.1 127.255.255.254 169.254.169.254 172.16.0.1 172.31.255.255 192.0.0.1 "
    "192.0.2.1 192.88.99.1 192.168.1.1 198.18.0.1 203.0.113.5 224.0.0.1 240.0.0.1 255.255.255.255 "
    ":: ::1 ::7f00:1 ::ffff:127.0.0.1 ::ffff:8.8.8.8 64:ff9b::8.8.8.8 64:ff9b:1::1 100::1 2001::1 2001:db8::1 "
    "2002:7f00:1:: 2002:808:808:: 3fff::1 fc00::1 fd00:ec2::254 fe80::1 fe80::1%eth0 fec0::1 ff02::1 4000::1".split(),
)
def test_addresses_that_are_not_public(address, connections):
    assert not is_public(ipaddress.ip_address(address))
    # neither behind a name, nor beside a public address, nor in the URL itself
    for answers in ([address], ["8.8.8.8", address]):
        with pytest.raises(FileRefused, match=NOT_PUBLIC):
            fetch("http://files.example/clip.mp4", LIMITS, Resolver(answers))
    literal = f"[{address}]" if ":" in address else address
    with pytest.raises(FileRefused, match=NOT_PUBLIC if "%" not in address else "host or port is not valid"):
        fetch(f"http://{literal}/clip.mp4", LIMITS, Resolver(["8.8.8.8"]))
    assert connections == []


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "192.88.98.1", "2606:4700:4700::1111", "2a00:1450::1"])
def test_addresses_that_are_public(address):
    assert is_public(ipaddress.ip_address(address))


# ---- URLs -----------------------------------------------------------------------------------------------------------


BAD_SCHEMES = [
    "file:///etc/passwd",
    "ftp://files.example/a.mp4",
    "gopher://files.example/",
    "data:video/mp4;base64,AA",
]
BAD_SCHEMES += ["//files.example/a", "files.example/a.mp4", "javascript:alert(1)", "HTTPX://files.example/", ""]
BAD_HOSTS = "2130706433 017700000001 0x7f000001 0x7f.1 127.1 0177.0.0.1 127.0.0.0x1 1.2.3.4.5 127.0.0.1. a..b -a.com "
BAD_HOSTS += "a%2eb files.example. [::1]x [::1 [127.0.0.1] [v1.x] a;b a$b a:+80 a::80 a:80:80"
BAD_CHARACTERS = ["files.example/a b", "files.example/\r\nHost: evil", "files.example/\tx", "bücher.example/"]
BAD_CHARACTERS += ["files.example\\@evil/", "１２７.0.0.1/", "files.example/\x00", "files.example/é"]


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        *[(url, "begin with http:// or https://|a character that is not allowed") for url in BAD_SCHEMES],
        *[
            (f"http://{host}/a.mp4", "its host or port is not valid|neither a name nor an")
            for host in BAD_HOSTS.split()
        ],
        *[(f"http://{rest}", "a character that is not allowed in one") for rest in BAD_CHARACTERS],
        ("http:///a.mp4", "neither a name nor an address"),
        ("http://user:secret@files.example/a", "a user name or password"),
        ("http://files.example@evil.example/a", "a user name or password"),
        ("http://@files.example/a", "a user name or password"),
        ("http://files.example:22/a", "port 22; only 80 and 443 are accepted"),
        ("http://files.example:0/a", "port 0; only"),
        ("http://files.example:x/a", "host or port is not valid"),
        ("http://files.example:99999/a", "port 99999; only"),
        ("http://files.example:999999/a", "host or port is not valid"),
        ("http://" + "a" * 64 + ".example/", "neither a name"),
        ("http://files.example/" + "a" * 5000, "has 5,021 characters; at most 4,096"),
    ],
)
def test_urls_that_are_not_fetched(url, sentence, connections):
    resolver = Resolver([LOOPBACK])
    with pytest.raises(FileRefused, match=sentence) as caught:
        fetch(url, LIMITS, resolver, is_loopback)
    assert (connections, resolver.asked, caught.value.status) == ([], [], 400)
    assert "secret" not in str(caught.value) and len(str(caught.value)) < 250


def test_a_host_that_is_not_found(connections):
    with pytest.raises(FileRefused, match="The host files.example of the URL cannot be found"):
        fetch("https://files.example/", LIMITS, Resolver(None))
    assert connections == []


def test_a_look_up_that_hangs_ends_at_the_deadline():
    release = threading.Event()
    with pytest.raises(FileRefused, match="takes longer than 0.1 seconds"):
        fetch("http://files.example/", replace(LIMITS, fetch_seconds=0.1), lambda *_, **__: release.wait(30))
    release.set()


# ---- the exchange ---------------------------------------------------------------------------------------------------


def test_a_file_is_fetched(serve, connections):
    port, requests = serve(answer)
    assert fetched(port, "/films/my%20clip.mp4?key=a/b", host="FILES.example") == (b"0123456789", "my clip.mp4")
    ((path, headers),) = requests
    assert path == "/films/my%20clip.mp4?key=a/b"
    assert headers["Host"] == f"files.example:{port}" and headers["Accept-Encoding"] == "identity"
    assert not {"Cookie", "Authorization", "Referer"} & set(headers)
    assert connections == [LOOPBACK]  # and no proxy


def test_the_connection_goes_to_the_address_that_was_checked(serve, connections):
    """A name that stands for another address at the second look-up: there is none."""
    port, _ = serve(answer)
    resolver = Resolver([LOOPBACK], ["169.254.169.254"])
    assert fetched(port, resolver=resolver)[0] == b"0123456789"
    assert (resolver.asked, connections) == (["files.example"], [LOOPBACK])


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate of files.example and its key, as two files."""
    if shutil.which("openssl") is None:
        pytest.skip("the program openssl, which makes a certificate, is not installed")
    folder = tmp_path_factory.mktemp("tls")
    paths = folder / "certificate.pem", folder / "key.pem"
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc -days 2 -subj /CN=files.example"
    )
    command = [*command.split(), "-addext", "subjectAltName=DNS:files.example"]
    subprocess.run([*command, "-out", paths[0], "-keyout", paths[1]], check=True, capture_output=True)
    return paths


def test_the_certificate_must_be_that_of_the_name(serve, certificate):
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(*certificate)
    names = []
    server_side.sni_callback = lambda socket, name, context: names.append(name)
    port, _ = serve(answer, tls=server_side)
    trusting = ssl.create_default_context(cafile=str(certificate[0]))
    assert fetched(port, scheme="https", tls=trusting)[0] == b"0123456789"
    assert names == ["files.example"]
    refused(port, "its certificate or its encryption is not valid", host="other.example", scheme="https", tls=trusting)
    refused(port, "its certificate or its encryption is not valid", scheme="https")


def test_redirects_on_the_same_host_are_followed(serve):
    def reply(handler):
        number = int(handler.path.removeprefix("/"))
        if number:
            answer(handler, status=302, Location=f"/{number - 1}")
        else:
            answer(handler)

    port, requests = serve(reply)
    resolver = Resolver([LOOPBACK])
    assert fetched(port, "/3", resolver=resolver) == (b"0123456789", "3")
    assert resolver.asked == ["files.example"] * 4  # each is checked again
    refused(port, "from one address to the next more than 3 times", path="/4")
    assert len(requests) == 8


def test_a_redirect_to_a_name_that_became_private_is_not_followed(serve, connections):
    port, _ = serve(lambda handler: answer(handler, status=307, Location="/again"))
    refused(port, NOT_PUBLIC, resolver=Resolver([LOOPBACK], ["10.0.0.1"]))
    assert connections == [LOOPBACK]


@pytest.mark.parametrize(
    ("location", "sentence"),
    [
        ("http://169.254.169.254/latest/meta-data", "names port 80; only"),
        ("http://other.example:{port}/", "is redirected away from the host files.example"),
        ("//other.example:{port}/", "is redirected away from the host"),
        ("http://files.example:22/", "names port 22"),
        ("file:///etc/passwd", "begin with http"),
        ("http://u:p@files.example:{port}/", "a user name or password"),
        ("/a b", "is redirected away"),
        ("", "is redirected away"),
        (None, "is redirected away"),
    ],
)
def test_redirects_that_are_not_followed(serve, connections, location, sentence):
    port = None

    def reply(handler):
        answer(handler, status=302, Location=location and location.format(port=port))

    port, _ = serve(reply)
    refused(port, sentence)
    assert connections == [LOOPBACK]


@pytest.mark.parametrize(
    ("headers", "body", "sentence", "status"),
    [
        ({"status": 404}, b"", "answers the URL with status 404", 400),
        ({"status": 206}, b"part", "with status 206", 400),
        ({"Content_Encoding": "gzip"}, b"x", "is sent compressed", 400),
        ({"Content_Encoding": "br"}, b"x", "is sent compressed", 400),
        ({"Content_Length": 2**20 + 1}, b"", "too large: at most 1,048,576 bytes", 413),
        ({"Content_Length": 100}, b"ten bytes.", "does not send the whole file", 400),
        ({"Content_Length": "-1"}, b"", "does not keep to HTTP", 400),
        ({"Content_Length": "many"}, b"", "does not keep to HTTP", 400),
        ({"Transfer_Encoding": "chunked", "Content_Length": None}, b"zz\r\n", "does not keep to HTTP", 400),
    ],
)
def test_answers_that_are_refused(serve, headers, body, sentence, status):
    port, _ = serve(lambda handler: answer(handler, body, **headers))
    refused(port, sentence, status)


def test_more_bytes_than_announced_are_not_read(serve):
    port, _ = serve(lambda handler: answer(handler, b"0123456789", Content_Length=4))
    assert fetched(port)[0] == b"0123"


def test_a_body_without_end_is_cut_off(serve):
    sent = []

    def reply(handler):
        handler.send_response(200)
        handler.end_headers()
        while len(sent) < 1000:
            handler.wfile.write(bytes(2**16))
            sent.append(1)

    port, _ = serve(reply)
    refused(port, "too large: at most 1,048,576 bytes", 413)
    time.sleep(0.05)
    count = len(sent)
    assert count < 1000  # the connection was closed


@pytest.mark.parametrize("part", ["headers", "body", "silence"])
def test_a_slow_drip_does_not_outlive_the_deadline(serve, part):
    stop = threading.Event()

    def reply(handler):
        if part == "headers":
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        elif part == "body":
            handler.send_response(200)
            handler.end_headers()
        while not stop.wait(0.02):
            if part != "silence":
                handler.wfile.write(b"a")

    port, _ = serve(reply)
    begin = time.monotonic()
    refused(port, "takes longer than 0.3 seconds|does not answer in time", limits=replace(LIMITS, fetch_seconds=0.3))
    assert time.monotonic() - begin < 20  # without a deadline it would never end
    stop.set()


def test_a_port_without_a_server():
    with socket.create_server((LOOPBACK, 0)) as server:
        port = server.getsockname()[1]
    refused(port, "no connection to the host files.example of the URL: it does not answer")


def test_a_second_address_is_tried(serve, monkeypatch):
    """The first of two checked addresses does not answer."""
    port, _ = serve(answer)
    connect, tried = socket.socket.connect, []

    def failing_first(self, address):
        tried.append(address[0])
        if address[0] == "127.0.0.2":
            raise ConnectionRefusedError
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", failing_first)
    resolver = Resolver(["127.0.0.2", LOOPBACK])
    chunks, _ = fetch(f"http://files.example:{port}/", LIMITS, resolver, lambda address: address.is_loopback, {port})
    assert b"".join(chunks) == b"0123456789" and tried == ["127.0.0.2", LOOPBACK]


def test_the_connection_is_closed_when_reading_is_given_up(serve):
    closed = threading.Event()

    def reply(handler):
        handler.send_response(200)
        handler.end_headers()
        try:
            while True:
                handler.wfile.write(bytes(2**10))
                time.sleep(0.005)
        except OSError:
            closed.set()

    port, _ = serve(reply)
    chunks, _ = fetch(f"http://files.example:{port}/", LIMITS, Resolver([LOOPBACK]), is_loopback, {port})
    assert next(chunks)
    del chunks
    assert closed.wait(10)
