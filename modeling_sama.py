"""SAMA: point at things in a video, talk about them, and get text whose phrases carry mask tracks.

Read it in this order: the verbs of `SamaModel` (encode frames, encode regions, aggregate context, place tokens), its
`forward`, then `SamaForConditionalGeneration`: `forward`, `generate`, `segment_video`.

Letters in shape comments: B conversations, F encoded frames of all of them, T context frames of one, P tokens a frame,
C language-model width, L tokens of a conversation, Q questions, R regions, G side of the token grid, O objects.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, GenerationMixin, PreTrainedModel, ProcessorMixin
from transformers.cache_utils import Cache
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming
from transformers.generation.utils import GenerateDecoderOnlyOutput
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import can_return_tuple, logging

from .chat_sama import SamaChat
from .checkpointing_sama import FRAMES_AT_ONCE, SelectiveCheckpointing, is_sharded
from .configuration_sama import (
    CONTEXT_TOKEN,
    DENSE_FRAME_TOKEN,
    REGION_CELL_TOKEN,
    REGION_POOLED_TOKEN,
    REGION_SHAPE_TOKEN,
    SHARED_SETTINGS,
    SamaConfig,
)
from .frame_encoder_sama import track_ahead
from .generation_sama import DecodingSlot, SegRecorder
from .inputs_sama import (
    VISUAL_INPUT_NAMES,
    SamaMaskTargets,
    SamaVisualInputs,
    check_answers,
    check_no_placeholders,
    context_rows,
    first_rows,
    gather_spans,
    grid_cells,
    questions_by_shape,
    rows_by_length,
    unpadded,
)
from .losses_sama import mask_iou, mask_losses, resize_targets
from .modeling_sama_aggregator import SamaContextAggregator, SamaRegionEncoder
from .modeling_sama_backbones import FrameTokens, backbone_family
from .modeling_sama_tracker import TRACKERS, FrameFeatures, TrackedFrame, build_mask_tracker
from .versions_sama import CACHE, TRANSFORMERS


logger = logging.get_logger(__name__)

TOKEN_NAMES = {
    DENSE_FRAME_TOKEN: "dense frame",
    CONTEXT_TOKEN: "context",
    REGION_POOLED_TOKEN: "region",
    REGION_SHAPE_TOKEN: "region shape",
    REGION_CELL_TOKEN: "region cell",
}


WEIGHTED_LOSSES = ("mask_loss", "dice_loss", "iou_loss", "presence_loss")


@dataclass
class SamaModelOutput(BaseModelOutputWithPast):
    """What [`SamaModel`] returns: the library's own output, and the states that [SEG] tokens are read from, of shape
    `(batch_size, length, width)`, where these are others than `last_hidden_state`. Never the same tensor twice: ZeRO-3
    counts how often the outputs of a module are used, and processes without masks would use one less."""

    seg_hidden_states: torch.Tensor | None = None

    @property
    def seg_states(self) -> torch.Tensor:
        """The states that [SEG] tokens are read from."""
        own = self.seg_hidden_states
        return cast(torch.Tensor, self.last_hidden_state if own is None else own)


@dataclass
class SamaOutput(CausalLMOutputWithPast):
    """
    Args:
        loss, lm_loss, mask_loss, dice_loss, iou_loss, presence_loss (`torch.Tensor` of shape `()`, *optional*,
        returned with `labels`): the weighted sum of all terms, and each for itself.
        mask_iou (`torch.Tensor` of shape `(num_masks,)`, *optional*): of each mask with its target.
        logits (`torch.Tensor` of shape `(batch_size, kept_length, vocab_size)`):
            Scores of the positions asked for by `logits_to_keep`. With `labels` the head runs only where a label is:
            `(num_labels, vocab_size)`.
        cache (`Cache`, *optional*): the language model's state; `past_key_values` below transformers 5.24.
        last_hidden_state (`torch.Tensor` of shape `(batch_size, length, width)`): after the language model's final
        norm. hidden_states, attentions (*optional*): of every layer, when asked for.
    """

    last_hidden_state: torch.Tensor | None = None
    lm_loss: torch.Tensor | None = None
    mask_loss: torch.Tensor | None = None
    dice_loss: torch.Tensor | None = None
    iou_loss: torch.Tensor | None = None
    presence_loss: torch.Tensor | None = None
    mask_iou: torch.Tensor | None = None


@dataclass
class SamaGenerateOutput(GenerateDecoderOnlyOutput):
    """What `generate` returns: the library's own output, and `seg_states`, for each conversation the language model's
    states at its new [SEG] tokens, of shape `(num_objects, width)`."""

    seg_states: list[torch.Tensor] | None = None


FORMER_NAMES = r"^model\.(vision_tower|multi_modal_projector|language_model)\."  # before version 0.3
PRESENT_NAMES = r"model.backbone.\1."


class SamaPreTrainedModel(SelectiveCheckpointing, PreTrainedModel):
    """What [`SamaModel`] and [`SamaForConditionalGeneration`] share."""

    config_class = SamaConfig
    config: SamaConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text", "video")
    supports_gradient_checkpointing = True
    _no_split_modules = ["SamaContextAggregator", "SamaRegionEncoder", *(each.__name__ for each in TRACKERS.values())]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True


# What `from_pretrained`, also of PEFT, renames in the files that it reads
register_checkpoint_conversion_mapping("sama", [WeightRenaming(FORMER_NAMES, PRESENT_NAMES)], overwrite=True)


class SamaModel(SamaPreTrainedModel):
    """A vision-language model with SAMA's context aggregator, region encoders and mask tracker, without the
    language-model head."""

    def __init__(self, config: SamaConfig):
        super().__init__(config)
        width = config.text_config.hidden_size
        self.family = backbone_family(config.backbone_config)
        self.backbone = AutoModel.from_config(config.backbone_config)
        has_aggregator = config.aggregator_config is not None
        self.context_aggregator = SamaContextAggregator(config) if has_aggregator else None
        self.region_encoder = SamaRegionEncoder(config, width) if has_aggregator else None
        self.mask_tracker = build_mask_tracker(config)
        prompt_width = config.mask_config.prompt_encoder_config.hidden_size
        self.seg_projection = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, prompt_width))
        if config.round_rotary_to_bfloat16:
            self.backbone.language_model.rotary_emb.register_forward_hook(rounded_to_bfloat16)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.backbone.set_input_embeddings(value)

    def get_decoder(self) -> nn.Module:
        return self.backbone.language_model

    # ---- verbs ------------------------------------------------------------------------------------------------------

    def encode_frames(self, pixel_values: torch.Tensor, grids: torch.Tensor | None = None) -> FrameTokens:
        """Vision tower and projector on frames, whose tokens have the given rows and columns (num_frames, 2). In
        training a frozen tower gets [`FRAMES_AT_ONCE`] at a time, unless its weights are in pieces."""
        tower = self.backbone.get_submodule(self.family.vision_tower[0].removesuffix("."))
        if not self.training or self.passes_gradient(tower) or is_sharded(tower.parameters()):
            return self.family.encode_frames(self.backbone, pixel_values, grids)
        chunks = self.family.split_frames(pixel_values, grids, FRAMES_AT_ONCE)
        return FrameTokens.concatenate([self.family.encode_frames(self.backbone, *chunk) for chunk in chunks])

    def passes_gradient(self, part: nn.Module) -> bool:
        """Whether gradients must flow through `part`: something in it, but the projector, which comes last, is
        trained. Of several processes all go through the language model, whose weights may be in pieces."""
        if part is self.backbone.language_model and self.is_distributed_training:
            return True
        modules = [self.backbone.get_submodule(prefix.removesuffix(".")) for prefix in self.family.projector]
        projector = {id(parameter) for module in modules for parameter in module.parameters()}
        return any(parameter.requires_grad and id(parameter) not in projector for parameter in part.parameters())

    def segment_region_prompts(
        self, points: torch.Tensor, labels: torch.Tensor, features: FrameFeatures
    ) -> torch.Tensor:
        """What clicks and boxes select, by SAM 2's own prompt encoder and original decoder: float masks of 0 and 1, of
        shape `(num_prompts, 1, 4h, 4w)`.

        Args:
            points, labels: of shape `(num_prompts, num_points, 2)` and `(num_prompts, num_points)`, in SAM 2's input
            pixels; shorter prompts are padded at their end.
            features ([`FrameFeatures`]): of each prompt's frame.
        """
        points, labels = points.to(features.image.device), labels.to(features.image.device)
        groups, segment = rows_by_length(labels), self.mask_tracker.segment_points
        parts = [segment(features.take(rows), points[rows, :end], labels[rows, :end]) for rows, end in groups]
        order = torch.cat([rows for rows, _ in groups]).argsort()
        logits = torch.cat([part.mask_logits for part in parts])[order]
        return prompted_masks(logits, points, labels, self.config)

    def resize_region_masks(self, masks: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        """Masks (num_regions, 1, height, width) at another size, by nearest neighbour: (num_regions, *size)."""
        resized = F.interpolate(masks, tuple(size), mode="nearest")
        if self.config.preset == "consistent":
            # What lies between the sampled pixels keeps every cell that it touches, as in the processor.
            lost = ~resized.flatten(1).any(1)
            if lost.any():
                resized[lost] = F.adaptive_max_pool2d(masks[lost], tuple(size))
        return resized.squeeze(1)

    def fill_region_prompts(self, visual: SamaVisualInputs, features: FrameFeatures) -> SamaVisualInputs:
        """`visual` with the masks of clicks and boxes filled in, which lie on frames with the given features."""
        rows = visual.region_prompt_indices
        found = self.segment_region_prompts(visual.region_prompt_points, visual.region_prompt_labels, features)
        masks, grid_masks = visual.region_masks.clone(), visual.region_grid_masks.clone()
        masks[rows] = self.resize_region_masks(found, masks.shape[-2:]).to(masks)
        grids = None if visual.grids is None else visual.grids[visual.region_frames.cpu()].tolist()
        for number, row in enumerate(rows.tolist()):
            height, width = grid_masks.shape[-2:] if grids is None else grids[row]
            grid_masks[row, :height, :width] = self.resize_region_masks(found[number : number + 1], (height, width))[0]
        return replace(visual, region_masks=masks, region_grid_masks=grid_masks, region_prompt_indices=None)

    @torch.no_grad()
    def complete_regions(self, visual: SamaVisualInputs) -> SamaVisualInputs:
        """`visual` with the masks of clicks and boxes filled in; frames one by one, SAM 2's input is large."""
        frames = visual.region_prompt_pixel_values
        encode = self.mask_tracker.encode_frames
        features = FrameFeatures.concatenate([encode(frame[None], tuned=False) for frame in frames])
        return self.fill_region_prompts(visual, features.take(visual.region_prompt_frames.to(features.image.device)))

    def aggregate_context(self, visual: SamaVisualInputs) -> torch.Tensor:
        """Context tokens of all questions in reading order, flattened to `(num_context_tokens, width)`: the questions
        of a conversation read the frames of that conversation.

        Conversations with equally many context frames of equally many tokens pass the aggregator together, which
        changes no number and saves most of the small operations of a step.
        """
        frame_features, device = visual.frame_features, visual.frame_features.device
        if visual.question_samples is None or self.context_aggregator is None:
            return frame_features.new_zeros(0, frame_features.shape[-1])
        num_context, num_extra = visual.num_context_frames.cpu(), visual.num_extra_frames.cpu()
        summaries = self.summarise_context(visual) if visual.spatial_tokens is None else visual.spatial_tokens
        first_frames, first_summaries = first_rows(num_context + num_extra), first_rows(num_context)
        regions, region_questions = self.encode_question_regions(visual)
        question_samples, tokens = visual.question_samples.cpu(), {}
        num_tokens = torch.full_like(num_context, frame_features.shape[1])
        if visual.frame_grids is not None:
            num_tokens = visual.frame_grids.cpu().prod(1)
        for questions in questions_by_shape(torch.stack([num_context, num_tokens], 1), question_samples):
            samples, videos = question_samples[questions].unique(return_inverse=True)
            length, width = int(num_context[samples[0]]), int(num_tokens[samples[0]])
            own = torch.isin(region_questions, questions).nonzero().flatten().to(device)
            context = self.context_aggregator(
                gather_spans(frame_features, first_frames[samples], length)[:, :, :width],
                gather_spans(summaries, first_summaries[samples], length),
                visual.qformer_input_ids.to(device)[questions.to(device)],
                visual.qformer_attention_mask.to(device)[questions.to(device)],
                videos.to(device),
                tuple(part[own] for part in regions) if len(own) else None,
            )  # (questions, length, C)
            tokens |= dict(zip(questions.tolist(), context, strict=True))
        return torch.cat([tokens[question] for question in sorted(tokens)])

    def summarise_context(self, visual: SamaVisualInputs) -> torch.Tensor:
        """The summaries of all context frames, (num_context_frames, num_spatial_queries, qformer_width)."""
        rows = context_rows(visual.num_context_frames.tolist(), visual.num_extra_frames.tolist())
        features = visual.frame_features[rows.to(visual.frame_features.device)]
        if visual.grids is None:
            return self.context_aggregator.summarise_frames(features)
        lengths = visual.grids.prod(1)[rows]
        order = [(lengths == length).nonzero().flatten() for length in lengths.unique()]
        parts = [self.context_aggregator.summarise_frames(features[one, : lengths[one[0]]]) for one in order]
        return torch.cat(parts)[torch.cat(order).argsort()]

    def encode_question_regions(
        self, visual: SamaVisualInputs
    ) -> tuple[tuple[torch.Tensor, ...] | None, torch.Tensor]:
        """The regions as the Q-Former reads them, see [`encode_regions`], and the question that each belongs to."""
        num_regions = (visual.qformer_input_ids == self.config.qformer_mask_token_id).sum(1).cpu()
        owners = torch.arange(len(num_regions)).repeat_interleave(num_regions)
        return self.encode_regions(visual, self.context_aggregator.region_encoder), owners

    def encode_regions(
        self, visual: SamaVisualInputs, encoder: SamaRegionEncoder | None
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Pooled and shape features of all regions in reading order, each of its very own frame; None without
        regions."""
        if visual.region_masks is None:
            return None
        if encoder is None:
            raise ValueError("This model has no region encoders, so that nothing in the video can be pointed at.")
        features, cells = visual.frame_features, self.region_cells(visual)
        return encoder(
            features[visual.region_frames.to(features.device)],
            cells.to(features.device),
            visual.region_masks.to(features.device),
        )

    def region_tokens(self, visual: SamaVisualInputs) -> dict[int, torch.Tensor]:
        """The regions as the language model reads them: for each kind of token those of all regions, (num_tokens,
        width)."""
        if visual.region_masks is None:
            return {}
        if self.config.region_prompts == "cells":
            features = visual.frame_features[visual.region_frames.to(visual.frame_features.device)]
            return {REGION_CELL_TOKEN: features[self.region_cells(visual).to(features.device) > 0]}
        pooled, shape = self.encode_regions(visual, self.region_encoder)
        return {REGION_POOLED_TOKEN: pooled, REGION_SHAPE_TOKEN: shape}

    def region_cells(self, visual: SamaVisualInputs) -> torch.Tensor:
        """Which tokens of its frame each region covers, (num_regions, tokens_per_frame)."""
        if visual.grids is None:
            return visual.region_grid_masks.flatten(1)
        grids = visual.grids[visual.region_frames.cpu()].tolist()
        return grid_cells(visual.region_grid_masks, grids, visual.frame_features.shape[1])

    def place_visual_tokens(
        self,
        inputs_embeds: torch.Tensor,
        mm_token_type_ids: torch.Tensor,
        visual: SamaVisualInputs,
        regions: dict[int, torch.Tensor],
        context: torch.Tensor,
    ) -> torch.Tensor:
        """Puts frames, context and regions where `mm_token_type_ids` (B, L) says, each kind in reading order.

        Raises:
            ValueError: if a kind has more or fewer placeholders than tokens.
        """
        dense = visual.frame_features[visual.dense_frames.to(visual.frame_features.device)]
        dense = unpadded(dense, visual.dense_lengths)
        for kind, tokens in ({DENSE_FRAME_TOKEN: dense, CONTEXT_TOKEN: context} | regions).items():
            placeholders, name = mm_token_type_ids == kind, TOKEN_NAMES[kind]
            if placeholders.sum() != len(tokens):
                raise ValueError(
                    f"{int(placeholders.sum())} {name} placeholders in the text but {len(tokens)} {name} tokens from "
                    "the frames; was the prompt built by another processor, or was the text cut?"
                )
            tokens = tokens.to(inputs_embeds.device, inputs_embeds.dtype)
            inputs_embeds = inputs_embeds.masked_scatter(placeholders.unsqueeze(-1).to(tokens.device), tokens)
        return inputs_embeds

    def decode_targets(
        self, prompts: torch.Tensor, num_segs: list[int], targets: SamaMaskTargets
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Mask logits (num_masks, 4h, 4w), predicted IoU and object score (num_masks,) of all objects (O,
        prompt_width) in all frames of their conversations, frame by frame, the objects of a frame together."""
        features = self.mask_tracker.encode_frames(targets.sam_pixel_values, original=targets.need_memory)
        frames = torch.arange(len(features.image), device=prompts.device).split(targets.counts)
        objects = torch.arange(len(prompts), device=prompts.device).split(num_segs)
        if not targets.need_memory:
            # A frame and one object of it is one row, so that all conversations go through the decoder at once
            pairs = [torch.cartesian_prod(*pair) for pair in zip(frames, objects, strict=True) if len(pair[1])]
            rows, owners = torch.cat(pairs).unbind(1)
            masks = self.mask_tracker.segment_prompted(features.take(rows), prompts[owners].unsqueeze(1))
            return masks.ungated_logits[:, 0], masks.predicted_iou[:, 0], masks.object_score[:, 0]
        tracks = [
            self.track_clip(features.take(rows), prompts[owners], prompted)
            for rows, owners, prompted in zip(frames, objects, targets.prompted_frames, strict=True)
            if len(owners)
        ]
        return tuple(torch.cat(parts) for parts in zip(*tracks, strict=True))

    def track_clip(
        self, features: FrameFeatures, prompts: torch.Tensor, prompted_frames: list[int]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What [`decode_targets`] gives, for one conversation, whose frames are tracked as in inference, as a video of
        their own."""
        num_frames = len(features.image)
        rows = torch.arange(num_frames, device=prompts.device)
        track = self.mask_tracker.track(prompts, num_frames, prompted_frames, lambda i: features.take(rows[i : i + 1]))
        found = sorted(track, key=lambda frame: frame.frame_index)
        return (
            torch.cat([frame.ungated_logits for frame in found]),
            torch.cat([frame.predicted_iou for frame in found]),
            torch.cat([frame.object_score for frame in found]),
        )

    @property
    def is_distributed_training(self) -> bool:
        """Whether several processes train together: they exchange gradients and, with their weights in pieces, the
        weights of each module, and all must do so equally often and in the same order."""
        distributed = torch.distributed
        return self.training and distributed.is_initialized() and distributed.get_world_size() > 1

    def zero_touch_all_params(self) -> torch.Tensor | float:
        """Zero, with a gradient of zero for every trained parameter of the parts that a batch uses as often as its
        samples ask for, or not at all.

        To be asked for before these parts run: what is used first gets its gradient last, so that the gradients of
        these parts come at the end of the backward pass, always all of them and in the order of this sum. DeepSpeed
        adds up the gradients of several processes in the order in which they come.
        """
        if not self.is_distributed_training:
            return 0.0
        parts = (self.context_aggregator, self.region_encoder, self.seg_projection, self.mask_tracker)
        found = [parameter for part in parts if part is not None for parameter in part.parameters()]
        trained = [parameter for parameter in found if parameter.requires_grad]
        return 0.0 * sum(parameter.sum(dtype=torch.float32) for parameter in trained)

    def encode_blank_frame(self) -> torch.Tensor:
        """Zero, from a black frame: a process whose samples are text alone runs the vision tower too."""
        frames = self.encode_frames(*self.family.blank_frame(self.backbone))
        return 0.0 * sum(
            tokens.sum(dtype=torch.float32) for tokens in (frames.features, frames.deepstack) if tokens is not None
        )

    def encode_visual(self, visual: SamaVisualInputs) -> SamaVisualInputs:
        """`visual` with features in place of pixels, and with masks in place of clicks and boxes."""
        if visual.frame_features is None:
            frames = self.encode_frames(visual.pixel_values, visual.grids)
            deepstack = None if frames.deepstack is None else frames.deepstack[visual.dense_frames]
            visual = replace(visual, frame_features=frames.features, deepstack_features=deepstack)
        return visual if visual.region_prompt_indices is None else self.complete_regions(visual)

    def embed_inputs(
        self, input_ids: torch.Tensor, mm_token_type_ids: torch.Tensor | None, visual: SamaVisualInputs
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, list[torch.Tensor]] | None]:
        """Embeddings (B, L, C) of conversations with everything visual in place, and what the backbone adds to the
        states of its first layers: a mask (B, L) and for each level of it the features of the marked positions."""
        inputs_embeds = self.get_input_embeddings()(input_ids)
        if visual.pixel_values is None and visual.frame_features is None:
            check_no_placeholders(mm_token_type_ids)
            touched = self.encode_blank_frame() if self.is_distributed_training else 0.0
            return inputs_embeds + touched, None
        refuse_offloaded(self)
        if mm_token_type_ids is None:
            raise ValueError("Frames were given without `mm_token_type_ids`, which says where in the text they go.")
        visual = self.encode_visual(visual.with_counts_on_cpu())
        levels = self.family.num_deepstack_levels
        if visual.deepstack_features is None and levels and len(visual.dense_frames):
            raise ValueError(
                f"This backbone adds {levels} levels of deep-stack features to its first layers: `frame_features` "
                "needs `deepstack_features` beside it."
            )
        regions, context = self.region_tokens(visual), self.aggregate_context(visual)
        shared, types = visual.num_answers or 1, mm_token_type_ids
        check_answers(types, shared)
        placed = self.place_visual_tokens(inputs_embeds[::shared], types[::shared], visual, regions, context)
        if shared > 1:
            is_visual = types.unsqueeze(-1).to(placed.device) != 0
            placed = torch.where(is_visual, placed.repeat_interleave(shared, 0), inputs_embeds)
        if visual.deepstack_features is None:
            return placed, None
        tokens = unpadded(visual.deepstack_features, visual.dense_lengths)  # (num_tokens, num_levels, C)
        if shared > 1:
            counts = (types[::shared] == DENSE_FRAME_TOKEN).sum(1).tolist()
            tokens = torch.cat([own.repeat(shared, 1, 1) for own in tokens.split(counts)])
        return placed, (types == DENSE_FRAME_TOKEN, list(tokens.unbind(1)))

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        mm_token_type_ids: torch.LongTensor | None = None,
        visual: SamaVisualInputs | None = None,
        **kwargs,
    ) -> SamaModelOutput:
        """The language model over text in which frames, context and regions are in place; arguments as in
        [`SamaForConditionalGeneration.forward`]."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Exactly one of `input_ids` and `inputs_embeds` must be given.")
        deepstack = None
        if inputs_embeds is None:
            self.family.check_position_ids(position_ids, mm_token_type_ids)
            inputs_embeds, deepstack = self.embed_inputs(input_ids, mm_token_type_ids, visual or SamaVisualInputs())
        arguments = (self.backbone, inputs_embeds, attention_mask, position_ids, cache, deepstack)
        if self.config.seg_state == "after_norm":
            return SamaModelOutput(**self.family.run(*arguments, **kwargs))
        with recorded_input(self.backbone.language_model.norm) as before_norm:
            outputs = self.family.run(*arguments, **kwargs)
        if self.is_distributed_training:  # processes without masks use these states, too
            outputs.last_hidden_state = outputs.last_hidden_state + 0.0 * before_norm[0]
        return SamaModelOutput(**outputs, seg_hidden_states=before_norm[0])


class SamaForConditionalGeneration(SamaPreTrainedModel, GenerationMixin):
    """SAMA with its language-model head: `forward`, `generate` (which also returns the [SEG] states), `segment_video`
    and `start_chat`."""

    accepts_loss_kwargs = True
    _tied_weights_keys = {"lm_head.weight": "model.backbone.language_model.embed_tokens.weight"}

    def __init__(self, config: SamaConfig):
        super().__init__(config)
        self.model = SamaModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.register_load_state_dict_pre_hook(rename_former_parameters)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        mm_token_type_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        num_context_frames: torch.LongTensor | None = None,
        num_extra_frames: torch.LongTensor | None = None,
        dense_frames: torch.LongTensor | None = None,
        qformer_input_ids: torch.LongTensor | None = None,
        qformer_attention_mask: torch.LongTensor | None = None,
        question_samples: torch.LongTensor | None = None,
        region_masks: torch.Tensor | None = None,
        region_grid_masks: torch.Tensor | None = None,
        region_frames: torch.LongTensor | None = None,
        region_prompt_indices: torch.LongTensor | None = None,
        region_prompt_points: torch.Tensor | None = None,
        region_prompt_labels: torch.LongTensor | None = None,
        region_prompt_frames: torch.LongTensor | None = None,
        region_prompt_pixel_values: torch.Tensor | None = None,
        frame_grids: torch.LongTensor | None = None,
        frame_features: torch.Tensor | None = None,
        deepstack_features: torch.Tensor | None = None,
        spatial_tokens: torch.Tensor | None = None,
        num_answers: int | None = None,
        sam_pixel_values: torch.Tensor | None = None,
        sam_frame_counts: torch.LongTensor | None = None,
        sam_prompted: torch.BoolTensor | None = None,
        target_masks: list[torch.Tensor] | None = None,
        point_seeds: torch.LongTensor | None = None,
        seg_recorder: SegRecorder | None = None,
        decoding_slot: DecodingSlot | None = None,
        num_items_in_batch: int | torch.Tensor | None = None,
        num_masks_in_batch: int | torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs,
    ) -> SamaOutput:
        """Next-token scores of a batch of conversations, and with `labels` and `target_masks` the losses.

        Args:
            input_ids, attention_mask (`torch.LongTensor` of shape `(batch_size, length)`)
            labels (`torch.LongTensor` of shape `(batch_size, length)`, *optional*): -100 where nothing is learned.
            mm_token_type_ids: 0 text, 1 dense-frame token, 2 context token, 3 region, 4 region shape, 5 region cell.
            pixel_values to num_answers, sam_pixel_values to point_seeds: [`SamaVisualInputs`], [`SamaMaskTargets`].
            seg_recorder, decoding_slot (*optional*): used by `generate`; a slot runs the step with those of others.
            num_items_in_batch, num_masks_in_batch (`int`, *optional*): labels and masks of the whole update.
            past_key_values (`Cache`, *optional*): the name of `cache` below transformers 5.24.
        """
        cache = past_key_values if cache is None else cache
        if decoding_slot is not None:
            return decoding_slot.step(self, input_ids, position_ids, cache, seg_recorder)
        # fmt: off
        visual = SamaVisualInputs(
            pixel_values, num_context_frames, num_extra_frames, dense_frames,
            qformer_input_ids, qformer_attention_mask, question_samples,
            region_masks, region_grid_masks, region_frames, region_prompt_indices, region_prompt_points,
            region_prompt_labels, region_prompt_frames, region_prompt_pixel_values,
            frame_grids, frame_features, deepstack_features, spatial_tokens, num_answers,
        )
        targets = SamaMaskTargets(sam_pixel_values, sam_frame_counts, sam_prompted, target_masks, point_seeds)
        # fmt: on
        touched = self.model.zero_touch_all_params()
        outputs = self.model(
            input_ids, attention_mask, position_ids, cache, inputs_embeds, mm_token_type_ids, visual, **kwargs
        )
        hidden_states = outputs.last_hidden_state
        if seg_recorder is not None:
            seg_recorder.record_step(outputs.seg_states, outputs.get(CACHE))
        logits, losses = self.score_text(hidden_states, labels, logits_to_keep, num_items_in_batch)
        if target_masks is not None:
            losses |= self.score_masks(outputs.seg_states, labels, targets, num_masks_in_batch)
            losses["loss"] = self.total_loss(losses) + touched
        kept = {name: outputs[name] for name in (CACHE, "hidden_states", "attentions") if name in outputs}
        return SamaOutput(logits=logits, last_hidden_state=hidden_states, **kept, **losses)

    def score_text(
        self,
        hidden_states: torch.Tensor,
        labels: torch.Tensor | None,
        logits_to_keep: int | torch.Tensor,
        num_items_in_batch: int | torch.Tensor | None,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Logits where they are needed, and with labels the losses of the text by name."""
        if labels is None:
            keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            return self.lm_head(hidden_states[:, keep]), {}
        logits, lm_loss = self.score_labels(hidden_states, labels, num_items_in_batch)
        return logits, {"loss": lm_loss, "lm_loss": lm_loss}

    def score_labels(
        self, hidden_states: torch.Tensor, labels: torch.Tensor, num_items_in_batch: int | torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The head only where a label follows: logits (num_labels, vocab_size) and their mean cross entropy."""
        targets = labels[:, 1:].to(hidden_states.device)
        wanted = targets != -100
        logits = self.lm_head(hidden_states[:, :-1][wanted])
        total = F.cross_entropy(logits.float(), targets[wanted], reduction="sum")
        return logits, total / (wanted.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch)

    def score_masks(
        self,
        hidden_states: torch.Tensor,
        labels: torch.Tensor | None,
        targets: SamaMaskTargets,
        num_masks_in_batch: int | torch.Tensor | None,
    ) -> dict[str, torch.Tensor]:
        """The mask losses by name and `mask_iou`, at the [SEG]s among `labels` (B, L); zeros without any."""
        if labels is None:
            raise ValueError("`target_masks` need `labels`, which say what [SEG] each mask belongs to.")
        is_seg = labels == self.config.seg_token_id
        num_segs = is_seg.sum(1).tolist()
        targets.check(num_segs)
        if not sum(num_segs):
            zero = hidden_states.new_zeros((), dtype=torch.float32)
            return dict.fromkeys(WEIGHTED_LOSSES, zero) | {"mask_iou": hidden_states.new_zeros(0)}
        prompts = self.project_seg_states(hidden_states[is_seg.to(hidden_states.device)])
        mask_logits, predicted_iou, object_score = self.model.decode_targets(prompts, num_segs, targets)
        wanted = resize_targets(targets.target_masks, mask_logits.shape[-2:], prompts.device)
        seeds = [0] * len(num_segs) if targets.point_seeds is None else targets.point_seeds.tolist()
        counts = [segs * frames for segs, frames in zip(num_segs, targets.counts, strict=True)]
        bce, dice = mask_losses(mask_logits, wanted, self.config.num_mask_points, seeds, counts)
        overlap, present = mask_iou(mask_logits, wanted), wanted.flatten(1).any(1).float()
        each = (
            bce,
            dice,
            (predicted_iou.float() - overlap).abs(),
            F.binary_cross_entropy_with_logits(object_score.float(), present, reduction="none"),
        )
        total = len(wanted) if num_masks_in_batch is None else num_masks_in_batch
        return {name: loss.sum() / total for name, loss in zip(WEIGHTED_LOSSES, each, strict=True)} | {
            "mask_iou": overlap
        }

    def total_loss(self, losses: dict[str, torch.Tensor]) -> torch.Tensor:
        """The sum of all losses by their weights. What weighs nothing stays out of the sum: its head gets no
        gradient, not one of zero."""
        weights = {name: vars(self.config)[f"{name}_coefficient"] for name in losses if name in WEIGHTED_LOSSES}
        return losses["lm_loss"] + sum(weight * losses[name] for name, weight in weights.items() if weight)

    # ---- text -------------------------------------------------------------------------------------------------------

    def prepare_inputs_for_generation(self, input_ids: torch.Tensor, is_first_iteration: bool = False, **kwargs):
        """As in the library, but frames and regions go in with the prompt only. The steps of a [`DecodingSlot`] need
        the last token with its position, and no more."""
        slot = kwargs.get("decoding_slot")
        if slot is not None and not is_first_iteration:
            kept = {name: kwargs[name] for name in (CACHE, "seg_recorder") if name in kwargs}
            position_ids = kwargs["position_ids"][..., -1:]
            return {"input_ids": input_ids[:, -1:], "position_ids": position_ids, "decoding_slot": slot, **kept}
        inputs = super().prepare_inputs_for_generation(input_ids, is_first_iteration=is_first_iteration, **kwargs)
        if not is_first_iteration and kwargs.get("use_cache", True):
            for name in VISUAL_INPUT_NAMES:
                inputs.pop(name, None)
        if is_first_iteration:  # the prompt is read for itself
            inputs.pop("decoding_slot", None)
        inputs["logits_to_keep"] = 1
        if TRANSFORMERS < (5, 23) and inputs["input_ids"] is not None and "mm_token_type_ids" in inputs:
            # Newer versions cut the types, like the ids, to the tokens that are not in the cache
            inputs["mm_token_type_ids"] = inputs["mm_token_type_ids"][:, -inputs["input_ids"].shape[1] :]
        return inputs

    @torch.no_grad()
    def generate(self, inputs: torch.Tensor | None = None, **kwargs) -> SamaGenerateOutput | torch.LongTensor:
        """The library's `generate`, greedy or sampled. With a [`DecodingSlot`] as `decoding_slot`, each step after the
        prompt is run together with those of other conversations; it is for one conversation then, without
        `output_attentions` and `output_hidden_states`.

        Returns:
            `torch.LongTensor`, the token ids; with `return_dict_in_generate=True` a [`SamaGenerateOutput`], which
            holds the states of the new [SEG] tokens too.

        Raises:
            ValueError: for several sequences a prompt (beams, `num_return_sequences`): frames belong to one
            conversation. If states are asked for: for a static cache, and for `input_ids` without their beginning.
        """
        if "cache" in kwargs:
            kwargs[CACHE] = kwargs.pop("cache")
        config = kwargs.get("generation_config") or self.generation_config
        for name in ("num_beams", "num_return_sequences"):
            value = kwargs.get(name) or config.to_dict().get(name) or 1
            if value > 1:
                raise ValueError(
                    f"`{name}={value}` is not supported: SAMA generates one sequence for each conversation."
                )
        if not kwargs.setdefault("return_dict_in_generate", bool(config.return_dict_in_generate)):
            with kwargs.get("decoding_slot") or nullcontext():
                return super().generate(inputs, **kwargs)
        input_ids = inputs if inputs is not None else kwargs.get("input_ids")
        if input_ids is None:
            raise ValueError("`generate` needs `input_ids`: [SEG] tokens are found by their id.")
        attention_mask = kwargs.get("attention_mask")
        recorder = SegRecorder.of_prompt(self.config.seg_token_id, input_ids, attention_mask)
        with kwargs.get("decoding_slot") or nullcontext():
            output = super().generate(inputs, seg_recorder=recorder, **kwargs)
        if recorder.missing(output.sequences):
            self.read_last_token(output, attention_mask, kwargs.get("position_ids"), recorder)
        seg_states = recorder.collect(output.sequences, self.config.text_config.hidden_size)
        return SamaGenerateOutput(**output, seg_states=seg_states)

    def read_last_token(
        self,
        output: GenerateDecoderOnlyOutput,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        recorder: SegRecorder,
    ) -> None:
        """One more step, for a [SEG] that is the very last token: its state comes from reading it."""
        sequences, cache = output.sequences, output.get(CACHE)
        if cache is None:
            raise ValueError("The answer ends in [SEG], whose state needs the cache: generate with `use_cache=True`.")
        if attention_mask is None:
            attention_mask = torch.ones_like(sequences[:, : recorder.prompt_length])
        new = sequences.shape[1] - attention_mask.shape[1]
        attention_mask = torch.cat([attention_mask, attention_mask.new_ones(len(sequences), new)], 1)
        if position_ids is None:
            position_ids = (attention_mask.cumsum(1) - 1).clamp(min=0)
        else:  # of the prompt, which ends in text
            position_ids = torch.cat(
                [position_ids, position_ids[..., -1:] + torch.arange(1, new + 1).to(position_ids)], -1
            )
        self(
            input_ids=sequences[:, cache.get_seq_length() :],
            attention_mask=attention_mask,
            position_ids=position_ids[..., cache.get_seq_length() :],
            cache=cache,
            use_cache=True,
            logits_to_keep=1,
            seg_recorder=recorder,
        )

    # ---- masks ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def segment_video(
        self,
        seg_states: torch.Tensor,
        sam_frames: Sequence[torch.Tensor] | Callable[[int], FrameFeatures],
        prompted_frames: Sequence[int],
        num_frames: int | None = None,
    ) -> Iterator[TrackedFrame]:
        """Mask tracks of all objects of an answer through a whole video, frame by frame in the order of processing;
        memory does not grow with the length of the video.

        Args:
            seg_states (`torch.Tensor` of shape `(num_objects, width)`): from [`generate`]; no objects, nothing is
            yielded.
            sam_frames (`Sequence`):
                Lazily read frames of shape `(3, sam_size, sam_size)`, as `processor.sam_frames(video)` gives them; or
                a function from frame index to [`FrameFeatures`], such as a [`FrameEncoder`], with `num_frames`.
            prompted_frames (`Sequence[int]`): frames that [SEG] prompts (`processor.choose_frames(video).prompted`).

        Yields:
            [`TrackedFrame`] with mask logits at the mask model's low resolution, `sam_size / 4` (SAM 3: `/ 3.5`).
        """
        if not len(seg_states):
            return
        refuse_offloaded(self.model)
        prompts = self.project_seg_states(seg_states)
        yield from track_ahead(self.model.mask_tracker, prompts, sam_frames, prompted_frames, num_frames)

    def project_seg_states(self, seg_states: torch.Tensor) -> torch.Tensor:
        """[SEG] states (num_objects, width) to SAM 2 prompts (num_objects, prompt_width)."""
        projection = self.model.seg_projection
        return projection(seg_states.to(projection[0].bias))  # a quantized weight has another dtype, its bias has not

    # ---- save -------------------------------------------------------------------------------------------------------

    def save_pretrained(self, save_directory, **kwargs):
        """As in the library, with the weights under the model's own names. Of a model that was loaded under DeepSpeed
        ZeRO-3 the library would write the Q-Formers' norms by their legacy names, `LayerNorm.gamma` and `.beta`."""
        # A class registers for one auto class; this is the library's newer name for the same one
        classes = {"AutoModelForMultimodalLM": "modeling_sama.SamaForConditionalGeneration"}
        self.config.auto_map = classes | (vars(self.config).get("auto_map") or {})
        # FSDP2 puts the model into a class of its own, and the library would save the code of that one
        sharded, self.__class__ = type(self), next(c for c in type(self).__mro__ if not c.__name__.startswith("FSDP"))
        try:
            super().save_pretrained(save_directory, **{"save_original_format": False, **kwargs})
        finally:
            self.__class__ = sharded

    # ---- talk -------------------------------------------------------------------------------------------------------

    def start_chat(self, processor, video=None, image=None, feature_folder: str | None = None) -> SamaChat:
        """A conversation that keeps its state between turns.

        Args:
            processor ([`SamaProcessor`]): the checkpoint's own processor.
            video, image (*optional*): what `processor.open_video` takes; neither for a conversation in text alone.
            feature_folder (`str`, *optional*): where SAM 2's features of the frames are kept, see `SamFeatureStore`.

        Raises:
            ValueError: if a setting that the model and the processor share differs between them.
        """
        self.check_processor(processor)
        return SamaChat(self, processor, video=video, image=image, feature_folder=feature_folder)

    def check_processor(self, processor) -> None:
        """Raises `ValueError` unless the processor was made for a model of these settings."""
        if not isinstance(processor, ProcessorMixin):
            raise ValueError(
                "A chat needs the checkpoint's processor: model.start_chat(processor, video=...), got "
                f"{type(processor).__name__} in its place."
            )
        for name in SHARED_SETTINGS:
            ours, theirs = getattr(self.config, name), getattr(processor.config, name)
            if ours != theirs:
                raise ValueError(
                    f"`{name}` is {ours!r} in the model and {theirs!r} in the processor; load both from one "
                    "checkpoint, or change it in both."
                )
        ours, theirs = self.config.mask_config.image_size, processor.sam_image_size
        if ours != theirs:
            raise ValueError(
                f"`sam_image_size` is {ours} in the model and {theirs} in the processor; load both from one "
                "checkpoint."
            )


def rename_former_parameters(module: nn.Module, state_dict: dict[str, torch.Tensor], prefix: str, *others) -> None:
    """Hook of `load_state_dict`: gives the backbone's parameters in `state_dict` their present names."""
    for name in list(state_dict):
        present = prefix + re.sub(FORMER_NAMES, PRESENT_NAMES, name.removeprefix(prefix))
        if present != name:
            state_dict[present] = state_dict.pop(name)


@contextmanager
def recorded_input(module: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Collects what is given to a module while the block runs."""
    found: list[torch.Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    try:
        yield found
    finally:
        handle.remove()


def rounded_to_bfloat16(
    module: nn.Module, inputs: tuple, outputs: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor, ...]:
    """Forward hook: what `module` gives, with the precision of bfloat16."""
    return tuple(output.to(torch.bfloat16).to(output.dtype) for output in outputs)


def refuse_offloaded(model: nn.Module) -> None:
    """Raises `ValueError` for a model parts of which `device_map` left on the disk or in CPU memory: the aggregator
    and the tracker read each other's parameters, which offloading brings in only for a module's own forward."""
    for name, parameter in model.named_parameters():
        if parameter.device.type == "meta":
            raise ValueError(
                f"`{name}` is offloaded. Frames and masks need every part of SAMA on a device: load it with enough "
                "memory for the whole model, in bfloat16 or in 4 bits, or without `device_map`."
            )


def prompted_masks(
    logits: torch.Tensor, points: torch.Tensor, labels: torch.Tensor, config: SamaConfig
) -> torch.Tensor:
    """What a click or box selects: SAM 2's mask, plus the clicked cells themselves, so that no region is empty.

    Args:
        logits (`torch.Tensor` of shape `(num_prompts, 1, size, size)`)
        points, labels: clicks in SAM 2's input pixels; a box whose mask is empty counts as its filled rectangle.

    Returns:
        `torch.Tensor` of shape `(num_prompts, 1, size, size)`, float 0 or 1.
    """
    masks = (logits > 0).float()
    size = masks.shape[-1]
    points = (points * size / config.mask_config.image_size).clamp(min=0)
    for mask, own_points, own_labels in zip(masks[:, 0], points, labels, strict=True):
        clicked = own_points[own_labels == 1].long().clamp(max=size - 1)
        mask[clicked[:, 1], clicked[:, 0]] = 1.0
        corners = own_points[(own_labels == 2) | (own_labels == 3)]
        if len(corners) and not mask.any():
            (left, top), (right, bottom) = corners[0].long().tolist(), corners[1].ceil().long().tolist()
            mask[top:bottom, left:right] = 1.0
            logger.warning_once("SAM 2 found nothing in a box; the whole box is taken as the region.")
        if config.region_shape == "box" and mask.any():
            rows, columns = mask.nonzero(as_tuple=True)
            mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = 1.0
    return masks


SamaForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")

__all__ = ["SamaForConditionalGeneration", "SamaModel"]
