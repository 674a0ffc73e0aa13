"""
A run in a pool of Ray actors. The actors draw the videos, check replies and find phrases again; the process of the
run asks the models. Budget, rate limits and costs are therefore those of one process, and no key leaves it. All
replies are kept in one folder: the reply to an actor that was killed meanwhile is found there when its video is
annotated anew.
"""

import asyncio
import base64
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from ..bulk.gpu_errors import fatal_gpu_errors
from ..bulk.pool import BulkError, Job, PoolSettings, Result, absolute_path, import_ray, run_jobs, start_here
from ..data.frames import MEDIA_ERRORS
from .annotator import Annotator, Checkpoints, LoadModel, error_row, lost_row
from .calls import Question
from .errors import AnnotationError, StopError
from .pipeline import Outcome, Pending, Run
from .scenes import BrokenScene, Scene
from .store import StoredReply


WINDOW = 10_000  # videos that are given to the pool together; their masks are in memory
MOST_WAITING = 100_000  # questions that may wait in the mailbox; a waiting one costs next to nothing


class Mailbox:
    """Passes questions of actors on to the process of the run, and its answers back. An actor of its own."""

    def __init__(self):
        self._new: asyncio.Queue[tuple[int, Question] | None] = asyncio.Queue()
        self._asked: dict[int, asyncio.Future] = {}
        self._number = 0
        self._stopped: StopError | None = None

    async def ask(self, question: Question) -> StoredReply | Exception:
        """The reply to a question, or why there is none, when it is there."""
        self._number += 1
        number, answered = self._number, asyncio.get_running_loop().create_future()
        self._asked[number] = answered
        self._new.put_nowait((number, question))
        return await answered

    async def take(self) -> tuple[int, Question] | None:
        """The next question, with its number, when there is one; `None` after [`close`]."""
        return await self._new.get()

    def answer(self, number: int, reply: StoredReply | Exception) -> None:
        """Gives the answer to a question. An actor that asked it may be gone."""
        answered = self._asked.pop(number)
        if not answered.done():
            answered.set_result(reply)

    def stop(self, error: StopError) -> None:
        """The run was stopped, for this reason."""
        self._stopped = error

    def stopped(self) -> StopError | None:
        """Why the run was stopped, if it was."""
        return self._stopped

    async def close(self) -> None:
        """Ends the process that takes questions."""
        self._new.put_nowait(None)


def start_mailbox() -> Any:
    """A handle of a [`Mailbox`] on this machine."""
    return start_here(Mailbox, max_concurrency=MOST_WAITING)


@contextmanager
def answering(run: Run, mailbox: Any, concurrency: int) -> Iterator[None]:
    """
    Answers the questions in the mailbox during the block, at most `concurrency` at a time. Tells it when the run is
    stopped.

    Raises:
        BulkError: at the end of the block, if the process of the mailbox was lost.
    """
    ray, lost = import_ray(), []

    def answer(number: int, question: Question) -> None:
        try:
            reply = run.replies(question)
        except Exception as error:  # of any kind: the actor that asked waits for it
            if isinstance(error, StopError):
                run.stop(error)
            known = isinstance(error, (AnnotationError, *MEDIA_ERRORS))
            reply = error if known else AnnotationError(f"{type(error).__name__}: {error}")
        mailbox.answer.remote(number, reply)

    def listen() -> None:
        try:
            while (taken := ray.get(mailbox.take.remote())) is not None:
                threads.submit(answer, *taken)
        except ray.exceptions.RayError as error:  # the actors notice it, too: their videos end as errors
            lost.append(error)

    run.stop_callbacks.append(mailbox.stop.remote)
    with ThreadPoolExecutor(concurrency, thread_name_prefix="answer") as threads:
        listener = threading.Thread(target=listen, name="listen", daemon=True)
        listener.start()
        try:
            yield
        except BaseException:
            run.stop_requests()
            raise
        finally:
            try:
                ray.get(mailbox.close.remote())
            except ray.exceptions.RayError as error:
                lost.append(error)
            listener.join()
    if lost:
        problem = " ".join(str(lost[0]).split())[-500:]
        raise BulkError(f"Ray lost the process that passes questions on. What is finished is saved. {problem}")


class PooledReplies:
    """
    Replies through a mailbox, for an [`Annotator`] in an actor.

    Args:
        mailbox: Handle of a [`Mailbox`].
    """

    def __init__(self, mailbox: Any):
        self.mailbox, self._get = mailbox, import_ray().get

    def __call__(self, question: Question) -> StoredReply:
        reply = self._get(self.mailbox.ask.remote(question))
        if isinstance(reply, Exception):
            raise reply
        return reply

    def stopped(self) -> StopError | None:
        """Why the run was stopped, if it was."""
        return self._get(self.mailbox.stopped.remote())


class AnnotationWorker:
    """
    Annotates videos in an actor.

    Args:
        annotator ([`Annotator`]): Without models that must be loaded.
        checkpoints ([`Checkpoints`]): These.
        paths (`dict[str, str]`): Their folders.
        load_model (`Callable`): As `serving.loading` has it.
        stopped (`Callable`, *optional*): Returns why the run was stopped, `None` while it goes on.
    """

    def __init__(
        self,
        annotator: Annotator,
        checkpoints: Checkpoints,
        paths: Mapping[str, str],
        load_model: LoadModel,
        stopped: Callable[[], StopError | None] | None = None,
    ):
        def load(checkpoint: str, device: str) -> tuple[Any, Any]:
            return load_model(paths[checkpoint], device)

        self.annotator, self.stopped = checkpoints.add_to(annotator, load), stopped

    def __call__(self, text: str) -> str:
        """Maps the JSON of a [`Scene`] to that of its result and its drawn frames, or of its error row."""
        scene = Scene.from_json(text)
        stopped = None if self.stopped is None else self.stopped()
        if stopped is not None:  # nothing is opened and drawn in vain
            return json.dumps({"error": error_row(scene.id, stopped)})
        try:
            with fatal_gpu_errors():
                result, rendering = self.annotator(scene)
        except MEDIA_ERRORS as error:
            return json.dumps({"error": error_row(scene.id, error)})
        drawn = None
        if result.state == "kept":
            drawn = {number: base64.b64encode(one).decode() for number, one in rendering.drawn_frames.items()}
        return json.dumps({"result": json.dumps(asdict(result)), "drawn": drawn})


@dataclass(frozen=True)
class AnnotationPool:
    """
    Annotates the videos of a run in a pool.

    Args:
        pool ([`PoolSettings`]): As `connect` returns it.
        concurrency (`int`): Videos, and requests, at a time.
        checkpoints ([`Checkpoints`]): Models that each actor loads.
        load_model (`Callable`): As `serving.loading` has it.
    """

    pool: PoolSettings
    concurrency: int
    checkpoints: Checkpoints
    load_model: LoadModel

    def __call__(self, run: Run, scenes: Iterable[Scene | BrokenScene]) -> Iterator[Outcome]:
        """What became of each video, in any order. [`BulkError`] if Ray gives up."""
        threads = -(-self.concurrency // self.pool.actors)  # of each actor: most of their time they wait for replies
        pool = replace(self.pool, threads=threads)
        mailbox = start_mailbox()
        try:
            with answering(run, mailbox, self.concurrency):
                make_worker = self.make_worker(run, PooledReplies(mailbox))
                numbered = enumerate(scenes)
                while window := list(islice(numbered, WINDOW)):
                    yield from _annotate_window(run, window, make_worker, pool)
        finally:
            import_ray().kill(mailbox)

    def make_worker(self, run: Run, replies: PooledReplies) -> partial[AnnotationWorker]:
        """Makes the worker of an actor."""
        models = {role: replace(model, endpoint=None) for role, model in run.models.items()}
        names = {name for name in (self.checkpoints.relocate, self.checkpoints.propose) if name is not None}
        paths = {name: absolute_path(name) for name in names}
        annotator = replace(run.annotator, models=models, answer=replies)
        return partial(AnnotationWorker, annotator, self.checkpoints, paths, self.load_model, replies.stopped)


def _annotate_window(
    run: Run,
    window: Iterable[tuple[int, Scene | BrokenScene]],
    make_worker: partial[AnnotationWorker],
    pool: PoolSettings,
) -> Iterator[Outcome]:
    waiting: dict[int, Pending] = {}
    for index, scene in window:
        found = run.look_up(scene)
        if isinstance(found, Pending):
            waiting[index] = found
        else:
            yield Outcome(index, scene.id, found)
    for result in run_jobs([Job(index, one.scene.to_json()) for index, one in waiting.items()], make_worker, pool):
        pending = waiting.pop(result.index)
        yield Outcome(result.index, pending.scene.id, _keep(run, pending, result))
    for index, pending in waiting.items():  # none, as far as we know
        found = run.look_up(pending.scene)
        if isinstance(found, Pending):
            found = lost_row(pending.scene.id, "the pool has no result of it")
        yield Outcome(index, pending.scene.id, found)


def _keep(run: Run, pending: Pending, result: Result) -> Path | dict:
    """The file of a result, or the error row."""
    if result.text is None:
        return lost_row(pending.scene.id, result.error or "")
    value = json.loads(result.text)
    if "error" in value:
        return value["error"]
    drawn = value["drawn"]
    frames = None if drawn is None else {int(number): base64.b64decode(one) for number, one in drawn.items()}
    return run.keep(pending, value["result"], frames)
