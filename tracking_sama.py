"""What the mask tracker hands on and remembers: features of frames, prompts, masks of objects, memories. And checks of
a mask model's configuration.

Letters in shape comments are those of `modeling_sama_tracker.py`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.sam2.modeling_sam2 import eager_attention_forward

from .modeling_sama_memory import ObjectMemory, SamaMemoryAttention


NO_OBJECT_LOGIT = -1024.0  # SAM 2's mask logit for "this object is not in the frame"
CERTAIN_LOGIT = 10.0  # of a pixel inside a mask that is given


@dataclass(frozen=True)
class FrameRequest:
    """A frame that a track will ask for, and the decoders whose finer levels it reads then: the one tuned for [SEG],
    the original one, or both."""

    frame_index: int
    tuned: bool = True
    original: bool = True


@dataclass
class FrameFeatures:
    """What the mask model sees of N frames: `image` (N, C, h, w), without memory, and two finer levels, (N, C / 8, 4h,
    4w) and (N, C / 4, 2h, 2w), as each of the two mask decoders wants them; no levels for a decoder that does not read
    these frames."""

    image: torch.Tensor
    tuned: tuple[torch.Tensor, ...]
    original: tuple[torch.Tensor, ...] = ()

    @classmethod
    def concatenate(cls, parts: Sequence["FrameFeatures"]) -> "FrameFeatures":
        """Features of all frames of `parts`."""
        if len(parts) == 1:
            return parts[0]
        tuned = tuple(torch.cat(levels) for levels in zip(*(part.tuned for part in parts), strict=True))
        original = tuple(torch.cat(levels) for levels in zip(*(part.original for part in parts), strict=True))
        return cls(torch.cat([part.image for part in parts]), tuned, original)

    def take(self, rows: torch.Tensor) -> "FrameFeatures":
        """The frames at `rows`, in that order, repeats allowed."""
        return self.map(lambda level: level[rows])

    def map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> "FrameFeatures":
        """The features after `function` was applied to each level."""
        levels = (tuple(map(function, each)) for each in (self.tuned, self.original))
        return FrameFeatures(function(self.image), *levels)

    def split(self) -> list["FrameFeatures"]:
        """The features of each frame by itself; copies, so that none holds the memory of the others."""
        if len(self.image) == 1:
            return [self]
        return [self.map(lambda level, row=row: level[row, None].clone()) for row in range(len(self.image))]

    @property
    def nbytes(self) -> int:
        """Bytes of all levels."""
        return sum(level.nbytes for level in (self.image, *self.tuned, *self.original))


@dataclass
class ObjectMasks:
    """Masks of O objects in N frames: `mask_logits` (N, O, 4h, 4w); `predicted_iou` and `object_score` (N, O), the
    second a logit; `object_pointer` (N, O, C), the token SAM 2 remembers an object by; `ungated_logits`, the mask
    logits before those of an absent object were emptied, which training compares: an emptied mask has no gradient."""

    mask_logits: torch.Tensor
    predicted_iou: torch.Tensor
    object_score: torch.Tensor
    object_pointer: torch.Tensor
    ungated_logits: torch.Tensor

    def transpose(self) -> "ObjectMasks":
        """Frames for objects and objects for frames."""
        return ObjectMasks(*(getattr(self, field.name).transpose(0, 1) for field in fields(self)))

    def of_frame(self, frame_index: int, prompted: bool, num_objects: int) -> "TrackedFrame":
        """The first objects in the one frame of these masks, with its index."""
        return TrackedFrame(
            frame_index,
            self.mask_logits[0, :num_objects],
            self.predicted_iou[0, :num_objects],
            self.object_score[0, :num_objects],
            prompted,
            self.ungated_logits[0, :num_objects],
        )

    def gated(self) -> "ObjectMasks":
        """The same with an empty mask where the object score says that the object is not in the frame."""
        present = self.object_score[..., None, None] > 0
        return replace(self, mask_logits=self.mask_logits.where(present, NO_OBJECT_LOGIT))


@dataclass
class PointPrompts:
    """Clicks and corners of boxes on O objects, in the place of [SEG] prompts: `points` (num_prompted_frames,
    num_objects, num_points, 2) in pixels of the input square, and `labels` (num_prompted_frames, num_objects,
    num_points), see [`SamaMaskTracker.embed_points`]."""

    points: torch.Tensor
    labels: torch.Tensor


def pad_objects(prompts: torch.Tensor | PointPrompts, num_objects: int) -> torch.Tensor | PointPrompts:
    """Prompts of that many objects, of which the last one is repeated as often as objects are missing."""
    clicked = isinstance(prompts, PointPrompts)
    given = prompts.points.shape[1] if clicked else len(prompts)
    rows = [min(number, given - 1) for number in range(num_objects)]
    return PointPrompts(prompts.points[:, rows], prompts.labels[:, rows]) if clicked else prompts[rows]


@dataclass(frozen=True)
class TrackingRules:
    """What a track does beyond the loop: whether the decoder tuned for [SEG] decodes tracked frames, too, whether
    absent objects have empty masks on prompted and on tracked frames, whether masks of prompted frames enter memory as
    0 and 1 (never in training: nothing would have a gradient) instead of as probabilities, and whether they are given
    to the original model as prompts."""

    tuned: bool
    gate_prompted: bool
    gate_tracked: bool
    binarize_prompted: bool
    prompt_with_masks: bool


@dataclass
class TrackedFrame:
    """One frame of a track: its index, mask logits of shape (num_objects, 4h, 4w), predicted IoU and object score
    logits of shape (num_objects,), whether it was prompted or reached by propagation, and the mask logits before those
    of absent objects were emptied."""

    frame_index: int
    mask_logits: torch.Tensor
    predicted_iou: torch.Tensor
    object_score: torch.Tensor
    prompted: bool
    ungated_logits: torch.Tensor


class SamaMemoryBank:
    """What the tracker remembers of O objects: every prompted frame, and the frames next to the current one. Its size
    does not depend on the length of the video.

    Args:
        num_memories (`int`): memories of tracked frames reach `num_memories - 1` frames back.
        num_pointers (`int`): pointers of tracked frames reach `num_pointers - 1` frames back.
        max_prompted (`int`, defaults to -1):
            How many prompted frames a frame attends to, -1 for all. With more, those that are nearest in time are
            selected, and the others count as tracked frames.
        keep_pointers (`bool`, defaults to `False`):
            Whether a prompted frame that is not selected keeps its pointer for good, as in transformers, instead of
            losing it beyond the reach of pointers, as in Meta's SAM 3. Without effect if all are selected.
    """

    def __init__(self, num_memories: int, num_pointers: int, max_prompted: int = -1, keep_pointers: bool = False):
        if max_prompted == 0:
            raise ValueError(
                "`mask_config.max_cond_frame_num` is 0, but a track starts from prompted frames; use -1 for all."
            )
        self.num_memories, self.num_pointers = num_memories, num_pointers
        self.max_prompted, self.keep_pointers = max_prompted, keep_pointers
        self.prompted: dict[int, tuple[ObjectMemory, torch.Tensor]] = {}
        self.tracked: dict[int, tuple[ObjectMemory | None, torch.Tensor]] = {}

    def remember(self, frame_index: int, memory: ObjectMemory, pointer: torch.Tensor, prompted: bool) -> None:
        """Stores a memory of O objects and their pointers (O, C). What is beyond reach of this frame is forgotten,
        except next to the first prompted frame, where tracking backwards will start. Pointers reach further back than
        memories, which are a thousand times as large."""
        if prompted:
            self.prompted[frame_index] = (memory, pointer)
            return
        self.tracked[frame_index] = (memory, pointer)
        start, tracked = min(self.prompted), {}
        for index, (own, token) in self.tracked.items():
            distance = min(abs(index - frame_index), abs(index - start))
            if distance < max(self.num_memories, self.num_pointers):
                tracked[index] = (own if distance < self.num_memories else None, token)
        self.tracked = tracked

    @property
    def key_bytes(self) -> int:
        """Bytes of all keys of memories that are kept."""
        entries = [*self.prompted.values(), *self.tracked.values()]
        return sum(memory.key_bytes for memory, _ in entries if memory is not None)

    def selected(self, frame_index: int) -> list[int]:
        """The prompted frames that this frame attends to: the nearest one on each side, then the nearest others."""
        if self.max_prompted < 0 or len(self.prompted) <= self.max_prompted:
            return list(self.prompted)
        before = [index for index in self.prompted if index < frame_index]
        after = [index for index in self.prompted if index >= frame_index]
        chosen = ([max(before)] if before else []) + ([min(after)] if after else [])
        others = sorted(set(self.prompted) - set(chosen), key=lambda index: (abs(index - frame_index), index))
        return (chosen + others)[: self.max_prompted]

    def recent(self, frame_index: int, step: int, reach: int, selected: list[int]) -> list[tuple[int, tuple]]:
        """(distance in frames, entry) of the frames less than `reach` before this one, nearest first, but for the
        `selected` ones."""
        others = self.tracked | {index: entry for index, entry in self.prompted.items() if index not in selected}
        before = [(distance, frame_index - step * distance) for distance in range(1, reach)]
        return [(distance, others[index]) for distance, index in before if index in others]

    def memories(self, frame_index: int, step: int) -> list[tuple[int, ObjectMemory]]:
        """(distance in frames, memory): the selected prompted frames, which count as distance 0, then the frames
        before this one, farthest first. `step` is 1 when tracking forwards, -1 backwards."""
        selected = self.selected(frame_index)
        recent = self.recent(frame_index, step, self.num_memories, selected)
        return [(0, self.prompted[index][0]) for index in selected] + [
            (distance, memory) for distance, (memory, _) in reversed(recent)
        ]

    def pointers(self, frame_index: int, step: int) -> list[tuple[int, torch.Tensor]]:
        """(signed distance in frames, pointer) of the prompted frames already passed, then of the tracked ones,
        nearest first."""
        selected = list(self.prompted) if self.keep_pointers else self.selected(frame_index)
        prompted = [((frame_index - index) * step, self.prompted[index][1]) for index in selected]
        recent = self.recent(frame_index, step, self.num_pointers, selected)
        return [(distance, pointer) for distance, pointer in prompted if distance >= 0] + [
            (distance, pointer) for distance, (_, pointer) in recent
        ]


@dataclass(frozen=True)
class TrackState:
    """What a track through a video of `num_frames` frames has at hand: its rules, what it remembers, the memory
    attention with what is computed once a track, and SAM 2's prompt for "no point was given", (1, 1, 2, width)."""

    num_frames: int
    rules: TrackingRules
    bank: SamaMemoryBank
    attention: SamaMemoryAttention
    no_point: torch.Tensor


def tracking_passes(num_frames: int, prompted_frames: Sequence[int], backwards: bool) -> list[tuple[list[int], int]]:
    """The frames that a track reaches from memory, in order, and its step: forwards from the first prompted frame to
    the end, then, with `backwards`, to the beginning.

    Raises:
        ValueError: if there are no prompted frames, or if they are not frames of the video.
    """
    if not prompted_frames or not 0 <= min(prompted_frames) <= max(prompted_frames) < num_frames:
        raise ValueError(
            f"Prompted frames {list(prompted_frames)} must be frames of a video of {num_frames} frames, at least one."
        )
    start, prompted = min(prompted_frames), set(prompted_frames)
    passes = [(range(start + 1, num_frames), 1)] + ([(range(start - 1, -1, -1), -1)] if backwards else [])
    return [([index for index in indices if index not in prompted], step) for indices, step in passes]


def check_sizes(mask_config: Any, step: int) -> None:
    """Raises `ValueError` unless the image size is a multiple of `step` pixels and the other sizes follow from it.
    Nothing in transformers compares them, and nothing computes them but in SAM 3."""
    size, prompts = mask_config.image_size, mask_config.prompt_encoder_config
    sizes = (size, step, prompts.patch_size)
    if not all(isinstance(each, int) and each > 0 for each in sizes) or size % step:
        raise ValueError(
            f"`mask_config.image_size` is {size}, but the positions of this {mask_config.model_type} need a multiple "
            f"of {step} pixels."
        )
    cells = size // prompts.patch_size
    wanted = {
        "prompt_encoder_config.image_size": (prompts.image_size, size),
        "vision_config.backbone_feature_sizes": (
            [list(level) for level in mask_config.vision_config.backbone_feature_sizes],
            [[scale * cells] * 2 for scale in (4, 2, 1)],
        ),
        "memory_attention_rope_feat_sizes": (list(mask_config.memory_attention_rope_feat_sizes), [cells] * 2),
        "memory_encoder_output_channels": (mask_config.memory_encoder_output_channels, 64),  # fixed in transformers
    }
    for name, (found, needed) in wanted.items():
        if found != needed:
            raise ValueError(
                f"`mask_config.{name}` is {found}, but a {mask_config.model_type} for images of {size} pixels in "
                f"patches of {prompts.patch_size} needs {needed}."
            )


def check_resampler(mask_config: Any) -> None:
    """Raises `ValueError` unless EdgeTAM's resampler has queries for the whole frame, and one for each window of a
    grid that divides the lowest feature level."""
    whole, windows = mask_config.perceiver_resampler_num_latents, mask_config.perceiver_resampler_num_latents_2d
    cells = mask_config.image_size // mask_config.prompt_encoder_config.patch_size
    sizes, side = list(mask_config.memory_attention_rope_k_sizes), math.isqrt(max(windows, 0))
    if whole < 1 or side < 1 or side**2 != windows or sizes != [side, side] or cells % side:
        raise ValueError(
            f"The `mask_config` has {whole} and {windows} queries (`perceiver_resampler_num_latents` and `_2d`) and "
            f"`memory_attention_rope_k_sizes` {sizes}; it needs one or more, and one for each window of a square grid "
            f"of these sides that divides {cells}x{cells} cells."
        )


class NoPositionEncoding(nn.Module):
    """Takes the place of the position encoding in the neck of an image encoder, which computes sines for each pixel of
    each level and frame: the tracker reads the positions of the lowest level alone, the same for all frames."""

    def forward(self, shape: torch.Size, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(0, device=device, dtype=dtype)


class HieraAttention(nn.Module):
    """Takes the place of the attention in a block of Hiera. The library's module also multiplies the heads of each
    cell with one another and takes a softmax, which nothing reads: a sixth of the encoder's time on a CPU.

    Args:
        attention (`nn.Module`): the library's module, whose parameters are used.
    """

    is_causal = False

    def __init__(self, attention: Any):
        super().__init__()
        self.qkv, self.proj, self.config = attention.qkv, attention.proj, attention.config
        self.num_attention_heads, self.query_stride = attention.num_attention_heads, attention.query_stride
        self.scaling = attention.scale

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        """Cells (B, h, w, width) after attention, (B, h', w', width'); where a stage begins, queries are pooled."""
        query, key, value = self.qkv(hidden_states).chunk(3, -1)
        if self.query_stride:
            query = F.max_pool2d(query.movedim(-1, 1), self.query_stride).movedim(1, -1)
        size = query.shape[1:3]
        heads = (part.flatten(1, 2).unflatten(-1, (self.num_attention_heads, -1)) for part in (query, key, value))
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        inputs = (part.transpose(1, 2) for part in heads)
        attended, _ = attend(self, *inputs, attention_mask=None, is_causal=False, scaling=self.scaling, **kwargs)
        return self.proj(attended.flatten(2).unflatten(1, size))


def certain_masks(
    mask_logits: torch.Tensor, size: int, low_size: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks of O objects in one frame, logits (1, O, 4h, 4w), as given masks: which pixels of the input
    square are inside, float 0 and 1 of shape (O, 1, size, size), and logits of +-10 of shape (O, 1, *low_size)."""
    logits = F.interpolate(mask_logits.float(), (size, size), mode="bilinear", align_corners=False)
    inside = (logits > 0).float().transpose(0, 1)
    certain = 2 * CERTAIN_LOGIT * inside - CERTAIN_LOGIT
    return inside, F.interpolate(certain, low_size, mode="bilinear", align_corners=False, antialias=True)


def resampled(resampler: Any, side: int, memory: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """What EdgeTAM's resampler makes of a memory (O, D, h, w) with the `position` of its cells: tokens (O, queries,
    D), of which some read the whole frame and the others one window each of `side` x `side`. The resampler's own
    forward takes one object at a time."""
    frames, position = memory.flatten(2).mT, position.to(memory.dtype).flatten(2).mT  # (O, h * w, D)
    windows = memory.unflatten(3, (side, -1)).unflatten(2, (side, -1)).permute(0, 2, 4, 3, 5, 1)
    windows = windows.flatten(0, 2).flatten(1, 2)  # (O * side * side, cells of a window, D)
    global_queries = resampler.latents_1d.expand(len(memory), -1, -1)
    window_queries = resampler.latents_2d.repeat(len(memory), 1).unsqueeze(1)  # (O * side * side, 1, D)
    for layer in resampler.layers:
        global_queries = layer(global_queries, frames, position)
        window_queries = layer(window_queries, windows)
    queries = torch.cat([global_queries, window_queries.view(len(memory), -1, memory.shape[1])], 1)
    return resampler.layer_norm(queries)
