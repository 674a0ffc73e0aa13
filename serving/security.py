"""
Who may ask the server what: the checks that come before a request's body is read, as ASGI middleware, outermost first.

| class | checks |
|---|---|
| [`BrowserGuard`] | the name by which the server is called, the page that calls, and the headers of every answer |
| Starlette's `CORSMiddleware` | which answers other pages may read; only with allowed origins |
| [`KeyGuard`] | the API key |
| [`BodyGuard`] | how large a body is and how fast it arrives, counted as it arrives |
"""

import hmac
import ipaddress
import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import ApiError, error_response, retry_after, shown
from .limits import Limits, option


LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
PROTECTED = ("/v1", "/metrics")  # need the API key, with everything below; the page, its files and /health do not
UPLOAD_PATH = "/v1/files"
FORM_BYTES = 64 * 1024  # of a form around its file
_KEY = re.compile(r"[!-~]{1,512}")
_ORIGIN = re.compile(r"https?://[a-z0-9.\-]+(:[0-9]{1,5})?|https?://\[[0-9a-f:]+\](:[0-9]{1,5})?")


@dataclass(frozen=True)
class Access:
    """
    Who may use the server.

    Args:
        api_key (`str`, *optional*): what requests to `/v1` and `/metrics` must send as `Authorization: Bearer KEY`.
        hosts (`frozenset[str]`, *optional*): names by which the server may be called, without port; any if `None`.
            A server on the loopback address needs them: otherwise any web page could reach it under its own name
            (DNS rebinding).
        origins (`tuple[str, ...]`): other web pages that may use the server, `https://example.org`.
        urls (`bool`): whether http(s) URLs in messages are fetched.

    Raises:
        ValueError: for a key or an origin that cannot be sent in a header.
    """

    api_key: str | None = field(default=None, repr=False)
    hosts: frozenset[str] | None = LOOPBACK_NAMES
    origins: tuple[str, ...] = ()
    urls: bool = False

    def __post_init__(self):
        if self.api_key is not None and not _KEY.fullmatch(self.api_key):
            raise ValueError("The API key must be 1 to 512 printable ASCII characters without spaces.")
        for origin in self.origins:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"An allowed origin looks like https://example.org, with a port if needed, got {origin!r}."
                )


def is_loopback(host: str) -> bool:
    """Whether an address to listen on can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def access_for(host: str, api_key: str | None, origins: tuple[str, ...], hosts: tuple[str, ...], urls: bool) -> Access:
    """
    The access that suits an address to listen on.

    Raises:
        ValueError: for an address other than loopback without an API key.
    """
    if is_loopback(host):
        return Access(api_key, LOOPBACK_NAMES | {host.lower()} | {name.lower() for name in hosts}, origins, urls)
    if api_key is None:
        raise ValueError(
            f"Listening on {host} lets other machines in, so it needs an API key: set SAMA_API_KEY or --api-key."
        )
    return Access(api_key, frozenset(name.lower() for name in hosts) or None, origins, urls)


def security_headers(access: Access) -> dict[str, str]:
    """Headers of every answer. Scripts, styles and connections come from the server itself only; frames are refused
    except by allowed origins."""
    policy = {
        "default-src": "'self'",
        "img-src": "'self' blob: data:",
        "media-src": "'self' blob:",
        "object-src": "'none'",
        "base-uri": "'none'",
        "form-action": "'self'",
        "frame-ancestors": " ".join(access.origins) or "'none'",
    }
    return {
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    }


def route_path(scope: Scope) -> str:
    """The path below the place at which the app is mounted."""
    path, root = scope["path"], scope.get("root_path", "")
    return path[len(root) :] if root and path.startswith(f"{root}/") else path


def host_name(netloc: str) -> str:
    """The name or address in a Host header, in small letters and without its port."""
    name = netloc.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.rpartition(":")[0] if ":" in name else name


class BrowserGuard:
    """Refuses requests under a foreign name and from foreign web pages, and WebSockets; adds the security headers."""

    def __init__(self, app: ASGIApp, access: Access):
        self.app, self.access = app, access
        self.headers = security_headers(access)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1003, "reason": "There are no WebSockets here."})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self.headers.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            self.check(Headers(scope=scope))
        except ApiError as error:
            await error_response(error)(scope, receive, send_with_headers)
            return
        await self.app(scope, receive, send_with_headers)

    def check(self, headers: Headers) -> None:
        """Raises an [`ApiError`] for a request that is refused."""
        host = headers.get("host", "")
        if self.access.hosts is not None and host_name(host) not in self.access.hosts:
            name = shown(host, 60) or "no name"
            raise ApiError(403, f"This server is not called {name}; start it with --allow-host to use that name.")
        if "websocket" in headers.get("upgrade", "").lower():
            raise ApiError(400, "There are no WebSockets here.")
        origin = headers.get("origin")
        if origin is not None and origin not in self.access.origins and not same_origin(origin, host):
            raise ApiError(403, f"Pages of {shown(origin, 60)} may not use this server; --allow-origin lets them.")
        if origin is None and headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            # A link from another page opens this one. Pictures and scripts that it embeds come without an origin
            if headers.get("sec-fetch-mode") != "navigate":
                raise ApiError(403, "Other pages may not embed what is here; --allow-origin lets them fetch it.")


def same_origin(origin: str, host: str) -> bool:
    """Whether a page comes from the server itself. A proxy may add TLS, so that the scheme says nothing."""
    try:
        return urlsplit(origin).netloc.lower() == host.strip().lower() != ""
    except ValueError:
        return False


class KeyGuard:
    """Refuses requests without the API key, before their body is read."""

    def __init__(self, app: ASGIApp, access: Access):
        self.app, self.access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = route_path(scope) if scope["type"] == "http" else ""
        if path.startswith(tuple(f"{root}/" for root in PROTECTED)) or path in PROTECTED:
            try:
                self.check(Headers(scope=scope))
            except ApiError as error:
                await error_response(error)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def check(self, headers: Headers) -> None:
        """Raises an [`ApiError`] unless the key is right. The comparison takes the same time whatever is sent."""
        if self.access.api_key is None:
            return
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = key.strip().encode("latin-1", "replace") if scheme.lower() == "bearer" else b""
        if not hmac.compare_digest(given, self.access.api_key.encode("ascii")):
            said = "is wrong" if given else "is missing; send it as Authorization: Bearer KEY"
            raise ApiError(401, f"The API key {said}.", code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


class BodyGuard:
    """Counts the bytes of each body as they arrive, whatever its headers claim, and gives them a limited time."""

    def __init__(self, app: ASGIApp, limits: Limits):
        self.app, self.limits = app, limits
        self.buffered_bytes = 0  # of all requests that are being received or processed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body = _Body(self, receive, self.largest(scope))
        try:
            body.check_headers(Headers(scope=scope))
            await self.app(scope, body.receive, send)
        except _Refused as refused:
            await error_response(refused.error)(scope, receive, send)
        finally:
            self.buffered_bytes -= body.received

    def largest(self, scope: Scope) -> tuple[int, str]:
        """How many bytes a body may have, and the option that sets it."""
        if route_path(scope) == UPLOAD_PATH:
            return self.limits.upload_bytes + FORM_BYTES, option("upload_bytes")
        return self.limits.json_bytes, option("json_bytes")


class _Refused(Exception):
    """Of a request whose headers say already that its body cannot be read."""

    def __init__(self, error: ApiError):
        self.error = error


class _Body:
    """
    The body of one request on its way in.

    Args:
        guard ([`BodyGuard`]): counts the bytes of all bodies.
        receive (`Callable`): of the ASGI server.
        largest (`tuple[int, str]`): how many bytes the body may have, and the option that sets it.
    """

    def __init__(self, guard: BodyGuard, receive: Receive, largest: tuple[int, str]):
        self.guard, self.limits, self.source = guard, guard.limits, receive
        self.largest, self.option = largest
        self.received, self.complete = 0, False
        self.waited = 0.0  # seconds

    def check_headers(self, headers: Headers) -> None:
        """Raises [`_Refused`] for a body that is compressed, or whose Content-Length is more than allowed."""
        if headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
            raise _Refused(ApiError(415, "Compressed bodies are not accepted; send it without Content-Encoding."))
        length = headers.get("content-length", "0")
        if length.isascii() and length.isdecimal() and int(length[:19]) > self.largest:
            raise _Refused(self.too_large())

    def too_large(self) -> ApiError:
        return ApiError(413, f"The body has more than {self.largest:,} bytes ({self.option}).", code="too_large")

    async def receive(self) -> Message:
        """
        The next message of the ASGI server. Until the body is complete, waiting for all messages together may take
        `body_seconds` plus the bytes so far divided by `body_rate`: a body that keeps to this rate on average has
        `body_seconds` to spare. What the server does between two messages does not count.

        Raises:
            ApiError: if the body is too late (408), too large (413), or if all bodies together are (503).
        """
        if self.complete:
            return await self.source()
        allowed = self.limits.body_seconds + self.received / self.limits.body_rate
        started = anyio.current_time()
        try:
            with anyio.fail_after(max(0.0, allowed - self.waited)):
                message = await self.source()
        except TimeoutError:
            self.complete = True
            raise ApiError(
                408,
                f"The body did not arrive in time: {self.received:,} bytes in {allowed:.0f} seconds "
                f"({option('body_seconds')}, {option('body_rate')}).",
            ) from None
        self.waited += anyio.current_time() - started
        if message["type"] == "http.request":
            size = len(message.get("body", b""))
            self.received += size
            self.guard.buffered_bytes += size
            self.complete = not message.get("more_body", False)
            if self.received > self.largest:
                raise self.too_large()
            if self.guard.buffered_bytes > self.limits.buffered_bytes:
                raise ApiError(
                    503, "The server is receiving too much at once; try again later.", headers=retry_after(5)
                )
        return message
