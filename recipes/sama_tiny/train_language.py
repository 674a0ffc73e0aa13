"""Stage 2 of sama-tiny: train the vision tower, the aggregator and the language model on toy world.

    python recipes/sama_tiny/train_language.py --model outputs/tiny/start --masks outputs/tiny/masks \\
        --to outputs/tiny/language

Three phases, each with its own learning rate schedule. All use auxiliary heads that are dropped afterwards.

1. Masks (`--mask-steps`): the shape encoders learn to represent shape, size and position of a mask.
2. Probes (`--probe-steps`): short questions point at or name an object. Heads predict its position in each frame from
   the context tokens, the content of each visual cell, and the appearance of each region from its tokens.
3. Dialogues (`--dialogue-steps`): the language loss, the same heads, and heads on the hidden states of
   regions (appearance, motion, trajectory). The [SEG] prompt is trained to match the attribute prompt by which SAM 2
   found the object in stage 1, and to give the object's mask in one frame. With `--decoder-rate` SAM 2's decoder of
   [SEG] is trained, too, and adapts to the errors of predicted prompts.

The language loss alone does not teach motion within this budget (docs/log.md). To train in two processes, each with
examples of its own, replace `python` by `torchrun --nproc_per_node 2`. An interrupted run resumes from `state.pt` with
identical losses.
"""

import argparse
import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from torch import distributed, nn
from torch.nn import functional as F

from sama.configuration_sama import CONTEXT_TOKEN, REGION_POOLED_TOKEN, REGION_SHAPE_TOKEN
from sama.data.collator import IGNORED
from sama.modeling_sama import (
    VISUAL_INPUT_NAMES,
    SamaForConditionalGeneration,
    SamaVisualInputs,
)
from sama.modeling_sama_aggregator import expand_per_question
from sama.processing_sama import SamaProcessor
from sama.recipes.sama_tiny.examples import (
    BLOCK,
    TRAJECTORY_TIMES,
    TrainingExamples,
    grid_size,
    num_processes,
    process_index,
)
from sama.recipes.sama_tiny.labels import CELL, CLOSED_SETS, PLACE, SIDE
from sama.recipes.sama_tiny.train_masks import (
    WEIGHT_DECAY,
    AttributePrompts,
    compare_masks,
    load_state,
    prefetch,
    reset_parameters,
    save_state,
    schedule,
)
from sama.toy_world.shapes import COLOURS


LOSS_WEIGHTS = {
    "language": 5.0, "prompt": 1.0, "context": 1.0, "cells": 20.0, "spot": 5.0, "found": 100.0, "pooled": 0.1,
    "shape": 0.2, "asked": 0.2, "named": 0.5, "attention": 1.0, "rehearsal": 1.0, "state": 0.5, "trajectory": 3.0,
    "seen": 0.3, "seg trajectory": 2.0, "mask": 3.0, "stamp": 2.0,
}  # fmt: skip
Tensors = dict[str, torch.Tensor]


def mlp(width: int, outputs: int) -> nn.Sequential:
    """A head with one hidden layer."""
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, outputs))


def classifiers(width: int, *kinds: str) -> nn.ModuleDict:
    """A head for each of these kinds of class."""
    return nn.ModuleDict({kind: mlp(width, len(CLOSED_SETS[kind])) for kind in kinds})


class Heads(nn.Module):
    """Auxiliary heads, named like the losses; used in training only."""

    def __init__(self, width: int):
        super().__init__()
        self.context = mlp(width, PLACE)
        self.cells = mlp(width, CELL * len(COLOURS))
        self.found = nn.Linear(width, CELL)
        self.spot = nn.Linear(width, 2)
        self.named = classifiers(width, "colour", "shape")
        self.stamps = nn.ModuleDict({name: mlp(width, PLACE) for name in ("shape", "asked")})
        self.pooled = classifiers(width, "colour", "size")
        self.shape = classifiers(width, "shape", "size")
        self.asked = classifiers(width, "shape", "size")
        self.state = classifiers(width, *CLOSED_SETS)
        self.seen = classifiers(width, "shape", "size")
        self.trajectory = mlp(width, TRAJECTORY_TIMES * PLACE)
        self.seg_trajectory = mlp(width, TRAJECTORY_TIMES * PLACE)


def place_loss(predicted: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of places (..., 4): visibility everywhere, position and size where visible; and the mean L1 error of the
    position, in fractions of the frame."""
    seen = target[..., 0]
    presence = F.binary_cross_entropy_with_logits(predicted[..., 0], seen)
    gap = (predicted[..., 1:] - target[..., 1:]).abs() * seen[..., None]
    return 0.1 * presence + gap.sum() / seen.sum().clamp(min=1), gap[..., :2].sum() / seen.sum().clamp(min=1) / 2


class Activations(NamedTuple):
    """
    What the heads read, recorded while the model embeds its inputs.

    Args:
        embeds (`torch.Tensor` of shape `(batch_size, length, width)`): Input embeddings of the language model.
        cells (`torch.Tensor` of shape `(num_frames, num_cells, width)`): Projected visual tokens of all frames.
        questions (`torch.Tensor` of shape `(num_questions, width)`): Mean of the temporal query tokens of a question.
        keys (`torch.Tensor` of shape `(num_questions, num_temporal_queries, width)`): Keys of the injection.
        queries, attended (`torch.Tensor` of shape `(num_pairs, num_cells, width)`): Queries and attention output of
            the injection, for all pairs of a question and a context frame of its video.
        region_shapes (`torch.Tensor` of shape `(num_regions, width)`, *optional*): Shape features in the aggregator.
    """

    embeds: torch.Tensor
    cells: torch.Tensor
    questions: torch.Tensor
    keys: torch.Tensor
    queries: torch.Tensor
    attended: torch.Tensor
    region_shapes: torch.Tensor | None


class AuxiliaryLosses:
    """The auxiliary heads, the attribute prompts of stage 1, and the losses of a step."""

    def __init__(self, model: SamaForConditionalGeneration, processor: SamaProcessor, seed: int):
        self.model, self.processor = model, processor
        self.grid = grid_size(model.config)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.heads = Heads(model.config.text_config.hidden_size)
            self.prompts = AttributePrompts.of_tracker(model.model.mask_tracker)
        self.prompts.requires_grad_(False)

    def stamp_losses(self, stamps: Tensors) -> tuple[Tensors, Tensors]:
        """Losses and metrics of single masks: shape, size and place, predicted from both shape encoders."""
        inner, losses, metrics = self.model.model, {"stamp": 0.0}, {}
        for name, encoder in (("shape", inner.region_encoder), ("asked", inner.context_aggregator.region_encoder)):
            tokens = encoder.shape_projection(stamps["masks"])
            losses[name] = self.class_loss(name, tokens, stamps, metrics)
            loss, _ = place_loss(self.heads.stamps[name](tokens), stamps["places"])
            losses["stamp"] = losses["stamp"] + loss
        return losses, metrics

    def losses(self, inputs: Tensors, targets: Tensors, with_language: bool) -> tuple[Tensors, Tensors]:
        """All losses of a batch by name, and metrics for the log."""
        found, losses, metrics = self.record_activations(inputs), {}, {}
        self.add_cell_losses(found.cells, targets, losses, metrics)
        self.add_question_losses(found, inputs, targets, losses, metrics)
        if "regions" in targets:
            self.add_region_losses(found, inputs, targets, losses, metrics)
        if with_language:
            self.add_language_losses(found.embeds, inputs, targets, losses, metrics)
        return losses, metrics

    def record_activations(self, inputs: Tensors) -> Activations:
        """Embed the inputs and record intermediate activations. The aggregator is called once for each number of
        context frames in the batch; the results of these calls are concatenated."""
        model = self.model.model
        visual = SamaVisualInputs(**{name: inputs.get(name) for name in VISUAL_INPUT_NAMES})
        injection = model.context_aggregator.injection
        modules = {
            "frames": model.backbone.multi_modal_projector,
            "injection": injection,
            "queries": injection.query_projection,
            "keys": injection.key_projection,
            "values": injection.value_projection,
            "region shapes": model.context_aggregator.region_encoder.shape_projection,
        }
        with recorded_calls(modules) as calls:
            embeds, _ = model.embed_inputs(inputs["input_ids"], inputs["mm_token_type_ids"], visual)
        # Inputs of the injection: frames (videos, T, P, width), temporal tokens, the video of each question
        queries = [
            expand_per_question(output, arguments[2])
            for (_, output), (arguments, _) in zip(calls["queries"], calls["injection"], strict=True)
        ]
        parts = zip(queries, calls["keys"], calls["values"], strict=True)
        # The injection itself projects the mean over the cells of a frame
        attended = [
            injection.attention_projection(F.scaled_dot_product_attention(query.flatten(1, 2), keys, values))
            for query, (_, keys), (_, values) in parts
        ]
        attended = [output.unflatten(1, query.shape[1:3]) for output, query in zip(attended, queries, strict=True)]
        return Activations(
            embeds=embeds,
            cells=calls["frames"][0][1],
            questions=torch.cat([arguments[1].mean(1) for arguments, _ in calls["injection"]]),
            keys=torch.cat([output for _, output in calls["keys"]]),
            queries=torch.cat([output.flatten(0, 1) for output in queries]),
            attended=torch.cat([output.flatten(0, 1) for output in attended]),
            region_shapes=calls["region shapes"][0][1] if calls["region shapes"] else None,
        )

    def add_cell_losses(self, cells: torch.Tensor, targets: Tensors, losses: Tensors, metrics: Tensors) -> None:
        """Content and position of every cell, predicted from the visual tokens."""
        chosen = cells[targets["frames"]]
        losses["cells"] = F.mse_loss(self.heads.cells(chosen), targets["colours"])
        losses["spot"], metrics["spot px"] = self.spot_loss(cells)
        classes = dict(zip(("shape", "size"), targets["seen"].flatten(0, 1).T, strict=True))
        losses["seen"] = self.class_loss("seen", chosen.flatten(0, 1), classes, metrics)

    def add_question_losses(
        self, found: Activations, inputs: Tensors, targets: Tensors, losses: Tensors, metrics: Tensors
    ) -> None:
        """The object in question: attention on it, its appearance, and its place in each context frame."""
        if "pairs" in targets:
            pairs = targets["pairs"]
            losses |= self.attention_losses(
                found.queries[pairs], found.keys[targets["pair questions"]], found.attended[pairs], targets
            )
        classes = dict(zip(CLOSED_SETS, targets["subjects"], strict=False))
        losses["named"] = self.class_loss("named", found.questions, classes, metrics)
        context = found.embeds[inputs["mm_token_type_ids"] == CONTEXT_TOKEN][targets["context known"]]
        losses["context"], gap = place_loss(self.heads.context(context), targets["context"])
        metrics["context px"] = SIDE * gap

    def add_region_losses(
        self, found: Activations, inputs: Tensors, targets: Tensors, losses: Tensors, metrics: Tensors
    ) -> None:
        """Appearance of each region, predicted from its two tokens and from its shape feature in the aggregator."""
        types, classes = inputs["mm_token_type_ids"], dict(zip(CLOSED_SETS, targets["regions"], strict=True))
        losses["pooled"] = self.class_loss("pooled", found.embeds[types == REGION_POOLED_TOKEN], classes, metrics)
        losses["shape"] = self.class_loss("shape", found.embeds[types == REGION_SHAPE_TOKEN], classes, metrics)
        losses["asked"] = self.class_loss("asked", found.region_shapes, classes, metrics)

    def add_language_losses(
        self, embeds: torch.Tensor, inputs: Tensors, targets: Tensors, losses: Tensors, metrics: Tensors
    ) -> None:
        """The language loss, the heads on hidden states of regions, and the [SEG] prompts. Region states are taken
        before the last layer: what is added to a region's state after it cannot influence any word of the answer."""
        model, labels = self.model, inputs["labels"]
        outputs = model.model(inputs_embeds=embeds, attention_mask=inputs["attention_mask"], output_hidden_states=True)
        hidden = outputs.last_hidden_state
        logits, losses["language"] = model.score_labels(hidden, labels, None)
        expected = labels[:, 1:]
        metrics["token"] = (logits.argmax(-1) == expected[expected != IGNORED]).float().mean()
        if "regions" in targets:
            states = outputs.hidden_states[-2][inputs["mm_token_type_ids"] == REGION_SHAPE_TOKEN]
            classes = dict(zip(CLOSED_SETS, targets["regions"], strict=True))
            losses["state"] = self.class_loss("state", states, classes, metrics)
            trajectory = self.heads.trajectory(states).unflatten(-1, (TRAJECTORY_TIMES, PLACE))
            losses["trajectory"], gap = place_loss(trajectory, targets["trajectory"])
            metrics["trajectory px"] = SIDE * gap
        if "looks" in targets:
            self.add_seg_losses(hidden[labels == model.config.seg_token_id], targets, losses, metrics)

    def add_seg_losses(self, states: torch.Tensor, targets: Tensors, losses: Tensors, metrics: Tensors) -> None:
        """Trajectory, prompt and mask of each [SEG]; `states` (num_segs, width)."""
        trajectory = self.heads.seg_trajectory(states).unflatten(-1, (TRAJECTORY_TIMES, PLACE))
        losses["seg trajectory"], gap = place_loss(trajectory, targets["seg trajectory"])
        metrics["seg trajectory px"] = SIDE * gap
        prompts = self.model.project_seg_states(states)
        losses["prompt"] = metrics["prompt"] = prompt_loss(prompts, self.prompts(targets["looks"], targets["places"]))
        losses["mask"], metrics["mask IoU"] = self.mask_loss(prompts, targets)

    def mask_loss(self, prompts: torch.Tensor, targets: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss of the masks that SAM 2 predicts in one frame of each example, and their mean IoU where visible."""
        tracker = self.model.model.mask_tracker
        features = tracker.encode_frames(targets["sam frames"]).take(targets["seg rows"])
        masks = tracker.segment_objects(features, prompts)
        loss, overlap, present = compare_masks([masks], targets["seg masks"], self.processor)
        return loss, overlap[present].mean()

    def spot_loss(self, cells: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss and error in pixels of each cell's own position in its frame; `cells` (num_frames, num_cells, width).
        Without it the visual tokens keep colours only, and no attention to them can locate an object (docs/log.md)."""
        centres = (torch.arange(self.grid, device=cells.device) + 0.5) / self.grid
        target = torch.cartesian_prod(centres, centres).expand(len(cells), -1, -1)
        predicted = self.heads.spot(cells)
        return F.mse_loss(predicted, target), SIDE * (predicted - target).detach().abs().mean()

    def attention_losses(
        self, queries: torch.Tensor, keys: torch.Tensor, attended: torch.Tensor, targets: Tensors
    ) -> Tensors:
        """Supervise which temporal tokens the cells of a frame attend to, for pairs of a question and a frame. Cells
        that show the object in question attend to the first four tokens, depending on their position; all others to
        the rest. `queries` and `attended` (num_pairs, num_cells, width); `keys` (num_pairs, num_temporal_queries,
        width). A head predicts the object's place from what each cell has attended to."""
        log_weights = (queries @ keys.transpose(1, 2) / keys.shape[-1] ** 0.5).log_softmax(-1)
        cross_entropy = -(targets["attention"] * log_weights).sum(-1)
        losses = {"attention": (targets["weights"] * cross_entropy).sum() / targets["counted"]}
        return losses | {"found": F.mse_loss(self.heads.found(attended), targets["held"])}

    def class_loss(self, name: str, tokens: torch.Tensor, classes: Tensors, metrics: Tensors) -> torch.Tensor:
        """Cross-entropy of the classifiers `name` on tokens (num_tokens, width). Adds their accuracies to
        the metrics."""
        losses = []
        for kind, head in self.heads.get_submodule(name).items():
            logits, expected = head(tokens), classes[kind]
            known = expected != IGNORED
            if known.any():
                losses.append(F.cross_entropy(logits, expected, ignore_index=IGNORED))
                metrics[f"{name} {kind}"] = (logits.argmax(-1) == expected)[known].float().mean()
        return sum(losses)


def prompt_loss(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Squared error of [SEG] prompts relative to the variance of their targets."""
    spread = target.var(0, unbiased=False).mean().clamp(min=0.1)  # the variance of a single [SEG] is zero
    return (predicted - target).square().mean() / spread


@contextmanager
def recorded_calls(modules: dict[str, nn.Module]) -> Iterator[dict[str, list[tuple]]]:
    """Record (inputs, output) of every call of the modules, by their names here, while the block runs."""
    calls = {name: [] for name in modules}

    def recorder(found: list[tuple]):
        return lambda module, inputs, output: found.append((inputs, output))

    handles = [module.register_forward_hook(recorder(calls[name])) for name, module in modules.items()]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def trained_parts(model: SamaForConditionalGeneration) -> nn.ModuleList:
    """Everything except SAM 2."""
    inner = model.model
    parts = [inner.backbone, inner.context_aggregator]
    return nn.ModuleList([*parts, inner.region_encoder, inner.seg_projection, model.lm_head])


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Average gradients over all processes; a parameter without gradient in one process counts as zero there."""
    if num_processes() == 1:
        return
    parts = [torch.zeros_like(each) if each.grad is None else each.grad for each in parameters]
    flat = torch.cat([part.flatten() for part in parts])
    distributed.all_reduce(flat)
    for each, part in zip(parameters, flat.split([each.numel() for each in parameters]), strict=True):
        each.grad = part.view_as(each) / num_processes()


def build_optimizer(parts: nn.Module, decoder: nn.Module, decoder_rate: float) -> torch.optim.Optimizer:
    """AdamW whose groups carry their share of the learning rate as "share"."""
    groups = [{"params": [*parts.parameters()], "share": 1.0}]
    groups.append({"params": [*decoder.parameters()], "share": decoder_rate})
    return torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY, betas=(0.9, 0.98))


def step_losses(auxiliary: AuxiliaryLosses, batch: dict[str, Tensors], with_language: bool) -> tuple[Tensors, Tensors]:
    """Losses and metrics of a step. After the first phase the mask losses continue as one term, "rehearsal"."""
    losses, metrics = auxiliary.stamp_losses(batch["stamps"])
    if "inputs" in batch:
        rehearsal = weighted_sum(losses)
        losses, metrics = auxiliary.losses(batch["inputs"], batch["targets"], with_language)
        losses["rehearsal"] = rehearsal
    return losses, metrics


def weighted_sum(losses: Tensors) -> torch.Tensor:
    return sum(LOSS_WEIGHTS[name] * loss for name, loss in losses.items())


def train(auxiliary: AuxiliaryLosses, examples: TrainingExamples, state_path: Path) -> None:
    """Run the steps of all phases, resuming from `state_path` if it exists."""
    arguments, parts = examples.arguments, trained_parts(auxiliary.model)
    for part in (auxiliary.model, auxiliary.heads, auxiliary.prompts):
        part.to(arguments.device)
    decoder = auxiliary.model.model.mask_tracker.sam.mask_decoder.requires_grad_(arguments.decoder_rate > 0)
    optimizer = build_optimizer(nn.ModuleList([parts, auxiliary.heads]), decoder, arguments.decoder_rate)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    modules = {"parts": parts, "heads": auxiliary.heads, "decoder": decoder}
    first = load_state(state_path, modules, optimizer, arguments.device)
    blocks = prefetch(examples, first // BLOCK, arguments)
    batches = islice(chain.from_iterable(blocks), first % BLOCK, None)
    (_, dialogues, steps), history = examples.phases, defaultdict(list)
    for step, batch in enumerate(batches, start=first):
        start, end = next(bounds for bounds in pairwise((0, *examples.phases)) if step < bounds[1])
        torch.manual_seed(arguments.seed + step)  # dropout in the Q-Formers
        for group in optimizer.param_groups:
            group["lr"] = group["share"] * arguments.learning_rate * schedule(step - start, end - start)
        losses, metrics = step_losses(auxiliary, batch, with_language=step >= dialogues)
        weighted_sum(losses).backward()
        average_gradients(parameters)
        nn.utils.clip_grad_norm_([each for each in parameters if each.grad is not None], 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if process_index():
            continue
        for name, value in (metrics | {f"loss {name}": loss for name, loss in losses.items()}).items():
            history[name].append(value.detach())
        if (step + 1) % arguments.log_steps == 0 or step + 1 == steps:
            means = {name: torch.stack(values).mean().item() for name, values in history.items()}
            print(f"step {step + 1}:", ", ".join(f"{name} {mean:.3g}" for name, mean in means.items()), flush=True)
            history.clear()
        if (step + 1) % arguments.save_steps == 0 or step + 1 == steps:
            save_state(state_path, modules, optimizer, step + 1)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a model made by recipes/sama_tiny/initialize.py")
    parser.add_argument("--masks", type=Path, help="output folder of recipes/sama_tiny/train_masks.py")
    parser.add_argument("--to", type=Path, required=True, help="output folder")
    parser.add_argument("--mask-steps", type=int, default=1500, help="steps of the first phase")
    parser.add_argument("--probe-steps", type=int, default=600, help="steps of the second phase")
    parser.add_argument("--dialogue-steps", type=int, default=3000, help="steps of the third phase")
    parser.add_argument("--batch-size", type=int, default=16, help="clips per step")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument(
        "--decoder-rate", type=float, default=0.0, help="learning rate of SAM 2's decoder of [SEG], as a fraction"
    )
    parser.add_argument("--keep", action="store_true", help="start from the model's weights instead of new ones")
    parser.add_argument("--earlier", type=Path, help="state.pt of an earlier run: its heads and weights except SAM 2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--num-workers", type=int, default=0, help="processes that generate examples")
    parser.add_argument("--log-steps", type=int, default=50)
    parser.add_argument("--save-steps", type=int, default=100)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    if "WORLD_SIZE" in os.environ:
        if arguments.device == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        distributed.init_process_group("gloo" if arguments.device == "cpu" else "nccl")
    model = SamaForConditionalGeneration.from_pretrained(arguments.model, dtype=torch.float32)
    processor = SamaProcessor.from_pretrained(arguments.model, trust_remote_code=True)
    if not arguments.keep:
        reset_parameters(trained_parts(model), arguments.seed)
    auxiliary = AuxiliaryLosses(model.train(), processor, arguments.seed)
    if arguments.masks:
        state = torch.load(arguments.masks / "state.pt", weights_only=True, map_location="cpu")
        model.model.mask_tracker.load_state_dict(state["tracker"])
        auxiliary.prompts.load_state_dict(state["prompts"])
    model.model.mask_tracker.requires_grad_(False)
    arguments.to.mkdir(parents=True, exist_ok=True)
    if arguments.earlier:
        state = torch.load(arguments.earlier, weights_only=True, map_location="cpu")
        trained_parts(model).load_state_dict(state["parts"])
        auxiliary.heads.load_state_dict(state["heads"])
    train(auxiliary, TrainingExamples(processor, model.config, arguments), arguments.to / "state.pt")
    if not process_index():
        model.save_pretrained(arguments.to)
        processor.save_pretrained(arguments.to)


if __name__ == "__main__":
    main()
