"""Answers in the terminal, with grounded phrases in the colours of their masks."""

import os
import sys
from collections.abc import Sequence

from sama.drawing.text import INK, character_colors, equal_runs, printable
from sama.overlay_sama import Color


def colored_text(
    text: str, objects: Sequence, colors: Sequence[Color] | None = None, enabled: bool | None = None
) -> str:
    """
    An answer with its grounded phrases in the colours of their masks, as 24-bit ANSI escape codes.

    Args:
        text (`str`)
        objects (sequence of anything with a `span`): objects of the same phrase divide its words among them.
        colors (sequence of RGB triples, *optional*): one per object.
        enabled (`bool`, *optional*): whether codes are written; by default only if standard output is a terminal and
            the environment variable NO_COLOR is not set.
    """
    marks = character_colors(text, objects, colors)
    text = printable(text)
    if enabled is None:
        enabled = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    if not enabled:
        return text
    # Dark text on the colour is readable on light and on dark terminals.
    foreground = ";".join(map(str, INK))
    pieces = []
    for start, end in equal_runs(marks):
        if marks[start] is None:
            pieces.append(text[start:end])
        else:
            background = ";".join(map(str, marks[start]))
            pieces.append(f"\x1b[38;2;{foreground};48;2;{background}m{text[start:end]}\x1b[0m")
    return "".join(pieces)
