"""The base of all readers: files and options of a source, and the handling of items that are broken or left out."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ..frames import join_inside, safe_path, trusted_folders
from ..records import DataError, validate_record


logger = logging.getLogger(__name__)

# Options that every reader takes
COMMON_OPTIONS = {
    "source": None,  # name in records and messages; default: the name of the format
    "dropped": None,  # a Counter of what the reader leaves out, by reason
    "on_error": "raise",  # for broken items: "raise", "skip" (count and log), or a function that takes the DataError
    "links": (),  # folders below the data root that may be links to other places
}
BROKEN = "broken items"


class SourceReader:
    """
    Files and options of a reader for one pass over its source.

    Args:
        files (`dict`): Files and folders of the source, relative to `root`. Paths in annotations are relative to
            "media".
        root (`Path`): The data root.
        options (`dict`): Values for `COMMON_OPTIONS` and the options of the reader.
        format (`str`): Name of the reader.
        needs (iterable of `str`): Keys that `files` must have.
        **settings: Options of the reader with their defaults.

    Raises:
        DataError: if an option is unknown, or a key is missing in `files`.
    """

    def __init__(self, files: Mapping, root, options: Mapping | None, format: str, needs: Iterable[str], **settings):
        known = COMMON_OPTIONS | settings
        self.options = known | dict(options or {})
        self.files, self.root = dict(files), Path(root)
        self.source = self.options["source"] or format
        self.dropped: Counter = Counter() if self.options["dropped"] is None else self.options["dropped"]
        unknown, missing = sorted(set(self.options) - set(known)), [key for key in needs if key not in self.files]
        if unknown:
            expected = ", ".join(sorted(known))
            raise DataError(f"is an unknown option, expected {expected}", source=self.source, field=unknown[0])
        if missing:
            raise DataError("is missing among the files", source=self.source, field=missing[0])
        for key, default in settings.items():
            value = self.options[key]
            if type(value) is not type(default) or (type(value) is int and value < 1):
                expected = "a number from 1 on" if type(default) is int else f"such as {default!r}"
                raise DataError(f"is {value!r}, expected {expected}", source=self.source, field=key)
        self.trusted = trusted_folders(self.root, self.files, self.options["links"])

    def path(self, key: str) -> Path:
        """The path of a file or folder of `files`."""
        return self.root / self.files[key]

    def media(self, name: str, field: str, folder: str | None = None) -> str:
        """
        The path of a video, image or folder of an annotation, relative to the data root. `name` is relative to
        `folder` (default: `files["media"]`); [`DataError`] if it leaves the trusted folders. Published annotations
        (COCO and all that builds on it) lie on the stored pixels, so no reader of them lets pictures be turned.
        """
        path = join_inside(self.files["media"] if folder is None else folder, name, field)
        safe_path(self.root, path, self.trusted, field)
        return path

    def has_file(self, path: str) -> bool:
        """Whether there is a file with this path below the data root; `False` for a name that no file can have."""
        try:
            return (self.root / path).is_file()
        except OSError:
            return False

    def drop(self, reason: str, count: int = 1) -> None:
        """Counts something that is left out."""
        self.dropped[reason] += count

    def convert(self, items: Iterable[tuple], function: Callable, file) -> Iterator[dict]:
        """
        Yields the records that `function(index, item)` makes of the items of an annotation file, validated. A broken
        item is handled as `on_error` says; if it is left out, no other takes its place.
        """
        with self.about(file):
            for index, item in items:
                try:
                    records = [validate_record(record) for record in function(index, item)]
                except DataError as error:
                    self._broken(error.with_context(source=self.source, file=self._relative(file), index=index))
                    continue
                yield from records

    def collect(self, items: Iterable[tuple], function: Callable, file, key: str = "") -> None:
        """
        Calls `function(index, item)` for the items of a list `key` that records refer to. A broken item is handled as
        `on_error` says; the records that need it lack it.
        """
        with self.about(file):
            for index, item in items:
                try:
                    function(index, item)
                except DataError as error:
                    place = f"{key}[{index}]" if key else index
                    self._broken(error.with_context(source=self.source, file=self._relative(file), index=place))

    @contextmanager
    def about(self, file, index=None) -> Iterator[None]:
        """Adds file and item to the errors raised inside, where they do not name their own."""
        try:
            yield
        except DataError as error:
            inner = None if error.file is None else self._relative(error.file)
            raise DataError(
                error.problem,
                source=self.source,
                file=inner or self._relative(file),
                index=index if error.index is None else error.index,
                field=error.field,
                missing=error.missing,
                unreadable=error.unreadable,
            ) from error

    def _relative(self, path) -> str:
        path = Path(path)
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else str(path)

    def _broken(self, error: DataError) -> None:
        action = self.options["on_error"]
        if action == "raise":
            raise error
        self.drop(BROKEN)
        if callable(action):
            action(error)
        else:
            logger.warning("left out: %s", error)


def text(content: str) -> dict:
    """A text part."""
    return {"type": "text", "text": content}


def region(name: str) -> dict:
    """A region part, which refers to an object."""
    return {"type": "region", "object": name}


def grounded(phrase: str, names: list[str]) -> dict:
    """A phrase with its objects, one [SEG] each. An empty phrase gives bare [SEG]s."""
    return {"type": "grounded", "text": phrase, "objects": names}


def add_union(objects: dict, names: list[str]) -> str:
    """The name of the target of an expression about these objects; several of them are united in a further object."""
    if len(names) == 1:
        return names[0]
    objects["+".join(names)] = {"union": names}
    return "+".join(names)


def user(content: list[dict], **extra) -> dict:
    """A user message."""
    return {"role": "user", "content": content, **extra}


def assistant(content: list[dict], **extra) -> dict:
    """An assistant message."""
    return {"role": "assistant", "content": content, **extra}
