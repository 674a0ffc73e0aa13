"""The answer to a chat request: from the request to the engine's events and back, under one time limit. It is
cancelled as soon as its client has left."""

import json
import threading
from contextlib import ExitStack

import anyio
from anyio import to_thread
from anyio.lowlevel import checkpoint
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .answers import SERVER_ERROR, SSE_END, Answer, log
from .engine import Question
from .errors import ApiError, error_response
from .limits import option
from .requests import find_media, question_of
from .schema import ChatRequest
from .service import Service
from .session import EventStream


SSE_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",
}
ERROR_SEND_SECONDS = 1.0  # for the error of an answer that took too long, whose client may not be reading


class ChatResponse(Response):
    """
    Args:
        service ([`Service`])
        request ([`ChatRequest`])
    """

    def __init__(self, service: Service, request: ChatRequest):
        super().__init__()
        self.service, self.request = service, request
        self.answer = Answer(service.model_name, service.public, service.metrics.first_token_timer())
        self.stream: EventStream | None = None
        self.begun = False
        self.stop = threading.Event()  # ends the conversion of a video that comes with the question

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        seconds, holding = self.service.limits.request_seconds, ExitStack()
        try:
            with anyio.move_on_after(seconds) as limit:
                async with anyio.create_task_group() as group:
                    group.start_soon(cancel_when_closed, receive, group.cancel_scope)
                    group.start_soon(set_when_cancelled, self.stop)
                    await self.respond(holding, scope, receive, send)
                    group.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                await to_thread.run_sync(self.close, holding, limiter=self.service.threads.closing)
        if limit.cancelled_caught:
            message = f"The answer took longer than {seconds:g} seconds ({option('request_seconds')})."
            # Asking again would take as long
            error = ApiError(504, message, headers={"x-should-retry": "false"})
            with anyio.move_on_after(ERROR_SEND_SECONDS):
                await self.send_error(error, scope, receive, send)

    def close(self, holding: ExitStack) -> None:
        """Cancels the answer unless it is complete, and releases its file."""
        with holding:
            if self.stream is not None:
                self.stream.close()

    async def respond(self, holding: ExitStack, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers; errors become answers, too."""
        try:
            self.stream = await self.ask(holding)
            if self.request.stream:
                await self.send_events(self.stream, send)
            else:
                await self.send_completion(self.stream, send)
        except ApiError as error:
            await checkpoint()  # an answer that was cancelled ends here, whatever error that caused
            await self.send_error(error, scope, receive, send)
        except Exception:
            log.exception("A question could not be answered")
            await self.send_error(ApiError(500, SERVER_ERROR), scope, receive, send)

    async def ask(self, holding: ExitStack) -> EventStream:
        """The events of the answer."""
        service, request = self.service, self.request
        engine = service.engine
        if request.model not in (None, service.model_name):
            raise ApiError(
                404, f"There is no model of this name here; this is {service.model_name}.", "model", "model_not_found"
            )
        reference, media = find_media(request.messages), None
        if reference is not None:
            limiter = service.threads.quick if reference.source.file_id else service.threads.storing
            media = await service.run(limiter, service.open_media, reference, holding, self.stop)

        def question() -> Question:
            path = None if media is None else service.store.path(media.id)
            return question_of(request, media, path, service.limits)

        return await service.run(service.threads.quick, engine.ask, await service.run(service.threads.quick, question))

    async def send_completion(self, stream: EventStream, send: Send) -> None:
        def collect() -> bytes:
            for event in stream:
                self.answer.take(event)
            return json.dumps(self.answer.completion(), ensure_ascii=False, separators=(",", ":")).encode("utf-8")

        # The thread ends when the stream is closed
        body = await to_thread.run_sync(collect, limiter=self.service.threads.reading, abandon_on_cancel=True)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        await self.send_start(headers, send)
        await send({"type": "http.response.body", "body": body})

    async def send_events(self, stream: EventStream, send: Send) -> None:
        """Each event as soon as it is there. Nothing is read from the engine while the client does not read."""
        options = self.request.stream_options
        include_usage = options is not None and bool(options.include_usage)

        def advance() -> bytes | None:
            for event in stream:
                return b"".join(self.answer.events(event, include_usage))
            return None

        async def next_chunk() -> bytes | None:
            return await to_thread.run_sync(advance, limiter=self.service.threads.reading, abandon_on_cancel=True)

        chunk = await next_chunk()
        if self.answer.error is not None:  # before the first token a status can still tell
            raise self.answer.error
        await self.send_start(SSE_HEADERS, send)
        await send({"type": "http.response.body", "body": self.answer.first_event(), "more_body": True})
        while chunk is not None:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
            chunk = await next_chunk()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def send_start(self, headers: dict[str, str], send: Send) -> None:
        self.begun = True
        raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": 200, "headers": raw})

    async def send_error(self, error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
        """As a status, or as the last event of an answer that has begun."""
        if not self.begun:
            await error_response(error)(scope, receive, send)
        elif self.request.stream:
            body = self.answer.error_event(error) + SSE_END
            await send({"type": "http.response.body", "body": body, "more_body": False})


async def cancel_when_closed(receive: Receive, scope: anyio.CancelScope) -> None:
    """Waits until the client has closed the connection, then cancels."""
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


async def set_when_cancelled(stop: threading.Event) -> None:
    """Waits until the scope is cancelled, then sets `stop`: a thread that cannot be abandoned looks at it."""
    try:
        await anyio.sleep_forever()
    finally:
        stop.set()
