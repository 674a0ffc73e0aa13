"""What the routes share: the engine, the stored files, the limits, and threads for what blocks."""

import base64
import binascii
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote_to_bytes

from anyio import CapacityLimiter, to_thread

from ..resources import EXAMPLE_CLIPS
from .addresses import fetch
from .conversion import NO_SPACE_ERRORS
from .engine import Engine, EngineBusy, EngineClosed
from .errors import ApiError, is_out_of_memory, log_value_error, no_memory, retry_after, shutting_down
from .files import CHUNK_BYTES, FileMissing, FileRefused, FileStore, StoredFile, file_chunks
from .limits import Limits
from .metrics import Metrics
from .requests import MediaReference
from .security import Access
from .session import one_sentence


Result = TypeVar("Result")
EXAMPLES = ("toy_world.mp4", "bigbuckbunny.mp4")
LOADING_SECONDS = 5  # until a client should ask again
# Each slash belongs to one place of the pattern only, or a text of slashes would take forever
_PATH = re.compile(r"(?<![\w.:/])/+(?:[^\s/'\",;:]+/+)+(?=[^\s/'\",;:])")

log = logging.getLogger("sama.serving")


class Threads:
    """Limits on how many threads do what, so that no kind of work keeps another one waiting."""

    def __init__(self, limits: Limits):
        self.quick = CapacityLimiter(8)  # checks of requests, look-ups of files
        self.storing = CapacityLimiter(32)  # uploads, most of which wait for one of the store's conversions
        self.examples = CapacityLimiter(1)
        self.exporting = CapacityLimiter(4)
        self.frames = CapacityLimiter(4)
        self.previewing = CapacityLimiter(4)
        self.forgetting = CapacityLimiter(4)  # waits for the device, or for a replica
        # One for each question that the engine takes, so that every answer has its reader
        self.reading = CapacityLimiter(limits.running + limits.waiting + 4)
        self.closing = CapacityLimiter(limits.running + limits.waiting + 4)


class Service:
    """
    Args:
        engine ([`Engine`] or `Callable`): the engine, or a function that makes it in a thread of its own.
        store ([`FileStore`])
        limits ([`Limits`])
        access ([`Access`])
        model_name (`str`): the name of the model for clients.
    """

    def __init__(
        self, engine: Engine | Callable[[], Engine], store: FileStore, limits: Limits, access: Access, model_name: str
    ):
        self.store, self.limits, self.access, self.model_name = store, limits, access, model_name
        self.threads = Threads(limits)
        self.metrics = Metrics(lambda: None if self._engine is None else self._engine.status())
        self._engine = None if callable(engine) else engine
        self._make_engine = engine if callable(engine) else None
        self._made_engine = callable(engine)
        self.load_error: Exception | None = None
        self.on_loaded: Callable[[], None] = lambda: None  # called when the engine is there, or cannot be made
        self.started_at = int(time.time())
        self._examples: list[str] = []
        self._examples_lock = threading.Lock()

    # ---- the engine

    def start_loading(self) -> None:
        """Makes the engine in a thread, if it is not there yet."""
        if self._make_engine is not None:
            threading.Thread(target=self._load, name="sama-load", daemon=True).start()

    def _load(self) -> None:
        make, self._make_engine = self._make_engine, None
        try:
            self._engine = make() if make is not None else self._engine
        except Exception as error:
            self.load_error = error
            if not isinstance(error, ValueError | OSError | ImportError):  # whose message says enough
                log.exception("The model could not be loaded")
        self.on_loaded()

    @property
    def engine(self) -> Engine:
        """The engine; raises an [`ApiError`] with status 503 until it is there."""
        if self._engine is not None:
            return self._engine
        if self.load_error is not None:
            raise ApiError(503, f"The model could not be loaded: {self.public(self.load_error)}")
        raise ApiError(503, "The model is being loaded.", code="loading", headers=retry_after(LOADING_SECONDS))

    @property
    def loaded_model(self) -> str:
        """The name of the model for clients; raises an [`ApiError`] with status 503 until it is loaded."""
        self.engine.status()
        return self.model_name

    # ---- threads and errors

    async def run(self, limiter: CapacityLimiter, function: Callable[..., Result], *arguments: Any) -> Result:
        """Calls a function that blocks in a thread; its errors of a known kind become [`ApiError`]."""

        def call() -> Result:
            with known_errors(self):
                return function(*arguments)

        return await to_thread.run_sync(call, limiter=limiter)

    def public(self, error: BaseException) -> str:
        """The message of an error as a sentence, without paths of this machine."""
        return public_sentence(error)

    # ---- files

    def open_media(self, reference: MediaReference, holding: ExitStack, stop: threading.Event) -> StoredFile:
        """
        The stored video or picture that a message names. It neither expires nor is deleted until `holding` is closed.
        `stop` ends what is fetched or converted for it.

        Raises:
            ApiError: if there is none, or it is not what the message says.
        """
        source = reference.source
        param = f"{reference.param}.{'url' if source.file_id is None else 'file_id'}"
        try:
            with known_errors(self):
                file_id = source.file_id or self._store_url(source.url or "", param, stop).id
                stored = holding.enter_context(self.store.use(file_id))
        except ApiError as error:
            raise ApiError(error.status_code, str(error.detail), param, error.code) from None
        if stored.kind != reference.kind:
            names = {"video": "a video", "image": "a picture"}
            raise ApiError(
                400, f"{param} is {names[stored.kind]}; send it as {stored.kind}_url, not {reference.kind}_url.", param
            )
        return stored

    def _store_url(self, url: str, param: str, stop: threading.Event) -> StoredFile:
        scheme = url.partition(":")[0].strip().lower()
        if scheme == "data":
            return self.store.add(data_url_chunks(url), "", stop)
        if scheme not in ("http", "https"):
            raise ApiError(400, f"{param} must be a data: URL or an http(s) URL.", param)
        if not self.access.urls:
            raise ApiError(
                400, "This server does not fetch URLs; send the file itself, or start it with --allow-urls."
            )
        chunks, name = fetch(url, self.limits)
        return self.store.add(chunks, name, stop)

    def examples(self) -> list[StoredFile]:
        """The clips that ship, in the store."""
        with self._examples_lock:
            found = []
            for number, name in enumerate(EXAMPLES):
                path = EXAMPLE_CLIPS / name
                try:
                    found.append(self.store.get(self._examples[number]))
                except (IndexError, FileMissing):  # not stored yet, or expired
                    if path.is_file():
                        found.append(self.store.add(file_chunks(path), name))
            self._examples = [stored.id for stored in found]
            return found

    async def delete(self, file_id: str) -> None:
        """Deletes a file from the store and what the engine knows of it."""
        await self.run(self.threads.quick, self.store.delete, file_id)
        if self._engine is not None:
            await self.run(self.threads.forgetting, self._engine.forget, file_id)

    def close(self) -> None:
        """Ends the engine, if it was made here."""
        if self._made_engine and self._engine is not None:
            self._engine.close()


class known_errors:
    """Turns the errors that requests cause into [`ApiError`]."""

    def __init__(self, service: Service):
        self.service = service

    def __enter__(self) -> None: ...

    def __exit__(self, kind, error, traceback) -> None:
        if isinstance(error, FileRefused):
            raise ApiError(error.status, self.service.public(error)) from error
        if isinstance(error, FileMissing):
            raise ApiError(404, self.service.public(error), code="file_not_found") from error
        if isinstance(error, EngineBusy):
            raise ApiError(429, self.service.public(error), headers=retry_after(error.retry_after)) from error
        if isinstance(error, EngineClosed):
            raise shutting_down("The question was not answered") from error
        if isinstance(error, OSError) and error.errno in NO_SPACE_ERRORS:  # of PyAV as well
            raise ApiError(507, "There is no space left on the server.") from error
        if is_out_of_memory(error):
            raise no_memory() from error
        if isinstance(error, ValueError):
            log_value_error(error)
            raise ApiError(400, self.service.public(error)) from error


def public_sentence(error: BaseException) -> str:
    """The message of an error as a sentence, without paths of this machine."""
    text = _PATH.sub("", one_sentence(error))
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith(('.', '!', '?')) else '.'}"


def data_url_chunks(url: str) -> Iterator[bytes]:
    """The content of a `data:` URL in pieces; raises an [`ApiError`] if it is damaged."""
    head, comma, data = url.partition(",")
    if not comma:
        raise ApiError(400, "The data: URL has no comma before its data.")
    if not head.lower().rstrip().endswith(";base64"):
        yield unquote_to_bytes(data)
        return
    step = CHUNK_BYTES // 3 * 4  # whole groups of four characters
    for start in range(0, len(data), step):
        try:
            yield base64.b64decode(data[start : start + step], validate=True)
        except (binascii.Error, ValueError):
            raise ApiError(400, "The data: URL is not base64, or is cut off.") from None


def model_name(model: str | Path) -> str:
    """The name of a model for clients: the last part of its folder or of its name on the Hub."""
    return Path(model).name or "sama"
