"""A video file and a folder of frames, with squares that move over them."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from sama.annotation.scenes import SceneObject
from sama.data.masks import encode_rle
from sama.overlay_sama import write_video


SIZE = (48, 64)


def moving(start: int, width: int = 12, frames: int = 6, hidden: tuple[int, ...] = ()) -> SceneObject:
    """A square that moves to the right by two pixels a frame."""
    codes = []
    for frame in range(frames):
        mask = np.zeros(SIZE, dtype=bool)
        mask[10 : 10 + width, start + 2 * frame : start + 2 * frame + width] = True
        codes.append(None if frame in hidden else encode_rle(mask))
    return SceneObject(str(start), tuple(codes))


def write_videos(folder: Path) -> Path:
    """A folder with a video file and a folder of frames, both of 6 frames."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, size=(6, *SIZE, 3), dtype=np.uint8)
    (folder / "folder").mkdir(parents=True)
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / "folder" / f"f{index + 7}.png")  # f7 ... f12
    write_video(folder / "clip.mp4", frames[:, ::-1], 10)
    return folder


def scene_line(path: str, **changes) -> str:
    masks = {"masks": list(moving(4).masks)}
    record = {"id": path, "source": "s", "video": {"path": path}, "objects": {"4": masks}}
    return json.dumps({**record, **changes}) + "\n"
