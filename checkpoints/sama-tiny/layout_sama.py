"""The text side of SAMA: tags, turn layouts, chat wrappers, and grounded answers to and from plain text."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .configuration_sama import CONTEXT_TOKEN, DENSE_FRAME_TOKEN, REGION_POOLED_TOKEN, REGION_SHAPE_TOKEN
from .video_sama import GroundedPhrase


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
class Layout:
    """
    What stands around the context tokens of a turn.

    Attributes:
        before_context (`str`): Between the frame block and the context tokens (first turn only).
        after_context (`str`): Between the context tokens and the question.
    """

    before_context: str
    after_context: str


# The release trains each data source with its own newlines; `release` is what its plain inference writes.
LAYOUTS = {
    "default": Layout("\n", "\n"),
    "published": Layout("", "\n"),
    "refcoco": Layout("", ""),
    "llava": Layout("\n", "\n"),
    "referring_video": Layout("", "\n"),
    "chat_univi": Layout("", "\n"),
    "gcg": Layout("\n", "\n"),
    "osprey": Layout("\n", "\n"),
    "sama_conversation": Layout("", ""),
    "sama_description": Layout("", "\n"),
}


def check_layout(name: str) -> None:
    """Raise `ValueError` for an unknown layout."""
    if name not in LAYOUTS:
        raise ValueError(f"layout={name!r} is unknown, expected one of {', '.join(LAYOUTS)}.")


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


def render_user_turn(pieces: Sequence[str | None], visual: VisualText | None, shows: bool, layout: Layout) -> TurnText:
    """
    Write one user turn.

    Args:
        pieces (`list` of `str` or `None`): The turn's texts in order; `None` stands for a region.
        visual ([`VisualText`], *optional*): The visual of the conversation when this turn or an earlier one shows it.
        shows (`bool`): Whether it is this turn that shows the visual.
        layout ([`Layout`]): The newlines.
    """
    language = "".join(LANGUAGE_REGION if piece is None else piece for piece in pieces)
    question = "".join(QFORMER_REGION if piece is None else piece for piece in pieces).strip()
    types = [REGION_POOLED_TOKEN, REGION_SHAPE_TOKEN] * sum(piece is None for piece in pieces)
    if visual is None:
        return TurnText(language, types, question)
    language = IMAGE_CONTEXT * visual.num_context + layout.after_context + language
    types = [CONTEXT_TOKEN] * visual.num_context + types
    if shows:
        language = visual.frame_block() + layout.before_context + language
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
