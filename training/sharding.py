"""Training with weights in pieces: which modules may be cut, and how the others stay whole under ZeRO-3.

The vision tower and the language model run exactly once in each process and step. SAMA's own parts run as often as the
samples of a process ask for, are called by methods, and read each other's parameters: they are small, and stay whole.
"""

from torch import nn
from transformers import TrainerCallback

from .parts import base_name


# Beginnings of the names of parameters that may be cut; the others stay whole in every process
SHARDED = ("model.vision_tower.", "model.language_model.", "lm_head.")


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
    Gathers SAMA's own parts, and has DeepSpeed gather them again after every update.

    ZeRO-3 brings a module's weights together when its `forward` begins, in all processes at once. Without this, a
    method that is no `forward` finds empty weights, and processes whose samples differ wait for each other for ever.

    Args:
        model ([`SamaForConditionalGeneration`] or `PeftModel`): Prepared by DeepSpeed.
        optimizer (`DeepSpeedZeroOptimizer_Stage3`): DeepSpeed's own.
    """
    parameters = [parameter for name, parameter in model.named_parameters() if not may_be_cut(name)]
    added = [parameter for parameter in parameters if not parameter.ds_persist]
    for parameter in added:
        parameter.ds_persist = True
    optimizer.persistent_parameters.extend(added)
    optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)


class KeepPartsWhole(TrainerCallback):
    """[`keep_parts_whole`] for a [`SamaTrainer`], which hands itself over; nothing but under ZeRO-3."""

    def __init__(self):
        self.trainer = None

    def on_train_begin(self, args, state, control, **kwargs):
        if args.deepspeed_plugin is not None and args.deepspeed_plugin.zero_stage == 3:
            keep_parts_whole(self.trainer.model, self.trainer.deepspeed.optimizer)
