"""What an engine is asked: a question and the whole conversation before it, so that nothing needs to be remembered."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..objects_sama import GroundedPhrase, MaskTrack
from ..prompts_sama import REGION_WORD, to_tagged_text
from .session import ChatTurn


Parts = tuple[str | dict, ...]


@dataclass(frozen=True)
class EarlierObject:
    """
    An object of an earlier answer.

    Attributes:
        number (`int`): of the object in its conversation, counted from 1.
        phrase (`str`): the phrase that names it; empty if the answer does not name it.
        span (`tuple[int, int]`): the first character of the phrase in the answer's text and the one after its last.
        score (`float`, *optional*)
        track ([`MaskTrack`], *optional*): its masks. Without them a question can point at it only as long as the
            engine remembers the answer.
    """

    number: int
    phrase: str
    span: tuple[int, int]
    score: float | None = None
    track: MaskTrack | None = None

    @cached_property
    def digest(self) -> bytes:
        """A hash of the masks, empty without masks."""
        if self.track is None:
            return b""
        found = hashlib.sha256(repr((len(self.track), self.track.height, self.track.width)).encode())
        for frame in range(len(self.track)):
            counts = np.asarray(self.track.to_rle(frame)["counts"], dtype=np.int64)
            found.update(len(counts).to_bytes(8, "little") + counts.tobytes())
        return found.digest()

    def matches(self, other: "EarlierObject") -> bool:
        """Whether it is the same object, where `other` may leave the masks out."""
        if (self.number, self.phrase, tuple(self.span)) != (other.number, other.phrase, tuple(other.span)):
            return False
        return other.track is None or self.digest == other.digest


@dataclass(frozen=True)
class EarlierTurn:
    """
    A question and its answer.

    Attributes:
        parts (`tuple`): the question, see [`Question`].
        text (`str`): the answer, without tags.
        objects (`tuple[EarlierObject, ...]`): what the answer grounds, in the order of the text.
    """

    parts: Parts
    text: str
    objects: tuple[EarlierObject, ...] = ()

    @classmethod
    def of(cls, parts: Parts, turn: ChatTurn) -> "EarlierTurn":
        """The turn of a session whose question was `parts`."""
        objects = tuple(
            EarlierObject(item.number, item.phrase, item.span, phrase.score, phrase.track)
            for item, phrase in zip(turn.objects, turn.reply.objects, strict=True)
        )
        return cls(parts, turn.reply.text, objects)

    def matches(self, other: "EarlierTurn") -> bool:
        """Whether it is the same turn, where `other` may leave masks out."""
        if (self.parts, self.text, len(self.objects)) != (other.parts, other.text, len(other.objects)):
            return False
        return all(mine.matches(theirs) for mine, theirs in zip(self.objects, other.objects, strict=True))

    def as_chat_turn(self) -> ChatTurn:
        """The turn as a session has it."""
        text, regions = question_text(self.parts)
        phrases = [
            GroundedPhrase(one.phrase, (one.span[0], one.span[1]), one.track, one.score) for one in self.objects
        ]
        reply = EarlierReply(self.text, to_tagged_text(self.text, phrases), phrases)
        return ChatTurn(text, tuple(regions), reply, tuple(one.number for one in self.objects))


@dataclass(frozen=True)
class EarlierReply:
    """The answer of an earlier turn: what a session reads of a [`SamaReply`]. Its tokens are not counted."""

    text: str
    tagged_text: str
    objects: list[GroundedPhrase]
    prompt_tokens: int = 0
    prefilled_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True)
class Question:
    """
    A question about a video or picture, with the conversation before it.

    Attributes:
        parts (`tuple`): texts (`str`) and regions in reading order. A region is a dict of plain values, as JSON gives
            them: `{"frame": 12, "box": [x1, y1, x2, y2]}` and so on, or `{"object": number}`.
        earlier (`tuple[EarlierTurn, ...]`): the conversation before it.
        source (`str`, *optional*): path of the video or picture; `None` for a conversation in text alone.
        source_id (`str`, *optional*): a hash of the file's content. What is known of the file is shared by it.
        kind (`str`, defaults to "video"): "video" or "image".
        system (`str`, *optional*): the system message.
        masks (`bool`, defaults to `True`): whether the objects of the answer are tracked through the video.
        max_new_tokens (`int`, defaults to 512)
        temperature (`float`, defaults to 0): 0 takes the likeliest token.
        top_p (`float`, defaults to 1): with a temperature above 0, the probability mass to draw from.
        seed (`int`, defaults to 0): what is drawn depends on the seed alone.
    """

    parts: Parts
    earlier: tuple[EarlierTurn, ...] = ()
    source: str | None = None
    source_id: str | None = None
    kind: str = "video"
    system: str | None = None
    masks: bool = True
    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


def question_text(parts: Parts) -> tuple[str, list[dict]]:
    """
    A question as [`ChatSession.ask`] takes it: its text, in which `<region>` stands for a region, and the regions.

    Raises:
        ValueError: for a part of another type, and for a text that holds `<region>` itself.
    """
    text, regions = "", []
    for part in parts:
        if isinstance(part, Mapping):
            regions.append(dict(part))
            text += REGION_WORD
        elif not isinstance(part, str):
            raise ValueError(f"A part of a question is a text or a region, got {type(part).__name__}.")
        elif REGION_WORD in part:
            raise ValueError(
                f"The text of a question contains {REGION_WORD}; what is pointed at is a region, a part of its own."
            )
        else:
            text += part
    return text, regions
