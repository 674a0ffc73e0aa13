"""Sampling from a seed, so that conversations that share a device and a process do not share its random numbers."""

import torch
from transformers import LogitsProcessor, TopPLogitsWarper


class Temperature(LogitsProcessor):
    """
    Divides logits by a temperature. The largest becomes 0 before, so that it stays finite however low that is.

    Args:
        temperature (`float`): above 0.
    """

    def __init__(self, temperature: float):
        self.temperature = temperature

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return (scores - scores.max(dim=-1, keepdim=True).values).double() / self.temperature


class SeededSampling(LogitsProcessor):
    """
    Makes greedy generation draw from the distribution of the logits: adds Gumbel noise, whose maximum is such a draw.

    Args:
        seed (`int`): the noise depends on it and the number of the token alone, on every device.
    """

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        noise = torch.empty(scores.shape).exponential_(generator=self.generator)
        return scores - noise.log().to(scores)


def sampling_arguments(temperature: float, top_p: float, seed: int) -> dict:
    """
    Arguments for `generate`.

    Args:
        temperature (`float`): 0 takes the likeliest token.
        top_p (`float`): the probability mass to draw from.
        seed (`int`)
    """
    if temperature == 0:
        return {"do_sample": False}
    steps: list[LogitsProcessor] = [Temperature(temperature)]
    if top_p < 1:
        steps.append(TopPLogitsWarper(float(top_p)))
    return {"do_sample": False, "logits_processor": [*steps, SeededSampling(seed)]}
