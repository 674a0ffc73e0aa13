"""Locks on files that the operating system releases when a process ends, however it ends."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


fcntl: Any = None  # on Windows: files are not locked, and an opened file cannot be removed

try:
    import fcntl
except ImportError:
    pass

HAS_LOCKS = fcntl is not None


@contextmanager
def file_lock(path: Path, shared: bool = False, wait: bool = True) -> Iterator[int]:
    """
    Holds the lock of a file while the block runs, against other threads and other processes.

    Args:
        path (`Path`): The file, which exists.
        shared (`bool`): Whether others may hold it at the same time, shared as well.
        wait (`bool`): Whether to wait for the lock.

    Yields:
        `int`: The descriptor of the opened file.

    Raises:
        FileNotFoundError: if there is no such file.
        BlockingIOError: if others hold the lock and `wait` is off.
    """
    # NFS locks alone only what is open for writing
    descriptor = os.open(path, os.O_RDONLY if shared else os.O_RDWR)
    try:
        if HAS_LOCKS:
            kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
            fcntl.flock(descriptor, kind if wait else kind | fcntl.LOCK_NB)
        yield descriptor
    finally:
        os.close(descriptor)
