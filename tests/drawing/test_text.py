"""Coloured phrases, in pictures and in the terminal."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from sama.drawing.terminal import colored_text
from sama.drawing.text import BACKGROUND, INK, character_colors, equal_runs, printable, unmarked_objects
from sama.overlay_sama import object_color


def phrase(text, answer):
    start = answer.index(text)
    return SimpleNamespace(span=(start, start + len(text)))


def brightness(color):
    channels = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in color]
    return float(np.dot(channels, (0.2126, 0.7152, 0.0722)))


def contrast(first, second):
    low, high = sorted((brightness(first), brightness(second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("index", range(40))
def test_every_colour_carries_dark_text_and_stands_out_from_the_background(index):
    assert contrast(object_color(index), INK) > 4.5
    assert contrast(object_color(index), BACKGROUND) > 4.5


def test_colored_text_wraps_exactly_the_phrase():
    answer = "A dog runs."
    colored = colored_text(answer, [phrase("A dog", answer)], [(1, 2, 3)], enabled=True)
    assert colored == "\x1b[38;2;16;16;20;48;2;1;2;3mA dog\x1b[0m runs."
    assert colored_text(answer, [phrase("A dog", answer)], enabled=False) == answer


@pytest.mark.parametrize(
    ("phrase", "count", "pieces"),
    [
        ("two orange things", 2, ["two orange ", "things"]),
        ("a b c d", 3, ["a b ", "c ", "d"]),
        ("twins", 2, ["twins"]),
        ("two twins", 3, ["two ", "twins"]),
    ],
)
def test_objects_that_share_a_phrase_divide_its_words(phrase, count, pieces):
    colors = [object_color(index) for index in range(count)]
    marks = character_colors(f"See {phrase}.", [SimpleNamespace(span=(4, 4 + len(phrase)))] * count, colors)
    runs = equal_runs(marks[4:-1])
    assert [phrase[slice(*run)] for run in runs] == pieces
    assert unmarked_objects(marks, colors) == list(range(len(pieces), count))


def test_objects_of_one_phrase_share_it():
    answer = "two dogs"
    colored = colored_text(answer, [SimpleNamespace(span=(0, 8))] * 2, [(1, 1, 1), (2, 2, 2)], enabled=True)
    assert "1;1;1mtwo \x1b[0m" in colored and "2;2;2mdogs\x1b[0m" in colored


def test_an_empty_span_marks_nothing():
    assert colored_text("Here.", [SimpleNamespace(span=(0, 0))], enabled=True) == "Here."


@pytest.mark.parametrize(
    ("terminal", "no_color", "expected"), [(True, "", True), (True, "1", False), (False, "", False)]
)
def test_colour_is_for_terminals_that_want_it(monkeypatch, terminal, no_color, expected):
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    assert ("\x1b[" in colored_text("dog", [SimpleNamespace(span=(0, 3))])) == expected


def test_control_characters_do_not_reach_the_terminal():
    text = "a\x1b[31m\x07b\nc"
    assert printable(text) == "a\ufffd[31m\ufffdb\nc" and len(printable(text)) == len(text)
    turned = "a\u202eb\u2066c\ud800"  # what would be read in another direction, and half a character
    assert printable(turned) == "a\ufffdb\ufffdc\ufffd"
    assert "\x07" not in colored_text(text, [SimpleNamespace(span=(0, 1))], enabled=True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("50\u00a0%\u3000a\tb\r\n", "50 % a b \n"),
        ("\U0001f468\u200d\U0001f469", "\U0001f468\u200d\U0001f469"),  # an emoji of two
        ("\u0645\u06cc\u200c\u062e", "\u0645\u06cc\u200c\u062e"),  # Persian, with a zero-width non-joiner
        ("soft\u00adhyphen", "soft\u00adhyphen"),
    ],
)
def test_ordinary_text_stays(text, expected):
    assert printable(text) == expected
