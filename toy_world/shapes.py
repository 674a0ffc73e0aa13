"""The colours, shapes and sizes of toy world, and the stamps that objects are drawn with."""

from functools import lru_cache
from math import cos, pi, sin

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter


COLOURS = {
    "red": (222, 32, 36),
    "orange": (255, 136, 8),
    "yellow": (252, 228, 20),
    "green": (28, 166, 56),
    "blue": (30, 74, 232),
    "purple": (150, 48, 196),
    "white": (252, 252, 252),
    "black": (10, 10, 14),
}
SHAPES = (
    "circle", "square", "triangle", "star", "diamond", "cross", "ring", "heart", "moon", "arrow", "hourglass", "bolt",
    "letter T", "letter H", "letter Z", "letter L",
)  # fmt: skip
SIZES = {"small": 0.15, "medium": 0.225, "large": 0.335}  # diameter, in fractions of the shorter side
OCCLUDERS = ("circle", "square", "heart")  # shapes that fully cover a small object when large
PATTERNS = ("plain", "stripes", "dots", "checks", "shade")

# Each shape is held out in one colour and each colour in two shapes, because 3 is invertible modulo 8
UNSEEN_PAIRS = tuple((tuple(COLOURS)[(3 * place + 1) % len(COLOURS)], shape) for place, shape in enumerate(SHAPES))
SEEN_PAIRS = tuple((colour, shape) for colour in COLOURS for shape in SHAPES if (colour, shape) not in UNSEEN_PAIRS)

OVERSAMPLING = 4
RIM = 0.025  # width of the darker edge, in fractions of the diameter


def _star(points: int, inner: float) -> list[tuple[float, float]]:
    radii = [1.0 if corner % 2 == 0 else inner for corner in range(2 * points)]
    return [(r * sin(pi * k / points), 0.08 - r * cos(pi * k / points)) for k, r in enumerate(radii)]


def _heart() -> list[tuple[float, float]]:
    turns = [2 * pi * k / 48 for k in range(48)]
    wave = [13 * cos(a) - 5 * cos(2 * a) - 2 * cos(3 * a) - cos(4 * a) for a in turns]
    return [(sin(a) ** 3, -(y + 2.5) / 15) for a, y in zip(turns, wave, strict=True)]


# Corners in a square from -1 to 1, y downwards. The other shapes are drawn from ellipses.
POLYGONS = {
    "square": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
    "triangle": [(0, -0.95), (1, 0.85), (-1, 0.85)],
    "star": _star(5, 0.42),
    "diamond": [(0, -1), (0.66, 0), (0, 1), (-0.66, 0)],
    "cross": [(-0.3, -1), (0.3, -1), (0.3, -0.3), (1, -0.3), (1, 0.3), (0.3, 0.3),
              (0.3, 1), (-0.3, 1), (-0.3, 0.3), (-1, 0.3), (-1, -0.3), (-0.3, -0.3)],
    "heart": _heart(),
    "arrow": [(0, -1), (0.95, 0.05), (0.36, 0.05), (0.36, 1), (-0.36, 1), (-0.36, 0.05), (-0.95, 0.05)],
    "hourglass": [(-0.85, -1), (0.85, -1), (0.14, 0), (0.85, 1), (-0.85, 1), (-0.14, 0)],
    "bolt": [(0.25, -1), (-0.75, 0.2), (-0.08, 0.2), (-0.3, 1), (0.75, -0.25), (0.08, -0.25), (0.75, -1)],
    "letter T": [(-0.9, -1), (0.9, -1), (0.9, -0.5), (0.27, -0.5), (0.27, 1), (-0.27, 1), (-0.27, -0.5), (-0.9, -0.5)],
    "letter H": [(-0.9, -1), (-0.4, -1), (-0.4, -0.25), (0.4, -0.25), (0.4, -1), (0.9, -1),
                 (0.9, 1), (0.4, 1), (0.4, 0.25), (-0.4, 0.25), (-0.4, 1), (-0.9, 1)],
    "letter Z": [(-0.9, -1), (0.9, -1), (0.9, -0.55), (-0.2, 0.52), (0.9, 0.52), (0.9, 1),
                 (-0.9, 1), (-0.9, 0.55), (0.2, -0.52), (-0.9, -0.52)],
    "letter L": [(-0.7, -1), (-0.15, -1), (-0.15, 0.48), (0.75, 0.48), (0.75, 1), (-0.7, 1)],
}  # fmt: skip


def _silhouette(shape: str, side: int) -> Image.Image:
    """The shape in white on a black square image."""
    picture = Image.new("L", (side, side))
    draw = ImageDraw.Draw(picture)

    def ellipse(x: float, y: float, radius: float, fill: int):
        box = [(1 + value) * side / 2 for value in (x - radius, y - radius, x + radius, y + radius)]
        draw.ellipse([box[0], box[1], box[2] - 1, box[3] - 1], fill=fill)

    if shape in POLYGONS:
        draw.polygon([((1 + x) * (side - 1) / 2, (1 + y) * (side - 1) / 2) for x, y in POLYGONS[shape]], fill=255)
    elif shape == "moon":
        ellipse(0, 0, 1, 255)
        ellipse(0.5, -0.12, 0.82, 0)
    else:
        ellipse(0, 0, 1, 255)
        if shape == "ring":
            ellipse(0, 0, 0.54, 0)
    return picture


@lru_cache(maxsize=4096)
def stamp(shape: str, diameter: int) -> tuple[np.ndarray, np.ndarray]:
    """
    Anti-aliased coverage of a shape, uint8 from 0 to 255: two arrays of shape `(diameter, diameter)`, for the whole
    shape and for its interior without the rim.
    """
    side = OVERSAMPLING * diameter
    whole = _silhouette(shape, side)
    reach = 2 * max(1, round(RIM * side)) + 1
    border = Image.new("L", (side + 2 * reach, side + 2 * reach))
    border.paste(whole, (reach, reach))
    inside = border.filter(ImageFilter.MinFilter(reach)).crop((reach, reach, reach + side, reach + side))
    inside = ImageChops.multiply(inside, whole)
    covers = [np.asarray(picture.reduce(OVERSAMPLING)) for picture in (whole, inside)]
    return covers[0], covers[1]


@lru_cache(maxsize=4096)
def pattern(kind: str, diameter: int) -> np.ndarray:
    """Brightness factors of a surface pattern, around 1: float array of shape `(diameter, diameter, 1)`."""
    y, x = np.mgrid[:diameter, :diameter] / max(diameter, 8)
    if kind == "stripes":
        wave = np.where(np.floor((x + y) * 5) % 2, 1.0, -1.0)
    elif kind == "dots":
        wave = np.where((x * 4 % 1 - 0.5) ** 2 + (y * 4 % 1 - 0.5) ** 2 < 0.09, -1.0, 0.6)
    elif kind == "checks":
        wave = np.where((np.floor(x * 4) + np.floor(y * 4)) % 2, 1.0, -1.0)
    elif kind == "shade":
        wave = 1 - 2 * y
    else:
        wave = np.zeros_like(x)
    return (1 + 0.13 * wave).astype(np.float32)[..., None]


@lru_cache(maxsize=8192)
def painted(shape: str, colour: str, kind: str, diameter: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    A coloured stamp, ready to be composited onto a frame.

    Returns:
        Premultiplied colour, uint16 of shape `(diameter, diameter, 3)`; the background's weight from 0 to 255, uint16
        of shape `(diameter, diameter, 1)`; the object's mask, bool of shape `(diameter, diameter)`.
    """
    whole, inside = stamp(shape, diameter)
    colour_value = np.array(COLOURS[colour], dtype=np.float32)
    rim = colour_value * 0.5 if colour != "black" else np.full(3, 70, dtype=np.float32)
    surface = np.clip((colour_value + (12 if colour == "black" else 0)) * pattern(kind, diameter), 0, 255)
    share = (inside.astype(np.float32) / np.maximum(whole, 1))[..., None]
    colour_map = np.clip(rim * (1 - share) + surface * share, 0, 255)
    premultiplied = (colour_map * whole[..., None] + 0.5).astype(np.uint16)
    return premultiplied, (255 - whole.astype(np.uint16))[..., None], whole >= 128
