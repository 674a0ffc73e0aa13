"""The data set form of YOLO's segmentation models: a text file for each picture, a line for each object.

A line is the number of the class and one polygon, x and y as parts of width and height. An object of several parts or
with holes is one polygon with bridges of no width, as that format has one polygon for an object. data.yaml names the
classes. Training needs the pictures: --frames.
"""

from pathlib import Path, PurePosixPath

import numpy as np

from ...data.files import write_text_atomically
from ..answers import AnsweredVideo, decode
from ..pool import BulkError
from .frames import FrameWriter, Videos, frame_name, joined, labels_of, rings_of, to_json


IMAGES, LABELS = "images/train", "labels/train"
# Readers cut or round coordinates to whole pixels and fill, with OpenCV, all that a border touches. A border that runs
# just outside the centers of the mask's own pixels, a quarter of a pixel up and left, is filled to exactly the mask
# by both
LEVEL, SHIFT = 0.9, 0.25


def write_yolo(videos: Videos, to: Path, frames: FrameWriter) -> dict[str, int]:
    """Writes `data.yaml` and the lines below `labels/train`, with the frames below `images/train`; returns what was
    written, counted. [`BulkError`] for a video in a folder `images`."""
    labels = labels_of(videos)
    counts = {"videos": 0, "frames": 0, "masks": 0}
    for video in videos():
        if "images" in PurePosixPath(video.name).parts:
            raise BulkError(
                f"{video.name!r} lies in a folder 'images', by whose name readers of this format find the labels: "
                "rename it."
            )
        counts["videos"] += 1
        frames.write(video, range(video.num_frames), to / IMAGES)
        visible = dict(video.by_frame())
        for index in range(video.num_frames):
            lines = [line_of(labels[one.label], decode(video, one, index), video) for one in visible.get(index, ())]
            path = (to / LABELS / frame_name(video, index, frames.active)).with_suffix(".txt")
            write_text_atomically(path, "".join(lines))  # an empty file: nothing is visible
            counts["frames"] += 1
            counts["masks"] += len(lines)
    names = "".join(f"  {number}: {to_json(name)}\n" for name, number in labels.items())
    # No `path`: it then is the folder of this file, wherever that is moved. Both keys must be there, so they name the
    # same pictures; whoever trains divides them
    write_text_atomically(to / "data.yaml", f"train: {IMAGES}\nval: {IMAGES}\nnames:\n" + (names or "  {}\n"))
    return counts


def line_of(label: int, mask: np.ndarray, video: AnsweredVideo) -> str:
    """The line of a mask that is not empty."""
    ring = (joined(rings_of(mask, LEVEL)) - SHIFT) / (video.width, video.height)
    return " ".join([str(label), *(f"{value:.6f}" for value in np.clip(ring, 0, 1).ravel())]) + "\n"
