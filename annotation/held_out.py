"""Videos that must not become training data, such as those of a benchmark: found by their bytes or by their looks."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from ..data.records import DataError
from ..video_sama import SamaVideo
from .errors import AnnotationError
from .objects import list_videos
from .provenance import video_hash
from .render import shown_frames
from .scenes import Scene


NUM_FRAMES = 5  # that are compared
HASH_SIDE = 8
MAX_DISTANCE = 6  # of 64 bits, up to which two pictures look alike


class HeldOut:
    """
    The videos of some folders, as hashes.

    Args:
        folders (iterable of `Path`): Each has video files, or folders of frames.

    Raises:
        DataError: if a folder or one of its videos cannot be read: what cannot be compared would get through.
    """

    def __init__(self, folders: Iterable[Path]):
        self._bytes: dict[str, str] = {}
        self._looks: list[tuple[str, np.ndarray]] = []
        for folder in folders:
            found = list(list_videos(folder, "held out"))
            if not found:
                raise DataError("contains no videos", file=folder)
            for scene in found:
                name = f"{folder.name}/{scene.visual['path']}"
                self._bytes[video_hash(scene)] = name
                self._looks.append((name, perceptual_hashes(scene.open())))

    def digest(self) -> str:
        """A hash of all held-out videos."""
        return hashlib.sha256("".join(sorted(self._bytes)).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._looks)

    def check(self, scene: Scene) -> None:
        """Raises [`AnnotationError`] for a video with the same bytes, or the same look in all compared frames."""
        name = self._bytes.get(video_hash(scene))
        if name is not None:
            raise AnnotationError(f"{scene.id} has the same bytes as the held-out video {name}.")
        hashes = perceptual_hashes(scene.open())
        for name, other in self._looks:
            if hashes.shape == other.shape and (hashes != other).sum(axis=1).max() <= MAX_DISTANCE:
                raise AnnotationError(f"{scene.id} looks like the held-out video {name}.")


def perceptual_hashes(video: SamaVideo) -> np.ndarray:
    """Difference hashes of evenly spread frames: bool array of shape `(num_compared_frames, 64)`. Other sizes and
    compressions of a video have nearly the same ones."""
    return np.stack([_difference_hash(video[index]) for index in shown_frames(len(video), NUM_FRAMES)])


def _difference_hash(frame: np.ndarray) -> np.ndarray:
    image = Image.fromarray(frame).convert("L").resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.LANCZOS)
    values = np.asarray(image, dtype=np.int16)
    return (values[:, 1:] > values[:, :-1]).ravel()
