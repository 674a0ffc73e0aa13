"""The limits of a server in tests, small enough to be reached."""

from functools import partial

from sama.serving.limits import Limits


SmallLimits = partial(
    Limits,
    upload_bytes=2**20,
    video_seconds=60.0,
    video_frames=100,
    frame_pixels=2**16,
    store_bytes=2**22,
    file_seconds=1000.0,
    fetch_seconds=5.0,
)
