"""The uploaded videos and pictures of the server: each is stored once, under the hash of its bytes, beside a copy that
browsers play.

A folder of the store, which several processes may share:

    .lock                    held for a moment while files are added or removed
    <sha256>/original        the bytes as they came
    <sha256>/content.mp4     the playable copy; .png or .jpg for a picture
    <sha256>/file.json       what is known about it; modified when it was used last, locked while it is used
    <sha256>/deleted         where it was deleted while it was used
    incoming-<random>/       an upload; renamed when it is complete
    removed-<random>/        a file that is being removed

Whatever an interrupted process left is removed by the next one.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
import threading
import time
import unicodedata
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

from .conversion import NO_SPACE_ERRORS, STOP_POLL_SECONDS, ConversionLimits, check_stop, convert
from .file_locks import HAS_LOCKS, file_lock
from .media import NO_SPACE, TOO_LARGE, FileRefused, Media, MediaLimits, png_bytes, read_frame, refusal


__all__ = ["FileMissing", "FileRefused", "FileStore", "StoredFile", "StoreLimits", "file_chunks"]

ID = re.compile(r"file-([0-9a-f]{64})")
ENTRY = re.compile(r"[0-9a-f]{64}")
INCOMING, REMOVED = "incoming-", "removed-"
ORIGINAL, FACTS, DELETED, LOCK = "original", "file.json", "deleted", ".lock"
MAX_NAME = 120  # characters of a file name that are kept
CHUNK_BYTES = 2**20
ROOM_STEP = 16 * 2**20  # while an upload arrives, room is made for so many bytes at once
BLOCK_BYTES = 4096  # of a disk
MAX_CONVERSIONS = 2  # at the same time, in one process


class StoreLimits(MediaLimits, Protocol):
    """The limits of a store; fields of `Limits` in limits.py."""

    @property
    def upload_bytes(self) -> int: ...

    @property
    def store_bytes(self) -> int: ...

    @property
    def file_seconds(self) -> float: ...


class FileMissing(LookupError):
    """There is no file of this id: it never existed, was deleted, or has expired."""

    status = 404


@dataclass(frozen=True)
class StoredFile:
    """
    A video or picture in the store.

    Attributes:
        id (`str`): "file-" and the SHA-256 of its bytes.
        filename (`str`): For display; never a path.
        kind (`str`): "video" or "image".
        bytes (`int`): Size of the file as it came.
        width (`int`), height (`int`), num_frames (`int`): As in [`SamaVideo`].
        fps (`float`): Of the playable copy, in which frame n is shown from n / fps to (n + 1) / fps seconds. 0 for an
            image.
        duration (`float`): Of the playable copy, in seconds. 0 for an image.
        created_at (`int`), expires_at (`int`): Seconds since 1970.
        warnings (`tuple[str, ...]`): What is damaged or missing in the file.
    """

    id: str
    filename: str
    kind: str
    bytes: int
    width: int
    height: int
    num_frames: int
    fps: float
    duration: float
    created_at: int
    expires_at: int
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Facts:
    """What `file.json` says."""

    filename: str
    bytes: int
    created_at: float
    media: Media


class FileStore:
    """
    A folder of uploaded files. All methods may be called from any thread.

    Args:
        folder (`str` or `os.PathLike`): Created if needed, for this user alone.
        limits: With `upload_bytes`, `video_seconds`, `video_frames`, `frame_pixels`, `store_bytes` and `file_seconds`,
            as [`Limits`] has them.
        conversion ([`ConversionLimits`], *optional*): What converting one file may cost.
        clock (`Callable`, *optional*): Seconds since 1970.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        limits: StoreLimits,
        conversion: ConversionLimits | None = None,
        clock: Callable[[], float] = time.time,
    ):
        self.folder, self.limits, self._clock = Path(folder).absolute(), limits, clock
        self._conversion = conversion or ConversionLimits(output_bytes=limits.store_bytes)
        self._converting = threading.BoundedSemaphore(MAX_CONVERSIONS)
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self.folder / LOCK).touch()
        self.sweep()

    # ---- adding -----------------------------------------------------------------------------------------------------

    def add(self, chunks: Iterable[bytes], filename: str = "", stop: threading.Event | None = None) -> StoredFile:
        """
        Stores a file that arrives in pieces. Nothing remains of one that is refused or does not arrive whole.

        Args:
            chunks (iterable of `bytes`): What it raises is passed on.
            filename (`str`): As the sender names it; only for display.
            stop (`threading.Event`, *optional*): Refuses the file when it is set, at whatever stage.

        Raises:
            FileRefused: if the file is empty, too large (413), of a kind that is not accepted (415) or damaged, if
                there is no space left (507), or if it was stopped.
        """
        name = display_name(filename)
        try:
            with self._incoming() as folder:
                digest, size = self._receive(chunks, folder / ORIGINAL, stop)
                facts = self._found_again(digest) or self._converted(folder, digest, name, size, stop)
                return replace(self._stored(digest, facts), filename=name)
        except OSError as error:
            if error.errno not in NO_SPACE_ERRORS:
                raise
            raise FileRefused("There is no space left on the server for the file.", NO_SPACE) from error

    @contextmanager
    def _incoming(self) -> Iterator[Path]:
        """A folder for one upload, which is locked and in the end removed, unless it has another name by then."""
        with ExitStack() as stack:
            with self._locked():
                folder = Path(tempfile.mkdtemp(prefix=INCOMING, dir=self.folder))
                stack.callback(shutil.rmtree, folder, ignore_errors=True)
                (folder / LOCK).touch()
                stack.enter_context(file_lock(folder / LOCK))
            yield folder

    def _receive(self, chunks: Iterable[bytes], path: Path, stop: threading.Event | None) -> tuple[str, int]:
        """Writes the chunks to a file; returns their hash and the number of bytes."""
        digest, size, room = hashlib.sha256(), 0, 0
        with open(path, "wb") as file:
            for chunk in chunks:
                check_stop(stop)
                size += len(chunk)
                if size > self.limits.upload_bytes:
                    raise FileRefused(
                        f"The file is too large: at most {self.limits.upload_bytes:,} bytes are accepted.", TOO_LARGE
                    )
                if size > room:
                    self._make_room(len(chunk))
                    room = size + ROOM_STEP
                digest.update(chunk)
                file.write(chunk)
        return digest.hexdigest(), size

    def _found_again(self, digest: str) -> _Facts | None:
        """What is known about a file that comes a second time."""
        folder = self.folder / digest
        with self._locked():
            facts = _read_facts(folder)
            if facts is not None:
                (folder / DELETED).unlink(missing_ok=True)
                self._touch(folder)
        return facts

    def _converted(self, folder: Path, digest: str, name: str, size: int, stop: threading.Event | None) -> _Facts:
        """Converts an upload and gives it its name. What is sent many times at once is converted by the first."""
        with self._slot(stop):
            facts = self._found_again(digest)
            if facts is not None:
                return facts
            media = convert(folder / ORIGINAL, folder, self.limits, self._conversion, stop)
            facts = _Facts(name, size, self._clock(), media)
            (folder / FACTS).write_text(json.dumps(asdict(facts)), encoding="utf-8")
            self._touch(folder)
            self._make_room(0)
            self._install(folder, digest)
        return facts

    @contextmanager
    def _slot(self, stop: threading.Event | None) -> Iterator[None]:
        """Waits until there may be one more conversion."""
        while not self._converting.acquire(timeout=STOP_POLL_SECONDS):
            check_stop(stop)
        try:
            yield
        finally:
            self._converting.release()

    def _install(self, folder: Path, digest: str) -> None:
        """Gives a complete upload its name, unless another one of the same bytes came first."""
        with self._locked():
            if _read_facts(self.folder / digest) is None:
                self._remove(self.folder / digest)  # a damaged one
                (folder / LOCK).unlink()
                os.rename(folder, self.folder / digest)

    # ---- reading ----------------------------------------------------------------------------------------------------

    def get(self, file_id: str) -> StoredFile:
        """A file; its time until it expires starts again. Raises [`FileMissing`]."""
        with self.use(file_id) as stored:
            return stored

    @contextmanager
    def use(self, file_id: str) -> Iterator[StoredFile]:
        """
        A file that is not removed while the block runs, in whatever process. Raises [`FileMissing`].

        Where it is deleted meanwhile, it is removed when its last user is done.
        """
        with self._using(file_id) as (folder, facts):
            yield self._stored(folder.name, facts)
            self._touch(folder)

    @contextmanager
    def _using(self, file_id: str) -> Iterator[tuple[Path, _Facts]]:
        folder = self._folder(file_id)
        try:
            with ExitStack() as stack:
                yield folder, self._held(folder, stack)
        finally:
            if (folder / DELETED).exists():
                self._remove_deleted(folder)

    def path(self, file_id: str) -> Path:
        """The file as it came. Raises [`FileMissing`]."""
        return self._folder(self.get(file_id).id) / ORIGINAL

    def content(self, file_id: str) -> Path:
        """The playable copy: an mp4, PNG or JPEG file. Raises [`FileMissing`]."""
        with self._using(file_id) as (folder, facts):
            return folder / facts.media.content

    def frame(self, file_id: str, index: int) -> bytes:
        """
        A frame as a PNG file, as [`SamaVideo`] reads it. Where the file cannot be sought in few steps, and for an
        animated picture, it comes from the playable copy, which is compressed.

        Raises:
            FileMissing: if there is no such file.
            FileRefused: if it has no such frame.
        """
        with self._using(file_id) as (folder, facts):
            media = facts.media
            if not 0 <= index < media.num_frames:
                raise FileRefused(
                    f"Frame {index} does not exist: the {media.kind} has {media.num_frames} frames, counted from 0."
                )
            path = folder / (ORIGINAL if media.seekable else media.content)
            try:
                return png_bytes(read_frame(path, index, media))
            except ValueError as error:
                raise refusal(error, str(path)) from error

    def _held(self, folder: Path, stack: ExitStack) -> _Facts:
        """What is known about a file that is kept from being removed until the stack is closed."""
        missing = FileMissing(f"There is no file 'file-{folder.name}'; it may have expired: send it again.")
        try:
            descriptor = stack.enter_context(file_lock(folder / FACTS, shared=True))
        except (FileNotFoundError, NotADirectoryError):
            raise missing from None
        facts = _read_facts(folder)
        removed = os.fstat(descriptor).st_nlink == 0  # while this waited for the lock
        if facts is None or removed or (folder / DELETED).exists() or self._is_expired(folder):
            raise missing
        self._touch(folder)
        return facts

    def _folder(self, file_id: str) -> Path:
        match = ID.fullmatch(file_id) if isinstance(file_id, str) else None
        if match is None:
            raise FileMissing("There is no such file: an id is 'file-' and 64 hexadecimal digits.")
        return self.folder / match[1]

    def _stored(self, digest: str, facts: _Facts) -> StoredFile:
        media = facts.media
        return StoredFile(
            id=f"file-{digest}",
            filename=facts.filename,
            kind=media.kind,
            bytes=facts.bytes,
            width=media.width,
            height=media.height,
            num_frames=media.num_frames,
            fps=media.fps,
            duration=media.duration,
            created_at=int(facts.created_at),
            expires_at=int(self._clock() + self.limits.file_seconds),
            warnings=media.warnings,
        )

    # ---- removing ---------------------------------------------------------------------------------------------------

    def delete(self, file_id: str) -> None:
        """Removes a file, once nobody uses it any more; nobody can begin to. Raises [`FileMissing`]."""
        with self._using(file_id) as (folder, _):
            (folder / DELETED).touch()

    def _remove_deleted(self, folder: Path) -> None:
        """Removes a file that was deleted, unless somebody uses it or has sent it again meanwhile."""
        with self._locked():
            if (folder / DELETED).exists():
                self._remove(folder)

    def sweep(self) -> None:
        """Removes what has expired, what is damaged, and what interrupted processes left. [`add`] does so as well."""
        with self._locked():
            self._sweep(damaged=True)

    def _sweep(self, damaged: bool) -> None:
        for folder in list(self.folder.iterdir()):
            if folder.name.startswith(INCOMING) and HAS_LOCKS and not _is_locked(folder / LOCK):
                shutil.rmtree(folder, ignore_errors=True)
            elif folder.name.startswith(REMOVED):
                shutil.rmtree(folder, ignore_errors=True)
            elif ENTRY.fullmatch(folder.name):
                gone = self._is_expired(folder) or (folder / DELETED).exists()
                if gone or (damaged and _read_facts(folder) is None):
                    self._remove(folder)

    def _make_room(self, extra: int) -> None:
        """Removes the files that were used least recently until all files and uploads, and `extra` bytes, fit."""
        with self._locked():
            self._sweep(damaged=False)
            sizes = {folder: _disk_bytes(folder) for folder in self.folder.iterdir() if folder.is_dir()}
            used, most = sum(sizes.values()) + extra, self.limits.store_bytes
            entries = [folder for folder in sizes if ENTRY.fullmatch(folder.name)]
            idle = sum(sizes[folder] for folder in entries if not _is_locked(folder / FACTS))
            if used - idle > most:  # nobody's files are removed for nothing
                entries = []
            for folder in sorted(entries, key=_last_use):
                if used <= most:
                    return
                if self._remove(folder):
                    used -= sizes[folder]
            if used > most:
                raise FileRefused(
                    f"There is no space left on the server for the file: all files together may have {most:,} bytes, "
                    "and the others are in use or too small to make room.",
                    NO_SPACE,
                )

    def _remove(self, folder: Path) -> bool:
        """Removes a file unless somebody uses it. The lock of the store is held."""
        with ExitStack() as stack:
            try:
                stack.enter_context(file_lock(folder / FACTS, wait=False))
            except BlockingIOError:
                return False
            except (FileNotFoundError, NotADirectoryError):  # damaged, or not there
                pass
            removed = self.folder / f"{REMOVED}{uuid.uuid4().hex}"
            try:
                os.rename(folder, removed)
            except FileNotFoundError:
                return True
            except PermissionError:  # on Windows, where somebody has opened it
                return False
            shutil.rmtree(removed, ignore_errors=True)
        return True

    def _locked(self) -> AbstractContextManager:
        return file_lock(self.folder / LOCK)

    def _touch(self, folder: Path) -> None:
        now = self._clock()
        os.utime(folder / FACTS, (now, now))

    def _is_expired(self, folder: Path) -> bool:
        return _last_use(folder) + self.limits.file_seconds < self._clock()


def _last_use(folder: Path) -> float:
    try:
        return (folder / FACTS).stat().st_mtime
    except OSError:  # damaged
        return 0.0


def _read_facts(folder: Path) -> _Facts | None:
    """What is known about a file; `None` if it is not there, or not whole."""
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        media = Media(**facts.pop("media"))
        facts = _Facts(**facts, media=replace(media, warnings=tuple(media.warnings)))
        whole = (folder / ORIGINAL).stat().st_size == facts.bytes and (folder / media.content).is_file()
        return facts if whole else None
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        return None


def _is_locked(path: Path) -> bool:
    try:
        with file_lock(path, wait=False):
            return False
    except BlockingIOError:
        return True
    except OSError:  # not there
        return False


def _disk_bytes(folder: Path) -> int:
    """What the files of a folder take on the disk, roughly. Other processes may be writing and removing them."""
    total = 0
    for path in folder.glob("*"):
        with suppress(FileNotFoundError):
            total += -(-path.stat().st_size // BLOCK_BYTES) * BLOCK_BYTES
    return total


def display_name(filename: str) -> str:
    """
    The name of a file for display: without folders, without control and formatting characters, on one line, and at
    most `MAX_NAME` characters long. "upload" if nothing remains.
    """
    name = re.split(r"[/\\]", str(filename))[-1]
    # Category C: control, formatting such as the reversal of text, surrogates
    name = "".join(" " if character.isspace() else character for character in name if _is_printable(character))
    name = " ".join(name.split())
    if len(name) > MAX_NAME:
        stem, suffix = os.path.splitext(name)
        suffix = suffix if len(suffix) <= 10 else ""
        name = f"{stem[: MAX_NAME - len(suffix) - 1]}\u2026{suffix}"
    return name.strip(". ") or "upload"


def _is_printable(character: str) -> bool:
    return character.isspace() or not unicodedata.category(character).startswith("C")


def file_chunks(path: str | os.PathLike) -> Iterator[bytes]:
    """The bytes of a file on this machine, in pieces, for [`FileStore.add`]."""
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
