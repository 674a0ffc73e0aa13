"""Messages to tensors, and answers back to phrases; the same for training and inference."""

# transformers 5.9 and older load only the files named here, and check the version only if none is missing
from .versions_sama import TRANSFORMERS  # noqa: F401  # isort: skip
from .checkpointing_sama import FRAMES_AT_ONCE  # noqa: F401  # isort: skip
from .modeling_sama_memory import ObjectMemory  # noqa: F401  # isort: skip
from .mp4_sama import Mp4Header  # noqa: F401  # isort: skip
from .pictures_sama import existing_path  # noqa: F401  # isort: skip
from .regions_sama import Region  # noqa: F401  # isort: skip
from .tracking_sama import ObjectMasks  # noqa: F401  # isort: skip
from .video_readers_sama import FrameSource  # noqa: F401  # isort: skip

import copy
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import BatchFeature, PreTrainedTokenizerBase, ProcessorMixin
from transformers.utils import logging

from .configuration_sama import DENSE_FRAME_TOKEN, SHARED_SETTINGS, TEXT_TOKEN, SamaConfig
from .encoding_sama import (
    ConversationInputs,
    SamFrames,
    TokenCounts,
    TurnInputs,
    WrittenConversation,
    check_cell_regions,
    check_ids,
    check_length,
    check_tags,
    collate_frames,
    collate_questions,
    collate_tokens,
    common_prefix,
    count_cells,
    count_tokens,
    mask_tensors,
    one_for_each,
    place_regions,
    prompt_pixel_values,
    prompt_tensors,
    token_types,
    tokenize_text,
    turns_with_placeholders,
    write_messages,
)
from .messages_sama import ParsedConversation, is_batch, question_parts, read_conversation, read_keywords
from .modeling_sama_backbones import backbone_family
from .modeling_sama_tracker import pixel_statistics
from .objects_sama import GroundedPhrase, MaskTrack, PreparedRegion, prepare_region, without_specks
from .pixels_sama import normalized_pixels
from .prompts_sama import (
    ANSWER_TAGS,
    LANGUAGE_TAGS,
    QFORMER_TAGS,
    Answer,
    TurnWriter,
    VisualText,
    decode_answer,
    parse_answer,
    to_tagged_text,
    unused_mark,
)
from .rendered_text_sama import TextCall, TextReader, placeholder_kinds, text_calls
from .templates_sama import TURN_FORMATS, answer_end, check_turn_format, open_answer, render_messages, resolve_template
from .video_sama import FrameChoice, SamaVideo, choose_frames


logger = logging.get_logger(__name__)
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


class SamaProcessor(ProcessorMixin):
    """
    Turns conversations about a video or image into model inputs, and answers into text with grounded phrases.

    Args:
        image_processor ([`GotOcr2ImageProcessorPil`], *optional*): Holds the vision tower's `size`, `image_mean`,
            `image_std` and `max_patches` (tiles of a still). Made from `image_size` and `max_tiles` when absent.
        tokenizer ([`PreTrainedTokenizerFast`]): The language model's tokenizer with SAMA's tags.
        qformer_tokenizer ([`PreTrainedTokenizerFast`]): The temporal Q-Former's; saved in a folder of this name. Not
            used by a model without aggregator.
        chat_template (`str`, *optional*): A jinja template or a name of `CHAT_TEMPLATES`; default: the tokenizer's.
        config ([`SamaConfig`]): The model's configuration, which holds the settings that both share. `from_pretrained`
            reads it from `config.json`, which `save_pretrained` writes if the model has not.
        image_size (`int`, *optional*), max_tiles (`int`, *optional*): Replace the image processor's (448 and 12), of
            InternVL.
        turn_format (`str`, defaults to `"newlines"`): A name of `TURN_FORMATS`: newlines around the context tokens.
        max_context_frames (`int`, defaults to 32), num_dense_frames (`int`, defaults to 5): See [`choose_frames`].
        qformer_max_length (`int`, defaults to 256): Tokens of a question in the Q-Former; longer ones are cut on the
            left.
        sam_image_mean, sam_image_std (`list[float]`, *optional*): Of the mask model's pixels; default: its weights'.

    Raises:
        ValueError: if a tokenizer lacks a tag, or its ids differ from those in `config`.
    """

    qformer_tokenizer: PreTrainedTokenizerBase

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        qformer_tokenizer=None,
        chat_template: str | None = None,
        config: SamaConfig | None = None,
        image_size: int | None = None,
        max_tiles: int | None = None,
        turn_format: str = "newlines",
        max_context_frames: int = 32,
        num_dense_frames: int = 5,
        qformer_max_length: int = 256,
        sam_image_mean: Sequence[float] | None = None,
        sam_image_std: Sequence[float] | None = None,
    ):
        if config is None:
            raise ValueError("SamaProcessor needs the model's `config`, which holds the settings that both share.")
        self.config = config
        self.turn_format = check_turn_format(turn_format)
        self.max_context_frames, self.num_dense_frames = max_context_frames, num_dense_frames
        self.qformer_max_length = qformer_max_length
        mean, std = pixel_statistics(config.mask_config)
        self.sam_image_mean, self.sam_image_std = list(sam_image_mean or mean), list(sam_image_std or std)
        self.family = backbone_family(config.backbone_config)
        if image_processor is None:
            image_processor = self.family.make_image_processor()
        self.family.check_image_processor(image_processor)
        image_processor = self.family.portable(image_processor)
        self.family.set_sizes(image_processor, image_size, max_tiles)
        tokenizer = check_tags(tokenizer, (*LANGUAGE_TAGS, *self.family.tags), "tokenizer")
        check_ids(tokenizer, config, self.family.tags.context)
        if config.aggregator_config is None:
            qformer_tokenizer = copy.deepcopy(tokenizer)  # the base class saves one of its own, which nobody reads
        else:
            qformer_tokenizer = check_tags(qformer_tokenizer, QFORMER_TAGS, "qformer_tokenizer")
            # Questions are cut on the left: what is asked usually stands at the end.
            qformer_tokenizer.truncation_side, qformer_tokenizer.padding_side = "left", "right"
        template = resolve_template(chat_template or tokenizer.chat_template or self.family.chat_template)
        super().__init__(image_processor, tokenizer, qformer_tokenizer, chat_template=template)

    @classmethod
    def get_processor_dict(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs) -> tuple[dict, dict]:
        """As the base class, with the model's configuration: `config` or the file's, with settings of `kwargs`."""
        processor_dict, unused = super().get_processor_dict(pretrained_model_name_or_path, **kwargs)
        overrides = {name: unused.pop(name) for name in SHARED_SETTINGS if name in unused}
        hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        config = copy.deepcopy(unused.pop("config", None))
        if config is None:
            config = SamaConfig.from_pretrained(pretrained_model_name_or_path, **hub, **overrides)
        elif overrides:
            config = type(config).from_dict(config.to_dict() | overrides)
        if "layout" in processor_dict:  # the name of `turn_format` before version 0.2
            processor_dict["turn_format"] = processor_dict.pop("layout")
        return processor_dict | {"config": config}, unused

    def to_dict(self) -> dict:
        """As the base class, without what follows from the model's configuration."""
        own = zip(("sam_image_mean", "sam_image_std"), pixel_statistics(self.config.mask_config), strict=True)
        left_out = {"config", "family"} | {name for name, value in own if vars(self)[name] == list(value)}
        return {name: value for name, value in super().to_dict().items() if name not in left_out}

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs):
        """As the base class; writes the model's `config.json` too where there is none yet."""
        if not (Path(save_directory) / "config.json").is_file():
            self.config.save_pretrained(save_directory)
        return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    @property
    def template(self) -> str:
        """The chat template."""
        if not isinstance(self.chat_template, str):
            raise ValueError(f"The chat template must be one text, got {type(self.chat_template).__name__}.")
        return self.chat_template

    @property
    def preset(self) -> str:
        """The preset of the model's configuration, see [`choose_frames`]."""
        return self.config.preset

    @property
    def image_token_id(self) -> int:
        return self.config.image_token_id

    @property
    def _question_tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer of the temporal Q-Former, if the model has one."""
        return self.qformer_tokenizer if self.has_aggregator else None

    @property
    def seg_token_id(self) -> int:
        return self.config.seg_token_id

    @property
    def sam_image_size(self) -> int:
        return self.config.mask_config.image_size

    @property
    def max_tiles(self) -> int:
        """Most tiles of a still, the thumbnail not counted."""
        return self.family.max_tiles(self.image_processor)

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "mm_token_type_ids", "pixel_values"]

    @property
    def answer_suffix(self) -> str:
        """The end mark that the chat template puts behind an answer, such as `<|im_end|>`."""
        return answer_end(self.template, self.tokenizer.special_tokens_map)

    @property
    def stop_arguments(self) -> dict:
        """What `generate` needs to stop behind an answer: nothing where the end mark is the end-of-text token, its
        text where it is ordinary words, as in the `phi3_chat` template."""
        mark = self.answer_suffix.strip()
        if not mark or mark in self.tokenizer.all_special_tokens:
            return {}
        return {"stop_strings": [mark], "tokenizer": self.tokenizer}

    # Videos and frames
    open_video = staticmethod(SamaVideo.open)

    def choose_frames(self, video: SamaVideo, max_context_frames: int | None = None) -> FrameChoice:
        """Context, dense and prompted frames of a video, as this processor's settings choose them."""
        most = self.max_context_frames if max_context_frames is None else max_context_frames
        return choose_frames(len(video), self.preset, most, self.num_dense_frames, self.has_aggregator)

    @property
    def has_aggregator(self) -> bool:
        """Whether the model reads context frames: a SAMA does, a Sa2VA does not."""
        return self.config.aggregator_config is not None

    def region_frame(self, region, video: SamaVideo) -> int:
        """The frame that is used for a region, whatever kind it is of: see [`prepare_region`]."""
        return self.prepare_region(region, video).frame

    def prepare_region(self, region, video: SamaVideo, frames: FrameChoice | None = None) -> PreparedRegion:
        """A checked region on the one frame that is used for it: see [`prepare_region`]."""
        frames = frames or self.choose_frames(video)
        return prepare_region(region, video, frames.dense, self.config.region_shape)

    def sam_pixel_values(self, frame: np.ndarray) -> torch.Tensor:
        """A `(height, width, 3)` uint8 frame as SAM 2's square input: float tensor of shape `(3, size, size)`."""
        return normalized_pixels(Image.fromarray(frame), self.sam_image_size, self.sam_image_mean, self.sam_image_std)

    def sam_frames(self, video: SamaVideo) -> SamFrames:
        """All frames of a video as SAM 2 inputs, decoded and resized only when asked for."""
        return SamFrames(video, self.sam_image_size, self.sam_image_mean, self.sam_image_std)

    def frame_grid(self, video: SamaVideo) -> tuple[int, int]:
        """Rows and columns of the tokens of each frame of a video."""
        return self.family.frame_grid(self.image_processor, video.height, video.width)

    @property
    def max_frame_tokens(self) -> int:
        """The most tokens of a frame."""
        return self.family.max_frame_tokens(self.image_processor)

    def frame_pixel_values(self, video: SamaVideo, frames: Sequence[int]) -> torch.Tensor:
        """Pixel values of frames for the vision tower, such as a float tensor of shape `(num_frames, 3, size, size)`
        for InternVL."""
        return self.family.frame_pixel_values(self.image_processor, [Image.fromarray(video[one]) for one in frames])

    def tile_pixel_values(self, image: SamaVideo) -> torch.Tensor:
        """Pixel values of a still: for InternVL of 1 to `max_tiles` tiles, and of the whole image, which comes last,
        when there are several."""
        return self.family.tile_pixel_values(self.image_processor, Image.fromarray(image[0]))

    def _num_tiles(self, image: SamaVideo) -> int:
        return self.family.num_tiles(self.image_processor, image.height, image.width)

    # Conversations to tensors

    def __call__(
        self,
        messages: list | None = None,
        text: str | Sequence[str] | None = None,
        images=None,
        videos=None,
        regions: Sequence = (),
        **kwargs,
    ) -> Any:
        """
        Model inputs of messages, or of text and what it is about.

        Args:
            messages (`list`, *optional*): As [`apply_chat_template`] takes them, with its other arguments.
            text (`str` or `list[str]`, *optional*): Instead of messages: what `apply_chat_template(messages,
                tokenize=False)` wrote, whose control tokens are real; or a question, whose `<region>` marks stand for
                `regions` and which becomes one user turn. Give text of unknown origin as messages.
            images, videos (*optional*): What the text is about: for one text a single image or video, alone or in a
                list of one; for a list of texts a list with one for each, or `None`.
            regions (`list`): What the text points at; for a list of texts a list of lists.
            kwargs: As in [`apply_chat_template`]; with `text` only those that other processors take too.

        Raises:
            ValueError: for both messages and text, and where text and video do not fit.
        """
        if (messages is None) == (text is None):
            found = "neither" if text is None else "both"
            raise ValueError(f"SamaProcessor takes either messages or text=, got {found}.")
        if messages is not None:
            if images is not None or videos is not None or (regions is not None and len(regions)):
                raise ValueError("With messages, images, videos and regions are content parts of the messages.")
            return self.apply_chat_template(messages, **kwargs)
        num_frames = read_keywords(kwargs)
        calls = text_calls(text, images, videos, regions)
        return self._collate([self._encode_text_call(call, num_frames) for call in calls], assistant_masks=False)

    def _encode_text_call(self, call: TextCall, num_frames: int | None) -> ConversationInputs:
        """One conversation of a call with text."""
        tags, turn_format = self.family.tags, TURN_FORMATS[self.turn_format]
        reader = TextReader(self.template, self.tokenizer.special_tokens_map, tags, turn_format)
        rendered = reader.is_rendered(call.text)
        parsed = read_conversation([{"role": "user", "content": call.content(rendered, tags)}])
        frames = None if parsed.video is None else self.choose_frames(parsed.video, num_frames)
        if rendered and call.regions and self.config.region_prompts == "cells":
            raise ValueError(
                "This model reads regions from messages only; give messages instead of their rendered text."
            )
        if not rendered:
            return self._encode(self._write(parsed, self.template, True, self.turn_format, frames))
        turns = reader.questions(call, self._visual_text(parsed.video, frames))
        ids = self.tokenizer(call.text, add_special_tokens=False)["input_ids"]
        check_length(ids, self.tokenizer.model_max_length)
        types = token_types(ids, self.image_token_id, placeholder_kinds(call.text, tags))
        inputs = ConversationInputs(ids, types, [0] * len(ids), turns=turns, video=parsed.video, frame_choice=frames)
        self._with_positions(inputs)
        if parsed.video is not None:
            self._place_regions(inputs, call.regions)
            inputs.pixel_values = self._pixel_values(inputs)
        return inputs

    def apply_chat_template(
        self,
        conversation: list,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        tokenize: bool = True,
        return_dict: bool = True,
        return_tensors: str = "pt",
        return_assistant_tokens_mask: bool = False,
        turn_format: str | Sequence[str] | None = None,
        frames: FrameChoice | Sequence[FrameChoice | None] | None = None,
        continue_final_message: bool = False,
        **kwargs,
    ):
        """
        Turn one conversation, or a list of them, into model inputs.

        Args:
            conversation (`list[dict]` or `list[list[dict]]`): Messages with `role` and `content`; content parts are
                `video`, `image`, `text` and `region` in user turns, `text` and `grounded` in assistant turns.
            chat_template (`str`, *optional*): Another template than the processor's.
            add_generation_prompt (`bool`): Open an answer after conversations that end with a user turn.
            tokenize (`bool`): `False` returns the text (a list of texts for a list of conversations).
            return_dict (`bool`): `False` returns `input_ids` alone.
            return_tensors (`str`): Only "pt".
            return_assistant_tokens_mask (`bool`): Add `assistant_masks`: 1 on answers and their end marks.
            turn_format (`str` or `list[str]`, *optional*): Another turn format than the processor's; a list has one
                for each conversation.
            frames ([`FrameChoice`] or `list`, *optional*): Which frames of the video are used, instead of
                [`choose_frames`]; a list has one for each conversation, `None` for the default.
            continue_final_message (`bool`): Leave the last answer open, without its end mark, so that `generate` goes
                on with it.
            kwargs: Of the arguments that other processors take: `num_frames`, the most context frames of a video;
                `padding=True`; `processor_kwargs`, a dict of further ones.

        Raises:
            ValueError: for messages that are wrong, for a conversation that is longer than the model can read, and for
                arguments that SAMA does not have.
        """
        num_frames = read_keywords(kwargs)
        if return_tensors != "pt":
            raise ValueError(f"SamaProcessor makes PyTorch tensors only, got return_tensors={return_tensors!r}.")
        batched = is_batch(conversation)
        template = self.template if chat_template is None else resolve_template(chat_template)
        if return_assistant_tokens_mask and "generation" not in template:
            raise ValueError("The chat template has no {% generation %} block, so the answers' tokens are not known.")
        conversations = [read_conversation(messages) for messages in (conversation if batched else [conversation])]
        formats = one_for_each("turn formats", turn_format, len(conversations), self.turn_format)
        choices = one_for_each("frame choices", frames, len(conversations), None)
        if num_frames is not None:
            if frames is not None:
                raise ValueError(f"Either `frames` or num_frames={num_frames} chooses the frames, got both.")
            videos = [one.video for one in conversations]
            choices = [None if video is None else self.choose_frames(video, num_frames) for video in videos]
        written = [
            self._write(parsed, template, add_generation_prompt, name, choice)
            for parsed, name, choice in zip(conversations, formats, choices, strict=True)
        ]
        if continue_final_message:
            suffix = answer_end(template, self.tokenizer.special_tokens_map)
            written = [replace(one, rendered=open_answer(one.rendered, suffix)) for one in written]
        elif tokenize and not add_generation_prompt and any(one.parsed.messages[-1].role == "user" for one in written):
            logger.warning_once(
                "A conversation ends with a question and add_generation_prompt=False: no answer is opened, so "
                "`generate` would go on with the question."
            )
        if not tokenize:
            texts = [one.rendered.text for one in written]
            return texts if batched else texts[0]
        batch = self._collate([self._encode(one) for one in written], return_assistant_tokens_mask)
        return batch if return_dict else batch["input_ids"]

    def encode_turn(
        self, messages: list, known_ids: torch.Tensor | None = None, known_frames: Sequence[int] = ()
    ) -> TurnInputs:
        """
        The next turn of a conversation whose beginning the model has read: the tensors of what is new, and no others.

        Args:
            messages (`list[dict]`): The conversation, which ends with the new question.
            known_ids (`torch.LongTensor` of shape `(num_tokens,)`, *optional*): Tokens whose keys and values the model
                has kept. At least one token is always left to read.
            known_frames (`list[int]`): Frames that were encoded before, in the order of their features.

        Raises:
            ValueError: as [`apply_chat_template`].
        """
        parsed = read_conversation(messages)
        written = self._write(parsed, self.template, True, self.turn_format, None)
        inputs = self._encode_text(written)
        ids, types = torch.tensor(inputs.input_ids), torch.tensor(inputs.token_types)
        known = 0 if known_ids is None else common_prefix(known_ids.to(ids.device), ids[:-1])
        turn = TurnInputs(ids[None], types[None], num_known_tokens=known)
        turn.position_ids = None if inputs.position_ids is None else inputs.position_ids[:, None]
        num_placeholders = int((types[known:] != TEXT_TOKEN).sum())
        if parsed.video is None or not num_placeholders:
            return turn
        new = turns_with_placeholders(written.turns, num_placeholders)
        regions = parsed.regions[len(parsed.regions) - sum(one.num_regions for one in new) :]
        self._place_regions(inputs, regions, known_frames)
        turn.frames, turn.num_context_frames = inputs.frames, inputs.num_context_frames
        turn.dense_rows = inputs.dense_rows
        turn.pixel_values = self._pixel_values(inputs, first=len(known_frames))
        turn.num_new_frames = len(turn.frames) - len(known_frames)
        turn.prompt_frames = [region.frame for region in inputs.regions if region.mask is None]
        shows = bool((types[known:] == DENSE_FRAME_TOKEN).any())
        inputs.turns = new
        turn.visual = {
            "num_context_frames": torch.tensor([inputs.num_context_frames]),
            "num_extra_frames": torch.tensor([len(turn.frames) - inputs.num_context_frames]),
            "dense_frames": torch.tensor(inputs.dense_rows if shows else [], dtype=torch.long),
            "frame_grids": torch.tensor([inputs.grid]),
            **collate_questions([inputs], self._question_tokenizer, self.qformer_max_length),
            **self._region_tensors([inputs]),
        }
        if inputs.regions:
            turn.visual["region_frames"] = torch.tensor(inputs.region_rows)
        return turn

    def count_tokens(
        self, conversation: list, turn_format: str | None = None, frames: FrameChoice | None = None
    ) -> TokenCounts:
        """How long a conversation is. No limit is enforced and no frame is decoded."""
        name = check_turn_format(turn_format or self.turn_format)
        written = self._write(read_conversation(conversation), self.template, False, name, frames)
        return count_tokens(written, self.tokenizer, self._question_tokenizer, self.qformer_max_length)

    def _visual_text(self, video: SamaVideo | None, frames: FrameChoice | None) -> VisualText | None:
        if video is None or frames is None:
            return None
        tiles = self._num_tiles(video) if video.is_image else 0
        num_context = (tiles or len(frames.context)) if self.has_aggregator else 0
        counts = (num_context, tiles or len(frames.dense))
        return VisualText(video.is_image, *counts, math.prod(self.frame_grid(video)), self.family.tags)

    def _write(
        self,
        parsed: ParsedConversation,
        template: str,
        add_generation_prompt: bool,
        turn_format: str,
        frames: FrameChoice | None,
    ) -> WrittenConversation:
        """The text of a conversation, in which placeholders stand for frames, context and regions."""
        if parsed.video is not None and frames is None:
            frames = self.choose_frames(parsed.video)
        writer = TurnWriter(
            self.tokenizer,
            self._question_tokenizer,
            TURN_FORMATS[check_turn_format(turn_format)],
            self.family.tags,
            unused_mark([piece for message in parsed.messages for piece in message.pieces if piece]),
            self._region_cells(parsed, frames),
        )
        messages, turns = write_messages(parsed, writer, self._visual_text(parsed.video, frames))
        special_tokens = self.tokenizer.special_tokens_map
        rendered = render_messages(messages, template, special_tokens, add_generation_prompt, writer.mark)
        return WrittenConversation(rendered, turns, parsed, frames)

    def _region_cells(self, parsed: ParsedConversation, frames: FrameChoice | None) -> list[int] | None:
        """How many tokens each region covers, for a model that reads them as copies of these tokens; else None."""
        if self.config.region_prompts == "encoded":
            return None
        video = check_cell_regions(parsed, self.config.region_prompts)
        regions = [self.prepare_region(region, video, frames) for region in parsed.regions]
        return count_cells(regions, self.frame_grid(video), self.preset == "consistent") if regions else []

    def _encode(self, written: WrittenConversation) -> ConversationInputs:
        """Tokens, frames, questions and regions of a whole conversation."""
        inputs, parsed = self._encode_text(written), written.parsed
        if parsed.video is not None:
            before = sum(message.role == "user" for message in parsed.messages[: parsed.visual_turn])
            inputs.turns = written.turns[before:]
            self._place_regions(inputs, parsed.regions)
            inputs.pixel_values = self._pixel_values(inputs)
        return inputs

    def _encode_text(self, written: WrittenConversation) -> ConversationInputs:
        ids, mask = tokenize_text(self.tokenizer, written.rendered)
        check_length(ids, self.tokenizer.model_max_length)
        types = token_types(
            ids, self.image_token_id, [kind for turn in written.turns for kind in turn.placeholder_types]
        )
        inputs = ConversationInputs(ids, types, mask, video=written.parsed.video, frame_choice=written.frames)
        return self._with_positions(inputs)

    def _with_positions(self, inputs: ConversationInputs) -> ConversationInputs:
        if inputs.video is not None:
            inputs.grid = self.frame_grid(inputs.video)
        inputs.position_ids = self.family.position_ids(inputs.token_types, inputs.grid)
        return inputs

    def _place_regions(self, inputs: ConversationInputs, regions: Sequence, known_frames: Sequence[int] = ()) -> None:
        video, choice = inputs.shown
        prepared = [self.prepare_region(region, video, choice) for region in regions]
        place_regions(inputs, prepared, self._num_tiles(video) if video.is_image else 0, known_frames)

    def _pixel_values(self, inputs: ConversationInputs, first: int = 0) -> torch.Tensor:
        """Pixel values of the frames or tiles from row `first` on."""
        video, _ = inputs.shown
        if not video.is_image:
            return self.frame_pixel_values(video, inputs.frames[first:])
        # All tiles of a still are encoded at once
        return self.frame_pixel_values(video, []) if first else self.tile_pixel_values(video)

    def _region_tensors(self, samples: Sequence[ConversationInputs]) -> dict:
        """Masks of all regions, and the prompts of those that SAM 2 turns into masks."""
        regions = [(region, sample.shown[0]) for sample in samples for region in sample.regions]
        grids, keep_small = [self.frame_grid(video) for _, video in regions], self.preset == "consistent"
        return {
            **mask_tensors(regions, self.config.region_mask_size, grids, keep_small),
            **prompt_tensors(regions, self.sam_image_size),
        }

    def _collate(self, samples: list[ConversationInputs], assistant_masks: bool) -> BatchFeature:
        pad_id = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0
        data = collate_tokens(samples, pad_id, assistant_masks)
        if any(sample.pixel_values is not None for sample in samples):
            regions = [(region, sample.shown[0]) for sample in samples for region in sample.regions]
            data.update(collate_frames(samples))
            data.update(collate_questions(samples, self._question_tokenizer, self.qformer_max_length))
            data.update(self._region_tensors(samples))
            data.update(prompt_pixel_values(regions, self.sam_pixel_values))
        return BatchFeature(data)

    # Questions and answers

    def decode(self, token_ids, skip_special_tokens: bool = False, **kwargs) -> Any:
        """As the tokenizer; with `skip_special_tokens=True` the text of [`post_process_answer`], in which the tags
        leave no doubled blanks. A list of texts for a batch of ids."""
        if not skip_special_tokens:
            return self.tokenizer.decode(token_ids, **kwargs)
        ids = token_ids.tolist() if isinstance(token_ids, (torch.Tensor, np.ndarray)) else token_ids
        if isinstance(ids, (list, tuple)) and ids and isinstance(ids[0], (list, tuple)):
            return [self.decode(row, skip_special_tokens=True) for row in ids]
        return self.post_process_answer(ids if isinstance(ids, (list, tuple)) else [ids]).text

    def batch_decode(self, sequences, skip_special_tokens: bool = False, **kwargs) -> list[str]:
        """[`decode`] for each of several sequences."""
        return [self.decode(sequence, skip_special_tokens, **kwargs) for sequence in sequences]

    def post_process_image_text_to_text(self, generated_outputs, skip_special_tokens: bool = True, **kwargs) -> list:
        """[`batch_decode`], as `pipeline("image-text-to-text")` calls it."""
        return self.batch_decode(torch.as_tensor(generated_outputs), skip_special_tokens, **kwargs)

    def question_parts(self, question: str, regions: Sequence = ()) -> list[dict]:
        """Content parts of a question in which every `<region>` stands for the next of `regions`."""
        return question_parts(question, regions)

    def to_tagged_text(self, text: str, objects: Sequence[GroundedPhrase]) -> str:
        """Write the tags back into a clean answer: `<p> The man </p> [SEG] pets a dog.`"""
        return to_tagged_text(text, objects)

    def post_process_masks(
        self, mask_logits: torch.Tensor, height: int, width: int, min_component_fraction: float = 0.0
    ) -> np.ndarray:
        """
        Masks at the video's own size: logits of shape `(num_objects, side, side)` go up to SAM 2's input size, then to
        the video's, bilinearly, and what is positive belongs to the object, except for specks: components smaller than
        `min_component_fraction` of the mask. By default, as published, all of them stay.

        Returns:
            `np.ndarray` of shape `(num_objects, height, width)`, bool.
        """
        masks = (self.resize_mask_logits(mask_logits, height, width) > 0).cpu().numpy()
        return without_specks(masks, min_component_fraction)

    def resize_mask_logits(self, mask_logits: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Float logits of shape `(num_objects, height, width)`, on the way that [`post_process_masks`] describes."""
        square = (self.sam_image_size, self.sam_image_size)
        logits = F.interpolate(mask_logits[None].float(), square, mode="bilinear", align_corners=False)
        return F.interpolate(logits, (height, width), mode="bilinear", align_corners=False)[0]

    def post_process_answer(
        self,
        answer: str | Sequence[int] | torch.Tensor,
        tracks: Sequence[MaskTrack] | None = None,
        scores: Sequence[float] | None = None,
    ) -> Answer:
        """
        Parse a generated answer.

        Args:
            answer (`str`, `list[int]` or `torch.Tensor` of shape `(num_tokens,)`): The answer without its prompt.
            tracks (`list[MaskTrack]`, *optional*): One for each [SEG].
            scores (`list[float]`, *optional*): One for each [SEG].
        """
        if not isinstance(answer, str):
            answer = decode_answer([int(token) for token in answer], self.tokenizer)
        else:
            for token in set(self.tokenizer.all_special_tokens) - set(ANSWER_TAGS):
                answer = answer.replace(token, "")
        return parse_answer(answer.strip().removesuffix(self.answer_suffix).strip(), tracks, scores)


SamaProcessor.register_for_auto_class("AutoProcessor")
