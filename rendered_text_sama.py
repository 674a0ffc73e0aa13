"""Text that the chat template wrote, read back, for `processor(text=..., videos=...)`: the second of the two steps in
which other models of the library are called."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from .configuration_sama import CONTEXT_TOKEN, DENSE_FRAME_TOKEN, REGION_POOLED_TOKEN, REGION_SHAPE_TOKEN
from .prompts_sama import (
    IMAGE_CONTEXT,
    IMAGE_END,
    IMAGE_START,
    LANGUAGE_REGION,
    NONCHARACTERS,
    QFORMER_REGION,
    REGION_END,
    REGION_START,
    TurnText,
    VisualText,
    render_messages,
)


# Stands for the text of a turn while the wrappers around it are looked up
QUESTION = "\ufdd0"


class TextReader:
    """
    Reads what a chat template has written.

    Args:
        template (`str`): The chat template.
        special_tokens (`dict`): The tokenizer's special tokens, which templates name.
    """

    def __init__(self, template: str, special_tokens: Mapping[str, Any]):
        messages = [{"role": "user", "content": QUESTION}]
        text = render_messages(messages, template, special_tokens, False, mark=NONCHARACTERS[-1]).text
        opening, end = text.split(QUESTION)
        # The line in front of a question; what precedes it may be a text of the system
        self.question_start = opening.strip().rpartition("\n")[2]
        self.question_end = end.strip()

    def wrote(self, text: str) -> bool:
        """Whether the template wrote this text; `False` for a bare question."""
        return bool(self.question_start) and self.question_start in text and self.question_end in text

    def questions(self, text: str, visual: VisualText | None) -> list[TurnText]:
        """
        The questions about the video in a text.

        Args:
            text (`str`): What the template wrote.
            visual ([`VisualText`], *optional*): The visual that is given with the text.

        Raises:
            ValueError: if the text shows another number of frames than the visual has.
        """
        regions = text.count(LANGUAGE_REGION)
        if visual is None:
            if IMAGE_CONTEXT in text:
                raise ValueError(
                    f"The text has {text.count(IMAGE_CONTEXT)} {IMAGE_CONTEXT} tokens but no video or image was given."
                )
            return []
        context = IMAGE_CONTEXT * visual.num_context
        shown = text.count(visual.frame_block())
        if shown != 1:
            raise ValueError(
                f"The text does not show the given video or image: the frames take {visual.num_dense} times "
                f"{visual.tokens_per_frame} {IMAGE_CONTEXT} tokens, which it holds {shown} times; write it with "
                "`apply_chat_template(messages, tokenize=False)` for the same file."
            )
        _, _, asked = text.partition(visual.frame_block())
        pieces = asked.replace(LANGUAGE_REGION, QFORMER_REGION).split(context)[1:]
        turns = []
        for piece in pieces:
            question = piece.partition(self.question_end)[0].strip()
            count = question.count(QFORMER_REGION)
            turns.append(TurnText("", [REGION_POOLED_TOKEN, REGION_SHAPE_TOKEN] * count, [question]))
        found = sum(turn.num_regions for turn in turns)
        if not turns or found != regions:
            raise ValueError(f"The text has {regions} regions, of which {found} are in a question about the video.")
        return turns


def placeholder_kinds(text: str) -> list[int]:
    """The kind of each placeholder of a text, in reading order: between image tags a token of a frame, between region
    tags the two of a region, elsewhere a context token."""
    tags = "|".join((IMAGE_START, IMAGE_END, REGION_START, REGION_END, IMAGE_CONTEXT))
    kinds: list[int] = []
    inside, seen = "", 0
    for tag in re.findall(tags, text):
        if tag in (IMAGE_START, REGION_START):
            inside, seen = tag, 0
        elif tag in (IMAGE_END, REGION_END):
            inside = ""
        elif inside == IMAGE_START:
            kinds.append(DENSE_FRAME_TOKEN)
        elif inside == REGION_START:
            kinds.append((REGION_POOLED_TOKEN, REGION_SHAPE_TOKEN)[seen % 2])
            seen += 1
        else:
            kinds.append(CONTEXT_TOKEN)
    return kinds


def each_one(name: str, values, number: int | None) -> list:
    """
    The videos or images of `number` texts, one for each; `None` stands for one text that is not in a list.

    Raises:
        ValueError: if there are more or fewer.
    """
    if values is None:
        return [None] * (number or 1)
    if number is None:
        # One video for one text: itself, or alone in a list as other processors take it
        alone = isinstance(values, (list, tuple)) and len(values) == 1
        return [values[0] if alone else values]
    if not isinstance(values, (list, tuple)) or len(values) != number:
        count = len(values) if isinstance(values, Sequence) else 1
        raise ValueError(f"{count} {name} were given for {number} texts; give one for each, or None.")
    return [value[0] if isinstance(value, (list, tuple)) and len(value) == 1 else value for value in values]
