"""The model card of sama-tiny, assembled from card.md and result tables, and the folder that ships."""

import json
import re
from pathlib import Path

import pytest
import torch
from checkpoint import CHECKPOINT
from safetensors.torch import load_file

from sama.modeling_sama import SamaForConditionalGeneration
from sama.recipes.sama_tiny.finish import (
    NOT_MEASURED,
    UNKNOWN_LIMITATIONS,
    build_card,
    main,
    read_log,
    repeated_table,
    summary_table,
)


RECIPE = Path(__file__).parents[2] / "recipes" / "sama_tiny"


@pytest.fixture(scope="module")
def card() -> str:
    return (CHECKPOINT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def tables(card) -> list[str]:
    """The result tables of the shipped card, as evaluate.py writes them."""
    return [f"# {table.strip()}\n" for table in re.findall(r"^### (.*?)(?=^##)", card, re.MULTILINE | re.DOTALL)]


def result_table(title: str, *rows: tuple[str, str, str, str]) -> str:
    """A table as evaluate.py writes it, of rows of part, score, value and interval."""
    lines = [f"| {part} | {score} | {value} | {interval} |  | 9 |" for part, score, value, interval in rows]
    return "\n".join(
        [f"# {title}", "", "| part | score | value | 95 % | chance | count |", "| --- " * 6 + "|", *lines]
    )


def tables_of_the_other_seed(card: str) -> list[str]:
    """The result tables of the second run, read from the card's comparison of the two; empty if there is none."""
    section = card.partition("## The recipe with another seed")[2].partition("\n## ")[0]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    if not lines:
        return []
    header, _, *rows = lines
    tables = []
    for column in range(2, len(header), 2):  # after the score, two columns for each split
        cells = [re.fullmatch(r"(\S+)(?: \((.*)\))?", row[column]).groups(default="") for row in rows]
        scores = [row[0].split(": ", 1) for row in rows]
        rows_of_run = [(part, score, *cell) for (part, score), cell in zip(scores, cells, strict=True)]
        tables.append(result_table(header[column].removesuffix(", other seed"), *rows_of_run))
    return tables


def test_the_shipped_card_is_reproduced_to_the_byte(card, tables):
    names = ["val", "unseen", "long", "no_target"]
    assert [table.splitlines()[0] for table in tables] == [f"# toy_world {name}" for name in names]
    limitations = (RECIPE / "limitations.md").read_text(encoding="utf-8")
    again = tables_of_the_other_seed(card)
    assert build_card(tables[:2], tables[2:], again, limitations) == card


def test_the_tables_of_another_seed_are_read_from_the_card(tables):
    again = [table.replace("0.972", "0.500") for table in tables[:2]]
    card = build_card(tables[:2], [], again)
    assert "0.500 (" in card and len(tables_of_the_other_seed(card)) == 2
    assert build_card(tables[:2], [], tables_of_the_other_seed(card)) == card


def test_a_card_without_results(card):
    text = build_card([])
    assert (
        text.count(NOT_MEASURED) == 3
        and UNKNOWN_LIMITATIONS in text
        and text.splitlines()[:9] == card.splitlines()[:9]
    )


def test_a_table_without_a_row_of_the_summary_is_an_error(tables):
    table = "\n".join(line for line in tables[0].splitlines() if "accuracy, size" not in line)
    with pytest.raises(ValueError, match="lack 1 of 9 rows.*accuracy, size"):
        summary_table([table])


def test_two_runs_are_compared_by_their_intervals():
    first = result_table(
        "val",
        ("part", "mIoU", "0.8", "0.7 to 0.9"),
        ("part", "recall", "0.5", "0.4 to 0.6"),
        ("part", "rare", "none", ""),
    )
    again = result_table(
        "val",
        ("part", "mIoU", "0.9", "0.85 to 0.95"),
        ("part", "recall", "0.7", "0.61 to 0.8"),
        ("part", "rare", "none", ""),
    )
    table = repeated_table([first], [again])
    assert "| part: mIoU | 0.8 (0.7 to 0.9) | 0.9 (0.85 to 0.95) |" in table
    assert "| part: rare | none | none |" in table
    assert table.endswith("overlap in 1 of 2 pairs. They do not overlap for: val, part: recall.")
    assert repeated_table([first], [first]).endswith("overlap in 2 of 2 pairs.")
    with pytest.raises(ValueError, match="same splits"):
        repeated_table([first], [again.replace("val", "unseen")])


def test_logs_of_stages_are_read(tmp_path):
    path = tmp_path / "stage.log"
    path.write_text(
        "step 50: words 0.5\nresuming from step 3\n"
        "step 50: words 0.512, points 0.7\nstep 51: mask IoU 0.2, loss mask 1e-05\n"
    )
    assert read_log(path) == [
        {"step": 50, "words": 0.512, "points": 0.7},
        {"step": 51, "mask IoU": 0.2, "loss mask": 1e-05},
    ]
    assert read_log(tmp_path / "absent.log") == []


def test_the_folder_that_ships(tmp_path):
    """Weights of the last stage, everything else of the first one; a card with results is kept."""
    run, shipped = tmp_path / "run", tmp_path / "shipped"
    (run / "start").mkdir(parents=True)
    (run / "start" / "config.json").write_text('{"trained": false, "occlusion_gate": false, "kept": 1}')
    (run / "start" / "model.safetensors").write_bytes(b"untrained")
    (run / "language").symlink_to(CHECKPOINT)
    (run / "masks.log").write_text("step 50: points 0.7\nstep 100: points 0.8\n")
    words = ["--run", str(run), "--to", str(shipped)]
    main(words)
    found = SamaForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.bfloat16).state_dict()
    weights = load_file(shipped / "model.safetensors")
    assert weights.keys() <= found.keys() and all(torch.equal(weights[name], found[name]) for name in weights)
    config = json.loads((shipped / "config.json").read_text())
    assert config == {"trained": True, "occlusion_gate": True, "kept": 1}
    assert (run / "curves.png").stat().st_size
    card = shipped / "README.md"
    assert NOT_MEASURED in card.read_text(encoding="utf-8")
    card.write_text("measured", encoding="utf-8")
    main(words)
    assert card.read_text(encoding="utf-8") == "measured"
    limitations = tmp_path / "limitations.md"
    limitations.write_text("- None.", encoding="utf-8")
    (tmp_path / "val.md").write_text("no table", encoding="utf-8")
    with pytest.raises(SystemExit, match="finish.py: Expected one table of results .* begins with 'no table'"):
        main([*words, "--results", str(tmp_path / "val.md"), "--limitations", str(limitations)])
