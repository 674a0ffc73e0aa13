"""LoRA and QLoRA on the language model, in addition to the parts that are fully trained."""

from collections.abc import Sequence

from torch import nn
from transformers import BitsAndBytesConfig
from trl import ModelConfig, get_peft_config, get_quantization_config

from .parts import BACKBONE, PART_PREFIXES


LORA_TARGETS = r".*\.language_model\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
# PEFT's `modules_to_save` for each part of SAMA's own; PEFT matches the end of a module's name
PART_MODULES = {
    "aggregator": ("model.context_aggregator", "model.region_encoder"),
    "seg_head": ("seg_projection.0", "seg_projection.2"),
    "sam_encoder": ("sam.vision_encoder",),
    "mask_decoder": ("sam.mask_decoder",),
    "sam_heads": ("sam.mask_decoder.iou_prediction_head", "sam.mask_decoder.pred_obj_score_head"),
}
POSSIBLE_PARTS = ("vision_tower", "projector", *PART_MODULES)
# Whole names from the root on: bitsandbytes skips what begins with one of them, and matches no name in the middle
NOT_QUANTIZED = (
    "lm_head",
    *(
        prefix.removesuffix(".")
        for part, prefixes in PART_PREFIXES.items()
        if part != "language_model"
        for prefix in prefixes
    ),
)


def quantization(options: ModelConfig) -> BitsAndBytesConfig | None:
    """QLoRA's quantization config, or None: the language model in 4 or 8 bits, everything else unquantized."""
    config = get_quantization_config(options)
    if config is not None:
        config.llm_int8_skip_modules = list(NOT_QUANTIZED)
    return config


def saved_modules(model: nn.Module, parts: Sequence[str], others: Sequence[str] = ()) -> list[str]:
    """PEFT's `modules_to_save` for fully trained parts and `others`, modules that the user names. A module inside
    another one is left out. A list of modules, which has no forward for PEFT to wrap, stands as its entries."""
    names = [name for part in parts for name in PART_MODULES.get(part, ())]
    families = {"vision_tower": model.model.family.vision_tower, "projector": model.model.family.projector}
    for prefix in (prefix for part in parts for prefix in families.get(part, ())):
        name = BACKBONE + prefix.removesuffix(".")
        module = model.get_submodule(name)
        entries = [f"{name}.{entry}" for entry, _ in module.named_children()]
        names += entries if isinstance(module, nn.ModuleList) else [name]
    names = list(dict.fromkeys([*names, *others]))
    return [name for name in names if not any(name.startswith(f"{other}.") for other in names)]


def add_lora(model: nn.Module, options: ModelConfig, parts: Sequence[str]) -> nn.Module:
    """
    Adds LoRA to the model, by default to every linear layer of the language model. The fully trained `parts` are saved
    with the adapter, and so are the modules of `lora_modules_to_save`, which are fully trained, too.

    Raises:
        ValueError: if one of `parts` cannot be fully trained together with LoRA.
    """
    from peft import get_peft_model

    wrong = [part for part in parts if part not in POSSIBLE_PARTS]
    if wrong:
        raise ValueError(
            f"train_parts has {', '.join(wrong)}, which cannot be fully trained together with LoRA; remove "
            f"{'it' if len(wrong) == 1 else 'them'}{' and --memory_training' if 'memory' in wrong else ''}. Possible "
            f"parts: {', '.join(POSSIBLE_PARTS)}."
        )
    # Not PEFT's `prepare_model_for_kbit_training`, which casts all that is frozen and not quantized to float32
    model.requires_grad_(False)
    options.lora_target_modules = options.lora_target_modules or LORA_TARGETS
    options.lora_modules_to_save = saved_modules(model, parts, options.lora_modules_to_save or ())
    return get_peft_model(model, get_peft_config(options))
