"""The trainer of SAMA: named losses normalized over an update, mixture sampling, and atomic checkpoints."""

import torch

from sama.data.collator import IGNORED, SamaCollator

from .checkpoints import TrainingError, find_checkpoint
from .resumable import LAST, STAGING, ResumableTrainer, StopOnSigterm
from .sharding import GatherReplicatedParts


__all__ = ["LAST", "STAGING", "SamaTrainer", "TrainingError", "find_checkpoint"]

LOSSES = ("lm_loss", "mask_loss", "dice_loss", "iou_loss", "presence_loss")
RATIOS = {  # logged name -> numerator and denominator
    "token_accuracy": ("right_tokens", "tokens"),
    "seg_accuracy": ("right_segs", "segs"),
    "mask_iou": ("iou", "masks"),
}
COUNTED = (*LOSSES, *(name for pair in RATIOS.values() for name in pair))


class SamaTrainer(ResumableTrainer):
    """
    Trains a SAMA on a mixture.

    Args:
        model ([`SamaForConditionalGeneration`] or `PeftModel`): With frozen parameters set, see [`freeze_all_but`].
        args ([`SamaTrainingArguments`])
        mixture ([`Mixture`]): Rendered with `memory_frames` if `args.memory_training`.
        processor ([`SamaProcessor`]): Collates batches, and is saved with the model.
        options (`ModelConfig`, *optional*): How the model was loaded, for the fingerprint of the run.
    """

    def __init__(self, model, args, mixture, processor, options=None, **kwargs):
        self.sigterm, gather = StopOnSigterm(), GatherReplicatedParts()
        self.masks_in_update: torch.Tensor | None = None
        super().__init__(
            model=model,
            args=args,
            train_dataset=mixture,
            data_collator=SamaCollator(processor, args.memory_training, mixture.leave_out),
            processing_class=processor,
            callbacks=[*kwargs.pop("callbacks", []), self.sigterm, gather],
            **kwargs,
        )
        gather.trainer = self
        self.start_run(mixture, options, args.train_batch_size)
        self.sums = torch.zeros(len(COUNTED), device=args.device)

    # ---- data -------------------------------------------------------------------------------------------------------

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor:
        """Number of labels in an update, over its batches and all processes; also sets `masks_in_update`."""
        labels = sum(int((batch["labels"][:, 1:] != IGNORED).sum()) for batch in batch_samples)
        masks = sum(target.shape[0] * target.shape[1] for batch in batch_samples for target in batch["target_masks"])
        totals = torch.tensor([labels, masks], device=device)
        if self.args.world_size > 1:
            totals = self.accelerator.reduce(totals)
        totals = totals.clamp(min=1)  # all samples of an update may have been skipped
        self.masks_in_update = totals[1]
        return totals[0]

    # ---- losses -----------------------------------------------------------------------------------------------------

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """This batch's part of the update's loss, times the number of processes, over which gradients are averaged."""
        outputs = model(
            **inputs,
            use_cache=False,
            num_items_in_batch=num_items_in_batch,
            num_masks_in_batch=self.masks_in_update,
        )
        if not torch.isfinite(outputs.loss):
            parts = ", ".join(f"{name} {outputs[name].item():g}" for name in LOSSES if name in outputs)
            self.fail(f"the loss is {outputs.loss.item():g} ({parts})")
        self.accumulate_metrics(outputs, inputs["labels"])
        loss = outputs.loss * self.args.world_size
        if not loss.requires_grad:  # a text-only batch uses no trained part
            loss = loss + 0.0 * next(p for p in model.parameters() if p.requires_grad).sum()
        return (loss, outputs) if return_outputs else loss

    @torch.no_grad()
    def accumulate_metrics(self, outputs, labels: torch.Tensor) -> None:
        """Adds a batch to the metrics of the next log entry."""
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
        """As in transformers; training entries also have each loss by name, and the accuracies."""
        if "loss" in logs:
            sums = self.sums if self.args.world_size == 1 else self.accelerator.reduce(self.sums)
            counts = dict(zip(COUNTED, sums.tolist(), strict=True))
            updates = self.state.global_step - self.last_logged
            disabled = [name for name in LOSSES if not vars(self.model.config).get(f"{name}_coefficient", 1.0)]
            logs |= {name: counts[name] / updates for name in LOSSES if name not in disabled}
            logs |= {name: counts[right] / counts[all_] for name, (right, all_) in RATIOS.items() if counts[all_]}
            self.sums, self.last_logged = torch.zeros_like(self.sums), self.state.global_step
        super().log(logs, start_time)
