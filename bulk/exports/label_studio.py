"""Label Studio: a task for each frame with objects, whose predictions are brush masks.

Label Studio has no masks in videos, so frames are pictures: --frames writes them below `images`. Its addresses of
pictures begin as those of files that it serves itself (its setting LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT names the
folder of the export).
"""

from pathlib import Path
from urllib.parse import quote
from xml.etree import ElementTree

import numpy as np

from ...data.files import atomic_path, write_text_atomically
from ..answers import AnsweredVideo, FoundObject, decode
from .frames import FrameWriter, Videos, frame_name, labels_of, to_json


TASKS, CONFIG, IMAGES = "tasks.json", "labeling_config.xml", "images"
SERVED = "/data"  # where Label Studio serves files itself
ADDRESS = f"{SERVED}/local-files/?d=images/"
FROM_NAME, TO_NAME, MODEL = "masks", "image", "SAMA"
# Of the run-length code: bits of a value, and of the lengths that a run may be written with
WORD_SIZE, LENGTH_BITS = 8, (3, 4, 8, 16)
CHANNELS, INSIDE = 4, 255


def write_label_studio(videos: Videos, to: Path, frames: FrameWriter) -> dict[str, int]:
    """Writes `tasks.json` and `labeling_config.xml`, and the frames below `images`; returns what was written,
    counted."""
    counts = {"videos": 0, "frames": 0, "masks": 0}
    with atomic_path(to / TASKS) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write("[")
        for video in videos():
            counts["videos"] += 1
            visible = list(video.by_frame())
            frames.write(video, [index for index, _ in visible], to / IMAGES)
            for index, found in visible:
                task = _task(video, index, found, frame_name(video, index, frames.active))
                file.write(("," if counts["frames"] else "") + "\n" + to_json(task))
                counts["frames"] += 1
                counts["masks"] += len(found)
        file.write("\n]\n")
    write_text_atomically(to / CONFIG, labeling_config(list(labels_of(videos))))
    return counts


def labeling_config(labels: list[str]) -> str:
    """The labeling interface of the project."""
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Image", {"name": TO_NAME, "value": "$image", "zoom": "true"})
    brush = ElementTree.SubElement(view, "BrushLabels", {"name": FROM_NAME, "toName": TO_NAME})
    for label in labels:
        ElementTree.SubElement(brush, "Label", {"value": label})
    ElementTree.indent(view)
    return ElementTree.tostring(view, encoding="unicode") + "\n"


def _task(video: AnsweredVideo, index: int, found: list[FoundObject], picture: str) -> dict:
    data = {"image": ADDRESS + quote(picture), "video": video.name, "frame": index}
    results = [_result(video, index, one) for one in found]
    scores = [one.score for one in found if one.score is not None]
    score = {"score": sum(scores) / len(scores)} if scores else {}
    return {"data": data, "predictions": [{"model_version": MODEL, **score, "result": results}]}


def _result(video: AnsweredVideo, index: int, found: FoundObject) -> dict:
    runs = brush_runs(decode(video, found, index))
    return {
        "id": f"o{found.number}f{index}",
        "type": "brushlabels",
        "from_name": FROM_NAME,
        "to_name": TO_NAME,
        "original_width": video.width,
        "original_height": video.height,
        "image_rotation": 0,
        "value": {"format": "rle", "rle": runs, "brushlabels": [found.label]},
        "meta": {"text": [f"{found.phrase} ({found.question})"]},
    } | ({} if found.score is None else {"score": found.score})


def brush_runs(mask: np.ndarray) -> list[int]:
    """
    A mask as Label Studio's brush tool stores it: the bytes of a bit stream. Its head tells the number of values (four
    channels a pixel, row by row), the bits of a value, and the four widths of lengths. Then each run has the bit 1,
    two bits for which width, the length minus one in that many bits, and its value.

    Args:
        mask (`np.ndarray` of shape `(height, width)`, bool)
    """
    flat = mask.ravel()
    starts = np.concatenate(([0], np.flatnonzero(flat[1:] != flat[:-1]) + 1))
    lengths = np.diff(np.concatenate((starts, [flat.size]))) * CHANNELS
    bits = [f"{flat.size * CHANNELS:032b}", f"{WORD_SIZE - 1:05b}", *(f"{width - 1:04b}" for width in LENGTH_BITS)]
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        value = INSIDE if flat[start] else 0
        while length:
            part = min(length, 2 ** LENGTH_BITS[-1])
            which = next(number for number, width in enumerate(LENGTH_BITS) if part <= 2**width)
            bits.append(f"1{which:02b}{part - 1:0{LENGTH_BITS[which]}b}{value:0{WORD_SIZE}b}")
            length -= part
    stream = "".join(bits)
    stream += "0" * (-len(stream) % 8)
    return list(int(stream, 2).to_bytes(len(stream) // 8, "big"))
