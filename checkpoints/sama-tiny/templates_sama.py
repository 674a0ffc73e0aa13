"""What stands around the words of a conversation: newlines between the parts of a turn, and the chat template."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template


# Noncharacters of Unicode, which no text contains. While a chat template is applied, one of them marks where a control
# token that a user spelled is tokenized in two pieces.
NONCHARACTERS = tuple(chr(code) for code in range(0xFDD0, 0xFDF0))


@dataclass(frozen=True)
class TurnFormat:
    """
    What separates the context tokens of a turn from the text around them.

    Attributes:
        before_context (`str`): Between the frames and the context tokens (first turn only).
        after_context (`str`): Between the context tokens, or without them the frames, and the question.
        between_frames (`str`): Between two frames.
    """

    before_context: str
    after_context: str
    between_frames: str = "\n"


TURN_FORMATS = {
    "newlines": TurnFormat("\n", "\n"),
    "newline_after": TurnFormat("", "\n"),
    "no_newlines": TurnFormat("", ""),
    "newline_after_frames": TurnFormat("", "\n", between_frames=""),
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
    # Qwen2.5-VL's own, for conversations without a system message
    "qwen2_5_vl_chat": "{%- if messages[0]['role'] != 'system' -%}"
    "{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}{%- endif -%}"
    + _chat_template(_CHATML, "<|im_start|>assistant\\n", "<|im_end|>"),
    "internlm2_chat": _chat_template(_CHATML, "<|im_start|>assistant\\n", "<|im_end|>", bos="{{- bos_token -}}"),
    "phi3_chat": _chat_template(
        "'<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n'", "<|assistant|>\\n", "<|end|>"
    ),
    "leaked_chat": _chat_template(
        "'<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>'", "<|assistant|>\\n", "<|im_end|>"
    ),
}


@dataclass(frozen=True)
class RenderedText:
    """
    A chat template's text of a conversation.

    Attributes:
        text (`str`)
        answer_spans (`list[tuple[int, int]]`): The `(start, end)` characters of the answers, with their end marks;
            empty if the template does not mark them.
        cuts (`list[int]`): Where the text is tokenized in two pieces, see [`control_token_cuts`].
    """

    text: str
    answer_spans: list[tuple[int, int]]
    cuts: list[int]


def render_messages(
    messages: list[dict],
    template: str,
    special_tokens: Mapping[str, Any],
    add_generation_prompt: bool,
    mark: str = NONCHARACTERS[0],
) -> RenderedText:
    """Applies a chat template to messages whose content is a string, in which `mark` stands at the cuts."""
    rendered: Any = render_jinja_template(  # a pair, though it is annotated as a string
        conversations=[messages],
        chat_template=template,
        return_assistant_tokens_mask="generation" in template,
        add_generation_prompt=add_generation_prompt and messages[-1]["role"] != "assistant",
        **special_tokens,
    )
    (marked,), spans = rendered
    cuts, length = [], 0
    for piece in marked.split(mark)[:-1]:
        length += len(piece)
        cuts.append(length)
    spans = [tuple(end - marked.count(mark, 0, end) for end in span) for span in (spans[0] if spans else [])]
    return RenderedText(marked.replace(mark, ""), spans, cuts)


def resolve_template(template) -> str:
    """A chat template that is given by its name in [`CHAT_TEMPLATES`] or as jinja; raises `ValueError` otherwise."""
    found = CHAT_TEMPLATES.get(template, template) if isinstance(template, str) else template
    if not isinstance(found, str) or "{" not in found:
        names = ", ".join(CHAT_TEMPLATES)
        raise ValueError(f"chat_template={str(template)[:200]!r} is neither a jinja template nor one of {names}.")
    return found


def answer_end(template: str, special_tokens: Mapping[str, Any]) -> str:
    """What a chat template puts behind an answer, rendered once for each template: a streamer asks at every token."""
    frozen = ((name, token if isinstance(token, str) else tuple(token)) for name, token in special_tokens.items())
    return _rendered_end(template, tuple(frozen))


@cache
def _rendered_end(template: str, special_tokens: tuple[tuple[str, Any], ...]) -> str:
    turn = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    rendered = render_messages(turn, template, dict(special_tokens), False)
    return rendered.text[slice(*rendered.answer_spans[0])][1:] if rendered.answer_spans else ""


def open_answer(rendered: RenderedText, answer_suffix: str) -> RenderedText:
    """
    The text up to the words of its last answer, so that the model goes on with them.

    Raises:
        ValueError: if the conversation does not end with an answer that the template marks.
    """
    if not rendered.answer_spans or rendered.text[rendered.answer_spans[-1][1] :].strip():
        raise ValueError(
            "continue_final_message=True needs a conversation that ends with an answer, and a chat template whose "
            "{% generation %} block marks it."
        )
    start, end = rendered.answer_spans[-1]
    end -= len(answer_suffix)
    return RenderedText(rendered.text[:end], [*rendered.answer_spans[:-1], (start, end)], rendered.cuts)
