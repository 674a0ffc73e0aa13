"""Masks as COCO run-length codes, and the only code that decodes or encodes them."""

from collections.abc import Sequence

import numpy as np
from PIL import Image
from pycocotools import mask as coco


# A run length is written five bits at a time; more pieces than this could not be a number of pixels.
MAX_PIECES = 12


def encode_rle(mask: np.ndarray) -> dict:
    """Compressed run-length code of a mask of shape `(height, width)`; what is not zero belongs to the object."""
    if mask.ndim != 2:
        raise ValueError(f"a mask has the shape (height, width), got {mask.shape}")
    code = coco.encode(np.asfortranarray(mask.astype(bool), dtype=np.uint8))
    return {"size": [int(length) for length in code["size"]], "counts": code["counts"].decode("ascii")}


def to_rle(entry, size: Sequence[int] | None = None, check: bool = True) -> dict | None:
    """
    Any form in which an annotation file keeps the mask of one object in one frame, as one compressed code.

    Args:
        entry: `None` (not visible), a compressed or uncompressed run-length code, a list of codes (their union), or a
            list of polygons (their union).
        size (`(height, width)`, *optional*): Needed for polygons, which do not know it.
        check (`bool`): Whether a damaged compressed code is an error here and not only when it is decoded.
    """
    if entry is None or (isinstance(entry, list) and not entry):
        return None
    if isinstance(entry, list):
        if all(isinstance(one, dict) for one in entry):
            return union([to_rle(one, check=check) for one in entry])
        return _rasterise(entry, size)
    if not isinstance(entry, dict) or not {"size", "counts"} <= set(entry):
        raise ValueError(f"a mask is null, a run-length code or a list of them, got {type(entry).__name__}")
    height, width = (int(length) for length in entry["size"])
    counts = entry["counts"]
    if isinstance(counts, str | bytes):
        text = counts.decode("ascii", errors="replace") if isinstance(counts, bytes) else counts
        if check:
            _check_runs(_run_lengths(text), height, width)
        return {"size": [height, width], "counts": text}
    counts = np.asarray(counts, dtype=np.int64)
    _check_runs(counts, height, width)
    code = coco.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
    return {"size": [height, width], "counts": code["counts"].decode("ascii")}


def _rasterise(polygons: list, size: Sequence[int] | None) -> dict:
    if size is None:
        raise ValueError("polygons need the height and width of their image")
    for polygon in polygons:
        # The library takes four numbers for a box and fewer for an error of another kind
        if not isinstance(polygon, list | tuple) or len(polygon) < 6 or len(polygon) % 2:
            raise ValueError("a polygon is a flat list of at least 3 pairs of numbers")
    height, width = (int(length) for length in size)
    points = [[float(number) for number in polygon] for polygon in polygons]
    # One union: summing the polygons would give 2 where they overlap
    code = coco.merge(coco.frPyObjects(points, height, width))
    return {"size": [height, width], "counts": code["counts"].decode("ascii")}


def union(entries: Sequence) -> dict | None:
    """One code for everything that any of the masks covers; `None` if all are `None`. They must agree in size."""
    codes = [code for code in (to_rle(entry, check=False) for entry in entries) if code is not None]
    if len(codes) < 2:
        return codes[0] if codes else None
    masks = [decode_rle(code) for code in codes]
    if len({mask.shape for mask in masks}) > 1:
        raise ValueError(f"masks of the sizes {sorted({mask.shape for mask in masks})} cannot be united")
    return encode_rle(np.logical_or.reduce(masks))


def decode_rle(entry, size: Sequence[int] | None = None, resize: bool = False) -> np.ndarray:
    """
    Bool array of shape `(height, width)`.

    Args:
        entry: Anything that [`to_rle`] takes. `None` is an empty mask and needs `size`.
        size (`(height, width)`, *optional*): What the size must be.
        resize (`bool`): A mask of another size is scaled, by nearest neighbour, instead of being an error.
    """
    code = to_rle(entry, size, check=False)
    if code is None:
        if size is None:
            raise ValueError("an empty mask needs the height and width of its frame")
        return np.zeros(tuple(size), dtype=bool)
    height, width = code["size"]
    if size is not None and (height, width) != tuple(size) and not resize:
        raise ValueError(f"the mask is {height} x {width} (height x width), its frame {size[0]} x {size[1]}")
    # pycocotools does not look whether the runs fill the mask: of a cut code it returns uninitialised memory
    _check_runs(_run_lengths(code["counts"]), height, width)
    mask = coco.decode({"size": [height, width], "counts": code["counts"].encode("ascii")}).astype(bool)
    if size is None or mask.shape == tuple(size):
        return mask
    return np.asarray(Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.NEAREST))


def _run_lengths(counts: str) -> np.ndarray:
    """The run lengths that a compressed code stands for: pieces of five bits, from the fourth on as differences."""
    pieces = np.frombuffer(counts.encode("ascii", errors="replace"), dtype=np.uint8).astype(np.int64) - 48
    if pieces.size == 0 or pieces.min() < 0 or pieces.max() > 63 or pieces[-1] & 32:
        raise ValueError("the run-length code of the mask is cut or damaged")
    last = (pieces & 32) == 0
    starts = np.flatnonzero(np.concatenate(([True], last[:-1])))
    lengths = np.diff(np.concatenate((starts, [pieces.size])))
    if lengths.max() > MAX_PIECES:
        raise ValueError("the run-length code of the mask is cut or damaged")
    shifts = 5 * (np.arange(pieces.size) - np.repeat(starts, lengths))
    runs = np.add.reduceat((pieces & 31) << shifts, starts)
    runs = np.where(pieces[last] & 16, runs - (np.int64(1) << (5 * lengths)), runs)
    runs[1::2], runs[2::2] = np.cumsum(runs[1::2]), np.cumsum(runs[2::2])
    return runs


def _check_runs(runs: np.ndarray, height: int, width: int) -> None:
    if runs.size == 0 or runs.min() < 0 or runs.sum() != height * width:
        raise ValueError(
            f"the run-length code of the mask covers {runs.sum()} pixels instead of {height} x {width}: it is cut or "
            "damaged"
        )


def tight_box(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    """`(x1, y1, x2, y2)` around the object, ends exclusive; `None` for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if rows.size == 0:
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def filled_box(mask: np.ndarray) -> np.ndarray:
    """The tight box around the object, filled; an empty mask stays empty."""
    box = tight_box(mask)
    filled = np.zeros_like(mask, dtype=bool)
    if box is not None:
        filled[box[1] : box[3], box[0] : box[2]] = True
    return filled


def jitter_box(mask: np.ndarray, rng: np.random.Generator, amount: float = 0.1) -> np.ndarray:
    """
    A filled box as a person might draw it: every side is off by up to `amount` of the box's width or height, inside
    the frame and never thinner than a pixel. An empty mask stays empty.
    """
    box = tight_box(mask)
    filled = np.zeros_like(mask, dtype=bool)
    if box is None:
        return filled
    x1, y1, x2, y2 = box
    reach = np.array([x2 - x1, y2 - y1, x2 - x1, y2 - y1]) * amount
    x1, y1, x2, y2 = (np.round(np.array(box) + rng.uniform(-1, 1, 4) * reach)).astype(int)
    height, width = mask.shape
    x1, y1 = int(np.clip(x1, 0, width - 1)), int(np.clip(y1, 0, height - 1))
    filled[y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)] = True
    return filled
