"""Conversations that are encoded one by one, put together into one batch."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from .layout_sama import POOLED_SLOT, SHAPE_SLOT, TEXT_TOKEN
from .regions_sama import PreparedRegion
from .video_sama import SamaVideo


@dataclass
class ConversationInputs:
    """One conversation as lists and tensors, before it is batched. Rows count from 0 within the conversation."""

    input_ids: list[int]
    token_types: list[int]
    assistant_mask: list[int]
    pixel_values: torch.Tensor | None = None
    num_context_frames: int = 0
    dense_rows: list[int] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)
    regions: list[PreparedRegion] = field(default_factory=list)
    region_rows: list[int] = field(default_factory=list)
    video: SamaVideo | None = None


def collate_tokens(samples: Sequence[ConversationInputs], pad_id: int, assistant_masks: bool) -> dict:
    """Token tensors of shape `(batch_size, sequence_length)`, padded on the left."""
    data = {
        "input_ids": _left_padded([sample.input_ids for sample in samples], pad_id),
        "attention_mask": _left_padded([[1] * len(sample.input_ids) for sample in samples], 0),
        "mm_token_type_ids": _left_padded([sample.token_types for sample in samples], TEXT_TOKEN),
    }
    if assistant_masks:
        data["assistant_masks"] = _left_padded([sample.assistant_mask for sample in samples], 0)
    return data


def _left_padded(rows: list[list[int]], value: int) -> torch.Tensor:
    length = max(len(row) for row in rows)
    return torch.tensor([[value] * (length - len(row)) + row for row in rows])


def collate_frames(samples: Sequence[ConversationInputs]) -> dict:
    """Pixel values of all samples in one tensor, and which of its rows are used for what."""
    context = torch.tensor([sample.num_context_frames for sample in samples])
    total = torch.tensor([0 if sample.pixel_values is None else len(sample.pixel_values) for sample in samples])
    offsets = np.cumsum([0, *total.tolist()[:-1]]).tolist()
    placed = list(zip(samples, offsets, strict=True))
    data = {
        "pixel_values": torch.cat([sample.pixel_values for sample in samples if sample.pixel_values is not None]),
        "num_context_frames": context,
        "num_extra_frames": total - context,
        "dense_frames": torch.tensor([offset + row for sample, offset in placed for row in sample.dense_rows]),
    }
    region_frames = [offset + row for sample, offset in placed for row in sample.region_rows]
    return {**data, "region_frames": torch.tensor(region_frames)} if region_frames else data


def tokenize_questions(questions: Sequence[str], tokenizer, max_length: int) -> tuple:
    """The questions' tokens, cut on the left, and how many regions of each question they hold whole."""
    tokens = tokenizer(list(questions), truncation=True, max_length=max_length, padding=True, return_tensors="pt")
    slots = [tokens["input_ids"] == tokenizer.convert_tokens_to_ids(tag) for tag in (POOLED_SLOT, SHAPE_SLOT)]
    return tokens, torch.stack([slot.sum(dim=1) for slot in slots]).amin(dim=0).tolist()


def collate_questions(samples: Sequence[ConversationInputs], tokenizer, max_length: int) -> dict:
    """The Q-Former's questions, padded on the right, and the sample that each belongs to."""
    questions = [question for sample in samples for question in sample.questions]
    tokens, kept = tokenize_questions(questions, tokenizer, max_length)
    for question, found in zip(questions, kept, strict=True):
        if found != question.count(POOLED_SLOT):
            raise ValueError(
                f"A question with {question.count(POOLED_SLOT)} regions keeps only {found} of them in the "
                f"{max_length} tokens that the Q-Former reads, the last ones; shorten the text behind the regions."
            )
    owners = [index for index, sample in enumerate(samples) for _ in sample.questions]
    return {
        "qformer_input_ids": tokens["input_ids"],
        "qformer_attention_mask": tokens["attention_mask"],
        "question_samples": torch.tensor(owners),
    }
