"""Assemble the checkpoint that ships: weights in bfloat16, configuration, tokenizers and the model card.

    python recipes/sama_tiny/finish.py --run outputs/tiny --to checkpoints/sama-tiny [--results val.md unseen.md]

Learning curves of the stages that have a log go to `curves.png` in the folder of the run.
"""

import argparse
import json
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from sama.drawing.tables import markdown_table
from sama.modeling_sama import SamaForConditionalGeneration


PANELS = (  # title, log file, metrics
    ("SAM 2: IoU", "masks.log", ("points", "words", "prompted", "memory")),
    ("patches of single frames: accuracy", "videos.log", ("patch colour", "patch shape", "patch size")),
    ("cells of videos: accuracy", "videos.log", ("track colour", "track shape", "track size", "track motion")),
    ("cells of dialogues: accuracy", "language.log", ("track shape", "track motion", "region motion", "seg motion")),
    ("position error in pixels of 64", "language.log", ("past px", "context px", "region px", "seg px")),
    ("words that a comparison decides", "language.log", ("yes or no", "number", "order", "rank", "side")),
    ("answers and their masks", "language.log", ("entropy", "prompt", "mask IoU")),
)  # fmt: skip
LINE = re.compile(r"^step (\d+):(.*)$")
PAIR = re.compile(r"([A-Za-z ]+?) (-?[\d.]+(?:e[+-]?\d+)?)(?:,|$)")
CARD = Path(__file__).with_name("card.md")
# Rows of the result tables that the summary at the top of the card shows, as (part, score)
SUMMARY = (
    ("grounded dialogue", "mask mIoU"),
    ("region questions", "accuracy"),
    ("region questions", "accuracy, colour"),
    ("region questions", "accuracy, shape"),
    ("region questions", "accuracy, size"),
    ("region questions", "accuracy, motion"),
    ("referring by look", "mask mIoU"),
    ("referring by motion only", "mask mIoU"),
    ("referring by motion only", "choice between the twins"),
)
NOT_MEASURED = "Not measured yet."


def read_log(path: Path) -> list[dict]:
    """The lines `step N: name value, ...` that a stage printed; empty if the stage has no log. Of steps that were
    repeated after an interruption the last line counts."""
    found = {}
    if not path.is_file():
        return []
    for line in path.read_text(encoding="utf-8").splitlines():
        match = LINE.match(line)
        if match:
            pairs = PAIR.findall(match[2])
            step = int(match[1])
            found[step] = {"step": step, **{name.strip(): float(value) for name, value in pairs}}
    return [found[step] for step in sorted(found)]


def draw_curves(run: Path) -> None:
    """Draw the curves of all stages to `curves.png` in the folder of the run."""
    from matplotlib.figure import Figure  # a second, which what reads no logs does not wait for

    figure = Figure(figsize=(13, 10), layout="constrained")
    panels = figure.subplots(3, 3)
    for panel in panels.flat[len(PANELS) :]:
        panel.set_visible(False)
    for panel, (title, log, names) in zip(panels.flat, PANELS, strict=False):
        lines = read_log(run / log)
        for name in names:
            points = [(line["step"], line[name]) for line in lines if name in line]
            if points:
                panel.plot(*zip(*points, strict=True), label=f"{name} {points[-1][1]:.3g}")
        panel.set_title(title, fontsize=10)
        panel.set_xlabel("step")
        panel.grid(alpha=0.3)
        panel.set_visible(panel.has_data())
        if panel.has_data():
            panel.legend(fontsize=8)
    figure.savefig(run / "curves.png", dpi=90)


def summary_table(tables: Sequence[str]) -> str:
    """The rows `SUMMARY` of result tables of evaluate.py, a column for each table.

    Raises:
        ValueError: if a table lacks one of the rows.
    """
    titles, columns = [], []
    for table in tables:
        titles.append(table.splitlines()[0].lstrip("# "))
        rows = [
            [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"
        ]
        cells = {(part, score): (value, chance) for part, score, value, _, chance, _ in rows}
        missing = [row for row in SUMMARY if row not in cells]
        if missing:
            raise ValueError(f"The results {titles[-1]!r} lack {len(missing)} of {len(SUMMARY)} rows: {missing[0]}.")
        columns.append(
            [value + (f" (chance {chance})" if chance else "") for value, chance in map(cells.get, SUMMARY)]
        )
    scores = [f"{part}: {score}" for part, score in SUMMARY]
    return markdown_table(["score", *titles], list(zip(scores, *columns, strict=True)))


def build_card(results: Sequence[str]) -> str:
    """The model card with these result tables, which evaluate.py wrote, and a summary of them."""
    tables = [result.strip().lstrip("# ") for result in results]
    filled = CARD.read_text(encoding="utf-8")
    filled = filled.replace("{summary}", summary_table(tables) if tables else NOT_MEASURED)
    return filled.replace("{results}", "\n\n".join(f"### {table}" for table in tables) or NOT_MEASURED)


def main(argv: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="output folder of recipes/sama_tiny/train.sh")
    parser.add_argument("--to", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--results", type=Path, nargs="+", default=[], help="Markdown tables written by evaluate.py")
    arguments = parser.parse_args(argv)
    model = SamaForConditionalGeneration.from_pretrained(arguments.run / "language", dtype=torch.bfloat16)
    model.save_pretrained(arguments.to)
    # Configuration, processor and tokenizers are those of the first stage
    shutil.copytree(
        arguments.run / "start", arguments.to, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors")
    )
    config = json.loads((arguments.to / "config.json").read_text(encoding="utf-8"))
    config |= {"trained": True, "occlusion_gate": True}  # the object scores are trained
    (arguments.to / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    draw_curves(arguments.run)
    card = build_card([path.read_text(encoding="utf-8") for path in arguments.results])
    (arguments.to / "README.md").write_text(card, encoding="utf-8")
    print(f"{arguments.to}: {sum(parameter.numel() for parameter in model.parameters()) / 1e6:.1f} M parameters")


if __name__ == "__main__":
    main()
