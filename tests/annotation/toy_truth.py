"""
A writer, a verifier and a model without the video for clips of toy world, which know the truth and make planned
mistakes.

The texts are made from what the generator knows of the objects. A plan says which turn, which description or which
whole reply is wrong and how, and whether the mistake is repeated when a correction is asked for.
"""

import base64
import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from sama.annotation import prompts
from sama.annotation.scenes import SceneObject
from sama.toy_world.clip import Clip
from sama.toy_world.motion import MOTIONS
from sama.toy_world.tasks import where


THUMBNAIL = (24, 24)
DESCRIPTION, CONVERSATION = "description", "conversation"


@dataclass
class Truth:
    """What is known of a clip: its objects by number, and the frames in which they are visible."""

    name: str
    clip: Clip
    objects: list[SceneObject]
    thumbnail: np.ndarray
    colors: tuple[str, ...]
    shown: tuple[int, ...]
    dialogue: list[dict] = field(default_factory=list)  # as it is written first, with the mistakes

    def __post_init__(self):
        self.visible = [sorted(one.visible) for one in self.objects]

    def look(self, number: int) -> str:
        """Size, colour and shape of an object."""
        one = self.clip.objects[int(self.objects[number - 1].name)]
        return f"{one.size} {one.colour} {one.shape}"

    def motion(self, number: int) -> str:
        """What an object does."""
        return MOTIONS[self.clip.objects[int(self.objects[number - 1].name)].motion].third

    def evidence(self, *numbers: int) -> list[dict]:
        return [
            {"object": f"obj{number}", "first": self.visible[number - 1][0], "last": self.visible[number - 1][-1]}
            for number in numbers
        ]

    def hidden_interval(self, number: int) -> tuple[int, int] | None:
        """Frames of the clip in which an object is not visible."""
        seen = set(self.visible[number - 1])
        hidden = [frame for frame in range(self.clip.num_frames) if frame not in seen]
        return (hidden[0], hidden[0]) if hidden else None

    # ---- what is true

    def description(self, number: int) -> dict:
        frames = {"first": self.visible[number - 1][0], "last": self.visible[number - 1][-1]}
        texts = [f"It is a {self.look(number)}.", f"In this clip it {self.motion(number)}."]
        return {"object": f"obj{number}", "statements": [{"text": text, **frames} for text in texts]}

    def turns(self) -> list[dict]:
        """Four turns for each object."""
        found = []
        for number in range(1, len(self.objects) + 1):
            other, me = number % len(self.objects) + 1, self.phrase(number)
            size, colour, _ = self.look(number).split(maxsplit=2)
            place = where(self.clip.objects[int(self.objects[number - 1].name)].start)
            both = f"{me} {self.motion(number)}, while {self.phrase(other)} {self.motion(other)} in the same clip."
            rows = [
                ("action", "What is the thing <{}> doing in this clip?", f"{me} {self.motion(number)} here."),
                ("appearance", "Which look has that thing <{}>?", f"{me} is {size} and {colour} throughout."),
                ("position", "Where can <{}> be found first of all?", f"{me} starts {place} of the picture."),
                ("interaction", "How does this thing <{}> differ from that one <{}>?", both),
            ]
            for kind, question, answer in rows:
                objects = [number, other] if kind == "interaction" else [number]
                question = question.format(*(f"obj{one}" for one in objects))
                turn = {"question": question, "answer": answer, "kind": kind, "evidence": self.evidence(*objects)}
                found.append({"turn": len(found) + 1, **turn})
        return found

    def phrase(self, number: int) -> str:
        return f"<p> The {self.look(number)} </p> <obj{number}>"

    def told(self, number: int) -> str:
        """The description of an object as a record has it."""
        return " ".join(one["text"] for one in self.description(number)["statements"])

    def facts(self) -> set[str]:
        """Every turn, which is true."""
        return {claim(turn) for turn in self.turns()}


def claim(turn: dict) -> str:
    """A turn as the verifying model gets it."""
    return " ".join((turn["question"] + " " + re.sub(r"</?p>", "", turn["answer"])).split())


# ---- mistakes -------------------------------------------------------------------------------------------------------

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


def _known_answer(truth: Truth, place: int, turn: dict) -> dict:
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
    "common knowledge": ("blind", _known_answer),
}


# Texts that look like mistakes and are none: they pass, or go to a person
RIGHT: dict[str, Change] = {
    "counted right": _counted("All of the 2 things"),
    "dog": _added("A {} border collie would not fit in."),
    "sides": _counted("The two three-sided, four-sided or round things"),
    "road": _added("There is no road with a {} dashed line."),
}
MAY_BE_TRUE: dict[str, Change] = {
    "carried box": _added("Nobody carries a {} box."),
    "mask": _added("Nobody has a {} mask over his face."),
    "carried object": _added("It is no object two men carry."),
}
NEAR_MISSES = RIGHT | MAY_BE_TRUE
# Drawn marks in words that may be of the video as well
DOUBTFUL_LEAKS = ("coloured circle", "coloured line", "coloured number")
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


# ---- the models -----------------------------------------------------------------------------------------------------


def changes_of(stage: str) -> dict[str, Change]:
    """What is done to the items of a stage, by kind."""
    planned = DESCRIPTION_MISTAKES if stage == DESCRIPTION else TURN_MISTAKES
    return {kind: change for kind, (_, change) in planned.items()} | (NEAR_MISSES if stage == CONVERSATION else {})


@dataclass(frozen=True)
class Planted:
    """A planned mistake: the clip, the stage, the item (`None`: the whole reply), its kind and code, and whether it is
    repeated in the correction. Without a code it only looks like a mistake."""

    video: str
    stage: str
    item: int | None
    kind: str
    code: str
    stays: bool


def planted_claims(truth: Truth, planted: list[Planted], kinds) -> set[str]:
    """The turns of a clip that are planted with one of these kinds."""
    chosen = [one for one in planted if one.video == truth.name and one.kind in kinds and one.stage == CONVERSATION]
    return {claim(changes_of(one.stage)[one.kind](truth, one.item, truth.turns()[one.item - 1])) for one in chosen}


class ToyModels:
    """
    The answers of all models to all requests about some clips.

    Args:
        truths (`list[Truth]`): The clips.
        planted (`list[Planted]`): The mistakes.
    """

    def __init__(self, truths: list[Truth], planted: list[Planted]):
        self.truths = truths
        self.planted = {(one.video, one.stage, one.item): one for one in planted}
        # Near misses are true, and a model that checks facts may overlook that words are about the drawing
        true = {*NEAR_MISSES, *DOUBTFUL_LEAKS}
        self.true = {truth.name: truth.facts() | planted_claims(truth, planted, true) for truth in truths}
        self.thumbnails = np.stack([truth.thumbnail for truth in truths])
        self.known = {}  # question without the video -> what anybody would answer
        for one in planted:
            if one.kind == "common knowledge":
                truth = next(truth for truth in truths if truth.name == one.video)
                turn = _known_answer(truth, one.item, truth.turns()[one.item - 1])
                question = " ".join(re.sub(r"<obj(\d+)>", r"[\1]", turn["question"]).split())
                self.known[question] = re.sub(r"<p> | </p> <obj\d+>", "", turn["answer"])

    def answer(self, request: dict) -> str:
        """The text of the answer to a request, as a scripted endpoint needs it."""
        system = request["messages"][0]["content"]
        if system.startswith(prompts.BLIND):
            return self.without_video(request)
        if system.startswith(prompts.JUDGE):
            return self.judge(request)
        truth = self.clip_of(request)
        if system.startswith(prompts.VERIFY):
            return self.verify(request, truth)
        stage = DESCRIPTION if system.startswith(prompts.DESCRIBE) else CONVERSATION
        return self.write(request, truth, stage)

    def fault(self, number: int, request: dict, repetition: int) -> str | None:
        """The fault of the completion, for replies that are planned to be cut or refused."""
        system = request["messages"][0]["content"]
        if not system.startswith((prompts.DESCRIBE, prompts.CONVERSE)):
            return None
        stage = DESCRIPTION if system.startswith(prompts.DESCRIBE) else CONVERSATION
        planted = self.planted.get((self.clip_of(request).name, stage, None))
        if planted is None or (self.round(request) and not planted.stays):
            return None
        change = REPLY_MISTAKES[planted.kind][1]
        return change if isinstance(change, str) else None

    def clip_of(self, request: dict) -> Truth:
        """The clip whose first frame is nearest to the first picture of a request."""
        parts = next(message["content"] for message in request["messages"] if not isinstance(message["content"], str))
        url = next(part["image_url"]["url"] for part in parts if part["type"] == "image_url")
        with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as image:
            seen = thumbnail(np.asarray(image.convert("RGB")))
        return self.truths[int(np.abs(self.thumbnails - seen).mean(axis=(1, 2, 3)).argmin())]

    def round(self, request: dict) -> int:
        """How many corrections were asked for."""
        return sum(message["role"] == "assistant" for message in request["messages"])

    def write(self, request: dict, truth: Truth, stage: str) -> str:
        """A description or a dialogue, or the corrected parts of one."""
        again = self.round(request)
        planted = self.planted.get((truth.name, stage, None))
        items = self.items(truth, stage, again)
        if again:
            wanted = re.search(r"only (?:turns|objects) ([0-9, ]+) again", request["messages"][-1]["content"])
            if wanted:
                items = {item: items[item] for item in map(int, wanted[1].split(", "))}
        reply = _reply(stage, items)
        if (
            planted is not None
            and (planted.stays or not again)
            and not isinstance(REPLY_MISTAKES[planted.kind][1], str)
        ):
            return REPLY_MISTAKES[planted.kind][1](reply)
        return json.dumps(reply)

    def items(self, truth: Truth, stage: str, again: int) -> dict[int, dict]:
        """All turns or descriptions with the mistakes of this round."""
        if stage == DESCRIPTION:
            right = {number: truth.description(number) for number in range(1, len(truth.objects) + 1)}
        else:
            right = {turn["turn"]: turn for turn in truth.turns()}
        changes = changes_of(stage)
        found = {}
        for item, value in right.items():
            planted = self.planted.get((truth.name, stage, item))
            wrong = planted is not None and (planted.stays or not again)
            found[item] = changes[planted.kind](truth, item, value) if wrong else value
        return found

    def verify(self, request: dict, truth: Truth) -> str:
        """Verdicts by comparison with all true sentences; texts about what no frame shows are unseen."""
        claims = request["messages"][-1]["content"][-1]["text"].splitlines()[1:]
        verdicts = []
        for line in claims:
            number, first, text = re.match(r"(\d+)\. <obj(\d+)>(?:/<obj\d+>)*: (.*)", line).groups()
            facts = self.true[truth.name] | {one["text"] for one in truth.description(int(first))["statements"]}
            unseen = "afraid of the dark" in text or "favourite" in text
            known = text in facts or "by people?" in text
            verdicts.append({"claim": int(number), "verdict": "unseen" if unseen else "true" if known else "false"})
        return json.dumps({"verdicts": verdicts})

    def without_video(self, request: dict) -> str:
        lines = [line.split(". ", 1) for line in request["messages"][1]["content"].splitlines()]
        answers = [{"question": int(n), "answer": self.known.get(q, "It cannot be known.")} for n, q in lines]
        return json.dumps({"answers": answers})

    def judge(self, request: dict) -> str:
        rows = re.findall(r"(\d+)\. Question: .*\nReference: (.*)\nAnswer: (.*)", request["messages"][1]["content"])
        return json.dumps({"judgements": [{"question": int(n), "same": a == b} for n, a, b in rows]})


def _reply(stage: str, items: dict[int, dict]) -> dict:
    if stage == CONVERSATION:
        return {"turns": [items[place] for place in sorted(items)]}
    objects = []
    for number in sorted(items):
        one = dict(items[number])
        if one.pop("again", False):
            objects.append(one)
        objects += [one] if one else []
    return {"objects": objects}


def thumbnail(frame: np.ndarray) -> np.ndarray:
    """A small picture of a frame, by which clips are recognised."""
    return np.asarray(Image.fromarray(frame).resize(THUMBNAIL, Image.Resampling.BOX), dtype=np.float32)
