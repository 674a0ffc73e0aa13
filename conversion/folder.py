"""Files of a converted checkpoint other than weights: code, configuration, tokenizers, processor, model card."""

import shutil
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCardData
from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.configuration_utils import PreTrainedConfig
from transformers.dynamic_module_utils import custom_object_save

from sama.configuration_sama import IMAGENET_MEAN, IMAGENET_STD, SamaConfig
from sama.conversion.backbones import BACKBONES
from sama.conversion.files import read_json
from sama.conversion.tokenizers import stop_token_ids
from sama.data.model_cards import hub_name, license_of
from sama.modeling_sama import SamaForConditionalGeneration
from sama.modeling_sama_backbones import backbone_family
from sama.processing_sama import SamaProcessor


AUTO_CLASSES = ("AutoModel", "AutoModelForImageTextToText", "AutoModelForMultimodalLM")
# Fewest and most pixels of a frame of Sa2VA on Qwen-VL, in its published inference and in its training. They are cells
# of 28 x 28 pixels, also for Qwen3-VL, whose tokens are larger
PIXEL_LIMITS = {"published": (512 * 28**2, 2048 * 28**2), "consistent": (128 * 28**2, 512 * 28**2)}
# What processor, tokenizers and generation are loaded from, and the licence. The output folder of a training run holds
# much else, such as checkpoints, logs and records of its data
CARRIED_FILES = (
    "*processor_config.json", "chat_template*", "additional_chat_templates/*", "tokenizer*", "special_tokens_map.json",
    "added_tokens.json", "vocab.*", "merges.txt", "qformer_tokenizer/*", "generation_config.json", "LICEN[CS]E*",
    "NOTICE*",
)  # fmt: skip


def write_model_files(folder: Path, model: torch.nn.Module, config: PreTrainedConfig) -> None:
    """Writes `config.json` and the model code, so that the checkpoint loads without this repository."""
    config.architectures = [type(model).__name__]
    if isinstance(config, SamaConfig):
        SamaConfig.register_for_auto_class()
        for auto_class in AUTO_CLASSES:
            SamaForConditionalGeneration.register_for_auto_class(auto_class)
            custom_object_save(model, folder, config)
    config.save_pretrained(folder)


def write_processor(
    folder: Path,
    config: SamaConfig,
    tokenizer: PreTrainedTokenizerBase,
    qformer_tokenizer: PreTrainedTokenizerBase | None,
    template: str | None,
    source: Path,
    kind: str,
) -> None:
    """Writes the processor with both tokenizers, and the generation settings.

    Args:
        qformer_tokenizer (`PreTrainedTokenizerBase`, *optional*): None for a model without context aggregator.
        template (`str`, *optional*): The chat template or its name; that of the backbone's family if None.
        source (`Path`): Folder of the source checkpoint.
        kind (`str`): Of the source. Sa2VA trains SAM 3, too, with the mean and deviation of ImageNet.
    """
    released = kind in ("sama", "sa2va")
    processor = SamaProcessor(
        image_processor=make_image_processor(config, source),
        config=config,
        tokenizer=tokenizer,
        qformer_tokenizer=qformer_tokenizer,
        chat_template=template,
        sam_image_mean=IMAGENET_MEAN if released else None,
        sam_image_std=IMAGENET_STD if released else None,
        turn_format=turn_format(config, kind),
    )
    SamaProcessor.register_for_auto_class("AutoProcessor")
    processor.save_pretrained(folder)
    text = config.text_config
    GenerationConfig(
        bos_token_id=text.bos_token_id,
        eos_token_id=stop_token_ids(tokenizer, text.eos_token_id, template),
        pad_token_id=text.pad_token_id if text.pad_token_id is not None else text.eos_token_id,
        do_sample=False,
    ).save_pretrained(folder)


def turn_format(config: SamaConfig, kind: str) -> str:
    """The newlines that the weights know: those of their training, and for a Sa2VA with the preset `published` those
    of its published inference.

    Args:
        config ([`SamaConfig`]): Of the converted model.
        kind (`str`): Of the source.
    """
    if config.aggregator_config is not None:
        return "newline_after" if kind == "sama" else "newlines"
    table = BACKBONES[config.backbone_config.model_type]
    return table.published_turn_format if config.preset == "published" else "newline_after"


def make_image_processor(config: SamaConfig, source: Path) -> Any:
    """The image processor of the backbone's family, with the sizes of the model and, where frames keep their
    proportions, mean and deviation of the source and the limits of Sa2VA."""
    image_processor = backbone_family(config.backbone_config).make_image_processor()
    size = image_processor.size
    if "height" in size:
        image_processor.size = type(size)(**dict.fromkeys(("height", "width"), config.vision_config.image_size[0]))
        return image_processor
    fewest, most = PIXEL_LIMITS[config.preset]
    image_processor.size = type(size)(shortest_edge=fewest, longest_edge=most)
    saved = source / "preprocessor_config.json"
    settings = read_json(saved) if saved.is_file() else {}
    for name in ("image_mean", "image_std"):
        setattr(image_processor, name, settings.get(name, vars(image_processor)[name]))
    return image_processor


def carry_processor(source: Path, folder: Path) -> None:
    """Copies the settings of a checkpoint's processor and generation, and writes today's code of the processor: the
    checkpoint's own may be that of an earlier version, which does not fit today's code of the model."""
    for entry in sorted(entry for pattern in CARRIED_FILES for entry in source.glob(pattern)):
        if entry.is_file() and entry.suffix != ".py":
            target = folder / entry.relative_to(source)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(entry, target)
    custom_object_save(SamaProcessor, folder)


def card_facts(source: Path) -> dict[str, str]:
    """Licence and Hub name of a source, as far as its folder tells them."""
    folder = source if source.is_dir() else source.parent
    facts = {"license": license_of(folder), "base_model": hub_name(folder)}
    return {name: value for name, value in facts.items() if value}


def card_settings(config: SamaConfig) -> list[str]:
    """The settings of a model that its card names: those that change what it answers."""
    own = ["region_shape", "null_region_scale"] if config.aggregator_config is not None else ["prompted_memory"]
    return ["preset", "region_prompts", *own, "seg_state", "trained"]


def write_card(folder: Path, config: PreTrainedConfig, lines: list[str], sources: list[dict[str, str]]) -> None:
    """Writes the model card: sources, usage, and inference settings."""
    source_list = "\n".join(
        f"* `{source['name']}` ({source['kind']}), licence: {source.get('license', 'not named in its folder')}"
        for source in sources
    )
    licenses = {source.get("license") for source in sources}
    bases = list(dict.fromkeys(source["base_model"] for source in sources if "base_model" in source))
    data = ModelCardData(
        license=licenses.pop() if len(licenses) == 1 else None,  # of several, a person has to decide
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        tags=["sama", "video", "segmentation"],
        base_model=bases or None,
    )
    facts = "\n".join(f"* {line}" for line in lines)
    parts = [
        f"---\n{data.to_yaml()}\n---",
        "# Converted checkpoint",
        f"Converted by `scripts/convert_checkpoint.py` from:\n\n{source_list}\n\nTheir licence applies.",
        f"## What was converted\n\n{facts}",
    ]
    if isinstance(config, SamaConfig):
        parts += [
            "## Use\n\n```python\nfrom transformers import AutoModel, AutoProcessor\n\n"
            'model = AutoModel.from_pretrained(path, trust_remote_code=True, dtype="auto")\n'
            "processor = AutoProcessor.from_pretrained(path, trust_remote_code=True)\n"
            "inputs = processor.apply_chat_template(messages)\n"
            "output = model.generate(**inputs, **processor.stop_arguments)\n```",
            "## Settings\n\n" + "\n".join(f"* `{name}`: `{getattr(config, name)}`" for name in card_settings(config)),
        ]
    (folder / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
