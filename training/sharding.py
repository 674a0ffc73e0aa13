"""Training with sharded weights: which modules may be sharded, and how ZeRO-3 keeps the others replicated.

The vision tower with its projector and the language model run exactly once per step in each process. SAMA's own parts
run a number of times that depends on the samples, are called through methods other than `forward`, and read each
other's parameters. They are small and stay replicated.
"""

import torch
from torch import nn
from transformers import TrainerCallback, TrainingArguments

from .parts import base_name


# Prefixes of module and parameter names
SHARDABLE = ("model.backbone.", "lm_head.")
REPLICATED = ("model.context_aggregator.", "model.region_encoder.", "model.seg_projection.", "model.mask_tracker.")


def join_processes(args: TrainingArguments) -> None:
    """Starts the process group and registers it with DeepSpeed before the model is loaded: ZeRO-3 shards weights while
    loading, and without this it would assume a single process."""
    args.device  # noqa: B018  the property starts the process group
    if args.deepspeed_plugin is not None and torch.distributed.is_initialized():
        import deepspeed

        deepspeed.init_distributed(torch.distributed.get_backend())


def is_shardable(name: str) -> bool:
    """Whether the module or parameter `name` runs exactly once per step in every process."""
    return base_name(f"{name}.").startswith(SHARDABLE)


def gather_replicated_parts(model: nn.Module, optimizer) -> None:
    """
    Gathers SAMA's own parts permanently: DeepSpeed gathers them again after each update and not in between.

    ZeRO-3 gathers a module's weights when its `forward` begins, in all processes at once, and requires all processes
    to run the same modules in the same order. Without this function, methods other than `forward` would see empty
    weights, and processes with different samples would deadlock.

    Args:
        model ([`SamaForConditionalGeneration`] or `PeftModel`): Prepared by DeepSpeed.
        optimizer (`DeepSpeedZeroOptimizer_Stage3`): DeepSpeed's optimizer.
    """
    for name, module in model.named_modules():
        if base_name(f"{name}.").startswith(REPLICATED):
            for hooks in (module._forward_pre_hooks, module._forward_hooks):
                for key, hook in list(hooks.items()):
                    if hook.__module__.startswith("deepspeed."):
                        del hooks[key]
    replicated = [parameter for name, parameter in model.named_parameters() if base_name(name).startswith(REPLICATED)]
    for parameter in replicated:
        parameter.ds_persist = True
    known = {id(parameter) for parameter in optimizer.persistent_parameters}
    optimizer.persistent_parameters.extend(parameter for parameter in replicated if id(parameter) not in known)
    replicated[0].all_gather(replicated)


class GatherReplicatedParts(TrainerCallback):
    """Calls [`gather_replicated_parts`] under ZeRO-3. [`SamaTrainer`] sets `trainer`."""

    def __init__(self):
        self.trainer = None

    def on_train_begin(self, args, state, control, **kwargs):
        if args.deepspeed_plugin is not None and args.deepspeed_plugin.zero_stage == 3:
            gather_replicated_parts(self.trainer.model, self.trainer.deepspeed.optimizer)
