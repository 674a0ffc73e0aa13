"""What the challenge servers want: names of masks inside the archive, and their grey values (evaluation spec 4.1)."""

import numpy as np


# What stands in front of `<video>/<expression>/<frame>.png` in the archive
ARCHIVE_FOLDERS = {"mevis": "", "ref_youtube_vos": "Annotations/"}
WHITE = 255


def member_name(benchmark: str, video: str, expression: str, frame: str) -> str:
    """
    Name of one mask in the archive of a benchmark.

    Args:
        benchmark (`str`): "mevis" or "ref_youtube_vos".
        video, expression (`str`): Their ids.
        frame (`str`): Name of the frame without suffix.
    """
    if benchmark not in ARCHIVE_FOLDERS:
        raise ValueError(f"{benchmark!r} takes no archive of masks, only {', '.join(ARCHIVE_FOLDERS)}.")
    return f"{ARCHIVE_FOLDERS[benchmark]}{video}/{expression}/{frame}.png"


def grey_mask(mask: np.ndarray) -> np.ndarray:
    """A mask of shape `(height, width)` as 8-bit grey values: 255 on the object, 0 elsewhere."""
    if mask.ndim != 2:
        raise ValueError(f"A mask has the shape (height, width), got {mask.shape}.")
    return np.where(np.asarray(mask) != 0, WHITE, 0).astype(np.uint8)
