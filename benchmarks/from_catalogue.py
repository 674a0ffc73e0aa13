"""A benchmark whose questions come from a data reader. Its files are listed in `data_configs/benchmarks.yaml`."""

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from sama.data.catalogue import Entry, FileSource, open_source, read_catalogue
from sama.data.records import DataError
from sama.resources import DATA_CONFIGS
from sama.video_sama import SamaVideo

from .benchmark import Benchmark, BenchmarkError, Question


CATALOGUE = DATA_CONFIGS / "benchmarks.yaml"
BROKEN_ITEMS = ("raise", "skip")


class CatalogueBenchmark(Benchmark):
    """
    Arguments and attributes as in [`Benchmark`]. The option `broken` controls entries of an annotation file that
    cannot be read: "raise" ends the run, "skip" leaves them out and counts them in `left_out`.

    Attributes, set by a subclass:
        optional_files (`tuple[str, ...]`): Keys of files in the catalogue that may be missing.
        published_layout (`str`): Turn format under the preset "published".
    """

    options: ClassVar[Mapping[str, Any]] = {"broken": "raise"}
    optional_files: ClassVar[tuple[str, ...]] = ()
    published_layout: ClassVar[str] = "published"

    def __init__(self, data_root=None, split=None, preset: str = "consistent", **options):
        super().__init__(data_root, split, preset, **options)
        if self.chosen["broken"] not in BROKEN_ITEMS:
            raise BenchmarkError(f"broken is {self.chosen['broken']!r}, expected one of {', '.join(BROKEN_ITEMS)}.")
        self.source = self._open_source()
        self._groups: dict[str, list[int]] = {}
        self._outline = self._read_outline()
        self._opened: tuple[str | None, SamaVideo | None] = (None, None)

    def _open_source(self) -> FileSource:
        entry = read_catalogue(CATALOGUE)[f"{self.name}/{self.split}"]
        paths = {key: [value] if isinstance(value, str) else value for key, value in entry.files.items()}
        self.need(*(name for key, names in paths.items() if key not in self.optional_files for name in names))
        absent = {
            key for key in self.optional_files for name in paths.get(key, []) if not (self.data_root / name).exists()
        }
        files = {key: value for key, value in entry.files.items() if key not in absent}
        entry = Entry(self.name, entry.format, files, self.reader_options(entry.options), entry.links)
        try:
            return open_source(entry, self.data_root, on_error=self.chosen["broken"])
        except DataError as error:
            raise BenchmarkError(str(error)) from error

    def _read_outline(self) -> dict[str, list[str]]:
        """Reads all records once and groups them."""
        seen: set[str] = set()
        for index in range(len(self.source)):
            record = self.source.record(index)
            name = self.local_name(record)
            if name in seen:
                raise BenchmarkError(
                    f"{self.name} ({self.split}): the annotation files have 2 entries with the id {name!r}; ids must "
                    "be unique."
                )
            seen.add(name)
            self._groups.setdefault(self.group_of(record), []).append(index)
        return {group: self.question_ids(self.records(group)) for group in self._groups}

    @property
    def left_out(self) -> dict[str, int]:
        """Reason -> number of entries of the annotation files that are not asked."""
        return dict(self.source.dropped)

    def annotation_files(self) -> list[Path]:
        """All files of the source; its image folders are not included."""
        files = self.source.entry.files
        names = [
            name for key in sorted(files) for name in ([files[key]] if isinstance(files[key], str) else files[key])
        ]
        return [path for path in map(self.data_root.joinpath, names) if path.is_file()]

    def outline(self) -> dict[str, list[str]]:
        return self._outline

    def open(self, group: str) -> SamaVideo | None:
        if self._opened[0] != group:
            self._opened = group, self.source.visual(self.records(group)[0])
        return self._opened[1]

    def questions(self, group: str) -> list[Question]:
        records = self.records(group)
        try:
            found = self.group_questions(records, self.open(group))
        except DataError as error:
            raise self.source.with_context(error) from error
        asked, planned = [question.id for question in found], self._outline[group]
        if asked != planned:
            raise ValueError(f"{self.name}: {group!r} has the questions {asked}, but the outline has {planned}.")
        return found

    def records(self, group: str) -> list[dict]:
        """The records of a group."""
        return [self.source.record(index) for index in self._groups[group]]

    def local_name(self, record: Mapping) -> str:
        """The id of a record without the prefix of its source."""
        return record["id"].removeprefix(f"{self.source.name}/")

    @property
    def layout(self) -> str | None:
        """Turn format of the questions: `None` for the checkpoint's, or the one of the published evaluation."""
        return self.published_layout if self.preset == "published" else None

    # Implemented by a subclass

    def reader_options(self, options: Mapping) -> dict:
        """Options of the reader, given those in the catalogue."""
        return dict(options)

    def group_of(self, record: Mapping) -> str:
        """The group of a record; by default every record is a group."""
        return self.local_name(record)

    @abstractmethod
    def question_ids(self, records: list[dict]) -> list[str]:
        """Ids of the questions of one group. Only its records are available: no video is opened."""

    @abstractmethod
    def group_questions(self, records: list[dict], video: SamaVideo) -> list[Question]:
        """The questions of one group."""
