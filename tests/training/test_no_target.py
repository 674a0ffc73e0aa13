"""Training on questions that nothing fits: samples without masks, alone and in a batch with others."""

import math

import pytest
import torch
from training_fixtures import save_checkpoint, toy_mixture, trainer_of


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.mark.parametrize(("batch_size", "steps"), [(1, 6), (6, 1)], ids=["alone", "in a batch"])
def test_they_train_the_text_and_no_masks(checkpoint, tmp_path, batch_size, steps):
    mixture, masks = toy_mixture(tmp_path, 6, tasks={"no_target": 1}), []
    options = {"max_steps": steps, "per_device_train_batch_size": batch_size, "save_strategy": "no", "warmup_steps": 0}
    trainer = trainer_of(checkpoint, mixture, tmp_path / "out", **options)
    trainer.model.register_forward_pre_hook(
        lambda _, args, inputs: masks.extend(len(target) for target in inputs["target_masks"]), with_kwargs=True
    )
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logged) == steps and len(masks) == 6 and 0 < masks.count(0) < 6
    assert all(math.isfinite(entry["loss"]) and entry["lm_loss"] > 0 for entry in logged)
    # A sample without masks adds nothing to the losses on masks
    expected = [count > 0 for count in masks] if batch_size == 1 else [True]
    assert [entry["mask_loss"] > 0 for entry in logged] == expected
    after = dict(trainer.model.named_parameters())
    assert all(after[name].isfinite().all() for name in before)
    assert any(not torch.equal(after[name], value) for name, value in before.items())
