"""What a run is: the data and settings that its losses and weights depend on, saved with every checkpoint, so that a
run never goes on with something else without a word."""

import json
from collections.abc import Mapping
from enum import Enum
from pathlib import Path

from trl import ModelConfig

from sama.data.mixture import Mixture

from .arguments import SamaTrainingArguments
from .checkpoints import FINGERPRINT_FILE, TrainingError, read_json


# Arguments that change losses or weights; all others change what is logged, saved or how fast a run is
DECISIVE = (
    "per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "max_steps", "learning_rate",
    "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "optim", "optim_args", "optim_target_modules",
    "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "seed", "data_seed", "bf16", "fp16",
    "full_determinism", "neftune_noise_alpha", "label_smoothing_factor", "average_tokens_across_devices",
    "ignore_data_skip", "memory_training",
    # Of reinforcement
    "num_generations", "max_completion_length", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "beta",
    "epsilon", "epsilon_high", "delta", "loss_type", "scale_rewards", "importance_sampling_level", "entropy_coef",
    "top_entropy_quantile", "mask_truncated_completions", "disable_dropout", "rewards", "best_answer_mask_loss",
    "sapo_temperature_pos", "sapo_temperature_neg", "vespo_k_pos", "vespo_k_neg", "vespo_lambda_pos",
    "vespo_lambda_neg", "use_bias_correction_kl", "use_adaptive_entropy", "entropy_target", "entropy_coef_min",
    "entropy_coef_max", "entropy_coef_delta", "cast_lm_head_to_fp32",
)  # fmt: skip
# Arguments whose changes are reported, although they change losses and weights by no more than rounding
HARMLESS = (
    "logging_steps", "save_steps", "save_strategy", "save_total_limit", "dataloader_num_workers",
    "gradient_checkpointing", "torch_compile", "tf32", "use_cpu",
)  # fmt: skip
ADAPTER = (
    "use_peft", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_modules_to_save", "use_rslora",
    "use_dora", "load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "use_bnb_nested_quant",
    "lora_target_parameters", "bnb_4bit_quant_storage",
)  # fmt: skip
# What decides which parameters the optimizer has and what it saves of each
OPTIMIZER_STRUCTURE = {
    "train_parts", "optim", "optim_args", "optim_target_modules",
    *(name for name in ADAPTER if name not in ("lora_alpha", "lora_dropout", "use_rslora")),
}  # fmt: skip
BASE_MODEL = ("model_name_or_path", "model_revision")
# Of the model's configuration: where it came from, and what no loss depends on
CONFIG_LEFT_OUT = ("_name_or_path", "transformers_version", "trained", "use_cache", "auto_map", "architectures")
ABSENT = "not set"
SHOWN_CHARACTERS = 80  # of a value, in messages


def fingerprint(
    args: SamaTrainingArguments, mixture: Mixture, config: Mapping, options: ModelConfig | None = None
) -> dict:
    """
    The fingerprint of a run, ready for JSON: `decisive` and `harmless` values by dotted name.

    Args:
        args ([`SamaTrainingArguments`]): Arguments of the run.
        mixture ([`Mixture`]): Its data.
        config (`dict`): The model's configuration as it was loaded.
        options (`ModelConfig`, *optional*): How the model was loaded and which adapters were added.
    """
    settings = {name: vars(args)[name] for name in DECISIVE if name in vars(args)}
    settings |= {"train_parts": sorted(args.parts), "processes": args.world_size}
    harmless = {name: vars(args)[name] for name in HARMLESS if name in vars(args)}
    if options is not None:
        settings |= {name: vars(options)[name] for name in ADAPTER if name in vars(options)}
        settings["dtype"] = str(options.dtype)
        base = {name: vars(options)[name] for name in BASE_MODEL}
        # A checkpoint holds all weights, but for an adapter only the adapter's, and the reference of GRPO is the base
        (settings if options.use_peft or settings.get("beta") else harmless).update(base)
        harmless["attn_implementation"] = options.attn_implementation
    model = {name: value for name, value in config.items() if name not in CONFIG_LEFT_OUT}
    decisive = {**settings, "model": model, "mixture": mixture_fingerprint(mixture)}
    harmless |= {"sources": {source.name: vars(source.entry)["files"] for source in mixture.sources}}
    found = {"decisive": flatten(decisive), "harmless": flatten(harmless)}
    return json.loads(json.dumps(found, default=_plain))


def mixture_fingerprint(mixture: Mixture) -> dict:
    """Sources in their order, with weights, lengths, options and checksums of their records and masks, and how samples
    are rendered. Where the files lie does not matter."""
    resolved, sources = mixture.resolved(), {}
    for source in mixture.sources:
        settings_of_source = resolved["sources"][source.name]
        sources[source.name] = {key: settings_of_source[key] for key in ("weight", "records", "samples", "format")}
        sources[source.name] |= {"options": settings_of_source.get("options", {}), "content": source.digests()}
    return {
        "order of sources": [source.name for source in mixture.sources],
        "samples": len(mixture),
        "seed": mixture.seed,
        "on_error": mixture.on_error,
        "rendering": resolved["rendering"],
        "sources": sources,
    }


def _plain(value) -> object:
    return value.value if isinstance(value, Enum) else sorted(value) if isinstance(value, set) else str(value)


def flatten(content: Mapping, at: str = "") -> dict:
    """Nested mappings as one, with dotted names."""
    found = {}
    for name, value in content.items():
        if isinstance(value, Mapping) and value:
            found |= flatten(value, f"{at}{name}.")
        else:
            found[f"{at}{name}"] = value
    return found


def differences(saved: Mapping, present: Mapping) -> dict[str, str]:
    """Each difference by name, in words with both values."""
    names = [*saved, *(name for name in present if name not in saved)]
    pairs = [(name, saved.get(name, ABSENT), present.get(name, ABSENT)) for name in names]
    return {name: f"{name} was {_shown(old)} and is {_shown(new)}" for name, old, new in pairs if old != new}


def _shown(value) -> str:
    text = value if value is ABSENT else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 3]}..."


def compare_runs(folder: Path, present: Mapping, finished: bool = False) -> tuple[dict[str, str], dict[str, str]]:
    """
    Compares the fingerprint that is saved in a folder with this run's.

    Args:
        folder (`Path`): Checkpoint or output folder.
        present (`dict`): The fingerprint of this run.
        finished (`bool`): Whether the folder holds a finished model. The model that it was trained from is decisive
            then; a run that resumes takes its weights from a checkpoint.

    Returns:
        `tuple(dict[str, str], dict[str, str])`: Differences that change the run, and harmless ones, by name.

    Raises:
        [`TrainingError`]: The saved fingerprint cannot be read.
    """
    saved = read_json(folder / FINGERPRINT_FILE)
    kinds = [(saved.get(kind), present[kind]) for kind in ("decisive", "harmless")]
    if not all(isinstance(old, dict) for old, _ in kinds):
        raise TrainingError(f"{folder / FINGERPRINT_FILE} is not the fingerprint of a run")
    decisive, harmless = (differences(old, new) for old, new in kinds)
    if finished:
        decisive |= {name: harmless.pop(name) for name in BASE_MODEL if name in harmless}
    return decisive, harmless
