"""
Cuts VidSTG's videos into the frames that SAMA-239K and SAMA-Bench are indexed by: 0, 4, 8, ... at their own size.

    python scripts/extract_vidstg_frames.py VIDEOS ANNOTATIONS OUTPUT [--workers 8]

VIDEOS holds <id>.mp4, ANNOTATIONS <id>.json; a video without annotation is left out. Frame i is written as
OUTPUT/<id>/frame_<i>.jpg. A folder that is there already is finished and is not made again.
"""

import argparse
import shutil
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from PIL import Image

from sama.data.frames import ANNOTATED_STRIDE
from sama.video_sama import SamaVideo


JPEG_QUALITY = 95  # what OpenCV, with which the release wrote its frames, takes by default


def extract(video: Path, output: Path) -> int:
    """Write the frames of one video and return their number; 0 if they are there already."""
    folder = output / video.stem
    if folder.exists():
        return 0
    # Under another name until it is complete, so that a run that was stopped leaves nothing that looks finished
    unfinished = output / f".{video.stem}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    frames = SamaVideo.open(video)
    indices = range(0, len(frames), ANNOTATED_STRIDE)
    for index in indices:
        Image.fromarray(frames[index]).save(unfinished / f"frame_{index}.jpg", quality=JPEG_QUALITY)
    unfinished.rename(folder)
    return len(indices)


def attempt(video: Path, output: Path) -> tuple[str, int, str]:
    """Name, number of frames and error of one video: one bad file does not end the others."""
    try:
        return video.stem, extract(video, output), ""
    except (OSError, ValueError) as error:
        return video.stem, 0, str(error)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", type=Path)
    parser.add_argument("annotations", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--workers", type=int, default=8)
    arguments = parser.parse_args()
    found = sorted(arguments.videos.glob("*.mp4"))
    videos = [video for video in found if (arguments.annotations / f"{video.stem}.json").is_file()]
    print(f"{len(videos)} of {len(found)} videos have an annotation")
    failed = written = 0
    with ProcessPoolExecutor(arguments.workers) as pool:
        results = pool.map(partial(attempt, output=arguments.output), videos)
        for number, (name, frames, error) in enumerate(results, start=1):
            written += frames
            failed += bool(error)
            if error:
                print(f"{name}: {error}")
            elif number % 100 == 0:
                print(f"{number} of {len(videos)} videos")
    print(f"{written} frames written to {arguments.output}, {failed} videos failed")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
