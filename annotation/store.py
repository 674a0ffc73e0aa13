"""
Raw replies, kept under a hash of everything that decides them. A run that was killed finds what it has paid for, and a
changed prompt finds everything that does not depend on it.
"""

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ..data.files import remove_temporaries
from .completions import Completion
from .errors import AnnotationError, output_errors


@dataclass(frozen=True)
class StoredReply:
    """A reply, its key, the time at which it came, in UTC, and the host that gave it."""

    key: str
    stage: str
    created: str
    completion: Completion
    host: str = ""


def reply_key(stage: str, version: int, request_key: str, attempt: int = 0, revision: str = "") -> str:
    """
    The name of a reply.

    Args:
        stage (`str`): Name of the stage.
        version (`int`): Of the stage's code; raised where the same request is to be answered again.
        request_key (`str`): `CompletionRequest.key()`: model, decoding, seed, prompt and pictures. What an earlier
            stage found is part of the prompt.
        attempt (`int`): Number of the request among equal ones.
        revision (`str`): Version of the model, where its name does not tell.
    """
    return hashlib.sha256(f"{stage}/{version}/{attempt}/{request_key}/{revision}".encode()).hexdigest()


class ReplyStore:
    """
    A folder of replies, one file each. May be used by several threads and processes: a file is complete or absent.

    Args:
        folder (`Path`): Created if needed.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._held: dict[str, tuple[threading.Lock, int]] = {}  # key -> its lock, and how many threads want it

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"

    def remove_leftovers(self) -> None:
        """Removes what killed processes left half written. No other process may write here."""
        for folder in filter(Path.is_dir, self.folder.iterdir()):
            remove_temporaries(folder)

    def get(self, key: str) -> StoredReply | None:
        """
        The reply with this key, `None` if there is none.

        Raises:
            AnnotationError: if its file was changed by hand and cannot be read.
        """
        path = self._path(key)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            value = json.loads(content)
            completion = Completion.from_json(value["completion"])
            return StoredReply(key, value["stage"], value["created"], completion, value["host"])
        except (ValueError, KeyError, TypeError) as error:
            raise AnnotationError(
                f"The stored reply {path} cannot be read ({error}). Delete it, then the model is asked again."
            ) from error

    @contextmanager
    def held(self, key: str) -> Iterator[None]:
        """Lets one thread at a time look for a reply and ask for it."""
        with self._lock:
            lock, wanted = self._held.get(key, (threading.Lock(), 0))
            self._held[key] = lock, wanted + 1
        try:
            with lock:
                yield
        finally:
            with self._lock:
                wanted = self._held[key][1] - 1
                self._held[key] = lock, wanted
                if not wanted:
                    del self._held[key]

    def put(self, key: str, stage: str, completion: Completion, host: str = "") -> StoredReply:
        """
        Keeps a reply. Nothing of the request is stored, so no key and no picture lands in the folder.

        Raises:
            OutputError: if it cannot be written. Further replies would be paid for and lost.
        """
        reply = StoredReply(key, stage, datetime.now(UTC).isoformat(timespec="seconds"), completion, host)
        value = {"stage": stage, "created": reply.created, "host": host, "completion": completion.to_json()}
        with output_errors(self.folder):
            self._write(self._path(key), value)
        return reply

    def _write(self, path: Path, value: dict) -> None:
        path.parent.mkdir(exist_ok=True)
        # A name of its own for each thread: two of them may write the same reply
        temporary = path.with_name(f".{path.stem[:16]}.{os.getpid()}.{threading.get_ident()}.part")
        try:
            temporary.write_text(json.dumps(value), encoding="ascii")  # a reply may hold half a character
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
