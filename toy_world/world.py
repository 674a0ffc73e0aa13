"""
Toy world: generated clips of moving and hiding coloured objects, with exact masks and dialogues about them.

    >>> world = ToyWorld(ToySettings(height=128, width=128), seed=0)
    >>> frames, record, masks = world[7]

The same settings, seed and index give the same bytes, in any process and in any order of access.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import NamedTuple

import numpy as np
from pycocotools import mask as coco

from .backgrounds import draw_background
from .clip import SPLITS, Clip, ToySettings, draw, events
from .questions import ToyTurn
from .tasks import TASKS


__all__ = ["ToySample", "ToySettings", "ToyWorld", "encode_masks"]


class ToySample(NamedTuple):
    """
    One clip: frames, uint8 of shape `(num_frames, height, width, 3)`; the record; and the masks of the record's
    objects, bool of shape `(num_objects, num_frames, height, width)`, in the order "0", "1", ...
    """

    frames: np.ndarray
    record: dict
    masks: np.ndarray


class ToyWorld:
    """
    An unlimited data set: `world[index]` is a [`ToySample`] for every index from 0 on.

    Args:
        settings (`ToySettings` or `dict`, *optional*): Settings of the generator.
        seed (`int`): Seed; different seeds give different clips.
        tasks (`Mapping[str, Callable]`): The function of each task, for worlds with other questions; see
            `toy_world.tasks.TASKS`.

    Raises:
        ValueError: for an unknown or invalid setting.
        IndexError: for a negative index.
    """

    def __init__(
        self, settings: ToySettings | dict | None = None, seed: int = 0, tasks: Mapping[str, Callable] = TASKS
    ):
        if isinstance(settings, dict):
            settings = settings_from(settings)
        self.settings, self.seed, self.tasks = settings or ToySettings(), seed, tasks
        weights = np.array([self.settings.tasks.get(task, 0) for task in tasks], dtype=float)
        self._shares = np.cumsum(weights / weights.sum())

    def __getitem__(self, index: int) -> ToySample:
        task, clip, turns = self.generate(index)
        return ToySample(clip.frames, self.record(index, task, clip, turns), clip.masks)

    def describe(self, index: int) -> dict:
        """The record alone, without rendering the frames."""
        return self.record(index, *self.generate(index, frames=False))

    def generate(self, index: int, frames: bool = True) -> tuple[str, Clip, list[ToyTurn]]:
        """The task, the clip and the turns that the record is made of; without `frames` the clip is not rendered."""
        task, rng = self._start(index)
        clip, turns = self.tasks[task](self.settings, rng)
        return task, self.render(clip, rng) if frames else clip, turns

    def render(self, clip: Clip, rng: np.random.Generator) -> Clip:
        """The clip rendered onto a random background."""
        size = (self.settings.height, self.settings.width)
        background = draw_background(self.settings.background, size, rng)
        return draw(clip.objects, clip.num_frames, size, background)

    def task(self, index: int) -> str:
        """The task of a record, without generating its clip."""
        return self._start(index)[0]

    def _start(self, index: int) -> tuple[str, np.random.Generator]:
        if index < 0:
            raise IndexError(f"clip index is {index}, expected 0 or more: toy world has no last clip")
        rng = np.random.default_rng([self.seed, SPLITS.index(self.settings.split), index])
        return tuple(self.tasks)[int(np.searchsorted(self._shares, rng.random(), side="right"))], rng

    def record(self, index: int, task: str, clip: Clip, turns: list[ToyTurn]) -> dict:
        """The record of what [`generate`] returned."""
        name = f"toy/{self.settings.split}/{self.seed}/{index}"
        toy = {
            "seed": self.seed,
            "index": index,
            "settings": asdict(self.settings),
            "task": task,
            "events": events(clip),
        }
        visual = {"image": {"path": name, "toy": toy}} if task == "still" else {"video": {"toy": toy}}
        objects = {str(i): {"masks": encode_masks(track)} for i, track in enumerate(clip.masks)}
        return {"id": name, "source": "toy_world", **visual, "objects": objects, "messages": messages(turns)}


def messages(turns: list[ToyTurn]) -> list[dict]:
    """The turns as messages of a record; `info` of an answer holds what is needed to judge a prediction."""
    found = []
    for turn in turns:
        found.append({"role": "user", "content": turn.question})
        info = {"kind": turn.kind, "answer": turn.answer, "choices": list(turn.choices)}
        found.append({"role": "assistant", "content": turn.answer_parts, "info": info})
    return found


def encode_masks(track: np.ndarray) -> list[dict | None]:
    """COCO run-length codes of a mask track `(num_frames, height, width)`; `None` where nothing is visible."""
    codes = coco.encode(np.asfortranarray(track.transpose(1, 2, 0), dtype=np.uint8))
    return [
        {"size": [int(side) for side in code["size"]], "counts": code["counts"].decode("ascii")} if seen else None
        for code, seen in zip(codes, track.any(axis=(1, 2)).tolist(), strict=True)
    ]


def settings_from(values: dict) -> ToySettings:
    """Settings from a dict, for instance of a YAML file; lists become tuples.

    Raises:
        ValueError: for an unknown setting.
    """
    known = asdict(ToySettings())
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ValueError(f"unknown toy world setting {unknown[0]!r}, expected one of {', '.join(known)}")
    pairs = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return replace(ToySettings(), **pairs)
