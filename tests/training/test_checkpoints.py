"""Whole and damaged checkpoints in every layout, the choice among them, and the lock on an output folder."""

import json
import os
import signal
from pathlib import Path

import pytest
from held_processes import hold_lock
from processes import CONTEXT

from sama.training.checkpoints import (
    MANIFEST,
    TrainingError,
    delete_old_checkpoints,
    find_checkpoint,
    find_damage,
    resume_point,
    write_manifest,
)
from sama.training.output_lock import LOCK_FILE, lock_output


PLAIN = ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"]
PROCESSES = ["rng_state_0.pth", "rng_state_1.pth"]
LAYOUTS = {
    "plain": PLAIN,
    "shards": ["model-1.safetensors", "model-2.safetensors", *PLAIN[1:]],
    "adapter": ["adapter_model.safetensors", *PLAIN[1:]],
    "DDP": [*PLAIN[:3], *PROCESSES],
    "DeepSpeed": ["latest", "global_step2/zero_pp_rank_0_optim_states.pt", "global_step2/mp_rank_00.pt", *PROCESSES],
    "FSDP": ["pytorch_model_fsdp_0/__0_0.distcp", "optimizer_0/__0_0.distcp", "scheduler.pt", *PROCESSES],
}  # fmt: skip
ALWAYS = ["trainer_state.json", "order.json", "fingerprint.json"]


def save(folder: Path, step: int = 2, layout: str = "plain") -> Path:
    """A checkpoint whose files have the right names and any content."""
    path = folder / f"checkpoint-{step}"
    for name in LAYOUTS[layout]:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(b"weights " * 10)
    ranks = sum(name in LAYOUTS[layout] for name in PROCESSES) or 1
    (path / "order.json").write_text(json.dumps({"num_ranks": ranks}))
    (path / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    (path / "fingerprint.json").write_text("{}")
    if layout == "shards":
        weights = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))
    write_manifest(path)
    return path


CASES = [(layout, name) for layout, names in LAYOUTS.items() for name in [*names, *ALWAYS, MANIFEST]]


@pytest.mark.parametrize(("layout", "name"), CASES)
def test_a_missing_file_is_named(tmp_path, layout, name):
    path = save(tmp_path, layout=layout)
    assert find_damage(path) is None and find_checkpoint(tmp_path) == path
    (path / name).unlink()
    assert name in find_damage(path) and find_checkpoint(tmp_path) is None


@pytest.mark.parametrize("name", [*PLAIN, *ALWAYS, MANIFEST])
@pytest.mark.parametrize("damage", ["cut", "empty", "flipped"])
def test_a_damaged_file_is_named(tmp_path, name, damage):
    path = save(tmp_path)
    content = (path / name).read_bytes()
    changed = {
        "cut": content[:-1] if name != MANIFEST else content[:-9],
        "empty": b"",
        "flipped": b"\xff" + content[1:],
    }
    (path / name).write_bytes(changed[damage])
    assert name in find_damage(path)


@pytest.mark.parametrize("saved", [["optimizer.pt", "scheduler.pt", "rng_state.pth"], ["optimizer.pt"]])
def test_what_was_never_saved_is_missing_too(tmp_path, saved):
    """As with --save_only_model: the manifest does not list it."""
    path = save(tmp_path)
    for name in [*saved, MANIFEST]:
        (path / name).unlink()
    write_manifest(path)
    assert find_damage(path) == f"lacks {', '.join(saved)}"


@pytest.mark.parametrize("content", ["[]", "{}", '{"files": []}', '{"files": {"optimizer.pt": 5}}', "[" * 100_000])
def test_a_manifest_that_is_none(tmp_path, content):
    path = save(tmp_path)
    (path / MANIFEST).write_text(content)
    assert find_damage(path) is not None


def test_resuming_falls_back_to_the_older_whole_checkpoint(tmp_path):
    paths = [save(tmp_path, step) for step in (2, 10, 9)]
    assert resume_point("last", tmp_path, "last") == (paths[1], [])
    (paths[1] / "optimizer.pt").unlink()
    (paths[2] / "model.safetensors").write_bytes(b"")
    expected = [
        f"{paths[1]} lacks optimizer.pt; resuming from {paths[0]} instead.",
        f"{paths[2]} has 0 bytes of the 80 of model.safetensors; resuming from {paths[0]} instead.",
    ]
    for wanted in ("last", paths[1]):
        assert resume_point(wanted, tmp_path, "last") == (paths[0], expected)
    (paths[0] / "order.json").unlink()
    with pytest.raises(
        TrainingError, match="checkpoint-10 lacks.*checkpoint-9 has 0 bytes.*lacks order.json; none is"
    ):
        resume_point("last", tmp_path, "last")


def test_a_path_that_is_no_checkpoint(tmp_path):
    whole = save(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match=f"file is a file, not the folder.*newest whole checkpoint.*{whole.name}"):
        resume_point(tmp_path / "file", tmp_path, "last")
    with pytest.raises(TrainingError, match="absent does not exist"):
        resume_point(tmp_path / "absent", tmp_path, "last")
    (tmp_path / "checkpoint-5").touch()
    for name in ("checkpoint-final", "checkpoint-", "checkpoint-3x", "checkpoint-²"):
        (tmp_path / name).mkdir()
    assert resume_point("last", tmp_path, "last") == (whole, [])
    with pytest.raises(TrainingError, match="checkpoint-final lacks trainer_state.json, order.json"):
        resume_point(tmp_path / "checkpoint-final", tmp_path, "last")
    assert resume_point("last", tmp_path / "absent", "last") == (None, [])


def test_checkpoints_of_later_steps_are_deleted_first(tmp_path):
    """A run that fell back from a damaged checkpoint-9 must not delete what it saves before step 9."""
    for step in (1, 2, 3, 9):
        save(tmp_path, step)
    (tmp_path / "checkpoint-final").mkdir()
    delete_old_checkpoints(tmp_path, step=3, limit=None)
    delete_old_checkpoints(tmp_path, step=3, limit=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-3", "checkpoint-final"]


# The lock


def test_a_second_run_learns_of_the_first_and_a_killed_one_does_not_block(tmp_path):
    held = CONTEXT.Queue()
    process = CONTEXT.Process(target=hold_lock, args=(tmp_path, held))
    process.start()
    worker = held.get(timeout=60)
    try:
        with pytest.raises(
            TrainingError, match=f"in use by another run .process {process.pid} on {os.uname().nodename}"
        ):
            with lock_output(tmp_path):
                pass
    finally:
        process.kill()
        process.join()
    assert (tmp_path / LOCK_FILE).is_file()
    with lock_output(tmp_path):  # although the worker lives on
        os.kill(worker, 0)
        with pytest.raises(TrainingError, match=f"process {os.getpid()} on"), lock_output(tmp_path):
            pass
    os.kill(worker, signal.SIGKILL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["file", "file/below", "/proc/sama"])
def test_a_folder_that_cannot_be_written(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match="output folder .* cannot be written"), lock_output(tmp_path / name):
        pass


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", refuse)
    with lock_output(tmp_path):
        assert (tmp_path / LOCK_FILE).is_file()
