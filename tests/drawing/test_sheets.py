"""Contact sheets and caption bands."""

from types import SimpleNamespace

import numpy as np
import pytest
from pictures import grey_frame
from PIL import Image

from sama.drawing.sheets import MAX_LINES, caption_band, contact_sheet, stack_images
from sama.overlay_sama import PALETTE


def phrase(text, answer):
    start = answer.index(text)
    return SimpleNamespace(span=(start, start + len(text)))


@pytest.mark.parametrize(("count", "columns", "rows"), [(1, 4, 1), (4, 4, 1), (5, 4, 2), (6, 1, 6)])
def test_contact_sheet_has_a_tile_for_every_frame(count, columns, rows):
    frames = [grey_frame(value=40 * index + 30) for index in range(count)]
    sheet = contact_sheet(frames, columns=columns, tile_width=80)
    assert sheet.size == (columns * 86 + 6, rows * 66 + 6)
    for index in range(count):
        row, column = divmod(index, columns)
        corner = (6 + column * 86 + 79, 6 + row * 66 + 59)
        assert sheet.getpixel(corner) == (40 * index + 30,) * 3


def test_contact_sheet_refuses():
    with pytest.raises(ValueError, match="at least one frame"):
        contact_sheet([])
    other = np.zeros((grey_frame().shape[0] + 2, grey_frame().shape[1], 3), dtype=np.uint8)
    with pytest.raises(ValueError, match=r"for frame 0 and \(\d+, \d+\) for frame 1"):
        contact_sheet([grey_frame(), other])
    with pytest.raises(ValueError, match="1 captions for 2 frames"):
        contact_sheet([grey_frame()] * 2, ["a"])
    with pytest.raises(ValueError, match="got 0"):
        contact_sheet([grey_frame()], columns=0)


def test_caption_marks_phrases_in_their_colours():
    answer = "The man throws a frisbee."
    band = np.array(caption_band(640, "What is <region>?", answer, [phrase("The man", answer), phrase("a", answer)]))
    for color in PALETTE[:2]:
        assert (band == color).all(axis=-1).any()
    assert not (band == PALETTE[2]).all(axis=-1).any()


@pytest.mark.parametrize("spans", [[(0, 0)], [(0, 5), (0, 5)]], ids=["no phrase", "one word for two"])
def test_a_caption_lists_objects_that_no_word_shows(spans):
    objects = [SimpleNamespace(span=span) for span in spans]
    band = np.array(caption_band(400, answer="twins", objects=objects, numbers=range(3, 3 + len(spans))))
    assert band.shape[0] > caption_band(400, answer="twins").height
    assert all((band == color).all(axis=-1).any() for color in PALETTE[: len(spans)])
    with pytest.raises(ValueError, match="1 numbers for"):
        caption_band(400, answer="twins", objects=[*objects, SimpleNamespace(span=(0, 0))], numbers=[1])


def test_caption_wraps_and_ends():
    one, many = caption_band(400, answer="word"), caption_band(400, answer="word " * 60)
    assert many.height > one.height and many.width == one.width == 400
    longest = caption_band(400, answer="word " * 4000)
    assert caption_band(400, answer="x" * 20000).height == longest.height  # one endless word
    assert longest.height < one.height * MAX_LINES
    assert caption_band(400, answer="a\nb").height > one.height


@pytest.mark.parametrize("width", [300, 316, 332])
def test_a_line_of_coloured_phrases_stays_inside_the_band(width):
    answer = " ".join(["ab"] * 60)
    objects = [SimpleNamespace(span=(start, start + 2)) for start in range(0, len(answer), 3)]
    band = np.array(caption_band(width, answer=answer, objects=objects))
    assert (band[:, -20:] == band[0, 0]).all()  # the margin; each phrase is 4 pixels wider than its words


def test_caption_refuses_a_span_outside_the_answer():
    with pytest.raises(ValueError, match=r"\(0, 9\).*4 characters"):
        caption_band(400, answer="word", objects=[SimpleNamespace(span=(0, 9))])


def test_stacked_pictures_keep_their_pixels():
    first, second = Image.new("RGB", (10, 5), (1, 2, 3)), Image.new("RGB", (6, 4), (4, 5, 6))
    stacked = stack_images([first, second], gap=2)
    assert stacked.size == (10, 11)
    assert stacked.getpixel((9, 4)) == (1, 2, 3) and stacked.getpixel((5, 10)) == (4, 5, 6)
