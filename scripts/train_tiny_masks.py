"""First stage of the small model: its SAM 2 learns toy world, before any language model can ask for masks.

    python scripts/train_tiny_masks.py --model checkpoints/sama-tiny --to outputs/tiny-masks

A learned prompt of colour, shape, size and place stands for [SEG] and goes to the tuned decoder; clicks and boxes go
to the original one; on short clips memory carries masks through frames that were not prompted. Weights of SAM 2 start
anew, as torch starts them: with transformers' small normal weights the decoders paint everything and never look at
their prompt (docs/log.md). With `--keep` they go on from those of the model, and the prompts, which no checkpoint
holds, are learned anew in the steps without memory. They and the image encoder then stay as they are: the next stage
goes by the former, and the latter becomes worse by steps with memory (docs/log.md). Killed, it goes on from its last
state, `state.pt`, as if nothing had been.
"""

import argparse
import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from sama.data.toy_clip import Clip
from sama.data.toy_shapes import COLOURS, SHAPES, SIZES
from sama.data.toy_world import ToyWorld
from sama.losses_sama import mask_bce, mask_dice, mask_iou, resize_targets
from sama.modeling_sama import SamaForConditionalGeneration
from sama.modeling_sama_tracker import SamaMaskTracker
from sama.processing_sama import SamaProcessor
from sama.scripts.tiny_facts import colours_of_cells


FRAMES, CLIP_FRAMES = 16, 5  # of a toy clip; of them, those that a step with memory sees
STRIDES = 3  # a step with memory sees neighbours, every second frame or every third one
IMAGES, CLIPS = 16, 4  # in a step without memory, and in one with it
WARM_UP, FLOOR, WEIGHT_DECAY = 50, 0.05, 0.01
# Masks of small things are few pixels: dice weighs as much as BCE, other than in the published recipe
BCE_WEIGHT, DICE_WEIGHT, IOU_WEIGHT, PRESENCE_WEIGHT = 2.0, 2.0, 0.1, 0.2
LEFT_OUT = 0.15  # how often a colour or shape is not told, where the rest still decides
CELLS_WEIGHT = 20.0
# Features that grow drown the positions that are added to them, which are about 1 large (docs/log.md)
SCALE_WEIGHT = 0.1
NO_POINT = -10  # SAM 2's label of padding


class AttributePrompts(nn.Module):
    """What stands for [SEG] here: things by their look and, where that does not decide, their way through the clip."""

    def __init__(self, width: int):
        super().__init__()
        self.words = nn.ModuleList(nn.Embedding(len(kind) + 1, width) for kind in (COLOURS, SHAPES, SIZES))
        self.place = nn.Sequential(nn.Linear(7, width), nn.ReLU(), nn.Linear(width, width))
        self.mix = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        # As large as SAM 2's embeddings of points: what is smaller is not heard beside them (docs/log.md)
        self.level = nn.LayerNorm(width)

    def forward(self, looks: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Looks (num_objects, 3), the last index of a kind standing for "not told", and places (num_objects, 7), zeros
        where they are not told, to prompts (num_objects, width)."""
        words = [embedding(looks[:, number]) for number, embedding in enumerate(self.words)]
        told = sum(words) + self.place(places)
        return self.level(told + self.mix(told))


def look_of(clip: Clip) -> np.ndarray:
    """Colour, shape and size of each thing as numbers, (num_objects, 3)."""
    kinds = [list(kind) for kind in (COLOURS, SHAPES, SIZES)]
    looks = [(thing.colour, thing.shape, thing.size) for thing in clip.things]
    return np.array([[kind.index(word) for kind, word in zip(kinds, look, strict=True)] for look in looks])


def place_of(masks: np.ndarray) -> np.ndarray:
    """Mean, first and last centre of each thing's visible pixels, x before y, in shares of the picture, and a 1:
    (num_objects, 7); zeros for what is never seen."""
    height, width = masks.shape[-2:]
    rows, columns = (np.arange(side) + 0.5 for side in (height, width))
    places = np.zeros((len(masks), 7), dtype=np.float32)
    for place, track in zip(places, masks, strict=True):
        seen = track[track.any(axis=(1, 2))]
        if len(seen):
            area = seen.sum(axis=(1, 2))
            x, y = (seen.sum(1) @ columns / area / width), (seen.sum(2) @ rows / area / height)
            place[:] = (x.mean(), y.mean(), x[0], y[0], x[-1], y[-1], 1)
    return places


def describe(clip: Clip, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Looks and places of a clip's things as [`AttributePrompts`] takes them; what does not decide is left out at
    times, as it is in questions."""
    looks, places = look_of(clip), place_of(clip.masks)
    told = looks.copy()
    for number, look in enumerate(looks):
        others = np.delete(looks, number, axis=0)
        unique = not (others == look).all(1).any()
        if unique and rng.random() < 0.5:
            places[number] = 0
        for kind, unknown in enumerate((len(COLOURS), len(SHAPES), len(SIZES))):
            trial = told[number].copy()
            trial[kind] = unknown
            known = trial != (len(COLOURS), len(SHAPES), len(SIZES))
            decides = places[number].any() or not (others[:, known] == look[known]).all(1).any()
            if decides and rng.random() < (0.5 if kind == 2 else LEFT_OUT):
                told[number] = trial
    return torch.from_numpy(told), torch.from_numpy(places)


def point_at(mask: np.ndarray, size: int, rng: np.random.Generator) -> tuple[list, list]:
    """A click or a box on a mask, as two points with labels, in pixels of a square of `size`."""
    rows, columns = np.nonzero(mask)
    y_scale, x_scale = size / mask.shape[0], size / mask.shape[1]
    if rng.random() < 0.5:
        chosen = rng.integers(len(rows))
        return [[(columns[chosen] + 0.5) * x_scale, (rows[chosen] + 0.5) * y_scale], [0, 0]], [1, NO_POINT]
    corners = [[columns.min() * x_scale, rows.min() * y_scale]]
    return [*corners, [(columns.max() + 1) * x_scale, (rows.max() + 1) * y_scale]], [2, 3]


class MaskLesson:
    """The steps of this stage: a tracker and its prompts, on clips that are drawn by their number."""

    def __init__(self, tracker: SamaMaskTracker, processor: SamaProcessor, seed: int, split: str = "train"):
        self.tracker, self.processor, self.seed = tracker, processor, seed
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            width = tracker.config.sam_config.prompt_encoder_config.hidden_size
            self.prompts, self.cells = AttributePrompts(width), nn.Linear(width, len(COLOURS))
        moving = {"dialogue": 3, "refer_look": 1, "refer_motion": 1, "caption": 1}
        self.world = ToyWorld({"frames": [FRAMES, FRAMES], "split": split, "tasks": moving}, seed)
        self.generator = torch.Generator()

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
        chosen = torch.randint(masks.shape[2], (*masks.shape[:2], 1), generator=self.generator)
        return (
            masks.take_along_dim(chosen[..., None, None], 2),
            predicted_iou.take_along_dim(chosen, 2),
            tokens.take_along_dim(chosen[..., None], 2),
            object_score,
        )

    def clip(self, index: int) -> Clip:
        return self.world.play(index)[1]

    def pixels(self, frames: np.ndarray) -> torch.Tensor:
        """Frames (num_frames, height, width, 3) as SAM 2 takes them."""
        return torch.stack([self.processor.sam_pixel_values(frame) for frame in frames])

    def image_loss(self, clips: list[Clip], rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        """One frame of each clip: its things by attributes, and those in sight by a click or a box."""
        tracker, size = self.tracker, self.processor.sam_image_size
        chosen = rng.integers(FRAMES, size=len(clips))
        masks = [clip.masks[:, frame] for clip, frame in zip(clips, chosen, strict=True)]
        looks, places = zip(*(describe(clip, rng) for clip in clips), strict=True)
        features = tracker.encode_frames(
            self.pixels(np.stack([clip.frames[frame] for clip, frame in zip(clips, chosen, strict=True)]))
        )
        grid = features.image.shape[-1]
        held = [colours_of_cells(clip, [frame], grid)[0, ..., 0] for clip, frame in zip(clips, chosen, strict=True)]
        found = self.cells(features.image.flatten(2).transpose(1, 2))  # (frames, cells, colours)
        cells_loss = CELLS_WEIGHT * F.mse_loss(found, torch.from_numpy(np.stack(held)))
        scale = features.image.square().mean()
        features = features.take(torch.tensor([row for row, own in enumerate(masks) for _ in own]))
        masks = np.concatenate(masks)
        prompts = self.prompts(torch.cat(looks), torch.cat(places))
        by_words = tracker.segment_prompted(features, prompts.unsqueeze(1))
        loss, overlap, present = self.compare(by_words, masks)
        seen = present.nonzero().flatten()
        points, labels = zip(*(point_at(masks[row], size, rng) for row in seen.tolist()), strict=True)
        labels = torch.tensor(labels, dtype=torch.int32)
        by_points = tracker.segment_points(features.take(seen), torch.tensor(points, dtype=torch.float32), labels)
        loss_of_points, overlap_of_points, _ = self.compare(by_points, masks[seen.numpy()])
        report = {"words": overlap[seen].mean().item(), "points": overlap_of_points.mean().item()}
        loss = loss + loss_of_points + cells_loss + SCALE_WEIGHT * F.relu(scale - 1)
        return loss, report | {"cells": cells_loss.item(), "scale": scale.item()}

    def clip_loss(self, clip: Clip, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        """Some frames of a clip, one or two of them prompted by attributes, the others reached by memory."""
        stride = rng.integers(1, STRIDES + 1)
        frames = rng.integers(FRAMES - stride * (CLIP_FRAMES - 1)) + stride * np.arange(CLIP_FRAMES)
        prompted = sorted(rng.choice(CLIP_FRAMES, rng.integers(1, 3), replace=False).tolist())
        loss, overlap, present, reached = self.follow(clip, frames, prompted, describe(clip, rng))
        seen = reached & (present > 0)
        return loss, {"memory": overlap[seen].mean().item()} if seen.any() else {}

    def follow(self, clip: Clip, frames: np.ndarray, prompted: list[int], words: tuple) -> tuple[torch.Tensor, ...]:
        """Loss, IoU, presence and whether it was reached by memory, of each thing in each of these frames."""
        features = self.tracker.encode_frames(self.pixels(clip.frames[frames]))
        track = self.tracker.track(
            self.prompts(*words), len(frames), prompted, lambda index: features.take(torch.tensor([index]))
        )
        found = sorted(track, key=lambda frame: frame.frame_index)
        masks = clip.masks[:, frames].swapaxes(0, 1).reshape(-1, *clip.masks.shape[-2:])
        reached = torch.tensor([not frame.prompted for frame in found]).repeat_interleave(len(clip.masks))
        return *self.compare_all(found, masks), reached

    def compare(self, found, masks: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """[`losses`] of masks found one in a frame."""
        return losses(found.open_logits[:, 0], found.predicted_iou[:, 0], found.object_score[:, 0], masks)

    def compare_all(self, found: list, masks: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """[`losses`] of tracked frames."""
        parts = [torch.cat([vars(one)[name] for one in found]) for name in ("open_logits", "predicted_iou")]
        return losses(*parts, torch.cat([one.object_score for one in found]), masks)


def losses(
    mask_logits: torch.Tensor, predicted_iou: torch.Tensor, object_score: torch.Tensor, masks: np.ndarray
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The loss of all masks together, and the IoU and presence (num_masks,) of each; `masks` (num_masks, height,
    width)."""
    targets = resize_targets([torch.from_numpy(masks)[:, None]], mask_logits.shape[-2:], mask_logits.device)
    bce = mask_bce(mask_logits.flatten(1), targets.flatten(1)).mean()
    dice = mask_dice(mask_logits.flatten(1), targets.flatten(1)).mean()
    overlap, present = mask_iou(mask_logits, targets), targets.flatten(1).any(1).float()
    iou = (predicted_iou - overlap).abs().mean()
    presence = F.binary_cross_entropy_with_logits(object_score, present)
    loss = BCE_WEIGHT * bce + DICE_WEIGHT * dice + IOU_WEIGHT * iou + PRESENCE_WEIGHT * presence
    return loss, overlap, present


def start_anew(tracker: SamaMaskTracker, seed: int) -> None:
    """Draws the weights of all layers as torch does."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for module in tracker.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                module.reset_parameters()


def rate(step: int, steps: int) -> float:
    """Share of the learning rate: a warm-up, then a cosine down to `FLOOR`."""
    wave = 0.5 * (1 + math.cos(math.pi * step / steps))
    return min(1.0, (step + 1) / WARM_UP) * (FLOOR + (1 - FLOOR) * wave)


def learn(lesson: MaskLesson, arguments: argparse.Namespace, state_path: Path) -> None:
    """The steps of both phases: `image_steps` on frames alone, then `clip_steps`, three of four on clips."""
    parts = nn.ModuleDict({"tracker": lesson.tracker, "prompts": lesson.prompts, "cells": lesson.cells})
    parameters = [*parts.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=arguments.learning_rate, weight_decay=WEIGHT_DECAY)
    first, steps, sums = 0, arguments.image_steps + arguments.clip_steps, {}
    if state_path.is_file():
        state = torch.load(state_path, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
        print(f"going on from step {first}")
    schedules = (0, arguments.image_steps, steps) if arguments.keep else (0, steps)
    settled = nn.ModuleList([lesson.prompts, lesson.tracker.sam.vision_encoder])
    for step in range(first, steps):
        if arguments.keep:
            settled.requires_grad_(step < arguments.image_steps)
        rng = np.random.default_rng([arguments.seed, step])
        torch.manual_seed(arguments.seed + step)  # dropout in the memory
        start, end = next(bounds for bounds in pairwise(schedules) if step < bounds[1])
        for group in optimizer.param_groups:
            group["lr"] = arguments.learning_rate * rate(step - start, end - start)
        optimizer.zero_grad()
        with_memory = step >= arguments.image_steps and step % 4
        clips = [lesson.clip(step * IMAGES + number) for number in range(CLIPS if with_memory else IMAGES)]
        groups = [[clip] for clip in clips] if with_memory else [clips]
        for number, group in enumerate(groups):
            with lesson.any_candidate(step * len(groups) + number):
                loss, report = lesson.clip_loss(group[0], rng) if with_memory else lesson.image_loss(group, rng)
            (loss / len(groups)).backward()
            for name, value in report.items():
                sums.setdefault(name, []).append(value)
        nn.utils.clip_grad_norm_([each for each in parameters if each.grad is not None], 1.0)
        optimizer.step()
        if (step + 1) % arguments.log_steps == 0 or step + 1 == steps:
            print(f"step {step + 1}: IoU by", ", ".join(f"{k} {np.mean(v):.3f}" for k, v in sums.items()), flush=True)
            sums = {}
        if (step + 1) % arguments.save_steps == 0 or step + 1 == steps:
            state = {name: part.state_dict() for name, part in parts.items()}
            unfinished = state_path.with_suffix(".unfinished")
            torch.save(state | {"optimizer": optimizer.state_dict(), "step": step + 1}, unfinished)
            unfinished.replace(state_path)


@torch.no_grad()
def examine(lesson: MaskLesson, prompts: AttributePrompts, count: int) -> dict[str, float]:
    """On other clips, told in full and prompted on the first and a middle frame: mean IoU where things are in
    sight."""
    lesson.prompts = prompts
    overlaps = {False: [], True: []}
    for index in range(count):
        clip = lesson.clip(index)
        words = torch.from_numpy(look_of(clip)), torch.from_numpy(place_of(clip.masks))
        _, overlap, present, reached = lesson.follow(clip, np.arange(FRAMES), [0, FRAMES // 2], words)
        for memory in (False, True):
            overlaps[memory] += overlap[(reached == memory) & (present > 0)].tolist()
    return {"prompted": float(np.mean(overlaps[False])), "by memory": float(np.mean(overlaps[True]))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a small SAMA, as scripts/make_tiny.py makes it")
    parser.add_argument("--to", type=Path, required=True, help="folder of the result")
    parser.add_argument("--image-steps", type=int, default=3000, help="steps on frames alone")
    parser.add_argument("--clip-steps", type=int, default=3000, help="steps after them, three of four with memory")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--keep", action="store_true", help="start from the model's weights, not from new ones")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log-steps", type=int, default=50)
    parser.add_argument("--save-steps", type=int, default=200)
    parser.add_argument("--examined", type=int, default=100, help="clips that the result is tried on")
    arguments = parser.parse_args()
    model = SamaForConditionalGeneration.from_pretrained(arguments.model, dtype=torch.float32)
    processor = SamaProcessor.from_pretrained(arguments.model, trust_remote_code=True)
    tracker = model.model.mask_tracker.train()
    if not arguments.keep:
        start_anew(tracker, arguments.seed)
    lesson = MaskLesson(tracker, processor, arguments.seed)
    arguments.to.mkdir(parents=True, exist_ok=True)
    learn(lesson, arguments, arguments.to / "state.pt")
    found = examine(MaskLesson(tracker.eval(), processor, arguments.seed, "val"), lesson.prompts, arguments.examined)
    print("other clips:", ", ".join(f"{name} {value:.3f}" for name, value in found.items()))
    model.save_pretrained(arguments.to)
    processor.save_pretrained(arguments.to)


if __name__ == "__main__":
    main()
