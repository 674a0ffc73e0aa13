"""Frames to pixel values: resized as Pillow resizes, normalised by a table, on the CPU or on the model's device."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from PIL import Image


LEVELS = 256
# Pillow's bicubic kernel, and the bits of its fixed-point weights for 8 bits a channel (libImaging/Resample.c)
CUBIC, CUBIC_SUPPORT, WEIGHT_BITS = -0.5, 2.0, 22


def pixel_table(mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """The normalised value of each level of each channel: float32 of shape `(3, 256)`. The arithmetic is that of
    normalising a picture, so a look-up gives the same bits."""
    levels = np.arange(LEVELS, dtype=np.float32)[:, None] / 255
    values = (levels - np.asarray(mean, dtype=np.float32)) / np.asarray(std, dtype=np.float32)
    return np.ascontiguousarray(values.T)


def resized_pixels(image: Image.Image, size: int) -> np.ndarray:
    """A picture resized to a square by Pillow: uint8 of shape `(size, size, 3)`."""
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))


def normalized_pixels(image: Image.Image, size: int, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """A picture resized to a square and normalized: float tensor of shape `(3, size, size)`. PIL resizes on every
    machine, so the pixels do not depend on what is installed."""
    pixels, table = resized_pixels(image, size), pixel_table(mean, std)
    values = np.empty((3, size, size), np.float32)
    for channel, levels in enumerate(table):
        np.take(levels, pixels[..., channel], out=values[channel], mode="clip")  # "raise" would need a buffer
    return torch.from_numpy(values)


# ---- on the model's device ------------------------------------------------------------------------------------------


@lru_cache(maxsize=4)  # of one video: rows and columns; 16 MB each for 1920 pixels to 1024
def resize_weights(old: int, new: int, device: torch.device) -> torch.Tensor:
    """The fixed-point weights with which Pillow's bicubic filter makes `new` pixels of `old` ones in a row: whole
    numbers as float64 of shape `(new, old)` on a device, of which `2 ** WEIGHT_BITS` are 1."""
    scale = max(old / new, 1.0)
    centers = (np.arange(new) + 0.5) * (old / new)
    first = np.maximum((centers - CUBIC_SUPPORT * scale + 0.5).astype(int), 0)
    behind = np.minimum((centers + CUBIC_SUPPORT * scale + 0.5).astype(int), old)
    taps = np.arange((behind - first).max())
    columns = first[:, None] + taps
    distance = np.abs(columns - centers[:, None] + 0.5) * (1.0 / scale)
    near = ((CUBIC + 2.0) * distance - (CUBIC + 3.0)) * distance * distance + 1
    far = (((distance - 5) * distance + 8) * distance - 4) * CUBIC
    weights = np.where(distance < 1.0, near, np.where(distance < CUBIC_SUPPORT, far, 0.0))
    weights[columns >= behind[:, None]] = 0.0
    weights = weights / np.cumsum(weights, axis=1)[:, -1:]  # a sum from left to right, as Pillow's
    fixed = np.trunc(weights * 2**WEIGHT_BITS + np.where(weights < 0, -0.5, 0.5))
    matrix = np.zeros((new, old))
    np.add.at(matrix, (np.arange(new)[:, None], np.minimum(columns, old - 1)), fixed)
    return torch.from_numpy(matrix).to(device)


@lru_cache(maxsize=16)
def filters_columns_first(height: int, width: int, size: int) -> bool:
    """Whether the installed Pillow filters the columns of a picture before its rows, which newer versions do where it
    is cheaper; the rounding in between makes it visible on noise."""
    noise = np.random.default_rng(0).integers(0, LEVELS, (height, width), dtype=np.uint8)
    picture, bicubic = Image.fromarray(noise), Image.Resampling.BICUBIC
    columns_first = picture.resize((width, size), bicubic).resize((size, size), bicubic)
    return picture.resize((size, size), bicubic).tobytes() == columns_first.tobytes()


def resized_on_device(frames: torch.Tensor, size: int) -> torch.Tensor:
    """Frames resized to squares on their own device, with the bits that Pillow's bicubic filter gives: weights and
    pixels are whole numbers, whose products float64 sums without rounding.

    Args:
        frames (`torch.Tensor` of shape `(num_frames, height, width, 3)`, uint8)

    Returns:
        `torch.Tensor` of shape `(num_frames, 3, size, size)`: float64, whole numbers from 0 to 255.
    """
    pixels = frames.movedim(-1, 1).double()
    columns_first = filters_columns_first(*pixels.shape[-2:], size)
    for axis in (-2, -1) if columns_first else (-1, -2):  # rounded in between
        if pixels.shape[axis] != size:
            weights = resize_weights(pixels.shape[axis], size, pixels.device)
            sums = pixels @ weights.T if axis == -1 else weights @ pixels
            pixels = ((sums + 2 ** (WEIGHT_BITS - 1)) / 2**WEIGHT_BITS).floor().clamp(0, LEVELS - 1)
    return pixels


def normalized_on_device(frames: torch.Tensor, size: int, table: torch.Tensor) -> torch.Tensor:
    """[`normalized_pixels`] of several frames of one size on their own device, with the same bits.

    Args:
        frames (`torch.Tensor` of shape `(num_frames, height, width, 3)`, uint8)
        table (`torch.Tensor` of shape `(3, 256)`): [`pixel_table`] on that device.
    """
    levels = resized_on_device(frames, size).int()
    return torch.stack([channel[levels[:, number]] for number, channel in enumerate(table)], 1)
