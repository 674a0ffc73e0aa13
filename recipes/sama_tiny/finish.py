"""Makes what ships of the small model's last stage: weights in bfloat16, the curves of every stage, and a model card.

python recipes/sama_tiny/finish.py --run outputs/tiny --to checkpoints/sama-tiny [--results val.md unseen.md]
"""

import argparse
import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

import matplotlib
import torch

from sama.modeling_sama import SamaForConditionalGeneration


matplotlib.use("Agg")  # no window
from matplotlib import pyplot  # noqa: E402


PANELS = (  # title, log, names
    ("SAM 2: IoU of its masks", "masks.log", ("words", "points", "memory")),
    ("regions and masks read right", "language.log", ("pooled colour", "shape shape", "shape size")),
    ("where the thing is, error in pixels of 64", "language.log", ("context px", "way px")),
    ("states of a region read right", "language.log", ("state colour", "state shape", "state size", "state motion")),
    ("dialogues", "language.log", ("loss language", "token", "prompt")),
)
LINE = re.compile(r"^step (\d+):(.*)$")
PAIR = re.compile(r"([a-z ]+?) (-?[\d.]+(?:e[+-]?\d+)?)(?:,|$)")
CARD = Path(__file__).with_name("card.md")


def read_log(path: Path) -> list[dict]:
    """The lines `step N: name value, ...` that a stage printed; none of a stage that did not run."""
    found = []
    if not path.is_file():
        return found
    for line in path.read_text(encoding="utf-8").splitlines():
        match = LINE.match(line)
        if match:
            pairs = PAIR.findall(match[2].replace("IoU by", ""))
            found.append({"step": int(match[1]), **{name.strip(): float(value) for name, value in pairs}})
    return found


def read_joint(run: Path) -> list[dict]:
    """The last stage's log, as the Trainer keeps it."""
    state = json.loads((run / "joint" / "trainer_state.json").read_text(encoding="utf-8"))
    return [entry for entry in state["log_history"] if "lm_loss" in entry]


def draw(panel, lines: list[dict], names: Iterable[str], title: str) -> None:
    for name in names:
        points = [(line["step"], line[name]) for line in lines if name in line]
        if points:
            panel.plot(*zip(*points, strict=True), label=f"{name} {points[-1][1]:.3g}")
    panel.set_title(title, fontsize=10)
    panel.set_xlabel("step")
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8)
    panel.set_visible(panel.has_data())  # a stage that has not run yet


def draw_curves(run: Path, to: Path) -> None:
    figure, panels = pyplot.subplots(2, 3, figsize=(13, 7), layout="constrained")
    for panel, (title, log, names) in zip(panels.flat, PANELS, strict=False):
        draw(panel, read_log(run / log), names, title)
    names = ("lm_loss", "mask_loss", "dice_loss", "token_accuracy", "seg_accuracy", "mask_iou")
    draw(panels.flat[len(PANELS)], read_joint(run), names, "everything together")
    figure.savefig(to, dpi=90)
    pyplot.close(figure)


def write_card(results: Iterable[Path], to: Path) -> None:
    """The model card, with these tables below its own headings."""
    tables = [path.read_text(encoding="utf-8").strip().replace("# ", "### ", 1) for path in results]
    card = CARD.read_text(encoding="utf-8").replace("{results}", "\n\n".join(tables) or "Not measured yet.")
    to.write_text(card, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of recipes/sama_tiny/train.sh")
    parser.add_argument("--to", type=Path, required=True, help="folder to write")
    parser.add_argument("--results", type=Path, nargs="+", help="the tables in Markdown that evaluate.py wrote")
    arguments = parser.parse_args()
    trained = arguments.run / "joint"
    model = SamaForConditionalGeneration.from_pretrained(trained, dtype=torch.bfloat16)
    model.save_pretrained(arguments.to)
    shutil.copytree(  # tokenizers, processor and settings are those that it started with
        arguments.run / "start", arguments.to, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors")
    )
    config = json.loads((arguments.to / "config.json").read_text(encoding="utf-8"))
    config |= {"trained": True, "occlusion_gate": True}  # its object scores were trained
    (arguments.to / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    draw_curves(arguments.run, arguments.to / "curves.png")
    write_card(arguments.results or [], arguments.to / "README.md")
    print(f"{arguments.to}: {sum(parameter.numel() for parameter in model.parameters()) / 1e6:.1f} M parameters")


if __name__ == "__main__":
    main()
