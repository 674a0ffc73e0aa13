"""Regions of a question and numbers of objects, drawn on frames of shape `(height, width, 3)`, RGB, uint8.

A "region" is anything with the attributes `frame`, `mask`, `box`, `points`, `labels` and `scribble`.
"""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sama.drawing.text import BLACK, WHITE, badge_size, draw_badge, font_for
from sama.overlay_sama import (
    Color,
    check_colors,
    check_count,
    check_frame,
    check_masks,
    dilate,
    line_width,
    mask_window,
)


MAX_COVERED = 0.15  # of a mask's area, by its label


def draw_region(frame: np.ndarray, region, label: str | None = None) -> np.ndarray:
    """
    Draws a region of a question on a copy of its frame, in black and white so that it cannot be mistaken for an
    answer's mask: boxes and masks as a dashed outline, scribbles as a white stroke, points as discs with a plus
    (label 1) or a minus (label 0).

    Args:
        frame (`np.ndarray` of shape `(height, width, 3)`, uint8): the frame that the region lies on.
        region: a region of one frame.
        label (`str`, *optional*): a short name, written next to the region.

    Raises:
        ValueError: if the region has several frames, or no prompt.
    """
    check_frame(frame)
    if not isinstance(region.frame, (int, np.integer)):
        raise ValueError(f"draw_region draws a region of one frame, got the frames {list(region.frame)}.")
    if region.mask is not None or region.box is not None:
        mask = _box_mask(frame, region.box) if region.mask is None else region.mask
        output, anchor = _draw_outline(frame, mask)
    elif region.points is not None:
        output, anchor = _draw_points(frame, region.points, region.labels)
    elif region.scribble is not None:
        output, anchor = _draw_scribble(frame, region.scribble)
    else:
        raise ValueError("The region has none of mask, box, points and scribble, so there is nothing to draw.")
    if label is None or anchor is None:
        return output
    image = Image.fromarray(output)
    draw_badge(ImageDraw.Draw(image), anchor, label, font_for(frame.shape[1]), WHITE)
    return np.array(image)


def label_masks(
    frame: np.ndarray,
    masks: Sequence[np.ndarray] | np.ndarray,
    labels: Sequence[str],
    colors: Sequence[Color] | None = None,
) -> np.ndarray:
    """
    Writes a short label, such as an object's number, on each mask that is not empty, close to its centre. A label
    that would cover more than `MAX_COVERED` of its mask is written beside it. Labels keep off one another where they
    can.

    Args:
        frame (`np.ndarray` of shape `(height, width, 3)`, uint8): is not changed.
        masks (sequence of bool arrays of shape `(height, width)`): used one after another, twice, so that a sequence
            that decodes them when they are asked for never holds more than one.
        labels (sequence of `str`): one per mask.
        colors (sequence of RGB triples, *optional*): one per mask.
    """
    check_frame(frame)
    colors = check_colors(len(masks), colors)
    check_count("labels", labels, len(masks), "masks")
    draw = ImageDraw.Draw(image := Image.fromarray(frame))
    font = ImageFont.load_default(size=max(8, min(18, round(frame.shape[1] / 36))))
    objects, written = np.zeros((2, *frame.shape[:2]), dtype=bool)
    for mask in masks:
        objects |= check_masks(frame, np.asarray(mask)[None])[0]
    for mask, label, color in zip(masks, labels, colors, strict=True):
        if not mask.any():
            continue
        width, height = size = badge_size(label, font)
        places = _label_places(mask, size) or [(0, 0)]
        boxes = [np.s_[y : y + height + 1, x : x + width + 1] for x, y in places]
        small = width * height > MAX_COVERED * mask.sum()
        # Off other labels first, then off all objects, or on a large one its own; of equal places the first
        hidden = [int(objects[box].sum()) if small or place else 0 for place, box in enumerate(boxes)]
        best = min(range(len(places)), key=lambda place: (int(written[boxes[place]].sum()), hidden[place]))
        draw_badge(draw, places[best], label, font, color)
        written[boxes[best]] = True
    return np.array(image)


def _label_places(mask: np.ndarray, size: tuple[int, int]) -> list[tuple[int, int]]:
    """Top left corners where a label of this size fits into the picture: on the mask, then beside the mask's box."""
    (width, height), (center_x, center_y) = size, _center(mask)
    window = mask_window(mask, 2)
    left, top, right, bottom = window[1].start, window[0].start, window[1].stop, window[0].stop
    middle_x, middle_y = center_x - width // 2, center_y - height // 2
    beside = [(right, middle_y), (left - width, middle_y), (middle_x, top - height), (middle_x, bottom)]
    beside += [(right, top - height), (left - width, top - height), (right, bottom), (left - width, bottom)]
    limit_x, limit_y = mask.shape[1] - width - 1, mask.shape[0] - height - 1
    on_mask = (max(0, min(middle_x, limit_x)), max(0, min(middle_y, limit_y)))
    return [(x, y) for x, y in (on_mask, *beside) if 0 <= x <= limit_x and 0 <= y <= limit_y]


def _center(mask: np.ndarray) -> tuple[int, int]:
    """x and y of a pixel of the mask near its centroid, one that moves little from frame to frame: the centroid of a
    ring or a crescent lies outside it."""
    rows, columns = np.nonzero(mask)
    x, y = round(columns.mean()), round(rows.mean())
    if mask[y, x]:
        return x, y
    column = np.flatnonzero(mask[:, x])
    if len(column):  # the middle of the first run in the centroid's column
        gaps = np.flatnonzero(np.diff(column) > 1)
        return x, int(column[: gaps[0] + 1 if len(gaps) else None].mean())
    nearest = np.argmin((rows - y) ** 2 + (columns - x) ** 2)
    return int(columns[nearest]), int(rows[nearest])


def _box_mask(frame: np.ndarray, box: Sequence[float]) -> np.ndarray:
    """All pixels that the box touches, as the model reads it."""
    left, top = (max(0, math.floor(value)) for value in box[:2])
    right, bottom = (max(0, math.ceil(value)) for value in box[2:])
    mask = np.zeros(frame.shape[:2], dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def _draw_outline(frame: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, tuple[int, int] | None]:
    """Outlines a mask with black and white dashes and a dark rim, visible on any background."""
    mask = check_masks(frame, np.asarray(mask)[None])[0]
    window = mask_window(mask, 0)
    if window is None:
        return frame.copy(), None
    line = line_width(frame) + 1
    outline = np.zeros_like(mask)
    # The border of the picture counts as an edge, so that the outline of a mask that reaches it is closed.
    outline[window] = mask[window] & dilate(~np.pad(mask[window], line), line)[line:-line, line:-line]
    rows, columns = np.nonzero(outline)
    white = (rows + columns) // (3 + 2 * line) % 3 != 2
    output = frame.copy()
    output[dilate(outline, 1)] //= 3
    output[rows, columns] = np.where(white[:, None], WHITE, BLACK)
    return output, (window[1].start, window[0].start)


def _draw_points(
    frame: np.ndarray, points: Sequence[Sequence[float]], labels: Sequence[int] | None
) -> tuple[np.ndarray, tuple[int, int]]:
    draw = ImageDraw.Draw(image := Image.fromarray(frame))
    radius = 4 + 2 * line_width(frame)
    arm, width = radius * 0.6, max(2, radius // 3)
    for (x, y), label in zip(points, [1] * len(points) if labels is None else labels, strict=True):
        fill, sign = (WHITE, BLACK) if label == 1 else (BLACK, WHITE)
        draw.circle((x, y), radius + 1, fill=sign)
        draw.circle((x, y), radius, fill=fill)
        draw.line((x - arm, y, x + arm, y), fill=sign, width=width)
        if label == 1:
            draw.line((x, y - arm, x, y + arm), fill=sign, width=width)
    return np.array(image), (round(points[0][0]) + radius, round(points[0][1]) + radius)


def _draw_scribble(frame: np.ndarray, scribble: Sequence[Sequence[float]]) -> tuple[np.ndarray, tuple[int, int]]:
    draw = ImageDraw.Draw(image := Image.fromarray(frame))
    path = [(float(x), float(y)) for x, y in scribble]
    line = 2 * line_width(frame) + 1
    for width, color in ((line + 2, BLACK), (line, WHITE)):
        draw.line(path, fill=color, width=width, joint="curve")
        for end in (path[0], path[-1]):  # round ends; a dot if the scribble is a single point
            draw.circle(end, width / 2, fill=color)
    return np.array(image), (round(path[0][0]) + line, round(path[0][1]) + line)
