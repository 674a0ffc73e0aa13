"""Overlaps of mask tracks, decoded a few frames at a time to save memory."""

from collections.abc import Iterator, Sequence

import numpy as np

from sama.data.masks import decode_rle
from sama.metrics.iou import Overlaps, overlaps

from .benchmark import RLETrack


CHUNK = 16  # frames decoded at a time


def check_length(track: RLETrack, num_frames: int) -> None:
    """Raises `ValueError` unless a track has one entry per frame, or none, which means an empty mask everywhere."""
    if track and len(track) != num_frames:
        raise ValueError(f"A track has {len(track)} entries for {num_frames} frames.")


def decode_track(track: RLETrack, size: tuple[int, int], frames: Sequence[int]) -> np.ndarray:
    """Bool array of shape `(len(frames), height, width)`; an empty list means an empty mask everywhere."""
    masks = np.zeros((len(frames), *size), dtype=bool)
    for row, frame in enumerate(frames):
        if track and track[frame] is not None:
            masks[row] = decode_rle(track[frame], size)
    return masks


def chunks(num_frames: int) -> Iterator[range]:
    """The frames of a video in chunks of `CHUNK`."""
    yield from (range(start, min(start + CHUNK, num_frames)) for start in range(0, num_frames, CHUNK))


def track_overlaps(
    truths: Sequence[RLETrack], predictions: Sequence[RLETrack], num_frames: int, size: tuple[int, int]
) -> Overlaps:
    """
    Pixel counts of all pairs of tracks over the whole video.

    Args:
        truths, predictions (sequences of `RLETrack`): The tracks to compare.
        num_frames (`int`), size (`(height, width)`): Of the video.

    Raises:
        `ValueError`: The number of entries of a track is neither the number of frames nor 0.
    """
    for track in (*truths, *predictions):
        check_length(track, num_frames)
    shape = (len(truths), len(predictions))
    total = Overlaps(np.zeros(shape, np.int64), np.zeros(shape[0], np.int64), np.zeros(shape[1], np.int64))
    for frames in chunks(num_frames):
        decoded = [[decode_track(track, size, frames) for track in tracks] for tracks in (truths, predictions)]
        total += overlaps(*decoded)
    return total
