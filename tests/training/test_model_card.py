"""Model cards of full models, adapters and untrained models."""

import json

import pytest
from huggingface_hub import ModelCard

from sama.data.model_cards import card_metadata, hub_name
from sama.training.model_card import inherited_license, model_card, write_model_card


def test_card_of_a_trained_model(tmp_path):
    state = {"log_history": [{"loss": 9.0, "step": 1}, {"loss": 2.5, "mask_iou": 0.5, "step": 7}, {"runtime": 3}]}
    mixture = {"sources": {"toy_train": {"weight": 1.0, "records": 4000}}}
    for name, content in {"config": {"trained": True}, "trainer_state": state, "mixture": mixture}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    card = model_card(tmp_path, "me/toy", "mit")
    for line in ("# toy", "| toy_train | 1.0 | 4000 |", "| loss | 2.5000 |", "| mask iou | 0.5000 |", "at step 7"):
        assert line in card
    assert "untrained" not in card and ModelCard(card).data.library_name == "transformers"


def test_card_of_an_untrained_model(tmp_path):
    (tmp_path / "config.json").write_text('{"trained": false}', encoding="utf-8")
    card = model_card(tmp_path, "me/toy", "mit")
    assert "untrained" in card and "not recorded" in card and "No training log" in card


def test_card_of_an_adapter(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "you/base"}', encoding="utf-8")
    card = model_card(tmp_path, "me/toy", "mit")
    data = ModelCard(card).data
    assert 'AutoModel.from_pretrained("you/base", trust_remote_code=True), "me/toy")' in card
    assert (data.license, data.library_name, data.base_model) == ("mit", "peft", "you/base")


def test_a_model_inherits_licence_and_origin(tmp_path):
    base, tuned, adapter = (tmp_path / name for name in ("base", "tuned", "adapter"))
    for folder in (base, tuned, adapter):
        folder.mkdir()
    (base / "README.md").write_text("---\nlicense: creativeml-openrail-m\nbase_model: [them/sama]\n---\n# Base\n")
    write_model_card(tuned, str(base))
    data = ModelCard.load(tuned / "README.md").data
    assert (data.license, data.base_model) == ("creativeml-openrail-m", "them/sama")
    assert inherited_license(tuned) == "creativeml-openrail-m"
    assert str(tmp_path) not in (tuned / "README.md").read_text()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    (adapter / "README.md").write_text(
        f"---\nbase_model: {base}\nlibrary_name: peft\n---\n# Model Card for Model ID\n"
    )
    assert inherited_license(adapter) == "creativeml-openrail-m"
    write_model_card(adapter, str(base))
    card = (adapter / "README.md").read_text()
    assert "Model ID" not in card and ModelCard(card).data.base_model == "them/sama"
    assert 'AutoModel.from_pretrained("FOLDER_OF_THE_MODEL_THAT_IT_WAS_TRAINED_ON"' in card, "them/sama is not SAMA"


def test_a_licence_that_nobody_named_is_not_invented(tmp_path):
    write_model_card(tmp_path, "elsewhere/model")
    assert "license" not in card_metadata(tmp_path) and inherited_license(tmp_path) is None
    assert card_metadata(tmp_path)["base_model"] == "elsewhere/model"


def test_names_on_the_hub(tmp_path):
    assert hub_name("me/sama") == "me/sama" and hub_name("./me/sama") is None and hub_name("/a/b") is None
    assert hub_name("cache/models--me--sama/snapshots/0a1b") == "me/sama"
    assert hub_name(tmp_path) is None
    (tmp_path / "README.md").write_bytes(b"---\n\xff: [")
    assert card_metadata(tmp_path) == {}
    (tmp_path / "README.md").write_text("---\ndate: 2024-13-01\n---\n")  # ValueError, not YAMLError
    assert card_metadata(tmp_path) == {}


def test_a_damaged_file_is_one_sentence_with_its_name(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"adapter_config\.json cannot be read"):
        inherited_license(tmp_path)
