"""Our own model, or any checkpoint with [SEG], as the one that finds a phrase, and that proposes objects."""

import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from ..data.masks import to_rle
from ..data.wording import TEMPLATES
from .scenes import Scene, SceneObject


REQUEST = TEMPLATES["segment_video_bench"][0]
# Grounded captions are trained on images; models that read videos answer the same request about a video
PROPOSAL_REQUEST = TEMPLATES["caption_image"][0].replace("image", "video")
MAX_NEW_TOKENS = 64  # of an answer to a request for a mask
MAX_PROPOSAL_TOKENS = 512


class Locator(Protocol):
    """Finds objects by words."""

    def locate(self, video, phrases: Sequence[str]) -> Generator[np.ndarray, None, None]:
        """For each phrase the masks of what it names: bool, of shape `(num_frames, height, width)`. One after the
        other, since those of a long video take hundreds of megabytes; to be closed if not all are needed."""
        ...


class ModelLocator:
    """
    A [`SamaForConditionalGeneration`] as [`Locator`].

    Args:
        model, processor: As `serving.loading.load_model` returns them. They are used by one thread at a time, and
            never sample, whatever the generation config of the checkpoint says: the same video gives the same result.
    """

    def __init__(self, model: Any, processor: Any):
        self.model, self.processor, self._lock = model, processor, threading.Lock()

    def locate(self, video, phrases: Sequence[str]) -> Generator[np.ndarray, None, None]:
        """The objects of the answer to "Please segment {phrase}.", united; nothing found is an empty mask. The model
        is taken until the last phrase was looked for, or the generator is closed."""
        with self._lock:
            chat = self.model.start_chat(self.processor, video=video)
            for phrase in phrases:
                # Not in a variable, which would hold these masks while the next ones are made
                yield self._find(chat, video, phrase)
                chat.reset()  # every phrase is asked for as if it were the first

    def _find(self, chat: Any, video, phrase: str) -> np.ndarray:
        """Bool, of shape `(num_frames, height, width)`."""
        words = phrase[:1].lower() + phrase[1:]
        reply = chat.ask(REQUEST.format(words), max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        masks = np.zeros((len(video), video.height, video.width), dtype=bool)
        for one in reply.objects:
            masks |= one.masks
        return masks

    def propose(self, video, request: str = PROPOSAL_REQUEST) -> tuple[SceneObject, ...]:
        """
        The objects of a description of the video, with their phrases as expressions. They are numbered in the order of
        the description; `select_objects` drops the small and the repeated ones.
        """
        with self._lock:
            chat = self.model.start_chat(self.processor, video=video)
            reply = chat.ask(request, max_new_tokens=MAX_PROPOSAL_TOKENS, do_sample=False)
        objects = []
        for number, one in enumerate(reply.objects, start=1):
            codes = tuple(
                to_rle(one.track.to_rle(frame)) if one.track.area(frame) else None for frame in range(len(video))
            )
            expressions = (one.text,) if one.text else ()
            objects.append(SceneObject(str(number), codes, expressions))
        return tuple(objects)


def proposer(locator: ModelLocator, name: str, request: str | None) -> Callable[[Scene], Scene]:
    """A function that gives a scene the objects that a model finds in its video. `name` is the model's, for the
    provenance."""

    def propose(scene: Scene) -> Scene:
        info = {"mask_origin": name} | scene.info
        return replace(scene, objects=locator.propose(scene.open(), request or PROPOSAL_REQUEST), info=info)

    return propose
