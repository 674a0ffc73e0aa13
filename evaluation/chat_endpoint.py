"""
One request to an OpenAI-compatible endpoint, with the `openai` client. The endpoint is not trusted: redirects are not
followed, because the request carries the API key; the whole exchange has a deadline and the reply a size limit.
"""

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

import httpx2
import openai


MAX_REPLY_BYTES = 4 * 2**20
CONNECT_SECONDS = 30.0


class NoReplyError(Exception):
    """There is no usable reply; `temporary` says whether another request may get one, `sent` whether the request may
    have reached the endpoint."""

    def __init__(self, problem: str, temporary: bool, sent: bool = True):
        super().__init__(problem)
        self.temporary, self.sent = temporary, sent


@dataclass(frozen=True)
class EndpointReply:
    """Status, headers and body of a reply, whatever the status is."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class _LimitedStream(httpx2.AsyncByteStream):
    """The body of a reply; [`NoReplyError`] as soon as it is larger than `MAX_REPLY_BYTES`."""

    def __init__(self, stream: httpx2.AsyncByteStream):
        self.stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in self.stream:
            size += len(chunk)
            if size > MAX_REPLY_BYTES:
                raise NoReplyError(f"its reply is larger than {MAX_REPLY_BYTES:,} bytes", temporary=False)
            yield chunk

    async def aclose(self) -> None:
        await self.stream.aclose()


async def _limit(response: httpx2.Response) -> None:
    """Called with every response before its body is read."""
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding != "identity":  # a small body could be decompressed to gigabytes
        raise NoReplyError(f"its reply is compressed ({encoding[:20]}), which was not asked for", temporary=False)
    response.stream = _LimitedStream(response.stream)


@cache
def _certificates() -> ssl.SSLContext:
    """The trusted certificates, which take longer to read than a short reply."""
    return httpx2.create_ssl_context()


def post_chat(base_url: str, key: str | None, request: Mapping[str, Any], timeout_s: float) -> EndpointReply:
    """
    Sends a chat completion request once.

    Args:
        base_url (`str`): URL without `/chat/completions`.
        key (`str`, *optional*): API key; without one no `Authorization` header is sent.
        request (`dict`): `model`, `messages` and generation settings. With `stream`, the body is the whole stream of
            events.
        timeout_s (`float`): Seconds for the whole exchange, from the name lookup to the last byte of the reply.

    Raises:
        [`NoReplyError`]: No connection, no complete reply in time, or a reply that is too large.
        UnicodeEncodeError: The messages contain surrogates.
    """
    # What is raised here has no context: the client's errors hold the request with its key
    found = _run(_post_chat(base_url, key, request, timeout_s))
    if isinstance(found, Exception):
        raise found
    return found


async def _post_chat(base_url: str, key: str | None, request: Mapping, timeout_s: float) -> EndpointReply | Exception:
    async def authorize(request: httpx2.Request) -> None:
        if key is not None:
            request.headers["Authorization"] = f"Bearer {key}"

    omitted = dict.fromkeys(("Authorization", "OpenAI-Organization", "OpenAI-Project"), openai.Omit())
    own = {"Accept-Encoding": "identity", **omitted}
    hooks = {"request": [authorize], "response": [_limit]}
    http = openai.DefaultAsyncHttpxClient(follow_redirects=False, event_hooks=hooks, verify=_certificates())
    # Without retries: callers repeat requests themselves, and say how often they did. Before the deadline of the whole
    # exchange, so that it is known that nothing was sent
    timeout = openai.Timeout(timeout_s, connect=min(CONNECT_SECONDS, timeout_s / 2))
    options = {"base_url": base_url, "api_key": "unused", "max_retries": 0, "timeout": timeout}
    async with openai.AsyncOpenAI(http_client=http, **options) as client:
        try:
            async with asyncio.timeout(timeout_s):
                raw = await client.chat.completions.with_raw_response.create(**request, extra_headers=own)
                response = raw.http_response
                await response.aread()  # what is left of it: all, if it was asked for in parts
        except openai.APIStatusError as error:
            response = error.response
        except TimeoutError:
            return NoReplyError(f"no complete reply within {timeout_s:g} seconds", temporary=True)
        except UnicodeEncodeError as error:
            return UnicodeEncodeError(*error.args)
        except (NoReplyError, openai.OpenAIError, httpx2.HTTPError) as error:
            return _no_reply(error)
        return EndpointReply(response.status_code, dict(response.headers), response.content)


def _no_reply(error: BaseException) -> NoReplyError:
    """The cause of a failed exchange; the client itself only says "Connection error"."""
    problem, sent = str(error), True
    while error is not None and not isinstance(error, NoReplyError):
        sent = sent and not isinstance(error, (httpx2.ConnectError, httpx2.ConnectTimeout))
        if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
            problem = os.strerror(error.errno)
        elif isinstance(error, (httpx2.HTTPError, OSError)) and str(error):
            problem = str(error)
        error = error.__cause__ or error.__context__
    return error or NoReplyError(problem, temporary=True, sent=sent)


def _run(coroutine: Coroutine) -> Any:
    """The result of a coroutine; in a thread of its own where an event loop runs already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(asyncio.run, coroutine).result()
