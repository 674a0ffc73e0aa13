"""What goes into SAMA and what comes out: conversations to tensors, answers to grounded phrases."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import BatchFeature
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import (
    GotOcr2ImageProcessorPil,
    get_optimal_tiled_canvas,
)
from transformers.processing_utils import ProcessorMixin
from transformers.utils.chat_template_utils import render_jinja_template

from .batch_sama import ConversationInputs, collate_frames, collate_questions, collate_tokens, tokenize_questions
from .configuration_sama import REGION_SHAPES, TEXT_TOKEN, check_preset
from .conversation_sama import Conversation, read_conversation
from .layout_sama import (
    ANSWER_TAGS,
    CHAT_TEMPLATES,
    IMAGE_CONTEXT,
    LANGUAGE_TAGS,
    LAYOUTS,
    POOLED_SLOT,
    QFORMER_TAGS,
    SEG,
    Answer,
    TurnText,
    VisualText,
    check_layout,
    decode_answer,
    parse_tagged_text,
    question_parts,
    render_user_turn,
    to_tagged_text,
)
from .regions_sama import PreparedRegion, mask_tensors, prepare_region, prompt_tensors
from .video_sama import FrameChoice, GroundedPhrase, MaskTrack, SamaVideo, choose_frames


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass
class ProcessorSettings:
    """
    Settings of [`SamaProcessor`] that are saved in `processor_config.json`.

    Args:
        image_seq_length (`int`): Tokens of one frame in the language model; a square number.
        sam_image_size (`int`): Side of SAM 2's square input.
        region_mask_size (`int`): Side of the masks that the shape encoder reads.
        region_shape (`str`): "mask", or "box" when every region is replaced by its filled bounding box.
        preset (`str`): "consistent" or "published", see [`choose_frames`].
        layout (`str`): A name of `LAYOUTS`: the newlines around the context tokens.
        max_context_frames (`int`), num_dense_frames (`int`): See [`choose_frames`].
        qformer_max_length (`int`): Tokens of a question in the Q-Former; longer ones are cut on the left.
    """

    image_seq_length: int = 256
    sam_image_size: int = 1024
    region_mask_size: int = 112
    region_shape: str = "mask"
    preset: str = "consistent"
    layout: str = "default"
    max_context_frames: int = 32
    num_dense_frames: int = 5
    qformer_max_length: int = 256

    def __post_init__(self):
        self.preset = check_preset(self.preset)
        check_layout(self.layout)
        if self.region_shape not in REGION_SHAPES:
            raise ValueError(f"region_shape={self.region_shape!r} is unknown, expected one of {REGION_SHAPES}.")
        if math.isqrt(self.image_seq_length) ** 2 != self.image_seq_length:
            raise ValueError(f"image_seq_length={self.image_seq_length} is not a square number.")


class SamFrames(Sequence):
    """Frames of a video as SAM 2 inputs, made one at a time when they are asked for."""

    def __init__(self, processor: "SamaProcessor", video: SamaVideo):
        self._processor, self._video = processor, video

    def __len__(self) -> int:
        return len(self._video)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self._processor.sam_pixel_values(self._video[index])


class SamaProcessor(ProcessorMixin):
    """
    Turns conversations about a video or image into model inputs, and answers into text with grounded phrases.

    Args:
        image_processor ([`GotOcr2ImageProcessorPil`], *optional*): Holds the vision tower's `size`, `image_mean`,
            `image_std` and `max_patches` (tiles of a still). Made from `image_size` and `max_tiles` when absent.
        tokenizer ([`PreTrainedTokenizerFast`]): The language model's tokenizer with SAMA's tags.
        qformer_tokenizer ([`PreTrainedTokenizerFast`]): The temporal Q-Former's; saved in a folder of this name.
        chat_template (`str`, *optional*): A jinja template or a name of `CHAT_TEMPLATES`; default: the tokenizer's.
        image_size (`int`, *optional*), max_tiles (`int`, *optional*): Replace the image processor's (448 and 12).
        settings: Fields of [`ProcessorSettings`].
    """

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        qformer_tokenizer=None,
        chat_template: str | None = None,
        image_size: int | None = None,
        max_tiles: int | None = None,
        **settings,
    ):
        known = [item.name for item in fields(ProcessorSettings)]
        unknown = sorted(set(settings) - set(known))
        if unknown:
            raise ValueError(f"Unknown processor settings {', '.join(unknown)}; expected some of {', '.join(known)}.")
        vars(self).update(asdict(ProcessorSettings(**settings)))
        if image_processor is None:
            image_processor = GotOcr2ImageProcessorPil(
                size={"height": 448, "width": 448}, image_mean=IMAGENET_MEAN, image_std=IMAGENET_STD
            )
        if image_size is not None:
            image_processor.size = type(image_processor.size)(height=image_size, width=image_size)
        if max_tiles is not None:
            image_processor.max_patches = max_tiles
        _check_tags(tokenizer, LANGUAGE_TAGS, "tokenizer")
        _check_tags(qformer_tokenizer, QFORMER_TAGS, "qformer_tokenizer")
        # Questions are cut on the left: what is asked usually stands at the end.
        qformer_tokenizer.truncation_side, qformer_tokenizer.padding_side = "left", "right"
        template = chat_template or tokenizer.chat_template or "qwen_chat"
        super().__init__(
            image_processor, tokenizer, qformer_tokenizer, chat_template=CHAT_TEMPLATES.get(template, template)
        )
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_CONTEXT)
        self.seg_token_id = tokenizer.convert_tokens_to_ids(SEG)

    @classmethod
    def from_args_and_dict(cls, args, processor_dict: dict, **kwargs):
        """As the base class; also passes the settings on, which are not named in the constructor's signature."""
        settings = [item.name for item in fields(ProcessorSettings)]
        legacy = {"preset": processor_dict.get("grounding_policy")}  # its name before version 0.2
        chosen = {name: kwargs.pop(name, processor_dict.get(name, legacy.get(name))) for name in settings}
        return (
            super()
            .from_args_and_dict(args, processor_dict, **kwargs)
            ._with_settings({name: value for name, value in chosen.items() if value is not None})
        )

    def _with_settings(self, settings: dict) -> "SamaProcessor":
        vars(self).update(asdict(ProcessorSettings(**settings)))
        return self

    def to_dict(self) -> dict:
        """As the base class, with the settings."""
        return {**super().to_dict(), **{item.name: vars(self)[item.name] for item in fields(ProcessorSettings)}}

    @property
    def image_size(self) -> int:
        """Side of the vision tower's square input."""
        return self.image_processor.size["height"]

    @property
    def max_tiles(self) -> int:
        """Most tiles of a still, the thumbnail not counted."""
        return self.image_processor.max_patches

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "mm_token_type_ids", "pixel_values"]

    @property
    def answer_suffix(self) -> str:
        """The end mark that the chat template puts behind an answer, such as `<|im_end|>`."""
        turn = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
        text, spans = self._render(turn, self.chat_template, False)
        return text[spans[0][0] + 1 : spans[0][1]] if spans else ""

    @property
    def stop_arguments(self) -> dict:
        """What `generate` needs to stop behind an answer: nothing where the end mark is the end-of-text token, its
        text where it is ordinary words, as in the `phi3_chat` template."""
        mark = self.answer_suffix.strip()
        if not mark or mark in self.tokenizer.all_special_tokens:
            return {}
        return {"stop_strings": [mark], "tokenizer": self.tokenizer}

    # Videos and frames

    def open_video(self, source) -> SamaVideo:
        """Open a video or an image, see [`SamaVideo.open`]."""
        return SamaVideo.open(source)

    def choose_frames(self, video: SamaVideo) -> FrameChoice:
        """Context, dense and prompted frames of a video: its own choice, or that of this processor's policies."""
        if video.frame_choice is not None:
            return video.frame_choice
        return choose_frames(len(video), self.preset, self.max_context_frames, self.num_dense_frames)

    def region_frame(self, region, video: SamaVideo) -> int:
        """The frame that is used for a region, whatever kind it is of: see [`prepare_region`]."""
        return self._prepare_region(region, video).frame

    def _prepare_region(self, region, video: SamaVideo) -> PreparedRegion:
        return prepare_region(region, video, self.choose_frames(video).dense, self.region_shape)

    def sam_pixel_values(self, frame: np.ndarray) -> torch.Tensor:
        """A `(height, width, 3)` uint8 frame as SAM 2's square input: float tensor of shape `(3, size, size)`."""
        return self._normalized(Image.fromarray(frame), self.sam_image_size)

    def sam_frames(self, video: SamaVideo) -> SamFrames:
        """All frames of a video as SAM 2 inputs, decoded and resized only when asked for."""
        return SamFrames(self, video)

    def frame_pixel_values(self, video: SamaVideo, frames: Sequence[int]) -> torch.Tensor:
        """Pixel values of frames, kept with the video: float tensor of shape `(num_frames, 3, size, size)`."""
        memo, size = video.pixel_memo, self.image_size
        for frame in frames:
            if (size, frame) not in memo:
                memo[size, frame] = self._normalized(Image.fromarray(video[frame]), size)
        return torch.stack([memo[size, frame] for frame in frames])

    def tile_pixel_values(self, image: SamaVideo) -> torch.Tensor:
        """
        Pixel values of a still, cut into 1 to `max_tiles` tiles as InternVL does; the whole image comes last when
        there are several. Float tensor of shape `(num_tiles, 3, image_size, image_size)`.
        """
        key = ("tiles", self.image_size, self.max_tiles)
        if key not in image.pixel_memo:
            size, picture = self.image_size, Image.fromarray(image[0])
            columns, rows = get_optimal_tiled_canvas((image.height, image.width), (size, size), 1, self.max_tiles)
            canvas = picture.resize((columns * size, rows * size), Image.Resampling.BICUBIC)
            corners = [(column * size, row * size) for row in range(rows) for column in range(columns)]
            tiles = [canvas.crop((left, top, left + size, top + size)) for left, top in corners]
            tiles += [picture] if len(tiles) > 1 else []
            image.pixel_memo[key] = torch.stack([self._normalized(tile, size) for tile in tiles])
        return image.pixel_memo[key]

    def _normalized(self, image: Image.Image, size: int) -> torch.Tensor:
        """Resize to the square and normalize; PIL on every machine, so pixels do not depend on what is installed."""
        pixels = np.asarray(image.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32) / 255
        mean = np.asarray(self.image_processor.image_mean, dtype=np.float32)
        std = np.asarray(self.image_processor.image_std, dtype=np.float32)
        return torch.from_numpy((pixels - mean) / std).movedim(-1, 0).contiguous()  # (3, size, size)

    # Conversations to tensors

    def __call__(self, messages: list, **kwargs) -> BatchFeature:
        """Same as [`SamaProcessor.apply_chat_template`]."""
        return self.apply_chat_template(messages, **kwargs)

    def apply_chat_template(
        self,
        conversation: list,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        tokenize: bool = True,
        return_dict: bool = True,
        return_tensors: str = "pt",
        return_assistant_tokens_mask: bool = False,
        layout: str | Sequence[str] | None = None,
    ):
        """
        Turn one conversation, or a list of them, into model inputs.

        Args:
            conversation (`list[dict]` or `list[list[dict]]`): Messages with `role` and `content`; content parts are
                `video`, `image`, `text` and `region` in user turns, `text` and `grounded` in assistant turns.
            chat_template (`str`, *optional*): Another template than the processor's.
            add_generation_prompt (`bool`): Open an answer behind conversations that end with a user turn.
            tokenize (`bool`): `False` returns the text (a list of texts for a list of conversations).
            return_dict (`bool`): `False` returns `input_ids` alone.
            return_tensors (`str`): Only "pt".
            return_assistant_tokens_mask (`bool`): Add `assistant_masks`: 1 on answers and their end marks.
            layout (`str` or `list[str]`, *optional*): Another layout than the processor's; a list has one for each.
        """
        if return_tensors != "pt":
            raise ValueError(f"SamaProcessor makes PyTorch tensors only, got return_tensors={return_tensors!r}.")
        batched = bool(conversation) and isinstance(conversation[0], (list, tuple))
        template = CHAT_TEMPLATES.get(chat_template, chat_template) or self.chat_template
        samples = [read_conversation(messages) for messages in (conversation if batched else [conversation])]
        laid_out = zip(samples, self._layouts(layout, len(samples)), strict=True)
        if not tokenize:
            texts = [self._write(sample, template, add_generation_prompt, named)[0] for sample, named in laid_out]
            return texts if batched else texts[0]
        inputs = [self._encode(sample, template, add_generation_prompt, named) for sample, named in laid_out]
        if return_assistant_tokens_mask and "generation" not in template:
            raise ValueError("The chat template has no {% generation %} block, so the answers' tokens are not known.")
        batch = self._collate(inputs, return_assistant_tokens_mask)
        return batch if return_dict else batch["input_ids"]

    def _render(self, messages: list[dict], template: str, add_generation_prompt: bool) -> tuple[str, list]:
        """The chat template's text and the `(start, end)` characters of the answers in it."""
        texts, spans = render_jinja_template(
            conversations=[messages],
            chat_template=template,
            return_assistant_tokens_mask="generation" in template,
            add_generation_prompt=add_generation_prompt and messages[-1]["role"] != "assistant",
            **self.tokenizer.special_tokens_map,
        )
        return texts[0], spans[0] if spans else []

    def _visual_text(self, video: SamaVideo | None) -> VisualText | None:
        if video is None:
            return None
        if video.is_image:
            num_context = num_dense = len(self.tile_pixel_values(video))
        else:
            choice = self.choose_frames(video)
            num_context, num_dense = len(choice.context), len(choice.dense)
        return VisualText(video.is_image, num_context, num_dense, self.image_seq_length)

    def _layouts(self, layout: str | Sequence[str] | None, number: int) -> list[str]:
        names = [layout or self.layout] * number if layout is None or isinstance(layout, str) else list(layout)
        if len(names) != number:
            raise ValueError(f"{len(names)} layouts were given for {number} conversations.")
        for name in names:
            check_layout(name)
        return names

    def _write(
        self, sample: Conversation, template: str, add_generation_prompt: bool, layout: str
    ) -> tuple[str, list, list]:
        """Text of a conversation, the `(start, end)` characters of its answers, and its user turns (`TurnText`)."""
        visual, turns, messages = self._visual_text(sample.video), [], []
        for index, turn in enumerate(sample.turns):
            if turn.role == "user":
                shown = visual if sample.visual_turn is not None and index >= sample.visual_turn else None
                text = render_user_turn(turn.pieces, shown, index == sample.visual_turn, LAYOUTS[layout])
                turns.append(text)
                messages.append({"role": "user", "content": text.text})
            else:
                messages.append({"role": turn.role, "content": "".join(turn.pieces)})
        return *self._render(messages, template, add_generation_prompt), turns

    def _encode(
        self, sample: Conversation, template: str, add_generation_prompt: bool, layout: str
    ) -> ConversationInputs:
        text, spans, turns = self._write(sample, template, add_generation_prompt, layout)
        ids, mask = self._tokenize(text, spans)
        if len(ids) > self.tokenizer.model_max_length:
            raise ValueError(
                f"The conversation has {len(ids)} tokens, more than the {self.tokenizer.model_max_length} that the "
                "model can read; shorten the text or use fewer frames."
            )
        types = self._token_types(ids, [kind for turn in turns for kind in turn.placeholder_types])
        inputs = ConversationInputs(input_ids=ids, token_types=types, assistant_mask=mask)
        if sample.video is not None:
            self._add_visual(inputs, sample, turns)
        return inputs

    def measure(self, conversation: list, layout: str | None = None) -> tuple[int, int]:
        """How many tokens a conversation has, and how many of its regions the Q-Former cannot read because their
        questions are too long. No limit is enforced and no video decoded."""
        sample, layout = read_conversation(conversation), self._layouts(layout, 1)[0]
        text, spans, turns = self._write(sample, self.chat_template, False, layout)
        questions = [turn.question for turn in turns]
        _, kept = tokenize_questions(questions, self.qformer_tokenizer, self.qformer_max_length)
        asked = sum(question.count(POOLED_SLOT) for question in questions)
        return len(self._tokenize(text, spans)[0]), asked - sum(kept)

    def _tokenize(self, text: str, spans: list) -> tuple[list[int], list[int]]:
        """Ids, and 1 for each of an answer."""
        # Answers are tokenized apart from what surrounds them, as in the official training. So the tokens of a prompt
        # do not depend on what follows, and a chat that keeps its key/value cache sees the same tokens.
        cuts = [0, *(position for span in spans for position in span), len(text)]
        ids, mask = [], []
        for number, (start, end) in enumerate(zip(cuts, cuts[1:], strict=False)):
            piece = self.tokenizer(text[start:end], add_special_tokens=False)["input_ids"] if start < end else []
            ids += piece
            mask += [number % 2] * len(piece)
        return ids, mask

    def _token_types(self, ids: list[int], kinds: list[int]) -> list[int]:
        positions = [position for position, token in enumerate(ids) if token == self.image_token_id]
        if len(positions) != len(kinds):
            raise ValueError(
                f"The text has {len(positions)} {IMAGE_CONTEXT} tokens but the frames and regions need {len(kinds)}; "
                "the chat template or the tokenizer changes the placeholders."
            )
        types = [TEXT_TOKEN] * len(ids)
        for position, kind in zip(positions, kinds, strict=True):
            types[position] = kind
        return types

    def _add_visual(self, inputs: ConversationInputs, sample: Conversation, turns: list[TurnText]) -> None:
        """Frames, questions and regions of a conversation about a video or image."""
        video = inputs.video = sample.video
        inputs.regions = [self._prepare_region(region, video) for region in sample.regions]
        first_user = sum(turn.role == "user" for turn in sample.turns[: sample.visual_turn])
        inputs.questions = [turn.question for turn in turns[first_user:]]
        if video.is_image:
            inputs.pixel_values = self.tile_pixel_values(video)
            inputs.num_context_frames = len(inputs.pixel_values)
            inputs.dense_rows = list(range(inputs.num_context_frames))
            # The last tile is the whole image, the only one in which a region of the image lies where it is.
            inputs.region_rows = [inputs.num_context_frames - 1] * len(inputs.regions)
            return
        context = self.choose_frames(video).context
        extra = [region.frame for region in inputs.regions if region.frame not in set(context)]
        frames = context + list(dict.fromkeys(extra))
        inputs.pixel_values = self.frame_pixel_values(video, frames)
        inputs.num_context_frames = len(context)
        inputs.dense_rows = [context.index(frame) for frame in self.choose_frames(video).dense]
        inputs.region_rows = [frames.index(region.frame) for region in inputs.regions]

    def _collate(self, samples: list[ConversationInputs], assistant_masks: bool) -> BatchFeature:
        pad_id = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0
        data = collate_tokens(samples, pad_id, assistant_masks)
        if any(sample.pixel_values is not None for sample in samples):
            regions = [(region, sample.video) for sample in samples for region in sample.regions]
            data.update(collate_frames(samples))
            data.update(collate_questions(samples, self.qformer_tokenizer, self.qformer_max_length))
            grid_size, keep_small = math.isqrt(self.image_seq_length), self.preset == "consistent"
            data.update(mask_tensors(regions, self.region_mask_size, grid_size, keep_small))
            data.update(prompt_tensors(regions, self.sam_image_size, self.sam_pixel_values))
        return BatchFeature(data)

    # Questions and answers

    def question_parts(self, question: str, regions: Sequence = ()) -> list[dict]:
        """Content parts of a question in which every `<region>` stands for the next of `regions`."""
        return question_parts(question, regions)

    def to_tagged_text(self, text: str, objects: Sequence[GroundedPhrase]) -> str:
        """Write the tags back into a clean answer: `<p> The man </p> [SEG] pets a dog.`"""
        return to_tagged_text(text, objects)

    def post_process_masks(self, mask_logits: torch.Tensor, height: int, width: int) -> np.ndarray:
        """
        Masks at the video's own size: logits of shape `(num_objects, side, side)` go up to SAM 2's input size, then to
        the video's, bilinearly, and what is positive belongs to the object.

        Returns:
            `np.ndarray` of shape `(num_objects, height, width)`, bool.
        """
        return (self.resize_mask_logits(mask_logits, height, width) > 0).cpu().numpy()

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
            answer = decode_answer(answer, self.tokenizer)
        for token in set(self.tokenizer.all_special_tokens) - set(ANSWER_TAGS):
            answer = answer.replace(token, "")
        tagged = answer.strip().removesuffix(self.answer_suffix).strip()
        text, spans = parse_tagged_text(tagged)
        for name, values in (("mask tracks", tracks), ("scores", scores)):
            if values is not None and len(values) != len(spans):
                raise ValueError(f"The answer has {len(spans)} {SEG} but {len(values)} {name} were given.")
        objects = [
            GroundedPhrase(phrase, span, track, None if score is None else float(score))
            for (phrase, span), track, score in zip(
                spans, tracks or [None] * len(spans), scores or [None] * len(spans), strict=True
            )
        ]
        return Answer(text=text, tagged_text=tagged, objects=objects)


def _check_tags(tokenizer, tags: Sequence[str], name: str) -> None:
    if tokenizer is None:
        raise ValueError(f"SamaProcessor needs a {name}, got None.")
    vocabulary = tokenizer.get_vocab()
    missing = [tag for tag in tags if tag not in vocabulary]
    if missing:
        raise ValueError(f"The {name} lacks {', '.join(missing)}; SAMA's checkpoints add them as special tokens.")


SamaProcessor.register_for_auto_class("AutoProcessor")
