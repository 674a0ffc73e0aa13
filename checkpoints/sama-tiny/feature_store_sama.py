"""SAM 2's features of the frames of a video, kept in a temporary folder that does not outlive its process."""

import math
import os
import shutil
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

import torch

from .modeling_sama_tracker import FrameFeatures


fcntl: Any = None  # on Windows: feature folders are not locked, and those of killed processes stay

try:
    import fcntl
except ImportError:
    pass

FEATURE_PREFIX, FEATURE_LOCK = "sama_features_", ".lock"


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


class SamFeatureStore:
    """SAM 2's features of a video's frames: each frame is encoded when it is first asked for, then kept in a temporary
    folder, so that later turns do not encode it again and memory does not grow. A frame of the released size takes
    15 MB in bfloat16 (SAM 3: 19 MB); beyond `max_bytes`, or where the disk is full, frames are not kept, and a later
    turn encodes them again.

    Args:
        encode (`Callable`): frame index to [`FrameFeatures`].
        folder (`str`, *optional*): where to make the temporary folder; the system's by default.
        max_bytes (`int`, defaults to 16 GiB)

    Attributes:
        nbytes (`int`): of the frames that are kept.
        room (`Callable`): asked before each frame how many bytes may still be kept; several stores may share a bound.
    """

    def __init__(self, encode: Callable[[int], FrameFeatures], folder: str | None = None, max_bytes: int = 16 * 2**30):
        self.encode, self.free_bytes, self.nbytes = encode, max_bytes, 0
        self.room: Callable[[], float] = lambda: math.inf
        self.folder = make_feature_folder(folder)
        self.stored: set[int] = set()

    def __call__(self, index: int) -> FrameFeatures:
        path = Path(self.folder.name) / f"{index}.pt"
        if index in self.stored:
            image, tuned, original = torch.load(path, weights_only=True)
            return FrameFeatures(image, tuned, original)
        features = self.encode(index)
        size = sum(level.nbytes for level in (features.image, *features.tuned, *features.original))
        if size <= min(self.free_bytes, self.room()) and self._save(path, features):
            self.stored.add(index)
            self.free_bytes -= size
            self.nbytes += size
        return features

    def _save(self, path: Path, features: FrameFeatures) -> bool:
        try:
            torch.save((features.image, features.tuned, features.original), path)
        except (OSError, RuntimeError) as error:  # torch has no error of its own for a full disk
            path.unlink(missing_ok=True)
            self.free_bytes = 0
            warnings.warn(
                f"SAM 2's features of further frames are not kept: they cannot be written to {self.folder.name}: "
                f"{error}. A later turn encodes these frames again.",
                stacklevel=3,
            )
            return False
        return True
