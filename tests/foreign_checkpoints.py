"""Tiny checkpoints with random weights in the names and formats of other projects."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


WIDTH, HEADS, KEY_VALUE_HEADS, LAYERS, MLP = 16, 4, 2, 2, 24
VISION_WIDTH, QFORMER_WIDTH, ENCODER_WIDTH = 8, 12, 20
SIZES = {
    "qformer_heads": 3, "sam_image_size": 128,
    "hiera": {"num_heads": 1, "global_attention_blocks": [4, 5], "window_spec": [8, 4, 16, 8]},
}  # fmt: skip
WORDS = ["<unk>", "what", "is", "the", "dog", "doing", "?"]
CHAT_TOKENS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<img>", "</img>", "<IMG_CONTEXT>"]
SAMA_TOKENS = ["[SEG]", "<p>", "</p>", "<vp>", "</vp>"]
BERT_WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "what", "is", "the", "dog", "doing", "?"]
NUM_QFORMER_TOKENS = len(BERT_WORDS) + 8

Shapes = dict[str, tuple[int, ...]]
Stages = tuple[tuple[int, int], ...]  # width and blocks of each stage of a Hiera
TINY_STAGES: Stages = ((16, 1), (32, 2), (64, 3), (128, 1))


def linear(name: str, out: int, into: int, *kernel: int) -> Shapes:
    return {f"{name}.weight": (out, into, *kernel), f"{name}.bias": (out,)}


def norm(name: str, size: int) -> Shapes:
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}


def vision_shapes() -> Shapes:
    w, prefix = VISION_WIDTH, "vision_model."
    shapes = {f"{prefix}embeddings.class_embedding": (1, 1, w), f"{prefix}embeddings.position_embedding": (1, 17, w)}
    shapes |= linear(f"{prefix}embeddings.patch_embedding", w, 3, 14, 14)
    for number in range(LAYERS):
        layer = f"{prefix}encoder.layers.{number}."
        shapes |= {f"{layer}ls1": (w,), f"{layer}ls2": (w,)} | linear(f"{layer}attn.qkv", 3 * w, w)
        shapes |= linear(f"{layer}attn.proj", w, w) | norm(f"{layer}norm1", w) | norm(f"{layer}norm2", w)
        shapes |= linear(f"{layer}mlp.fc1", 2 * w, w) | linear(f"{layer}mlp.fc2", w, 2 * w)
    return shapes | norm("mlp1.0", 4 * w) | linear("mlp1.1", WIDTH, 4 * w) | linear("mlp1.3", WIDTH, WIDTH)


def qwen2_shapes(rows: int) -> Shapes:
    prefix, kv = "language_model.model.", WIDTH * KEY_VALUE_HEADS // HEADS
    shapes = {f"{prefix}embed_tokens.weight": (rows, WIDTH), "language_model.lm_head.weight": (rows, WIDTH)}
    shapes |= {f"{prefix}norm.weight": (WIDTH,)}
    for number in range(LAYERS):
        layer = f"{prefix}layers.{number}."
        for name, out in (("q", WIDTH), ("k", kv), ("v", kv)):
            shapes |= linear(f"{layer}self_attn.{name}_proj", out, WIDTH)
        shapes |= {f"{layer}self_attn.o_proj.weight": (WIDTH, WIDTH), f"{layer}mlp.down_proj.weight": (WIDTH, MLP)}
        shapes |= {f"{layer}mlp.{name}_proj.weight": (MLP, WIDTH) for name in ("gate", "up")}
        shapes |= {f"{layer}{name}_layernorm.weight": (WIDTH,) for name in ("input", "post_attention")}
    return shapes


def internlm2_shapes(rows: int) -> Shapes:
    prefix, head_dim = "language_model.model.", WIDTH // HEADS
    shapes = {f"{prefix}tok_embeddings.weight": (rows, WIDTH), "language_model.output.weight": (rows, WIDTH)}
    shapes |= {f"{prefix}norm.weight": (WIDTH,)}
    for number in range(LAYERS):
        layer = f"{prefix}layers.{number}."
        shapes |= {f"{layer}attention.wqkv.weight": ((HEADS + 2 * KEY_VALUE_HEADS) * head_dim, WIDTH)}
        shapes |= {f"{layer}attention.wo.weight": (WIDTH, WIDTH), f"{layer}feed_forward.w2.weight": (WIDTH, MLP)}
        shapes |= {f"{layer}feed_forward.{name}.weight": (MLP, WIDTH) for name in ("w1", "w3")}
        shapes |= {f"{layer}{name}_norm.weight": (WIDTH,) for name in ("attention", "ffn")}
    return shapes


def qformer_shapes(prefix: str, layers: int, every: int, encoder_width: int, text: bool) -> Shapes:
    w = QFORMER_WIDTH
    shapes = norm(f"{prefix}embeddings.LayerNorm", w) | {f"{prefix}embeddings.position_ids": (1, 32)}
    if text:
        shapes |= {f"{prefix}embeddings.word_embeddings.weight": (NUM_QFORMER_TOKENS, w)}
        shapes |= {f"{prefix}embeddings.position_embeddings.weight": (32, w)}
    for number in range(layers):
        layer = f"{prefix}encoder.layer.{number}."
        for attention, into in (("attention", w), ("crossattention", encoder_width)):
            if attention == "crossattention" and number % every:
                continue
            shapes |= linear(f"{layer}{attention}.self.query", w, w)
            shapes |= linear(f"{layer}{attention}.self.key", w, into)
            shapes |= linear(f"{layer}{attention}.self.value", w, into)
            shapes |= linear(f"{layer}{attention}.output.dense", w, w)
            shapes |= norm(f"{layer}{attention}.output.LayerNorm", w)
        for branch in ("_query", "") if text else ("_query",):
            shapes |= linear(f"{layer}intermediate{branch}.dense", 2 * w, w)
            shapes |= linear(f"{layer}output{branch}.dense", w, 2 * w) | norm(f"{layer}output{branch}.LayerNorm", w)
    return shapes


def aggregator_shapes() -> Shapes:
    w = QFORMER_WIDTH
    shapes = {"spatial_Qformer_query_tokens": (1, 4, w), "temporal_Qformer_query_tokens": (1, 4, w)}
    shapes |= qformer_shapes("spatial_Qformer.bert.", 3, 2, ENCODER_WIDTH, text=False)
    shapes |= qformer_shapes("temporal_Qformer.bert.", 2, 1, w, text=True)
    shapes |= linear("vlm2spatial_Qformer_proj", ENCODER_WIDTH, WIDTH) | norm("spatial_Qformer_ln", ENCODER_WIDTH)
    for name in ("temp_attn_q", "temp_proj", "final_proj", "mask_pooling_proj"):
        shapes |= linear(f"Qformer_{name}", WIDTH, WIDTH)
    shapes |= linear("Qformer_temp_attn_k", WIDTH, w) | linear("Qformer_temp_attn_v", WIDTH, w)
    shapes |= linear("Qformer_mask_pooling_proj_st", w, WIDTH)
    for name, out in (("Qformer_mask_proj", WIDTH), ("Qformer_mask_proj_st", w)):
        for layer, (rows, columns) in enumerate(((6, 64), (6, 6), (out, 6))):
            shapes |= linear(f"{name}.layers.{layer}", rows, columns)
    return shapes


def sam2_shapes(prefix: str = "", version: str = "2.0", stages: Stages = TINY_STAGES, scale: str = "gamma") -> Shapes:
    """A SAM 2; `scale` is the name of the layer scale in its memory fuser."""
    shapes = hiera_shapes(stages) | memory_shapes(scale) | decoder_shapes()
    if version == "2.1":
        shapes |= {"no_obj_embed_spatial": (1, 64)} | linear("obj_ptr_tpos_proj", 64, 256)
    return {f"{prefix}{name}": shape for name, shape in shapes.items()}


def hiera_shapes(stages: Stages) -> Shapes:
    trunk, shapes, previous = "image_encoder.trunk.", {}, stages[0][0]
    shapes |= {f"{trunk}pos_embed": (1, previous, 7, 7), f"{trunk}pos_embed_window": (1, previous, 8, 8)}
    shapes |= linear(f"{trunk}patch_embed.proj", previous, 3, 7, 7)
    for number, width in enumerate(width for width, blocks in stages for _ in range(blocks)):
        block = f"{trunk}blocks.{number}."
        shapes |= norm(f"{block}norm1", previous) | norm(f"{block}norm2", width)
        shapes |= linear(f"{block}attn.qkv", 3 * width, previous) | linear(f"{block}attn.proj", width, width)
        shapes |= linear(f"{block}mlp.layers.0", 4 * width, width) | linear(f"{block}mlp.layers.1", width, 4 * width)
        shapes |= linear(f"{block}proj", width, previous) if width != previous else {}
        previous = width
    for number, (width, _) in enumerate(reversed(stages)):
        shapes |= linear(f"image_encoder.neck.convs.{number}.conv", 256, width, 1, 1)
    return shapes


def memory_shapes(scale: str) -> Shapes:
    shapes = {"maskmem_tpos_enc": (7, 1, 1, 64), "no_obj_ptr": (1, 256)} | linear("mask_downsample", 1, 1, 4, 4)
    shapes |= {"no_mem_embed": (1, 1, 256), "no_mem_pos_enc": (1, 1, 256)} | norm("memory_attention.norm", 256)
    for number in range(4):
        layer = f"memory_attention.layers.{number}."
        for attention, into in (("self_attn", 256), ("cross_attn_image", 64)):
            for name in "qkv":
                shapes |= linear(f"{layer}{attention}.{name}_proj", 256, 256 if name == "q" else into)
            shapes |= linear(f"{layer}{attention}.out_proj", 256, 256)
        shapes |= linear(f"{layer}linear1", 2048, 256) | linear(f"{layer}linear2", 256, 2048)
        for name in "123":
            shapes |= norm(f"{layer}norm{name}", 256)
    encoder = "memory_encoder."
    for number in range(4):
        channels = 4**number
        shapes |= linear(f"{encoder}mask_downsampler.encoder.{3 * number}", 4 * channels, channels, 3, 3)
        shapes |= norm(f"{encoder}mask_downsampler.encoder.{3 * number + 1}", 4 * channels)
    shapes |= linear(f"{encoder}mask_downsampler.encoder.12", 256, 256, 1, 1)
    shapes |= linear(f"{encoder}pix_feat_proj", 256, 256, 1, 1) | linear(f"{encoder}out_proj", 64, 256, 1, 1)
    for number in range(2):
        layer = f"{encoder}fuser.layers.{number}."
        shapes |= {f"{layer}{scale}": (256,)} | linear(f"{layer}dwconv", 256, 1, 7, 7) | norm(f"{layer}norm", 256)
        shapes |= linear(f"{layer}pwconv1", 1024, 256) | linear(f"{layer}pwconv2", 256, 1024)
    return shapes | three_layers("obj_ptr_proj", 256)


def three_layers(name: str, out: int) -> Shapes:
    return {
        key: shape
        for n, rows in enumerate((256, 256, out))
        for key, shape in linear(f"{name}.layers.{n}", rows, 256).items()
    }


def decoder_shapes() -> Shapes:
    prompt, decoder = "sam_prompt_encoder.", "sam_mask_decoder."
    shapes = {f"{prompt}pe_layer.positional_encoding_gaussian_matrix": (2, 128)}
    for name in [f"point_embeddings.{n}" for n in range(4)] + ["not_a_point_embed", "no_mask_embed"]:
        shapes[f"{prompt}{name}.weight"] = (1, 256)
    for number, (out, into, kernel) in {0: (4, 1, 2), 3: (16, 4, 2), 6: (256, 16, 1)}.items():
        shapes |= linear(f"{prompt}mask_downscaling.{number}", out, into, kernel, kernel)
    shapes |= norm(f"{prompt}mask_downscaling.1", 4) | norm(f"{prompt}mask_downscaling.4", 16)
    names = [
        f"layers.{n}.{name}"
        for n in range(2)
        for name in ("self_attn", "cross_attn_token_to_image", "cross_attn_image_to_token")
    ]
    for name in [*names, "final_attn_token_to_image"]:
        inner = 256 if name.endswith("self_attn") else 128
        for letter in "qkv":
            shapes |= linear(f"{decoder}transformer.{name}.{letter}_proj", inner, 256)
        shapes |= linear(f"{decoder}transformer.{name}.out_proj", 256, inner)
    for number in range(2):
        layer = f"{decoder}transformer.layers.{number}."
        shapes |= linear(f"{layer}mlp.layers.0", 2048, 256) | linear(f"{layer}mlp.layers.1", 256, 2048)
        for name in "1234":
            shapes |= norm(f"{layer}norm{name}", 256)
    shapes |= norm(f"{decoder}transformer.norm_final_attn", 256) | norm(f"{decoder}output_upscaling.1", 64)
    for name, rows in (("iou_token", 1), ("mask_tokens", 4), ("obj_score_token", 1)):
        shapes[f"{decoder}{name}.weight"] = (rows, 256)
    shapes |= {f"{decoder}output_upscaling.0.weight": (256, 64, 2, 2), f"{decoder}output_upscaling.0.bias": (64,)}
    shapes |= {f"{decoder}output_upscaling.3.weight": (64, 32, 2, 2), f"{decoder}output_upscaling.3.bias": (32,)}
    shapes |= linear(f"{decoder}conv_s0", 32, 256, 1, 1) | linear(f"{decoder}conv_s1", 64, 256, 1, 1)
    for number in range(4):
        shapes |= three_layers(f"{decoder}output_hypernetworks_mlps.{number}", 32)
    return shapes | three_layers(f"{decoder}iou_prediction_head", 4) | three_layers(f"{decoder}pred_obj_score_head", 1)


def instructblip_shapes() -> Shapes:
    shapes = qformer_shapes("Qformer.bert.", 3, 2, ENCODER_WIDTH, text=True) | {"query_tokens": (1, 4, QFORMER_WIDTH)}
    return shapes | norm("ln_vision", ENCODER_WIDTH) | linear("llm_proj", 10, QFORMER_WIDTH)


def release_shapes(kind: str, language_model: str = "qwen2") -> Shapes:
    """Tensor shapes of a "sama", "sa2va" or "internvl" checkpoint."""
    rows = len(WORDS + CHAT_TOKENS) + (0 if kind == "internvl" else len(SAMA_TOKENS))
    shapes = vision_shapes() | {"qwen2": qwen2_shapes, "internlm2": internlm2_shapes}[language_model](rows)
    if kind != "internvl":
        shapes |= linear("text_hidden_fcs.0", WIDTH, WIDTH) | linear("text_hidden_fcs.2", 256, WIDTH)
        shapes |= sam2_shapes("grounding_encoder.sam2_model.")
    return shapes | (aggregator_shapes() if kind == "sama" else {})


def random_weights(shapes: Shapes, seed: int, dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: (torch.randn(shape, generator=generator) * 0.1).to(dtype) for name, shape in shapes.items()}


def write_tokenizers(folder: Path, sama: bool = True, chat_tokens: list[str] = CHAT_TOKENS) -> None:
    """Writes a language tokenizer to `folder` and a BERT vocabulary to `folder/qformer_tokenizer`."""
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(chat_tokens + (SAMA_TOKENS if sama else []))
    PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|endoftext|>", pad_token="<|endoftext|>", unk_token="<unk>"
    ).save_pretrained(folder)
    (folder / "qformer_tokenizer").mkdir()
    (folder / "qformer_tokenizer" / "vocab.txt").write_text("\n".join(BERT_WORDS) + "\n", encoding="utf-8")


def write_config(folder: Path, language_model: str = "qwen2") -> None:
    language = {
        "model_type": language_model, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "intermediate_size": MLP,
        "num_attention_heads": HEADS, "num_key_value_heads": KEY_VALUE_HEADS, "rms_norm_eps": 1e-6,
        "rope_theta": 1e6, "max_position_embeddings": 512, "vocab_size": 99, "hidden_act": "silu",
    }  # fmt: skip
    if language_model == "internlm2":
        language |= {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "bias": False}
    vision = {
        "hidden_size": VISION_WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "patch_size": 14,
        "intermediate_size": 2 * VISION_WIDTH, "image_size": 56, "qkv_bias": True, "qk_normalization": False,
        "norm_type": "layer_norm",
    }  # fmt: skip
    config = {"llm_config": language, "vision_config": vision, "template": "qwen_chat", "ps_version": "v2"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def write_shards(folder: Path, weights: dict[str, torch.Tensor], num_shards: int) -> None:
    """Writes shards and an index in the format of `save_pretrained`."""
    names, weight_map = list(weights), {}
    for number in range(num_shards):
        file = f"model-{number + 1:05d}-of-{num_shards:05d}.safetensors"
        chosen = names[number::num_shards]
        save_file({name: weights[name] for name in chosen}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(chosen, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def write_release(folder: Path, kind: str, language_model: str = "qwen2", seed: int = 0) -> dict[str, torch.Tensor]:
    """Writes a complete checkpoint folder; returns its weights."""
    folder.mkdir()
    weights = random_weights(release_shapes(kind, language_model), seed)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    write_config(folder, language_model)
    write_tokenizers(folder, sama=kind != "internvl")
    (folder / "sizes.json").write_text(json.dumps(SIZES), encoding="utf-8")
    return weights
