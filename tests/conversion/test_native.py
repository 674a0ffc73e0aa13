"""The start of a SAMA from parts in transformers' own format: folders that transformers itself writes."""

import json
from pathlib import Path

import foreign_checkpoints as foreign
import pytest
import torch
from processor_fixtures import language_tokenizer, noise_video
from safetensors.torch import load_file, save_file
from tiny_backbones import BACKBONES
from tiny_model import tiny_config
from tiny_trackers import randomize, tiny_mask_config
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, PreTrainedModel, Sam3VideoConfig

from sama.conversion import plan as conversion_plan
from sama.conversion.convert import ConversionRequest, Report, convert
from sama.conversion.files import CheckpointError
from sama.conversion.keys import guess_kind
from sama.conversion.native import TRACKER_TYPES, map_native_tracker, native_tracker_config
from sama.conversion.pieces import AGGREGATOR, ORIGINAL_DECODER, SAM
from sama.modeling_sama import SamaForConditionalGeneration
from sama.modeling_sama_backbones import FAMILIES
from sama.processing_sama import SamaProcessor


TRACKERS = {"sam2": "sam2.1", "sam3": "sam3", "edgetam": "edgetam"}  # `--kind`, and the name in tiny_trackers.py
INTERNVL_POSITIONS = {"rope_type": "default", "rope_theta": 5e5}
PADDED_ROWS = 320  # of Qwen's embeddings: a multiple of 64, as published
QWEN_TAGS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")


def write_backbone(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """A vision-language model of transformers with random weights and its tokenizer; returns its state."""
    model_type = name.partition(",")[0]
    tokenizer = language_tokenizer(QWEN_TAGS if "qwen" in model_type else FAMILIES[model_type].tags)
    rows = PADDED_ROWS if "qwen" in model_type else len(tokenizer)
    text = {"rope_parameters": INTERNVL_POSITIONS, **BACKBONES[name]["text_config"], "vocab_size": rows}
    settings = {**BACKBONES[name], "tie_word_embeddings": False, "text_config": text}
    if model_type == "internvl":
        vision = tiny_config().to_dict()["backbone_config"]["vision_config"]
        settings |= {"vision_config": vision, "image_seq_length": 4}
    settings["image_token_id"] = tokenizer.convert_tokens_to_ids(FAMILIES[model_type].tags.context)
    model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(model_type, **settings))
    randomize(model).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.state_dict()


def write_tracker(folder: Path, kind: str) -> dict[str, torch.Tensor]:
    model = randomize(AutoModel.from_config(tiny_mask_config(TRACKERS[kind])), seed=1)
    model.save_pretrained(folder)
    return model.state_dict()


def convert_parts(folder: Path, *parts: tuple[str, str], **others) -> Report:
    """Converts folders of `folder`, each given with its kind, and a small InstructBLIP to `folder/ours`."""
    questions, blip = folder / "questions", folder / "blip.safetensors"
    if not questions.is_dir():
        questions.mkdir()
        (questions / "vocab.txt").write_text("\n".join(foreign.BERT_WORDS) + "\n", encoding="utf-8")
        save_file(foreign.random_weights(foreign.instructblip_shapes(), seed=5), blip)
    sources = [(folder / name, kind) for name, kind in parts]
    if "into" not in others:
        sources, others = [*sources, (blip, "instructblip")], {"qformer_tokenizer": questions, **others}
    return convert(ConversionRequest(sources, folder / "ours", **others))


def load(folder: Path) -> SamaForConditionalGeneration:
    model, info = SamaForConditionalGeneration.from_pretrained(folder, dtype="auto", output_loading_info=True)
    assert not any(info.values()), info
    return model


@pytest.mark.parametrize(
    ("name", "tracker"), [("qwen3_vl", "edgetam"), ("internvl, qwen3", "sam3"), ("qwen2_5_vl", "sam2")]
)
def test_a_sama_starts_from_parts_of_transformers(tmp_path, name, tracker):
    backbone, masks = write_backbone(tmp_path / "vlm", name), write_tracker(tmp_path / "masks", tracker)
    report = convert_parts(tmp_path, ("vlm", name.partition(",")[0]), ("masks", tracker))
    model = load(tmp_path / "ours")
    state = model.state_dict()
    for key, tensor in backbone.items():
        own = key if key == "lm_head.weight" else key.replace("model.", "model.backbone.", 1)
        found = state[own]
        if "embed_tokens" in key or key == "lm_head.weight":
            tokens = model.config.seg_token_id  # the first of the new ones
            assert torch.allclose(found[tokens], tensor[:tokens].mean(0), atol=1e-6)
            found, tensor = found[:tokens], tensor[:tokens]
        assert torch.equal(found, tensor), own
    for key, tensor in masks.items():
        assert torch.equal(state[SAM + key], tensor), key
        if key.startswith("mask_decoder."):
            assert torch.equal(state[ORIGINAL_DECODER + key.removeprefix("mask_decoder.")], tensor)
    parts = (AGGREGATOR, "model.region_encoder.", "model.seg_projection.")
    spatial = (f"{AGGREGATOR}spatial_q", f"{AGGREGATOR}spatial_norm")  # from InstructBLIP
    assert set(report.fresh) == {key for key in state if key.startswith(parts) and not key.startswith(spatial)}
    assert model.config.mask_config.model_type == TRACKER_TYPES[tracker] and model.config.trained is False
    assert model.config.preset == "consistent" and model.config.seg_state == "after_norm"
    assert len(state["lm_head.weight"]) == max(len(backbone["lm_head.weight"]), model.config.seg_token_id + 5)
    processor = SamaProcessor.from_pretrained(tmp_path / "ours", trust_remote_code=True)
    sizes = processor.image_processor.size
    if "shortest_edge" in sizes:
        processor.image_processor.size = type(sizes)(shortest_edge=256, longest_edge=1024)
    chat = model.start_chat(processor, video=noise_video(3, 24, 40))
    assert chat.ask("what is the?", max_new_tokens=2, masks=False).tagged_text is not None


@pytest.fixture
def small_sam2(monkeypatch):
    """A small mask tracker where none is given."""
    config = tiny_mask_config("sam2.1").to_dict()
    monkeypatch.setattr(conversion_plan, "default_sam2_config", lambda: config)


def test_internvl_under_the_names_that_models_have(tmp_path, small_sam2):
    """`save_pretrained` keeps the names from before transformers 4.52, when the language model was a whole one."""
    backbone = write_backbone(tmp_path / "vlm", "internvl, llama")
    now = {"language_model.model.": "model.language_model.", "language_model.lm_head.": "lm_head.", "": "model."}
    weights, renamed = load_file(tmp_path / "vlm" / "model.safetensors"), {}
    for key, tensor in weights.items():
        prefix = next(prefix for prefix in now if key.startswith(prefix))
        renamed[now[prefix] + key.removeprefix(prefix)] = tensor
    assert set(renamed) == set(backbone) != set(weights)
    assert guess_kind(set(renamed)) == guess_kind(set(weights)) == "internvl"
    save_file(renamed, tmp_path / "vlm" / "model.safetensors", metadata={"format": "pt"})
    convert_parts(tmp_path, ("vlm", "internvl"))
    model = load(tmp_path / "ours")
    state, text = model.state_dict(), model.config.text_config
    for key in ("language_model.layers.1.mlp.up_proj.weight", "multi_modal_projector.linear_2.bias"):
        assert torch.equal(state[f"model.backbone.{key}"], backbone[f"model.{key}"])
    assert (text.model_type, text.rope_parameters["rope_theta"], text.head_dim) == ("llama", 5e5, 16)


def test_a_tracker_replaces_a_new_one(tmp_path, small_sam2):
    write_backbone(tmp_path / "vlm", "internvl")
    masks = write_tracker(tmp_path / "masks", "sam3")
    convert_parts(tmp_path, ("vlm", "internvl"))
    (tmp_path / "ours").rename(tmp_path / "start")
    report = convert_parts(tmp_path, ("masks", "sam3"), into=tmp_path / "start")
    state = load(tmp_path / "ours").state_dict()
    assert all(torch.equal(state[SAM + key], tensor) for key, tensor in masks.items())
    assert not any(name.startswith("model.mask_tracker.") for name in report.fresh)
    for folder, mean in (("start", [0.485, 0.456, 0.406]), ("ours", [0.5, 0.5, 0.5])):  # the pixels follow the tracker
        assert SamaProcessor.from_pretrained(tmp_path / folder, trust_remote_code=True).sam_image_mean == mean
    (tmp_path / "ours").rename(tmp_path / "complete")
    write_tracker(tmp_path / "others", "sam2")
    refuse(tmp_path, "is a sam2, but the checkpoint was trained with sam3_tracker_video", ("others", "sam2"),
           into=tmp_path / "complete")  # fmt: skip


def sam3_names(model: PreTrainedModel) -> dict[str, str]:
    """Names in a whole SAM 3, as published, of the tensors of its tracker."""
    names = {"vision_encoder.backbone.": "detector_model.vision_encoder.backbone."}
    names |= {"vision_encoder.neck.": "tracker_neck.", "": "tracker_model."}
    return {
        next(names[prefix] + key.removeprefix(prefix) for prefix in names if key.startswith(prefix)): key
        for key in model.state_dict()
    }


def test_the_tracker_of_a_whole_sam3(tmp_path):
    model = AutoModel.from_config(tiny_mask_config("sam3"))
    stored = sam3_names(model)
    others = ["detector_model.vision_encoder.neck.fpn_layers.0.proj1.weight", "detector_model.text_projection.weight"]
    keys = map_native_tracker([*stored, *others])
    assert {own.removeprefix(SAM): piece.keys for own, piece in keys.pieces.items() if own.startswith(SAM)} == {
        own: (key,) for key, own in stored.items()
    }
    assert list(keys.unused) == others and keys.unknown == []
    assert guess_kind({*stored, *others}) == guess_kind(set(model.state_dict())) == "sam3"
    whole = Sam3VideoConfig(tracker_config=model.config.to_dict()).to_dict()
    (tmp_path / "config.json").write_text(json.dumps(whole), encoding="utf-8")
    settings = native_tracker_config(tmp_path, "sam3")
    assert settings["model_type"] == "sam3_tracker_video" and settings["image_size"] == model.config.image_size


def test_either_name_of_the_random_positions_is_enough():
    own = set(AutoModel.from_config(tiny_mask_config("sam2.1")).state_dict())
    for absent in ("prompt_encoder.shared_embedding.", "shared_image_embedding."):
        stored = own - {f"{absent}positional_embedding"}
        keys = map_native_tracker(stored).pieces
        assert {name.removeprefix(SAM) for name in keys if name.startswith(SAM)} == own


def refuse(folder: Path, message: str, *parts: tuple[str, str], **others) -> None:
    with pytest.raises(CheckpointError, match=message):
        convert_parts(folder, *parts, **others)
    assert not (folder / "ours").exists()


def test_what_does_not_fit_is_refused(tmp_path):
    write_tracker(tmp_path / "masks", "sam2")
    with pytest.raises(CheckpointError, match="in transformers' format already"):
        convert(ConversionRequest([(tmp_path / "masks", "sam2")], tmp_path / "ours"))
    refuse(tmp_path, "looks like --kind sam2", ("masks", "sam3"))
    write_backbone(tmp_path / "vlm", "internvl")
    file = tmp_path / "masks" / "config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(settings | {"model_type": "sam2"}), encoding="utf-8")
    refuse(tmp_path, "describes a 'sam2', but these are the weights of a 'sam2_video'", ("vlm", "internvl"),
           ("masks", "sam2"))  # fmt: skip
    file.unlink()
    refuse(tmp_path, "config.json is missing", ("vlm", "internvl"), ("masks", "sam2"))
