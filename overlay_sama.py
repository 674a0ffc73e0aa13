"""Draws the masks of an answer over video frames and writes the frames to a video file.

Frames are arrays of shape `(height, width, 3)`, RGB, uint8.
"""

import colorsys
import math
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from .video_readers_sama import FFMPEG_ERRORS, open_container


av: Any = None  # where it is not installed

try:
    import av
except ImportError:
    pass

# Time base of uneven frame times; 90 kHz is the clock of MPEG
MP4_SUFFIXES = (".mp4", ".m4v", ".mov")  # names under which players expect the format that is written
TIME_BASE = Fraction(1, 90000)
# Frames a second. MP4 counts the length of a video in milliseconds: above, players leave out the last frames, or all;
# below, FFmpeg writes none
SLOWEST, FASTEST = 0.0001, 1000
# Sound that MP4 holds and browsers play; everything else is encoded as AAC, which takes these rates
COPIED_SOUND = frozenset({"aac", "ac3", "alac", "eac3", "flac", "mp3", "mp3float", "opus", "libopus"})
AAC_RATES = frozenset({8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000})

Color = tuple[int, int, int]


def color_from_hex(code: str) -> Color:
    """The colour of six hexadecimal digits, such as `ff4068`."""
    red, green, blue = bytes.fromhex(code)
    return red, green, blue


# Bright, well separated, and light enough to carry dark text: one colour marks a mask in the video and its phrase in
# captions and in the terminal.
PALETTE: tuple[Color, ...] = tuple(
    color_from_hex(code)
    for code in "ff4068 00beff ffc800 b080ff 00dc8c ff8224 ff6ee2 5c8cff b8ec00 7cffd8 ffac9c cea46e".split()
)
GOLDEN_RATIO = 0.6180339887
FILL_OPACITY = 0.15  # of a mask's fill: an answer names colours, so the object's own must stay recognisable


def object_color(index: int) -> Color:
    """The colour of object `index`: from the palette, and beyond its end from evenly spread hues."""
    if index < 0:
        raise ValueError(f"Object indices start at 0, got {index}.")
    if index < len(PALETTE):
        return PALETTE[index]
    red, green, blue = colorsys.hsv_to_rgb(index * GOLDEN_RATIO % 1.0, 0.55, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def overlay_masks(
    frame: np.ndarray, masks: np.ndarray, colors: Sequence[Color] | None = None, opacity: float = FILL_OPACITY
) -> np.ndarray:
    """
    Draws masks over a copy of a frame: an outline in full colour, a thin dark rim, and a fill so light that the
    object's own colour can still be named.

    Args:
        frame (`np.ndarray` of shape `(height, width, 3)`, uint8)
        masks (`np.ndarray` of shape `(num_objects, height, width)`, bool): later masks cover earlier ones.
        colors (sequence of RGB triples, *optional*): one colour per mask; defaults to [`object_color`].
        opacity (`float`, *optional*, defaults to 0.15): of the fill, from 0 (outline only) to 1 (solid).

    Raises:
        ValueError: if shapes, counts or the opacity do not fit.
    """
    check_frame(frame)
    masks = check_masks(frame, masks)
    colors = check_colors(len(masks), colors)
    if not 0.0 <= opacity <= 1.0:
        raise ValueError(f"The opacity must lie between 0 and 1, got {opacity}.")
    output = frame.copy()
    line = line_width(frame)
    for mask, color in zip(masks, colors, strict=True):
        window = mask_window(mask, line + 1)
        if window is None:
            continue
        inside, pixels = mask[window], output[window]
        blend = np.rint(np.arange(256)[:, None] * (1.0 - opacity) + np.multiply(color, opacity)).astype(np.uint8)
        pixels[inside] = blend[pixels[inside], (0, 1, 2)]
        rim = dilate(inside, 1) & ~inside
        pixels[rim] = pixels[rim] // 3
        pixels[inside & dilate(~inside, line)] = color
    return output


class VideoWriter:
    """
    Writes frames one by one to an H.264 mp4 that browsers can play. Use it as a context manager: the file appears
    under its name when it is complete, and nothing remains of it after an error.

    Args:
        path (`str` or `os.PathLike`): the file; its folder is created if needed.
        fps (`float`): frames per second, where `source` has no times.
        source ([`SamaVideo`], *optional*): the video that the frames come from, all of them and in order. The file
            gets its frame times, its pixel aspect and its sound.
        keyframe_interval (`int`, *optional*): a keyframe comes at least every so many frames, and no frame is stored
            behind a later one, so that a player shows any frame at once. By default the encoder chooses.

    Raises:
        ImportError: if PyAV is not installed.
        OSError: if the file cannot be written.
        ValueError: if the name is not that of an MP4, the frame rate is not one that MP4 can hold, frames differ in
            size, no frame was written, there are more frames than in `source`, or the file is that of `source` or of
            its sound.
    """

    def __init__(self, path: str | os.PathLike, fps: float, source: Any = None, keyframe_interval: int | None = None):
        if av is None:
            raise ImportError("Writing a video needs PyAV, which is not installed: pip install av")
        if not (fps and SLOWEST <= fps <= FASTEST):
            raise ValueError(f"A video needs a frame rate from {SLOWEST} to {FASTEST} frames a second, got {fps}.")
        self.path = Path(path)
        if self.path.suffix.lower() not in MP4_SUFFIXES:
            raise ValueError(
                f"Videos are written as MP4: the name {self.path} must end in {' or '.join(MP4_SUFFIXES)}."
            )
        # Below 1 the period is rounded: with a denominator of at most 1001, slow rates become others, or zero
        rate, period = (Fraction(value).limit_denominator(1001) for value in (fps, 1 / fps))
        self.fps = rate if fps >= 1 else 1 / period
        self.time_base = 1 / self.fps
        self.source, self.start, self.keyframe_interval = source, 0.0, keyframe_interval
        self.sound: SoundCopy | None = None
        self.size, self.num_written, self.last_pts = None, 0, -1
        self.temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        check_not_read(self.path, source)
        prepare_output(self.path)
        self.container = av.open(f"file:{self.temporary}", "w", format="mp4", options={"movflags": "faststart"})
        self.stream = None

    def write(self, frame: np.ndarray) -> None:
        """Appends a frame of shape `(height, width, 3)`, uint8; all frames must have the same size."""
        check_frame(frame)
        height, width = frame.shape[:2]
        if self.stream is None:
            self.size, self.stream = (height, width), self._new_stream(height, width)
        if frame.shape[:2] != self.size:
            raise ValueError(f"The video's frames are (height, width) = {self.size}, got one of {frame.shape[:2]}.")
        # H.264 with subsampled chroma needs even sides: repeat the last row or column, which shifts no other pixel.
        frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        picture = picture.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
        begin, end = self._time(self.num_written), self._time(self.num_written + 1)
        picture.time_base = self.time_base
        picture.pts = self.last_pts = max(round(begin / picture.time_base), self.last_pts + 1)
        self.durations[picture.pts] = max(round(end / picture.time_base) - picture.pts, 1)
        self.num_written += 1
        if self.sound is not None:
            self.sound.copy_until(float(begin))
        self._mux(self.stream.encode(picture))

    def _time(self, index: int) -> Fraction:
        """When frame `index` is shown, in seconds of the written file."""
        if self.source is not None and index > len(self.source):
            raise ValueError(f"Got frame {index - 1}, but '{self.source.name}' has {len(self.source)} frames.")
        if self.source is None or self.source.times is None:
            return Fraction(self.start) + index / self.fps
        return Fraction(self.start) + Fraction(self.source.times[index])

    def _mux(self, packets: Iterable) -> None:
        for packet in packets:
            packet.duration = self.durations.pop(packet.pts)
            self.container.mux(packet)

    def _new_stream(self, height: int, width: int) -> Any:
        stream = self.container.add_stream("libx264", rate=self.fps, options={"crf": "18", "preset": "veryfast"})
        stream.width, stream.height = width + width % 2, height + height % 2
        stream.pix_fmt = "yuv420p"
        # Declare the colour space (BT.709, limited range): players would guess, and not all guess the same.
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = context.color_range = 1
        self.durations: dict[int, int] = {}  # by time, of the frames that the encoder holds
        if self.source is not None:
            context.sample_aspect_ratio = self.source.pixel_aspect
            if self.source.sound is not None:
                self._open_sound(*self.source.sound)
            if self.source.times is not None or self.start:
                self.time_base = TIME_BASE
                context.max_b_frames = 0  # MP4 stores how long frames last in the order of decoding
        context.time_base = self.time_base
        if self.keyframe_interval is not None:
            context.gop_size, context.max_b_frames = self.keyframe_interval, 0
        return stream

    def _open_sound(self, path: str, first_frame: float) -> None:
        try:
            self.sound = SoundCopy(path, first_frame, self.container)
            self.start = self.sound.video_start
        except (OSError, *FFMPEG_ERRORS) as error:
            warnings.warn(f"The sound of '{path}' is not copied: {error}.", stacklevel=2)

    def close(self) -> None:
        """Finishes the file and renames it to its final name."""
        try:
            if self.stream is None:
                raise ValueError(f"No frame was written to {self.path}, so there is no video to save.")
            self._mux(self.stream.encode(None))
            if self.sound is not None:
                self.sound.copy_until(math.inf)
            self.container.close()
            os.replace(self.temporary, self.path)
        finally:
            self.discard()

    def discard(self) -> None:
        """Deletes the temporary file if it still exists; an earlier file of the final name is kept."""
        try:
            self.container.close()
        except (OSError, *FFMPEG_ERRORS):  # it writes the end of the file, which fails on a full disk
            pass
        finally:
            if self.sound is not None:
                self.sound.close()
            self.temporary.unlink(missing_ok=True)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self.close() if kind is None else self.discard()


def is_copied(context: Any) -> bool:
    """Whether sound is copied as it is. FFmpeg's MP4 writer takes no MP3 below 16 kHz, and says so with the first
    packet, when the file cannot be written without the sound any more."""
    return context.name in COPIED_SOUND and not (context.name.startswith("mp3") and context.sample_rate < 16000)


class SoundCopy:
    """
    Copies the sound of a file beside a video that is being written: the packets as they are where MP4 and browsers
    take the codec, otherwise as AAC. Sound that cannot be copied is left out with a warning.

    Args:
        path (`str`): the file with the sound.
        first_frame (`float`): time of the first frame on its clock, in seconds.
        container: the PyAV container that is written; nothing may have been written to it.

    Attributes:
        video_start (`float`): when the first frame is shown in the written file: later than 0 where the sound begins
            before it.
    """

    def __init__(self, path: str, first_frame: float, container: Any):
        self.path, self.container, self.video_start = path, container, 0.0
        self.pending: Any = None
        self.packets: Iterator = iter(())
        self.input = open_container(path)
        stream = self.input.streams.best("audio")
        if stream is None or stream.codec_context is None:
            self._give_up("its codec is unknown")
            return
        begin = first_frame if stream.start_time is None else float(stream.start_time * stream.time_base)
        origin = min(begin, first_frame)
        self.video_start = first_frame - origin
        self.offset = round(origin / stream.time_base)
        try:
            if is_copied(stream.codec_context):
                self.packets = self._copied(stream, container.add_stream_from_template(stream))
            else:
                self.packets = self._encoded(stream, self._new_stream(stream.codec_context))
        except (ValueError, *FFMPEG_ERRORS) as error:
            self._give_up(str(error))

    def _new_stream(self, context: Any) -> Any:
        rate = context.sample_rate if context.sample_rate in AAC_RATES else 48000
        return self.container.add_stream("aac", rate=rate, layout="mono" if context.channels == 1 else "stereo")

    def _copied(self, stream: Any, target: Any) -> Iterator:
        for packet in self.input.demux(stream):
            if packet.size and packet.dts is not None:
                packet.pts, packet.dts = packet.pts - self.offset, packet.dts - self.offset
                packet.stream = target
                yield float(packet.dts * packet.time_base), packet

    def _encoded(self, stream: Any, target: Any) -> Iterator:
        resampler = av.AudioResampler("fltp", target.layout, target.rate)
        for frame in chain(self.input.decode(stream), [None]):
            if frame is not None and frame.pts is not None:
                frame.pts -= self.offset
            for resampled in resampler.resample(frame):
                for packet in target.encode(resampled):
                    yield float(packet.dts * packet.time_base), packet
        for packet in target.encode(None):
            yield float(packet.dts * packet.time_base), packet

    def copy_until(self, seconds: float) -> None:
        """Writes what sounds before a time of the written file, so that sound and frames alternate in it."""
        try:
            while True:
                self.pending = self.pending or next(self.packets, None)
                if self.pending is None or self.pending[0] > seconds:
                    return
                packet, self.pending = self.pending[1], None
                self.container.mux(packet)
        except (ValueError, TypeError, EOFError, *FFMPEG_ERRORS) as error:
            self._give_up(str(error))

    def _give_up(self, problem: str) -> None:
        self.packets = iter(())
        warnings.warn(f"The sound of '{self.path}' is not copied, or not to its end: {problem}.", stacklevel=2)

    def close(self) -> None:
        self.input.close()


def write_video(path: str | os.PathLike, frames: Iterable[np.ndarray], fps: float, source: Any = None) -> Path:
    """Writes frames of shape `(height, width, 3)`, uint8, to an H.264 mp4; returns its path. See [`VideoWriter`]."""
    with VideoWriter(path, fps, source) as writer:
        for frame in frames:
            writer.write(frame)
    return writer.path


def prepare_output(path: str | os.PathLike) -> Path:
    """
    Creates the folder of an output file and checks that files can be created in it.

    Raises:
        OSError: if the path is a folder, or its parent is a file or not writable.
    """
    if (path := Path(path)).is_dir():
        raise IsADirectoryError(f"Cannot write {path}: it is a folder; give the name of a file.")
    probe = path.with_name(f".{path.name}.{os.getpid()}.probe")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        reason = "is a file, not a folder" if path.parent.is_file() else f"is not writable ({error.strerror})"
        raise OSError(f"Cannot write {path}: {path.parent} {reason}.") from error
    return path


def check_not_read(path: Path, source: Any) -> None:
    """Raises `ValueError` if a file that is to be written is one that `source`, a [`SamaVideo`], is read from."""
    for name in () if source is None else (source.name, *(source.sound or ())[:1]):
        if path.exists() and os.path.exists(name) and path.samefile(name):
            raise ValueError(f"Cannot write {path}: the video is read from this file; give the name of another one.")


def check_frame(frame: np.ndarray) -> None:
    """Raises `ValueError` unless `frame` is a uint8 array of shape `(height, width, 3)`."""
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
        raise ValueError(f"A frame must be a uint8 array (height, width, 3), got {frame.shape} of {frame.dtype}.")


def check_masks(frame: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """The masks as bool; raises `ValueError` unless they are `(num_objects, height, width)` of the frame's size."""
    masks = np.asarray(masks)
    if masks.ndim != 3 or masks.shape[1:] != frame.shape[:2]:
        raise ValueError(
            f"Masks of shape {masks.shape} do not fit a frame of {frame.shape[:2]}; expected (objects, height, width)."
        )
    return masks.astype(bool, copy=False)


def check_colors(count: int, colors: Sequence[Color] | None) -> Sequence[Color]:
    """The colours, by default those of [`object_color`]; raises `ValueError` unless there is one per object."""
    if colors is None:
        return [object_color(index) for index in range(count)]
    check_count("colours", colors, count, "objects")
    return colors


def check_count(name: str, values: Sequence, count: int, owners: str) -> None:
    """Raises `ValueError` with both numbers unless there are `count` values."""
    if len(values) != count:
        raise ValueError(f"Got {len(values)} {name} for {count} {owners}; give one each.")


def line_width(frame: np.ndarray) -> int:
    """The width of an outline, in pixels, that suits a frame of this size."""
    return max(1, round(min(frame.shape[:2]) / 160))


def mask_window(mask: np.ndarray, margin: int) -> tuple[slice, slice] | None:
    """The rows and columns around a mask, `margin` wider where the frame allows; `None` for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows) == 0:
        return None
    top, left = max(0, rows[0] - margin), max(0, columns[0] - margin)
    return slice(int(top), int(rows[-1]) + 1 + margin), slice(int(left), int(columns[-1]) + 1 + margin)


def dilate(mask: np.ndarray, steps: int) -> np.ndarray:
    """Dilates a mask by `steps` pixels, alternating a cross and a square, which keeps corners round."""
    for step in range(steps):
        grown = mask.copy()
        grown[1:] |= mask[:-1]
        grown[:-1] |= mask[1:]
        source = grown.copy() if step % 2 else mask
        grown[:, 1:] |= source[:, :-1]
        grown[:, :-1] |= source[:, 1:]
        mask = grown
    return mask
