"""The trainer: trained parts, normalization over an update, logging and failures."""

import errno
import os
import resource

import pytest
import torch
from processes import finish, start_group
from tiny_model import tiny_config, tiny_model
from training_fixtures import history, record_rank, record_run, save_checkpoint, toy_mixture, trainer_of
from transformers import TrainerCallback
from trl import ModelConfig

from sama.configuration_sama import SamaConfig
from sama.modeling_sama import SamaForConditionalGeneration
from sama.training.adapters import add_lora
from sama.training.parts import (
    PART_PREFIXES,
    PUBLISHED_PARTS,
    freeze_all_but,
    is_adapter,
    parameter_table,
    parse_parts,
    part_of,
    receives_gradient,
)
from sama.training.trainer import STAGING, TrainingError, find_checkpoint


TALK_AND_MASKS = {"dialogue": 1}
MASK_PARTS = ("seg_head", "mask_decoder")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")


class At(TrainerCallback):
    """Calls `action` at the beginning of an update."""

    def __init__(self, step: int, action):
        self.step, self.action = step, action

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step - 1:
            self.action()


def weights(model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def moved_parts(trainer) -> tuple[set[str], set[str]]:
    """Parts of which a run changed every parameter, and parts of which it changed some."""
    before = weights(trainer.model)
    trainer.train()
    after = weights(trainer.model)
    moved = {name: not torch.equal(before[name], after[name]) for name in before}
    reached = {name: change for name, change in moved.items() if receives_gradient(name, trainer.model.config)}
    each = {part: [change for name, change in reached.items() if part_of(name) == part] for part in PART_PREFIXES}
    some = {part_of(name) for name, change in moved.items() if change}
    return {part for part, changes in each.items() if changes and all(changes)}, some


# ---- parts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, set(PUBLISHED_PARTS)),
        ({"train_parts": "vision_tower,language_model"}, {"vision_tower", "language_model"}),
        ({"train_parts": "seg_head", "memory_training": True}, {"seg_head", "memory"}),
        ({"train_parts": "sam_encoder,prompt_encoder"}, {"sam_encoder", "prompt_encoder"}),
    ],
    ids=["published", "language", "memory", "sam"],
)
def test_trained_parts_move_and_frozen_ones_do_not(checkpoint, tmp_path, options, expected):
    settings = {"max_steps": 2, "warmup_steps": 0, "weight_decay": 0.1, "save_strategy": "no", **options}
    trainer = trainer_of(checkpoint, toy_mixture(tmp_path, 4, tasks={"dialogue": 1}), tmp_path / "out", **settings)
    all_changed, some_changed = moved_parts(trainer)
    assert some_changed == expected
    # A batch uses only some embedding rows and point types; weight decay changes the others
    assert all_changed == expected


def test_parameter_table_has_every_part(checkpoint, tmp_path):
    trainer = trainer_of(checkpoint, toy_mixture(tmp_path), tmp_path / "out")
    rows = {line.split()[0]: line.split()[1:] for line in parameter_table(trainer.model).splitlines()}
    assert set(rows) == {"part", "total", *PART_PREFIXES}
    assert {part for part, (trained, _) in rows.items() if trained not in ("0", "trained")} == {
        *PUBLISHED_PARTS,
        "total",
    }
    total = sum(parameter.numel() for parameter in trainer.model.parameters())
    assert sum(int(number.replace(",", "")) for number in rows["total"]) == total


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("decoder", "decoder, expected some of vision_tower"),
        ("", "no parts"),
        ("memory", "memory_training"),
        ("all,memory", "memory_training"),
    ],
)
def test_unknown_parts_are_an_error(names, message):
    with pytest.raises(ValueError, match=message):
        parse_parts(names)


def test_all_parts_and_memory():
    assert set(parse_parts("all")) == set(PART_PREFIXES) - {"memory"}
    assert set(parse_parts("all", memory_training=True)) == set(PART_PREFIXES)
    assert parse_parts("seg_head, projector") == ("seg_head", "projector")


def test_heads_without_a_loss_are_an_error(checkpoint, tmp_path):
    with pytest.raises(ValueError, match="sam_heads.*iou_loss_coefficient"):
        trainer_of(checkpoint, toy_mixture(tmp_path), tmp_path / "out", train_parts="sam_heads")


def test_parts_that_a_model_does_not_have_are_named():
    """A Sa2VA has no aggregator."""
    settings = tiny_config().to_dict() | {"aggregator_config": None, "region_prompts": "none"}
    model = SamaForConditionalGeneration(SamaConfig(**settings))
    with pytest.raises(ValueError, match="train_parts has aggregator, which this model does not have; its parts are "):
        freeze_all_but(model, PUBLISHED_PARTS)
    freeze_all_but(model, parse_parts("all"))
    assert set(MASK_PARTS) < {part_of(name) for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("parts", [MASK_PARTS, (*MASK_PARTS, "sam_heads")])
def test_lora_trains_the_heads_of_sam_only_if_they_are_named(parts):
    """PEFT saves them with the mask decoder in any case."""
    model = tiny_model(iou_loss_coefficient=1.0, presence_loss_coefficient=1.0)
    model = add_lora(model, ModelConfig(use_peft=True, lora_r=2), parts)
    freeze_all_but(model, parts)
    named = [(name, p) for name, p in model.named_parameters() if not is_adapter(name)]
    assert {part_of(name) for name, parameter in named if parameter.requires_grad} == set(parts)


# ---- totals of an update --------------------------------------------------------------------------------------------


CASES = [
    {
        "train_parts": "aggregator,seg_head,mask_decoder,projector,language_model,vision_tower",
        "memory_training": True,
    },
]


def assert_same_run(found: dict, expected: dict) -> None:
    assert len(found["gradients"]) == len(expected["gradients"]) == 2
    for mine, theirs in zip(found["logged"], expected["logged"], strict=True):
        for name in ("loss", "lm_loss", "mask_loss", "dice_loss", "token_accuracy", "seg_accuracy", "mask_iou"):
            assert mine[name] == pytest.approx(theirs[name], abs=1e-5), name
    for mine, theirs in zip(found["gradients"], expected["gradients"], strict=True):
        assert mine.keys() == theirs.keys()
        assert max(gradient.abs().max() for gradient in theirs.values()) > 1e-2
        for name in mine:
            torch.testing.assert_close(
                mine[name], theirs[name], atol=1e-5, rtol=1e-5, msg=lambda m, n=name: f"{n} {m}"
            )


def test_batches_accumulation_and_processes_agree(checkpoint, tmp_path):
    """Batch 4, accumulating 2 x 2, and 2 processes x 2, where one half is text only."""
    mixture = toy_mixture(tmp_path, samples=2, texts=2, tasks={"dialogue": 1})
    shared = {"num_train_epochs": 2, "learning_rate": 1e-2, "warmup_steps": 0}
    options = [{**shared, **case, "per_device_train_batch_size": 2} for case in CASES]
    log = tmp_path / "log.txt"
    for process in start_group(log, record_rank, checkpoint, mixture, tmp_path, options):
        finish(process, log)
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    for number, case in enumerate(CASES):
        run = {**shared, **case}
        whole = record_run(checkpoint, mixture, tmp_path / "whole", per_device_train_batch_size=4, **run)
        halves = record_run(
            checkpoint, mixture, tmp_path / "h", per_device_train_batch_size=2, gradient_accumulation_steps=2, **run
        )
        assert whole["world_size"] == 1 and whole["batches_without_masks"] == 0
        assert halves["batches_without_masks"] == 2
        assert_same_run(halves, whole)
        for rank in ranks:
            assert (rank[number]["wrapper"], rank[number]["world_size"]) == ("DistributedDataParallel", 2)
            assert_same_run(rank[number], whole)
        assert sum(rank[number]["batches_without_masks"] for rank in ranks) == 2


def test_log_has_the_losses_and_their_sum(checkpoint, tmp_path):
    trainer = trainer_of(checkpoint, toy_mixture(tmp_path), tmp_path / "out", max_steps=4, logging_steps=2)
    trainer.train()
    for entry in [entry for entry in trainer.state.log_history if "loss" in entry]:
        config = trainer.model.config
        total = config.mask_loss_coefficient * entry["mask_loss"] + config.dice_loss_coefficient * entry["dice_loss"]
        assert entry["loss"] == pytest.approx(entry["lm_loss"] + total, rel=1e-5)
        assert all(0 <= entry[name] <= 1 for name in ("token_accuracy", "seg_accuracy", "mask_iou"))
        assert not {"iou_loss", "presence_loss"} & set(entry)


def test_accuracy_counts_labels(checkpoint, tmp_path):
    trainer = trainer_of(checkpoint, toy_mixture(tmp_path), tmp_path / "out")
    seg = trainer.model.config.seg_token_id
    labels = torch.tensor([[-100, 5, seg, -100], [7, 6, seg, 8]])  # position 0 is never predicted
    logits = torch.nn.functional.one_hot(torch.tensor([5, seg, 6, 1, 2]), 300).float()
    losses = {name: torch.tensor(1.0) for name in ("lm_loss", "mask_loss", "dice_loss")}
    output = type(trainer.model(input_ids=labels.clamp(min=0)))(
        logits=logits, mask_iou=torch.tensor([0.5, 0.7]), **losses
    )
    trainer.accumulate_metrics(output, labels)
    trainer.state.global_step, trainer.last_logged = 1, 0
    logs = {"loss": 3.0}
    trainer.log(logs)
    assert (logs["token_accuracy"], logs["seg_accuracy"]) == pytest.approx((3 / 5, 1 / 2))
    assert logs["mask_iou"] == pytest.approx(0.6) and logs["dice_loss"] == 1


# ---- faults ---------------------------------------------------------------------------------------------------------


def test_resuming_with_another_order_of_samples_is_an_error(checkpoint, tmp_path):
    mixture = toy_mixture(tmp_path)
    trainer_of(checkpoint, mixture, tmp_path / "out", max_steps=2, save_steps=2).train()
    trainer = trainer_of(checkpoint, mixture, tmp_path / "out", max_steps=2, per_device_train_batch_size=4)
    with pytest.raises(TrainingError, match="per_device_train_batch_size was 2 and is 4"):
        trainer.train(resume_from_checkpoint=True)


def test_resuming_without_a_checkpoint_is_an_error(checkpoint, tmp_path):
    with pytest.raises(TrainingError, match="no complete checkpoint"):
        trainer_of(checkpoint, toy_mixture(tmp_path), tmp_path / "out").train(resume_from_checkpoint=True)


def test_nan_loss_stops_the_run(checkpoint, tmp_path):
    trainer = trainer_of(checkpoint, toy_mixture(tmp_path), tmp_path / "out", max_steps=2, save_steps=1)
    broken = trainer.model.model.backbone.multi_modal_projector.linear_1.weight
    trainer.add_callback(At(2, lambda: broken.data.fill_(float("nan"))))
    with pytest.raises(TrainingError, match=r"step 2: the loss is nan \(lm_loss nan.*checkpoint-1\."):
        trainer.train()
    assert find_checkpoint(tmp_path / "out").name == "checkpoint-1"


def test_nan_gradient_stops_the_run(checkpoint, tmp_path):
    trainer = trainer_of(checkpoint, toy_mixture(tmp_path), tmp_path / "out", max_steps=4)
    trainer.model.model.backbone.multi_modal_projector.linear_1.weight.register_hook(
        lambda gradient: gradient * float("nan")
    )
    before = weights(trainer.model)
    with pytest.raises(TrainingError, match=r"step 1: the gradient norm is nan. There is no checkpoint yet\."):
        trainer.train()
    assert all(torch.equal(parameter, before[name]) for name, parameter in trainer.model.named_parameters())


def fill_disk(monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", full)


def limit_files(monkeypatch):
    """Limits files to 100 kB, so that the weights are truncated as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    monkeypatch.setattr(At, "restore", lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard)), raising=False)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))


@pytest.mark.parametrize("break_disk", [fill_disk, limit_files])
def test_full_disk_stops_the_run_and_keeps_the_last_checkpoint(checkpoint, tmp_path, monkeypatch, break_disk):
    trainer = trainer_of(checkpoint, toy_mixture(tmp_path), tmp_path / "out", max_steps=2, save_steps=1)
    trainer.add_callback(At(2, lambda: break_disk(monkeypatch)))
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(TrainingError, match=r"checkpoint-2 could not be written \(.*checkpoint-1\."):
            trainer.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        monkeypatch.undo()
    found = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert STAGING not in found and "checkpoint-2" not in found
    trainer = trainer_of(checkpoint, toy_mixture(tmp_path), tmp_path / "out", max_steps=2, save_steps=1)
    trainer.train(resume_from_checkpoint=True)
    assert find_checkpoint(tmp_path / "out").name == "checkpoint-2"


def test_old_checkpoints_are_deleted(checkpoint, tmp_path):
    options = {"max_steps": 3, "save_steps": 1, "save_total_limit": 2}
    trainer_of(checkpoint, toy_mixture(tmp_path), tmp_path / "out", **options).train()
    assert sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]
    assert len(history(tmp_path / "out" / "checkpoint-3")) == 3
