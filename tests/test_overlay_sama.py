"""Masks over frames, and video files that are complete or absent."""

import itertools
import os

import numpy as np
import pytest
from pictures import grey_frame, read_video, square_mask

from sama import overlay_sama
from sama.overlay_sama import PALETTE, VideoWriter, object_color, overlay_masks, prepare_output, write_video


# Colours


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


# Videos


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
