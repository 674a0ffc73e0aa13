"""The parts of a SAMA by name: which parameters each has, and which of them a run trains."""

from collections.abc import Iterable, Sequence

from torch import nn


# A parameter belongs to the first part one of whose prefixes its name begins with
PART_PREFIXES = {
    "vision_tower": ("model.vision_tower.",),
    "projector": ("model.multi_modal_projector.",),
    "language_model": ("model.language_model.", "lm_head."),
    "aggregator": ("model.context_aggregator.", "model.region_encoder."),
    "seg_head": ("model.seg_projection.",),
    "sam_encoder": ("model.mask_tracker.sam.vision_encoder.",),
    "prompt_encoder": ("model.mask_tracker.sam.prompt_encoder.",),
    "sam_heads": (
        "model.mask_tracker.sam.mask_decoder.iou_prediction_head.",
        "model.mask_tracker.sam.mask_decoder.pred_obj_score_head.",
    ),
    "mask_decoder": ("model.mask_tracker.sam.mask_decoder.",),
    # SAM 2's memory, and the original decoder, which masks reached by propagation come from
    "memory": ("model.mask_tracker.",),
}
PUBLISHED_PARTS = ("aggregator", "seg_head", "mask_decoder", "projector")
ALL_PARTS = "all"
# No prompt is a mask, and no frame is without memory in this sense: SAM 2 has these for other uses
NEVER_REACHED = ("prompt_encoder.mask_embed.", "sam.mask_downsample.", "sam.no_memory_positional_encoding")
LOSS_OF_HEAD = {"iou_prediction_head.": "iou_loss_coefficient", "pred_obj_score_head.": "presence_loss_coefficient"}


def parse_parts(names: str, memory_training: bool = False) -> tuple[str, ...]:
    """
    The parts that a comma-separated list names; `all` is all that a loss can reach, and memory training adds the
    memory.

    Raises `ValueError` for an unknown name, or for memory without memory training, which alone gives it a gradient.
    """
    found = dict.fromkeys(name.strip() for name in names.split(",") if name.strip())
    unknown = [name for name in found if name not in PART_PREFIXES and name != ALL_PARTS]
    if unknown or not found:
        problem = f"train_parts names {', '.join(unknown) or 'nothing'}"
        raise ValueError(f"{problem}, expected some of {', '.join((*PART_PREFIXES, ALL_PARTS))}")
    if ALL_PARTS in found:
        found = dict.fromkeys(part for part in PART_PREFIXES if part != "memory")
    elif "memory" in found and not memory_training:
        raise ValueError("train_parts names memory, which only a run with memory_training trains")
    if memory_training:
        found["memory"] = None
    return tuple(found)


def base_name(name: str) -> str:
    """The name that a parameter has in a model without adapters around it."""
    return name.removeprefix("base_model.model.").replace(".modules_to_save.default.", ".").replace(".base_layer", "")


def part_of(name: str) -> str:
    """The part that a parameter belongs to, by its name in the model. `ValueError` for one that belongs to none."""
    for part, prefixes in PART_PREFIXES.items():
        if base_name(name).startswith(prefixes):
            return part
    raise ValueError(f"The parameter {name} belongs to no part of SAMA")


def is_reached(name: str, config) -> bool:
    """Whether some loss gives this parameter a gradient: SAM 2's heads have losses of their own, which may weigh
    nothing."""
    weights = [vars(config)[weight] for head, weight in LOSS_OF_HEAD.items() if head in name]
    return all(weights) and not any(unused in name for unused in NEVER_REACHED)


def is_adapter(name: str) -> bool:
    """Whether a parameter is not the model's own, but was put beside it by PEFT."""
    return ".lora_" in name


def freeze_all_but(model: nn.Module, parts: Sequence[str]) -> None:
    """
    Trains the named parts of a model and nothing else; adapters stay as they are. What no loss reaches is frozen too,
    as it would get no gradient.

    Raises `ValueError` for a part of which nothing can be trained.
    """
    trained = set()
    for name, parameter in model.named_parameters():
        if is_adapter(name):
            continue
        part = part_of(name)
        wanted = part in parts and ".original_module." not in name and is_reached(name, model.config)
        parameter.requires_grad_(wanted)
        trained.update({part} if wanted else ())
    missing = [part for part in parts if part not in trained]
    if "sam_heads" in missing and len(parts) >= len(PART_PREFIXES) - 1:
        missing.remove("sam_heads")  # in `all` it stands for what can be trained
    if missing:
        raise ValueError(
            f"Nothing of {', '.join(missing)} gets a gradient. SAM 2's heads learn by losses of their own: give "
            "iou_loss_coefficient and presence_loss_coefficient of the model's configuration a weight"
        )


def hold_trained_in_float32(model: nn.Module) -> None:
    """Float32 for what is trained, as an update is smaller than what bfloat16 tells apart; the rest stays as it was
    loaded, in bfloat16 at half the memory."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def part_parameters(model: nn.Module) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """Part -> its parameters with their names, in the order of [`PART_PREFIXES`]; adapters have a row of their own."""
    found: dict[str, list] = {part: [] for part in (*PART_PREFIXES, "adapters")}
    for name, parameter in model.named_parameters():
        if ".original_module." not in name:
            found["adapters" if is_adapter(name) else part_of(name)].append((name, parameter))
    return {part: parameters for part, parameters in found.items() if parameters}


def count_parameters(parameters: Iterable[nn.Parameter]) -> int:
    """How many numbers they hold; `ds_numel` where ZeRO-3 left a process only its shard."""
    return sum(vars(parameter).get("ds_numel", parameter.numel()) for parameter in parameters)


def parameter_table(model: nn.Module) -> str:
    """Trained and frozen parameters of each part, as text."""
    rows, totals = [("part", "trained", "frozen")], [0, 0]
    for part, parameters in part_parameters(model).items():
        kinds = ([p for _, p in parameters if p.requires_grad is trained] for trained in (True, False))
        counts = [count_parameters(kind) for kind in kinds]
        totals = [total + count for total, count in zip(totals, counts, strict=True)]
        rows.append((part, *(f"{count:,}" for count in counts)))
    rows.append(("together", *(f"{total:,}" for total in totals)))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        f"{name.ljust(widths[0])}  {trained.rjust(widths[1])}  {frozen.rjust(widths[2])}"
        for name, trained, frozen in rows
    )
