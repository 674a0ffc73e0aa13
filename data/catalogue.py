"""
The catalogue, which says where every source is and how it is read; and opened sources.

    mevis:
      format: referring_video              # name of a reader, or toy_world
      files: {expressions: ..., media: ..., masks: ...}
      options: {}                          # of the reader
      links: []                            # folders below the data root that may be links to other places
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml

from sama.video_sama import SamaVideo

from ..toy_world.backgrounds import check_background
from ..toy_world.world import ToyWorld
from .files import user_path
from .frames import open_visual, trusted_folders
from .readers import BENCHMARK_READERS, READERS
from .records import DataError, require_field, require_type
from .store import KINDS, cache_folder, open_masks, open_records


ROOT_VARIABLE = "SAMA_DATA_ROOT"
TOY_WORLD = "toy_world"
FORMATS = (*READERS, *BENCHMARK_READERS, TOY_WORLD)
ENTRY_KEYS = {"format", "files", "options", "links"}
TOY_OPTIONS = {"samples": 10_000, "seed": 0, "settings": None}
# Size of every clip of toy world, precise enough to group samples by length
TOY_FRAMES, TOY_TURNS, TOY_CHARACTERS = 16, 2, 120


# Besides its own errors PyYAML lets those of the values it converts escape, such as `!!int ''`
YAML_ERRORS = (
    yaml.YAMLError, ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError,
)  # fmt: skip


class UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a mapping with a key twice, of which PyYAML would keep the last."""

    def construct_mapping(self, node, deep=False):
        """As in PyYAML, after the check."""
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if (key.tag, key.value) in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"has the key {key.value!r} twice", key.start_mark
                    )
                seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


@dataclass(frozen=True)
class Entry:
    """One entry of a catalogue."""

    name: str
    format: str
    files: dict = field(default_factory=dict)
    options: dict = field(default_factory=dict)
    links: tuple[str, ...] = ()


def read_yaml(path: str | Path) -> dict:
    """The content of a YAML file, which must be a mapping; [`DataError`] otherwise."""
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), UniqueKeyLoader)
    except FileNotFoundError:
        raise DataError("there is no such file", file=path) from None
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", file=path) from error
    except YAML_ERRORS as error:
        raise DataError(f"is not YAML ({' '.join(str(error).split())})", file=path) from error
    if not isinstance(content, dict):
        raise DataError(f"contains {type(content).__name__} where a mapping is expected", file=path)
    return content


def read_catalogue(path: str | Path) -> dict[str, Entry]:
    """Name -> [`Entry`]. Keys that begin with "." are ignored: they hold YAML anchors, such as shared file lists."""
    try:
        return {
            name: parse_entry(name, content)
            for name, content in read_yaml(path).items()
            if not require_type(name, str, "").startswith(".")
        }
    except DataError as error:
        raise error.with_context(file=path) from error


def parse_entry(name: str, content: Mapping) -> Entry:
    """An entry of a catalogue from its YAML content; [`DataError`] if it is wrong."""
    try:
        unknown = sorted(set(require_type(content, dict, "")) - ENTRY_KEYS, key=str)
        if unknown:
            raise DataError(f"is unknown, expected {', '.join(sorted(ENTRY_KEYS))}", field=str(unknown[0]))
        format = require_field(content, "format", str)
        if format not in FORMATS:
            raise DataError(f"is {format!r}, expected one of {', '.join(FORMATS)}", field="format")
        files = require_field(content, "files", dict, default={})
        for key, value in files.items():
            is_store = require_type(key, str, "files") == "masks" or key.endswith("_masks")
            require_type(value, str if is_store else (str, list), f"files.{key}")
            for one in require_type(value, (str, list), f"files.{key}") if isinstance(value, list) else [value]:
                require_type(one, str, f"files.{key}")
        links = require_field(content, "links", list, default=[])
        for position, link in enumerate(links):
            require_type(link, str, f"links[{position}]")
        return Entry(
            name, format, dict(files), dict(require_field(content, "options", dict, default={})), tuple(links)
        )
    except DataError as error:
        raise error.with_context(source=name) from error


def data_root(root: str | Path | None = None) -> Path | None:
    """`root`, else $SAMA_DATA_ROOT, else `None`."""
    found = root or os.environ.get(ROOT_VARIABLE)
    return user_path(found) if found else None


def open_source(entry: Entry, root: str | Path | None = None, cache=None, on_error: str = "raise"):
    """
    Opens a source. Its stores are built first if they do not exist or are out of date.

    Args:
        entry ([`Entry`]): The source in the catalogue.
        root (`str` or `Path`, *optional*): The data root. Default: $SAMA_DATA_ROOT.
        cache (`str` or `Path`, *optional*): Folder of the stores, see [`cache_folder`].
        on_error (`str`): "raise" or "skip" items that the reader cannot read.
    """
    if entry.format == TOY_WORLD:
        return ToySource(entry)
    found = data_root(root)
    if found is None:
        raise DataError(f"needs a data root: set {ROOT_VARIABLE}", source=entry.name)
    if not found.is_dir():
        raise DataError(f"the data root '{found}' does not exist: set {ROOT_VARIABLE}", source=entry.name)
    return FileSource(entry, found, cache_folder(cache), on_error)


class FileSource:
    """
    An opened source of the catalogue: its records, their videos and images, and its masks.

    Attributes:
        store ([`RecordStore`]): The records, and counts of what the reader left out.
        masks (`dict[str, MaskStore]`): By the name of the mask file in the catalogue.
        trusted (`tuple[Path, ...]`): Folders whose files may be opened, see [`trusted_folders`].
    """

    def __init__(self, entry: Entry, root: Path, cache: Path, on_error: str):
        self.entry, self.name, self.root = entry, entry.name, root
        # Readers name their mask files like this
        stores = [key for key in entry.files if key == "masks" or key.endswith("_masks")]
        self.masks = {key: open_masks(root / entry.files[key], cache, entry.name) for key in stores}
        options = {**entry.options, "source": entry.name, "links": list(entry.links), "on_error": on_error}
        self.store = open_records(entry.format, entry.files, root, options, cache)
        self.dropped, self.broken = self.store.dropped, self.store.broken
        self.trusted = trusted_folders(root, entry.files, entry.links)

    def __len__(self) -> int:
        return len(self.store)

    def record(self, index: int) -> dict:
        """Record `index`. Its objects contain their masks or refer to a mask file."""
        return self.store[index]

    def visual(self, record: dict) -> SamaVideo | None:
        """The video or image of a record, opened; `None` for text alone."""
        return open_visual(record, self.root, self.trusted)

    def lookup(self, store: str, key: str) -> list[dict | None]:
        """The masks of an object in a mask file; `KeyError` if the file lacks them, [`DataError`] if the source has no
        such file."""
        if store not in self.masks:
            known = ", ".join(self.masks) or "none"
            raise DataError(f"there is no mask file {store!r} among the files of the source, which has {known}")
        return self.masks[store][key]

    def with_context(self, error: DataError) -> DataError:
        """The error with the name of this source, and with the path of a mask file for its name in the catalogue."""
        if error.file not in self.masks:
            return error.with_context(source=self.name)
        path = self.entry.files[error.file]
        return DataError(error.problem, source=self.name, file=path, index=error.index, field=error.field)

    def digests(self) -> dict[str, str]:
        """A hash of the records, and one of the masks in each mask file."""
        return {"records": self.store.digest()} | {key: masks.digest() for key, masks in self.masks.items()}

    def columns(self) -> dict[str, np.ndarray]:
        """`kind`, `frames`, `turns`, `characters` of each record, see [`RecordStore.column`]."""
        return {name: self.store.column(name) for name in ("kind", "frames", "turns", "characters")}


class ToySource:
    """Clips of toy world as a source. They are drawn when they are read; there are no files."""

    def __init__(self, entry: Entry):
        unknown = sorted(set(entry.options) - set(TOY_OPTIONS), key=str)
        if unknown or entry.files:
            field = f"options.{unknown[0]}" if unknown else "files"
            raise DataError(f"is unknown; toy world takes {', '.join(TOY_OPTIONS)}", source=entry.name, field=field)
        options = TOY_OPTIONS | entry.options
        for field, least in (("samples", 1), ("seed", 0)):
            number = options[field]
            if type(number) is not int or number < least:
                raise DataError(
                    f"is {number!r}, expected a whole number from {least} on",
                    source=entry.name,
                    field=f"options.{field}",
                )
        self.entry, self.name, self._length = entry, entry.name, options["samples"]
        self.dropped, self.broken, self.masks = {}, [], {}
        self._drawn: tuple = (None, None)
        try:
            self.world = ToyWorld(options["settings"], options["seed"])
            check_background(self.world.settings.background)
        except (ValueError, TypeError, ImportError) as error:
            raise DataError(str(error), source=entry.name, field="options.settings") from error

    def __len__(self) -> int:
        return self._length

    def record(self, index: int) -> dict:
        """Record `index`."""
        frames, record, _ = self.world[index]
        self._drawn = index, frames  # `visual` usually follows
        return record | {"source": self.name}

    def visual(self, record: dict) -> SamaVideo:
        """The clip or image of a record, drawn."""
        index = record["image" if "image" in record else "video"]["toy"]["index"]
        frames = self._drawn[1] if self._drawn[0] == index else self.world[index].frames
        return SamaVideo.open(frames[0] if "image" in record else frames)

    def lookup(self, store: str, key: str) -> list[dict | None]:
        """Always a `KeyError`: records of toy world contain their masks."""
        raise KeyError(key)

    def with_context(self, error: DataError) -> DataError:
        """The error with the name of this source."""
        return error.with_context(source=self.name)

    def digests(self) -> dict[str, str]:
        """Nothing: clips depend on the options alone."""
        return {}

    def columns(self) -> dict[str, np.ndarray]:
        """As [`FileSource.columns`], with the same numbers for every clip."""
        kinds = [KINDS.index("image" if self.world.task(index) == "still" else "video") for index in range(len(self))]
        kind, still = np.array(kinds), KINDS.index("image")
        same = {"turns": TOY_TURNS, "characters": TOY_CHARACTERS}
        frames = np.where(kind == still, 1, TOY_FRAMES)
        return {"kind": kind, "frames": frames} | {key: np.full(len(self), value) for key, value in same.items()}
