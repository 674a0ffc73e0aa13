"""Masks of whole videos as run-length codes: decoded a few frames at a time, so that no video has to be in memory."""

from collections.abc import Iterator, Sequence

import numpy as np

from sama.data.masks import decode_rle
from sama.metrics.iou import Overlaps, overlaps

from .benchmark import Track


CHUNK = 16  # frames in memory at a time


def check_length(track: Track, num_frames: int) -> None:
    """`ValueError` unless a track has a mask for each frame, or none at all, which is empty everywhere."""
    if track and len(track) != num_frames:
        raise ValueError(f"A track has {len(track)} masks for {num_frames} frames.")


def decode_track(track: Track, size: tuple[int, int], frames: Sequence[int]) -> np.ndarray:
    """Bool array of shape `(len(frames), height, width)`; a track without entries is empty everywhere."""
    masks = np.zeros((len(frames), *size), dtype=bool)
    for row, frame in enumerate(frames):
        if track and track[frame] is not None:
            masks[row] = decode_rle(track[frame], size)
    return masks


def chunks(num_frames: int) -> Iterator[range]:
    """The frames of a video in stretches."""
    yield from (range(start, min(start + CHUNK, num_frames)) for start in range(0, num_frames, CHUNK))


def track_overlaps(
    truths: Sequence[Track], predictions: Sequence[Track], num_frames: int, size: tuple[int, int]
) -> Overlaps:
    """
    Pixels that tracks have in common, through the whole video.

    Args:
        truths, predictions (sequences of `Track`)
        num_frames (`int`), size (`(height, width)`): Of the video.

    Raises:
        `ValueError`: A track has another number of masks than the video has frames, and not none.
    """
    for track in (*truths, *predictions):
        check_length(track, num_frames)
    shape = (len(truths), len(predictions))
    total = Overlaps(np.zeros(shape, np.int64), np.zeros(shape[0], np.int64), np.zeros(shape[1], np.int64))
    for frames in chunks(num_frames):
        decoded = [[decode_track(track, size, frames) for track in tracks] for tracks in (truths, predictions)]
        total += overlaps(*decoded)
    return total
