"""A merged model gives the same outputs as the base model with the adapter."""

import sys

import pytest
import torch
from processor_fixtures import tiny_processor
from tiny_model import tiny_model
from transformers import AutoModel
from trl import ModelConfig

from sama.modeling_sama import SamaForConditionalGeneration
from sama.processing_sama import SamaProcessor
from sama.scripts.merge_lora import main, merge
from sama.training.adapters import add_lora


@pytest.fixture
def trained(tmp_path):
    """A base model, and an adapter with fully trained parts."""
    processor = tiny_processor()
    ids = {"image_token_id": processor.image_token_id, "seg_token_id": processor.seg_token_id}
    tiny_model(**ids).save_pretrained(tmp_path / "base")
    model = tiny_model(**ids)
    model.config._name_or_path = model.name_or_path = str(tmp_path / "base")
    model = add_lora(model, ModelConfig(use_peft=True, lora_r=4), ["aggregator", "seg_head"])
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name or ".modules_to_save." in name:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(tmp_path / "adapter")
    processor.save_pretrained(tmp_path / "adapter")
    return model.eval(), tmp_path


def test_merged_model_computes_the_same(trained):
    model, folder = trained
    merge(folder / "adapter", folder / "merged", str(folder / "base"))
    merged = AutoModel.from_pretrained(folder / "merged", trust_remote_code=True)
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        expected, plain = model(input_ids=ids).logits, tiny_model()(input_ids=ids).logits
        found = merged(input_ids=ids).logits
        states = torch.ones(1, 32)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
        assert not torch.allclose(found, plain, atol=1e-3)
        torch.testing.assert_close(
            merged.project_seg_states(states), model.base_model.model.project_seg_states(states), atol=1e-5, rtol=1e-4
        )
    assert merged.config.trained and not any("lora" in name for name in merged.state_dict())
    assert SamaProcessor.from_pretrained(folder / "merged").tokenizer is not None


def test_the_adapter_names_its_base(trained, monkeypatch, capsys):
    _, folder = trained
    arguments = ["merge_lora.py", str(folder / "adapter"), str(folder / "merged"), "--dtype", "bfloat16"]
    monkeypatch.setattr(sys, "argv", arguments)
    (folder / "adapter" / "trainer_state.json").write_text('{"log_history": [{"loss": 2.5, "step": 7}]}')
    (folder / "adapter" / "mixture.json").write_text('{"sources": {"mine": {"weight": 10, "records": 40}}}')
    (folder / "base" / "README.md").write_text("---\nlicense: creativeml-openrail-m\nbase_model: them/sama\n---\n")
    main()
    assert "merged" in capsys.readouterr().out
    card = (folder / "merged" / "README.md").read_text()
    for line in ("| mine | 10 | 40 |", "step 7", "base_model: them/sama", "license: creativeml-openrail-m"):
        assert line in card
    merged = AutoModel.from_pretrained(folder / "merged", trust_remote_code=True, dtype="auto")
    assert merged.dtype == torch.bfloat16
    with pytest.raises(SystemExit):
        main()
    assert "already contains a model" in capsys.readouterr().err


def test_folder_without_adapter_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"adapter_config\.json does not exist.*--use_peft"):
        merge(tmp_path, tmp_path / "merged")


def test_a_failed_merge_leaves_nothing_behind(trained, monkeypatch):
    """What it left would be refused as a model by the next attempt."""
    adapter, merged, base = (trained[1] / name for name in ("adapter", "merged", "base"))
    whole = SamaProcessor.save_pretrained

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SamaProcessor, "save_pretrained", full_disk)
    with pytest.raises(OSError, match="No space left"):
        merge(adapter, merged, str(base))
    assert sorted(path.name for path in trained[1].iterdir()) == ["adapter", "base"]
    monkeypatch.setattr(SamaProcessor, "save_pretrained", whole)
    merge(adapter, merged, str(base))
    assert (merged / "README.md").read_text().splitlines().count("# merged") == 1


def test_a_damaged_processor_is_found_before_the_model_is_loaded(trained, monkeypatch):
    monkeypatch.setattr(SamaForConditionalGeneration, "from_pretrained", lambda *_, **__: pytest.fail("was loaded"))
    (trained[1] / "adapter" / "tokenizer.json").write_text("{")
    with pytest.raises(Exception, match="(?i)expecting|EOF|json"):
        merge(trained[1] / "adapter", trained[1] / "merged", str(trained[1] / "base"))


def test_a_folder_with_files_is_refused(trained):
    (trained[1] / "merged").mkdir()
    (trained[1] / "merged" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="merged is not empty; give a folder that does not exist yet"):
        merge(trained[1] / "adapter", trained[1] / "merged", str(trained[1] / "base"))


def test_a_base_that_has_moved_is_one_sentence(trained, tmp_path, capsys, monkeypatch):
    arguments = [str(trained[1] / "adapter"), str(tmp_path / "merged"), "--base", str(tmp_path / "nowhere")]
    monkeypatch.setattr(sys, "argv", ["merge_lora.py", *arguments])
    with pytest.raises(SystemExit):
        main()
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("merge_lora.py: error: ") and "nowhere" in error
