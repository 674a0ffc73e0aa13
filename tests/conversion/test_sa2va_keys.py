"""Every tensor of the Sa2VA family is mapped, by name and shape at the released sizes, without weights."""

import gzip
import json
from functools import cache
from pathlib import Path

import pytest
import sa2va_releases
import torch
from foreign_checkpoints import random_weights
from sa2va_releases import SAM, Release
from transformers import AutoModel

from sama.configuration_sama import SamaConfig
from sama.conversion.backbones import BackboneTable, backbone_table
from sama.conversion.configs import TokenIds, release_config, tracker_config
from sama.conversion.keys import guess_kind, map_release
from sama.conversion.pieces import BACKBONE, HEAD, ORIGINAL_DECODER, KeyMap
from sama.conversion.pieces import SAM as OUR_SAM
from sama.conversion.plan import grouped_heads
from sama.conversion.trackers import map_tracker
from sama.modeling_sama import SamaForConditionalGeneration
from sama.modeling_sama_backbones import FAMILIES


OFFICIAL_KEYS = Path(__file__).parents[1] / "goldens" / "official_keys.json.gz"  # of SAMA: size -> key -> shape
DETECTOR_NECK = "backbone.vision_backbone.convs."


@cache
def releases() -> dict[str, Release]:
    return dict(sa2va_releases.releases())


def plan(release: Release) -> tuple[BackboneTable, SamaConfig, KeyMap]:
    """The configuration and key map of a release."""
    file = Path("config.json")
    table = backbone_table(file, release.config)
    backbone = table.config(release.config)
    tokens = TokenIds(dict.fromkeys(table.token_names, 7), release.seg_token_id, 5, None, 3)
    parts = {
        "mask_config": tracker_config(release.shapes, SAM, {}),
        "aggregator_config": None,
        "seg_state": table.seg_state,
    }
    config = release_config(table, backbone, release.seg_token_id + 5, False, tokens, parts)
    return table, config, map_release(release.shapes, table, *grouped_heads(backbone["text_config"]))


def model_shapes(config: SamaConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the composed model; of a backbone without a class here, composed by hand."""
    with torch.device("meta"):
        if config.backbone_config.model_type in FAMILIES:
            parts: dict[str, torch.nn.Module] = {"": SamaForConditionalGeneration(config)}
        else:
            sam, width = AutoModel.from_config(config.mask_config), config.text_config.hidden_size
            prompt = torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.ReLU(), torch.nn.Linear(width, 256))
            head = torch.nn.Linear(width, config.text_config.vocab_size, bias=False)
            parts = {BACKBONE: AutoModel.from_config(config.backbone_config), OUR_SAM: sam, "lm_head.": head}
            parts |= {ORIGINAL_DECODER: sam.mask_decoder, "model.seg_projection.": prompt}
    return {
        prefix + name: tuple(tensor.shape)
        for prefix, part in parts.items()
        for name, tensor in part.state_dict().items()
    }


def made_shapes(keys: KeyMap, release: Release) -> dict[str, tuple[int, ...]]:
    return {
        name: tuple(piece.make(*(torch.empty(release.shapes[key], device="meta") for key in piece.keys)).shape)
        for name, piece in keys.pieces.items()
    }


@pytest.mark.parametrize("name", releases())
def test_every_tensor_is_mapped(name):
    release = releases()[name]
    _, config, keys = plan(release)
    assert made_shapes(keys, release) == model_shapes(config)
    used = {key for piece in keys.pieces.values() for key in piece.keys}
    assert keys.unknown == [] and used | keys.unused.keys() == release.shapes.keys()
    assert not used & keys.unused.keys()
    skipped = {key for key in release.shapes if DETECTOR_NECK in key}
    assert keys.unused.keys() == skipped and len(skipped) == (22 if name.endswith("SAM3") else 0)
    text = config.text_config
    assert (text.vocab_size, config.seg_token_id) == (release.seg_token_id + 5, release.seg_token_id)
    assert not any((config.tie_word_embeddings, config.backbone_config.tie_word_embeddings, text.tie_word_embeddings))


@pytest.mark.parametrize("size", ["1b", "4b", "8b"])
def test_listed_names_are_those_of_the_recorded_releases(size):
    """SAMA's three sizes, recorded from its own code, hold a Sa2VA on InternVL2.5."""
    listed = json.loads(gzip.decompress(OFFICIAL_KEYS.read_bytes()))[size]
    recorded = {key: tuple(shape) for key, shape in listed.items() if "Qformer" not in key}
    assert releases()[f"Sa2VA-{size.upper()}"].shapes == recorded


def test_number_of_tensors():
    """A list that lost a part would agree with a map that lost it too."""
    counts = {name: len(release.shapes) for name, release in releases().items()}
    assert counts == {
        "Sa2VA-1B": 1541, "Sa2VA-4B": 1685, "Sa2VA-8B": 1477, "Sa2VA-26B": 1838,
        "Sa2VA-i-1B": 1672, "Sa2VA-i-4B": 1816, "Sa2VA-i-8B": 1608, "Sa2VA-i-26B": 1969,
        "Sa2VA-InternVL3-2B": 1589, "Sa2VA-InternVL3-8B": 1589, "Sa2VA-InternVL3-14B": 1829,
        "Sa2VA-Qwen2_5-VL-3B": 1729, "Sa2VA-Qwen2_5-VL-7B": 1633,
        "Sa2VA-Qwen3-VL-2B": 1530, "Sa2VA-Qwen3-VL-4B": 1618, "Sa2VA-Qwen3-VL-4B-SAM3": 1459,
        "Sa2VA-LLaVA-1.5-7B": 1590,
    }  # fmt: skip
    _, config, keys = plan(releases()["Sa2VA-Qwen3-VL-4B-SAM3"])
    assert sum(name.startswith(OUR_SAM) for name in keys.pieces) == 845 and config.mask_config.image_size == 1008


@pytest.mark.parametrize(
    ("name", "rotary", "seg_state"),
    [
        ("Sa2VA-1B", {"rope_type": "default", "rope_theta": 1e6}, "after_norm"),
        ("Sa2VA-8B", {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e6}, "after_norm"),
        ("Sa2VA-InternVL3-2B", {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e6}, "after_norm"),
        (
            "Sa2VA-Qwen2_5-VL-7B",
            {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6},
            "after_norm",
        ),
        (
            "Sa2VA-Qwen3-VL-4B-SAM3",
            {"rope_type": "default", "mrope_section": [24, 20, 20], "mrope_interleaved": True, "rope_theta": 5e6},
            "before_norm",
        ),
    ],
)
def test_settings_that_belong_to_the_weights(name, rotary, seg_state):
    _, config, _ = plan(releases()[name])
    assert config.text_config.rope_parameters == rotary
    assert config.seg_state == seg_state


def test_layout_before_transformers_4_52():
    """Qwen2.5-VL once stood flat below `model.`, and its text settings at the top of `config.json`."""
    release = releases()["Sa2VA-Qwen2_5-VL-3B"]
    settings = {name: release.config[name] for name in ("text_config", "vision_config")}
    grounding = {key: shape for key, shape in release.shapes.items() if key.startswith(SAM)}
    old = sa2va_releases.qwen_vl("qwen2_5_vl", *reversed(settings.values()), 151665, grounding, old=True)
    assert "text_config" not in old.config and "model.model.layers.0.mlp.up_proj.weight" in old.shapes
    (_, config, keys), (_, expected, pieces) = plan(old), plan(release)
    assert made_shapes(keys, old) == made_shapes(pieces, release)
    assert config.to_dict() == expected.to_dict()


@pytest.mark.parametrize("name", ["Sa2VA-Qwen2_5-VL-3B", "Sa2VA-Qwen3-VL-2B", "Sa2VA-InternVL3-2B"])
def test_backbone_alone(name):
    """The base models store the same names, without the level that Sa2VA adds."""
    release = releases()[name]
    table, config, keys = plan(release)
    added = (SAM, "text_hidden_fcs.")
    base = {
        key.removeprefix(table.wrapper): shape for key, shape in release.shapes.items() if not key.startswith(added)
    }
    assert guess_kind(set(base)) == table.model_type and guess_kind(set(release.shapes)) == "sa2va"
    backbone = map_release(base, table, *grouped_heads(config.text_config.to_dict()), alone=True)
    assert backbone.unknown == [] and len(backbone.pieces) > 300
    assert all(keys.pieces[own].keys[0].endswith(piece.keys[0]) for own, piece in backbone.pieces.items())


# ---- values ------------------------------------------------------------


@cache
def tiny(name: str, sam: bool = False) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Random tensors of a tiny release, of its mask tracker or of the rest, by source name, and what is made of them,
    by our name."""
    release = sa2va_releases.tiny_releases()[name]
    shapes = {key: shape for key, shape in release.shapes.items() if key.startswith(SAM) == sam}
    weights = random_weights(shapes, seed=3, dtype=torch.float32)
    table = backbone_table(Path("config.json"), release.config)
    keys = map_release(weights, table, *grouped_heads(table.config(release.config)["text_config"]))
    return weights, {own: piece.make(*(weights[key] for key in piece.keys)) for own, piece in keys.pieces.items()}


def check(made: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for own, values in expected.items():
        assert torch.equal(made[own], values), own


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "llava"])
def test_native_names_keep_their_values(name):
    weights, made = tiny(name)
    native = {key.removeprefix("model.model."): tensor for key, tensor in weights.items() if ".model." in key[:12]}
    native = {key.replace("vision_tower.vision_model.", "vision_tower."): tensor for key, tensor in native.items()}
    assert len(native) == sum(key.startswith("model.model.") for key in weights) > 30
    check(made, {BACKBONE + key: tensor for key, tensor in native.items()})
    check(made, {HEAD: weights["model.lm_head.weight"]})


def test_internvl_values():
    weights, made = tiny("internvl")
    vision, language = "vision_model.encoder.layers.1.", "language_model.model.layers.1."
    own_vision, own_language = f"{BACKBONE}vision_tower.encoder.layer.1.", f"{BACKBONE}language_model.layers.1."
    qkv = weights[f"{vision}attn.qkv.weight"]
    check(made, {
        f"{own_vision}attention.q_proj.weight": qkv[:8],
        f"{own_vision}attention.k_proj.weight": qkv[8:16],
        f"{own_vision}attention.v_proj.weight": qkv[16:],
        f"{own_vision}attention.projection_layer.weight": weights[f"{vision}attn.proj.weight"],
        f"{own_vision}lambda_1": weights[f"{vision}ls1"],
        f"{own_vision}lambda_2": weights[f"{vision}ls2"],
        f"{own_vision}layernorm_before.bias": weights[f"{vision}norm1.bias"],
        f"{own_vision}layernorm_after.bias": weights[f"{vision}norm2.bias"],
        f"{own_language}mlp.gate_proj.weight": weights[f"{language}mlp.gate_proj.weight"],
        f"{own_language}mlp.up_proj.weight": weights[f"{language}mlp.up_proj.weight"],
        f"{own_language}self_attn.k_proj.bias": weights[f"{language}self_attn.k_proj.bias"],
        f"{BACKBONE}multi_modal_projector.linear_1.bias": weights["mlp1.1.bias"],
        f"{BACKBONE}multi_modal_projector.linear_2.bias": weights["mlp1.3.bias"],
        f"{BACKBONE}language_model.embed_tokens.weight": weights["language_model.model.embed_tokens.weight"],
        HEAD: weights["language_model.lm_head.weight"],
        "model.seg_projection.0.weight": weights["text_hidden_fcs.0.weight"],
    })  # fmt: skip


def test_internlm2_with_six_query_heads_a_group():
    """26B: each group of rows is six query heads, a key head and a value head; here 4 rows a head."""
    weights, made = tiny("internvl with internlm2")
    theirs, ours = "language_model.model.layers.1.", f"{BACKBONE}language_model.layers.1."
    wqkv = weights[f"{theirs}attention.wqkv.weight"]
    assert len(wqkv) == 2 * 8 * 4
    check(made, {
        f"{ours}self_attn.q_proj.weight": torch.cat([wqkv[:24], wqkv[32:56]]),
        f"{ours}self_attn.k_proj.weight": torch.cat([wqkv[24:28], wqkv[56:60]]),
        f"{ours}self_attn.v_proj.weight": torch.cat([wqkv[28:32], wqkv[60:]]),
        f"{ours}mlp.gate_proj.weight": weights[f"{theirs}feed_forward.w1.weight"],
        f"{ours}mlp.up_proj.weight": weights[f"{theirs}feed_forward.w3.weight"],
        f"{ours}input_layernorm.weight": weights[f"{theirs}attention_norm.weight"],
        f"{ours}post_attention_layernorm.weight": weights[f"{theirs}ffn_norm.weight"],
        f"{BACKBONE}language_model.embed_tokens.weight": weights["language_model.model.tok_embeddings.weight"],
        HEAD: weights["language_model.output.weight"],
        f"{BACKBONE}vision_tower.encoder.layer.0.attention.q_norm.weight":
            weights["vision_model.encoder.layers.0.attn.q_norm.weight"],
        f"{BACKBONE}vision_tower.encoder.layer.0.attention.k_norm.weight":
            weights["vision_model.encoder.layers.0.attn.k_norm.weight"],
    })  # fmt: skip


def test_sam2_values():
    """Layers of equal shapes: perceptrons, kinds of points, attention in two directions."""
    weights, made = tiny("internvl", sam=True)
    sam = {key.removeprefix(SAM): tensor for key, tensor in weights.items() if key.startswith(SAM)}
    decoder, attention = f"{OUR_SAM}mask_decoder.", f"{OUR_SAM}memory_attention.layers.2."
    theirs, points = "sam_mask_decoder.", "sam_prompt_encoder.point_embeddings"
    expected = {
        f"{decoder}iou_prediction_head.proj_in.weight": sam[f"{theirs}iou_prediction_head.layers.0.weight"],
        f"{decoder}iou_prediction_head.layers.0.weight": sam[f"{theirs}iou_prediction_head.layers.1.weight"],
        f"{decoder}transformer.layers.1.cross_attn_image_to_token.k_proj.weight":
            sam[f"{theirs}transformer.layers.1.cross_attn_image_to_token.k_proj.weight"],
        f"{decoder}iou_token.weight": sam[f"{theirs}iou_token.weight"],
        f"{decoder}obj_score_token.weight": sam[f"{theirs}obj_score_token.weight"],
        f"{attention}cross_attn_image.v_proj.weight":
            sam["memory_attention.layers.2.cross_attn_image.v_proj.weight"],
        f"{attention}layer_norm3.bias": sam["memory_attention.layers.2.norm3.bias"],
        f"{OUR_SAM}memory_encoder.memory_fuser.layers.1.scale": sam["memory_encoder.fuser.layers.1.g_weight"],
        f"{OUR_SAM}object_pointer_proj.proj_out.weight": sam["obj_ptr_proj.layers.2.weight"],
        f"{OUR_SAM}no_memory_embedding": sam["no_mem_embed"],
        f"{OUR_SAM}no_memory_positional_encoding": sam["no_mem_pos_enc"],
        f"{OUR_SAM}prompt_encoder.point_embed.weight":
            torch.cat([sam[f"{points}.{number}.weight"] for number in range(4)]),
    }  # fmt: skip
    check(made, expected)
    check(made, {f"{ORIGINAL_DECODER}conv_s1.weight": sam[f"{theirs}conv_s1.weight"]})


def test_sam3_values():
    """The neck of the detector, `convs`, has the names and shapes of the tracker's, and must not be taken."""
    weights, made = tiny("qwen3_vl with sam3", sam=True)
    vision, ours = f"{SAM}backbone.vision_backbone.", f"{OUR_SAM}vision_encoder."
    neck, layer, block = f"{ours}neck.fpn_layers.", f"{ours}backbone.layers.1.", f"{vision}trunk.blocks.1."
    qkv = weights[f"{block}attn.qkv.bias"]
    levels = {
        "0.dconv_2x2_0": "0.scale_layers.0",
        "0.dconv_2x2_1": "0.scale_layers.2",
        "1.dconv_2x2": "1.scale_layers.0",
    }
    levels |= {
        f"{level}.conv_{size}": f"{level}.proj{number}"
        for level in range(4)
        for number, size in ((1, "1x1"), (2, "3x3"))
    }
    assert len(levels) == 11  # 22 tensors
    for kind in ("weight", "bias"):
        taken = {own: weights[f"{vision}sam2_convs.{key}.{kind}"] for key, own in levels.items()}
        check(made, {f"{neck}{own}.{kind}": values for own, values in taken.items()})
    check(made, {
        f"{layer}attention.q_proj.bias": qkv[:16],
        f"{layer}attention.k_proj.bias": qkv[16:32],
        f"{layer}attention.v_proj.bias": qkv[32:],
        f"{layer}attention.o_proj.weight": weights[f"{block}attn.proj.weight"],
        f"{layer}layer_norm2.weight": weights[f"{block}norm2.weight"],
        f"{ours}backbone.layer_norm.bias": weights[f"{vision}trunk.ln_pre.bias"],
        f"{ours}backbone.embeddings.position_embeddings": weights[f"{vision}trunk.pos_embed"][:, 1:],
        f"{OUR_SAM}memory_attention.layers.3.cross_attn_image.k_proj.weight":
            weights[f"{SAM}transformer.encoder.layers.3.cross_attn_image.k_proj.weight"],
        f"{OUR_SAM}memory_encoder.mask_downsampler.layers.2.layer_norm.weight":
            weights[f"{SAM}maskmem_backbone.mask_downsampler.encoder.7.weight"],
        f"{OUR_SAM}memory_encoder.projection.bias": weights[f"{SAM}maskmem_backbone.out_proj.bias"],
        f"{OUR_SAM}mask_decoder.transformer.layers.0.mlp.proj_out.bias":
            weights[f"{SAM}sam_mask_decoder.transformer.layers.0.mlp.lin2.bias"],
        f"{OUR_SAM}occlusion_spatial_embedding_parameter": weights[f"{SAM}no_obj_embed_spatial"],
    })  # fmt: skip


def test_rotary_tables_of_the_authors_sam3_are_not_used():
    released = sa2va_releases.sam3_shapes(sa2va_releases.SAM3)
    names = set(sa2va_releases.sam3_file(dict.fromkeys(released, (1,)), sa2va_releases.SAM3["layers"]))
    tables = {name for name in names if "freqs_cis" in name}
    keys = map_tracker(names)
    assert len(tables) == 32 and keys.pieces.keys() == map_tracker(names - tables).pieces.keys()
    assert {name for name, reason in keys.unused.items() if reason == "rotary table, which is computed"} == tables


def test_sa2va_i_has_two_decoders():
    """SAM 2's decoder under the usual name, the tuned one as `modified`, in all 131 tensors."""
    weights, made = tiny("sa2va-i", sam=True)
    tuned, original, same = f"{OUR_SAM}mask_decoder.", ORIGINAL_DECODER, "transformer.layers.0.norm1.bias"
    name = "transformer.layers.0.layer_norm1.bias"
    check(made, {
        f"{tuned}conv_s0.weight": weights[f"{SAM}sam_mask_decoder_modified.conv_s0.weight"],
        f"{tuned}{name}": weights[f"{SAM}sam_mask_decoder_modified.{same}"],
        f"{original}conv_s0.weight": weights[f"{SAM}sam_mask_decoder.conv_s0.weight"],
        f"{original}{name}": weights[f"{SAM}sam_mask_decoder.{same}"],
    })  # fmt: skip
    pairs = [(made[own], made[original + own.removeprefix(tuned)]) for own in made if own.startswith(tuned)]
    assert len(pairs) == 131 and not any(torch.equal(*pair) for pair in pairs)
