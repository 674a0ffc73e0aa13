"""A Ray of this machine alone with two actors, one of which is killed: the results are those of one process."""

import json
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from bulk_workers import FailingWorker, MortalPredictor, MortalWorker

from sama import evaluate
from sama.bulk import predict as prediction
from sama.bulk.command import main
from sama.bulk.pool import BulkError, Job, PoolSettings, connect, run_jobs


ray = pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
pytest.importorskip("ray.data", reason="Ray Data is not installed: pip install -e '.[ray]'")

ROOT = Path(__file__).parent.parent.parent
TOY = ["--benchmark", "toy_world", "--option", "clips=4", "--limit", "4", "--max_new_tokens", "3", "--no_gallery"]


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """Ray for all tests of this file; its processes find this package and the workers of the tests."""
    variables = {
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{ROOT.parent}:{ROOT / 'tests'}",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        settings = {"include_dashboard": False, "log_to_driver": False, "_node_ip_address": "127.0.0.1"}
        ray.init(num_cpus=2, object_store_memory=200 * 2**20, **settings)
        yield
        ray.shutdown()


def run(folder: Path, texts: list[str], **settings):
    pool = connect(PoolSettings(2, cpus=0.5, **settings))
    jobs = [Job(index, text) for index, text in enumerate(texts)]
    results = sorted(run_jobs(jobs, partial(MortalWorker, folder), pool))
    assert [one.index for one in results] == list(range(len(texts)))  # none lost, none twice
    return results


def done(folder: Path) -> Counter:
    return Counter(line for path in folder.glob("*.log") for line in path.read_text(encoding="utf-8").splitlines())


def test_a_killed_actor_loses_nothing(tmp_path):
    texts = [f"job {number}" for number in range(20)]
    texts[3], texts[7], texts[11] = "killed once", "bad", "lost once"
    results = run(tmp_path, texts)
    assert results[7].error == "ValueError: of two lines" and results[7].text is None
    assert [one.text for one in results if one.index != 7] == [text.upper() for text in texts if text != "bad"]
    counts = done(tmp_path)
    assert counts["killed once"] == counts["lost once"] == 2
    assert len(list(tmp_path.glob("*.log"))) == 4  # two actors, and two that took the places of those that ended


@pytest.mark.slow
def test_a_deadly_job_is_given_up(tmp_path):
    results = run(tmp_path, ["a", "deadly", "b", "c"], max_attempts=2)
    assert results[1].error == "ProcessLost: the process that computed it ended 2 times"
    assert [one.text for one in results if one.index != 1] == ["A", "B", "C"]
    assert done(tmp_path)["deadly"] == 2


@pytest.mark.slow
def test_a_deadly_job_costs_its_neighbours_no_attempts(tmp_path):
    """Of four jobs at a time; each of the others may have been begun once when the process ended."""
    texts = ["deadly"] + [f"slow {number}" for number in range(11)]
    results = run(tmp_path, texts, threads=4, max_attempts=2)
    assert results[0].error == "ProcessLost: the process that computed it ended 2 times"
    assert [one.text for one in results[1:]] == [text.upper() for text in texts[1:]]
    assert done(tmp_path)["deadly"] == 2


@pytest.mark.slow
def test_more_jobs_than_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr("sama.bulk.pool.MAX_BLOCKS", 2)
    results = run(tmp_path, ["a", "b", "killed once", "c", "d", "e", "f"], max_attempts=1)
    # What an actor had done of its block is done again, and is not held against those jobs
    assert [one.error is None for one in results] == [True, True, False, True, True, True, True]


def test_a_worker_that_cannot_be_made_ends_the_run():
    with pytest.raises(BulkError, match="there is no model"):
        list(run_jobs([Job(0, "a")], FailingWorker, connect(PoolSettings(1, cpus=0.5))))


def test_a_pool_must_fit_on_this_machine(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(BulkError, match="3 actors with 1 CPU each need 3, but this machine has 2"):
        connect(PoolSettings(3))
    assert connect(PoolSettings(2)).gpus == float(ray.cluster_resources().get("GPU", 0) > 0)


def write_pictures(folder: Path) -> Path:
    from sama.video_sama import SamaVideo

    folder.mkdir()
    clip = SamaVideo.open(str(ROOT / "assets" / "toy_world.mp4"))
    from PIL import Image

    for name, frame in (("a", 0), ("b", 6), ("killed", 12), ("d", 18)):
        Image.fromarray(clip[frame]).save(folder / f"{name}.png")
    (folder / "broken.mp4").write_bytes(b"no video" * 100)
    return folder


def test_two_actors_write_what_one_process_writes(tmp_path, monkeypatch):
    media = write_pictures(tmp_path / "media")
    common = ["--videos", str(media), "--question", "Please segment the red ball.", "--max-new-tokens", "12"]
    common += ["--shard-size", "2"]
    assert main([*common, "--output", str(tmp_path / "one")]) == 3
    monkeypatch.setattr(prediction, "Predictor", MortalPredictor)
    assert main([*common, "--output", str(tmp_path / "two"), "--ray", "2", "--ray-cpus", "0.5"]) == 3
    assert (tmp_path / "two" / "killed.txt").exists()
    files = sorted(path.name for path in (tmp_path / "one").glob("*.parquet"))
    assert len(files) == 3
    for name in (*files, "predictions.jsonl"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.slow
def test_evaluation_has_the_rows_of_one_process(tmp_path):
    model = ["--model", str(ROOT / "checkpoints" / "sama-tiny")]
    assert evaluate.main([*model, *TOY, "--output", str(tmp_path / "one")]) == 0
    assert evaluate.main([*model, *TOY, "--output", str(tmp_path / "two"), "--ray", "2", "--ray_cpus", "0.5"]) == 0
    one, two = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two"))
    assert one["scores"] == two["scores"] and one["samples"] == two["samples"] and one["dtype"] == two["dtype"]
    assert (tmp_path / "one/predictions.jsonl").read_bytes() == (tmp_path / "two/predictions.jsonl").read_bytes()
