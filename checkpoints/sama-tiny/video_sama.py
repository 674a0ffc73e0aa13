"""Videos and pictures: frames that are decoded when asked for, and which frames of a video are used for what.

PyAV reads first and decord only where PyAV is missing. The two give the same pixels, but decord decodes ahead in the
background: while a slow consumer tracks through 1,200 frames of 640 x 360 it holds 750 MB of them.
"""

import os
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
from PIL import Image

from .configuration_sama import check_preset


# None where it is not installed
decord: Any = None
av: Any = None

try:
    import decord
except ImportError:
    pass

try:
    import av
except ImportError:
    pass

# What a source without a clock (a list of frames, an array) is assumed to run at; used only to write videos.
DEFAULT_FPS = 24.0
IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
# Stepping backward through a file decodes this many frames at once: every backward seek restarts at a keyframe.
BACKWARD_CHUNK = 8
# Every third frame is context; a short video is filled up to eight.
CONTEXT_INTERVAL = 3
MIN_CONTEXT_FRAMES = 8


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
        is_image (`bool`): Whether the source is a still image.
        name (`str`): For messages: the path, or what kind of source it is.
    """

    def __init__(self, frames: "FileFrames | ListFrames"):
        self._frames = frames
        self.name, self.fps, self.is_image = frames.name, frames.fps, frames.is_image
        self._warned = False
        self.height, self.width = frames.read(0).shape[:2]
        if frames.warning is not None:
            self._warn(frames.warning)

    @classmethod
    def open(cls, source) -> "SamaVideo":
        """
        Open a video file, an image file, a list of frames (paths, PIL images or `(height, width, 3)` uint8 arrays), a
        `(num_frames, height, width, 3)` uint8 array, a PIL image, or return a `SamaVideo` as it is.
        """
        if isinstance(source, OpenedVideo):
            return cast(SamaVideo, source)
        if isinstance(source, (str, os.PathLike)):
            path = existing_file(source)
            is_image = Path(path).suffix.lower() in IMAGE_SUFFIXES
            return cls(ListFrames([path], path, is_image=True) if is_image else FileFrames(path))
        if isinstance(source, Image.Image) or (isinstance(source, np.ndarray) and source.ndim == 3):
            return cls(ListFrames([source], "image", is_image=True))
        if isinstance(source, np.ndarray):
            return cls(ListFrames(checked_array(source, 4, "the video"), "array"))
        if isinstance(source, (list, tuple)):
            return cls(ListFrames(source, "list of frames"))
        raise ValueError(f"Expected a path, a list of frames, an array or a PIL image, got {type(source).__name__}.")

    def __len__(self) -> int:
        return len(self._frames)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[index] for index in range(len(self)))

    def check_frame(self, index: int) -> None:
        """Raise [`FrameIndexError`] unless frame `index` exists."""
        if not 0 <= index < len(self):
            raise FrameIndexError(
                f"Frame {index} does not exist: '{self.name}' has {len(self)} frames, counted from 0."
            )

    def __getitem__(self, index: int) -> np.ndarray:
        self.check_frame(index)
        frame = self._frames.read(int(index))
        if frame.shape[:2] != (self.height, self.width):
            self._warn(
                f"Frame {index} of '{self.name}' is {frame.shape[1]}x{frame.shape[0]}, the first frame is "
                f"{self.width}x{self.height}; such frames are resized to the size of the first one."
            )
            frame = np.asarray(Image.fromarray(frame).resize((self.width, self.height), Image.Resampling.BICUBIC))
        return frame

    def frame_at(self, seconds: float) -> int:
        """The frame that a player shows `seconds` after the beginning; raises [`FrameIndexError`] behind the end."""
        index = int(seconds * self.fps + 1e-6)
        if not 0 <= index < len(self):
            raise FrameIndexError(
                f"There is no frame at {seconds:g} s: '{self.name}' lasts {len(self) / self.fps:g} s "
                f"({len(self)} frames at {self.fps:g} a second)."
            )
        return index

    def frames(self, indices: Sequence[int]) -> list[np.ndarray]:
        """Several frames, each a `(height, width, 3)` uint8 array."""
        return [self[index] for index in indices]

    def _warn(self, message: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(message, stacklevel=3)


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
) -> FrameChoice:
    """
    Choose the context, dense and prompted frames of a video. Deterministic.

    Args:
        num_frames (`int`): Frames of the video.
        preset (`str`): "published": the first `num_dense_frames` context frames are dense, and SAM 2 is prompted on
            the first frames of the video. "consistent": the dense frames are spread over the context frames, to
            the end of the video, and SAM 2 is prompted on them.
        max_context_frames (`int`): Upper bound of the context frames.
        num_dense_frames (`int`): Dense frames of a video that is long enough.
    """
    preset = check_preset(preset)
    if num_frames < 1:
        raise ValueError(f"A video needs at least 1 frame, got {num_frames}.")
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


# ---- readers -------------------------------------------------------------------------------------------------------


class _DecordReader:
    """Random access to the frames of a video file through decord, which itself scales frames of a deviating size."""

    def __init__(self, path: str):
        try:
            # The length is taken inside the block: decord also fails here, on files without a single frame.
            self._reader = decord.VideoReader(path, num_threads=1)
            self.length = len(self._reader)
            self.fps = float(self._reader.get_avg_fps())
        except (RuntimeError, decord.DECORDError) as error:
            raise ValueError(_reason(error)) from error

    def read(self, index: int) -> np.ndarray:
        try:
            return self._reader[index].asnumpy()
        except (RuntimeError, IndexError, decord.DECORDError) as error:
            raise ValueError(_reason(error)) from error


class _AvReader:
    """Random access to the frames of a video file through PyAV: forward by decoding on, otherwise from a keyframe."""

    def __init__(self, path: str):
        self._path = path
        self._container: Any = None
        try:
            with av.open(path) as container:
                if not container.streams.video:
                    raise ValueError("the file holds no video stream")
                stream = container.streams.video[0]
                self.fps = float(stream.average_rate or DEFAULT_FPS)
                self.declared = stream.frames
                packets = [(packet.pts, packet.is_keyframe) for packet in _demux(container, stream)]
        except (OSError, av.error.FFmpegError) as error:
            raise ValueError(_reason(error)) from error
        self.length = len(packets)
        times = sorted(pts for pts, _ in packets if pts is not None)
        # Without a distinct time on every packet (raw streams) the frames can only be counted from the start.
        self._seekable = len(set(times)) == len(packets)
        self._times = times if self._seekable else []
        self._index_of = {pts: index for index, pts in enumerate(self._times)}
        self._keyframes = sorted(self._index_of[pts] for pts, key in packets if key) if self._seekable else []

    def _open(self) -> None:
        if self._container is not None:
            self._container.close()
        self._container = av.open(self._path)
        self._restart(0)

    def _restart(self, position: int) -> None:
        self._frames = self._decode(self._container, self._container.streams.video[0])
        self._next = position

    @staticmethod
    def _decode(container, stream) -> Iterator:
        for packet in _demux(container, stream):
            yield from _decode_packet(packet)
        yield from _decode_packet(None, stream)

    def _seek(self, index: int) -> None:
        """Place the decoder so that going forward reaches frame `index`, with as little decoding as possible."""
        keyframe = max((key for key in self._keyframes if key <= index), default=0)
        if self._container is not None and keyframe <= self._next <= index:
            return
        if self._container is None or not self._seekable:
            self._open()
        container: Any = self._container
        if keyframe > 0 or self._next > index:
            container.seek(self._times[keyframe], stream=container.streams.video[0])
            self._restart(keyframe)

    def read(self, index: int) -> np.ndarray:
        try:
            self._seek(index)
            for frame in self._frames:
                position = self._index_of.get(frame.pts, self._next) if self._seekable else self._next
                self._next = position + 1
                if position >= index:
                    return frame.to_ndarray(format="rgb24")
        except (OSError, av.error.FFmpegError) as error:
            raise ValueError(_reason(error)) from error
        raise ValueError(f"the stream ends before frame {index}")

    def keep_decodable(self) -> "_AvReader":
        """Decode the whole file once and count what comes out; then frames are found by counting, not by time."""
        self._seekable, self._keyframes = False, []
        self._open()
        self.length = sum(1 for _ in self._frames)
        self._open()
        return self


def _reason(error: Exception) -> str:
    """The readable part of a decoder's message: no error number or time in front, no C++ stack behind."""
    lines = [re.sub(r"^\[[^\]]*\]\s*", "", line).strip() for line in str(error).splitlines()]
    return next((line for line in lines if line), type(error).__name__)


def _demux(container, stream) -> Iterator:
    """Packets with data, up to the first that cannot be read (a truncated file ends there)."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, OSError, av.error.FFmpegError):
            return
        if packet.size:
            yield packet


def _decode_packet(packet, stream: Any = None) -> list:
    """Frames of one packet (`None`: what the decoder still holds); a packet that does not decode has none."""
    try:
        return packet.decode() if packet is not None else stream.codec_context.decode(None)
    except (EOFError, av.error.FFmpegError):
        return []


def _size_changes(path: str) -> bool:
    """Whether keyframes differ in size (a new size starts at a keyframe): decord scales such frames silently."""
    if av is None:
        return False
    try:
        with av.open(path) as container:
            stream = container.streams.video[0]
            stream.codec_context.skip_frame = "NONKEY"
            return len({(frame.height, frame.width) for frame in _AvReader._decode(container, stream)}) > 1
    except (OSError, av.error.FFmpegError):  # what decord reads need not be readable here
        return False


class FileFrames:
    """Frames of a video file, decoded on request; knows from the start how many of them really decode."""

    is_image = False

    def __init__(self, path: str):
        self.name = path
        if decord is None and av is None:
            raise ImportError(f"Reading '{path}' needs av or decord: run `pip install av` or `pip install decord`.")
        self.warning = None
        self._reader = self._intact_reader() or self._damaged_reader()
        self.fps = self._reader.fps
        self._chunk: dict[int, np.ndarray] = {}
        self._last = -1

    def _intact_reader(self) -> "_DecordReader | _AvReader | None":
        self._problems = []
        for reader_class in [_AvReader] * (av is not None) + [_DecordReader] * (decord is not None):
            try:
                reader: Any = reader_class(self.name)
                if reader.length == 0:
                    raise ValueError("the file holds no frame")
                reader.read(reader.length - 1)
            except ValueError as error:
                self._problems.append(str(error))
                continue
            if reader_class is _AvReader and reader.declared > reader.length:
                self.warning = _cut_message(self.name, reader.declared, reader.length)
            if reader_class is _DecordReader and _size_changes(self.name):
                self.warning = f"Frames of '{self.name}' change size; all are resized to the size of the first one."
            return reader
        return None

    def _damaged_reader(self) -> "_DecordReader | _AvReader":
        """A reader of the frames that decode. The file is decoded once to count them."""
        try:
            if av is not None:
                reader = _AvReader(self.name)
                declared = max(reader.declared, reader.length)
                reader.keep_decodable()
            else:
                reader = _DecordReader(self.name)
                declared, reader.length = reader.length, _count_readable(reader)
                reader._reader = decord.VideoReader(self.name, num_threads=1)
        except ValueError as error:
            raise ValueError(f"'{self.name}' is not a video that can be read: {error}.") from error
        if reader.length == 0:
            raise ValueError(f"'{self.name}' is a video with 0 frames that can be decoded: {self._problems[-1]}.")
        self.warning = _cut_message(self.name, declared, reader.length)
        return reader

    def __len__(self) -> int:
        return self._reader.length

    def read(self, index: int) -> np.ndarray:
        backward, self._last = index == self._last - 1, index
        if index in self._chunk:
            return self._chunk[index]
        first = max(0, index - BACKWARD_CHUNK + 1) if backward else index
        try:
            chunk = {position: self._reader.read(position) for position in range(first, index + 1)}
        except ValueError as error:
            raise ValueError(f"Frame {index} of '{self.name}' cannot be decoded: {error}.") from error
        self._chunk = chunk
        return chunk[index]


def _cut_message(name: str, declared: int, decoded: int) -> str:
    return f"Only the first {decoded} of {declared} frames of '{name}' can be decoded; the rest is left out."


def _count_readable(reader: _DecordReader) -> int:
    for index in range(reader.length):
        try:
            reader.read(index)
        except ValueError:
            return index
    return reader.length


class ListFrames:
    """Frames that are given one by one: paths of images, PIL images or arrays. Image files are opened on request."""

    fps = DEFAULT_FPS
    warning = None

    def __init__(self, frames: Sequence | np.ndarray, name: str, is_image: bool = False):
        if len(frames) == 0:
            raise ValueError(f"The video '{name}' has 0 frames.")
        self._frames, self.name, self.is_image = frames, name, is_image

    def __len__(self) -> int:
        return len(self._frames)

    def read(self, index: int) -> np.ndarray:
        frame = self._frames[index]
        if isinstance(frame, (str, os.PathLike)):
            path = existing_file(frame)
            try:
                with Image.open(path) as image:
                    return np.asarray(image.convert("RGB"))
            except (OSError, SyntaxError) as error:
                raise ValueError(f"'{path}' is not an image that can be read: {_reason(error)}.") from error
        if isinstance(frame, Image.Image):
            return np.asarray(frame.convert("RGB"))
        return checked_array(frame, 3, f"frame {index} of '{self.name}'")


def existing_file(source: str | os.PathLike) -> str:
    path = Path(source)
    if path.is_dir():
        raise ValueError(f"'{path}' is a folder: give a video file, an image, or the list of its image files.")
    if not path.is_file():
        raise FileNotFoundError(f"There is no file '{path}'.")
    return str(path)


def checked_array(array: np.ndarray, dimensions: int, what: str) -> np.ndarray:
    expected = "(height, width, 3)" if dimensions == 3 else "(frames, height, width, 3)"
    if not isinstance(array, np.ndarray):
        raise ValueError(f"Expected {what} to be a path, a PIL image or an array, got {type(array).__name__}.")
    if array.ndim != dimensions or array.shape[-1] != 3 or array.dtype != np.uint8 or 0 in array.shape[1:]:
        raise ValueError(f"Expected {what} as a uint8 array {expected}, got {array.dtype} of shape {array.shape}.")
    return array
