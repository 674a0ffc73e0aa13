"""The Trainer of SAMA: losses by name, totals of a whole update, the mixture's order, checkpoints that are whole."""

import json
import math
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import rotate_checkpoints

from sama.data.collator import IGNORED, SamaCollator
from sama.data.sampler import MixtureSampler

from .sharding import KeepPartsWhole


STATE_FILE, ORDER_FILE = "trainer_state.json", "order.json"
STAGING = ".saving"  # a checkpoint is written here, and moved to its place when it is whole
GRACE_SECONDS = 60  # that a loader worker lives after SIGTERM
LOSSES = ("lm_loss", "mask_loss", "dice_loss", "iou_loss", "presence_loss")
RATIOS = {  # logged name -> what is counted, and out of what
    "token_accuracy": ("right_tokens", "tokens"),
    "seg_accuracy": ("right_segs", "segs"),
    "mask_iou": ("iou", "masks"),
}
COUNTED = (*LOSSES, *(name for pair in RATIOS.values() for name in pair), "updates")


class TrainingError(RuntimeError):
    """A run cannot go on; the message names the step, the cause and the last good checkpoint."""


def find_checkpoint(folder: str | Path) -> Path | None:
    """The newest whole checkpoint of a run, or `None`. The state is the last file that is written."""
    found = [path for path in Path(folder).glob("checkpoint-*") if (path / STATE_FILE).is_file()]
    return max(found, key=lambda path: int(path.name.removeprefix("checkpoint-")), default=None)


def outlive_terminate(worker: int) -> None:
    """Schedulers send SIGTERM to loader workers too: they go on while the run finishes its update and saves."""
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE_SECONDS))
    signal.signal(signal.SIGALRM, lambda *_: os._exit(0))


class StopOnTerminate(TrainerCallback):
    """On SIGTERM, as schedulers send it before they kill: finish the update, save, stop. `stopped` says that it
    happened. Processes that train together stop at the same step."""

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


class SamaTrainer(Trainer):
    """
    Trains a SAMA on a mixture.

    Args:
        model ([`SamaForConditionalGeneration`] or `PeftModel`): What of it is trained must be set: `freeze_all_but`.
        args ([`SamaTrainingArguments`])
        mixture ([`Mixture`]): Rendered with `memory_frames` if `args.memory_training`.
        processor ([`SamaProcessor`]): Makes the batches, and is saved beside the model.
    """

    def __init__(self, model, args, mixture, processor, **kwargs):
        self.terminate, whole = StopOnTerminate(), KeepPartsWhole()
        self.staging: Path | None = None
        self.masks_in_update: torch.Tensor | None = None
        super().__init__(
            model=model,
            args=args,
            train_dataset=mixture,
            data_collator=SamaCollator(processor, with_memory=args.memory_training),
            processing_class=processor,
            callbacks=[*kwargs.pop("callbacks", []), self.terminate, whole],
            **kwargs,
        )
        self.terminate.trainer = whole.trainer = self
        seed = args.seed if args.data_seed is None else args.data_seed
        self.order = MixtureSampler(
            mixture.lengths, args.train_batch_size, seed, rank=args.process_index, num_ranks=args.world_size
        )
        self.sums = torch.zeros(len(COUNTED), device=args.device)

    # ---- data -------------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader:
        """Batches of this process in the mixture's order. They are not handed to Accelerate, which would divide them
        again; the Trainer moves them to the device and, after a stop, leaves out those that were read."""
        args = self.args
        return DataLoader(
            self.train_dataset,
            args.train_batch_size,
            sampler=self.order,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory and args.device.type == "cuda",
            prefetch_factor=args.dataloader_prefetch_factor,
            persistent_workers=args.dataloader_persistent_workers,
            drop_last=args.world_size > 1,
            worker_init_fn=outlive_terminate,
        )

    def _run_epoch(self, model, epoch, train_dataloader, *args, **kwargs):
        self.order.set_epoch(epoch)
        return super()._run_epoch(model, epoch, train_dataloader, *args, **kwargs)

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor:
        """Labels of the whole update, over its batches and all processes; its masks are kept for [`compute_loss`]."""
        labels = sum(int((batch["labels"][:, 1:] != IGNORED).sum()) for batch in batch_samples)
        masks = sum(target.shape[0] * target.shape[1] for batch in batch_samples for target in batch["target_masks"])
        totals = torch.tensor([labels, masks], device=device)
        if self.args.world_size > 1:
            totals = self.accelerator.reduce(totals)
        totals = totals.clamp(min=1)  # an update may have skipped samples alone
        self.masks_in_update = totals[1]
        return totals[0]

    # ---- losses -----------------------------------------------------------------------------------------------------

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """This batch's share of the update's loss. Processes average their gradients, so each counts for all."""
        outputs = model(
            **inputs,
            use_cache=False,
            num_items_in_batch=num_items_in_batch,
            num_masks_in_batch=self.masks_in_update,
        )
        if not torch.isfinite(outputs.loss):
            parts = ", ".join(f"{name} {outputs[name].item():g}" for name in LOSSES if name in outputs)
            self.stop(f"the loss is {outputs.loss.item():g} ({parts})")
        self.count(outputs, inputs["labels"])
        loss = outputs.loss * self.args.world_size
        if not loss.requires_grad:  # text alone passes through no trained part: its gradient is zero
            loss = loss + 0.0 * next(p for p in model.parameters() if p.requires_grad).sum()
        return (loss, outputs) if return_outputs else loss

    @torch.no_grad()
    def count(self, outputs, labels: torch.Tensor) -> None:
        """Adds a batch to what the next line of the log says."""
        targets = labels[:, 1:]
        targets = targets[targets != IGNORED]
        right = outputs.logits.argmax(-1) == targets
        is_seg = targets == self.model.config.seg_token_id
        found = {name: outputs[name].detach() for name in LOSSES if name in outputs} | {
            "right_tokens": right.sum(),
            "tokens": targets.numel(),
            "right_segs": (right & is_seg).sum(),
            "segs": is_seg.sum(),
            "iou": outputs.mask_iou.sum(),
            "masks": outputs.mask_iou.numel(),
        }
        self.sums += torch.stack(
            [torch.as_tensor(found.get(name, 0), device=self.sums.device).float() for name in COUNTED]
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As in the library; a line about training also says every loss by name, and what was right."""
        if "loss" in logs:
            sums = self.sums if self.args.world_size == 1 else self.accelerator.reduce(self.sums)
            counts = dict(zip(COUNTED, sums.tolist(), strict=True))
            updates = self.state.global_step - self.last_logged
            silent = [name for name in LOSSES if not vars(self.model.config).get(f"{name}_coefficient", 1.0)]
            logs |= {name: counts[name] / updates for name in LOSSES if name not in silent}
            logs |= {name: counts[right] / counts[all_] for name, (right, all_) in RATIOS.items() if counts[all_]}
            self.sums, self.last_logged = torch.zeros_like(self.sums), self.state.global_step
        super().log(logs, start_time)

    def _clip_grad_norm(self, model):
        norm = super()._clip_grad_norm(model)
        # In float16 a step with such a norm is left out, and the loss scaled down
        if norm is not None and not math.isfinite(norm) and self.accelerator.scaler is None:
            self.stop(f"the norm of the gradients is {float(norm):g}")
        return norm

    def get_decay_parameter_names(self, model) -> list[str]:
        """All: as published, nothing is left out of the weight decay."""
        return [name for name, _ in model.named_parameters()]

    # ---- checkpoints ------------------------------------------------------------------------------------------------

    def stop(self, problem: str) -> None:
        """Raises [`TrainingError`]."""
        last = find_checkpoint(self.args.output_dir)
        kept = f"The last good checkpoint is {last}" if last else "There is no checkpoint yet"
        raise TrainingError(f"step {self.state.global_step + 1}: {problem}. {kept}.")

    @contextmanager
    def writing(self, what: str) -> Iterator[None]:
        """Whatever cannot be written, the disk being full above all, stops the run with a message."""
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:
            self.stop(f"{what} could not be written ({error})")

    def _get_output_dir(self, trial) -> str:
        return str(self.staging or super()._get_output_dir(trial))

    def _save_checkpoint(self, model, trial) -> None:
        """As in the library, but a checkpoint is either whole or absent, whenever the run is killed."""
        folder = Path(self.args.output_dir)
        name = f"checkpoint-{self.state.global_step}"
        self.staging = folder / STAGING
        try:
            with self.writing(name):
                if self.args.should_save:
                    shutil.rmtree(self.staging, ignore_errors=True)
                    (self.staging / name).mkdir(parents=True)
                    (self.staging / name / ORDER_FILE).write_text(json.dumps(self.order.state_dict()))
                self.accelerator.wait_for_everyone()
                super()._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()
                if self.args.should_save:
                    flush_files(self.staging / name)
                    shutil.rmtree(folder / name, ignore_errors=True)
                    os.replace(self.staging / name, folder / name)
        finally:
            if self.args.should_save:
                shutil.rmtree(self.staging, ignore_errors=True)
            self.staging = None
        if self.args.should_save:
            rotate_checkpoints(str(folder), self.args.save_total_limit)
        self.accelerator.wait_for_everyone()

    def train(self, resume_from_checkpoint: str | Path | bool | None = None, **kwargs):
        """As in the library; `True` resumes from the newest checkpoint that is whole.

        Raises:
            ValueError: if there is no checkpoint to resume from, or it was made with another order of samples.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = find_checkpoint(self.args.output_dir)
            if resume_from_checkpoint is None:
                raise ValueError(f"There is no whole checkpoint in {self.args.output_dir}")
        self.last_logged = 0
        if resume_from_checkpoint:
            self.check_order(Path(resume_from_checkpoint))
            state = json.loads((Path(resume_from_checkpoint) / STATE_FILE).read_text())
            self.last_logged = state["global_step"]
        return super().train(resume_from_checkpoint=str(resume_from_checkpoint or "") or None, **kwargs)

    def check_order(self, checkpoint: Path) -> None:
        """Raises `ValueError` if the checkpoint's run read its samples in another order than this one does."""
        path = checkpoint / ORDER_FILE
        if path.is_file():
            order, shape = self.order, self.order.state_dict()
            again = MixtureSampler(
                self.train_dataset.lengths, order.batch_size, order.seed, order.rank, order.num_ranks, order.grouped
            )
            again.load_state_dict(shape | json.loads(path.read_text()))


def flush_files(folder: Path) -> None:
    """Makes sure that the files are on the disk before the folder gets its name, in case the power fails."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
