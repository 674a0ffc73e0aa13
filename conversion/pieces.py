"""How tensors of another checkpoint become ours: a name for each, and the source tensors that it is made of."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch

from sama.modeling_sama import FORMER_NAMES, PRESENT_NAMES


# Prefixes of our names
SAM, ORIGINAL_DECODER = "model.mask_tracker.sam.", "model.mask_tracker.original_mask_decoder."
AGGREGATOR, BACKBONE = "model.context_aggregator.", "model.backbone."
LANGUAGE, VISION = f"{BACKBONE}language_model.", f"{BACKBONE}vision_tower."
PROJECTOR = f"{BACKBONE}multi_modal_projector."
EMBEDDINGS, HEAD = f"{LANGUAGE}embed_tokens.weight", "lm_head.weight"

Rules = list[tuple[str, str]]
Prefixes = list[tuple[str, str, Rules]]  # of source names, of our names, and rules for the rest of a name


@dataclass(frozen=True)
class Piece:
    """The source tensors from which one of our tensors is made, and how."""

    keys: tuple[str, ...]
    make: Callable[..., torch.Tensor]


@dataclass
class KeyMap:
    """Our names with their pieces, the source names that are skipped with the reason, and the unknown ones."""

    pieces: dict[str, Piece] = field(default_factory=dict)
    unused: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)


def identity(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def split_qkv(part: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Query (0), key (1) or value (2) of a matrix that stacks the three."""
    return lambda tensor: tensor.chunk(3)[part]


def split_grouped_qkv(part: str, num_groups: int, head_dim: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Query, key or value of InternLM2's fused matrix: per key/value head its query heads, then key, then value."""
    rows = {"q": slice(0, -2), "k": slice(-2, -1), "v": slice(-1, None)}[part]

    def split(tensor: torch.Tensor) -> torch.Tensor:
        groups = tensor.unflatten(0, (num_groups, -1, head_dim))  # (groups, query heads + 2, head_dim, ...)
        return groups[:, rows].flatten(0, 2)

    return split


def append_mean_rows(num_tokens: int, num_rows: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """The rows of the first `num_tokens` tokens, and their mean in all others up to `num_rows`. New tokens may take
    the places of rows that pad the matrix."""

    def grow(tensor: torch.Tensor) -> torch.Tensor:
        known = tensor[:num_tokens]
        mean = known.float().mean(0, keepdim=True).to(tensor.dtype)
        return torch.cat([known, mean.expand(num_rows - len(known), *tensor.shape[1:])])

    return grow


def drop_class_position(tensor: torch.Tensor) -> torch.Tensor:
    """Positions of patches alone, of a table (1, 1 + patches, width) whose first row is the class token's."""
    return tensor[:, 1:]


def concatenate(*tensors: torch.Tensor) -> torch.Tensor:
    return torch.cat(tensors)


def add_tensor(result: KeyMap, own: str, key: str, num_groups: int = 0, head_dim: int = 0) -> None:
    """Adds a source tensor under our name. One that stacks queries, keys and values becomes three.

    Args:
        num_groups, head_dim (`int`): key/value heads of InternLM2, and the width of a head.
    """
    if ".attention.qkv." in own:
        for part, letter in enumerate("qkv"):
            result.pieces[own.replace(".qkv.", f".{letter}_proj.")] = Piece((key,), split_qkv(part))
    elif ".self_attn.wqkv." in own:
        for letter in "qkv":
            split = split_grouped_qkv(letter, num_groups, head_dim)
            result.pieces[own.replace(".wqkv.", f".{letter}_proj.")] = Piece((key,), split)
    else:
        result.pieces[own] = Piece((key,), identity)


def rename(name: str, rules: Rules) -> str:
    """Applies all rules in turn."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def rename_by_prefix(key: str, prefixes: Prefixes) -> str | None:
    """Our name for a source name, or None if no prefix matches."""
    for prefix, own, rules in prefixes:
        if key.startswith(prefix):
            return own + rename(key[len(prefix) :], rules)
    return None


def map_own(keys: Iterable[str]) -> KeyMap:
    """Maps a converted checkpoint to itself, also one that has the names from before version 0.3."""
    return KeyMap({re.sub(FORMER_NAMES, PRESENT_NAMES, key): Piece((key,), identity) for key in keys})
