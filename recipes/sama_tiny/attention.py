"""Attention by two matrix products, for training in bfloat16 on a CPU."""

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask


NAME = "matmul"
MASKED = -1e4  # finite, because the rows of padding tokens are masked as a whole


def matmul_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """
    Attention of heads `(batch_size, num_heads, length, head_dim)`, in the form of transformers' attention functions.

    The backward pass of `scaled_dot_product_attention` in bfloat16 takes two to four times as long on a CPU, at the
    lengths of the small model (docs/log.md).
    """
    batch_size, num_heads, length, head_dim = query.shape
    repeats = num_heads // key.shape[1]
    if repeats > 1:
        key, value = (states.repeat_interleave(repeats, 1) for states in (key, value))
    query, key, value = (states.reshape(batch_size * num_heads, -1, head_dim) for states in (query, key, value))
    if attention_mask is None:
        scores = torch.bmm(query * scaling, key.transpose(1, 2))
    else:
        mask = attention_mask[..., : key.shape[1]].clamp(min=MASKED).to(query.dtype)
        mask = mask.expand(batch_size, num_heads, length, -1).reshape(batch_size * num_heads, length, -1)
        scores = torch.baddbmm(mask, query * scaling, key.transpose(1, 2))
    weights = nn.functional.dropout(scores.softmax(-1).to(value.dtype), dropout, module.training)
    outputs = torch.bmm(weights, value)
    return outputs.view(batch_size, num_heads, length, head_dim).transpose(1, 2).contiguous(), None


def use_matmul_attention(*towers: nn.Module) -> None:
    """Let these models use [`matmul_attention`]."""
    AttentionInterface.register(NAME, matmul_attention)
    AttentionMaskInterface.register(NAME, eager_mask)
    for tower in towers:
        tower.set_attn_implementation(NAME)
