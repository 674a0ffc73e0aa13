"""A trainer whose runs can be killed and resumed: atomic checkpoints, the order of samples, the fingerprint of a run,
and what SIGTERM does. Supervised training and reinforcement share it."""

import json
import math
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import NoReturn

import torch
from accelerate.scheduler import AcceleratedScheduler
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback
from transformers.utils import logging

from sama.data.files import write_text_atomically
from sama.data.sampler import MixtureSampler

from .checkpoints import (
    FINGERPRINT_FILE,
    ORDER_FILE,
    STATE_FILE,
    TrainingError,
    delete_old_checkpoints,
    find_checkpoint,
    missing_weights,
    numbered_checkpoints,
    read_json,
    resume_point,
    write_manifest,
)
from .fingerprint import OPTIMIZER_STRUCTURE, compare_runs, fingerprint


logger = logging.get_logger("sama.training")
LAST = "last"
STAGING = ".saving"  # a checkpoint is written here and moved when complete
GRACE_SECONDS = 60  # that a data loader worker keeps running after SIGTERM


def delay_worker_exit(worker: int) -> None:
    """Schedulers send SIGTERM to data loader workers too: keeps them running until the run has saved."""
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE_SECONDS))
    signal.signal(signal.SIGALRM, lambda *_: os._exit(0))


class StopOnSigterm(TrainerCallback):
    """On SIGTERM, which schedulers send before they kill, finishes the update, saves and stops; `stopped` is then
    True. All processes of a distributed run stop at the same step."""

    def __init__(self):
        self.received, self.stopped, self._previous, self.trainer = False, False, None, None

    def on_train_begin(self, args, state, control, **kwargs):
        self._previous = signal.signal(signal.SIGTERM, self._receive)

    def _receive(self, number, frame):
        self.received = True

    def on_step_end(self, args, state, control, **kwargs):
        received = torch.tensor(float(self.received), device=args.device)
        if args.world_size > 1:
            received = self.trainer.accelerator.reduce(received)
        if received:
            self.stopped = control.should_save = control.should_training_stop = True

    def on_train_end(self, args, state, control, **kwargs):
        signal.signal(signal.SIGTERM, self._previous)


class ResumableTrainer(Trainer):
    """A [`Trainer`] over a mixture in the order of a [`MixtureSampler`], which a subclass sets up by [`start_run`]."""

    def start_run(self, mixture, options, batch_size: int) -> None:
        """
        To be called at the end of `__init__`, with `sigterm` among the callbacks.

        Args:
            mixture ([`Mixture`])
            options (`ModelConfig`, *optional*): How the model was loaded, for the fingerprint of the run.
            batch_size (`int`): Samples that a process reads for a forward pass.

        Raises:
            TrainingError: if the mixture is too small to give each process a batch.
        """
        args = self.args
        self.sigterm.trainer = self
        self.staging: Path | None = None
        self.model_options, self.loaded_config = options, self.model.config.to_dict()
        self.checked: Path | None = None  # the checkpoint that was found whole and of this run
        seed = args.seed if args.data_seed is None else args.data_seed
        self.sampler = MixtureSampler(
            mixture.lengths, batch_size, seed, rank=args.process_index, num_ranks=args.world_size
        )
        if not len(self.sampler):
            raise TrainingError(
                f"the mixture has {len(mixture.lengths)} samples, fewer than the {batch_size * args.world_size} that "
                f"{args.world_size} processes read at once, {batch_size} each: nothing would be trained"
            )
        self.last_logged = 0

    # ---- data -------------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader:
        """Batches of this process in the sampler's order. The loader is not prepared by Accelerate, which would split
        the batches again. The Trainer moves batches to the device and, when resuming, skips those already used."""
        args = self.args
        return DataLoader(
            self.train_dataset,
            self.sampler.batch_size,
            sampler=self.sampler,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory and args.device.type == "cuda",
            prefetch_factor=args.dataloader_prefetch_factor,
            persistent_workers=args.dataloader_persistent_workers,
            drop_last=args.world_size > 1,
            worker_init_fn=delay_worker_exit,
        )

    def _run_epoch(self, model, epoch, train_dataloader, *args, **kwargs):
        if self.state.global_step >= self.state.max_steps:  # resumed from the checkpoint of the last step
            self.control.should_training_stop = True
            return None
        # A checkpoint's state holds the intervals of logging and saving that it was written with
        self.state.compute_steps(self.args, self.state.max_steps)
        self.sampler.set_epoch(epoch)
        return super()._run_epoch(model, epoch, train_dataloader, *args, **kwargs)

    # ---- updates ----------------------------------------------------------------------------------------------------

    def _clip_grad_norm(self, model):
        norm = super()._clip_grad_norm(model)
        # With float16 the gradient scaler skips such a step instead
        if norm is not None and not math.isfinite(norm) and self.accelerator.scaler is None:
            self.fail(f"the gradient norm is {float(norm):g}")
        return norm

    def get_decay_parameter_names(self, model) -> list[str]:
        """All parameters: as published, none is exempt from weight decay."""
        return [name for name, _ in model.named_parameters()]

    # ---- checkpoints ------------------------------------------------------------------------------------------------

    def fail(self, problem: str) -> NoReturn:
        """Raises [`TrainingError`] for the current step."""
        last = find_checkpoint(self.args.output_dir)
        saved = f"The last complete checkpoint is {last}" if last else "There is no checkpoint yet"
        raise TrainingError(f"step {self.state.global_step + 1}: {problem}. {saved}.")

    @contextmanager
    def writing(self, what: str) -> Iterator[None]:
        """Raises [`TrainingError`] for a failed write, for example on a full disk."""
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:
            self.fail(f"{what} could not be written ({error})")

    def _get_output_dir(self, trial) -> str:
        return str(self.staging or super()._get_output_dir(trial))

    def _save_checkpoint(self, model, trial) -> None:
        """As in transformers, but atomic: a run that is killed leaves a complete checkpoint or none."""
        folder = Path(self.args.output_dir)
        name = f"checkpoint-{self.state.global_step}"
        self.staging = folder / STAGING
        try:
            with self.writing(name):
                if self.args.should_save:
                    shutil.rmtree(self.staging, ignore_errors=True)
                    (self.staging / name).mkdir(parents=True)
                    (self.staging / name / ORDER_FILE).write_text(json.dumps(self.sampler.state_dict()))
                    self.save_fingerprint(self.staging / name)
                self.accelerator.wait_for_everyone()
                super()._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()
                if self.args.should_save:
                    write_manifest(self.staging / name)
                    shutil.rmtree(folder / name, ignore_errors=True)
                    os.replace(self.staging / name, folder / name)
        finally:
            if self.args.should_save:
                shutil.rmtree(self.staging, ignore_errors=True)
            self.staging = None
        if self.args.should_save:
            delete_old_checkpoints(folder, self.state.global_step, self.args.save_total_limit)
        self.accelerator.wait_for_everyone()

    # ---- resuming ---------------------------------------------------------------------------------------------------

    @cached_property
    def fingerprint(self) -> dict:
        """What this run is, see [`fingerprint`]."""
        return fingerprint(self.args, self.train_dataset, self.loaded_config, self.model_options)

    def save_fingerprint(self, folder: Path) -> None:
        """Writes the fingerprint to a checkpoint or to the output folder."""
        write_text_atomically(folder / FINGERPRINT_FILE, json.dumps(self.fingerprint, indent=1) + "\n")

    def on_main_process(self, decide: Callable[[], object]) -> object:
        """What `decide` returns or raises in the main process, for all processes: they must not decide differently."""
        found = [None, None]
        if self.is_world_process_zero():
            try:
                found[0] = decide()
            except (TrainingError, OSError, ValueError) as error:  # whatever it is, the others must not wait
                found[1] = str(error)
        if self.args.world_size > 1:
            found = broadcast_object_list(found)
        if found[1] is not None:
            raise TrainingError(found[1])
        return found[0]

    def resume_point(self, wanted: str | Path | None) -> Path | None:
        """
        The whole checkpoint of this run to resume from, or `None` to start from the model.

        Args:
            wanted (`str` or `Path`, *optional*): `last` or the folder of a checkpoint. If that one is damaged, the
                newest older one that is whole is taken, and both are named.

        Raises:
            [`TrainingError`]: No checkpoint is whole, or it belongs to a run with other data or settings.
        """

        def decide() -> Path | None:
            path, passed = resume_point(wanted, self.args.output_dir, LAST)
            for sentence in passed:
                logger.warning(sentence)
            if path is not None:
                self.check_run(path)
            return path

        self.checked = self.on_main_process(decide) if wanted else None
        return self.checked

    def check_run(self, checkpoint: Path) -> None:
        """Raises [`TrainingError`] if the checkpoint belongs to a run with other data or settings, unless
        `accept_changes` is set; logs harmless differences."""
        decisive, harmless = compare_runs(checkpoint, self.fingerprint)
        changes = "; ".join(decisive.values())
        fixed = "; ".join(words for name, words in decisive.items() if name in OPTIMIZER_STRUCTURE)
        order = ""
        try:
            self.check_order(checkpoint)
        except (ValueError, KeyError, TypeError) as error:
            order = str(error)
        mismatch = f"{checkpoint} belongs to a run with other data or settings: {changes or order}"
        if order or (fixed and self.args.accept_changes):
            broken = "The order of samples" if order else f"The saved state of the optimizer ({fixed})"
            raise TrainingError(
                f"{mismatch}. {broken} cannot continue with that: resume with the values of that run, or "
                f"start a new run with --model_name_or_path {checkpoint} and another --output_dir"
            )
        if decisive and not self.args.accept_changes:
            raise TrainingError(
                f"{mismatch}. Resume with the values of that run, or add --accept_changes to use the new ones"
            )
        if decisive:
            logger.warning(f"Going on with changes that were accepted: {changes}.")
        if harmless:
            logger.warning(f"Differences that change neither losses nor weights: {'; '.join(harmless.values())}.")

    def finished_steps(self) -> int | None:
        """
        Number of updates if the output folder holds the finished model of this very run, else `None`.

        Raises:
            [`TrainingError`]: It holds the model of another run, or checkpoints that this run would overwrite.
        """
        return self.on_main_process(self._finished_steps)

    def _finished_steps(self) -> int | None:
        folder, resumes = Path(self.args.output_dir), self.args.resume_from_checkpoint
        try:
            state = read_json(folder / STATE_FILE)
            steps, finished = state["global_step"], state["global_step"] >= state["max_steps"]
        except (TrainingError, KeyError, TypeError):
            steps, finished = 0, False
        if finished and (folder / FINGERPRINT_FILE).is_file() and not missing_weights(folder):
            decisive, _ = compare_runs(folder, self.fingerprint, finished=True)
            if not decisive:
                return steps
            if not (resumes and self.args.accept_changes):
                raise TrainingError(
                    f"{folder} holds a finished run with other data or settings: {'; '.join(decisive.values())}. "
                    f"Choose another --output_dir, or add --resume_from_checkpoint {LAST} --accept_changes to go on "
                    "from its last checkpoint"
                )
        found = list(numbered_checkpoints(folder).values())
        if found and not resumes:
            raise TrainingError(
                f"{folder} holds checkpoints of an earlier run, the newest {found[-1].name}, which a run from the "
                f"beginning would overwrite: add --resume_from_checkpoint {LAST} or choose another --output_dir"
            )
        return None

    def train(self, resume_from_checkpoint: str | Path | bool | None = None, **kwargs):
        """As in transformers; `True` resumes from the newest whole checkpoint.

        Raises:
            [`TrainingError`]: if there is no whole checkpoint to resume from, or it belongs to another run.
        """
        wanted = LAST if resume_from_checkpoint is True else resume_from_checkpoint or None
        path = self.checked if wanted is not None and self.checked == Path(wanted) else self.resume_point(wanted)
        if wanted is not None and path is None:
            raise TrainingError(f"There is no complete checkpoint in {self.args.output_dir}")
        self.last_logged = 0 if path is None else read_json(path / STATE_FILE)["global_step"]
        return super().train(resume_from_checkpoint=None if path is None else str(path), **kwargs)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self.args.accept_changes:
            self.apply_arguments()

    def apply_arguments(self) -> None:
        """Sets the learning rate, weight decay and the optimizer's other numbers to the arguments of this run. The
        states that were loaded hold those of the run that saved them."""
        _, settings = self.get_optimizer_cls_and_kwargs(self.args, self.model)
        settings |= {"initial_lr": self.args.learning_rate, "weight_decay": self.args.weight_decay}
        scheduler = self.lr_scheduler
        if isinstance(scheduler, AcceleratedScheduler):
            scheduler = scheduler.scheduler
        if not isinstance(scheduler, LambdaLR):
            self.fail(f"--accept_changes cannot set the learning rate of {type(scheduler).__name__}")
        groups = self.optimizer.param_groups
        scheduler.base_lrs = [self.args.learning_rate] * len(groups)
        for group, factor in zip(groups, scheduler.lr_lambdas, strict=True):
            group.update({name: value for name, value in settings.items() if name in group})
            group["lr"] = self.args.learning_rate * factor(scheduler.last_epoch)
        scheduler._last_lr = [group["lr"] for group in groups]

    def check_order(self, checkpoint: Path) -> None:
        """Raises `ValueError` if the checkpoint's run had a different order of samples, or other updates: the library
        counts the batches that were read in updates."""
        name, sampler = "gradient_accumulation_steps", self.sampler
        before, now = read_json(checkpoint / FINGERPRINT_FILE)["decisive"][name], vars(self.args)[name]
        if before != now:
            raise ValueError(f"{name} was {before} and is {now}")
        fresh = MixtureSampler(
            self.train_dataset.lengths,
            sampler.batch_size,
            sampler.seed,
            sampler.rank,
            sampler.num_ranks,
            sampler.grouped,
        )
        fresh.load_state_dict(sampler.state_dict() | read_json(checkpoint / ORDER_FILE))
