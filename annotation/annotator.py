"""What is done about one video of a run, in a thread of its process or in an actor of a pool."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..data.frames import MEDIA_ERRORS
from ..data.json_text import without_surrogates
from ..data.records import describe_error
from .calls import ModelChoice, Replies
from .errors import RejectedRequestError, StopError, TransientError
from .held_out import HeldOut
from .locate import ModelLocator, proposer
from .render import Rendering
from .scenes import Scene
from .video import AnnotationSettings, VideoResult, annotate_video


LOST = "lost"  # class of an error row
LoadModel = Callable[[str, str], tuple[Any, Any]]  # from checkpoint and device to model and processor


@dataclass(frozen=True)
class Annotator:
    """
    Makes the records of a video that has none.

    Args:
        settings ([`AnnotationSettings`]): How.
        models (`dict[str, ModelChoice]`): "writer", "verifier", optionally "blind".
        answer (`Callable`): From a [`Question`] to its reply.
        locator ([`ModelLocator`], *optional*): Finds phrases again.
        held_out ([`HeldOut`], *optional*): Videos that must not be annotated.
        propose (`Callable`, *optional*): From a scene to the same scene with objects.
    """

    settings: AnnotationSettings
    models: Mapping[str, ModelChoice]
    answer: Replies
    locator: ModelLocator | None = None
    held_out: HeldOut | None = None
    propose: Callable[[Scene], Scene] | None = None

    def __call__(self, scene: Scene) -> tuple[VideoResult, Rendering]:
        """The result and the pictures; raises what [`annotate_video`] does."""
        if self.held_out is not None:
            self.held_out.check(scene)
        if self.propose is not None:
            scene = self.propose(scene)
        return annotate_video(scene, self.settings, self.answer, self.models, self.locator)


@dataclass(frozen=True)
class Checkpoints:
    """
    The models with [SEG] of a run.

    Args:
        relocate, propose (`str`, *optional*): Checkpoint folders or names on the Hub; may be the same one.
        request (`str`, *optional*): What the proposing model is asked.
        device (`str`): As `load_model` takes it.
    """

    relocate: str | None = None
    propose: str | None = None
    request: str | None = None
    device: str = "auto"

    def add_to(self, annotator: Annotator, load_model: LoadModel) -> Annotator:
        """The annotator with the models, which are loaded."""

        def load(checkpoint: str) -> ModelLocator:
            return ModelLocator(*load_model(checkpoint, self.device))

        locator = None if self.relocate is None else load(self.relocate)
        propose = None
        if self.propose is not None:
            finder = locator if locator is not None and self.propose == self.relocate else load(self.propose)
            propose = proposer(finder, self.propose, self.request)
        return replace(annotator, locator=locator, propose=propose)


def error_row(video: str, error: Exception) -> dict[str, str]:
    """The line of `errors.jsonl` about a video."""
    if not isinstance(error, MEDIA_ERRORS):
        return lost_row(video, describe_error(error))
    kinds = {TransientError: "transient", RejectedRequestError: "request", StopError: "stopped"}
    kind = next((name for one, name in kinds.items() if isinstance(error, one)), "data")
    return _row(video, kind, str(error))


def lost_row(video: str, problem: str) -> dict[str, str]:
    """The line about a video during which something went wrong that nobody foresaw, or the process ended."""
    return _row(video, LOST, problem)


def _row(video: str, kind: str, message: str) -> dict[str, str]:
    # An error may quote the name of a file
    return {"video": video, "class": kind, "message": without_surrogates(" ".join(message.split()))}
