"""
Records and masks as Arrow files that are built once and memory-mapped from then on.

A reader streams a source into the cache folder. All processes that open the result map the same pages, so loader
workers share them and none holds a whole mask file in memory. The name of a store contains a hash of its settings, and
one of the sizes and times of its files: when a file changes, the store is built again and the old one removed. The
same happens when a file that was missing appears, or one that could not be read changes. A store is built in a
temporary folder that is renamed at the end, so an interrupted build leaves no incomplete store.

    cache/<source>-<hash of settings>/<hash of version, sizes, times>/rows.arrow
        records: info.json, unread.json (files that were missing or could not be read, with their size and time)
        masks: keys.npy
"""

import hashlib
import json
import os
import re
import shutil
import tokenize
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, List, Value
from datasets.arrow_writer import ArrowWriter
from filelock import FileLock

from .files import atomic_path, user_path, write_text_atomically
from .json_text import parse_json
from .readers import BENCHMARK_READERS, READERS, read_mask_store
from .records import DataError, reading


# Raise it when a reader makes other records of the same files, or when the format of a store changes
VERSION = 5
CACHE_VARIABLE, DEFAULT_CACHE = "SAMA_CACHE", "~/.cache/sama"
# Rows in memory before they are written; the masks of an object in a long video take about a megabyte
ROWS_PER_BATCH = 32
UNREAD_FILE = "unread.json"
MAX_ERRORS = 1000  # broken items whose errors are kept with a store; all are counted

KINDS = ("text", "image", "video")
RECORD_FEATURES = Features(
    {
        "record": Value("string"),
        "kind": Value("int8"),
        "frames": Value("int32"),
        "turns": Value("int32"),
        "characters": Value("int32"),
    }
)
# One list per field: a list of structures takes several times the space and time
MASK_FEATURES = Features(
    {
        "key": Value("string"),
        "heights": List(Value("int32")),
        "widths": List(Value("int32")),
        "counts": List(Value("string")),
        "problem": Value("string"),  # instead of masks: the problem with them, and its field
        "field": Value("string"),
    }
)


# What Arrow, NumPy (which reads the header of a file as Python) and this file raise for a damaged store
DAMAGE_ERRORS = (
    OSError, ValueError, TypeError, KeyError, AttributeError, EOFError, MemoryError, SyntaxError, tokenize.TokenError,
)  # fmt: skip
KEY_TYPE = np.dtype([("hash", "u8"), ("row", "i8")])


@contextmanager
def _damage(folder: Path) -> Iterator[None]:
    """Turns what a damaged store raises into [`DataError`]."""
    try:
        yield
    except DAMAGE_ERRORS as error:
        reason = " ".join(str(error).split())[:120]
        raise DataError(f"this store is damaged ({reason}): delete it, it will be built again", file=folder) from error


def _open_rows(folder: Path, features: Features) -> Dataset:
    rows = Dataset.from_file(str(folder / "rows.arrow"))
    if rows.features != features:
        raise ValueError(f"it has the columns {', '.join(rows.features)}")
    return rows


class RecordStore:
    """The records of a source: `store[index]` is a record, `store.column("turns")` an array with a number for each."""

    def __init__(self, folder: Path):
        with _damage(folder):
            self._rows = _open_rows(folder, RECORD_FEATURES)
            self.info = parse_json((folder / "info.json").read_bytes())
            self._dropped, self._broken = self.info["dropped"], [DataError(**item) for item in self.info["broken"]]
        self._folder = folder

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict:
        return json.loads(self._rows[index]["record"])

    def digest(self) -> str:
        """A hash of the records, see [`content_digest`]."""
        return content_digest(self._rows, self._folder)

    def column(self, name: str) -> np.ndarray:
        """`kind` (index in `KINDS`), `frames` (0: unknown until the video is opened), `turns` or `characters`: of a
        sample, where the record says how many of its turns a sample draws."""
        return self._rows.data.column(name).to_numpy()

    @property
    def dropped(self) -> dict[str, int]:
        """How many items the reader left out, by reason."""
        return self._dropped

    @property
    def broken(self) -> list[DataError]:
        """The errors of the broken items that were left out, at most the first thousand."""
        return self._broken


class MaskStore:
    """
    The masks of a mask file: `store[key]` is a list with a run-length code or `None` for each frame. Broken masks
    raise [`DataError`] when they are looked up, so that only the samples that need them are lost.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        with _damage(folder):
            self._rows = _open_rows(folder, MASK_FEATURES)
            self._hashes = np.load(folder / "keys.npy", mmap_mode="r")
            if self._hashes.dtype != KEY_TYPE or self._hashes.shape != (len(self._rows),):
                raise ValueError(f"keys.npy is {self._hashes.dtype} of shape {self._hashes.shape}")
            rows = self._hashes["row"]
            if rows.size and not 0 <= rows.min() <= rows.max() < len(self._rows):
                raise ValueError(f"keys.npy names row {rows.max()} of {len(self._rows)}")

    def __len__(self) -> int:
        return len(self._rows)

    def __getstate__(self) -> dict:
        # A memory-mapped array would be copied into the pickle
        return {"folder": self._folder}

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)

    def __getitem__(self, key: str) -> list[dict | None]:
        hashes, wanted = self._hashes["hash"], _hash(key)
        places = range(*(int(np.searchsorted(hashes, wanted, side)) for side in ("left", "right")))
        rows = [row for row in (self._rows[int(self._hashes["row"][place])] for place in places) if row["key"] == key]
        if not rows:
            raise KeyError(key)
        if len(rows) > 1:
            raise DataError(f"is {len(rows)} times in the mask file", field=key)
        [row] = rows
        if row["problem"] is not None:
            raise DataError(row["problem"], field=row["field"])
        sizes = zip(row["heights"], row["widths"], row["counts"], strict=True)
        return [
            None if counts is None else {"size": [height, width], "counts": counts} for height, width, counts in sizes
        ]

    def digest(self) -> str:
        """A hash of the masks, see [`content_digest`]."""
        return content_digest(self._rows, self._folder)

    def keys(self) -> Iterator[str]:
        """All keys, in the order of the file."""
        yield from (key for start in range(0, len(self), 1000) for key in self._rows[start : start + 1000]["key"])


def content_digest(rows: Dataset, folder: Path) -> str:
    """A hash of all values of a store, wherever its files lie and whatever their times are. It is computed once and
    kept beside the store, which never changes."""
    kept = folder / "digest"
    if kept.is_file():
        return kept.read_text(encoding="utf-8")
    found = hashlib.blake2b(digest_size=8)
    for name in rows.column_names:
        for chunk in rows.data.column(name).chunks:
            for start in range(0, len(chunk), ROWS_PER_BATCH):
                for value in chunk[start : start + ROWS_PER_BATCH].to_pylist():
                    found.update(f"{json.dumps(value)}\n".encode())
    with suppress(OSError):  # a cache that this user may not write to: computed again next time
        write_text_atomically(kept, found.hexdigest())
    return found.hexdigest()


def cache_folder(folder: str | Path | None = None) -> Path:
    """`folder`, else $SAMA_CACHE, else a folder in the user's home."""
    return user_path(folder or os.environ.get(CACHE_VARIABLE) or DEFAULT_CACHE)


def open_records(format: str, files: Mapping, root: Path, options: Mapping, cache: Path) -> RecordStore:
    """
    The records of a source; the store is built if it does not exist or is out of date.

    Args:
        format (`str`): Name of the reader.
        files, options (`dict`), root (`Path`): Arguments of the reader. `options` has "source"; its "on_error" says
            whether the first broken item is raised ("raise") or all are counted and left out ("skip").
        cache (`Path`): Folder of the stores.
    """
    readers = READERS | BENCHMARK_READERS
    if format not in readers:
        raise DataError(
            f"is {format!r}, expected one of {', '.join(readers)}", source=options["source"], field="format"
        )
    strict = options.get("on_error", "raise") == "raise"
    paths = _annotation_files(files, root, options["source"])
    lasting = {key: value for key, value in options.items() if key not in ("on_error", "dropped")}
    settings = {"format": format, "files": dict(files), "options": lasting}

    def write(folder: Path) -> None:
        dropped, broken = Counter(), []
        action = "raise" if strict else broken.append
        records = readers[format](files, root, {**lasting, "on_error": action, "dropped": dropped})
        count = _write_rows(folder, RECORD_FEATURES, map(_record_row, records))
        if not count and not broken:
            raise DataError("contains no record", source=options["source"])
        info = {"records": count, "dropped": dict(dropped), "broken": [vars(error) for error in broken[:MAX_ERRORS]]}
        (folder / "info.json").write_text(json.dumps(info, default=str), encoding="utf-8")
        names = {name for error in broken for name in (*error.missing, *error.unreadable)}
        unread = {name: _size_and_time(root / name) for name in sorted(names)}
        (folder / UNREAD_FILE).write_text(json.dumps(unread), encoding="utf-8")

    place = _store_folder(cache, options["source"], root, settings)
    store = RecordStore(_up_to_date(place, paths, options["source"], root, write))
    if strict and store.broken:
        raise store.broken[0]
    return store


def _annotation_files(files: Mapping, root: Path, source: str) -> list[Path]:
    """
    The files of a source without its folders. Of several folders for the same pictures some may be missing: a picture
    is looked for in all of them. A source that is a folder alone (MME) has its questions in text files there.
    """
    paths, media = [], []
    for key, entry in files.items():
        names = [entry] if isinstance(entry, str) else entry
        with reading(root, f"files.{key}"):
            folders = [name for name in names if (root / name).is_dir()]
        if key != "media" or not folders:
            paths += [root / name for name in names if name not in folders]
        else:
            media += [root / name for name in folders]
    return paths or sorted(path for folder in media for path in folder.rglob("*.txt"))


def open_masks(path: Path, cache: Path, source: str) -> MaskStore:
    """The masks of a mask file, like [`open_records`]. `source` is the name in messages."""

    def write(folder: Path) -> None:
        keys = []

        def numbered(row: dict) -> dict:
            keys.append((_hash(row["key"]), len(keys)))
            return row

        def rows() -> Iterator[dict]:
            broken = []
            for key, masks in read_mask_store(path, lambda key, error: broken.append((key, error))):
                yield numbered(_mask_row(key, masks))
            for key, error in broken:
                yield numbered(_mask_row(key, [], error))

        try:
            _write_rows(folder, MASK_FEATURES, rows())
        except DataError as error:
            raise error.with_context(source=source, file=path) from error
        np.save(folder / "keys.npy", np.sort(np.array(keys, dtype=KEY_TYPE)))

    place = _store_folder(cache, path.stem, path.parent, {"masks": path.name})
    return MaskStore(_up_to_date(place, [path], source, path.parent, write))


def _store_folder(cache: Path, name: str, root: Path, settings: Mapping) -> Path:
    described = json.dumps([str(root.resolve()), settings], sort_keys=True, default=list)
    return cache / f"{re.sub(r'[^A-Za-z0-9.+_-]', '_', name)}-{_digest(described)}"


def _fingerprint(paths: Iterable[Path], source: str, root: Path) -> str:
    found = []
    for path in paths:
        try:
            about = path.stat()
        except OSError:
            raise DataError("there is no such file", source=source, file=path) from None
        name = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
        found.append([name, about.st_size, about.st_mtime_ns])
    return _digest(json.dumps([VERSION, found]))


def _find_store(place: Path, state: str, root: Path) -> tuple[Path | None, Path]:
    """The folder of a store for files in this state, if there is one, and the folder for a new store."""
    new = place / state
    for folder in sorted(path for path in place.glob(f"{state}*") if path.is_dir()):
        changed = _changed_since(folder, root)
        if not changed:
            return folder, new
        # Under another name: processes that have opened the old store must not find other records in it
        new = place / f"{state}-{_digest(json.dumps(changed))}"
    return None, new


def _changed_since(folder: Path, root: Path) -> dict[str, list[int] | None]:
    """Files that were missing or could not be read when a store was built and have changed since, with size and time
    of modification now."""
    kept = folder / UNREAD_FILE
    if not kept.is_file():  # a store of masks
        return {}
    with _damage(folder):
        unread = parse_json(kept.read_bytes())
        found = {name: _size_and_time(root / name) for name in unread}
        return {name: state for name, state in found.items() if state != unread[name]}


def _size_and_time(path: Path) -> list[int] | None:
    """Size in bytes and time of modification in nanoseconds of a file; `None` if there is none."""
    try:
        about = path.stat()
    except (OSError, ValueError):
        return None
    return [about.st_size, about.st_mtime_ns]


def _up_to_date(place: Path, paths: list[Path], source: str, root: Path, write: Callable[[Path], None]) -> Path:
    """The folder of the store for the present files. If it does not exist, `write(folder)` fills it."""
    state = _fingerprint(paths, source, root)
    found, folder = _find_store(place, state, root)
    if found is not None:
        return found
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"the cache folder cannot be written to ({error.strerror}): set {CACHE_VARIABLE}",
            source=source,
            file=place,
        ) from error
    # Other processes of this machine wait for the first one instead of building the same store
    with FileLock(place / "lock"):
        found, folder = _find_store(place, state, root)
        if found is not None:
            return found
        with atomic_path(folder) as temporary:
            shutil.rmtree(temporary, ignore_errors=True)  # of a process with this id that was killed
            temporary.mkdir()
            write(temporary)
            if _fingerprint(paths, source, root) != state:
                raise DataError("one of its files changed while it was read", source=source)
        for other in place.iterdir():
            if other.is_dir() and other != folder:
                shutil.rmtree(other, ignore_errors=True)
    return folder


def _write_rows(folder: Path, features: Features, rows: Iterable[dict]) -> int:
    with ArrowWriter(features=features, path=str(folder / "rows.arrow"), writer_batch_size=ROWS_PER_BATCH) as writer:
        for row in rows:
            writer.write(row)
        return writer.finalize()[0]


def _record_row(record: dict) -> dict:
    kind = next((kind for kind in ("video", "image") if kind in record), "text")
    frames = 1 if kind == "image" else 0
    if kind == "video":
        frames = len(record["video"].get("frames") or []) or record["video"].get("num_frames") or 0
    parts = [part for message in record["messages"] for part in message["content"]]
    turns = sum(message["role"] == "user" for message in record["messages"])
    characters = sum(len(part.get("text", "")) for part in parts)
    sampled = min(turns, (record.get("sampling") or {}).get("turns", turns))
    return {
        "record": json.dumps(record, ensure_ascii=False),
        "kind": KINDS.index(kind),
        "frames": frames,
        "turns": sampled,
        "characters": characters * sampled // max(turns, 1),
    }


def _mask_row(key: str, masks: list[dict | None], error: DataError | None = None) -> dict:
    sizes = [(0, 0) if mask is None else mask["size"] for mask in masks]
    return {
        "key": key,
        "heights": [height for height, _ in sizes],
        "widths": [width for _, width in sizes],
        "counts": [None if mask is None else mask["counts"] for mask in masks],
        "problem": None if error is None else error.problem,
        "field": None if error is None else f"{key}{error.field}",
    }


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _hash(key: str) -> np.uint64:
    return np.uint64(int(_digest(key), 16))
