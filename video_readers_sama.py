"""Readers of video files: the frames that a player shows, decoded when they are asked for.

PyAV reads; decord does where PyAV is missing, and never after PyAV opened a file. The two give the same frames: those
that an edit list cuts away are left out, and the display matrix (rotation by quarter turns, mirroring) is applied.
"""

import re
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from io import BytesIO
from itertools import chain
from typing import Any

import numpy as np

from .mp4_sama import NO_TURN, Mp4Header, Turn, check_mp4, skew_message, upright_frame


# None where it is not installed
decord: Any = None
av: Any = None

try:
    import decord
except ImportError:
    pass

try:
    import av
except ImportError:
    pass

FFMPEG_ERRORS = () if av is None else (av.error.FFmpegError,)
DEFAULT_FPS = 24.0  # of a source without a clock (a list of frames, an array); used only to write videos
# Stepping backward through a file decodes this many frames at once: every backward seek restarts at a keyframe.
BACKWARD_CHUNK = 8
# A frame of more pixels is refused before it is decoded (8K has 33 million). A header can claim any size.
MAX_FRAME_PIXELS = 2**27
# What FFmpeg takes for a video that is a text: letters drawn as pictures, and lists of other files
TEXT_FORMATS = frozenset({"tty", "hls", "dash", "concat", "imf"})
# Frame times that differ from those of an even rate by less are rounding, in seconds: Matroska counts milliseconds
TIME_TOLERANCE = 0.00101


class FrameSource:
    """
    What [`SamaVideo`] reads frames from: `len()`, `read(index)` and these attributes.

    Attributes:
        name (`str`): For messages: the path, or what kind of source it is.
        is_image (`bool`): Whether it is a still.
        fps (`float`): Frames a second, on average.
        times (`list[float]`, *optional*): When each frame is shown, in seconds from the first one, and when the last
            one ends: one number more than frames. `None` where all frames are shown equally long.
        pixel_aspect (`Fraction`): Width of a pixel divided by its height.
        sound (`tuple[str, float]`, *optional*): The file whose sound belongs to the frames, and the time of the first
            frame on its clock, in seconds.
        damaged (`set[int]`): Frames, among those that were read, that could not be decoded whole.
        messages (`list[str]`): What to warn about; grows while frames are read.
    """

    name = ""
    is_image = False
    fps = DEFAULT_FPS
    times: list[float] | None = None
    pixel_aspect = Fraction(1)
    sound: tuple[str, float] | None = None

    def __init__(self):
        self.damaged: set[int] = set()
        self.messages: list[str] = []

    def __len__(self) -> int:
        raise NotImplementedError

    def read(self, index: int) -> np.ndarray:
        """Frame `index` as a uint8 array of shape `(height, width, 3)`."""
        raise NotImplementedError

    def keep(self, indices: Container[int]) -> bool:
        """Asks to hold frames in memory once they are decoded, until the next call; whether the source does that."""
        return False


class FileFrames(FrameSource):
    """Frames of a file read by one of the readers below, or of an animated picture; knows how many there are."""

    def __init__(self, path: str, reader: Any = None):
        super().__init__()
        self.name = path
        self._reader: Any = open_reader(path) if reader is None else reader
        self.messages = self._reader.messages  # one list: a reader finds out while it reads
        if self._reader.length == 0:
            raise ValueError(f"'{path}' is a video with 0 frames that can be decoded.")
        if self._reader.declared > self._reader.length:
            self.messages.append(
                f"Only the first {self._reader.length} of {self._reader.declared} frames of '{path}' can be decoded; "
                "the rest is left out."
            )
        self.pixel_aspect, self.sound = self._reader.pixel_aspect, self._reader.sound
        self.times, self.fps = even_times(self._reader.times, self._reader.fps)
        self._chunk: dict[int, np.ndarray] = {}
        self._last = -1

    def __len__(self) -> int:
        return self._reader.length

    def read(self, index: int) -> np.ndarray:
        backward, self._last = index == self._last - 1, index
        if index in self._chunk:
            return self._chunk[index]
        first = max(0, index - BACKWARD_CHUNK + 1) if backward else index
        try:
            self._chunk = {position: self._reader.read(position) for position in range(first, index + 1)}
        except ValueError as error:
            raise ValueError(f"Frame {index} of '{self.name}' cannot be decoded: {error}.") from error
        self._report_damage(range(first, index + 1))
        return self._chunk[index]

    def keep(self, indices: Container[int]) -> bool:
        return isinstance(self._reader, AvReader) and self._reader.keep(indices)

    def _report_damage(self, indices: Iterable[int]) -> None:
        for index in indices:
            problem = self._reader.damaged.get(index)
            if problem is not None and index not in self.damaged:
                if not self.damaged:
                    self.messages.append(
                        f"Frame {index} of '{self.name}' is damaged: {problem}. Later damaged frames are not reported "
                        "one by one; the attribute `damaged_frames` of the video lists those that were read."
                    )
                self.damaged.add(index)


def even_times(times: list[float] | None, fps: float) -> tuple[list[float] | None, float]:
    """The times, or `None` if they are those of an even rate; and the rate, on average where it is uneven."""
    if times is None:
        return None, fps
    count, end = len(times) - 1, times[-1]
    if not 0 < fps < 1e6:
        fps = count / end if end > 0 else DEFAULT_FPS
    if all(abs(time - index / fps) <= TIME_TOLERANCE for index, time in enumerate(times[:-1])):
        return None, fps
    return times, count / end


def open_reader(path: str) -> "AvReader | DecordReader":
    """
    The reader of a video file.

    Raises:
        ImportError: if no library for videos is installed.
        ValueError: if it is not a video that can be read.
    """
    if av is None and decord is None:
        raise ImportError(f"Reading '{path}' needs av or decord: run `pip install av` or `pip install decord`.")
    try:
        header = check_mp4(path)
        return AvReader(path) if av is not None else DecordReader(path, header)
    except ValueError as error:
        raise ValueError(f"'{path}' is not a video that can be read: {error}.") from error


def check_size(width: int, height: int) -> None:
    if width * height > MAX_FRAME_PIXELS:
        raise ValueError(
            f"its frames have {width}x{height} = {width * height:,} pixels, at most {MAX_FRAME_PIXELS:,} are decoded"
        )


def _reason(error: Exception) -> str:
    """The readable part of a decoder's message: no error number or time in front, no file name or C++ stack behind."""
    lines = [re.sub(r"^\[[^\]]*\]\s*|: 'file:.*'$", "", line).strip() for line in str(error).splitlines()]
    return next((line for line in lines if line), type(error).__name__)


# ---- PyAV ----------------------------------------------------------------------------------------------------------


@contextmanager
def av_errors() -> Iterator[None]:
    """What PyAV raises, as a `ValueError` with the readable part of its message."""
    try:
        yield
    except (OSError, *FFMPEG_ERRORS, UnicodeError, OverflowError, MemoryError) as error:
        raise ValueError(_reason(error)) from error


def open_container(path: str, formats: Iterable[str] = ()) -> Any:
    """
    A file opened by PyAV.

    Args:
        path (`str`)
        formats (iterable of `str`, *optional*): FFmpeg's names of the formats that may be opened. By default all of
            them, some of which are lists of other files.
    """
    # `file:` so that a colon in a name is not read as a protocol and a playlist cannot reach the network
    options = {"protocol_whitelist": "file"}
    if formats:
        options["format_whitelist"] = ",".join(formats)
    return av.open(f"file:{path}", options=options, metadata_errors="replace")


def video_stream(container: Any) -> Any:
    """The stream that players show: the largest video, no cover picture if there is another."""
    stream = container.streams.best("video")
    if container.format.name in TEXT_FORMATS:
        raise ValueError("it is a text file")
    if stream is None:
        raise ValueError("the file holds no video stream")
    if stream.codec_context is None:
        raise ValueError("its video stream is of a codec that this PyAV cannot decode")
    check_size(stream.codec_context.width, stream.codec_context.height)
    stream.codec_context.options = {"max_pixels": str(MAX_FRAME_PIXELS)}
    return stream


class AvReader:
    """
    Random access to the frames of a video file through PyAV: forward by decoding on, otherwise from a keyframe.

    A frame that does not decode is replaced by the one before it, as players do, and listed.

    Attributes:
        length (`int`): Frames that are shown.
        declared (`int`): Frames that should be there; more than `length` if the file ends early.
        fps, times, pixel_aspect, sound, messages: As in [`FrameSource`].
        damaged (`dict[int, str]`): What is wrong with frames that were read.
    """

    def __init__(self, path: str):
        self._path = path
        self.damaged: dict[int, str] = {}
        self.messages: list[str] = []
        self._container: Any = None
        self._frames: Iterator = iter(())
        self._current: Any = None  # number and frame: the one asked for, or the last one before it
        self._ahead: Any = None  # the frame after it, if it is decoded already
        self._start = self._position = 0
        self.keep(())
        with av_errors():
            missing = self._scan()
            self.declared = self.length + missing
            self._check_end()
            if self.length and self._find(self.length - 1) is not None and self._turn(self._current[1]).transpose:
                self.pixel_aspect = 1 / self.pixel_aspect

    def __getstate__(self) -> dict:
        """Without what is open: a copy, or another process, opens the file again."""
        return self.__dict__ | {"_container": None, "_frames": iter(()), "_current": None, "_ahead": None, "_kept": {}}

    def keep(self, indices: Container[int]) -> bool:
        """As [`FrameSource.keep`], also frames decoded on the way to others; not as RGB, which is twice as large."""
        current = () if self._current is None else (self._current,)
        self._keep, self._kept = indices, {index: frame for index, frame in current if index in indices}
        return True

    def _scan(self) -> int:
        """Reads the times of all packets without decoding them; returns how many frames the end of the file lacks."""
        with open_container(self._path) as container:
            stream = video_stream(container)
            # The index of MP4 knows what an edit list leaves out; the count in its header does not
            declared = len(stream.index_entries) if container.format.name.startswith("mov") else stream.frames
            packets, num_hidden, is_cut = [], 0, False
            for packet in demux(container, stream):
                if is_hidden(packet):
                    num_hidden, is_cut = num_hidden + 1, is_cut or packet.is_discard or not packet.size
                else:
                    packets.append((packet.pts, packet.is_keyframe, packet.duration or 0))
            self.length = len(packets)
            self.fps = float(stream.average_rate or 0)
            self.pixel_aspect = max(stream.sample_aspect_ratio or Fraction(0), Fraction(0)) or Fraction(1)
            # AVI stores no times: what FFmpeg guesses for frames that are stored in another order is wrong
            self._index_packets(packets, container.format.name == "avi" and stream.codec_context.has_b_frames)
            self._set_times(packets, stream.time_base)
            if self._times and container.streams.audio:
                self.sound = (self._path, float(self._times[0] * stream.time_base))
            if self._times and stream.duration and not is_cut:
                first, last = stream.start_time or 0, max(packets)
                # The file reaches its end all the same: the count in an AVI header includes frames that are repeated
                if last[0] + 2 * last[2] >= first + stream.duration > 0 and last[2] > 0:
                    return 0
        return max(0, declared - self.length - num_hidden)

    def _index_packets(self, packets: list[tuple], only_counted: bool) -> None:
        times = sorted(pts for pts, _, _ in packets if pts is not None)
        # Without a distinct time on every packet (raw streams) the frames can only be counted from the start.
        self._seekable = len(set(times)) == len(packets)
        self._times = times if self._seekable else []
        self._index_of = {pts: index for index, pts in enumerate(self._times)}
        self._keyframes = sorted(self._index_of[pts] for pts, key, _ in packets if key) if self._seekable else []
        if only_counted:
            self._index_of, self._keyframes = {}, []

    def _set_times(self, packets: list[tuple], time_base: Fraction) -> None:
        self.times, self.sound = None, None
        if self._times:
            first, last = self._times[0], max(packets)
            duration = last[2] or (last[0] - first) // max(1, len(packets) - 1)
            self.times = [float((time - first) * time_base) for time in (*self._times, last[0] + duration)]

    def _check_end(self) -> None:
        """Leaves out the frames at the end that do not decode. If there are any, the whole file is decoded once."""
        if self.length == 0 or self._find(self.length - 1) == self.length - 1:
            return
        self._restart(0)
        positions = [position for position, _ in iter(self._next_frame, None)]
        self.length = max(positions, default=-1) + 1
        if self.times is not None:
            self.times = self.times[: self.length + 1]
        self._restart(0)

    def read(self, index: int) -> np.ndarray:
        with av_errors():
            position = index if index in self._kept else self._find(index)
            if position is None:
                raise ValueError(f"the stream ends before frame {index}")
            frame = self._kept[index] if index in self._kept else self._current[1]
            if position != index:
                self.damaged[index] = f"it cannot be decoded, and frame {position} is shown in its place"
            elif frame.is_corrupt:
                self.damaged[index] = "a part of its data is wrong, and what the decoder filled in is shown"
            return upright_frame(frame.to_ndarray(format="rgb24"), self._turn(frame))

    def _find(self, index: int) -> int | None:
        """
        Makes frame `index` the current one and returns its number: that of the frame before, or, after a seek, behind
        it where it does not decode. `None` if nothing decodes up to the end.
        """
        keyframe = max((key for key in self._keyframes if key <= index), default=0)
        here = self._start if self._current is None else self._current[0]
        restart = self._container is None or not keyframe <= here <= index
        if restart:
            self._restart(keyframe)
        self._advance(index)
        if restart and keyframe > 0 and (self._current is None or self._is_bad(index)):
            # Some streams need more than one keyframe before pictures are whole (intra refresh)
            self._restart(max((key for key in self._keyframes if key < keyframe), default=0))
            self._advance(index)
        if self._current is None:
            self._current, self._ahead = self._ahead, None
        return None if self._current is None else self._current[0]

    def _is_bad(self, index: int) -> bool:
        return self._current is not None and (self._current[0] != index or self._current[1].is_corrupt)

    def _advance(self, index: int) -> None:
        """Decodes on until the current frame is `index`, or the last one before it."""
        while self._current is None or self._current[0] < index:
            self._ahead = self._ahead or self._next_frame()
            if self._ahead is None or self._ahead[0] > index:
                return
            self._current, self._ahead = self._ahead, None

    def _next_frame(self) -> tuple[int, Any] | None:
        frame = next(self._frames, None)
        if frame is None:
            return None
        position = self._index_of.get(frame.pts, self._position)
        self._position = position + 1
        if position in self._keep and position >= self._start and not frame.is_corrupt:
            self._kept[position] = frame
        return position, frame

    def _restart(self, keyframe: int) -> None:
        """Places the decoder at a keyframe; the first one also after the cut of an edit list."""
        if keyframe == 0 or self._container is None:
            self._close()
            self._container = open_container(self._path)
        stream = video_stream(self._container)
        if keyframe > 0:
            self._container.seek(self._times[keyframe], stream=stream)
        self._frames, self._current, self._ahead = _decoded(self._container, stream), None, None
        self._start = self._position = keyframe

    def _close(self) -> None:
        if self._container is not None:
            self._container.close()
        self._container, self._frames, self._current, self._ahead = None, iter(()), None, None

    def _turn(self, frame) -> Turn:
        """How a frame is shown; a matrix in the stream itself comes before that of the container."""
        side_data = frame.side_data.get(av.sidedata.sidedata.Type.DISPLAYMATRIX)
        turn = NO_TURN if side_data is None else Turn.from_matrix(np.frombuffer(bytes(side_data), "=i4"))
        if turn.skewed and not self.messages:
            self.messages.append(skew_message(self._path))
        return turn


def demux(container: Any, stream: Any) -> Iterator:
    """All packets, up to the first that cannot be read (a truncated file ends there)."""
    with suppress(OSError, *FFMPEG_ERRORS):
        for packet in container.demux(stream):
            if packet.size or packet.dts is not None:  # not the empty one behind the last
                yield packet


def is_hidden(packet: Any) -> bool:
    """Whether a packet shows no frame of its own: it is cut away by an edit list, says "frame repeats", or holds a
    frame of VP8 that is only there for others to refer to (RFC 6386, section 9.1: `show_frame`)."""
    if packet.is_discard or not packet.size:
        return True
    return packet.stream.codec_context.codec.canonical_name == "vp8" and not memoryview(packet)[0] & 0x10


def _decoded(container, stream) -> Iterator:
    """All frames that decode, at the end those that the decoder still holds."""
    for packet in chain(demux(container, stream), [None]):
        try:
            frames = stream.codec_context.decode(packet)
        except (EOFError, *FFMPEG_ERRORS):
            continue
        yield from frames


# ---- decord --------------------------------------------------------------------------------------------------------


@contextmanager
def _decord_errors() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, IndexError, decord.DECORDError) as error:
        raise ValueError(_reason(error)) from error


class DecordReader:
    """
    Random access to the frames of a video file through decord. It decodes ahead in the background: while a slow
    consumer tracks through 1,200 frames of 640 x 360 it holds 750 MB of them.

    decord itself counts the frames that an edit list hides, returns rows with padding for a turned video, and does not
    know mirroring. So it is given such a file, in memory, without edit list and display matrix; both are applied here,
    for MP4 and QuickTime. It says nothing of damaged frames and scales frames of another size. Attributes as in
    [`AvReader`].
    """

    pixel_aspect, sound = Fraction(1), None

    def __init__(self, path: str, header: Mp4Header | None = None):
        self._path, self._header = path, header
        self.damaged: dict[int, str] = {}
        self.messages: list[str] = []
        self._turn = NO_TURN if header is None else header.turn
        if self._turn.skewed:
            self.messages.append(skew_message(path))
        self._open()
        self.declared = self.length = len(self._shown)
        self._leave_out_the_undecodable()

    def __reduce__(self):
        return DecordReader, (self._path, self._header)

    def _open(self) -> None:
        header = self._header
        with _decord_errors():
            # The length is taken inside the block: decord also fails here, on files without a single frame.
            self._reader = decord.VideoReader(self._path, num_threads=1)
            times = self._reader.get_frame_timestamp(range(len(self._reader)))
            self.fps = float(self._reader.get_avg_fps())
            shown = np.ones(len(times), dtype=bool)
            if header is not None:
                shown = header.shown(times[:, 0])
                if len(header.edits) > 1:
                    raise ValueError(
                        f"its edit list joins {len(header.edits)} parts, which needs PyAV: pip install av"
                    )
                if self._turn != NO_TURN or not shown.all():
                    self._reader = decord.VideoReader(BytesIO(header.neutralised(self._path)), num_threads=1)
        self._shown, times = np.flatnonzero(shown), times[shown]
        self.times = None
        if len(times) and (np.diff(times[:, 0]) > 0).all():
            self.times = [*(times[:, 0] - times[0, 0]).tolist(), float(times[-1, 1] - times[0, 0])]

    def _leave_out_the_undecodable(self) -> None:
        try:
            if self.length:
                self.read(self.length - 1)
        except ValueError:
            self._open()  # a reader that failed once goes on failing
            self.length = self._count_readable()
            self._open()
            self.times = None if self.times is None else self.times[: self.length + 1]

    def _count_readable(self) -> int:
        for index in range(self.length):
            try:
                self.read(index)
            except ValueError:
                return index
        return self.length

    def read(self, index: int) -> np.ndarray:
        with _decord_errors():
            return upright_frame(self._reader[int(self._shown[index])].asnumpy(), self._turn)
