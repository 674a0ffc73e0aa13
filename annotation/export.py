"""
Stage 8: turns and descriptions as records, and records as tagged text again.

A tag of a question becomes a region, a wrapped phrase of an answer a grounded part. What a record says is compared
with what the model wrote before it is kept.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..data.records import DataError, validate_record
from .checks import CheckedTurn, CheckLimits, VideoFacts, check_turn, evidence_for
from .errors import AnnotationError
from .problems import Problem
from .scenes import Scene
from .schema import Statement, Turn
from .tags import TaggedText, read_answer, read_question, write_answer, write_question


DESCRIBE_TEMPLATES = "describe_region_video"


def turn_messages(turn: CheckedTurn, names: Sequence[str]) -> list[dict[str, Any]]:
    """A turn as the two messages of a record. `names` are those of the objects, in the order of their numbers."""
    question: list[dict[str, Any]] = []
    for text, numbers in turn.question.parts:
        question += [{"type": "text", "text": text}] if text else []
        question += [{"type": "region", "object": names[number - 1]} for number in numbers]
    answer = [
        {"type": "grounded", "text": text, "objects": [names[number - 1] for number in numbers]}
        if numbers
        else {"type": "text", "text": text}
        for text, numbers in turn.answer.parts
    ]
    info = {"kind": turn.turn.kind}
    return [
        # As in SAMA-239K: the question does not ask for masks, the answer has them
        {"role": "user", "content": question, "wants_masks": True},
        {"role": "assistant", "content": answer, "info": info},
    ]


def description_messages(number: int, statements: Sequence[Statement], names: Sequence[str]) -> list[dict[str, Any]]:
    """The description of an object as the two messages of a record; its question is drawn by the renderer."""
    region = {"type": "region", "object": names[number - 1]}
    text = " ".join(statement.text.strip() for statement in statements)
    return [
        {"role": "user", "content": [region], "templates": DESCRIBE_TEMPLATES},
        {"role": "assistant", "content": [{"type": "text", "text": text}]},
    ]


def make_record(
    scene: Scene, record_id: str, messages: list[dict[str, Any]], all_objects: bool = False
) -> dict[str, Any]:
    """A record about the video of a scene with the objects that its messages name, checked. `all_objects`: for the
    review, with all objects, and beside the record under `expressions` what the source says about them (object name to
    a list of texts, as `--masks` reads it): words of the source are no sure leak of an edited text, either."""
    used = {
        name
        for message in messages
        for part in message["content"]
        for name in (*part.get("objects", ()), *((part["object"],) if "object" in part else ()))
    }
    objects = {one.name: {"masks": list(one.masks)} for one in scene.objects if all_objects or one.name in used}
    record = {"id": record_id, "source": scene.source, "video": scene.visual, "objects": objects, "messages": messages}
    record = validate_record(record)
    expressions = {one.name: list(one.expressions) for one in scene.objects if one.expressions}
    return {**record, "expressions": expressions} if all_objects and expressions else record


def tagged_text(message: Mapping[str, Any], names: Sequence[str]) -> str:
    """A message of a record as the text that a model writes."""
    parts = []
    for part in message["content"]:
        if part["type"] == "region":
            parts.append(("", (names.index(part["object"]) + 1,)))
        else:
            parts.append((part["text"], tuple(names.index(name) + 1 for name in part.get("objects", ()))))
    return write_question(parts) if message["role"] == "user" else write_answer(parts)


def check_round_trip(turn: CheckedTurn, names: Sequence[str]) -> None:
    """
    Raises [`AnnotationError`] unless the messages of a turn, written as tagged text and read again, are the turn.

    A difference is a defect of this code and not of the reply, whose tags have been checked.
    """
    question, answer = turn_messages(turn, names)
    again = (
        read_question(tagged_text(question, names), len(names)),
        read_answer(tagged_text(answer, names), len(names)),
    )
    if [_joined(one) for one in again] != [_joined(turn.question), _joined(turn.answer)]:
        raise AnnotationError(f"The turn {turn.turn.question!r} differs after a round trip through its record.")


def _joined(text: TaggedText) -> list[tuple[str, tuple[int, ...]]]:
    """The parts with adjacent plain texts as one."""
    found: list[tuple[str, tuple[int, ...]]] = []
    for piece, numbers in text.parts:
        if found and not numbers and not found[-1][1]:
            piece = found.pop()[0] + piece
        found.append((piece, numbers))
    return found


def turn_record(
    record: Mapping[str, Any],
    names: Sequence[str],
    question: str,
    answer: str,
    limits: CheckLimits | None = None,
    colors: Sequence[str] = (),
    expressions: Mapping[str, Sequence[str]] | None = None,
) -> tuple[dict[str, Any] | None, list[Problem]]:
    """
    A record with another dialogue about the same video: what a person edited in the review.

    Args:
        record (`dict`): A record with one question and its answer.
        names (sequence of `str`): Names of all objects of the video in the order of their numbers, as in the review
            item; tags may only name objects that the record has.
        question, answer (`str`): Tagged texts.
        limits ([`CheckLimits`], *optional*): Lengths.
        colors (sequence of `str`): Names of the colours that were drawn.
        expressions (`dict[str, list[str]]`, *optional*): By name of an object, what the source says about it.

    Returns:
        The record, or `None` and the rules that the texts surely break. What a person has to decide is no obstacle: a
        person wrote the texts.
    """
    facts = record_facts(record, names, None, colors, expressions or {})
    visible = facts.visible
    tagged = {*read_question(question, len(names)).objects, *read_answer(answer, len(names)).objects}
    absent = sorted(number for number in tagged if not visible[number - 1])
    if absent:
        return None, [Problem("object_missing", "answer", f"the record has no masks of obj{absent[0]}")]
    kind = str(record["messages"][-1].get("info", {}).get("kind", "edited")) if record["messages"] else "edited"
    turn = Turn(turn=1, question=question, answer=answer, kind=kind, evidence=evidence_for(sorted(tagged), facts))
    checked = check_turn(turn, facts, limits or CheckLimits(), "turns[0]")
    broken = [problem for problem in checked.problems if not problem.review]
    if broken:
        return None, broken
    check_round_trip(checked, names)
    used = {names[number - 1] for number in checked.objects}
    objects = {name: item for name, item in record["objects"].items() if name in used}
    try:
        made = validate_record({**record, "objects": objects, "messages": turn_messages(checked, names)})
    except DataError as error:
        return None, [Problem("schema", error.field or "", error.problem)]
    return made, []


def record_facts(
    record: Mapping[str, Any],
    names: Sequence[str],
    shown: Sequence[int] | None,
    colors: Sequence[str],
    expressions: Mapping[str, Sequence[str]],
) -> VideoFacts:
    """What the checks need to know of the video of a record. `names`: of all objects in the order of their numbers,
    also of those that the record does not have; `shown`: numbers of frames, `None` for all."""
    tracks = [record["objects"].get(name, {"masks": []})["masks"] for name in names]
    visible = tuple(frozenset(i for i, code in enumerate(track) if code is not None) for track in tracks)
    num_frames = max([len(track) for track in tracks], default=0)
    shown = tuple(range(num_frames) if shown is None else shown)
    expressions_by_object = tuple(tuple(expressions.get(name, ())) for name in names)
    return VideoFacts(num_frames, shown, visible, expressions_by_object, tuple(colors))


def take_expressions(line: Any) -> dict[str, list[str]]:
    """Takes what the source says about the objects out of a line of `review_records.jsonl`, and so leaves the record;
    `DataError` if it has another form. Lines of earlier versions have none."""
    expressions = line.pop("expressions", {}) if isinstance(line, dict) else {}
    if not isinstance(expressions, dict) or not all(
        isinstance(texts, list) and all(isinstance(text, str) for text in texts) for texts in expressions.values()
    ):
        raise DataError("is not a list of texts for each object", field="expressions")
    return expressions


def item_hash(text: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    """A hash of what a reviewer sees: a decision about another text, other masks, or the same text about another
    object must not count. The order of the objects is that of their labels."""
    shown = [text, record["video"], record["objects"], list(record["objects"]), record["messages"]]
    content = json.dumps(shown, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]
