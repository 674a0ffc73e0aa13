"""What an actor of a pool does with jobs that ended a process before, and where the actors of a run are. Without
Ray."""

import threading
from concurrent.futures import ThreadPoolExecutor
from time import monotonic, sleep
from types import SimpleNamespace

import pytest

from sama.bulk import command, pool
from sama.bulk.pool import Attempts, PoolActor, ProcessLost, SharedLock, start_here


class Remote:
    """A method of an actor whose results are there at once."""

    def __init__(self, method):
        self.remote = method


@pytest.fixture
def attempts(monkeypatch):
    """The counts of attempts; its methods are called as those of an actor are."""
    monkeypatch.setattr(pool, "import_ray", lambda: SimpleNamespace(get=lambda result: result))
    counts = Attempts()
    methods = {name: Remote(vars(Attempts)[name].__get__(counts)) for name in ("count", "begin", "end")}
    return SimpleNamespace(begun=counts.begun, **methods)


def row(index: int) -> dict:
    return {"index": index, "text": f"job {index}"}


def wait_until(condition) -> None:
    """Fails after a minute."""
    deadline = monotonic() + 60
    while not condition():
        assert monotonic() < deadline
        sleep(0.005)


def test_a_job_that_was_begun_before_is_computed_alone(attempts):
    """So that only its own attempts count: the process of the first one may have ended for a neighbour."""
    attempts.begun.update({2: 1, 3: 2})
    both, together, alone = threading.Barrier(3, timeout=60), threading.Event(), threading.Event()
    waits = {"job 0": together, "job 1": together, "job 2": alone}
    running, most, lock = set(), {}, threading.Lock()

    def worker(text: str) -> str:
        with lock:
            running.add(text)
            most[text] = len(running)
        if text in ("job 0", "job 1"):
            both.wait()  # both are, at the same time
        if text in waits:
            assert waits[text].wait(60)
        with lock:
            running.remove(text)
        return text.upper()

    actor = PoolActor(lambda: worker, attempts, 3)
    with ThreadPoolExecutor(5) as threads:
        jobs = [threads.submit(actor, row(index)) for index in (0, 1)]
        both.wait()
        jobs.append(threads.submit(actor, row(2)))
        wait_until(lambda: actor.lock.exclusive_threads == 1)
        assert attempts.begun == {0: 1, 1: 1, 2: 1, 3: 2}  # a job that waits to be alone has not been begun
        together.set()
        wait_until(lambda: "job 2" in most)
        jobs += [threads.submit(actor, row(index)) for index in (3, 4)]
        wait_until(lambda: actor.lock.exclusive_threads == 2)
        sleep(0.05)  # long enough for the others to begin, if they could
        assert attempts.begun == {2: 2, 3: 2} and running == {"job 2"}  # job 4 is new, and waits nevertheless
        alone.set()
        assert [job.result(60)["text"] for job in jobs] == [f"JOB {index}" for index in range(5)]
    assert most["job 2"] == most["job 3"] == most["job 4"] == 1 and not attempts.begun


def test_an_exception_while_a_thread_waits_to_be_alone_blocks_nobody(monkeypatch):
    lock = SharedLock()

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(threading.Condition, "wait_for", interrupted)
        with pytest.raises(KeyboardInterrupt), lock.exclusive():
            pytest.fail("it was not entered")
    assert not lock.exclusive_threads
    with ThreadPoolExecutor(1) as threads:

        def enter() -> bool:
            with lock.shared():
                return True

        assert threads.submit(enter).result(60)


def test_an_attempt_counts_when_it_begins_and_too_many_give_the_job_up(attempts):
    seen = []
    actor = PoolActor(lambda: lambda text: seen.append(attempts.begun[0]) or text, attempts, 2)
    actor(row(0))
    attempts.begun[0] = 1
    actor(row(0))
    attempts.begun[0] = 2
    assert actor(row(0))["error"] == "ProcessLost: the process that computed it ended 2 times"
    assert seen == [1, 2]


def test_a_failed_job_lets_the_others_go_on(attempts):
    attempts.begun.update({0: 1, 1: 1})

    def worker(text: str) -> str:
        raise KeyError(text)

    actor = PoolActor(lambda: worker, attempts, 3)
    with ThreadPoolExecutor(2) as threads:
        assert [one["error"] for one in threads.map(actor, map(row, (0, 1, 2)))] == [
            f"KeyError: 'job {index}'" for index in range(3)
        ]


def test_actors_that_a_run_cannot_do_without_are_on_its_machine(monkeypatch):
    made = []

    def remote(**options):
        return lambda actor: Remote(lambda: made.append((actor, options)))

    strategies = SimpleNamespace(NodeAffinitySchedulingStrategy=lambda node, soft: (node, soft))
    ray = SimpleNamespace(
        remote=remote,
        util=SimpleNamespace(scheduling_strategies=strategies),
        get_runtime_context=lambda: SimpleNamespace(get_node_id=lambda: "here"),
    )
    monkeypatch.setattr(pool, "import_ray", lambda: ray)
    start_here(Attempts, max_concurrency=5)
    assert made == [(Attempts, {"num_cpus": 0, "scheduling_strategy": ("here", False), "max_concurrency": 5})]


def test_a_process_that_is_lost_is_one_sentence(monkeypatch, tmp_path, capsys):
    def lost(settings, settings_of_pool):
        raise ProcessLost("CUDA error:\nan illegal access")

    monkeypatch.setattr(command, "predict", lost)
    assert command.main(["--output", str(tmp_path), "--videos", str(tmp_path), "--question", "What?"]) == 1
    assert capsys.readouterr().err == (
        "predict: This process can no longer compute (CUDA error: an illegal access). What is finished is "
        "saved; run again to go on.\n"
    )
