"""What is true of clips of toy world: their descriptions and dialogues."""

import re
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

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


def thumbnail(frame: np.ndarray) -> np.ndarray:
    """A small picture of a frame, by which clips are recognised."""
    return np.asarray(Image.fromarray(frame).resize(THUMBNAIL, Image.Resampling.BOX), dtype=np.float32)
