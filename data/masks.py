"""Masks in every form that annotation files use as COCO run-length codes (RLE); and boxes around masks."""

from collections.abc import Sequence

import numpy as np
from PIL import Image
from pycocotools import mask as coco

from sama.objects_sama import MaskTrack
from sama.regions_sama import DAMAGED, MAX_CHUNKS, MAX_MASK_PIXELS, run_lengths, shortened

from .numbers import is_number, is_whole


# pycocotools trusts its input: a wrong length, a NaN or a huge coordinate crashes the process or takes minutes.
# Everything is therefore checked here, with limits that no video reaches, before its C code runs.
MAX_SIDE = 65_535  # the longest side of a JPEG
MAX_PIXELS = MAX_MASK_PIXELS  # a frame of 16K video, 15,360 x 8,640, has fewer
MAX_POLYGON_NUMBERS = 100_000  # of all polygons of a mask
MAX_OUTLINE = 1_000_000  # length of all polygons of a mask in pixels, of which pycocotools visits every fifth part


def checked_size(size) -> tuple[int, int]:
    """`(height, width)` of a mask or an image; `ValueError` unless both are whole numbers within the limits."""
    if not isinstance(size, list | tuple) or len(size) != 2 or not all(map(is_whole, size)):
        raise ValueError(f"a size is [height, width] in whole pixels, got {shortened(size)}")
    height, width = (int(length) for length in size)
    if min(height, width) < 1:
        raise ValueError(f"the size {height} x {width} (height x width) has no pixels")
    if max(height, width) > MAX_SIDE or height * width > MAX_PIXELS:
        raise ValueError(
            f"the size {height} x {width} (height x width) exceeds the limits of {MAX_SIDE} pixels a side and "
            f"{MAX_PIXELS} pixels in all"
        )
    return height, width


def encode_rle(mask: np.ndarray) -> dict:
    """Compressed run-length code of a mask of shape `(height, width)`, where nonzero pixels belong to it."""
    if mask.ndim != 2:
        raise ValueError(f"a mask has the shape (height, width), got {mask.shape}")
    checked_size(mask.shape)
    if mask.dtype.kind not in "biuf":
        raise ValueError(f"a mask holds numbers, or true and false, got the type {mask.dtype}")
    if mask.dtype.kind == "f" and not np.isfinite(mask).all():
        raise ValueError("a mask contains NaN or infinity, which neither belong to the object nor do not")
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
        ValueError: if the entry is not a mask, is damaged, or exceeds the limits of this file.
    """
    if entry is None or (isinstance(entry, list) and not entry):
        return None
    if isinstance(entry, list):
        if all(isinstance(one, dict) for one in entry):
            return union([to_rle(one, check=check) for one in entry])
        return _rasterise(entry, size)
    if not isinstance(entry, dict) or not {"size", "counts"} <= set(entry):
        raise ValueError(f"a mask is null, a run-length code or a list of them, got {type(entry).__name__}")
    height, width = checked_size(entry["size"])
    counts = entry["counts"]
    if isinstance(counts, str | bytes):
        text = counts.decode("ascii", errors="replace") if isinstance(counts, bytes) else counts
        # Two runs a pixel: none is needed, but some writers put runs of length 0 in between
        if not text.isascii() or len(text) > 2 * MAX_CHUNKS * (height * width + 1):
            raise ValueError(DAMAGED)
        if check:
            _check_runs(run_lengths(text), height, width)
        return {"size": [height, width], "counts": text}
    return {"size": [height, width], "counts": _compressed(_counted_runs(counts, height, width), height, width)}


def frame_code(track: MaskTrack, frame: int) -> dict | None:
    """The mask of one frame of a track as compressed COCO RLE; `None` where the object is not visible."""
    return to_rle(track.to_rle(frame)) if track.area(frame) else None


def _counted_runs(counts, height: int, width: int) -> np.ndarray:
    """The run lengths of an uncompressed code, checked."""
    if isinstance(counts, np.ndarray) and counts.dtype.kind in "iu" and counts.ndim == 1:
        counts = counts.tolist()
    if not isinstance(counts, list | tuple):
        raise ValueError(f"the counts of a run-length code are text or a list of numbers, got {shortened(counts)}")
    if not all(map(is_whole, counts)):
        wrong = next(count for count in counts if not is_whole(count))
        raise ValueError(f"the counts of a run-length code are whole numbers, got {shortened(wrong)}")
    runs = np.array(counts, dtype=np.int64)
    _check_runs(runs, height, width)
    return runs


def _compressed(runs: np.ndarray, height: int, width: int) -> str:
    code = coco.frPyObjects({"size": [height, width], "counts": runs.tolist()}, height, width)
    return code["counts"].decode("ascii")


def _rasterise(polygons: list, size: Sequence[int] | None) -> dict:
    if size is None:
        raise ValueError("polygons need the height and width of their image")
    height, width = checked_size(size)
    for polygon in polygons:
        # pycocotools reads 4 numbers as a box, and fails in other ways on fewer
        if not isinstance(polygon, list | tuple) or len(polygon) < 6 or len(polygon) % 2:
            raise ValueError("a polygon is a flat list of at least 3 pairs of numbers")
    count = sum(map(len, polygons))
    if count > MAX_POLYGON_NUMBERS:
        raise ValueError(f"the polygons of a mask have {count} numbers, more than {MAX_POLYGON_NUMBERS}")
    points = [_checked_polygon(polygon, height, width) for polygon in polygons]
    outline = sum(float(np.abs(one - np.roll(one, -1, axis=0)).max(axis=1).sum()) for one in points)
    if outline > MAX_OUTLINE:
        raise ValueError(f"the polygons of a mask are {outline:.0f} pixels long together, more than {MAX_OUTLINE}")
    values = np.concatenate(points)
    if 0 <= values.min() < values.max() <= 1 < min(height, width) and (values % 1).any():
        raise ValueError(
            f"the polygons lie inside 0..1 of an image of {height} x {width} (height x width): they look normalised, "
            "pixels are expected"
        )
    # United, not added up, which would give 2 where polygons overlap
    code = coco.merge(coco.frPyObjects([one.ravel().tolist() for one in points], height, width))
    return {"size": [height, width], "counts": code["counts"].decode("ascii")}


def _checked_polygon(polygon: Sequence, height: int, width: int) -> np.ndarray:
    """The points of a polygon, `(num_points, 2)`. They may lie outside the image, but not by more than its size."""
    if not all(map(is_number, polygon)):
        wrong = next(number for number in polygon if not is_number(number))
        raise ValueError(f"a polygon is made of finite numbers, got {shortened(wrong)}")
    points = np.array(polygon, dtype=np.float64).reshape(-1, 2)
    margin = max(height, width)
    far = (points < -margin) | (points > np.array([width, height]) + margin)
    if far.any():
        x, y = points[far.any(axis=1)][0]
        raise ValueError(
            f"a polygon has the point ({x:g}, {y:g}), far outside its image of {height} x {width} (height x width)"
        )
    return points


def union(entries: Sequence) -> dict | None:
    """The union of masks of one size, as one code; `None` if all of them are `None`. Nothing is decoded."""
    codes = [code for code in (to_rle(entry, check=False) for entry in entries) if code is not None]
    if len(codes) < 2:
        return codes[0] if codes else None
    sizes = sorted({tuple(code["size"]) for code in codes})
    if len(sizes) > 1:
        raise ValueError(f"masks of the sizes {sizes} cannot be united")
    height, width = sizes[0]
    # The stretches of all masks as changes of a counter, which is 0 where no mask is
    ends = [np.cumsum(_checked_runs(code)) for code in codes]
    starts = np.concatenate([one[0:-1:2] for one in ends])
    stops = np.concatenate([one[1::2] for one in ends])
    starts, stops = starts[stops > starts], stops[stops > starts]
    places, steps = np.concatenate([starts, stops]), np.repeat([1, -1], [starts.size, stops.size])
    order = np.lexsort((-steps, places))  # at the same place beginnings come first, so that neighbours are joined
    places, steps = places[order], steps[order]
    depth = np.cumsum(steps)
    borders = places[(depth == 0) | ((depth == 1) & (steps == 1))]
    runs = np.diff(np.concatenate(([0], borders, [height * width])))
    runs = runs[:-1] if runs.size > 1 and runs[-1] == 0 else runs
    return {"size": [height, width], "counts": _compressed(runs, height, width)}


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
    wanted = None if size is None else checked_size(tuple(size))
    code = to_rle(entry, wanted, check=False)
    if code is None:
        if wanted is None:
            raise ValueError("an empty mask needs the height and width of its frame")
        return np.zeros(wanted, dtype=bool)
    height, width = code["size"]
    if wanted is not None and (height, width) != wanted and not resize:
        raise ValueError(f"the mask is {height} x {width} (height x width), its frame {wanted[0]} x {wanted[1]}")
    # pycocotools does not check that the runs fill the mask: for a truncated code it returns uninitialised memory
    runs = _checked_runs(code)
    if wanted is None or (height, width) == wanted:
        return coco.decode({"size": [height, width], "counts": code["counts"].encode("ascii")}).astype(bool)
    # Only the pixels that are wanted are looked up: a mask may be much larger than its frame
    rows, columns = _nearest(height, wanted[0]), _nearest(width, wanted[1])
    return np.searchsorted(np.cumsum(runs), columns[None] * height + rows[:, None], side="right") % 2 == 1


def _nearest(length: int, wanted: int) -> np.ndarray:
    """The positions along a side that remain when it is resized by nearest neighbour, as Pillow chooses them."""
    ramp = Image.fromarray(np.arange(length, dtype=np.int32)[None])
    return np.asarray(ramp.resize((wanted, 1), Image.Resampling.NEAREST))[0].astype(np.int64)


def _checked_runs(code: dict) -> np.ndarray:
    runs = run_lengths(code["counts"])
    _check_runs(runs, *code["size"])
    return runs


def _check_runs(runs: np.ndarray, height: int, width: int) -> None:
    # The largest first: a sum of numbers of 64 bits could wrap around to the right one
    if runs.size == 0 or runs.min() < 0 or runs.max() > height * width or runs.sum() != height * width:
        covered = sum(runs.tolist())
        raise ValueError(
            f"the run-length code of the mask covers {covered} pixels instead of {height} x {width}: it is truncated "
            "or damaged"
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
