"""What a SAMA model is: a vision-language model (the backbone), a spatio-temporal context aggregator made of two
Q-Formers, and a mask model such as SAM 2. 1B, 4B and 8B differ only in the numbers of their `config.json`."""

from .versions_sama import TRANSFORMERS  # isort: skip  (first: it checks the version of transformers)

from dataclasses import field
from typing import Any, NamedTuple

import transformers
from transformers import CONFIG_MAPPING, AutoConfig, Blip2QFormerConfig, Sam2VideoMaskDecoderConfig
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils.import_utils import is_timm_available


if TRANSFORMERS >= (5, 20):
    from transformers.configuration_utils import SubConfigSpec


# `mm_token_type_ids`: what fills a position of the text. The processor writes them, the model reads them.
TEXT_TOKEN, DENSE_FRAME_TOKEN, CONTEXT_TOKEN, REGION_POOLED_TOKEN, REGION_SHAPE_TOKEN, REGION_CELL_TOKEN = range(6)


class FrameTags(NamedTuple):
    """What stands around a frame in the text, and the placeholder of everything visual."""

    start: str
    context: str
    end: str


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PRESETS = ("published", "consistent")
REGION_PROMPTS = ("encoded", "cells", "none")
CHOICES = {
    "region_shape": ("mask", "box"),
    "memory_rules": ("original", "transformers"),
    "prompted_memory": ("as_decoded", "masks"),
    "seg_state": ("after_norm", "before_norm"),
}
PADDING_LABEL = -10  # of prompt points that are none, as in SAM 2's prompt encoder
EDGETAM_ENCODER = "edgetam_vision_model"  # the published one; another may be a Hiera as in SAM 2
# Settings of the model that the processor needs too. They are stored once, in the model's `config.json`.
SHARED_SETTINGS = ("preset", "region_prompts", "region_shape", "region_mask_size", "image_token_id", "seg_token_id")


def check_preset(name: str) -> str:
    """The preset `name`; `release`, the name that it had before version 0.2, is read as `published`.

    Raises:
        ValueError: if there is no such preset.
    """
    name = "published" if name == "release" else name
    if name not in PRESETS:
        raise ValueError(f"preset={name!r} is unknown, expected one of {', '.join(PRESETS)}.")
    return name


SPATIAL_QFORMER_DEFAULTS = {"cross_attention_frequency": 2, "encoder_hidden_size": 1408}
TEMPORAL_QFORMER_DEFAULTS = {
    "vocab_size": 30530,  # bert-base-uncased and the eight added tokens, specs: the paper's question encoder
    "num_hidden_layers": 2,
    "cross_attention_frequency": 1,
    "encoder_hidden_size": 768,
    "use_qformer_text_input": True,
}
QFORMERS = {
    "spatial_qformer_config": SPATIAL_QFORMER_DEFAULTS,
    "temporal_qformer_config": TEMPORAL_QFORMER_DEFAULTS,
}
# Files written before version 0.3 hold these settings of the parts, and `sam_config`, beside SAMA's own
FORMER_SETTINGS = {
    "backbone_config": (
        "text_config", "vision_config", "image_token_id", "image_seq_length", "downsample_ratio",
        "projector_hidden_act", "vision_feature_layer", "vision_feature_select_strategy",
    ),
    "aggregator_config": (*QFORMERS, "num_spatial_queries", "num_temporal_queries", "temporal_window"),
}  # fmt: skip


def part_config(given: dict | PreTrainedConfig | None, default_type: str) -> PreTrainedConfig:
    """The configuration of a part that is one of transformers' models, given by its settings with their `model_type`.

    Raises:
        ValueError: for a `model_type` that the installed transformers does not know.
        ImportError: if timm is needed and not installed.
    """
    if isinstance(given, PreTrainedConfig):
        return given
    settings = dict(given or {})
    model_type = settings.pop("model_type", default_type)
    if model_type not in CONFIG_MAPPING:
        raise ValueError(f"transformers {transformers.__version__} has no model of the type {model_type!r}.")
    check_image_encoder(model_type, settings)
    decoder = settings.get("mask_decoder_config")
    if TRANSFORMERS < (5, 20) and model_type == "sam2_video" and isinstance(decoder, dict):
        # Sam2VideoConfig would make a `Sam2VideoPromptEncoderConfig` of it, which lacks the decoder's defaults
        settings["mask_decoder_config"] = Sam2VideoMaskDecoderConfig(**decoder)
    return CONFIG_MAPPING[model_type](**settings)


def check_image_encoder(model_type: str, settings: dict) -> None:
    """Raises an error if the image encoder is EdgeTAM's RepViT, a model of timm, which cannot be made here."""
    encoder = settings.get("vision_config")
    if model_type != "edgetam_video" or not isinstance(encoder, dict) or encoder.get("model_type") != EDGETAM_ENCODER:
        return
    if TRANSFORMERS < (5, 20):  # these ask the Hub for a configuration, even to write one
        raise ValueError(
            f"EdgeTAM's image encoder needs transformers >= 5.20, but version {transformers.__version__} is installed."
        )
    if not is_timm_available():
        raise ImportError(
            "EdgeTAM's image encoder, RepViT, comes from timm, which is not installed. Run: pip install timm"
        )


class SamaAggregatorConfig(PreTrainedConfig):
    r"""Configuration of the context aggregator: two Q-Formers.

    Args:
        spatial_qformer_config (`Blip2QFormerConfig` or `dict`, *optional*):
            The Q-Former that summarises one frame; `encoder_hidden_size` is the width its frame tokens are projected
            to.
        temporal_qformer_config (`Blip2QFormerConfig` or `dict`, *optional*):
            The Q-Former that reads the summaries of a window of frames together with the question. `vocab_size` is the
            size of the question tokenizer; `encoder_hidden_size` must be the spatial Q-Former's `hidden_size`.
        num_spatial_queries (`int`, defaults to 32): tokens that summarise one frame.
        num_temporal_queries (`int`, defaults to 32): tokens that summarise one window.
        temporal_window (`int`, defaults to 512): spatial tokens in one window (512 = 16 frames), stride equal to size.

    Raises:
        ValueError: if the widths of two parts do not fit each other.
    """

    model_type = "sama_aggregator"
    if TRANSFORMERS >= (5, 20):
        sub_configs_defaults = {
            name: SubConfigSpec(Blip2QFormerConfig, init_kwargs=defaults)  # pyright: ignore[reportPossiblyUnboundVariable]
            for name, defaults in QFORMERS.items()
        }
    else:
        sub_configs = dict.fromkeys(QFORMERS, Blip2QFormerConfig)  # pyright: ignore[reportAssignmentType]

    spatial_qformer_config: Any = None
    temporal_qformer_config: Any = None
    num_spatial_queries: int = 32
    num_temporal_queries: int = 32
    temporal_window: int = 512

    def __post_init__(self, **kwargs):
        for name, defaults in QFORMERS.items():
            given = vars(self)[name]
            if not isinstance(given, PreTrainedConfig):
                setattr(self, name, Blip2QFormerConfig(**(given or defaults)))
        super().__post_init__(**kwargs)
        spatial, temporal = self.spatial_qformer_config, self.temporal_qformer_config
        if not temporal.use_qformer_text_input:
            raise ValueError(
                "`temporal_qformer_config.use_qformer_text_input` must be True: the temporal Q-Former reads the "
                "question."
            )
        widths = (temporal.encoder_hidden_size, spatial.hidden_size)
        if widths[0] != widths[1]:
            raise ValueError(
                f"The temporal Q-Former reads tokens of width {widths[0]} (`encoder_hidden_size`) but the spatial "
                f"Q-Former writes tokens of width {widths[1]} (`hidden_size`); the two must be equal."
            )
        if self.temporal_window % self.num_spatial_queries:
            raise ValueError(
                f"`temporal_window` ({self.temporal_window} tokens) must hold whole frames of `num_spatial_queries` "
                f"({self.num_spatial_queries} tokens)."
            )


PARTS = {"backbone_config": "internvl", "mask_config": "sam2_video"}  # and their types where none is given


class SamaConfig(PreTrainedConfig):
    r"""Configuration of [`SamaForConditionalGeneration`].

    Args:
        backbone_config (`PreTrainedConfig` or `dict`, *optional*):
            The vision-language model: an `InternVLConfig`, `Qwen2_5_VLConfig` or `Qwen3VLConfig`, or its settings with
            `model_type`. [`SamaConfig.text_config`] and [`SamaConfig.vision_config`] are its parts.
        mask_config (`PreTrainedConfig` or `dict`, *optional*):
            The mask model: a `Sam2VideoConfig` (SAM 2.0 and 2.1), `Sam3TrackerVideoConfig` or `EdgeTamVideoConfig`.
            Its mask decoder exists twice in the model (tuned for `[SEG]` prompts, and original for propagation).
            EdgeTAM's published image encoder needs timm and transformers 5.20 or newer.
        aggregator_config ([`SamaAggregatorConfig`] or `dict`, *optional*):
            The context aggregator. With `None` the model has neither aggregator nor region encoders: a Sa2VA.
        region_prompts (`"encoded"`, `"cells"` or `"none"`, *optional*):
            How the language model reads a region: as two tokens of the region encoders, which come with the aggregator
            (the default with one); as a copy of the tokens that it covers, in stills alone (Sa2VA on InternVL); or not
            at all (the default without aggregator).
        region_mask_size (`int`, defaults to 112): side of the binary mask whose shape the region encoder reads.
        region_mlp_size (`int`, defaults to 1024): hidden width of that shape encoder.
        region_shape (`"mask"` or `"box"`, defaults to `"mask"`):
            What a region prompt looks like to the model: its true silhouette, or its filled bounding box, which is
            what SAMA-239K trains on.
        null_region_scale (`float`, defaults to 0.0):
            Weight of the null-region vector in questions without a region: 1.0 for converted release weights.
        preset (`"published"` or `"consistent"`, defaults to `"consistent"`):
            How masks are propagated. `published`: the tuned decoder on every frame, forwards only. `consistent`: the
            tuned decoder on the prompted frames, SAM 2's original decoder elsewhere, forwards and backwards.
        occlusion_gate (`bool`, defaults to `True`):
            `consistent` only: on propagated frames an object whose score is not positive has an empty mask, as in SAM
            2. With SAM 3's tracker: on all frames, with both presets.
        memory_rules (`"original"` or `"transformers"`, defaults to `"original"`):
            Whether memory is that of Meta's code, with which the weights were trained, or that of transformers. They
            differ for masks that are given (`prompted_memory`): transformers remembers them binarised, and a pointer
            that is the best of three. They also differ for SAM 3: Meta resizes a mask for the memory encoder after it
            was scaled instead of before, and forgets the pointers of prompted frames that are neither selected nor
            near.
        prompted_memory (`"as_decoded"` or `"masks"`, defaults to `"as_decoded"`):
            `consistent` only: how prompted frames are remembered. `masks`: as if the original mask model had been
            prompted with their masks, as Sa2VA-i does; not for SAM 3.
        round_memory_to_bfloat16 (`bool`, defaults to `False`):
            Store mask memories rounded to bfloat16, as SAM 2's own video predictor does.
        memory_pool (`int`, defaults to 1):
            With 2, an approximation that tracks large frames faster: memories keep one token for 2x2 cells away from
            the object (docs/performance.md has its speed and its errors). Not for EdgeTAM, whose memories are small.
        round_rotary_to_bfloat16 (`bool`, defaults to `False`):
            Round the language model's rotary table to bfloat16 in float32 too: the release builds it in bfloat16, and
            keeps it so.
        mask_loss_coefficient, dice_loss_coefficient (`float`, defaults to 2.0 and 0.5):
            Weights of binary cross entropy and dice beside the language-model loss, whose weight is 1.
        iou_loss_coefficient, presence_loss_coefficient (`float`, defaults to 0.0):
            Weights of the two losses that SAM 2's own heads learn by: its predicted IoU, and whether the object is in
            the frame. The release trains neither.
        num_mask_points (`int`, defaults to 12544): points of each mask that are compared in training.
        seg_token_id (`int`, defaults to 151674): id of `[SEG]`.
        seg_state (`"after_norm"` or `"before_norm"`, defaults to `"after_norm"`):
            Which state of the language model at a `[SEG]` becomes its prompt: after the final norm, or before it, as
            in a Sa2VA on Qwen3-VL.
        qformer_mask_token_id, qformer_position_token_id (`int`):
            ids of `<mask>` and `<pos>` in the question tokenizer; their embeddings are replaced by region features.
        trained (`bool`, defaults to `True`): False for a checkpoint with initial weights; programs announce it.

    Raises:
        ValueError: if the widths of two parts do not fit each other.
    """

    model_type = "sama"
    if TRANSFORMERS >= (5, 20):
        sub_configs_defaults = {
            **{name: SubConfigSpec(AutoConfig, model_type=kind) for name, kind in PARTS.items()},  # pyright: ignore[reportPossiblyUnboundVariable]
            "aggregator_config": SubConfigSpec(SamaAggregatorConfig, optional=True),  # pyright: ignore[reportPossiblyUnboundVariable]
        }
    else:
        sub_configs = {**dict.fromkeys(PARTS, AutoConfig), "aggregator_config": SamaAggregatorConfig}  # pyright: ignore[reportAssignmentType]

    # Given as `dict`, `PreTrainedConfig` or None; configurations once this object is made
    backbone_config: Any = None
    mask_config: Any = None
    aggregator_config: Any = field(default_factory=dict)
    tie_word_embeddings: bool = True
    region_prompts: str | None = None
    region_mask_size: int = 112
    region_mlp_size: int = 1024
    region_shape: str = "mask"
    null_region_scale: float = 0.0
    preset: str = "consistent"
    occlusion_gate: bool = True
    memory_rules: str = "original"
    prompted_memory: str = "as_decoded"
    round_memory_to_bfloat16: bool = False
    memory_pool: int = 1
    round_rotary_to_bfloat16: bool = False
    mask_loss_coefficient: float = 2.0
    dice_loss_coefficient: float = 0.5
    iou_loss_coefficient: float = 0.0
    presence_loss_coefficient: float = 0.0
    num_mask_points: int = 12544
    seg_token_id: int = 151674
    seg_state: str = "after_norm"
    qformer_mask_token_id: int = 30523
    qformer_position_token_id: int = 30524
    trained: bool = True

    def __post_init__(self, **kwargs):
        kwargs = self.read_former_settings(kwargs)
        # The library writes one auto class for each saved object; the model answers to `AutoModel` as well.
        kwargs["auto_map"] = {
            "AutoModel": "modeling_sama.SamaForConditionalGeneration",
            **(kwargs.get("auto_map") or {}),
        }
        for name, default_type in PARTS.items():
            setattr(self, name, part_config(vars(self)[name], default_type))
        if isinstance(self.aggregator_config, dict):
            self.aggregator_config = SamaAggregatorConfig(**self.aggregator_config)
        super().__post_init__(**kwargs)
        if self.region_prompts is None:
            self.region_prompts = "none" if self.aggregator_config is None else "encoded"

    def __setattr__(self, name: str, value: Any) -> None:
        # Choices are checked here: `from_pretrained(preset=...)` sets them when the constructor is done
        if name == "preset":
            value = check_preset(value)
        elif name == "region_prompts" and value is not None:
            self.check_region_prompts(value)
        elif name in CHOICES and value not in CHOICES[name]:
            raise ValueError(f"`{name}` must be one of {CHOICES[name]}, got {value!r}.")
        super().__setattr__(name, value)

    def check_region_prompts(self, value: Any) -> None:
        """Raises `ValueError` unless the model can read regions in this way."""
        encoded = self.aggregator_config is not None
        if value not in REGION_PROMPTS or encoded != (value == "encoded"):
            allowed = "encoded with" if encoded else "cells or none without"
            raise ValueError(f"`region_prompts` must be {allowed} aggregator, got {value!r}.")

    def read_former_settings(self, kwargs: dict) -> dict:
        """Puts what files of earlier versions hold where it is now, and returns the rest."""
        if "grounding_policy" in kwargs:  # before version 0.2
            self.preset = check_preset(kwargs.pop("grounding_policy"))
        if "sam_config" in kwargs:  # this and the following: before version 0.3
            self.mask_config = kwargs.pop("sam_config")
        for part, names in FORMER_SETTINGS.items():
            found = {name: kwargs.pop(name) for name in names if name in kwargs}
            if found and vars(self)[part]:
                raise ValueError(f"{', '.join(found)} must stand in `{part}`, which is given as well.")
            if found:
                setattr(self, part, found)
        return kwargs

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> Any:
        """The configuration of the backbone's language model."""
        return self.backbone_config.get_text_config()

    @property
    def text_config(self) -> Any:
        """The configuration of the backbone's language model."""
        return self.backbone_config.text_config

    @property
    def vision_config(self) -> Any:
        """The configuration of the backbone's vision tower."""
        return self.backbone_config.vision_config

    @property
    def image_token_id(self) -> int:
        """The placeholder of everything visual in the text."""
        return self.backbone_config.image_token_id

    @image_token_id.setter
    def image_token_id(self, value: int) -> None:
        self.backbone_config.image_token_id = value


SamaConfig.register_for_auto_class()

__all__ = ["SamaAggregatorConfig", "SamaConfig"]
