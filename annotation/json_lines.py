"""
The files of an output folder: JSON Lines, read with checks, and those that only grow. Each line of these is written at
once, so that a process that is killed leaves at most half a line at the end.
"""

import errno
import json
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .errors import AnnotationError


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


class AppendOnlyFile:
    """
    A file to which lines are appended, by any number of threads of one process, which holds its lock if the file
    system has locks.

    Half a line at the end, which a process left that was killed while it wrote, is removed.

    Args:
        path (`str` or `Path`): Created if it does not exist, with its folder.

    Attributes:
        locked (`bool`): Whether this process holds the lock, so that no other one works in the folder.

    Raises:
        [`AnnotationError`]: Another process has it open.
    """

    def __init__(self, path: str | Path):
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: int | None = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._lock = threading.Lock()
        try:
            self.locked = _lock_file(self._file, path)
        except AnnotationError:
            self.close()
            raise
        complete = sum(len(line) for _, line in complete_lines(path))
        if complete != path.stat().st_size:
            os.ftruncate(self._file, complete)

    def append(self, value: dict[str, Any]) -> None:
        """
        Writes a line.

        Raises:
            `OSError`: It cannot be written as a whole; then the file is as it was.
        """
        line = json.dumps(value).encode() + b"\n"
        with self._lock:
            if self._file is None:
                raise ValueError("The file is closed.")
            size = os.fstat(self._file).st_size
            written = os.write(self._file, line)
            if written != len(line):  # the disk is full
                os.ftruncate(self._file, size)
                raise OSError(errno.ENOSPC, f"only {written} of {len(line)} bytes of a line could be written")

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            if self._file is not None:
                os.close(self._file)
                self._file = None


def _lock_file(descriptor: int, path: Path) -> bool:
    """Locks a file until it is closed; `False` if this file system, or Windows, has no such locks.
    [`AnnotationError`] if another process has done so."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        raise AnnotationError(
            f"{path} is in use: another run, or another review server, works in {path.parent}. Wait for it or end it."
        ) from None
    except OSError:
        return False


def complete_lines(path: str | Path) -> Iterator[tuple[int, bytes]]:
    """Number, from 1, and bytes of each line that ends with a line break."""
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.endswith(b"\n"):
                yield number, line


def read_objects(path: Path, fields: Mapping[str, Any], missing: bool = False) -> Iterator[tuple[str, dict[str, Any]]]:
    """
    Place, for messages, and value of each line of a file.

    Args:
        path (`Path`): The file.
        fields (`dict`): Fields that each line must have, and their types.
        missing (`bool`): Whether a file that does not exist is an empty one.

    Raises:
        [`AnnotationError`]: The file cannot be read, or a line is not such an object.
    """
    if missing and not path.exists():
        return
    try:
        for number, line in complete_lines(path):
            place = f"{path}, line {number}"
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                value = None
            yield place, check_fields(value, fields, place)
    except OSError as error:
        raise AnnotationError(f"{path} cannot be read ({error.strerror or error}).") from None


def check_fields(value: Any, fields: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The value if it is an object with these fields, [`AnnotationError`] otherwise."""
    if not isinstance(value, dict):
        raise AnnotationError(f"{place}: this is not a JSON object.")
    wrong = next((name for name, kind in fields.items() if not isinstance(value.get(name), kind)), None)
    if wrong is not None:
        raise AnnotationError(f"{place}: the field {wrong!r} is missing or of another type.")
    return value
