"""Conversion of folders of the Sa2VA family: what is written, what is reported, and what is refused."""

import json
import math
import re
from pathlib import Path

import foreign_checkpoints as foreign
import pytest
import sa2va_releases
import torch
from processor_fixtures import noise_video
from safetensors.torch import load_file, save_file

from sama.configuration_sama import REGION_CELL_TOKEN
from sama.conversion import plan as conversion_plan
from sama.conversion.configs import sam3_config
from sama.conversion.convert import ConversionRequest, Plan, Report, convert, parse_arguments
from sama.conversion.files import CheckpointError
from sama.conversion.folder import write_processor
from sama.conversion.pieces import AGGREGATOR, BACKBONE, ORIGINAL_DECODER
from sama.conversion.pieces import SAM as OUR_SAM
from sama.conversion.sources import open_sources
from sama.conversion.tokenizers import chat_template
from sama.modeling_sama import SamaForConditionalGeneration
from sama.processing_sama import SamaProcessor


RELEASES = sa2va_releases.tiny_releases()
QWEN_HEAD, QWEN_EMBEDDINGS = "model.lm_head.weight", "model.model.language_model.embed_tokens.weight"
HEAD, EMBEDDINGS = "language_model.lm_head.weight", "language_model.model.embed_tokens.weight"
SYSTEM_TURN = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
)
TURNS = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def convert_folder(folder: Path, to: Path, **others) -> Report:
    return convert(ConversionRequest([(folder, "sa2va")], to, sizes=folder / "sizes.json", **others))


def write_sizes(folder: Path) -> Path:
    sizes = folder / "sizes.json"
    sizes.write_text(json.dumps(sa2va_releases.TINY_SIZES | {"sam_image_size": sa2va_releases.SAM3_IMAGE_SIZE}))
    return sizes


def edit_json(file: Path, **values) -> None:
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | values), encoding="utf-8")


def load(folder: Path) -> SamaForConditionalGeneration:
    model, info = SamaForConditionalGeneration.from_pretrained(folder, dtype="auto", output_loading_info=True)
    assert not any(info.values()), info
    return model


@pytest.fixture
def folder(tmp_path) -> Path:
    """The folder of a tiny Sa2VA on InternVL."""
    sa2va_releases.write_release(tmp_path / "foreign", RELEASES["internvl"])
    return tmp_path / "foreign"


def plan_of(folder: Path, **others) -> Plan:
    """The plan, without writing anything."""
    request = ConversionRequest([(folder, "sa2va")], folder.parent / "ours", sizes=folder / "sizes.json", **others)
    base, parts = open_sources(request)
    return conversion_plan.plan_release(base, parts, request)[0]


def processor_of(folder: Path, to: Path, kind: str = "sa2va", **others) -> SamaProcessor:
    """The processor of the converted folder, without converting the weights."""
    request = ConversionRequest([(folder, kind)], to, sizes=folder / "sizes.json", **others)
    base, parts = open_sources(request)
    plan, texts = conversion_plan.plan_release(base, parts, request)
    write_processor(to, plan.config, *texts)
    return SamaProcessor.from_pretrained(to, trust_remote_code=True)


def notes_of(folder: Path) -> str:
    return "\n".join(plan_of(folder).report.lines())


# ---- what is written ------------------------------------------------------------


@pytest.mark.parametrize("name", ["sa2va-i", "qwen2_5_vl", "qwen3_vl with sam3"])
def test_a_release_stays_a_sa2va(name, tmp_path):
    """Names and values of all kinds are compared in test_sa2va_keys.py; here they pass through files and the model."""
    weights = sa2va_releases.write_release(tmp_path / "foreign", RELEASES[name])
    report = convert_folder(tmp_path / "foreign", tmp_path / "ours")
    model = load(tmp_path / "ours")
    state, config = model.state_dict(), model.config
    unused = sum(map(len, report.unused.values()))
    assert (report.used + unused, report.filled, report.fresh) == (len(weights), len(state), [])
    assert unused == (22 if name.endswith("sam3") else 0)
    assert len(report.copied) == (0 if name == "sa2va-i" else 131)
    assert config.aggregator_config is None and config.trained and not config.tie_word_embeddings
    assert config.preset == ("consistent" if name == "sa2va-i" else "published")
    assert config.prompted_memory == ("masks" if name == "sa2va-i" else "as_decoded")
    assert config.region_prompts == ("none" if name.startswith("qwen") else "cells")
    assert config.seg_state == ("before_norm" if name.startswith("qwen3") else "after_norm")
    assert not any(own.startswith((AGGREGATOR, "model.region_encoder.")) for own in state)
    head, embeddings = state["lm_head.weight"], state[f"{BACKBONE}language_model.embed_tokens.weight"]
    theirs = [QWEN_HEAD, QWEN_EMBEDDINGS] if name.startswith("qwen") else [HEAD, EMBEDDINGS]
    assert torch.equal(head, weights[theirs[0]]) and torch.equal(embeddings, weights[theirs[1]])
    assert not torch.equal(head, embeddings)
    assert torch.equal(state["model.seg_projection.2.bias"], weights["text_hidden_fcs.2.bias"])
    processor = SamaProcessor.from_pretrained(tmp_path / "ours", trust_remote_code=True)
    assert processor.tokenizer.convert_tokens_to_ids("[SEG]") == config.seg_token_id
    assert processor.sam_image_mean == [0.485, 0.456, 0.406]  # SAM 3's own are 0.5
    size = (
        {"shortest_edge": 512 * 784, "longest_edge": 2048 * 784}
        if name.startswith("qwen")
        else {"height": 56, "width": 56}
    )
    assert dict(processor.image_processor.size) == size and processor.sam_image_size == (
        112 if "sam3" in name else 128
    )


SYSTEM, USER = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n", "<|im_start|>user\n"
END = "what is the dog?<|im_end|>\n<|im_start|>assistant\n"
IMG, VISION = "<img>*</img>", "<|vision_start|>*<|vision_end|>"
# specs: sa2va.md section 5, and model.md section 7 for SAMA, whose context tokens stand behind the frames
PROMPTS = [
    ("internvl", None, f"<|user|>\n{IMG}\n{IMG}\nwhat is the dog?<|end|>\n<|assistant|>\n"),
    ("internvl", "consistent", f"<|user|>\n{IMG}\n{IMG}\nwhat is the dog?<|end|>\n<|assistant|>\n"),
    ("internvl with internlm2", None, f"{USER}{IMG}\n{IMG}\n{END}"),
    ("sa2va-i", None, f"{USER}{IMG}\n{IMG}\n{END}"),
    ("sa2va-i", "published", f"{USER}{IMG}\n{IMG}\n{END}"),
    ("qwen2_5_vl", None, f"{SYSTEM}{USER}{VISION}{VISION}\n{END}"),
    ("qwen2_5_vl", "consistent", f"{USER}{VISION}\n{VISION}\n{END}"),
    ("qwen3_vl", None, f"{USER}{VISION}{VISION}\n{END}"),
    ("qwen3_vl with sam3", "consistent", f"{USER}{VISION}\n{VISION}\n{END}"),
    ("sama", None, f"{USER}{IMG}\n{IMG}*\n{END}"),
    ("sama", "consistent", f"{USER}{IMG}\n{IMG}*\n{END}"),
]


@pytest.mark.parametrize(
    ("name", "preset", "expected"), PROMPTS, ids=[f"{name}-{preset}" for name, preset, _ in PROMPTS]
)
def test_prompt_is_that_of_the_family(name, preset, expected, tmp_path):
    if name == "sama":
        foreign.write_release(tmp_path / "foreign", "sama")
    else:
        sa2va_releases.write_release(tmp_path / "foreign", RELEASES[name])
    kind = "sama" if name == "sama" else "sa2va"
    processor = processor_of(tmp_path / "foreign", tmp_path / "ours", kind, preset=preset)
    video, placeholder = noise_video(2, 56, 56), re.escape(processor.family.tags.context)
    content = [{"type": "video", "video": video}, {"type": "text", "text": "what is the dog?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
    text = text.removeprefix(processor.tokenizer.bos_token or "")
    tokens = 2 * math.prod(processor.frame_grid(processor.open_video(video))) + 2 * (kind == "sama")
    assert len(re.findall(placeholder, text)) == tokens
    assert re.sub(f"({placeholder})+", "*", text) == expected
    stops = json.loads((tmp_path / "ours" / "generation_config.json").read_text())["eos_token_id"]
    ends = ["<|im_end|>", "<|endoftext|>"] if "<|end|>" not in expected and "internlm2" not in name else ["<|im_end|>"]
    assert processor.tokenizer.convert_ids_to_tokens(stops if isinstance(stops, list) else [stops]) == ends


@pytest.mark.parametrize("name", ["internvl", "qwen2_5_vl", "qwen3_vl with sam3"])
def test_a_preset_brings_all_its_settings(name, tmp_path):
    folder, qwen, sam2 = tmp_path / "foreign", name.startswith("qwen"), not name.endswith("sam3")
    sa2va_releases.write_release(folder, RELEASES[name])
    for preset, cells, memory in (("published", (512, 2048), "as_decoded"), ("consistent", (128, 512), "masks")):
        plan = plan_of(folder, preset=preset)
        assert plan.config.preset == preset and plan.config.round_memory_to_bfloat16 == sam2
        assert plan.config.prompted_memory == (memory if sam2 else "as_decoded")
        if qwen:
            image_processor = processor_of(folder, tmp_path / preset, preset=preset).image_processor
            assert dict(image_processor.size) == {"shortest_edge": cells[0] * 784, "longest_edge": cells[1] * 784}


def test_regions_can_be_forced(tmp_path):
    """A Sa2VA on Qwen was never trained to read regions; asked for, it reads them as one on InternVL does."""
    folder = tmp_path / "foreign"
    sa2va_releases.write_release(folder, RELEASES["qwen3_vl"])
    processor = processor_of(folder, tmp_path / "ours")
    image, mask = noise_video(1, 48, 96)[0], torch.zeros(48, 96, dtype=torch.bool).numpy()
    mask[:, :48] = True
    content = [{"type": "image", "image": image}, {"type": "text", "text": "what is "}]
    messages = [{"role": "user", "content": [*content, {"type": "region", "frame": 0, "mask": mask}]}]
    with pytest.raises(ValueError, match="was not trained to read regions: .* convert it with --force_regions"):
        processor.apply_chat_template(messages)
    processor = processor_of(folder, tmp_path / "forced", force_regions=True)
    processor.image_processor.size = {"shortest_edge": 784, "longest_edge": 4 * 784}
    rows, columns = processor.frame_grid(processor.open_video(image))
    types = processor.apply_chat_template(messages)["mm_token_type_ids"]
    assert (types == REGION_CELL_TOKEN).sum() == rows * columns // 2 > 0
    note = "regions are read although this model was not trained to (--force_regions)"
    assert note in plan_of(folder, force_regions=True).report.notes and note not in plan_of(folder).report.notes


@pytest.mark.parametrize(("option", "value"), [("preset", "consistent"), ("force_regions", True)])
def test_options_of_a_released_model(folder, option, value):
    for others in ({"add_aggregator": True}, {"into": folder}):
        sources = [] if "into" in others else [(folder, "sa2va")]
        request = ConversionRequest(sources, folder.parent / "ours", **others, **{option: value})
        with pytest.raises(CheckpointError, match=f"--{option} .*: give --kind|is not a converted checkpoint"):
            open_sources(request)
    arguments = ["--from", "Sa2VA-1B", "--kind", "sa2va", "--to", "x"]
    given = [f"--{option}"] + ([] if value is True else [value])
    assert vars(parse_arguments([*arguments, *given]))[option] == value


def test_an_aggregator_can_be_added(folder):
    """What is fresh has its values in test_convert.py: with InstructBLIP the same happens without being asked for."""
    plan = plan_of(folder, add_aggregator=True)
    assert plan.optional_prefixes == (AGGREGATOR, "model.region_encoder.")
    config = plan.config
    assert (config.preset, config.region_prompts, config.seg_state) == ("consistent", "encoded", "after_norm")
    assert config.aggregator_config.temporal_qformer_config.vocab_size == foreign.NUM_QFORMER_TOKENS
    arguments = ["--from", "Sa2VA-1B", "--kind", "sa2va", "--to", "x"]
    assert parse_arguments([*arguments, "--add_aggregator"]).add_aggregator
    assert not parse_arguments(arguments).add_aggregator


def test_a_backbone_and_a_sam3_start_a_sama(tmp_path):
    """Both as their authors store them; the mask tracker's decoder is stored twice."""
    wrapped, sam = RELEASES["qwen3_vl with sam3"], sa2va_releases.SAM
    shapes = {key.removeprefix("model."): shape for key, shape in wrapped.shapes.items() if key.startswith("model.")}
    rows, width = shapes["model.language_model.embed_tokens.weight"]
    padded = {key: (64, width) for key, shape in shapes.items() if shape == (rows, width)}
    base = sa2va_releases.Release(wrapped.config, shapes | padded, 0, wrapped.chat_tokens)
    weights = sa2va_releases.write_release(tmp_path / "qwen", base, grounding=False)
    (tmp_path / "qwen" / "chat_template.jinja").write_text(TURNS)
    (tmp_path / "qwen" / "preprocessor_config.json").write_text('{"image_mean": [0.25, 0.5, 0.5]}')
    sam3 = {key: shape for key, shape in wrapped.shapes.items() if key.startswith(sam)}
    tensors = sa2va_releases.sam3_file(sam3, sa2va_releases.TINY_SAM3["layers"], seed=5)
    tensors["detector.transformer.decoder.query_embed.weight"] = torch.zeros(3, 8)
    torch.save({"model": tensors}, tmp_path / "sam3.pt")
    torch.save(foreign.random_weights(foreign.instructblip_shapes(), seed=6), tmp_path / "blip.pt")
    sources = [(tmp_path / "qwen", "qwen3_vl"), (tmp_path / "sam3.pt", "sam3"), (tmp_path / "blip.pt", "instructblip")]
    report = convert(ConversionRequest(sources, tmp_path / "ours", sizes=write_sizes(tmp_path)))
    model = load(tmp_path / "ours")
    state, config = model.state_dict(), model.config
    settings = (config.mask_config.model_type, config.seg_state, config.trained)
    assert settings == ("sam3_tracker_video", "after_norm", False)
    detector, neck = "SAM 3's detector finds objects by text", "the neck of SAM 3's detector"
    assert any(reason.startswith(neck) for reason in report.unused) and detector in report.unused
    assert len(report.unused["rotary table, which is computed"]) == 2
    assert {name.split(".")[1] for name in report.fresh} == {"context_aggregator", "region_encoder", "seg_projection"}
    for prefix in (f"{OUR_SAM}mask_decoder.", ORIGINAL_DECODER):
        assert torch.equal(state[f"{prefix}iou_token.weight"], tensors["tracker.sam_mask_decoder.iou_token.weight"])
    neck = "detector.backbone.vision_backbone.sam2_convs.3.conv_1x1.weight"
    assert torch.equal(state[f"{OUR_SAM}vision_encoder.neck.fpn_layers.3.proj1.weight"], tensors[neck])
    theirs = weights["model.language_model.embed_tokens.weight"]
    embeddings, known = model.get_input_embeddings().weight, rows - 5
    assert embeddings.shape == theirs.shape and torch.equal(embeddings[:known], theirs[:known])
    torch.testing.assert_close(
        embeddings[known:].float(), theirs[:known].float().mean(0).expand(64 - known, -1), atol=1e-3, rtol=0
    )
    processor = SamaProcessor.from_pretrained(tmp_path / "ours", trust_remote_code=True)
    assert dict(processor.image_processor.size) == {"shortest_edge": 128 * 784, "longest_edge": 512 * 784}
    assert list(processor.image_processor.image_mean) == [0.25, 0.5, 0.5]
    assert processor.sam_image_mean == processor.sam_image_std == [0.5, 0.5, 0.5]

    again = ConversionRequest([(tmp_path / "sam3.pt", "sam3")], tmp_path / "again", into=tmp_path / "ours")
    assert (
        len(
            convert(again).unused["the checkpoint keeps its own mask tracker; only the original mask decoder is taken"]
        )
        > 100
    )
    torch.save(foreign.random_weights(foreign.sam2_shapes(), seed=7), tmp_path / "sam2.pt")
    with pytest.raises(CheckpointError, match="is a sam2, but the checkpoint was trained with sam3_tracker_video"):
        convert(ConversionRequest([(tmp_path / "sam2.pt", "sam2")], tmp_path / "more", into=tmp_path / "ours"))
    with pytest.raises(CheckpointError, match="SAM 3 replaces one part of a SAMA: also give --into"):
        convert(ConversionRequest([(tmp_path / "sam3.pt", "sam3")], tmp_path / "more"))


# ---- what is reported ------------------------------------------------------------


def test_facts_of_the_files_are_reported(folder):
    notes, release = notes_of(folder), RELEASES["internvl"]
    rows = release.seg_token_id + 5
    for fact in (
        f"stored as bfloat16 ({len(release.shapes)} tensors); config.json names bfloat16",
        "licence: not named in its folder",
        f"{rows} embedding rows for {rows} tokens; [SEG] {rows - 5}, <p> {rows - 4}, </p> {rows - 3}, "
        f"<vp> {rows - 2}, </vp> {rows - 1} (there is no added_tokens.json)",
        "lm_head is stored and differs from the embeddings",
        "prompt style 'phi3_chat', used as phi3_chat; answers end at the text <|end|>, which is no token",
        "no rotary scaling",
        "131 copied: the original mask decoder is the tuned one",
    ):
        assert fact in notes


def test_other_facts_are_reported(folder):
    weights = {key: tensor.float() for key, tensor in load_file(folder / "model.safetensors").items()}
    weights |= {HEAD: weights[EMBEDDINGS].clone(), "language_model.model.rotary_emb.inv_freq": torch.zeros(4)}
    save_file(weights, folder / "model.safetensors")
    config, seg = RELEASES["internvl"].config, RELEASES["internvl"].seg_token_id
    language = config["llm_config"] | {"rope_scaling": {"type": "dynamic", "factor": 2.0}}
    edit_json(folder / "config.json", template="qwen_chat", llm_config=language)
    (folder / "added_tokens.json").write_text(json.dumps({"[SEG]": seg, "</vp>": seg + 4}))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    notes = notes_of(folder).splitlines()
    for fact in (
        f"stored as float32 ({len(weights)} tensors); config.json names bfloat16",
        "licence: apache-2.0",
        "lm_head is stored and equals the embeddings; it is kept apart from them",
        "prompt style 'qwen_chat', used as qwen_chat",
        "rotary scaling kept: {'type': 'dynamic', 'factor': 2.0}",
        "1 not used (rotary table, which is computed): language_model.model.rotary_emb.inv_freq",
    ):
        assert fact in notes
    assert any(note.endswith(f"</vp> {seg + 4} (as in added_tokens.json)") for note in notes)
    del weights[HEAD]
    save_file(weights, folder / "model.safetensors")
    assert "no lm_head is stored: it is tied to the embeddings" in notes_of(folder)


def test_chat_template_of_the_checkpoint_is_reported(tmp_path):
    folder = tmp_path / "foreign"
    sa2va_releases.write_release(folder, RELEASES["qwen2_5_vl"])
    assert "prompt style 'qwen_chat'; there is no chat template: that of the family" in notes_of(folder)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": TURNS}))
    assert "the chat template begins without a system turn, used as qwen_chat" in notes_of(folder)
    (folder / "chat_template.jinja").write_text(SYSTEM_TURN.replace("You are a", "Be") + TURNS)
    assert "the chat template begins with a system turn, used as kept" in notes_of(folder)
    (folder / "chat_template.jinja").write_text(SYSTEM_TURN + TURNS)
    assert "the chat template begins with a system turn, used as qwen2_5_vl_chat" in notes_of(folder)


# ---- what is refused ------------------------------------------------------------


def refuse(folder: Path, message: str, **others) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        convert_folder(folder, folder.parent / "ours", **others)
    assert "\n" not in str(caught.value) and not (folder.parent / "ours").exists()


def test_family_that_is_unknown(folder):
    vision, language = {"model_type": "kimi_vision"}, {"model_type": "kimi"}
    (folder / "config.json").write_text(json.dumps({"text_config": language, "vision_config": vision}))
    refuse(folder, "'kimi' is not supported: expected one of internvl")
    (folder / "config.json").write_text(json.dumps({"model_type": "sa2va_chat"}))
    refuse(folder, r"config.json has no llm_config \(InternVL\) and no text_config")


def test_vocabulary_of_another_checkpoint(folder):
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {EMBEDDINGS: torch.zeros(11, 16)}, folder / "model.safetensors")
    refuse(folder, r"tokenizer has \d+ tokens but the checkpoint has embeddings for 11")
    (folder / "added_tokens.json").write_text('{"[SEG]": 3}')
    save_file(weights, folder / "model.safetensors")
    refuse(folder, r"added_tokens.json gives \[SEG\] the id 3, but the tokenizer gives it \d+")
    other = folder.parent / "other"
    other.mkdir()
    foreign.write_tokenizers(other, chat_tokens=["<|im_end|>"])
    refuse(folder, r"tokenizer has no <img>, </img>, <IMG_CONTEXT>; it belongs", tokenizer=other)


def test_style_that_is_unknown(folder):
    edit_json(folder / "config.json", template="internvl2_5")
    refuse(
        folder, r"config.json: the prompt style \(`template`\) 'internvl2_5' is unknown, expected one of qwen_chat, "
    )
    foreign_config = {"template": "internvl2_5", "llm_config": {"model_type": "internlm2"}}
    assert chat_template(None, foreign_config, folder, alone=True) == "internlm2_chat"


def test_tensor_of_another_model(folder):
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"audio_model.weight": torch.zeros(2)}, folder / "model.safetensors")
    refuse(folder, "1 unknown tensors: audio_model.weight")


def test_aggregator_is_added_to_a_sa2va_alone(tmp_path):
    foreign.write_release(tmp_path / "sama", "sama")
    with pytest.raises(CheckpointError, match="--add_aggregator makes a SAMA of a Sa2VA"):
        convert(ConversionRequest([(tmp_path / "sama", "sama")], tmp_path / "ours", add_aggregator=True))


@pytest.mark.parametrize(
    ("config", "tensors"), [("qwen2_5_vl", "internvl"), ("qwen3_vl", "qwen2_5_vl"), ("internvl", "llava")]
)
def test_config_of_another_family(tmp_path, config, tensors):
    sa2va_releases.write_release(tmp_path / "foreign", RELEASES[tensors])
    (tmp_path / "foreign" / "config.json").write_text(json.dumps(RELEASES[config].config))
    refuse(tmp_path / "foreign", f"config.json describes {config}, but the tensors are those of {tensors}; do they")


def test_family_without_a_class(tmp_path, monkeypatch):
    sa2va_releases.write_release(tmp_path / "foreign", RELEASES["llava"])
    monkeypatch.delitem(conversion_plan.FAMILIES, "llava", raising=False)
    refuse(tmp_path / "foreign", "is built on llava, which this version does not run: expected one of internvl")


@pytest.mark.parametrize("missing", ["qwen3_vl", "sam3_tracker_video"])
def test_model_that_transformers_does_not_have(tmp_path, monkeypatch, missing):
    sa2va_releases.write_release(tmp_path / "foreign", RELEASES["qwen3_vl with sam3"])
    mapping = conversion_plan.CONFIG_MAPPING
    known = {name: mapping[name] for name in ("qwen3_vl", "qwen3_vl_text", "sam3_tracker_video") if name != missing}
    monkeypatch.setattr(conversion_plan, "CONFIG_MAPPING", known)
    monkeypatch.setattr(conversion_plan.transformers, "__version__", "5.17.0")
    refuse(tmp_path / "foreign", f"transformers 5.17.0 has no model of type '{missing}'; install a newer one")


@pytest.mark.parametrize(
    ("positions", "image_size", "message"),
    [
        (577, 1008, None),
        (576, 1008, "575 positions do not tile an image of 1008 pixels with patches of 14"),
        (577, 1000, "576 positions do not tile an image of 1000 pixels"),
        (577, 1024 - 16 + 14, r"576 positions do not tile an image of 1022 pixels with patches of 14 \(73 x 73\)"),
    ],
)
def test_positions_that_do_not_fit(positions, image_size, message):
    shapes = sa2va_releases.sam3_shapes(sa2va_releases.SAM3)
    trunk = f"{sa2va_releases.SAM}backbone.vision_backbone.trunk."
    shapes[f"{trunk}pos_embed"] = (1, positions, 1024)
    sizes = {"sam_image_size": image_size}
    if message is None:
        vit = sam3_config(shapes, sa2va_releases.SAM, sizes)["vision_config"]["backbone_config"]
        assert (vit["pretrain_image_size"], math.prod(vit["global_attn_indexes"])) == (336, 7 * 15 * 23 * 31)
        return
    with pytest.raises(CheckpointError, match=message):
        sam3_config(shapes, sa2va_releases.SAM, sizes)
    del shapes[f"{trunk}blocks.31.norm1.weight"]
    shapes = {key: shape for key, shape in shapes.items() if ".blocks.31." not in key}
    with pytest.raises(CheckpointError, match="of width 1024 with 31 blocks is not the published size"):
        sam3_config(shapes, sa2va_releases.SAM, sizes)
