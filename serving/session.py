"""A conversation without a terminal: questions in, a stream of events out.

session = ChatSession(model.start_chat(processor, video="park.mp4"))
for event in session.ask("What is <region> doing?", [{"frame": 10, "box": [40, 60, 210, 300]}]):
    match event:
        case TextDelta(text): ...
        case MaskFrame(frame, masks): ...
"""

import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

# Relative, so that the type checker finds them whatever the folder of the checkout is called
from ..objects_sama import check_region_list
from ..overlay_sama import Color, object_color
from ..prompts_sama import answer_parts
from ..streaming_sama import AnswerStreamer
from .object_notation import object_numbers
from .scheduling import LATER_STEP, DeviceSchedule, DeviceTurn


# Events that wait for their reader. When it is slow, the model waits: masks of a long video do not pile up in memory.
MAX_WAITING_EVENTS = 16
POLL_SECONDS = 0.05  # how often a blocked worker looks whether its answer was cancelled


# ---- events ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TextDelta:
    """The next piece of the answer's text, without tags. The deltas of an answer join to the text of its reply."""

    text: str


@dataclass(frozen=True)
class AnswerObject:
    """
    An object of an answer.

    Attributes:
        number (`int`): counted from 1 over all answers of the conversation. An object that is asked about and is part
            of the answer again keeps its number.
        phrase (`str`): the phrase that names it; empty if the answer does not name it.
        span (`tuple[int, int]`): the first character of the phrase in the answer's text and the one after its last.
        color (RGB triple): the same wherever the object is drawn.
    """

    number: int
    phrase: str
    span: tuple[int, int]
    color: Color


@dataclass(frozen=True)
class AnswerText:
    """The text is complete. `objects` are what it grounds; their masks follow in [`MaskFrame`] events.

    After a question that points at an object of an earlier answer, the event waits for the first tracked frame, whose
    masks show which objects are known already.
    """

    text: str
    objects: tuple[AnswerObject, ...]


@dataclass(frozen=True, eq=False)
class MaskFrame:
    """The masks of one frame, in the order of tracking: object number to bool array of shape `(height, width)`."""

    frame: int
    masks: dict[int, np.ndarray]


@dataclass(frozen=True)
class Done:
    """The last event of an answer; its turn is part of the conversation now."""

    turn: "ChatTurn"


@dataclass(frozen=True)
class Cancelled:
    """The last event of an answer that was cancelled; the conversation is as it was before the question."""


@dataclass(frozen=True)
class Failed:
    """The last event of a question that could not be answered; the conversation is as it was before the question.

    Attributes:
        message (`str`): one sentence.
        cause (`BaseException`): what was raised.
    """

    message: str
    cause: BaseException


Event = TextDelta | AnswerText | MaskFrame | Done | Cancelled | Failed


# ---- the conversation -----------------------------------------------------------------------------------------------


class Reply(Protocol):
    """What a session reads of a [`SamaReply`], whose class may come from the code beside a checkpoint."""

    @property
    def text(self) -> str: ...

    @property
    def tagged_text(self) -> str: ...

    @property
    def objects(self) -> Sequence: ...

    @property
    def prompt_tokens(self) -> int: ...

    @property
    def prefilled_tokens(self) -> int: ...

    @property
    def completion_tokens(self) -> int: ...


@dataclass(frozen=True)
class ChatTurn:
    """
    A question and its answer.

    Attributes:
        question (`str`)
        regions (`tuple`): as given, except that an object of an earlier answer is always `{"object": number}`.
        reply ([`SamaReply`])
        numbers (`tuple[int, ...]`): the numbers of the answer's objects.
    """

    question: str
    regions: tuple
    reply: Reply
    numbers: tuple[int, ...]

    @property
    def objects(self) -> tuple[AnswerObject, ...]:
        return numbered_objects(self.reply.objects, self.numbers)


class ChatSession:
    """
    A conversation about one video or image that streams its answers.

    Objects are numbered from 1 over all answers. An object keeps its number and its colour for the whole conversation;
    a question that points at it again refers to it by this number. If the answer to such a question grounds an object
    whose mask on the first tracked frame has an IoU of `SAME_OBJECT_IOU` or more with the object that was pointed at,
    it is the same object.

    Args:
        chat ([`SamaChat`]): what `model.start_chat` returned. Only the session may ask it from now on.
        max_new_tokens (`int`, *optional*, defaults to 512): of an answer.
        turns (sequence of [`ChatTurn`], *optional*): the questions and answers that the chat has already.
        schedule ([`DeviceSchedule`], *optional*): of the device, where several sessions share it.

    Attributes:
        turns (`list[ChatTurn]`): the conversation so far; not to be edited.
    """

    def __init__(
        self, chat, max_new_tokens: int = 512, turns: Sequence["ChatTurn"] = (), schedule: DeviceSchedule | None = None
    ):
        self.chat, self.max_new_tokens = chat, max_new_tokens
        self.turns: list[ChatTurn] = list(turns)
        self.schedule = schedule or DeviceSchedule()
        self._lock = threading.Lock()
        self._running: AnswerChannel | None = None

    @property
    def objects(self) -> list:
        """The [`GroundedPhrase`] of each object, in the order of their numbers: that of the first answer about it."""
        numbered = self._numbered()
        return [numbered[number] for number in sorted(numbered)]

    def _numbered(self) -> dict[int, Any]:
        found: dict[int, Any] = {}
        for turn in self.turns:
            for number, phrase in zip(turn.numbers, turn.reply.objects, strict=True):
                found.setdefault(number, phrase)
        return found

    def object(self, number: int):
        """The [`GroundedPhrase`] of an object; raises `ValueError` if no answer has an object of this number."""
        numbered = self._numbered()
        if not isinstance(number, (int, np.integer)) or number not in numbered:
            raise ValueError(f"There is no object {number}: the answers so far have {len(numbered)}, counted from 1.")
        return numbered[number]

    def ask(self, text: str, regions: Sequence = (), masks: bool = True, **generate_kwargs) -> "EventStream":
        """
        Asks the next question and returns an iterator over the events of its answer.

        The answer is computed in a thread of its own. The events are any number of [`TextDelta`], one [`AnswerText`],
        a [`MaskFrame`] for each frame if the answer has objects, and one of [`Done`], [`Cancelled`] and [`Failed`].

        Args:
            text (`str`): each `<region>` in it stands for the next of `regions`.
            regions (sequence, *optional*): dicts such as `{"frame": 12, "box": [x1, y1, x2, y2]}` with `box`,
                `points` and `labels`, `scribble` or `mask`; `{"object": number}` for an object of an earlier answer;
                or anything else that [`SamaChat.ask`] takes.
            masks (`bool`, *optional*, defaults to `True`): whether the objects are tracked through the video.
            generate_kwargs: for `generate`.

        Raises:
            RuntimeError: if the previous question is still being answered.
        """
        with self._lock:
            if self._running is not None:
                raise RuntimeError(
                    "The previous question is still being answered: read its events to the end or cancel it first."
                )
            self._running = channel = AnswerChannel()

        def answer() -> ChatTurn:
            with self.schedule.turn() as turn:
                channel.turn = turn
                return self.answer(channel, text, regions, masks, **generate_kwargs)

        return EventStream(channel, answer, self._end)

    def cancel(self) -> None:
        """
        Stops the answer that is being computed, if there is one, after the current token or frame. May be called from
        any thread. The stream then ends in [`Cancelled`], or in [`Done`] if the answer was complete already.
        """
        with self._lock:
            if self._running is not None:
                self._running.cancelled.set()

    def _end(self) -> None:
        with self._lock:
            self._running = None

    def answer(
        self, channel: "AnswerChannel", text: str, regions: Sequence = (), masks: bool = True, **generate_kwargs
    ) -> ChatTurn:
        """Computes an answer in this thread, which has the device, and sends all events but the last; see [`ask`]."""
        check_region_list(regions)
        references = tuple(self._by_number(region) for region in regions)
        resolved = [self._resolved(region) for region in regions]
        alone = self.chat.decoding_batch is None  # else the turn is passed on before each step, not again behind it
        streamer = AnswerStreamer(
            self.chat.processor, lambda text: channel.send(TextDelta(text) if text else None, pass_on=alone)
        )
        first_new = max(self._numbered(), default=0) + 1
        pointed_at = self._pointed_at(references) if masks and self.chat.video is not None else {}
        num_prompted = len(self.chat.processor.choose_frames(self.chat.video).prompted) if pointed_at else 0
        events = _AnswerEvents(channel, streamer, pointed_at, first_new, num_prompted)
        generate_kwargs = {"max_new_tokens": self.max_new_tokens, **generate_kwargs}
        generate_kwargs |= {"on_answer": events.on_answer, "on_frame": events.on_frame}
        between_steps, self.chat.between_steps = self.chat.between_steps, lambda: channel.send(None)
        try:
            reply = self.chat.ask(text, resolved, masks=masks, streamer=streamer, **generate_kwargs)
        finally:
            self.chat.between_steps = between_steps
        turn = ChatTurn(text, references, reply, events.finish())
        self.turns.append(turn)
        return turn

    def _by_number(self, region):
        """The region; a phrase of an earlier answer becomes `{"object": number}`."""
        for turn in self.turns:
            for number, phrase in zip(turn.numbers, turn.reply.objects, strict=True):
                if phrase is region:
                    return {"object": number}
        return region

    def _pointed_at(self, references: Sequence) -> dict[int, Any]:
        """Number and phrase of each object of an earlier answer among the regions of a question."""
        numbers = [one["object"] for one in references if isinstance(one, Mapping) and "object" in one]
        return {number: self.object(number) for number in numbers}

    def _resolved(self, region):
        """The region as the chat takes it: the phrase instead of `{"object": number}`."""
        if not isinstance(region, Mapping) or "object" not in region:
            return region
        if len(region) > 1:
            raise ValueError(
                f"A region that is an object of an answer takes no other field, got {', '.join(map(str, region))}."
            )
        phrase = self.object(region["object"])
        if phrase.track is None:
            raise ValueError(
                f"The masks of object {region['object']} are not known, so a question cannot point at it; give them "
                "with the answer that it is part of."
            )
        return phrase

    def restore(self, turns: Sequence[ChatTurn]) -> None:
        """Continues a conversation that was held elsewhere: adds its questions and answers, which the model reads with
        the next question."""
        for turn in turns:
            regions = [self._resolved(region) for region in turn.regions]
            question = {"role": "user", "content": self.chat.question_content(turn.question, regions)}
            answer = {"role": "assistant", "content": answer_parts(turn.reply.text, turn.reply.objects)}
            self.chat.add_messages([question, answer])
            self.turns.append(turn)


def numbered_objects(phrases: Sequence, numbers: Sequence[int]) -> tuple[AnswerObject, ...]:
    """The grounded phrases of one answer with their numbers and colours."""
    return tuple(
        AnswerObject(number, phrase.text, tuple(phrase.span), object_color(number - 1))
        for number, phrase in zip(numbers, phrases, strict=True)
    )


def one_sentence(error: BaseException) -> str:
    """The message of an error on one line; its type if it has no message."""
    return " ".join(str(error).split()) or type(error).__name__


# ---- from the worker to the reader ----------------------------------------------------------------------------------


class AnswerStopped(Exception):
    """Raised in the callbacks of a cancelled answer, where `chat.ask` undoes the question."""


class _AnswerEvents:
    """The callbacks of one answer, which number its objects and send its text and masks. If the question points at
    objects (`pointed_at`), which may be found again, the text waits for the masks of the first frame that shows one of
    them, at most for those of the prompted frames, which come first."""

    def __init__(
        self, channel: "AnswerChannel", streamer: AnswerStreamer, pointed_at: Mapping[int, Any], first_new: int,
        num_prompted: int,
    ):  # fmt: skip
        self.channel, self.streamer = channel, streamer
        self.pointed_at, self.first_new, self.num_prompted = pointed_at, first_new, num_prompted
        self.waiting: list[tuple[int, np.ndarray]] = []
        self.reply: Any = None
        self.numbers: tuple[int, ...] | None = None

    def on_answer(self, reply) -> None:
        self.streamer.finish(reply.text)
        self.reply = reply
        if not (self.pointed_at and reply.objects):
            self._send_text(())

    def on_frame(self, frame: int, masks: np.ndarray) -> None:
        self.waiting.append((frame, masks))
        if self.numbers is None:
            tracks = {number: phrase.track for number, phrase in self.pointed_at.items()}
            known = {number: track[frame] for number, track in tracks.items() if track is not None}
            if not any(mask.any() for mask in known.values()) and len(self.waiting) < self.num_prompted:
                return
            self._send_text(object_numbers(list(masks), known, self.first_new))
        for index, found in self.waiting:
            self.channel.send(MaskFrame(index, dict(zip(self.numbers or (), found, strict=True))))
        self.waiting.clear()

    def finish(self) -> tuple[int, ...]:
        """The numbers of the answer's objects; sends the text if no frame was tracked."""
        return self._send_text(()) if self.numbers is None else self.numbers

    def _send_text(self, numbers: tuple[int, ...]) -> tuple[int, ...]:
        count = len(self.reply.objects)
        self.numbers = numbers or tuple(range(self.first_new, self.first_new + count))
        self.channel.send(AnswerText(self.reply.text, numbered_objects(self.reply.objects, self.numbers)))
        return self.numbers


class AnswerChannel:
    """
    Carries the events of one answer from its thread to its reader, and the wish to cancel back.

    Attributes:
        turn ([`DeviceTurn`], *optional*): of the answer's thread. It is passed on between two steps, and nobody holds
            the device while a slow reader is waited for.
    """

    def __init__(self):
        self.events: queue.Queue[Event] = queue.Queue(MAX_WAITING_EVENTS)
        self.cancelled = threading.Event()
        self.turn: DeviceTurn | None = None

    def send(self, event: Event | None, pass_on: bool = True) -> None:
        """Hands an event to the reader, waiting for it if it is slow; `None` only checks whether to stop."""
        self.check()
        if event is not None:
            try:
                self.events.put_nowait(event)
            except queue.Full:
                self._wait_for_reader(event)
        if self.turn is not None:
            self.turn.rank = self.turn.rank if event is None else LATER_STEP
            if pass_on:
                self.turn.pass_on()
        self.check()

    def check(self) -> None:
        """Ends the answer if it was cancelled."""
        if self.cancelled.is_set():
            raise AnswerStopped

    def _wait_for_reader(self, event: Event) -> None:
        with self.turn.released() if self.turn is not None else nullcontext():
            while True:
                self.check()
                with suppress(queue.Full):
                    return self.events.put(event, timeout=POLL_SECONDS)

    def finish(self, event: Event) -> None:
        """Hands over the last event, whether the answer was cancelled or not."""
        self.events.put(event)


class EventStream(Iterator):
    """
    The events of one answer, which is computed in a thread of its own. Closing the stream before its end, or dropping
    it, cancels the answer.

    Args:
        channel ([`AnswerChannel`])
        answer (`Callable`): computes the answer and sends its events to the channel.
        end (`Callable`, *optional*): called in the thread when nothing more is computed, before the last event.
    """

    def __init__(self, channel: AnswerChannel, answer: Callable[[], ChatTurn], end: Callable[[], None] = lambda: None):
        self._channel, self._ended = channel, False
        self._thread = threading.Thread(target=_run, args=(channel, answer, end), name="sama-session", daemon=True)
        self._thread.start()

    def __next__(self) -> Event:
        while not self._ended:
            try:
                # A wait without a limit could not be interrupted by Ctrl-C on Windows
                event = self._channel.events.get(timeout=1.0)
            except queue.Empty:
                continue
            if isinstance(event, Done | Cancelled | Failed):
                self._ended = True  # never back to False: another thread may have closed the stream
            return event
        raise StopIteration

    def cancel(self) -> None:
        """Stops the answer after the current token or frame; the events end in [`Cancelled`], or in [`Done`] if the
        answer was complete already."""
        self._channel.cancelled.set()

    def close(self) -> None:
        """Cancels the answer unless it is complete, and waits until its thread has ended."""
        if not self._ended:
            self._ended = True
            self._channel.cancelled.set()
            while self._thread.is_alive() and self._thread is not threading.current_thread():
                with suppress(queue.Empty):
                    self._channel.events.get(timeout=POLL_SECONDS)  # makes room for the last event

    def __enter__(self) -> "EventStream":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


def _run(channel: AnswerChannel, answer: Callable[[], ChatTurn], end: Callable[[], None]) -> None:
    """What the thread of an answer does. Whatever happens, the stream gets its last event."""
    try:
        last = Done(answer())
    except AnswerStopped:
        last = Cancelled()
    except BaseException as error:
        last = Failed(one_sentence(error), error)
    end()
    channel.finish(last)
