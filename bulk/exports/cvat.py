"""CVAT's own XML, "CVAT for images 1.1", with masks: a file for each video, to upload to the task of that video.

CVAT has no mask tracks; its importer keeps the first mask of one and drops the others. So each mask is a shape of its
frame, and those of an object share a `group_id`. labels.json is what the raw editor of a task's labels takes.
"""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from ...data.files import atomic_path, write_text_atomically
from ...data.frames import join_inside
from ..answers import AnsweredVideo, decode
from .frames import FrameWriter, Videos, labels_of, to_json


VERSION = "1.1"


def write_cvat(videos: Videos, to: Path, frames: FrameWriter) -> dict[str, int]:
    """Writes `<video>.xml` for each video, and `labels.json`; returns what was written, counted."""
    counts = {"videos": 0, "frames": 0, "masks": 0}
    for video in videos():
        video.check_whole("CVAT")
        root = ElementTree.Element("annotations")
        ElementTree.SubElement(root, "version").text = VERSION
        counts["videos"] += 1
        for index, found in video.by_frame():
            name = video.name if video.is_image else f"frame_{index:06d}"  # what CVAT calls the frames of a video
            image = {"id": index, "name": name, "width": video.width, "height": video.height}
            element = ElementTree.SubElement(root, "image", {key: str(value) for key, value in image.items()})
            counts["frames"] += 1
            for one in found:
                ElementTree.SubElement(element, "mask", mask_attributes(video, one, index))
                counts["masks"] += 1
        ElementTree.indent(root)
        with atomic_path(to / f"{join_inside('.', video.name, 'video')}.xml") as temporary:
            ElementTree.ElementTree(root).write(temporary, encoding="utf-8", xml_declaration=True)
    labels = [{"name": name, "type": "mask", "attributes": []} for name in labels_of(videos)]
    write_text_atomically(to / "labels.json", to_json(labels) + "\n")
    return counts


def mask_attributes(video: AnsweredVideo, found, index: int) -> dict[str, str]:
    """The attributes of a mask that is not empty."""
    *runs, left, top, right, bottom = mask_points(decode(video, found, index))
    values = {
        "label": found.label,
        "source": "auto",
        "occluded": 0,
        "rle": ", ".join(map(str, runs)),
        "left": left,
        "top": top,
        "width": right - left + 1,
        "height": bottom - top + 1,
        "z_order": 0,
        "group_id": found.number,
    }
    return {key: str(value) for key, value in values.items()}


def mask_points(mask: np.ndarray) -> list[int]:
    """
    The `points` of a mask that is not empty, as CVAT stores them: the runs within its bounding box, row by row and
    beginning with those that do not belong to it, then left, top, right and bottom of the box, ends inclusive.

    Args:
        mask (`np.ndarray` of shape `(height, width)`, bool)
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, bottom, left, right = int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])
    flat = mask[top : bottom + 1, left : right + 1].ravel()
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(np.concatenate(([0], changes, [flat.size]))).tolist()
    return [*([0] if flat[0] else []), *runs, left, top, right, bottom]
