"""A uvicorn server that limits the time of slow clients, and tells clients why their answers end when it does."""

import asyncio
import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from .limits import Limits


KEEP_ALIVE_SECONDS = 5
SHUTDOWN_SECONDS = 5  # until the answers that are under way are cancelled
CUT_SECONDS = 3  # from then until open connections are cut; `docker stop` kills after 10 seconds


def limited_protocol(limits: Limits) -> type[H11Protocol]:
    """
    HTTP/1.1 of which a client cannot hold a connection by sending slowly.

    A connection on which no request is being answered is closed after `limits.header_seconds`, whether its client
    sends nothing, sends its headers byte by byte, or goes on sending a body that was refused. Bodies that are being
    read have their own limit ([`BodyGuard`]), as answers and files have that are being sent; when it has ended one,
    the rest that its client does not read is thrown away. More than `limits.connections` connections are closed at
    once.
    """

    class LimitedProtocol(H11Protocol):
        idle_timer: asyncio.TimerHandle | None = None
        closing_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > limits.connections:
                transport.abort()
                return
            # asyncio sets it only on sockets with a protocol number, and `socket.create_server` sets none. Without it,
            # the body of each answer waits 40 ms for the client to acknowledge the headers
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.watch()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self.watch()

        def pause_writing(self) -> None:
            super().pause_writing()
            self.check_closing()

        def check_closing(self) -> None:
            """Asks again and again whether the connection is to be closed, which would wait for the client."""
            if self.transport.is_closing():
                self.transport.abort()
            else:
                self.closing_timer = self.loop.call_later(limits.header_seconds, self.check_closing)

        def resume_writing(self) -> None:
            self.stop_check_closing()
            super().resume_writing()

        def stop_check_closing(self) -> None:
            if self.closing_timer is not None:
                self.closing_timer.cancel()
                self.closing_timer = None

        def connection_lost(self, exc: Exception | None) -> None:
            self.stop_watch()
            self.stop_check_closing()
            super().connection_lost(exc)

        def watch(self) -> None:
            """Runs the timer as long as no request is being answered."""
            if self.cycle is not None and not self.cycle.response_complete:
                self.stop_watch()
            elif self.idle_timer is None:
                self.idle_timer = self.loop.call_later(limits.header_seconds, self.transport.abort)

        def stop_watch(self) -> None:
            if self.idle_timer is not None:
                self.idle_timer.cancel()
                self.idle_timer = None

    return LimitedProtocol


class GracefulServer(uvicorn.Server):
    """
    A server whose clients learn why an answer ends when the server does.

    When it is told to end, answers that are under way have `SHUTDOWN_SECONDS`; then `end_answers` ends them with an
    error that is still sent. uvicorn alone would cut their connections.
    """

    def __init__(self, config: uvicorn.Config, end_answers: Callable[[], None]):
        super().__init__(config)
        self.end_answers = end_answers

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        ending = asyncio.create_task(self._end_answers())
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()

    async def _end_answers(self) -> None:
        await asyncio.sleep(SHUTDOWN_SECONDS)
        await asyncio.to_thread(self.end_answers)


def make_server(
    app: FastAPI, limits: Limits, verbose: bool = False, end_answers: Callable[[], None] = lambda: None
) -> GracefulServer:
    """
    A server for an app; `server.run(sockets=[...])` serves until SIGINT or SIGTERM. `end_answers` is called in a
    thread when answers go on for more than `SHUTDOWN_SECONDS` after that, and returns when all have ended.
    """
    return GracefulServer(
        uvicorn.Config(
            app,
            http=limited_protocol(limits),
            ws="none",
            log_level="info" if verbose else "warning",
            access_log=verbose,
            server_header=False,
            proxy_headers=False,  # addresses of clients decide nothing
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=SHUTDOWN_SECONDS + CUT_SECONDS,
        ),
        end_answers,
    )
