"""What all stages of sama-tiny share: phases of training, in one process or several, that resume exactly."""

import argparse
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import distributed, nn
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader, Dataset

from sama.benchmarks.benchmark import digest_of
from sama.configuration_sama import SamaConfig
from sama.data.files import atomic_path
from sama.modeling_sama import SamaForConditionalGeneration
from sama.processing_sama import SamaProcessor
from sama.recipes.sama_tiny.attention import use_matmul_attention
from sama.recipes.sama_tiny.heads import LOSS_WEIGHTS, Losses, Tensors, weighted_sum
from sama.training.checkpoints import TrainingError


WARM_UP, FLOOR, WEIGHT_DECAY = 50, 0.05, 0.01
FREE = {"compile", "num_workers", "log_steps", "save_steps", "examined"}  # may change when a run resumes
BLOCK = 4  # steps whose examples are drawn together
Batch = dict[str, dict[str, torch.Tensor]]


class Examples(Dataset):
    """
    The batches of one phase. An item is the list of the batches of `BLOCK` steps.

    Args:
        processor (`SamaProcessor`), config (`SamaConfig`): Of the model.
        arguments (`argparse.Namespace`): `seed`, and the batch size of the phase.
        steps (`int`): Number of steps.
        first (`int`): Number of steps of this kind before them, whose clips are not shown again.
    """

    def __init__(
        self, processor: SamaProcessor, config: SamaConfig, arguments: argparse.Namespace, steps: int, first: int = 0
    ):
        self.processor, self.config, self.arguments = processor, config, arguments
        self.seed, self.steps, self.first = arguments.seed, steps, first
        self.process, self.processes = process_index(), num_processes()

    def __len__(self) -> int:
        return -(-self.steps // BLOCK)

    def __getitem__(self, block: int) -> list[Batch]:
        """The batches of the steps of a block."""
        return [self.batch(step) for step in self.steps_of(block)]

    def batch(self, step: int) -> Batch:
        """The batch of a step."""
        raise NotImplementedError

    def steps_of(self, block: int) -> range:
        """The steps of a block."""
        return range(BLOCK * block, min(BLOCK * (block + 1), self.steps))

    def indices(self, step: int, number: int) -> range:
        """The indices of the clips of a step of this process."""
        first = ((self.first + step) * self.processes + self.process) * number
        return range(first, first + number)


def stacked(labels: list[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
    """The labels of several frames or masks, stacked by name."""
    return {name: torch.from_numpy(np.stack([one[name] for one in labels])) for name in labels[0]}


class Phase(NamedTuple):
    """
    A phase of the training.

    Args:
        examples (`Examples`): Its batches, in blocks.
        losses (`Callable`): Losses and metrics of a batch.
        learning_rate (`float`): Highest learning rate.
        trained (`Sequence[nn.Module | nn.Parameter]`): What is trained.
        frozen (`Sequence[nn.Module | nn.Parameter]`): Parts of it that are not.
        weights (`Mapping[str, float]`): Weights of the losses by name.
        begin (`Callable`, *optional*): Called before the first step.
    """

    examples: Examples
    losses: Callable[[Batch], Losses]
    learning_rate: float
    trained: Sequence[nn.Module | nn.Parameter]
    frozen: Sequence[nn.Module | nn.Parameter] = ()
    weights: Mapping[str, float] = LOSS_WEIGHTS
    begin: Callable[[], None] | None = None


def train(
    phases: Sequence[Phase],
    modules: dict[str, nn.Module],
    arguments: argparse.Namespace,
    state_path: Path,
    matrices: Sequence[nn.Parameter] = (),
) -> None:
    """
    Run the steps of all phases, resuming from `state_path` if it exists.

    Args:
        phases (`Sequence[Phase]`): The phases, in order.
        modules (`dict[str, nn.Module]`): What any phase trains, by its name in `state.pt`.
        arguments (`argparse.Namespace`): See [`add_run_arguments`].
        state_path (`Path`): Weights, optimizers and number of steps.
        matrices (`Sequence[nn.Parameter]`): What of the modules Muon updates; AdamW updates the rest.

    Raises:
        TrainingError: if a loss is not finite, or if the state is of a run with other settings.
    """
    optimizers = optimizers_of(modules, matrices)
    settings = settings_of(arguments)
    done, first = load_state(state_path, modules, optimizers, settings, arguments.device), 0
    log, total = StepLog(arguments.log_steps), sum(phase.examples.steps for phase in phases)
    for phase in phases:
        for parts, trained in ((modules.values(), False), (phase.trained, True), (phase.frozen, False)):
            for part in parts:
                part.requires_grad_(trained)
        steps = phase.examples.steps
        if phase.begin is not None and steps and done <= first:
            phase.begin()
        began = time.perf_counter()
        for step, batch in batches(phase.examples, max(done - first, 0), arguments):
            # Dropout in SAM 2's memory
            torch.manual_seed(arguments.seed + (first + step) * num_processes() + process_index())
            for optimizer in optimizers:
                optimizer.param_groups[0]["lr"] = phase.learning_rate * schedule(step, steps)
            losses, metrics = take_step(phase, batch, optimizers, arguments)
            if process_index():
                continue
            number, now = first + step + 1, time.perf_counter()
            values = metrics | {f"loss {name}": loss for name, loss in losses.items()}
            log.add(number, values | {"seconds": torch.tensor(now - began)})
            began = now
            if number % arguments.save_steps == 0 or number == total:
                save_state(state_path, modules, optimizers, settings, number)
        first += steps


def optimizers_of(modules: dict[str, nn.Module], matrices: Sequence[nn.Parameter] = ()) -> list[torch.optim.Optimizer]:
    """AdamW, and Muon for `matrices`, whose steps are scaled to the size of those of AdamW."""
    own = {id(matrix) for matrix in matrices}
    rest = [one for module in modules.values() for one in module.parameters() if id(one) not in own]
    found = [torch.optim.AdamW(rest, weight_decay=WEIGHT_DECAY, betas=(0.9, 0.98), fused=True)]
    if matrices:
        found.append(torch.optim.Muon(matrices, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"))
    return found


def hidden_matrices(*parts: nn.Module) -> list[nn.Parameter]:
    """The weights of the linear layers of these parts."""
    return [module.weight for part in parts for module in part.modules() if isinstance(module, nn.Linear)]


def batches(examples: Examples, first: int, arguments: argparse.Namespace) -> Iterator[tuple[int, Batch]]:
    """Steps from `first` on, and their batches."""
    if first >= examples.steps:
        return
    blocks = prefetch(examples, first // BLOCK, arguments)
    yield from enumerate(islice(chain.from_iterable(blocks), first % BLOCK, None), start=first)


def take_step(
    phase: Phase, batch: Batch, optimizers: Sequence[torch.optim.Optimizer], arguments: argparse.Namespace
) -> Losses:
    """Losses, gradients, and an update of the weights. [`TrainingError`] if a loss is not finite."""
    with autocast(arguments):
        losses, metrics = phase.losses(batch)
    loss = weighted_sum(losses, phase.weights)
    if not loss.isfinite():
        wrong = ", ".join(f"{name} {value.item():.3g}" for name, value in losses.items() if not value.isfinite())
        raise TrainingError(f"a loss is not finite: {wrong}")
    loss.backward()
    everything = [each for optimizer in optimizers for each in optimizer.param_groups[0]["params"]]
    parameters = [each for each in everything if each.requires_grad]
    average_gradients(parameters)
    nn.utils.clip_grad_norm_(parameters, 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return losses, metrics


def schedule(step: int, steps: int) -> float:
    """Factor on the learning rate: linear warm-up, then a cosine decay to `FLOOR`."""
    wave = 0.5 * (1 + math.cos(math.pi * step / steps))
    return min(1.0, (step + 1) / WARM_UP) * (FLOOR + (1 - FLOOR) * wave)


def autocast(arguments: argparse.Namespace) -> torch.autocast:
    """bfloat16 for what is computed in a block, unless `--float32` was given."""
    return torch.autocast(arguments.device, dtype=torch.bfloat16, enabled=arguments.bf16)


def prefetch(examples: Examples, first: int, arguments: argparse.Namespace) -> Iterator[list[Batch]]:
    """Blocks from index `first` on, moved to the device; generated by `num_workers` processes in advance."""
    if arguments.num_workers:  # a batch has many small tensors, each of which would hold an open file
        torch.multiprocessing.set_sharing_strategy("file_system")
    loader = DataLoader(
        examples, batch_size=None, sampler=range(first, len(examples)), num_workers=arguments.num_workers
    )
    for block in loader:
        yield [move(batch, arguments.device) for batch in block]


def move(batch: Batch, device: str) -> Batch:
    """A batch on a device."""
    return tree_map(lambda part: part.to(device), batch)


class StepLog:
    """Prints the means of losses and metrics every few steps."""

    def __init__(self, steps: int):
        self.steps, self.values = steps, defaultdict(list)

    def add(self, step: int, values: Tensors) -> None:
        """Add the values of a step; print and forget the means every `steps` steps."""
        for name, value in values.items():
            self.values[name].append(value.detach())
        if step % self.steps == 0:
            means = {name: torch.stack(found).mean().item() for name, found in self.values.items()}
            print(f"step {step}:", ", ".join(f"{name} {mean:.3g}" for name, mean in means.items()), flush=True)
            self.values.clear()


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Average gradients over all processes. A missing gradient counts as zero, unless it is missing in all processes:
    what no process used is not updated, as in a single process."""
    if num_processes() == 1:
        return
    used = torch.tensor(
        [each.grad is not None for each in parameters], dtype=torch.float32, device=parameters[0].device
    )
    distributed.all_reduce(used)
    parameters = [each for each, number in zip(parameters, used.tolist(), strict=True) if number]
    gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in parameters]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    for each, part in zip(parameters, flat.split([each.numel() for each in parameters]), strict=True):
        each.grad = part.view_as(each) / num_processes()


def trained_parts(model: SamaForConditionalGeneration) -> nn.ModuleList:
    """Everything but SAM 2."""
    inner = model.model
    return nn.ModuleList(
        [inner.backbone, inner.region_encoder, inner.context_aggregator, inner.seg_projection, model.lm_head]
    )


def folder_with(name: str) -> Callable[[str], Path]:
    """The type of an option that names a folder with this file."""

    def folder(text: str) -> Path:
        if not (Path(text) / name).is_file():
            raise argparse.ArgumentTypeError(f"there is no {Path(text) / name}")
        return Path(text)

    return folder


def settings_of(arguments: argparse.Namespace) -> dict[str, float | str]:
    """What a run depends on and another one may choose otherwise: seed, steps, sizes of batches, learning rates, and a
    digest of what the earlier stages made."""
    options = vars(arguments)
    numbers = {name: value for name, value in options.items() if isinstance(value, int | float) and name not in FREE}
    inputs = {name: folder for name, folder in options.items() if isinstance(folder, Path) and name != "to"}
    made = {name: stage_digest(folder) for name, folder in inputs.items()}
    return numbers | made | {"processes": num_processes()}


def stage_digest(folder: Path) -> str:
    """Digest of what a stage left in its folder: its state, or initial weights."""
    state = folder / "state.pt"
    return digest_of([state if state.is_file() else folder / "model.safetensors"])


def load_state(
    path: Path,
    modules: dict[str, nn.Module],
    optimizers: Sequence[torch.optim.Optimizer],
    settings: Mapping[str, float | str],
    device: str,
) -> int:
    """
    Load modules and optimizers if the file exists; the number of steps done so far.

    Raises:
        TrainingError: if the run in the file has other settings.
    """
    if not path.is_file():
        return 0
    state = torch.load(path, weights_only=True, map_location=device)
    earlier = state.get("settings", {})  # states of earlier versions have none, and cannot be resumed
    for name, value in settings.items():
        if earlier.get(name) != value:
            raise TrainingError(
                f"{path} is of a run with {name} {earlier.get(name)}, and this one has {value}: choose another --to."
            )
    for name, module in modules.items():
        module.load_state_dict(state[name])
    for optimizer, own in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(own)
    if not process_index():
        print(f"resuming from step {state['step']}", flush=True)
    return state["step"]


def save_state(
    path: Path,
    modules: dict[str, nn.Module],
    optimizers: Sequence[torch.optim.Optimizer],
    settings: Mapping[str, float | str],
    step: int,
) -> None:
    """Save modules, optimizers and the settings of the run atomically."""
    state = {name: module.state_dict() for name, module in modules.items()}
    state |= {"optimizers": [optimizer.state_dict() for optimizer in optimizers], "settings": settings, "step": step}
    with atomic_path(path) as temporary:
        torch.save(state, temporary)


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of a run that do not depend on what is learned."""
    parser.add_argument("--float32", dest="bf16", action="store_false", help="train without bfloat16 autocast")
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile the layers of the language model and the vision tower; needs a C++ compiler",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--num-workers", type=int, default=0, help="processes that generate examples")
    parser.add_argument("--log-steps", type=int, default=50)
    parser.add_argument("--save-steps", type=int, default=100)


def start(folder: Path, arguments: argparse.Namespace) -> tuple[SamaForConditionalGeneration, SamaProcessor]:
    """
    The model that a stage trains, and its processor.

    The processes that torchrun has started are joined, if there are any. The model is frozen until a phase trains
    parts of it. On a CPU it uses an attention that is fast in training; its layers are compiled if that is asked for.
    """
    if "WORLD_SIZE" in os.environ:
        if arguments.device == "cuda":  # gloo, unlike NCCL, lets two processes share a GPU
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        distributed.init_process_group("gloo")
    model = SamaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).train().requires_grad_(False)
    backbone = model.model.backbone
    if arguments.device == "cpu":
        use_matmul_attention(backbone.language_model, backbone.vision_tower, model.model.mask_tracker.sam)
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
    matrices: Sequence[nn.Parameter] = (),
) -> None:
    """Run all phases, and write the model and its processor to the output folder."""
    arguments.to.mkdir(parents=True, exist_ok=True)
    train(phases, modules, arguments, arguments.to / "state.pt", matrices)
    if not process_index():
        model.save_pretrained(arguments.to)
        processor.save_pretrained(arguments.to)


def num_processes() -> int:
    """Number of processes that torchrun has started."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def process_index() -> int:
    """Index of this process."""
    return distributed.get_rank() if distributed.is_initialized() else 0
