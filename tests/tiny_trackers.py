"""Small mask models of every kind that SAMA tracks with, with weights of which none is zero."""

import torch
from tiny_model import tiny_sam_config
from transformers import PreTrainedConfig
from transformers.models.edgetam_video.configuration_edgetam_video import EdgeTamVideoConfig
from transformers.models.sam2_video.configuration_sam2_video import Sam2VideoConfig, Sam2VideoMaskDecoderConfig
from transformers.models.sam3_tracker_video.configuration_sam3_tracker_video import Sam3TrackerVideoConfig


SIZE, PATCH = 64, 14
WIDTH = 128  # the least that object pointers are cut from


def tiny_mask_config(kind: str, **overrides) -> PreTrainedConfig:
    """The configuration of a "sam2.0", "sam2.1", "sam3" or "edgetam" with 4x4 cells on its lowest level."""
    settings = tiny_sam_config(SIZE)
    if kind.startswith("sam2"):
        extras = {"enable_temporal_pos_encoding_for_object_pointers", "enable_occlusion_spatial_embedding"}
        settings |= dict.fromkeys(extras, kind == "sam2.1")
        decoder = Sam2VideoMaskDecoderConfig(**settings["mask_decoder_config"])
        return Sam2VideoConfig(**settings | {"mask_decoder_config": decoder} | overrides)
    if kind == "sam3":
        return Sam3TrackerVideoConfig(**sam3_settings(settings) | overrides)
    assert kind == "edgetam"
    activation = settings.pop("memory_attention_feed_forward_hidden_size")
    resampler = {
        "memory_attention_mlp_hidden_size": activation,
        "memory_attention_rope_k_sizes": [2, 2],
        "perceiver_resampler_num_latents": 3,
        "perceiver_resampler_num_latents_2d": 4,
        "perceiver_resampler_mlp_intermediate_size": 96,
        "perceiver_resampler_num_layers": 2,
    }
    return EdgeTamVideoConfig(**settings | resampler | overrides)


def sam3_settings(settings: dict) -> dict:
    """SAM 2's settings with the image encoder of SAM 3: positions for 2x2 patches, repeated to 4x4."""
    size = 4 * PATCH
    backbone = {
        "model_type": "sam3_vit_model",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": size,
        "pretrain_image_size": 2 * PATCH,
        "window_size": 2,
        "global_attn_indexes": [1],
    }
    vision = {"model_type": "sam3_vision_model", "backbone_config": backbone, "fpn_hidden_size": WIDTH}
    return settings | {
        "image_size": size,
        "vision_config": vision,
        "prompt_encoder_config": {"hidden_size": WIDTH},
    }


@torch.no_grad()
def randomize(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """
    Draws all parameters, also those that start at zero. Matrices keep the size of what they multiply, as in a trained
    model: with the library's initial values masks are all but constant.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, buffer in module.named_buffers():
        if name.endswith(
            "positional_embedding"
        ):  # of clicks and cells: the library draws it from the global generator
            buffer.copy_(torch.randn(buffer.shape, generator=generator))
    for name, parameter in module.named_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        values *= parameter[0].numel() ** -0.5 if parameter.ndim > 1 and "emb" not in name else 0.3
        parameter.copy_(values + 1 if "norm" in name and name.endswith("weight") else values)
    return module.eval()
