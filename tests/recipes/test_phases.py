"""The training loop of the small model's recipe: two processes, and what a run depends on."""

from argparse import Namespace

import pytest
import torch
from linear_phase import train_layer
from processes import finish, start_group

from sama.recipes.sama_tiny.phases import load_state, save_state, settings_of
from sama.training.checkpoints import TrainingError


def test_two_processes_learn_what_one_learns_from_all_rows(tmp_path):
    train_layer(tmp_path / "alone.pt", 4)
    log = tmp_path / "log.txt"
    for process in start_group(log, train_layer, tmp_path / "group.pt", 2):
        finish(process, log)
    alone, group = (torch.load(tmp_path / name, weights_only=True) for name in ("alone.pt", "group.pt"))
    assert alone["step"] == group["step"] == 5
    for name, weights in alone["layer"].items():
        torch.testing.assert_close(group["layer"][name], weights, atol=1e-6, rtol=1e-5)
    for state in (alone, group):  # neither decays
        assert state["unused"]["weight"].tolist() == [[-1, 1]]
    (line,) = [one for one in log.read_text(encoding="utf-8").splitlines() if one.startswith("step 5:")]
    assert "seconds" in line  # the first process alone reports


def test_a_run_depends_on_what_earlier_stages_made(tmp_path):
    for name in ("start", "masks", "to"):
        (tmp_path / name).mkdir()
    initial, masks = tmp_path / "start" / "model.safetensors", tmp_path / "masks" / "state.pt"
    initial.write_bytes(b"weights")
    masks.write_bytes(b"masks")
    folders = {name: tmp_path / name for name in ("start", "masks", "to")}
    arguments = Namespace(**folders, seed=0, log_steps=9)
    state = tmp_path / "to" / "state.pt"
    save_state(state, {}, [], settings_of(arguments), 3)
    assert load_state(state, {}, [], settings_of(arguments), "cpu") == 3  # although `to` has a state now
    for path, name in ((initial, "start"), (masks, "masks")):
        kept = path.read_bytes()
        path.write_bytes(b"others")
        with pytest.raises(TrainingError, match=f"is of a run with {name} .*: choose another --to"):
            load_state(state, {}, [], settings_of(arguments), "cpu")
        path.write_bytes(kept)
