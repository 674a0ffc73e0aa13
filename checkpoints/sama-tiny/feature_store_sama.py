"""SAM 2's features of the frames of a video, kept in memory and in a temporary folder that does not outlive its
process."""

import math
import os
import shutil
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

import torch

from .frame_encoder_sama import FrameEncoder
from .prefetch_sama import BackgroundWorker
from .tracking_sama import FrameFeatures, FrameRequest


fcntl: Any = None  # on Windows: feature folders are not locked, and those of killed processes stay

try:
    import fcntl
except ImportError:
    pass

FEATURE_PREFIX, FEATURE_LOCK = "sama_features_", ".lock"
FRAMES_BEHIND = 4  # frames that wait for the thread that writes


def make_feature_folder(parent: str | None = None) -> TemporaryDirectory:
    """A temporary folder that is deleted with the returned object. A file in it is locked as long as this process
    lives, so that another process can tell the folders of killed ones, which are deleted first.

    Args:
        parent (`str`, *optional*): where to make it; the system's folder for temporary files by default.
    """
    delete_dead_feature_folders(parent or gettempdir())
    while True:
        folder = TemporaryDirectory(prefix=FEATURE_PREFIX, dir=parent)
        if fcntl is None:
            return folder
        path = Path(folder.name) / FEATURE_LOCK
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
        weakref.finalize(folder, os.close, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # another process found the file before it was locked, and deletes the folder
            continue
        except OSError:  # of a file system without locks: nobody deletes a folder without the file
            path.unlink()
            return folder
        if path.exists():
            return folder


def delete_dead_feature_folders(parent: str | Path) -> None:
    """Deletes this user's feature folders in `parent` whose process has ended; each may hold 16 GiB."""
    if fcntl is None:
        return
    for folder in Path(parent).glob(f"{FEATURE_PREFIX}*"):
        try:
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            descriptor = os.open(folder / FEATURE_LOCK, os.O_RDWR)
        except OSError:  # without the file nothing tells whether its process is alive
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # locked by a process that is alive
            pass
        finally:
            os.close(descriptor)


@dataclass(frozen=True)
class KeptFrame:
    """What is known of a kept frame without reading it: its bytes, whether they are in memory, and which levels it
    has."""

    nbytes: int
    in_memory: bool
    tuned: bool
    original: bool


class SamFeatureStore:
    """SAM 2's features of a video's frames: each frame is encoded when it is first asked for, then kept, so that later
    turns do not encode it again. The first ones stay in memory, the others go to a temporary folder, written on a
    thread. A frame of the released size takes 8 MB in bfloat16 (SAM 3: 11 MB), and 15 MB (19 MB) if it was prompted or
    pointed at. Beyond `max_bytes`, or where the disk is full, frames are not kept, and a later turn encodes them
    again. May be used from several threads.

    Args:
        encode (`Callable`): frame index to [`FrameFeatures`] for both decoders; a [`FrameEncoder`] encodes ahead.
        folder (`str`, *optional*): where to make the temporary folder; the system's by default.
        max_bytes (`int`, defaults to 16 GiB): of all kept frames.
        max_memory_bytes (`int`, defaults to 512 MiB): of those in memory, that of the CPU also for a model on a GPU.

    Attributes:
        nbytes (`int`): of the frames that are kept; `memory_nbytes` of those in memory.
        room, memory_room (`Callable`): asked before each frame how many bytes may still be kept, and how many of them
            in memory; several stores may share a bound.
    """

    def __init__(
        self,
        encode: Callable[[int], FrameFeatures],
        folder: str | None = None,
        max_bytes: int = 16 * 2**30,
        max_memory_bytes: int = 512 * 2**20,
    ):
        self.encode, self.free_bytes, self.max_memory_bytes = encode, max_bytes, max_memory_bytes
        self.room: Callable[[], float] = lambda: math.inf
        self.memory_room: Callable[[], float] = lambda: math.inf
        self.folder = make_feature_folder(folder)
        self._kept: dict[int, KeptFrame] = {}
        self._features: dict[int, FrameFeatures] = {}  # in memory, or on the way to the disk
        self._device = torch.device("cpu")
        self._failed = False  # whether the disk has failed, of which one warning is enough
        self._lock = threading.RLock()

    @property
    def stored(self) -> set[int]:
        """The frames that are kept."""
        return set(self._kept)

    @property
    def nbytes(self) -> int:
        return sum(frame.nbytes for frame in list(self._kept.values()))

    @property
    def memory_nbytes(self) -> int:
        return sum(frame.nbytes for frame in list(self._kept.values()) if frame.in_memory)

    def __call__(self, index: int, tuned: bool = True) -> FrameFeatures:
        """Features of a frame, with the levels of the original decoder, and with those of the tuned one if `tuned`."""
        features = self.find(FrameRequest(index, tuned))
        if features is None:
            features = self.encode(index)
            if self._reserve(index, features):
                warn_about(self._settle(index))
        return features

    def ahead(self, requests: Sequence[FrameRequest]) -> AbstractContextManager[Callable[[int], FrameFeatures]]:
        """A function that gives the features of `requests` in their order, see [`FrameEncoder.ahead`]."""
        return self.encode.ahead(requests, self) if isinstance(self.encode, FrameEncoder) else nullcontext(self)

    def find(self, request: FrameRequest) -> FrameFeatures | None:
        """The features of a frame on the model's device, if they are kept with the levels asked for."""
        index = request.frame_index
        with self._lock:
            kept, features = self._kept.get(index), self._features.get(index)
        if kept is None or request.tuned > kept.tuned or request.original > kept.original:
            return None
        if features is None:
            try:
                features = FrameFeatures(*torch.load(self._path(index), weights_only=True))
            except FileNotFoundError:  # dropped in the meantime: the disk has failed
                return None
        return features.map(lambda level: level.to(self._device))

    @contextmanager
    def writing(self) -> Iterator[Callable[[int, FrameFeatures], None]]:
        """A function that keeps the features of a frame, and leaves copying and writing to a thread until the end of
        the block."""
        with BackgroundWorker(FRAMES_BEHIND) as worker:

            def keep(index: int, features: FrameFeatures) -> None:
                if self._reserve(index, features):
                    for problem in worker.submit(self._settle, index):
                        warn_about(problem)

            yield keep
            for problem in worker.finish():
                warn_about(problem)

    def _path(self, index: int) -> Path:
        return Path(self.folder.name) / f"{index}.pt"

    def _reserve(self, index: int, features: FrameFeatures) -> bool:
        """Whether there is room for the features of a frame; then they are kept, for now as they are."""
        with self._lock:
            known, size = self._kept.get(index), features.nbytes
            tuned, original = bool(features.tuned), bool(features.original)
            if known is not None and tuned <= known.tuned and original <= known.original:
                return False  # another question about the video was faster
            if size > min(self.free_bytes, self.room()):
                return False
            free = min(self.max_memory_bytes - self.memory_nbytes, self.memory_room())
            if known is not None:
                self._forget(index)
            self._kept[index] = KeptFrame(size, size <= free, tuned, original)
            self._features[index], self._device = features, features.image.device
            self.free_bytes -= size
            return True

    def _forget(self, index: int) -> None:
        with self._lock:
            self._features.pop(index, None)
            self._path(index).unlink(missing_ok=True)
            kept = self._kept.pop(index, None)
            self.free_bytes += 0 if kept is None else kept.nbytes

    def _settle(self, index: int) -> str | None:
        """Moves the features of a frame to the CPU's memory or to the disk; returns what is to be warned about."""
        with self._lock:
            kept, features = self._kept.get(index), self._features.get(index)
        if kept is None or features is None:  # another question about the video was faster
            return None
        if kept.in_memory:
            moved = features.map(lambda level: level.cpu())
            with self._lock:
                if self._features.get(index) is features:
                    self._features[index] = moved
            return None
        written = self._path(index).with_suffix(f".{id(features)}.tmp")  # another thread may write this frame too
        try:
            torch.save((features.image, features.tuned, features.original), written)
        except (OSError, RuntimeError) as error:  # torch has no error of its own for a full disk
            with self._lock:
                written.unlink(missing_ok=True)
                self._forget(index)
                self.free_bytes, is_first, self._failed = 0, not self._failed, True
            if not is_first:
                return None
            return (
                f"SAM 2's features of further frames are not kept: they cannot be written to {self.folder.name}: "
                f"{error}. A later turn encodes these frames again."
            )
        with self._lock:
            if self._features.get(index) is features:
                os.replace(written, self._path(index))
                del self._features[index]
            else:
                written.unlink()
        return None


def warn_about(problem: str | None) -> None:
    """Warns the caller of what a thread found out, if it did."""
    if problem is not None:
        warnings.warn(problem, stacklevel=4)
