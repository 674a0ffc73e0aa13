"""Pixel values by a table and on the model's device: the same bits as Pillow's resizing and NumPy's arithmetic."""

import numpy as np
import pytest
import torch
from PIL import Image

from sama import pixels_sama
from sama.configuration_sama import IMAGENET_MEAN, IMAGENET_STD
from sama.pixels_sama import normalized_on_device, normalized_pixels, pixel_table, resized_on_device, resized_pixels


def picture(height: int, width: int, contrast: bool = False) -> np.ndarray:
    levels = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return (levels > 127).astype(np.uint8) * 255 if contrast else levels


def by_arithmetic(frame: np.ndarray, size: int, mean, std) -> torch.Tensor:
    """What a look-up in the table replaces."""
    image = Image.fromarray(frame).resize((size, size), Image.Resampling.BICUBIC)
    pixels = np.asarray(image, dtype=np.float32) / 255
    pixels = (pixels - np.asarray(mean, dtype=np.float32)) / np.asarray(std, dtype=np.float32)
    return torch.from_numpy(pixels).movedim(-1, 0).contiguous()


@pytest.mark.parametrize(("mean", "std"), [(IMAGENET_MEAN, IMAGENET_STD), ((0.5,) * 3, (0.5,) * 3)])
def test_a_look_up_gives_the_bits_of_the_arithmetic(mean, std):
    every_level = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    found = normalized_pixels(Image.fromarray(every_level), 16, mean, std)
    assert torch.equal(found, by_arithmetic(every_level, 16, mean, std))
    assert found.is_contiguous() and len(found.unique()) >= 256
    frame = picture(36, 64)
    found = normalized_pixels(Image.fromarray(frame), 28, mean, std)
    assert torch.equal(found, by_arithmetic(frame, 28, mean, std))


@pytest.mark.parametrize("contrast", [False, True])  # hard edges overshoot on either side
@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(36, 64, 128), (360, 640, 96), (33, 57, 64), (1, 1, 16), (5, 700, 24), (64, 64, 64), (64, 100, 64), (100, 64, 64),
     (719, 128, 70), (216, 30, 102), (37, 41, 7)],
)  # fmt: skip
def test_resizing_on_a_device_gives_the_bits_of_pillow(height, width, size, contrast):
    frame = picture(height, width, contrast)
    wanted = resized_pixels(Image.fromarray(frame), size)
    found = resized_on_device(torch.from_numpy(frame)[None], size)[0].movedim(0, -1).numpy()
    assert (found == wanted).all()
    table = torch.from_numpy(pixel_table(IMAGENET_MEAN, IMAGENET_STD))
    values = normalized_on_device(torch.from_numpy(np.stack([frame, frame[::-1]])), size, table)
    for value, one in zip(values, (frame, np.ascontiguousarray(frame[::-1])), strict=True):
        assert torch.equal(value, by_arithmetic(one, size, IMAGENET_MEAN, IMAGENET_STD))


def test_the_order_of_rows_and_columns_is_that_of_the_installed_pillow(monkeypatch):
    """Newer versions choose it by the sizes."""
    frame = torch.from_numpy(picture(90, 20))[None]
    order = pixels_sama.filters_columns_first(90, 20, 40)
    monkeypatch.setattr(pixels_sama, "filters_columns_first", lambda *_: not order)
    wanted = resized_pixels(Image.fromarray(frame[0].numpy()), 40)
    assert (resized_on_device(frame, 40)[0].movedim(0, -1).numpy() != wanted).any()
