"""Second stage of the small model: its eyes, its aggregator and its language model learn toy world.

    python recipes/sama_tiny/train_language.py --model outputs/tiny/start --masks outputs/tiny/masks \\
        --to outputs/language

Three phases, each with a schedule of its own and heads that are dropped afterwards. Masks alone: the shape encoders
learn shape, size and place. Then frames: regions and names of things are shown to the aggregator, and heads read off
its context tokens where the thing in question is in each frame, off every cell of a frame where it lies and what it
holds, and off the region tokens what they look like. Then dialogues: the language loss, the same heads, heads on the
language model's states of a region (look, motion, way), and a [SEG] prompt that is to equal the one by which SAM 2
found the thing in the first stage, and to give its mask in one frame. With `--decoder-rate` SAM 2's decoder of [SEG]
learns too, how far prompts of a language model can be trusted. Motion does not come from the language loss
alone in the time there is (docs/log.md). `torchrun --nproc_per_node 2` in place of `python` gives each process lessons
of its own. Killed, it goes on from its last state, `state.pt`, as if nothing had been.
"""

import argparse
import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, islice, pairwise
from pathlib import Path

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
from sama.recipes.sama_tiny.examples import BLOCK, WAY_TIMES, Lessons, grid_of, process, processes
from sama.recipes.sama_tiny.labels import (
    CELL,
    CLOSED_SETS,
    PLACE,
    SIDE,
)
from sama.recipes.sama_tiny.train_masks import (
    WEIGHT_DECAY,
    AttributePrompts,
    compare_masks,
    in_advance,
    rate,
    save_state,
    start_anew,
)
from sama.toy_world.shapes import COLOURS


WEIGHTS = {
    "language": 5.0, "prompt": 1.0, "context": 1.0, "cells": 20.0, "spot": 5.0, "found": 100.0, "pooled": 0.1,
    "shape": 0.2, "asked": 0.2, "named": 0.5, "attention": 1.0, "rehearsal": 1.0, "state": 0.5, "way": 3.0,
    "seen": 0.3, "seg way": 2.0, "mask": 3.0,
    "stamp": 2.0,
}  # fmt: skip


def mlp(width: int, outputs: int) -> nn.Sequential:
    """A head of one hidden layer."""
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, outputs))


class Heads(nn.Module):
    """What reads facts off tokens and states in training, and is not part of the model."""

    def __init__(self, width: int):
        super().__init__()
        self.context = mlp(width, PLACE)
        self.cells = mlp(width, CELL * len(COLOURS))
        self.found = nn.Linear(width, CELL)
        self.spot = nn.Linear(width, 2)
        self.named = nn.ModuleDict({kind: mlp(width, len(CLOSED_SETS[kind])) for kind in ("colour", "shape")})
        self.stamps = nn.ModuleDict({name: mlp(width, PLACE) for name in ("shape", "asked")})
        self.pooled = nn.ModuleDict({kind: mlp(width, len(CLOSED_SETS[kind])) for kind in ("colour", "size")})
        self.shape = nn.ModuleDict({kind: mlp(width, len(CLOSED_SETS[kind])) for kind in ("shape", "size")})
        self.asked = nn.ModuleDict({kind: mlp(width, len(CLOSED_SETS[kind])) for kind in ("shape", "size")})
        self.state = nn.ModuleDict({kind: mlp(width, len(words)) for kind, words in CLOSED_SETS.items()})
        self.seen = nn.ModuleDict({kind: mlp(width, len(CLOSED_SETS[kind])) for kind in ("shape", "size")})
        self.way = mlp(width, WAY_TIMES * PLACE)
        self.seg_way = mlp(width, WAY_TIMES * PLACE)


def place_loss(found: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of places (..., 4): whether a thing is seen, and where it is where it is seen; and the mean distance."""
    seen = wanted[..., 0]
    presence = F.binary_cross_entropy_with_logits(found[..., 0], seen)
    gap = (found[..., 1:] - wanted[..., 1:]).abs() * seen[..., None]
    return 0.1 * presence + gap.sum() / seen.sum().clamp(min=1), gap[..., :2].sum() / seen.sum().clamp(min=1) / 2


class Teacher:
    """The heads and prompts, and the losses of a step."""

    def __init__(self, model: SamaForConditionalGeneration, processor: SamaProcessor, seed: int):
        self.model, self.processor = model, processor
        self.grid = grid_of(model.config)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.heads = Heads(model.config.text_config.hidden_size)
            self.prompts = AttributePrompts.of_tracker(model.model.mask_tracker)
        self.prompts.requires_grad_(False)

    def stamp_losses(self, stamps: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        """Shape, size and place of masks, read off both shape encoders."""
        inner, losses, report = self.model.model, {"stamp": 0.0}, {}
        for name, encoder in (("shape", inner.region_encoder), ("asked", inner.context_aggregator.region_encoder)):
            tokens = encoder.shape_projection(stamps["masks"])
            losses[name] = self.class_loss(name, tokens, stamps, report)
            loss, _ = place_loss(self.heads.stamps[name](tokens), stamps["places"])
            losses["stamp"] = losses["stamp"] + loss
        return losses, report

    def losses(
        self, inputs: dict[str, torch.Tensor], truth: dict[str, torch.Tensor], with_language: bool
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Every loss by name, and figures for the log."""
        model, types = self.model.model, inputs["mm_token_type_ids"]
        visual = SamaVisualInputs(**{name: inputs.get(name) for name in VISUAL_INPUT_NAMES})
        injection, losses, report = model.context_aggregator.injection, {}, {}
        with (
            inputs_and_outputs(model.multi_modal_projector) as frames,
            inputs_and_outputs(injection) as injected,
            inputs_and_outputs(injection.query_projection) as queries,
            inputs_and_outputs(injection.key_projection) as keys,
            inputs_and_outputs(injection.attention_projection) as attended,
            inputs_and_outputs(model.context_aggregator.region_encoder.shape_projection) as asked,
        ):
            embeds = model.embed_inputs(inputs["input_ids"], types, visual)
        cells_of_frames = frames[0][1]
        losses["cells"] = F.mse_loss(self.heads.cells(cells_of_frames[truth["frames"]]), truth["colours"])
        losses["spot"], report["spot px"] = self.spot_loss(cells_of_frames)
        seen = dict(zip(("shape", "size"), truth["seen"].flatten(0, 1).T, strict=True))
        losses["seen"] = self.class_loss("seen", cells_of_frames[truth["frames"]].flatten(0, 1), seen, report)
        if "pairs" in truth:
            groups = [(inputs[2], inputs[0].shape[1:3]) for inputs, _ in injected]  # videos of questions, T and P
            pairs = [
                expand_per_question(output, videos) for (_, output), (videos, _) in zip(queries, groups, strict=True)
            ]
            taken = [output.unflatten(1, sizes) for (_, output), (_, sizes) in zip(attended, groups, strict=True)]
            pairs, taken = (torch.cat([part.flatten(0, 1) for part in parts]) for parts in (pairs, taken))
            read = torch.cat([output for _, output in keys])[truth["askers"]]
            losses |= self.attention_losses(pairs[truth["pairs"]], read, taken[truth["pairs"]], truth)
        about = torch.cat([inputs[1].mean(1) for inputs, _ in injected])  # (num_questions, width)
        losses["named"] = self.class_loss(
            "named", about, dict(zip(CLOSED_SETS, truth["subjects"], strict=False)), report
        )
        found = self.heads.context(embeds[types == CONTEXT_TOKEN][truth["context known"]])
        losses["context"], gap = place_loss(found, truth["context"])
        report["context px"] = SIDE * gap
        if "regions" in truth:
            classes = dict(zip(CLOSED_SETS, truth["regions"], strict=True))
            losses["pooled"] = self.class_loss("pooled", embeds[types == REGION_POOLED_TOKEN], classes, report)
            losses["shape"] = self.class_loss("shape", embeds[types == REGION_SHAPE_TOKEN], classes, report)
            losses["asked"] = self.class_loss("asked", asked[0][1], classes, report)
        if with_language:
            self.add_language_losses(embeds, inputs, truth, losses, report)
        return losses, report

    def add_language_losses(self, embeds: torch.Tensor, inputs: dict, truth: dict, losses: dict, report: dict) -> None:
        """The language loss, what is read off the states of regions, and the [SEG] prompts. The states of regions are
        those before the last layer: what is known of a region after it can reach no word of the answer."""
        model, types, labels = self.model, inputs["mm_token_type_ids"], inputs["labels"]
        outputs = model.model(inputs_embeds=embeds, attention_mask=inputs["attention_mask"], output_hidden_states=True)
        hidden = outputs.last_hidden_state
        logits, losses["language"] = model.score_labels(hidden, labels, None)
        wanted = labels[:, 1:]
        report["token"] = (logits.argmax(-1) == wanted[wanted != IGNORED]).float().mean()
        if "regions" in truth:
            states = outputs.hidden_states[-2][types == REGION_SHAPE_TOKEN]
            classes = dict(zip(CLOSED_SETS, truth["regions"], strict=True))
            losses["state"] = self.class_loss("state", states, classes, report)
            losses["way"], gap = place_loss(self.heads.way(states).unflatten(-1, (WAY_TIMES, PLACE)), truth["way"])
            report["way px"] = SIDE * gap
        if "looks" in truth:
            states = hidden[labels == model.config.seg_token_id]
            way = self.heads.seg_way(states).unflatten(-1, (WAY_TIMES, PLACE))
            losses["seg way"], gap = place_loss(way, truth["seg way"])
            report["seg way px"] = SIDE * gap
            found = model.project_seg_states(states)
            losses["prompt"] = report["prompt"] = prompt_loss(found, self.prompts(truth["looks"], truth["places"]))
            losses["mask"], report["mask IoU"] = self.mask_loss(found, truth)

    def mask_loss(self, prompts: torch.Tensor, truth: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss of the masks that SAM 2 finds in one frame of each lesson, and their
        mean IoU where things are in sight."""
        tracker = self.model.model.mask_tracker
        features = tracker.encode_frames(truth["sam frames"]).take(truth["seg rows"])
        masks = tracker.segment_objects(features, prompts)
        loss, overlap, present = compare_masks([masks], truth["seg masks"], self.processor)
        return loss, overlap[present].mean()

    def spot_loss(self, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Where in its frame each cell lies, read off it; `frames` (num_frames, tokens, width). Without it cells keep
        their colours alone, and no attention to them can tell where a thing is (docs/log.md)."""
        centres = (torch.arange(self.grid, device=frames.device) + 0.5) / self.grid
        wanted = torch.cartesian_prod(centres, centres).expand(len(frames), -1, -1)
        found = self.heads.spot(frames)
        return F.mse_loss(found, wanted), SIDE * (found - wanted).detach().abs().mean()

    def attention_losses(
        self, queries: torch.Tensor, keys: torch.Tensor, taken: torch.Tensor, truth: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Which temporal tokens the cells of a frame read, for pairs of a question and a frame: `queries` (num_pairs,
        tokens, width), `keys` (num_pairs, num_temporal_queries, width). Those that hold the thing in question read the
        first four, by where in the frame they hold it, all others the rest. And where the thing is, read off what each
        cell has `taken` from the temporal tokens, (num_pairs, tokens, width)."""
        found = (queries @ keys.transpose(1, 2) / keys.shape[-1] ** 0.5).log_softmax(-1)
        apart = -(truth["readers"] * found).sum(-1)
        losses = {"attention": (truth["weights"] * apart).sum() / truth["counted"]}
        return losses | {"found": F.mse_loss(self.heads.found(taken), truth["held"])}

    def class_loss(self, name: str, tokens: torch.Tensor, classes: dict, report: dict) -> torch.Tensor:
        """What the heads of this name read off tokens, (num_tokens, width)."""
        losses = []
        for kind, head in self.heads.get_submodule(name).items():
            logits, wanted = head(tokens), classes[kind]
            known = wanted != IGNORED
            if known.any():
                losses.append(F.cross_entropy(logits, wanted, ignore_index=IGNORED))
                report[f"{name} {kind}"] = (logits.argmax(-1) == wanted)[known].float().mean()
        return sum(losses)


def prompt_loss(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """How far [SEG] prompts are from those that the first stage learned, in shares of their variance."""
    spread = wanted.var(0, unbiased=False).mean().clamp(min=0.1)  # a single [SEG] has none
    return (found - wanted).square().mean() / spread


@contextmanager
def inputs_and_outputs(module: nn.Module) -> Iterator[list[tuple]]:
    """What a module takes and gives, call by call, while the block runs."""
    found = []
    handle = module.register_forward_hook(lambda module, inputs, output: found.append((inputs, output)))
    try:
        yield found
    finally:
        handle.remove()


def trained_parts(model: SamaForConditionalGeneration) -> nn.ModuleList:
    """Everything but SAM 2."""
    inner = model.model
    parts = [inner.vision_tower, inner.multi_modal_projector, inner.language_model, inner.context_aggregator]
    return nn.ModuleList([*parts, inner.region_encoder, inner.seg_projection, model.lm_head])


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Gradients as of the lessons of all processes; what no lesson of a process has touched counts as zero."""
    if processes() == 1:
        return
    parts = [torch.zeros_like(each) if each.grad is None else each.grad for each in parameters]
    flat = torch.cat([part.flatten() for part in parts])
    distributed.all_reduce(flat)
    for each, part in zip(parameters, flat.split([each.numel() for each in parameters]), strict=True):
        each.grad = part.view_as(each) / processes()


def learn(teacher: Teacher, lessons: Lessons, state_path: Path) -> None:
    """The steps of all phases."""
    arguments, parts = lessons.arguments, trained_parts(teacher.model)
    for part in (teacher.model, teacher.heads, teacher.prompts):
        part.to(arguments.device)
    decoder = teacher.model.model.mask_tracker.sam.mask_decoder.requires_grad_(arguments.decoder_rate > 0)
    shares = [(1.0, nn.ModuleList([parts, teacher.heads])), (arguments.decoder_rate, decoder)]
    parameters = [parameter for _, group in shares for parameter in group.parameters()]
    optimizer = torch.optim.AdamW(
        [{"params": [*group.parameters()], "share": share} for share, group in shares],
        weight_decay=WEIGHT_DECAY,
        betas=(0.9, 0.98),
    )
    masks, sights, steps = lessons.phases
    first, sums = 0, defaultdict(list)
    if state_path.is_file():
        state = torch.load(state_path, weights_only=True, map_location=arguments.device)
        parts.load_state_dict(state["parts"])
        teacher.heads.load_state_dict(state["heads"])
        decoder.load_state_dict(state["decoder"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
        print(f"going on from step {first}")
    blocks = in_advance(lessons, first // BLOCK, arguments)
    examples = islice(chain.from_iterable(blocks), first % BLOCK, None)
    for step, example in enumerate(examples, start=first):
        start, end = next(bounds for bounds in pairwise((0, masks, sights, steps)) if step < bounds[1])
        torch.manual_seed(arguments.seed + step)  # dropout in the Q-Formers
        for group in optimizer.param_groups:
            group["lr"] = group["share"] * arguments.learning_rate * rate(step - start, end - start)
        losses, report = teacher.stamp_losses(example["stamps"])
        if "inputs" in example:
            rehearsal = sum(WEIGHTS[name] * loss for name, loss in losses.items())
            losses, report = teacher.losses(example["inputs"], example["truth"], step >= sights)
            losses["rehearsal"] = rehearsal
        sum(WEIGHTS[name] * loss for name, loss in losses.items()).backward()
        average_gradients(parameters)
        nn.utils.clip_grad_norm_([each for each in parameters if each.grad is not None], 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if process():
            continue
        for name, value in [*report.items(), *((f"loss {name}", loss) for name, loss in losses.items())]:
            sums[name].append(value.detach())
        if (step + 1) % arguments.log_steps == 0 or step + 1 == steps:
            means = {name: torch.stack(values).mean().item() for name, values in sums.items()}
            print(f"step {step + 1}:", ", ".join(f"{k} {v:.3g}" for k, v in means.items()), flush=True)
            sums.clear()
        if (step + 1) % arguments.save_steps == 0 or step + 1 == steps:
            trained = {"parts": parts, "heads": teacher.heads, "decoder": decoder}
            state = {name: part.state_dict() for name, part in trained.items()}
            save_state(state | {"optimizer": optimizer.state_dict(), "step": step + 1}, state_path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", type=Path, required=True, help="a small SAMA, as recipes/sama_tiny/initialize.py makes it"
    )
    parser.add_argument("--masks", type=Path, help="what recipes/sama_tiny/train_masks.py wrote")
    parser.add_argument("--to", type=Path, required=True, help="folder of the result")
    parser.add_argument("--mask-steps", type=int, default=1500, help="steps on masks alone")
    parser.add_argument("--sight-steps", type=int, default=600, help="steps on frames after them")
    parser.add_argument("--dialogue-steps", type=int, default=3000, help="steps on dialogues after them")
    parser.add_argument("--batch-size", type=int, default=16, help="clips in a step")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument(
        "--decoder-rate",
        type=float,
        default=0.0,
        help="share of the rate that SAM 2's decoder of [SEG] gets",
    )
    parser.add_argument("--keep", action="store_true", help="start from the model's weights, not from new ones")
    parser.add_argument(
        "--earlier",
        type=Path,
        help="state.pt of an earlier run, whose weights but for SAM 2 and whose heads to start from",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--num-workers", type=int, default=0, help="processes that draw lessons")
    parser.add_argument("--log-steps", type=int, default=50)
    parser.add_argument("--save-steps", type=int, default=100)
    arguments = parser.parse_args()
    if "WORLD_SIZE" in os.environ:
        if arguments.device == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        distributed.init_process_group("gloo" if arguments.device == "cpu" else "nccl")
    model = SamaForConditionalGeneration.from_pretrained(arguments.model, dtype=torch.float32)
    processor = SamaProcessor.from_pretrained(arguments.model, trust_remote_code=True)
    if not arguments.keep:
        start_anew(trained_parts(model), arguments.seed)
    teacher = Teacher(model.train(), processor, arguments.seed)
    if arguments.masks:
        state = torch.load(arguments.masks / "state.pt", weights_only=True, map_location="cpu")
        model.model.mask_tracker.load_state_dict(state["tracker"])
        teacher.prompts.load_state_dict(state["prompts"])
    model.model.mask_tracker.requires_grad_(False)
    arguments.to.mkdir(parents=True, exist_ok=True)
    if arguments.earlier:
        state = torch.load(arguments.earlier, weights_only=True, map_location="cpu")
        trained_parts(model).load_state_dict(state["parts"])
        teacher.heads.load_state_dict(state["heads"])
    learn(teacher, Lessons(processor, model.config, arguments), arguments.to / "state.pt")
    if not process():
        model.save_pretrained(arguments.to)
        processor.save_pretrained(arguments.to)


if __name__ == "__main__":
    main()
