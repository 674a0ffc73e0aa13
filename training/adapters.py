"""LoRA and QLoRA on the language model, in addition to the parts that are fully trained."""

from collections.abc import Sequence

from torch import nn
from transformers import BitsAndBytesConfig
from trl import ModelConfig, get_peft_config, get_quantization_config


LORA_TARGETS = r".*\.language_model\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
# PEFT's `modules_to_save` for each part; PEFT matches the end of a module's name
PART_MODULES = {
    "vision_tower": ("model.backbone.vision_tower",),
    "projector": ("model.backbone.multi_modal_projector",),
    "aggregator": ("model.context_aggregator", "model.region_encoder"),
    "seg_head": ("seg_projection.0", "seg_projection.2"),
    "sam_encoder": ("sam.vision_encoder",),
    "mask_decoder": ("sam.mask_decoder",),
}
NOT_QUANTIZED = ("vision_tower", "multi_modal_projector", "context_aggregator", "region_encoder", "seg_projection",
                 "mask_tracker", "lm_head")  # fmt: skip


def quantization(options: ModelConfig) -> BitsAndBytesConfig | None:
    """QLoRA's quantization config, or None: the language model in 4 or 8 bits, everything else unquantized."""
    config = get_quantization_config(options)
    if config is not None:
        config.llm_int8_skip_modules = list(NOT_QUANTIZED)
    return config


def add_lora(model: nn.Module, options: ModelConfig, parts: Sequence[str]) -> nn.Module:
    """
    Adds LoRA to the model, by default to every linear layer of the language model. The fully trained `parts` are saved
    with the adapter.

    Raises:
        ValueError: if one of `parts` cannot be fully trained together with LoRA.
    """
    from peft import get_peft_model, prepare_model_for_kbit_training

    wrong = [part for part in parts if part not in PART_MODULES]
    if wrong:
        raise ValueError(
            f"train_parts has {', '.join(wrong)}, which cannot be fully trained together with LoRA; remove "
            f"{'it' if len(wrong) == 1 else 'them'}. Possible parts: {', '.join(PART_MODULES)}."
        )
    if options.load_in_4bit or options.load_in_8bit:
        model = prepare_model_for_kbit_training(model)
    options.lora_target_modules = options.lora_target_modules or LORA_TARGETS
    modules = [module for part in parts for module in PART_MODULES[part]]
    options.lora_modules_to_save = options.lora_modules_to_save or modules
    return get_peft_model(model, get_peft_config(options))
