"""Videos and pictures: frames that are decoded when asked for, and which frames of a video are used for what.

The frames are those that a player or viewer shows: upright, and without what an edit list cuts away. docs/data.md has
a table of kinds of files and what is done with each.
"""

import os
import threading
import warnings
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

import numpy as np
import torch
from PIL import Image

from .configuration_sama import check_preset
from .pictures_sama import (
    IMAGE_SUFFIXES,
    AnimationReader,
    existing_path,
    is_picture,
    number_of_frames,
    opened_picture,
    pictures_in_folder,
    read_still,
    resize_frame,
    to_rgb,
)
from .video_readers_sama import FileFrames, FrameSource


# Every third frame is context; a short video is filled up to eight.
CONTEXT_INTERVAL = 3
MIN_CONTEXT_FRAMES = 8
# The last frames that were read, which are held for whoever follows a question on another thread, a few frames behind
RECENT_FRAMES, RECENT_BYTES = 24, 192 * 2**20


class FrameIndexError(ValueError, IndexError):
    """A frame that the video does not have. An `IndexError` too, so that a plain `for` over a video ends."""


@runtime_checkable
class OpenedVideo(Protocol):
    """
    What a `SamaVideo` is recognised by. Not by its class: transformers loads the model and the processor of a
    checkpoint from separate copies of this file, and a program may import a third one from the repository.
    """

    is_image: bool

    def check_frame(self, index: int) -> None: ...

    def frames(self, indices: Sequence[int]) -> list[np.ndarray]: ...


class SamaVideo:
    """
    A video or a still image whose frames are decoded when they are asked for.

    Args:
        frames: Where the frames come from; use [`SamaVideo.open`].

    Attributes:
        height (`int`), width (`int`): Size of the first frame; later frames of another size are resized to it.
        fps (`float`): Frames a second; 24 where the source has no clock.
        times (`list[float]`, *optional*): When each frame is shown, in seconds from the first one, and when the last
            one ends: one number more than frames. `None` where all frames are shown equally long.
        pixel_aspect (`Fraction`): Width of a pixel divided by its height. The frames have the stored pixels: where
            this is not 1, a player shows them wider or narrower, and so it does a video that is saved.
        sound (`tuple[str, float]`, *optional*): The file whose sound belongs to the video, and the time of the first
            frame on its clock, in seconds.
        is_image (`bool`): Whether the source is a still image.
        name (`str`): For messages: the path, or what kind of source it is.
    """

    def __init__(self, frames: FrameSource):
        self._frames = frames
        self.name, self.fps, self.is_image = frames.name, frames.fps, frames.is_image
        self.times, self.pixel_aspect, self.sound = frames.times, frames.pixel_aspect, frames.sound
        self._warned: set[str] = set()
        self._lock = threading.Lock()
        self._keep: frozenset[int] = frozenset()
        self._kept: dict[int, np.ndarray] = {}
        self._num_recent = 0
        self._recent: dict[int, np.ndarray] = {}
        self.height, self.width = frames.read(0).shape[:2]
        self.warn(self._new_messages(frames.messages))

    @classmethod
    def open(cls, source, kind: str | None = None, upright: bool = True) -> "SamaVideo":
        """
        Open a video file, an image file, a folder of images (in natural order: 2 before 10), a list of frames (paths,
        PIL images, arrays or tensors), an array or tensor of all frames, or a PIL image; a `SamaVideo` is returned as
        it is.

        Arrays and tensors are RGB, uint8 or floats from 0 to 1, with the channels last or in front of height and
        width: `(num_frames, height, width, 3)` or `(num_frames, 3, height, width)`, one dimension less for one frame.

        Args:
            source: What to open. An animated picture is a video of all its frames; with one frame it is an image.
            kind (`str`, *optional*): "image": anything but one still is refused. By default, or with "video", a still
                is accepted as well.
            upright (`bool`): Whether the orientation that stills declare (EXIF) is applied. Annotations of published
                data sets lie on the stored pixels. Video files are always upright.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the source cannot be read, or is not of the kind.
        """
        if kind not in (None, "image", "video"):
            raise ValueError(f"The kind is 'image' or 'video', got {kind!r}.")
        if kind == "image" and isinstance(source, (list, tuple)):
            raise ValueError(
                f"An image is one picture, got a list of {len(source)}; give the picture itself, or a video."
            )
        video = cls._open(source, upright)
        if kind == "image" and not video.is_image:
            raise ValueError(
                f"An image is one picture, but '{video.name}' is a video of {len(video)} frames; give it as a video."
            )
        return video

    @classmethod
    def _open(cls, source, upright: bool) -> "SamaVideo":
        if isinstance(source, OpenedVideo):
            return cast(SamaVideo, source)
        if isinstance(source, (str, os.PathLike)):
            return cls(_path_frames(existing_path(source), upright))
        if isinstance(source, Image.Image) or (isinstance(source, np.ndarray | torch.Tensor) and source.ndim == 3):
            return cls(ListFrames([source], "image", is_image=True, upright=upright))
        if isinstance(source, np.ndarray | torch.Tensor):
            return cls(ListFrames(pixel_array(source, 4, "the video"), "array"))
        if isinstance(source, (list, tuple)):
            return cls(ListFrames(source, "list of frames", upright=upright))
        raise ValueError(
            f"Expected a path, a list of frames, an array, a tensor or a PIL image, got {type(source).__name__}."
        )

    def __len__(self) -> int:
        return len(self._frames)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[index] for index in range(len(self)))

    @property
    def damaged_frames(self) -> list[int]:
        """Frames, among those that were read, that could not be decoded whole."""
        return sorted(self._frames.damaged)

    def check_frame(self, index: int) -> None:
        """Raise [`FrameIndexError`] unless frame `index` exists."""
        if not 0 <= index < len(self):
            raise FrameIndexError(
                f"Frame {index} does not exist: '{self.name}' has {len(self)} frames, counted from 0."
            )

    def __getitem__(self, index: int) -> np.ndarray:
        frame, messages = self.read(index)
        self.warn(messages)
        return frame

    def read(self, index: int) -> tuple[np.ndarray, list[str]]:
        """
        A frame, and what [`warn`] is to say about it. Unlike `video[index]`, for any thread: a warning belongs to the
        thread of whoever uses the frame. A video decodes one frame at a time.
        """
        self.check_frame(index)
        with self._lock:
            frame = self._kept.get(index, self._recent.get(index))
            if frame is None:
                frame = self._frames.read(int(index))
                self._recent[index] = frame
                while len(self._recent) > self._num_recent:
                    self._recent.pop(next(iter(self._recent)))
            if index in self._keep:
                self._kept[index] = frame
            messages = self._new_messages(self._frames.messages)
            if frame.shape[:2] == (self.height, self.width):
                return frame, messages
            if "size" not in self._warned:
                self._warned.add("size")
                messages.append(
                    f"Frame {index} of '{self.name}' is {frame.shape[1]}x{frame.shape[0]}, the first frame is "
                    f"{self.width}x{self.height}; such frames are resized to the size of the first one."
                )
        return resize_frame(frame, self.height, self.width), messages

    @contextmanager
    def keeping(self, indices: Iterable[int], max_bytes: int) -> Iterator[None]:
        """
        Hold frames in memory while the block runs, so that they are decoded once: those at `indices`, and from the
        beginning of the video as many as fit into `max_bytes`. Of a file they are those that are decoded on the way.
        Of a longer video the last frames that were read are held too, so that two threads can read it, one a few
        frames behind the other, and neither makes the other decode from a key frame again.
        """
        frame_bytes = self.height * self.width * 3
        number = max_bytes // frame_bytes
        num_recent = min(RECENT_FRAMES, RECENT_BYTES // frame_bytes) if number < len(self) else 0
        self._set_kept(frozenset(indices) | frozenset(range(min(number, len(self)))), num_recent)
        try:
            yield
        finally:
            self._set_kept(frozenset(), 0)

    def _set_kept(self, indices: frozenset[int], num_recent: int) -> None:
        with self._lock:
            self._keep, self._kept = frozenset() if self._frames.keep(indices) else indices, {}
            self._num_recent, self._recent = num_recent, {}

    def frame_at(self, seconds: float) -> int:
        """The frame that a player shows `seconds` after the first one; raises [`FrameIndexError`] behind the end."""
        end = len(self) / self.fps if self.times is None else self.times[-1]
        if not 0 <= seconds < end:
            raise FrameIndexError(
                f"There is no frame at {float(min(seconds, 1e300)):g} s: '{self.name}' lasts {end:g} s "
                f"({len(self)} frames at {self.fps:g} a second)."
            )
        index = int(seconds * self.fps + 1e-6) if self.times is None else bisect_right(self.times, seconds + 1e-6) - 1
        return min(index, len(self) - 1)

    def frames(self, indices: Sequence[int]) -> list[np.ndarray]:
        """Several frames, each a `(height, width, 3)` uint8 array."""
        return [self[index] for index in indices]

    def _new_messages(self, messages: Sequence[str]) -> list[str]:
        new = [message for message in dict.fromkeys(messages) if message not in self._warned]
        self._warned.update(new)
        return new

    @staticmethod
    def warn(messages: Sequence[str]) -> None:
        """Warn of what [`read`] found out."""
        for message in messages:
            warnings.warn(message, stacklevel=4)

    def __getstate__(self) -> dict:
        return {name: value for name, value in vars(self).items() if name != "_lock"} | {"_kept": {}, "_recent": {}}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self._lock = threading.Lock()


def _path_frames(path: str, upright: bool) -> FrameSource:
    """The frames of a file or folder. What a file is, its content decides; its suffix only says what was expected."""
    if os.path.isdir(path):
        pictures, others = pictures_in_folder(path)
        frames = ListFrames(pictures, path, upright=upright)
        if others:
            frames.messages.append(
                f"{len(others)} of the files in '{path}' are not pictures and are left out, for example '{others[0]}'."
            )
        return frames
    if Path(path).suffix.lower() not in IMAGE_SUFFIXES and not is_picture(path):
        return FileFrames(path)
    with opened_picture(path) as image:
        is_image = number_of_frames(image) == 1
    if is_image:
        return ListFrames([path], path, is_image=True, upright=upright)
    return FileFrames(path, AnimationReader(path, upright))


class ListFrames(FrameSource):
    """Frames that are given one by one: paths of images, PIL images or arrays. Image files are opened on request."""

    def __init__(self, frames: Sequence | np.ndarray, name: str, is_image: bool = False, upright: bool = True):
        super().__init__()
        if len(frames) == 0:
            raise ValueError(f"The video '{name}' has 0 frames.")
        self._frames, self.name, self.is_image, self._upright = frames, name, is_image, upright

    def __len__(self) -> int:
        return len(self._frames)

    def read(self, index: int) -> np.ndarray:
        frame = self._frames[index]
        if isinstance(frame, (str, os.PathLike)):
            return read_still(existing_path(frame), self._upright)
        if isinstance(frame, Image.Image):
            try:
                return to_rgb(frame, self._upright)
            except (OSError, SyntaxError, ValueError) as error:
                raise ValueError(f"Frame {index} of '{self.name}' cannot be used: {error}.") from error
        return pixel_array(frame, 3, f"frame {index} of '{self.name}'")


def tensor_array(tensor: torch.Tensor) -> np.ndarray:
    """A tensor as an array; floats of any precision as float32."""
    tensor = tensor.detach().cpu()
    tensor = tensor.to_dense() if tensor.is_sparse else tensor
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def pixel_array(pixels, dimensions: int, what: str) -> np.ndarray:
    """
    Pixels that a decoder gave as uint8 with the channels last.

    Args:
        pixels (`np.ndarray` or `torch.Tensor`): RGB, uint8 or floats from 0 to 1. With 3 `dimensions` of shape
            `(height, width, 3)` or `(3, height, width)`, with 4 of shape `(num_frames, height, width, 3)` or
            `(num_frames, 3, height, width)`.
        dimensions (`int`): 3 for one frame, 4 for several.
        what (`str`): For messages.

    Returns:
        `np.ndarray` of shape `(height, width, 3)` or `(num_frames, height, width, 3)`, uint8.

    Raises:
        ValueError: for other types, shapes and values, and where it is not clear which dimension holds the channels.
    """
    if isinstance(pixels, torch.Tensor):
        pixels = tensor_array(pixels)
    if not isinstance(pixels, np.ndarray):
        raise ValueError(
            f"Expected {what} to be a path, a PIL image, an array or a tensor, got {type(pixels).__name__}."
        )
    last, first = (pixels.ndim == dimensions and pixels.shape[axis] == 3 for axis in (-1, -3))
    if not (last or first) or 0 in pixels.shape[-3:]:
        kind = "(height, width, 3) or (3, height, width)"
        kind = kind if dimensions == 3 else "(frames, height, width, 3) or (frames, 3, height, width)"
        raise ValueError(f"Expected {what} as an array of shape {kind}, got {pixels.dtype} of shape {pixels.shape}.")
    if last and first:
        raise ValueError(f"Of {what}, of shape {pixels.shape}, it is not clear which dimension holds the 3 channels.")
    if pixels.dtype.kind == "f":
        low, high = (float(pixels.min()), float(pixels.max())) if pixels.size else (0.0, 1.0)
        if not 0 <= low <= high <= 1:
            raise ValueError(
                f"Floats of {what} must lie between 0 and 1, got {low:g} to {high:g}; give frames that are not "
                "normalised, or uint8."
            )
        pixels = np.round(pixels * 255).astype(np.uint8)
    elif pixels.dtype != np.uint8:
        raise ValueError(f"Expected {what} as uint8 or as floats from 0 to 1, got {pixels.dtype}.")
    return pixels if last else np.ascontiguousarray(np.moveaxis(pixels, -3, -1))


@dataclass(frozen=True)
class FrameChoice:
    """
    Which frames of a video are used for what; true frame numbers.

    Attributes:
        context (`list[int]`): Frames the vision tower sees; each gives the language model one token a question.
        dense (`list[int]`): The context frames that give the language model all their tokens.
        prompted (`list[int]`): The frames on which a [SEG] embedding prompts SAM 2.
    """

    context: list[int]
    dense: list[int]
    prompted: list[int]


def choose_frames(
    num_frames: int,
    preset: str,
    max_context_frames: int = 32,
    num_dense_frames: int = 5,
    with_context: bool = True,
) -> FrameChoice:
    """
    Choose the context, dense and prompted frames of a video. Deterministic.

    Args:
        num_frames (`int`): Frames of the video.
        preset (`str`): "published": the first `num_dense_frames` context frames are dense, and SAM 2 is prompted on
            the first frames of the video. "consistent": the dense frames are spread over the context frames, to
            the end of the video, and SAM 2 is prompted on them.
        max_context_frames (`int`): Upper bound of the context frames, and so of the dense ones.
        num_dense_frames (`int`): Dense frames of a video that is long enough.
        with_context (`bool`): Whether the model reads context frames. A Sa2VA does not: its dense frames, which are
            the prompted ones as well, are the first of the video ("published"), or spread from its first frame to its
            last ("consistent", as Sa2VA-i does).
    """
    preset = check_preset(preset)
    if num_frames < 1:
        raise ValueError(f"A video needs at least 1 frame, got {num_frames}.")
    if max_context_frames < 1:
        raise ValueError(f"A video needs at least 1 context frame, got max_context_frames={max_context_frames}.")
    if not with_context:
        number = min(num_dense_frames, max_context_frames, num_frames)
        frames = list(range(number))
        if preset == "consistent" and number > 1:
            frames = [index * (num_frames - 1) // (number - 1) for index in range(number)]
        return FrameChoice(context=frames, dense=frames, prompted=frames)
    context = _context_frames(num_frames, max_context_frames)
    if preset == "published" or len(context) <= num_dense_frames:
        dense = context[:num_dense_frames]
    else:
        # The middle of each of equal stretches: neither the beginning nor the end of the video is left out
        stretches = 2 * num_dense_frames
        dense = [context[(2 * i + 1) * len(context) // stretches] for i in range(num_dense_frames)]
    prompted = list(range(len(dense))) if preset == "published" else dense
    return FrameChoice(context=context, dense=dense, prompted=list(prompted))


def _context_frames(num_frames: int, max_context_frames: int) -> list[int]:
    frames = list(range(0, num_frames, CONTEXT_INTERVAL))
    count, minimum = len(frames), min(MIN_CONTEXT_FRAMES, max_context_frames)
    if count > max_context_frames:
        return [frames[i * count // max_context_frames] for i in range(max_context_frames)]
    if count < minimum:
        missing = minimum - count
        # A frame that is drawn twice counts once, so fewer than the minimum can remain (official behaviour).
        frames = sorted({*frames, *((i + 1) * num_frames // (missing + 1) for i in range(missing))})
    return frames
