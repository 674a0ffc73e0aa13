"""JSON Lines that only grow: each line is written at once, so that a process that is killed leaves at most half a
line at the end."""

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class AppendOnlyFile:
    """
    A file to which lines are appended, by any number of threads.

    Half a line at the end, which a process left that was killed while it wrote, is removed.

    Args:
        path (`str` or `Path`): Created if it does not exist, with its folder.
    """

    def __init__(self, path: str | Path):
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: int | None = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._lock = threading.Lock()
        complete = sum(len(line) for _, line in complete_lines(path))
        if complete != path.stat().st_size:
            os.ftruncate(self._file, complete)

    def append(self, value: dict[str, Any]) -> None:
        """Writes a line."""
        line = json.dumps(value).encode() + b"\n"
        with self._lock:
            if self._file is None:
                raise ValueError("The file is closed.")
            os.write(self._file, line)

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            if self._file is not None:
                os.close(self._file)
                self._file = None


def complete_lines(path: str | Path) -> Iterator[tuple[int, bytes]]:
    """Number, from 1, and bytes of each line that ends with a line break."""
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.endswith(b"\n"):
                yield number, line
