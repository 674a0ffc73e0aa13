"""What stages 2 and 3 of sama-tiny share: phases of training, in one process or several, that resume exactly."""

import argparse
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import torch
from torch import distributed, nn

from sama.modeling_sama import SamaForConditionalGeneration
from sama.processing_sama import SamaProcessor
from sama.recipes.sama_tiny.attention import use_matmul_attention
from sama.recipes.sama_tiny.examples import BLOCK, Batch, Examples, num_processes, process_index
from sama.recipes.sama_tiny.heads import Losses, Tensors, weighted_sum
from sama.recipes.sama_tiny.train_masks import WEIGHT_DECAY, load_state, prefetch, save_state, schedule
from sama.training.checkpoints import TrainingError


class Phase(NamedTuple):
    """
    A phase of the training.

    Args:
        examples (`Examples`): Its batches, in blocks.
        losses (`Callable`): Losses and metrics of a batch.
        learning_rate (`float`): Highest learning rate.
        frozen (`Sequence[nn.Module]`): Modules that are not trained.
    """

    examples: Examples
    losses: Callable[[Batch], Losses]
    learning_rate: float
    frozen: Sequence[nn.Module] = ()


def train(
    phases: Sequence[Phase], modules: dict[str, nn.Module], arguments: argparse.Namespace, state_path: Path
) -> None:
    """
    Run the steps of all phases, resuming from `state_path` if it exists.

    Args:
        phases (`Sequence[Phase]`): The phases, in order.
        modules (`dict[str, nn.Module]`): What is trained, by its name in `state.pt`.
        arguments (`argparse.Namespace`): See [`add_run_arguments`].
        state_path (`Path`): Weights, optimizer and number of steps.
    """
    parameters = [parameter for module in modules.values() for parameter in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, weight_decay=WEIGHT_DECAY, betas=(0.9, 0.98), fused=True)
    done, first = load_state(state_path, modules, optimizer, arguments.device), 0
    log, total = StepLog(arguments.log_steps), sum(phase.examples.steps for phase in phases)
    for phase in phases:
        for part, trained in ((modules.values(), True), (phase.frozen, False)):
            for module in part:
                module.requires_grad_(trained)
        steps = phase.examples.steps
        for step, batch in batches(phase.examples, max(done - first, 0), arguments):
            optimizer.param_groups[0]["lr"] = phase.learning_rate * schedule(step, steps)
            losses, metrics = take_step(phase, batch, optimizer, arguments)
            if process_index():
                continue
            number = first + step + 1
            log.add(number, metrics | {f"loss {name}": loss for name, loss in losses.items()})
            if number % arguments.save_steps == 0 or number == total:
                save_state(state_path, modules, optimizer, number)
        first += steps


def batches(examples: Examples, first: int, arguments: argparse.Namespace) -> Iterator[tuple[int, Batch]]:
    """Steps from `first` on, and their batches."""
    if first >= examples.steps:
        return
    blocks = prefetch(examples, first // BLOCK, arguments)
    yield from enumerate(islice(chain.from_iterable(blocks), first % BLOCK, None), start=first)


def take_step(phase: Phase, batch: Batch, optimizer: torch.optim.Optimizer, arguments: argparse.Namespace) -> Losses:
    """Losses, gradients, and an update of the weights. [`TrainingError`] if a loss is not finite."""
    with torch.autocast(arguments.device, dtype=torch.bfloat16, enabled=arguments.bf16):
        losses, metrics = phase.losses(batch)
    loss = weighted_sum(losses)
    if not loss.isfinite():
        wrong = ", ".join(f"{name} {value.item():.3g}" for name, value in losses.items() if not value.isfinite())
        raise TrainingError(f"a loss is not finite: {wrong}")
    loss.backward()
    parameters = [each for each in optimizer.param_groups[0]["params"] if each.requires_grad]
    average_gradients(parameters)
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return losses, metrics


class StepLog:
    """Prints the means of losses and metrics every few steps."""

    def __init__(self, steps: int):
        self.steps, self.values = steps, defaultdict(list)

    def add(self, step: int, values: Tensors) -> None:
        for name, value in values.items():
            self.values[name].append(value.detach())
        if step % self.steps == 0:
            means = {name: torch.stack(found).mean().item() for name, found in self.values.items()}
            print(f"step {step}:", ", ".join(f"{name} {mean:.3g}" for name, mean in means.items()), flush=True)
            self.values.clear()


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Average gradients over all processes. A parameter without a gradient counts as zero, also in a single process,
    so that weights decay alike."""
    for each in parameters:
        if each.grad is None:
            each.grad = torch.zeros_like(each)
    if num_processes() > 1:
        flat = torch.cat([each.grad.flatten() for each in parameters])
        distributed.all_reduce(flat)
        for each, part in zip(parameters, flat.split([each.numel() for each in parameters]), strict=True):
            each.grad = part.view_as(each) / num_processes()


def trained_parts(model: SamaForConditionalGeneration) -> nn.ModuleList:
    """Everything but SAM 2."""
    inner = model.model
    return nn.ModuleList(
        [inner.backbone, inner.region_encoder, inner.context_aggregator, inner.seg_projection, model.lm_head]
    )


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of a run that do not depend on what is learned."""
    parser.add_argument("--float32", dest="bf16", action="store_false", help="train without bfloat16 autocast")
    parser.add_argument("--compile", action="store_true", help="compile the layers; needs a C++ compiler")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--num-workers", type=int, default=0, help="processes that generate examples")
    parser.add_argument("--log-steps", type=int, default=50)
    parser.add_argument("--save-steps", type=int, default=100)


def start(folder: Path, arguments: argparse.Namespace) -> tuple[SamaForConditionalGeneration, SamaProcessor]:
    """
    The model that a stage trains, and its processor.

    The processes that torchrun has started are joined, if there are any. SAM 2 is frozen. On a CPU the model uses an
    attention that is fast in training; its layers are compiled if that is asked for.
    """
    if "WORLD_SIZE" in os.environ:
        if arguments.device == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        distributed.init_process_group("gloo" if arguments.device == "cpu" else "nccl")
    model = SamaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).train()
    model.model.mask_tracker.requires_grad_(False)
    backbone = model.model.backbone
    if arguments.device == "cpu":
        use_matmul_attention(backbone.language_model, backbone.vision_tower)
    if arguments.compile:
        for layer in (*backbone.language_model.layers, *backbone.vision_tower.encoder.layer):
            layer.compile(dynamic=True)
    return model, SamaProcessor.from_pretrained(folder, trust_remote_code=True)


def train_and_save(
    model: SamaForConditionalGeneration,
    processor: SamaProcessor,
    phases: Sequence[Phase],
    modules: dict[str, nn.Module],
    arguments: argparse.Namespace,
) -> None:
    """Run all phases, and write the model and its processor to the output folder."""
    arguments.to.mkdir(parents=True, exist_ok=True)
    train(phases, modules, arguments, arguments.to / "state.pt")
    if not process_index():
        model.save_pretrained(arguments.to)
        processor.save_pretrained(arguments.to)
