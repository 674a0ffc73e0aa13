"""Draws answers: coloured masks over frames, the user's regions, captions, contact sheets and mask videos.

Everything takes and returns plain arrays (RGB, uint8) or PIL images. An "object" is anything with a `span`, the first
and last character of its phrase in the answer; a "region" is anything with the attributes `frame`, `mask`, `box`,
`points`, `labels` and `scribble`. Letters in the shapes: O objects, H height, W width.
"""

import colorsys
import math
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont


try:
    import av
except ImportError:
    av = None

Color = tuple[int, int, int]

# Bright, far apart from one another, and light enough to carry dark text: the same colour marks a mask in the video
# and its phrase in the caption and in the terminal.
PALETTE: tuple[Color, ...] = tuple(
    tuple(bytes.fromhex(code))
    for code in "ff4068 00beff ffc800 b080ff 00dc8c ff8224 ff6ee2 5c8cff b8ec00 7cffd8 ffac9c cea46e".split()
)
WHITE: Color = (255, 255, 255)
BLACK: Color = (0, 0, 0)
INK: Color = (16, 16, 20)
BAND: Color = (24, 24, 30)
SOFT: Color = (172, 176, 188)
MAX_LINES = 12
GOLDEN_RATIO = 0.6180339887


def object_color(index: int) -> Color:
    """The colour of object `index`: constant, from the palette and beyond it from evenly spread hues."""
    if index < 0:
        raise ValueError(f"An object index starts at 0, got {index}.")
    if index < len(PALETTE):
        return PALETTE[index]
    red, green, blue = colorsys.hsv_to_rgb(index * GOLDEN_RATIO % 1.0, 0.55, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def overlay_masks(
    frame: np.ndarray, masks: np.ndarray, colors: Sequence[Color] | None = None, opacity: float = 0.5
) -> np.ndarray:
    """
    Paints masks over a frame: a translucent fill and a crisp outline of the full colour with a thin dark rim.

    Args:
        frame (`np.ndarray` of shape (H, W, 3), uint8): the picture; it is not changed.
        masks (`np.ndarray` of shape (O, H, W), bool): one mask an object; later ones are painted over earlier ones.
        colors (sequence of RGB triples, *optional*): one colour a mask; by default those of `object_color`.
        opacity (`float`, *optional*, defaults to 0.5): of the fill, from 0 (outline only) to 1 (solid).
    """
    _check_frame(frame)
    masks = _check_masks(frame, masks)
    colors = _check_colors(len(masks), colors)
    if not 0.0 <= opacity <= 1.0:
        raise ValueError(f"The opacity must lie between 0 and 1, got {opacity}.")
    output = frame.copy()
    line = _line_width(frame)
    for mask, color in zip(masks, colors, strict=True):
        window = _mask_window(mask, line + 1)
        if window is None:
            continue
        inside, pixels = mask[window], output[window]
        blend = np.rint(np.arange(256)[:, None] * (1.0 - opacity) + np.multiply(color, opacity)).astype(np.uint8)
        pixels[inside] = blend[pixels[inside], (0, 1, 2)]
        rim = _grow(inside, 1) & ~inside
        pixels[rim] = pixels[rim] // 3
        pixels[inside & _grow(~inside, line)] = color
    return output


def label_masks(
    frame: np.ndarray, masks: np.ndarray, labels: Sequence[str], colors: Sequence[Color] | None = None
) -> np.ndarray:
    """Writes a short label (an object's number) on each visible mask (O, H, W), near its centre and inside it."""
    _check_frame(frame)
    masks = _check_masks(frame, masks)
    colors = _check_colors(len(masks), colors)
    _check_count("labels", labels, len(masks), "masks")
    draw = ImageDraw.Draw(image := Image.fromarray(frame))
    font = _font(frame.shape[1])
    for mask, label, color in zip(masks, labels, colors, strict=True):
        rows, columns = np.nonzero(mask)
        if len(rows) == 0:
            continue
        # The centroid of a ring or a crescent lies outside it: take the mask's pixel nearest to it.
        nearest = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
        corner = (int(columns[nearest]) - font.size // 2, int(rows[nearest]) - font.size * 2 // 3)
        _draw_badge(draw, corner, label, font, color)
    return np.array(image)


def draw_region(frame: np.ndarray, region, label: str | None = None) -> np.ndarray:
    """
    Draws the user's prompt in black and white, so that no answer mask can be mistaken for it: a box and a mask as a
    dashed outline, a scribble as a white stroke, points as discs with a plus (inside) or a minus (outside).
    `frame` (H, W, 3) is the one the region lies on and is not changed; `label` is a short name written beside it.
    """
    _check_frame(frame)
    if not isinstance(region.frame, (int, np.integer)):
        raise ValueError(f"draw_region draws a region of one frame, got the frames {list(region.frame)}.")
    if region.mask is not None or region.box is not None:
        mask = _box_mask(frame, region.box) if region.mask is None else region.mask
        output, anchor = _draw_outline_prompt(frame, mask)
    elif region.points is not None:
        output, anchor = _draw_points_prompt(frame, region.points, region.labels)
    elif region.scribble is not None:
        output, anchor = _draw_scribble_prompt(frame, region.scribble)
    else:
        raise ValueError("The region has none of mask, box, points and scribble, so there is nothing to draw.")
    if label is None or anchor is None:
        return output
    image = Image.fromarray(output)
    _draw_badge(ImageDraw.Draw(image), anchor, label, _font(frame.shape[1]), WHITE)
    return np.array(image)


def _box_mask(frame: np.ndarray, box: Sequence[float]) -> np.ndarray:
    left, top, right, bottom = (max(0, round(float(value))) for value in box)
    mask = np.zeros(frame.shape[:2], dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def _draw_outline_prompt(frame: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, tuple[int, int] | None]:
    """Outlines a mask (H, W) with black and white dashes and a dark rim, readable on any background."""
    mask = _check_masks(frame, np.asarray(mask)[None])[0]
    window = _mask_window(mask, 0)
    if window is None:
        return frame.copy(), None
    line = _line_width(frame) + 1
    outline = np.zeros_like(mask)
    # The picture's own border counts as an edge, so that the outline of a mask that reaches it stays closed.
    outline[window] = mask[window] & _grow(~np.pad(mask[window], line), line)[line:-line, line:-line]
    rows, columns = np.nonzero(outline)
    white = (rows + columns) // (3 + 2 * line) % 3 != 2
    output = frame.copy()
    output[_grow(outline, 1)] //= 3
    output[rows, columns] = np.where(white[:, None], WHITE, BLACK)
    return output, (window[1].start, window[0].start)


def _draw_points_prompt(
    frame: np.ndarray, points: Sequence[Sequence[float]], labels: Sequence[int] | None
) -> tuple[np.ndarray, tuple[int, int]]:
    draw = ImageDraw.Draw(image := Image.fromarray(frame))
    radius = 4 + 2 * _line_width(frame)
    arm, width = radius * 0.6, max(2, radius // 3)
    for (x, y), label in zip(points, [1] * len(points) if labels is None else labels, strict=True):
        fill, sign = (WHITE, BLACK) if label == 1 else (BLACK, WHITE)
        draw.circle((x, y), radius + 1, fill=sign)
        draw.circle((x, y), radius, fill=fill)
        draw.line((x - arm, y, x + arm, y), fill=sign, width=width)
        if label == 1:
            draw.line((x, y - arm, x, y + arm), fill=sign, width=width)
    return np.array(image), (round(points[0][0]) + radius, round(points[0][1]) + radius)


def _draw_scribble_prompt(
    frame: np.ndarray, scribble: Sequence[Sequence[float]]
) -> tuple[np.ndarray, tuple[int, int]]:
    draw = ImageDraw.Draw(image := Image.fromarray(frame))
    path = [(float(x), float(y)) for x, y in scribble]
    line = 2 * _line_width(frame) + 1
    for width, color in ((line + 2, BLACK), (line, WHITE)):
        draw.line(path, fill=color, width=width, joint="curve")
        for end in (path[0], path[-1]):  # round ends, and a dot where the scribble is a single point
            draw.circle(end, width / 2, fill=color)
    return np.array(image), (round(path[0][0]) + line, round(path[0][1]) + line)


def contact_sheet(
    frames: Sequence[np.ndarray], captions: Sequence[str] | None = None, columns: int = 4, tile_width: int = 360
) -> Image.Image:
    """
    Lays frames (H, W, 3) of one size out in a grid of `columns` tiles a row, `tile_width` pixels wide, each with its
    caption in the corner: by default "frame 0", "frame 1", ...
    """
    if len(frames) == 0:
        raise ValueError("A contact sheet needs at least one frame, got none.")
    captions = [f"frame {index}" for index in range(len(frames))] if captions is None else captions
    _check_count("captions", captions, len(frames), "frames")
    if columns < 1:
        raise ValueError(f"A contact sheet needs at least one column, got {columns}.")
    height, width = frames[0].shape[:2]
    tile_height = max(1, round(tile_width * height / width))
    rows, gap = math.ceil(len(frames) / columns), 6
    sheet = Image.new("RGB", (columns * (tile_width + gap) + gap, rows * (tile_height + gap) + gap), BAND)
    for index, (frame, caption) in enumerate(zip(frames, captions, strict=True)):
        _check_frame(frame)
        tile = Image.fromarray(frame).resize((tile_width, tile_height), Image.Resampling.LANCZOS)
        _draw_badge(ImageDraw.Draw(tile), (5, 5), caption, _font(tile_width), INK, WHITE)
        row, column = divmod(index, columns)
        sheet.paste(tile, (gap + column * (tile_width + gap), gap + row * (tile_height + gap)))
    return sheet


def caption_band(
    width: int, question: str = "", answer: str = "", objects: Sequence = (), colors: Sequence[Color] | None = None
) -> Image.Image:
    """
    Draws a question and its answer as a dark band, every grounded phrase marked in its object's colour.

    Lines are wrapped to `width` pixels and cut off after `MAX_LINES` with an ellipsis; `<region>` marks in the
    question stand out; several objects of one phrase share its characters, and an empty span marks nothing.
    """
    font = _font(width, extra=3)
    margin, spacing = 12, round(font.size * 1.5)
    marks: list[Color | None] = [None] * len(question)
    for found in re.finditer("<region>", question):
        marks[found.start() : found.end()] = [WHITE] * len(found[0])
    paragraphs = [("Q", question, marks, SOFT), ("A", answer, _character_colors(answer, objects, colors), WHITE)]
    indent = margin + round(font.getlength("Q   "))
    rows = [
        (letter if first else "", line, line_marks, fill)
        for letter, text, marks, fill in paragraphs
        if text
        for first, line, line_marks in _wrapped_lines(text, marks, width - indent - 2 * margin, font)
    ]
    band = Image.new("RGB", (width, 2 * margin + spacing * len(rows)), BAND)
    draw = ImageDraw.Draw(band)
    for row, (letter, line, line_marks, fill) in enumerate(rows):
        y = margin + spacing // 2 + spacing * row
        draw.text((margin, y), letter, font=font, fill=SOFT, anchor="lm")
        _draw_line(draw, (indent, y), line, line_marks, font, fill)
    return band


def stack_images(images: Sequence[Image.Image], gap: int = 0) -> Image.Image:
    """Puts pictures under one another, left aligned, `gap` pixels apart: a frame or a sheet and its caption band."""
    height = sum(image.height + gap for image in images) - gap
    output, y = Image.new("RGB", (max(image.width for image in images), height), BAND), 0
    for image in images:
        output.paste(image, (0, y))
        y += image.height + gap
    return output


def colored_text(
    text: str, objects: Sequence, colors: Sequence[Color] | None = None, enabled: bool | None = None
) -> str:
    """
    Marks the grounded phrases of an answer for the terminal, in the colours of their masks (24-bit ANSI codes).

    Several objects of one phrase share its characters. Codes are written if `enabled` says so; by default only where
    standard output is a terminal and the environment variable NO_COLOR is not set.
    """
    marks = _character_colors(text, objects, colors)
    text = printable(text)
    if enabled is None:
        enabled = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    if not enabled:
        return text
    pieces = []
    for start, end in _runs(marks):
        if marks[start] is None:
            pieces.append(text[start:end])
        else:
            # Dark text on the colour is readable on light and on dark terminals alike.
            red, green, blue = marks[start]
            pieces.append(f"\x1b[38;2;16;16;20;48;2;{red};{green};{blue}m{text[start:end]}\x1b[0m")
    return "".join(pieces)


def printable(text: str) -> str:
    """The text with every control character but the newline replaced, one for one, so that spans still fit."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "\ufffd" for letter in text)


class VideoWriter:
    """
    Writes frames one by one to an H.264 mp4 that browsers play; its folder is made if needed. Use it in a `with`: the
    file appears under its name only when it is complete, and after an error nothing of it remains.
    """

    def __init__(self, path: str | os.PathLike, fps: float):
        if av is None:
            raise ImportError("Writing a video needs PyAV, which is not installed: pip install av")
        if not (fps and math.isfinite(fps) and fps > 0):
            raise ValueError(f"A video needs a frame rate above 0, got {fps}.")
        self.path = Path(path)
        self.fps = Fraction(fps).limit_denominator(1001)
        self.size = None
        self.temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        prepare_output(self.path)
        self.container = av.open(str(self.temporary), "w", format="mp4", options={"movflags": "faststart"})
        self.stream = None

    def write(self, frame: np.ndarray) -> None:
        """Appends a frame (H, W, 3), uint8; all frames have one size."""
        _check_frame(frame)
        if self.stream is None:
            self._start(*frame.shape[:2])
        if frame.shape[:2] != self.size:
            raise ValueError(f"The video is {self.size} pixels high and wide, but a frame is {frame.shape[:2]}.")
        # H.264 with halved colour needs even sides: repeat the last row or column, which moves no other pixel.
        height, width = self.size
        frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        picture = picture.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
        self.container.mux(self.stream.encode(picture))

    def _start(self, height: int, width: int) -> None:
        self.size = (height, width)
        self.stream = self.container.add_stream("libx264", rate=self.fps, options={"crf": "18", "preset": "veryfast"})
        self.stream.width, self.stream.height = width + width % 2, height + height % 2
        self.stream.pix_fmt = "yuv420p"
        # Say which matrix made the colours (BT.709, limited range): players guess otherwise, and guess differently.
        context = self.stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = context.color_range = 1

    def close(self) -> None:
        """Finishes the file and gives it its name."""
        try:
            if self.stream is None:
                raise ValueError(f"No frame was written to {self.path}, so there is no video to save.")
            self.container.mux(self.stream.encode(None))
            self.container.close()
            os.replace(self.temporary, self.path)
        finally:
            self.discard()

    def discard(self) -> None:
        """Removes the temporary file, if it is still there, and leaves whatever has the name."""
        self.container.close()
        self.temporary.unlink(missing_ok=True)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self.close() if kind is None else self.discard()


def write_video(path: str | os.PathLike, frames: Iterable[np.ndarray], fps: float) -> Path:
    """Writes an iterable of frames (H, W, 3), uint8, one at a time, to an H.264 mp4; returns its path."""
    with VideoWriter(path, fps) as writer:
        for frame in frames:
            writer.write(frame)
    return writer.path


def prepare_output(path: str | os.PathLike) -> Path:
    """Makes the folder of a file to be written and tries that it can be written to; `OSError` in one sentence."""
    if (path := Path(path)).is_dir():
        raise IsADirectoryError(f"Cannot write {path}: it is a folder; give the name of a file.")
    probe = path.with_name(f".{path.name}.{os.getpid()}.probe")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        reason = "is a file, not a folder" if path.parent.is_file() else f"is not writable ({error.strerror})"
        raise OSError(f"Cannot write {path}: {path.parent} {reason}.") from error
    return path


def _check_frame(frame: np.ndarray) -> None:
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
        raise ValueError(f"A frame is an array (H, W, 3) of uint8, got {frame.shape} of {frame.dtype}.")


def _check_masks(frame: np.ndarray, masks: np.ndarray) -> np.ndarray:
    masks = np.asarray(masks)
    if masks.ndim != 3 or masks.shape[1:] != frame.shape[:2]:
        raise ValueError(f"Masks of shape {masks.shape} do not fit a frame of {frame.shape[:2]}; expected (O, H, W).")
    return masks.astype(bool, copy=False)


def _check_colors(count: int, colors: Sequence[Color] | None) -> Sequence[Color]:
    if colors is None:
        return [object_color(index) for index in range(count)]
    _check_count("colours", colors, count, "objects")
    return colors


def _check_count(name: str, values: Sequence, count: int, owners: str) -> None:
    if len(values) != count:
        raise ValueError(f"Got {len(values)} {name} for {count} {owners}; give one each.")


def _line_width(frame: np.ndarray) -> int:
    return max(1, round(min(frame.shape[:2]) / 240))


def _font(width: int, extra: int = 0) -> ImageFont.FreeTypeFont:
    """The font that Pillow carries, of a size that suits a picture of this width."""
    return ImageFont.load_default(size=max(11, min(20, round(width / 36))) + extra)


def _mask_window(mask: np.ndarray, margin: int) -> tuple[slice, slice] | None:
    """The rows and columns around a mask (H, W), `margin` wider where the frame allows; None for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows) == 0:
        return None
    top, left = max(0, rows[0] - margin), max(0, columns[0] - margin)
    return slice(int(top), int(rows[-1]) + 1 + margin), slice(int(left), int(columns[-1]) + 1 + margin)


def _grow(mask: np.ndarray, steps: int) -> np.ndarray:
    """Dilates a mask (H, W) by `steps` pixels; cross and square steps take turns, which keeps corners round."""
    for step in range(steps):
        grown = mask.copy()
        grown[1:] |= mask[:-1]
        grown[:-1] |= mask[1:]
        source = grown.copy() if step % 2 else mask
        grown[:, 1:] |= source[:, :-1]
        grown[:, :-1] |= source[:, 1:]
        mask = grown
    return mask


def _character_colors(text: str, objects: Sequence, colors: Sequence[Color] | None) -> list[Color | None]:
    """The colour of each character; objects of one and the same phrase divide it among them."""
    colors = _check_colors(len(objects), colors)
    sharing: dict[tuple[int, int], list[Color]] = {}
    for item, color in zip(objects, colors, strict=True):
        start, end = item.span
        if not 0 <= start <= end <= len(text):
            raise ValueError(f"The span ({start}, {end}) does not lie in an answer of {len(text)} characters.")
        sharing.setdefault((start, end), []).append(color)
    marks: list[Color | None] = [None] * len(text)
    for (start, end), shared in sharing.items():
        for position in range(start, end):
            marks[position] = shared[(position - start) * len(shared) // (end - start)]
    return marks


def _runs(values: Sequence) -> list[tuple[int, int]]:
    """(start, end) of each longest stretch of equal values."""
    edges = [index for index in range(1, len(values)) if values[index] != values[index - 1]]
    return list(zip([0, *edges], [*edges, len(values)], strict=True)) if len(values) else []


def _wrap(text: str, width: float, font: ImageFont.FreeTypeFont) -> list[tuple[int, int]]:
    """(start, end) characters of each line: broken at newlines and blanks, and inside words longer than a line."""
    lines, start, blank = [], 0, None
    for position, letter in enumerate(text):
        if letter == "\n":
            lines.append((start, position))
            start, blank = position + 1, None
            continue
        if letter == " ":
            blank = position
        elif font.getlength(text[start : position + 1]) > width and position > start:
            end = position if blank is None else blank
            lines.append((start, end))
            start, blank = (position if blank is None else blank + 1), None
    lines.append((start, len(text)))
    return lines


def _wrapped_lines(text: str, marks: Sequence, width: float, font: ImageFont.FreeTypeFont) -> Iterator:
    """(whether it is the first, text, marks) of each line that is drawn."""
    text = printable(text)
    lines = _wrap(text, width, font)
    for row, (start, end) in enumerate(lines[:MAX_LINES]):
        cut = " ..." if row == MAX_LINES - 1 and len(lines) > MAX_LINES else ""
        yield row == 0, text[start:end] + cut, [*marks[start:end], *[None] * len(cut)]


def _draw_line(
    draw: ImageDraw.ImageDraw, corner: tuple[float, int], text: str, marks: Sequence, font, fill: Color
) -> None:
    """Writes one line, vertically centred on `corner`, with dark text on the colour where a character has one."""
    x, y = corner
    half = round(font.size * 0.62)
    for start, end in _runs(marks):
        piece, color = text[start:end], marks[start]
        width, pad = font.getlength(piece), 0 if color is None else 2
        if color is not None:
            draw.rounded_rectangle((x, y - half, x + width + 2 * pad - 1, y + half), radius=4, fill=color)
        draw.text((x + pad, y), piece, font=font, fill=fill if color is None else INK, anchor="lm")
        x += width + 2 * pad


def _draw_badge(
    draw: ImageDraw.ImageDraw, corner: tuple[int, int], text: str, font, fill: Color, text_fill: Color = INK
) -> None:
    """Writes a short text on a rounded plate, kept inside the picture."""
    text = printable(text)
    width, height = round(font.getlength(text)) + font.size * 2 // 3, round(font.size * 1.45)
    limit_x, limit_y = draw.im.size
    x, y = max(0, min(corner[0], limit_x - width)), max(0, min(corner[1], limit_y - height))
    draw.rounded_rectangle((x, y, x + width, y + height), radius=4, fill=fill, outline=INK)
    draw.text((x + width / 2, y + height / 2), text, font=font, fill=text_fill, anchor="mm")
