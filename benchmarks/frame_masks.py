"""Mask tracks of truth and prediction compared frame by frame, so that no whole video of masks is in memory."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from sama.data.masks import decode_rle
from sama.metrics.jf import boundary_f, region_similarity

from .benchmark import Prediction, Question, Track
from .tracks import check_length


Size = tuple[int, int]  # height and width


def check_shape(question: Question, prediction: Prediction, truth: Sequence[Track]) -> None:
    """`ValueError` if a prediction has another number of frames or another size than the true masks."""
    for track in truth:
        sizes = {tuple(code["size"]) for code in track if code is not None}
        other = [size for size in sizes if size != (prediction.height, prediction.width)]
        if len(track) != prediction.num_frames or other:
            size = other[0] if other else (prediction.height, prediction.width)
            raise ValueError(
                f"The prediction for {question.id!r} has {prediction.num_frames} frames of {prediction.height} x "
                f"{prediction.width} (height x width), its truth {len(track)} of {size[0]} x {size[1]}: it was made "
                "with other files."
            )


def frames(track: Track, num_frames: int, size: Size) -> Iterator[np.ndarray]:
    """The masks of a track, bool of shape `(height, width)` each; a track without entries is empty everywhere."""
    check_length(track, num_frames)
    for frame in range(num_frames):
        yield decode_rle(track[frame] if track else None, size)


def united(tracks: Sequence[Track], num_frames: int, size: Size) -> Iterator[np.ndarray]:
    """What any of the tracks covers, frame by frame."""
    if not tracks:
        yield from frames([], num_frames, size)
        return
    for masks in zip(*(frames(track, num_frames, size) for track in tracks), strict=True):
        yield np.logical_or.reduce(masks)


def summed(tracks: Sequence[Track], num_frames: int, size: Size) -> Iterator[np.ndarray]:
    """How many of the tracks cover a pixel, uint8: the true mask of several objects in the release."""
    for masks in zip(*(frames(track, num_frames, size) for track in tracks), strict=True):
        yield np.sum(masks, axis=0, dtype=np.uint8)


def mean_over(function: Callable, *videos: Iterator[np.ndarray]) -> float:
    """Mean over frames of `function`, which takes one mask of each video."""
    values = [function(*masks) for masks in zip(*videos, strict=True)]
    return float(np.mean(values))


def frame_jf(truth: np.ndarray, prediction: np.ndarray) -> tuple[float, float]:
    """J and F of one frame; empty masks, of which videos have many, are not looked at twice."""
    if not truth.any() and not prediction.any():
        return 1.0, 1.0
    return region_similarity(truth, prediction), boundary_f(truth, prediction)


def track_jf(truth: Iterator[np.ndarray], prediction: Iterator[np.ndarray]) -> list[tuple[float, float]]:
    """J and F of every frame."""
    return [frame_jf(*masks) for masks in zip(truth, prediction, strict=True)]
