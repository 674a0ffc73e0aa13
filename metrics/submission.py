"""Archive formats of the challenge servers: member names and pixel values (evaluation spec 4.1)."""

import numpy as np


# Folder in the archive that holds `<video>/<expression>/<frame>.png`
ARCHIVE_FOLDERS = {"mevis": "", "ref_youtube_vos": "Annotations/"}
WHITE = 255


def member_name(benchmark: str, video: str, expression: str, frame: str) -> str:
    """
    Archive member name of the mask of one frame.

    Args:
        benchmark (`str`): "mevis" or "ref_youtube_vos".
        video, expression (`str`): Their ids.
        frame (`str`): File name of the frame without suffix.
    """
    if benchmark not in ARCHIVE_FOLDERS:
        raise ValueError(
            f"No archive format is known for {benchmark!r}; expected one of {', '.join(ARCHIVE_FOLDERS)}."
        )
    return f"{ARCHIVE_FOLDERS[benchmark]}{video}/{expression}/{frame}.png"


def grey_mask(mask: np.ndarray) -> np.ndarray:
    """A mask of shape `(height, width)` as uint8: 255 on the object, 0 elsewhere."""
    if mask.ndim != 2:
        raise ValueError(f"A mask must have the shape (height, width), got {mask.shape}.")
    return np.where(np.asarray(mask) != 0, WHITE, 0).astype(np.uint8)
