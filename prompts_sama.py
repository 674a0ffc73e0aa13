"""The text side of SAMA: tags, turn formats and chat templates, messages that are read and checked, and grounded
answers to and from plain text."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

from .configuration_sama import CONTEXT_TOKEN, DENSE_FRAME_TOKEN, REGION_POOLED_TOKEN, REGION_SHAPE_TOKEN
from .objects_sama import GroundedPhrase, MaskTrack, Region
from .video_sama import SamaVideo


IMAGE_START, IMAGE_END, IMAGE_CONTEXT = "<img>", "</img>", "<IMG_CONTEXT>"
REGION_START, REGION_END = "<vp>", "</vp>"
PHRASE_START, PHRASE_END, SEG = "<p>", "</p>", "[SEG]"
# The two slots of a region in the Q-Former's text: pooled feature and shape feature.
POOLED_SLOT, SHAPE_SLOT = "<mask>", "<pos>"
# How a region is written in a question that is given as one string.
REGION_WORD = "<region>"

ANSWER_TAGS = (SEG, PHRASE_START, PHRASE_END)
LANGUAGE_TAGS = (*ANSWER_TAGS, REGION_START, REGION_END, IMAGE_START, IMAGE_END, IMAGE_CONTEXT)
QFORMER_TAGS = (POOLED_SLOT, SHAPE_SLOT, REGION_START, REGION_END)
USER_FORBIDDEN = (*LANGUAGE_TAGS, POOLED_SLOT, SHAPE_SLOT)
ANSWER_FORBIDDEN = (IMAGE_START, IMAGE_END, IMAGE_CONTEXT, REGION_START, REGION_END)


LANGUAGE_REGION = f"{REGION_START}{IMAGE_CONTEXT}{IMAGE_CONTEXT}{REGION_END}"
QFORMER_REGION = f"{REGION_START}{POOLED_SLOT}{SHAPE_SLOT}{REGION_END}"


@dataclass(frozen=True)
class TurnFormat:
    """
    What separates the context tokens of a turn from the text around them.

    Attributes:
        before_context (`str`): Between the frames and the context tokens (first turn only).
        after_context (`str`): Between the context tokens and the question.
    """

    before_context: str
    after_context: str


TURN_FORMATS = {
    "newlines": TurnFormat("\n", "\n"),
    "newline_after": TurnFormat("", "\n"),
    "no_newlines": TurnFormat("", ""),
}
# The release trains each data source with its own newlines, and its inference writes those of `published` (data.md).
SOURCE_TURN_FORMATS = {
    "default": "newlines",
    "published": "newline_after",
    "release": "newline_after",  # the name of `published` before version 0.2
    "refcoco": "no_newlines",
    "llava": "newlines",
    "referring_video": "newline_after",
    "chat_univi": "newline_after",
    "gcg": "newlines",
    "osprey": "newlines",
    "sama_conversation": "no_newlines",
    "sama_description": "newline_after",
}


def check_turn_format(name: str) -> str:
    """The turn format `name`, which may also be the name of a data source: that source's format.

    Raises:
        ValueError: if there is no such format.
    """
    name = SOURCE_TURN_FORMATS.get(name, name)
    if name not in TURN_FORMATS:
        names = ", ".join((*TURN_FORMATS, *SOURCE_TURN_FORMATS))
        raise ValueError(f"turn_format={name!r} is unknown, expected one of {names}.")
    return name


def _chat_template(user: str, answer_start: str, answer_end: str, bos: str = "") -> str:
    """
    A chat template without system text. The answer and its end mark are what training learns, hence the generation
    block around both; the newline behind them belongs to the next turn.
    """
    return (
        f"{bos}"
        "{%- for message in messages -%}"
        "{%- if message['role'] == 'assistant' -%}"
        "{{- '" + answer_start + "' -}}{%- generation -%}{{- message['content'] + '" + answer_end + "' -}}"
        "{%- endgeneration -%}{{- '\\n' -}}"
        "{%- else -%}{{- " + user + " -}}{%- endif -%}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '" + answer_start + "' -}}{%- endif -%}"
    )


_CHATML = "'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n'"
# Named after the wrappers of the release. `leaked_*` is what its training really saw: the wrapper of one data source
# leaked into all others, while the end mark stayed that of the language model.
CHAT_TEMPLATES = {
    "qwen_chat": _chat_template(_CHATML, "<|im_start|>assistant\\n", "<|im_end|>"),
    "internlm2_chat": _chat_template(_CHATML, "<|im_start|>assistant\\n", "<|im_end|>", bos="{{- bos_token -}}"),
    "phi3_chat": _chat_template(
        "'<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n'", "<|assistant|>\\n", "<|end|>"
    ),
    "leaked_chat": _chat_template(
        "'<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>'", "<|assistant|>\\n", "<|im_end|>"
    ),
}


def render_messages(
    messages: list[dict], template: str, special_tokens: Mapping[str, Any], add_generation_prompt: bool
) -> tuple[str, list[tuple[int, int]]]:
    """A chat template's text of messages whose content is a string, and the `(start, end)` characters of the answers
    in it; none if the template does not mark them."""
    rendered: Any = render_jinja_template(  # a pair, though it is annotated as a string
        conversations=[messages],
        chat_template=template,
        return_assistant_tokens_mask="generation" in template,
        add_generation_prompt=add_generation_prompt and messages[-1]["role"] != "assistant",
        **special_tokens,
    )
    texts, spans = rendered
    return texts[0], spans[0] if spans else []


@dataclass(frozen=True)
class VisualText:
    """
    What the text must know about the video or image of a conversation.

    Attributes:
        is_image (`bool`): Whether it is a still.
        num_context (`int`): Context frames, or tiles of a still.
        num_dense (`int`): Frames that give all their tokens; all tiles of a still.
        tokens_per_frame (`int`): Tokens of one such frame.
    """

    is_image: bool
    num_context: int
    num_dense: int
    tokens_per_frame: int

    def frame_block(self) -> str:
        """The dense frames one by one, or all tiles of a still in a single pair of tags."""
        frame = IMAGE_CONTEXT * self.tokens_per_frame
        if self.is_image:
            return f"{IMAGE_START}{frame * self.num_dense}{IMAGE_END}"
        return "\n".join([f"{IMAGE_START}{frame}{IMAGE_END}"] * self.num_dense)


@dataclass(frozen=True)
class TurnText:
    """One user turn: its text, the kind of each placeholder in reading order, and the Q-Former's question."""

    text: str
    placeholder_types: list[int]
    question: str

    @property
    def num_regions(self) -> int:
        """How many regions the turn points at."""
        return self.placeholder_types.count(REGION_POOLED_TOKEN)


def render_user_turn(
    pieces: Sequence[str | None], visual: VisualText | None, shows: bool, turn_format: TurnFormat
) -> TurnText:
    """
    Write one user turn.

    Args:
        pieces (`list` of `str` or `None`): The turn's texts in order; `None` stands for a region.
        visual ([`VisualText`], *optional*): The visual of the conversation when this turn or an earlier one shows it.
        shows (`bool`): Whether it is this turn that shows the visual.
        turn_format ([`TurnFormat`]): The newlines around the context tokens.
    """
    language = "".join(LANGUAGE_REGION if piece is None else piece for piece in pieces)
    question = "".join(QFORMER_REGION if piece is None else piece for piece in pieces).strip()
    types = [REGION_POOLED_TOKEN, REGION_SHAPE_TOKEN] * sum(piece is None for piece in pieces)
    if visual is None:
        return TurnText(language, types, question)
    language = IMAGE_CONTEXT * visual.num_context + turn_format.after_context + language
    types = [CONTEXT_TOKEN] * visual.num_context + types
    if shows:
        language = visual.frame_block() + turn_format.before_context + language
        types = [DENSE_FRAME_TOKEN] * (visual.num_dense * visual.tokens_per_frame) + types
    return TurnText(language, types, question)


def check_text(text: str, forbidden: Sequence[str], where: str) -> str:
    """Return `text`, or raise `ValueError` when it contains a tag that only the processor may write."""
    if not isinstance(text, str):
        raise ValueError(f"The text of {where} must be a string, got {type(text).__name__}.")
    found = [tag for tag in forbidden if tag in text]
    if found:
        raise ValueError(f"The text of {where} contains {', '.join(found)}, which only the processor may write.")
    return text


def question_parts(question: str, regions: Sequence = ()) -> list[dict]:
    """
    Content parts of a question such as "What is <region> doing?".

    Args:
        question (`str`): Text in which every `<region>` stands for the next of `regions`.
        regions (sequence of `Region`, `GroundedPhrase` or `MaskTrack`): The regions in reading order.
    """
    texts = question.split(REGION_WORD)
    if len(texts) - 1 != len(regions):
        raise ValueError(f"The question has {len(texts) - 1} {REGION_WORD} but {len(regions)} regions were given.")
    parts = [{"type": "text", "text": texts[0]}]
    for region, text in zip(regions, texts[1:], strict=True):
        parts += [{"type": "region", "region": region}, {"type": "text", "text": text}]
    return [part for part in parts if part["type"] != "text" or part["text"]]


@dataclass(frozen=True)
class Answer:
    """
    A parsed answer.

    Attributes:
        text (`str`): The words, without tags.
        tagged_text (`str`): The words with `<p> ... </p> [SEG]`.
        objects (`list[GroundedPhrase]`): One for each [SEG], in order.
    """

    text: str
    tagged_text: str
    objects: list[GroundedPhrase]


def ground_phrase(text: str, num_objects: int) -> str:
    """A phrase with one [SEG] for each of its objects; without objects it is plain text, without words bare [SEG]s."""
    if num_objects == 0:
        return text
    if not text:
        return " ".join([SEG] * num_objects)
    return f"{PHRASE_START} {text} {PHRASE_END}" + f" {SEG}" * num_objects


def decode_answer(token_ids: Sequence[int], tokenizer) -> str:
    """Text of an answer. A tag that is spelled with ordinary tokens is no tag and loses its brackets: the model's
    states are found by the tag's own token."""
    tags = dict(zip(tokenizer.convert_tokens_to_ids(list(ANSWER_TAGS)), ANSWER_TAGS, strict=True))
    text, words = "", []
    for token_id in [*(int(token_id) for token_id in token_ids), None]:
        if token_id is not None and token_id not in tags:
            words.append(token_id)
            continue
        spelled = tokenizer.decode(
            words, skip_special_tokens=False, clean_up_tokenization_spaces=False, spaces_between_special_tokens=False
        )
        for tag in ANSWER_TAGS:
            spelled = spelled.replace(tag, tag.strip("[]<>"))
        text, words = text + spelled + tags.get(token_id, ""), []
    return text


def parse_tagged_text(tagged_text: str) -> tuple[str, list[tuple[str, tuple[int, int]]]]:
    """
    Split an answer into its words and, for each [SEG], the phrase it stands for with its characters in those words.

    A [SEG] takes the nearest `<p> ... </p>` that ended since the last [SEG]; further [SEG] right behind it take the
    same phrase. A [SEG] without a phrase has an empty text and an empty span.
    """
    # The blanks inside the phrase tags and the one in front of [SEG] belong to the tags.
    tight = re.sub(rf"({PHRASE_START})\s+", r"\1", tagged_text.strip())
    tight = re.sub(rf"\s+({PHRASE_END}|{re.escape(SEG)})", r"\1", tight)
    pieces = re.split(rf"({PHRASE_START}|{PHRASE_END}|{re.escape(SEG)})", tight)
    clean, start, phrase, fresh, spans = "", None, None, False, []
    for piece in pieces:
        if piece == PHRASE_START:
            start = len(clean)
        elif piece == PHRASE_END:
            if start is not None:
                phrase, start, fresh = (start, len(clean)), None, True
        elif piece == SEG:
            # A [SEG] that stands for no words is placed behind the last word, not behind the blank.
            here = len(clean.rstrip())
            spans.append(phrase if phrase is not None and phrase[0] < phrase[1] else (here, here))
            fresh = False
        elif piece:
            added = re.sub(r"[ \t]+", " ", piece)
            clean += added.lstrip(" ") if not clean or clean.endswith(" ") else added
            phrase = phrase if fresh else None
    clean = clean.rstrip()
    spans = [(min(start, len(clean)), min(end, len(clean))) for start, end in spans]
    return clean, [(clean[start:end], (start, end)) for start, end in spans]


def parse_answer(
    tagged_text: str, tracks: Sequence[MaskTrack] | None = None, scores: Sequence[float] | None = None
) -> Answer:
    """
    An answer with its tags as words and objects.

    Args:
        tagged_text (`str`): The answer without its prompt and end mark.
        tracks (`list[MaskTrack]`, *optional*), scores (`list[float]`, *optional*): One for each [SEG].

    Raises:
        ValueError: if there are more or fewer of them than [SEG]s.
    """
    text, spans = parse_tagged_text(tagged_text)
    for name, values in (("mask tracks", tracks), ("scores", scores)):
        if values is not None and len(values) != len(spans):
            raise ValueError(f"The answer has {len(spans)} {SEG} but {len(values)} {name} were given.")
    objects = [
        GroundedPhrase(phrase, span, track, None if score is None else float(score))
        for (phrase, span), track, score in zip(
            spans, tracks or [None] * len(spans), scores or [None] * len(spans), strict=True
        )
    ]
    return Answer(text=text, tagged_text=tagged_text, objects=objects)


def to_tagged_text(text: str, objects: Sequence[GroundedPhrase]) -> str:
    """
    Write the tags back into a clean answer: `<p> The man </p> [SEG] pets a dog.`

    Args:
        text (`str`): The clean answer.
        objects (sequence of [`GroundedPhrase`]): In the order of their spans, which may repeat but not overlap. Blanks
            at the ends of a span stay outside the tags.
    """
    counts: dict[tuple[int, int], int] = {}
    last_start = last_end = 0
    for item in objects:
        start, end = item.span
        if not 0 <= start <= end <= len(text):
            raise ValueError(f"The span {(start, end)} lies outside an answer of {len(text)} characters.")
        if (start, end) != (last_start, last_end) and start < last_end:
            raise ValueError(f"The span {(start, end)} overlaps or precedes the span {(last_start, last_end)}.")
        last_start, last_end = start, end
        words = text[start:end].strip()
        start = text.index(words, start) if words else len(text[:start].rstrip())
        counts[start, start + len(words)] = counts.get((start, start + len(words)), 0) + 1
    pieces, position = [], 0
    for (start, end), count in counts.items():
        pieces.append(text[position:start])
        pieces.append(ground_phrase(text[start:end], count) if start < end else f" {SEG}" * count)
        position = end
    return ("".join(pieces) + text[position:]).strip()


# ---- messages ------------------------------------------------------------------------------------------------------

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
class ParsedMessage:
    """A message: its role and its texts in order, in which `None` stands for a region."""

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


def read_conversation(messages: Sequence[Mapping]) -> ParsedConversation:
    """Read the messages of one conversation; raises `ValueError` at the first thing that is wrong with them."""
    if not messages:
        raise ValueError("A conversation needs at least 1 message, got 0.")
    conversation = ParsedConversation()
    for index, message in enumerate(messages):
        _read_message(conversation, message, index)
    return conversation


def _read_message(conversation: ParsedConversation, message: Mapping, index: int) -> None:
    if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
        raise ValueError(f"Message {index} must be a dict with 'role' and 'content', got {message!r}.")
    role, content = message["role"], message["content"]
    if role not in CONTENT_TYPES:
        raise ValueError(f"Message {index} has the role {role!r}, expected one of {', '.join(CONTENT_TYPES)}.")
    if not isinstance(content, (str, list, tuple)):
        raise ValueError(
            f"Message {index}: content must be a string or a list of parts, got {type(content).__name__}."
        )
    turn = ParsedMessage(role)
    conversation.messages.append(turn)
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


def _show(conversation: ParsedConversation, part: Mapping, kind: str, where: str) -> None:
    if conversation.video is not None:
        raise ValueError(f"A second video or image comes in {where}; a conversation is about 1.")
    sources = [part[key] for key in ("path", kind) if key in part]
    if len(sources) != 1:
        raise ValueError(f"A {kind} part of {where} takes either 'path' or {kind!r}, got {len(sources)} of them.")
    video = SamaVideo.open(sources[0])
    if kind == "image" and not video.is_image:
        raise ValueError(f"The image part of {where} holds a video of {len(video)} frames; use the type 'video'.")
    conversation.video = video
