"""The plot of a training run."""

import json

import numpy as np
import pytest
from PIL import Image

from sama.scripts.plot_run import PANELS, draw, draw_panel, pyplot, read_history, smoothed


def test_smoothed_is_a_running_mean():
    assert smoothed([1.0, 3.0, 5.0, 7.0], 2) == [1.0, 2.0, 4.0, 6.0]


def test_newest_state_is_plotted(tmp_path):
    for step in (2, 10):
        entries = [{"step": i, "loss": 9.0 / i, "lm_loss": 8.0 / i, "learning_rate": 1e-3} for i in range(1, step + 1)]
        (tmp_path / f"checkpoint-{step}").mkdir()
        state = {"log_history": [*entries, {"step": step, "train_runtime": 1.0}]}
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps(state))
    history = read_history(tmp_path)
    assert [entry["step"] for entry in history] == list(range(1, 11))
    draw(history, tmp_path / "curves.png", 3, "run")
    picture = Image.open(tmp_path / "curves.png")
    assert len(picture.getcolors(picture.width * picture.height)) > 50


def test_folders_that_are_no_checkpoint_of_the_trainer_are_passed_over(tmp_path):
    for name, loss in (("checkpoint-9", 2.0), ("checkpoint-10", 1.0), ("checkpoint-final", 3.0)):
        (tmp_path / name).mkdir()
        write_log(tmp_path / name, [{"step": 1, "loss": loss}])
    assert [entry["loss"] for entry in read_history(tmp_path)] == [1.0]
    write_log(tmp_path, [{"step": 1, "loss": 0.5}])
    assert [entry["loss"] for entry in read_history(tmp_path)] == [0.5]


def test_folder_without_a_run_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="trainer_state.json"):
        read_history(tmp_path)


def write_log(run, entries):
    (run / "trainer_state.json").write_text(json.dumps({"log_history": entries}))


def test_the_learning_rate_is_drawn_as_it_was_and_the_legend_is_off_the_curves():
    rates = [step / 15 if step <= 15 else (100 - step) / 85 for step in range(1, 101)]
    history = [{"step": step, "loss": 1.0, "learning_rate": rate} for step, rate in enumerate(rates, start=1)]
    panel = next(panel for panel in PANELS if "learning_rate" in panel.curves)
    figure, axes = pyplot.subplots(layout="constrained")
    draw_panel(axes, panel, history, 20)
    (line,) = axes.lines
    steps, values = line.get_data()
    assert steps[np.argmax(values)] == 15 and values[-1] == 0
    figure.canvas.draw()
    assert axes.get_legend().get_window_extent().y1 < axes.get_window_extent().y0
    assert axes.get_title() and axes.get_xlabel() and axes.get_ylabel()
    pyplot.close(figure)


def drawn(title: str, history: list[dict]):
    """The axes of a panel."""
    _, axes = pyplot.subplots()
    draw_panel(axes, next(panel for panel in PANELS if panel.title == title), history, 20)
    pyplot.close(axes.figure)
    return axes


def test_a_run_of_reinforcement_has_its_rewards_and_a_linear_loss(tmp_path):
    history = [
        {"step": step, "loss": 0.01 * (-1) ** step, "reward": 1.2, "reward_std": 0.3, "rewards/masks/mean": 0.5,
         "rewards/mine:short/mean": 0.7, "rewards/masks/std": 0.1, "kl": 0.002 * step}
        for step in range(3)
    ]  # fmt: skip
    axes = drawn("Loss", history)
    assert axes.get_yscale() == "linear" and "logarithmic" not in axes.get_ylabel()
    assert drawn("Loss", [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.1}]).get_yscale() == "log"
    names = [text.get_text().partition(" (last")[0] for text in drawn("Rewards", history).get_legend().get_texts()]
    assert names == ["weighted sum", "its deviation within prompts", "masks", "mine:short"]
    assert len(drawn("KL divergence", history).lines) == 2
    draw(history, tmp_path / "curves.png", 20, "run")
    assert (tmp_path / "curves.png").is_file()


def test_a_run_shorter_than_its_logging_interval_has_its_mean_loss(tmp_path):
    write_log(tmp_path, [{"step": 6, "train_loss": 1.5, "train_runtime": 2.0}])
    assert [entry["train_loss"] for entry in read_history(tmp_path)] == [1.5]
    draw(read_history(tmp_path), tmp_path / "curves.png", 20, "run")
    picture = np.asarray(Image.open(tmp_path / "curves.png").convert("RGB")).astype(int)
    assert (picture.max(axis=-1) - picture.min(axis=-1) > 60).sum() > 20  # a marker, not a line of length 0


def test_a_log_without_losses_is_an_error(tmp_path):
    write_log(tmp_path, [{"step": 6, "eval_loss": 1.5}])
    with pytest.raises(ValueError, match="no loss among its 1 entries"):
        read_history(tmp_path)
