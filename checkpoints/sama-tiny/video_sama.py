"""Videos, frame choice, compact mask tracks, and the region and answer types that the processor and the chat share."""

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from .configuration_sama import check_preset
from .video_readers_sama import IMAGE_SUFFIXES, FileFrames, ListFrames, checked_array, existing_file


# Every third frame is context; a short video is filled up to eight.
CONTEXT_INTERVAL = 3
MIN_CONTEXT_FRAMES = 8


class FrameIndexError(ValueError, IndexError):
    """A frame that the video does not have. An `IndexError` too, so that a plain `for` over a video ends."""


def is_a(value, kind: type) -> bool:
    """
    Whether `value` is of the class `kind` or of the same class in another copy of its file: transformers gives the
    model and the processor of one checkpoint each a copy of this code, and a program may import a third from the
    repository.
    """
    same = [(item.__module__.rpartition(".")[2], item.__qualname__) for item in (type(value), kind)]
    return same[0] == same[1]


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
        frame_choice ([`FrameChoice`], *optional*): Set where frames are drawn at random instead of by a policy.
        pixel_memo (`dict`): Pixel tensors that the processor made of this video, for the next turn.
    """

    def __init__(self, frames: "FileFrames | ListFrames"):
        self._frames = frames
        self.name, self.fps, self.is_image = frames.name, frames.fps, frames.is_image
        self.pixel_memo: dict = {}
        self.frame_choice: FrameChoice | None = None
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
        if is_a(source, SamaVideo):
            return source
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


class MaskTrack:
    """
    The masks of one object through a video, as run lengths: column-major, beginning with zeros, as COCO counts them.

    Args:
        num_frames (`int`), height (`int`), width (`int`): Size of the video. All masks are empty at first.
    """

    def __init__(self, num_frames: int, height: int, width: int):
        self.num_frames, self.height, self.width = num_frames, height, width
        empty = np.array([height * width], dtype=np.int32)
        self._counts = [empty] * num_frames

    @classmethod
    def from_masks(cls, masks: np.ndarray) -> "MaskTrack":
        """From an array of shape `(num_frames, height, width)`; what is not zero belongs to the object."""
        if masks.ndim != 3:
            raise ValueError(f"Expected masks of shape (num_frames, height, width), got {masks.shape}.")
        track = cls(*masks.shape)
        for index, mask in enumerate(masks):
            track[index] = mask
        return track

    def __len__(self) -> int:
        return self.num_frames

    def __getitem__(self, index: int) -> np.ndarray:
        counts = self._counts_at(index)
        flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
        return flat.reshape(self.width, self.height).T

    def __setitem__(self, index: int, mask: np.ndarray) -> None:
        self._counts_at(index)
        if mask.shape != (self.height, self.width):
            raise ValueError(f"A mask of shape {mask.shape} does not fit a track of {(self.height, self.width)}.")
        flat = mask.T.astype(bool).ravel()
        changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
        counts = np.diff(np.concatenate(([0], changes, [flat.size])))
        self._counts[index] = np.concatenate(([0] if flat[0] else [], counts)).astype(np.int32)

    def _counts_at(self, index: int) -> np.ndarray:
        if not 0 <= index < self.num_frames:
            raise FrameIndexError(f"Frame {index} does not exist: the track has {self.num_frames} frames.")
        return self._counts[index]

    def area(self, index: int) -> int:
        """Pixels of the object in frame `index`."""
        return int(self._counts_at(index)[1::2].sum())

    def masks(self) -> np.ndarray:
        """All masks: bool array of shape `(num_frames, height, width)`."""
        return np.stack([self[index] for index in range(self.num_frames)])

    def visible_frames(self) -> list[int]:
        """Frames in which the object has at least one pixel."""
        return [index for index in range(self.num_frames) if self.area(index) > 0]

    def to_rle(self, index: int) -> dict:
        """Uncompressed COCO run lengths of frame `index`, ready for JSON."""
        return {"size": [self.height, self.width], "counts": self._counts_at(index).tolist()}


PROMPT_KINDS = ("mask", "box", "points", "scribble")


@dataclass
class Region:
    """
    Something pointed at in a video: exactly one of a mask, a box, points or a scribble, in pixels of the video.

    Args:
        frame (`int` or sequence of `int`): The frame the prompt is drawn on. Several frames take one prompt each.
        mask (`np.ndarray`): Shape `(height, width)`; what is not zero belongs to the region.
        box (`tuple`): `(x1, y1, x2, y2)`.
        points (`list`): `[(x, y), ...]`, with `labels` 1 (belongs to it) or 0 (does not); all 1 by default.
        labels (`list[int]`): One label a point.
        scribble (`list`): A line through the points `[(x, y), ...]`.
    """

    frame: int | Sequence[int] = 0
    mask: np.ndarray | None = None
    box: Sequence | None = None
    points: Sequence | None = None
    labels: Sequence | None = None
    scribble: Sequence | None = None

    def __post_init__(self):
        given = [name for name in PROMPT_KINDS if vars(self)[name] is not None]
        if len(given) != 1:
            found = f"{len(given)}: {', '.join(given)}" if given else "none"
            raise ValueError(f"A region takes exactly one of {', '.join(PROMPT_KINDS)}; got {found}.")
        if self.labels is not None and self.points is None:
            raise ValueError(f"A region takes labels only with points, got labels with a {given[0]}.")
        self.kind = given[0]
        frames = [self.frame] if isinstance(self.frame, (int, np.integer, str, type(None))) else list(self.frame)
        wrong = [frame for frame in frames if not isinstance(frame, (int, np.integer))]
        if wrong:
            raise ValueError(f"A region's frame must be a whole number or a list of them, got {wrong[0]!r}.")
        if len(set(frames)) != len(frames):
            raise ValueError(f"A region takes one prompt a frame, but its frames {frames} repeat.")

    def per_frame(self) -> list["Region"]:
        """The region as one single-frame region a frame."""
        if np.ndim(self.frame) == 0:
            return [self]
        frames, prompts = list(self.frame), vars(self)[self.kind]
        labels = [None] * len(frames) if self.labels is None else self.labels
        if not frames or not len(frames) == len(prompts) == len(labels):
            raise ValueError(
                f"A region over several frames takes one prompt a frame, got {len(frames)} frames, "
                f"{len(prompts)} {self.kind} prompts and {len(labels)} lists of labels."
            )
        return [
            Region(frame=int(frame), labels=label, **{self.kind: prompt})
            for frame, prompt, label in zip(frames, prompts, labels, strict=True)
        ]


@dataclass
class GroundedPhrase:
    """
    A phrase of an answer and the object that it stands for. Can be given as the region of a later question.

    Attributes:
        text (`str`): The phrase.
        span (`tuple[int, int]`): Its characters in the clean answer.
        track ([`MaskTrack`], *optional*): The object's masks; `None` when the answer was parsed without masks.
        score (`float`, *optional*): The model's confidence.
    """

    text: str
    span: tuple[int, int]
    track: MaskTrack | None = None
    score: float | None = None

    @property
    def masks(self) -> np.ndarray:
        """Bool array of shape `(num_frames, height, width)`."""
        if self.track is None:
            raise ValueError(f"The phrase '{self.text}' has no masks: the answer was parsed without tracks.")
        return self.track.masks()
