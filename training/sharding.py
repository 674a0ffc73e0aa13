"""Training with weights in pieces: which modules may be cut, and how the others stay whole under ZeRO-3.

The vision tower with its projector and the language model run exactly once in each process and step. SAMA's own parts
run as often as the samples of a process ask for, are called by methods, and read each other's parameters: they are
small, and stay whole.
"""

import torch
from torch import nn
from transformers import TrainerCallback, TrainingArguments

from .parts import base_name


# What names of modules and parameters begin with that may be cut; the others stay whole in every process
SHARDED = ("model.vision_tower.", "model.multi_modal_projector.", "model.language_model.", "lm_head.")
WHOLE = ("model.context_aggregator.", "model.region_encoder.", "model.seg_projection.", "model.mask_tracker.")


def join_processes(args: TrainingArguments) -> None:
    """Starts the process group, and makes it known to DeepSpeed: ZeRO-3 cuts every weight as soon as it is loaded, and
    without this for one process."""
    args.device  # noqa: B018  asking for it starts the group
    if args.deepspeed_plugin is not None and torch.distributed.is_initialized():
        import deepspeed

        deepspeed.init_distributed(torch.distributed.get_backend())


def may_be_cut(name: str) -> bool:
    """Whether the module or parameter of this name is one that every process runs once."""
    return base_name(f"{name}.").startswith(SHARDED)


def sharded_layers(model: nn.Module) -> list[str]:
    """Classes that FSDP2 makes units of: of what the model says must not be split, what may be cut."""
    whole = {type(part).__name__ for name, part in model.named_modules() if not may_be_cut(name)}
    cut = {type(part).__name__ for name, part in model.named_modules() if may_be_cut(name)}
    return sorted((cut - whole) & set(model._no_split_modules))


def keep_parts_whole(model: nn.Module, optimizer) -> None:
    """
    Gathers SAMA's own parts for good: DeepSpeed gathers them again after an update, and leaves them alone otherwise.

    ZeRO-3 brings a module's weights together when its `forward` begins, in all processes at once, and demands that all
    run the same modules in the same order. Without this, a method that is no `forward` finds empty weights, and
    processes whose samples differ wait for each other for ever.

    Args:
        model ([`SamaForConditionalGeneration`] or `PeftModel`): Prepared by DeepSpeed.
        optimizer (`DeepSpeedZeroOptimizer_Stage3`): DeepSpeed's own.
    """
    for name, module in model.named_modules():
        if base_name(f"{name}.").startswith(WHOLE):
            for hooks in (module._forward_pre_hooks, module._forward_hooks):
                for key, hook in list(hooks.items()):
                    if hook.__module__.startswith("deepspeed."):
                        del hooks[key]
    whole = [parameter for name, parameter in model.named_parameters() if base_name(name).startswith(WHOLE)]
    for parameter in whole:
        parameter.ds_persist = True
    known = {id(parameter) for parameter in optimizer.persistent_parameters}
    optimizer.persistent_parameters.extend(parameter for parameter in whole if id(parameter) not in known)
    whole[0].all_gather(whole)


class KeepPartsWhole(TrainerCallback):
    """[`keep_parts_whole`] for a [`SamaTrainer`], which hands itself over; nothing but under ZeRO-3."""

    def __init__(self):
        self.trainer = None

    def on_train_begin(self, args, state, control, **kwargs):
        if args.deepspeed_plugin is not None and args.deepspeed_plugin.zero_stage == 3:
            keep_parts_whole(self.trainer.model, self.trainer.deepspeed.optimizer)
