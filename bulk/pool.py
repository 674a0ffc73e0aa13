"""
Jobs in a pool of Ray actors, or one after the other in this process: the same function computes both.

A job is a number and a text, its result another text. Every actor makes its worker once, which usually loads a model.
What is kept where: Ray Data holds the jobs that wait and the results that nobody has taken yet, and gives an actor no
more work while the caller does not take results. An actor whose process ends is started again and computes its job
anew, so that each job has exactly one result. Results come in any order.
"""

import argparse
import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, NamedTuple

from ..data.files import user_path
from ..data.records import describe_error


Worker = Callable[[str], str]

MAX_BLOCKS = 10_000  # of jobs, each a task of Ray; up to this many jobs are a block each
LOCAL = "local"  # as an address: a Ray of this machine alone, also where another one is running
logger = logging.getLogger(__name__)


class BulkError(ValueError):
    """Bulk work that cannot be done; the message says in one sentence what is wrong."""


class ProcessLost(Exception):
    """Raised by a worker whose process can no longer compute, such as after an error of its GPU. An actor ends
    then, and another one computes the job; without Ray the run ends, with [`sentence`]."""

    def sentence(self) -> str:
        """For the person who started the run."""
        problem = " ".join(str(self).split())
        return f"This process can no longer compute ({problem}). What is finished is saved; run again to go on."


class Job(NamedTuple):
    """What is computed: a number that occurs once, and a text that the worker understands."""

    index: int
    text: str


class Result(NamedTuple):
    """The result of the job `index`: a text, or why there is none."""

    index: int
    text: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class PoolSettings:
    """
    A pool of actors.

    Args:
        actors (`int`): How many, each with a worker of its own.
        gpus (`float`, *optional*): GPUs of an actor; 0.5 puts two of them on a GPU. Default: 1 where the cluster has a
            GPU, else 0.
        cpus (`float`): CPU cores of an actor.
        address (`str`, *optional*): Of a running Ray, "auto" for that of this machine. Default: what RAY_ADDRESS says,
            else a Ray that is started here and ends with this process.
        threads (`int`): Jobs that an actor computes at a time; its worker must allow that.
        tasks_per_actor (`int`): Jobs that an actor has been given for each thread: one that is computed, the others
            wait for it.
        max_attempts (`int`): How often the process of an actor may end during a job until the job counts as failed.
            With threads, all attempts after the first are made while the actor computes nothing else, so that a job
            is not given up for what its neighbours do.
    """

    actors: int
    gpus: float | None = None
    cpus: float = 1.0
    address: str | None = None
    threads: int = 1
    tasks_per_actor: int = 2
    max_attempts: int = 3

    def __post_init__(self):
        if self.actors < 1:
            raise BulkError(f"A pool has at least 1 actor, got {self.actors}.")
        if (self.gpus or 0) < 0 or self.cpus < 0:
            raise BulkError(f"An actor takes at least 0 GPUs and 0 cores, got {self.gpus} and {self.cpus}.")
        if (self.gpus or 0) > 1 and self.gpus != int(self.gpus or 0):
            raise BulkError(f"An actor takes a part of one GPU or whole ones, got {self.gpus}.")


def add_pool_arguments(parser: argparse.ArgumentParser, dash: str) -> None:
    """The options of a pool; `dash` stands between the words of their names."""
    pool = parser.add_argument_group("Ray")
    pool.add_argument("--ray", type=int, metavar="N", help="N actors, each with a model of its own; needs sama[ray]")
    pool.add_argument(f"--ray{dash}gpus", type=float, help="GPUs of an actor, such as 0.5; default: 1 if there is one")
    pool.add_argument(f"--ray{dash}cpus", type=float, default=1.0, help="CPU cores of an actor")
    pool.add_argument(f"--ray{dash}address", help="of a running Ray; default: RAY_ADDRESS, else one is started here")


def absolute_path(model: str) -> str:
    """The name of a model for actors, which have another working directory."""
    folder = user_path(model)
    return str(folder.resolve()) if folder.is_dir() else model


def pool_settings(found: argparse.Namespace) -> PoolSettings | None:
    """The pool that the options of [`add_pool_arguments`] describe; `None` without Ray."""
    if found.ray is None:
        return None
    return PoolSettings(found.ray, gpus=found.ray_gpus, cpus=found.ray_cpus, address=found.ray_address)


def run_jobs(
    jobs: Sequence[Job], make_worker: Callable[[], Worker], pool: PoolSettings | None = None
) -> Iterator[Result]:
    """
    Yields a [`Result`] for each job, in any order. An exception of the worker is the result of its job; it ends
    nothing else.

    Args:
        jobs (sequence of [`Job`]): With different numbers.
        make_worker (`Callable`): Returns the function that computes a job. It is sent to the actors, so it must be
            importable there: a function or class of a module, or a `functools.partial` of one.
        pool ([`PoolSettings`], *optional*): As [`connect`] returns it. Without one, this process computes everything.

    Raises:
        BulkError: if a worker cannot be made, or Ray gives up.
    """
    if pool is not None and jobs:
        yield from _run_on_ray(jobs, make_worker, pool)
    elif jobs:
        worker = make_worker()
        yield from (_attempt(worker, job) for job in jobs)


def _attempt(worker: Worker, job: Job) -> Result:
    try:
        return Result(job.index, worker(job.text))
    except ProcessLost:
        raise
    except Exception as error:  # whatever is wrong with one job, the others are computed
        logger.warning("job %d failed", job.index, exc_info=True)
        return Result(job.index, error=describe_error(error))


# ---- Ray ------------------------------------------------------------------------------------------------------------


def import_ray() -> Any:
    """Ray with Ray Data; [`BulkError`] where it is not installed."""
    try:
        import_module("ray.data")
        return import_module("ray")
    except ImportError as error:
        raise BulkError("Ray Data is not installed. Run: pip install 'sama[ray]'") from error


def connect(settings: PoolSettings) -> PoolSettings:
    """
    Connects this process to Ray, unless it is, and returns the settings with the number of GPUs of an actor.

    Raises:
        BulkError: without Ray, if there is no Ray at the address, or if a Ray of this machine alone is too small for
            the pool. A cluster may grow: there, actors that find no place wait.
    """
    ray = import_ray()
    address = settings.address or os.environ.get("RAY_ADDRESS") or LOCAL
    if not ray.is_initialized():
        # A Ray that is started here needs no page of its own; one that is running has its own settings
        own = {"include_dashboard": False} if address == LOCAL else {}
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise BulkError(f"There is no Ray at {address}: {' '.join(str(error).split())[:300]}") from error
    there = ray.cluster_resources()
    gpus = settings.gpus if settings.gpus is not None else float(there.get("GPU", 0) > 0)
    if address == LOCAL:
        for name, part in (("GPU", gpus), ("CPU", settings.cpus)):
            if part * settings.actors > there.get(name, 0) + 1e-6:
                raise BulkError(
                    f"{settings.actors} actors with {part:g} {name} each need {part * settings.actors:g}, but this "
                    f"machine has {there.get(name, 0):g}; take fewer, or a smaller part of one for each."
                )
    return replace(settings, gpus=gpus)


def start_here(actor: type, **options: Any) -> Any:
    """A handle of an actor on the machine of this process, which is lost only together with the run. `options`: as
    `ray.remote` takes them."""
    ray = import_ray()
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )
    return ray.remote(num_cpus=0, scheduling_strategy=here, **options)(actor).remote()


class Attempts:
    """Counts, in an actor of its own, how often each job was begun and not ended."""

    def __init__(self):
        self.begun: Counter[int] = Counter()

    def count(self, index: int) -> int:
        """How often the job was begun."""
        return self.begun[index]

    def begin(self, index: int) -> None:
        """The job is computed now."""
        self.begun[index] += 1

    def end(self, index: int) -> None:
        """The job has a result."""
        del self.begun[index]


class SharedLock:
    """
    A lock that many threads of a process share, or one of them has for itself. Threads that want it for themselves go
    first: new ones that would share it wait.

    Attributes:
        exclusive_threads (`int`): That have it for themselves, or wait for that.
    """

    def __init__(self):
        self._changed = threading.Condition()
        self._inside, self.exclusive_threads = 0, 0

    def shared(self) -> AbstractContextManager[None]:
        """Waits until no thread has the lock for itself, or waits for that."""
        return self._hold(lambda: not self.exclusive_threads)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Waits until no other thread has the lock."""
        with self._changed:
            self.exclusive_threads += 1
        try:
            with self._hold(lambda: not self._inside):
                yield
        finally:  # also of an exception while it waits: the others would wait for ever
            with self._changed:
                self.exclusive_threads -= 1
                self._changed.notify_all()

    @contextmanager
    def _hold(self, may_enter: Callable[[], bool]) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(may_enter)
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()


class PoolActor:
    """
    What Ray Data runs in each actor.

    Args:
        make_worker (`Callable`): See [`run_jobs`].
        attempts: Handle of the actor [`Attempts`].
        max_attempts (`int`): See [`PoolSettings`].
    """

    def __init__(self, make_worker: Callable[[], Worker], attempts: Any, max_attempts: int):
        self.get, self.attempts, self.max_attempts = import_ray().get, attempts, max_attempts
        self.worker, self.lock = make_worker(), SharedLock()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        job = Job(int(row["index"]), str(row["text"]))
        before = self.get(self.attempts.count.remote(job.index))
        if before >= self.max_attempts:
            result = Result(job.index, error=f"ProcessLost: the process that computed it ended {before} times")
        else:
            # What ended the process may have been a job of another thread. Alone, a job shows whether it was this one
            with self.lock.exclusive() if before else self.lock.shared():
                self.get(self.attempts.begin.remote(job.index))
                result = self._compute(job)
        self.attempts.end.remote(job.index)
        return result._asdict()

    def _compute(self, job: Job) -> Result:
        try:
            return _attempt(self.worker, job)
        except ProcessLost:
            logger.exception("job %d: this process ends", job.index)
            os._exit(1)


def _strategy(ray: Any, pool: PoolSettings) -> Any:
    """How Ray Data uses the actors: each keeps as many jobs as it has been given, and computes one a thread."""
    given = {"size": pool.actors, "max_tasks_in_flight_per_actor": pool.tasks_per_actor * pool.threads}
    if pool.threads == 1:
        return ray.data.ActorPoolStrategy(**given)
    return ray.data.ActorPoolStrategy(
        **given, max_concurrent_calls_per_actor=pool.threads, enable_true_multi_threading=True
    )


def _run_on_ray(jobs: Sequence[Job], make_worker: Callable[[], Worker], pool: PoolSettings) -> Iterator[Result]:
    ray = import_ray()
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.enable_operator_progress_bars = False
    attempts = start_here(Attempts)
    dataset = ray.data.from_items([job._asdict() for job in jobs], override_num_blocks=min(len(jobs), MAX_BLOCKS)).map(
        PoolActor,
        fn_constructor_args=(make_worker, attempts, pool.max_attempts),
        compute=_strategy(ray, pool),
        num_cpus=pool.cpus,
        num_gpus=pool.gpus,
    )  # Ray Data starts actors again, and their tasks, as often as it takes
    try:
        for row in dataset.iter_rows():
            yield Result(int(row["index"]), row["text"], row["error"])
    except ray.exceptions.RayError as error:
        raise BulkError(f"Ray gave up: {' '.join(str(error).split())[-500:]}") from error
    finally:
        ray.kill(attempts)
