"""profiling/compare_revisions.py: its process, and what is reported."""

import math
import os
import subprocess
import threading
from pathlib import Path

import pytest
import torch

from sama.profiling import compare_revisions
from sama.profiling.cases import CASES, CHECKPOINT, randomize, serve, tracker_config
from sama.profiling.compare_revisions import Worker, compare, difference
from sama.profiling.ratios import alternate, interval, median_wall, ratio


ROOT = Path(__file__).parents[2]


def test_difference_is_relative_to_the_largest_value():
    before = {"masks": torch.tensor([2.0, -4.0]), "text": "a ring"}
    assert difference(before, before) == "0.0e+00"
    assert difference(before, before | {"masks": torch.tensor([2.0, -3.0])}) == "2.5e-01"
    assert difference(before, before | {"text": "a cross"}) == "0.0e+00, 1 texts differ"
    assert difference(before, {"text": "a ring"}) == "other results: ['masks']"
    assert "has shape (1,), before (2,)" in difference(before, before | {"masks": torch.zeros(1)})


def test_what_is_no_number_is_a_difference():
    wanted = {"masks": torch.tensor([1.0, math.inf])}
    assert difference(wanted, {"masks": torch.tensor([1.0, math.inf])}) == "0.0e+00"
    for value in (math.nan, -math.inf):
        assert difference(wanted, {"masks": torch.tensor([1.0, value])}) == "inf"


def test_rounds_alternate_and_ratios_have_intervals():
    order = []

    def measured(name: str, seconds: float):
        return lambda: (order.append(name), (seconds, 2 * seconds))[1]

    first, second = alternate([measured("a", 3.0), measured("b", 2.0)], rounds=3)
    assert order == list("abbaab") and median_wall(first) == 3.0
    assert ratio(first, second, 0) == ratio(first, second, 1) == "1.50x [1.50, 1.50]"
    middle, low, high = interval([1.0, 2.0, 3.0, 4.0, 100.0])
    assert low < middle == 3.0 < high


def test_weights_do_not_depend_on_the_order_of_parameters():
    class Pair(torch.nn.Module):
        def __init__(self, *names: str):
            super().__init__()
            for name in names:
                self.add_module(name, torch.nn.Linear(3, 3))

    first, second = randomize(Pair("one", "two")), randomize(Pair("zero", "two", "one"))
    assert torch.equal(first.one.weight, second.one.weight) and not torch.equal(first.one.weight, first.two.weight)


@pytest.mark.parametrize("version", ["2.0", "2.1"])
def test_published_encoder_at_another_size(version):
    config = tracker_config("tiny", 256, version)
    assert config["image_size"] == 256 and config["memory_attention_rope_feat_sizes"] == [16, 16]
    assert config["enable_occlusion_spatial_embedding"] is (version == "2.1")


def test_a_folder_without_the_package(tmp_path, capsys, monkeypatch):
    with pytest.raises(ValueError, match="is no checkout of this repository"):
        Worker(tmp_path, threads=1)
    monkeypatch.setattr("sys.argv", ["compare_revisions.py", "--before", str(tmp_path)])
    with pytest.raises(SystemExit):
        compare_revisions.main()
    assert "is no checkout of this repository" in capsys.readouterr().err


class Answering:
    """Stands in for the process of a `Worker`: its requests are answered by a thread of this one."""

    def __init__(self, command: list[str], **options):
        assert Path(command[-1]) == ROOT / "profiling" / "cases.py" and options["env"]["OMP_NUM_THREADS"] == "1"
        requests, self.stdin = (os.fdopen(number, mode) for number, mode in zip(os.pipe(), "rw", strict=True))
        self.stdout, answers = (os.fdopen(number, mode) for number, mode in zip(os.pipe(), "rw", strict=True))
        self.thread = threading.Thread(target=serve, args=(requests, answers), daemon=True)
        self.thread.start()

    def wait(self) -> None:
        self.thread.join()


@pytest.mark.skipif(not CHECKPOINT.is_dir(), reason="no checkpoints/sama-tiny")
@pytest.mark.parametrize("popen", [Answering, pytest.param(subprocess.Popen, marks=pytest.mark.slow)])
def test_a_process_measures_a_case(popen, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", popen)
    worker = Worker(ROOT, threads=1)  # once: starting it takes longer than what it measures
    row = compare(worker, worker, "later turn, text alone", rounds=1)
    with pytest.raises(RuntimeError, match="failed in .*KeyError: 'no case'"):
        worker.measure("no case")
    worker.close()
    assert row[0] in CASES and row[-1] == "0.0e+00"
    assert popen is Answering or worker.process.returncode == 0
