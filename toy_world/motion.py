"""The motions of toy world, and the trajectory of an object through a clip."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .shapes import SIZES


class Motion(NamedTuple):
    """A motion in words, third person and base form: "it *moves left*", "does it *move left*?"."""

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
SOLO_MOTIONS = tuple(name for name in MOTIONS if name != "hide")  # motions that need no second object
ALSO_SEEN_AS = {"appear": ("still",)}  # what appears stands still from then on
KEY_EVENTS = {
    "appear": "appears",
    "leave": "leaves",
    "stop": "stops",
}  # motions with one key moment, and the verb for it
START_SIZES = {
    "grow": ("small", "medium"),
    "shrink": ("medium", "large"),
}  # initial sizes; others allow any

DIRECTED = ("zigzag", "stop", "leave")  # motions with a direction that is not part of their name
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
# Range of the key moment, in fractions of the clip; equal for all motions, so that none tends to come first
KEY_TIMES = (0.25, 0.58)
TRAVEL = (0.17, 0.24)  # length of a straight movement at speed 1, in fractions of the frame
PAUSE = 0.22  # fraction of the clip
GROWTH = 1.7
CIRCLE_RADIUS, ZIGZAG_WIDTH = 0.115, 0.075
HIDING_DISTANCE = 0.27  # from a small object to the large one it may hide behind, in fractions of the frame


def draw_solo_motions(number: int, rng: np.random.Generator, pool: Sequence[str] = SOLO_MOTIONS) -> list[str]:
    """Random motions of `number` objects, uniformly and independently from `pool`."""
    return [pool[i] for i in rng.integers(len(pool), size=number)]


@dataclass
class ToyObject:
    """
    One object of a clip.

    Args:
        shape, colour, size, pattern (`str`): Appearance, in the vocabulary of `toy_world.shapes`.
        start (`(float, float)`): x and y of the centre in the first frame, in fractions of the frame. Independent of
            all fields below.
        motion (`str`): A key of `MOTIONS`.
        direction (`str`): Direction of the motion, a key of `DIRECTIONS`; ignored by motions that have none.
        amount (`float`): Length of the movement, in fractions of the frame.
        phase (`float`): Phase at which a circle or zigzag starts, from 0 to 1.
        key (`float`): The key moment, in fractions of the clip.
        scale (`float`): Factor on the nominal diameter, close to 1.
        depth (`float`): Distance from the viewer; smaller values occlude larger ones.
        goal, exit (`(float, float)`, *optional*): For a hiding object, the hiding place and the final position.
        role (`str`): "focus" (its motion was drawn first), "helper" (a large object to hide behind), or "".
        behind (`int`, *optional*): Index of the object that it hides behind.
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
        """Initial diameter, in fractions of the shorter side of the frame."""
        return SIZES[self.size] * self.scale

    @property
    def constant_size(self) -> bool:
        """Whether its size stays the same throughout the clip."""
        return self.motion not in START_SIZES

    @property
    def plausible_motions(self) -> set[str]:
        """Motions that a viewer could plausibly name; several if the motion also has a direction."""
        if self.motion == "hide":
            return {"hide", *DIRECTIONS}
        directions = {self.direction} if self.motion in DIRECTED else set()
        return {self.motion, *ALSO_SEEN_AS.get(self.motion, ())} | directions


class Trajectory(NamedTuple):
    """Centres `(num_frames, 2)` as x and y, diameters `(num_frames,)` and presence (bool) `(num_frames,)`."""

    centres: np.ndarray
    diameters: np.ndarray
    present: np.ndarray


def start_margin(speed: float) -> float:
    """Minimum distance of start positions from the border, large enough for every motion to stay in the frame."""
    return 0.02 + TRAVEL[1] * speed


def compute_trajectory(toy_object: ToyObject, num_frames: int, radius: tuple[float, float]) -> Trajectory:
    """
    The trajectory of an object.

    Args:
        toy_object (`ToyObject`): The object.
        num_frames (`int`): Number of frames in the clip.
        radius (`(float, float)`): Half the diameter, in fractions of the frame's width and height.
    """
    time = np.linspace(0, 1, num_frames) if num_frames > 1 else np.zeros(1)
    displacement = np.zeros((num_frames, 2))
    diameters = np.full(num_frames, toy_object.diameter)
    present = np.ones(num_frames, dtype=bool)
    if toy_object.motion in DIRECTIONS:
        displacement = np.outer(time * toy_object.amount, DIRECTIONS[toy_object.motion])
    elif toy_object.motion == "circle":
        turn = 2 * np.pi * (toy_object.phase + time * (1 if toy_object.direction in ("left", "up") else -1))
        displacement = toy_object.amount * np.stack(
            [np.cos(turn) - np.cos(turn[0]), np.sin(turn) - np.sin(turn[0])], axis=1
        )
    elif toy_object.motion == "zigzag":
        forward = np.array(DIRECTIONS[toy_object.direction])
        side = ZIGZAG_WIDTH * (1 - np.abs((4 * time + toy_object.phase // 0.5) % 2 - 1))
        side = (side - side[0]) * 2
        displacement = np.outer(time * toy_object.amount, forward) + np.outer(side, forward[::-1])
    elif toy_object.motion == "stop":
        moved = (np.minimum(time, toy_object.key) + np.maximum(time - toy_object.key - PAUSE, 0)) / (1 - PAUSE)
        displacement = np.outer(moved * toy_object.amount, DIRECTIONS[toy_object.direction])
    elif toy_object.motion in ("grow", "shrink"):
        factor = GROWTH if toy_object.motion == "grow" else 1 / GROWTH
        diameters = diameters * (1 + (factor - 1) * time)
    elif toy_object.motion == "appear":
        present = time >= toy_object.key
    elif toy_object.motion == "leave":
        displacement = np.outer(time / toy_object.key, _exit_vector(toy_object, radius))
        present = time < toy_object.key
    elif toy_object.motion == "hide":
        displacement = _hiding_trajectory(toy_object, time)
    return Trajectory(np.array(toy_object.start) + displacement, diameters, present)


def _exit_vector(toy_object: ToyObject, radius: tuple[float, float]) -> np.ndarray:
    """Vector from the start to the first position outside the frame."""
    x, y = toy_object.start
    length = {"left": x + radius[0], "right": 1 - x + radius[0], "up": y + radius[1], "down": 1 - y + radius[1]}
    return np.array(DIRECTIONS[toy_object.direction]) * length[toy_object.direction]


def _hiding_trajectory(toy_object: ToyObject, time: np.ndarray) -> np.ndarray:
    """Displacement to the hiding place, a rest there, and on to the exit."""
    reached = 1.2 * toy_object.key
    back = np.clip((time - reached - 0.14) / (0.94 - reached - 0.14), 0, 1)[:, None]
    there = np.clip(time / reached, 0, 1)[:, None]
    start, goal, end = (np.array(place) for place in (toy_object.start, toy_object.goal, toy_object.exit))
    return there * (goal - start) + back * (end - goal)
