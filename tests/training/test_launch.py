"""What the training programs share: messages in one line, and the card of a run that was killed at its end."""

import json

import pytest
from torch.utils.data import DataLoader, Dataset
from training_fixtures import flags, save_checkpoint, toy_mixture

from sama import train
from sama.data.records import DataError
from sama.training.launch import sentence_of


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
