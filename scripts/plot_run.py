"""Plots the losses and metrics of a training run as a PNG.

python scripts/plot_run.py outputs/train [--out curves.png] [--smooth 20]
"""

import argparse
import json
from pathlib import Path

import matplotlib


matplotlib.use("Agg")  # without a display
from matplotlib import pyplot  # noqa: E402


STATE = "trainer_state.json"
PANELS = (  # title, log entries, whether the axis is logarithmic
    ("loss", ("loss", "lm_loss"), True),
    ("mask losses", ("mask_loss", "dice_loss", "iou_loss", "presence_loss"), False),
    ("accuracy on training batches", ("token_accuracy", "seg_accuracy", "mask_iou"), False),
    ("learning rate", ("learning_rate",), False),
    ("gradient norm", ("grad_norm",), True),
)


def read_history(run: Path) -> list[dict]:
    """The log entries of a run's updates, from its newest checkpoint if the run has not finished."""
    found = sorted(run.glob(f"checkpoint-*/{STATE}"), key=lambda path: int(path.parent.name.split("-")[1]))
    path = run / STATE if (run / STATE).is_file() else found[-1] if found else None
    if path is None:
        raise FileNotFoundError(f"there is no {STATE} in {run} or its checkpoints")
    return [entry for entry in json.loads(path.read_text(encoding="utf-8"))["log_history"] if "loss" in entry]


def curve(history: list[dict], name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one metric; entries without it are skipped."""
    found = [(entry["step"], entry[name]) for entry in history if name in entry]
    return [step for step, _ in found], [value for _, value in found]


def smoothed(values: list[float], width: int) -> list[float]:
    """The mean of each value and up to `width - 1` before it."""
    windows = (values[max(0, end - width) : end] for end in range(1, len(values) + 1))
    return [sum(window) / len(window) for window in windows]


def draw(history: list[dict], out: Path, smooth: int, title: str) -> None:
    """Writes the plot: logged values in a light colour, their running mean in a strong one."""
    figure, panels = pyplot.subplots(1, len(PANELS), figsize=(4.2 * len(PANELS), 3.6), layout="constrained")
    for panel, (heading, names, logarithmic) in zip(panels, PANELS, strict=True):
        for name in names:
            steps, values = curve(history, name)
            if values:
                [line] = panel.plot(steps, smoothed(values, smooth), label=f"{name} {values[-1]:.3g}")
                panel.plot(steps, values, color=line.get_color(), alpha=0.25, linewidth=0.7)
        panel.set_title(heading)
        panel.set_xlabel("update")
        panel.set_yscale("log" if logarithmic else "linear")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    figure.suptitle(title)
    figure.savefig(out, dpi=110)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="output folder of the run")
    parser.add_argument("--out", type=Path, help="output file (default: curves.png in the run's folder)")
    parser.add_argument(
        "--smooth", type=int, default=20, help="log entries in the running mean (default: %(default)s)"
    )
    arguments = parser.parse_args()
    history = read_history(arguments.run)
    out = arguments.out or arguments.run / "curves.png"
    draw(history, out, arguments.smooth, arguments.run.name)
    print(f"{len(history)} log entries plotted to {out}")


if __name__ == "__main__":
    main()
