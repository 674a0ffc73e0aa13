"""What an uploaded file is, found out before its frames are decoded, and the copy of it that a browser plays.

The copy of a video is an H.264 mp4 at a constant rate: its frame n is frame n of [`SamaVideo`], shown from n / fps to
(n + 1) / fps seconds. The copy of a picture is an upright PNG or JPEG. docs/uploads.md says what is accepted.

Nothing here imports PyTorch: the functions run in a process of their own, which must start fast (conversion.py).
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Protocol

import numpy as np
from av.stream import Disposition
from PIL import Image

from ..mp4_sama import check_mp4
from ..overlay_sama import VideoWriter
from ..pictures_sama import (
    AVIF_BRANDS,
    HEIC_BRANDS,
    AnimationReader,
    PictureError,
    is_picture,
    number_of_frames,
    opened_picture,
    read_still,
    resize_frame,
)
from ..video_readers_sama import FFMPEG_ERRORS, FileFrames, av_errors, demux, is_hidden, open_container, video_stream


# FFmpeg's names of containers. It opens others as well: playlists, which name other files, and texts that it draws.
VIDEO_FORMATS = ("mov", "matroska", "avi", "mpegts", "mpeg", "asf", "flv", "ogg")
VIDEO_CODECS = frozenset(
    "h264 hevc av1 vp8 vp9 vp6f mpeg1video mpeg2video mpeg4 msmpeg4v2 msmpeg4v3 h263 flv1 theora vc1 wmv1 wmv2 wmv3 "
    "mjpeg prores dnxhd dvvideo ffv1 huffyuv png rawvideo".split()
)
LOSSY_PICTURES = frozenset({"JPEG", "MPO", "HEIF", "AVIF"})  # shown as JPEG, all others as PNG
JPEG_QUALITY = 95
MAX_JPEG_SIDE, MAX_H264_SIDE = 65_500, 16_384  # of the libraries that write them
# A file may hold packets that are not shown: what an edit list cuts away, repeated frames, hidden frames
PACKETS_A_FRAME = 10
KEYFRAME_INTERVAL = 12  # of the playable copy, so that a player reaches any frame at once
# The original is sought for a single frame if at most this many frames have to be decoded; encoders' default is 250
MAX_SEEK_FRAMES = 300
# What FFmpeg says of a file that it does not recognise or cannot read on, and of a format that may not be opened
UNREADABLE = ("Invalid data found", "Invalid argument", "End of file", "Input/output error")
# In the first bytes of MP4, Matroska, AVI, Flash and Ogg files
KNOWN_MARKS = (b"ftyp", b"moov", b"\x1aE\xdf\xa3", b"AVI ", b"FLV", b"OggS")
SEE_LIST = "damaged_frames"  # in what a reader says of the first damaged frame, which names the list of them all
MIN_FPS = Fraction(1, 1000)

BAD_REQUEST, TOO_LARGE, UNSUPPORTED, NO_SPACE = 400, 413, 415, 507


class MediaLimits(Protocol):
    """The limits of a video or picture; fields of `Limits` in limits.py."""

    @property
    def video_seconds(self) -> float: ...

    @property
    def video_frames(self) -> int: ...

    @property
    def frame_pixels(self) -> int: ...


class FileRefused(ValueError):
    """
    A file or URL that is not accepted, as one sentence for the person who sent it.

    Attributes:
        status (`int`): The status of the HTTP response: 400 for a file that is damaged and a wrong request, 413 for
            what is beyond a limit, 415 for a file of another kind, 507 where there is no space left.
    """

    def __init__(self, message: str, status: int = BAD_REQUEST):
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Probe:
    """
    What the headers and the packets of a file say.

    Attributes:
        kind (`str`): "video" or "image".
        format (`str`): Name of the format, by FFmpeg for a video file and by Pillow for a picture.
        animated (`bool`): Whether it is a video in the format of a picture.
        seekable (`bool`): Whether any frame can be decoded alone with few others.
    """

    kind: str
    format: str
    animated: bool = False
    seekable: bool = False


@dataclass(frozen=True)
class Media:
    """
    A file that was accepted and its playable copy.

    Attributes:
        kind (`str`): "video" or "image".
        width (`int`), height (`int`), num_frames (`int`): As in [`SamaVideo`].
        fps (`float`): Of the copy. Frame n is shown from n / fps to (n + 1) / fps seconds. 0 for an image.
        content (`str`): Name of the copy in its folder. A video has even sides: where those of the frames are odd, its
            last row or column is repeated.
        seekable (`bool`): See [`Probe`].
        warnings (`tuple[str, ...]`): What is damaged or missing.
    """

    kind: str
    width: int
    height: int
    num_frames: int
    fps: float
    content: str
    seekable: bool
    warnings: tuple[str, ...] = ()

    @property
    def duration(self) -> float:
        """Seconds of the copy; 0 for an image."""
        return self.num_frames / self.fps if self.fps else 0.0


# ---- before decoding ------------------------------------------------------------------------------------------------


def probe(path: str | os.PathLike, limits: MediaLimits) -> Probe:
    """
    What a file is, from its headers and the table of its packets. No frame is decoded for it, except by FFmpeg where
    a container says too little about its stream.

    Raises:
        FileRefused: if the file is empty, of a kind that is not accepted, damaged, or beyond a limit.
    """
    path = os.fspath(path)
    if os.path.getsize(path) == 0:
        raise FileRefused("The file is empty: it has 0 bytes.")
    try:
        if is_picture(path):
            return _probe_picture(path, limits)
    except PictureError as error:
        refused = refusal(error, path)
        kind, needs_library, _ = str(refused).partition(", which needs ")
        if needs_library:
            raise FileRefused(f"{kind}, which this server cannot read.", UNSUPPORTED) from error
        raise refused from error
    return _probe_video(path, limits)


def _probe_picture(path: str, limits: MediaLimits) -> Probe:
    with opened_picture(path) as image:
        name, size = str(image.format), image.size
    _check_pixels(size, limits)
    with opened_picture(path) as image:
        count = number_of_frames(image)
        # The pages of a TIFF file have sizes of their own; every other format has one canvas
        pages = range(1, count) if name == "TIFF" and count <= limits.video_frames else ()
        sizes = {image.size for page in pages if image.seek(page) is None}
    if count > limits.video_frames:
        raise FileRefused(f"The video has {count:,} frames; at most {limits.video_frames:,} are accepted.", TOO_LARGE)
    for page in sizes:
        _check_pixels(page, limits)
    if count > 1:
        _check_sides(size)
    return Probe("image" if count == 1 else "video", name, animated=count > 1)


def _probe_video(path: str, limits: MediaLimits) -> Probe:
    try:
        check_mp4(path)
        with av_errors(), open_container(path, VIDEO_FORMATS) as container:
            stream = video_stream(container)
            if stream.disposition & Disposition.attached_pic:
                raise FileRefused("The file holds sound and a cover picture, but no video.", UNSUPPORTED)
            codec = stream.codec_context.codec.canonical_name
            if codec not in VIDEO_CODECS:
                raise FileRefused(f"The file is a video of the codec {codec}, which is not accepted.", UNSUPPORTED)
            size = stream.codec_context.width, stream.codec_context.height
            _check_pixels(size, limits)
            _check_sides(size)
            if stream.duration:
                _check_seconds(float(stream.duration * stream.time_base), limits)
            return Probe("video", container.format.name, seekable=_check_packets(container, stream, limits))
    except FileRefused:
        raise
    except (OSError, ValueError, *FFMPEG_ERRORS) as error:
        raise _no_video(path, str(error)) from error


def _no_video(path: str, reason: str) -> FileRefused:
    """Why a file cannot be read as a video: another kind of file, or a damaged one."""
    with open(path, "rb") as file:
        head = file.read(12)
    if "no video stream" in reason:
        return FileRefused("The file holds no video.", UNSUPPORTED)
    if head[8:12] in HEIC_BRANDS | AVIF_BRANDS:
        return FileRefused("The file is not a picture that can be read: it is damaged or incomplete.")
    if not any(problem in reason for problem in UNREADABLE):
        return FileRefused(f"The file is not a video that can be read: {reason.replace(path, 'the file')}.")
    if any(mark in head for mark in KNOWN_MARKS):
        return FileRefused("The file is not a video that can be read: it is damaged or incomplete.")
    return FileRefused("The file is neither a video nor a picture of a kind that is accepted.", UNSUPPORTED)


def _check_packets(container, stream, limits: MediaLimits) -> bool:
    """Counts the packets and their time; returns whether any frame can be decoded with few others."""
    shown, hidden, most = [], 0, limits.video_frames
    for packet in demux(container, stream):
        if is_hidden(packet):
            hidden += 1
        else:
            shown.append((packet.pts, packet.is_keyframe))
        if len(shown) > most:
            raise FileRefused(f"The video has more than {most:,} frames, which is the most accepted.", TOO_LARGE)
        if hidden > PACKETS_A_FRAME * most:
            raise FileRefused(
                f"The video has more than {hidden - 1:,} packets that are not shown, for at most {most:,} frames.",
                TOO_LARGE,
            )
    times = {pts for pts, _ in shown}
    if None in times or len(times) < max(1, len(shown)):
        return False
    if container.format.name == "avi" and stream.codec_context.has_b_frames:  # which `AvReader` only counts
        return False
    _check_seconds(float((max(times) - min(times)) * stream.time_base), limits)
    keyframes = [index for index, (_, is_keyframe) in enumerate(sorted(shown)) if is_keyframe]
    gaps = np.diff([0, *keyframes, len(shown)])
    return int(gaps.max()) <= MAX_SEEK_FRAMES


def _check_pixels(size: tuple[int, int], limits: MediaLimits) -> None:
    width, height = size
    if width * height > limits.frame_pixels:
        most = limits.frame_pixels
        raise FileRefused(
            f"A frame has {width} x {height} = {width * height:,} pixels; at most {most:,} are accepted.", TOO_LARGE
        )


def _check_sides(size: tuple[int, int]) -> None:
    """Of the frames of a video, before anything is written."""
    if max(size) > MAX_H264_SIDE:
        raise FileRefused(
            f"A frame is {size[0]:,} x {size[1]:,} pixels; no side of a video may have more than {MAX_H264_SIDE:,}.",
            TOO_LARGE,
        )


def _check_seconds(seconds: float, limits: MediaLimits) -> None:
    if seconds > limits.video_seconds:
        raise FileRefused(
            f"The video lasts {seconds:,.1f} seconds; at most {limits.video_seconds:g} are accepted.", TOO_LARGE
        )


def refusal(error: Exception, path: str) -> FileRefused:
    """What a reader of the model says of a file, without the path."""
    message = " ".join(str(error).replace(f"'{path}'", "the file").replace(path, "the file").split())
    beyond_limit = "more than the" in message or "at most" in message
    return FileRefused(message[:1].upper() + message[1:], TOO_LARGE if beyond_limit else BAD_REQUEST)


# ---- the playable copy ----------------------------------------------------------------------------------------------


def normalise(path: str | os.PathLike, folder: str | os.PathLike, limits: MediaLimits) -> Media:
    """
    Writes the playable copy of a file into a folder. All frames are decoded once.

    Raises:
        FileRefused: as [`probe`] does, and where frames that are decoded turn out to be damaged or beyond a limit.
        OSError: if the copy cannot be written.
    """
    path, found = os.fspath(path), probe(path, limits)
    with _refusals(path):
        if found.kind == "image":
            return _normalise_picture(path, Path(folder), found)
        frames = FileFrames(path, AnimationReader(path) if found.animated else None)
        return _normalise_video(frames, path, Path(folder), found, limits)


@contextmanager
def _refusals(path: str) -> Iterator[None]:
    try:
        yield
    except FileRefused:
        raise
    except ValueError as error:
        raise refusal(error, path) from error


def _normalise_picture(path: str, folder: Path, found: Probe) -> Media:
    frame = read_still(path)
    image, (height, width) = Image.fromarray(frame), frame.shape[:2]
    if found.format in LOSSY_PICTURES and max(height, width) <= MAX_JPEG_SIDE:
        content = "content.jpg"
        image.save(folder / content, quality=JPEG_QUALITY, subsampling=0)
    else:
        content = "content.png"
        image.save(folder / content)
    return Media("image", width, height, 1, 0.0, content, seekable=True)


def _normalise_video(frames: FileFrames, path: str, folder: Path, found: Probe, limits: MediaLimits) -> Media:
    if len(frames) > limits.video_frames:
        most = limits.video_frames
        raise FileRefused(f"The video has {len(frames):,} frames; at most {most:,} are accepted.", TOO_LARGE)
    _check_seconds(len(frames) / frames.fps, limits)
    if frames.fps < MIN_FPS:
        raise FileRefused(
            f"The video shows a frame every {1 / frames.fps:,.0f} seconds; the slowest that is accepted is one every "
            f"{float(1 / MIN_FPS):,.0f} seconds."
        )
    content, (height, width), resized = "content.mp4", frames.read(0).shape[:2], 0
    with VideoWriter(folder / content, frames.fps, keyframe_interval=KEYFRAME_INTERVAL) as writer:
        for index in range(len(frames)):
            frame = frames.read(index)
            if frame.shape[:2] != (height, width):
                _check_pixels((frame.shape[1], frame.shape[0]), limits)
                frame, resized = resize_frame(frame, height, width), resized + 1
            writer.write(frame)
    warnings = [str(refusal(ValueError(message), path)) for message in frames.messages if SEE_LIST not in message]
    if frames.damaged:
        count, first = len(frames.damaged), min(frames.damaged)
        warnings.append(f"{count} of {len(frames)} frames cannot be decoded whole; the first is frame {first}.")
    if resized:
        warnings.append(f"{resized} of {len(frames)} frames have another size and are resized to {width} x {height}.")
    return Media("video", width, height, len(frames), float(writer.fps), content, found.seekable, tuple(warnings))


def read_frame(path: str | os.PathLike, index: int, media: Media) -> np.ndarray:
    """A frame of a file or of its playable copy as a uint8 array of shape `(media.height, media.width, 3)`."""
    path = os.fspath(path)
    if media.kind == "image":
        return read_still(path)
    frame = FileFrames(path).read(index)
    if os.path.basename(path) == media.content:
        return frame[: media.height, : media.width]
    return frame if frame.shape[:2] == (media.height, media.width) else resize_frame(frame, media.height, media.width)


def png_bytes(pixels: np.ndarray) -> bytes:
    """A PNG file of RGB pixels `(height, width, 3)` or of grey ones `(height, width)`, uint8."""
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
