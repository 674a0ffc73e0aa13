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
from dataclasses import dataclass

import numpy as np
from PIL import Image
from toy_clips import CONVERSATION, DESCRIPTION, Truth, claim, thumbnail
from toy_mistakes import DOUBTFUL_LEAKS, NEAR_MISSES, REPLY_MISTAKES, changes_of, known_answer

from sama.annotation import prompts


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
                turn = known_answer(truth, one.item, truth.turns()[one.item - 1])
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
