"""What is true of the objects of toy clips, as targets for the auxiliary heads."""

import math

import numpy as np
import torch

from sama.data.collator import IGNORED
from sama.toy_world.clip import FRAME_SIDE, Clip
from sama.toy_world.motion import DIRECTED, DIRECTIONS, KEY_EVENTS, MOTIONS
from sama.toy_world.questions import key_frame
from sama.toy_world.shapes import COLOURS, SHAPES, SIZES, UNSEEN_PAIRS, stamp


CLOSED_SETS = {"colour": COLOURS, "shape": SHAPES, "size": SIZES, "motion": MOTIONS, "direction": DIRECTIONS}
# Whether training never shows a colour with a shape: (num_colours, num_shapes)
UNSEEN = torch.tensor([[(colour, shape) in UNSEEN_PAIRS for shape in SHAPES] for colour in COLOURS])
PLACE = 4  # visibility, x, y and width, in fractions of the frame
MIN_COVER = 0.1  # fraction of a cell
WINDOW = 12  # parts along a side of the square around a patch
MAX_FRAMES = 8  # dense frames of a clip at most
MAX_OBJECTS = 8  # largest count of objects that a head predicts
GROUPED = ("colour", "shape", "motion")  # kinds of class of which objects are counted
MOST_ALIKE = 3  # largest count of objects of one class that a head predicts
CELL = 3  # covered fraction of a cell, and that fraction times mean x and y of the covered pixels, from -1 to 1


def cells(masks: np.ndarray, grid: int) -> np.ndarray:
    """Content of each cell of a grid, see [`CELL`]: (..., grid * grid, 3) of masks (..., height, width)."""
    height, width = (side // grid for side in masks.shape[-2:])
    parts = masks.reshape(*masks.shape[:-2], grid, height, grid, width).astype(np.float32)
    down, across = (np.linspace(-1, 1, side, dtype=np.float32) for side in (height, width))
    rows, columns = parts.mean(-1), parts.mean(-3)  # (..., grid, height, grid) and (..., grid, grid, width)
    held = np.stack([columns.mean(-1), (columns * across).mean(-1), (rows * down[:, None]).mean(-2)], -1)
    return held.reshape(*masks.shape[:-2], grid * grid, CELL)


def colours_of_cells(clip: Clip, frames: list[int], grid: int) -> np.ndarray:
    """Content of each cell by colour: (num_frames, grid * grid, num_colours, 3)."""
    held = np.zeros((len(frames), grid * grid, len(COLOURS), CELL), dtype=np.float32)
    for thing, masks in zip(clip.objects, clip.masks, strict=True):
        held[:, :, list(COLOURS).index(thing.colour)] += cells(masks[frames], grid)
    return held


def objects_of_cells(clip: Clip, frames: list[int], grid: int) -> np.ndarray:
    """Index of the object that covers most of each cell, -1 where none covers `MIN_COVER` of it: (num_frames,
    grid * grid)."""
    return covering_object(np.stack([cells(masks[frames], grid)[..., 0] for masks in clip.masks]))


def covering_object(cover: np.ndarray) -> np.ndarray:
    """Index of the object with the largest share of each cell, `cover` (num_objects, ...), -1 below `MIN_COVER`."""
    return np.where(cover.max(0) < MIN_COVER, -1, cover.argmax(0))


def looks_of_cells(clip: Clip, frames: list[int], grid: int) -> np.ndarray:
    """Colour, shape and size classes of the object of each cell: (num_frames, grid * grid, 3); -100 for cells without
    one, and for the size of an object that grows or shrinks."""
    return looks_of(clip, objects_of_cells(clip, frames, grid))


def looks_of(clip: Clip, covering: np.ndarray) -> np.ndarray:
    """Colour, shape and size classes of objects, -100 where `covering` is -1: (..., 3)."""
    looks = np.array([object_classes(clip, thing)[:3] for thing in range(len(clip.objects))])
    return np.where(covering[..., None] < 0, IGNORED, looks[covering])


def patch_labels(clip: Clip, frame: int, grid: int) -> dict[str, np.ndarray]:
    """
    What each patch of a frame shows, for `grid * grid` patches. Masks are enlarged if the grid does not divide them.

    - `patch looks` (num_patches, 3): classes of its object, see [`looks_of_cells`]
    - `occupied` (num_patches,), bool: whether it has one; the rest is meaningless where it has none
    - `offsets` (num_patches, 3): from the centre of the patch to that of the object, x and y, and the object's width
    - `windows` (num_patches, WINDOW**2): covered fraction of each part of a square of 3 x 3 patches around it
    """
    masks, number = clip.masks[:, frame], grid**2
    times = grid // math.gcd(grid, masks.shape[-1])
    masks = masks.repeat(times, 1).repeat(times, 2)
    covering, side = covering_object(cells(masks, grid)[..., 0]), masks.shape[-1] // grid
    centres = (np.stack(np.meshgrid(np.arange(grid), np.arange(grid)), -1).reshape(number, 2) + 0.5) / grid
    spots = places(clip, list(range(len(clip.objects))), [frame])[:, 0]
    padded = np.pad(masks, ((0, 0), (side, side), (side, side)))
    around = np.lib.stride_tricks.sliding_window_view(padded, (3 * side, 3 * side), (1, 2))[:, ::side, ::side]
    around = around.reshape(len(spots), number, 3 * side, 3 * side)[covering, np.arange(number)]
    part = 3 * side // WINDOW
    windows = around.reshape(number, WINDOW, part, WINDOW, part).mean((2, 4), dtype=np.float32)
    return {
        "patch looks": looks_of(clip, covering),
        "occupied": covering >= 0,
        "offsets": np.concatenate([spots[covering, 1:3] - centres, spots[covering, 3:]], 1).astype(np.float32),
        "windows": windows.reshape(number, WINDOW**2),
    }


def track_labels(clip: Clip, frames: list[int], grid: int) -> dict[str, np.ndarray]:
    """
    What can be known in each cell of some frames from these and earlier frames, like a table of all objects that is
    kept up to date. A cell stands for the object that covers it or, without one, for an object that was last seen in
    it and is gone.

    - `cells` (num_known,): indices of the cells that stand for an object, of all num_frames * grid * grid
    - `classes` (num_known, 5): see [`object_classes`]; motion and direction are unknown before the last two frames
    - `past` (num_known, MAX_FRAMES, 4): places of the object, see [`places`]
    - `past_known` (num_known, MAX_FRAMES), bool: the frames up to the cell's own
    - `movements` (num_known, MAX_FRAMES - 1, 2): how far the object moved between neighbouring frames, in fractions of
      the frame
    - `movements_known` (num_known, MAX_FRAMES - 1), bool: where it is visible in both, up to the cell's own frame
    - `moments` (num_known,): the frame in which it appeared, left or stopped, between dense frames, as a fraction of
      `MAX_FRAMES`; -1 if it did not so far
    - `time` (num_frames * grid * grid,): the frame of each cell, which no token of the prompt states
    - `group_cells` (num_frames * grid,): indices of the cells in the last row of each frame
    - `groups` (num_frames * grid, num_classes): see [`group_counts`]
    - `centres` (num_frames * grid * grid,): how many objects have their centre in a cell, at most 2
    - `counts` (num_frames * grid * grid,): how many objects were seen so far, when the cells are read in order
    """
    everything = list(range(len(clip.objects)))
    spots = places(clip, everything, frames)
    covering, centres, appearances, since = follow_objects(spots, objects_of_cells(clip, frames, grid), grid)
    moments, positions = np.nonzero(covering >= 0)
    things = covering[moments, positions]
    classes = np.array([object_classes(clip, thing) for thing in everything])[things]
    classes[moments < len(frames) - 2, 3:] = IGNORED
    keys = np.array([key_moment(clip, thing) for thing in everything])
    times = np.interp(keys, frames, np.arange(len(frames)))[things]
    past = np.zeros((len(things), MAX_FRAMES, PLACE), dtype=np.float32)
    past[:, : len(frames)] = spots[things]
    past_known = np.arange(MAX_FRAMES) <= moments[:, None]
    visible = (past[..., 0] > 0) & past_known
    return {
        "cells": moments * grid**2 + positions,
        "classes": classes,
        "past": past,
        "past_known": past_known,
        "movements": np.diff(past[..., 1:3], axis=1),
        "movements_known": visible[:, 1:] & visible[:, :-1],
        "moments": np.where((keys[things] < 0) | (times > moments), -1, times / MAX_FRAMES).astype(np.float32),
        "time": np.arange(covering.size) // grid**2,
        "group_cells": (np.arange(len(frames))[:, None] * grid**2 + np.arange(grid**2 - grid, grid**2)).reshape(-1),
        "groups": group_counts(clip, since, len(frames)).repeat(grid, 0),
        "centres": np.minimum(centres, 2).reshape(-1),
        "counts": np.minimum(appearances.cumsum(), MAX_OBJECTS),
    }


def follow_objects(
    spots: np.ndarray, covering: np.ndarray, grid: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """
    Where objects are and have been, from their places (num_objects, num_frames, 4) and the object of each cell
    (num_frames, grid * grid). Returns arrays of the shape of `covering`: the object of each cell, also one that was
    last seen in it and is gone; how many objects have their centre in it; and how many are first seen in it. The last
    one, (num_objects,), is the frame in which each object is first seen, `num_frames` if it never is.
    """
    covering, centres, appearances = covering.copy(), np.zeros_like(covering), np.zeros_like(covering)
    since = np.full(len(spots), len(covering))
    for thing, track in enumerate(spots):
        last = None
        for moment, (seen, x, y, _) in enumerate(track):
            if seen:
                last = min(int(y * grid), grid - 1) * grid + min(int(x * grid), grid - 1)
                centres[moment, last] += 1
                if since[thing] == len(covering):
                    since[thing] = moment
                    appearances[moment, last] += 1
            elif last is not None and covering[moment, last] < 0:
                covering[moment, last] = thing
    return covering, centres, appearances, since


def group_counts(clip: Clip, since: np.ndarray, num_frames: int) -> np.ndarray:
    """How many objects of each class of the kinds `GROUPED` were seen up to each frame, at most `MOST_ALIKE`; -100 for
    motions before the last two frames: (num_frames, num_classes). `since`: the frame in which each object is first
    seen."""
    present = (np.arange(num_frames)[:, None] >= since).astype(np.int64)
    classes = np.array([object_classes(clip, thing) for thing in range(len(clip.objects))])
    found = []
    for number, (kind, words) in enumerate(CLOSED_SETS.items()):
        if kind in GROUPED:
            counts = np.minimum(present @ (classes[:, number, None] == np.arange(len(words))), MOST_ALIKE)
            if kind == "motion":
                counts[: max(num_frames - 2, 0)] = IGNORED
            found.append(counts)
    return np.concatenate(found, 1)


def key_moment(clip: Clip, thing: int) -> int:
    """The frame in which an object appears, leaves or stops; -1 if it does none of these, or nobody sees when."""
    if clip.num_frames == 1 or not clip.seen[thing].any() or clip.objects[thing].motion not in KEY_EVENTS:
        return -1
    frame = key_frame(clip, thing)
    return -1 if frame is None else frame


def places(clip: Clip, things: list[int], frames: list[int]) -> np.ndarray:
    """Visibility, centre of the visible pixels and square root of their area, in fractions of the frame:
    (num_objects, num_frames, 4); zeros where not visible."""
    masks = clip.masks[things][:, frames]
    height, width = masks.shape[-2:]
    area = masks.sum(axis=(2, 3))
    safe = np.maximum(area, 1)
    x = masks.sum(2) @ (np.arange(width) + 0.5) / safe / width
    y = masks.sum(3) @ (np.arange(height) + 0.5) / safe / height
    return np.stack([area > 0, x, y, np.sqrt(area / height / width)], -1).astype(np.float32)


def object_classes(clip: Clip, thing: int) -> list[int]:
    """Classes of an object in the order of `CLOSED_SETS`; -100 where none holds for the whole clip."""
    one = clip.objects[thing]
    direction = one.direction if one.motion in DIRECTED else None
    words = (one.colour, one.shape, one.size if one.constant_size else None, one.motion, direction)
    if clip.num_frames == 1:
        words = (*words[:3], None, None)
    return [
        IGNORED if word is None else list(words).index(word)
        for word, words in zip(words, CLOSED_SETS.values(), strict=True)
    ]


def draw_single_masks(number: int, rng: np.random.Generator) -> tuple[np.ndarray, torch.Tensor, torch.Tensor]:
    """Random masks of single objects, some partly occluded: bool (number, FRAME_SIDE, FRAME_SIDE); their classes
    (number, 3), where the colour is unknown; their places (number, 4)."""
    masks, shapes, sizes = np.zeros((number, FRAME_SIDE, FRAME_SIDE), dtype=bool), [], []
    for mask in masks:
        shape, size = rng.integers(len(SHAPES)), rng.integers(len(SIZES))
        while not mask.any():
            mask[:] = paste(SHAPES[shape], tuple(SIZES.values())[size] * rng.uniform(0.93, 1.07), rng)
            if rng.random() < 0.2:
                mask &= ~paste(SHAPES[rng.integers(len(SHAPES))], rng.uniform(0.15, 0.3), rng)
        shapes.append(shape)
        sizes.append(size)
    area = masks.sum((1, 2))
    x, y = (masks.sum(axis) @ (np.arange(FRAME_SIDE) + 0.5) / area / FRAME_SIDE for axis in (1, 2))
    spots = np.stack([np.ones(number), x, y, np.sqrt(area) / FRAME_SIDE], -1).astype(np.float32)
    return masks, torch.tensor([[IGNORED] * number, shapes, sizes]).T, torch.from_numpy(spots)


def paste(shape: str, diameter: float, rng: np.random.Generator) -> np.ndarray:
    """A shape at a random position, bool (FRAME_SIDE, FRAME_SIDE), sometimes cut off by the border."""
    solid = stamp(shape, max(3, round(diameter * FRAME_SIDE)))[0] >= 128
    side = len(solid)
    canvas = np.zeros((FRAME_SIDE + 2 * side, FRAME_SIDE + 2 * side), dtype=bool)
    over = side // 2 if rng.random() < 0.15 else 0
    top, left = rng.integers(side - over, FRAME_SIDE + over + 1, 2)
    canvas[top : top + side, left : left + side] = solid
    return canvas[side:-side, side:-side]


def object_ids(message: dict, kind: str, key: str) -> list[int]:
    """Indices of the objects that parts of this kind refer to."""
    found = [part[key] for part in message["content"] if part["type"] == kind]
    return [int(name) for one in found for name in ([one] if isinstance(one, str) else one)]
