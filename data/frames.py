"""The files behind a record: safe paths below the data root, names of frames, videos read with a stride.

Masks and boxes of data sets lie on the stored pixels of a picture, so its EXIF orientation is not applied, unless the
record says `"upright": true`. Video files are upright, as players and the tools that extract frames show them.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
from PIL.TiffImagePlugin import IMAGELENGTH, IMAGEWIDTH, TiffImageFile

from sama.pictures_sama import IMAGE_SUFFIXES, opened_picture
from sama.video_readers_sama import FrameSource
from sama.video_sama import SamaVideo

from .json_text import without_surrogates
from .records import DataError


VIDEO_SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts", ".wmv", ".flv", ".ogv",
    ".3gp",
)  # fmt: skip
# Every fourth frame of SA-V is annotated, and of VidSTG extracted
ANNOTATED_STRIDE = 4
DEFAULTS = {"stride": 1, "upright": False}  # of a record's video or image; null stands for them, too
# What opening or decoding a damaged picture or video raises
MEDIA_ERRORS = (OSError, ValueError)


def join_inside(folder: str, name: str, field: str = "") -> str:
    """`folder/name` with forward slashes; [`DataError`] if `name`, from an annotation file, could leave the folder."""
    path = PurePosixPath(name)
    if not name.strip() or "\0" in name:
        raise DataError(f"is not a path: {name!r}", field=field)
    if name != without_surrogates(name):
        raise DataError(f"is not UTF-8: {name!r}; rename the file", field=field)
    if path.is_absolute() or PureWindowsPath(name).drive or "\\" in name or ".." in path.parts:
        raise DataError(f"leaves the data folder: {name!r}", field=field)
    return str(PurePosixPath(folder) / path)


def visual_key(record: Mapping) -> str | None:
    """
    What the video or image of a record is known by, however it is written: records with the same key show the same
    frames of the same file. `None` for text alone.

    Raises:
        DataError: if its path could leave the folder.
    """
    kind = next((kind for kind in ("video", "image") if kind in record), None)
    if kind is None:
        return None
    given = {name: value for name, value in record[kind].items() if value is not None}
    visual = {name: value for name, value in given.items() if value != DEFAULTS.get(name)}
    if "path" in visual:
        visual["path"] = join_inside(".", visual["path"], f"{kind}.path")
    return json.dumps({kind: visual}, sort_keys=True)


def trusted_folders(root: Path, files: Mapping, links: Sequence[str] = ()) -> tuple[Path, ...]:
    """
    The folders whose files may be opened, with links resolved: the data root, and the folders that a catalogue entry
    names under `files` and `links` (SAMA-239K's `sav_train` is usually a link to a copy of SA-V).
    """
    named = [entry for value in files.values() for entry in ([value] if isinstance(value, str) else value)]
    folders = [root, *(root / name for name in (*named, *links))]
    try:
        return tuple(dict.fromkeys(folder.resolve() for folder in folders))
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(f"names a path that cannot be followed ({error})", field="files") from error


def safe_path(root: Path, name: str, trusted: Sequence[Path] | None = None, field: str = "") -> Path:
    """
    The file or folder `name` below `root`, checked before it is opened.

    Args:
        root (`Path`): The data root.
        name (`str`): Relative path of a record.
        trusted (sequence of `Path`, *optional*): Result of [`trusted_folders`]. Default: only the root.
        field (`str`): Field of the path, for the message.

    Raises:
        DataError: if the path, or a link on it, leaves the trusted folders.
    """
    path = root / join_inside(".", name, field)
    try:
        real = path.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, too long a name, half a surrogate pair
        raise DataError(f"is not a path that can be followed: {name[:100]!r}", field=field) from error
    if not any(real.is_relative_to(folder) for folder in (trusted or [root.resolve()])):
        problem = f"is a link that leaves the data folder: {name!r} is {str(real)!r}"
        raise DataError(f"{problem}; name the links that you trust under `links`", field=field)
    return path


def frame_name(entry, field: str) -> str:
    """File name of a frame listed in an annotation file: a name with or without suffix, or an object (VidSTG)."""
    if isinstance(entry, Mapping):
        entry, field = entry.get("raw_filename"), f"{field}.raw_filename"
    if not isinstance(entry, str):
        raise DataError("is not the name of a frame", field=field)
    name = entry if PurePosixPath(entry).suffix.lower() in IMAGE_SUFFIXES else f"{entry}.jpg"
    if "/" in name:
        raise DataError(f"is not a file name: {name!r}", field=field)
    return join_inside(".", name, field)


def image_size(path: Path, field: str = "") -> tuple[int, int]:
    """`(height, width)` of the stored pixels, from the header of an image file."""
    try:
        with opened_picture(str(path)) as image:
            if isinstance(image, TiffImageFile):  # whose size Pillow gives as if it were turned upright
                return image.tag_v2[IMAGELENGTH], image.tag_v2[IMAGEWIDTH]
            return image.height, image.width
    except FileNotFoundError:
        raise DataError(f"there is no file '{path}'", field=field, missing=[str(path)]) from None
    except MEDIA_ERRORS as error:
        raise DataError(str(error).removesuffix("."), field=field, unreadable=[str(path)]) from error


class StridedFrames(FrameSource):
    """Every `stride`-th frame of a video, as the frames of a new [`SamaVideo`]. It has no sound."""

    def __init__(self, video: SamaVideo, stride: int, num_frames: int | None = None):
        super().__init__()
        available = -(-len(video) // stride)
        if num_frames is not None and num_frames > available:
            raise ValueError(
                f"'{video.name}' has {available} frames at a stride of {stride}, {num_frames} are expected"
            )
        self._video, self._stride = video, stride
        self._length = available if num_frames is None else num_frames
        self.name, self.fps, self.pixel_aspect = video.name, video.fps / stride, video.pixel_aspect
        if video.times is not None:
            end = min(self._length * stride, len(video))
            self.times = [*video.times[:end:stride], video.times[end]]

    def __len__(self) -> int:
        return self._length

    def read(self, index: int) -> np.ndarray:
        frame = self._video[index * self._stride]
        if index * self._stride in self._video.damaged_frames:
            self.damaged.add(index)
        return frame


def open_visual(record: dict, root: Path, trusted: Sequence[Path] | None = None) -> SamaVideo | None:
    """
    Opens the video or image of a record; `None` for text alone. Frames are decoded when they are used. Pictures are
    used as they are stored unless the record says `"upright": true`.

    Raises:
        DataError: if a path leaves the trusted folders, the file of a frame is missing, or the video cannot be read or
            is too short.
    """
    kind = next((kind for kind in ("video", "image") if kind in record), None)
    if kind is None:
        return None
    visual, field = record[kind], f"{kind}.path"
    try:
        path, upright = safe_path(root, visual["path"], trusted, field), visual.get("upright", False)
        if visual.get("frames") is not None:
            return SamaVideo.open(_frame_files(path, visual["frames"], root, trusted), upright=upright)
        video = SamaVideo.open(path, kind, upright)
        stride, num_frames = visual.get("stride", 1), visual.get("num_frames")
        if kind == "image" or (stride == 1 and num_frames is None):
            return video
        return SamaVideo(StridedFrames(video, stride, num_frames))
    except DataError as error:
        raise error.with_context(source=record["source"], index=record["id"]) from error
    except FileNotFoundError as error:
        problem, place = f"there is no file '{path}'", {"source": record["source"], "index": record["id"]}
        raise DataError(problem, **place, field=field, missing=[str(path)]) from error
    except MEDIA_ERRORS as error:
        problem = str(error).rstrip(".")
        raise DataError(problem, source=record["source"], index=record["id"], field=field) from error


def _frame_files(folder: Path, names: Sequence[str], root: Path, trusted: Sequence[Path] | None) -> list[str]:
    # One listing of the folder: thousands of single queries are slow on a network file system
    try:
        with os.scandir(folder) as entries:
            links = {entry.name: entry.is_symlink() for entry in entries}
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"there is no folder '{folder}'", field="video.path", missing=[str(folder)]) from None
    except OSError as error:
        raise DataError(f"'{folder}' cannot be listed: {error.strerror}", field="video.path") from error
    for position, name in enumerate(names):
        field = f"video.frames[{position}]"
        if name not in links:
            raise DataError(f"there is no file '{folder / name}'", field=field, missing=[str(folder / name)])
        if links[name]:
            safe_path(root, (folder / name).relative_to(root).as_posix(), trusted, field)
    return [str(folder / name) for name in names]
