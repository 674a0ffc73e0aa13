"""Text that the chat template wrote, read back: for the second step of the usual Transformers call, which gives the
processor what `apply_chat_template(tokenize=False)` returned."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .configuration_sama import (
    CONTEXT_TOKEN,
    DENSE_FRAME_TOKEN,
    REGION_POOLED_TOKEN,
    REGION_SHAPE_TOKEN,
    FrameTags,
)
from .messages_sama import question_parts, shortened
from .prompts_sama import (
    QFORMER_REGION,
    REGION_END,
    REGION_START,
    TurnText,
    VisualText,
    language_region,
)
from .templates_sama import NONCHARACTERS, TurnFormat, render_messages


# Stands for the text of a turn while the wrappers around it are looked up
QUESTION = "\ufdd0"


@dataclass(frozen=True)
class TextCall:
    """A text and what it is about: an image or a video, and the regions that it points at."""

    text: str
    image: Any = None
    video: Any = None
    regions: Sequence = ()

    def content(self, rendered: bool, tags: FrameTags) -> list[dict]:
        """The content of a user turn that shows the image or video and, unless it is rendered, asks the text."""
        sources = {"image": self.image, "video": self.video}
        shown = [{"type": kind, kind: source} for kind, source in sources.items() if source is not None]
        if rendered:
            return [*shown, {"type": "text", "text": self.text}]
        if tags.context in self.text:
            raise ValueError(
                f"The text has {self.text.count(tags.context)} {tags.context} tokens but was not written by this "
                "processor's chat template; write it with `apply_chat_template(messages, tokenize=False)`."
            )
        return [*shown, *question_parts(self.text, self.regions)]


class TextReader:
    """
    Reads what a chat template has written.

    Args:
        template (`str`): The chat template.
        special_tokens (`dict`): The tokenizer's special tokens, which templates name.
        tags ([`FrameTags`]): Those of the backbone.
        turn_format ([`TurnFormat`]): In which the text was written.
    """

    def __init__(self, template: str, special_tokens: Mapping[str, Any], tags: FrameTags, turn_format: TurnFormat):
        self.tags, self.turn_format = tags, turn_format
        messages = [{"role": "user", "content": QUESTION}]
        text = render_messages(messages, template, special_tokens, False, mark=NONCHARACTERS[-1]).text
        opening, _, end = text.partition(QUESTION)
        # The line in front of a question; what precedes it may be a system message, or nothing but the first token
        line = opening.strip().rpartition("\n")[2]
        self.question_start = line.removeprefix(str(special_tokens.get("bos_token") or ""))
        self.question_end = end.strip()

    def is_rendered(self, text: str) -> bool:
        """Whether the template wrote this text; `False` for a bare question."""
        marks = (self.question_start, self.question_end)
        return all(mark and mark in text for mark in marks)

    def questions(self, call: TextCall, visual: VisualText | None) -> list[TurnText]:
        """
        The questions about the video in a text.

        Args:
            call ([`TextCall`]): Whose text the template wrote.
            visual ([`VisualText`], *optional*): The visual that is given with the text.

        Raises:
            ValueError: if the text shows another number of frames than the visual has, has more or fewer context
                tokens for a question, or more or fewer regions than are given.
        """
        text, placeholder, region = call.text, self.tags.context, language_region(self.tags)
        regions = text.count(region)
        if regions != len(call.regions):
            raise ValueError(f"The text has {regions} regions but {len(call.regions)} were given in `regions`.")
        if visual is None:
            if placeholder in text:
                raise ValueError(
                    f"The text has {text.count(placeholder)} {placeholder} tokens but no video or image was given."
                )
            return []
        frames = visual.frame_block(self.turn_format.between_frames)
        shown = text.count(frames)
        if shown != 1:
            raise ValueError(
                f"The text does not show the given video or image: the frames take {visual.num_dense} times "
                f"{visual.tokens_per_frame} {placeholder} tokens, which it holds {shown} times; write it with "
                "`apply_chat_template(messages, tokenize=False)` for the same file."
            )
        asked = text.partition(frames)[2].replace(region, QFORMER_REGION)
        for run in re.findall(f"(?:{re.escape(placeholder)})+", asked):
            if len(run) != len(placeholder) * visual.num_context:
                raise ValueError(
                    f"The text has {len(run) // len(placeholder)} context tokens for a question, but this call makes "
                    f"{visual.num_context}; give both steps the same `num_frames`."
                )
        if not visual.num_context:
            return []
        pieces = asked.split(placeholder * visual.num_context)[1:]
        turns = []
        for piece in pieces:
            question = piece.partition(self.question_end)[0].strip()
            count = question.count(QFORMER_REGION)
            turns.append(TurnText("", [REGION_POOLED_TOKEN, REGION_SHAPE_TOKEN] * count, [question], count))
        found = sum(turn.num_regions for turn in turns)
        if not turns or found != regions:
            raise ValueError(f"The text has {regions} regions, of which {found} are in a question about the video.")
        return turns


def placeholder_kinds(text: str, frame_tags: FrameTags) -> list[int]:
    """The kind of each placeholder of a text, in reading order: between image tags a token of a frame, between region
    tags the two of a region, elsewhere a context token."""
    tags = "|".join(map(re.escape, (*frame_tags, REGION_START, REGION_END)))
    kinds: list[int] = []
    inside, seen = "", 0
    for tag in re.findall(tags, text):
        if tag in (frame_tags.start, REGION_START):
            inside, seen = tag, 0
        elif tag in (frame_tags.end, REGION_END):
            inside = ""
        elif inside == frame_tags.start:
            kinds.append(DENSE_FRAME_TOKEN)
        elif inside == REGION_START:
            kinds.append((REGION_POOLED_TOKEN, REGION_SHAPE_TOKEN)[seen % 2])
            seen += 1
        else:
            kinds.append(CONTEXT_TOKEN)
    return kinds


def text_calls(text, images, videos, regions) -> list[TextCall]:
    """
    The arguments of a processor's call with text, one [`TextCall`] for each text.

    Raises:
        ValueError: if the texts are not strings, or there are more or fewer images, videos or lists of regions.
    """
    if isinstance(text, str):
        return [TextCall(text, _alone(images), _alone(videos), () if regions is None else regions)]
    if not isinstance(text, (list, tuple)) or not text or not all(isinstance(one, str) for one in text):
        raise ValueError(f"text must be a string or a list of at least 1 string, got {shortened(text)}.")
    columns = [
        _for_each_text(name, values, len(text), default)
        for name, values, default in (("images", images, None), ("videos", videos, None), ("regions", regions, ()))
    ]
    shown = [[_alone(value) for value in values] for values in columns[:2]]
    return [TextCall(*row) for row in zip(text, *shown, columns[2], strict=True)]


def _alone(value):
    """One video or image, which other processors take in a list of one."""
    return value[0] if isinstance(value, (list, tuple)) and len(value) == 1 else value


def _for_each_text(name: str, values, number: int, default) -> list:
    if values is None or (isinstance(values, (list, tuple)) and not values):
        return [default] * number
    if not isinstance(values, (list, tuple)) or len(values) != number:
        count = len(values) if isinstance(values, (list, tuple)) else 1
        raise ValueError(f"{count} {name} were given for {number} texts; give one for each, or None.")
    return [default if value is None else value for value in values]
