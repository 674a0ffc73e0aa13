"""
An auto-annotation function for CVAT, in the form that its SDK and its command line document: `create` returns an
object with `spec` and `detect`.

    pip install cvat-cli
    cvat-cli task auto-annotate 12 --function-module sama.bulk.cvat_function \
        -p labels=str:dog,ball -p model=str:sama-1b
    cvat-cli task auto-annotate 12 --function-module sama.bulk.cvat_function \
        -p answers=str:outputs/predictions -p video=str:clips/a.mp4

The first form asks the model for each label on each picture of the task by itself. The second one gives the masks of
answers that were computed before, tracked through the whole video; pictures of the task are named by the number of
their frame: `frame_000012.jpg` or `00012.png`. Without `video`, answers about pictures are found by their names.
Labels are those of the task.
"""

import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from ..data.wording import TEMPLATES
from ..resources import SMALL_MODEL
from .answers import AnsweredVideo, decode, read_videos
from .exports.cvat import mask_points
from .exports.frames import joined, rings_of
from .pool import BulkError


QUESTION = TEMPLATES["segment_image_bench"][0]  # with {} for the label
NUMBER = re.compile(r"(\d+)(?:\.\w+)?$")


def create(
    labels: str = "",
    model: str = str(SMALL_MODEL),
    device: str = "auto",
    question: str = QUESTION,
    answers: str = "",
    video: str = "",
) -> "AskedFunction | StoredFunction":
    """
    The function.

    Args:
        labels (`str`): What is looked for, separated by commas.
        model (`str`): Checkpoint folder, or a name on the Hub.
        device (`str`): "auto", "cpu", "cuda" or "mps".
        question (`str`): What is asked for each label, which stands for `{}`.
        answers (`str`): Instead of labels and a model: folder of answers, or one of its files.
        video (`str`): Which of their videos the task shows. May be left out if there is one only, or pictures alone.

    Raises:
        BulkError: if CVAT's SDK is not installed, or the arguments do not fit each other.
    """
    if bool(answers) == bool(labels):
        raise BulkError("Give either labels, which a model is asked for, or answers and a video.")
    if answers:
        return StoredFunction(Path(answers), video)
    names = [label.strip() for label in labels.split(",") if label.strip()]
    if not names or len(names) != len(set(names)) or "{}" not in question:
        raise BulkError(f"Give different labels, got {labels!r}, and a question with {{}}, got {question!r}.")
    return AskedFunction(names, question, *_load(model, device))


def _load(model: str, device: str) -> tuple[Any, Any]:
    from ..serving.loading import load_model  # with torch, which answers need not

    return load_model(model, device=device)


def import_cvat() -> Any:
    """The auto-annotation module of CVAT's SDK; [`BulkError`] where it is not installed."""
    try:
        return import_module("cvat_sdk.auto_annotation")
    except ImportError as error:
        raise BulkError("CVAT's SDK is not installed. Run: pip install cvat-cli") from error


class _Function:
    """What both functions have in common: the labels, and shapes of masks."""

    def __init__(self, labels: list[str]):
        self.cvat, self.labels = import_cvat(), labels
        specs = [self.cvat.label_spec(name, number, type="mask") for number, name in enumerate(labels)]
        self.spec = self.cvat.DetectionFunctionSpec(labels=specs)

    def shapes(self, context: Any, label: str, mask: np.ndarray, score: float | None, group: int = 0) -> Iterator[Any]:
        """The shape of a mask: none if it is empty or less certain than CVAT was told to keep."""
        if not mask.any() or (score is not None and score < (context.conf_threshold or 0)):
            return
        number = self.labels.index(label)
        if context.conv_mask_to_poly:
            yield self.cvat.polygon(number, joined(rings_of(mask)).ravel().tolist(), group=group)
        else:
            yield self.cvat.mask(number, mask_points(mask), group=group)


class AskedFunction(_Function):
    """
    Asks a model for each label on each picture.

    Args:
        labels (`list[str]`)
        question (`str`): With `{}` for the label.
        model, processor: A checkpoint.
    """

    def __init__(self, labels: list[str], question: str, model: Any, processor: Any):
        super().__init__(labels)
        self.question, self.model, self.processor = question, model, processor

    def detect(self, context: Any, image: Image.Image) -> list[Any]:
        """The masks of everything found on a picture."""
        chat, shapes = self.model.start_chat(self.processor, image=image.convert("RGB")), []
        for label in self.labels:
            chat.reset()
            for found in chat.ask(self.question.replace("{}", label), do_sample=False).objects:
                if found.track is not None:
                    shapes += self.shapes(context, label, found.track[0], found.score)
        return shapes


class StoredFunction(_Function):
    """
    Gives the masks of answers about a video, or about pictures.

    Args:
        answers (`Path`): Folder of a run, or one of its Parquet files.
        video (`str`): Which video or picture; may be left out if there is one only, or if all are pictures, which are
            then found by their names.
    """

    def __init__(self, answers: Path, video: str):
        self.videos = [one for one in read_videos(answers) if video in ("", one.name)]
        if len(self.videos) != 1 and not (self.videos and all(one.is_image for one in self.videos)):
            count = len(self.videos)
            raise BulkError(f"{answers} has {count} videos {video!r}, name the one that the task shows.")
        for one in self.videos:
            one.check_whole("CVAT")
        super().__init__(list(dict.fromkeys(found.label for one in self.videos for found in one.objects)))

    def detect(self, context: Any, image: Image.Image) -> list[Any]:
        """The masks of the frame that a picture shows. [`BulkError`] if its name is neither that of a picture nor has
        the number of a frame, or its size is not that of the video."""
        video, index = self.frame_of(context.frame_name)
        if image.size != (video.width, video.height):
            raise BulkError(
                f"{context.frame_name!r} has {image.width} x {image.height} pixels, {video.name!r} {video.width} x "
                f"{video.height}: it is no frame of it."
            )
        shapes = []
        for one in (found for found in video.objects if index in found.masks):
            shapes += self.shapes(context, one.label, decode(video, one, index), one.score, one.number)
        return shapes

    def frame_of(self, name: str) -> tuple[AnsweredVideo, int]:
        """The video and the number of its frame, or the picture and 0, that a picture of the task shows."""
        first = self.videos[0]
        if first.is_image:
            return self._picture_of(name), 0
        number = NUMBER.search(name)
        if number is None or int(number[1]) >= first.num_frames:
            raise BulkError(
                f"{name!r} is not named by the number of a frame of {first.name!r}, 0 to {first.num_frames - 1}."
            )
        return first, int(number[1])

    def _picture_of(self, name: str) -> AnsweredVideo:
        # Which of the folders above a picture belong to its name depends on how it came into the task
        parts = PurePosixPath(name).parts
        lengths = [_common_ending(parts, PurePosixPath(one.name).parts) for one in self.videos]
        most = max(lengths)
        found = [one for one, length in zip(self.videos, lengths, strict=True) if length == most] if most else []
        if not found:
            raise BulkError(
                f"{name!r} is not among the {len(self.videos)} pictures with answers, the first of which is "
                f"{self.videos[0].name!r}: it was not asked about, or its questions failed."
            )
        if len(found) > 1:
            raise BulkError(
                f"{name!r} is the name of {len(found)} pictures with answers, such as {found[0].name!r} and "
                f"{found[1].name!r}; name the one that the task shows."
            )
        return found[0]


def _common_ending(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    """How many parts the shorter of two paths has if it is the end of the other one, else 0."""
    count = min(len(one), len(other))
    return count if one[len(one) - count :] == other[len(other) - count :] else 0
