"""Small frames and masks for the tests of everything that draws, and how a video file is read back."""

import av
import numpy as np


def grey_frame(height=60, width=80, value=100):
    return np.full((height, width, 3), value, dtype=np.uint8)


def square_mask(height=60, width=80, rows=slice(20, 40), columns=slice(30, 50)):
    mask = np.zeros((height, width), dtype=bool)
    mask[rows, columns] = True
    return mask


def read_video(path):
    """Frames, frame rate and codec context of a video file."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        return frames, stream.average_rate, stream.codec_context
