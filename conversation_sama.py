"""Reads chat messages and checks them: what each turn says, shows and points at."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .layout_sama import ANSWER_FORBIDDEN, REGION_WORD, USER_FORBIDDEN, check_text, ground_phrase
from .video_sama import Region, SamaVideo


CONTENT_TYPES = {
    "system": ("text",),
    "user": ("video", "image", "region", "text"),
    "assistant": ("text", "grounded"),
}
PART_KEYS = {
    "video": {"path", "video"},
    "image": {"path", "image"},
    "text": {"text"},
    "grounded": {"text", "objects"},
    "region": {"region", "frame", "mask", "box", "points", "labels", "scribble"},
}


@dataclass
class Turn:
    """A message: its role and its texts in order, in which `None` stands for a region."""

    role: str
    pieces: list[str | None] = field(default_factory=list)


@dataclass
class Conversation:
    """
    A checked conversation.

    Attributes:
        turns (`list[Turn]`): The messages.
        video ([`SamaVideo`], *optional*): What it is about.
        visual_turn (`int`, *optional*): Index of the turn that shows it.
        regions (`list`): Everything pointed at, in reading order.
    """

    turns: list[Turn] = field(default_factory=list)
    video: SamaVideo | None = None
    visual_turn: int | None = None
    regions: list = field(default_factory=list)


def read_conversation(messages: Sequence[Mapping]) -> Conversation:
    """Read the messages of one conversation; raises `ValueError` at the first thing that is wrong with them."""
    if not messages:
        raise ValueError("A conversation needs at least 1 message, got 0.")
    conversation = Conversation()
    for index, message in enumerate(messages):
        _read_message(conversation, message, index)
    return conversation


def _read_message(conversation: Conversation, message: Mapping, index: int) -> None:
    if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
        raise ValueError(f"Message {index} must be a dict with 'role' and 'content', got {message!r}.")
    role, content = message["role"], message["content"]
    if role not in CONTENT_TYPES:
        raise ValueError(f"Message {index} has the role {role!r}, expected one of {', '.join(CONTENT_TYPES)}.")
    if not isinstance(content, (str, list, tuple)):
        raise ValueError(
            f"Message {index}: content must be a string or a list of parts, got {type(content).__name__}."
        )
    turn = Turn(role)
    conversation.turns.append(turn)
    for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
        kind = _part_type(part, role, index)
        where = f"message {index} ({role})"
        if kind == "text":
            turn.pieces.append(_checked_text(part, role, where))
        elif kind == "grounded":
            _require(part, ("text", "objects"), where)
            turn.pieces.append(ground_phrase(check_text(part["text"], ANSWER_FORBIDDEN, where), len(part["objects"])))
        elif kind == "region":
            if conversation.video is None:
                raise ValueError(f"A region in {where} comes before the video or image that it lies in.")
            conversation.regions.append(_read_region(part, where))
            turn.pieces.append(None)
        else:
            _show(conversation, part, kind, where)
            conversation.visual_turn = index
    if role == "user" and not "".join(piece or REGION_WORD for piece in turn.pieces).strip():
        raise ValueError(f"Message {index} (user) asks nothing: it has neither text nor a region.")


def _part_type(part: Mapping, role: str, index: int) -> str:
    if not isinstance(part, Mapping) or "type" not in part:
        raise ValueError(f"Message {index} has a content part that is not a dict with a 'type': {part!r}.")
    kind, allowed = part["type"], CONTENT_TYPES[role]
    if kind not in allowed:
        raise ValueError(
            f"Message {index} ({role}) has a content part of type {kind!r}, expected one of {', '.join(allowed)}."
        )
    unknown = sorted(set(part) - PART_KEYS[kind] - {"type"})
    if unknown:
        raise ValueError(
            f"A {kind} part of message {index} has unknown keys {', '.join(unknown)}; it takes "
            f"{', '.join(sorted(PART_KEYS[kind]))}."
        )
    return kind


def _require(part: Mapping, keys: Sequence[str], where: str) -> None:
    missing = [key for key in keys if key not in part]
    if missing:
        raise ValueError(f"A {part['type']} part of {where} lacks {', '.join(missing)}.")


def _checked_text(part: Mapping, role: str, where: str) -> str:
    _require(part, ("text",), where)
    text = check_text(part["text"], ANSWER_FORBIDDEN if role == "assistant" else USER_FORBIDDEN, where)
    if role == "user" and REGION_WORD in text:
        raise ValueError(
            f"The text of {where} has {text.count(REGION_WORD)} {REGION_WORD}; in messages a region is a content part "
            "of type 'region'."
        )
    return text


def _read_region(part: Mapping, where: str):
    if "region" not in part:
        return Region(**{key: value for key, value in part.items() if key != "type"})
    others = sorted(set(part) - {"type", "region"})
    if others:
        raise ValueError(f"A region part of {where} gives both 'region' and {', '.join(others)}.")
    return part["region"]


def _show(conversation: Conversation, part: Mapping, kind: str, where: str) -> None:
    if conversation.video is not None:
        raise ValueError(f"A second video or image comes in {where}; a conversation is about 1.")
    sources = [part[key] for key in ("path", kind) if key in part]
    if len(sources) != 1:
        raise ValueError(f"A {kind} part of {where} takes either 'path' or {kind!r}, got {len(sources)} of them.")
    video = SamaVideo.open(sources[0])
    if kind == "image" and not video.is_image:
        raise ValueError(f"The image part of {where} holds a video of {len(video)} frames; use the type 'video'.")
    conversation.video = video
