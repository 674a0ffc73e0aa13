"""Temporary folders with SAM 2's features: those of killed processes are deleted, those of live ones never. And what
goes there: frames that do not fit into memory."""

import threading
import warnings
from pathlib import Path

import pytest
import torch
from held_processes import hold_features
from processes import CONTEXT

from sama.feature_store_sama import FEATURE_PREFIX, SamFeatureStore
from sama.tracking_sama import FrameFeatures, FrameRequest


@pytest.fixture
def start(tmp_path):
    """A function that starts a process with a feature folder in `tmp_path`: the process and the folder."""
    started = []

    def run():
        made = CONTEXT.Queue()
        process = CONTEXT.Process(target=hold_features, args=(str(tmp_path), made), daemon=True)
        process.start()
        started.append(process)
        return process, Path(made.get(timeout=60))

    yield run
    for process in started:
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


FEATURES = FrameFeatures(torch.zeros(1, 2, 3, 3), (torch.zeros(1, 2, 6, 6),) * 2, (torch.ones(1, 2, 6, 6),) * 2)


def test_a_full_disk_costs_the_kept_features_and_no_answer(tmp_path, monkeypatch):
    encoded = []
    store = SamFeatureStore(
        lambda index: encoded.append(index) or FEATURES, folder=str(tmp_path), max_memory_bytes=FEATURES.nbytes
    )
    store(0)
    store(5)
    assert store.memory_nbytes == FEATURES.nbytes == store.nbytes / 2

    def no_space(value, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", no_space)
    with pytest.warns(UserWarning, match="not kept.*No space left on device"):
        assert store(1) is FEATURES
    monkeypatch.undo()
    for index in (0, 5, 1, 1):  # no second warning, which would be an error
        store(index)
    assert encoded == [0, 5, 1, 1, 1] and store.stored == {0, 5}
    assert not (Path(store.folder.name) / "1.pt").exists()


def test_a_disk_that_fails_behind_a_track_warns_once(tmp_path, monkeypatch):
    store = SamFeatureStore(lambda index: FEATURES, folder=str(tmp_path), max_memory_bytes=0)
    begun, go_on = threading.Event(), threading.Event()

    def no_space(value, path):
        begun.set()
        assert go_on.wait(10) and threading.current_thread() is not threading.main_thread()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", no_space)
    with warnings.catch_warnings(record=True) as caught, store.writing() as keep:
        warnings.simplefilter("always")
        for index in range(3):
            keep(index, FEATURES)
        assert begun.wait(10) and store.find(FrameRequest(0)).image is FEATURES.image  # on its way to the disk
        go_on.set()
    assert len(caught) == 1 and "A later turn encodes these frames again" in str(caught[0].message)
    assert not store.stored and store.nbytes == 0 and store.find(FrameRequest(0)) is None


def test_several_stores_share_a_bound_of_memory(tmp_path):
    stores = [SamFeatureStore(lambda index: FEATURES, folder=str(tmp_path)) for _ in range(2)]
    for store in stores:
        store.memory_room = lambda: 3 * FEATURES.nbytes - sum(one.memory_nbytes for one in stores)
        for index in range(2):
            store(index)
    assert [store.memory_nbytes / FEATURES.nbytes for store in stores] == [2, 1]
    assert [len(list(Path(store.folder.name).glob("*.pt"))) for store in stores] == [0, 1]
    assert all(torch.equal(store(1).original[0], FEATURES.original[0]) for store in stores)
    stores[1].room = lambda: FEATURES.nbytes - 1
    stores[1](2)
    assert stores[1].stored == {0, 1}
