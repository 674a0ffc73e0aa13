"""First stage of the small model: its SAM 2 learns toy world, before any language model can ask for masks.

    python recipes/sama_tiny/train_masks.py --model checkpoints/sama-tiny --to outputs/tiny-masks

A learned prompt of colour, shape, size and place stands for [SEG] and goes to the tuned decoder; clicks and boxes go
to the original one; on short clips memory carries masks through frames that were not prompted. Weights of SAM 2 start
anew, as torch starts them: with transformers' small normal weights the decoders paint everything and never look at
their prompt (docs/log.md). With `--keep` they go on from those of the model, and the prompts, which no checkpoint
holds, are learned anew in the first phase. After it prompts and image encoder stay: the next stage goes by the former,
and the latter becomes worse by steps with memory. With `--from-points` the tuned decoder starts as a copy of the
original one, as it does in SAM 2's checkpoints: that one heeds places, which a decoder that has learned looks does not
learn to (docs/log.md). With `--prompts`, which needs `--keep`, prompts go on from given ones, and the image encoder
stays from the start: they were learned on its features. Killed, it goes on from its last state, `state.pt`, as if
nothing had been.
"""

import argparse
import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader, Dataset

from sama.losses_sama import mask_bce, mask_dice, mask_iou
from sama.modeling_sama import SamaForConditionalGeneration
from sama.modeling_sama_tracker import ObjectMasks, SamaMaskTracker, TrackedFrame
from sama.processing_sama import SamaProcessor
from sama.recipes.sama_tiny.mask_examples import FRAMES, MaskExamples, look_of, place_of
from sama.toy_world.shapes import COLOURS, SHAPES, SIZES


WARM_UP, FLOOR, WEIGHT_DECAY = 50, 0.05, 0.01
# Masks of small things are few pixels: dice weighs as much as BCE, other than in the published recipe
BCE_WEIGHT, DICE_WEIGHT, IOU_WEIGHT, PRESENCE_WEIGHT = 2.0, 2.0, 0.1, 0.2
CELLS_WEIGHT = 20.0
# Features that grow drown the positions that are added to them, which are about 1 large (docs/log.md)
SCALE_WEIGHT = 0.1
# Weights in a prompt, at the start, of a thing's mean, first and last centre and of each word
CENTRES, WORDS = (1.5, 0.3, 0.3), 0.4


class AttributePrompts(nn.Module):
    """What stands for [SEG] here: things by their look and their way through the clip. Places are told as SAM 2 tells
    points, by waves of the frequencies that its image embedding has: from plain numbers a decoder does not learn to
    heed them (docs/log.md)."""

    def __init__(self, frequencies: torch.Tensor):
        """`frequencies` (2, width / 2): of the tracker whose prompts these are, see [`of_tracker`]."""
        super().__init__()
        width = 2 * frequencies.shape[1]
        self.words = nn.ModuleList(nn.Embedding(len(kind) + 1, width) for kind in (COLOURS, SHAPES, SIZES))
        self.frequencies = nn.Buffer(frequencies.clone())
        self.place = nn.Linear(len(CENTRES) * width, width, bias=False)
        with torch.no_grad():
            self.place.weight.copy_(torch.cat([weight * torch.eye(width) for weight in CENTRES], 1))
            for embedding in self.words:
                embedding.weight.mul_(WORDS)
        self.mix = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        # As large as SAM 2's embeddings of points: what is smaller is not heard beside them (docs/log.md)
        self.level = nn.LayerNorm(width)

    @classmethod
    def of_tracker(cls, tracker: SamaMaskTracker) -> "AttributePrompts":
        """New prompts, which tell places by the waves that the tracker knows."""
        return cls(tracker.sam.shared_image_embedding.positional_embedding)

    def forward(self, looks: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Looks (num_objects, 3), the last index of a kind standing for "not told", and places (num_objects, 7), zeros
        where they are not told, to prompts (num_objects, width)."""
        words = [embedding(looks[:, number]) for number, embedding in enumerate(self.words)]
        centres, known = places[:, :-1].unflatten(1, (len(CENTRES), 2)), places[:, -1:]
        angles = 2 * math.pi * (2 * centres - 1) @ self.frequencies
        told = sum(words) + known * self.place(torch.cat([angles.sin(), angles.cos()], -1).flatten(1))
        return self.level(told + self.mix(told))


class MaskLesson:
    """The steps of this stage: a tracker and its prompts, and what they are to find."""

    def __init__(self, tracker: SamaMaskTracker, processor: SamaProcessor, seed: int):
        self.tracker, self.processor = tracker, processor
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.width = tracker.config.sam_config.prompt_encoder_config.hidden_size
            self.prompts = AttributePrompts.of_tracker(tracker)
            self.cells = nn.Linear(self.width, len(COLOURS))
        self.generator = torch.Generator()

    def examples(self, arguments: argparse.Namespace) -> MaskExamples:
        """What the steps see, at the sizes of this tracker."""
        grid = self.tracker.sam.backbone_feature_sizes[-1][0]
        return MaskExamples(self.processor, grid, self.width, arguments)

    @contextmanager
    def any_candidate(self, step: int) -> Iterator[None]:
        """While the block runs, masks come from any of the decoders' three candidates by chance. The best one always,
        and each candidate learns a group of colours of its own, which is all that a prompt then chooses between."""
        self.generator.manual_seed(step)
        decoders = self.tracker.sam.mask_decoder, self.tracker.original_mask_decoder
        handles = [decoder.register_forward_hook(self.choose_candidate) for decoder in decoders]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def choose_candidate(self, module: nn.Module, inputs: tuple, output: tuple) -> tuple[torch.Tensor, ...]:
        """Forward hook of a mask decoder: one candidate of each object in place of all three."""
        masks, predicted_iou, tokens, object_score = output
        chosen = torch.randint(masks.shape[2], (*masks.shape[:2], 1), generator=self.generator).to(masks.device)
        return (
            masks.take_along_dim(chosen[..., None, None], 2),
            predicted_iou.take_along_dim(chosen, 2),
            tokens.take_along_dim(chosen[..., None], 2),
            object_score,
        )

    def image_loss(self, example: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        """Frames alone, see [`MaskExamples.of_frames`]."""
        tracker = self.tracker
        features = tracker.encode_frames(example["pixels"])
        found = self.cells(features.image.flatten(2).transpose(1, 2))  # (frames, cells, colours)
        cells_loss = CELLS_WEIGHT * F.mse_loss(found, example["colours"])
        scale = features.image.square().mean()
        features = features.take(example["rows"])
        prompts = self.prompts(example["looks"], example["places"]) + example["noise"]
        loss, overlap, present = compare_masks(
            [tracker.segment_objects(features, prompts)], example["masks"], self.processor
        )
        seen = example["seen"]
        report = {"words": overlap[seen].mean().item()}
        if scale.requires_grad:  # the image encoder learns
            loss = loss + cells_loss + SCALE_WEIGHT * F.relu(scale - 1)
            report |= {"cells": cells_loss.item(), "scale": scale.item()}
        if not next(tracker.original_mask_decoder.parameters()).requires_grad:
            return loss, report
        by_points = tracker.segment_points(features.take(seen), example["points"], example["labels"]).transpose()
        loss_of_points, overlap_of_points, _ = compare_masks([by_points], example["masks"][seen], self.processor)
        return loss + loss_of_points, report | {"points": overlap_of_points.mean().item()}

    def clip_loss(self, example: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        """Some frames of each clip, one or two of them prompted by attributes, the others reached by memory."""
        prompts = self.prompts(example["looks"], example["places"]) + example.get("noise", 0)
        loss, overlap, present, reached = self.follow(example, prompts)
        report = {}
        for name, kind in (("memory", reached), ("prompted", ~reached)):
            if (present & kind).any():
                report[name] = overlap[present & kind].mean().item()
        return loss, report

    def follow(self, example: dict[str, torch.Tensor], prompts: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Loss of all masks, and IoU, presence and whether it was reached by memory of each."""
        features, rows = self.tracker.encode_frames(example["pixels"]), example["rows"]
        num_clips, num_objects = int(rows.max()) + 1, len(rows)
        num_frames = len(example["pixels"]) // num_clips
        track = self.tracker.track(
            prompts,
            num_frames,
            example["prompted"].tolist(),
            lambda frame: features.take(frame * num_clips + (rows if num_clips > 1 else rows[:1])),
        )
        found = sorted(track, key=lambda frame: frame.frame_index)
        reached = torch.tensor([not frame.prompted for frame in found], device=rows.device)
        return *compare_masks(found, example["masks"], self.processor), reached.repeat_interleave(num_objects)


def compare_masks(
    found: list[TrackedFrame | ObjectMasks], masks: torch.Tensor, processor: SamaProcessor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The loss of all masks together, and the IoU and presence (num_masks,) of each; bool `masks` (num_masks, height,
    width), frame by frame. At the size of the masks, not of the logits: to those, pixels are whole cells, and what
    fits them best then has an IoU of 0.75 with the mask itself (docs/log.md)."""
    logits = torch.cat([one.open_logits.flatten(0, -3) for one in found])
    iou = torch.cat([one.predicted_iou.flatten() for one in found])
    score = torch.cat([one.object_score.flatten() for one in found])
    logits, targets = processor.resize_mask_logits(logits, *masks.shape[-2:]), masks.float()
    bce = mask_bce(logits.flatten(1), targets.flatten(1)).mean()
    dice = mask_dice(logits.flatten(1), targets.flatten(1)).mean()
    overlap, present = mask_iou(logits, targets), masks.flatten(1).any(1)
    presence = F.binary_cross_entropy_with_logits(score, present.float())
    loss = BCE_WEIGHT * bce + DICE_WEIGHT * dice + IOU_WEIGHT * (iou - overlap).abs().mean()
    return loss + PRESENCE_WEIGHT * presence, overlap, present


def start_anew(module: nn.Module, seed: int) -> None:
    """Draws the weights of all its linear layers and convolutions as torch does."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for layer in module.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                layer.reset_parameters()


def rate(step: int, steps: int) -> float:
    """Share of the learning rate: a warm-up, then a cosine down to `FLOOR`."""
    wave = 0.5 * (1 + math.cos(math.pi * step / steps))
    return min(1.0, (step + 1) / WARM_UP) * (FLOOR + (1 - FLOOR) * wave)


def learn(lesson: MaskLesson, arguments: argparse.Namespace, state_path: Path) -> None:
    """The steps of both phases: `image_steps` on frames alone, then `clip_steps`, of which some on clips."""
    parts = nn.ModuleDict({"tracker": lesson.tracker, "prompts": lesson.prompts, "cells": lesson.cells})
    parts.to(arguments.device)
    parameters = [*parts.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=arguments.learning_rate, weight_decay=WEIGHT_DECAY)
    examples = lesson.examples(arguments)
    first, steps, sums = 0, len(examples), defaultdict(list)
    if state_path.is_file():
        state = torch.load(state_path, weights_only=True, map_location=arguments.device)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
        print(f"going on from step {first}")
    schedules = (0, arguments.image_steps, steps) if arguments.keep else (0, steps)
    by_points = nn.ModuleList([lesson.tracker.original_mask_decoder, lesson.tracker.sam.prompt_encoder])
    for step, example in enumerate(in_advance(examples, first, arguments), start=first):
        if arguments.keep:
            first_phase = step < arguments.image_steps
            lesson.prompts.requires_grad_(first_phase)
            lesson.tracker.sam.vision_encoder.requires_grad_(
                first_phase and not arguments.from_points and not arguments.prompts
            )
            by_points.requires_grad_(not (first_phase and arguments.from_points))
        torch.manual_seed(arguments.seed + step)  # dropout in the memory
        start, end = next(bounds for bounds in pairwise(schedules) if step < bounds[1])
        for group in optimizer.param_groups:
            group["lr"] = arguments.learning_rate * rate(step - start, end - start)
        optimizer.zero_grad()
        with lesson.any_candidate(step):
            loss, report = (lesson.clip_loss if examples.with_memory(step) else lesson.image_loss)(example)
        loss.backward()
        for name, value in report.items():
            sums[name].append(value)
        nn.utils.clip_grad_norm_([each for each in parameters if each.grad is not None], 1.0)
        optimizer.step()
        if (step + 1) % arguments.log_steps == 0 or step + 1 == steps:
            print(f"step {step + 1}: IoU by", ", ".join(f"{k} {np.mean(v):.3f}" for k, v in sums.items()), flush=True)
            sums.clear()
        if (step + 1) % arguments.save_steps == 0 or step + 1 == steps:
            state = {name: part.state_dict() for name, part in parts.items()}
            save_state(state | {"optimizer": optimizer.state_dict(), "step": step + 1}, state_path)


def save_state(state: dict, path: Path) -> None:
    """Writes a state so that the file is whole or as it was, whenever the run is killed."""
    unfinished = path.with_suffix(".unfinished")
    torch.save(state, unfinished)
    unfinished.replace(path)


def in_advance(examples: Dataset, first: int, arguments: argparse.Namespace) -> Iterator:
    """Examples from number `first` on, on the device; with `num_workers`, other processes draw them in advance."""
    if arguments.num_workers:  # an example has many small tensors, and each would hold an open file
        torch.multiprocessing.set_sharing_strategy("file_system")
    loader = DataLoader(
        examples, batch_size=None, sampler=range(first, len(examples)), num_workers=arguments.num_workers
    )
    for example in loader:
        yield tree_map(lambda part: part.to(arguments.device), example)


@torch.no_grad()
def examine(lesson: MaskLesson, arguments: argparse.Namespace) -> dict[str, float]:
    """On other clips, told in full and prompted on the first and a middle frame: mean IoU where things are in
    sight."""
    lesson.tracker.eval()
    examples, found = lesson.examples(argparse.Namespace(**vars(arguments) | {"split": "val"})), defaultdict(list)
    for index in range(arguments.examined):
        clip = examples.world.generate(index)[1]
        words = [(torch.from_numpy(look_of(clip)), torch.from_numpy(place_of(clip.masks)))]
        example = examples.of_clips([clip], [range(FRAMES)], [0, FRAMES // 2], words)
        _, report = lesson.clip_loss({name: part.to(arguments.device) for name, part in example.items()})
        for name, value in report.items():
            found[name].append(value)
    return {name: float(np.mean(values)) for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", type=Path, required=True, help="a small SAMA, as recipes/sama_tiny/initialize.py makes it"
    )
    parser.add_argument("--to", type=Path, required=True, help="folder of the result")
    parser.add_argument("--image-steps", type=int, default=3000, help="steps on frames alone")
    parser.add_argument("--clip-steps", type=int, default=3000, help="steps after them, some with memory")
    parser.add_argument("--memory-steps", type=int, default=3, choices=range(5), help="of four, those with memory")
    parser.add_argument("--images", type=int, default=16, help="frames in a step without memory")
    parser.add_argument("--clips", type=int, default=4, help="clips in a step with memory")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--keep", action="store_true", help="start from the model's weights, not from new ones")
    parser.add_argument("--prompts", type=Path, help="with --keep: state.pt of prompts to start from")
    parser.add_argument(
        "--from-points", action="store_true", help="with --keep: start the decoder of [SEG] from that of points"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--num-workers", type=int, default=0, help="processes that draw clips")
    parser.add_argument("--log-steps", type=int, default=50)
    parser.add_argument("--save-steps", type=int, default=200)
    parser.add_argument("--examined", type=int, default=100, help="clips that the result is tried on")
    arguments = argparse.Namespace(**vars(parser.parse_args()), split="train")
    if arguments.from_points and not arguments.keep:
        parser.error("--from-points needs --keep: a decoder of points that has just been drawn heeds nothing")
    if arguments.prompts and not arguments.keep:
        parser.error("--prompts needs --keep: an image encoder that has just been drawn knows nothing of them")
    model = SamaForConditionalGeneration.from_pretrained(arguments.model, dtype=torch.float32)
    processor = SamaProcessor.from_pretrained(arguments.model, trust_remote_code=True)
    tracker = model.model.mask_tracker.train()
    if not arguments.keep:
        start_anew(tracker, arguments.seed)
    lesson = MaskLesson(tracker, processor, arguments.seed)
    if arguments.from_points:
        tracker.sam.mask_decoder.load_state_dict(tracker.original_mask_decoder.state_dict())
    if arguments.prompts:
        lesson.prompts.load_state_dict(torch.load(arguments.prompts, weights_only=True, map_location="cpu")["prompts"])
    arguments.to.mkdir(parents=True, exist_ok=True)
    learn(lesson, arguments, arguments.to / "state.pt")
    found = examine(lesson, arguments)
    print("other clips:", ", ".join(f"{name} {value:.3f}" for name, value in found.items()))
    model.save_pretrained(arguments.to)
    processor.save_pretrained(arguments.to)


if __name__ == "__main__":
    main()
