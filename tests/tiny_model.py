"""A SAMA of the real classes at the smallest sizes, with random weights, for tests."""

import copy
from collections.abc import Callable

import torch

from sama.configuration_sama import SamaConfig
from sama.modeling_sama import SamaForConditionalGeneration


IMAGE_SIZE, SAM_SIZE = 32, 64
TOKENS_PER_FRAME, CONTEXT_WINDOW = 4, 8


def tiny_config(**overrides) -> SamaConfig:
    """32 px frames of 4 tokens, a language model of width 32, SAM 2 at 64 px."""
    text = {
        "model_type": "qwen2",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 300,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
    }
    vision = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "image_size": [IMAGE_SIZE, IMAGE_SIZE],
        "patch_size": [8, 8],
        "attention_bias": True,
    }
    qformer = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "encoder_hidden_size": 32,
        "vocab_size": 120,
        "max_position_embeddings": 256,
    }
    settings = {
        "text_config": text,
        "vision_config": vision,
        "spatial_qformer_config": qformer,
        "temporal_qformer_config": qformer | {"cross_attention_frequency": 1, "use_qformer_text_input": True},
        "sam_config": tiny_sam_config(),
        "tie_word_embeddings": False,
        "num_spatial_queries": 4,
        "num_temporal_queries": 4,
        "temporal_window": 4 * CONTEXT_WINDOW,
        "region_mask_size": 16,
        "region_mlp_size": 32,
        "image_token_id": 261,
        "seg_token_id": 262,
        "qformer_mask_token_id": 113,
        "qformer_position_token_id": 114,
        "image_seq_length": TOKENS_PER_FRAME,
    }
    return SamaConfig(**settings | overrides)


def tiny_sam_config(size: int = SAM_SIZE) -> dict:
    """SAM 2 with one small Hiera block a stage; feature width 128 is the least its memory accepts."""
    width, levels = 128, [[size // 4] * 2, [size // 8] * 2, [size // 16] * 2]
    backbone = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": 16,
        "num_attention_heads": 1,
        "embed_dim_per_stage": [16, 32, 64, 128],
        "num_attention_heads_per_stage": [1, 2, 4, 8],
        "blocks_per_stage": [1, 1, 2, 1],
        "global_attention_blocks": [3],
        "window_size_per_stage": [4, 4, 4, 4],
        "window_positional_embedding_background_size": [4, 4],
        "image_size": [size, size],
    }
    return {
        "image_size": size,
        "vision_config": {
            "model_type": "sam2_vision_model",
            "backbone_config": backbone,
            "backbone_channel_list": [128, 64, 32, 16],
            "backbone_feature_sizes": levels,
            "fpn_hidden_size": width,
        },
        "prompt_encoder_config": {"image_size": size, "hidden_size": width},
        "mask_decoder_config": {"hidden_size": width, "mlp_dim": 64, "iou_head_hidden_dim": 64},
        "memory_attention_hidden_size": width,
        "memory_attention_num_layers": 1,
        "memory_attention_feed_forward_hidden_size": 64,
        "memory_attention_rope_feat_sizes": [size // 16] * 2,
        "memory_encoder_hidden_size": width,
        "mask_downsampler_embed_dim": width,
        "memory_fuser_num_layers": 1,
        "memory_fuser_embed_dim": width,
        "memory_fuser_intermediate_dim": 64,
    }


class Templates:
    """Models that are built once for a test process; [`get`] returns a copy, which costs a third."""

    def __init__(self, build: Callable[..., torch.nn.Module], most: int = 8):
        self.build, self.most, self.built = build, most, {}

    def get(self, *arguments, **settings) -> torch.nn.Module:
        key = repr((arguments, settings))
        if key not in self.built:
            if len(self.built) == self.most:
                del self.built[next(iter(self.built))]  # the oldest
            self.built[key] = self.build(*arguments, **settings)
        return copy.deepcopy(self.built[key])


def build_model(seed: int, **overrides) -> SamaForConditionalGeneration:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = SamaForConditionalGeneration(tiny_config(**overrides)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if not parameter.any():
                    parameter.normal_(std=0.02)
    return model


MODELS = Templates(build_model)


def tiny_model(seed: int = 0, **overrides) -> SamaForConditionalGeneration:
    """The tiny model in evaluation mode; every parameter random, also those that SAM 2 starts at zero, so that no part
    of the computation is silently absent."""
    return MODELS.get(seed, **overrides)
