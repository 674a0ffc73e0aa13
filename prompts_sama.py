"""The text side of SAMA: tags, words that are never tags, turn formats and chat templates, and grounded answers to and
from plain text."""

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from .configuration_sama import (
    CONTEXT_TOKEN,
    DENSE_FRAME_TOKEN,
    REGION_CELL_TOKEN,
    REGION_POOLED_TOKEN,
    REGION_SHAPE_TOKEN,
    FrameTags,
)
from .objects_sama import GroundedPhrase, MaskTrack
from .templates_sama import NONCHARACTERS, TurnFormat


REGION_START, REGION_END = "<vp>", "</vp>"
PHRASE_START, PHRASE_END, SEG = "<p>", "</p>", "[SEG]"
# The two slots of a region in the Q-Former's text: pooled feature and shape feature.
POOLED_SLOT, SHAPE_SLOT = "<mask>", "<pos>"
# How a region is written in a question that is given as one string.
REGION_WORD = "<region>"

ANSWER_TAGS = (SEG, PHRASE_START, PHRASE_END)
LANGUAGE_TAGS = (*ANSWER_TAGS, REGION_START, REGION_END)  # and the frame tags of the backbone
QFORMER_TAGS = (POOLED_SLOT, SHAPE_SLOT, REGION_START, REGION_END)


# ---- words and tags -------------------------------------------------------------------------------------------------


class Tags(str):
    """Text that the processor writes itself: its control tokens are intended."""


QFORMER_REGION = Tags(f"{REGION_START}{POOLED_SLOT}{SHAPE_SLOT}{REGION_END}")


def language_region(tags: FrameTags) -> Tags:
    """A region in the language model's text."""
    return Tags(f"{REGION_START}{tags.context}{tags.context}{REGION_END}")


def split_tags(tagged_text: str) -> list[str]:
    """An answer as its words and its [`Tags`]."""
    pieces = re.split(f"({'|'.join(map(re.escape, ANSWER_TAGS))})", tagged_text)
    return [Tags(piece) if number % 2 else piece for number, piece in enumerate(pieces)]


def with_tags(phrase: str, num_objects: int) -> list[str]:
    """The words and [`Tags`] of a phrase with one [SEG] for each of its objects; without objects it is plain text,
    without words bare [SEG]s."""
    if num_objects == 0:
        return [phrase]
    if not phrase:
        return [Tags(" ".join([SEG] * num_objects))]
    return [Tags(f"{PHRASE_START} "), phrase, Tags(f" {PHRASE_END}" + f" {SEG}" * num_objects)]


def control_token_cuts(pieces: Sequence[str], tokenizer) -> list[int]:
    """
    Where words must be cut so that none of their characters become a control token. Cut there and tokenized piece by
    piece, the same characters give ordinary tokens.

    Args:
        pieces (`list[str]`): The pieces of a text; only [`Tags`] may give control tokens.
        tokenizer ([`PreTrainedTokenizerFast`]): Every added token counts as a control token.

    Returns:
        `list[int]`: Positions in the joined text, ascending.

    Raises:
        ValueError: for a control token of a single character, which no cut can take apart.
    """
    text, tags, start = "".join(pieces), [], 0
    for piece in pieces:
        if isinstance(piece, Tags):
            tags.append((start, start + len(piece)))
        start += len(piece)
    control = set(tokenizer.get_added_vocab().values())
    cuts: set[int] = set()
    while True:
        found = set()
        for first, last in pairwise([0, *sorted(cuts), len(text)]):
            for start, end in _control_tokens(text[first:last], tokenizer, control):
                start, end = first + start, first + end
                if any(low <= start and end <= high for low, high in tags):
                    continue
                if end - start < 2:
                    raise ValueError(f"{text[start:end]!r} is a control token of the tokenizer and cannot be a word.")
                found.add(start + 1)
        if not found:
            return sorted(cuts)
        cuts |= found


def _control_tokens(text: str, tokenizer, control: set[int]) -> list[tuple[int, int]]:
    """The `(start, end)` characters of the control tokens of a text."""
    if not text:
        return []
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if control.isdisjoint(ids):
        return []
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    unknown = tokenizer.unk_token_id  # stands for words that the vocabulary lacks as well
    return [
        (start, end)
        for token, (start, end) in zip(ids, offsets, strict=True)
        if token in control and (token != unknown or text[start:end] == tokenizer.unk_token)
    ]


def cut_words(pieces: Sequence[str], tokenizer) -> list[str]:
    """The joined pieces, cut at [`control_token_cuts`]."""
    text = "".join(pieces)
    return [text[start:end] for start, end in pairwise([0, *control_token_cuts(pieces, tokenizer), len(text)])]


def unused_mark(texts: Sequence[str]) -> str:
    """One of [`NONCHARACTERS`] that is in none of the texts."""
    for mark in NONCHARACTERS:
        if not any(mark in text for text in texts):
            return mark
    raise ValueError(f"The text contains all {len(NONCHARACTERS)} noncharacters from U+FDD0 to U+FDEF.")


# ---- turns ----------------------------------------------------------------------------------------------------------


def without_region_word(text: str) -> str:
    """A text in which `<region>`, which messages refuse in text, is written `< region>`."""
    return text.replace(REGION_WORD, f"{REGION_WORD[0]} {REGION_WORD[1:]}")


@dataclass(frozen=True)
class VisualText:
    """
    What the text must know about the video or image of a conversation.

    Attributes:
        is_image (`bool`): Whether it is a still.
        num_context (`int`): Context frames, or tiles of a still.
        num_dense (`int`): Frames that give all their tokens; all tiles of a still.
        tokens_per_frame (`int`): Tokens of one such frame.
        tags ([`FrameTags`]): Those of the backbone.
    """

    is_image: bool
    num_context: int
    num_dense: int
    tokens_per_frame: int
    tags: FrameTags

    def frame_block(self, between_frames: str) -> str:
        """The dense frames one by one, or all tiles of a still in a single pair of tags."""
        start, context, end = self.tags
        frame = context * self.tokens_per_frame
        if self.is_image:
            return f"{start}{frame * self.num_dense}{end}"
        return between_frames.join([f"{start}{frame}{end}"] * self.num_dense)


@dataclass(frozen=True)
class TurnText:
    """One user turn: its text, the kind of each placeholder in reading order, the Q-Former's question as the pieces
    that are tokenized apart, and how many regions the turn points at."""

    text: str
    placeholder_types: list[int]
    question: list[str]
    num_regions: int


@dataclass(frozen=True)
class TurnWriter:
    """
    Writes turns so that no words of theirs become control tokens.

    Attributes:
        tokenizer, qformer_tokenizer ([`PreTrainedTokenizerFast`]): Whose control tokens count.
        turn_format ([`TurnFormat`]): The newlines around the context tokens.
        tags ([`FrameTags`]): Those of the backbone.
        mark (`str`): What is written at the cuts, see [`control_token_cuts`].
        region_cells (`Sequence[int]`, *optional*): For a model that reads regions as copies of frame tokens: how many
            tokens each region of the conversation covers.
    """

    tokenizer: Any
    qformer_tokenizer: Any
    turn_format: TurnFormat
    tags: FrameTags
    mark: str
    region_cells: Sequence[int] | None = None

    def text(self, pieces: Sequence[str | None]) -> str:
        """The text of a message in the language model, with its cuts marked; `None` stands for a region."""
        numbers = itertools.count(1)
        words = [self.region(numbers) if piece is None else piece for piece in pieces]
        return self.mark.join(cut_words(words, self.tokenizer))

    def region(self, numbers: Iterator[int]) -> str:
        """What stands in a question where it points at a region."""
        return language_region(self.tags) if self.region_cells is None else f"region{next(numbers)}"

    def listed_regions(self) -> str:
        """The regions of a still as Sa2VA lists them in front of the question."""
        if not self.region_cells:
            return ""
        cells = [f"{REGION_START}{self.tags.context * count}{REGION_END}" for count in self.region_cells]
        listed = ", ".join(f"region{number}{one}" for number, one in enumerate(cells, 1))
        return f"\nThere are {len(cells)} part regions in the picture: {listed}."

    def question(self, pieces: Sequence[str | None]) -> list[str]:
        """A turn as the temporal Q-Former reads it; empty for a model that has none."""
        if self.qformer_tokenizer is None:
            return []
        question = cut_words([QFORMER_REGION if piece is None else piece for piece in pieces], self.qformer_tokenizer)
        question[0] = question[0].lstrip()
        question[-1] = question[-1].rstrip()
        return question

    def user_turn(self, pieces: Sequence[str | None], visual: VisualText | None, shows: bool) -> TurnText:
        """
        Write one user turn.

        Args:
            pieces (`list` of `str` or `None`): The turn's texts in order; `None` stands for a region.
            visual ([`VisualText`], *optional*): The visual of the conversation when this turn or an earlier one shows
                it.
            shows (`bool`): Whether it is this turn that shows the visual.
        """
        language = self.text(pieces)
        question, num_regions = self.question(pieces), sum(piece is None for piece in pieces)
        types = [REGION_POOLED_TOKEN, REGION_SHAPE_TOKEN] * (num_regions if self.region_cells is None else 0)
        if visual is None:
            return TurnText(language, types, question, num_regions)
        if visual.num_context or shows:
            language = self.tags.context * visual.num_context + self.turn_format.after_context + language
        types = [CONTEXT_TOKEN] * visual.num_context + types
        if shows:
            frames = visual.frame_block(self.turn_format.between_frames) + self.listed_regions()
            language = frames + self.turn_format.before_context + language
            types = [REGION_CELL_TOKEN] * sum(self.region_cells or ()) + types
            types = [DENSE_FRAME_TOKEN] * (visual.num_dense * visual.tokens_per_frame) + types
        return TurnText(language, types, question, num_regions)


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
    """A phrase with its tags, see [`with_tags`]."""
    return "".join(with_tags(text, num_objects))


def decode_answer(token_ids: Sequence[int], tokenizer) -> str:
    """
    Text of an answer. Control tokens other than the tags are left out. A tag that the model spells with ordinary
    tokens is not a tag and is written without its brackets: the model's states are found by the tag's own token.
    """
    tags = dict(zip(tokenizer.convert_tokens_to_ids(list(ANSWER_TAGS)), ANSWER_TAGS, strict=True))
    control = set(tokenizer.all_special_ids) - set(tags)
    text, before, words = "", None, []
    for token_id in [*(int(token_id) for token_id in token_ids), None]:
        if token_id is not None and token_id not in tags:
            words += [] if token_id in control else [token_id]
            continue
        # With the tag in front of the words: some tokenizers drop a blank in front of the first one
        spelled = tokenizer.decode(
            words if before is None else [before, *words],
            skip_special_tokens=False,
            clean_up_tokenization_spaces=False,
            spaces_between_special_tokens=False,
        ).removeprefix(tags.get(before, ""))
        for tag in ANSWER_TAGS:
            spelled = spelled.replace(tag, tag.strip("[]<>"))
        text, before, words = text + spelled + tags.get(token_id, ""), token_id, []
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
            start, fresh = None, False  # a phrase that is still open cannot end behind it: spans follow one another
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
    pieces, position = [], 0
    for (start, end), count in objects_by_span(text, objects).items():
        pieces.append(text[position:start])
        pieces.append(ground_phrase(text[start:end], count) if start < end else f" {SEG}" * count)
        position = end
    return ("".join(pieces) + text[position:]).strip()


def answer_parts(text: str, objects: Sequence[GroundedPhrase]) -> list[dict]:
    """A clean answer as the content of a message: what [`to_tagged_text`] writes, but words that spell a tag stay
    words."""
    parts, position = [], 0
    for (start, end), count in objects_by_span(text, objects).items():
        before = text[position:start] + (" " if start == end else "")
        parts.append({"type": "text", "text": before if parts else before.lstrip()})
        parts.append({"type": "grounded", "text": text[start:end], "objects": list(range(count))})
        position = end
    rest = text[position:].rstrip()
    return [*parts, {"type": "text", "text": rest if parts else rest.lstrip()}]


def objects_by_span(text: str, objects: Sequence[GroundedPhrase]) -> dict[tuple[int, int], int]:
    """The characters of each phrase without the blanks at its ends, to the number of its objects. A phrase without
    words stands behind the word before it. Raises `ValueError` for spans that overlap or lie outside the text."""
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
    return counts
