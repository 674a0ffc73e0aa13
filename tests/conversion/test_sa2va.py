"""Conversion of folders of the Sa2VA family: what is written, what is reported, and what is refused."""

import json
import math
from pathlib import Path

import foreign_checkpoints as foreign
import pytest
import sa2va_releases
import torch
from safetensors.torch import load_file, save_file

from sama.conversion import plan as conversion_plan
from sama.conversion.configs import sam3_config
from sama.conversion.convert import ConversionRequest, Report, convert, parse_arguments
from sama.conversion.files import CheckpointError
from sama.conversion.pieces import AGGREGATOR
from sama.modeling_sama import SamaForConditionalGeneration


RELEASES = sa2va_releases.tiny_releases()
HEAD, EMBEDDINGS = "language_model.lm_head.weight", "language_model.model.embed_tokens.weight"
SYSTEM_TURN = "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nHi<|im_end|>\n{% endif %}"
TURNS = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
)


def convert_folder(folder: Path, to: Path, **others) -> Report:
    return convert(ConversionRequest([(folder, "sa2va")], to, sizes=folder / "sizes.json", **others))


def edit_json(file: Path, **values) -> None:
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | values), encoding="utf-8")


def load(folder: Path) -> SamaForConditionalGeneration:
    model, info = SamaForConditionalGeneration.from_pretrained(folder, dtype="auto", output_loading_info=True)
    assert not any(info.values()), info
    return model


# ---- what is written ------------------------------------------------------------


def test_an_aggregator_can_be_added(tmp_path):
    sa2va_releases.write_release(tmp_path / "foreign", RELEASES["internvl"])
    report = convert_folder(tmp_path / "foreign", tmp_path / "ours", add_aggregator=True)
    model = load(tmp_path / "ours")
    fresh = {name for name in model.state_dict() if name.startswith((AGGREGATOR, "model.region_encoder."))}
    assert set(report.fresh) == fresh and len(fresh) > 100
    assert (model.config.trained, model.config.preset) == (False, "consistent")
    assert model.config.aggregator_config.temporal_qformer_config.vocab_size == foreign.NUM_QFORMER_TOKENS
    arguments = ["--from", "Sa2VA-1B", "--kind", "sa2va", "--to", "x"]
    assert parse_arguments([*arguments, "--add_aggregator"]).add_aggregator
    assert not parse_arguments(arguments).add_aggregator


# ---- what is reported ------------------------------------------------------------


@pytest.fixture
def folder(tmp_path) -> Path:
    """The folder of a tiny Sa2VA on InternVL."""
    sa2va_releases.write_release(tmp_path / "foreign", RELEASES["internvl"])
    return tmp_path / "foreign"


def notes_of(folder: Path) -> str:
    """Notes of the plan, without writing anything."""
    request = ConversionRequest([(folder, "sa2va")], folder.parent / "ours", sizes=folder / "sizes.json")
    base, parts = conversion_plan.open_sources(request)
    plan, _ = conversion_plan.plan_release(base, parts, request)
    return "\n".join(plan.report.lines())


def test_facts_of_the_files_are_reported(folder):
    notes, release = notes_of(folder), RELEASES["internvl"]
    rows = release.seg_token_id + 5
    for fact in (
        f"stored as bfloat16 ({len(release.shapes)} tensors); config.json names bfloat16",
        "licence: not named in its folder",
        f"{rows} embedding rows for {rows} tokens; [SEG] {rows - 5}, <p> {rows - 4}, </p> {rows - 3}, "
        f"<vp> {rows - 2}, </vp> {rows - 1} (there is no added_tokens.json)",
        "lm_head is stored and differs from the embeddings",
        "prompt style 'phi3_chat'; answers end at the text <|end|>, which is no token",
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
        "prompt style 'qwen_chat'",
        "rotary scaling kept: {'type': 'dynamic', 'factor': 2.0}",
        "1 not used (rotary table, which is computed): language_model.model.rotary_emb.inv_freq",
    ):
        assert fact in notes
    assert any(note.endswith(f"</vp> {seg + 4} (as in added_tokens.json)") for note in notes)
    del weights[HEAD]
    save_file(weights, folder / "model.safetensors")
    assert "no lm_head is stored: it is tied to the embeddings" in notes_of(folder)


def test_chat_template_of_the_checkpoint_is_reported(tmp_path, monkeypatch):
    monkeypatch.setitem(conversion_plan.FAMILIES, "qwen2_5_vl", conversion_plan.FAMILIES["internvl"])
    folder = tmp_path / "foreign"
    sa2va_releases.write_release(folder, RELEASES["qwen2_5_vl"])
    assert "prompt style 'qwen_chat'; the tokenizer has no chat template" in notes_of(folder)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": TURNS}))
    assert "its chat template begins without a system turn" in notes_of(folder)
    (folder / "chat_template.jinja").write_text(SYSTEM_TURN + TURNS)
    assert "its chat template begins with a system turn" in notes_of(folder)


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
    monkeypatch.setitem(conversion_plan.FAMILIES, "qwen3_vl", conversion_plan.FAMILIES["internvl"])
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


def test_sam2_does_not_replace_the_decoder_of_a_sam3(tmp_path, monkeypatch):
    monkeypatch.setitem(conversion_plan.FAMILIES, "qwen3_vl", conversion_plan.FAMILIES["internvl"])
    sa2va_releases.write_release(tmp_path / "foreign", RELEASES["qwen3_vl with sam3"])
    torch.save(foreign.random_weights(foreign.sam2_shapes(), seed=7), tmp_path / "sam2.pt")
    sources = [(tmp_path / "foreign", "sa2va"), (tmp_path / "sam2.pt", "sam2")]
    with pytest.raises(CheckpointError, match="is a SAM 2, but the checkpoint was trained with a sam3_tracker_video"):
        convert(ConversionRequest(sources, tmp_path / "ours", sizes=tmp_path / "foreign" / "sizes.json"))
