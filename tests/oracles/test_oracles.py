"""sama-tiny answers, selects and learns what was recorded: tokens to the letter, masks to the pixel but for rounding.

The values were recorded in float32 on x86-64. Another CPU sums in another order, so a pixel on the edge of a mask may
fall on the other side; more than one pixel in 10,000 is an error.
"""

import json

import numpy as np
import pytest
from oracles.oracles import (
    NUM_CONVERSATIONS,
    NUM_QUESTIONS,
    NUM_UPDATES,
    benchmark_rows,
    conversations,
    demo_file,
    recorded,
    rescored,
    training_losses,
)
from pycocotools import mask as coco_mask


PIXEL_TOLERANCE = 1e-4


def split_masks(value, size: list[int], masks: list):
    """`value` without its masks, which go to `masks` in order, as (size, counts)."""
    if isinstance(value, list):
        return [split_masks(item, size, masks) for item in value]
    if not isinstance(value, dict):
        return value
    size = value.get("size", size)
    rest = {}
    for name, item in value.items():
        if name == "masks":
            masks += [(mask["size"], mask["counts"]) if isinstance(mask, dict) else (size, mask) for mask in item]
        else:
            rest[name] = split_masks(item, size, masks)
    return rest


def different_pixels(found: list, expected: list) -> float:
    """Share of differing pixels among all pixels of all masks."""
    different = total = 0
    for (size, mine), (other_size, theirs) in zip(found, expected, strict=True):
        total += np.prod(size or other_size or [1])
        if mine != theirs:
            empty = np.zeros(size or other_size, np.uint8)
            one, other = (
                empty if counts is None else coco_mask.decode({"size": size or other_size, "counts": counts})
                for counts in (mine, theirs)
            )
            different += int((one != other).sum())
    return different / max(total, 1)


def assert_same_answers(found, expected) -> None:
    found_masks, expected_masks = [], []
    found = split_masks(json.loads(json.dumps(found)), None, found_masks)
    expected = split_masks(expected, None, expected_masks)
    assert found == rounded_like(expected, found)
    assert different_pixels(found_masks, expected_masks) <= PIXEL_TOLERANCE


@pytest.mark.parametrize("count", [4, pytest.param(NUM_CONVERSATIONS, marks=pytest.mark.slow)])
def test_conversations(count):
    assert_same_answers(conversations(count), recorded("conversations")[:count])


def test_demo_file():
    assert_same_answers(demo_file(), recorded("demo_file"))


@pytest.mark.parametrize("count", [4, pytest.param(NUM_QUESTIONS, marks=pytest.mark.slow)])
def test_benchmark_predictions(count):
    assert_same_answers(benchmark_rows(count)["predictions"], recorded("benchmark_rows")["predictions"][:count])


def test_benchmark_scores():
    expected = recorded("benchmark_rows")
    found = rescored(expected["predictions"])
    assert found == rounded_like(expected["scores"], found)


@pytest.mark.parametrize("count", [6, pytest.param(NUM_UPDATES, marks=pytest.mark.slow)])
def test_training_losses(count):
    found, expected = training_losses(count), recorded("training_losses")[:count]
    assert len(found) == count
    assert found == rounded_like(expected, found)


def rounded_like(expected, found):
    """`expected` with every float that `found` matches to 1e-3 relative taken from `found`."""
    if isinstance(expected, dict) and isinstance(found, dict):
        return {name: rounded_like(value, found.get(name)) for name, value in expected.items()}
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        return [rounded_like(mine, theirs) for mine, theirs in zip(expected, found, strict=True)]
    if isinstance(expected, float) and isinstance(found, float) and abs(expected - found) <= 1e-3 * abs(expected):
        return found
    return expected
