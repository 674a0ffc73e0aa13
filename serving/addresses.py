"""Fetches a video or picture from an http or https URL that a client names, without lending the client the server's
place in the network.

Every address that the host's name stands for must be public, and the connection goes to an address that was checked:
the name is not looked up again. Redirects stay on their host. The size, the number of redirects and the whole time are
limited. Settings of the environment, such as proxies, have no effect.
"""

import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any, Protocol
from urllib.parse import unquote, urljoin, urlsplit

import httpcore2

from .media import TOO_LARGE, FileRefused


Address = IPv4Address | IPv6Address
Resolver = Callable[..., list]

DEFAULT_PORTS = {"http": 80, "https": 443}
MAX_URL = 4096  # characters; signed URLs of storage services have about 1,000
PRINTABLE = re.compile(r"[!-~]+")  # no blanks, control characters or letters outside ASCII
HOST_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?)*")
# A name that ends like this is a number in the eyes of some resolvers: 2130706433 and 0x7f.1 are 127.0.0.1
NUMERIC_END = re.compile(r"(.*\.)?(\d+|0x[0-9a-f]*)")
# Host and port of a URL; what urlsplit makes of other forms depends on the version of Python
HOST_AND_PORT = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\[\]:]*))(?::(\d{0,5}))?")
UNICAST_IPV6 = IPv6Network("2000::/3")
# Two stand for an address of IPv4, which would have to be checked in turn; the last is for documentation
OTHER_IPV6 = tuple(map(IPv6Network, ("2001::/32", "2002::/16", "3fff::/20")))  # Teredo, 6to4
RELAYS_IPV4 = IPv4Network("192.88.99.0/24")  # of 6to4
REDIRECTS = frozenset({301, 302, 303, 307, 308})
HEADERS = [("Accept", "video/*, image/*, */*;q=0.1"), ("Accept-Encoding", "identity"), ("User-Agent", "sama")]
FETCH_ERRORS = (httpcore2.NetworkError, httpcore2.TimeoutException, httpcore2.ProtocolError, ssl.SSLError)


class FetchLimits(Protocol):
    """The limits of fetching; fields of `Limits` in limits.py."""

    @property
    def upload_bytes(self) -> int: ...

    @property
    def fetch_seconds(self) -> float: ...

    @property
    def redirects(self) -> int: ...


def is_public(address: Address) -> bool:
    """Whether an address is one of the public Internet, and of one host."""
    if isinstance(address, IPv6Address):
        other = any(address in network for network in OTHER_IPV6)
        return address in UNICAST_IPV6 and address.is_global and not other
    return address.is_global and not (address.is_multicast or address.is_reserved or address in RELAYS_IPV4)


def fetch(
    url: str,
    limits: FetchLimits,
    resolver: Resolver = socket.getaddrinfo,
    is_allowed: Callable[[Address], bool] = is_public,
    ports: Collection[int] = frozenset(DEFAULT_PORTS.values()),
    tls: ssl.SSLContext | None = None,
) -> tuple[Iterator[bytes], str]:
    """
    Asks for a URL and returns what comes, piece by piece, and the name of the file in the URL.

    Args:
        url (`str`)
        limits: With `upload_bytes`, `fetch_seconds` and `redirects`, as [`Limits`] has them.
        resolver (`Callable`, *optional*): Called as `socket.getaddrinfo` is.
        is_allowed (`Callable`, *optional*): Which addresses may be connected to.
        ports (collection of `int`, *optional*): Which ports may be connected to.
        tls (`ssl.SSLContext`, *optional*): By default, the certificate must be one that this machine trusts.

    Raises:
        FileRefused: for a URL that is not fetched, an answer that is not a file, and whatever goes wrong on the way;
            also while the pieces are read.
    """
    deadline = _Deadline(limits.fetch_seconds)
    target = _parsed(url, ports)
    name = unquote(target.path.partition("?")[0].rpartition("/")[2])
    for _ in range(limits.redirects + 1):
        addresses = _checked_addresses(target, deadline, resolver, is_allowed)
        with ExitStack() as stack, _refusals(target):
            response = _asked(target, addresses, deadline, tls, stack)
            if response.status not in REDIRECTS:
                return _Body(response, target, limits.upload_bytes, deadline, stack.pop_all()), name
            target = _redirected(target, response, ports)
    raise FileRefused(f"The URL leads from one address to the next more than {limits.redirects} times.")


# ---- the URL --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Target:
    """A checked URL; `path` includes the query."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.path}"


def _parsed(url: str, ports: Collection[int]) -> _Target:
    if len(url) > MAX_URL:
        raise FileRefused(f"The URL has {len(url):,} characters; at most {MAX_URL:,} are accepted.")
    if not PRINTABLE.fullmatch(url) or "\\" in url:
        raise FileRefused(
            "The URL contains a character that is not allowed in one, such as a blank or a letter outside ASCII: "
            "percent-encode its path, and write its host as xn--..."
        )
    try:
        parts = urlsplit(url)
    except ValueError:
        raise FileRefused("The URL cannot be read: its host or port is not valid.") from None
    if parts.scheme not in DEFAULT_PORTS:
        raise FileRefused("A URL must begin with http:// or https://.")
    if "@" in parts.netloc:
        raise FileRefused("The URL holds a user name or password, which is not accepted.")
    match = HOST_AND_PORT.fullmatch(parts.netloc)
    if match is None:
        raise FileRefused("The URL cannot be read: its host or port is not valid.")
    host = _checked_host((match[1] or match[2]).lower(), in_brackets=match[1] is not None)
    port = int(match[3]) if match[3] else DEFAULT_PORTS[parts.scheme]
    if port not in ports:
        allowed = " and ".join(str(one) for one in sorted(ports))
        raise FileRefused(f"The URL names port {port}; only {allowed} are accepted.")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return _Target(parts.scheme, host, port, path)


def _checked_host(host: str, in_brackets: bool) -> str:
    """A name or an address in its usual form; an address of IPv6 without its brackets."""
    try:
        address = ip_address(host)
    except ValueError:
        address = None
    if address is not None and in_brackets == (address.version == 6):
        return str(address)
    if in_brackets or not HOST_NAME.fullmatch(host) or NUMERIC_END.fullmatch(host):
        raise FileRefused("The URL cannot be read: its host is neither a name nor an address in its usual form.")
    return host


def _checked_addresses(
    target: _Target, deadline: "_Deadline", resolver: Resolver, is_allowed: Callable[[Address], bool]
) -> list[Address]:
    """The addresses of the host, all of which may be connected to."""
    try:
        addresses = [ip_address(target.host)]
    except ValueError:
        addresses = _resolved(target, deadline, resolver)
    if not addresses:
        raise FileRefused(f"The host {target.host} of the URL cannot be found.")
    if not all(map(is_allowed, addresses)):
        raise FileRefused(f"The URL is not fetched: the host {target.host} is not one of the public Internet.")
    return addresses


def _resolved(target: _Target, deadline: "_Deadline", resolver: Resolver) -> list[Address]:
    """What the name of the host stands for. In a thread, because a look-up knows no time limit."""
    results: list[Any] = []

    def resolve() -> None:
        try:
            results.append(resolver(target.host, target.port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError):
            results.append([])

    thread = threading.Thread(target=resolve, name="sama-resolver", daemon=True)
    thread.start()
    thread.join(deadline.remaining())
    deadline.remaining()
    addresses = (ip_address(entry[4][0]) for entry in results[0])
    return list(dict.fromkeys(addresses))


# ---- the exchange ---------------------------------------------------------------------------------------------------


class _Deadline:
    """The time for everything together."""

    def __init__(self, seconds: float):
        self.seconds, self.end = seconds, time.monotonic() + seconds

    def remaining(self) -> float:
        """Seconds that are left; raises [`FileRefused`] if there are none."""
        remaining = self.end - time.monotonic()
        if remaining <= 0:
            raise FileRefused(f"Fetching the URL takes longer than {self.seconds:g} seconds, which is the limit.")
        return remaining


class _PinnedBackend(httpcore2.NetworkBackend):
    """Connects to one of the checked addresses, whatever the name of the host stands for by now."""

    def __init__(self, addresses: Iterable[Address], deadline: _Deadline):
        self.addresses, self.deadline = list(addresses), deadline
        self.backend = httpcore2.SyncBackend()

    def connect_tcp(self, host, port, timeout=None, local_address=None, socket_options=None):
        problem: Exception = httpcore2.ConnectError("no address")
        for address in self.addresses:
            try:
                stream = self.backend.connect_tcp(str(address), port, timeout=self.deadline.remaining())
                return _TimedStream(stream, self.deadline)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                problem = error
        raise problem


class _TimedStream(httpcore2.NetworkStream):
    """A connection on which every wait ends at the deadline."""

    def __init__(self, stream: httpcore2.NetworkStream, deadline: _Deadline):
        self.stream, self.deadline = stream, deadline

    def read(self, max_bytes, timeout=None):
        return self.stream.read(max_bytes, self.deadline.remaining())

    def write(self, buffer, timeout=None):
        self.stream.write(buffer, self.deadline.remaining())

    def close(self):
        self.stream.close()

    def start_tls(self, ssl_context, server_hostname=None, timeout=None):
        stream = self.stream.start_tls(ssl_context, server_hostname, self.deadline.remaining())
        return _TimedStream(stream, self.deadline)

    def get_extra_info(self, info):
        return self.stream.get_extra_info(info)


def _asked(
    target: _Target, addresses: list[Address], deadline: _Deadline, tls: ssl.SSLContext | None, stack: ExitStack
) -> httpcore2.Response:
    """The response, whose body was not read; the connection is open until the stack is closed."""
    backend = _PinnedBackend(addresses, deadline)
    context = tls or ssl.create_default_context()
    pool = stack.enter_context(httpcore2.ConnectionPool(ssl_context=context, network_backend=backend, retries=0))
    return stack.enter_context(pool.stream("GET", target.url, headers=HEADERS))


@contextmanager
def _refusals(target: _Target) -> Iterator[None]:
    """What goes wrong on the way, as one sentence without details of the network."""
    try:
        yield
    except httpcore2.TimeoutException as error:
        raise FileRefused(f"The host {target.host} of the URL does not answer in time.") from error
    except httpcore2.ConnectError as error:
        certificate = any(isinstance(cause, ssl.SSLError) for cause in error.args)
        problem = "its certificate or its encryption is not valid" if certificate else "it does not answer"
        raise FileRefused(f"There is no connection to the host {target.host} of the URL: {problem}.") from error
    except FETCH_ERRORS as error:
        raise FileRefused(
            f"The host {target.host} of the URL does not send the whole file: the connection ended early, or it does "
            "not keep to HTTP."
        ) from error


def _redirected(target: _Target, response: httpcore2.Response, ports: Collection[int]) -> _Target:
    """Where a redirect leads, on the same host."""
    location = _header(response, b"location") or ""
    found = _parsed(urljoin(target.url, location), ports) if PRINTABLE.fullmatch(location) else None
    if found is None or found.host != target.host or (target.scheme, found.scheme) == ("https", "http"):
        raise FileRefused(
            f"The URL is redirected away from the host {target.host}, or from https to http, which is not followed: "
            "give the URL of the file itself."
        )
    return found


def _header(response: httpcore2.Response, name: bytes) -> str | None:
    values = [value for key, value in response.headers if key.lower() == name]
    return b", ".join(values).decode("latin-1").strip() if values else None


class _Body(Iterator[bytes]):
    """The pieces of a file. The connection is closed behind the last one, by an error, and by `close`."""

    def __init__(
        self, response: httpcore2.Response, target: _Target, max_bytes: int, deadline: _Deadline, stack: ExitStack
    ):
        self._stack, self._target, self._deadline = stack, target, deadline
        self._max_bytes, self._size = max_bytes, 0
        with self._closed_by_errors():
            self._check(response)
        self._chunks = response.iter_stream()

    def _check(self, response: httpcore2.Response) -> None:
        if response.status != 200:
            raise FileRefused(f"The host {self._target.host} answers the URL with status {response.status}.")
        encoding = (_header(response, b"content-encoding") or "identity").lower()
        if encoding != "identity":
            raise FileRefused(
                "The file of the URL is sent compressed (Content-Encoding), although that was not asked for."
            )
        length = _header(response, b"content-length")
        if length is not None and int(length) > self._max_bytes:
            raise self._too_large()

    def __next__(self) -> bytes:
        with self._closed_by_errors(), _refusals(self._target):
            chunk = next(self._chunks)
            self._size += len(chunk)
            if self._size > self._max_bytes:
                raise self._too_large()
            self._deadline.remaining()
            return chunk

    def _too_large(self) -> FileRefused:
        return FileRefused(
            f"The file of the URL is too large: at most {self._max_bytes:,} bytes are accepted.", TOO_LARGE
        )

    @contextmanager
    def _closed_by_errors(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Closes the connection."""
        self._stack.close()

    def __del__(self) -> None:
        self.close()
