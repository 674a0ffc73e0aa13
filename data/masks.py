"""Masks as COCO run-length codes (RLE), which only this file encodes and decodes; and boxes around masks."""

from collections.abc import Sequence

import numpy as np
from PIL import Image
from pycocotools import mask as coco


# A run length is written in chunks of five bits; one of more chunks would not fit 64 bits
MAX_CHUNKS = 12
DAMAGED = "the run-length code of the mask is truncated or damaged"


def encode_rle(mask: np.ndarray) -> dict:
    """Compressed run-length code of a mask of shape `(height, width)`, where nonzero pixels belong to it."""
    if mask.ndim != 2:
        raise ValueError(f"a mask has the shape (height, width), got {mask.shape}")
    code = coco.encode(np.asfortranarray(mask.astype(bool), dtype=np.uint8))
    return {"size": [int(length) for length in code["size"]], "counts": code["counts"].decode("ascii")}


def to_rle(entry, size: Sequence[int] | None = None, check: bool = True) -> dict | None:
    """
    The mask of an object in a frame, in any form that annotation files use, as one compressed run-length code.

    Args:
        entry: `None` (not visible), a compressed or uncompressed run-length code, a list of codes (their union), or a
            list of polygons (their union).
        size (`(height, width)`, *optional*): Needed for polygons, which do not state it.
        check (`bool`): Whether a damaged compressed code is an error here rather than when it is decoded.

    Returns:
        `dict` with `size` and `counts` (`str`), or `None` for an object that is not visible.

    Raises:
        ValueError: if the entry is not a mask, or is damaged.
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
        # pycocotools reads 4 numbers as a box, and fails in other ways on fewer
        if not isinstance(polygon, list | tuple) or len(polygon) < 6 or len(polygon) % 2:
            raise ValueError("a polygon is a flat list of at least 3 pairs of numbers")
    height, width = (int(length) for length in size)
    points = [[float(number) for number in polygon] for polygon in polygons]
    # United, not added up, which would give 2 where polygons overlap
    code = coco.merge(coco.frPyObjects(points, height, width))
    return {"size": [height, width], "counts": code["counts"].decode("ascii")}


def union(entries: Sequence) -> dict | None:
    """The union of masks of one size, as one code; `None` if all of them are `None`."""
    codes = [code for code in (to_rle(entry, check=False) for entry in entries) if code is not None]
    if len(codes) < 2:
        return codes[0] if codes else None
    masks = [decode_rle(code) for code in codes]
    if len({mask.shape for mask in masks}) > 1:
        raise ValueError(f"masks of the sizes {sorted({mask.shape for mask in masks})} cannot be united")
    return encode_rle(np.logical_or.reduce(masks))


def decode_rle(entry, size: Sequence[int] | None = None, resize: bool = False) -> np.ndarray:
    """
    A mask as a bool array of shape `(height, width)`.

    Args:
        entry: Anything that [`to_rle`] takes. `None` is an empty mask and needs `size`.
        size (`(height, width)`, *optional*): The size that the mask must have.
        resize (`bool`): Whether a mask of another size is resized (nearest neighbour). Otherwise it is an error.

    Raises:
        ValueError: if the entry is not a mask, is damaged, or has another size.
    """
    code = to_rle(entry, size, check=False)
    if code is None:
        if size is None:
            raise ValueError("an empty mask needs the height and width of its frame")
        return np.zeros(tuple(size), dtype=bool)
    height, width = code["size"]
    if size is not None and (height, width) != tuple(size) and not resize:
        raise ValueError(f"the mask is {height} x {width} (height x width), its frame {size[0]} x {size[1]}")
    # pycocotools does not check that the runs fill the mask: for a truncated code it returns uninitialised memory
    _check_runs(_run_lengths(code["counts"]), height, width)
    mask = coco.decode({"size": [height, width], "counts": code["counts"].encode("ascii")}).astype(bool)
    if size is None or mask.shape == tuple(size):
        return mask
    return np.asarray(Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.NEAREST))


def _run_lengths(counts: str) -> np.ndarray:
    """
    The run lengths of a compressed code (COCO's `rleFrString`, for all runs at once).

    A character minus 48 is a chunk of six bits. Its lower five bits are part of a number, the lowest part first; bit 5
    says that the number goes on in the next chunk, and bit 4 of the last chunk is the sign. From the fourth number on
    a number is the difference from the run two places before.
    """
    chunks = np.frombuffer(counts.encode("ascii", errors="replace"), dtype=np.uint8).astype(np.int64) - 48
    if chunks.size == 0 or chunks.min() < 0 or chunks.max() > 63 or chunks[-1] & 32:
        raise ValueError(DAMAGED)
    is_last = (chunks & 32) == 0
    starts = np.flatnonzero(np.concatenate(([True], is_last[:-1])))  # of each number
    num_chunks = np.diff(np.concatenate((starts, [chunks.size])))
    if num_chunks.max() > MAX_CHUNKS:
        raise ValueError(DAMAGED)
    shifts = 5 * (np.arange(chunks.size) - np.repeat(starts, num_chunks))
    runs = np.add.reduceat((chunks & 31) << shifts, starts)
    is_negative = (chunks[is_last] & 16) != 0
    runs = np.where(is_negative, runs - (np.int64(1) << (5 * num_chunks)), runs)
    # Undo the differences: every second run is a cumulative sum. Run 0 is stored as it is, and so are runs 1 and 2.
    runs[1::2], runs[2::2] = np.cumsum(runs[1::2]), np.cumsum(runs[2::2])
    return runs


def _check_runs(runs: np.ndarray, height: int, width: int) -> None:
    if runs.size == 0 or runs.min() < 0 or runs.sum() != height * width:
        raise ValueError(
            f"the run-length code of the mask covers {runs.sum()} pixels instead of {height} x {width}: it is "
            "truncated or damaged"
        )


def tight_box(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    """The bounding box `(x1, y1, x2, y2)` of a mask, ends exclusive; `None` for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if rows.size == 0:
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def filled_box(mask: np.ndarray) -> np.ndarray:
    """The filled bounding box of a mask: bool array of the same shape. An empty mask stays empty."""
    box = tight_box(mask)
    filled = np.zeros_like(mask, dtype=bool)
    if box is not None:
        filled[box[1] : box[3], box[0] : box[2]] = True
    return filled


def jitter_box(mask: np.ndarray, rng: np.random.Generator, amount: float = 0.1) -> np.ndarray:
    """
    A filled box as a person might draw it: each side of the bounding box is moved by up to `amount` of the box's width
    or height, within the frame. The box keeps at least one pixel. An empty mask stays empty.
    """
    box = tight_box(mask)
    filled = np.zeros_like(mask, dtype=bool)
    if box is None:
        return filled
    x1, y1, x2, y2 = box
    max_shift = np.array([x2 - x1, y2 - y1, x2 - x1, y2 - y1]) * amount
    x1, y1, x2, y2 = (np.round(np.array(box) + rng.uniform(-1, 1, 4) * max_shift)).astype(int)
    height, width = mask.shape
    x1, y1 = int(np.clip(x1, 0, width - 1)), int(np.clip(y1, 0, height - 1))
    filled[y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)] = True
    return filled
