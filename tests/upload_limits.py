"""The limits of a server's files in tests, small enough to be reached."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SmallLimits:
    upload_bytes: int = 2**20
    video_seconds: float = 60.0
    video_frames: int = 100
    frame_pixels: int = 2**16
    store_bytes: int = 2**22
    file_seconds: float = 1000.0
    fetch_seconds: float = 5.0
    redirects: int = 3
