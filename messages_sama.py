"""Messages as users write them, read and checked: roles, content parts, and what each part shows or points at."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .objects_sama import check_region_list
from .prompts_sama import REGION_WORD, split_tags, with_tags
from .regions_sama import is_whole, shortened
from .video_sama import SamaVideo


CONTENT_TYPES = {
    "system": ("text",),
    "user": ("video", "image", "region", "text"),
    "assistant": ("text", "grounded"),
}
PART_KEYS = {
    "video": {"path", "url", "video"},
    "image": {"path", "url", "image"},
    "text": {"text"},
    "grounded": {"text", "objects"},
    "region": {"region", "frame", "time", "mask", "box", "points", "labels", "scribble"},
}


@dataclass
class ParsedMessage:
    """A message: its role and its texts in order. `None` stands for a region, [`Tags`] for tags of an answer."""

    role: str
    pieces: list[str | None] = field(default_factory=list)


@dataclass
class ParsedConversation:
    """
    A checked conversation.

    Attributes:
        messages (`list[ParsedMessage]`): The messages.
        video ([`SamaVideo`], *optional*): What it is about.
        visual_turn (`int`, *optional*): Index of the message that shows it.
        regions (`list`): Everything pointed at, in reading order.
    """

    messages: list[ParsedMessage] = field(default_factory=list)
    video: SamaVideo | None = None
    visual_turn: int | None = None
    regions: list = field(default_factory=list)


def is_batch(conversation) -> bool:
    """
    Whether `conversation` is a list of conversations; `False` for the messages of one.

    Raises:
        ValueError: if it is not a list.
    """
    if not isinstance(conversation, (list, tuple)):
        raise ValueError(
            "A conversation must be a list of messages such as [{'role': 'user', 'content': ...}], "
            f"got {type(conversation).__name__}."
        )
    return bool(conversation) and isinstance(conversation[0], (list, tuple))


def read_conversation(messages: Sequence[Mapping]) -> ParsedConversation:
    """
    Read the messages of one conversation.

    Args:
        messages (`list[dict]`): Each with `role` and `content`. The content of an answer is either one string, in
            which `<p>`, `</p>` and `[SEG]` are tags, or a list of `text` parts, which are words and nothing else, and
            `grounded` parts. Text of a user or of the system is always words.

    Raises:
        ValueError: at the first thing that is wrong with them.
    """
    if not isinstance(messages, (list, tuple)):
        raise ValueError(f"A conversation must be a list of messages, got {type(messages).__name__}.")
    if not messages:
        raise ValueError("A conversation needs at least 1 message, got 0.")
    conversation = ParsedConversation()
    for index, message in enumerate(messages):
        _read_message(conversation, message, index)
    return conversation


def checked_messages(messages: list[dict], video: SamaVideo | None) -> list[dict]:
    """
    The messages of a chat about `video`, after a check.

    Raises:
        ValueError: if they cannot be read, or their questions are about another video, or about none.
    """
    conversation = read_conversation(messages)
    if conversation.video is video or all(message.role != "user" for message in conversation.messages):
        return messages
    if video is None:
        raise ValueError("The messages show a video or image, but this chat was started without one.")
    problem = "do not show" if conversation.video is None else "show another one than"
    kind = "image" if video.is_image else "video"
    raise ValueError(
        f"The messages {problem} the {kind} of this chat; put {{'type': '{kind}', '{kind}': chat.video}} first into "
        "the content of the first question."
    )


def _read_message(conversation: ParsedConversation, message: Mapping, index: int) -> None:
    if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
        raise ValueError(f"Message {index} must be a dict with 'role' and 'content', got {shortened(message)}.")
    role, content = message["role"], message["content"]
    if not isinstance(role, str) or role not in CONTENT_TYPES:
        raise ValueError(
            f"Message {index} has the role {shortened(role)}, expected one of {', '.join(CONTENT_TYPES)}."
        )
    if not isinstance(content, (str, list, tuple)):
        raise ValueError(
            f"Message {index}: content must be a string or a list of parts, got {type(content).__name__}."
        )
    turn, where = ParsedMessage(role), f"message {index} ({role})"
    conversation.messages.append(turn)
    if isinstance(content, str) and role == "assistant":
        turn.pieces += split_tags(check_text(content, where))
        return
    for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
        kind = _part_type(part, role, index)
        if kind == "text":
            turn.pieces.append(_checked_text(part, role, where))
        elif kind == "grounded":
            turn.pieces += _grounded(part, where)
        elif kind == "region":
            if conversation.video is None:
                raise ValueError(f"A region in {where} comes before the video or image that it lies in.")
            conversation.regions.append(_read_region(part, where))
            turn.pieces.append(None)
        else:
            _show(conversation, part, kind, where)
            conversation.visual_turn = index
    if role == "user" and not "".join(REGION_WORD if piece is None else piece for piece in turn.pieces).strip():
        raise ValueError(f"Message {index} (user) is empty: it needs text or a region.")


def _part_type(part: Mapping, role: str, index: int) -> str:
    if not isinstance(part, Mapping) or "type" not in part:
        raise ValueError(f"Message {index} has a content part that is not a dict with a 'type': {shortened(part)}.")
    kind, allowed = part["type"], CONTENT_TYPES[role]
    if not isinstance(kind, str) or kind not in allowed:
        raise ValueError(
            f"Message {index} ({role}) has a content part of type {shortened(kind)}, expected one of "
            f"{', '.join(allowed)}."
        )
    unknown = sorted(str(key) for key in set(part) - PART_KEYS[kind] - {"type"})
    if unknown:
        raise ValueError(
            f"A {kind} part of message {index} has unknown keys {', '.join(unknown)[:200]}; it takes "
            f"{', '.join(sorted(PART_KEYS[kind]))}."
        )
    return kind


def check_text(text, where: str) -> str:
    """
    Return `text`, which is part of `where`.

    Raises:
        ValueError: if it is not a string, or not one that can be written as UTF-8 (it holds half of a surrogate pair).
    """
    if not isinstance(text, str):
        raise ValueError(f"The text of {where} must be a string, got {type(text).__name__}.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"The text of {where} is not valid Unicode: character {error.start} is the lone surrogate "
            f"U+{ord(text[error.start]):04X}."
        ) from None
    return text


def _require(part: Mapping, keys: Sequence[str], where: str) -> None:
    missing = [key for key in keys if key not in part]
    if missing:
        raise ValueError(f"A {part['type']} part of {where} lacks {', '.join(missing)}.")


def _checked_text(part: Mapping, role: str, where: str) -> str:
    _require(part, ("text",), where)
    text = check_text(part["text"], where)
    if role == "user" and REGION_WORD in text:
        raise ValueError(
            f"The text of {where} has {text.count(REGION_WORD)} {REGION_WORD}; in messages a region is a content part "
            "of type 'region'."
        )
    return text


def _grounded(part: Mapping, where: str) -> list[str]:
    _require(part, ("text", "objects"), where)
    objects = part["objects"]
    if not isinstance(objects, (list, tuple)):
        raise ValueError(f"The objects of a grounded part of {where} must be a list, got {shortened(objects)}.")
    return with_tags(check_text(part["text"], where), len(objects))


def _read_region(part: Mapping, where: str):
    """What the part points with; its fields are checked when the region is prepared."""
    if "region" not in part:
        return {key: value for key, value in part.items() if key != "type"}
    others = sorted(set(part) - {"type", "region"})
    if others:
        raise ValueError(f"A region part of {where} gives both 'region' and {', '.join(others)}.")
    return part["region"]


def _show(conversation: ParsedConversation, part: Mapping, kind: str, where: str) -> None:
    if conversation.video is not None:
        raise ValueError(f"A second video or image comes in {where}; a conversation is about 1.")
    sources = [part[key] for key in ("path", "url", kind) if key in part]
    if len(sources) != 1:
        raise ValueError(
            f"A {kind} part of {where} takes exactly one of 'path', 'url' and {kind!r}, got {len(sources)} of them."
        )
    conversation.video = SamaVideo.open(sources[0], kind)


def question_parts(question: str, regions: Sequence = ()) -> list[dict]:
    """
    Content parts of a question such as "What is <region> doing?".

    Args:
        question (`str`): Text in which every `<region>` stands for the next of `regions`.
        regions (sequence): What [`as_region`] takes, in reading order.

    Raises:
        ValueError: if the question is not a string, `regions` is not a list, or there are more or fewer regions than
            `<region>` marks.
    """
    check_text(question, "the question")
    check_region_list(regions)
    texts = question.split(REGION_WORD)
    if len(texts) - 1 != len(regions):
        raise ValueError(
            f"The question has {len(texts) - 1} {REGION_WORD} but {len(regions)} regions were given; write "
            f"{REGION_WORD} where the text speaks of one."
        )
    parts = [{"type": "text", "text": texts[0]}]
    for region, text in zip(regions, texts[1:], strict=True):
        parts += [{"type": "region", "region": region}, {"type": "text", "text": text}]
    return [part for part in parts if part["type"] != "text" or part["text"]]


# Arguments of other processors, with the values that change nothing here
HARMLESS_KEYWORDS: dict[str, tuple] = {
    "padding": (True, "longest"),
    "truncation": (None, False, "do_not_truncate"),
    "padding_side": ("left",),
    "return_tensors": ("pt",),
    "add_special_tokens": (False,),
    "tools": (None, []),
    "documents": (None, []),
    "audio": (None,),
    "load_audio_from_video": (False,),
    "do_sample_frames": (True,),
}
# What to use instead of arguments that SamaProcessor lacks
OTHER_KEYWORDS = {
    "fps": "num_frames=, the most context frames",
    "max_length": "fewer frames or turns; what is too long is refused and not cut",
    "videos_kwargs": "num_frames=",
    "images_kwargs": "the settings of the processor",
    "text_kwargs": "the arguments themselves",
}


def read_keywords(keywords: Mapping) -> int | None:
    """
    The `num_frames` among arguments that other processors take.

    Args:
        keywords (`dict`): What was given besides the arguments that SamaProcessor has.

    Returns:
        `int`, *optional*: The most context frames, if they were given.

    Raises:
        ValueError: for an argument that means nothing here, with what to use instead.
    """
    keywords = {**keywords}
    nested = keywords.pop("processor_kwargs", None) or {}
    if not isinstance(nested, Mapping) or set(nested) & set(keywords):
        raise ValueError(f"processor_kwargs must be a dict of arguments not given elsewhere, got {shortened(nested)}.")
    keywords |= nested
    num_frames = keywords.pop("num_frames", None)
    if num_frames is not None and not (is_whole(num_frames) and num_frames >= 1):
        raise ValueError(f"num_frames must be a whole number from 1 on, got {shortened(num_frames)}.")
    for name, value in keywords.items():
        allowed = HARMLESS_KEYWORDS.get(name)
        if allowed is None:
            instead = f"; use {OTHER_KEYWORDS[name]}" if name in OTHER_KEYWORDS else ""
            raise ValueError(f"SamaProcessor has no argument {name!r}{instead}.")
        if not any(value is one or (isinstance(value, (str, bool, list)) and value == one) for one in allowed):
            raise ValueError(f"SamaProcessor supports only {name}={allowed[0]!r}, got {shortened(value)}.")
    return num_frames
