"""Options of a conversion that would have no effect, and what a mask tracker lacks."""

import json
import re
from pathlib import Path

import foreign_checkpoints as foreign
import pytest
import torch
from safetensors.torch import save_file

from sama import configuration_sama
from sama.conversion.files import CheckpointError
from sama.conversion.plan import given_tracker_config
from sama.conversion.sources import ConversionRequest, Source, open_source, open_sources


SIZES = "--sizes describes a mask tracker as its authors store it"
TOKENIZER, QUESTIONS = "--tokenizer is that of a language model", "--qformer_tokenizer is that of a context aggregator"


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:
    """A folder with a file or folder of each kind, whose tensors have names alone."""
    folder = tmp_path_factory.mktemp("parts")
    names = {kind: foreign.release_shapes(kind) for kind in ("sama", "sa2va", "internvl")}
    names |= {"sam2": foreign.sam2_shapes(), "into": {"model.mask_tracker.sam.no_memory_embedding": (1,)}}
    names["native"] = {"no_memory_embedding": (1,), "shared_image_embedding.positional_embedding": (1,)}
    names["blip"] = foreign.instructblip_shapes()
    for name, shapes in names.items():
        (folder / name).mkdir()
        save_file({key: torch.zeros(1) for key in shapes}, folder / name / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("sources", "option", "message"),
    [
        (["into", "sam2"], "tokenizer", TOKENIZER),
        (["sam2"], "tokenizer", TOKENIZER),
        (["internvl"], "tokenizer", None),
        (["into", "sam2"], "qformer_tokenizer", QUESTIONS),
        (["sam2"], "qformer_tokenizer", QUESTIONS),
        (["sa2va"], "qformer_tokenizer", QUESTIONS),
        (["sa2va", "blip"], "qformer_tokenizer", None),
        (["sama"], "qformer_tokenizer", None),
        (["internvl"], "sizes", SIZES),
        (["internvl", "native"], "sizes", SIZES),
        (["into", "native"], "sizes", SIZES),
        (["into", "blip"], "sizes", SIZES),
        (["internvl", "sam2"], "sizes", None),
        (["into", "sam2"], "sizes", None),  # plan_into asks whether the checkpoint's own tracker is trained
        (["sa2va", "native"], "sizes", None),  # of the Sa2VA's own tracker
        (["sam2"], "sizes", None),
    ],
)
def test_options_without_effect_are_refused(parts, tmp_path, sources, option, message):
    kinds = {"native": "sam2", "blip": "instructblip"}
    into = parts / "into" if "into" in sources else None
    named = [(parts / name, kinds.get(name, name)) for name in sources if name != "into"]
    request = ConversionRequest(named, tmp_path / "ours", into=into, **{option: tmp_path})
    if message is None:
        open_sources(request)
        return
    with pytest.raises(CheckpointError, match=message):
        open_sources(request)


@pytest.fixture
def edgetam(tmp_path) -> Source:
    """An EdgeTAM in transformers' format, with the published image encoder and tensors that are names alone."""
    names = ("spatial_perceiver.latents_1d", "shared_image_embedding.positional_embedding")
    save_file({name: torch.zeros(1) for name in names}, tmp_path / "model.safetensors")
    settings = {"model_type": "edgetam_video", "vision_config": {"model_type": "edgetam_vision_model"}}
    (tmp_path / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    return open_source(tmp_path, "edgetam")


def test_a_missing_package_is_no_damage(edgetam, monkeypatch):
    monkeypatch.setattr(configuration_sama, "TRANSFORMERS", (5, 20))
    monkeypatch.setattr(configuration_sama, "is_timm_available", lambda: False)
    message = r"^EdgeTAM's image encoder, RepViT, comes from timm, which is not installed\. Run: pip install timm$"
    with pytest.raises(CheckpointError, match=message):
        given_tracker_config(edgetam, {})


def test_the_tracker_whose_settings_are_damaged_is_named(edgetam):
    settings = {"model_type": "edgetam_video", "vision_config": {"model_type": "sam2_vision_model"}, "image_size": "x"}
    (edgetam.folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(edgetam.folder))} has settings .* no model"):
        given_tracker_config(edgetam, {})
