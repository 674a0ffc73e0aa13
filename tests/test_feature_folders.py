"""Temporary folders with SAM 2's features: those of killed processes are deleted, those of live ones never."""

import time
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

from sama.feature_store_sama import FEATURE_PREFIX, SamFeatureStore
from sama.modeling_sama_tracker import FrameFeatures


def hold_features(folder: str, made) -> None:
    """Makes a store without a model, writes a feature file, and waits to be killed."""
    store = SamFeatureStore(None, folder=folder)
    (Path(store.folder.name) / "0.pt").write_bytes(bytes(1000))
    made.put(store.folder.name)
    time.sleep(600)


@pytest.fixture
def start(tmp_path):
    """A function that starts a process with a feature folder in `tmp_path`: the process and the folder."""
    context, processes = get_context("fork"), []

    def run():
        made = context.Queue()
        process = context.Process(target=hold_features, args=(str(tmp_path), made), daemon=True)
        process.start()
        processes.append(process)
        return process, Path(made.get(timeout=60))

    yield run
    for process in processes:
        process.kill()
        process.join()


def test_folders_of_killed_processes_are_deleted_and_no_others(start, tmp_path):
    (killed, left), (_, alive) = start(), start()
    foreign = tmp_path / f"{FEATURE_PREFIX}of_somebody"
    foreign.mkdir()
    link = tmp_path / f"{FEATURE_PREFIX}link"
    link.symlink_to(left)
    mine = SamFeatureStore(None, folder=str(tmp_path))
    assert left.is_dir() and alive.is_dir()
    killed.kill()
    killed.join()
    other = SamFeatureStore(None, folder=str(tmp_path))
    assert not left.exists() and (alive / "0.pt").is_file() and foreign.is_dir() and link.is_symlink()
    folders = [Path(store.folder.name) for store in (mine, other)]
    assert all(folder.is_dir() for folder in folders)
    del mine, other
    assert not any(folder.exists() for folder in folders)


def test_a_full_disk_costs_the_kept_features_and_no_answer(tmp_path, monkeypatch):
    features = FrameFeatures(torch.zeros(1, 2, 3, 3), (torch.zeros(1, 2, 6, 6),) * 2, ())
    encoded = []
    store = SamFeatureStore(lambda index: encoded.append(index) or features, folder=str(tmp_path))
    store(0)
    assert store.nbytes == features.image.nbytes + 2 * features.tuned[0].nbytes

    def no_space(value, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", no_space)
    with pytest.warns(UserWarning, match="not kept.*No space left on device"):
        assert store(1) is features
    monkeypatch.undo()
    for index in (0, 1, 1):
        store(index)
    assert encoded == [0, 1, 1, 1]  # frame 0 was kept
    assert not (Path(store.folder.name) / "1.pt").exists()
