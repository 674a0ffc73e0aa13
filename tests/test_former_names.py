"""Checkpoints of earlier versions, whose settings and parameters had other places, still load."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_model import tiny_model

from sama.configuration_sama import SamaConfig
from sama.modeling_sama import SamaForConditionalGeneration


def former_name(name: str) -> str:
    return name.replace("model.backbone.", "model.")


@pytest.fixture(scope="module")
def former(tmp_path_factory) -> tuple[SamaForConditionalGeneration, Path]:
    """A model, and the folder that version 0.2 would have written."""
    model, folder = tiny_model(), tmp_path_factory.mktemp("former")
    model.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    save_file(
        {former_name(name): tensor for name, tensor in weights.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    settings = json.loads((folder / "config.json").read_text())
    backbone, aggregator = settings.pop("backbone_config"), settings.pop("aggregator_config")
    for part in (backbone, aggregator):
        settings |= {name: value for name, value in part.items() if name not in settings and name != "model_type"}
    settings["sam_config"] = settings.pop("mask_config")
    (folder / "config.json").write_text(json.dumps(settings))
    return model, folder


def test_settings(former):
    model, folder = former
    loaded = SamaConfig.from_pretrained(folder)
    for part in ("backbone_config", "mask_config", "aggregator_config"):
        assert getattr(loaded, part).to_diff_dict() == getattr(model.config, part).to_diff_dict()


def test_weights(former):
    model, folder = former
    loaded, report = SamaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    found = loaded.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(found[name], tensor), name
    model.load_state_dict({former_name(name): tensor for name, tensor in found.items()})


def test_adapters(former, tmp_path):
    torch.manual_seed(0)
    settings = LoraConfig(target_modules=r".*\.language_model\..*\.q_proj", init_lora_weights=False)
    trained = get_peft_model(tiny_model(), settings)
    trained.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    save_file({former_name(name): tensor for name, tensor in weights.items()}, tmp_path / "adapter_model.safetensors")
    loaded = PeftModel.from_pretrained(tiny_model(), tmp_path)
    ids = torch.arange(1, 8)[None]
    # The rounding of matrix products may depend on memory alignment
    torch.testing.assert_close(loaded(input_ids=ids).logits, trained(input_ids=ids).logits, atol=1e-5, rtol=1e-5)


def test_settings_in_both_places_are_refused():
    with pytest.raises(ValueError, match="image_seq_length must stand in `backbone_config`"):
        SamaConfig(backbone_config={"model_type": "internvl"}, image_seq_length=4)


def test_a_backbone_that_transformers_does_not_know():
    with pytest.raises(ValueError, match=r"transformers 5\.\d+.* has no model of the type 'internvl9'"):
        SamaConfig(backbone_config={"model_type": "internvl9"})


def test_a_preset_that_does_not_exist_is_refused_when_it_is_set(former):
    with pytest.raises(ValueError, match="preset='publishd' is unknown, expected one of published, consistent"):
        SamaConfig.from_pretrained(former[1], preset="publishd")
    assert SamaConfig.from_pretrained(former[1], preset="release").preset == "published"
