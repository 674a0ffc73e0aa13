"""Masks over frames, and video files that are complete or absent."""

import itertools
import os
import subprocess
import sys
from fractions import Fraction

import av
import numpy as np
import pytest
from pictures import grey_frame, read_video, square_mask
from PIL import Image
from video_files import cut, turn, write_clip

from sama import overlay_sama
from sama.overlay_sama import (
    FASTEST,
    PALETTE,
    SLOWEST,
    VideoWriter,
    object_color,
    overlay_masks,
    prepare_output,
    write_video,
)
from sama.toy_world.shapes import COLOURS
from sama.video_sama import SamaVideo


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


@pytest.mark.parametrize("name", COLOURS)
def test_the_colour_of_an_object_is_the_same_below_its_mask(name):
    frame = np.broadcast_to(np.array(COLOURS[name], np.uint8), (60, 80, 3))
    for index in range(len(PALETTE)):
        drawn = overlay_masks(frame, square_mask()[None], [object_color(index)])[30, 40].astype(int)
        nearest = min(COLOURS, key=lambda other: np.linalg.norm(drawn - COLOURS[other]))
        assert nearest == name, f"{name} looks {nearest} below {object_color(index)}"


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


@pytest.mark.parametrize("fps", [0.0007, 0.3, 12.5])
def test_slow_videos_keep_their_rate(tmp_path, fps):
    """As animated pictures have them."""
    copy = SamaVideo.open(write_video(tmp_path / "a.mp4", [grey_frame()] * 3, fps=fps))
    assert copy.fps == pytest.approx(fps, rel=1e-3) and len(copy) == 3


def test_nothing_remains_of_a_video_that_does_not_fit_the_disk(tmp_path):
    """The end of the file cannot be written either."""
    code = (
        "import resource, signal, sys, numpy as np\n"
        "from sama.overlay_sama import write_video\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "noise = (np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8) for _ in range(40))\n"
        "write_video(sys.argv[1], noise, fps=5)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a.mp4"], capture_output=True, text=True)
    assert done.returncode == 1 and "OSError" in done.stderr and not list(tmp_path.iterdir())


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf"), SLOWEST / 2, 2 * FASTEST, 1e12])
def test_video_refuses_a_frame_rate(tmp_path, fps):
    with pytest.raises(ValueError, match="frame rate"):
        write_video(tmp_path / "a.mp4", [grey_frame()], fps=fps)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fps", [SLOWEST, FASTEST])
def test_players_show_all_frames_at_the_limits_of_frame_rates(tmp_path, fps):
    path = write_video(tmp_path / "a.mp4", [grey_frame()] * 3, fps=fps)
    with av.open(str(path)) as container:
        times = [frame.time for frame in container.decode(video=0)]
    assert times == pytest.approx([0, 1 / fps, 2 / fps])


@pytest.mark.parametrize("name", ["answer.png", "answer.webm", "answer"])
def test_other_formats_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=f"{name} must end in .mp4"):
        write_video(tmp_path / name, [grey_frame()], fps=5)
    assert not list(tmp_path.iterdir())


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


# What a saved video keeps of its source


def saved(path, source):
    return SamaVideo.open(write_video(path, iter(source), source.fps, source))


def test_frame_times_are_kept(tmp_path):
    times = [0.0, 0.1, 0.2, 0.5, 0.6, 1.4]
    source = SamaVideo.open(write_clip(tmp_path / "uneven.mp4", 6, times))
    copy = saved(tmp_path / "copy.mp4", source)
    assert np.allclose(copy.times, source.times, atol=2e-3) and np.allclose(copy.times[:-1], times, atol=2e-3)
    with pytest.raises(ValueError, match=r"Got frame 6, but '.*uneven.mp4' has 6 frames"):
        write_video(tmp_path / "long.mp4", [*source, source[0]], source.fps, source)
    assert not (tmp_path / "long.mp4").exists()


@pytest.mark.parametrize("written", ["clip.mp4", "link.mp4"])
def test_the_source_is_not_overwritten(tmp_path, written):
    source = SamaVideo.open(write_clip(tmp_path / "clip.mp4", 3))
    (tmp_path / "link.mp4").symlink_to(tmp_path / "clip.mp4")
    content = (tmp_path / "clip.mp4").read_bytes()
    with pytest.raises(ValueError, match=f"Cannot write .*{written}: the video is read from this file"):
        write_video(tmp_path / written, iter(source), source.fps, source)
    assert (tmp_path / "clip.mp4").read_bytes() == content and len(list(tmp_path.iterdir())) == 2
    source.sound, source.name = (str(tmp_path / "clip.mp4"), 0.0), "list of frames"
    with pytest.raises(ValueError, match="the video is read from this file"):
        write_video(tmp_path / written, iter(source), source.fps, source)


def test_times_of_an_animated_picture_are_kept(tmp_path):
    pictures = [Image.new("RGB", (32, 32), (value, 0, 0)) for value in (0, 90, 200)]
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:], duration=[50, 400, 100])
    assert np.allclose(saved(tmp_path / "a.mp4", SamaVideo.open(tmp_path / "a.gif")).times, [0, 0.05, 0.45, 0.55])


@pytest.mark.parametrize(("degrees", "aspect"), [(0, Fraction(4, 3)), (90, Fraction(3, 4))])
def test_pixel_aspect_is_kept_and_turns_with_the_picture(tmp_path, degrees, aspect):
    wide = write_clip(tmp_path / "wide.mp4", 3, pixel_aspect=Fraction(4, 3))
    copy = saved(tmp_path / "copy.mp4", SamaVideo.open(turn(wide, tmp_path / "turned.mp4", degrees, False)))
    assert copy.pixel_aspect == aspect and (copy.height, copy.width) == ((80, 48) if degrees else (48, 80))


@pytest.mark.parametrize(
    ("codec", "rate", "suffix", "written"),
    [
        ("aac", 44100, ".mp4", "aac"),
        ("libopus", 48000, ".mkv", "opus"),
        ("pcm_s16le", 8000, ".mkv", "aac"),
        ("libmp3lame", 44100, ".mkv", "mp3"),
        ("libmp3lame", 11025, ".mkv", "aac"),
    ],
)
def test_sound_is_copied_or_encoded(tmp_path, codec, rate, suffix, written):
    source = write_clip(tmp_path / f"sound{suffix}", 8, sound=(codec, rate))
    copy = saved(tmp_path / "copy.mp4", SamaVideo.open(source))
    with av.open(copy.name) as container:
        stream = container.streams.audio[0]
        assert stream.codec_context.name.removeprefix("lib").removesuffix("float") == written
        heard = sum(frame.samples for frame in container.decode(stream)) / stream.rate
    assert heard == pytest.approx(1.0, abs=0.1) and len(copy) == 8 and copy.times is None
    if written == codec:
        assert sound_packets(copy.name) == sound_packets(source)


def sound_packets(path):
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(audio=0) if packet.size]


def test_sound_of_a_cut_video_stays_in_time(tmp_path):
    source = cut(write_clip(tmp_path / "sound.mkv.mp4", 12, sound=("aac", 44100)), tmp_path / "cut.mp4", 0.375)
    video = SamaVideo.open(source)
    assert len(video) == 9 and video.sound == (source, 0.0)
    copy = saved(tmp_path / "copy.mp4", video)
    assert len(copy) == 9 and copy.sound[1] == pytest.approx(0, abs=0.03)


def test_sound_that_cannot_be_copied_is_said(tmp_path):
    source = SamaVideo.open(write_clip(tmp_path / "silent.mp4", 3))
    source.sound = (str(tmp_path / "silent.mp4"), 0.0)
    with pytest.warns(UserWarning, match="The sound of '.*silent.mp4' is not copied, or not to its end"):
        copy = saved(tmp_path / "copy.mp4", source)
    assert len(copy) == 3 and copy.sound is None
    source.sound = (str(tmp_path / "gone.mp4"), 0.0)
    with pytest.warns(UserWarning, match="The sound of '.*gone.mp4' is not copied: .*No such file"):
        assert len(saved(tmp_path / "copy.mp4", source)) == 3
