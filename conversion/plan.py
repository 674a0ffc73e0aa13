"""The plan of a conversion, complete before the first tensor is read: configuration and source of each tensor."""

from dataclasses import dataclass, field

import torch
import transformers
from transformers import CONFIG_MAPPING, BertTokenizer, Sam2VideoConfig, Sam2VideoModel
from transformers.configuration_utils import PreTrainedConfig

from sama.configuration_sama import SamaConfig, part_config
from sama.conversion.backbones import BACKBONES, BackboneTable, backbone_table, has_mark
from sama.conversion.configs import (
    aggregator_config,
    default_sam2_config,
    default_temporal_config,
    instructblip_config,
    release_config,
    tracker_config,
)
from sama.conversion.facts import file_facts
from sama.conversion.files import CheckpointError, explain_damage, read_json
from sama.conversion.keys import SAM_PREFIX, map_instructblip, map_release
from sama.conversion.native import TRACKER_TYPES, native_tracker_config, native_tracker_kind
from sama.conversion.pieces import (
    AGGREGATOR,
    EMBEDDINGS,
    HEAD,
    ORIGINAL_DECODER,
    SAM,
    KeyMap,
    Piece,
    append_mean_rows,
    map_own,
)
from sama.conversion.sources import ConversionRequest, Source, check_new_tracker, read_sizes
from sama.conversion.tokenizers import (
    chat_template,
    check_vocabulary,
    complete_tokenizer,
    load_qformer_tokenizer,
    load_tokenizer,
    token_ids,
)
from sama.conversion.trackers import TUNED_DECODER, map_original_decoder, map_tracker
from sama.modeling_sama import SamaForConditionalGeneration
from sama.modeling_sama_backbones import FAMILIES


TRACKER, REGIONS, SEG = "model.mask_tracker.", "model.region_encoder.", "model.seg_projection."
REPORT_FILE = "conversion.json"
# What [`explain_damage`] says about a folder whose settings or tensors make no model
NO_MODEL = ("has settings or tensors that describe no model", "check that its files and --sizes belong together")


@dataclass
class Report:
    """What was used, skipped and initialized; saved with the weights and printed."""

    sources: list[dict[str, str]] = field(default_factory=list)
    used: int = 0
    filled: int = 0
    unused: dict[str, list[str]] = field(default_factory=dict)
    copied: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The report as text, one line per fact."""
        lines = [f"{self.used} tensors used, {self.filled} tensors written"]
        for reason, keys in self.unused.items():
            lines.append(f"{len(keys)} not used ({reason}): {abbreviate(keys)}")
        if self.copied:
            copies = f"{len(self.copied)} copied: the original mask decoder is the tuned one"
            lines.append(f"{copies}; the mask model that it was tuned from replaces it, with --into")
        if self.fresh:
            lines.append(f"{len(self.fresh)} newly initialized, to be trained: {abbreviate(self.fresh)}")
        return lines + self.notes


@dataclass
class Plan:
    """Everything known before the first tensor is read."""

    config: SamaConfig | Sam2VideoConfig
    pieces: dict[str, tuple[Source, Piece]] = field(default_factory=dict)
    optional_prefixes: tuple[str, ...] = ()
    report: Report = field(default_factory=Report)

    def add(self, source: Source, keys: KeyMap) -> None:
        """Adds the tensors of `source`; they replace tensors added before."""
        if keys.unknown:
            raise CheckpointError(f"{source.path}: {len(keys.unknown)} unknown tensors: {abbreviate(keys.unknown)}.")
        for key, reason in keys.unused.items():
            self.report.unused.setdefault(reason, []).append(key)
        self.pieces |= {name: (source, piece) for name, piece in keys.pieces.items()}


def abbreviate(names: list[str], limit: int = 8) -> str:
    """The first names of a list, and how many more there are."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


# ---- plan ------------------------------------------------------------


def plan_release(base: Source, parts: dict[str, Source], request: ConversionRequest) -> tuple[Plan, tuple]:
    """Plans SAMA, Sa2VA or a backbone, optionally with SAM 2 and InstructBLIP; returns the plan, and what
    [`write_processor`] needs: both tokenizers (the second is None without a context aggregator), the chat template,
    the folder and its kind."""
    shapes, foreign = base.files.shapes, read_json(base.folder / "config.json")
    table = check_family(base, foreign)
    tokenizer = load_tokenizer([request.tokenizer] if request.tokenizer else [base.folder, base.folder / "tokenizer"])
    alone, num_tokens = base.kind in BACKBONES, len(tokenizer)
    complete_tokenizer(tokenizer, table, may_add=alone)
    qformer_tokenizer = question_tokenizer(base, parts, request)
    backbone = table.config(foreign)
    keys = map_release(shapes, table, *grouped_heads(backbone["text_config"]), alone=alone)
    if EMBEDDINGS not in keys.pieces:
        raise CheckpointError(f"{base.path} has no word embeddings; is it complete?")
    stored_rows = shapes[keys.pieces[EMBEDDINGS].keys[0]][0]
    added = len(tokenizer) - num_tokens
    check_vocabulary(num_tokens, stored_rows, "language model's", added, alone)
    num_rows = max(stored_rows, len(tokenizer))
    entries = part_configs(base, parts, qformer_tokenizer, read_sizes(request, base.folder))
    entries["seg_state"] = "after_norm" if alone else table.seg_state
    entries["region_prompts"] = table.region_prompts if qformer_tokenizer is None else "encoded"
    if request.force_regions:
        entries["region_prompts"] = "cells"
    if base.kind == "sama" or qformer_tokenizer is None:
        entries |= inference_settings(base, entries["mask_config"]["model_type"], request.preset)
    if base.kind == "sama":
        # Its Qwen2 builds the rotary table in bfloat16, its InternLM2 computes it in float32
        entries["round_rotary_to_bfloat16"] = backbone["text_config"]["model_type"] == "qwen2"
    tokens = token_ids(tokenizer, qformer_tokenizer, table)
    plan = Plan(release_config(table, backbone, num_rows, HEAD not in keys.pieces, tokens, entries))
    beyond = max(num_tokens - stored_rows, 0)
    if added or beyond:
        for name in {EMBEDDINGS, HEAD} & keys.pieces.keys():
            keys.pieces[name] = Piece(keys.pieces[name].keys, append_mean_rows(num_tokens, num_rows))
    for number, which in ((added, "new tokens"), (beyond, "tokens of the tokenizer without an embedding")):
        if number:
            plan.report.notes.append(f"{number} {which} are initialized with the mean of the embeddings")
    plan.add(base, keys)
    template = chat_template(tokenizer, foreign, base.folder, alone)
    if qformer_tokenizer is None and plan.config.preset == "consistent":
        template = table.training_template or template
    if entries["region_prompts"] not in (table.region_prompts, "encoded"):
        plan.report.notes.append("regions are read although this model was not trained to (--force_regions)")
    plan.report.notes += file_facts(base.folder, foreign, base.files, keys, tokenizer, template)
    fresh = () if base.kind == "sama" or qformer_tokenizer is None else (AGGREGATOR, REGIONS)
    add_parts(plan, base, parts, (*fresh, SEG, TRACKER) if alone else fresh)
    return plan, (tokenizer, qformer_tokenizer, template, base.folder, base.kind)


def check_family(base: Source, foreign: dict) -> BackboneTable:
    """
    The table of the backbone's family.

    Raises:
        CheckpointError: If `config.json` describes another one than the tensors, or one that cannot be run.
    """
    table = backbone_table(base.folder / "config.json", foreign)
    families = [model_type for model_type in BACKBONES if has_mark(model_type, base.files.tensors)]
    if table.model_type not in families:
        found = f"are those of {families[0]}" if families else f"are of no known family, such as {table.model_type}"
        raise CheckpointError(
            f"{base.path}: config.json describes {table.model_type}, but the tensors {found}; do they belong to the "
            "same checkpoint?"
        )
    check_installed(table.model_type)
    if table.model_type not in FAMILIES:
        raise CheckpointError(
            f"{base.path} is built on {table.model_type}, which this version does not run: expected one of "
            f"{', '.join(FAMILIES)}."
        )
    return table


def check_installed(model_type: str) -> None:
    """Raises [`CheckpointError`] for a model that the installed transformers does not have."""
    if model_type not in CONFIG_MAPPING:
        raise CheckpointError(
            f"transformers {transformers.__version__} has no model of type {model_type!r}; install a newer one."
        )


def grouped_heads(text: dict) -> tuple[int, int]:
    """Number of key/value heads of a language model, and the width of a head."""
    sizes = CONFIG_MAPPING[text["model_type"]](**text)
    return sizes.num_key_value_heads, sizes.hidden_size // sizes.num_attention_heads


def question_tokenizer(base: Source, parts: dict[str, Source], request: ConversionRequest) -> BertTokenizer | None:
    """The question tokenizer of the context aggregator, or None for a Sa2VA that stays one."""
    if base.kind == "sa2va" and not request.add_aggregator and "instructblip" not in parts:
        return None
    if request.qformer_tokenizer:
        return load_qformer_tokenizer([request.qformer_tokenizer])
    places = [base.folder / "qformer_tokenizer"]
    if base.kind != "sama" and "instructblip" in parts:
        places.insert(0, parts["instructblip"].folder / "qformer_tokenizer")
    return load_qformer_tokenizer(places)


def part_configs(base: Source, parts: dict[str, Source], questions: BertTokenizer | None, sizes: dict) -> dict:
    """`mask_config`, `aggregator_config` and what belongs to them, for a question tokenizer or none."""
    shapes, tracker = base.files.shapes, parts.get("tracker")
    if base.kind in ("sama", "sa2va"):
        entries = {"mask_config": tracker_config(shapes, SAM_PREFIX, sizes)}
    else:
        given = given_tracker_config(tracker, sizes).to_dict() if tracker else default_sam2_config()
        entries = {"mask_config": given}
    check_installed(entries["mask_config"]["model_type"])
    if base.kind == "sama":
        entries |= aggregator_config(shapes, sizes)
    elif questions is None:
        return entries | {"aggregator_config": None}  # a Sa2VA as it is
    elif "instructblip" in parts:
        entries["aggregator_config"] = instructblip_config(parts["instructblip"].files.shapes, len(questions))
    else:
        entries["aggregator_config"] = {"temporal_qformer_config": default_temporal_config(len(questions))}
    rows = entries["aggregator_config"]["temporal_qformer_config"]["vocab_size"]
    check_vocabulary(len(questions), rows, "question")
    return entries


def inference_settings(base: Source, tracker_type: str, preset: str | None) -> dict:
    """How a released SAMA or Sa2VA is run.

    Args:
        base ([`Source`]): Its checkpoint.
        tracker_type (`str`): `model_type` of its mask tracker.
        preset (`str`, *optional*): By default `consistent` for a Sa2VA-i, the only one with two decoders.
    """
    two_decoders = f"{SAM_PREFIX}{TUNED_DECODER}iou_token.weight" in base.files.shapes
    preset = preset or ("consistent" if two_decoders else "published")
    settings: dict = {"preset": preset}
    if tracker_type == "sam2_video":
        settings["round_memory_to_bfloat16"] = True  # as the releases do, also where everything else is float32
        if base.kind == "sa2va" and preset == "consistent":
            settings["prompted_memory"] = "masks"  # as Sa2VA-i
    return settings


def given_tracker_config(tracker: Source, sizes: dict) -> PreTrainedConfig:
    """`mask_config` of a mask tracker of its own, in transformers' format or that of its authors."""
    with explain_damage(tracker.folder, *NO_MODEL):
        native = native_tracker_kind(tracker.files.tensors)
        settings = (
            native_tracker_config(tracker.folder, tracker.kind)
            if native
            else tracker_config(tracker.files.shapes, "", sizes)
        )
        check_installed(settings["model_type"])
        return part_config(settings, settings["model_type"])


def plan_into(base: Source, parts: dict[str, Source], request: ConversionRequest) -> Plan:
    """Plans a converted checkpoint with some parts replaced."""
    config = SamaConfig.from_pretrained(base.folder)
    saved = base.folder / REPORT_FILE
    earlier = read_json(saved) if saved.is_file() else {"fresh": []}
    fresh = tuple(earlier["fresh"])
    keys = set(base.files.tensors)
    if "tracker" in parts and any(name.startswith(SAM) for name in fresh):
        config.mask_config = given_tracker_config(parts["tracker"], read_sizes(request, base.folder))
        keys = {name for name in keys if not name.startswith(TRACKER)}
        fresh = tuple(name for name in fresh if not name.startswith(TRACKER))
    else:
        check_new_tracker(request, None)
    if "instructblip" in parts:
        if f"{AGGREGATOR}spatial_queries" not in fresh:
            has = "no context aggregator" if config.aggregator_config is None else "a trained context aggregator"
            raise CheckpointError(f"{base.path} has {has}; InstructBLIP can only initialize an untrained one.")
        fresh = tuple(
            name for name in fresh if not name.startswith((f"{AGGREGATOR}spatial_q", f"{AGGREGATOR}spatial_norm"))
        )
    plan = Plan(config)
    plan.report.fresh = [name for name in fresh if name in keys]
    plan.report.copied = [name for name in earlier.get("copied", []) if "tracker" not in parts]
    plan.add(base, map_own(name for name in base.files.tensors if name in keys))
    add_parts(plan, base, parts, ())
    return plan


def add_parts(plan: Plan, base: Source, parts: dict[str, Source], optional_prefixes: tuple[str, ...]) -> None:
    """Adds mask tracker and InstructBLIP to the plan, and sets which tensors may stay newly initialized."""
    if "tracker" in parts:
        tracker = parts["tracker"]
        if any(name.startswith(SAM) for name in plan.pieces):
            check_same_tracker(plan.config.mask_config, tracker)
            plan.add(tracker, map_original_decoder(tracker.files.tensors))
        else:
            plan.add(tracker, map_tracker(tracker.files.tensors))
        optional_prefixes = tuple(prefix for prefix in optional_prefixes if prefix != TRACKER)
    elif base.kind in ("sama", "sa2va"):
        plan.report.copied = [name for name in plan.pieces if name.startswith(ORIGINAL_DECODER)]
        tuned = {name: f"{SAM}mask_decoder.{name.removeprefix(ORIGINAL_DECODER)}" for name in plan.report.copied}
        plan.report.copied = [name for name, own in tuned.items() if plan.pieces[name] == plan.pieces[own]]
    if "instructblip" in parts:
        plan.add(parts["instructblip"], map_instructblip(parts["instructblip"].files.tensors))
    plan.optional_prefixes = optional_prefixes


def check_same_tracker(config: PreTrainedConfig, sam2: Source) -> None:
    """Checks size and version of a SAM 2, or that both are a SAM 3: a decoder works only with the image encoder it was
    trained with.

    Raises:
        CheckpointError: If they differ from the checkpoint's.
    """
    if config.model_type != TRACKER_TYPES[sam2.kind]:
        raise CheckpointError(
            f"{sam2.path} is a {sam2.kind}, but the checkpoint was trained with {config.model_type}."
        )
    if sam2.kind != "sam2":
        return
    sizes = {"sam_image_size": config.image_size} | known_hiera(config)
    given = given_tracker_config(sam2, sizes)
    names = ("enable_occlusion_spatial_embedding", "enable_temporal_pos_encoding_for_object_pointers")
    trunks = [each.vision_config.backbone_config for each in (config, given)]
    sizes = [(trunk.hidden_size, tuple(trunk.blocks_per_stage)) for trunk in trunks]
    versions = [tuple(each.to_dict()[name] for name in names) for each in (config, given)]
    if sizes[0] != sizes[1] or versions[0] != versions[1]:
        described = [
            f"SAM 2.{1 if any(version) else 0} of width {width} with {list(blocks)} blocks"
            for version, (width, blocks) in zip(versions, sizes, strict=True)
        ]
        raise CheckpointError(
            f"{sam2.path} is {described[1]}, but the checkpoint was trained with {described[0]}: the "
            "original decoder must come from the same SAM 2."
        )


def known_hiera(config: Sam2VideoConfig) -> dict:
    """Hiera sizes that tensor shapes do not determine, from a configuration."""
    trunk = config.vision_config.backbone_config
    return {
        "hiera": {
            "num_heads": trunk.num_attention_heads_per_stage[0],
            "global_attention_blocks": trunk.global_attention_blocks,
            "window_spec": trunk.window_size_per_stage,
        }
    }


# ---- tensors ------------------------------------------------------------


def meta_model(plan: Plan) -> torch.nn.Module:
    """The model on the meta device."""
    kind = SamaForConditionalGeneration if isinstance(plan.config, SamaConfig) else Sam2VideoModel
    with torch.device("meta"):
        return kind(plan.config)


def check_plan(plan: Plan, expected: dict[str, torch.Tensor]) -> None:
    """Compares the plan with the model tensor by tensor, and completes the report.

    Raises:
        CheckpointError: If a tensor has no counterpart in the model, has a different shape, or is missing.
    """
    if unknown := [name for name in plan.pieces if name not in expected]:
        foreign = [key for name in unknown for key in plan.pieces[name][1].keys]
        raise CheckpointError(
            f"{len(foreign)} tensors have no counterpart in the model: {abbreviate(foreign)}; is it another "
            "architecture?"
        )
    for name, (source, piece) in plan.pieces.items():
        made = piece.make(*(source.files.tensors[key].empty() for key in piece.keys))
        if made.shape != expected[name].shape:
            raise CheckpointError(
                f"{' + '.join(piece.keys)} gives {name} the shape {tuple(made.shape)} but the configuration expects "
                f"{tuple(expected[name].shape)}; do the weights belong to this config.json?"
            )
    empty = [name for name in expected if name not in plan.pieces]
    if missing := [name for name in empty if not name.startswith(plan.optional_prefixes)]:
        raise CheckpointError(
            f"{len(missing)} tensors of the model are missing: {abbreviate(missing)}; is the checkpoint complete?"
        )
    plan.report.fresh += empty
    used = {(id(source), key) for source, piece in plan.pieces.values() for key in piece.keys}
    plan.report.used, plan.report.filled = len(used), len(expected)
