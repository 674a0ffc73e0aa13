"""Rendered samples -> the batch for training."""

from collections.abc import Sequence

import torch

from .rendering import Sample


IGNORED = -100


class SamaCollator:
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
        processor ([`SamaProcessor`]): Makes the tensors.
        with_memory (`bool`): Whether samples were rendered with `memory_frames`.
    """

    def __init__(self, processor, with_memory: bool = False):
        self.processor, self.with_memory = processor, with_memory

    def __call__(self, samples: Sequence[Sample | None]) -> dict:
        kept = [sample for sample in samples if sample is not None] or [blank_sample()]
        batch = self.processor.apply_chat_template(
            [sample.messages for sample in kept],
            add_generation_prompt=False,
            return_assistant_tokens_mask=True,
            turn_format=[sample.turn_format for sample in kept],
            frames=[sample.frame_choice for sample in kept],
        )
        answers = batch.pop("assistant_masks").bool()
        batch["labels"] = batch["input_ids"].masked_fill(~answers, IGNORED)
        size = self.processor.sam_image_size
        frames = [self.processor.sam_pixel_values(s.video[frame]) for s in kept for frame in s.frames]
        batch["sam_pixel_values"] = torch.stack(frames) if frames else torch.zeros(0, 3, size, size)
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
