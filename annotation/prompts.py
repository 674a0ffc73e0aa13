"""
Every sentence that a model is sent. A changed sentence changes the keys of the requests that contain it, so that these
are asked again and all others are found in the store.
"""

import json
from collections.abc import Sequence
from typing import Any

from .problems import Problem
from .render import Rendering, image_part
from .schema import Statement
from .tags import tag


Messages = list[dict[str, Any]]

PICTURES = (
    "You see frames of one video in the order of time. Each object of the list below is outlined and carries its "
    "number; outlines and numbers were drawn for you and are not part of the video. After the frames follows a "
    "close-up of each object without drawings."
)
NEVER = (
    "Never mention outlines, boxes, labels, numbers, their colours, or the word object with a number: your text is "
    "read by people who see the video without drawings. Say only what can be seen."
)
DESCRIBE = (
    "You describe objects of videos for a data set. For each object of the list, write short statements in plain "
    "English: what it is and looks like, what it does, how it interacts with others, where it is and what role it "
    "plays. One fact in each statement, with the numbers of the first and the last frame in which that fact can be "
    "seen. Describe every object of the list."
)
CONVERSE = (
    "You write dialogues about objects of videos for a data set. A question asks about one or two objects of the "
    "list; directly behind its noun stands the tag of the object: What is the dog <obj1> doing? In the answer, each "
    "object that is mentioned is a phrase followed by its tag, once: <p> The dog </p> <obj1> chases <p> a ball </p> "
    "<obj2>. "
    "Bring in other objects of the list where they belong. Vary the kinds of questions: appearance, action, "
    "interaction, position, role. No question may be answerable without the video. Each turn lists its evidence: for "
    "each tagged object the first and the last frame that show what is said. Number the turns from 1."
)
VERIFY = (
    "You check claims about objects of a video. You see frames in the order of time and a close-up of each object. "
    "For each claim of the list answer true if the frames show it, false if they show something else, unseen if they "
    "do not show whether it is so. Judge strictly: a claim that is partly wrong is false."
)
BLIND = (
    "Answer the questions about a video that you cannot see. Give the most likely answer to each, in one sentence. "
    "Objects that a question points at are called [1], [2] and so on."
)
JUDGE = (
    "For each question you get a reference answer and another answer. Say whether the other answer gives the same "
    "information as the reference in what the question asks for. Wording does not matter. An answer that says that it "
    "cannot be known is not the same."
)
REFINE = (
    "Some of your reply breaks the rules. Write {what} again, in the same JSON format, with these mistakes corrected "
    "and nothing else changed:\n{problems}"
)


def _system(instruction: str, example: Any) -> dict[str, Any]:
    form = f"Reply with one JSON object of this form and nothing else:\n{json.dumps(example)}"
    return {"role": "system", "content": f"{instruction}\n\n{form}"}


def _text(content: str) -> dict[str, Any]:
    return {"type": "text", "text": content}


def one_line(text: str) -> str:
    """A text without line breaks, for lists with one entry a line: a text of two lines could add an entry of its own,
    such as a claim that is then called true."""
    return " ".join(text.split())


def object_list(expressions: Sequence[Sequence[str]]) -> str:
    """The objects with up to three of the source's expressions, quoted: they are data, not instructions."""
    lines = []
    for number, texts in enumerate(expressions, start=1):
        told = "; ".join(json.dumps(text, ensure_ascii=False) for text in texts[:3])
        lines.append(f"{tag(number)}{f' is called {told}' if told else ''}")
    return "Objects:\n" + "\n".join(lines)


def pictures(rendering: Rendering, drawn: bool) -> list[dict[str, Any]]:
    """The frames with their numbers and times, then the close-ups, as parts of a message."""
    parts = []
    frames = rendering.drawn if drawn else rendering.plain
    for number, seconds, picture in zip(rendering.shown, rendering.seconds, frames, strict=True):
        parts += [_text(f"Frame {number}, {seconds:.2f} s:"), image_part(picture)]
    for number, (frame, picture) in enumerate(zip(rendering.crop_frames, rendering.crops, strict=True), start=1):
        parts += [_text(f"Close-up of {tag(number)} in frame {frame}:"), image_part(picture)]
    return parts


def describe(rendering: Rendering, expressions: Sequence[Sequence[str]]) -> Messages:
    """The request for a description of each object."""
    example = {"objects": [{"object": "obj1", "statements": [{"text": "It is a brown dog.", "first": 0, "last": 40}]}]}
    user = [_text(f"{PICTURES}\n\n{object_list(expressions)}"), *pictures(rendering, drawn=True)]
    return [_system(f"{DESCRIBE}\n{NEVER}", example), {"role": "user", "content": user}]


def converse(
    rendering: Rendering,
    expressions: Sequence[Sequence[str]],
    statements: dict[int, Sequence[Statement]],
    turns: tuple[int, int],
) -> Messages:
    """The request for a dialogue of `turns` (least and most) turns; `statements` are what is known of the objects."""
    evidence = [{"object": "obj1", "first": 0, "last": 40}, {"object": "obj2", "first": 8, "last": 40}]
    answer = "<p> The dog </p> <obj1> chases <p> a ball </p> <obj2>."
    turn = {"turn": 1, "question": "What is the dog <obj1> doing?", "answer": answer, "kind": "action"}
    known = [
        f"{tag(number)}: {one_line(statement.text)} (frames {statement.first} to {statement.last})"
        for number, found in statements.items()
        for statement in found
    ]
    text = f"{PICTURES}\n\n{object_list(expressions)}\n\nWhat is known of them:\n" + "\n".join(known)
    text += f"\n\nWrite {turns[0]} to {turns[1]} turns."
    user = [_text(text), *pictures(rendering, drawn=True)]
    system = _system(f"{CONVERSE}\n{NEVER}", {"turns": [turn | {"evidence": evidence}]})
    return [system, {"role": "user", "content": user}]


def verify(rendering: Rendering, claims: Sequence[tuple[Sequence[int], str]]) -> Messages:
    """The request to check claims; each comes with the objects that it is about."""
    lines = [
        f"{number}. {'/'.join(map(tag, objects))}: {one_line(claim)}"
        for number, (objects, claim) in enumerate(claims, start=1)
    ]
    user = [*pictures(rendering, drawn=False), _text("Claims:\n" + "\n".join(lines))]
    system = _system(VERIFY, {"verdicts": [{"claim": 1, "verdict": "true"}, {"claim": 2, "verdict": "unseen"}]})
    return [system, {"role": "user", "content": user}]


def blind(questions: Sequence[str]) -> Messages:
    """The request to answer questions without the video."""
    lines = "\n".join(f"{number}. {one_line(question)}" for number, question in enumerate(questions, start=1))
    system = _system(BLIND, {"answers": [{"question": 1, "answer": "It is running."}]})
    return [system, {"role": "user", "content": lines}]


def judge(rows: Sequence[tuple[str, str, str]]) -> Messages:
    """The request to compare answers; a row is a question, the reference answer and the other answer."""
    lines = "\n".join(
        f"{number}. Question: {one_line(question)}\nReference: {one_line(reference)}\nAnswer: {one_line(answer)}"
        for number, (question, reference, answer) in enumerate(rows, start=1)
    )
    system = _system(JUDGE, {"judgements": [{"question": 1, "same": False}]})
    return [system, {"role": "user", "content": lines}]


def refine(messages: Messages, reply: str, what: str, problems: Sequence[Problem]) -> Messages:
    """The request to correct a reply: the conversation so far, and the broken rules with their places."""
    listed = "\n".join(f"- {problem.sentence()}" for problem in problems)
    request = REFINE.format(what=what, problems=listed)
    return [*messages, {"role": "assistant", "content": reply}, {"role": "user", "content": request}]
