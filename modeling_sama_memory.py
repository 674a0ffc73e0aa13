"""Memory attention: how a frame is seen in the light of what a mask model remembers of each object.

The parameters are those of the library's module, and so are the numbers, to rounding. The arithmetic is less, because

- the keys of a memory are projected and rotated once, when it is remembered. The time of a memory changes from frame to
  frame, but the projection and the rotation are linear: its share of the keys is the same for all objects, and added;
- attention averages the memories themselves, which are D wide, and projects the average; projected first, as in the
  library, they are C wide;
- before the first memory is read, all objects see the same frame: that part of the first layer is computed once.

Letters in shape comments: O objects, R frames (1, or one for each object), N cells of a frame, C width (256), H heads, T
tokens of a memory, D their width (64), K tokens of all memories and pointers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


MAX_KEY_BYTES = 2**30  # of the keys of one track; a memory without keys is projected when it is read
# Attention weights computed at once on a CPU. More do not fit its caches, and take twice as long
MAX_WEIGHT_BYTES = 8 * 2**20


@dataclass(frozen=True)
class ObjectMemory:
    """What is remembered of O objects in one frame: `tokens` (O, T, D), and for each layer of the memory attention their
    rotated `keys` (O, T, C), without the time of the memory; None where there was no room for them."""

    tokens: torch.Tensor
    keys: tuple[torch.Tensor, ...] | None = None

    @property
    def key_bytes(self) -> int:
        """Bytes of the keys."""
        return sum(key.nbytes for key in self.keys or ())


class SamaMemoryAttention:
    """The memory attention of a mask model, for one track. What does not change from frame to frame is computed once.

    Args:
        sam (`nn.Module`): the mask model.
        frame_position (`torch.Tensor` of shape `(cells, width)`): of the cells of a frame.
        memory_position (`torch.Tensor` of shape `(tokens, memory_width)`): of the tokens of a memory.
    """

    def __init__(self, sam: Any, frame_position: torch.Tensor, memory_position: torch.Tensor):
        self.attention, self.memory_position = sam.memory_attention, memory_position
        self.times = sam.memory_temporal_positional_encoding.flatten(1)  # (distances, D)
        self.frame_position = 0.1 * frame_position  # the factor is SAM 2's
        self.rotation = self.rotation_table(frame_position, self.attention.position_ids)
        self.memory_rotation = self.rotation
        self.known_time_keys: dict[tuple[int, int], torch.Tensor] = {}

    def rotation_table(
        self, reference: torch.Tensor, position_ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine, (1, positions, head width) in float32, that rotate a key or query at each position."""
        return self.attention.rotary_emb(reference, position_ids)

    # ---- keys -------------------------------------------------------------------------------------------------------

    def remember(self, tokens: torch.Tensor, room: float = MAX_KEY_BYTES) -> ObjectMemory:
        """A memory of `tokens` (O, T, D) with its keys, if these take at most `room` bytes."""
        first = self.attention.layers[0].cross_attn_image
        size = len(self.attention.layers) * tokens.shape[:2].numel() * first.internal_dim * tokens.element_size()
        if size > room:
            return ObjectMemory(tokens)
        return ObjectMemory(tokens, tuple(self.memory_keys(tokens, number) for number in range(self.num_layers)))

    @property
    def num_layers(self) -> int:
        """How many layers the memory attention has."""
        return len(self.attention.layers)

    def memory_keys(self, tokens: torch.Tensor, number: int) -> torch.Tensor:
        """Keys of memory `tokens` (O, T, D) for a layer, (O, T, C), without their time."""
        projection = self.attention.layers[number].cross_attn_image.k_proj
        return self.rotate_keys(projection(tokens + self.memory_position), number)

    def rotate_keys(self, keys: torch.Tensor, number: int) -> torch.Tensor:
        """Keys (..., T, C) of a layer, each rotated by its position in the frame."""
        heads = self.attention.layers[number].cross_attn_image.num_attention_heads
        cosine, sine = (table.repeat(1, 1, heads) for table in self.memory_rotation)
        return rotate(keys, cosine, sine)

    def time_keys(self, distance: int, number: int) -> torch.Tensor:
        """What being `distance` frames old adds to the keys of a memory in a layer, (T, C). A distance of 0 is that of
        prompted frames, whose encoding is the last row of the table."""
        if (distance, number) not in self.known_time_keys:
            projection, time = self.attention.layers[number].cross_attn_image.k_proj, self.times[distance - 1]
            share = projection(time) - projection(torch.zeros_like(time))  # without the bias
            keys = self.rotate_keys(share.expand(len(self.memory_position), -1)[None], number)[0]
            self.known_time_keys[distance, number] = keys
        return self.known_time_keys[distance, number]

    def layer_keys(
        self, number: int, memories: Sequence[tuple[int, ObjectMemory]], pointer_keys: torch.Tensor | None
    ) -> torch.Tensor:
        """Keys (O, K, C) of all memories, each with its distance in frames, and of object pointers (O, P, D)."""
        keys = [
            (self.memory_keys(memory.tokens, number) if memory.keys is None else memory.keys[number])
            + self.time_keys(distance, number)
            for distance, memory in memories
        ]
        if pointer_keys is not None:
            keys.append(self.attention.layers[number].cross_attn_image.k_proj(pointer_keys))
        return torch.cat(keys, 1)

    # ---- layers -----------------------------------------------------------------------------------------------------

    def __call__(
        self,
        image: torch.Tensor,
        memories: Sequence[tuple[int, ObjectMemory]],
        pointers: torch.Tensor | None = None,
        pointer_positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """A frame as it is seen in the light of memories.

        Args:
            image (`torch.Tensor` of shape `(num_frames, cells, width)`): one frame, or one for each object.
            memories (`list[tuple[int, ObjectMemory]]`): with their distances in frames, 0 for prompted frames.
            pointers (`torch.Tensor` of shape `(num_objects, num_tokens, memory_width)`, *optional*): object pointers.
            pointer_positions (`torch.Tensor` of shape `(num_tokens, memory_width)`, *optional*): of these tokens.

        Returns:
            `torch.Tensor` of shape `(num_objects, cells, width)`.
        """
        values, pointer_keys = [memory.tokens for _, memory in memories], None
        if pointers is not None:
            values, pointer_keys = [*values, pointers], pointers + pointer_positions
        tokens, states = torch.cat(values, 1), image + self.frame_position
        for number, layer in enumerate(self.attention.layers):
            keys = self.layer_keys(number, memories, pointer_keys)
            states = states + layer.dropout1(self.attend_frame(layer, layer.layer_norm1(states)))
            states = states + layer.dropout2(self.attend_memories(layer, layer.layer_norm2(states), keys, tokens))
            states = states + layer.dropout3(self.feed_forward(layer, layer.layer_norm3(states)))
        return self.attention.layer_norm(states)

    def attend_frame(self, layer: Any, states: torch.Tensor) -> torch.Tensor:
        """A layer's self-attention among the cells of frames, (R or O, N, C)."""
        states = states.unsqueeze(1)
        return layer.self_attn(query=states, key=states, value=states, position_embeddings=self.rotation)[0].squeeze(1)

    def attend_memories(
        self, layer: Any, states: torch.Tensor, keys: torch.Tensor, tokens: torch.Tensor
    ) -> torch.Tensor:
        """A layer's cross-attention of cells (R or O, N, C) to memories with keys (O, K, C) and tokens (O, K, D):
        (O, N, C)."""
        attention = layer.cross_attn_image
        heads = attention.num_attention_heads
        query = attention.q_proj(states).unflatten(-1, (heads, -1)).transpose(1, 2)
        query = rotate(query, *self.rotation).expand(len(keys), -1, -1, -1)  # (O, H, N, C / H)
        keys = keys.unflatten(-1, (heads, -1)).transpose(1, 2)
        dropout = attention.dropout_p if attention.training else 0.0
        averages = average_memories(query, keys, tokens, dropout)  # (O, H, N, D)
        # Each head has its own part of the projection of values
        parts = attention.v_proj(averages).unflatten(-1, (heads, -1)).diagonal(dim1=1, dim2=3)  # (O, N, C / H, H)
        return attention.o_proj(parts.transpose(-1, -2).flatten(-2))

    def feed_forward(self, layer: Any, states: torch.Tensor) -> torch.Tensor:
        """A layer's MLP."""
        return layer.linear2(layer.dropout(layer.activation(layer.linear1(states))))


class EdgeTamMemoryAttention(SamaMemoryAttention):
    """EdgeTAM's: the tokens of a memory are the queries of a resampler, of which the first read the whole frame and are
    not rotated, and the others have positions of their own."""

    def __init__(self, sam: Any, frame_position: torch.Tensor, memory_position: torch.Tensor):
        super().__init__(sam, frame_position, memory_position)
        cosine, sine = self.rotation_table(frame_position, self.attention.position_ids_k)
        unrotated = (1, len(memory_position) - cosine.shape[1], cosine.shape[2])
        self.memory_rotation = (
            torch.cat([cosine.new_ones(unrotated), cosine], 1),
            torch.cat([sine.new_zeros(unrotated), sine], 1),
        )

    def feed_forward(self, layer: Any, states: torch.Tensor) -> torch.Tensor:
        """A layer's MLP."""
        return layer.mlp(states)


def rotate(states: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Rotary position encoding in float32: each pair of neighbouring channels of `states` (..., positions, width) is
    rotated by its angle, whose cosine and sine stand in both its channels."""
    pairs = states.float().unflatten(-1, (-1, 2))
    turned = torch.stack([-pairs[..., 1], pairs[..., 0]], -1).flatten(-2)
    return torch.addcmul(states.float() * cosine, turned, sine).to(states.dtype)


def average_memories(
    query: torch.Tensor, keys: torch.Tensor, tokens: torch.Tensor, dropout: float = 0.0
) -> torch.Tensor:
    """Softmax attention whose values are narrower than its keys and shared by all heads.

    Args:
        query (`torch.Tensor` of shape `(num_objects, num_heads, num_queries, head_width)`)
        keys (`torch.Tensor` of shape `(num_objects, num_heads, num_keys, head_width)`)
        tokens (`torch.Tensor` of shape `(num_objects, num_keys, memory_width)`): the values.
        dropout (`float`, defaults to 0): of the attention weights.

    Returns:
        `torch.Tensor` of shape `(num_objects, num_heads, num_queries, memory_width)`.
    """
    heads, width = query.shape[1], tokens.shape[-1]
    if query.device.type == "cpu" and not torch.is_grad_enabled() and not dropout:
        averages = average_in_parts(query.flatten(0, 1), keys.flatten(0, 1), tokens.repeat_interleave(heads, 0))
        return averages.unflatten(0, (-1, heads))
    values = tokens.unsqueeze(1).expand(-1, heads, -1, -1)
    if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16):
        # Flash attention wants values as wide as keys, and is faster with zeros than other kernels without
        values = F.pad(values, (0, max(0, query.shape[-1] - width)))
    return F.scaled_dot_product_attention(query, keys, values, dropout_p=dropout)[..., :width]


def average_in_parts(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Softmax attention of B queries (B, N, C) to keys (B, K, C) with values (B, K, D), in parts whose weights fit the
    caches of a CPU. The library's kernel for a CPU wants values as wide as keys."""
    query = query * query.shape[-1] ** -0.5
    result = query.new_empty(*query.shape[:2], values.shape[-1])
    row_bytes = keys.shape[1] * query.element_size()
    num_rows = min(query.shape[1], max(1, MAX_WEIGHT_BYTES // row_bytes))
    num_batches = max(1, MAX_WEIGHT_BYTES // (num_rows * row_bytes))
    for first in range(0, len(query), num_batches):
        batch = slice(first, first + num_batches)
        for row in range(0, query.shape[1], num_rows):
            weights = (query[batch, row : row + num_rows] @ keys[batch].mT).softmax(-1)
            result[batch, row : row + num_rows] = weights @ values[batch]
    return result
