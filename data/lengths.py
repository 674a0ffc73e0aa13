"""Lengths of samples in tokens, without a tokenizer: an upper bound for one, an estimate for all of a source."""

from collections.abc import Sequence

import numpy as np

from sama.video_sama import FrameChoice, choose_frames

from .store import KINDS


UNKNOWN_FRAMES = 96  # assumed where a record does not state its number of frames: enough for all context frames
USUAL_TILES = 7
CHARACTERS_PER_TOKEN = 4
REGION_TOKENS = 4  # two tags around two placeholders, in the language model and in the Q-Former
# For a model that reads regions as copies of frame tokens, without these copies: bytes of a region's name and tags in
# the list of regions and of its name in the question, and bytes of the words around the list
CELLS_REGION_BYTES = len(", region000<vp></vp>") + len("region000")
CELLS_LIST_BYTES = len("\nThere are 000 part regions in the picture: .")
FRAME_TAG_TOKENS = 3  # two tags and a newline around each dense frame
OBJECT_BYTES = len(" [SEG]")
PHRASE_BYTES = len("<p>  </p>")
QFORMER_END_TOKENS = 2


def num_visual_tokens(num_dense, num_context, num_questions, tokens_per_frame: int):
    """Tokens of frames or tiles: all tokens of each dense one, and one of each context frame for each question."""
    return num_dense * tokens_per_frame + num_questions * num_context


class LengthBound:
    """
    Says of most conversations that they fit without tokenizing them: a token stands for at least one byte of text.

    Args:
        processor ([`SamaProcessor`]): Whose chat template and limits count.
    """

    def __init__(self, processor):
        self.processor = processor
        probe = [{"role": role, "content": [{"type": "text", "text": "."}]} for role in ("user", "assistant")]
        # Each message is charged with the wrappers of two: that covers a template's own system text as well
        written = processor.apply_chat_template(probe, tokenize=False, add_generation_prompt=False)
        self._bytes_per_message = len(written.encode())
        self._as_cells = processor.config.region_prompts == "cells"

    def max_tokens(self, messages: Sequence[dict], frames: FrameChoice | None) -> int:
        """
        An upper bound of the tokens of a conversation.

        Args:
            messages (`list[dict]`): As the processor takes them.
            frames ([`FrameChoice`], *optional*): The frames that it shows; `None` for text.
        """
        total = sum(self._bytes_per_message + _content_bytes(message["content"]) for message in messages)
        if self._as_cells:
            num_regions = sum(part["type"] == "region" for message in messages for part in message["content"])
            # A region covers a whole frame at most
            total += CELLS_LIST_BYTES + num_regions * (CELLS_REGION_BYTES + self.processor.max_frame_tokens)
        if frames is None:
            return total
        is_image = any(part["type"] == "image" for message in messages for part in message["content"])
        num_tiles = self.processor.max_tiles + 1  # and the thumbnail
        dense, context = (num_tiles,) * 2 if is_image else (len(frames.dense), len(frames.context))
        context = context if self.processor.has_aggregator else 0
        questions = sum(message["role"] == "user" for message in messages)
        visual = num_visual_tokens(dense, context, questions, self.processor.max_frame_tokens)
        return total + visual + FRAME_TAG_TOKENS * dense

    def regions_fit(self, messages: Sequence[dict]) -> bool:
        """Whether the Q-Former, if there is one, certainly reads all regions; `False` where only its tokenizer can
        tell."""
        if self._as_cells:
            return True
        asked = [
            message["content"]
            for message in messages
            if message["role"] == "user" and any(part["type"] == "region" for part in message["content"])
        ]
        limit = self.processor.qformer_max_length - QFORMER_END_TOKENS
        return all(_content_bytes(content) <= limit for content in asked)


def _content_bytes(content: Sequence[dict]) -> int:
    total = 0
    for part in content:
        total += len(part.get("text", "").encode()) + (REGION_TOKENS if part["type"] == "region" else 0)
        if part["type"] == "grounded":
            total += PHRASE_BYTES + OBJECT_BYTES * len(part["objects"])
    return total


def estimate_lengths(columns: dict[str, np.ndarray], processor, max_turns: int | None = None) -> np.ndarray:
    """
    About how many tokens a sample of each record has: int64 array of shape `(num_records,)`.

    Args:
        columns (`dict[str, np.ndarray]`): `kind`, `frames`, `turns`, `characters` of each record.
        processor ([`SamaProcessor`]): Whose frame policy and tokens per frame count.
        max_turns (`int`, *optional*): Most rounds of a sample.
    """
    frames = np.where(columns["frames"] > 0, columns["frames"], UNKNOWN_FRAMES)
    numbers, rows = np.unique(frames, return_inverse=True)
    limits = processor.preset, processor.max_context_frames, processor.num_dense_frames, processor.has_aggregator
    choices = [choose_frames(int(number), *limits) for number in numbers]
    context = np.array([len(choice.context) for choice in choices])[rows]
    dense = np.array([len(choice.dense) for choice in choices])[rows]
    tiles = min(USUAL_TILES, processor.max_tiles)
    kinds = [columns["kind"] == KINDS.index(kind) for kind in ("video", "image")]
    dense, context = (np.select(kinds, [number, tiles]) for number in (dense, context))
    context = context if processor.has_aggregator else 0
    turns = np.minimum(columns["turns"], max_turns or columns["turns"])
    words = columns["characters"] * turns // np.maximum(columns["turns"], 1) // CHARACTERS_PER_TOKEN
    return (num_visual_tokens(dense, context, turns, processor.max_frame_tokens) + words).astype(np.int64)
