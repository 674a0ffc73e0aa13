"""Temporary folders with SAM 2's features: those of killed processes are deleted, those of live ones never."""

import time
from multiprocessing import get_context
from pathlib import Path

import pytest

from sama.feature_store_sama import FEATURE_PREFIX, SamFeatureStore


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
