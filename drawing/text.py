"""What captions, labels and the terminal share: text colours, the font, and the characters of grounded phrases.

An "object" is anything with a `span`, the first character of its phrase in the answer and the one after its last.
"""

import re
import unicodedata
from collections.abc import Sequence
from itertools import pairwise

from PIL import ImageDraw, ImageFont

from sama.overlay_sama import Color, check_colors


WHITE: Color = (255, 255, 255)
BLACK: Color = (0, 0, 0)
INK: Color = (16, 16, 20)  # dark text on a colour of the palette
BACKGROUND: Color = (24, 24, 30)  # of caption bands and contact sheets
MUTED: Color = (172, 176, 188)  # less prominent text on the background
# They reorder what stands around them, so that a text reads as another one
DIRECTION_CONTROLS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def printable(text: str) -> str:
    """The text for a terminal or a picture, one character for each, so that spans stay valid: blanks of any kind, the
    tab and the carriage return are spaces; control characters except the newline, characters that change the direction
    of writing, and halves of surrogate pairs are U+FFFD. Joiners of emoji and of scripts stay."""
    return "".join(letter if letter == "\n" else _printable_letter(letter) for letter in text)


def _printable_letter(letter: str) -> str:
    category = unicodedata.category(letter)
    if category in ("Zs", "Zl", "Zp") or letter in "\t\r":
        return " "
    return "\ufffd" if category in ("Cc", "Cs") or letter in DIRECTION_CONTROLS else letter


def character_colors(text: str, objects: Sequence, colors: Sequence[Color] | None = None) -> list[Color | None]:
    """
    The colour of each character of an answer, `None` outside grounded phrases. Objects of the same phrase divide its
    words among them; if it has fewer words than objects, the last objects have none. See [`unmarked_objects`].

    Raises:
        ValueError: if a span does not lie in the text, or there is not one colour per object.
    """
    colors = check_colors(len(objects), colors)
    sharing: dict[tuple[int, int], list[Color]] = {}
    for item, color in zip(objects, colors, strict=True):
        start, end = item.span
        if not 0 <= start <= end <= len(text):
            raise ValueError(f"The span ({start}, {end}) does not lie in an answer of {len(text)} characters.")
        sharing.setdefault((start, end), []).append(color)
    marks: list[Color | None] = [None] * len(text)
    for (start, end), shared in sharing.items():
        words = [start + found.start() for found in re.finditer(r"\S+", text[start:end])]
        share = max(len(shared), len(words))  # a blank belongs to the word before it
        edges = [start, *words[1:], end]
        for place, (first, last) in enumerate(pairwise(edges)):
            marks[first:last] = [shared[place * len(shared) // share]] * (last - first)
    return marks


def unmarked_objects(marks: Sequence[Color | None], colors: Sequence[Color]) -> list[int]:
    """Indices of the objects whose colour marks no character: they have no phrase, or share one with too few words."""
    used = set(marks)
    return [index for index, color in enumerate(colors) if color not in used]


def equal_runs(values: Sequence) -> list[tuple[int, int]]:
    """`(start, end)` of each longest run of equal values."""
    edges = [index for index in range(1, len(values)) if values[index] != values[index - 1]]
    return list(zip([0, *edges], [*edges, len(values)], strict=True)) if len(values) else []


def font_for(width: int, extra: int = 0) -> ImageFont.FreeTypeFont:
    """Pillow's own font, in a size that suits a picture `width` pixels wide, plus `extra` points."""
    return ImageFont.load_default(size=max(11, min(20, round(width / 36))) + extra)


def badge_size(text: str, font) -> tuple[int, int]:
    """Width and height of the badge of a short text, in pixels."""
    return round(font.getlength(printable(text))) + round(font.size * 2 / 3), round(font.size * 1.45)


def draw_badge(
    draw: ImageDraw.ImageDraw, corner: tuple[int, int], text: str, font, fill: Color, text_fill: Color = INK
) -> None:
    """Writes a short text on a rounded rectangle with its top left at `corner`, moved to lie inside the picture."""
    text = printable(text)
    width, height = badge_size(text, font)
    limit_x, limit_y = draw.im.size
    x, y = max(0, min(corner[0], limit_x - width)), max(0, min(corner[1], limit_y - height))
    draw.rounded_rectangle((x, y, x + width, y + height), radius=min(4, height // 4), fill=fill, outline=INK)
    draw.text((x + width / 2, y + height / 2), text, font=font, fill=text_fill, anchor="mm")
