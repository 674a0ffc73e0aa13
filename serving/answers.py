"""From the engine's events to what goes over HTTP: one JSON object, or server-sent events."""

import json
import logging
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol, cast

from ..data.masks import encode_rle
from .errors import ApiError, error_body, is_out_of_memory, log_value_error, no_memory, shutting_down
from .exports import frame_ranges
from .object_notation import hex_color, object_id
from .session import (
    AnswerObject,
    AnswerText,
    Cancelled,
    ChatTurn,
    Done,
    Event,
    Failed,
    MaskFrame,
    TextDelta,
)


log = logging.getLogger("sama.serving")
SERVER_ERROR = "The question could not be answered because of an error in the server; its log has more."
SSE_END = b"data: [DONE]\n\n"


def found_object(item: AnswerObject) -> dict:
    """An object as it is known when the text is complete, without its masks."""
    return {
        "id": object_id(item.number),
        "phrase": item.phrase,
        "start": item.span[0],
        "end": item.span[1],
        "color": hex_color(item.color),
    }


def usage(turn: ChatTurn) -> dict:
    """How many tokens were read and written."""
    reply = turn.reply
    return {
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.completion_tokens,
        "total_tokens": reply.prompt_tokens + reply.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": reply.prompt_tokens - reply.prefilled_tokens},
    }


class NewReply(Protocol):
    """What an answer has beside a session's [`Reply`]."""

    @property
    def stopped(self) -> bool: ...


def finish_reason(turn: ChatTurn) -> str:
    """OpenAI's word for how an answer ended: by itself, or at the limit of its tokens."""
    return "stop" if cast(NewReply, turn.reply).stopped else "length"


def failure(event: Failed, public: Callable[[BaseException], str]) -> ApiError:
    """What a client learns of a question that could not be answered."""
    if isinstance(event.cause, ApiError):
        return event.cause
    if isinstance(event.cause, ValueError):
        log_value_error(event.cause)
        return ApiError(400, public(event.cause))
    if is_out_of_memory(event.cause):
        return no_memory()
    log.error("A question could not be answered", exc_info=event.cause)
    return ApiError(500, SERVER_ERROR)


@dataclass
class Answer:
    """
    Collects the events of one answer.

    Args:
        model (`str`): the name of the model.
        public (`Callable`): the message of an error as a client may see it.
        on_first_token (`Callable`): called when the first piece of the text is there.
    """

    model: str
    public: Callable[[BaseException], str]
    on_first_token: Callable[[], None]
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))
    size: tuple[int, int] | None = None
    masks: dict[int, dict[str, str]] = field(default_factory=dict)
    """Number of an object to frame to compressed run lengths."""
    turn: ChatTurn | None = None
    error: ApiError | None = None
    started: bool = False

    def take(self, event: Event) -> None:
        """Takes the next event."""
        if isinstance(event, TextDelta | AnswerText) and not self.started:
            self.started = True
            self.on_first_token()
        if isinstance(event, MaskFrame):
            self.take_frame(event)
        elif isinstance(event, Done):
            self.turn = event.turn
        elif isinstance(event, Failed):
            self.error = failure(event, self.public)
        elif isinstance(event, Cancelled):
            self.error = shutting_down("The answer was cancelled")

    def take_frame(self, event: MaskFrame) -> dict[int, str]:
        """Keeps the masks of a frame; returns those that are not empty, compressed."""
        found = {number: encode_rle(mask)["counts"] for number, mask in event.masks.items() if mask.any()}
        for number, mask in event.masks.items():
            self.size = mask.shape
            self.masks.setdefault(number, {})
            if number in found:
                self.masks[number][str(event.frame)] = found[number]
        return found

    # ---- one JSON object

    def completion(self) -> dict:
        """The whole answer; raises the [`ApiError`] of a question that could not be answered."""
        turn = self._finished()
        message = {"role": "assistant", "content": turn.reply.text, "refusal": None, "objects": self._objects(turn)}
        choice = {"index": 0, "message": message, "finish_reason": finish_reason(turn), "logprobs": None}
        return self._head("chat.completion") | {"choices": [choice], "usage": usage(turn)}

    def _finished(self) -> ChatTurn:
        if self.error is not None:
            raise self.error
        if self.turn is None:
            raise ApiError(500, "The answer ended before it was complete.")
        return self.turn

    def _objects(self, turn: ChatTurn) -> list[dict]:
        objects = []
        for item, tracked in zip(turn.objects, self._tracked(turn), strict=True):
            objects.append(found_object(item) | tracked)
            if item.number in self.masks:
                objects[-1]["masks"] = {"size": list(self.size or ()), "counts": self.masks[item.number]}
        return objects

    def _tracked(self, turn: ChatTurn) -> Iterator[dict]:
        """Score and visible frames of each object, where they are known."""
        for item, phrase in zip(turn.objects, turn.reply.objects, strict=True):
            known: dict = {}
            if phrase.score is not None:
                known["score"] = round(min(max(float(phrase.score), 0.0), 1.0), 4)
            if item.number in self.masks:
                known["frames"] = frame_ranges(sorted(map(int, self.masks[item.number])))
            yield known

    # ---- server-sent events

    def events(self, event: Event, include_usage: bool) -> list[bytes]:
        """Takes the next event; returns the server-sent events that it becomes."""
        if isinstance(event, TextDelta):
            self.take(event)
            return [self._chunk({"content": event.text})]
        if isinstance(event, AnswerText):
            self.take(event)
            return [self._chunk({"objects": [found_object(item) for item in event.objects]})]
        if isinstance(event, MaskFrame):
            found = self.take_frame(event)
            size = list(self.size or ())
            objects = [
                {"id": object_id(number), "masks": {"size": size, "counts": {str(event.frame): counts}}}
                for number, counts in found.items()
            ]
            return [self._chunk({"objects": objects, "frame": event.frame})]
        self.take(event)
        if self.turn is None:
            return [self.error_event(self.error or ApiError(500, "The answer ended before it was complete.")), SSE_END]
        return self._last_events(self.turn, include_usage)

    def first_event(self) -> bytes:
        return self._chunk({"role": "assistant", "content": ""})

    def error_event(self, error: ApiError) -> bytes:
        """An error after the answer has begun, in the form that OpenAI's client raises."""
        return _event(error_body(error.status_code, str(error.detail), error.param, error.code))

    def _last_events(self, turn: ChatTurn, include_usage: bool) -> list[bytes]:
        objects = [
            {"id": object_id(item.number)} | known
            for item, known in zip(turn.objects, self._tracked(turn), strict=True)
        ]
        counted = usage(turn)
        # A chunk without choices only where it was asked for: programs that do not expect it fail on it
        last = [self._chunk({"objects": objects}, finish_reason(turn), None if include_usage else counted)]
        if include_usage:
            last.append(_event(self._head("chat.completion.chunk") | {"choices": [], "usage": counted}))
        return [*last, SSE_END]

    def _chunk(self, delta: dict, finish: str | None = None, counted: dict | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        return _event(self._head("chat.completion.chunk") | {"choices": [choice], "usage": counted})

    def _head(self, kind: str) -> dict:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def _event(value: dict) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8") + b"\n\n"
