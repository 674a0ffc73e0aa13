"""A benchmark whose questions come from a reader: files by `data_configs/benchmarks.yaml`, records in groups."""

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from sama.data.catalogue import Entry, FileSource, open_source, read_catalogue
from sama.data.catalogue import data_root as find_data_root
from sama.data.records import DataError
from sama.resources import DATA_CONFIGS
from sama.video_sama import SamaVideo

from .benchmark import Benchmark, BenchmarkError, Question


CATALOGUE = DATA_CONFIGS / "benchmarks.yaml"
BROKEN_ITEMS = ("raise", "skip")


class CatalogueBenchmark(Benchmark):
    """
    Arguments and attributes as for [`Benchmark`]. The option `broken` says what becomes of an item of an annotation
    file that cannot be read: "raise" ends the run, "skip" leaves it out, and `left_out` counts it.

    Attributes, set by a subclass:
        spare_files (`tuple[str, ...]`): Keys of files in the catalogue that may be absent.
        release_layout (`str`): Layout of the text in the preset "published".
    """

    options: ClassVar[Mapping[str, Any]] = {"broken": "raise"}
    spare_files: ClassVar[tuple[str, ...]] = ()
    release_layout: ClassVar[str] = "published"

    def __init__(self, data_root=None, split=None, preset: str = "consistent", **options):
        super().__init__(find_data_root(data_root), split, preset, **options)
        if self.chosen["broken"] not in BROKEN_ITEMS:
            raise BenchmarkError(f"broken is {self.chosen['broken']!r}, expected one of {', '.join(BROKEN_ITEMS)}.")
        self.source = self._open_source()
        self._groups: dict[str, list[int]] = {}
        self._outline = self._read_outline()
        self._opened: tuple[str | None, SamaVideo | None] = (None, None)

    def _open_source(self) -> FileSource:
        entry = read_catalogue(CATALOGUE)[f"{self.name}/{self.split}"]
        paths = {key: [value] if isinstance(value, str) else value for key, value in entry.files.items()}
        self.need(*(name for key, names in paths.items() if key not in self.spare_files for name in names))
        absent = {
            key for key in self.spare_files for name in paths.get(key, []) if not (self.data_root / name).exists()
        }
        files = {key: value for key, value in entry.files.items() if key not in absent}
        entry = Entry(self.name, entry.format, files, self.reader_options(entry.options), entry.links)
        try:
            return open_source(entry, self.data_root, on_error=self.chosen["broken"])
        except DataError as error:
            raise BenchmarkError(str(error)) from error

    def _read_outline(self) -> dict[str, list[str]]:
        """Sorts the records into groups, too."""
        for index in range(len(self.source)):
            self._groups.setdefault(self.group_of(self.source.record(index)), []).append(index)
        return {group: self.question_ids(self.records(group)) for group in self._groups}

    @property
    def left_out(self) -> dict[str, int]:
        """What of the annotation files is not asked, by reason."""
        return dict(self.source.dropped)

    def annotation_files(self) -> list[Path]:
        """All files of the source but its folders of pictures."""
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
            raise ValueError(f"{self.name}: {group!r} has the questions {asked}, the outline says {planned}.")
        return found

    def records(self, group: str) -> list[dict]:
        """The records of a group."""
        return [self.source.record(index) for index in self._groups[group]]

    def local_name(self, record: Mapping) -> str:
        """A record's id without the name of the source in front."""
        return record["id"].removeprefix(f"{self.source.name}/")

    @property
    def layout(self) -> str | None:
        """Layout of the questions: the checkpoint's own, or the one of the published evaluation."""
        return self.release_layout if self.preset == "published" else None

    # What a subclass says

    def reader_options(self, options: Mapping) -> dict:
        """The reader's options, given those of the catalogue."""
        return dict(options)

    def group_of(self, record: Mapping) -> str:
        """The group that a record belongs to; one of its own by default."""
        return self.local_name(record)

    @abstractmethod
    def question_ids(self, records: list[dict]) -> list[str]:
        """Ids of the questions of one group, from its records alone."""

    @abstractmethod
    def group_questions(self, records: list[dict], video: SamaVideo) -> list[Question]:
        """The questions of one group."""
