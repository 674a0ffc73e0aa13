"""Engines in other processes behind the interface of one: what the server needs to answer from several GPUs or
machines.

Nothing here knows how calls travel between the processes; ray_app.py lets Ray do it. An [`EngineHost`] is where a
model is; a [`RemoteEngine`] is what the server asks. A question carries its whole conversation, so any host can answer
it. It goes to the host that answered the conversation before, by its [`conversation_key`], because less has to be read
there.
"""

import hashlib
import logging
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol

import anyio
import numpy as np
from anyio import CapacityLimiter, to_thread

from sama.data.masks import encode_rle
from sama.objects_sama import GroundedPhrase
from sama.regions_sama import decode_rle
from sama.serving.engine import Engine, EngineBusy, EngineClosed, EngineStatus, Question
from sama.serving.errors import ApiError, is_out_of_memory, retry_after
from sama.serving.file_copies import FileCopies
from sama.serving.questions import question_text
from sama.serving.session import Cancelled, ChatTurn, Done, Event, Failed, MaskFrame, one_sentence


log = logging.getLogger("sama.serving")

ATTEMPTS = 3  # of a question whose host is lost, or ends, before it has answered anything
RETRY_SECONDS = 2  # until a client should ask again
PREVIEWS = 4  # that a host computes beside its answers
LAST_EVENTS = (Done, Cancelled, Failed)


# ---- what travels between the processes -----------------------------------------------------------------------------


@dataclass(frozen=True)
class FileNeeded:
    """The host has no such file: the question must be sent again, with the content of the file."""


@dataclass(frozen=True)
class Closing:
    """The host is ending and has not begun to answer: another one has to."""


@dataclass(frozen=True)
class Refused:
    """
    The host does not take a question.

    Attributes:
        message (`str`): one sentence.
        retry_after (`int`, *optional*): seconds after which there should be room; `None` if the question is wrong.
    """

    message: str
    retry_after: int | None = None


@dataclass(frozen=True)
class HostStatus:
    """
    A host and its engine.

    Attributes:
        host (`str`): a name that no other host has.
        process (`int`): its process id.
        engine ([`EngineStatus`])
    """

    host: str
    process: int
    engine: EngineStatus


@dataclass(frozen=True)
class SentReply:
    """A reply without its masks, which were sent frame by frame: what an answer over HTTP is made of."""

    text: str
    tagged_text: str
    objects: list[GroundedPhrase]
    prompt_tokens: int
    prefilled_tokens: int
    completion_tokens: int
    stopped: bool


def to_sent(event: Event) -> Event:
    """
    An event as it is sent: masks as run lengths, and no object of a class that came with a checkpoint, which the other
    process does not know.
    """
    if isinstance(event, MaskFrame):
        return MaskFrame(event.frame, {number: encode_rle(mask) for number, mask in event.masks.items()})  # type: ignore[misc]
    if isinstance(event, Failed):
        return Failed(event.message, sent_cause(event.cause))
    if isinstance(event, Done):
        turn, reply = event.turn, event.turn.reply
        objects = [GroundedPhrase(one.text, tuple(one.span), None, one.score) for one in reply.objects]
        counts = {name: vars(reply)[name] for name in ("prompt_tokens", "prefilled_tokens", "completion_tokens")}
        sent = SentReply(reply.text, reply.tagged_text, objects, **counts, stopped=reply.stopped)
        return Done(ChatTurn(turn.question, (), sent, turn.numbers))
    return event


def from_sent(event: Event) -> Event:
    """What [`to_sent`] was given, but for the masks in a [`Done`]."""
    if isinstance(event, MaskFrame):
        return MaskFrame(event.frame, {number: decode_rle(code) for number, code in event.masks.items()})
    return event


def sent_cause(error: BaseException) -> BaseException:
    """An error of a kind that the server tells apart, with its message alone; other errors cannot always be sent."""
    if isinstance(error, ValueError):
        return ValueError(one_sentence(error))
    if is_out_of_memory(error):
        return MemoryError(one_sentence(error))
    return RuntimeError(f"{type(error).__name__}: {one_sentence(error)}")


def conversation_key(question: Question) -> str:
    """
    What all questions of a conversation have in common: the file that it is about. What is known of a file is shared
    by all conversations about it. A conversation without a file is known by how it begins.
    """
    if question.source_id is not None:
        return question.source_id
    first = question.earlier[0].parts if question.earlier else question.parts
    return f"text-{hashlib.sha256(repr((question.system, first)).encode()).hexdigest()}"


# ---- where a model is -----------------------------------------------------------------------------------------------


class EngineHost:
    """
    An engine for other processes.

    Args:
        engine ([`Engine`])
        copies ([`FileCopies`])
        name (`str`), process (`int`): see [`HostStatus`].
    """

    def __init__(self, engine: Engine, copies: FileCopies, name: str, process: int):
        self.engine, self.copies, self.name, self.process = engine, copies, name, process
        places = engine.limits.running + engine.limits.waiting + PREVIEWS
        self._reading, self._other = CapacityLimiter(places), CapacityLimiter(places)

    async def ask(self, question: Question, content: bytes | None = None) -> AsyncIterator[Any]:
        """
        The events of an answer as they are sent, see [`to_sent`], then a [`HostStatus`]. Ending the iteration before
        its end cancels the answer.

        Args:
            question ([`Question`])
            content (`bytes`, *optional*): of the question's file, for a host that lacks it.

        Returns:
            [`FileNeeded`], [`Closing`] or [`Refused`] alone where there is no answer.
        """

        holding = ExitStack()

        def start() -> Any:
            try:
                local = self._local(question, content, holding)
                return FileNeeded() if local is None else self.engine.ask(local)
            except EngineBusy as error:
                return Refused(one_sentence(error), error.retry_after)
            except EngineClosed:
                return Closing()
            except ValueError as error:
                return Refused(one_sentence(error))

        def close() -> None:
            with holding:
                stream.close()

        stream = await to_thread.run_sync(start, limiter=self._other)
        if isinstance(stream, FileNeeded | Closing | Refused):
            holding.close()
            yield stream
            return
        try:
            event = None
            while not isinstance(event, LAST_EVENTS):
                event = await to_thread.run_sync(next, stream, limiter=self._reading, abandon_on_cancel=True)
                if isinstance(event, Failed) and not isinstance(event.cause, ValueError):
                    log.error("A question could not be answered", exc_info=event.cause)
                yield to_sent(event)
            yield self.status()
        finally:
            with anyio.CancelScope(shield=True):
                await to_thread.run_sync(close, limiter=self._other)

    async def preview(self, question: Question, region: dict, content: bytes | None = None) -> Any:
        """See [`Engine.preview`]: frame and run lengths, or [`FileNeeded`] or [`Refused`]. The question names the
        file alone."""

        def preview() -> Any:
            try:
                with ExitStack() as holding:
                    local = self._local(question, content, holding)
                    if local is None:
                        return FileNeeded()
                    frame, mask = self.engine.preview(local.source or "", local.source_id, region, local.kind)
                    return frame, encode_rle(mask)
            except ValueError as error:
                return Refused(one_sentence(error))

        return await to_thread.run_sync(preview, limiter=self._other)

    async def forget(self, source_id: str) -> None:
        """See [`Engine.forget`]. The copy of the file is deleted as well."""

        def forget() -> None:
            self.engine.forget(source_id)
            self.copies.remove(source_id)

        await to_thread.run_sync(forget, limiter=self._other)

    def status(self) -> HostStatus:
        """What the engine is doing."""
        return HostStatus(self.name, self.process, self.engine.status())

    def _local(self, question: Question, content: bytes | None, holding: ExitStack) -> Question | None:
        """The question about a file of this machine, which stays until `holding` is closed; `None` if the file is not
        here."""
        if question.source is None or question.source_id is None or Path(question.source).is_file():
            return question
        if content is not None:
            for dropped in self.copies.add(question.source_id, content):
                self.engine.forget(dropped)
        path = holding.enter_context(self.copies.use(question.source_id))
        return None if path is None else replace(question, source=str(path))


# ---- what the server asks -------------------------------------------------------------------------------------------


class HostLost(Exception):
    """The host of a call has ended before it was complete."""


class Call(Protocol):
    """What a host sends back for one question, piece by piece. `close` ends it from any thread."""

    def __iter__(self) -> Iterator[Any]: ...

    def __next__(self) -> Any: ...

    def close(self) -> None: ...


class Hosts(Protocol):
    """
    Calls of methods of an [`EngineHost`], which block. Calls with the same key go to the same host as long as it lives
    and has room. They raise [`HostLost`].
    """

    def stream(self, key: str, question: Question, content: bytes | None) -> Call: ...

    def call(self, key: str, method: str, *arguments: Any) -> Any: ...


class RemoteAnswer(Iterator):
    """The events of one answer of a [`RemoteEngine`], as an [`EventStream`] has them. The question is sent when the
    first one is asked for: how long it waits for a host depends on the others."""

    def __init__(self, engine: "RemoteEngine", question: Question):
        self.engine, self.question = engine, question
        self._call: Call | None = None
        self._closed = threading.Event()
        self._ended = False

    def __next__(self) -> Event:
        if self._ended or self._closed.is_set():
            raise StopIteration
        try:
            event = self._start() if self._call is None else next(self._call)
        except HostLost:
            event = Failed("The replica was lost.", lost_replica())
        except Exception as error:
            event = Failed(one_sentence(error), error)
        if self._closed.is_set():
            raise StopIteration
        if isinstance(event, LAST_EVENTS):
            self._ended = True
            self.engine.ended(self, event)
            self._take_status()
        return from_sent(event)

    def _start(self) -> Event:
        """Sends the question until a host answers; returns the first event."""
        content = None
        for _ in range(ATTEMPTS):
            self._call = self.engine.hosts.stream(conversation_key(self.question), self.question, content)
            if self._closed.is_set():
                self._call.close()
            try:
                first = next(self._call)
            except HostLost:
                continue
            if isinstance(first, Refused):
                return Failed(first.message, refusal_error(first))
            if isinstance(first, Closing):
                continue
            if not isinstance(first, FileNeeded):
                return first
            content = file_content(self.question)
        raise HostLost

    def _take_status(self) -> None:
        with suppress(HostLost, StopIteration):
            status = next(self._call) if self._call is not None else None
            if isinstance(status, HostStatus):
                self.engine.take_status(status)

    def close(self) -> None:
        """Cancels the answer unless it is complete."""
        if not self._ended and not self._closed.is_set():
            self._closed.set()
            self.engine.ended(self, Cancelled())
            if self._call is not None:
                self._call.close()


class RemoteEngine:
    """
    Stands for the engines of several hosts.

    Args:
        hosts ([`Hosts`])
        max_questions (`int`): that are answered or wait at the same time, on all hosts together.
        num_hosts (`int`): that there are at the same time.

    Attributes:
        statuses (`OrderedDict`): of the `num_hosts` hosts that completed an answer last, when they did so. Lost hosts
            are not among them once their successors have answered.
    """

    def __init__(self, hosts: Hosts, max_questions: int, num_hosts: int = 1):
        self.hosts, self.max_questions, self.num_hosts = hosts, max_questions, num_hosts
        self.statuses: OrderedDict[str, EngineStatus] = OrderedDict()
        self._open: set[RemoteAnswer] = set()
        self._counts = EngineStatus()
        self._lock = threading.Lock()

    def ask(self, question: Question) -> RemoteAnswer:
        """See [`Engine.ask`]. A host that has no room is seen later: then the last event is a [`Failed`] whose cause
        is an [`ApiError`]."""
        question_text(question.parts)
        with self._lock:
            if len(self._open) >= self.max_questions:
                raise EngineBusy(len(self._open), RETRY_SECONDS)
            answer = RemoteAnswer(self, question)
            self._open.add(answer)
        return answer

    def preview(self, source: str, source_id: str | None, region: dict, kind: str = "video") -> tuple[int, np.ndarray]:
        """See [`Engine.preview`]."""
        question, content = Question((), source=source, source_id=source_id, kind=kind), None
        for _ in range(ATTEMPTS):
            try:
                found = self.hosts.call(conversation_key(question), "preview", question, region, content)
            except HostLost:
                continue
            if isinstance(found, Refused):
                raise ValueError(found.message)
            if not isinstance(found, FileNeeded):
                return found[0], decode_rle(found[1])
            content = file_content(question)
        raise lost_replica()

    def forget(self, source_id: str) -> None:
        """See [`Engine.forget`]; done by the host to which questions about the file go."""
        with suppress(HostLost):
            self.hosts.call(source_id, "forget", source_id)

    def ended(self, answer: RemoteAnswer, event: Event) -> None:
        """Counts an answer that has ended."""
        with self._lock:
            if answer not in self._open:
                return
            self._open.discard(answer)
            added = {"answered": isinstance(event, Done), "cancelled": isinstance(event, Cancelled)}
            added["failed"] = isinstance(event, Failed)
            if isinstance(event, Done):
                reply = event.turn.reply
                added["generated_tokens"], added["read_tokens"] = reply.completion_tokens, reply.prefilled_tokens
                added["reused_tokens"] = reply.prompt_tokens - reply.prefilled_tokens
            counts = {name: vars(self._counts)[name] + number for name, number in added.items()}
            self._counts = replace(self._counts, **counts)

    def take_status(self, status: HostStatus) -> None:
        """Keeps what a host says of its engine."""
        with self._lock:
            self.statuses[status.host] = status.engine
            self.statuses.move_to_end(status.host)
            while len(self.statuses) > self.num_hosts:
                self.statuses.popitem(last=False)

    def status(self) -> EngineStatus:
        """What was asked here; what is remembered, and the frames that were tracked, as the hosts said it last."""
        with self._lock:
            known = list(self.statuses.values())
        names = ("conversations", "conversation_bytes", "files", "tracked_frames")
        totals = {one.name: sum(vars(status)[one.name] for status in known) for one in fields(EngineStatus)}
        with self._lock:
            return replace(self._counts, running=len(self._open), **{name: totals[name] for name in names})

    def close(self) -> None:
        """Cancels all answers."""
        for answer in list(self._open):
            answer.close()


def lost_replica() -> ApiError:
    """What a client learns when the host of its answer has ended. It can repeat the request as it is."""
    message = "The replica that was answering was lost; send the request again."
    return ApiError(503, message, code="replica_lost", headers=retry_after(RETRY_SECONDS))


def refusal_error(refused: Refused) -> Exception:
    """The error of a question that a host did not take."""
    if refused.retry_after is None:
        return ValueError(refused.message)
    return ApiError(429, refused.message, headers=retry_after(refused.retry_after))


def file_content(question: Question) -> bytes:
    """The content of a question's file; raises an [`ApiError`] if it is gone."""
    try:
        return Path(question.source or "").read_bytes()
    except OSError:
        raise ApiError(
            404, "The file of the conversation is not here any more; upload it again.", code="file_not_found"
        ) from None
