"""The small checkpoint that ships, and how tests make it say what they want."""

from functools import cache
from pathlib import Path

import torch
from transformers import AutoModel, AutoProcessor


CHECKPOINT = Path(__file__).parent.parent / "checkpoints" / "sama-tiny"


@cache
def load_checkpoint(dtype: torch.dtype = torch.float32):
    """Model and processor, as a user loads them."""
    model = AutoModel.from_pretrained(CHECKPOINT, trust_remote_code=True, dtype=dtype).eval()
    return model, AutoProcessor.from_pretrained(CHECKPOINT, trust_remote_code=True)


class Dictated:
    """A logits processor that makes `generate` write a given answer, in every row of the batch."""

    def __init__(self, tokens: list[int]):
        self.tokens, self.step = tokens, 0

    def __call__(self, input_ids, scores):
        forced = torch.full_like(scores, float("-inf"))
        forced[:, self.tokens[self.step]] = 0.0
        self.step += 1
        return forced


def dictate(processor, answer: str) -> dict:
    """Arguments for `generate` or `ask` that make the model answer `answer`."""
    tokens = processor.tokenizer(answer, add_special_tokens=False)["input_ids"]
    return {"logits_processor": [Dictated(tokens)], "max_new_tokens": len(tokens)}


def count_calls(module: torch.nn.Module) -> list[int]:
    """Batch sizes of all later calls of `module`, in a list that grows."""
    sizes: list[int] = []
    module.register_forward_pre_hook(
        lambda _, args, kwargs: sizes.append(len(args[0] if args else next(iter(kwargs.values())))), with_kwargs=True
    )
    return sizes
