"""Answers the questions of many clients with one model on one device.

Every question carries its whole conversation. What is known of its beginning is reused, see [`ConversationCache`].
Questions that are being answered take turns at reading and tracking, see [`DeviceSchedule`], and decode their answers
together, see [`DecodingBatch`].
"""

import math
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from ..generation_sama import DecodingBatch
from ..prompts_sama import to_tagged_text
from .conversations import Conversation, ConversationCache
from .limits import Limits
from .questions import EarlierObject, EarlierTurn, Question, question_text
from .sampling import sampling_arguments
from .scheduling import DeviceSchedule
from .session import POLL_SECONDS, AnswerChannel, AnswerStopped, ChatSession, ChatTurn, EventStream


__all__ = ["EarlierObject", "EarlierTurn", "Engine", "EngineBusy", "EngineClosed", "EngineStatus", "Question"]

MAX_RETRY_SECONDS = 60
MEAN_WEIGHT = 0.1  # of the latest answer in the mean time of an answer


class EngineClosed(RuntimeError):
    """The engine was closed, and takes no questions."""


class EngineBusy(Exception):
    """
    The waiting line is full.

    Attributes:
        retry_after (`int`): seconds after which there should be room.
    """

    def __init__(self, waiting: int, retry_after: int):
        super().__init__(
            f"The waiting line is full: {waiting} questions are waiting. Try again in about {retry_after} s."
        )
        self.retry_after = retry_after


@dataclass(frozen=True)
class EngineStatus:
    """
    What an engine is doing, and what it has done since it was made.

    Attributes:
        running, waiting (`int`): questions.
        conversations, conversation_bytes, files (`int`): what is remembered.
        answered, failed, cancelled (`int`): questions.
        generated_tokens, tracked_frames (`int`): of answers.
        read_tokens, reused_tokens (`int`): of prompts; the latter were known from earlier questions.
    """

    running: int = 0
    waiting: int = 0
    conversations: int = 0
    conversation_bytes: int = 0
    files: int = 0
    answered: int = 0
    failed: int = 0
    cancelled: int = 0
    generated_tokens: int = 0
    tracked_frames: int = 0
    read_tokens: int = 0
    reused_tokens: int = 0


class Engine:
    """
    One model on one device, and the conversations that it remembers.

    Args:
        model ([`SamaForConditionalGeneration`]), processor ([`SamaProcessor`]): as `load_model` returns them.
        limits ([`Limits`], *optional*): `running`, `waiting`, `conversations`, `cache_bytes`,
            `feature_bytes` and `feature_memory_bytes`.
        min_component_fraction (`float`, defaults to 0): see [`SamaChat`].
        feature_folder (`str`, *optional*): where SAM 2's features of frames are kept; the system's temporary folder
            by default.
        compile_options (`dict`, *optional*): of `torch.compile`, for the steps of decoding; see [`DecodingBatch`].
    """

    def __init__(
        self,
        model,
        processor,
        limits: Limits | None = None,
        min_component_fraction: float = 0.0,
        feature_folder: str | None = None,
        compile_options: dict | None = None,
    ):
        self.model, self.processor = model, processor
        self.limits = limits = limits or Limits()
        self.min_component_fraction, self.feature_folder = min_component_fraction, feature_folder
        self.schedule, self.decoding_batch = DeviceSchedule(), DecodingBatch(compile_options)
        self.conversations = ConversationCache(
            limits.cache_bytes, limits.conversations, limits.feature_bytes, limits.feature_memory_bytes
        )
        self._lock = threading.Lock()
        self._line: deque[threading.Event] = deque()
        self._channels: set[AnswerChannel] = set()
        self._status = EngineStatus()
        self._mean_seconds = 1.0
        self._closed = False

    def ask(self, question: Question) -> EventStream:
        """
        Asks a question and returns the events of its answer, see [`ChatSession.ask`]. Closing them cancels it.

        Raises:
            EngineBusy: if too many questions are waiting.
            ValueError: if the question is not one, see [`question_text`]. What is wrong with its regions is found when
                its turn comes: then the last event is [`Failed`], whose cause is a `ValueError`.
            EngineClosed: if the engine was closed.
        """
        question_text(question.parts)
        channel, place = AnswerChannel(), threading.Event()
        with self._lock:
            if self._closed:
                raise EngineClosed("The engine was closed.")
            if self._status.running < self.limits.running:
                self._status = replace(self._status, running=self._status.running + 1)
                place.set()
            elif len(self._line) < self.limits.waiting:
                self._line.append(place)
            else:
                raise EngineBusy(len(self._line), self._retry_after())
            self._channels.add(channel)
        try:
            return EventStream(channel, lambda: self._answer(channel, question, place), lambda: self._end(channel))
        except RuntimeError:  # the system allows no more threads
            self._leave(place)
            self._end(channel)
            raise

    def preview(self, source: str, source_id: str | None, region: dict, kind: str = "video") -> tuple[int, np.ndarray]:
        """
        What a region selects, see [`SamaChat.region_mask`]; goes before answers that are under way.

        Returns:
            `tuple` of the region's frame and a bool array of shape `(height, width)`.

        Raises:
            ValueError: if the region does not lie in the video.
        """
        with self.schedule.turn():
            conversation = self.conversations.known(source_id)
            if conversation is None:
                question = Question((), source=source, source_id=source_id, kind=kind)
                conversation = self.conversations.open(question, lambda: self._start_chat(question))
                self.conversations.close(conversation)
            return conversation.chat.region_mask(region)

    def forget(self, source_id: str) -> None:
        """Forgets what is known of a file, for example when it was deleted."""
        with self.schedule.turn():
            self.conversations.drop_file(source_id)

    def status(self) -> EngineStatus:
        """What the engine is doing."""
        known = list(self.conversations.conversations)
        with self._lock:
            return replace(
                self._status,
                waiting=len(self._line),
                conversations=len(known),
                conversation_bytes=self.conversations.nbytes,
                files=len({one.source_id for one in known}),
            )

    def close(self) -> None:
        """Cancels all answers and waits until they have ended. No question can be asked from now on."""
        with self._lock:
            self._closed = True
            channels = list(self._channels)
        for channel in channels:
            channel.cancelled.set()
        while self.status().running or self.status().waiting:
            time.sleep(POLL_SECONDS)

    # ---- in the thread of an answer ---------------------------------------------------------------------------------

    def _answer(self, channel: AnswerChannel, question: Question, place: threading.Event) -> ChatTurn:
        try:
            with self._admitted(channel, place):
                for one in (one for earlier in question.earlier for one in earlier.objects):
                    one.digest  # noqa: B018  hashed before the turn: masks of a long video take a second
                    channel.check()
                with self.schedule.turn() as turn:
                    channel.turn = turn
                    channel.check()
                    answer = self._answer_in_turn(channel, question)
        except AnswerStopped:
            self._count(cancelled=1)
            raise
        except BaseException:
            self._count(failed=1)
            raise
        reply = answer.reply
        tracked = {len(phrase.track) for phrase in reply.objects if phrase.track is not None}
        self._count(
            answered=1,
            generated_tokens=reply.completion_tokens,
            tracked_frames=max(tracked, default=0),
            read_tokens=reply.prefilled_tokens,
            reused_tokens=reply.prompt_tokens - reply.prefilled_tokens,
        )
        return answer

    def _answer_in_turn(self, channel: AnswerChannel, question: Question) -> ChatTurn:
        conversation = self.conversations.open(question, lambda: self._start_chat(question))
        try:
            session = self._session(conversation, question)
            text, regions = question_text(question.parts)
            sampling = sampling_arguments(question.temperature, question.top_p, question.seed)
            answer = session.answer(channel, text, regions, question.masks, **sampling)
            # As it will be read if nothing is remembered: without tags that stand for no object
            tagged_text = to_tagged_text(answer.reply.text, answer.reply.objects)
            if tagged_text != answer.reply.tagged_text:
                conversation.chat.replace_answer(tagged_text)
            conversation.asked.append(EarlierTurn.of(question.parts, answer))
        except (ValueError, AnswerStopped):
            if conversation.is_as_before:
                self.conversations.close(conversation)
            else:  # it failed after the answer
                self.conversations.drop(conversation)
            raise
        except BaseException:
            self.conversations.drop(conversation)
            raise
        self.conversations.close(conversation)
        return answer

    def _session(self, conversation: Conversation, question: Question) -> ChatSession:
        """A session that continues the question's conversation. The model reads what it has not read with the next
        question."""
        chat, before = conversation.chat, conversation.chat.state
        session = ChatSession(chat, question.max_new_tokens, conversation.turns, self.schedule)
        try:
            if question.system is not None and not chat.messages:
                chat.add_messages([{"role": "system", "content": question.system}])
            new = question.earlier[len(conversation.asked) :]
            session.restore([turn.as_chat_turn() for turn in new])
        except ValueError:
            chat.state = before
            raise
        conversation.turns, conversation.asked = session.turns, [*conversation.asked, *new]
        return session

    def _start_chat(self, question: Question):
        source = {}
        if question.source is not None:
            video = self.processor.open_video(question.source, question.kind)
            video.name = f"the {question.kind}"  # messages go to clients, who must not see paths of this machine
            source = {question.kind: video}
        chat = self.model.start_chat(self.processor, **source, feature_folder=self.feature_folder)
        chat.min_component_fraction, chat.decoding_batch = self.min_component_fraction, self.decoding_batch
        if chat.sam_features is not None:
            chat.sam_features.room = self.conversations.room_for_features
            chat.sam_features.memory_room = self.conversations.room_for_features_in_memory
        return chat

    # ---- the line ---------------------------------------------------------------------------------------------------

    @contextmanager
    def _admitted(self, channel: AnswerChannel, place: threading.Event) -> Iterator[None]:
        """Waits in the line, and gives the place to the next one afterwards."""
        try:
            while not place.wait(POLL_SECONDS):
                channel.check()
            begin = time.monotonic()
            yield
            self._mean_seconds += MEAN_WEIGHT * (time.monotonic() - begin - self._mean_seconds)
        finally:
            self._leave(place)

    def _leave(self, place: threading.Event) -> None:
        with self._lock:
            if not place.is_set():
                self._line.remove(place)
            elif self._line:
                self._line.popleft().set()
            else:
                self._status = replace(self._status, running=self._status.running - 1)

    def _retry_after(self) -> int:
        seconds = self._mean_seconds * (len(self._line) + 1) / self.limits.running
        return min(max(1, math.ceil(seconds)), MAX_RETRY_SECONDS)

    # ---- counts -----------------------------------------------------------------------------------------------------

    def _count(self, **added: int) -> None:
        with self._lock:
            counts = {name: vars(self._status)[name] + number for name, number in added.items()}
            self._status = replace(self._status, **counts)

    def _end(self, channel: AnswerChannel) -> None:
        with self._lock:
            self._channels.discard(channel)
