"""The named parts of a SAMA, their parameters, and which of them are trained."""

from collections.abc import Container, Iterable, Sequence

from torch import nn

from sama.modeling_sama_backbones import FAMILIES


BACKBONE = "model.backbone."
# A parameter belongs to the part with the longest matching prefix. Backbones name their own; the names of one family
# do not occur in another
PART_PREFIXES = {
    "vision_tower": tuple(BACKBONE + prefix for family in FAMILIES.values() for prefix in family.vision_tower),
    "projector": tuple(BACKBONE + prefix for family in FAMILIES.values() for prefix in family.projector),
    "language_model": (f"{BACKBONE}language_model.", "lm_head."),
    "aggregator": ("model.context_aggregator.", "model.region_encoder."),
    "seg_head": ("model.seg_projection.",),
    "sam_encoder": ("model.mask_tracker.sam.vision_encoder.",),
    "prompt_encoder": ("model.mask_tracker.sam.prompt_encoder.",),
    "sam_heads": (
        "model.mask_tracker.sam.mask_decoder.iou_prediction_head.",
        "model.mask_tracker.sam.mask_decoder.pred_obj_score_head.",
    ),
    "mask_decoder": ("model.mask_tracker.sam.mask_decoder.",),
    # SAM 2's memory, and the original decoder, which predicts propagated masks
    "memory": ("model.mask_tracker.",),
}
PUBLISHED_PARTS = ("aggregator", "seg_head", "mask_decoder", "projector")
ALL_PARTS, HEADS = "all", "sam_heads"
SAVED = ".modules_to_save.default."  # in the names of parameters that PEFT saves whole with an adapter
# Parameters that training never uses: mask prompts, SAM 2's encoding of frames without memory, and the lowest level of
# SAM 3's pyramid
UNUSED_PARAMETERS = (
    "prompt_encoder.mask_embed.", "sam.mask_downsample.", "sam.no_memory_positional_encoding",
    "sam.vision_encoder.neck.fpn_layers.3.",
)  # fmt: skip
HEAD_LOSS_COEFFICIENTS = {
    "iou_prediction_head.": "iou_loss_coefficient",
    "pred_obj_score_head.": "presence_loss_coefficient",
}


def parse_parts(names: str, memory_training: bool = False) -> tuple[str, ...]:
    """
    The parts in a comma-separated list. `all` is every part but the memory; `memory_training` adds the memory.

    Raises:
        ValueError: for an unknown name, or for `memory` without `memory_training`, since it would get no gradient.
    """
    found = dict.fromkeys(name.strip() for name in names.split(",") if name.strip())
    unknown = [name for name in found if name not in PART_PREFIXES and name != ALL_PARTS]
    if unknown or not found:
        problem = f"train_parts has {', '.join(unknown) or 'no parts'}"
        raise ValueError(f"{problem}, expected some of {', '.join((*PART_PREFIXES, ALL_PARTS))}")
    if "memory" in found and not memory_training:
        raise ValueError("train_parts has memory, which gets a gradient only with memory_training")
    if ALL_PARTS in found:
        found = dict.fromkeys(part for part in PART_PREFIXES if part != "memory")
    if memory_training:
        found["memory"] = None
    return tuple(found)


def base_name(name: str) -> str:
    """A parameter's name without PEFT's prefixes and wrappers."""
    return name.removeprefix("base_model.model.").replace(SAVED, ".").replace(".base_layer", "")


def part_of(name: str) -> str:
    """The part of a parameter, by its name.

    Raises:
        ValueError: if the parameter belongs to no part.
    """
    pairs = ((prefix, part) for part, prefixes in PART_PREFIXES.items() for prefix in prefixes)
    found = [(len(prefix), part) for prefix, part in pairs if base_name(name).startswith(prefix)]
    if not found:
        raise ValueError(f"The parameter {name} belongs to no part of SAMA")
    return max(found)[1]


def receives_gradient(name: str, config) -> bool:
    """Whether a loss gives the parameter a gradient. SAM 2's heads have their own losses, whose coefficients may be
    zero."""
    weights = [vars(config)[weight] for head, weight in HEAD_LOSS_COEFFICIENTS.items() if head in name]
    return all(weights) and not any(unused in name for unused in UNUSED_PARAMETERS)


def is_adapter(name: str) -> bool:
    """Whether a parameter was added by PEFT."""
    return ".lora_" in name


def freeze_all_but(model: nn.Module, parts: Sequence[str]) -> None:
    """
    Makes the named parts trainable, and the modules that PEFT saves with an adapter; freezes the rest. Adapters are
    unchanged. Parameters that get no gradient are frozen too, and so are SAM 2's heads unless they are named, although
    PEFT saves them with the mask decoder.

    Raises:
        ValueError: if no parameter of a part gets a gradient.
    """
    present, trained = set(), set()
    for name, parameter in model.named_parameters():
        if is_adapter(name):
            continue
        part = part_of(name)
        named = part in parts or (SAVED in name and part != HEADS)
        wanted = named and ".original_module." not in name and receives_gradient(name, model.config)
        parameter.requires_grad_(wanted)
        present.add(part)
        trained.update({part} if wanted else ())
    is_all = len(parts) >= len(PART_PREFIXES) - 1
    # `all` is what the model has, and the heads only if their losses are on
    optional = {HEADS, *(part for part in PART_PREFIXES if part not in present)} if is_all else set()
    missing = [part for part in parts if part not in trained | optional]
    if missing:
        raise ValueError(untrained_message(missing, present))


def untrained_message(missing: Sequence[str], present: Container[str]) -> str:
    """Why no parameter of these parts is trained."""
    absent = [part for part in missing if part not in present]
    if absent:
        own = ", ".join(part for part in PART_PREFIXES if part in present)
        return f"train_parts has {', '.join(absent)}, which this model does not have; its parts are {own}"
    hint = ". They have losses of their own: set iou_loss_coefficient and presence_loss_coefficient in the model's "
    hint = f"{hint}configuration" if HEADS in missing else ""
    return f"No parameter of {', '.join(missing)} gets a gradient{hint}"


def hold_trained_in_float32(model: nn.Module) -> None:
    """Casts trained parameters to float32, because bfloat16 would lose small updates; frozen ones are unchanged."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def part_parameters(model: nn.Module) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """Named parameters of each part, in the order of [`PART_PREFIXES`]; adapters are a part of their own."""
    found: dict[str, list] = {part: [] for part in (*PART_PREFIXES, "adapters")}
    for name, parameter in model.named_parameters():
        if ".original_module." not in name:
            found["adapters" if is_adapter(name) else part_of(name)].append((name, parameter))
    return {part: parameters for part, parameters in found.items() if parameters}


def count_parameters(parameters: Iterable[nn.Parameter]) -> int:
    """Number of values; DeepSpeed's `ds_numel` for parameters that ZeRO-3 has sharded."""
    return sum(vars(parameter).get("ds_numel", parameter.numel()) for parameter in parameters)


def parameter_table(model: nn.Module) -> str:
    """Number of trained and frozen parameters per part, as text."""
    rows, totals = [("part", "trained", "frozen")], [0, 0]
    for part, parameters in part_parameters(model).items():
        kinds = ([p for _, p in parameters if p.requires_grad is trained] for trained in (True, False))
        counts = [count_parameters(kind) for kind in kinds]
        totals = [total + count for total, count in zip(totals, counts, strict=True)]
        rows.append((part, *(f"{count:,}" for count in counts)))
    rows.append(("total", *(f"{total:,}" for total in totals)))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        f"{name.ljust(widths[0])}  {trained.rjust(widths[1])}  {frozen.rjust(widths[2])}"
        for name, trained, frozen in rows
    )
