"""Where the frames of a record are: safe paths below the data root, names of frames, videos read with a stride."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
from PIL import Image

from sama.video_sama import SamaVideo

from .records import DataError


IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov")
# SA-V is annotated, and VidSTG extracted, at every fourth frame
ANNOTATED_STRIDE = 4


def join_inside(folder: str, name: str, field: str = "") -> str:
    """`folder/name` with forward slashes; [`DataError`] if `name`, which an annotation file says, could lead out."""
    path = PurePosixPath(name)
    if not name.strip() or "\0" in name:
        raise DataError(f"is no path: {name!r}", field=field)
    if path.is_absolute() or PureWindowsPath(name).drive or "\\" in name or ".." in path.parts:
        raise DataError(f"leads out of the data folder: {name!r}", field=field)
    return str(PurePosixPath(folder) / path)


def trusted_folders(root: Path, files: Mapping, links: Sequence[str] = ()) -> tuple[Path, ...]:
    """
    The folders whose content may be opened, links followed: the data root, the folders that a catalogue entry names
    under `files`, and those it names under `links` (SAMA-239K's `sav_train` is usually a link to a copy of SA-V).
    """
    named = [entry for value in files.values() for entry in ([value] if isinstance(value, str) else value)]
    folders = [root, *(root / name for name in (*named, *links))]
    return tuple(dict.fromkeys(folder.resolve() for folder in folders))


def safe_path(root: Path, name: str, trusted: Sequence[Path] | None = None, field: str = "") -> Path:
    """
    The file or folder `name` below `root`, for opening.

    Args:
        root (`Path`): The data root.
        name (`str`): Relative path, as a record holds it.
        trusted (sequence of `Path`, *optional*): What [`trusted_folders`] gives. A link that leads out of all of them
            raises [`DataError`]; without it only the root is trusted.
        field (`str`): For the message.
    """
    path = root / join_inside(".", name, field)
    real = path.resolve()
    if not any(real.is_relative_to(folder) for folder in (trusted or [root.resolve()])):
        problem = f"is a link that leads out of the data folder: {name!r} is {str(real)!r}"
        raise DataError(f"{problem}; name the links that you trust under `links`", field=field)
    return path


def frame_name(entry, field: str) -> str:
    """File name of a frame as annotation files list it: with or without suffix, VidSTG also as an object."""
    if isinstance(entry, Mapping):
        entry, field = entry.get("raw_filename"), f"{field}.raw_filename"
    if not isinstance(entry, str):
        raise DataError("is no name of a frame", field=field)
    name = entry if entry.lower().endswith(IMAGE_SUFFIXES) else f"{entry}.jpg"
    if "/" in name:
        raise DataError(f"is no file name: {name!r}", field=field)
    return join_inside(".", name, field)


def image_size(path: Path, field: str = "") -> tuple[int, int]:
    """`(height, width)` from the header of an image file."""
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except FileNotFoundError:
        raise DataError(f"there is no file '{path}'", field=field) from None
    except OSError as error:
        raise DataError(f"'{path}' is not an image that can be read ({error})", field=field) from error


class StridedFrames:
    """Every n-th frame of a video as the frames of another one: a source for [`SamaVideo`]."""

    is_image, warning = False, None

    def __init__(self, video: SamaVideo, stride: int, num_frames: int | None = None):
        available = -(-len(video) // stride)
        if num_frames is not None and num_frames > available:
            raise ValueError(
                f"'{video.name}' has {available} frames at a stride of {stride}, {num_frames} are expected"
            )
        self._video, self._stride = video, stride
        self._length = available if num_frames is None else num_frames
        self.name, self.fps = video.name, video.fps / stride

    def __len__(self) -> int:
        return self._length

    def read(self, index: int) -> np.ndarray:
        return self._video[index * self._stride]


def open_visual(record: dict, root: Path, trusted: Sequence[Path] | None = None) -> SamaVideo | None:
    """
    The video or image of a record, opened; `None` for text. Frames are decoded when they are asked for.

    Raises [`DataError`] that names the record if a path leads out of the trusted folders, a frame's file is missing,
    or the video cannot be read or is too short.
    """
    kind = next((kind for kind in ("video", "image") if kind in record), None)
    if kind is None:
        return None
    visual, field = record[kind], f"{kind}.path"
    try:
        path = safe_path(root, visual["path"], trusted, field)
        if visual.get("frames") is not None:
            return SamaVideo.open(_frame_files(path, visual["frames"], root, trusted))
        video = SamaVideo.open(path)
        stride, num_frames = visual.get("stride", 1), visual.get("num_frames")
        if kind == "image" or (stride == 1 and num_frames is None):
            return video
        return SamaVideo(StridedFrames(video, stride, num_frames))
    except DataError as error:
        raise error.with_context(source=record["source"], index=record["id"]) from error
    except (OSError, ValueError) as error:
        problem = str(error).rstrip(".")
        raise DataError(problem, source=record["source"], index=record["id"], field=field) from error


def _frame_files(folder: Path, names: Sequence[str], root: Path, trusted: Sequence[Path] | None) -> list[str]:
    # The folder is listed once: asking the file system about thousands of frames one by one is slow on a network
    try:
        with os.scandir(folder) as entries:
            links = {entry.name: entry.is_symlink() for entry in entries}
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"there is no folder '{folder}'", field="video.path") from None
    for position, name in enumerate(names):
        field = f"video.frames[{position}]"
        if name not in links:
            raise DataError(f"there is no file '{folder / name}'", field=field)
        if links[name]:
            safe_path(root, (folder / name).relative_to(root).as_posix(), trusted, field)
    return [str(folder / name) for name in names]
