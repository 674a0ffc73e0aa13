"""The steps from a checked conversation to tensors: pixels, token types, and encoded conversations in one batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from .configuration_sama import PADDING_LABEL, TEXT_TOKEN, SamaConfig
from .messages_sama import ParsedConversation
from .objects_sama import PreparedRegion
from .pixels_sama import normalized_pixels
from .prompts_sama import POOLED_SLOT, SEG, SHAPE_SLOT, TurnText, TurnWriter, VisualText
from .templates_sama import RenderedText
from .video_sama import FrameChoice, SamaVideo


class SamFrames(Sequence):
    """Frames of a video as SAM 2 inputs of shape `(3, size, size)`, made one at a time when they are asked for."""

    def __init__(self, video: SamaVideo, size: int, mean: Sequence[float], std: Sequence[float]):
        self._video, self.size, self.mean, self.std = video, size, mean, std

    def __len__(self) -> int:
        return len(self._video)

    def __getitem__(self, index: int) -> torch.Tensor:
        pixels, messages = self.read(index)
        self.warn(messages)
        return pixels

    def read(self, index: int, raw: bool = False) -> tuple[torch.Tensor, list[str]]:
        """A frame, and what [`warn`] is to say about it, for any thread. With `raw` it is neither resized nor
        normalised: uint8 of shape `(height, width, 3)`."""
        frame, messages = self._video.read(index)
        if raw:
            return torch.from_numpy(np.require(frame, requirements=("C", "W"))), messages
        return normalized_pixels(Image.fromarray(frame), self.size, self.mean, self.std), messages

    def warn(self, messages: list[str]) -> None:
        """Warn of what [`read`] found out."""
        self._video.warn(messages)


@dataclass(frozen=True)
class TokenCounts:
    """
    How long a conversation is.

    Attributes:
        total (`int`): Tokens of the whole conversation.
        cut_regions (`list[int]`): For each user turn, how many of its regions the Q-Former cannot read because the
            question is too long.
    """

    total: int
    cut_regions: list[int]


@dataclass(frozen=True)
class WrittenConversation:
    """A conversation as the language model reads it: its text, its user turns, what it was written from, and which
    frames of its video are used."""

    rendered: RenderedText
    turns: list[TurnText]
    parsed: ParsedConversation
    frames: FrameChoice | None


@dataclass
class ConversationInputs:
    """One conversation as lists and tensors, before it is batched. Rows count from 0 within the conversation; `frames`
    are the frame numbers of the rows of `pixel_values`, `turns` the questions about the video, `grid` the rows and
    columns of a frame's tokens."""

    input_ids: list[int]
    token_types: list[int]
    assistant_mask: list[int]
    pixel_values: torch.Tensor | None = None
    num_context_frames: int = 0
    dense_rows: list[int] = field(default_factory=list)
    turns: list[TurnText] = field(default_factory=list)
    regions: list[PreparedRegion] = field(default_factory=list)
    region_rows: list[int] = field(default_factory=list)
    frames: list[int] = field(default_factory=list)
    grid: tuple[int, int] = (0, 0)
    position_ids: torch.Tensor | None = None
    video: SamaVideo | None = None
    frame_choice: FrameChoice | None = None

    @property
    def shown(self) -> tuple[SamaVideo, FrameChoice]:
        """The video and its frames; raises `ValueError` for text alone."""
        if self.video is None or self.frame_choice is None:
            raise ValueError("The conversation shows no video or image.")
        return self.video, self.frame_choice


@dataclass
class TurnInputs:
    """
    The next turn of a conversation whose beginning the model has read.

    Attributes:
        input_ids (`torch.LongTensor` of shape `(1, num_tokens)`): The whole prompt.
        mm_token_type_ids (`torch.LongTensor` of shape `(1, num_tokens)`)
        num_known_tokens (`int`): How many tokens of the prompt the model has read.
        visual (`dict`): The other arguments of the model: questions and regions of what is new. Empty for text alone.
        frames (`list[int]`): Frame numbers of the rows that `visual` refers to, the known ones first.
        num_context_frames (`int`): How many of them are context frames.
        dense_rows (`list[int]`): Which of them the language model sees in full.
        pixel_values (`torch.Tensor`, *optional*): Of those that are not known.
        num_new_frames (`int`): How many these are.
        position_ids (`torch.LongTensor` of shape `(3, 1, num_tokens)`, *optional*): Of the whole prompt, where the
            backbone counts positions in another way than 0, 1, 2, ...
        prompt_frames (`list[int]`): The frame of each region that SAM 2 turns into a mask.
    """

    input_ids: torch.Tensor
    mm_token_type_ids: torch.Tensor
    num_known_tokens: int
    visual: dict[str, torch.Tensor] = field(default_factory=dict)
    frames: list[int] = field(default_factory=list)
    num_context_frames: int = 0
    dense_rows: list[int] = field(default_factory=list)
    pixel_values: torch.Tensor | None = None
    num_new_frames: int = 0
    position_ids: torch.Tensor | None = None
    prompt_frames: list[int] = field(default_factory=list)


def tokenize_text(tokenizer, rendered: RenderedText) -> tuple[list[int], list[int]]:
    """Ids of a text, and for each of them 1 if it belongs to an answer and 0 elsewhere.

    Answers are tokenized apart from what surrounds them, as in the official training. So the tokens of a prompt do not
    depend on what follows, and a chat that keeps its key/value cache sees the same tokens.
    """
    text, spans = rendered.text, rendered.answer_spans
    positions = {0, len(text), *rendered.cuts, *(position for span in spans for position in span)}
    ids, mask = [], []
    for start, end in pairwise(sorted(positions)):
        piece = tokenizer(text[start:end], add_special_tokens=False)["input_ids"]
        ids += piece
        mask += [int(any(first <= start < last for first, last in spans))] * len(piece)
    return ids, mask


def write_messages(
    parsed: ParsedConversation, writer: TurnWriter, visual: VisualText | None
) -> tuple[list[dict], list[TurnText]]:
    """The messages of a conversation with their content as the chat template takes it, and its user turns."""
    messages, turns = [], []
    for index, message in enumerate(parsed.messages):
        if message.role == "user":
            shown = visual if parsed.visual_turn is not None and index >= parsed.visual_turn else None
            turns.append(writer.user_turn(message.pieces, shown, index == parsed.visual_turn))
            messages.append({"role": "user", "content": turns[-1].text})
        else:
            messages.append({"role": message.role, "content": writer.text(message.pieces)})
    return messages, turns


def turns_with_placeholders(turns: Sequence[TurnText], number: int) -> list[TurnText]:
    """The last user turns of a conversation, as many as hold its last `number` placeholders."""
    found: list[TurnText] = []
    for turn in reversed(turns):
        if number <= 0:
            break
        found.insert(0, turn)
        number -= len(turn.placeholder_types)
    return found


def place_regions(
    inputs: ConversationInputs, regions: Sequence[PreparedRegion], num_tiles: int, known_frames: Sequence[int] = ()
) -> None:
    """Puts checked regions into `inputs` and lists the frames that are encoded: the context frames, those that were
    encoded before, and those that only carry a region, in the order of their first use; for a still its tiles."""
    video, choice = inputs.shown
    inputs.regions = list(regions)
    if video.is_image:
        inputs.num_context_frames, inputs.frames = num_tiles, [0] * num_tiles
        inputs.dense_rows = list(range(num_tiles))
        # The last tile is the whole image, the only one in which a region of the image lies where it is.
        inputs.region_rows = [num_tiles - 1] * len(inputs.regions)
        return
    inputs.num_context_frames = len(choice.context)
    # A random choice may draw a context frame twice: each is a row of its own.
    others = dict.fromkeys([*known_frames, *(region.frame for region in inputs.regions)])
    inputs.frames = [*choice.context, *(frame for frame in others if frame not in choice.context)]
    inputs.dense_rows = [inputs.frames.index(frame) for frame in choice.dense]
    inputs.region_rows = [inputs.frames.index(region.frame) for region in inputs.regions]


def token_types(ids: Sequence[int], image_token_id: int, kinds: Sequence[int]) -> list[int]:
    """What fills each position of a text: `kinds` at its placeholders, in reading order, and text elsewhere.

    Raises:
        ValueError: if there are more or fewer placeholders than kinds.
    """
    positions = [position for position, token in enumerate(ids) if token == image_token_id]
    if len(positions) != len(kinds):
        raise ValueError(
            f"The text has {len(positions)} placeholders but the frames and regions need {len(kinds)}; "
            "the chat template or the tokenizer changes the placeholders."
        )
    types = [TEXT_TOKEN] * len(ids)
    for position, kind in zip(positions, kinds, strict=True):
        types[position] = kind
    return types


def check_tags(tokenizer: PreTrainedTokenizerBase | None, tags: Sequence[str], name: str) -> PreTrainedTokenizerBase:
    """The tokenizer, if there is one and it has all `tags`; raises `ValueError` otherwise."""
    if tokenizer is None:
        raise ValueError(f"SamaProcessor needs a {name}, got None.")
    vocabulary = tokenizer.get_vocab()
    missing = [tag for tag in tags if tag not in vocabulary]
    if missing:
        raise ValueError(f"The {name} lacks {', '.join(missing)}; SAMA's checkpoints add them as special tokens.")
    return tokenizer


def check_ids(tokenizer, config: SamaConfig, image_context: str) -> None:
    for name, tag in (("image_token_id", image_context), ("seg_token_id", SEG)):
        expected, found = getattr(config, name), tokenizer.convert_tokens_to_ids(tag)
        if expected != found:
            raise ValueError(
                f"`{name}` is {expected} in the configuration, but the tokenizer gives {tag} the id {found}; load "
                "both from one checkpoint."
            )


def check_length(ids: Sequence[int], limit: int) -> None:
    """Raises `ValueError` for a conversation of more tokens than the model reads."""
    if len(ids) > limit:
        raise ValueError(
            f"The conversation has {len(ids)} tokens, more than the {limit} that the model can read; shorten the text "
            "or use fewer frames."
        )


def one_for_each(name: str, values, number: int, default) -> list:
    """`values` as a list with one entry for each of `number` conversations, `default` in place of `None`."""
    values = list(values) if isinstance(values, (list, tuple)) else [values] * number
    if len(values) != number:
        raise ValueError(f"{len(values)} {name} were given for {number} conversations.")
    return [default if value is None else value for value in values]


def count_tokens(written: WrittenConversation, tokenizer, qformer_tokenizer, qformer_max_length: int) -> TokenCounts:
    """How long a conversation is, see [`TokenCounts`]."""
    ids, _ = tokenize_text(tokenizer, written.rendered)
    if qformer_tokenizer is None:
        return TokenCounts(len(ids), [0] * len(written.turns))
    _, kept = tokenize_questions(written.turns, qformer_tokenizer, qformer_max_length)
    cut = [turn.num_regions - found for turn, found in zip(written.turns, kept, strict=True)]
    return TokenCounts(len(ids), cut)


def common_prefix(first: torch.Tensor, second: torch.Tensor) -> int:
    """How many ids two sequences of shape `(num_tokens,)` have in common from their beginning on."""
    length = min(len(first), len(second))
    differs = (first[:length] != second[:length]).nonzero()
    return int(differs[0]) if len(differs) else length


def collate_tokens(samples: Sequence[ConversationInputs], pad_id: int, assistant_masks: bool) -> dict:
    """Token tensors of shape `(batch_size, sequence_length)`, padded on the left."""
    data = {
        "input_ids": _left_padded([sample.input_ids for sample in samples], pad_id),
        "attention_mask": _left_padded([[1] * len(sample.input_ids) for sample in samples], 0),
        "mm_token_type_ids": _left_padded([sample.token_types for sample in samples], TEXT_TOKEN),
    }
    positions = [sample.position_ids for sample in samples if sample.position_ids is not None]
    if positions:
        data["position_ids"] = _padded_positions(positions)
    if assistant_masks:
        data["assistant_masks"] = _left_padded([sample.assistant_mask for sample in samples], 0)
    return data


def _left_padded(rows: list[list[int]], value: int) -> torch.Tensor:
    length = max(len(row) for row in rows)
    return torch.tensor([[value] * (length - len(row)) + row for row in rows])


def _padded_positions(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """Positions of shape `(3, batch_size, sequence_length)`, of the single rows' `(3, length)`, padded on the left."""
    length = max(row.shape[1] for row in rows)
    return torch.stack([F.pad(row, (length - row.shape[1], 0)) for row in rows], 1)


def collate_frames(samples: Sequence[ConversationInputs]) -> dict:
    """Pixel values of all samples in one tensor, and which of its rows are used for what."""
    context = torch.tensor([sample.num_context_frames for sample in samples])
    total = torch.tensor([len(sample.frames) for sample in samples])
    offsets = np.cumsum([0, *total.tolist()[:-1]]).tolist()
    placed = list(zip(samples, offsets, strict=True))
    data = {
        "pixel_values": torch.cat([sample.pixel_values for sample in samples if sample.pixel_values is not None]),
        "num_context_frames": context,
        "num_extra_frames": total - context,
        "dense_frames": torch.tensor([offset + row for sample, offset in placed for row in sample.dense_rows]),
        "frame_grids": torch.tensor([sample.grid for sample in samples]),
    }
    region_frames = [offset + row for sample, offset in placed for row in sample.region_rows]
    return {**data, "region_frames": torch.tensor(region_frames)} if region_frames else data


def tokenize_questions(turns: Sequence[TurnText], tokenizer, max_length: int) -> tuple:
    """The questions' tokens, cut on the left, and how many regions of each question they hold whole."""
    tokens = tokenizer(
        [turn.question for turn in turns],
        is_split_into_words=True,  # each piece apart
        truncation=True,
        max_length=max_length,
        padding=True,
        return_tensors="pt",
    )
    slots = [tokens["input_ids"] == tokenizer.convert_tokens_to_ids(tag) for tag in (POOLED_SLOT, SHAPE_SLOT)]
    return tokens, torch.stack([slot.sum(dim=1) for slot in slots]).amin(dim=0).tolist()


def collate_questions(samples: Sequence[ConversationInputs], tokenizer, max_length: int) -> dict:
    """The Q-Former's questions, padded on the right, and the sample that each belongs to; empty without Q-Former."""
    if tokenizer is None:
        return {}
    turns = [turn for sample in samples for turn in sample.turns]
    tokens, kept = tokenize_questions(turns, tokenizer, max_length)
    for turn, found in zip(turns, kept, strict=True):
        if found != turn.num_regions:
            raise ValueError(
                f"A question with {turn.num_regions} regions keeps only {found} of them in the "
                f"{max_length} tokens that the Q-Former reads, the last ones; shorten the text behind the regions."
            )
    owners = [index for index, sample in enumerate(samples) for _ in sample.turns]
    return {
        "qformer_input_ids": tokens["input_ids"],
        "qformer_attention_mask": tokens["attention_mask"],
        "question_samples": torch.tensor(owners),
    }


# ---- regions as tensors ---------------------------------------------------------------------------------------------


def mask_tensors(
    regions: Sequence[tuple[PreparedRegion, SamaVideo]],
    mask_size: int,
    grids: Sequence[tuple[int, int]],
    keep_small: bool,
) -> dict:
    """
    Masks of all regions at the two sizes that the model reads, both by nearest neighbour straight from the video's
    size; zeros for those that SAM 2 still has to make from a prompt. Empty without regions.

    Args:
        regions (`list` of `(PreparedRegion, SamaVideo)`): All regions of the batch.
        mask_size (`int`): Side of the larger one.
        grids (`list[tuple[int, int]]`): Rows and columns of the tokens of each region's frame.
        keep_small (`bool`): A region between the sampled pixels vanishes in nearest neighbour, as it does in the
            release. With `keep_small` it keeps every cell that it touches.

    Returns:
        `dict`: `region_masks` of shape `(num_regions, mask_size, mask_size)` and `region_grid_masks` of shape
        `(num_regions, rows, columns)`, of which smaller grids take the upper left, both float.
    """
    if not regions:
        return {}
    masks = [region.mask for region, _ in regions]
    grid_masks = torch.zeros(len(masks), *(max(sides) for sides in zip(*grids, strict=True)))
    for row, mask, grid in zip(grid_masks, masks, grids, strict=True):
        row[: grid[0], : grid[1]] = _resized(mask, grid, keep_small)
    whole = torch.stack([_resized(mask, (mask_size, mask_size), keep_small) for mask in masks])
    return {"region_masks": whole, "region_grid_masks": grid_masks}


def _resized(mask: np.ndarray | None, size: tuple[int, int], keep_small: bool) -> torch.Tensor:
    if mask is None:
        return torch.zeros(size)
    pixels = torch.from_numpy(np.ascontiguousarray(mask)).float()[None, None]
    resized = F.interpolate(pixels, size=size, mode="nearest")
    if keep_small and not resized.any():
        resized = F.adaptive_max_pool2d(pixels, size)
    return resized[0, 0]


def check_cell_regions(parsed: ParsedConversation, region_prompts: str | None) -> Any:
    """
    The video of a conversation, after a check of its regions for a model without region encoders.

    Raises:
        ValueError: if there are regions and the model reads none, if they lie in a video, or in another question than
            the one that shows the still.
    """
    if not parsed.regions:
        return parsed.video
    if region_prompts == "none":
        raise ValueError(
            "This model was not trained to read regions: ask about what the text can name, or convert it with "
            "--force_regions to try."
        )
    if parsed.video is None or not parsed.video.is_image:
        raise ValueError("This model reads regions of a still only; ask about a frame of the video as an image.")
    after = parsed.messages[(parsed.visual_turn or 0) + 1 :]
    later = sum(piece is None for message in after for piece in message.pieces)
    if later:
        raise ValueError(
            f"This model reads regions in the first question only, and {later} of {len(parsed.regions)} come in later "
            "ones; start another conversation, or call `chat.reset()`."
        )
    return parsed.video


def count_cells(regions: Sequence[PreparedRegion], grid: tuple[int, int], keep_small: bool) -> list[int]:
    """
    How many cells of a frame's token grid each region covers.

    Raises:
        ValueError: for a region that is not given as a mask: its cells are not known before SAM 2 has found them.
    """
    if any(region.mask is None for region in regions):
        raise ValueError(
            "This model reads regions that are given as masks; `chat.ask` makes one of clicks, a box or a scribble."
        )
    return [int((_resized(region.mask, grid, keep_small) > 0).sum()) for region in regions]


def prompt_tensors(regions: Sequence[tuple[PreparedRegion, SamaVideo]], sam_image_size: int) -> dict:
    """
    Boxes, points and scribbles, which SAM 2 turns into masks.

    Args:
        regions (`list` of `(PreparedRegion, SamaVideo)`): Regions in reading order; those with a mask are passed over.
        sam_image_size (`int`): Side of SAM 2's square input.

    Returns:
        `dict`: Empty without prompts, else `region_prompt_indices` (rows of the regions), `region_prompt_points` of
        shape `(num_prompts, num_points, 2)` and `region_prompt_labels` of shape `(num_prompts, num_points)`.
    """
    indices = [index for index, (region, _) in enumerate(regions) if region.mask is None]
    if not indices:
        return {}
    prompts = [regions[index] for index in indices]
    return {"region_prompt_indices": torch.tensor(indices), **_padded_points(prompts, sam_image_size)}


def prompt_pixel_values(
    regions: Sequence[tuple[PreparedRegion, SamaVideo]], sam_pixel_values: Callable[[np.ndarray], torch.Tensor]
) -> dict:
    """
    SAM 2's inputs of the frames that boxes, points and scribbles are drawn on.

    Args:
        regions (`list` of `(PreparedRegion, SamaVideo)`): As for [`prompt_tensors`].
        sam_pixel_values (callable): Makes a SAM 2 input of a frame.

    Returns:
        `dict`: Empty without prompts, else `region_prompt_pixel_values`, one row for each distinct frame, and
        `region_prompt_frames`, the row of each prompt.
    """
    prompts = [(region, video) for region, video in regions if region.mask is None]
    if not prompts:
        return {}
    # Two conversations may share one video; its frame is then encoded once.
    frames = {(id(video), region.frame): video[region.frame] for region, video in prompts}
    rows = {key: row for row, key in enumerate(frames)}
    return {
        "region_prompt_frames": torch.tensor([rows[id(video), region.frame] for region, video in prompts]),
        "region_prompt_pixel_values": torch.stack([sam_pixel_values(frame) for frame in frames.values()]),
    }


def _padded_points(prompts: Sequence[tuple[PreparedRegion, SamaVideo]], sam_image_size: int) -> dict:
    """Prompt points in the pixels of SAM 2's square input, padded to the longest prompt."""
    length = max(len(region.prompt[0]) for region, _ in prompts)
    points = torch.zeros(len(prompts), length, 2)
    labels = torch.full((len(prompts), length), PADDING_LABEL, dtype=torch.long)
    for row, (region, video) in enumerate(prompts):
        drawn, kinds = region.prompt
        scale = torch.tensor([sam_image_size / video.width, sam_image_size / video.height])
        points[row, : len(drawn)] = torch.from_numpy(drawn) * scale
        labels[row, : len(drawn)] = torch.tensor(kinds)
    return {"region_prompt_points": points, "region_prompt_labels": labels}
