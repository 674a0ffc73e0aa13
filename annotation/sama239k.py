"""
The records of a run as the files of SAMA-239K, for programs that read only those: a list of videos, one mask file, and
the frames of each video as pictures.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..data.files import atomic_path, write_text_atomically
from ..data.frames import open_visual
from ..data.json_text import parse_json
from ..data.records import DataError, read_lines
from .tags import tag


ANNOTATIONS, MASKS = "sama239k_train_final.json", "mevis_train_mask_dict.json"
# Its readers tell the mask file by a part of the video's path, and know five data sets
VIDEO_FOLDER = "mevis/train/JPEGImages"
QUALITY = 95


def write_sama239k(records: Path, media: Path, folder: Path, trusted: Sequence[Path] = ()) -> dict[str, int]:
    """
    Writes the files that `data/readers/sama239k.py` and the release read.

    Args:
        records (`Path`): `records.jsonl` of a run.
        media (`Path`): Folder of its videos.
        folder (`Path`): Data root. Files of an earlier run are replaced, frames that are there already are kept.
        trusted (sequence of `Path`): Folders in which the videos may lie, see [`trusted_folders`].

    Returns:
        `dict`: How many `videos`, `rounds` and `descriptions` were written.

    Raises:
        DataError: if a record or its video cannot be read.
    """
    videos: list[dict[str, Any]] = []
    masks: dict[str, list] = {}
    for group in _by_video(records):
        videos.append(_write_video(group, media, trusted, folder, masks))
    counts = {"videos": len(videos), "rounds": sum(len(one["obj_masks"]) for one in videos)}
    counts["descriptions"] = sum(len(one["description"]) for one in videos)
    write_text_atomically(folder / MASKS, json.dumps(masks))
    write_text_atomically(folder / ANNOTATIONS, json.dumps(videos, ensure_ascii=False))
    return counts


def _by_video(records: Path) -> Iterator[list[dict]]:
    """The records of each video; those of one video follow each other."""
    group: list[dict] = []
    for number, line in read_lines(records):
        try:
            record = parse_json(line)
        except ValueError as error:
            raise DataError(str(error), file=records, index=f"line {number}") from error
        if group and record["video"] != group[0]["video"]:
            yield group
            group = []
        group.append(record)
    if group:
        yield group


def _write_video(
    group: list[dict], media: Path, trusted: Sequence[Path], folder: Path, masks: dict[str, list]
) -> dict[str, Any]:
    # Not a number, which would mean another video after a run with more of them; with the state of its files, so that
    # frames of a video that was replaced are not taken for those of the new one
    state = [[one.st_size, one.st_mtime_ns] for one in _files(group[0]["video"], media)]
    name = hashlib.sha256(json.dumps([group[0]["video"], state], sort_keys=True).encode()).hexdigest()[:16]
    objects: dict[str, dict] = {}
    for record in group:
        for one, item in record["objects"].items():
            if objects.setdefault(one, item) != item:
                problem = f"has other masks of the object {one!r} than another record of its video"
                raise DataError(problem, index=record["id"], field=f"objects.{one}")
    names = list(objects)
    keys = {}
    for one in names:
        keys[one] = len(masks)
        masks[str(keys[one])] = objects[one]["masks"]
    frames, size = _write_frames(group[0], media, trusted, folder / VIDEO_FOLDER / name)
    entry: dict[str, Any] = {
        "video": f"{VIDEO_FOLDER}/{name}",
        "video_id": name,
        "height": size[0],
        "width": size[1],
        "frames": frames,
        "anno_map": [keys[one] for one in names],
        "description": {},
        "conversation": [],
        "obj_masks": [],
        "groundtruth": [],
    }
    for record in group:
        for question, answer in zip(record["messages"][::2], record["messages"][1::2], strict=True):
            if question.get("templates"):
                number = names.index(question["content"][0]["object"]) + 1
                # The tags of the release count from 0
                entry["description"][tag(number - 1)] = "".join(part["text"] for part in answer["content"])
            else:
                _add_round(entry, question, answer, keys)
    return entry


def _files(visual: dict[str, Any], media: Path) -> Iterator[os.stat_result]:
    """The states of a video file, or of all frames of a folder."""
    path, frames = media / visual["path"], visual.get("frames")  # null for a file, as for [`open_visual`]
    try:
        for file in [path] if frames is None else [path / name for name in frames]:
            yield file.stat()
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror or error})", file=path) from error


def _add_round(entry: dict[str, Any], question: dict, answer: dict, keys: dict[str, int]) -> None:
    asked = "".join("<mask>" if part["type"] == "region" else part["text"] for part in question["content"])
    answered, truths = "", []
    for part in answer["content"]:
        if part["type"] == "text":
            answered += part["text"]
            continue
        answered += f"<p> {part['text']} </p> {' '.join(['[SEG]'] * len(part['objects']))}"
        truths += [[keys[name]] for name in part["objects"]]
    entry["conversation"] += [{"from": "human", "value": asked}, {"from": "gpt", "value": answered}]
    entry["obj_masks"].append([keys[part["object"]] for part in question["content"] if part["type"] == "region"])
    entry["groundtruth"].append(truths)


def _write_frames(
    record: dict, media: Path, trusted: Sequence[Path], folder: Path
) -> tuple[list[str], tuple[int, int]]:
    """The frames as JPEG files; those that are JPEG files already are copied. Returns names without suffix, and the
    size."""
    video = open_visual(record, media, trusted)
    assert video is not None  # records of annotation are about videos
    # Readers of the format take pictures as they are stored
    stored = record["video"].get("frames") if not record["video"].get("upright") else None
    names = [f"{index:05d}" for index in range(len(video))]
    if folder.is_dir():
        return names, (video.height, video.width)
    with atomic_path(folder) as temporary:
        temporary.mkdir(parents=True)
        for index, name in enumerate(names):
            source = media / record["video"]["path"] / stored[index] if stored else None
            if source is not None and source.suffix.lower() in (".jpg", ".jpeg"):
                shutil.copyfile(source, temporary / f"{name}.jpg")
            else:
                Image.fromarray(video[index]).save(temporary / f"{name}.jpg", quality=QUALITY, subsampling=0)
    return names, (video.height, video.width)
