"""What the training programs share: messages in one line, and the card of a run that was killed at its end."""

import json

import pytest
import torch
from torch.utils.data import DataLoader, Dataset
from training_fixtures import flags, save_checkpoint, toy_mixture, trainer_of
from transformers import TrainingArguments

from sama import train
from sama.data.records import DataError
from sama.training.arguments import SamaTrainingArguments
from sama.training.checkpoints import TrainingError
from sama.training.launch import load_model, sentence_of
from sama.training.parts import base_name, is_adapter, part_of


ERROR = DataError("is missing", source="mine", index="line 3", field="messages")


class Broken(Dataset):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int):
        raise ERROR


def test_an_error_in_a_loader_worker_is_the_same_sentence():
    """torch adds the traceback of the worker to the message."""
    with pytest.raises(DataError) as told:
        next(iter(DataLoader(Broken(), num_workers=1)))
    assert "Traceback" in str(told.value)
    assert sentence_of(told.value) == sentence_of(ERROR) == str(ERROR)


def test_a_card_that_a_killed_run_did_not_write_is_written(tmp_path, capsys):
    checkpoint = save_checkpoint(tmp_path / "checkpoint")
    words = flags(checkpoint, toy_mixture(tmp_path, samples=2), tmp_path / "out", max_steps=1)
    assert train.main(words) == 0
    card = tmp_path / "out" / "README.md"
    written = card.read_text()
    card.unlink()
    assert train.main(words) == 0 and "finished" in capsys.readouterr().out
    assert card.read_text() == written and json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    card.write_text("---\ntags: [sama]\n---\nMine.\n")
    assert train.main(words) == 0 and card.read_text().endswith("Mine.\n")  # what people changed stays


def test_modules_that_the_user_saves_with_lora_are_trained_and_saved_beside_the_parts(tmp_path):
    from peft import get_peft_model_state_dict

    checkpoint = save_checkpoint(tmp_path / "checkpoint")
    options = {"use_peft": True, "lora_modules_to_save": "lm_head", "train_parts": "aggregator,seg_head"}
    training, _, model_options = train.parse(flags(checkpoint, tmp_path / "unread.yaml", tmp_path / "out", **options))
    model = load_model(model_options, training)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    whole = {base_name(name) for name in trained if not is_adapter(name)}
    assert whole == {base_name(name) for name in get_peft_model_state_dict(model) if not is_adapter(name)}
    assert {name for name in whole if part_of(name) not in ("aggregator", "seg_head")} == {"lm_head.weight"}
    assert {part_of(name) for name in whole} == {"language_model", "aggregator", "seg_head"}


def test_a_mixture_that_gives_some_process_no_batch_is_refused(tmp_path, monkeypatch):
    arguments = (save_checkpoint(tmp_path / "checkpoint"), toy_mixture(tmp_path, samples=3), tmp_path / "out")
    monkeypatch.setattr(SamaTrainingArguments, "world_size", property(lambda self: 2))
    with pytest.raises(TrainingError, match="has 3 samples, fewer than the 4 that 2 processes read at once, 2 each"):
        trainer_of(*arguments, per_device_train_batch_size=2)


@pytest.mark.parametrize(
    ("name", "value"),
    [("label_smoothing_factor", 0.1), ("train_sampling_strategy", "sequential"), ("dataloader_drop_last", True)],
)
def test_settings_that_would_change_nothing_are_refused(tmp_path, name, value):
    with pytest.raises(ValueError, match=f"{name} is {value!r}, but this training does not use it"):
        SamaTrainingArguments(output_dir=str(tmp_path), **{name: value})


def test_one_process_uses_one_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(SamaTrainingArguments, "n_gpu", property(lambda self: 2))
    with pytest.raises(ValueError, match="one process sees 2 GPUs: start one for each with `accelerate launch`"):
        SamaTrainingArguments(output_dir=str(tmp_path), use_cpu=True)


@pytest.mark.parametrize("fp16", [True, False])
def test_bfloat16_is_the_default_of_gpus_unless_float16_is_given(tmp_path, monkeypatch, fp16):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(TrainingArguments, "__post_init__", lambda self: None)  # it would move to the GPU
    monkeypatch.setattr(TrainingArguments, "n_gpu", 1)
    assert SamaTrainingArguments(output_dir=str(tmp_path), fp16=fp16).bf16 is not fp16
