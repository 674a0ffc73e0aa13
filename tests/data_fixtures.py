"""A processor, stores and mixtures over tests/fixtures, shared by the tests of what comes behind the readers."""

import shutil
from pathlib import Path

import numpy as np
from fixture_sources import FIXTURES, SOURCES
from processor_fixtures import tiny_processor

from sama.data.catalogue import Entry, open_source
from sama.data.mixture import Mixture
from sama.data.rendering import Renderer, RenderSettings


CONFIGS = Path(__file__).parent.parent / "data_configs"
SIZE = (24, 32)


def entry(name: str, **options) -> Entry:
    """The fixture source `name` as an entry of a catalogue."""
    reader, files, fixed = SOURCES[name]
    return Entry(name, reader, files, {**fixed, **options})


def source(name: str, cache: Path, root: Path = FIXTURES, on_error: str = "raise"):
    """The fixture source `name`, opened."""
    return open_source(entry(name), root, cache, on_error)


def toy(samples: int = 20, **settings) -> Entry:
    """A source of toy world."""
    return Entry("toy", "toy_world", options={"samples": samples, "settings": settings or None})


def renderer(processor=None, **settings) -> Renderer:
    """A renderer for a tiny processor."""
    return Renderer(processor or tiny_processor(), RenderSettings(**settings))


def mixture(sources: dict, seed: int = 0, on_error: str = "raise", **settings) -> Mixture:
    """A mixture of opened sources: source -> weight."""
    return Mixture(list(sources.items()), renderer(**settings), seed, on_error)


def copied(tmp_path: Path) -> Path:
    """The fixtures in a folder that a test may change."""
    return Path(shutil.copytree(FIXTURES, tmp_path / "root"))


def render(name: str, cache: Path, index: int = 0, seed: int = 0, **settings):
    """Record `index` of a fixture source, rendered."""
    found = source(name, cache)
    record = found.record(index)
    return renderer(**settings)(record, found.visual(record), found.lookup, np.random.default_rng(seed))


def words(message: dict) -> str:
    """A message in shorthand: "<region>", "[a ball|2]" for a phrase of two objects."""
    shown = []
    for part in message["content"]:
        if part["type"] == "region":
            shown.append("<region>")
        elif part["type"] == "grounded":
            shown.append(f"[{part['text']}|{len(part['objects'])}]")
        else:
            shown.append(part.get("text", f"({part['type']})"))
    return "".join(shown)
