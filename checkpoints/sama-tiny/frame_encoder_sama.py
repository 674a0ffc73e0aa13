"""The image encoder of the mask model on the frames of a video: frames that a track will ask for are decoded ahead of
it on a thread, and encoded several at a time."""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from functools import partial
from itertools import groupby, islice
from typing import Any, Protocol, runtime_checkable

import torch

from .pixels_sama import normalized_on_device, pixel_table
from .prefetch_sama import prefetch
from .tracking_sama import FrameFeatures, FrameRequest, TrackedFrame, tracking_passes


# Frames encoded at once. Small batches fill neither a GPU nor its queue; on a CPU a frame fills all cores.
BATCH_SIZES = {"cuda": 8}


@runtime_checkable
class ReadableFrames(Protocol):
    """What frames are recognised by that may be read on another thread: `SamFrames` of a processor. Not by their
    class: transformers loads the model and the processor of a checkpoint from separate copies of this file."""

    size: int
    mean: Sequence[float]
    std: Sequence[float]

    def read(self, index: int, raw: bool) -> tuple[torch.Tensor, list[str]]: ...

    def warn(self, messages: list[str]) -> None: ...


@runtime_checkable
class LooksAhead(Protocol):
    """What gives features sooner if it knows which frames come next: [`FrameEncoder`], [`SamFeatureStore`]."""

    def ahead(self, requests: Sequence[FrameRequest]) -> AbstractContextManager[Callable[[int], FrameFeatures]]: ...


class KeptFeatures(Protocol):
    """Features of frames that were encoded before: [`SamFeatureStore`]."""

    def find(self, request: FrameRequest) -> FrameFeatures | None: ...

    def writing(self) -> AbstractContextManager[Callable[[int, FrameFeatures], None]]: ...


class FrameEncoder:
    """
    Features of a video's frames: of one when it is called, of many by [`ahead`].

    Args:
        tracker ([`SamaMaskTracker`])
        frames (`Sequence`): frames of shape `(3, size, size)`, as `processor.sam_frames(video)` gives them; these are
            read on a thread, others where they are asked for.
        batch_size (`int`, *optional*): frames encoded at once by [`ahead`]; by default 8 on a GPU and 1 on a CPU.
    """

    def __init__(self, tracker: Any, frames: Sequence[torch.Tensor], batch_size: int | None = None):
        self.tracker, self.frames, self.batch_size = tracker, frames, batch_size

    @property
    def device(self) -> torch.device:
        """Where the image encoder computes."""
        return self.tracker.sam.no_memory_embedding.device

    def __call__(self, index: int) -> FrameFeatures:
        """Features of one frame for both decoders."""
        return self.encode([self.read(index)], FrameRequest(index))[0]

    def read(self, index: int) -> tuple[torch.Tensor, list[str]]:
        """A frame and what is to be warned about. Of a video, and for a GPU, it is as decoded, uint8 of shape
        `(height, width, 3)` in memory that a GPU copies from while it computes; else as [`encode_frames`] takes it."""
        if not isinstance(self.frames, ReadableFrames):
            return self.frames[index], []
        raw = self.device.type == "cuda"
        pixels, messages = self.frames.read(index, raw)
        return pixels.pin_memory() if raw else pixels, messages

    def encode(self, frames: Sequence[tuple[torch.Tensor, list[str]]], request: FrameRequest) -> list[FrameFeatures]:
        """Features of each of several frames from [`read`], for the decoders of a request."""
        if isinstance(self.frames, ReadableFrames):
            self.frames.warn([message for _, messages in frames for message in messages])
        pixels = [pixels for pixels, _ in frames]
        if pixels[0].dtype == torch.uint8 and isinstance(self.frames, ReadableFrames):
            table = torch.from_numpy(pixel_table(self.frames.mean, self.frames.std)).to(self.device)
            on_device = [one.to(self.device, non_blocking=True)[None] for one in pixels]
            # One by one: the float64 sums of several large frames would not fit
            values = torch.cat([normalized_on_device(one, self.frames.size, table) for one in on_device])
        else:
            values = torch.stack(pixels)
        return self.tracker.encode_frames(values, request.tuned, request.original).split()

    @contextmanager
    def ahead(
        self, requests: Sequence[FrameRequest], kept: KeptFeatures | None = None
    ) -> Iterator[Callable[[int], FrameFeatures]]:
        """
        A function from frame index to [`FrameFeatures`] that is called once for each of `requests`, in their order.
        Besides the frame that is used, a batch of features and a few frames of pixels are in memory. The end of the
        block ends the thread.

        Args:
            requests (`list[FrameRequest]`): as [`frame_requests`] gives them.
            kept (`KeptFeatures`, *optional*): frames that need not be encoded; the others are added to it.
        """
        writing = nullcontext() if kept is None else kept.writing()
        with writing as keep, closing(self._features(requests, kept, keep)) as features:

            def next_features(index: int) -> FrameFeatures:
                request, found = next(features, (None, None))
                if request is None or found is None or request.frame_index != index:
                    raise ValueError(f"Frame {index} is asked for, but the next of the requests is {request}.")
                return found

            yield next_features

    def _features(self, requests, kept, keep) -> Generator[tuple[FrameRequest, FrameFeatures], None, None]:
        size = self.batch_size or BATCH_SIZES.get(self.device.type, 1)
        find = partial(self._find, kept)
        threaded = isinstance(self.frames, ReadableFrames)
        found = prefetch(find, requests, size + 2) if threaded else (find(request) for request in requests)
        with closing(found):
            for _, group in groupby(requests, key=lambda request: (request.tuned, request.original)):
                while batch := list(islice(group, size)):
                    yield from self._batch(batch, found, keep)

    def _find(self, kept: KeptFeatures | None, request: FrameRequest) -> Any:
        """Kept features, or a frame that must be encoded."""
        features = None if kept is None else kept.find(request)
        return self.read(request.frame_index) if features is None else features

    def _batch(self, batch: list[FrameRequest], found: Iterator, keep) -> Iterator[tuple[FrameRequest, FrameFeatures]]:
        frames, error = [], None
        for _ in batch:
            try:
                frames.append(next(found))
            except Exception as problem:  # raised when its frame is asked for: those before it are tracked
                error = problem
                break
        new = [row for row, frame in enumerate(frames) if not isinstance(frame, FrameFeatures)]
        encoded = self.encode([frames[row] for row in new], batch[0]) if new else []
        for row in new:
            frames[row] = encoded.pop(0)
            if keep is not None:
                keep(batch[row].frame_index, frames[row])
        for request in batch[: len(frames)]:
            yield request, frames.pop(0)  # which nobody holds but whoever uses it
        if error is not None:
            raise error


def frame_requests(tracker: Any, num_frames: int, prompted_frames: Sequence[int]) -> list[FrameRequest]:
    """The frames that `tracker.track` will ask for with [SEG] prompts, in its order. Prompted frames, which are few,
    come with the levels of both decoders: users point at them, and clicks are read by the original one."""
    tuned = tracker.tracking_rules(clicked=False).tuned
    passes = tracking_passes(num_frames, prompted_frames, tracker.config.preset == "consistent")
    return [FrameRequest(index) for index in prompted_frames] + [
        FrameRequest(index, tuned, not tuned) for indices, _ in passes for index in indices
    ]


def track_ahead(
    tracker: Any,
    prompts: torch.Tensor,
    frames: Sequence[torch.Tensor] | Callable[[int], FrameFeatures],
    prompted_frames: Sequence[int],
    num_frames: int | None = None,
) -> Iterator[TrackedFrame]:
    """`tracker.track` with [SEG] prompts, whose frames are encoded ahead: a sequence of them always, features that a
    function gives if it [`LooksAhead`]."""
    features = frames if callable(frames) else FrameEncoder(tracker, frames)
    if num_frames is None:
        if callable(frames):
            raise ValueError("A function that gives the features of frames needs `num_frames`, which is None.")
        num_frames = len(frames)
    requests = frame_requests(tracker, num_frames, prompted_frames)
    ahead = features.ahead(requests) if isinstance(features, LooksAhead) else nullcontext(features)
    with ahead as frame_features:
        yield from tracker.track(prompts, num_frames, prompted_frames, frame_features)
