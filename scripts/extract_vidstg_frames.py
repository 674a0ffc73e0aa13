"""
Extracts the frames of VidSTG's videos that SAMA-239K and SAMA-Bench use: 0, 4, 8, ... at their original size.

    python scripts/extract_vidstg_frames.py VIDEOS ANNOTATIONS OUTPUT [--workers 8]

VIDEOS contains <id>.mp4, ANNOTATIONS <id>.json; videos without annotation are skipped. Frame i is written to
OUTPUT/<id>/frame_<i>.jpg. A folder appears only when complete, and existing folders are skipped. A video that ends
early or has damaged frames fails: download it again.
"""

import argparse
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from PIL import Image

from sama.data.files import atomic_path
from sama.data.frames import ANNOTATED_STRIDE
from sama.video_readers_sama import FileFrames, open_reader
from sama.video_sama import SamaVideo


JPEG_QUALITY = 95  # OpenCV's default, which the release used


def extract(video: Path, output: Path) -> int:
    """
    Writes the frames of one video; returns their number, or 0 if the folder exists.

    Raises:
        ValueError: If the file ends early, or a frame cannot be decoded whole.
    """
    folder = output / video.stem
    if folder.exists():
        return 0
    reader = open_reader(str(video))
    if reader.declared > reader.length:
        raise ValueError(f"only {reader.length} of its {reader.declared} frames can be decoded; download it again")
    frames = SamaVideo(FileFrames(str(video), reader))
    indices = range(0, len(frames), ANNOTATED_STRIDE)
    with atomic_path(folder) as temporary:
        temporary.mkdir(exist_ok=True)
        for index in indices:
            Image.fromarray(frames[index]).save(temporary / f"frame_{index}.jpg", quality=JPEG_QUALITY)
        if damaged := frames.damaged_frames:
            raise ValueError(f"{len(damaged)} frames are damaged, first {damaged[0]}; download it again")
    return len(indices)


def attempt(video: Path, output: Path) -> tuple[str, int, str]:
    """Name, number of frames and error message of one video, so that a broken file does not stop the others."""
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
    if arguments.workers < 1:
        parser.error(f"--workers is {arguments.workers}, expected 1 or more")
    for folder in (arguments.videos, arguments.annotations):
        if not folder.is_dir():
            parser.error(f"there is no folder {folder}")
    found = sorted(arguments.videos.glob("[!.]*.mp4"))
    if not found:
        parser.error(f"{arguments.videos} holds no .mp4 file")
    videos = [video for video in found if (arguments.annotations / f"{video.stem}.json").is_file()]
    print(f"{len(videos)} of {len(found)} videos have annotations")
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
