"""What the header of an MP4 or QuickTime file says before a decoder opens it: how the picture is turned, which part of
it an edit list shows, and whether its counts can be true. Names of boxes are those of ISO/IEC 14496-12."""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np


CONTAINERS = frozenset({b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"moof", b"traf"})
FIRST_BOXES = frozenset({b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"moof", b"styp"})
# An edit list has a handful of entries; a header that claims more is not read further
MAX_EDITS = 1000
MAX_DEPTH = 10  # moov, trak, mdia, minf and stbl are five deep
IDENTITY_MATRIX = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
TIME_TOLERANCE = 1e-4  # seconds; a header counts in whole units of the movie
# Angles this close to a quarter turn are rounding, as a share of the length of an axis
SKEW_TOLERANCE = 0.02


@dataclass(frozen=True)
class Turn:
    """
    How stored frames become upright: rows and columns are swapped first, then flipped.

    Attributes:
        transpose, flip_rows, flip_columns (`bool`)
        skewed (`bool`): Whether the matrix asks for more than quarter turns and mirroring, which is not applied.
    """

    transpose: bool = False
    flip_rows: bool = False
    flip_columns: bool = False
    skewed: bool = False

    @classmethod
    def from_matrix(cls, matrix) -> "Turn":
        """From the 9 numbers of a display matrix: the point (x, y) is shown at (a x + c y, b x + d y)."""
        a, b, _, c, d = (float(value) for value in matrix[:5])
        across, straight = abs(b) + abs(c), abs(a) + abs(d)
        skewed = min(across, straight) > SKEW_TOLERANCE * max(across, straight)
        if across > straight:
            return cls(True, b < 0, c < 0, skewed)
        return cls(False, d < 0, a < 0, skewed)


NO_TURN = Turn()


def skew_message(path: str) -> str:
    """What to say of a [`Turn`] that is skewed."""
    return (
        f"'{path}' declares a rotation that is not a multiple of 90 degrees, or a skew; only quarter turns and "
        "mirroring are applied."
    )


def upright_frame(frame: np.ndarray, turn: Turn) -> np.ndarray:
    """A frame of shape `(height, width, 3)` as it is shown."""
    if turn.transpose:
        frame = frame.swapaxes(0, 1)
    if turn.flip_rows:
        frame = frame[::-1]
    if turn.flip_columns:
        frame = frame[:, ::-1]
    return np.ascontiguousarray(frame)


@dataclass
class Mp4Header:
    """
    What is read of the first video track.

    Attributes:
        turn ([`Turn`]): How its frames are shown.
        matrix_at (`int`): Where its display matrix lies in the file.
        edits_at (`int`, *optional*): Where the type of its edit list lies.
        edits (`list[tuple[float, float]]`): Parts that are shown: start and length in seconds of the track; a length
            of 0 reaches to the end.
        first_time (`float`): Time of the first frame of the track, in seconds; edits count from 0.
    """

    turn: Turn
    matrix_at: int
    edits_at: int | None
    edits: list[tuple[float, float]]
    first_time: float

    def shown(self, times: np.ndarray) -> np.ndarray:
        """Which frames the edit list shows: bool, from their times in any count of seconds, in order."""
        if not self.edits:
            return np.ones(len(times), dtype=bool)
        start, length = self.edits[0]
        times = times - times[0] + self.first_time - start
        return (times > -TIME_TOLERANCE) & (times < (length - TIME_TOLERANCE if length else np.inf))

    def neutralised(self, path: str) -> bytearray:
        """The whole file with neither rotation nor edit list."""
        with open(path, "rb") as file:
            content = bytearray(file.read())
        content[self.matrix_at : self.matrix_at + 36] = IDENTITY_MATRIX
        if self.edits_at is not None:
            content[self.edits_at : self.edits_at + 4] = b"free"
        return content


def check_mp4(path: str) -> Mp4Header | None:
    """
    The header of the first video track; `None` for a file of another kind, or one that is too damaged to tell.

    Raises:
        ValueError: if the header counts more frames than the file has bytes. A decoder would reserve memory for them.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        if file.read(8)[4:] not in FIRST_BOXES:
            return None
        try:
            return _read_boxes(file, size)
        except struct.error:  # the file ends inside a box
            return None


def _read_boxes(file: BinaryIO, size: int) -> Mp4Header | None:
    movie_scale, track, found = 1, {}, None
    for kind, start, end in _boxes(file, 0, size):
        if kind == b"trak":
            found = found or _video_header(track, movie_scale)
            track = {}
        elif kind == b"mvhd":
            movie_scale = _time_scale(file, start)
        elif kind == b"mdhd":
            track["scale"] = _time_scale(file, start)
        elif kind == b"hdlr":
            # In QuickTime a second one, of the data, comes inside `minf`
            track.setdefault("kind", _unpack(file, start + 8, "4s")[0])
        elif kind == b"tkhd":
            track["matrix_at"] = start + (52 if _version(file, start) else 40)
            track["matrix"] = _unpack(file, track["matrix_at"], "9i")
        elif kind == b"edts":
            track["edits_at"] = start - 4
        elif kind == b"elst":
            track["edits"] = _edits(file, start)
        elif kind == b"ctts":
            track["offset"] = _unpack(file, start + 8, "Ii")[1]
        elif kind in (b"stts", b"stsz", b"trun") and track.get("kind") != b"soun":  # sound may have less than a byte
            _check_count(file, kind, start, end, size)
    return found or _video_header(track, movie_scale)


def _boxes(file: BinaryIO, start: int, end: int, depth: int = 0) -> Iterator[tuple[bytes, int, int]]:
    """Type, start and end of the body of every box, those inside containers after the container itself."""
    while start + 8 <= end:
        length, kind = _unpack(file, start, "I4s")
        body = start + 8
        if length == 1:
            (length,), body = _unpack(file, body, "Q"), body + 8
        stop = end if length == 0 else min(start + length, end)
        if stop < body:
            return
        yield kind, body, stop
        if kind in CONTAINERS and depth < MAX_DEPTH:
            yield from _boxes(file, body, stop, depth + 1)
        start = stop


def _unpack(file: BinaryIO, at: int, form: str) -> tuple:
    file.seek(at)
    return struct.unpack(f">{form}", file.read(struct.calcsize(f">{form}")))


def _version(file: BinaryIO, start: int) -> int:
    return _unpack(file, start, "B")[0]


def _time_scale(file: BinaryIO, start: int) -> int:
    return _unpack(file, start + (20 if _version(file, start) else 12), "I")[0] or 1


def _edits(file: BinaryIO, start: int) -> list[tuple[int, int]]:
    """Start, in units of the track, and length, in units of the movie, of each part; -1 starts a pause."""
    (count,), form = _unpack(file, start + 4, "I"), "QqI" if _version(file, start) else "IiI"
    step = struct.calcsize(f">{form}")
    entries = [_unpack(file, start + 8 + step * index, form) for index in range(min(count, MAX_EDITS))]
    return [(begin, length) for length, begin, _ in entries if begin >= 0]


def _check_count(file: BinaryIO, kind: bytes, start: int, end: int, size: int) -> None:
    if kind == b"stts":  # runs of equally long frames
        (runs,) = _unpack(file, start + 4, "I")
        file.seek(start + 8)
        table = file.read(min(8 * runs, max(0, end - start - 8)))
        count = int(np.frombuffer(table[: len(table) // 8 * 8], ">u4")[::2].sum(dtype=np.uint64))
    else:
        (count,) = _unpack(file, start + (8 if kind == b"stsz" else 4), "I")
    if count > size:
        raise ValueError(f"its header claims {count:,} frames in a file of {size:,} bytes")


def _video_header(track: dict, movie_scale: int) -> Mp4Header | None:
    if track.get("kind") != b"vide" or "matrix" not in track:
        return None
    scale = track.get("scale", 1)
    edits = [(begin / scale, length / movie_scale) for begin, length in track.get("edits", [])]
    first_time = track.get("offset", 0) / scale
    return Mp4Header(Turn.from_matrix(track["matrix"]), track["matrix_at"], track.get("edits_at"), edits, first_time)
