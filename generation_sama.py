"""What `generate` keeps beside the tokens, and how the answers of several conversations are decoded together: with one
forward of the language model for a token of each.

Every conversation runs its own `generate`, with its own sampling, stop strings, limits and streamer. Only its decoding
steps are handed over, to a [`DecodingBatch`]: the steps of all who wait become the rows of one batch, over caches of
different lengths. A conversation joins with its first step after the prompt and leaves when its `generate` ends.

Letters in shape comments: S rows of the buffers, B of them that take a step, H key/value heads, W columns of the
buffers, D width of a head, C language-model width.
"""

from collections.abc import Callable
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import logging

from .versions_sama import CACHE


logger = logging.get_logger(__name__)

WIDTH_STEP = 64  # columns: the buffers are copied once in so many tokens, where a cache alone is copied for each
COMPILED_WIDTH = 256  # fewest columns of a compiled step
# Bounds of the buffers, in columns of all rows: those that are always allowed, and for each token in them. With one
# conversation much longer than the rest, most of the buffers would be padding.
MIN_COLUMNS, MAX_COLUMNS_PER_TOKEN = 4096, 4


class SegRecorder:
    """Keeps the language model's states at new tokens while `generate` runs. Which of them are [SEG] is looked up when
    the answer is complete: a look at each token would wait for the GPU."""

    def __init__(self, seg_token_id: int, prompt_length: int):
        self.seg_token_id, self.prompt_length = seg_token_id, prompt_length
        self.states: dict[int, torch.Tensor] = {}  # column to (B, width)

    @classmethod
    def of_prompt(
        cls, seg_token_id: int, input_ids: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> "SegRecorder":
        """One for a prompt (B, L); `ValueError` if only its end is given, and its beginning is in a cache."""
        if attention_mask is not None and attention_mask.shape[1] != input_ids.shape[1]:
            raise ValueError(
                f"`attention_mask` has {attention_mask.shape[1]} columns for {input_ids.shape[1]} `input_ids`: give "
                "all ids of the conversation, also those in the cache."
            )
        return cls(seg_token_id, input_ids.shape[1])

    def record(self, hidden_states: torch.Tensor, first_position: int) -> None:
        """Keeps those of `hidden_states` (B, L, width) that are behind the prompt; the first stands at
        `first_position`."""
        for column in range(max(0, self.prompt_length - first_position), hidden_states.shape[1]):
            self.states[first_position + column] = hidden_states[:, column]

    def record_step(self, hidden_states: torch.Tensor, cache: Cache | None) -> None:
        """[`record`] for a step of generation, after which `cache` holds these tokens too; `ValueError` for a cache of
        fixed size, whose steps the library may compile and which has no room for [SEG] as the last token."""
        if cache is not None and cache.is_compileable:
            raise ValueError(
                "The states of [SEG] are not kept with a static cache: leave out `cache_implementation`, or generate "
                "without `return_dict_in_generate`."
            )
        past = 0 if cache is None else cache.get_seq_length()
        self.record(hidden_states, max(0, past - hidden_states.shape[1]))

    def missing(self, sequences: torch.Tensor) -> bool:
        """Whether a new [SEG] in `sequences` (B, L) has no state: the release loses it, we run one more step."""
        return any(column not in self.states for _, column in self.positions(sequences))

    def positions(self, sequences: torch.Tensor) -> list[tuple[int, int]]:
        """(row, column) of every new [SEG] of `sequences`, in reading order."""
        found = (sequences[:, self.prompt_length :] == self.seg_token_id).nonzero().tolist()
        return [(row, column + self.prompt_length) for row, column in found]

    def collect(self, sequences: torch.Tensor, width: int) -> list[torch.Tensor]:
        """For each row of `sequences` its [SEG] states, of shape (num_objects, width)."""
        rows: list[list[torch.Tensor]] = [[] for _ in range(len(sequences))]
        for row, column in self.positions(sequences):
            rows[row].append(self.states[column][row])
        empty = next(iter(self.states.values()), torch.zeros(0, width, device=sequences.device)).new_zeros(0, width)
        return [torch.stack(states) if states else empty for states in rows]


class SlotLayer(CacheLayerMixin):
    """Keys and values (S, H, W, D) of one layer: a row for each conversation, whose tokens begin in column 0.

    Args:
        batch ([`DecodingBatch`]): says which rows take a step, and in which column.
    """

    is_sliding = False
    keys: Any
    values: Any

    def __init__(self, batch: "DecodingBatch"):
        super().__init__()
        self.batch = batch

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        raise RuntimeError("The buffers of a batch are made when a conversation joins it, not by a step.")

    def resize(self, like: DynamicLayer, num_rows: int, width: int, lengths: list[int]) -> None:
        """Makes buffers of another size and copies the rows, which have the given lengths; `like` gives the rest."""
        for name in ("keys", "values"):
            found, own = vars(self)[name], vars(like)[name]
            # Zeros: the weight of a masked column is 0, which times NaN is NaN
            buffer = own.new_zeros(num_rows, own.shape[1], width, own.shape[3])
            for row, length in enumerate(lengths):
                buffer[row, :, :length] = found[row, :, :length]
            setattr(self, name, buffer)
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends a token to each row that takes a step, (B, H, 1, D), and returns these rows, (B, H, width, D)."""
        batch, num_rows = self.batch, len(key_states)
        if batch.column is not None:  # all rows have one length; a slice is written faster than by indices
            self.keys[:num_rows, :, batch.column : batch.width] = key_states
            self.values[:num_rows, :, batch.column : batch.width] = value_states
        else:
            rows, columns = batch.rows.to(key_states.device), batch.columns.to(key_states.device)
            self.keys[rows, :, columns] = key_states[:, :, 0]
            self.values[rows, :, columns] = value_states[:, :, 0]
        if batch.is_compiled:
            return self.keys, self.values
        read = slice(0, num_rows) if num_rows == len(batch.slots) else batch.rows  # without a copy, if possible
        return self.keys[read, :, : batch.width], self.values[read, :, : batch.width]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.batch.width, 0

    def get_seq_length(self) -> int:
        return self.batch.width - 1

    def get_max_length(self) -> int:
        return -1


class DecodingSlot:
    """
    The place of one conversation in a [`DecodingBatch`], for one answer; `generate(..., decoding_slot=slot)`, which
    leaves it at the end.

    Args:
        batch ([`DecodingBatch`])
        wait (`Callable`): called while a step waits for those of the others: it lets them compute, and returns when it
            is this conversation's turn. An exception raised in it ends the answer.
    """

    def __init__(self, batch: "DecodingBatch", wait: Callable[[], None]):
        self.batch, self.wait = batch, wait
        self.inputs: dict[str, Any] = {}  # of the step that waits
        self.output: Any = None
        self.cache: Any = None  # of the conversation, while it has a row
        self.length = 0  # tokens in its row
        self.alone = False  # whether it never shares a step again

    def step(
        self, model, input_ids: torch.Tensor, position_ids: torch.Tensor, cache: Cache, recorder: SegRecorder | None
    ):
        """One decoding step: the logits and the cache of the model's output for one more token of the conversation.

        Args:
            model ([`SamaForConditionalGeneration`])
            input_ids, position_ids: of shape `(1, 1)`, positions also `(3, 1, 1)`.
            cache (`DynamicCache`): the conversation's own.
            recorder ([`SegRecorder`], *optional*)

        Raises:
            ValueError: for more than one token.
        """
        if input_ids.shape != (1, 1):
            raise ValueError(
                f"A decoding slot is for one token of one conversation, got `input_ids` of {tuple(input_ids.shape)}."
            )
        self.inputs = {"input_ids": input_ids, "position_ids": position_ids, "cache": cache, "seg_recorder": recorder}
        self.batch.waiting.append(self)
        self.wait()
        if self in self.batch.waiting:
            self.batch.run(model)
        output, self.output = self.output, None
        if output is None:  # after a failed batch its row may still be there
            self.leave()
        return model(**self.inputs, use_cache=True, logits_to_keep=1) if output is None else output

    def __enter__(self) -> "DecodingSlot":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self.leave()

    def leave(self) -> None:
        """Ends the answer, also after an exception: the conversation's cache has keys and values of its own again."""
        if self in self.batch.waiting:
            self.batch.waiting.remove(self)
        if self in self.batch.slots:
            self.batch.remove(self)


class DecodingBatch:
    """
    Runs the decoding steps of conversations that generate at the same time as one batch.

    There is no thread here and no lock: conversations take turns on the device, and whoever has it calls. The one
    whose turn it is runs the steps of all who wait, so that nobody waits for a conversation that does something else.

    Args:
        compile_options (`dict`, *optional*): compiles a step by `torch.compile` with these options. It then takes all
            rows of the buffers with all their columns, those that take no step too: so its shapes change only when the
            buffers grow or shrink, then by powers of two. For SDPA attention, and a model on one device.

    Attributes:
        num_steps, num_tokens (`int`): forwards of the language model so far, and tokens decoded in them.
    """

    def __init__(self, compile_options: dict[str, Any] | None = None):
        self.is_compiled = compile_options is not None
        self.decode = torch.compile(decode, **compile_options) if compile_options is not None else decode
        self.slots: list[DecodingSlot] = []  # in the order of their rows
        self.waiting: list[DecodingSlot] = []
        self.layers: list[Any] = []  # SlotLayer
        self.cache: Any = None  # of these layers
        self.num_rows = self.num_columns = 0  # of the buffers
        self.rows = self.columns = torch.zeros(0, dtype=torch.long)  # (B,) of the step that runs
        self.column: int | None = None  # where everybody steps and all columns are the same
        self.width = 0  # columns that it reads
        self.stepping: list[DecodingSlot] = []
        self.num_steps = self.num_tokens = 0

    def slot(self, wait: Callable[[], None]) -> DecodingSlot:
        """A place for one answer, see [`DecodingSlot`]."""
        return DecodingSlot(self, wait)

    def run(self, model) -> None:
        """The steps of all who wait. Those that do not fit in run alone, each in its turn."""
        ready, self.waiting = self.waiting, []
        try:
            self._join(ready)
            self.stepping = [slot for slot in self.slots if slot in ready]
            if self.stepping:
                self._step(model)
        except RuntimeError as error:  # no memory, for example
            logger.warning(f"A batch of {len(ready)} decoding steps failed, each is run alone: {error}")
            for slot in ready:
                slot.alone = True
                slot.leave()
        finally:
            self.stepping = []

    # ---- one step ---------------------------------------------------------------------------------------------------

    def _step(self, model) -> None:
        device = self.layers[0].keys.device
        slots: list[DecodingSlot | None] = [*self.stepping]
        if self.is_compiled:
            slots = [slot if slot in self.stepping else None for slot in self.slots]
            slots += [None] * (self.num_rows - len(slots))
        rows = range(self.num_rows) if self.is_compiled else [self.slots.index(slot) for slot in self.stepping]
        lengths = [self.slots[row].length if row < len(self.slots) else 0 for row in rows]
        self.width = self.num_columns if self.is_compiled else max(lengths) + 1
        is_even = len(rows) == len(self.slots) and min(lengths) == max(lengths) and not self.is_compiled
        self.column = lengths[0] if is_even else None
        self.rows, self.columns = torch.tensor([*rows], device=device), torch.tensor(lengths, device=device)
        blank = torch.zeros(1, 1, dtype=torch.long, device=self.stepping[0].inputs["input_ids"].device)
        logits, seg_states = self.decode(
            model,
            torch.cat([blank if slot is None else slot.inputs["input_ids"] for slot in slots]),
            self._attention_mask(model, lengths),
            self._position_ids([blank if slot is None else slot.inputs["position_ids"] for slot in slots]),
            self.cache,
        )
        if self.is_compiled:  # a CUDA graph writes the next step to the same memory
            logits, seg_states = logits.clone(), seg_states.clone()
        for row, slot in enumerate(slots):
            if slot is None:
                continue
            if (recorder := slot.inputs["seg_recorder"]) is not None:
                recorder.record(seg_states[row : row + 1], slot.length)
            slot.output = CausalLMOutputWithPast(logits=logits[row : row + 1], **{CACHE: slot.cache})
            slot.length += 1
        self.num_steps, self.num_tokens = self.num_steps + 1, self.num_tokens + len(self.stepping)

    def _attention_mask(self, model, lengths: list[int]) -> torch.Tensor | None:
        """Which columns each row reads; None where all read all."""
        if min(lengths) == max(lengths) and not self.is_compiled:
            return None
        mask = torch.arange(self.width, device=self.columns.device) <= self.columns[:, None]  # (B, width)
        # Of masks that are not complete the library asks whether they hide anything, and waits for the GPU
        return mask[:, None, None] if model.model.get_decoder().config._attn_implementation == "sdpa" else mask

    @staticmethod
    def _position_ids(positions: list[torch.Tensor]) -> torch.Tensor:
        """Those of the rows, (1, 1) or (3, 1, 1), as (B, 1) or (3, B, 1)."""
        if any(one.ndim == 3 for one in positions):
            positions = [one.expand(3, 1, 1) for one in positions]
        return torch.cat(positions, dim=-2)

    # ---- rows -------------------------------------------------------------------------------------------------------

    def _join(self, ready: list[DecodingSlot]) -> None:
        """Gives each conversation that has no row one, if the buffers stay within their bounds."""
        for slot in ready:
            if slot.alone or slot in self.slots or not self._may_join(slot.inputs["cache"]):
                continue
            cache, row = slot.inputs["cache"], len(self.slots)
            length = cache.get_seq_length()
            self._reserve([*self._lengths(), length], cache)
            for layer, own in zip(self.layers, cache.layers, strict=True):
                layer.keys[row, :, :length] = own.keys[0]
                layer.values[row, :, :length] = own.values[0]
            slot.cache, slot.length = cache, length
            self.slots.append(slot)
            self._point(slot)
        if self.slots:
            self._reserve(self._lengths(), self.slots[0].cache)

    def _may_join(self, cache: Cache) -> bool:
        """Whether a conversation can have a row: its layers keep all tokens, and the buffers stay within bounds."""
        layers: list[Any] = cache.layers
        # On "mps", `generate` takes back the last token of the cache itself, which is not up to date before `leave`
        if not all(type(layer) is DynamicLayer for layer in layers) or layers[0].keys.device.type == "mps":
            return False
        lengths = [*self._lengths(), cache.get_seq_length()]
        num_rows, num_columns = self._buffer_size(lengths)
        return num_rows * num_columns <= max(MIN_COLUMNS, MAX_COLUMNS_PER_TOKEN * sum(lengths))

    def _lengths(self) -> list[int]:
        return [slot.length for slot in self.slots]

    def _buffer_size(self, lengths: list[int]) -> tuple[int, int]:
        """Rows and columns of buffers for conversations of the given lengths and one more token in each."""
        num_columns = (max(lengths) // WIDTH_STEP + 1) * WIDTH_STEP
        if self.is_compiled:
            num_columns = next_power_of_two(max(COMPILED_WIDTH, num_columns))
        return next_power_of_two(len(lengths)), num_columns

    def _reserve(self, lengths: list[int], cache: Cache) -> None:
        """Makes room for rows of the given lengths and one more token in each, and gives back what is more than twice
        of that."""
        num_rows, num_columns = self._buffer_size(lengths)
        rows_fit = num_rows <= self.num_rows <= 2 * num_rows
        if rows_fit and num_columns <= self.num_columns <= 2 * num_columns:
            return
        layers: list[Any] = cache.layers
        if not self.layers:
            self.layers = [SlotLayer(self) for _ in layers]
            self.cache = Cache(layers=self.layers)
        for layer, own in zip(self.layers, layers, strict=True):
            layer.resize(own, num_rows, num_columns, self._lengths())
        self.num_rows, self.num_columns = num_rows, num_columns
        for slot in self.slots:
            self._point(slot)

    def _point(self, slot: DecodingSlot) -> None:
        """Makes the conversation's cache a view of its row, so that its keys and values are not kept twice."""
        row = self.slots.index(slot)
        for layer, own in zip(self.layers, slot.cache.layers, strict=True):
            own.keys = layer.keys[row : row + 1, :, : slot.length]
            own.values = layer.values[row : row + 1, :, : slot.length]

    def remove(self, slot: DecodingSlot) -> None:
        """Gives a conversation's cache a copy of its row, and the row to the last conversation."""
        self._point(slot)
        for own in slot.cache.layers:
            own.keys, own.values = own.keys.clone(), own.values.clone()
        row, last = self.slots.index(slot), self.slots.pop()
        if last is not slot:
            end = len(self.slots)
            for layer in self.layers:
                layer.keys[row, :, : last.length] = layer.keys[end, :, : last.length]
                layer.values[row, :, : last.length] = layer.values[end, :, : last.length]
            self.slots[row] = last
            self._point(last)
        slot.cache = None
        if not self.slots:
            self.layers, self.cache, self.num_rows, self.num_columns = [], None, 0, 0  # the buffers are given back


def decode(model, input_ids, attention_mask, position_ids, cache) -> tuple[torch.Tensor, torch.Tensor]:
    """One token for each row: logits (B, 1, vocabulary), and the states (B, 1, C) that [SEG] is read from."""
    outputs = model.model(input_ids, attention_mask, position_ids, cache, use_cache=True)
    return model.lm_head(outputs.last_hidden_state), outputs.seg_states


def copy_cache(source: Cache, target: Cache, length: int) -> None:
    """Puts the first `length` keys and values of each layer into an empty cache."""
    layers: Any = zip(source.layers, target.layers, strict=True)
    for layer, copy in layers:
        if layer.get_seq_length():
            copy.update(layer.keys[..., :length, :], layer.values[..., :length, :])


def crop_cache(cache: Cache, length: int) -> None:
    """Cuts keys and values back to the first `length` tokens."""
    layers: list[Any] = cache.layers
    for layer in layers:  # one by one: an interrupted question leaves them at different lengths
        if layer.get_seq_length() > length:
            layer.crop(length - layer.get_seq_length())


def next_power_of_two(number: int) -> int:
    """The smallest power of two that is not below `number`."""
    return 1 << (number - 1).bit_length()
