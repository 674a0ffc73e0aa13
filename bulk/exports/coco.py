"""COCO JSON: an image for each frame, a category for each label, and the masks as run-length codes.

Besides COCO's own fields, images have `video_id` and `frame_index`, annotations `track_id` (the number of the object
in its video) and `score`, and `videos` lists the videos. Tools that do not know them ignore them.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pycocotools import mask as coco

from ...data.files import atomic_path
from ...data.masks import to_rle
from ..answers import AnsweredVideo
from ..pool import BulkError
from .frames import FrameWriter, Videos, frame_name, labels_of, to_json


FILE, IMAGES = "annotations.json", "images"


def write_coco(videos: Videos, to: Path, frames: FrameWriter) -> dict[str, int]:
    """Writes `annotations.json`, and the frames below `images`; returns what was written, counted."""
    labels = labels_of(videos)
    counts = {"videos": 0, "frames": 0, "masks": 0}
    with atomic_path(to / FILE) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write('{"info": {"description": "SAMA"},\n"licenses": [],\n"categories": [')
        file.writelines(_separated({"id": number + 1, "name": name} for name, number in labels.items()))
        file.write('],\n"videos": [')
        file.writelines(_separated(_videos(videos)))
        file.write('],\n"images": [')
        file.writelines(_separated(_images(videos, to, frames, counts)))
        file.write('],\n"annotations": [')
        file.writelines(_separated(_annotations(videos, labels, counts)))
        file.write("]}\n")
    return counts


def _separated(items: Iterator[dict]) -> Iterator[str]:
    for position, item in enumerate(items):
        yield (",\n" if position else "\n") + to_json(item)


def _videos(videos: Videos) -> Iterator[dict]:
    for number, video in enumerate(videos(), start=1):
        size = {"width": video.width, "height": video.height, "length": video.num_frames}
        yield {"id": number, "name": video.name} | size


def _images(videos: Videos, to: Path, frames: FrameWriter, counts: dict[str, int]) -> Iterator[dict]:
    for number, video in enumerate(videos(), start=1):
        frames.write(video, range(video.num_frames), to / IMAGES)
        counts["videos"] += 1
        for index in range(video.num_frames):
            counts["frames"] += 1
            image = {"id": counts["frames"], "file_name": frame_name(video, index, frames.active), "video_id": number}
            yield image | {"frame_index": index, "width": video.width, "height": video.height}


def _annotations(videos: Videos, labels: dict[str, int], counts: dict[str, int]) -> Iterator[dict]:
    first = 1  # id of the first image of the video
    for video in videos():
        for index, found in video.by_frame():
            for one in found:
                code: Any = checked_code(video, one.masks[index], one.question, index)
                counts["masks"] += 1
                yield {
                    "id": counts["masks"],
                    "image_id": first + index,
                    "category_id": labels[one.label] + 1,
                    "segmentation": code,
                    "area": int(coco.area(code)),
                    "bbox": coco.toBbox(code).tolist(),
                    "iscrowd": 0,
                    "track_id": one.number,
                } | ({} if one.score is None else {"score": one.score})
        first += video.num_frames


def checked_code(video: AnsweredVideo, code: dict, question: str, frame: int) -> dict:
    """A run-length code that pycocotools may read; [`BulkError`] if it is damaged."""
    try:
        checked = to_rle(code)
    except ValueError as error:
        raise BulkError(f"The answer {question!r} has a damaged mask on frame {frame}: {error}.") from error
    if checked is None:
        raise BulkError(f"The answer {question!r} about {video.name!r} has no mask on frame {frame}.")
    return checked
