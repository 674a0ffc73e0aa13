"""From [SEG] states to masks through a video: our loop over the submodules of a video mask model of transformers.

The loop is SAM 2's (specs: model.md section 8). What other mask models do differently is in one class for each at the
end of this file; [`build_mask_tracker`] chooses it by `mask_config.model_type`. All objects of a video are tracked
together, each frame is encoded once and released, and everything is differentiable.

Letters in shape comments: N frames, O objects, C SAM width (256), D memory width (64), S side of the input square,
h = w = S / 16 (SAM 3: S / 14) the side of the lowest feature level, 4h the side of the low-resolution masks, M
pointers.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel

from .checkpointing_sama import FRAMES_AT_ONCE, is_trained
from .configuration_sama import IMAGENET_MEAN, IMAGENET_STD, SamaConfig
from .modeling_sama_memory import (
    MAX_KEY_BYTES,
    EdgeTamMemoryAttention,
    MemoryPool,
    SamaMemoryAttention,
    pointer_tokens,
)
from .tracking_sama import (
    CERTAIN_LOGIT,
    FrameFeatures,
    HieraAttention,
    NoPositionEncoding,
    ObjectMasks,
    PointPrompts,
    SamaMemoryBank,
    TrackedFrame,
    TrackingRules,
    TrackState,
    certain_masks,
    check_resampler,
    check_sizes,
    pad_objects,
    resampled,
    tracking_passes,
)


NO_POINT_LABEL = -1


class SamaMaskTracker(nn.Module):
    """SAM 2 with a language prompt. Holds the tuned mask decoder (inside `sam`) and the original one for propagation.
    Subclasses override what other mask models do differently.

    Raises:
        ValueError: if the sizes in `mask_config` do not fit each other.
    """

    image_mean, image_std = IMAGENET_MEAN, IMAGENET_STD
    memory_attention_class = SamaMemoryAttention

    def __init__(self, config: SamaConfig):
        super().__init__()
        self.config, self.mask_config = config, config.mask_config
        self.check_config(self.mask_config)
        self.max_key_bytes = MAX_KEY_BYTES
        self.compile_options: dict[str, Any] | None = None
        self.sam = AutoModel.from_config(self.mask_config)
        self.memory_pool()  # raises for a size that does not fit
        neck = self.sam.vision_encoder.neck
        self.position_encoding, neck.position_encoding = neck.position_encoding, NoPositionEncoding()
        if self.mask_config.vision_config.backbone_config.model_type == "sam2_hiera_det_model":
            for block in self.sam.vision_encoder.backbone.blocks:
                block.attn = HieraAttention(block.attn)
        self.original_mask_decoder = type(self.sam.mask_decoder)(self.mask_config.mask_decoder_config)

    @classmethod
    def check_config(cls, mask_config: Any) -> None:
        """Raises `ValueError` if sizes do not fit each other."""
        check_sizes(mask_config, cls.size_step(mask_config))

    @staticmethod
    def size_step(mask_config: Any) -> int:
        """What the image size must be a multiple of: the pixels of one cell of Hiera's lowest level, and those of one
        window of its position embedding, which is repeated as a whole."""
        backbone = mask_config.vision_config.backbone_config
        if backbone.model_type != "sam2_hiera_det_model":
            return 32
        windows, stride = backbone.window_size_per_stage, backbone.patch_stride[0]
        return math.lcm(stride * 2 ** (len(windows) - 1), stride * windows[0])

    def tracking_rules(self, clicked: bool) -> TrackingRules:
        """The rules for [SEG] prompts, or for clicks, with which every mask model tracks as in transformers."""
        published, gate = self.config.preset == "published" and not clicked, self.config.occlusion_gate
        masked = self.config.prompted_memory == "masks" and not (published or clicked or self.training)
        return TrackingRules(
            tuned=published,
            gate_prompted=clicked and gate,
            gate_tracked=gate and not published,
            binarize_prompted=clicked or (masked and self.config.memory_rules == "transformers"),
            prompt_with_masks=masked,
        )

    def compile_parts(self, **options) -> None:
        """Compiles the image encoder, the memory encoder, the memory attention and both mask decoders.

        From then on the number of objects is filled up to a power of two, so that few numbers are compiled. The number
        of memories is a dynamic dimension: attention with a mask for missing memories would be slower.

        Args:
            options: of `torch.compile`, without CUDA graphs: features outlive the next call.
        """
        self.compile_options = options
        for part in (
            self.sam.vision_encoder,
            self.sam.memory_encoder,
            self.sam.mask_decoder,
            self.original_mask_decoder,
        ):
            part.compile(**options)

    # ---- frames -----------------------------------------------------------------------------------------------------

    def encode_frames(
        self, sam_pixel_values: torch.Tensor, tuned: bool = True, original: bool = True
    ) -> FrameFeatures:
        """The image encoder on normalised frames of shape `(num_frames, 3, size, size)`; in training a frozen one
        without a graph and [`FRAMES_AT_ONCE`] frames at a time. `tuned` and `original` say for which of the two
        decoders the finer levels are computed.

        Raises:
            ValueError: if the frames have another size than `mask_config.image_size`.
        """
        reference, size = self.sam.no_memory_embedding, self.mask_config.image_size
        if sam_pixel_values.shape[-2:] != (size, size):
            height, width = sam_pixel_values.shape[-2:]
            raise ValueError(
                f"Frames of {width}x{height} pixels do not fit the mask model, which is made for {size}x{size}; were "
                "they prepared by the processor of another checkpoint?"
            )
        pixels = sam_pixel_values.to(reference.device, reference.dtype)
        if not self.training or is_trained(self.sam.vision_encoder.parameters()):
            return self.encode_pixels(pixels, tuned, original, torch.is_grad_enabled())
        chunks = pixels.split(FRAMES_AT_ONCE)
        return FrameFeatures.concatenate([self.encode_pixels(chunk, tuned, original, False) for chunk in chunks])

    def encode_pixels(self, pixels: torch.Tensor, tuned: bool, original: bool, with_graph: bool) -> FrameFeatures:
        """[`encode_frames`] at once. `with_graph`: whether the encoder keeps what its gradients need."""
        with torch.set_grad_enabled(with_graph):
            # From high to low resolution. SAM 3 has a fourth level, which its tracker does not use.
            fine, middle, coarse = self.sam.vision_encoder(pixels).fpn_hidden_states[:3]
        decoders = ((self.sam.mask_decoder, tuned), (self.original_mask_decoder, original))
        levels = [(decoder.conv_s0(fine), decoder.conv_s1(middle)) if reads else () for decoder, reads in decoders]
        return FrameFeatures(coarse, *levels)

    # ---- masks ------------------------------------------------------------------------------------------------------

    def embed_points(self, points: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Points (num_frames, num_objects, num_points, 2) in input pixels with labels 1 (on), 0 (off), 2 and 3
        (corners of a box), -1 (none), -10 (padding) to sparse prompts (num_frames, num_objects, num_points + 1,
        width)."""
        sparse, _ = self.sam.prompt_encoder(
            input_points=points.float(),  # cast to the model's dtype once scaled; bfloat16 would round pixels
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
        self,
        features: FrameFeatures,
        image: torch.Tensor,
        sparse_prompts: torch.Tensor,
        tuned: bool,
        multimask: bool = True,
        dense_prompts: torch.Tensor | None = None,
    ) -> ObjectMasks:
        """Masks from prompts.

        Args:
            features ([`FrameFeatures`]): N frames, or one frame that all N share.
            image (`torch.Tensor` of shape `(num_frames, width, h, w)`): their lowest level, with memory.
            sparse_prompts (`torch.Tensor` of shape `(num_frames, num_objects, num_prompts, width)`)
            tuned (`bool`): whether the decoder tuned for [SEG] prompts decodes, or the original one.
            multimask (`bool`, defaults to `True`):
                Three candidate masks for each object in each frame, of which the one with the best predicted IoU is
                taken; or one mask, which the decoder itself replaces by a candidate where it is not stable.
            dense_prompts (`torch.Tensor` of shape `(num_frames, width, h, w)`, *optional*): embedded masks.
        """
        sam, num_frames = self.sam, len(image)
        if dense_prompts is None:
            dense_prompts = sam.prompt_encoder.no_mask_embed.weight[..., None, None].expand_as(image)
        decoder, levels = (
            (sam.mask_decoder, features.tuned) if tuned else (self.original_mask_decoder, features.original)
        )
        if not levels:
            name = "tuned" if tuned else "original"
            raise ValueError(f"The frames were encoded without the levels that the {name} mask decoder reads.")
        masks, predicted_iou, tokens, object_score = decoder(
            image_embeddings=image,
            image_positional_embeddings=sam.get_image_wide_positional_embeddings().expand(num_frames, -1, -1, -1),
            sparse_prompt_embeddings=sparse_prompts,
            dense_prompt_embeddings=dense_prompts,
            multimask_output=multimask,
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
        (num_frames, num_points, 2), labels of shape (num_frames, num_points)), by the original decoder."""
        sparse = self.embed_points(points.unsqueeze(1), labels.unsqueeze(1))
        return self.decode_masks(features, self.without_memory(features), sparse, tuned=False)

    def segment_prompts(
        self, features: FrameFeatures, prompts: torch.Tensor | PointPrompts, position: int
    ) -> ObjectMasks:
        """Masks of O objects, (1, num_objects, ...), in the prompted frame at this `position` among them."""
        if not isinstance(prompts, PointPrompts):
            return self.segment_objects(features, prompts)
        points, labels = prompts.points[position, None], prompts.labels[position, None]
        multimask = self.takes_candidates(labels.shape[-1], tracking=False)
        image = self.without_memory(features)
        return self.decode_masks(features, image, self.embed_points(points, labels), tuned=False, multimask=multimask)

    def prompt_with_masks(self, features: FrameFeatures, masks: ObjectMasks) -> ObjectMasks:
        """The masks of O objects in one frame, (1, num_objects, ...), as if the original model had been prompted with
        them: inside and outside are certain, and the pointer is that of its own decoder on the mask. So the prompted
        frames fit the memory, which the tuned decoder never saw in training (Sa2VA-i; specs: sa2va.md section 7).
        Sa2VA-i draws the outline at the video's size, here it is drawn at that of the input square."""
        sam, side = self.sam, tuple(self.sam.prompt_encoder.mask_input_size)
        inside, low = certain_masks(masks.mask_logits, self.mask_config.image_size, side)
        inside = inside.to(features.image.dtype)
        drawn = sam.mask_downsample(inside).float()
        drawn = F.interpolate(drawn, side, mode="bilinear", align_corners=False, antialias=True).to(inside.dtype)
        image = features.image.expand(len(inside), -1, -1, -1)  # a mask prompt is decoded without memory embedding
        decoded = self.decode_masks(
            features,
            image,
            self.embed_no_point(len(inside), 1),
            tuned=False,
            multimask=self.config.memory_rules == "transformers",
            dense_prompts=sam.prompt_encoder.mask_embed(drawn),
        ).transpose()
        present = inside.flatten(1).any(1)[None]  # (1, O)
        pointer = decoded.object_pointer.where(present[..., None], sam.no_object_pointer)
        score, low = CERTAIN_LOGIT * (2 * present.to(low.dtype) - 1), low.transpose(0, 1).to(masks.mask_logits.dtype)
        return replace(masks, mask_logits=low, object_score=score, object_pointer=pointer)

    def takes_candidates(self, num_points: int, tracking: bool) -> bool:
        """Whether the mask model was trained to choose among three candidate masks, given so many points."""
        config = self.mask_config
        return (
            config.multimask_output_in_sam
            and (config.multimask_output_for_tracking or not tracking)
            and config.multimask_min_pt_num <= num_points <= config.multimask_max_pt_num
        )

    def without_memory(self, features: FrameFeatures) -> torch.Tensor:
        """The lowest level of frames that remember nothing, (num_frames, width, h, w)."""
        return features.image + self.sam.no_memory_embedding.squeeze(0)[..., None, None]

    # ---- memory -----------------------------------------------------------------------------------------------------

    def encode_memory(self, features: FrameFeatures, masks: ObjectMasks, binarize: bool = False) -> torch.Tensor:
        """Memory of O objects in one frame, of shape (num_objects, tokens, memory width).

        Args:
            features ([`FrameFeatures`]): of the one frame, or of one frame an object.
            masks ([`ObjectMasks`]): shapes as of one frame, (1, num_objects, ...).
            binarize (`bool`, defaults to `False`):
                Whether masks enter as 0 and 1 instead of as probabilities; not in training.
        """
        sam = self.sam
        scaled = self.memory_masks(masks.mask_logits, binarize).transpose(0, 1)  # (O, 1, 16h, 16w)
        # One frame is projected once for all objects
        memory, position = sam.memory_encoder(features.image, scaled.to(features.image.dtype))  # (O, D, h, w)
        if sam.occlusion_spatial_embedding_parameter is not None:
            absent = (masks.object_score <= 0).to(memory.dtype).transpose(0, 1)  # (O, 1)
            memory = memory + (absent * sam.occlusion_spatial_embedding_parameter)[..., None, None]
        tokens = self.memory_tokens(memory, position)
        return tokens.to(torch.bfloat16).to(tokens.dtype) if self.config.round_memory_to_bfloat16 else tokens

    def memory_masks(self, mask_logits: torch.Tensor, binarize: bool) -> torch.Tensor:
        """Mask logits (1, O, 4h, 4w) to what the memory encoder reads, (1, O, 16h, 16w): scaled probabilities at 16
        times the resolution of the lowest level. That is the input's own resolution but for SAM 3: 1152 for 1008.
        Meta's code resizes last; transformers resizes the logits, which moves the outline of a mask."""

        def resized(masks: torch.Tensor) -> torch.Tensor:
            if masks.shape[-2:] == size:
                return masks
            return F.interpolate(masks, size, mode="bilinear", align_corners=False, antialias=True)

        config, size = self.mask_config, tuple(4 * side for side in self.sam.prompt_encoder.mask_input_size)
        square = (config.image_size, config.image_size)
        logits = F.interpolate(mask_logits.float(), square, mode="bilinear", align_corners=False)
        if self.config.memory_rules == "transformers":
            logits = resized(logits)
        masks = (logits > 0).to(logits.dtype) if binarize and not self.training else logits.sigmoid()
        return resized(masks * config.sigmoid_scale_for_mem_enc + config.sigmoid_bias_for_mem_enc)

    def memory_tokens(self, memory: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """A memory (O, D, h, w), with the `position` of its cells, as tokens (O, tokens, D): here, its cells."""
        return memory.flatten(2).mT

    def memory_position(self) -> torch.Tensor:
        """Sine position of the tokens of a memory, (tokens, D): the same for every frame and object."""
        return self.sine_position(self.sam.memory_encoder.position_encoding, self.sam.mem_dim)

    def frame_position(self) -> torch.Tensor:
        """Sine position of the cells of a frame, (h * w, width)."""
        return self.sine_position(self.position_encoding, self.sam.hidden_dim)

    def sine_position(self, encoding: Any, width: int) -> torch.Tensor:
        """What a position `encoding` of the library gives for the lowest level, (h * w, width)."""
        reference = self.sam.no_memory_embedding
        shape = (1, width, *self.sam.backbone_feature_sizes[-1])
        return encoding(shape, reference.device, reference.dtype)[0].flatten(1).mT

    def attend_memory(self, features: FrameFeatures, state: TrackState, frame_index: int, step: int) -> torch.Tensor:
        """One frame, seen by O objects conditioned on what the bank remembers of each: (num_objects, width, h, w)."""
        pointers = pointer_tokens(self.sam, state.bank.pointers(frame_index, step), state.num_frames)
        image = features.image.flatten(2).mT  # (1, h * w, C), or a row for each object
        attended = state.attention(image, state.bank.memories(frame_index, step), *pointers)  # (O, h * w, C)
        return attended.mT.unflatten(2, tuple(self.sam.backbone_feature_sizes[-1]))

    # ---- time -------------------------------------------------------------------------------------------------------

    def memory_pool(self) -> MemoryPool | None:
        """What makes memories smaller, or None.

        Raises:
            ValueError: see [`MemoryPool.of_size`].
        """
        return MemoryPool.of_size(self.config.memory_pool, *self.sam.backbone_feature_sizes[-1])

    def start_track(self, num_frames: int, clicked: bool = False) -> TrackState:
        """The state of a track through a video of `num_frames` frames, which remembers nothing yet. `clicked`: whether
        clicks start it instead of [SEG] prompts."""
        config = self.mask_config
        bank = SamaMemoryBank(
            config.num_maskmem,
            min(num_frames, config.max_object_pointers_in_encoder),
            config.max_cond_frame_num,
            keep_pointers=self.config.memory_rules == "transformers",
        )
        attention = self.memory_attention_class(
            self.sam,
            self.frame_position(),
            self.memory_position(),
            pool=self.memory_pool(),
            max_key_bytes=self.max_key_bytes,
            compile_options=self.compile_options,
        )
        return TrackState(num_frames, self.tracking_rules(clicked), bank, attention, self.embed_no_point(1, 1))

    def remember(
        self, state: TrackState, frame_index: int, features: FrameFeatures, masks: ObjectMasks, prompted: bool
    ) -> None:
        """Adds what a frame shows of O objects to the memory of a track; shapes as of one frame, (1, O, ...)."""
        tokens = self.encode_memory(features, masks, prompted and state.rules.binarize_prompted)
        memory = state.attention.remember(tokens, masks.mask_logits, state.bank.key_bytes)
        state.bank.remember(frame_index, memory, masks.object_pointer[0], prompted)

    def track(
        self,
        prompts: torch.Tensor | PointPrompts,
        num_frames: int,
        prompted_frames: Sequence[int],
        frame_features: Callable[[int], FrameFeatures],
    ) -> Iterator[TrackedFrame]:
        """Tracks O objects through a video: prompted frames first, then forwards from the first of them to the end,
        then (unless the preset is `published`) backwards to the beginning.

        Args:
            prompts (`torch.Tensor` of shape `(num_objects, width)` or [`PointPrompts`]):
                One prompt an object for all prompted frames, from its [SEG] state; or clicks in each prompted frame,
                with which the mask model tracks as without a language model: by its original decoder alone.
            num_frames (`int`): length of the video.
            prompted_frames (`Sequence[int]`): frames in which the prompts hold, in increasing order.
            frame_features (`Callable`): frame index to the [`FrameFeatures`] of that one frame; asked once a frame.
                With a row for each object instead, objects of several videos of one length are tracked together;
                not by compiled parts.

        Yields:
            [`TrackedFrame`], in the order of processing.
        """
        passes = tracking_passes(num_frames, prompted_frames, self.config.preset == "consistent")
        num_objects = prompts.points.shape[1] if isinstance(prompts, PointPrompts) else len(prompts)
        if self.compile_options is not None and not self.training:
            prompts = pad_objects(prompts, 2 ** (num_objects - 1).bit_length())
        state = self.start_track(num_frames, clicked=isinstance(prompts, PointPrompts))
        rules = state.rules
        for position, index in enumerate(prompted_frames):
            features = frame_features(index)
            masks = self.segment_prompts(features, prompts, position)
            masks = masks.gated() if rules.gate_prompted else masks
            kept = self.prompt_with_masks(features, masks) if rules.prompt_with_masks else masks
            self.remember(state, index, features, kept, prompted=True)
            yield masks.of_frame(index, True, num_objects)
        for indices, step in passes:
            for index in indices:
                features = frame_features(index)
                masks = self.propagate(features, state, index, step)
                self.remember(state, index, features, masks, prompted=False)
                yield masks.of_frame(index, False, num_objects)

    def propagate(self, features: FrameFeatures, state: TrackState, frame_index: int, step: int) -> ObjectMasks:
        """Masks of O objects in one frame from memory alone; shapes as of one frame, (1, O, ...). `step`: 1 when
        tracking forwards, -1 backwards."""
        rules, multimask = state.rules, self.takes_candidates(0, tracking=True)
        image = self.attend_memory(features, state, frame_index, step)  # (O, C, h, w)
        # To the decoder every object is a frame of its own, since each remembers something else: (O, 1, ...).
        no_point = state.no_point.expand(len(image), -1, -1, -1)
        masks = self.decode_masks(features, image, no_point, tuned=rules.tuned, multimask=multimask)
        return (masks.gated() if rules.gate_tracked else masks).transpose()


class Sam3MaskTracker(SamaMaskTracker):
    """The tracker of SAM 3. As in the Sa2VA that has one, masks of absent objects are empty on every frame, and
    prompted frames are remembered by binary masks, in both presets. A frame attends to at most `max_cond_frame_num`
    (4) prompted frames."""

    image_mean = image_std = (0.5, 0.5, 0.5)

    def __init__(self, config: SamaConfig):
        if config.prompted_memory != "as_decoded":
            raise ValueError(
                f"`prompted_memory` is {config.prompted_memory!r}, but SAM 3's tracker remembers binary masks by "
                "itself; use 'as_decoded'."
            )
        super().__init__(config)

    @staticmethod
    def size_step(mask_config: Any) -> int:
        """What the image size must be a multiple of: the side of a patch."""
        return mask_config.vision_config.backbone_config.patch_size

    def tracking_rules(self, clicked: bool) -> TrackingRules:
        """The rules for clicks hold for [SEG] prompts, too."""
        return replace(super().tracking_rules(clicked=True), tuned=super().tracking_rules(clicked).tuned)


class EdgeTamMaskTracker(SamaMaskTracker):
    """EdgeTAM: a SAM 2 whose memories are compressed, by a resampler with two sets of queries. Those of the first set
    read the whole frame and have no position, those of the second read one window each and have its position. Its
    published image encoder, RepViT, comes from timm, which must be installed."""

    memory_attention_class = EdgeTamMemoryAttention

    @classmethod
    def check_config(cls, mask_config: Any) -> None:
        """Raises `ValueError` if sizes do not fit each other."""
        super().check_config(mask_config)
        check_resampler(mask_config)

    def memory_pool(self) -> None:
        """None.

        Raises:
            ValueError: if `memory_pool` of the configuration is not 1: EdgeTAM's memories are small as they are.
        """
        if self.config.memory_pool != 1:
            raise ValueError(
                f"`memory_pool` is {self.config.memory_pool!r}, but EdgeTAM compresses its memories by itself; use 1."
            )

    def train(self, mode: bool = True) -> "EdgeTamMaskTracker":
        """As in the library, but RepViT keeps its batch statistics, so that no frame depends on others of its
        batch."""
        super().train(mode)
        for module in self.sam.vision_encoder.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def memory_tokens(self, memory: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """A memory (O, D, h, w), with the `position` of its cells, as tokens (O, queries, D)."""
        side = self.mask_config.memory_attention_rope_k_sizes[0]
        return resampled(self.sam.spatial_perceiver, side, memory, position)

    def memory_position(self) -> torch.Tensor:
        """Position of the tokens of a memory, (queries, D)."""
        resampler, reference = self.sam.spatial_perceiver, self.sam.no_memory_embedding
        shape = (1, self.sam.mem_dim, *self.mask_config.memory_attention_rope_k_sizes)
        position = resampler.positional_encoding(shape, reference.device, reference.dtype)[0].flatten(1).mT
        return torch.cat([position.new_zeros(resampler.num_latents_1d, self.sam.mem_dim), position])


TRACKERS = {
    "sam2_video": SamaMaskTracker,
    "sam3_tracker_video": Sam3MaskTracker,
    "edgetam_video": EdgeTamMaskTracker,
}


def pixel_statistics(mask_config: Any) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation of the pixels, from 0 to 1, that a mask model's own weights were trained with."""
    tracker = TRACKERS.get(mask_config.model_type, SamaMaskTracker)
    return tracker.image_mean, tracker.image_std


def build_mask_tracker(config: SamaConfig) -> SamaMaskTracker:
    """The mask tracker for `mask_config.model_type`.

    Raises:
        ValueError: for a mask model that SAMA does not track with.
    """
    model_type = config.mask_config.model_type
    if model_type not in TRACKERS:
        raise ValueError(
            f"SAMA does not track with a {model_type!r}; `mask_config.model_type` must be one of "
            f"{', '.join(TRACKERS)}."
        )
    return TRACKERS[model_type](config)
