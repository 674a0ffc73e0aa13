"""What a batch of conversations shows, points at and is to find: the model's arguments beside the text, in groups."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch

from .configuration_sama import PADDING_LABEL, TEXT_TOKEN


@dataclass
class SamaVisualInputs:
    """Everything a batch of conversations shows and points at; tensors of all conversations one after another.

    Args:
        pixel_values (`torch.Tensor`, such as of shape `(num_frames, 3, size, size)` for InternVL):
            Frames for the vision tower. In each conversation first its context frames (or tiles), then frames that
            only carry a region.
        num_context_frames, num_extra_frames (`torch.LongTensor` of shape `(batch_size,)`): the counts of both kinds.
        dense_frames (`torch.LongTensor` of shape `(num_dense_frames,)`):
            Rows of `pixel_values` whose tokens the language model sees in full, in reading order.
        qformer_input_ids, qformer_attention_mask (`torch.LongTensor` of shape `(num_questions, length)`):
            The questions as the temporal Q-Former reads them.
        question_samples (`torch.LongTensor` of shape `(num_questions,)`): the conversation of each question.
        region_masks (`torch.Tensor` of shape `(num_regions, mask_size, mask_size)`): binary masks, in reading order.
        region_grid_masks (`torch.Tensor` of shape `(num_regions, rows, columns)`):
            The same on the token grid of the region's frame; smaller grids are padded below and on the right.
        region_frames (`torch.LongTensor` of shape `(num_regions,)`): row of `pixel_values` that each region lies on.
        region_prompt_indices (`torch.LongTensor` of shape `(num_prompts,)`):
            Regions given as clicks or boxes: their rows of `region_masks`, which SAM 2 fills.
        region_prompt_points, region_prompt_labels (`torch.Tensor` of shape `(num_prompts, num_points, 2)` and
            `torch.LongTensor` of shape `(num_prompts, num_points)`): the clicks, in SAM 2's input pixels and labels.
        region_prompt_frames (`torch.LongTensor` of shape `(num_prompts,)`): rows of `region_prompt_pixel_values`.
        region_prompt_pixel_values (`torch.Tensor` of shape `(num_prompt_frames, 3, sam_size, sam_size)`)
        frame_grids (`torch.LongTensor` of shape `(batch_size, 2)`, *optional*):
            Rows and columns of the tokens of each frame of a conversation; without it, all frames have equally many.
        frame_features (`torch.Tensor` of shape `(num_frames, tokens_per_frame, width)`, *optional*):
            Takes the place of `pixel_values` when the frames were encoded before. Frames with fewer tokens than others
            are padded with zeros.
        deepstack_features (`torch.Tensor` of shape `(num_dense_frames, tokens_per_frame, num_levels, width)`,
        *optional*):
            The dense frames' deep-stack features, when the frames were encoded before and the backbone has any.
        spatial_tokens (`torch.Tensor` of shape `(num_context_frames, num_spatial_queries, qformer_width)`,
        *optional*):
            The context frames' summaries, when they were computed before.
        num_answers (`int`, *optional*):
            How many consecutive rows of `input_ids` (1 by default) share what one conversation shows, which is encoded
            once for all of them: several answers to one prompt.
    """

    pixel_values: torch.Tensor | None = None
    num_context_frames: torch.LongTensor | None = None
    num_extra_frames: torch.LongTensor | None = None
    dense_frames: torch.LongTensor | None = None
    qformer_input_ids: torch.LongTensor | None = None
    qformer_attention_mask: torch.LongTensor | None = None
    question_samples: torch.LongTensor | None = None
    region_masks: torch.Tensor | None = None
    region_grid_masks: torch.Tensor | None = None
    region_frames: torch.LongTensor | None = None
    region_prompt_indices: torch.LongTensor | None = None
    region_prompt_points: torch.Tensor | None = None
    region_prompt_labels: torch.LongTensor | None = None
    region_prompt_frames: torch.LongTensor | None = None
    region_prompt_pixel_values: torch.Tensor | None = None
    frame_grids: torch.LongTensor | None = None
    frame_features: torch.Tensor | None = None
    deepstack_features: torch.Tensor | None = None
    spatial_tokens: torch.Tensor | None = None
    num_answers: int | None = None

    def with_counts_on_cpu(self) -> "SamaVisualInputs":
        """The same with the counts and rows that shapes depend on in CPU memory: the GPU is waited for once."""
        names = ("num_context_frames", "num_extra_frames", "dense_frames", "frame_grids", "region_frames")
        return replace(self, **{name: value.cpu() for name in names if (value := vars(self)[name]) is not None})

    @property
    def grids(self) -> torch.Tensor | None:
        """Rows and columns of the tokens of each encoded frame, of shape `(num_frames, 2)`; None if all are alike."""
        if self.frame_grids is None or self.num_context_frames is None or self.num_extra_frames is None:
            return None
        frames = self.num_context_frames + self.num_extra_frames
        return self.frame_grids.cpu().repeat_interleave(frames.cpu(), 0)

    @property
    def dense_lengths(self) -> torch.Tensor | None:
        """Tokens of each dense frame, of shape `(num_dense_frames,)`; None if all have equally many."""
        return None if self.grids is None else self.grids.prod(1)[self.dense_frames.cpu()]


@dataclass
class SamaMaskTargets:
    """What the [SEG]s of a batch are to select, in training; F frames of all conversations one after another.

    Args:
        sam_pixel_values (`torch.Tensor` of shape `(num_frames, 3, sam_size, sam_size)`): the frames with targets.
        sam_frame_counts (`torch.LongTensor` of shape `(batch_size,)`): how many of them each conversation has.
        sam_prompted (`torch.BoolTensor` of shape `(num_frames,)`, *optional*):
            Frames that [SEG] prompts; the others are reached by propagation. Without it, all are prompted.
        target_masks (`list[torch.Tensor]`):
            For each conversation bool masks of shape `(num_objects, num_frames, height, width)`, an object for each
            [SEG] that has a label, at any size.
        point_seeds (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
            What decides at which points the masks of each conversation are compared, 0 by default.
    """

    sam_pixel_values: torch.Tensor | None = None
    sam_frame_counts: torch.LongTensor | None = None
    sam_prompted: torch.BoolTensor | None = None
    target_masks: list[torch.Tensor] | None = None
    point_seeds: torch.LongTensor | None = None

    def check(self, num_segs: list[int]) -> None:
        """Raises `ValueError` unless every conversation has a mask for each of its [SEG]s in each of its frames."""
        shapes = [tuple(masks.shape[:2]) for masks in self.target_masks]
        found = [(objects, frames if objects else 0) for objects, frames in shapes]
        wanted = [(segs, frames if segs else 0) for segs, frames in zip(num_segs, self.counts, strict=True)]
        if found != wanted or sum(self.counts) != len(self.sam_pixel_values):
            raise ValueError(
                f"Masks of (objects, frames) {found} for {wanted} in the text and `sam_frame_counts`, and "
                f"{len(self.sam_pixel_values)} frames for {sum(self.counts)} counted; was an answer cut?"
            )

    @property
    def counts(self) -> list[int]:
        """Frames of each conversation."""
        return self.sam_frame_counts.tolist()

    @property
    def need_memory(self) -> bool:
        """Whether some frame is reached by propagation."""
        return self.sam_prompted is not None and not self.sam_prompted.all()

    @property
    def prompted_frames(self) -> list[list[int]]:
        """For each conversation, which of its frames [SEG] prompts."""
        return [given.nonzero().flatten().tolist() for given in self.sam_prompted.split(self.counts)]


VISUAL_INPUT_NAMES = tuple(field.name for field in fields(SamaVisualInputs))


def check_answers(token_types: torch.Tensor, num_answers: int) -> None:
    """Raises `ValueError` unless `token_types` (B, L) has `num_answers` rows, all alike, for each conversation."""
    if num_answers == 1:
        return
    if num_answers < 1 or len(token_types) % num_answers:
        raise ValueError(f"`num_answers` is {num_answers}, but there are {len(token_types)} rows of `input_ids`.")
    if (token_types.unflatten(0, (-1, num_answers)) != token_types[::num_answers].unsqueeze(1)).any():
        raise ValueError(
            f"Of `num_answers={num_answers}` rows that share a conversation, some have other `mm_token_type_ids` than "
            "the first; are rows of one prompt consecutive?"
        )


def check_no_placeholders(token_types: torch.Tensor | None) -> None:
    """Raises `ValueError` for placeholders in `token_types` (B, L), for which there are no frames. A step of decoding,
    which would wait for the GPU, has none."""
    count = 0 if token_types is None or token_types.shape[1] < 2 else int((token_types != TEXT_TOKEN).sum())
    if count:
        raise ValueError(
            f"`mm_token_type_ids` marks {count} tokens as frames, context or regions, but 0 frames were given; "
            "`pixel_values` is missing."
        )


def unpadded(frames: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
    """Tokens (num_frames, P, ...) of frames one after another, of each its first `lengths`: (num_tokens, ...)."""
    if lengths is None or (lengths == frames.shape[1]).all():
        return frames.flatten(0, 1)
    return frames[(torch.arange(frames.shape[1]) < lengths.unsqueeze(1)).to(frames.device)]


def grid_cells(masks: torch.Tensor, grids: Sequence[Sequence[int]], length: int) -> torch.Tensor:
    """Masks (num_regions, height, width), each on the upper left of its own grid, in the order of the grid's tokens:
    (num_regions, length)."""
    cells = masks.new_zeros(len(masks), length)
    for row, mask, (height, width) in zip(cells, masks, grids, strict=True):
        row[: height * width] = mask[:height, :width].flatten()
    return cells


def context_rows(num_context: list[int], num_extra: list[int]) -> torch.Tensor:
    """Rows of the context frames among all encoded frames."""
    rows, first = [], 0
    for context, extra in zip(num_context, num_extra, strict=True):
        rows.append(torch.arange(first, first + context))
        first += context + extra
    return torch.cat(rows)


def questions_by_shape(shapes: torch.Tensor, question_samples: torch.Tensor) -> list[torch.Tensor]:
    """The questions about videos of one shape, given as (num_videos, 2): how many context frames of how many tokens;
    shortest videos first, each in reading order."""
    asked = shapes[question_samples]
    return [(asked == shape).all(1).nonzero().flatten() for shape in asked.unique(dim=0)]


def rows_by_length(labels: torch.Tensor) -> list[tuple[torch.Tensor, int]]:
    """Rows of point prompts with equally many points, and that number, of `labels` (num_prompts, num_points). The mask
    decoder attends to padding as to points, so only prompts of one length are decoded together."""
    lengths = (labels != PADDING_LABEL).sum(1)
    return [((lengths == length).nonzero().flatten(), length) for length in lengths.unique().tolist()]


def first_rows(lengths: torch.Tensor) -> torch.Tensor:
    """Where each of several sequences of the given `lengths` begins when they follow one another."""
    return lengths.cumsum(0) - lengths


def gather_spans(rows: torch.Tensor, starts: torch.Tensor, length: int) -> torch.Tensor:
    """`length` consecutive rows from each of V starts, (V, length, ...). A single span is not copied."""
    if len(starts) == 1:
        return rows[int(starts[0]) : int(starts[0]) + length].unsqueeze(0)
    return rows[(starts.unsqueeze(1) + torch.arange(length)).to(rows.device)]
