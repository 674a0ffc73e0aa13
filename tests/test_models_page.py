"""docs/models.md: its commands, tests and figures are real, and README.md has its first table."""

import re
from pathlib import Path

import pytest
import sa2va_releases

from sama.conversion.convert import parse_arguments
from sama.conversion.sources import TRACKERS
from sama.modeling_sama_backbones import FAMILIES
from sama.profiling.inference_memory import inference_memory, parameter_count, table_row
from sama.profiling.model_sizes import TRACKERS as TRACKER_SIZES
from sama.profiling.model_sizes import model_configs


ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")


def tables(text: str) -> list[list[list[str]]]:
    """The cells of every table, its head included."""
    blocks = re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    rows = [[[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()] for block in blocks]
    return [[row for row in table if set(row[0]) != {"-"}] for table in rows]


CHECKPOINTS = {row[0]: row[1:] for row in tables(PAGE)[1][1:]}
VERIFIED = {row[0]: row[1:] for row in tables(PAGE)[2][1:]}
MEMORY = {row[0]: row for row in tables(PAGE)[3][1:]}
COMPUTED = [name for name in TRACKER_SIZES if name != "EdgeTAM"]  # that needs timm


def test_readme_has_the_first_table():
    assert tables(PAGE)[0] in tables((ROOT / "README.md").read_text(encoding="utf-8"))


def test_every_model_is_listed():
    computed = set(model_configs(COMPUTED))
    assert set(sa2va_releases.releases()) <= set(CHECKPOINTS) and computed <= set(MEMORY)
    assert set(CHECKPOINTS) - set(MEMORY) == {"sama-tiny", "Sa2VA-LLaVA-1.5-7B"}
    assert all(CHECKPOINTS[name][-1] == MEMORY[name][-1] for name in MEMORY)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_commands_are_those_of_the_parsers(name):
    _, _, _, _, convert, run, _ = (cell.strip("`") for cell in CHECKPOINTS[name])
    if convert == "-":
        return
    assert convert.startswith("sama convert ")
    request = parse_arguments(convert.split()[2:])
    kinds = [kind for _, kind in request.sources]
    if name.startswith("SAMA on"):
        assert kinds[0] in FAMILIES and kinds[1] in TRACKERS and kinds[2:] == ["instructblip"] and run == "-"
    else:
        assert kinds == [name.partition("-")[0].lower()] and run.split()[:4] == [
            "sama",
            "chat",
            "--model",
            str(request.to),
        ]


def test_tests_that_it_names_exist():
    words = {word.strip() for row in CHECKPOINTS.values() for word in re.split(r"[,;]", row[3])}
    assert set(VERIFIED) <= words
    file, named = "", re.findall(r"`((?:tests/[\w/]+\.py)?)::(\w+)`", "\n".join(row[1] for row in VERIFIED.values()))
    assert len(named) >= 12
    for path, function in named:
        file = path or file
        assert f"\ndef {function}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file}::{function}"


@pytest.mark.parametrize("name", ["SAMA-1B", "SAMA on Qwen3-VL-4B, SAM 3's tracker"])
def test_figures_are_those_that_are_computed(name):
    assert table_row(name, inference_memory(model_configs(COMPUTED)[name])) == MEMORY[name]


@pytest.mark.parametrize("name", ["Sa2VA-i-26B", "Sa2VA-Qwen2_5-VL-3B", "Sa2VA-Qwen3-VL-2B", "Sa2VA-InternVL3-14B"])
def test_sizes_are_those_of_the_releases(name):
    """Counted from the releases' lists of tensors, which were written down independently."""
    shapes = sa2va_releases.releases()[name].shapes
    decoder = {key: shape for key, shape in shapes.items() if ".sam_mask_decoder." in key}
    stored = count(shapes) + (0 if "Sa2VA-i" in name else count(decoder))  # the original decoder is a copy
    assert parameter_count(model_configs(COMPUTED)[name]) == stored


def count(shapes: dict) -> int:
    """Number of parameters; random positions, which are no parameter, and constant tables left out."""
    total = 0
    for key, shape in shapes.items():
        size = 1
        for side in shape:
            size *= side
        total += 0 if "gaussian_matrix" in key else size
    return total
