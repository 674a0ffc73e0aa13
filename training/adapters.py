"""LoRA and QLoRA on the language model, beside the parts that a run trains in full."""

from collections.abc import Sequence

from torch import nn
from transformers import BitsAndBytesConfig
from trl import ModelConfig, get_peft_config, get_quantization_config


LORA_TARGETS = r".*\.language_model\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
# Modules of each part, as PEFT saves them whole. It finds them by the end of their name
PART_MODULES = {
    "vision_tower": ("model.vision_tower",),
    "projector": ("model.multi_modal_projector",),
    "aggregator": ("model.context_aggregator", "model.region_encoder"),
    "seg_head": ("seg_projection.0", "seg_projection.2"),
    "sam_encoder": ("sam.vision_encoder",),
    "mask_decoder": ("sam.mask_decoder",),
}
NOT_QUANTIZED = ("vision_tower", "multi_modal_projector", "context_aggregator", "region_encoder", "seg_projection",
                 "mask_tracker", "lm_head")  # fmt: skip


def quantization(options: ModelConfig) -> BitsAndBytesConfig | None:
    """How weights are loaded for QLoRA: the language model in 4 or 8 bits, everything else as it is."""
    config = get_quantization_config(options)
    if config is not None:
        config.llm_int8_skip_modules = list(NOT_QUANTIZED)
    return config


def add_lora(model: nn.Module, options: ModelConfig, parts: Sequence[str]) -> nn.Module:
    """
    The model with LoRA as `options` say, by default on every matrix of the language model. Parts that are trained in
    full are saved with the adapter.

    Raises `ValueError` for a part that cannot be trained beside it.
    """
    from peft import get_peft_model, prepare_model_for_kbit_training

    wrong = [part for part in parts if part not in PART_MODULES]
    if wrong:
        raise ValueError(f"{', '.join(wrong)} cannot be trained in full beside LoRA: leave it out of train_parts")
    if options.load_in_4bit or options.load_in_8bit:
        model = prepare_model_for_kbit_training(model)
    options.lora_target_modules = options.lora_target_modules or LORA_TARGETS
    modules = [module for part in parts for module in PART_MODULES[part]]
    options.lora_modules_to_save = options.lora_modules_to_save or modules
    return get_peft_model(model, get_peft_config(options))
