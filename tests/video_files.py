"""Small video files with what phones and editors put into them: display matrices, edit lists, sound, uneven times."""

import struct
from fractions import Fraction

import av
import numpy as np


# Rows of a display matrix, as (a, b, c, d): the point (x, y) is shown at (a x + c y, b x + d y). Clockwise.
ROTATIONS = {0: (1, 0, 0, 1), 90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}


def quarters(index=0, height=48, width=80):
    """A frame with red, green, blue and grey quarters and a white bar that grows from frame to frame."""
    frame = np.full((height, width, 3), 90, np.uint8)
    frame[: height // 2, : width // 2] = (200, 30, 30)
    frame[: height // 2, width // 2 :] = (30, 200, 30)
    frame[height // 2 :, : width // 2] = (30, 30, 200)
    frame[-8:, : 8 + 4 * index] = 240
    return frame


def write_clip(path, num_frames=6, times=None, pixel_aspect=None, sound=None, options=None, keyframes=4, codec=None):
    """A file of `quarters` at 8 frames a second, or at `times` in seconds, in H.264 or another codec; `sound` is a
    codec and a rate."""
    with av.open(str(path), "w", options=options or {}) as container:
        settings = {"x264-params": f"keyint={keyframes}:bframes=2"}
        if codec:
            settings = {"g": str(keyframes), "keyint_min": "0"}
        stream = container.add_stream(codec or "libx264", rate=8, options=settings)
        stream.width, stream.height, stream.pix_fmt = 80, 48, "yuv420p"
        stream.codec_context.time_base = time_base = Fraction(1, 1000 if times else 8)
        if pixel_aspect:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        audio = container.add_stream(sound[0], rate=sound[1], layout="mono") if sound else None
        for index in range(num_frames):
            frame = av.VideoFrame.from_ndarray(quarters(index), format="rgb24")
            frame.pts, frame.time_base = round(times[index] * 1000) if times else index, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if audio:
            write_tone(container, audio, sound[1], num_frames / 8)
    return str(path)


def write_growing(path, num_frames, step):
    """An MPEG-TS file of frames of 96x64 pixels, then as many of 64x96, whose grey goes up by `step`; the path."""
    with open(path, "wb") as joined:
        for height, width in ((64, 96), (96, 64)):
            part = path.with_name(f"{height}.ts")
            with av.open(str(part), "w", format="mpegts") as container:
                stream = container.add_stream("libx264", rate=10)
                stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
                for value in range(num_frames):
                    grey = np.full((height, width, 3), step * value, dtype=np.uint8)
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
                container.mux(stream.encode())
            joined.write(part.read_bytes())
    return path


def write_tone(container, stream, rate, seconds):
    samples = (8000 * np.sin(np.arange(round(rate * seconds)) * 2 * np.pi * 440 / rate)).astype(np.int16)
    frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
    frame.rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
    for one in (frame, None):
        for resampled in av.AudioResampler(stream.format, "mono", rate).resample(one) if one else [None]:
            container.mux(stream.encode(resampled))


def patch(source, target, box, offset, form, *values):
    """A copy of an MP4 file with other numbers in the first box of a type, `offset` bytes after its name."""
    content = bytearray(open(source, "rb").read())
    start = content.index(box) + 4 + offset
    content[start : start + struct.calcsize(f">{form}")] = struct.pack(f">{form}", *values)
    with open(target, "wb") as file:
        file.write(content)
    return str(target)


def turn(source, target, degrees, mirrored):
    """A copy that is shown turned clockwise, and mirrored left to right before that."""
    a, b, c, d = (value * 65536 for value in ROTATIONS[degrees])
    if mirrored:
        a, b = -a, -b
    return patch(source, target, b"tkhd", 40, "9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)


def shown(frame, degrees, mirrored):
    """What `turn` makes a player show of a frame."""
    return np.rot90(frame[:, ::-1] if mirrored else frame, -degrees // 90)


def damage(source, target, number):
    """A copy in which the data of packet `number`, in order of decoding, is overwritten; returns its frame number."""
    with av.open(str(source)) as container:
        packets = [(packet.pts, packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    time, position, size = packets[number]
    content = bytearray(open(source, "rb").read())
    content[position : position + size] = b"\xff" * size
    with open(target, "wb") as file:
        file.write(content)
    return sorted(pts for pts, _, _ in packets).index(time)


def cut(source, target, seconds, length=None):
    """A copy whose edit list starts `seconds` later and shows `length` seconds; the packets stay."""
    content = bytearray(open(source, "rb").read())
    at = content.index(b"elst") + 12
    duration, start = struct.unpack(">Ii", content[at : at + 8])
    with av.open(str(source)) as container:
        scale = container.streams.video[0].time_base.denominator
    shown_for = round(length * 1000) if length else duration - round(seconds * 1000)
    return patch(source, target, b"elst", 8, "Ii", shown_for, start + round(seconds * scale))
