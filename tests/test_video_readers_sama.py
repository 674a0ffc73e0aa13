"""Video files through PyAV and decord: both give the frames that a player shows."""

import copy
import pickle
import subprocess
import sys
import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from processor_fixtures import clip
from video_files import cut, damage, patch, quarters, shown, turn, write_clip

import sama.video_readers_sama as readers
from sama.mp4_sama import Turn, check_mp4
from sama.video_sama import FrameIndexError, SamaVideo


av = pytest.importorskip("av")


@pytest.fixture(params=["av", "decord"])
def reader(request, monkeypatch):
    """Run a test with each of the two libraries that read video files."""
    pytest.importorskip(request.param)
    monkeypatch.setattr(readers, "av" if request.param == "decord" else "decord", None)
    return request.param


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip") / "plain.mp4", 12)


def opened_with_warnings(source):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        video = SamaVideo.open(source)
        frames = list(video)
    return video, frames, [str(item.message) for item in caught]


def assert_like(frame, expected):
    """Equal but for compression."""
    assert frame.shape == expected.shape and frame.flags.c_contiguous
    assert np.abs(frame.astype(int) - expected).mean() < 6


# What is shown


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_frames_are_upright(reader, plain, tmp_path, degrees, mirrored):
    video, frames, messages = opened_with_warnings(turn(plain, tmp_path / "turned.mp4", degrees, mirrored))
    assert len(video) == 12 and messages == []
    assert (video.height, video.width) == ((80, 48) if degrees in (90, 270) else (48, 80))
    for index in (0, 5, 11):
        assert_like(frames[index], shown(quarters(index), degrees, mirrored))


def test_both_readers_give_the_same_pixels_of_a_turned_and_cut_file(plain, tmp_path, monkeypatch):
    pytest.importorskip("decord")
    path = cut(turn(plain, tmp_path / "turned.mp4", 270, True), tmp_path / "both.mp4", 0.375)
    by_av = list(SamaVideo.open(path))
    monkeypatch.setattr(readers, "av", None)
    np.testing.assert_array_equal(by_av, list(SamaVideo.open(path)))
    assert len(by_av) == 9


def test_a_slanted_picture_is_said_to_be_turned_by_quarters_only(reader, plain, tmp_path):
    half = 46341  # 45 degrees
    path = patch(plain, tmp_path / "slanted.mp4", b"tkhd", 40, "9i", half, half, 0, -half, half, 0, 0, 0, 1 << 30)
    video, _, messages = opened_with_warnings(path)
    assert (video.height, video.width) == (48, 80)
    assert len(messages) == 1 and "only quarter turns and mirroring are applied" in messages[0]


@pytest.mark.parametrize(("seconds", "length", "first", "last"), [(0.375, None, 3, 11), (0.25, 0.75, 2, 7)])
def test_what_an_edit_list_hides_is_not_shown(reader, plain, tmp_path, seconds, length, first, last):
    """The hidden frames before the cut hold the keyframe; with a keyframe in every 4 frames, jumps cross others."""
    path = cut(plain, tmp_path / "cut.mp4", seconds, length)
    video, frames, messages = opened_with_warnings(path)
    assert len(video) == last - first + 1 and messages == []
    for frame, index in zip(frames, range(first, last + 1), strict=True):
        assert_like(frame, quarters(index))
    jumping = SamaVideo.open(path)
    for index in (5, 0, 4, 3, 1):
        np.testing.assert_array_equal(jumping[index], frames[index])


def test_a_list_of_several_edits_needs_pyav(plain, monkeypatch):
    pytest.importorskip("decord")
    header = check_mp4(plain)
    assert len(header.edits) == 1 and header.turn == Turn()
    header.edits.append((0.0, 0.5))
    monkeypatch.setattr(readers, "check_mp4", lambda path: header)
    monkeypatch.setattr(readers, "av", None)
    with pytest.raises(ValueError, match="edit list joins 2 parts, which needs PyAV"):
        SamaVideo.open(plain)


def test_pixel_aspect_turns_with_the_picture(tmp_path):
    path = write_clip(tmp_path / "wide.mp4", 3, pixel_aspect=Fraction(4, 3))
    assert SamaVideo.open(path).pixel_aspect == Fraction(4, 3)
    assert SamaVideo.open(turn(path, tmp_path / "tall.mp4", 90, False)).pixel_aspect == Fraction(3, 4)


def test_uneven_times(reader, tmp_path):
    times = [0.0, 0.1, 0.2, 0.5, 0.6, 1.4]
    video = SamaVideo.open(write_clip(tmp_path / "uneven.mp4", 6, times))
    assert np.allclose(video.times[:-1], times, atol=1e-3) and video.times[-1] > 1.4
    assert video.fps == pytest.approx(6 / video.times[-1])
    assert [video.frame_at(seconds) for seconds in (0, 0.19, 0.2, 0.49, 1.3, 1.4)] == [0, 1, 2, 2, 4, 5]
    for seconds in (-0.1, 60):
        with pytest.raises(FrameIndexError, match="There is no frame at .* lasts"):
            video.frame_at(seconds)


def test_even_times_are_none(reader, plain):
    video = SamaVideo.open(plain)
    assert video.times is None and video.fps == 8
    assert [video.frame_at(seconds) for seconds in (0, 0.124, 0.125, 1.499)] == [0, 0, 1, 11]


def test_a_video_can_be_copied_and_sent_to_another_process(reader, plain):
    video = SamaVideo.open(plain)
    expected = video[7]
    for other in (copy.deepcopy(video), pickle.loads(pickle.dumps(video))):
        np.testing.assert_array_equal(other[7], expected)
        assert other.height == 48 and len(other) == 12


def test_a_cover_picture_is_not_the_video(tmp_path):
    clip_path, path = write_clip(tmp_path / "clip.mp4", 5), tmp_path / "with_cover.mkv"
    with av.open(clip_path) as source, av.open(str(path), "w") as target:
        cover = target.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 200, 200, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        video = target.add_stream_from_template(source.streams.video[0])
        picture = av.VideoFrame.from_ndarray(np.full((200, 200, 3), 250, np.uint8), format="rgb24")
        target.mux([*cover.encode(picture), *cover.encode()])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = video
                target.mux(packet)
    opened = SamaVideo.open(path)
    assert (len(opened), opened.height, opened.width) == (5, 48, 80)


@pytest.mark.parametrize("with_next", [False, True])
def test_frames_of_vp8_that_are_not_shown_are_not_counted(tmp_path, with_next):
    """Encoders in two passes store frames for others to refer to: a tick after the frame before, or with the next."""
    whole, path = tmp_path / "whole.webm", tmp_path / "hidden.webm"
    # In another process: decord, which is imported here, has a libvpx of its own, which PyAV would encode with
    code = "import sys, video_files; video_files.write_clip(sys.argv[1], 12, codec='libvpx')"
    subprocess.run([sys.executable, "-c", code, whole], cwd=Path(__file__).parent, check=True)
    with av.open(str(whole)) as source, av.open(str(path), "w") as target:
        video = target.add_stream_from_template(source.streams.video[0])
        before, shown_packets = 0, [packet for packet in source.demux(video=0) if packet.size]
        for packet in shown_packets:
            packet.stream = video
            if packet.is_keyframe and packet.pts:  # which refers to no other, so that pixels stay
                content = bytes(packet)
                hidden = av.Packet(bytes([content[0] & ~0x10]) + content[1:])
                hidden.stream, hidden.time_base = video, packet.time_base
                hidden.pts = hidden.dts = packet.pts if with_next else before + 1
                target.mux(hidden)
            before = packet.pts
            target.mux(packet)
    expected, found = opened_with_warnings(whole), opened_with_warnings(path)
    assert (len(found[0]), found[0].fps, found[0].times, found[2]) == (12, 8, None, []) and expected[2] == []
    for index in (11, 0, 5, 4, *range(12)):
        np.testing.assert_array_equal(found[0][index], expected[1][index])


# Damage


@pytest.mark.parametrize("number", [5, 9])
def test_a_frame_that_does_not_decode_is_replaced_and_named(tmp_path, number):
    whole = write_clip(tmp_path / "whole.mp4", 24, keyframes=24)
    path = tmp_path / "damaged.mp4"
    lost = damage(whole, path, number)
    video, frames, messages = opened_with_warnings(path)
    assert len(frames) == 24 and lost in video.damaged_frames
    np.testing.assert_array_equal(frames[lost], frames[lost - 1])
    assert len(messages) == 1 and f"Frame {video.damaged_frames[0]} of '{path}' is damaged" in messages[0]
    assert_like(frames[23], quarters(23))
    assert opened_with_warnings(whole)[2] == [] and SamaVideo.open(whole).damaged_frames == []


def test_the_last_frame_does_not_decode(tmp_path):
    whole = write_clip(tmp_path / "whole.mp4", 24, keyframes=24)
    assert damage(whole, tmp_path / "damaged.mp4", 23) >= 22
    video, frames, messages = opened_with_warnings(tmp_path / "damaged.mp4")
    assert len(frames) == len(video) and f"Only the first {len(video)} of 24 frames" in "".join(messages)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((b"stts", 8, "I", 0xFFFFFFFF), "claims 4,294,967,295 frames in a file of"),
        ((b"stsz", 4, "II", 10, 178_000_000), "claims 178,000,000 frames in a file of"),
    ],
)
def test_a_header_that_claims_too_many_frames(reader, plain, tmp_path, change, message):
    path = patch(plain, tmp_path / "lie.mp4", *change)
    with pytest.raises(ValueError, match=f"lie.mp4' is not a video that can be read: .*{message}"):
        SamaVideo.open(path)


def test_a_frame_of_too_many_pixels(plain, monkeypatch):
    monkeypatch.setattr(readers, "MAX_FRAME_PIXELS", 3000)
    with pytest.raises(ValueError, match="80x48 = 3,840 pixels, at most 3,000 are decoded"):
        SamaVideo.open(plain)


def test_decord_is_not_asked_about_a_file_that_pyav_opened(plain, tmp_path, monkeypatch):
    class Decord:
        def __getattr__(self, name):
            raise AssertionError(f"decord.{name} was used")

    monkeypatch.setattr(readers, "decord", Decord())
    path = tmp_path / "garbage.mp4"
    content = bytearray(open(plain, "rb").read())
    start = content.index(b"mdat") + 4
    content[start : content.index(b"moov")] = bytes(content.index(b"moov") - start)
    path.write_bytes(content)
    with pytest.raises(ValueError, match="garbage.mp4' is a video with 0 frames that can be decoded"):
        SamaVideo.open(path)


SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect width="4"/></svg>'
PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.svg", SVG), ("a.mp4", SVG), ("a.m3u8", PLAYLIST), ("a.txt", b"a letter\n" * 99), ("a.gif", b"GIF89a")],
)
def test_what_is_no_video(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}' is (not|a video with 0)"):
        SamaVideo.open(tmp_path / name)


FUZZ = """
import sys, warnings
import numpy as np
from sama.video_readers_sama import FileFrames
warnings.simplefilter("ignore")
content, path = open(sys.argv[1], "rb").read(), sys.argv[2]
read = 0
for seed in range(150):
    rng, mutant = np.random.default_rng(seed), bytearray(content)
    moov = content.index(b"moov") if seed % 3 else 0
    for at in rng.integers(moov, len(content), 1 + seed % 8):
        mutant[at] = rng.integers(256)
    with open(path, "wb") as file:
        file.write(mutant[: len(mutant) - (seed % 5 == 4) * int(rng.integers(len(mutant)))])
    try:
        video = FileFrames(path)
        read += video.read(0).size > 0 and video.read(len(video) - 1).size > 0
    except ValueError as error:
        assert path in str(error), error
print("read", read)
"""


def test_flipped_bytes_end_in_frames_or_in_one_sentence(plain, tmp_path):
    """In a process of its own, with 4 GiB of memory: a crash is a failure of this test and not the end of all."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))\n"
    command = [sys.executable, "-c", limit + FUZZ, plain, str(tmp_path / "mutant.mp4")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-2000:]
    assert int(result.stdout.split()[-1]) > 50


def test_avi_whose_frames_are_stored_in_another_order(plain, tmp_path):
    """H.264 frames, some of which are stored behind a later one; AVI does not say when each is shown."""
    expected, video = SamaVideo.open(plain), SamaVideo.open(write_clip(tmp_path / "a.avi", 12))
    assert len(video) == len(expected) == 12 and video.fps == expected.fps
    for index in (*range(12), 3, 9, 0, 11, 4):
        distances = [np.abs(video[index].astype(int) - frame).mean() for frame in expected]
        assert np.argmin(distances) == index and distances[index] < 1
    assert video.damaged_frames == []


# Names


@pytest.mark.parametrize("name", ["10:30.mp4", "a%03d.mp4", "clip 1?.mp4", "-x.mp4", "ünï.mp4"])
def test_names_that_mean_something_to_a_decoder(plain, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(open(plain, "rb").read())
    assert len(SamaVideo.open(name)) == 12


def test_real_clips_have_no_damage():
    video, _, messages = opened_with_warnings(clip("carphone_pristine"))
    assert video.damaged_frames == [] and messages == [] and video.times is None


def test_boxes_that_are_nested_deeply(tmp_path):
    content = b""
    for _ in range(3000):
        content = (len(content) + 8).to_bytes(4, "big") + b"moov" + content
    path = tmp_path / "deep.mp4"
    path.write_bytes(b"\0\0\0\x14ftypisom\0\0\0\0isom" + content)
    with pytest.raises(ValueError, match="deep.mp4"):
        SamaVideo.open(path)


def test_a_file_that_is_no_video_is_named_once(tmp_path):
    path = tmp_path / "notes.md"
    path.write_text("# Notes")
    with pytest.raises(ValueError) as raised:
        SamaVideo.open(path)
    assert str(raised.value).count("notes.md") == 1 and "is not a video that can be read: " in str(raised.value)
