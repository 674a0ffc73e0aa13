"""Backgrounds of toy world: generated textures, or the photographs shipped with scikit-image."""

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image


BACKGROUNDS = ("texture", "photo", "mixed")
# Photographs in the scikit-image package that are free to use; NOTICE credits their authors
PHOTOS = (
    "astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "grass.png", "gravel.png", "rocket.jpg",
)  # fmt: skip
DARKEST, BRIGHTEST = 66.0, 176.0  # grey levels; white, black and every object colour stand out against this range


def check_background(kind: str) -> None:
    """Raises `ImportError` if backgrounds of this kind need photographs that are not installed. For programs that draw
    many clips, so that they do not fail at the first photograph."""
    if kind != "texture":
        _photo_folder()


def draw_background(kind: str, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """
    A random background image.

    Args:
        kind (`str`): "texture", "photo" or "mixed" (one of the two, chosen at random). Photographs need scikit-image.
        size (`(height, width)`): Size in pixels.
        rng (`numpy.random.Generator`): Source of randomness.

    Returns:
        uint8 array of shape `(height, width, 3)` with low contrast and muted colours.

    Raises:
        ImportError: if a photograph is needed and scikit-image is not installed.
    """
    if kind == "photo" or (kind == "mixed" and rng.random() < 0.5):
        return _photo(size, rng)
    return _texture(size, rng)


def _texture(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    height, width = size
    kind = rng.integers(4)
    grey = _clouds(size, int(rng.integers(2, 6)), rng)
    y, x = np.mgrid[:height, :width].astype(np.float32) / min(size)
    angle = rng.random() * np.pi
    along = x * np.cos(angle) + y * np.sin(angle)
    if kind == 0:
        grey = 0.7 * grey + 0.3 * _clouds(size, int(rng.integers(10, 24)), rng)
    elif kind == 1:
        grey = 0.7 * grey + 0.3 * (0.5 + 0.5 * np.sin(2 * np.pi * along * rng.uniform(4, 11)))
    elif kind == 2:
        across = y * np.cos(angle) - x * np.sin(angle)
        tiles = rng.uniform(4, 9)
        grey = 0.75 * grey + 0.25 * ((np.floor(along * tiles) + np.floor(across * tiles)) % 2)
    else:
        grey = 0.75 * grey + 0.25 * rng.random(size, dtype=np.float32)
    return _muted(grey[..., None] + rng.uniform(-0.09, 0.09, 3), rng)


def _clouds(size: tuple[int, int], cells: int, rng: np.random.Generator) -> np.ndarray:
    coarse = Image.fromarray(rng.random((cells, cells), dtype=np.float32))
    return np.asarray(coarse.resize((size[1], size[0]), Image.Resampling.BICUBIC))


def _photo(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    photo = _load_photo(PHOTOS[rng.integers(len(PHOTOS))])
    height, width = size
    scale = min(photo.height / height, photo.width / width) * rng.uniform(0.55, 1.0)
    cut = (width * scale, height * scale)
    x, y = rng.random() * (photo.width - cut[0]), rng.random() * (photo.height - cut[1])
    piece = photo.resize(
        (width, height), Image.Resampling.BILINEAR, box=(x, y, x + cut[0], y + cut[1]), reducing_gap=2
    )
    piece = np.asarray(piece, dtype=np.float32) / 255
    if rng.random() < 0.5:
        piece = piece[:, ::-1]
    return _muted(piece.mean(axis=2, keepdims=True) * 0.6 + piece * 0.4, rng)


def _muted(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    contrast, level = rng.uniform(0.55, 1.0), rng.random()
    low = DARKEST + (BRIGHTEST - DARKEST) * (1 - contrast) * level
    return (low + (BRIGHTEST - DARKEST) * contrast * np.clip(picture, 0, 1)).astype(np.uint8)


@lru_cache(maxsize=len(PHOTOS))
def _load_photo(name: str) -> Image.Image:
    with Image.open(_photo_folder() / name) as photo:
        return photo.convert("RGB")


def _photo_folder() -> Path:
    package = find_spec("skimage")  # located but not imported: only its data files are needed
    if package is None or package.origin is None:
        raise ImportError("photographs come with scikit-image: install it, or set background='texture'")
    return Path(package.origin).parent / "data"
