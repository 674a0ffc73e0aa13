"""
Planned mistakes in texts about clips of toy world, and texts that only look like mistakes.

Each has a name, the code under which the checks should find it, and a change of a true turn, description or reply.
"""

import json
import re
from collections.abc import Callable

from toy_clips import CONVERSATION, DESCRIPTION, Truth

from sama.toy_world.motion import MOTIONS


Change = Callable[[Truth, int, dict], dict | None]  # None: the mistake is not possible here


def _main(turn: dict) -> int:
    return int(re.findall(r"<obj(\d+)>", turn["question"])[0])


def _answer(change: Callable[[Truth, int, str], str]) -> Change:
    return lambda truth, place, turn: {**turn, "answer": change(truth, _main(turn), turn["answer"])}


def _evidence(first: int | None = None, last: int | None = None) -> Change:
    def apply(truth: Truth, place: int, turn: dict) -> dict:
        evidence = [dict(one) for one in turn["evidence"]]
        evidence[0] |= {"first": truth.clip.num_frames - 1 if first is None else first}
        evidence[0] |= {"last": truth.clip.num_frames + 3 if last is None else last}
        return {**turn, "evidence": evidence}

    return apply


def _hidden(truth: Truth, place: int, turn: dict) -> dict | None:
    interval = truth.hidden_interval(_main(turn))
    if interval is None:
        return None
    evidence = [dict(one) for one in turn["evidence"]]
    evidence[0] |= {"first": interval[0], "last": interval[1]}
    return {**turn, "evidence": evidence}


def _spans(shift: int) -> Change:
    """A plain answer with the spans of its phrases, which are shifted."""

    def apply(truth: Truth, place: int, turn: dict) -> dict:
        plain, spans, position = "", [], 0
        for match in re.finditer(r"<p> (.*?) </p> <obj(\d+)>", turn["answer"]):
            plain += turn["answer"][position : match.start()]
            start = len(plain) + (shift if not spans else 0)
            plain += match[1]
            spans.append(
                {"object": f"obj{match[2]}", "phrase": match[1], "start": start, "end": start + len(match[1])}
            )
            position = match.end()
        return {**turn, "answer": plain + turn["answer"][position:], "phrases": spans}

    return apply


def _blank_span(truth: Truth, place: int, turn: dict) -> dict:
    """The first span with the blank behind its phrase."""
    changed = _spans(0)(truth, place, turn)
    first = changed["phrases"][0]
    return {
        **changed,
        "phrases": [first | {"phrase": f"{first['phrase']} ", "end": first["end"] + 1}, *changed["phrases"][1:]],
    }


def _counted(phrase: str) -> Change:
    """An answer with one phrase of two objects."""

    def apply(truth: Truth, place: int, turn: dict) -> dict:
        answer = f"<p> {phrase} </p> <obj1> <obj2> are both in this clip."
        asked = map(int, re.findall(r"<obj(\d+)>", turn["question"]))
        return {**turn, "answer": answer, "evidence": truth.evidence(*dict.fromkeys([*asked, 1, 2]))}

    return apply


def _added(sentence: str) -> Change:
    """An answer with one more sentence, in which {} is the colour that its object is drawn in."""
    return _answer(lambda truth, number, answer: f"{answer} {sentence.format(truth.colors[number - 1])}")


def _other_motion(truth: Truth, number: int) -> str:
    return next(motion.third for motion in MOTIONS.values() if motion.third != truth.motion(number))


def _other_answer(truth: Truth, place: int, turn: dict) -> dict | None:
    number = _main(turn)
    answer = turn["answer"].replace(truth.motion(number), _other_motion(truth, number), 1)
    return None if answer == turn["answer"] else {**turn, "answer": answer}


def _repeat(truth: Truth, place: int, turn: dict) -> dict | None:
    return {**truth.turns()[0], "turn": place} if place > 1 else None


def known_answer(truth: Truth, place: int, turn: dict) -> dict:
    number = _main(turn)
    look = truth.look(number)
    question = f"Is the {look} <obj{number}> called a {look} by people?"
    answer = f"Yes, {truth.phrase(number).replace('The', 'the')} is called a {look}."
    return {**turn, "question": question, "answer": answer, "evidence": truth.evidence(number)}


TURN_MISTAKES: dict[str, tuple[str, Change]] = {
    "unknown object": ("tag_unknown", _answer(lambda t, n, a: a.replace(f"<obj{n}>", "<obj99>"))),
    "foreign tag": ("tag_unknown", _answer(lambda t, n, a: f"{a} [SEG]")),
    "no </p>": ("tag_unbalanced", _answer(lambda t, n, a: a.replace(" </p>", "", 1))),
    "no <p>": ("tag_unbalanced", _answer(lambda t, n, a: a.replace("<p> ", "", 1))),
    "nested": ("tag_nested", _answer(lambda t, n, a: a.replace("<p>", "<p> <p>", 1).replace("</p>", "</p> </p>", 1))),
    "tag in phrase": ("tag_nested", _answer(lambda t, n, a: a.replace(" </p>", f" <obj{n}> </p>", 1))),
    "bare tag": ("tag_alone", _answer(lambda t, n, a: f"{a} It is alone <obj{n}>.")),
    "untagged phrase": ("tag_alone", _answer(lambda t, n, a: a.replace(f"</p> <obj{n}>", "</p>", 1))),
    "empty phrase": ("phrase_empty", _answer(lambda t, n, a: re.sub(r"<p> .*? </p>", "<p> </p>", a, count=1))),
    "shifted span": ("span", _spans(2)),
    "span out of text": ("span", _spans(5000)),
    "no evidence": ("object_missing", lambda t, p, turn: {**turn, "evidence": turn["evidence"][1:]}),
    "nothing tagged": ("object_missing", _answer(lambda t, n, a: re.sub(r"<p> | </p> <obj\d+>", "", a))),
    "tagged twice": ("object_twice", _answer(lambda t, n, a: f"{a} Then <p> it </p> <obj{n}> stays.")),
    "untagged question": (
        "question_untagged",
        lambda t, p, turn: {**turn, "question": re.sub(r" <obj\d+>", "", turn["question"])},
    ),
    "hidden": ("not_visible", _hidden),
    "backwards": ("interval", _evidence(first=5, last=1)),
    "beyond the end": ("interval", _evidence(first=0)),
    "wrong number word": ("count", _counted("The three things")),
    "number": ("leak", _answer(lambda t, n, a: f"{a} It is object {n}.")),
    "bounding box": ("leak", _answer(lambda t, n, a: f"{a} It fills its bounding box.")),
    "drawn colour": ("leak", _answer(lambda t, n, a: f"{a} It is in the {t.colors[n - 1]} outline.")),
    "blank in span": ("span", _blank_span),
    "wrong digits": ("count", _counted("The 3 things")),
    "large number": ("count", _counted("The ten things")),
    "number behind words": ("count", _counted("All of the three things")),
    "bright colour": ("leak", _added("It is outlined in bright {}.")),
    "dashed box": ("leak", _added("A {} dashed box is around it.")),
    "named colour": ("leak", _added("It is highlighted in a bright {} color.")),
    "number as a word": ("leak", _added("Object two is not far away.")),
    "coloured circle": ("leak", _added("It stays inside the {} circle.")),
    "coloured line": ("leak", _added("It is surrounded by a {} line.")),
    "coloured number": ("leak", _added("The {} number is on it.")),
    "wrong place": ("turn_order", lambda t, p, turn: {**turn, "turn": p + 7}),
    "repeated": ("duplicate", _repeat),
    "too short": ("length", lambda t, p, turn: {**turn, "question": f"Doing <obj{_main(turn)}>?"}),
    "too long": ("length", _answer(lambda t, n, a: f"{a} {'It goes on and on. ' * 40}")),
    # found by models
    "wrong motion": ("false", _other_answer),
    "not to be seen": ("unseen", _answer(lambda t, n, a: f"{a} It is afraid of the dark.")),
    "common knowledge": ("blind", known_answer),
}


# Texts that look like mistakes and are none: they pass, or go to a person
RIGHT: dict[str, Change] = {
    "counted right": _counted("All of the 2 things"),
    "dog": _added("A {} border collie would not fit in."),
    "sides": _counted("The two three-sided, four-sided or round things"),
    "road": _added("There is no road with a {} dashed line."),
    "seconds later": _added("Nobody puts on his mask 2 seconds later."),
    "gallons": _counted("The 5 gallon buckets"),
    "litres": _counted("The 10 litre bottles"),
    "yards": _counted("The 20 yard lines"),
    "pounds": _counted("The 50 pound weights"),
}
MAY_BE_TRUE: dict[str, Change] = {
    "carried box": _added("Nobody carries a {} box."),
    "mask": _added("Nobody has a {} mask over his face."),
    "carried object": _added("It is no object two men carry."),
    "one at a time": _added("Nobody picks up the objects one at a time."),
    "one on top": _added("Nobody stacks the objects one on top of the other."),
    "two at a time": _added("Nobody carries the objects two at a time."),
    "yards away": _added("Nobody moves the object 20 yards away."),
    "centimeters apart": _added("There are no two objects 30 centimeters apart."),
    "3 times": _added("Nobody moves the objects 3 times."),
    "stacked boxes": _added("Nobody stacks {} boxes around a stall."),
    "mountains": _added("There are no outlines of {} mountains."),
    "hills": _added("There are no contours of {} hills."),
    "parking bay": _added("No parking bay is marked in {} here."),
    "trail": _added("No trail is marked with {} here."),
    "words": _added("There are no words circled in {} here."),
    "route": _added("No route is highlighted in {} on a map."),
    "parking space": _added("No parking space is marked with a rectangle."),
    "jersey": _added("There is no number with a {} outline."),
    "tape": _added("No tape has a dashed {} border."),
    "cars with doors": _counted("The 4 door cars"),
    "cans": _counted("The 7 Up cans"),
    "wheels": _counted("The four wheel drive cars"),
    "pairs": _counted("The three pairs of dancers"),
    "teams": _counted("The three teams"),
    "rows": _counted("Three rows of cars"),
}
NEAR_MISSES = RIGHT | MAY_BE_TRUE
# Drawn marks in words that may be of the video as well
DOUBTFUL_LEAKS = ("coloured circle", "coloured line", "coloured number", "named colour")
FOR_A_PERSON = {"not to be seen", *DOUBTFUL_LEAKS, *MAY_BE_TRUE}


def _statement(**fields) -> Change:
    def apply(truth: Truth, number: int, one: dict) -> dict:
        first = one["statements"][0]
        made = {name: value(truth, number, first) for name, value in fields.items()}
        return {**one, "statements": [{**first, **made}, *one["statements"][1:]]}

    return apply


def _hidden_statement(truth: Truth, number: int, one: dict) -> dict | None:
    interval = truth.hidden_interval(number)
    if interval is None:
        return None
    statements = [{**one["statements"][0], "first": interval[0], "last": interval[1]}, *one["statements"][1:]]
    return {**one, "statements": statements}


DESCRIPTION_MISTAKES: dict[str, tuple[str, Change]] = {
    "tag": ("tag_unknown", _statement(text=lambda t, n, s: f"{s['text']} It meets <obj1>.")),
    "left out": ("object_missing", lambda t, n, one: {}),
    "nothing said": ("object_missing", lambda t, n, one: {**one, "statements": []}),
    "twice": ("object_twice", lambda t, n, one: {**one, "again": True}),
    "hidden": ("not_visible", _hidden_statement),
    "beyond the end": ("interval", _statement(last=lambda t, n, s: t.clip.num_frames)),
    "negative": ("interval", _statement(first=lambda t, n, s: -1)),
    "label": ("leak", _statement(text=lambda t, n, s: f"{s['text']} It has label {n}.")),
    "outlined": ("leak", _statement(text=lambda t, n, s: f"{s['text']} It is outlined in {t.colors[n - 1]}.")),
    "repeated": ("duplicate", lambda t, n, one: {**one, "statements": [*one["statements"], one["statements"][0]]}),
    "too short": ("length", _statement(text=lambda t, n, s: "A thing.")),
    "wrong motion": ("false", _statement(text=lambda t, n, s: f"In this clip it {_other_motion(t, n)}.")),
    "not to be seen": ("unseen", _statement(text=lambda t, n, s: "It is the favourite of a child.")),
}


def _json_text(change: Callable[[str], str]):
    return lambda value: change(json.dumps(value))


def _field(name: str, value) -> Callable[[dict], str]:
    def apply(reply: dict) -> str:
        key, (first, *rest) = next(iter(reply.items()))
        changed = {**first, name: value} if value is not None else {k: v for k, v in first.items() if k != name}
        return json.dumps({key: [changed, *rest]})

    return apply


REPLY_MISTAKES: dict[str, tuple[str, Callable[[dict], str] | str]] = {
    "cut JSON": ("json", _json_text(lambda text: text[: len(text) // 2])),
    "two objects": ("json", _json_text(lambda text: f"{text}\n{text}")),
    "NaN": ("json", _json_text(lambda text: text.replace(': "', ': NaN, "_": "', 1))),
    "duplicate keys": ("json", _json_text(lambda text: "{" + text[1:-1] + ", " + text[1:])),
    "prose only": ("json", _json_text(lambda text: "I am sorry, but here is what I see: a few shapes.")),
    "unknown field": ("schema", _field("colour", "red")),
    "wrong type": ("schema", _field("evidence", "all frames")),
    "missing field": ("schema", _field("answer", None)),
    "cut": ("finish", "length"),
    "refused": ("refusal", "refusal"),
    "filtered": ("refusal", "content_filter"),
    "empty": ("refusal", "empty"),
    "too few turns": ("count", lambda reply: json.dumps({"turns": reply["turns"][:2]})),
}
MODEL_CODES = ("false", "unseen", "blind")


def changes_of(stage: str) -> dict[str, Change]:
    """What is done to the items of a stage, by kind."""
    planned = DESCRIPTION_MISTAKES if stage == DESCRIPTION else TURN_MISTAKES
    return {kind: change for kind, (_, change) in planned.items()} | (NEAR_MISSES if stage == CONVERSATION else {})
