"""Regions and labels drawn on frames."""

from types import SimpleNamespace

import numpy as np
import pytest
from pictures import grey_frame, square_mask

from sama.drawing.regions import draw_region, label_masks


def make_region(**prompt):
    empty = {"frame": 0, "mask": None, "box": None, "points": None, "labels": None, "scribble": None}
    return SimpleNamespace(**(empty | prompt))


@pytest.mark.parametrize(
    "prompt",
    [
        {"box": (10, 10, 60, 50)},
        {"mask": square_mask()},
        {"points": [(20, 20), (60, 40)], "labels": [1, 0]},
        {"points": [(20, 20)]},
        {"scribble": [(10, 10), (40, 30), (60, 12)]},
    ],
    ids=["box", "mask", "points", "point", "scribble"],
)
def test_a_region_is_drawn_without_colour(prompt):
    frame = grey_frame()
    drawn = draw_region(frame, make_region(**prompt), label="1")
    assert np.ptp(drawn.astype(int), axis=-1).max() <= 4  # black, white and ink: only answers have a colour
    assert (drawn == 255).any() and (drawn != frame).any()
    assert (frame == 100).all()


def test_a_box_is_outlined_not_filled():
    drawn = draw_region(grey_frame(), make_region(box=(10, 10, 60, 50)))
    assert (drawn[15:45, 15:55] == 100).all()
    assert set(np.unique(drawn[10, 10:60])) == {0, 255}
    assert (drawn[:8] == 100).all() and (drawn[53:] == 100).all()


@pytest.mark.parametrize(("box", "column"), [((10.1, 10, 10.4, 50), 10), ((79.6, 10, 80, 50), 79)])
def test_a_box_within_one_pixel_is_drawn(box, column):
    drawn = draw_region(grey_frame(), make_region(box=box))
    assert set(np.unique(drawn[10:50, column])) == {0, 255}


def test_region_refuses():
    with pytest.raises(ValueError, match="none of mask, box, points and scribble"):
        draw_region(grey_frame(), make_region())
    with pytest.raises(ValueError, match=r"one frame.*\[1, 2\]"):
        draw_region(grey_frame(), make_region(frame=[1, 2], box=[(1, 1, 2, 2)] * 2))


def test_label_lies_on_the_mask_and_only_where_it_is_visible():
    frame = grey_frame(120, 160)
    masks = np.zeros((2, 120, 160), bool)
    masks[0, 40:100, 20:80] = True
    drawn = label_masks(frame, masks, ["1", "2"])
    changed = np.argwhere((drawn != frame).any(axis=-1))
    assert len(changed) and masks[0][tuple(changed.T)].all()
    with pytest.raises(ValueError, match="1 labels for 2 masks"):
        label_masks(frame, masks, ["1"])


def labelled(masks):
    """The pixels that labels change, on a frame of the masks' size."""
    frame = grey_frame(*masks.shape[1:])
    return (label_masks(frame, masks, [str(place + 1) for place in range(len(masks))]) != frame).any(axis=-1)


@pytest.mark.parametrize(("row", "column"), [(60, 60), (0, 0), (114, 114), (0, 60), (114, 0)])
def test_the_label_of_a_small_object_lies_beside_it(row, column):
    mask = np.zeros((128, 128), bool)
    mask[row : row + 14, column : column + 14] = True
    changed = labelled(mask[None])
    assert changed.any() and not (changed & mask).any()
    assert np.ptp(np.argwhere(changed), axis=0).max() < 16  # small itself
    around = np.zeros_like(mask)
    around[max(0, row - 20) : row + 34, max(0, column - 20) : column + 34] = True
    assert around[changed].all()


def test_labels_keep_off_one_another_and_off_small_objects():
    masks = np.zeros((3, 128, 128), bool)
    masks[0, 40:100, 40:100] = masks[1, 40:100, 40:100] = masks[2, 20:30, 66:76] = True
    alone = [labelled(masks[place : place + 1]).sum() for place in range(3)]
    together = labelled(masks)
    assert together.sum() == sum(alone) and not together[masks[2]].any()


def test_the_label_of_a_ring_does_not_jump():
    places = []
    for shift in range(4):
        rows, columns = np.ogrid[:128, :128]
        radius = np.hypot(rows - 64, columns - 64 - shift)
        ring = (radius < 50) & (radius > 25)
        ring[100:104, 60 : 60 + 9 * shift] = False  # the centroid moves a little
        places.append(np.argwhere(labelled(ring[None])).mean(axis=0))
    assert np.ptp(places, axis=0).max() < 8


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 1), (2, 2)])
def test_tiny_frames_can_be_drawn_on(size):
    frame, masks = grey_frame(*size), np.ones((1, *size), bool)
    assert label_masks(frame, masks, ["1"]).shape == frame.shape
    assert draw_region(frame, make_region(mask=masks[0])).shape == frame.shape
