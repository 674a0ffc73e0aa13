"""From [SEG] states to masks through a video: our loop over SAM 2's submodules (specs: model.md section 8).

All objects of a video are tracked together, each frame is encoded once and released, and everything is differentiable.

Letters in shape comments: N frames, O objects, C SAM width (256), D memory width (64), S side of the input square,
h = w = S / 16 the side of the lowest feature level, 4h the side of the low-resolution masks, M pointers.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import nn
from torch.nn import functional as F
from transformers import Sam2VideoModel

from .configuration_sama import SamaConfig


NO_OBJECT_LOGIT = -1024.0  # SAM 2's mask logit for "this object is not in the frame"
NO_POINT_LABEL = -1


@dataclass
class FrameFeatures:
    """What SAM 2 sees of N frames: `image` (N, C, h, w), without memory, and two finer levels, (N, C / 8, 4h, 4w) and
    (N, C / 4, 2h, 2w), as each of the two mask decoders wants them."""

    image: torch.Tensor
    tuned: tuple[torch.Tensor, torch.Tensor]
    original: tuple[torch.Tensor, torch.Tensor]

    @classmethod
    def concatenate(cls, parts: Sequence["FrameFeatures"]) -> "FrameFeatures":
        """Features of all frames of `parts`."""
        tuned = tuple(torch.cat(levels) for levels in zip(*(part.tuned for part in parts), strict=True))
        original = tuple(torch.cat(levels) for levels in zip(*(part.original for part in parts), strict=True))
        return cls(torch.cat([part.image for part in parts]), tuned, original)

    def take(self, rows: torch.Tensor) -> "FrameFeatures":
        """The frames at `rows`, in that order, repeats allowed."""
        return FrameFeatures(
            self.image[rows], tuple(level[rows] for level in self.tuned), tuple(level[rows] for level in self.original)
        )


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
    does not depend on the length of the video."""

    def __init__(self, num_memories: int, num_pointers: int):
        self.num_memories, self.num_pointers = num_memories, num_pointers
        self.prompted: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.tracked: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def remember(self, frame_index: int, memory: torch.Tensor, pointer: torch.Tensor, prompted: bool) -> None:
        """Stores a memory (h * w, O, D) and pointer (O, C). Frames beyond reach of this one are forgotten, except
        those next to the first prompted frame, where tracking backwards will start."""
        if prompted:
            self.prompted[frame_index] = (memory, pointer)
            return
        self.tracked[frame_index] = (memory, pointer)
        start = min(self.prompted)
        self.tracked = {
            index: entry
            for index, entry in self.tracked.items()
            if abs(index - frame_index) < self.num_pointers or abs(index - start) < self.num_pointers
        }

    def memories(self, frame_index: int, step: int) -> list[tuple[int, torch.Tensor]]:
        """(distance in frames, memory): all prompted frames, which count as distance 0, then the tracked frames before
        this one, farthest first. `step` is 1 when tracking forwards, -1 backwards."""
        recent = [(distance, frame_index - step * distance) for distance in range(self.num_memories - 1, 0, -1)]
        return [(0, memory) for memory, _ in self.prompted.values()] + [
            (distance, self.tracked[index][0]) for distance, index in recent if index in self.tracked
        ]

    def pointers(self, frame_index: int, step: int) -> list[tuple[int, torch.Tensor]]:
        """(signed distance in frames, pointer) of the prompted frames already passed, then of the tracked ones,
        nearest first."""
        prompted = [((frame_index - index) * step, pointer) for index, (_, pointer) in self.prompted.items()]
        recent = [(distance, frame_index - step * distance) for distance in range(1, self.num_pointers)]
        return [(distance, pointer) for distance, pointer in prompted if distance >= 0] + [
            (distance, self.tracked[index][1]) for distance, index in recent if index in self.tracked
        ]


class SamaMaskTracker(nn.Module):
    """SAM 2 with a language prompt. Holds the tuned mask decoder (inside `sam`) and the original one for
    propagation."""

    def __init__(self, config: SamaConfig):
        super().__init__()
        self.config = config
        self.sam = Sam2VideoModel(config.mask_config)
        self.original_mask_decoder = type(self.sam.mask_decoder)(config.mask_config.mask_decoder_config)

    # ---- frames -----------------------------------------------------------------------------------------------------

    def encode_frames(self, sam_pixel_values: torch.Tensor) -> FrameFeatures:
        """SAM 2's image encoder on normalised frames of shape `(num_frames, 3, size, size)`."""
        reference = self.sam.no_memory_embedding
        pixels = sam_pixel_values.to(reference.device, reference.dtype)
        fine, middle, coarse = self.sam.vision_encoder(pixels).fpn_hidden_states
        tuned, original = self.sam.mask_decoder, self.original_mask_decoder
        return FrameFeatures(
            coarse, (tuned.conv_s0(fine), tuned.conv_s1(middle)), (original.conv_s0(fine), original.conv_s1(middle))
        )

    # ---- masks ------------------------------------------------------------------------------------------------------

    def embed_points(self, points: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Points (num_frames, num_objects, num_points, 2) in input pixels with labels 1 (on), 0 (off), 2 and 3
        (corners of a box), -1 (none), -10 (padding) to sparse prompts (num_frames, num_objects, num_points + 1,
        width)."""
        sparse, _ = self.sam.prompt_encoder(
            input_points=points.to(self.sam.no_memory_embedding.dtype),
            input_labels=labels,
            input_boxes=None,
            input_masks=None,
        )
        return sparse

    def embed_no_point(self, num_frames: int, num_objects: int) -> torch.Tensor:
        """SAM 2's prompt for "no point was given": (num_frames, num_objects, 2, width)."""
        device = self.sam.no_memory_embedding.device
        labels = torch.full((num_frames, num_objects, 1), NO_POINT_LABEL, dtype=torch.int32, device=device)
        return self.embed_points(torch.zeros(num_frames, num_objects, 1, 2, device=device), labels)

    def decode_masks(
        self, features: FrameFeatures, image: torch.Tensor, sparse_prompts: torch.Tensor, tuned: bool
    ) -> ObjectMasks:
        """Three candidate masks for each object in each frame; the one with the best predicted IoU is taken.

        Args:
            features ([`FrameFeatures`]): N frames, or one frame that all N share.
            image (`torch.Tensor` of shape `(num_frames, width, h, w)`): their lowest level, with memory.
            sparse_prompts (`torch.Tensor` of shape `(num_frames, num_objects, num_prompts, width)`)
            tuned (`bool`): whether the decoder tuned for [SEG] prompts decodes, or SAM 2's original.
        """
        sam, num_frames = self.sam, len(image)
        decoder, levels = (
            (sam.mask_decoder, features.tuned) if tuned else (self.original_mask_decoder, features.original)
        )
        masks, predicted_iou, tokens, object_score = decoder(
            image_embeddings=image,
            image_positional_embeddings=sam.get_image_wide_positional_embeddings().expand(num_frames, -1, -1, -1),
            sparse_prompt_embeddings=sparse_prompts,
            dense_prompt_embeddings=sam.prompt_encoder.no_mask_embed.weight[..., None, None].expand_as(image),
            multimask_output=True,
            high_resolution_features=[level.expand(num_frames, -1, -1, -1) for level in levels],
        )
        best = predicted_iou.argmax(-1)[..., None]  # (N, O, 1)
        token = tokens.take_along_dim(best[..., None], 2).squeeze(2)  # (N, O, C)
        present = (object_score > 0).to(token.dtype)  # (N, O, 1): a hard choice, as in SAM 2
        mask_logits = masks.take_along_dim(best[..., None, None], 2).squeeze(2)
        return ObjectMasks(
            mask_logits=mask_logits,
            predicted_iou=predicted_iou.take_along_dim(best, 2).squeeze(2),
            object_score=object_score.squeeze(2),
            object_pointer=present * sam.object_pointer_proj(token) + (1 - present) * sam.no_object_pointer,
            ungated_logits=mask_logits,
        )

    def segment_prompted(self, features: FrameFeatures, prompts: torch.Tensor) -> ObjectMasks:
        """Masks of O objects in N frames from their [SEG] prompts, (num_objects, width) for all frames or (num_frames,
        num_objects, width), each frame for itself: the verb that training and inference share."""
        num_frames, num_objects = len(features.image), prompts.shape[-2]
        no_point = self.embed_no_point(num_frames, num_objects)
        language = prompts.to(no_point).expand(num_frames, -1, -1).unsqueeze(2)
        return self.decode_masks(
            features, self.without_memory(features), torch.cat([no_point, language], 2), tuned=True
        )

    def segment_objects(self, features: FrameFeatures, prompts: torch.Tensor) -> ObjectMasks:
        """Masks of O objects from their [SEG] prompts (num_objects, width), (1, num_objects, ...): all in one frame,
        or, where features have a row for each object, each in a frame of its own."""
        if len(features.image) == 1:
            return self.segment_prompted(features, prompts)
        return self.segment_prompted(features, prompts.unsqueeze(1)).transpose()

    def segment_points(self, features: FrameFeatures, points: torch.Tensor, labels: torch.Tensor) -> ObjectMasks:
        """Masks of one object in each of N frames from clicks or boxes (see [`embed_points`]; points of shape
        (num_frames, num_points, 2), labels of shape (num_frames, num_points)), by SAM 2's original decoder."""
        sparse = self.embed_points(points.unsqueeze(1), labels.unsqueeze(1))
        return self.decode_masks(features, self.without_memory(features), sparse, tuned=False)

    def without_memory(self, features: FrameFeatures) -> torch.Tensor:
        """The lowest level of frames that remember nothing, (num_frames, width, h, w)."""
        return features.image + self.sam.no_memory_embedding.squeeze(0)[..., None, None]

    # ---- memory -----------------------------------------------------------------------------------------------------

    def encode_memory(self, features: FrameFeatures, masks: ObjectMasks) -> torch.Tensor:
        """Memory of O objects in one frame, of shape (h * w, num_objects, memory width). Mask probabilities go in as
        they are, never binarised."""
        sam, config = self.sam, self.config.mask_config
        size = [side * 4 for side in sam.prompt_encoder.mask_input_size]
        logits = F.interpolate(masks.mask_logits.float(), size, mode="bilinear", align_corners=False)  # (1, O, S, S)
        scaled = logits.sigmoid() * config.sigmoid_scale_for_mem_enc + config.sigmoid_bias_for_mem_enc
        num_objects = scaled.shape[1]
        image = features.image.expand(num_objects, -1, -1, -1)
        memory, _ = sam.memory_encoder(image, scaled.transpose(0, 1).to(image.dtype))  # (O, D, h, w)
        if sam.occlusion_spatial_embedding_parameter is not None:
            absent = (masks.object_score <= 0).to(memory.dtype).transpose(0, 1)  # (O, 1)
            memory = memory + (absent * sam.occlusion_spatial_embedding_parameter)[..., None, None]
        if self.config.round_memory_to_bfloat16:
            memory = memory.to(torch.bfloat16).to(image.dtype)
        return memory.flatten(2).permute(2, 0, 1)

    def memory_position(self) -> torch.Tensor:
        """Sine position of the cells of a memory, (h * w, 1, memory width): the same for every frame and object."""
        sam = self.sam
        shape = (1, self.config.mask_config.memory_encoder_output_channels, *sam.backbone_feature_sizes[-1])
        reference = sam.no_memory_embedding
        position = sam.memory_encoder.position_encoding(shape, reference.device, reference.dtype)
        return position.flatten(2).permute(2, 0, 1)

    def frame_position(self) -> torch.Tensor:
        """Sine position of the cells of a frame, (h * w, 1, width)."""
        sam = self.sam
        shape = (1, sam.hidden_dim, *sam.backbone_feature_sizes[-1])
        reference = sam.no_memory_embedding
        position = sam.vision_encoder.neck.position_encoding(shape, reference.device, reference.dtype)
        return position.flatten(2).permute(2, 0, 1)

    def pointer_tokens(
        self, pointers: list[tuple[int, torch.Tensor]], num_frames: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Pointers (O, C) cut into C / D memory tokens each, and their positions in time (SAM 2.1 only; zeros in
        2.0)."""
        sam, config = self.sam, self.config.mask_config
        tokens = torch.stack([pointer for _, pointer in pointers])  # (M, O, C)
        splits = tokens.shape[-1] // sam.mem_dim
        tokens = tokens.unflatten(-1, (splits, sam.mem_dim)).transpose(1, 2).flatten(0, 1)  # (M * C / D, O, D)
        if not config.enable_temporal_pos_encoding_for_object_pointers:
            return tokens, torch.zeros_like(tokens)
        limit = min(num_frames, config.max_object_pointers_in_encoder) - 1
        distances = torch.tensor([distance for distance, _ in pointers], device=tokens.device, dtype=torch.float32)
        encoding = sine_encoding(distances / limit, sam.hidden_dim).to(tokens.dtype)
        position = sam.temporal_positional_encoding_projection_layer(encoding).repeat_interleave(splits, 0)
        return tokens, position.unsqueeze(1).expand_as(tokens)

    def attend_memory(
        self, features: FrameFeatures, bank: SamaMemoryBank, frame_index: int, step: int, num_frames: int
    ) -> torch.Tensor:
        """One frame, seen by O objects in the light of what the bank remembers of each: (num_objects, width, h, w)."""
        sam = self.sam
        memories = bank.memories(frame_index, step)
        spatial, temporal = self.memory_position(), sam.memory_temporal_positional_encoding
        num_objects = memories[0][1].shape[1]
        # Row 0 of the temporal encoding is the frame just passed; the last row (index -1) is for prompted frames.
        positions = [(spatial + temporal[distance - 1]).expand(-1, num_objects, -1) for distance, _ in memories]
        tokens, num_pointer_tokens = [memory for _, memory in memories], 0
        if pointers := bank.pointers(frame_index, step):
            pointer_tokens, pointer_positions = self.pointer_tokens(pointers, num_frames)
            tokens, positions = tokens + [pointer_tokens], positions + [pointer_positions]
            num_pointer_tokens = len(pointer_tokens)
        image = features.image.flatten(2).permute(2, 0, 1)  # (h * w, 1, C)
        attended = sam.memory_attention(
            current_vision_features=image.expand(-1, num_objects, -1),
            current_vision_position_embeddings=self.frame_position().expand(-1, num_objects, -1),
            memory=torch.cat(tokens),
            memory_posision_embeddings=torch.cat(positions),
            num_object_pointer_tokens=num_pointer_tokens,
        )  # (1, O, h * w, C)
        attended = attended.squeeze(0).transpose(1, 2)
        return attended.unflatten(2, tuple(sam.backbone_feature_sizes[-1]))

    # ---- time -------------------------------------------------------------------------------------------------------

    def track(
        self,
        prompts: torch.Tensor,
        num_frames: int,
        prompted_frames: Sequence[int],
        frame_features: Callable[[int], FrameFeatures],
    ) -> Iterator[TrackedFrame]:
        """Tracks O objects through a video: prompted frames first, then forwards from the first of them to the end,
        then (unless the policy is `release`) backwards to the beginning.

        Args:
            prompts (`torch.Tensor` of shape `(num_objects, width)`): one prompt an object, from its [SEG] state.
            num_frames (`int`): length of the video.
            prompted_frames (`Sequence[int]`): frames in which [SEG] prompts the decoder, in increasing order.
            frame_features (`Callable`): frame index to the [`FrameFeatures`] of that one frame; asked once a frame.
                With a row for each object instead, objects of several videos of one length are tracked together.

        Yields:
            [`TrackedFrame`], in the order of processing.
        """
        if not prompted_frames or not 0 <= min(prompted_frames) <= max(prompted_frames) < num_frames:
            raise ValueError(
                f"Prompted frames {list(prompted_frames)} must be frames of a video of {num_frames} frames, at least "
                "one."
            )
        config = self.config.mask_config
        bank = SamaMemoryBank(config.num_maskmem, min(num_frames, config.max_object_pointers_in_encoder))
        for index in prompted_frames:
            features = frame_features(index)
            masks = self.segment_objects(features, prompts)
            bank.remember(index, self.encode_memory(features, masks), masks.object_pointer[0], prompted=True)
            yield tracked_frame(index, masks, prompted=True)
        start = min(prompted_frames)
        passes = [(range(start + 1, num_frames), 1)]
        if self.config.preset == "consistent":
            passes.append((range(start - 1, -1, -1), -1))
        for indices, step in passes:
            for index in indices:
                if index not in bank.prompted:
                    features = frame_features(index)
                    masks = self.propagate(features, bank, index, step, num_frames)
                    bank.remember(index, self.encode_memory(features, masks), masks.object_pointer[0], prompted=False)
                    yield tracked_frame(index, masks, prompted=False)

    def propagate(
        self, features: FrameFeatures, bank: SamaMemoryBank, frame_index: int, step: int, num_frames: int
    ) -> ObjectMasks:
        """Masks of O objects in one frame from memory alone; shapes as of one frame, (1, O, ...)."""
        image = self.attend_memory(features, bank, frame_index, step, num_frames)  # (O, C, h, w)
        release = self.config.preset == "published"
        # To the decoder every object is a frame of its own, since each remembers something else: (O, 1, ...).
        masks = self.decode_masks(features, image, self.embed_no_point(len(image), 1), tuned=release)
        mask_logits = masks.mask_logits
        if not release and self.config.occlusion_gate:
            mask_logits = mask_logits.where(masks.object_score[..., None, None] > 0, NO_OBJECT_LOGIT)
        return replace(masks, mask_logits=mask_logits).transpose()


def tracked_frame(frame_index: int, masks: ObjectMasks, prompted: bool) -> TrackedFrame:
    """The one frame of `masks`, with its index."""
    return TrackedFrame(
        frame_index,
        masks.mask_logits[0],
        masks.predicted_iou[0],
        masks.object_score[0],
        prompted,
        masks.ungated_logits[0],
    )


def sine_encoding(positions: torch.Tensor, size: int, temperature: float = 10000.0) -> torch.Tensor:
    """Sine and cosine encoding of M positions, (M, size): the one SAM 2.1 projects for its object pointers."""
    exponents = 2 * (torch.arange(size // 2, dtype=torch.float32, device=positions.device) // 2) / (size // 2)
    angles = positions[:, None] / temperature**exponents
    return torch.cat([angles.sin(), angles.cos()], -1)
