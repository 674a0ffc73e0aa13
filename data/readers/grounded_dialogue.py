"""The dialogues of SAMA-239K and SAMA-Bench: `<mask>` in questions, `<p> phrase </p> [SEG]` in answers."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ..records import DataError, require_field, require_type
from ..wording import MASK_REQUEST_MARK
from .conversations import EMPTY_ANSWER, ODD_MESSAGE, without_visual_tags
from .source_reader import SourceReader, assistant, grounded, region, text, user


MASK, SEG = "<mask>", "[SEG]"
OLDER_TAGS = {"<seg>": SEG, "<g_s>": "<p>", "<g_e>": "</p>"}
# A phrase with its [SEG]s, or a [SEG] alone. The phrase contains no phrase tag, so that a phrase without [SEG] is not
# joined with the next one.
GROUNDED = re.compile(r"<p>((?:(?!</?p>).)*)</p>((?:\s*\[SEG\])+)|\[SEG\]", re.DOTALL)
# Only from the first of several blanks on: otherwise the time would grow with the square of their number
UNUSED_TAG = re.compile(r"<p>\s*|(?<!\s)\s*</p>")


@dataclass(frozen=True)
class Round:
    """
    Attributes:
        question, answer (`dict`): Messages.
        regions (`list[str]`): Objects of the `<mask>` tags of the question.
        targets (`list[str]`): Objects of the [SEG]s of the answer; "3+4" is the union of two.
    """

    question: dict
    answer: dict
    regions: list[str]
    targets: list[str]


def grounded_rounds(reader: SourceReader, item: Mapping, keys: list) -> Iterator[Round | None]:
    """
    Yields the rounds of the conversation about a video. A round whose messages are in the wrong order, or whose tags
    and masks differ in number, is counted, and `None` takes its place.

    Args:
        reader ([`SourceReader`]): Counts what is left out.
        item (`dict`): Has `conversation`, `obj_masks` and `groundtruth`. It is not modified.
        keys (`list`): Mask key of each object of `anno_map`, or `None`.
    """
    messages = require_field(item, "conversation", list)
    count = len(messages) // 2
    if len(messages) % 2:
        reader.drop(ODD_MESSAGE)
    masks = {field: require_field(item, field, list) for field in ("obj_masks", "groundtruth")}
    for field, entries in masks.items():
        if len(entries) < count:
            raise DataError(f"has {len(entries)} entries for {count} rounds", field=field)
    for number in range(count):
        asked, answered = messages[2 * number : 2 * number + 2]
        regions = _objects([masks["obj_masks"][number]], keys, f"obj_masks[{number}]")[0]
        targets = _objects(masks["groundtruth"][number], keys, f"groundtruth[{number}]")
        yield _round(reader, (asked, answered), number, regions, targets)


def _objects(entries: list, keys: list, field: str) -> list[list[str]]:
    """The mask keys of each entry as strings, checked against anno_map."""
    known, found = {key for key in keys if key is not None}, []
    for position, entry in enumerate(require_type(entries, list, field)):
        found.append(
            [str(require_type(key, (int, str), field)) for key in require_type(entry, list, f"{field}[{position}]")]
        )
        unknown = [key for key in found[-1] if key not in known]
        if unknown:
            raise DataError(f"names the mask {unknown[0]}, which anno_map does not have", field=field)
    return found


def _round(
    reader: SourceReader, messages: tuple, number: int, regions: list[str], targets: list[list[str]]
) -> Round | None:
    at = [f"conversation[{2 * number + offset}]" for offset in (0, 1)]
    if [require_field(message, "from", str, at=where) for message, where in zip(messages, at, strict=True)] != [
        "human",
        "gpt",
    ]:
        reader.drop("rounds whose messages are not human, gpt")
        return None
    question, answer = (
        require_field(message, "value", str, at=where) for message, where in zip(messages, at, strict=True)
    )
    question, answer = without_visual_tags(question).strip(), answer.strip()
    for older, tag in OLDER_TAGS.items():
        answer = answer.replace(older, tag)
    # An object without masks has an empty entry and no [SEG]
    names = ["+".join(dict.fromkeys(keys)) for keys in targets if keys]
    if question.count(MASK) != len(regions):
        reader.drop("rounds whose <mask> and obj_masks differ in number")
    elif answer.count(SEG) != len(names):
        reader.drop("rounds whose [SEG] and groundtruth differ in number")
    elif not answer:
        reader.drop(EMPTY_ANSWER)
    else:
        info = {"round": number}
        if "question_id" in messages[0]:
            info["question_id"] = messages[0]["question_id"]
        wants = {"wants_masks": True} if names and MASK_REQUEST_MARK not in question else {}
        asked = user(_question_parts(question, regions), **wants, info=info)
        return Round(asked, assistant(answer_parts(answer, names)), regions, names)
    return None


def _question_parts(question: str, regions: list[str]) -> list[dict]:
    first, *rest = question.split(MASK)
    parts = [text(first)]
    for name, following in zip(regions, rest, strict=True):
        parts += [region(name), text(following)]
    return [part for part in parts if part["type"] != "text" or part["text"]]


def answer_parts(answer: str, names: list[str]) -> list[dict]:
    """
    Text and grounded parts of a tagged answer; each [SEG] takes the next name. A phrase without [SEG] becomes text.
    The published training counts phrases and masks separately, which pairs all later ones wrongly.
    """
    parts, position, remaining = [], 0, iter(names)
    for match in GROUNDED.finditer(answer):
        parts.append(text(UNUSED_TAG.sub("", answer[position : match.start()])))
        count = (match[2] or SEG).count(SEG)
        parts.append(grounded((match[1] or "").strip(), [next(remaining) for _ in range(count)]))
        position = match.end()
    parts.append(text(UNUSED_TAG.sub("", answer[position:])))
    return [part for part in parts if part["type"] != "text" or part["text"]]
