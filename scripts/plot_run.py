"""Plots the losses and metrics of a run of train.py or train_grpo.py as a PNG.

python scripts/plot_run.py outputs/train [--out curves.png] [--smooth 20]
"""

import argparse
import json
import sys
from fnmatch import fnmatchcase
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple


try:
    import matplotlib

    matplotlib.use("Agg")  # without a display
    from matplotlib import pyplot
    from matplotlib.ticker import MaxNLocator
except ModuleNotFoundError as error:
    if __name__ != "__main__" or error.name is None:
        raise
    sys.exit(f"plot_run: The Python module {error.name} is not installed. Run: pip install 'sama[train]'")


STATE = "trainer_state.json"
COLUMNS = 3
FEW = 30  # log entries, up to which each is marked: a line through one point is invisible


class Panel(NamedTuple):
    """
    One panel of the plot.

    Attributes:
        title (`str`)
        unit (`str`): the label of the vertical axis.
        curves (`dict`): name of a log entry -> name in the legend; `*` in both stands for any part of a name.
        logarithmic, noisy (`bool`): whether the axis is logarithmic if all values are positive, and whether a running
            mean is drawn.
        limits (pair of `float`, *optional*): of the vertical axis.
    """

    title: str
    unit: str
    curves: dict[str, str]
    logarithmic: bool = False
    noisy: bool = True
    limits: tuple[float, float] | None = None


LOSSES = {"loss": "total", "lm_loss": "text, nats per token", "train_loss": "mean of the run"}
PANELS = (
    Panel("Loss", "loss", LOSSES, logarithmic=True),
    Panel(
        "Rewards",
        "mean over answers",
        {"reward": "weighted sum", "reward_std": "its deviation within prompts", "rewards/*/mean": "*"},
    ),
    Panel("KL divergence", "nats per token", {"kl": "from the initial model"}),
    Panel(
        "Mask losses",
        "loss, without weights",
        {
            "mask_loss": "cross-entropy",
            "dice_loss": "Dice",
            "iou_loss": "predicted IoU",
            "presence_loss": "visible or not",
        },
    ),
    Panel(
        "Accuracy on training batches",
        "fraction right, or IoU",
        {"token_accuracy": "tokens", "seg_accuracy": "[SEG] tokens", "mask_iou": "mask IoU"},
        limits=(0, 1.02),
    ),
    Panel("Learning rate", "learning rate", {"learning_rate": "learning rate"}, noisy=False),
    Panel("Gradient norm", "norm before clipping", {"grad_norm": "gradient norm"}, logarithmic=True),
)


def read_history(run: Path) -> list[dict]:
    """
    The log entries of a run's updates, from its newest checkpoint if the run has not finished. A run with fewer
    updates than `logging_steps` has none: its only entry is the summary at its end, with the mean loss.

    Raises:
        FileNotFoundError: if there is no log.
        ValueError: if the log has no entry with a loss.
    """
    path = run / STATE
    if not path.is_file():
        states = {path.parent.name.removeprefix("checkpoint-"): path for path in run.glob(f"checkpoint-*/{STATE}")}
        steps = [step for step in states if step.isdecimal()]  # not those of a copy such as checkpoint-final
        path = states[max(steps, key=int)] if steps else None
    if path is None:
        raise FileNotFoundError(
            f"There is no {STATE} in {run} or its checkpoints; is it the output folder of train.py?"
        )
    log = json.loads(path.read_text(encoding="utf-8"))["log_history"]
    history = [entry for entry in log if "loss" in entry]
    if not history:
        history = [entry for entry in log if "train_loss" in entry]
    if not history:
        raise ValueError(f"{path} has no loss among its {len(log)} entries, so there is nothing to plot.")
    return history


def curve(history: list[dict], name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one metric; entries without it are skipped."""
    found = [(entry["step"], entry[name]) for entry in history if name in entry]
    return [step for step, _ in found], [value for _, value in found]


def logged_curves(panel: Panel, history: list[dict]) -> dict[str, str]:
    """The curves of a panel that the log has: name of a log entry -> name in the legend."""
    logged = dict.fromkeys(name for entry in history for name in entry)
    found = {}
    for pattern, label in panel.curves.items():
        start, _, end = pattern.partition("*")
        for name in logged:
            if fnmatchcase(name, pattern):
                found[name] = label.replace("*", name.removeprefix(start).removesuffix(end))
    return found


def smoothed(values: list[float], width: int) -> list[float]:
    """The mean of each value and up to `width - 1` before it."""
    windows = (values[max(0, end - width) : end] for end in range(1, len(values) + 1))
    return [sum(window) / len(window) for window in windows]


def draw_panel(axes, panel: Panel, history: list[dict], smooth: int) -> None:
    """Draws one panel: noisy values in a light colour, with their running mean in a strong one; others as they are."""
    marker = "o" if len(history) <= FEW else None
    is_positive = True
    for name, label in logged_curves(panel, history).items():
        steps, values = curve(history, name)
        is_positive = is_positive and not any(value <= 0 for value in values)
        line = smoothed(values, smooth) if panel.noisy else values
        [drawn] = axes.plot(steps, line, label=f"{label} (last: {line[-1]:.3g})", marker=marker, markersize=3)
        if panel.noisy:
            axes.plot(steps, values, color=drawn.get_color(), alpha=0.25, linewidth=0.7)
    is_logarithmic = panel.logarithmic and is_positive
    axes.set_title(panel.title)
    axes.set_xlabel("update")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_ylabel(panel.unit + (" (logarithmic)" if is_logarithmic else ""))
    axes.grid(alpha=0.3)
    if is_logarithmic:
        axes.set_yscale("log")
    else:
        axes.ticklabel_format(axis="y", scilimits=(-2, 4))
    if panel.limits:
        axes.set_ylim(*panel.limits)
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.18), frameon=False)  # below, off the curves


def draw(history: list[dict], out: Path, smooth: int, title: str) -> None:
    """Writes the plot, with a panel for each kind of value that the log has."""
    shown = [panel for panel in PANELS if logged_curves(panel, history)]
    columns = min(COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    figure, grid = pyplot.subplots(
        rows, columns, figsize=(max(6, 4.6 * columns), 4.4 * rows + 0.3), layout="constrained", squeeze=False
    )
    for axes, panel in zip_longest(grid.flat, shown):
        if panel is None:
            axes.set_visible(False)
        else:
            draw_panel(axes, panel, history, smooth)
    noun = "log entries" if len(history) > 1 else "log entry"
    mean = f"; strong lines: mean of {smooth} entries" if 1 < smooth < len(history) else ""
    figure.suptitle(f"{title}: {history[-1]['step']} updates, {len(history)} {noun}{mean}")
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
    if arguments.smooth < 1:
        parser.error(f"--smooth must be at least 1, got {arguments.smooth}")
    try:
        history = read_history(arguments.run)
    except (OSError, ValueError) as error:
        parser.exit(1, f"plot_run: {error}\n")
    out = arguments.out or arguments.run / "curves.png"
    out.parent.mkdir(parents=True, exist_ok=True)
    draw(history, out, arguments.smooth, arguments.run.resolve().name)
    print(f"Plotted to {out}; entries of the log: {len(history)}")


if __name__ == "__main__":
    main()
