"""A lock on the output folder of a run, so that two runs never write to the same one."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from transformers.utils import logging

from .checkpoints import TrainingError


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK_FILE = ".run.lock"
# A lock belongs to its descriptor and all copies of it: loader workers, which may outlive a killed run, close theirs
_held: set[int] = set()
logger = logging.get_logger("sama.training")


@contextmanager
def lock_output(folder: str | Path) -> Iterator[None]:
    """
    Holds the lock of an output folder, which is created if needed. The operating system releases the lock when the
    process ends, however it ends, so that a killed run never blocks its successor.

    Raises:
        [`TrainingError`]: Another run holds the lock, or the folder cannot be written.
    """
    path = Path(folder) / LOCK_FILE
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _acquire(path)
    except BlockingIOError:
        raise TrainingError(
            f"{folder} is in use by another run ({_holder(path)}): wait for it or choose another --output_dir"
        ) from None
    except OSError as error:
        reason = error.strerror or error
        raise TrainingError(f"the output folder {folder} cannot be written ({reason})") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        _held.discard(descriptor)
        os.close(descriptor)


def _acquire(path: Path) -> int:
    """A descriptor that holds the lock; `BlockingIOError` if another process holds it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            _lock(descriptor, path)
            # The run before may have deleted the file between the two lines above
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                break
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    _held.add(descriptor)
    content = {"pid": os.getpid(), "host": socket.gethostname(), "started": f"{datetime.now():%Y-%m-%d %H:%M:%S}"}
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(content).encode(), 0)
    return descriptor


def _lock(descriptor: int, path: Path) -> None:
    if fcntl is None:
        logger.warning(f"{path.parent} cannot be locked on this system: make sure that no other run uses it.")
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:  # of file systems without locks
        logger.warning(f"{path.parent} cannot be locked ({error.strerror}): make sure that no other run uses it.")


def _close_copies() -> None:
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if os.name == "posix":
    os.register_at_fork(after_in_child=_close_copies)


def _holder(path: Path) -> str:
    """The process that holds the lock, as far as the file says."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return f"process {content['pid']} on {content['host']}, started {content['started']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "its process is unknown"
