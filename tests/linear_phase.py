"""A phase of the small model's recipe that trains one layer, for processes of a group and for one alone."""

import argparse
import os
from pathlib import Path

import torch
from torch import distributed, nn

from sama.recipes.sama_tiny.heads import Losses
from sama.recipes.sama_tiny.phases import Batch, Examples, Phase, train


class Numbers(Examples):
    """As many rows of random numbers in each step and process as `arguments.rows` says."""

    def batch(self, step: int) -> Batch:
        rows = [
            torch.randn(3, generator=torch.Generator().manual_seed(index))
            for index in self.indices(step, self.arguments.rows)
        ]
        return {"inputs": {"rows": torch.stack(rows)}}


def train_layer(state: Path, rows: int) -> None:
    """Five steps of one layer, beside one that no loss uses; the first process of a group writes `state`."""
    if "WORLD_SIZE" in os.environ:
        distributed.init_process_group("gloo")
    layer, unused = nn.Linear(3, 1), nn.Linear(2, 1)
    with torch.no_grad():
        for parameter in (*layer.parameters(), *unused.parameters()):
            parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter))

    def losses(batch: Batch) -> Losses:
        error = (layer(batch["inputs"]["rows"]) - 1).square().mean()
        return {"error": error}, {"error": error}

    arguments = argparse.Namespace(
        seed=0, rows=rows, device="cpu", bf16=False, num_workers=0, log_steps=5, save_steps=5
    )
    phase = Phase(Numbers(None, None, arguments, steps=5), losses, 0.1, [layer, unused], weights={"error": 1.0})
    train([phase], {"layer": layer, "unused": unused}, arguments, state)
