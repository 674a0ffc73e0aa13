"""Answers in the formats of other tools, as masks. A file for each format; docs/bulk.md describes what they hold."""

import shutil
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path, PurePath

from ..answers import AnsweredVideo, answer_files, read_videos
from ..pool import BulkError
from .coco import write_coco
from .cvat import write_cvat
from .fiftyone import write_fiftyone
from .frames import FrameWriter, Videos, frame_name
from .label_studio import write_label_studio
from .yolo import write_yolo


WRITERS: dict[str, Callable[[Videos, Path, FrameWriter], dict[str, int]]] = {
    "coco": write_coco,
    "yolo": write_yolo,
    "label-studio": write_label_studio,
    "cvat": write_cvat,
    "fiftyone": write_fiftyone,
}
FORMATS = tuple(WRITERS)
WITH_FRAMES = ("coco", "yolo", "label-studio")  # the others take the videos themselves


def export(
    format: str, answers: Path, to: Path, media: Path | None = None, with_frames: bool = False
) -> dict[str, int]:
    """
    Writes answers in the format of another tool.

    Args:
        format (`str`): One of `FORMATS`.
        answers (`Path`): Folder of a run, or one of its Parquet files.
        to (`Path`): Folder of the export. It must be new or empty: what is left of another export would be read
            with it. After an error it is as it was.
        media (`Path`, *optional*): Folder that the paths of the videos are relative to.
        with_frames (`bool`): Whether the frames are written as pictures, for tools that read no videos.

    Returns:
        `dict`: What was written, counted: videos, frames, masks.

    Raises:
        BulkError: for damaged answers, a folder that is not empty, or a tool whose package is not installed.
        DataError: for a video that cannot be read.
    """
    if format not in WRITERS:
        raise BulkError(f"There is no format {format!r}, only {', '.join(FORMATS)}.")
    if with_frames and format not in WITH_FRAMES:
        raise BulkError(f"{format} takes the videos themselves; frames are written for {', '.join(WITH_FRAMES)}.")
    if with_frames and media is None:
        raise BulkError("To write frames, the folder of the videos is needed.")
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise BulkError(f"{to} is not an empty folder; choose another one for the export.")
    answer_files(answers)
    check_names(read_videos(answers), format, with_frames)

    existed = to.exists()
    to.mkdir(parents=True, exist_ok=True)
    try:
        return WRITERS[format](partial(read_videos, answers), to, FrameWriter(media, with_frames))
    except BaseException:  # half an export would be read as one, and stand in the way of the next try
        # Not the folder itself: it may be a link, a mount, or where the command runs
        for path in to.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        if not existed:
            to.rmdir()
        raise


def check_names(videos: Iterable[AnsweredVideo], format: str, written: bool) -> None:
    """Raises [`BulkError`] if frames of two videos have one path, or, for YOLO, whose labels have other suffixes than
    the pictures, one path without its suffix: the files of the second would overwrite those of the first."""
    suffix = "" if format == "yolo" else ".jpg"
    seen: dict[str, str] = {}
    lengths: dict[str, int] = {}
    for video in videos:
        if video.is_image:
            picture = PurePath(frame_name(video, 0, written))
            name = str(picture.with_suffix("") if format == "yolo" else picture)
        else:
            name = f"{video.name}/"
            lengths[name] = video.num_frames
        if name in seen:
            raise _same_files(video.name, seen[name])
        seen[name] = video.name
    for folder, length in lengths.items():  # where the frames of a video are, pictures may have the name of one
        for frame in (f"{folder}{index:05d}{suffix}" for index in range(length)):
            if frame in seen:
                raise _same_files(seen[frame], seen[folder])


def _same_files(name: str, other: str) -> BulkError:
    return BulkError(
        f"{name} and {other} would have the same files in an export: they are parts of one video, or pictures that "
        "differ in their suffix. Export them apart, or rename one."
    )


__all__ = ["FORMATS", "export"]
