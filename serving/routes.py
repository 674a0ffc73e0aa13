"""The routes of the server. Their models in schema.py are the documentation."""

import asyncio
import threading
from collections.abc import Awaitable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, TypeVar

import anyio.lowlevel
from fastapi import APIRouter, Depends, File, Form, Request, UploadFile
from fastapi import Path as PathField
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from ..data.masks import encode_rle
from .bodies import StrictRoute
from .chat_route import ChatResponse
from .download import export
from .errors import MAX_NAME, ApiError, error_response, retry_after, shown
from .files import CHUNK_BYTES, StoredFile
from .limits import Limits
from .requests import ConversationReader
from .schema import (
    FILE_ID,
    ChatCompletion,
    ChatRequest,
    DeletedFile,
    ErrorBody,
    ExportRequest,
    FileList,
    FileObject,
    Health,
    ModelList,
    PreviewMask,
    PreviewRequest,
)
from .service import Service


Result = TypeVar("Result")
# The content of a file never changes, since its id is a hash of it
CACHE = {"Cache-Control": "private, max-age=86400, immutable"}
NO_STORE = {"Cache-Control": "no-store"}
FORM_FIELDS = {"file", "purpose"}
PREVIEW_SECONDS = 1  # until a client whose preview found no place should ask again

ERRORS = {
    400: "the request is wrong",
    401: "the API key is missing or wrong",
    403: "the name of the server, or the page that calls, is not allowed",
    404: "there is no such file or model",
    408: "the body did not arrive in time",
    413: "too large",
    415: "of a type that is not accepted",
    416: "the range lies outside the file",
    429: "too many questions are waiting; Retry-After says when to ask again",
    500: "an error in the server",
    503: "the model is being loaded, the server has no memory left, or it is shutting down; Retry-After",
    504: "the answer took too long",
    507: "there is no space left",
}
BODY_ERRORS = (408, 413, 415, 503)


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What the documentation says of a route's errors, beside those that every route has."""
    return {one: {"model": ErrorBody, "description": ERRORS[one]} for one in (400, 401, 403, 500, *statuses)}


def media_types(text: str, *types: str) -> dict[int | str, dict[str, Any]]:
    """What the documentation says of an answer that is not JSON."""
    schema = {"schema": {"type": "string", "format": "binary"}}
    return {200: {"description": text, "content": dict.fromkeys(types, schema)}}


def service_of(request: Request) -> Service:
    """What [`create_app`] was given."""
    return request.app.state.service


TheService = Annotated[Service, Depends(service_of)]
FileId = Annotated[str, PathField(pattern=FILE_ID, description="id of an uploaded file")]
public = APIRouter(route_class=StrictRoute)
protected = APIRouter(route_class=StrictRoute)  # needs the API key: see PROTECTED in security.py


# ---- about the server


@public.head("/health", include_in_schema=False)
@public.get("/health", response_model=Health, responses=errors(503))
async def health(service: TheService) -> Response:
    """Whether the model is loaded."""
    return JSONResponse({"status": "ok", "model": service.loaded_model}, headers=NO_STORE)


@protected.head("/v1/models", include_in_schema=False)
@protected.get("/v1/models", response_model=ModelList, responses=errors(503))
async def models(service: TheService) -> Response:
    """The model that answers."""
    card = {"id": service.loaded_model, "object": "model", "created": service.started_at, "owned_by": "sama"}
    return JSONResponse({"object": "list", "data": [card]}, headers=NO_STORE)


@protected.head("/metrics", include_in_schema=False)
@protected.get(
    "/metrics", response_class=Response, responses=media_types("Prometheus' text format", "text/plain") | errors()
)
async def metrics(service: TheService) -> Response:
    """Counters for Prometheus."""
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4", headers=NO_STORE)


# ---- files


def file_object(stored: StoredFile) -> dict:
    """A stored file as clients see it."""
    return {"object": "file"} | {name: vars(stored)[name] for name in FileObject.model_fields if name != "object"}


@protected.post("/v1/files", response_model=FileObject, responses=errors(*BODY_ERRORS, 507))
async def add_file(
    request: Request,
    service: TheService,
    file: Annotated[UploadFile, File(description="a video or picture")],
    purpose: Annotated[str | None, Form(description="accepted as OpenAI's client sends it, without an effect")] = None,
) -> Response:
    """Stores a video or picture. The same content has the same id."""
    unknown = sorted(set(await request.form()) - FORM_FIELDS)
    if unknown:
        name = shown(unknown[0], MAX_NAME)
        raise ApiError(400, f"There is no field {name}; the form has file and purpose.", name)
    chunks = iter(lambda: file.file.read(CHUNK_BYTES), b"")
    stop = threading.Event()
    adding = service.run(service.threads.storing, service.store.add, chunks, file.filename or "", stop)
    stored = await run_until_closed(request.receive, stop, adding)
    return JSONResponse(file_object(stored))


@protected.get("/v1/examples", response_model=FileList, responses=errors(503, 507))
async def examples(service: TheService) -> Response:
    """The clips that ship with the server, as stored files."""
    found = await service.run(service.threads.examples, service.examples)
    return JSONResponse({"object": "list", "data": [file_object(stored) for stored in found]})


@protected.head("/v1/files/{file_id}", include_in_schema=False)
@protected.get("/v1/files/{file_id}", response_model=FileObject, responses=errors(404))
async def get_file(file_id: FileId, service: TheService) -> Response:
    """What is known of a stored file."""
    stored = await service.run(service.threads.quick, service.store.get, file_id)
    return JSONResponse(file_object(stored), headers=NO_STORE)


@protected.delete("/v1/files/{file_id}", response_model=DeletedFile, responses=errors(404))
async def delete_file(file_id: FileId, service: TheService) -> Response:
    """Deletes a stored file, and forgets what is known of it."""
    await service.delete(file_id)
    return JSONResponse({"id": file_id, "object": "file", "deleted": True})


@protected.head("/v1/files/{file_id}/content", include_in_schema=False)
@protected.get(
    "/v1/files/{file_id}/content",
    response_class=Response,
    responses=media_types("the playable copy", "video/mp4", "image/png", "image/jpeg")
    | {206: {"description": "the part that the header Range asks for"}}
    | errors(404, 416),
)
async def file_content(file_id: FileId, service: TheService) -> Response:
    """The file as browsers play it: frame n is shown from n / fps to (n + 1) / fps seconds."""
    holding = ExitStack()

    def content() -> Path:
        holding.enter_context(service.store.use(file_id))
        return service.store.content(file_id)

    try:
        path = await service.run(service.threads.quick, content)
    except BaseException:
        holding.close()
        raise
    return HeldFileResponse(holding, service.limits, path, headers=CACHE, media_type=CONTENT_TYPES[path.suffix])


class HeldFileResponse(FileResponse):
    """
    A file that is there until it was sent, its client has left or does not read it in time: then `holding` is closed.
    The time is that of a body of as many bytes: `body_seconds` and its size divided by `body_rate`. Only waiting for
    the client counts, so that a busy server cuts nobody's file short.
    """

    def __init__(self, holding: ExitStack, limits: Limits, path: Path, headers: dict[str, str], media_type: str):
        super().__init__(path, headers=headers, media_type=media_type)
        self.holding, self.limits = holding, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused: ApiError | None = None
        seconds = self.limits.body_seconds

        async def send_timed(message: Message) -> None:
            nonlocal refused, seconds
            if message["type"] == "http.response.start":
                headers = Headers(raw=message["headers"])
                refused = range_error(message["status"], headers)
                seconds += int(headers["content-length"]) / self.limits.body_rate
            if refused is not None:
                return
            started = anyio.current_time()
            with anyio.move_on_after(max(0.0, seconds)) as waiting:
                await send(message)
            seconds -= anyio.current_time() - started
            if waiting.cancelled_caught:
                sending.cancel()
                await anyio.lowlevel.checkpoint()

        with self.holding, anyio.CancelScope() as sending:
            await super().__call__(scope, receive, send_timed)
            if refused is not None:
                await error_response(refused)(scope, receive, send)


def range_error(status: int, headers: Headers) -> ApiError | None:
    """Our error for one of Starlette's answers, which are plain text, to a header Range that it cannot fulfil."""
    if status == 400:
        return ApiError(400, "The header Range is not one or more ranges of bytes, such as bytes=0-1023.")
    if status == 416:
        size = headers.get("content-range", "").rpartition("/")[2]
        return ApiError(
            416, "The header Range asks for bytes outside the file.", headers={"Content-Range": f"bytes */{size}"}
        )
    return None


CONTENT_TYPES = {".mp4": "video/mp4", ".webm": "video/webm", ".png": "image/png", ".jpg": "image/jpeg"}


@protected.head("/v1/files/{file_id}/frames/{frame}", include_in_schema=False)
@protected.get(
    "/v1/files/{file_id}/frames/{frame}",
    response_class=Response,
    responses=media_types("the frame", "image/png") | errors(404),
)
async def file_frame(
    file_id: FileId,
    frame: Annotated[int, PathField(ge=0, le=10**7, description="counted from 0")],
    service: TheService,
) -> Response:
    """A frame as the model sees it; counted from 0."""
    picture = await service.run(service.threads.frames, service.store.frame, file_id, frame)
    return Response(picture, media_type="image/png", headers=CACHE)


# ---- questions


@protected.post(
    "/v1/chat/completions",
    response_model=ChatCompletion,
    responses={
        200: {
            "description": "the answer; with `stream`, server-sent events, each a ChatChunk, the last one `[DONE]`",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        }
    }
    | errors(*BODY_ERRORS, 404, 429, 504, 507),
)
async def chat_completions(body: ChatRequest, service: TheService) -> Response:
    """Answers the last question of a conversation. Closing the connection cancels the answer."""
    return ChatResponse(service, body)


@protected.post("/v1/regions/preview", response_model=PreviewMask, responses=errors(*BODY_ERRORS, 404, 429))
async def preview_region(request: Request, body: PreviewRequest, service: TheService) -> Response:
    """The mask of a region on its frame."""
    limiter, stop = service.threads.previewing, threading.Event()
    waiting = limiter.statistics().tasks_waiting
    if waiting >= service.limits.waiting:
        raise ApiError(
            429, f"The waiting line is full: {waiting} previews are waiting.", headers=retry_after(PREVIEW_SECONDS)
        )

    def preview() -> dict:
        if stop.is_set():
            return {}  # nobody is there to read it
        with service.store.use(body.file_id) as stored:
            region = ConversationReader((), stored, service.limits).region(body.region, "region")
            path = str(service.store.path(stored.id))
            frame, mask = service.engine.preview(path, stored.id, region, stored.kind)
        code = encode_rle(mask)
        return {"size": code["size"], "counts": code["counts"], "frame": frame, "area": int(mask.sum())}

    return JSONResponse(await run_until_closed(request.receive, stop, service.run(limiter, preview)))


@protected.post(
    "/v1/exports",
    response_class=Response,
    responses=media_types("the file, as an attachment", "video/mp4", "application/zip", "application/json")
    | errors(*BODY_ERRORS, 404, 507),
)
async def export_conversation(request: Request, body: ExportRequest, service: TheService) -> Response:
    """A conversation with the masks of its answers, as a file to download."""
    holding, stop = ExitStack(), threading.Event()
    try:
        written = await run_until_closed(
            request.receive, stop, service.run(service.threads.exporting, export, service, body, holding, stop)
        )
    except BaseException:
        holding.close()
        raise
    # The name has letters, digits and ._- only
    headers = NO_STORE | {"Content-Disposition": f'attachment; filename="{written.filename}"'}
    return HeldFileResponse(holding, service.limits, written.path, headers=headers, media_type=written.media_type)


async def run_until_closed(receive: Receive, stop: threading.Event, work: Awaitable[Result]) -> Result:
    """The result of some work; sets `stop` when the client closes the connection before it is there, or the server
    ends."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        stop.set()

    watching = asyncio.create_task(watch())
    try:
        return await work
    finally:
        stop.set()  # the thread of work that was cancelled goes on until it looks
        watching.cancel()
