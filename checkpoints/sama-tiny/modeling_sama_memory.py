"""Memory attention: a frame conditioned on what a mask model remembers of each object.

The parameters are those of the library's module, and so are the numbers, to rounding; in training, dropout acts on
averages of memories and not on their projections. The arithmetic is less, because

- the keys of a memory are projected and rotated once, when it is remembered. The time of a memory changes from frame
  to frame, but the projection and the rotation are linear: its share of the keys is the same for all objects, and
  added;
- attention averages the memories themselves, which are D wide, and projects the average; projected first, as in the
  library, they are C wide;
- before the first memory is read, all objects see the same frame: that part of the first layer is computed once.

Letters in shape comments: O objects, R frames (1, or one for each object), N cells of a frame, C width (256), H heads,
T tokens of a memory, D their width (64), K tokens of all memories and pointers.
"""

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn import functional as F


MAX_KEY_BYTES = 2**30  # of the keys of one track; a memory without keys is projected when it is read
# Attention weights computed at once on a CPU. More do not fit its caches, and take twice as long
MAX_WEIGHT_BYTES = 8 * 2**20


@dataclass(frozen=True)
class ObjectMemory:
    """What is remembered of O objects in one frame.

    Args:
        tokens (`torch.Tensor` of shape `(num_objects, num_tokens, memory_width)`)
        keys (`tuple[torch.Tensor]`, *optional*):
            For each layer of the memory attention the rotated keys of the tokens, `(num_objects, num_tokens, width)`,
            without the time of the memory; None where there was no room for them.
        rows (`torch.LongTensor` of shape `(num_objects, num_tokens)`, *optional*):
            Of a memory with pooled tokens, see [`MemoryPool`].
    """

    tokens: torch.Tensor
    keys: tuple[torch.Tensor, ...] | None = None
    rows: torch.Tensor | None = None

    @property
    def key_bytes(self) -> int:
        """Bytes of the keys."""
        return sum(key.nbytes for key in self.keys or ())


class KeyBuffer:
    """The keys of everything that a frame reads in one layer, in one piece of memory that is kept from frame to frame:
    keys that stay in their place, as those of prompted frames do, are not written again."""

    def __init__(self):
        self.keys: torch.Tensor | None = None
        self.written: list[tuple[torch.Tensor, torch.Tensor]] = []

    def fill(self, parts: Sequence[tuple[torch.Tensor, torch.Tensor]], last: torch.Tensor | None) -> torch.Tensor:
        """Keys (O, T, C) of memories, each with what its time adds, and `last` those of pointers: (O, K, C), which the
        next call overwrites."""
        length = sum(keys.shape[1] for keys, _ in parts) + (0 if last is None else last.shape[1])
        if self.keys is None or self.keys.shape[1] < length:
            reference = parts[0][0]
            self.keys, self.written = reference.new_empty(len(reference), length, reference.shape[2]), []
        first = 0
        for place, (keys, time) in enumerate(parts):
            known = place < len(self.written) and all(map(operator.is_, self.written[place], (keys, time)))
            if not known:
                torch.add(keys, time, out=self.keys[:, first : first + keys.shape[1]])
            first += keys.shape[1]
        self.written = list(parts)
        if last is not None:
            self.keys[:, first:length] = last
        return self.keys[:, :length]


class MemoryPool:
    """Memories with fewer tokens, an approximation: outside an object's surroundings, 2x2 cells become one token, the
    mean of theirs, which counts four times in the attention. A quarter of all 2x2 blocks, those nearest to the object
    by the logits of its mask, keep their cells.

    Args:
        height, width (`int`): cells of a frame, even numbers.
    """

    KEPT = 1 / 4  # of all blocks

    @classmethod
    def of_size(cls, size: int, height: int, width: int) -> "MemoryPool | None":
        """A pool of blocks of `size` x `size` cells; None if that is one cell.

        Raises:
            ValueError: if `size` is neither 1 nor 2, or does not divide the cells.
        """
        if size not in (1, 2) or height % size or width % size:
            raise ValueError(f"`memory_pool` is {size!r}; it must be 1 or 2, and divide {height}x{width} cells.")
        return None if size == 1 else cls(height, width)

    def __init__(self, height: int, width: int):
        self.height, self.width = height, width
        self.num_blocks = height * width // 4
        self.num_kept = max(1, int(self.num_blocks * self.KEPT))
        self.cells = self.blocks(torch.arange(height * width)[:, None]).squeeze(-1)  # (blocks, 4)

    @property
    def log_counts(self) -> list[float]:
        """Logarithm of how often each token of a pooled memory counts."""
        return [0.0] * (4 * self.num_kept) + [math.log(4)] * (self.num_blocks - self.num_kept)

    def blocks(self, cells: torch.Tensor) -> torch.Tensor:
        """Cells (..., T, C) by the 2x2 block that they lie in, (..., T / 4, 4, C)."""
        grid = cells.unflatten(-2, (self.height // 2, 2, self.width // 2, 2))
        return grid.transpose(-4, -3).flatten(-5, -4).flatten(-3, -2)

    def with_means(self, cells: torch.Tensor) -> torch.Tensor:
        """Cells (..., T, C) and behind them the mean of each block, (..., T + T / 4, C)."""
        return torch.cat([cells, self.blocks(cells).mean(-2)], -2)

    def choose(self, mask_logits: torch.Tensor) -> torch.Tensor:
        """For O objects with mask logits (1, O, 4h, 4w) the rows of [`with_means`] that their memory consists of, (O,
        tokens): the cells of blocks near the object, then the means of the others."""
        own = F.adaptive_max_pool2d(mask_logits[0], (self.height // 2, self.width // 2))
        near = F.max_pool2d(own[:, None], 3, stride=1, padding=1)[:, 0]  # a block, or one beside it
        order = (own + near).flatten(1).sort(dim=1, descending=True, stable=True).indices  # (O, blocks)
        kept = self.cells.to(order.device)[order[:, : self.num_kept]].flatten(1)
        return torch.cat([kept, self.height * self.width + order[:, self.num_kept :]], 1)

    def take(self, cells: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """The `rows` (O, tokens) of cells (O, T, C) and means, (O, tokens, C)."""
        return self.with_means(cells).take_along_dim(rows.unsqueeze(-1), 1)


class SamaMemoryAttention:
    """The memory attention of a mask model, for one track. What does not change from frame to frame is computed once.

    Args:
        sam (`nn.Module`): the mask model.
        frame_position (`torch.Tensor` of shape `(cells, width)`): of the cells of a frame.
        memory_position (`torch.Tensor` of shape `(tokens, memory_width)`): of the tokens of a memory.
        pool ([`MemoryPool`], *optional*): makes memories smaller.
        max_key_bytes (`int`, defaults to 1 GiB):
            Bound of the keys of memories that are kept, and of those that one frame reads. What does not fit is
            projected when it is read.
        compile_options (`dict`, *optional*): compiles the layers by `torch.compile` with these options.
    """

    @staticmethod
    def feed_forward(layer: Any, states: torch.Tensor) -> torch.Tensor:
        """The MLP of a layer."""
        return layer.linear2(layer.dropout(layer.activation(layer.linear1(states))))

    def __init__(
        self,
        sam: Any,
        frame_position: torch.Tensor,
        memory_position: torch.Tensor,
        pool: MemoryPool | None = None,
        max_key_bytes: int = MAX_KEY_BYTES,
        compile_options: dict[str, Any] | None = None,
    ):
        self.attention, self.memory_position = sam.memory_attention, memory_position
        self.pool, self.max_key_bytes = pool, max_key_bytes
        self.times = sam.memory_temporal_positional_encoding.flatten(1)  # (distances, D)
        self.frame_position = 0.1 * frame_position  # the factor is SAM 2's
        self.rotation = self.attention.rotary_emb(frame_position, self.attention.position_ids)
        self.memory_rotation = self.rotation
        self.known_time_keys: dict[tuple[int, int], torch.Tensor] = {}
        self.buffers = [KeyBuffer() for _ in self.attention.layers]
        self.compiled = compile_options is not None
        self.attend_layer = torch.compile(attend_layer, **compile_options) if self.compiled else attend_layer

    # ---- keys -------------------------------------------------------------------------------------------------------

    def remember(self, tokens: torch.Tensor, mask_logits: torch.Tensor, key_bytes: int = 0) -> ObjectMemory:
        """A memory of `tokens` (O, T, D), made of masks with logits (1, O, 4h, 4w), and its keys, if there is room for
        them beside `key_bytes` of other memories."""
        rows = None if self.pool is None else self.pool.choose(mask_logits)
        own = ObjectMemory(tokens if rows is None else self.pool.take(tokens, rows), rows=rows)
        width = self.attention.layers[0].cross_attn_image.internal_dim
        size = len(self.attention.layers) * own.tokens.shape[:2].numel() * width * tokens.element_size()
        if size + key_bytes > self.max_key_bytes:
            return ObjectMemory(tokens, rows=rows)
        keys = (self.memory_keys(tokens, rows, number) for number in range(len(self.attention.layers)))
        return replace(own, keys=tuple(keys))

    def memory_keys(self, tokens: torch.Tensor, rows: torch.Tensor | None, number: int) -> torch.Tensor:
        """Keys of the tokens (O, T, D) of all cells for a layer, (O, T, C), without their time."""
        projection = self.attention.layers[number].cross_attn_image.k_proj
        keys = self.rotate_keys(projection(tokens + self.memory_position), number)
        return keys if rows is None else self.pool.take(keys, rows)

    def rotate_keys(self, keys: torch.Tensor, number: int) -> torch.Tensor:
        """Keys (..., T, C) of a layer, each rotated by its position in the frame."""
        heads = self.attention.layers[number].cross_attn_image.num_attention_heads
        cosine, sine = (table.repeat(1, 1, heads) for table in self.memory_rotation)
        return rotate(keys, cosine, sine)

    def time_keys(self, distance: int, number: int) -> torch.Tensor:
        """What being `distance` frames old adds to the keys of a memory in a layer, (T, C), with a pool (T + T / 4,
        C). A distance of 0 is that of prompted frames, whose encoding is the last row of the table."""
        if (distance, number) not in self.known_time_keys:
            projection, time = self.attention.layers[number].cross_attn_image.k_proj, self.times[distance - 1]
            share = projection(time) - projection(torch.zeros_like(time))  # without the bias
            keys = self.rotate_keys(share.expand(1, len(self.memory_position), -1), number)[0]
            self.known_time_keys[distance, number] = keys if self.pool is None else self.pool.with_means(keys)
        return self.known_time_keys[distance, number]

    def layer_keys(
        self, number: int, memories: Sequence[tuple[int, ObjectMemory]], pointer_keys: torch.Tensor | None
    ) -> torch.Tensor:
        """Keys (O, K, C) of all memories, each with its distance in frames, and of object pointers, which are given as
        tokens with their positions (O, P, D)."""
        parts, last = [], None
        for distance, memory in memories:
            keys = self.memory_keys(memory.tokens, memory.rows, number) if memory.keys is None else memory.keys[number]
            time = self.time_keys(distance, number)
            parts.append((keys, time if memory.rows is None else time[memory.rows]))
        if pointer_keys is not None:
            last = self.attention.layers[number].cross_attn_image.k_proj(pointer_keys)
        size = len(self.buffers) * sum(keys.nbytes for keys, _ in parts)
        if torch.is_grad_enabled() or size > self.max_key_bytes:
            return torch.cat([*(keys + time for keys, time in parts), *([] if last is None else [last])], 1)
        return self.buffers[number].fill(parts, last)

    def values(
        self, memories: Sequence[tuple[int, ObjectMemory]], pointers: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Tokens (O, K, D) of all memories and pointers, and with a pool what is added to their attention logits,
        (K,)."""
        tokens = [
            memory.tokens if memory.rows is None or memory.keys else self.pool.take(memory.tokens, memory.rows)
            for _, memory in memories
        ]
        own = [] if pointers is None else [pointers]
        if self.pool is None:
            return torch.cat([*tokens, *own], 1), None
        counts = self.pool.log_counts * len(tokens) + [0.0] * sum(part.shape[1] for part in own)
        return torch.cat([*tokens, *own], 1), tokens[0].new_tensor(counts)

    # ---- layers -----------------------------------------------------------------------------------------------------

    def __call__(
        self,
        image: torch.Tensor,
        memories: Sequence[tuple[int, ObjectMemory]],
        pointers: torch.Tensor | None = None,
        pointer_positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """A frame conditioned on memories.

        Args:
            image (`torch.Tensor` of shape `(num_frames, cells, width)`): one frame, or one for each object.
            memories (`list[tuple[int, ObjectMemory]]`): with their distances in frames, 0 for prompted frames.
            pointers (`torch.Tensor` of shape `(num_objects, num_tokens, memory_width)`, *optional*): object pointers.
            pointer_positions (`torch.Tensor` of shape `(num_tokens, memory_width)`, *optional*): of these tokens.

        Returns:
            `torch.Tensor` of shape `(num_objects, cells, width)`.
        """
        pointer_keys = None if pointers is None else pointers + pointer_positions
        tokens, bias = self.values(memories, pointers)
        states = image + self.frame_position
        if self.attention.training:  # each object has its own dropout
            states = states.expand(len(tokens), -1, -1)
        for number, layer in enumerate(self.attention.layers):
            keys = self.layer_keys(number, memories, pointer_keys)
            for part in (keys, tokens) if self.compiled else ():
                torch._dynamo.maybe_mark_dynamic(part, 1)
            states = self.attend_layer(layer, self.feed_forward, states, self.rotation, keys, tokens, bias)
        return self.attention.layer_norm(states)


class EdgeTamMemoryAttention(SamaMemoryAttention):
    """EdgeTAM's: the tokens of a memory are the queries of a resampler, of which the first read the whole frame and
    are not rotated, and the others have positions of their own."""

    @staticmethod
    def feed_forward(layer: Any, states: torch.Tensor) -> torch.Tensor:
        """The MLP of a layer, a module of its own."""
        return layer.mlp(states)

    def __init__(self, sam: Any, frame_position: torch.Tensor, memory_position: torch.Tensor, **kwargs):
        super().__init__(sam, frame_position, memory_position, **kwargs)
        cosine, sine = self.attention.rotary_emb(frame_position, self.attention.position_ids_k)
        unrotated = (1, len(memory_position) - cosine.shape[1], cosine.shape[2])
        self.memory_rotation = (
            torch.cat([cosine.new_ones(unrotated), cosine], 1),
            torch.cat([sine.new_zeros(unrotated), sine], 1),
        )


def pointer_tokens(
    sam: Any, pointers: Sequence[tuple[int, torch.Tensor]], num_frames: int
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """M pointers (O, C), each with its distance in frames, as memory tokens (O, M * C / D, D), and their positions in
    time, (M * C / D, D) (SAM 2.1 only; zeros in 2.0). None without pointers."""
    if not pointers:
        return None, None
    tokens = torch.stack([pointer for _, pointer in pointers], 1).unflatten(-1, (-1, sam.mem_dim))
    num_pointers, num_splits = tokens.shape[1:3]
    tokens = tokens.flatten(1, 2)
    if not sam.config.enable_temporal_pos_encoding_for_object_pointers:
        return tokens, tokens.new_zeros(num_pointers * num_splits, sam.mem_dim)
    limit = min(num_frames, sam.config.max_object_pointers_in_encoder) - 1
    distances = torch.tensor([distance for distance, _ in pointers], device=tokens.device, dtype=torch.float32)
    encoding = sine_encoding(distances / limit, sam.hidden_dim).to(tokens.dtype)
    return tokens, sam.temporal_positional_encoding_projection_layer(encoding).repeat_interleave(num_splits, 0)


def sine_encoding(positions: torch.Tensor, size: int, temperature: float = 10000.0) -> torch.Tensor:
    """Sine and cosine encoding of M positions, (M, size): the one that is projected for object pointers."""
    exponents = 2 * (torch.arange(size // 2, dtype=torch.float32, device=positions.device) // 2) / (size // 2)
    angles = positions[:, None] / temperature**exponents
    return torch.cat([angles.sin(), angles.cos()], -1)


# ---- layers ---------------------------------------------------------------------------------------------------------


def attend_layer(
    layer: Any,
    feed_forward: Callable[[Any, torch.Tensor], torch.Tensor],
    states: torch.Tensor,
    rotation: tuple[torch.Tensor, torch.Tensor],
    keys: torch.Tensor,
    tokens: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """One layer of the memory attention.

    Args:
        layer (`nn.Module`): of the library's memory attention.
        feed_forward (`Callable`): its MLP, see [`SamaMemoryAttention.feed_forward`].
        states (`torch.Tensor` of shape `(num_frames, cells, width)`): one frame that all objects share, or one each.
        rotation (`tuple[torch.Tensor]`): cosine and sine of the cells, `(1, cells, head_width)`.
        keys (`torch.Tensor` of shape `(num_objects, num_keys, width)`): of memories, rotated.
        tokens (`torch.Tensor` of shape `(num_objects, num_keys, memory_width)`): the memories.
        bias (`torch.Tensor` of shape `(num_keys,)`, *optional*): is added to the attention logits.

    Returns:
        `torch.Tensor` of shape `(num_objects, cells, width)`.
    """
    own = layer.layer_norm1(states).unsqueeze(1)
    own = layer.self_attn(query=own, key=own, value=own, position_embeddings=rotation)[0].squeeze(1)
    states = states + layer.dropout1(own)
    attended = attend_memories(layer.cross_attn_image, layer.layer_norm2(states), rotation, keys, tokens, bias)
    states = states + layer.dropout2(attended)
    return states + layer.dropout3(feed_forward(layer, layer.layer_norm3(states)))


def attend_memories(
    attention: Any,
    states: torch.Tensor,
    rotation: tuple[torch.Tensor, torch.Tensor],
    keys: torch.Tensor,
    tokens: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Cross-attention of cells to memories; arguments as of [`attend_layer`]."""
    heads = attention.num_attention_heads
    query = attention.q_proj(states).unflatten(-1, (heads, -1)).transpose(1, 2)
    query = rotate(query, *rotation).expand(len(keys), -1, -1, -1)  # (O, H, N, C / H)
    keys = keys.unflatten(-1, (heads, -1)).transpose(1, 2)
    dropout = attention.dropout_p if attention.training else 0.0
    averages = average_memories(query, keys, tokens, bias, dropout)  # (O, H, N, D)
    # Each head has its own part of the projection of values
    parts = attention.v_proj(averages).unflatten(-1, (heads, -1)).diagonal(dim1=1, dim2=3)  # (O, N, C / H, H)
    return attention.o_proj(parts.transpose(-1, -2).flatten(-2))


def rotate(states: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Rotary position encoding in float32: each pair of neighbouring channels of `states` (..., positions, width) is
    rotated by its angle, whose cosine and sine stand in both its channels."""
    pairs = states.float().unflatten(-1, (-1, 2))
    turned = torch.stack([-pairs[..., 1], pairs[..., 0]], -1).flatten(-2)
    return torch.addcmul(states.float() * cosine, turned, sine).to(states.dtype)


def average_memories(
    query: torch.Tensor,
    keys: torch.Tensor,
    tokens: torch.Tensor,
    bias: torch.Tensor | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Softmax attention whose values are narrower than its keys and shared by all heads.

    Args:
        query (`torch.Tensor` of shape `(num_objects, num_heads, num_queries, head_width)`)
        keys (`torch.Tensor` of shape `(num_objects, num_heads, num_keys, head_width)`)
        tokens (`torch.Tensor` of shape `(num_objects, num_keys, memory_width)`): the values.
        bias (`torch.Tensor` of shape `(num_keys,)`, *optional*): is added to the attention logits.
        dropout (`float`, defaults to 0): of the attention weights.

    Returns:
        `torch.Tensor` of shape `(num_objects, num_heads, num_queries, memory_width)`.
    """
    heads, width = query.shape[1], tokens.shape[-1]
    in_parts = query.device.type == "cpu" and not torch.is_grad_enabled() and not dropout
    if in_parts and not torch.compiler.is_compiling():
        values = tokens if heads == 1 else tokens.repeat_interleave(heads, 0)
        return average_in_parts(query.flatten(0, 1), keys.flatten(0, 1), values, bias).unflatten(0, (-1, heads))
    values = tokens.unsqueeze(1).expand(-1, heads, -1, -1)
    is_half = query.dtype in (torch.float16, torch.bfloat16)
    if query.device.type in ("cpu", "mps") or (query.is_cuda and bias is None and is_half):
        # Flash attention wants values as wide as keys; before torch 2.12 a Mac computes others wrongly
        values = F.pad(values, (0, max(0, query.shape[-1] - width)))
    bias = None if bias is None else bias.to(query.dtype)[None, None, None]
    return F.scaled_dot_product_attention(query, keys, values, bias, dropout_p=dropout)[..., :width]


def average_in_parts(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
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
            logits = query[batch, row : row + num_rows] @ keys[batch].mT
            weights = (logits if bias is None else logits + bias).softmax(-1)
            result[batch, row : row + num_rows] = weights @ values[batch]
    return result
