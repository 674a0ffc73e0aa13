"""Rounds of the conversations of LLaVA, ChatUniVi and Osprey: {"from": "human" or "gpt", "value": text}."""

import re
from collections.abc import Iterator

from ..records import DataError, require_field, require_type
from .source_reader import SourceReader


# The place of the image in a question. The renderer decides on it, so the newline next to the tag is removed too.
VISUAL_WORD = re.compile(r"<image>|<video>")
VISUAL_TAG = re.compile(r"(?:<image>|<video>)\n|\n(?:<image>|<video>)|<image>|<video>")
ODD_MESSAGE = "last messages without an answer"
EMPTY_ANSWER = "rounds with an empty answer"


def conversation_rounds(
    messages: list, reader: SourceReader, skip_first_answers: bool = False, keep_blanks: bool = False
) -> Iterator[tuple[str, str, int]]:
    """
    Yields question, answer and position of the question for each round. Both are stripped, and image tags are removed
    from the question. Newlines inside a text stay.

    Args:
        messages (`list`): The messages of the file. They are not modified.
        reader ([`SourceReader`]): Counts what is left out: a last question without an answer, and rounds whose answer
            is empty.
        skip_first_answers (`bool`): Whether answers before the first question are skipped (LLaVA).
        keep_blanks (`bool`): Whether the newline next to a tag and the blanks around a question stay (ChatUniVi).
    """
    start = 0
    roles = [
        require_field(require_type(message, dict, _at(i)), "from", str, at=_at(i))
        for i, message in enumerate(messages)
    ]
    while skip_first_answers and start < len(roles) and roles[start] == "gpt":
        start += 1
    if (len(messages) - start) % 2:
        reader.drop(ODD_MESSAGE)
    for position in range(start, len(messages) - 1, 2):
        for offset, expected in enumerate(("human", "gpt")):
            if roles[position + offset] != expected:
                found = roles[position + offset]
                raise DataError(f"is {found!r} where {expected!r} is expected", field=f"{_at(position + offset)}.from")
        question, answer = (require_field(messages[i], "value", str, at=_at(i)) for i in (position, position + 1))
        if not answer.strip():
            reader.drop(EMPTY_ANSWER)
            continue
        bare = VISUAL_WORD.sub("", question) if keep_blanks else without_visual_tags(question).strip()
        yield bare, answer.strip(), position


def without_visual_tags(question: str) -> str:
    return VISUAL_TAG.sub("", question)


def _at(position: int) -> str:
    return f"conversations[{position}]"
