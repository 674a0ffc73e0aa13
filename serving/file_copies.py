"""Copies of stored files on a machine that has a model but not the files."""

import hashlib
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class FileCopies:
    """
    Copies of files that lie on another machine, in a folder of this one.

    Args:
        folder (`Path`)
        max_bytes (`int`): of all copies. Beyond it, those are deleted that were not used for the longest time; one
            that is in use stays, even where that takes more.
    """

    def __init__(self, folder: Path, max_bytes: int):
        self.folder, self.max_bytes = folder, max_bytes
        self.sizes: OrderedDict[str, int] = OrderedDict()
        self._users: Counter[str] = Counter()
        self._removed: set[str] = set()  # while they were in use
        self._lock = threading.Lock()

    @contextmanager
    def use(self, source_id: str) -> Iterator[Path | None]:
        """The copy of a file, which stays while the block runs; `None` if there is none."""
        with self._lock:
            if source_id in self.sizes:
                self.sizes.move_to_end(source_id)
            known = source_id in self.sizes and source_id not in self._removed
            self._users[source_id] += known
        try:
            yield self.folder / source_id if known else None
        finally:
            with self._lock:
                self._users[source_id] -= known
                if self._users[source_id] == 0:
                    del self._users[source_id]
                    if source_id in self._removed:
                        self._delete(source_id)

    def add(self, source_id: str, content: bytes) -> list[str]:
        """Writes a copy; returns the ids of the files whose copies were deleted for it."""
        digest = source_id.removeprefix("file-")
        if hashlib.sha256(content).hexdigest() != digest:
            raise ValueError(f"The content that was sent for {source_id} is not that of this file.")
        with self._lock:
            self._removed.discard(source_id)
            if source_id in self.sizes:  # another question brought it, and may be reading it
                return []
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            dropped = []
            for old in [one for one in self.sizes if one not in self._users]:
                if sum(self.sizes.values()) + len(content) <= self.max_bytes:
                    break
                dropped.append(old)
                self._delete(old)
            (self.folder / source_id).write_bytes(content)
            self.sizes[source_id] = len(content)
        return dropped

    def remove(self, source_id: str) -> None:
        """Deletes the copy of a file, if there is one, once nobody uses it."""
        with self._lock:
            if source_id in self._users:
                self._removed.add(source_id)
            elif source_id in self.sizes:
                self._delete(source_id)

    def _delete(self, source_id: str) -> None:
        (self.folder / source_id).unlink(missing_ok=True)
        self._removed.discard(source_id)
        del self.sizes[source_id]
