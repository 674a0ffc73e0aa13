"""Rendered samples -> the batch for training."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch

from .frames import MEDIA_ERRORS
from .records import DataError
from .rendering import Sample


IGNORED = -100


class Collator(ABC):
    """
    Collates samples whose videos may turn out to be broken when their frames are decoded, which happens here.

    Args:
        processor ([`SamaProcessor`]): Makes the tensors.
        leave_out (`Callable`, *optional*): Called with a sample that cannot be collated and its error; the batch has
            the others. Default: raise [`DataError`]. See [`Mixture.leave_out`].
    """

    def __init__(self, processor, leave_out: Callable[[Sample, Exception], None] | None = None):
        self.processor, self.leave_out = processor, leave_out or refuse

    def __call__(self, samples: Sequence[Sample | None]) -> dict:
        kept = [sample for sample in samples if sample is not None]
        try:
            return self.collate(kept, len(samples))
        except MEDIA_ERRORS:
            whole = [sample for sample in kept if self.is_whole(sample)]
            if len(whole) == len(kept):  # none of the samples is the cause
                raise
            return self.collate(whole, len(samples))

    def is_whole(self, sample: Sample) -> bool:
        """Whether a sample can be collated alone; if not, it is left out."""
        try:
            self.collate([sample], 1)
        except MEDIA_ERRORS as error:
            self.leave_out(sample, error)
            return False
        return True

    @abstractmethod
    def collate(self, samples: Sequence[Sample], size: int) -> dict:
        """The batch of these samples, which may be none; the others of `size` were left out."""


def broken_sample(sample: Sample, error: Exception) -> DataError:
    """The error of a sample whose video broke when it was decoded."""
    if isinstance(error, DataError):
        return error
    return DataError(str(error).rstrip("."), source=sample.source, index=sample.id)


def refuse(sample: Sample, error: Exception) -> None:
    """Raises the error of a sample as [`DataError`]."""
    raise broken_sample(sample, error) from error


class SamaCollator(Collator):
    """
    Collates samples into one batch. Its keys are those of `SamaProcessor.apply_chat_template` and these, which are
    always present:

        labels            (B, L): ids of the answers and their end marks, -100 everywhere else
        sam_pixel_values  (N, 3, S, S): the frames with targets, of all samples one after another
        sam_frame_counts  (B,): number of these frames of each sample; 0 without [SEG]
        target_masks      list of B bool tensors (O_b, T_b, H_b, W_b): one object for each [SEG], in the order of the
                          text; T_b is sam_frame_counts[b]; (0, 0, 0, 0) without [SEG]
        point_seeds       (B,): seeds of the points at which the masks of each sample are compared
        sam_prompted      (N,) bool, with memory only: True for frames that [SEG] prompts, False for those that masks
                          are propagated to

    Skipped samples (`None`) are left out. A batch without any other sample holds a question without an answer, which
    has no labels and no masks, so that every process of a run has a batch.

    Args:
        processor, leave_out: As in [`Collator`].
        with_memory (`bool`): Whether samples were rendered with `memory_frames`.
    """

    def __init__(
        self, processor, with_memory: bool = False, leave_out: Callable[[Sample, Exception], None] | None = None
    ):
        super().__init__(processor, leave_out)
        self.with_memory = with_memory

    def collate(self, samples: Sequence[Sample], size: int) -> dict:
        kept = list(samples) or [blank_sample()]
        batch = self.processor.apply_chat_template(
            [sample.messages for sample in kept],
            add_generation_prompt=False,
            return_assistant_tokens_mask=True,
            turn_format=[sample.turn_format for sample in kept],
            frames=[sample.frame_choice for sample in kept],
        )
        answers = batch.pop("assistant_masks").bool()
        batch["labels"] = batch["input_ids"].masked_fill(~answers, IGNORED)
        side = self.processor.sam_image_size
        frames = [self.processor.sam_pixel_values(s.video[frame]) for s in kept for frame in s.frames]
        batch["sam_pixel_values"] = torch.stack(frames) if frames else torch.zeros(0, 3, side, side)
        batch["sam_frame_counts"] = torch.tensor([len(sample.frames) for sample in kept])
        batch["target_masks"] = [torch.from_numpy(sample.targets) for sample in kept]
        batch["point_seeds"] = torch.tensor([sample.point_seed for sample in kept])
        if self.with_memory:
            prompted = [frame in sample.prompted for sample in kept for frame in sample.frames]
            batch["sam_prompted"] = torch.tensor(prompted, dtype=torch.bool)
        return batch


def blank_sample() -> Sample:
    """A question without an answer: nothing is learned from it."""
    return Sample("", "", [{"role": "user", "content": [{"type": "text", "text": "."}]}])
