"""What is refused before it is decoded, and the copy that browsers play: frame n of it is frame n of the video."""

import gzip
import io
import os
import socket
import struct
import threading
import wave
import zipfile
import zlib
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from upload_limits import SmallLimits
from video_files import cut, damage, patch, quarters, turn, write_clip, write_growing, write_tone

from sama.serving.media import FileRefused, normalise, probe, read_frame
from sama.video_sama import SamaVideo


LIMITS = SmallLimits()
NUM_FRAMES = 14


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("media")


@pytest.fixture(scope="module")
def clip(folder) -> Path:
    return Path(write_clip(folder / "clip.mp4", NUM_FRAMES))


# ---- the copy -------------------------------------------------------------------------------------------------------


def animation(path: Path, odd: bool = False, **options) -> None:
    frames = [Image.fromarray(quarters(index)[: 48 - odd, : 80 - odd]) for index in range(5)]
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)


SOURCES = {
    "plain.mp4": lambda clip, path: path.write_bytes(clip.read_bytes()),
    "rotated.mp4": lambda clip, path: turn(clip, path, 90, mirrored=False),
    "mirrored.mp4": lambda clip, path: turn(clip, path, 270, mirrored=True),
    "trimmed.mp4": lambda clip, path: cut(clip, path, 0.5, 1.0),
    "damaged.mp4": lambda clip, path: damage(clip, path, 5),
    "uneven.mp4": lambda clip, path: write_clip(path, 7, times=[0, 0.1, 0.5, 0.6, 1.4, 1.5, 1.6]),
    "wide_pixels.mp4": lambda clip, path: write_clip(path, 5, pixel_aspect=Fraction(4, 3)),
    "with_sound.mkv": lambda clip, path: write_clip(path, 5, sound=("aac", 16000)),
    "one_frame.mp4": lambda clip, path: write_clip(path, 1),
    "stream.ts": lambda clip, path: write_clip(path, 9),
    "reordered.avi": lambda clip, path: write_clip(path, 9),
    "odd.webp": lambda clip, path: animation(path, odd=True, lossless=True, duration=[100, 300, 100, 100, 200]),
    "even_times.gif": lambda clip, path: animation(path, duration=100),
    "animated.png": lambda clip, path: animation(path, duration=[50, 50, 500, 50, 50]),
}
# Shown frames, and seconds that they are shown, of those that have not all frames of the clip at its rate
EXPECTED = {
    "trimmed.mp4": (8, 1.0),
    "uneven.mp4": (7, None),
    "wide_pixels.mp4": (5, 0.625),
    "with_sound.mkv": (5, 0.625),
    "one_frame.mp4": (1, 0.125),
    "stream.ts": (9, 1.125),
    "reordered.avi": (9, 1.125),
    "odd.webp": (5, 0.8),
    "even_times.gif": (5, 0.5),
    "animated.png": (5, 0.7),
}


@pytest.mark.filterwarnings("ignore:Frame .* is damaged")
@pytest.mark.parametrize("name", SOURCES)
def test_frame_n_of_the_copy_is_frame_n_of_the_video(clip, tmp_path, name):
    path = tmp_path / name
    SOURCES[name](clip, path)
    media = normalise(path, tmp_path, LIMITS)
    video, copy = SamaVideo.open(str(path)), SamaVideo.open(str(tmp_path / media.content))
    count, duration = EXPECTED.get(name, (NUM_FRAMES, NUM_FRAMES / 8))
    assert len(video) == len(copy) == media.num_frames == count
    assert (media.kind, media.height, media.width) == ("video", video.height, video.width)
    assert (copy.height, copy.width) == (video.height + video.height % 2, video.width + video.width % 2)
    assert media.duration == pytest.approx(duration or video.times[-1], rel=1e-5)
    frames, copies = np.stack(list(video)).astype(int), np.stack(list(copy)).astype(int)
    copies = copies[:, : video.height, : video.width]
    distances = np.abs(frames[:, None] - copies[None]).mean(axis=(2, 3, 4))
    assert np.diagonal(distances).max() < 3
    # A frame that repeats the one before it, as in the damaged file, is as near to either
    assert (distances.min(axis=1) > np.diagonal(distances) - 0.2).all()
    flat = (slice(None), slice(4, 16), slice(4, 16))
    assert np.abs(frames[flat].mean(axis=(1, 2)) - copies[flat].mean(axis=(1, 2))).max() < 8  # colours stay


@pytest.mark.parametrize("name", ["plain.mp4", "uneven.mp4", "odd.webp"])
def test_the_copy_is_at_a_constant_rate_and_quickly_sought(clip, tmp_path, name):
    SOURCES[name](clip, tmp_path / name)
    media = normalise(tmp_path / name, tmp_path, LIMITS)
    with av.open(str(tmp_path / media.content)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert [one.type for one in container.streams] == ["video"]
        packets = [packet for packet in container.demux(stream) if packet.size]
    times = [float(packet.pts * packet.time_base) for packet in packets]
    assert times == pytest.approx([index / media.fps for index in range(media.num_frames)], abs=1e-4)
    assert [packet.dts for packet in packets] == [packet.pts for packet in packets]  # no edit list is needed
    keyframes = [index for index, packet in enumerate(packets) if packet.is_keyframe]
    assert np.diff([*keyframes, len(packets)]).max() <= 12
    content = (tmp_path / media.content).read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")  # plays before it is loaded whole


def test_the_copy_shows_a_rotated_video_upright(clip, tmp_path):
    turn(clip, tmp_path / "rotated.mp4", 90, mirrored=False)
    media = normalise(tmp_path / "rotated.mp4", tmp_path, LIMITS)
    frame = read_frame(tmp_path / media.content, 0, media)
    # Turned clockwise, the blue quarter at the bottom left comes to the top left
    assert frame.shape == (80, 48, 3) and np.abs(frame[10, 10].astype(int) - (30, 30, 200)).max() < 8


def test_frames_of_another_size_are_resized(tmp_path):
    path = write_growing(tmp_path / "growing.ts", num_frames=4, step=50)
    media = normalise(path, tmp_path, LIMITS)
    copy = SamaVideo.open(str(tmp_path / media.content))
    assert (media.height, media.width, media.num_frames, len(copy)) == (64, 96, 8, 8)
    assert [round(frame.mean() / 50) for frame in copy] == [0, 1, 2, 3] * 2
    assert media.warnings == ("4 of 8 frames have another size and are resized to 96 x 64.",)
    with pytest.raises(FileRefused, match="96 x 64 = 6,144 pixels; at most 6,000") as caught:
        normalise(path, tmp_path, replace(LIMITS, frame_pixels=6000))
    assert caught.value.status == 413


def test_what_is_damaged_is_said_without_a_path(clip, tmp_path):
    number = damage(clip, tmp_path / "damaged.mp4", 5)
    media = normalise(tmp_path / "damaged.mp4", tmp_path, LIMITS)
    assert media.warnings == (f"1 of {NUM_FRAMES} frames cannot be decoded whole; the first is frame {number}.",)
    content = faststart(clip, tmp_path / "whole.mp4")
    (tmp_path / "short.mp4").write_bytes(content[: len(content) - 300])
    media = normalise(tmp_path / "short.mp4", tmp_path, LIMITS)
    assert media.num_frames < NUM_FRAMES
    assert media.warnings[0].startswith(
        f"Only the first {media.num_frames} of {NUM_FRAMES} frames of the file can be decoded"
    )
    assert str(tmp_path) not in " ".join(media.warnings)


def faststart(clip: Path, path: Path) -> bytes:
    """A copy whose table of frames comes before the frames."""
    with av.open(str(path), "w", options={"movflags": "faststart"}) as output, av.open(str(clip)) as source:
        stream = output.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                output.mux(packet)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("name", "copy"), [("a.jpg", "jpg"), ("a.png", "png"), ("a.webp", "png"), ("a.avif", "jpg"), ("a.gif", "png")]
)
def test_a_picture_is_shown_upright_and_without_what_it_tells(tmp_path, name, copy):
    if Path(name).suffix not in Image.registered_extensions():
        pytest.skip(f"this Pillow has no {name}: AVIF needs 11.3 or newer")
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Camera of somebody"  # turned clockwise
    stored = Image.fromarray(np.rot90(quarters(0)))
    stored.save(tmp_path / name, **({} if name.endswith("gif") else {"exif": exif}))
    media = normalise(tmp_path / name, tmp_path, LIMITS)
    video = SamaVideo.open(str(tmp_path / name), "image")
    assert (media.kind, media.content, media.num_frames, media.fps) == ("image", f"content.{copy}", 1, 0)
    assert (media.height, media.width) == (video.height, video.width)
    shown = Image.open(tmp_path / media.content)
    assert np.abs(np.asarray(shown).astype(int) - video[0]).mean() < 2
    assert dict(shown.getexif()) == {}
    if not name.endswith("gif"):  # which knows no orientation
        assert np.abs(np.asarray(shown)[10, 10].astype(int) - (200, 30, 30)).max() < 16


# ---- what is refused ------------------------------------------------------------------------------------------------


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, rows: bytes, depth: int = 8, extra: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def gif(width: int, count: int, height: int | None = None) -> bytes:
    sides = struct.pack("<HH", width, height or width)
    frame = b"!\xf9\4\0\0\0\0\0,\0\0\0\0" + sides + b"\0\x02\x02\x4c\x01\0"
    return b"GIF89a" + sides + b"\x80\0\0" + b"\0" * 6 + frame * count + b";"


def webp(side: int) -> bytes:
    body = b"\x2f" + struct.pack("<I", (side - 1) | (side - 1) << 14) + bytes(20)
    return b"RIFF" + struct.pack("<I", 12 + len(body)) + b"WEBPVP8L" + struct.pack("<I", len(body)) + body


def tiff(*sizes: int) -> bytes:
    pages, buffer = [Image.new("L", (size, size)) for size in sizes], io.BytesIO()
    pages[0].save(buffer, "TIFF", save_all=True, append_images=pages[1:], compression="tiff_deflate")
    return buffer.getvalue()


def zipped(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("clip.mp4", content)
    return buffer.getvalue()


SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><image href="file:secret.png"/></svg>'
NEITHER = "is neither a video nor a picture of a kind that is accepted"
DAMAGED = "is not a video that can be read: it is damaged or incomplete"
HOSTILE = {
    "empty": (b"", 400, "is empty: it has 0 bytes"),
    "text": (b"Not a video.\n" * 200, 415, NEITHER),
    "zeros": (bytes(10**5), 415, NEITHER),
    "svg": (SVG, 415, NEITHER),
    "html": (b"<html><script>alert(1)</script></html>", 415, NEITHER),
    "pdf": (b"%PDF-1.4\n" + b"x" * 1000, 415, NEITHER),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 415, NEITHER),
    "subtitles": (b"1\n00:00:01,000 --> 00:00:02,000\nHi\n", 415, NEITHER),
    "letters as pictures": (b"\x1b[31mred\n" * 500, 415, NEITHER),
    "raw frames": (b"YUV4MPEG2 W16 H16 F25:1\nFRAME\n" + bytes(384), 415, NEITHER),
    "png of 60,000 x 60,000": (png(60_000, 60_000, bytes(10**4), depth=1), 413, "has 3,600,000,000 pixels"),
    "png beyond the limit": (png(300, 300, bytes(301 * 300)), 413, "300 x 300 = 90,000 pixels; at most 65,536"),
    "png with a text of 100 MB": (
        png(9, 9, bytes(90), extra=chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8)))), 400, "too large",
    ),
    "png of 2,147,483,647 frames": (
        png(9, 9, bytes(90), extra=chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))), 413, "has 2,147,483,647 frames",
    ),
    "gif of 65,535 x 65,535": (gif(65_535, 1), 413, "has 4,294,836,225 pixels"),
    "gif of 101 frames": (gif(9, 101), 413, "has 101 frames; at most 100"),
    "gif of 17,000 x 2": (gif(17_000, 2, height=2), 413, "17,000 x 2 pixels; no side of a video may have more than"),
    "tiff with a large page": (tiff(8, 8, 9000), 413, "9000 x 9000 = 81,000,000 pixels; at most 65,536"),
    "truncated png": (png(9, 9, bytes(90))[:45], 400, "is not an image that can be read"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_refused(tmp_path, name):
    content, status, sentence = HOSTILE[name]
    path = tmp_path / "upload.mp4"
    path.write_bytes(content)
    with pytest.raises(FileRefused) as caught:
        normalise(path, tmp_path, LIMITS)
    check_refusal(caught.value, status, sentence, tmp_path)
    assert os.listdir(tmp_path) == ["upload.mp4"]


def test_a_webp_of_16_383_x_16_383_is_refused(tmp_path):
    """By Pillow 11.1 as damaged, by later ones as too large."""
    (tmp_path / "upload.mp4").write_bytes(webp(16_383))
    with pytest.raises(FileRefused, match="268,402,689 pixels|could not create decoder object"):
        normalise(tmp_path / "upload.mp4", tmp_path, LIMITS)


@pytest.mark.parametrize("installed", [True, False])
def test_a_heic_file_that_cannot_be_read(tmp_path, monkeypatch, installed):
    if installed:
        pytest.importorskip("pillow_heif")
    else:
        monkeypatch.setattr("sama.pictures_sama.pillow_heif", None)
        monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    (tmp_path / "upload.mp4").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0heicmif1" + bytes(99))
    with pytest.raises(FileRefused) as caught:
        normalise(tmp_path / "upload.mp4", tmp_path, LIMITS)
    if installed:
        check_refusal(caught.value, 400, "is not a picture that can be read", tmp_path)
    else:
        check_refusal(caught.value, 415, "The file is a HEIC picture, which this server cannot read", tmp_path)


def check_refusal(error: FileRefused, status: int, sentence: str, folder: Path) -> None:
    message = str(error)
    assert sentence in message and error.status == status
    assert message.endswith(".") and "\n" not in message and str(folder) not in message and len(message) < 250


VIDEOS = {
    "4 billion frames": (lambda clip, path: patch(clip, path, b"stts", 8, "I", 2**32 - 1), 400, "4,294,967,295"),
    "no table": (lambda clip, path: path.write_bytes(clip.read_bytes()[:1500]), 400, DAMAGED),
    "bit flips": (lambda clip, path: path.write_bytes(flipped(clip.read_bytes())), 400, DAMAGED),
    "archive": (lambda clip, path: path.write_bytes(zipped(clip.read_bytes())), 415, NEITHER),
    "compressed": (lambda clip, path: path.write_bytes(gzip.compress(clip.read_bytes())), 415, NEITHER),
    "sound alone": (lambda clip, path: sound(path, "mp4"), 415, "holds no video"),
    "wav": (lambda clip, path: wav(path), 415, NEITHER),
    "sound with a cover": (lambda clip, path: sound(path, "mp4", cover=True), 415, "holds sound and a cover picture"),
    "too long": (lambda clip, path: write_clip(path, 2, times=[0, 61]), 413, "lasts 61.1 seconds; at most 60"),
    "too many frames": (lambda clip, path: write_clip(path, 101), 413, "more than 100 frames"),
    "another codec": (lambda clip, path: encode(path, "zmbv", "bgr0", "avi"), 415, "of the codec zmbv, which is not"),
}  # fmt: skip


def flipped(content: bytes) -> bytes:
    return bytes(value ^ (0x55 if index % 97 == 0 else 0) for index, value in enumerate(content))


def wav(path: Path) -> None:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(16_000))


def sound(path: Path, form: str, cover: bool = False) -> None:
    with av.open(str(path), "w", format=form) as container:
        stream = container.add_stream("aac", rate=16_000, layout="mono")
        if cover:
            picture = container.add_stream("mjpeg", width=80, height=48, pix_fmt="yuvj420p")
            picture.disposition = av.stream.Disposition.attached_pic.value
        write_tone(container, stream, 16_000, 1)
        if cover:
            container.mux(picture.encode(av.VideoFrame.from_ndarray(quarters(0), format="rgb24")))
            container.mux(picture.encode())


def encode(path: Path, codec: str, pixel_format: str, form: str) -> None:
    with av.open(str(path), "w", format=form) as container:
        stream = container.add_stream(codec, rate=8, width=80, height=48, pix_fmt=pixel_format)
        for index in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(quarters(index), format="rgb24")))
        container.mux(stream.encode())


@pytest.mark.parametrize("name", VIDEOS)
def test_videos_that_are_refused(clip, tmp_path, name):
    write, status, sentence = VIDEOS[name]
    write(clip, tmp_path / "upload.mp4")
    with pytest.raises(FileRefused) as caught:
        normalise(tmp_path / "upload.mp4", tmp_path, LIMITS)
    check_refusal(caught.value, status, sentence, tmp_path)


# ---- lists of other files ------------------------------------------------------------------------------------------


PLAYLISTS = {
    "m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{}\n#EXT-X-ENDLIST\n",
    "ffconcat": "ffconcat version 1.0\nfile '{}'\n",
    "mpd": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
    'mediaPresentationDuration="PT1S"><Period><AdaptationSet mimeType="video/mp4"><Representation id="1" '
    'bandwidth="1"><BaseURL>{}</BaseURL></Representation></AdaptationSet></Period></MPD>',
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
    "a=rtpmap:96 H264/90000\na=control:{}\n",
    "svg": '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><image href="{}"/></svg>',
    "pls": "[playlist]\nFile1={}\nNumberOfEntries=1\n",
    "asx": '<asx version="3.0"><entry><ref href="{}"/></entry></asx>',
    "txt": "{}\n",
}


@pytest.fixture
def listener():
    """An address on this machine, and the connections that were made to it."""
    connections = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            while True:
                try:
                    connections.append(server.accept()[1])
                except OSError:  # closed
                    return

        threading.Thread(target=accept, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}", connections
        server.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("kind", PLAYLISTS)
def test_a_list_of_other_files_opens_none_of_them(clip, tmp_path, listener, kind):
    """Each names a video that exists: if it were opened, the list would be that video."""
    address, connections = listener
    for target in (f"file:{clip}", str(clip), f"http://{address}/a.ts", f"tcp://{address}"):
        path = tmp_path / f"upload.{kind}"
        path.write_text(PLAYLISTS[kind].format(target))
        with pytest.raises(FileRefused, match=NEITHER) as caught:
            normalise(path, tmp_path, LIMITS)
        assert caught.value.status == 415
    assert connections == []


def test_a_frame_that_is_too_large_is_refused_before_it_is_decoded(clip, monkeypatch):
    monkeypatch.setattr("sama.serving.media.FileFrames", None)
    with pytest.raises(FileRefused, match="80 x 48 = 3,840 pixels; at most 3,839 are accepted") as caught:
        normalise(clip, clip.parent, replace(LIMITS, frame_pixels=3839))
    assert caught.value.status == 413
    assert probe(clip, replace(LIMITS, frame_pixels=3840)).kind == "video"
