"""Videos that must not become training data, such as those of a benchmark: found by their bytes or by their looks."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from ..data.frames import VIDEO_SUFFIXES
from ..data.records import DataError
from ..pictures_sama import IMAGE_SUFFIXES
from ..video_sama import SamaVideo
from .errors import AnnotationError
from .objects import list_videos
from .provenance import video_hash
from .render import shown_frames
from .scenes import BrokenScene, Scene


NUM_FRAMES = 5  # that are compared
HASH_SIDE = 8
# Files that lie beside videos
COMPANION_SUFFIXES = (
    "", ".txt", ".md", ".json", ".jsonl", ".csv", ".tsv", ".xml", ".yaml", ".yml", ".srt", ".vtt", ".pkl",
)  # fmt: skip
MAX_DISTANCE = 6  # of 64 bits, up to which two pictures look alike
# Nearly uniform pictures have hashes without bits, whatever they show; these are compared by their colours, too
MIN_BITS, MAX_COLOR_DISTANCE = 4, 12  # of 255, of each of the cells


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
        self._looks: list[tuple[str, tuple[np.ndarray, np.ndarray]]] = []
        for folder in folders:
            found = list(list_videos(folder, "held out"))
            if not found:
                raise DataError("contains no videos", file=folder)
            for path in sorted(folder.iterdir()):
                _check_known(path, (*VIDEO_SUFFIXES, *COMPANION_SUFFIXES))
            for scene in found:
                if isinstance(scene, BrokenScene):
                    raise scene.error
                if scene.visual.get("frames") is not None:
                    for path in sorted((folder / scene.visual["path"]).iterdir()):
                        _check_known(path, (*IMAGE_SUFFIXES, *COMPANION_SUFFIXES), folders=False)
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
        look = perceptual_hashes(scene.open())
        for name, other in self._looks:
            if _look_alike(look, other):
                raise AnnotationError(f"{scene.id} looks like the held-out video {name}.")


def _check_known(path: Path, suffixes: Iterable[str], folders: bool = True) -> None:
    """[`DataError`] for what may be a video that is not compared."""
    if path.name.startswith(".") or (folders and path.is_dir()):
        return
    if path.is_dir() or path.suffix.lower() not in suffixes:
        raise DataError("is no video of a known kind, and could not be compared: move it away", file=path)


def perceptual_hashes(video: SamaVideo) -> tuple[np.ndarray, np.ndarray]:
    """Difference hashes of evenly spread frames, bool array of shape `(num_compared_frames, 64)`, and their colours in
    8 x 8 cells. Other sizes and compressions of a video have nearly the same ones."""
    frames = [video[index] for index in shown_frames(len(video), NUM_FRAMES)]
    return np.stack([_difference_hash(frame) for frame in frames]), np.stack([_colors(frame) for frame in frames])


def _look_alike(first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]) -> bool:
    hashes, others = first[0], second[0]
    if hashes.shape != others.shape or (hashes != others).sum(axis=1).max() > MAX_DISTANCE:
        return False
    uniform = np.minimum(hashes.sum(axis=1), others.sum(axis=1)) < MIN_BITS
    return not uniform.any() or np.abs(first[1] - second[1])[uniform].max() <= MAX_COLOR_DISTANCE


def _colors(frame: np.ndarray) -> np.ndarray:
    image = Image.fromarray(frame).resize((HASH_SIDE, HASH_SIDE), Image.Resampling.BOX)
    return np.asarray(image, dtype=np.int16)


def _difference_hash(frame: np.ndarray) -> np.ndarray:
    image = Image.fromarray(frame).convert("L").resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.LANCZOS)
    values = np.asarray(image, dtype=np.int16)
    return (values[:, 1:] > values[:, :-1]).ravel()
