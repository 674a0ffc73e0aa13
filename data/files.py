"""Files and folders that get their name only when they are complete."""

import os
import re
import shutil
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path


TEMPORARY = re.compile(r"\.(?P<stem>.+)\.[0-9]+\.part(?P<suffix>(\.[^.]+)?)")  # the names that `atomic_path` gives


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """
    A temporary path next to `path`, renamed to `path` when the block ends without an error and deleted otherwise.

    The block writes a file or a folder there. The folder that holds `path` is created if needed. An existing file is
    replaced; an existing folder is not, because that cannot be done in one step.

    Raises:
        OSError: if `path` is an existing folder with files in it, or cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last: writers such as PIL and numpy choose the format by it
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)


def remove_temporaries(folder: str | os.PathLike, names: Container[str] | None = None) -> None:
    """
    Removes the temporary files and folders that processes left which were killed in [`atomic_path`].

    Args:
        folder (`str` or `os.PathLike`): Where no other process may be writing now.
        names (container of `str`, *optional*): Of the paths that they stand for; by default all.
    """
    for path in Path(folder).iterdir():
        found = TEMPORARY.fullmatch(path.name)
        if found is None or (names is not None and found["stem"] + found["suffix"] not in names):
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def user_path(path: str | os.PathLike) -> Path:
    """The path with `~` expanded as a shell does: `~name` of an unknown user stays as it is, and does not raise."""
    return Path(os.path.expanduser(path))


def write_text_atomically(path: str | os.PathLike, text: str) -> None:
    """Writes `text` in UTF-8 to `path`, which contains either the old or the new text at any time."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
