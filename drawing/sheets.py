"""Contact sheets of frames and caption bands with a question and its answer."""

import math
import re
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sama.drawing.text import (
    BACKGROUND,
    INK,
    MUTED,
    WHITE,
    character_colors,
    draw_badge,
    equal_runs,
    font_for,
    printable,
    unmarked_objects,
)
from sama.overlay_sama import Color, check_colors, check_count, check_frame
from sama.prompts_sama import REGION_WORD


PAPER = (235, 235, 235)  # of title bands
MAX_LINES = 12  # of a question or an answer in a caption band
PHRASE_PADDING = 2  # pixels left and right of the words of a coloured phrase


def contact_sheet(
    frames: Sequence[np.ndarray], captions: Sequence[str] | None = None, columns: int = 4, tile_width: int = 360
) -> Image.Image:
    """
    Arranges frames in a grid, each with its caption in the corner.

    Args:
        frames (sequence of `np.ndarray` of shape `(height, width, 3)`, uint8): all of the same size.
        captions (sequence of `str`, *optional*): by default "frame 0", "frame 1", ...
        columns (`int`, *optional*, defaults to 4): tiles per row.
        tile_width (`int`, *optional*, defaults to 360): in pixels.

    Raises:
        ValueError: without frames or columns, if frames differ in size, or if there is not one caption per frame.
    """
    if len(frames) == 0:
        raise ValueError("A contact sheet needs at least one frame, got none.")
    captions = [f"frame {index}" for index in range(len(frames))] if captions is None else captions
    check_count("captions", captions, len(frames), "frames")
    if columns < 1:
        raise ValueError(f"A contact sheet needs at least one column, got {columns}.")
    height, width = frames[0].shape[:2]
    tile_height = max(1, round(tile_width * height / width))
    rows, gap = math.ceil(len(frames) / columns), 6
    sheet = Image.new("RGB", (columns * (tile_width + gap) + gap, rows * (tile_height + gap) + gap), BACKGROUND)
    for index, (frame, caption) in enumerate(zip(frames, captions, strict=True)):
        check_frame(frame)
        if frame.shape[:2] != (height, width):
            raise ValueError(
                f"The frames of a contact sheet have one (height, width), got {(height, width)} for frame 0 and "
                f"{frame.shape[:2]} for frame {index}."
            )
        tile = Image.fromarray(frame).resize((tile_width, tile_height), Image.Resampling.LANCZOS)
        draw_badge(ImageDraw.Draw(tile), (5, 5), caption, font_for(tile_width), INK, WHITE)
        row, column = divmod(index, columns)
        sheet.paste(tile, (gap + column * (tile_width + gap), gap + row * (tile_height + gap)))
    return sheet


def stack_images(images: Sequence[Image.Image], gap: int = 0) -> Image.Image:
    """Stacks pictures vertically, aligned left and `gap` pixels apart."""
    height = sum(image.height + gap for image in images) - gap
    output, y = Image.new("RGB", (max(image.width for image in images), height), BACKGROUND), 0
    for image in images:
        output.paste(image, (0, y))
        y += image.height + gap
    return output


def title_band(width: int, title: str) -> Image.Image:
    """A light band with one line of dark text; what does not fit is cut off at an ellipsis."""
    font, title = ImageFont.load_default(18), printable(title)
    while font.getlength(title) > width - 24 and len(title) > 4:
        title = title[:-4] + "..."
    band = Image.new("RGB", (width, 36), PAPER)
    ImageDraw.Draw(band).text((12, 18), title, font=font, fill=INK, anchor="lm")
    return band


def caption_band(
    width: int,
    question: str = "",
    answer: str = "",
    objects: Sequence = (),
    colors: Sequence[Color] | None = None,
    numbers: Sequence[int] | None = None,
    max_lines: int = MAX_LINES,
) -> Image.Image:
    """
    Draws a question and its answer on a dark band, with each grounded phrase in the colour of its object.

    Lines are wrapped to `width` pixels, and a text of more than `max_lines` lines ends in an ellipsis. `<region>` in
    the question is highlighted. Objects of the same phrase divide its words. Objects that no word is left for, and
    objects without a phrase, are listed below the answer by their `numbers`, by default counted from 1.
    """
    colors = check_colors(len(objects), colors)
    numbers = range(1, len(objects) + 1) if numbers is None else numbers
    check_count("numbers", numbers, len(objects), "objects")
    font = font_for(width, extra=3)
    margin, spacing = 12, round(font.size * 1.5)
    marks: list[Color | None] = [None] * len(question)
    for found in re.finditer(re.escape(REGION_WORD), question):
        marks[found.start() : found.end()] = [WHITE] * len(found[0])
    answer_marks = character_colors(answer, objects, colors)
    others, other_marks = _other_objects(unmarked_objects(answer_marks, colors), objects, colors, numbers)
    paragraphs = [
        ("Q", question, marks, MUTED),
        ("A", answer, answer_marks, WHITE),
        ("", others, other_marks, MUTED),
    ]
    indent = margin + round(font.getlength("Q   "))
    rows = [
        (letter if first else "", line, line_marks, fill)
        for letter, text, marks, fill in paragraphs
        if text
        for first, line, line_marks in _wrapped_lines(text, marks, width - indent - 2 * margin, font, max_lines)
    ]
    band = Image.new("RGB", (width, 2 * margin + spacing * len(rows)), BACKGROUND)
    draw = ImageDraw.Draw(band)
    for row, (letter, line, line_marks, fill) in enumerate(rows):
        y = margin + spacing // 2 + spacing * row
        draw.text((margin, y), letter, font=font, fill=MUTED, anchor="lm")
        _draw_line(draw, (indent, y), line, line_marks, font, fill)
    return band


def _other_objects(
    indices: Sequence[int], objects: Sequence, colors: Sequence[Color], numbers: Sequence[int]
) -> tuple[str, list[Color | None]]:
    """The line about objects that no word of the answer shows, with the colours of its characters."""
    text, marks = "", []
    for index in indices:
        start, end = objects[index].span
        for piece, color in (
            ("   " if text else "", None),
            (f" {numbers[index]} ", colors[index]),
            (" without a phrase" if start == end else " of the same phrase", None),
        ):
            text += piece
            marks += [color] * len(piece)
    return text, marks


def _wrapped_lines(text: str, marks: Sequence, width: float, font: ImageFont.FreeTypeFont, max_lines: int) -> Iterator:
    """(whether it is the first, text, colours of its characters) of each line that is drawn."""
    text = printable(text)
    lines = _wrap(text, marks, width, font)
    for row, (start, end) in enumerate(lines[:max_lines]):
        ellipsis = " ..." if row == max_lines - 1 and len(lines) > max_lines else ""
        yield row == 0, text[start:end] + ellipsis, [*marks[start:end], *[None] * len(ellipsis)]


def _wrap(text: str, marks: Sequence, width: float, font: ImageFont.FreeTypeFont) -> list[tuple[int, int]]:
    """`(start, end)` characters of each line: broken at newlines and blanks, and inside words wider than a line."""
    lines, start, blank = [], 0, None
    for position, letter in enumerate(text):
        if letter == "\n":
            lines.append((start, position))
            start, blank = position + 1, None
            continue
        if letter == " ":
            blank = position
        elif position > start and _line_width(text, marks, font, start, position + 1) > width:
            end = position if blank is None else blank
            lines.append((start, end))
            start, blank = (position if blank is None else blank + 1), None
    lines.append((start, len(text)))
    return lines


def _runs(text: str, marks: Sequence, font: ImageFont.FreeTypeFont) -> list[tuple[str, Color | None, float, int]]:
    """(text, colour, width of the text, padding on each side) of each run of characters of one colour."""
    runs = [(text[start:end], marks[start]) for start, end in equal_runs(marks)]
    return [(piece, color, font.getlength(piece), 0 if color is None else PHRASE_PADDING) for piece, color in runs]


def _line_width(text: str, marks: Sequence, font: ImageFont.FreeTypeFont, start: int, end: int) -> float:
    """Pixels that `_draw_line` takes for the characters from `start` to `end`."""
    return sum(width + 2 * padding for _, _, width, padding in _runs(text[start:end], marks[start:end], font))


def _draw_line(
    draw: ImageDraw.ImageDraw, corner: tuple[float, int], text: str, marks: Sequence, font, fill: Color
) -> None:
    """Writes one line, vertically centred on `corner`; coloured characters are dark on a rectangle of the colour."""
    x, y = corner
    half = round(font.size * 0.62)
    for piece, color, width, padding in _runs(text, marks, font):
        if color is not None:
            draw.rounded_rectangle((x, y - half, x + width + 2 * padding - 1, y + half), radius=4, fill=color)
        draw.text((x + padding, y), piece, font=font, fill=fill if color is None else INK, anchor="lm")
        x += width + 2 * padding
