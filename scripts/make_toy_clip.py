"""Writes assets/toy_world.mp4, the generated clip of the demo, and its record with the exact masks beside it.

    python scripts/make_toy_clip.py

The clip is one that no training sees (split "val"), drawn large enough to look at. `assets/toy_world.jsonl` is a line
of JSON Lines, as docs/finetune.md has them, so the clip can be trained or evaluated on too.
"""

import argparse
import json
from pathlib import Path

from sama.overlay_sama import write_video
from sama.toy_world.world import ToyWorld


SIDE, FPS = 256, 8.0
SETTINGS = {
    "split": "val", "height": SIDE, "width": SIDE, "frames": [24, 24], "things": [4, 4], "tasks": {"dialogue": 1},
}  # fmt: skip
INDEX = 2409  # a ring moves right, a letter hides behind a heart, a red circle moves up; no colour comes twice


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).resolve().parent.parent / "assets" / "toy_world.mp4"
    parser.add_argument("--out", type=Path, default=default, help="file to write (default: %(default)s)")
    arguments = parser.parse_args()
    sample = ToyWorld(SETTINGS)[INDEX]
    path = write_video(arguments.out, sample.frames, FPS)
    record = sample.record | {"video": {"path": path.name}}
    path.with_suffix(".jsonl").write_text(json.dumps(record) + "\n", encoding="utf-8")
    print(f"{path}: {len(sample.frames)} frames, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
