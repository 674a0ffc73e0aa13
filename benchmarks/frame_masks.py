"""True and predicted mask tracks, decoded and compared frame by frame to save memory."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from sama.data.masks import decode_rle
from sama.metrics.jf import boundary_f, region_similarity

from .benchmark import Prediction, Question, RLETrack
from .tracks import check_length


Size = tuple[int, int]  # height and width


def check_shape(question: Question, prediction: Prediction, truth: Sequence[RLETrack]) -> None:
    """Raises `ValueError` if a prediction and the true masks differ in number of frames or in size."""
    for track in truth:
        sizes = {tuple(code["size"]) for code in track if code is not None}
        other = [size for size in sizes if size != (prediction.height, prediction.width)]
        if len(track) != prediction.num_frames or other:
            size = other[0] if other else (prediction.height, prediction.width)
            raise ValueError(
                f"The prediction for {question.id!r} has {prediction.num_frames} frames of {prediction.height} x "
                f"{prediction.width} (height x width), the annotation {len(track)} of {size[0]} x {size[1]}: the "
                "prediction was probably made with other files."
            )


def frames(track: RLETrack, num_frames: int, size: Size) -> Iterator[np.ndarray]:
    """The masks of a track, bool arrays of shape `(height, width)`; an empty list means an empty mask everywhere."""
    check_length(track, num_frames)
    for frame in range(num_frames):
        yield decode_rle(track[frame] if track else None, size)


def united(tracks: Sequence[RLETrack], num_frames: int, size: Size) -> Iterator[np.ndarray]:
    """The union of the tracks, frame by frame."""
    if not tracks:
        yield from frames([], num_frames, size)
        return
    for masks in zip(*(frames(track, num_frames, size) for track in tracks), strict=True):
        yield np.logical_or.reduce(masks)


def any_pixel(tracks: Sequence[RLETrack], size: Size) -> bool:
    """Whether any track has a pixel in any frame."""
    return any(decode_rle(code, size).any() for track in tracks for code in track if code is not None)


def summed(tracks: Sequence[RLETrack], num_frames: int, size: Size) -> Iterator[np.ndarray]:
    """The sum of the tracks, frame by frame, uint8."""
    for masks in zip(*(frames(track, num_frames, size) for track in tracks), strict=True):
        yield np.sum(masks, axis=0, dtype=np.uint8)


def mean_over(function: Callable, *videos: Iterator[np.ndarray]) -> float:
    """Mean over frames of `function(mask_of_first_video, mask_of_second_video, ...)`."""
    values = [function(*masks) for masks in zip(*videos, strict=True)]
    return float(np.mean(values))


def frame_jf(truth: np.ndarray, prediction: np.ndarray) -> tuple[float, float]:
    """J and F of one frame, with a shortcut for two empty masks, which are frequent."""
    if not truth.any() and not prediction.any():
        return 1.0, 1.0
    return region_similarity(truth, prediction), boundary_f(truth, prediction)


def track_jf(truth: Iterator[np.ndarray], prediction: Iterator[np.ndarray]) -> list[tuple[float, float]]:
    """J and F of every frame."""
    return [frame_jf(*masks) for masks in zip(truth, prediction, strict=True)]


def no_target_jf(prediction: Iterator[np.ndarray]) -> list[tuple[float, float]]:
    """J and F of every frame where nothing fits: 1 without a predicted pixel, else 0. DAVIS' F is of no use there: a
    mask that covers the whole frame has no boundary either, so it would be 1."""
    return [(float(not mask.any()),) * 2 for mask in prediction]


def are_touching(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two tracks, bool of shape `(num_frames, height, width)`, overlap or have neighbouring pixels, also at
    corners, in any frame."""
    padded = np.pad(first, ((0, 0), (1, 1), (1, 1)))
    grown = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2)).any((-2, -1))
    return bool((grown & second).any())
