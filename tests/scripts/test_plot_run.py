"""The plot of a training run."""

import json

import numpy as np
import pytest
from PIL import Image

from sama.scripts.plot_run import draw, read_history, smoothed


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
    assert len(np.unique(np.asarray(Image.open(tmp_path / "curves.png")).reshape(-1, 4), axis=0)) > 50


def test_folder_without_a_run_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="trainer_state.json"):
        read_history(tmp_path)
