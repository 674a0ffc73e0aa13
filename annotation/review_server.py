"""
The server of the review page (`sama serve --review DIR`): items of a review queue with their frames and masks, and the
decisions of people. It needs no model. The guards are those of the other server.
"""

import io
import json
import logging
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Depends, FastAPI, Query, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from PIL import Image
from pydantic import Field

from ..data.frames import open_visual
from ..data.records import object_masks
from ..serving.bodies import StrictRoute, parsing_limiter
from ..serving.errors import MAX_MESSAGE, ApiError, shown
from ..serving.limits import Limits
from ..serving.routes import CACHE, NO_STORE
from ..serving.schema import MAX_FRAME, Model
from ..serving.security import Access
from ..serving.server import WEB, PageFiles, add_error_handlers, add_guards
from ..serving.service import public_sentence
from ..video_sama import SamaVideo
from .errors import AnnotationError, RefusedEditError, StaleItemError, UnknownItemError
from .render import COLORS
from .review import MAX_NAME, REASONS, Decision, ReviewItem, ReviewQueue


logger = logging.getLogger(__name__)

Result = TypeVar("Result")
OPEN_VIDEOS = 4  # kept open: the items of a video come one after another
MAX_SIDE, QUALITY = 1280, 90  # of frames that are sent: pixels, JPEG
MAX_ID, MAX_TEXT, MAX_STATEMENTS = 1000, 4000, 200

Id = Annotated[str, Field(min_length=1, max_length=MAX_ID)]
Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME)]
Text = Annotated[str, Field(max_length=MAX_TEXT)]


class EditedStatement(Model):
    """A statement about an object, with the first and last frame in which it can be seen."""

    text: Text
    first: Annotated[int, Field(ge=0, le=MAX_FRAME)]
    last: Annotated[int, Field(ge=0, le=MAX_FRAME)]


class Edit(Model):
    """The texts of an item after an edit: `question` and `answer`, or `statements`."""

    question: Text | None = None
    answer: Text | None = None
    statements: Annotated[list[EditedStatement], Field(max_length=MAX_STATEMENTS)] | None = None


class DecisionRequest(Model):
    """What a person decided about an item."""

    id: Id
    hash: Annotated[str, Field(max_length=64)]
    decision: Literal["accept", "edit", "reject", "skip"]
    reviewer: Name
    edit: Edit | None = None
    reasons: Annotated[list[str], Field(max_length=len(REASONS))] = []
    seconds: Annotated[float, Field(ge=0, le=1e7, allow_inf_nan=False)] = 0.0
    informed: bool = False


class UndoRequest(Model):
    """Whose latest decision is taken back."""

    reviewer: Name


class ReviewService:
    """
    What the routes share.

    Args:
        queue ([`ReviewQueue`]): The items and decisions.
        root (`Path`): Folder of the videos.
        trusted (sequence of `Path`): Folders in which they may lie, see [`trusted_folders`].
    """

    def __init__(self, queue: ReviewQueue, root: Path, trusted: Sequence[Path] = ()):
        self.queue, self.root, self.trusted = queue, root, trusted
        # Items that cannot be shown, by id, until the server is started again
        self.unusable: dict[str, Exception] = {}
        self.threads = CapacityLimiter(8)
        self._lock = threading.Lock()
        self._videos: OrderedDict[str, tuple[SamaVideo, threading.Lock]] = OrderedDict()

    async def run(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Calls a function that blocks in a thread; its errors of a known kind become [`ApiError`]."""

        def call() -> Result:
            try:
                return function(*arguments)
            except UnknownItemError as error:
                raise ApiError(404, public_sentence(error)) from error
            except StaleItemError as error:
                raise ApiError(409, public_sentence(error), code="stale") from error
            except RefusedEditError as error:
                message = shown(str(error), MAX_MESSAGE - 40)
                raise ApiError(400, f"The edit breaks a rule: {message}.", "edit", "refused_edit") from error
            except ValueError as error:  # AnnotationError, DataError, and those of damaged frames
                raise ApiError(400, public_sentence(error)) from error
            except OSError as error:
                raise ApiError(507, f"A file cannot be read or written: {error.strerror or 'unknown'}.") from error

        return await to_thread.run_sync(call, limiter=self.threads)

    def video(self, item: ReviewItem) -> tuple[SamaVideo, threading.Lock]:
        """The video of an item, and a lock for reading it."""
        key = json.dumps(item.record["video"], sort_keys=True)
        with self._lock:
            if key not in self._videos:
                opened = open_visual(item.record, self.root, self.trusted)
                if opened is None:
                    raise AnnotationError(f"The item {item.id!r} has no video.")
                self._videos[key] = opened, threading.Lock()
            self._videos.move_to_end(key)
            while len(self._videos) > OPEN_VIDEOS:
                self._videos.popitem(last=False)
            return self._videos[key]

    def picture(self, item_id: str, frame: int) -> bytes:
        """A frame of an item's video without drawings, as a JPEG file."""
        item = self.queue.item(item_id)
        if frame not in item.frames:
            raise UnknownItemError(f"The item does not show frame {frame}.")
        video, lock = self.video(item)
        with lock:
            video.check_frame(frame)
            pixels = video[frame]
        file = io.BytesIO()
        picture = Image.fromarray(pixels)
        picture.thumbnail((MAX_SIDE, MAX_SIDE))
        picture.save(file, "JPEG", quality=QUALITY)
        return file.getvalue()

    def show_next(self, reviewer: str, skipped: bool) -> dict[str, Any]:
        """[`show`] of the next item for a person. One that cannot be shown, such as that of a missing video, is left
        out for everybody until the server is started again; its error is raised where nothing else is left."""
        while True:
            name = self.queue.next(reviewer, skipped, self.unusable)
            if name is None:
                if self.unusable:
                    raise next(iter(self.unusable.values()))
                return self.show(None, reviewer)
            try:
                return self.show(self.queue.item(name), reviewer)
            except StaleItemError:
                raise
            except (ValueError, OSError) as error:
                logger.warning("the item %s cannot be shown: %s", name, error)
                self.unusable[name] = error
                self.queue.release(name, reviewer)

    def show(self, item: ReviewItem | None, reviewer: str) -> dict[str, Any]:
        """An item as the page shows it: nothing in it says what the checks found, or whether they accepted it."""
        shown_item = None
        if item is not None:
            video, lock = self.video(item)
            num_frames = len(video)
            with lock:
                height, width = video[item.frames[0]].shape[:2] if item.frames[0] < num_frames else (1, 1)
            colors = list(COLORS.values())
            objects = []
            for number, (label, name) in enumerate(item.labels.items()):
                red, green, blue = colors[number % len(colors)]
                masks = object_masks(item.record, name, num_frames, _no_store, item.frames)
                objects.append({"label": label, "color": f"#{red:02x}{green:02x}{blue:02x}", "masks": masks})
            mine = self.queue.log.of_item(item.id).get(reviewer)
            about = next((label for label, name in item.labels.items() if name == item.object), None)
            shown_item = {
                "id": item.id,
                "hash": item.item_hash,
                "text": item.text,
                "about": about,
                "video": {"height": height, "width": width, "frames": num_frames},
                "frames": list(item.frames),
                "objects": objects,
                "decision": None if mine is None else {"decision": mine.decision, "reasons": mine.reasons},
            }
        return {"item": shown_item, "progress": self.queue.progress(reviewer), "reasons": REASONS}

    def decide(self, body: DecisionRequest) -> None:
        """Writes a decision down."""
        edit = None if body.edit is None else body.edit.model_dump(exclude_none=True)
        self.queue.decide(
            Decision(
                body.id, body.decision, body.reviewer, body.hash, edit, body.reasons, body.seconds, body.informed
            )  # fmt: skip
        )


def _no_store(store: str, key: str) -> list:
    raise KeyError(key)  # a record of the review has its masks in itself


def service_of(request: Request) -> ReviewService:
    """What [`create_review_app`] was given."""
    return request.app.state.review


TheService = Annotated[ReviewService, Depends(service_of)]
Reviewer = Annotated[str, Query(min_length=1, max_length=MAX_NAME, description="name of the person")]
ItemId = Annotated[str, Query(min_length=1, max_length=MAX_ID, description="id of the item")]
routes = APIRouter(route_class=StrictRoute)


@routes.get("/health")
async def health() -> Response:
    """The server runs."""
    return JSONResponse({"status": "ok"}, headers=NO_STORE)


@routes.get("/v1/review/next")
async def next_item(service: TheService, reviewer: Reviewer, skipped: bool = False) -> Response:
    """The next item for a person, or `null`; with `skipped`, one that this person skipped."""
    return JSONResponse(await service.run(service.show_next, reviewer, skipped), headers=NO_STORE)


@routes.get("/v1/review/items")
async def one_item(service: TheService, id: ItemId, reviewer: Reviewer) -> Response:
    """An item by its id."""
    return JSONResponse(
        await service.run(lambda: service.show(service.queue.item(id), reviewer)), headers=NO_STORE
    )  # fmt: skip


@routes.get("/v1/review/checks")
async def checks(service: TheService, id: ItemId) -> Response:
    """What the checks found. A person who has looked at it is no longer blind, which the decision says."""

    def find() -> dict[str, Any]:
        item = service.queue.item(id)
        return {"reasons": item.reasons, "scores": item.scores, "suggested": item.suggested}

    return JSONResponse(await service.run(find), headers=NO_STORE)


@routes.get("/v1/review/frame")
async def frame(
    service: TheService, id: ItemId, number: Annotated[int, Query(ge=0, le=MAX_FRAME, description="counted from 0")]
) -> Response:
    """A frame of an item's video. The page adds the item's hash, so that it can be kept."""
    return Response(await service.run(service.picture, id, number), media_type="image/jpeg", headers=CACHE)


@routes.post("/v1/review/decisions")
async def decide(service: TheService, body: DecisionRequest) -> Response:
    """Writes a decision down; status 409 if the item has changed since it was shown."""
    await service.run(service.decide, body)
    return JSONResponse({"id": body.id, "decision": body.decision}, headers=NO_STORE)


@routes.post("/v1/review/undo")
async def undo(service: TheService, body: UndoRequest) -> Response:
    """Takes a person's latest decision back; returns its item, or `null` if there is no decision."""
    return JSONResponse({"id": await service.run(service.queue.undo, body.reviewer)}, headers=NO_STORE)


def create_review_app(
    queue: ReviewQueue,
    root: str | Path,
    limits: Limits | None = None,
    access: Access | None = None,
    trusted: Sequence[Path] = (),
) -> FastAPI:
    """
    The app of the review page.

    Args:
        queue ([`ReviewQueue`]): Closed when the app ends.
        root (`str` or `Path`): Folder of the videos.
        limits ([`Limits`], *optional*): On what a request may use.
        access ([`Access`], *optional*): Who may use the server; by default programs and pages of this machine.
        trusted (sequence of `Path`): Folders in which the videos may lie, see [`trusted_folders`].
    """
    limits, access = limits or Limits(), access or Access()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        queue.close()

    app = FastAPI(
        title="SAMA review", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False
    )
    app.state.review, app.state.limits = ReviewService(queue, Path(root), trusted), limits
    app.state.parsing = parsing_limiter()
    add_guards(app, limits, access)
    add_error_handlers(app, access)
    app.include_router(routes)

    async def page() -> Response:
        return FileResponse(WEB / "review.html", headers={"Cache-Control": "no-cache"})

    app.add_api_route("/", page, methods=["GET", "HEAD"], include_in_schema=False)
    app.mount("/", PageFiles(directory=WEB), name="page")
    return app


def videos_folder(folder: Path, given: Path | None) -> Path:
    """
    The folder of the videos of an output folder: the one that was given, or the one that the run names.

    Raises:
        [`AnnotationError`]: The output folder is not there, or no folder of videos.
    """
    if not folder.is_dir():
        raise AnnotationError(f"There is no folder {folder}; --review takes the --output of annotate.py.")
    root: Any = _run_of(folder).get("root") if given is None else given
    if not isinstance(root, str | Path):
        raise AnnotationError(f"{folder / 'run.json'} does not name the folder of the videos: give --review-videos.")
    if not Path(root).is_dir():
        raise AnnotationError(f"The folder of the videos {root} does not exist: give --review-videos.")
    return Path(root)


def trusted_of_run(folder: Path) -> list[Path]:
    """Folders in which the videos of an output folder may lie, as its run names them."""
    found = _run_of(folder).get("trusted")
    return [Path(one) for one in found if isinstance(one, str)] if isinstance(found, list) else []


def _run_of(folder: Path) -> Mapping[str, Any]:
    """`run.json` of an output folder; empty if it cannot be read."""
    try:
        run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return run if isinstance(run, Mapping) else {}
