"""Plots of a result: a histogram of IoUs, and scores by video length and by number of objects."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from sama.benchmarks.benchmark import Measures


PLOTS = "plots.png"
BINS, MAX_BARS = 20, 8
BLUE, GREY = "#3568b8", "#555555"


def write_plots(folder: Path, samples: Sequence[Measures], headline: str, title: str = "") -> Path | None:
    """
    Writes `plots.png` and returns its path; `None` if no sample has a value.

    Args:
        folder (`Path`): The folder of the file.
        samples (sequence of [`Measures`]): The scored predictions.
        headline (`str`): Name of `Measures.value`.
        title (`str`, *optional*): What was evaluated.
    """
    valued = [sample for sample in samples if sample.value is not None]
    if not valued:
        return None
    from matplotlib.figure import Figure  # two seconds, which a run without pictures does not wait for

    figure = Figure(figsize=(13, 3.8), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    ious = [iou for sample in samples for iou in sample.ious]
    counts = f"{len(valued)} questions" + (f", {len(ious)} objects" if ious else "")
    figure.suptitle(f"{title}: {counts}" if title else counts)
    if ious:
        _histogram(left, ious, "IoU of an object", "objects")
    else:
        _histogram(left, [sample.value for sample in valued], f"{headline} of a question", "questions")
    lengths = _bins([sample.num_frames for sample in valued], [sample.value for sample in valued])
    objects = _bins([sample.num_objects for sample in valued], [sample.value for sample in valued])
    _bars(middle, lengths, "frames of the video", headline)
    _bars(right, objects, "objects asked for", headline)
    path = folder / PLOTS
    figure.savefig(path, dpi=110)
    return path


def _bins(places: Sequence[int], values: Sequence[float]) -> list[tuple[str, list[float]]]:
    """Labels and values of the bins of a bar chart: one bin per distinct place, or bins with about equal numbers of
    samples if there are more than `MAX_BARS` places. Equal places share a bin."""
    by_place = defaultdict(list)
    for place, value in zip(places, values, strict=True):
        by_place[place].append(value)
    if len(by_place) <= MAX_BARS:
        return [(str(place), by_place[place]) for place in sorted(by_place)]
    bins, held, first, last = [], [], None, None
    for place in sorted(by_place):
        first = place if first is None else first
        held, last = held + by_place[place], place
        if len(held) * MAX_BARS >= len(values):
            bins.append((_named(first, last), held))
            held, first = [], None
    return [*bins, (_named(first, last), held)] if held else bins


def _named(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}\u2013{last}"


def _histogram(axes, values: Sequence[float], name: str, counted: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.hist(values, bins=BINS, range=(0, 1), color=BLUE)
    mean = sum(values) / len(values)
    axes.axvline(mean, color=GREY, linestyle="--", linewidth=1)
    axes.annotate(
        f"mean {mean:.2f}",
        (mean, 1),
        xycoords=("data", "axes fraction"),
        xytext=(4 if mean < 0.7 else -4, -12),
        textcoords="offset points",
        ha="left" if mean < 0.7 else "right",
        color=GREY,
    )
    axes.set_title(f"Distribution over {len(values)} {counted}", fontsize=10)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    _tidy(axes, name, f"number of {counted}")


def _bars(axes, bins: Sequence[tuple[str, list[float]]], name: str, headline: str) -> None:
    """Means with standard errors; each bar shows its number of samples."""
    means = [sum(values) / len(values) for _, values in bins]
    errors = [_standard_error(values) for _, values in bins]
    axes.bar(range(len(bins)), means, yerr=errors, color=BLUE, ecolor=GREY, capsize=3, width=0.75)
    plate = {"boxstyle": "round,pad=0.15", "fc": GREY, "ec": "none"}
    for place, (_, values) in enumerate(bins):
        axes.annotate(
            str(len(values)), (place, 0), xytext=(0, 3), textcoords="offset points", ha="center", color="white",
            fontsize=8, bbox=plate,
        )  # fmt: skip
    axes.set_xticks(range(len(bins)), [label for label, _ in bins], fontsize=8)
    axes.set_ylim(0, 1)
    axes.set_title("Mean and standard error (in the bars: questions)", fontsize=10)
    _tidy(axes, name, headline)


def _standard_error(values: Sequence[float]) -> float:
    if len(values) < 2:
        return 0.0
    mean = sum(values) / len(values)
    return (sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values)) ** 0.5


def _tidy(axes, name: str, values: str) -> None:
    axes.set_xlabel(name)
    axes.set_ylabel(values)
    axes.spines[["top", "right"]].set_visible(False)
