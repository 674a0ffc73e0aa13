"""
Reinforcement by trl's GRPO for conversations about videos with regions, with rewards computed from words and masks.

Several answers to each prompt are sampled in one batch over one encoding of the video. The [SEG]s of all answers are
tracked together through the frames that have true masks, and rewards (`rewards.py`) judge each answer by its words
and its masks. An answer's advantage is how much better it is than the others to the same prompt.

What gets a gradient:

- Every reward, masks included, reaches the *tokens* of an answer and nothing else: the policy gradient is the
  advantage times the gradient of the log-probability of each token, [SEG] among them. It trains what these depend on:
  language model, context aggregator, projector, vision tower. An answer whose masks are good makes its words and the
  places of its [SEG]s more likely; no gradient goes through the mask decoder or the prompt that it is given.
- The state at a [SEG], which prompts the mask decoder, has no gradient of its own. It changes with the weights that
  the tokens train, so masks can become worse while words become better; the metric `rewards/masks` shows it.
- With `best_answer_mask_loss` (off by default) the mask and dice losses of supervised training are added for the best
  answer to each prompt, if its objects can be matched with the true ones. Their gradient goes through the mask decoder
  and the state at [SEG] to everything that is trained. No other answer has such a loss.

What counts in the loss are the tokens of answers to prompts with a reference. A skipped sample is replaced by a blank
question, since every process needs equally many rows; its answers are sampled but masked. With a `loss_type` that
divides by tokens (dapo, bnpo, cispo, vespo) the loss is that of the batch without them. Those that average over rows
(grpo, sapo, dr_grpo, luspo) count them as zeros: the loss is scaled by the share of prompts with a reference. A batch
of blank questions has the loss 0.

Log-probabilities are those of the model's training forward, at the temperature of sampling, with the frames of a
prompt encoded once for all its answers. Each batch has new answers by the current model: the ratio that GRPO clips
is 1.
"""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import gather_object, is_peft_model
from datasets import Dataset
from transformers import GenerationConfig, Trainer
from trl import GRPOTrainer, ModelConfig
from trl import __version__ as trl_version
from trl.models import unwrap_model_for_generation

from sama.data.collator import IGNORED
from sama.inputs_sama import VISUAL_INPUT_NAMES
from sama.metrics.iou import greedy_pairs, overlaps
from sama.modeling_sama import SamaForConditionalGeneration
from sama.processing_sama import SamaProcessor

from .completions import JudgedAnswers, write_completions
from .grpo_arguments import SamaGRPOArguments
from .prompts import Prompt, PromptCollator, TurnMixture
from .resumable import ResumableTrainer, StopOnSigterm
from .rewards import SampledAnswer, advantages, score, spreads, totals_of
from .sharding import GatherReplicatedParts


if TYPE_CHECKING:
    from peft import PeftModel


# Since 1.7 the function for log-probabilities also returns the loss of a mixture of experts
NUM_TOKEN_SCORES = 3 if tuple(int(part) for part in trl_version.split(".")[:2]) >= (1, 7) else 2
TEXT_INPUT_NAMES = ("input_ids", "attention_mask", "mm_token_type_ids")
MASK_LOSSES = ("mask_loss", "dice_loss")


class SamaGRPOTrainer(ResumableTrainer, GRPOTrainer):
    """
    Trains a SAMA by the rewards of sampled answers.

    Args:
        model ([`SamaForConditionalGeneration`] or `PeftModel`): With frozen parameters set, see [`freeze_all_but`].
        args ([`SamaGRPOArguments`])
        mixture ([`TurnMixture`]): Samples that end with an answer, rendered with `memory_frames`, so that rewards see
            masks on tracked frames.
        processor ([`SamaProcessor`]): Collates prompts, and is saved with the model.
        options (`ModelConfig`, *optional*): How the model was loaded, for the fingerprint of the run.
    """

    def __init__(
        self,
        model: "SamaForConditionalGeneration | PeftModel",
        args: SamaGRPOArguments,
        mixture: TurnMixture,
        processor: SamaProcessor,
        options: ModelConfig | None = None,
        **kwargs,
    ):
        self.sigterm, gather = StopOnSigterm(), GatherReplicatedParts()
        self.chosen_rewards = args.chosen_rewards  # parsed and imported once
        # trl would load the reference model by the name of its class, which transformers does not know
        beta, args.beta = args.beta, 0.0
        needs_reference = beta != 0 and not is_peft_model(model)
        reference = copy.deepcopy(model).eval().requires_grad_(False) if needs_reference else None
        super().__init__(
            model=model,
            reward_funcs=[reward for reward, _ in self.chosen_rewards.values()],
            args=args,
            train_dataset=Dataset.from_dict({"prompt": [""]}),  # in place of the mixture, not a `Dataset`
            processing_class=processor,
            callbacks=[*kwargs.pop("callbacks", []), self.sigterm, gather],
            **kwargs,
        )
        self.beta = args.beta = beta
        if reference is not None:
            self.ref_model = self.accelerator.prepare_model(reference, evaluation_mode=True)
        gather.trainer = self
        self.train_dataset, self.data_collator = mixture, PromptCollator(processor, mixture.leave_out)
        self.reward_func_names = list(self.chosen_rewards)
        self.shared_inputs: dict[str, torch.Tensor] = {}  # of the prompts whose answers are scored
        self.logged_step: int | None = None  # the update whose answers were written
        self.start_run(mixture, options, args.prompts_per_batch)

    # ---- answers ----------------------------------------------------------------------------------------------------

    def _prepare_inputs(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Samples and judges answers to the prompts of a batch: what trl's loss takes, with `shared`, what the prompts
        show, and `best`, the inputs of the mask losses of the best answers."""
        inputs = Trainer._prepare_inputs(self, batch["inputs"])
        rows, prompts = self.repeated(inputs), batch["prompts"]
        shared = {name: inputs[name] for name in VISUAL_INPUT_NAMES if name in inputs}
        answers, completions, lengths = self.sample_answers(rows, shared, prompts, batch["sam_frames"])
        scores = np.stack([self.scores_of(*one) for one in zip(answers, prompts, strict=True)])
        totals = totals_of(scores, self.args.reward_weights)
        gains = advantages(totals, self.args.scale_rewards)
        self.log_answers(prompts, answers, JudgedAnswers(scores, totals, gains, self.reward_func_names))
        mask = self.counted_tokens(prompts, answers, lengths, completions.shape[1])
        found = {
            "prompt_ids": rows["input_ids"],
            "prompt_mask": rows["attention_mask"],
            "completion_ids": completions,
            "completion_mask": mask,
            "advantages": torch.tensor(gains, dtype=torch.float32, device=mask.device).flatten(),
            "num_items_in_batch": self.num_tokens(mask),
            "shared": self.continued(rows, mask) | shared,
        }
        if self.beta:
            found["ref_per_token_logps"] = self.reference_log_probs(found)
        if self.args.best_answer_mask_loss:
            found["best"] = self.best_answers(found, prompts, answers, totals, batch["sam_frames"])
        return found

    def repeated(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The text of each prompt, once for each of its answers."""
        rows = {name: inputs[name].repeat_interleave(self.num_generations, 0) for name in TEXT_INPUT_NAMES}
        if "position_ids" in inputs:  # (3, num_prompts, length)
            rows["position_ids"] = inputs["position_ids"].repeat_interleave(self.num_generations, 1)
        return rows

    @torch.no_grad()
    def sample_answers(
        self, rows: dict, shared: dict, prompts: Sequence[Prompt], sam_frames: Sequence[torch.Tensor]
    ) -> tuple[list[list[SampledAnswer]], torch.Tensor, torch.Tensor]:
        """For each prompt its answers, the tokens of all answers (num_rows, length), and how many are theirs."""
        processor = self.processing_class
        unwrap = unwrap_model_for_generation(
            self.model_wrapped, self.accelerator, gather_deepspeed3_params=self.args.ds3_gather_for_generation
        )
        with unwrap as model, self.accelerator.autocast():
            was_training = model.training
            model.eval()
            output = model.generate(
                **rows,
                **shared,
                num_answers=self.num_generations,
                generation_config=self.sampling_config(),
                return_dict_in_generate=True,
                **processor.stop_arguments,
            )
            completions = output.sequences[:, rows["input_ids"].shape[1] :]
            lengths, ended = self.answer_lengths(completions)
            states = [output.seg_states[i : i + self.num_generations] for i in self.first_rows(len(prompts))]
            masks = [
                masks
                for own, prompt, frames in zip(states, prompts, sam_frames, strict=True)
                for masks in track_answers(model, processor, own, prompt, frames)
            ]
            model.train(was_training)
        answers = [
            SampledAnswer(processor.post_process_answer(ids[:length]).tagged_text, own, int(length), bool(whole))
            for ids, length, own, whole in zip(completions.cpu(), lengths.cpu(), masks, ended.cpu(), strict=True)
        ]
        return [answers[i : i + self.num_generations] for i in self.first_rows(len(prompts))], completions, lengths

    def first_rows(self, num_prompts: int) -> range:
        """The first row of each prompt."""
        return range(0, num_prompts * self.num_generations, self.num_generations)

    def sampling_config(self) -> GenerationConfig:
        """How answers are sampled."""
        args = self.args
        return GenerationConfig(
            do_sample=True,
            max_new_tokens=self.max_completion_length,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            eos_token_id=self.ends,
            pad_token_id=self.processing_class.tokenizer.pad_token_id,
            cache_implementation=args.cache_implementation,
            disable_compile=True,
        )

    @property
    def ends(self) -> list[int]:
        """Tokens that end an answer."""
        own = self.model.generation_config.eos_token_id
        declared = own if isinstance(own, list) else [] if own is None else [own]
        return list(dict.fromkeys([*declared, self.processing_class.tokenizer.eos_token_id]))

    def answer_lengths(self, completions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """How many tokens of each row (num_rows, length) are the answer, its end mark included, and whether it ended
        before the limit."""
        is_end = torch.isin(completions, torch.tensor(self.ends, device=completions.device))
        columns = torch.arange(1, completions.shape[1] + 1, device=completions.device)
        is_word = completions != self.processing_class.tokenizer.pad_token_id
        last_word = (is_word * columns).amax(1)  # only padding follows a stop string
        first_end = torch.where(is_end, columns, columns[-1] + 1).amin(1)
        lengths = torch.minimum(last_word.clamp(min=1), first_end)
        lengths = torch.where(is_end.any(1), first_end, lengths)
        return lengths, is_end.any(1) | (lengths < self.max_completion_length)

    # ---- losses -----------------------------------------------------------------------------------------------------

    def continued(self, rows: dict[str, torch.Tensor], mask: torch.Tensor) -> dict[str, torch.Tensor]:
        """Token types and positions of prompts with their answers, whose tokens `mask` (num_rows, length) marks."""
        types = torch.cat([rows["mm_token_type_ids"], torch.zeros_like(mask)], 1)
        if "position_ids" in rows:
            steps = torch.arange(1, mask.shape[1] + 1, device=mask.device)
            positions = torch.cat([rows["position_ids"], rows["position_ids"][..., -1:] + steps], -1)
        else:
            whole = torch.cat([rows["attention_mask"], torch.ones_like(mask)], 1)
            positions = (whole.cumsum(1) - 1).clamp(min=0)  # as in `generate`
        return {"mm_token_type_ids": types, "position_ids": positions}

    def counted_tokens(
        self,
        prompts: Sequence[Prompt],
        answers: Sequence[Sequence[SampledAnswer]],
        lengths: torch.Tensor,
        num_columns: int,
    ) -> torch.Tensor:
        """Marks the tokens that count in the loss, (num_rows, num_columns): those of answers to prompts with a
        reference, and with `mask_truncated_completions` only of answers that ended."""
        ended_only = self.mask_truncated_completions
        counts = [
            prompt.reference is not None and (answer.ended or not ended_only)
            for prompt, own in zip(prompts, answers, strict=True)
            for answer in own
        ]
        columns = torch.arange(num_columns, device=lengths.device)
        return ((columns < lengths[:, None]) & torch.tensor(counts, device=lengths.device)[:, None]).long()

    def num_tokens(self, mask: torch.Tensor) -> torch.Tensor:
        """Counted tokens of all processes, as if all accumulated batches had equally many; at least 1."""
        own = mask.sum()
        own = own if self.args.world_size == 1 else self.accelerator.reduce(own)
        return own.clamp(min=1) * self.args.gradient_accumulation_steps

    def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, logits_to_keep, *args, **kwargs):
        """Log-probabilities at the temperature of sampling and entropies of the last `logits_to_keep` tokens, both
        (num_rows, logits_to_keep), by the model's own forward over `shared_inputs`. trl's version knows images only
        by the names of a few families."""
        with self.accelerator.autocast():
            outputs = model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                logits_to_keep=logits_to_keep + 1,
                num_answers=self.num_generations,
                use_cache=False,
                **self.shared_inputs,
            )
        log_probs = (outputs.logits[:, :-1].float() / self.temperature).log_softmax(-1)
        of_tokens = log_probs.gather(-1, input_ids[:, -logits_to_keep:, None]).squeeze(-1)
        return (of_tokens, -(log_probs.exp() * log_probs).sum(-1), None)[:NUM_TOKEN_SCORES]

    @torch.no_grad()
    def reference_log_probs(self, inputs: dict[str, Any]) -> torch.Tensor:
        """Log-probabilities of the answers by the model that training started from."""
        self.shared_inputs = inputs["shared"]
        input_ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        attention_mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        arguments = (input_ids, attention_mask, inputs["completion_ids"].shape[1])
        if self.ref_model is not None:
            return self._get_per_token_logps_and_entropies(self.ref_model, *arguments)[0]
        with self.accelerator.unwrap_model(self.model).disable_adapter():
            return self._get_per_token_logps_and_entropies(self.model, *arguments)[0]

    def scores_of(self, answers: Sequence[SampledAnswer], prompt: Prompt) -> np.ndarray:
        """The rewards of the answers to a prompt. One that fails ends the run with its name, the step and the last
        checkpoint."""
        try:
            return score(self.chosen_rewards, answers, prompt.reference)
        except ValueError as error:
            self.fail(str(error).rstrip("."))

    def _compute_loss(self, model, inputs):
        self.shared_inputs = inputs["shared"]
        loss = super()._compute_loss(model, inputs)
        if self.args.best_answer_mask_loss:
            outputs = model(**inputs["best"], use_cache=False)
            weights = {name: vars(self.model.config)[f"{name}_coefficient"] for name in MASK_LOSSES}
            masks = sum(weight * outputs[name] for name, weight in weights.items())
            self._metrics["train"]["best_answer_mask_loss"].append(float(masks))
            loss = loss + self.args.best_answer_mask_loss * masks / self.current_gradient_accumulation_steps
        # All processes exchange the gradients of all trained parameters; a batch without a video may use none of them
        if self.args.world_size > 1 or not loss.requires_grad:
            loss = loss + 0.0 * sum(p.sum() for p in model.parameters() if p.requires_grad)
        if not torch.isfinite(loss):
            self.fail(f"the loss is {loss.item():g}")
        return loss

    def best_answers(
        self,
        found: Mapping[str, Any],
        prompts: Sequence[Prompt],
        answers: Sequence[Sequence[SampledAnswer]],
        totals: np.ndarray,
        sam_frames: Sequence[torch.Tensor],
    ) -> dict[str, Any]:
        """Inputs of the model for the mask losses of the best answer to each prompt, on the frames that [SEG] prompts.
        An answer whose objects cannot all be matched has none, nor do answers that no reward judges."""
        rows, targets, frames = [], [], []
        for number, (own, prompt) in enumerate(zip(answers, prompts, strict=True)):
            judged = not np.isnan(totals[number]).all()
            best = int(np.nanargmax(totals[number])) if judged else 0
            is_left_out = not judged or (self.mask_truncated_completions and not own[best].ended)
            order = None if is_left_out else matched(own[best], prompt)
            rows.append(number * self.num_generations + best)
            masks = prompt.reference.masks[order][:, prompt.prompted] if order else np.zeros((0, 0, 0, 0), dtype=bool)
            targets.append(torch.from_numpy(masks))
            frames.append(sam_frames[number][prompt.prompted] if order else sam_frames[number][:0])
        device = found["prompt_ids"].device
        input_ids = torch.cat([found["prompt_ids"], found["completion_ids"]], 1)[rows]
        mask = torch.cat([found["prompt_mask"], found["completion_mask"]], 1)[rows]
        is_new = torch.cat([torch.zeros_like(found["prompt_mask"]), found["completion_mask"]], 1)[rows].bool()
        has_targets = torch.tensor([len(masks) > 0 for masks in targets], device=device)
        is_seg = is_new & (input_ids == self.model.config.seg_token_id) & has_targets[:, None]
        shared = dict(found["shared"])
        types, positions = shared.pop("mm_token_type_ids"), shared.pop("position_ids")
        return {
            "input_ids": input_ids,
            "attention_mask": mask,
            "mm_token_type_ids": types[rows],
            "position_ids": positions[..., rows, :],
            "labels": torch.where(is_seg, input_ids, IGNORED),
            "sam_pixel_values": torch.cat(frames).to(device),
            "sam_frame_counts": torch.tensor([len(own) for own in frames]),
            "target_masks": targets,
            **shared,
        }

    # ---- logs -------------------------------------------------------------------------------------------------------

    def log_answers(
        self, prompts: Sequence[Prompt], answers: Sequence[Sequence[SampledAnswer]], judged: JudgedAnswers
    ) -> None:
        """Adds a batch to the metrics of the next log entry, and writes its answers every `completion_steps` updates.
        Deviations are of the prompts with at least two judged answers, lengths of those with a reference."""
        metrics = self._metrics["train"]
        asked = [
            answer
            for prompt, own in zip(prompts, answers, strict=True)
            for answer in own
            if prompt.reference is not None
        ]
        rows = {
            "scores": judged.scores.reshape(-1, len(judged.names)).tolist(),
            "totals": judged.totals.flatten().tolist(),
            "spreads": spreads(judged.totals).tolist(),
            "lengths": [answer.num_tokens for answer in asked],
            "cut": [not answer.ended for answer in asked],
        }
        if self.args.world_size > 1:
            parts = gather_object([rows])
            rows = {name: [value for part in parts for value in part[name]] for name in rows}
        for name, column in zip(judged.names, np.array(rows["scores"]).T, strict=True):
            if not np.isnan(column).all():
                metrics[f"rewards/{name}/mean"].append(float(np.nanmean(column)))
                metrics[f"rewards/{name}/std"].append(float(np.nanstd(column)))
        if not np.isnan(rows["totals"]).all():
            metrics["reward"].append(float(np.nanmean(rows["totals"])))
        deviations = np.array([value for value in rows["spreads"] if value == value])
        if len(deviations):
            metrics["reward_std"].append(float(deviations.mean()))
            metrics["frac_reward_zero_std"].append(float(np.mean(deviations < 1e-8)))
        if rows["lengths"]:
            metrics["completions/mean_length"].append(float(np.mean(rows["lengths"])))
            metrics["completions/clipped_ratio"].append(float(np.mean(rows["cut"])))
        step, every = self.state.global_step, self.args.completion_steps
        if every and step % every == 0 and step != self.logged_step and self.is_world_process_zero():
            self.logged_step = step
            with self.writing("the sampled answers"):
                folder = Path(self.args.output_dir) / "completions"
                write_completions(folder, step + 1, prompts, answers, judged)

    def create_model_card(self, *args, **kwargs) -> None:
        """Nothing: the model card is written with the trained model."""


def track_answers(
    model, processor, seg_states: Sequence[torch.Tensor], prompt: Prompt, sam_frames: torch.Tensor
) -> list[np.ndarray]:
    """For each answer to a prompt the masks of its [SEG]s, bool (num_objects, num_frames, height, width): all of them
    in one track, through the frames of the prompt as a video of their own."""
    counts = [len(states) for states in seg_states]
    size = prompt.pictures.shape[1:3]
    masks = np.zeros((sum(counts), len(prompt.frames), *size), dtype=bool)
    if len(masks) and prompt.frames:
        for frame in model.segment_video(torch.cat(list(seg_states)), list(sam_frames), prompt.prompted):
            masks[:, frame.frame_index] = processor.post_process_masks(frame.mask_logits, *size)
    return np.split(masks, np.cumsum(counts)[:-1])


def matched(answer: SampledAnswer, prompt: Prompt) -> list[int] | None:
    """The true object matched with each object of an answer; `None` if the numbers differ or one has no match."""
    reference = prompt.reference
    if reference is None or not len(answer.masks) or len(answer.masks) != len(reference.masks):
        return None
    pairs = greedy_pairs(overlaps(list(reference.masks), list(answer.masks)).ious())
    order = {guess: truth for truth, guess in pairs}
    return [order[guess] for guess in range(len(answer.masks))] if len(order) == len(answer.masks) else None
