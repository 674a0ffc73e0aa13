"""`sama annotate --ray 2`: the files are those of one process, also when an actor is killed while it waits for a
reply."""

import os
import signal
from collections import Counter
from pathlib import Path

import bulk_workers
import pytest
from scripted_endpoint import KEY, scripted_endpoint
from toy_truth import ToyModels
from worked_example import command, make_example, read_rows, toy_endpoint

from sama.annotation import command as annotate
from sama.annotation.pipeline import ERRORS, FILES


ray = pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
pytest.importorskip("ray.data", reason="Ray Data is not installed: pip install -e '.[ray]'")

ROOT = Path(__file__).parent.parent.parent
POOL = ["--ray", "2", "--ray-cpus", "0.5"]
MODELS = ("writer", "verifier", "guesser")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Ray, and the folder where its actors name their processes."""
    folder = tmp_path_factory.mktemp("actors")
    variables = {
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{ROOT.parent}:{ROOT / 'tests'}",
        "ACTORS": str(folder),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        settings = {"include_dashboard": False, "log_to_driver": False, "_node_ip_address": "127.0.0.1"}
        ray.init(num_cpus=2, object_store_memory=200 * 2**20, **settings)
        patch.setenv("OPENAI_API_KEY", KEY)  # after Ray was started: no actor has it
        patch.setattr("sama.annotation.pool.AnnotationWorker", bulk_workers.RegisteredAnnotationWorker)
        yield folder
        ray.shutdown()


@pytest.fixture(scope="module")
def one_process(cluster, tmp_path_factory):
    """An example that one process has annotated, and how often it asked what, by stage and video."""
    made = make_example(tmp_path_factory.mktemp("one"), 6, 24, seed=2)
    with toy_endpoint(made) as server:
        assert annotate.main(command(made, server.url)) == 0
    return made


def files(folder: Path) -> dict[str, bytes]:
    """The output files, with the results of the videos and the drawn frames."""
    found = {f"{name}.jsonl": (folder / f"{name}.jsonl").read_bytes() for name in (*FILES, ERRORS)}
    for part in ("videos", "rendered"):
        found |= {str(path.relative_to(folder)): path.read_bytes() for path in (folder / part).rglob("*.*")}
    return found


def asked(folder: Path) -> Counter:
    """How often each stage asked something of so many tokens. Where two videos ask the same, as without a picture,
    the call is booked for the first, which may be either."""
    return Counter((row["stage"], row["usage"]["prompt"]) for row in read_rows(folder / "costs.jsonl"))


def with_output(made, folder: Path):
    """The same clips with another output folder."""
    folder.mkdir(exist_ok=True)
    (folder / "clips").symlink_to(made.folder / "clips")
    return made._replace(folder=folder)


def test_two_actors_one_of_them_killed_write_what_one_process_writes(cluster, one_process, tmp_path):
    made, models, killed = one_process, ToyModels(one_process.truths, one_process.planted), []
    pooled = with_output(made, tmp_path / "pool")
    arguments = command(pooled, "URL")
    arguments[arguments.index("--videos") + 1] = str(made.folder / "clips")

    def answer(request: dict) -> str:
        actors = sorted(cluster.iterdir())
        if len(server.calls) >= 6 and not killed:  # in the middle, while this and other replies are awaited
            killed.append(int(actors[0].name))
            os.kill(killed[0], signal.SIGKILL)
        return models.answer(request)

    with scripted_endpoint(answer, models.fault, models=MODELS) as server:
        arguments[arguments.index("URL")] = server.url
        assert annotate.main([*arguments, *POOL]) == 0
    assert len(killed) == 1 and len(list(cluster.iterdir())) == 3  # two actors, and one in the place of the killed one
    assert files(pooled.output) == files(made.output)
    assert asked(pooled.output) == asked(made.output)  # nothing was asked twice, not even what was in flight


@pytest.mark.slow
def test_a_budget_holds_for_all_actors_together(cluster, one_process, tmp_path, capsys):
    made = one_process
    pooled = with_output(made, tmp_path / "pool")
    with toy_endpoint(made) as server:
        arguments = [*command(pooled, server.url), *POOL]
        assert annotate.main([*arguments, "--budget", "60000 tokens"]) == 1
        assert "The budget of 60,000 tokens does not allow another call" in capsys.readouterr().err
        rows = read_rows(pooled.output / "costs.jsonl")
        assert 0 < sum(row["usage"]["prompt"] + row["usage"]["completion"] for row in rows) <= 60_000
        assert {row["class"] for row in read_rows(pooled.output / "errors.jsonl")} == {"stopped"}
        assert annotate.main(arguments) == 0
    assert files(pooled.output) == files(made.output) and asked(pooled.output) == asked(made.output)
