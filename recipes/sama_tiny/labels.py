"""What is true of the things in toy clips, as the stages of the small model are told it."""

import numpy as np
import torch

from sama.data.collator import IGNORED
from sama.toy_world.clip import Clip
from sama.toy_world.motion import DIRECTIONS, MOTIONS
from sama.toy_world.shapes import COLOURS, SHAPES, SIZES, stamp


SIDE = 64  # of toy world's frames
CLOSED_SETS = {"colour": COLOURS, "shape": SHAPES, "size": SIZES, "motion": MOTIONS, "direction": DIRECTIONS}
DIRECTED = ("zigzag", "stop", "leave")  # motions with a direction that their name does not tell
PLACE = 4  # seen or not, x, y and width, in shares of the picture
LEAST_HELD = 0.1  # share of a cell
CELL = 3  # share of a cell that is covered, and that share times mean x and y of the covered pixels, from -1 to 1


def cells(masks: np.ndarray, grid: int, of_frame: bool = False) -> np.ndarray:
    """What each cell of a grid holds of a mask (..., height, width), as [`CELL`] says: (..., grid * grid, 3).
    `of_frame`: x and y are -1 to 1 in the frame, not in the cell, so that sums over cells tell where the mask is."""
    height, width = (side // grid for side in masks.shape[-2:])
    parts = masks.reshape(*masks.shape[:-2], grid, height, grid, width).astype(np.float32)
    down, across = (np.linspace(-1, 1, side, dtype=np.float32) for side in (height, width))
    if of_frame:
        down, across = (np.linspace(-1, 1, side, dtype=np.float32) for side in masks.shape[-2:])
        down, across = down.reshape(grid, 1, height).swapaxes(1, 2), across.reshape(grid, width)
    else:
        down = down[:, None]
    rows, columns = parts.mean(-1), parts.mean(-3)  # (..., grid, height, grid) and (..., grid, grid, width)
    held = np.stack([columns.mean(-1), (columns * across).mean(-1), (rows * down).mean(-2)], -1)
    return held.reshape(*masks.shape[:-2], grid * grid, CELL)


def colours_of_cells(clip: Clip, frames: list[int], grid: int) -> np.ndarray:
    """What each cell of a grid holds of each colour: (num_frames, grid * grid, num_colours, 3)."""
    held = np.zeros((len(frames), grid * grid, len(COLOURS), CELL), dtype=np.float32)
    for thing, masks in zip(clip.objects, clip.masks, strict=True):
        held[:, :, list(COLOURS).index(thing.colour)] += cells(masks[frames], grid)
    return held


def looks_of_cells(clip: Clip, frames: list[int], grid: int) -> np.ndarray:
    """Shape and size, as classes, of the thing that each cell of a grid holds most of: (num_frames, grid * grid, 2);
    -100 for cells that hold less than `LEAST_HELD` of every thing, and where a size is not true of the whole clip."""
    cover = np.stack([cells(masks[frames], grid)[..., 0] for masks in clip.masks])
    looks = np.array([facts(clip, thing)[1:3] for thing in range(len(clip.objects))])
    return np.where(cover.max(0)[..., None] < LEAST_HELD, IGNORED, looks[cover.argmax(0)])


def places(clip: Clip, things: list[int], frames: list[int]) -> np.ndarray:
    """Seen or not, centre of the visible pixels and their width, (num_things, num_frames, 4); zeros where unseen."""
    masks = clip.masks[things][:, frames]
    height, width = masks.shape[-2:]
    area = masks.sum(axis=(2, 3))
    safe = np.maximum(area, 1)
    x = masks.sum(2) @ (np.arange(width) + 0.5) / safe / width
    y = masks.sum(3) @ (np.arange(height) + 0.5) / safe / height
    return np.stack([area > 0, x, y, np.sqrt(area / height / width)], -1).astype(np.float32)


def facts(clip: Clip, thing: int) -> list[int]:
    """The classes of a thing in the order of `CLOSED_SETS`; -100 for what is not true of the whole clip."""
    one = clip.objects[thing]
    direction = one.direction if one.motion in DIRECTED else None
    told = (one.colour, one.shape, one.size if one.constant_size else None, one.motion, direction)
    if clip.num_frames == 1:
        told = (*told[:3], None, None)
    return [
        IGNORED if word is None else list(words).index(word)
        for word, words in zip(told, CLOSED_SETS.values(), strict=True)
    ]


def readers(masks: np.ndarray, grid: int, tokens: int) -> np.ndarray:
    """The share of each of `tokens` tokens in what each cell of masks (num_frames, height, width) is to read, of shape
    (num_frames, grid * grid, tokens). The first four stand for left, right, top and bottom."""
    cover, x, y = np.moveaxis(cells(masks, grid, of_frame=True), -1, 0)
    share = np.minimum(1, 2 * cover)
    x, y = (0.5 + 0.5 * total / np.maximum(cover, 1e-6) for total in (x, y))
    sides = np.stack([1 - x, x, 1 - y, y], -1) / 2 * share[..., None]
    rest = np.repeat((1 - share)[..., None] / (tokens - 4), tokens - 4, -1)
    return np.concatenate([sides, rest], -1).astype(np.float32)


def draw_stamps(number: int, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, torch.Tensor], torch.Tensor]:
    """Masks of single things anywhere in a picture, a part of them behind another: bool (number, SIDE, SIDE); their
    shape and size as classes; their places (number, 4)."""
    masks, shapes, sizes = np.zeros((number, SIDE, SIDE), dtype=bool), [], []
    for mask in masks:
        shape, size = rng.integers(len(SHAPES)), rng.integers(len(SIZES))
        while not mask.any():
            mask[:] = paste(SHAPES[shape], tuple(SIZES.values())[size] * rng.uniform(0.93, 1.07), rng)
            if rng.random() < 0.2:
                mask &= ~paste(SHAPES[rng.integers(len(SHAPES))], rng.uniform(0.15, 0.3), rng)
        shapes.append(shape)
        sizes.append(size)
    area = masks.sum((1, 2))
    x, y = (masks.sum(axis) @ (np.arange(SIDE) + 0.5) / area / SIDE for axis in (1, 2))
    spots = np.stack([np.ones(number), x, y, np.sqrt(area) / SIDE], -1).astype(np.float32)
    return masks, {"shape": torch.tensor(shapes), "size": torch.tensor(sizes)}, torch.from_numpy(spots)


def paste(shape: str, diameter: float, rng: np.random.Generator) -> np.ndarray:
    """A shape at a random place, (SIDE, SIDE), mostly whole, at times cut by an edge of the picture."""
    solid = stamp(shape, max(3, round(diameter * SIDE)))[0] >= 128
    side = len(solid)
    canvas = np.zeros((SIDE + 2 * side, SIDE + 2 * side), dtype=bool)
    over = side // 2 if rng.random() < 0.15 else 0
    top, left = rng.integers(side - over, SIDE + over + 1, 2)
    canvas[top : top + side, left : left + side] = solid
    return canvas[side:-side, side:-side]


def named(message: dict, kind: str, key: str) -> list[int]:
    """The things that parts of a message point at."""
    found = [part[key] for part in message["content"] if part["type"] == kind]
    return [int(name) for one in found for name in ([one] if isinstance(one, str) else one)]


def name_of(clip: Clip, thing: int, rng: np.random.Generator) -> str | None:
    """A name that suits this thing alone, as short as can be for half of them; None for a twin."""
    own, others = clip.objects[thing], [one for one in clip.objects if one is not clip.objects[thing]]
    names = (
        [f"the {own.colour} {own.shape}"]
        if all((one.colour, one.shape) != (own.colour, own.shape) for one in others)
        else []
    )
    names += [f"the {own.colour} thing"] if all(one.colour != own.colour for one in others) else []
    names += [f"the {own.shape}"] if all(one.shape != own.shape for one in others) else []
    return names[rng.integers(len(names)) if rng.random() < 0.5 else 0] if names else None
