"""FiftyOne, by its own package: a data set of videos (or one of pictures) with instance masks on each frame, in the
form `FiftyOneDataset`, which `fiftyone.Dataset.from_dir` reads."""

from importlib import import_module
from pathlib import Path
from typing import Any

from ...pictures_sama import IMAGE_SUFFIXES
from ..answers import AnsweredVideo, decode
from ..pool import BulkError
from .frames import FrameWriter, Videos


FIELD = "objects"


def import_fiftyone() -> Any:
    """The package; [`BulkError`] where it is not installed."""
    try:
        return import_module("fiftyone")
    except ImportError as error:
        raise BulkError("FiftyOne is not installed. Run: pip install fiftyone") from error


def write_fiftyone(videos: Videos, to: Path, frames: FrameWriter) -> dict[str, int]:
    """Writes the data set, which names the media where they are; returns what was written, counted."""
    fiftyone = import_fiftyone()
    counts = {"videos": 0, "frames": 0, "masks": 0}
    try:
        dataset = fiftyone.Dataset()
    except fiftyone.core.config.FiftyOneConfigError as error:
        raise BulkError(f"FiftyOne has no database: {' '.join(str(error).split())}") from error
    try:
        kinds: set[str] = set()
        for video in videos():
            kinds.add("pictures" if Path(video.name).suffix.lower() in IMAGE_SUFFIXES else "videos")
            if len(kinds) > 1:
                raise BulkError("A data set of FiftyOne has videos or pictures, not both: export them apart.")
            dataset.add_sample(sample_of(fiftyone, video, frames, counts))
        dataset.export(export_dir=str(to), dataset_type=fiftyone.types.FiftyOneDataset, export_media=False)
    finally:
        dataset.delete()
    return counts


def sample_of(fiftyone: Any, video: AnsweredVideo, frames: FrameWriter, counts: dict[str, int]) -> Any:
    """
    The sample of a video or picture, with its objects. `counts` is increased by what it holds.

    Raises:
        BulkError: for some frames of a video, and without the folder of the media.
        DataError: if the file lies outside that folder.
    """
    video.check_whole("FiftyOne")
    if not video.is_image and Path(video.name).suffix.lower() in IMAGE_SUFFIXES:
        raise BulkError(f"{video.name!r} is an animated picture, which FiftyOne reads as a still.")
    counts["videos"] += 1
    sample = fiftyone.Sample(filepath=str(frames.path(video).resolve()))
    for index, found in video.by_frame():
        detections = [
            fiftyone.Detection.from_mask(
                decode(video, one, index), label=one.label, index=one.number, confidence=one.score, phrase=one.phrase
            )
            for one in found
        ]
        counts["frames"] += 1
        counts["masks"] += len(detections)
        if video.is_image:
            sample[FIELD] = fiftyone.Detections(detections=detections)
        else:  # FiftyOne counts frames from 1
            sample.frames[index + 1] = fiftyone.Frame(**{FIELD: fiftyone.Detections(detections=detections)})
    return sample
