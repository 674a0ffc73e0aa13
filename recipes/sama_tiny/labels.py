"""What is true of the things in toy clips, as the stages of the small model are words it."""

import numpy as np
import torch

from sama.data.collator import IGNORED
from sama.toy_world.clip import Clip
from sama.toy_world.motion import DIRECTIONS, MOTIONS
from sama.toy_world.shapes import COLOURS, SHAPES, SIZES, stamp


SIDE = 64  # frame size of toy world in pixels
CLOSED_SETS = {"colour": COLOURS, "shape": SHAPES, "size": SIZES, "motion": MOTIONS, "direction": DIRECTIONS}
DIRECTED = ("zigzag", "stop", "leave")  # motions with a direction that is not part of their name
PLACE = 4  # visibility, x, y and width, in fractions of the frame
MIN_COVER = 0.1  # fraction of a cell
CELL = 3  # covered fraction of a cell, and that fraction times mean x and y of the covered pixels, from -1 to 1


def cells(masks: np.ndarray, grid: int, of_frame: bool = False) -> np.ndarray:
    """Content of each cell of a grid, see [`CELL`]: (..., grid * grid, 3) of masks (..., height, width). With
    `of_frame` x and y are relative to the frame instead of the cell, so that sums over cells give the position
    of the mask."""
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
    """Content of each cell by colour: (num_frames, grid * grid, num_colours, 3)."""
    held = np.zeros((len(frames), grid * grid, len(COLOURS), CELL), dtype=np.float32)
    for thing, masks in zip(clip.objects, clip.masks, strict=True):
        held[:, :, list(COLOURS).index(thing.colour)] += cells(masks[frames], grid)
    return held


def looks_of_cells(clip: Clip, frames: list[int], grid: int) -> np.ndarray:
    """Shape and size classes of the object that covers most of each cell: (num_frames, grid * grid, 2). -100 for
    cells of which no object covers `MIN_COVER`, and for the size of an object that grows or shrinks."""
    cover = np.stack([cells(masks[frames], grid)[..., 0] for masks in clip.masks])
    looks = np.array([facts(clip, thing)[1:3] for thing in range(len(clip.objects))])
    return np.where(cover.max(0)[..., None] < MIN_COVER, IGNORED, looks[cover.argmax(0)])


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


def facts(clip: Clip, thing: int) -> list[int]:
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


def attention_targets(masks: np.ndarray, grid: int, tokens: int) -> np.ndarray:
    """Target attention of each cell to `tokens` temporal tokens, for masks (num_frames, height, width): shape
    (num_frames, grid * grid, tokens). The first four tokens encode left, right, top and bottom."""
    cover, x, y = np.moveaxis(cells(masks, grid, of_frame=True), -1, 0)
    share = np.minimum(1, 2 * cover)
    x, y = (0.5 + 0.5 * total / np.maximum(cover, 1e-6) for total in (x, y))
    sides = np.stack([1 - x, x, 1 - y, y], -1) / 2 * share[..., None]
    rest = np.repeat((1 - share)[..., None] / (tokens - 4), tokens - 4, -1)
    return np.concatenate([sides, rest], -1).astype(np.float32)


def draw_stamps(number: int, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, torch.Tensor], torch.Tensor]:
    """Random masks of single objects, some partly occluded: bool (number, SIDE, SIDE); their shape and size
    classes; their places (number, 4)."""
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
    """A shape at a random position, bool (SIDE, SIDE), sometimes cut off by the border."""
    solid = stamp(shape, max(3, round(diameter * SIDE)))[0] >= 128
    side = len(solid)
    canvas = np.zeros((SIDE + 2 * side, SIDE + 2 * side), dtype=bool)
    over = side // 2 if rng.random() < 0.15 else 0
    top, left = rng.integers(side - over, SIDE + over + 1, 2)
    canvas[top : top + side, left : left + side] = solid
    return canvas[side:-side, side:-side]


def object_ids(message: dict, kind: str, key: str) -> list[int]:
    """Indices of the objects that parts of this kind refer to."""
    found = [part[key] for part in message["content"] if part["type"] == kind]
    return [int(name) for one in found for name in ([one] if isinstance(one, str) else one)]


def unique_name(clip: Clip, thing: int, rng: np.random.Generator) -> str | None:
    """A name that matches this object only: colour and shape or, half of the time, a random one. `None` for twins."""
    own, others = clip.objects[thing], [one for one in clip.objects if one is not clip.objects[thing]]
    names = (
        [f"the {own.colour} {own.shape}"]
        if all((one.colour, one.shape) != (own.colour, own.shape) for one in others)
        else []
    )
    names += [f"the {own.colour} thing"] if all(one.colour != own.colour for one in others) else []
    names += [f"the {own.shape}"] if all(one.shape != own.shape for one in others) else []
    return names[rng.integers(len(names)) if rng.random() < 0.5 else 0] if names else None
