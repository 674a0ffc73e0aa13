"""train.py from the command line: output folder, killed and stopped runs, broken samples, LoRA."""

import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
import yaml
from data_fixtures import CONFIGS
from fixture_sources import FIXTURES
from processes import finish, run_script, start
from training_fixtures import flags, history, save_checkpoint, toy_mixture, train_until_renamed
from transformers import AutoModel, AutoProcessor

from sama import train
from sama.modeling_sama import SamaForConditionalGeneration
from sama.training.arguments import SamaTrainingArguments
from sama.training.output_lock import lock_output
from sama.training.trainer import STAGING, SamaTrainer, find_checkpoint


ROOT = Path(__file__).parent.parent
NAMES = ("loss", "lm_loss", "mask_loss", "dice_loss", "token_accuracy", "mask_iou", "learning_rate", "grad_norm")
STEPS = {"max_steps": 6, "save_steps": 2, "per_device_train_batch_size": 2}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture(scope="module")
def whole_run(checkpoint, tmp_path_factory):
    """Six uninterrupted updates, more than one epoch: the output folder and the mixture."""
    folder = tmp_path_factory.mktemp("whole")
    mixture = toy_mixture(folder, samples=7)
    assert train.main(flags(checkpoint, mixture, folder / "out", **STEPS)) == 0
    return folder / "out", mixture


def assert_same_curve(found: Path, expected: Path) -> None:
    mine, theirs = history(found), history(expected)
    assert [entry["step"] for entry in mine] == [entry["step"] for entry in theirs] == list(range(1, 7))
    for one, other in zip(mine, theirs, strict=True):
        # Not bit-exact: sums depend on memory alignment
        expected = {name: pytest.approx(other[name], rel=1e-4, abs=1e-5) for name in NAMES if name in other}
        assert {name: one[name] for name in NAMES if name in one} == expected


def test_command_line_trains_and_saves(tmp_path, monkeypatch):
    """The README's command with the shipped checkpoint; command-line flags override the config file."""
    config = {
        "model_name_or_path": str(ROOT / "checkpoints" / "sama-tiny"),
        "mixture": str(CONFIGS / "toy.yaml"),
        "output_dir": str(tmp_path / "out"),
        "max_steps": 50,
        "learning_rate": 0.002,
        "use_cpu": True,
        "logging_steps": 1,
        "dataloader_num_workers": 0,
        "per_device_train_batch_size": 1,
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path)
    log = tmp_path / "log.txt"
    finish(start(log, run_script, ROOT / "train.py", "--config", tmp_path / "run.yaml", "--max_steps", "2"), log)
    printed = log.read_text(encoding="utf-8")
    assert "mask_decoder" in printed and "toy_train" in printed
    logged = history(tmp_path / "out")
    assert len(logged) == 2
    assert {"lm_loss", "mask_loss", "dice_loss", "token_accuracy", "grad_norm"} <= set(logged[0])
    assert any({"seg_accuracy", "mask_iou"} <= set(entry) for entry in logged)
    assert json.loads((tmp_path / "out" / "mixture.json").read_text())["samples"] == 20000
    assert list((tmp_path / "out" / "runs").rglob("events*"))
    model = AutoModel.from_pretrained(tmp_path / "out", trust_remote_code=True)
    model.check_processor(AutoProcessor.from_pretrained(tmp_path / "out", trust_remote_code=True))
    assert type(model).__module__.startswith("transformers_modules") and model.config.trained


def test_defaults_are_the_published_recipe(tmp_path):
    training = SamaTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    assert (training.learning_rate, training.weight_decay, training.max_grad_norm) == (4e-5, 0.05, 1.0)
    assert (training.adam_beta1, training.adam_beta2, training.lr_scheduler_type) == (0.9, 0.999, "cosine")
    assert training.get_warmup_steps(1000) == 50 and not training.bf16
    assert training.parts == ("aggregator", "seg_head", "mask_decoder", "projector")


def test_killed_run_resumes_with_identical_losses(checkpoint, whole_run, tmp_path):
    expected, mixture = whole_run
    arguments = flags(checkpoint, mixture, tmp_path / "out", **STEPS)
    process = start(tmp_path / "log.txt", train_until_renamed, "checkpoint-4", arguments)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert (tmp_path / "out" / STAGING / "checkpoint-4" / "model.safetensors").is_file()
    assert find_checkpoint(tmp_path / "out").name == "checkpoint-2"
    assert train.main([*arguments, "--resume_from_checkpoint", "last"]) == 0
    assert_same_curve(tmp_path / "out", expected)
    assert not (tmp_path / "out" / STAGING).exists()
    one, other = (
        SamaForConditionalGeneration.from_pretrained(path).state_dict() for path in (tmp_path / "out", expected)
    )
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=1e-5, rtol=1e-3)


def test_sigterm_saves_and_exits(checkpoint, whole_run, tmp_path, monkeypatch, capsys):
    expected, mixture = whole_run
    arguments = flags(checkpoint, mixture, tmp_path / "out", **STEPS, dataloader_num_workers=1)
    original = SamaTrainer.training_step

    def terminated(self, *args, **kwargs):
        if self.state.global_step == 2:
            workers = [process.pid for process in multiprocessing.active_children()]
            assert workers  # schedulers send it to workers too
            for process in [*workers, os.getpid()]:
                os.kill(process, signal.SIGTERM)
        return original(self, *args, **kwargs)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(SamaTrainer, "training_step", terminated)
    assert train.main(arguments) == train.TERMINATED
    assert "checkpoint-3" in capsys.readouterr().out and signal.getsignal(signal.SIGTERM) is before
    assert find_checkpoint(tmp_path / "out").name == "checkpoint-3"
    assert not (tmp_path / "out" / "model.safetensors").exists()
    monkeypatch.undo()
    assert train.main([*arguments, "--resume_from_checkpoint", "last"]) == 0
    assert_same_curve(tmp_path / "out", expected)


@pytest.fixture
def copied_run(checkpoint, whole_run, tmp_path):
    """A copy of the whole run's output folder, and a function that runs its command with other options."""
    shutil.copytree(whole_run[0], tmp_path / "out")

    def again(**options) -> int:
        return train.main(flags(checkpoint, whole_run[1], tmp_path / "out", **{**STEPS, **options}))

    return tmp_path / "out", again


def state_of(folder: Path) -> dict[str, int]:
    """The time of the last change of each file."""
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_finished_run_is_finished(copied_run, capsys):
    folder, again = copied_run
    before = state_of(folder)
    for options in ({}, {"resume_from_checkpoint": "last"}):
        assert again(**options) == 0
        assert f"This run is finished: 6 updates, the model is in {folder}" in capsys.readouterr().out
    assert again(learning_rate=5e-4, resume_from_checkpoint="last") == 1
    error = capsys.readouterr().err
    assert "a finished run with other data or settings: learning_rate was 0.001 and is 0.0005. Choose" in error
    assert state_of(folder) == before


def test_a_run_killed_before_its_model_was_saved_trains_no_further_step(copied_run, whole_run, capsys):
    folder, again = copied_run
    weights = (folder / "model.safetensors").read_bytes()
    for name in ("model.safetensors", "trainer_state.json"):
        (folder / name).unlink()
    assert again() == 1
    assert "holds checkpoints of an earlier run, the newest checkpoint-6" in capsys.readouterr().err
    assert again(resume_from_checkpoint="last") == 0
    assert_same_curve(folder, whole_run[0])
    assert (folder / "model.safetensors").read_bytes() == weights


def test_a_truncated_checkpoint_is_passed_over(copied_run, whole_run, capsys):
    folder, again = copied_run
    (folder / "trainer_state.json").unlink()
    path = folder / "checkpoint-6" / "optimizer.pt"
    path.write_bytes(path.read_bytes()[:-100])
    assert again(resume_from_checkpoint="last") == 0
    assert f"Resuming from {folder / 'checkpoint-4'}" in capsys.readouterr().out
    assert_same_curve(folder, whole_run[0])
    assert find_checkpoint(folder).name == "checkpoint-6"  # written anew
    for name in ("checkpoint-2", "checkpoint-4", "checkpoint-6"):
        (folder / name / "rng_state.pth").unlink()
    (folder / "trainer_state.json").unlink()
    assert again(resume_from_checkpoint="last") == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert all(f"{folder / name} lacks rng_state.pth" in error for name in ("checkpoint-2", "checkpoint-4"))
    assert error.endswith("none is whole")


def test_other_settings_are_refused_or_accepted(copied_run, whole_run, capsys):
    folder, again = copied_run
    (folder / "trainer_state.json").unlink()
    before = state_of(folder)
    resumed = {"resume_from_checkpoint": folder / "checkpoint-4"}
    for options, told in (
        ({"learning_rate": 5e-4}, "learning_rate was 0.001 and is 0.0005. Resume with the values"),
        (
            {"gradient_accumulation_steps": 2, "accept_changes": True},
            "gradient_accumulation_steps was 1 and is 2. The order of samples cannot",
        ),
        (
            {"per_device_train_batch_size": 1},
            "per_device_train_batch_size was 2 and is 1. The order of samples cannot",
        ),
        (
            {"train_parts": "language_model", "accept_changes": True},
            "The saved state of the optimizer (train_parts was ",
        ),
        ({"optim": "sgd", "accept_changes": True}, '(optim was "adamw_torch_fused" and is "sgd") cannot continue'),
        ({"seed": 3, "accept_changes": True}, "seed was 42 and is 3; mixture.seed was 42 and is 3. The order of"),
    ):
        assert again(**resumed, **options) == 1
        assert told in capsys.readouterr().err
    assert state_of(folder) == before
    changes = {"learning_rate": 5e-4, "weight_decay": 0.2, "adam_beta1": 0.8, "save_steps": 5}
    assert again(**resumed, **changes, accept_changes=True) == 0
    rates, before = ([entry["learning_rate"] for entry in history(one)] for one in (folder, whole_run[0]))
    assert rates == [*before[:4], *(rate / 2 for rate in before[4:])] and before[4] > 0
    saved = torch.load(folder / "checkpoint-5" / "optimizer.pt")["param_groups"][0]
    assert (saved["initial_lr"], saved["weight_decay"], *saved["betas"]) == (5e-4, 0.2, 0.8, 0.999)


def test_a_run_from_another_model_is_not_finished(copied_run, checkpoint, tmp_path, capsys):
    folder, again = copied_run
    shutil.copytree(checkpoint, tmp_path / "other")
    assert again(model_name_or_path=tmp_path / "other") == 1
    assert "a finished run with other data or settings: model_name_or_path was" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"resume_from_checkpoint": "absent"}, "the checkpoint absent does not exist"),
        ({"resume_from_checkpoint": __file__}, "test_train.py is a file, not the folder of a checkpoint"),
        ({"output_dir": __file__}, "test_train.py cannot be written"),
        ({"output_dir": "/proc/sama"}, "/proc/sama cannot be written"),
        ({"model_name_or_path": "/absent"}, "/absent"),
        ({"mixture": "/absent.yaml"}, "absent.yaml: there is no such file"),
        ({"train_parts": "nose"}, "train_parts has nose"),
        ({"config": "/absent.yaml"}, "/absent.yaml"),
        ({"config": "open.yaml"}, "open.yaml"),
    ],
)
def test_mistakes_end_in_one_sentence(checkpoint, whole_run, tmp_path, monkeypatch, capsys, options, told):
    monkeypatch.chdir(tmp_path)
    Path("open.yaml").write_text("learning_rate: [1e-5")
    words = flags(checkpoint, whole_run[1], tmp_path / "out", **STEPS)
    assert train.main([*words, *(word for name, value in options.items() for word in (f"--{name}", value))]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("train: ") and told in error


def test_two_runs_in_one_folder(checkpoint, whole_run, tmp_path, capsys):
    with lock_output(tmp_path / "out"):
        assert train.main(flags(checkpoint, whole_run[1], tmp_path / "out", **STEPS)) == 1
    assert f"is in use by another run (process {os.getpid()} on " in capsys.readouterr().err


def test_resuming_from_last_without_a_checkpoint_starts_from_the_model(checkpoint, whole_run, tmp_path, capsys):
    arguments = flags(checkpoint, whole_run[1], tmp_path / "out", max_steps=1)
    assert train.main([*arguments, "--resume_from_checkpoint", "last"]) == 0
    assert "Starting from the model" in capsys.readouterr().out


def test_corrupt_sample_follows_on_error(checkpoint, tmp_path, capsys):
    shutil.copytree(FIXTURES / "coco", tmp_path / "coco")
    picture = next(path for path in sorted((tmp_path / "coco").rglob("*.jpg")))
    for path in (tmp_path / "coco").rglob("*.jpg"):
        if path.name == picture.name:
            path.write_bytes(path.read_bytes()[:100])
    catalogue = yaml.safe_load((CONFIGS / "catalogue.yaml").read_text())
    sources = {name: catalogue[name] for name in ("refcoco", "refcoco+", "refcocog")}
    mixture = tmp_path / "mixture.yaml"
    mixture.write_text(yaml.safe_dump({"sources": sources}))
    arguments = flags(checkpoint, mixture, tmp_path / "out", num_train_epochs=1, per_device_train_batch_size=1)
    assert train.main([*arguments, "--on_error", "raise"]) == 1
    assert picture.name in capsys.readouterr().err
    assert train.main([*arguments, "--on_error", "skip"]) == 0
    assert "'skipped': " in capsys.readouterr().out
    assert all(entry["loss"] == entry["loss"] for entry in history(tmp_path / "out"))


def test_lora_trains_adapters_and_reloads(checkpoint, whole_run, tmp_path):
    from peft import PeftModel

    options = {"use_peft": True, "lora_r": 4, "max_steps": 2, "warmup_steps": 0, "lora_dropout": 0}
    training, data, model_options = train.parse(flags(checkpoint, whole_run[1], tmp_path / "out", **options))
    trainer = train.build(training, data, model_options)
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    train.finish(trainer)
    moved = {name for name, parameter in trainer.model.named_parameters() if not torch.equal(parameter, before[name])}
    assert any("language_model" in name and "lora_B" in name for name in moved)
    assert all(".lora_" in name or ".modules_to_save." in name for name in moved)
    for module in ("context_aggregator", "seg_projection", "sam.mask_decoder", "multi_modal_projector"):
        assert any(module in name for name in moved), module
    assert not any("original_mask_decoder" in name or "vision_tower" in name for name in moved)

    base = SamaForConditionalGeneration.from_pretrained(checkpoint)
    again = PeftModel.from_pretrained(base, tmp_path / "out").eval()
    batch = trainer.data_collator([trainer.train_dataset[0]])
    with torch.no_grad():
        expected, found = trainer.model.eval()(**batch), again(**batch)
        merged = again.merge_and_unload()
        once = merged(**batch)
    torch.testing.assert_close(found.logits, expected.logits)
    torch.testing.assert_close(found.mask_loss, expected.mask_loss)
    torch.testing.assert_close(once.logits, expected.logits, atol=1e-5, rtol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    plain = SamaForConditionalGeneration.from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        torch.testing.assert_close(plain(**batch).loss, once.loss)


def test_lora_with_a_part_it_cannot_save_is_an_error(checkpoint, whole_run, tmp_path):
    arguments = flags(checkpoint, whole_run[1], tmp_path / "out", use_peft=True, train_parts="language_model")
    with pytest.raises(ValueError, match="language_model, which cannot be fully trained together with LoRA"):
        train.build(*train.parse(arguments))
