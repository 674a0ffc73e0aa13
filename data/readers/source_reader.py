"""What all readers share: the files and options of a source, and what becomes of items that are broken or left out."""

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
    "source": None,  # name in records and messages; the format's name without it
    "dropped": None,  # a Counter in which the reader counts what it leaves out, by reason
    "on_error": "raise",  # a broken item: "raise", "skip" (counted and logged), or a function that takes the DataError
    "links": (),  # folders below the data root that may be links to elsewhere
}
BROKEN = "broken items"


class SourceReader:
    """
    One pass of a reader over its source.

    Args:
        files (`dict`): The files and folders of the source, relative to `root`; "media" is the folder that paths in
            the annotations start from.
        root (`Path`): The data root.
        options (`dict`): [`COMMON_OPTIONS`] and the reader's own.
        format (`str`): Name of the reader.
        needs (iterable of `str`): Keys that `files` must have.
        **settings: The reader's own options with their defaults.
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
        self.trusted = trusted_folders(self.root, self.files, self.options["links"])

    def path(self, key: str) -> Path:
        """The file or folder that the catalogue names under `key`."""
        return self.root / self.files[key]

    def media(self, name: str, field: str, folder: str | None = None) -> str:
        """
        Path of a video, image or folder that an annotation names, relative to the data root, checked for escapes. It
        starts from `files["media"]` or from `folder`.
        """
        path = join_inside(self.files["media"] if folder is None else folder, name, field)
        safe_path(self.root, path, self.trusted, field)
        return path

    def drop(self, reason: str, count: int = 1) -> None:
        """Count something that is left out."""
        self.dropped[reason] += count

    def convert(self, items: Iterable[tuple], function: Callable, file) -> Iterator[dict]:
        """
        The valid records that `function(index, item)` makes of the items of one annotation file.

        An item whose [`DataError`] is not raised is left out; no other takes its place.
        """
        with self.about(file):
            for index, item in items:
                try:
                    records = [validate_record(record) for record in function(index, item)]
                except DataError as error:
                    self._broken(error.with_context(source=self.source, file=self._relative(file), index=index))
                    continue
                yield from records

    @contextmanager
    def about(self, file, index=None) -> Iterator[None]:
        """Errors inside are about this file, and about this item of it, as far as they do not say so themselves."""
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
    """A part that points at an object."""
    return {"type": "region", "object": name}


def grounded(words: str, names: list[str]) -> dict:
    """A phrase with the objects it stands for, one [SEG] each; without words it is the bare [SEG]."""
    return {"type": "grounded", "text": words, "objects": names}


def user(content: list[dict], **extra) -> dict:
    """A question."""
    return {"role": "user", "content": content, **extra}


def assistant(content: list[dict], **extra) -> dict:
    """An answer."""
    return {"role": "assistant", "content": content, **extra}
