"""Toy world's vocabulary of motions, and the way of a thing through a clip."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .shapes import SIZES


class Motion(NamedTuple):
    """A motion in words: "it *moves left*", "does it *move left*?"."""

    third: str
    base: str


MOTIONS = {
    "left": Motion("moves left", "move left"),
    "right": Motion("moves right", "move right"),
    "up": Motion("moves up", "move up"),
    "down": Motion("moves down", "move down"),
    "circle": Motion("moves in a circle", "move in a circle"),
    "zigzag": Motion("zigzags", "zigzag"),
    "stop": Motion("stops and moves on", "stop and move on"),
    "grow": Motion("grows", "grow"),
    "shrink": Motion("shrinks", "shrink"),
    "still": Motion("stands still", "stand still"),
    "appear": Motion("appears", "appear"),
    "leave": Motion("leaves the picture", "leave the picture"),
    "hide": Motion("hides", "hide"),
}
ALONE = tuple(name for name in MOTIONS if name != "hide")  # motions that need no second thing
KEYED = {"appear": "appears", "leave": "leaves", "stop": "stops"}  # motions with one decisive moment, and its word
SIZES_OF = {"grow": ("small", "medium"), "shrink": ("medium", "large")}  # the others start in any size

DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
KEY_TIMES = (0.25, 0.58)  # of the decisive moment, the same for every motion, so that no motion comes first by habit
TRAVEL = (0.17, 0.24)  # of a straight way at speed 1, in shares of the picture
PAUSE = 0.22  # of the clip
GROWTH = 1.7
CIRCLE_RADIUS, ZIGZAG_WIDTH = 0.115, 0.075
BESIDE = 0.27  # distance of a small thing from the large one that it may hide behind


@dataclass
class Thing:
    """
    One thing of a clip.

    Args:
        shape, colour, size, pattern (`str`): Its look, in words of `toy_shapes`.
        start (`(float, float)`): x and y of its centre in the first frame, in shares of the picture. Drawn before, and
            without knowing, everything below.
        motion (`str`): What it does, a key of `MOTIONS`.
        direction (`str`): Where it goes while it does so, a key of `DIRECTIONS`; not every motion has one.
        amount (`float`): Length of a way, in shares of the picture.
        phase (`float`): Turn of the circle that it starts from, from 0 to 1.
        key (`float`): The decisive moment, in shares of the clip.
        scale (`float`): Small deviation from the usual diameter.
        depth (`float`): Larger is further away.
        goal, exit (`(float, float)`, *optional*): Of a thing that hides: behind what place, and where it goes then.
        role (`str`): "focus" (its motion was drawn first), "helper" (large, to be hidden behind), or "".
        behind (`int`, *optional*): The thing that it hides behind.
    """

    shape: str
    colour: str
    size: str
    pattern: str = "plain"
    start: tuple[float, float] = (0.5, 0.5)
    motion: str = "still"
    direction: str = "left"
    amount: float = 0.2
    phase: float = 0.0
    key: float = 0.4
    scale: float = 1.0
    depth: float = 0.0
    goal: tuple[float, float] | None = None
    exit: tuple[float, float] | None = None
    role: str = ""
    behind: int | None = None

    @property
    def diameter(self) -> float:
        """At the start, in shares of the shorter side."""
        return SIZES[self.size] * self.scale

    @property
    def sized(self) -> bool:
        """Whether one size word is true of it for the whole clip."""
        return self.motion not in SIZES_OF

    @property
    def seems(self) -> set[str]:
        """Motions that a person might say it shows; more than one where it goes somewhere in a manner of its own."""
        if self.motion == "hide":
            return {"hide", *DIRECTIONS}
        return {self.motion, self.direction} if self.motion in ("zigzag", "stop", "leave") else {self.motion}


class Track(NamedTuple):
    """Where a thing is: centres `(num_frames, 2)` as x and y, diameters and presence `(num_frames,)`."""

    centres: np.ndarray
    diameters: np.ndarray
    present: np.ndarray


def start_margin(speed: float) -> float:
    """Distance that starts keep from the edge, whatever the motion, so that no way leads out of the picture."""
    return 0.02 + TRAVEL[1] * speed


def track(thing: Thing, num_frames: int, radius: tuple[float, float]) -> Track:
    """
    The way of a thing.

    Args:
        thing (`Thing`): The thing.
        num_frames (`int`): Length of the clip.
        radius (`(float, float)`): Half its diameter in shares of the picture's width and height.
    """
    time = np.linspace(0, 1, num_frames) if num_frames > 1 else np.zeros(1)
    way = np.zeros((num_frames, 2))
    diameters = np.full(num_frames, thing.diameter)
    present = np.ones(num_frames, dtype=bool)
    if thing.motion in DIRECTIONS:
        way = np.outer(time * thing.amount, DIRECTIONS[thing.motion])
    elif thing.motion == "circle":
        turn = 2 * np.pi * (thing.phase + time * (1 if thing.direction in ("left", "up") else -1))
        way = thing.amount * np.stack([np.cos(turn) - np.cos(turn[0]), np.sin(turn) - np.sin(turn[0])], axis=1)
    elif thing.motion == "zigzag":
        forward = np.array(DIRECTIONS[thing.direction])
        side = ZIGZAG_WIDTH * (1 - np.abs((4 * time + thing.phase // 0.5) % 2 - 1))
        side = (side - side[0]) * 2
        way = np.outer(time * thing.amount, forward) + np.outer(side, forward[::-1])
    elif thing.motion == "stop":
        moved = (np.minimum(time, thing.key) + np.maximum(time - thing.key - PAUSE, 0)) / (1 - PAUSE)
        way = np.outer(moved * thing.amount, DIRECTIONS[thing.direction])
    elif thing.motion in ("grow", "shrink"):
        factor = GROWTH if thing.motion == "grow" else 1 / GROWTH
        diameters = diameters * (1 + (factor - 1) * time)
    elif thing.motion == "appear":
        present = time >= thing.key
    elif thing.motion == "leave":
        way = np.outer(time / thing.key, _way_out(thing, radius))
        present = time < thing.key
    elif thing.motion == "hide":
        way = _hiding_way(thing, time)
    return Track(np.array(thing.start) + way, diameters, present)


def _way_out(thing: Thing, radius: tuple[float, float]) -> np.ndarray:
    """From the start to the first place outside the picture."""
    x, y = thing.start
    length = {"left": x + radius[0], "right": 1 - x + radius[0], "up": y + radius[1], "down": 1 - y + radius[1]}
    return np.array(DIRECTIONS[thing.direction]) * length[thing.direction]


def _hiding_way(thing: Thing, time: np.ndarray) -> np.ndarray:
    """To the hiding place, a rest there, and out again."""
    reached = 1.2 * thing.key
    back = np.clip((time - reached - 0.14) / (0.94 - reached - 0.14), 0, 1)[:, None]
    there = np.clip(time / reached, 0, 1)[:, None]
    start, goal, end = (np.array(place) for place in (thing.start, thing.goal, thing.exit))
    return there * (goal - start) + back * (end - goal)
