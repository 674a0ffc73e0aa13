"""The training loop of the small model's recipe in two processes."""

import torch
from linear_phase import train_layer
from processes import finish, start_group


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
