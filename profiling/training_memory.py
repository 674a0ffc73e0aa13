"""Estimated GPU memory of training, computed from a configuration without a GPU and without allocating tensors.

    python profiling/training_memory.py                       # every setting of every model, as Markdown
    python profiling/training_memory.py --sizes 8b --detail   # by component
    python profiling/training_memory.py --config my/config.json --gpus 4 --batch 1
    python profiling/training_memory.py --sizes "Qwen3-VL-4B, SAM 3's tracker"

Parameters, gradients and optimizer states are counted. Activations are the tensors that autograd saves for the
backward pass of one micro-batch, counted by running the model at full size on fake tensors. With gradient
checkpointing they are the inputs of the layers and one layer at a time; frozen encoders keep nothing, as in
`checkpointing_sama.py`, and work on a few frames at once, whose buffers are not counted. Where frames differ in
size (Qwen-VL) the vision tower needs values that fake tensors do not have: of it the projector alone runs, and nothing
is estimated for settings that train the rest, nor are deep-stack features counted. Not included: the CUDA
context (about 0.5 GB), temporary buffers of single operations, and fragmentation; allow 10 to 15 %.
"""

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

from sama.configuration_sama import SamaConfig
from sama.conversion.released_sizes import LANGUAGE_MODELS, released_config
from sama.drawing.tables import markdown_table
from sama.modeling_sama import SamaForConditionalGeneration
from sama.modeling_sama_aggregator import expand_per_question
from sama.modeling_sama_backbones import backbone_family
from sama.profiling.model_sizes import STARTS, max_frame_tokens, sama_config
from sama.training.parts import PUBLISHED_PARTS, freeze_all_but
from sama.training.sharding import is_shardable


GIGABYTE = 1e9
BFLOAT16, FLOAT32 = 2, 4
ADAM = 2 * FLOAT32  # two moments
# bitsandbytes with double quantization: blocks of 64 with an 8-bit scale each, and a float32 per 256 scales
FOUR_BIT = 0.5 + 1 / 64 + 4 / (64 * 256)


@dataclass(frozen=True)
class Setting:
    """What is trained, and how."""

    name: str
    parts: tuple[str, ...] = PUBLISHED_PARTS  # names as in `train_parts`
    lora_r: int = 0
    four_bit: bool = False


SETTINGS = (
    Setting("published"),
    Setting("LoRA", lora_r=128),
    Setting("QLoRA", lora_r=128, four_bit=True),
    Setting("full", parts=(*PUBLISHED_PARTS, "language_model", "vision_tower")),
)


@dataclass(frozen=True)
class Workload:
    """One micro-batch of a GPU, by default the published recipe's."""

    batch: int = 2
    tokens: int = 2048  # per conversation, including frames and context
    labels: int = 256  # tokens with a label
    questions: int = 3
    question_tokens: int = 40
    frames: int = 32  # context frames
    sam_frames: int = 5
    objects: int = 5


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters: `replicated` on every GPU, or `shardable`; `largest` is the largest module that is
    gathered at once."""

    replicated_trained: int = 0
    replicated_frozen: int = 0
    shardable_trained: int = 0
    shardable_frozen: int = 0
    four_bit: int = 0  # of the frozen shardable ones
    largest: int = 0

    @property
    def trained(self) -> int:
        return self.replicated_trained + self.shardable_trained


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU."""

    parameters: float
    gradients: float
    optimizer: float
    activations: float = 0.0

    @property
    def total(self) -> float:
        return self.parameters + self.gradients + self.optimizer + self.activations


def frozen_bytes(count: Parameters) -> tuple[float, float]:
    """Bytes of frozen weights in bfloat16 or 4 bits, replicated and shardable."""
    shardable = BFLOAT16 * (count.shardable_frozen - count.four_bit) + FOUR_BIT * count.four_bit
    return BFLOAT16 * count.replicated_frozen, shardable


def ddp(count: Parameters, gpus: int) -> Memory:
    """Trained weights in float32 with autocast's bfloat16 copies; gradients twice on several GPUs, because the
    reduction buckets are copies."""
    weights = (FLOAT32 + BFLOAT16) * count.trained + sum(frozen_bytes(count))
    return Memory(weights, FLOAT32 * count.trained * (2 if gpus > 1 else 1), ADAM * count.trained)


def zero2(count: Parameters, gpus: int) -> Memory:
    """bfloat16 weights on every GPU; gradients, float32 weights and moments sharded."""
    weights = BFLOAT16 * count.trained + sum(frozen_bytes(count))
    return Memory(weights, BFLOAT16 * count.trained / gpus, (FLOAT32 + ADAM) * count.trained / gpus)


def zero3(count: Parameters, gpus: int) -> Memory:
    """Like ZeRO-2, with the weights of shardable modules sharded too; two modules are gathered at a time."""
    replicated, shardable = frozen_bytes(count)
    sharded = (BFLOAT16 * count.shardable_trained + shardable) / gpus
    gathered = 2 * BFLOAT16 * count.largest if gpus > 1 else 0
    weights = BFLOAT16 * count.replicated_trained + replicated + sharded + gathered
    return Memory(weights, BFLOAT16 * count.trained / gpus, (FLOAT32 + ADAM) * count.trained / gpus)


def fsdp2(count: Parameters, gpus: int) -> Memory:
    """Everything sharded, trained weights in float32. The replicated parts are in the root unit, which stays gathered
    in bfloat16 from its first use to the end of the step."""
    replicated, shardable = frozen_bytes(count)
    sharded = (FLOAT32 * count.trained + replicated + shardable) / gpus
    gathered = BFLOAT16 * (count.replicated_trained + count.replicated_frozen + 2 * count.largest) if gpus > 1 else 0
    return Memory(sharded + gathered, FLOAT32 * count.trained / gpus, ADAM * count.trained / gpus)


STRATEGIES: dict[str, Callable[[Parameters, int], Memory]] = {
    "DDP": ddp, "ZeRO-2": zero2, "ZeRO-3": zero3, "FSDP2": fsdp2,
}  # fmt: skip


class LoraLinear(nn.Module):
    """A linear layer with LoRA, like PEFT's, which cannot be used because it needs tensors with storage."""

    def __init__(self, base: nn.Linear, rank: int):
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, rank, bias=False, dtype=base.weight.dtype)
        self.up = nn.Linear(rank, base.out_features, bias=False, dtype=base.weight.dtype)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.base(hidden_states) + self.up(self.down(hidden_states))


def build(config: SamaConfig, setting: Setting) -> SamaForConditionalGeneration:
    """The model in bfloat16 with the setting's parameters trainable. Call it inside `FakeTensorMode` for an
    estimate."""
    # Dynamic RoPE reads tensor values, which fake tensors do not have; the table has the same size
    config.text_config.rope_parameters = config.text_config.rope_parameters | {"rope_type": "default"}
    model = SamaForConditionalGeneration._from_config(config, dtype=torch.bfloat16).train()
    freeze_all_but(model, setting.parts)
    if setting.lora_r:
        for layer in list(model.model.backbone.language_model.layers.modules()):
            for name, child in list(layer.named_children()):
                if isinstance(child, nn.Linear):
                    layer.add_module(name, LoraLinear(child, setting.lora_r))
    return model


def count_parameters(model: SamaForConditionalGeneration, setting: Setting) -> Parameters:
    """Counts the trained, frozen, shardable and 4-bit parameters."""
    counts = dict.fromkeys(("replicated_trained", "replicated_frozen", "shardable_trained", "shardable_frozen"), 0)
    four_bit = 0
    for name, parameter in model.named_parameters():
        place = "shardable" if is_shardable(name) else "replicated"
        counts[f"{place}_{'trained' if parameter.requires_grad else 'frozen'}"] += parameter.numel()
        if (
            setting.four_bit
            and name.startswith("model.backbone.language_model.layers.")
            and not parameter.requires_grad
        ):
            four_bit += parameter.numel() if parameter.ndim == 2 else 0
    modules = [*model.model.backbone.language_model.layers, model.get_input_embeddings(), model.lm_head]
    largest = max(sum(parameter.numel() for parameter in module.parameters()) for module in modules)
    return Parameters(**counts, four_bit=four_bit, largest=largest)


class SavedTensors:
    """Counts the bytes that autograd saves; each storage counts once, weights do not count.

    Args:
        model (`nn.Module`): Its `GradientCheckpointingLayer` modules are counted separately.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
        self.storages: dict[nn.Module | None, dict[int, int]] = defaultdict(dict)  # by layer; None: outside layers
        self.inputs: dict[nn.Module, dict[int, int]] = {}
        self.alive: list[torch.Tensor] = []  # referenced so that no address is reused
        self.layer: nn.Module | None = None

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.weights:
            self.storages[self.layer][storage._cdata] = storage.nbytes()
            self.alive.append(tensor)
        return tensor

    def enter(self, layer: nn.Module, arguments: tuple, named: dict) -> None:
        given = [value for value in (*arguments, *named.values()) if isinstance(value, torch.Tensor)]
        self.inputs[layer] = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in given}
        self.alive += given
        self.layer = layer

    def leave(self, layer: nn.Module, arguments: tuple, output: object) -> None:
        self.layer = None

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Counts tensors saved in this context."""
        layers = [module for module in self.model.modules() if isinstance(module, GradientCheckpointingLayer)]
        hooks = [layer.register_forward_pre_hook(self.enter, with_kwargs=True) for layer in layers]
        hooks += [layer.register_forward_hook(self.leave) for layer in layers]
        with torch.autograd.graph.saved_tensors_hooks(self.pack, lambda tensor: tensor):
            yield
        for hook in hooks:
            hook.remove()

    @property
    def total(self) -> int:
        """Bytes without gradient checkpointing."""
        return sum({key: size for saved in self.storages.values() for key, size in saved.items()}.values())

    @property
    def checkpointed(self) -> int:
        """Bytes with gradient checkpointing: outside layers, the layers' inputs, and one layer at a time."""
        layers = [layer for layer, saved in self.storages.items() if layer is not None and saved]
        kept = dict(self.storages[None])
        for layer in layers:
            kept |= self.inputs[layer]
        inside = [sum(size for key, size in self.storages[layer].items() if key not in kept) for layer in layers]
        return sum(kept.values()) + max(inside, default=0)


def count_activations(model: SamaForConditionalGeneration, workload: Workload) -> SavedTensors:
    """Runs a training step on fake tensors. Call it inside `FakeTensorMode`."""
    saved = SavedTensors(model)
    with saved.watch():
        training_step(model, workload)
    return saved


def has_square_frames(config: SamaConfig) -> bool:
    """Whether the backbone's frames are squares of one size."""
    return "height" in backbone_family(config.backbone_config).make_image_processor().size


def frame_features(model: SamaForConditionalGeneration, num_frames: int) -> torch.Tensor:
    """Tokens of black frames, (num_frames, tokens, width), each as large as a converted processor makes them at the
    most. Where frames differ in size they are what the projector makes of zeros."""
    config, dtype = model.config, model.get_input_embeddings().weight.dtype
    if has_square_frames(config):
        pixels = torch.zeros(num_frames, 3, *config.vision_config.image_size, dtype=dtype)
        return model.model.encode_frames(pixels).features
    backbone, vision = model.model.backbone, config.vision_config
    tokens = max_frame_tokens(config)
    states = torch.zeros(num_frames * tokens * vision.spatial_merge_size**2, vision.hidden_size, dtype=dtype)
    return backbone.visual.merger(states).unflatten(0, (num_frames, tokens))


def training_step(model: SamaForConditionalGeneration, workload: Workload) -> list[torch.Tensor]:
    """Runs every part of a training step on zeros, on the default device; returns the language loss, mask logits and
    context tokens, from which all gradients come."""
    inner, config = model.model, model.config
    aggregator, tracker, dtype = (
        inner.context_aggregator,
        inner.mask_tracker,
        model.get_input_embeddings().weight.dtype,
    )
    sam_size, batch = config.mask_config.image_size, workload.batch
    features = frame_features(model, batch * workload.frames)
    summaries = aggregator.summarise_frames(features)
    length = config.aggregator_config.num_temporal_queries + workload.question_tokens
    videos = torch.arange(batch).repeat_interleave(workload.questions)
    rows = torch.zeros(len(videos), length, config.aggregator_config.temporal_qformer_config.hidden_size, dtype=dtype)
    rows.requires_grad_()
    attention_mask = torch.ones(rows.shape[:2], dtype=torch.long)
    frames, summaries = (part.unflatten(0, (batch, -1)) for part in (features, summaries))
    windows = summaries.flatten(1, 2).split(config.aggregator_config.temporal_window, 1)
    read = [aggregator.read_window(expand_per_question(window, videos), rows, attention_mask) for window in windows]
    context = aggregator.injection(frames, torch.cat(read, 1), videos)
    embeds = torch.zeros(batch, workload.tokens, config.text_config.hidden_size, dtype=dtype, requires_grad=True)
    states = inner.backbone.language_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
    labels = torch.zeros(batch * workload.labels, dtype=torch.long)
    language = F.cross_entropy(model.lm_head(states[:, -workload.labels :].flatten(0, 1)).float(), labels)
    pixels = torch.zeros(batch * workload.sam_frames, 3, sam_size, sam_size, dtype=dtype)
    frames = tracker.encode_frames(pixels, original=False)
    prompts = model.project_seg_states(states[:, : workload.objects].flatten(0, 1))
    owners = torch.arange(len(prompts)).repeat(workload.sam_frames)
    chosen = frames.take(torch.arange(len(pixels)).repeat_interleave(workload.objects))
    masks = tracker.segment_prompted(chosen, prompts[owners].unsqueeze(1))
    return [language, masks.mask_logits, context]


def estimate(config: SamaConfig, setting: Setting, workload: Workload) -> tuple[Parameters, SavedTensors]:
    """Parameters and saved tensors of a setting, without allocating them.

    Raises:
        ValueError: if the model has no context aggregator.
    """
    if config.aggregator_config is None:
        raise ValueError("The model has no context aggregator: estimates are of SAMA's training.")
    with FakeTensorMode():
        model = build(config, setting)
        return count_parameters(model, setting), count_activations(model, workload)


def table_rows(
    name: str, config: SamaConfig, workload: Workload, num_gpus: list[int], detail: bool
) -> Iterator[list[str]]:
    """Table rows, one per setting, or with `detail` one per setting and strategy."""
    for setting in SETTINGS:
        if "vision_tower" in setting.parts and not has_square_frames(config):
            continue
        count, saved = estimate(config, setting, workload)
        columns = []
        for gpus in num_gpus:
            for strategy, states in STRATEGIES.items():
                memory = replace(states(count, gpus), activations=saved.total)
                small = replace(memory, activations=saved.checkpointed)
                if setting.four_bit and strategy in ("ZeRO-3", "FSDP2"):
                    columns.append("-")  # 4-bit weights cannot be sharded
                    continue
                columns.append(f"{small.total / GIGABYTE:.0f} / {memory.total / GIGABYTE:.0f}")
                parts = (small.parameters, small.gradients, small.optimizer, small.activations, memory.activations)
                if detail:
                    yield [name, setting.name, f"{strategy}, {gpus}", *(f"{part / GIGABYTE:.1f}" for part in parts)]
        if not detail:
            yield [name, setting.name, f"{count.trained / 1e6:.0f} M", *columns]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = {size: partial(released_config, size) for size in LANGUAGE_MODELS}
    for backbone, tracker in product(STARTS, ("SAM 2.1", "SAM 3's tracker")):
        names[f"{backbone}, {tracker}"] = partial(sama_config, backbone, tracker)
    parser.add_argument("--sizes", nargs="*", choices=names, default=list(names))
    parser.add_argument("--config", help="config.json or folder of a checkpoint, instead of the released sizes")
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8])
    parser.add_argument(
        "--batch", type=int, default=Workload.batch, help="samples per GPU and forward (default: %(default)s)"
    )
    parser.add_argument(
        "--tokens", type=int, default=Workload.tokens, help="per conversation, including frames (default: %(default)s)"
    )
    parser.add_argument("--detail", action="store_true", help="one row per strategy, by component")
    arguments = parser.parse_args()
    labels = min(Workload.labels, arguments.tokens)
    workload = Workload(batch=arguments.batch, tokens=arguments.tokens, labels=labels)
    try:
        if arguments.config:
            configs = {arguments.config: SamaConfig.from_pretrained(arguments.config)}
        else:
            configs = {size: names[size]() for size in arguments.sizes}
        rows = [
            row
            for name, config in configs.items()
            for row in table_rows(name, config, workload, arguments.gpus, arguments.detail)
        ]
    except (OSError, ValueError) as error:
        parser.error(" ".join(str(error).split()))
    if arguments.detail:
        parts = ["parameters", "gradients", "optimizer", "activations, checkpointed", "activations, all"]
        head = ["model", "setting", "strategy, GPUs", *parts]
    else:
        head = ["model", "setting", "trained"]
        head += [f"{strategy}, {gpus} GPU" for gpus in arguments.gpus for strategy in STRATEGIES]
    print(f"{workload.batch} samples of {workload.tokens} tokens, {workload.frames} context frames and ", end="")
    print(f"{workload.objects} objects in {workload.sam_frames} frames; GB per GPU, with / without checkpointing\n")
    print(markdown_table(head, rows))


if __name__ == "__main__":
    main()
