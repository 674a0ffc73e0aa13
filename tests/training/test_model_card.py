"""Model cards of full models, adapters and untrained models."""

import json

from huggingface_hub import ModelCard

from sama.training.model_card import model_card


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
    data = ModelCard(model_card(tmp_path, "me/toy", "mit")).data
    assert (data.license, data.library_name, data.base_model) == ("mit", "peft", "you/base")
