"""Assemble the checkpoint that ships: weights in bfloat16, configuration, tokenizers and the model card.

    python recipes/sama_tiny/finish.py --run outputs/tiny --to checkpoints/sama-tiny [--results val.md unseen.md \\
        --further long.md no_target.md --repeated other_seed/val.md other_seed/unseen.md --limitations limitations.md]

Without results, a model card that is there stays as it is. Learning curves of the stages that have a log go to
`curves.png` in the folder of the run.
"""

import argparse
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from sama.drawing.tables import markdown_table
from sama.modeling_sama import SamaForConditionalGeneration


PANELS = (  # title, log file, metrics
    ("SAM 2: IoU", "masks.log", ("points", "words", "prompted", "memory")),
    ("patches of single frames: accuracy", "videos.log", ("patch colour", "patch shape", "patch size")),
    ("cells of videos: accuracy", "videos.log", ("track colour", "track shape", "track size", "track motion")),
    ("cells of dialogues: accuracy", "language.log", ("track shape", "track motion", "region motion", "seg motion")),
    ("position error, pixels of 64", "language.log", ("past px", "movement px", "context px", "region px", "seg px")),
    ("answers: accuracy", "language.log", ("yes or no", "question number", "question fits", "question order", "rank")),
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
UNKNOWN_LIMITATIONS = "- What else it cannot do is in its scores."


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
    from matplotlib.figure import Figure  # imported here because it takes a second and read_log does not need it

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


class Result(NamedTuple):
    """A row of a result table, as it was written."""

    value: str
    interval: str
    chance: str

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The interval, if there is one."""
        low, _, high = self.interval.partition(" to ")
        return (float(low), float(high)) if high else None


def title_of(table: str) -> str:
    """The heading of a result table."""
    return table.splitlines()[0].lstrip("# ")


def read_table(table: str) -> dict[tuple[str, str], Result]:
    """
    The rows of a result table that evaluate.py wrote, by part and score.

    Raises:
        ValueError: if there is no table, or several with other columns.
    """
    lines = [line.strip("|").split("|") for line in table.splitlines() if line[:1] == "|"]
    if len(lines) < 3 or len({len(line) for line in lines}) > 1:
        raise ValueError(f"Expected one table of results of evaluate.py, got a text that begins with {table[:60]!r}.")
    header, _, *rows = [[cell.strip() for cell in line] for line in lines]
    found = [dict(zip(header, row, strict=True)) for row in rows]  # empty columns are not written
    return {
        (row["part"], row["score"]): Result(row["value"], row.get("95 %", ""), row.get("chance", "")) for row in found
    }


def summary_table(tables: Sequence[str]) -> str:
    """The rows `SUMMARY` of result tables, a column for each table.

    Raises:
        ValueError: if a table lacks one of the rows.
    """
    titles, columns = [title_of(table) for table in tables], []
    for title, table in zip(titles, tables, strict=True):
        found = read_table(table)
        missing = [row for row in SUMMARY if row not in found]
        if missing:
            raise ValueError(f"The results {title!r} lack {len(missing)} of {len(SUMMARY)} rows: {missing[0]}.")
        chosen = [found[row] for row in SUMMARY]
        columns.append([one.value + (f" (chance {one.chance})" if one.chance else "") for one in chosen])
    scores = [f"{part}: {score}" for part, score in SUMMARY]
    return markdown_table(["score", *titles], list(zip(scores, *columns, strict=True)))


def repeated_table(tables: Sequence[str], repeated: Sequence[str]) -> str:
    """The results of two runs of the recipe side by side, and how many of their intervals overlap. Rows that a table
    lacks are left out.

    Raises:
        ValueError: if the tables of the runs have other headings.
    """
    titles, others = ([title_of(table) for table in run] for run in (tables, repeated))
    if titles != others:
        raise ValueError(f"The results of the two runs are {titles} and {others}: give the same splits of both.")
    pairs = [(read_table(one), read_table(other)) for one, other in zip(tables, repeated, strict=True)]
    rows, apart, compared = [], [], 0
    for part, score in pairs[0][0]:
        cells = [found[part, score] for pair in pairs for found in pair if (part, score) in found]
        if len(cells) < 2 * len(pairs):
            continue
        rows.append(
            [f"{part}: {score}", *(f"{one.value} ({one.interval})" if one.interval else one.value for one in cells)]
        )
        for title, one, other in zip(titles, cells[::2], cells[1::2], strict=True):
            if one.bounds and other.bounds:
                compared += 1
                if one.bounds[0] > other.bounds[1] or other.bounds[0] > one.bounds[1]:
                    apart.append(f"{title}, {part}: {score}")
    header = ["score", *(name for title in titles for name in (title, f"{title}, other seed"))]
    verdict = f"The 95 % intervals of the two runs overlap in {compared - len(apart)} of {compared} pairs"
    verdict += f". They do not overlap for: {'; '.join(apart)}." if apart else "."
    return f"{markdown_table(header, rows)}\n\n{verdict}"


def build_card(
    results: Sequence[str], further: Sequence[str] = (), repeated: Sequence[str] = (), limitations: str = ""
) -> str:
    """
    The model card.

    Args:
        results (`Sequence[str]`): Result tables that evaluate.py wrote, of which the card begins with a summary.
        further (`Sequence[str]`): Those of other splits, without a summary.
        repeated (`Sequence[str]`): Those like `results` of a second run of the recipe.
        limitations (`str`): What these results say of the weights, as a list in Markdown.
    """
    tables, others, again = (
        [result.strip().lstrip("# ") for result in chosen] for chosen in (results, further, repeated)
    )
    filled = CARD.read_text(encoding="utf-8")
    filled = filled.replace("{summary}", summary_table(tables) if tables else NOT_MEASURED)
    filled = filled.replace("{limitations}", limitations.strip() or UNKNOWN_LIMITATIONS)
    filled = filled.replace("{repeated}", repeated_table(tables, again) if again else NOT_MEASURED)
    return filled.replace("{results}", "\n\n".join(f"### {table}" for table in tables + others) or NOT_MEASURED)


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of this script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="output folder of recipes/sama_tiny/train.sh")
    parser.add_argument("--to", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--results", type=Path, nargs="+", default=[], help="Markdown tables written by evaluate.py")
    parser.add_argument("--further", type=Path, nargs="+", default=[], help="those of other splits")
    parser.add_argument("--repeated", type=Path, nargs="+", default=[], help="those like --results of a second run")
    parser.add_argument("--limitations", type=Path, help="Markdown list of what the results show it cannot do")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    given = (arguments.results, arguments.further, arguments.repeated)
    limitations = "" if arguments.limitations is None else arguments.limitations.read_text(encoding="utf-8")
    tables = ([path.read_text(encoding="utf-8") for path in paths] for paths in given)
    try:
        text, card = build_card(*tables, limitations=limitations), arguments.to / "README.md"
    except ValueError as error:
        raise SystemExit(f"finish.py: {error}") from error
    model = SamaForConditionalGeneration.from_pretrained(arguments.run / "language", dtype=torch.bfloat16)
    model.save_pretrained(arguments.to)
    # Configuration, processor and tokenizers are those of stage 0 (initialize.py)
    shutil.copytree(
        arguments.run / "start", arguments.to, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors")
    )
    config = json.loads((arguments.to / "config.json").read_text(encoding="utf-8"))
    config |= {"trained": True, "occlusion_gate": True}  # the object scores are trained
    (arguments.to / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    draw_curves(arguments.run)
    if any(given) or not card.is_file():
        card.write_text(text, encoding="utf-8")
    print(f"{arguments.to}: {sum(parameter.numel() for parameter in model.parameters()) / 1e6:.1f} M parameters")


if __name__ == "__main__":
    main()
