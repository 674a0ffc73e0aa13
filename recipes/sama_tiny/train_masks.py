"""Stage 1 of sama-tiny: train SAM 2 on toy world, before any language model can ask for masks.

    python recipes/sama_tiny/train_masks.py --model outputs/tiny/start --to outputs/tiny/masks

Three phases, each with its own learning rate schedule.

1. Points (`--point-steps`): the image encoder, with auxiliary heads on its patches (heads.py), and the decoder of
   clicks and boxes, on single frames.
2. Prompts (`--prompt-steps`): a learned prompt of colour, shape, size and place replaces [SEG] and goes to the
   fine-tuned decoder, which starts as a copy of the other one, as in SAM 2's checkpoints: a decoder that learned looks
   first does not come to use places (docs/log.md). The image encoder is frozen.
3. Clips (`--clip-steps`): on short clips memory carries the masks through frames without prompt. Prompts are frozen,
   too.

The batch sizes are those of each of two processes (`torchrun --nproc_per_node 2`). An interrupted run resumes from
`state.pt` with identical losses.
"""

import argparse
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from sama.configuration_sama import SamaConfig
from sama.inputs_sama import rows_by_length
from sama.losses_sama import mask_bce, mask_dice, mask_iou
from sama.modeling_sama_tracker import ObjectMasks, SamaMaskTracker, TrackedFrame
from sama.processing_sama import SamaProcessor
from sama.recipes.sama_tiny.heads import Losses, PatchHeads, Tensors
from sama.recipes.sama_tiny.mask_examples import FRAMES, MaskExamples, look_classes, place_of
from sama.recipes.sama_tiny.phases import (
    Batch,
    Phase,
    add_run_arguments,
    folder_with,
    move,
    process_index,
    start,
    train_and_save,
)
from sama.toy_world.shapes import COLOURS, SHAPES, SIZES


# Small objects have few pixels, so dice has the weight of BCE, unlike in the published recipe
BCE_WEIGHT, DICE_WEIGHT, IOU_WEIGHT, PRESENCE_WEIGHT = 2.0, 2.0, 0.1, 0.2
# "scale" keeps features from growing beyond the position encodings added to them, of magnitude 1 (docs/log.md)
MASK_PHASE_WEIGHTS = {"mask": 1.0, "patch looks": 0.3, "occupied": 0.5, "offsets": 3.0, "windows": 3.0, "scale": 0.1}
# Initial weights in a prompt of an object's mean, first and last centre, and of each attribute
CENTRES, WORDS = (1.5, 0.3, 0.3), 0.4


class AttributePrompts(nn.Module):
    """Prompts that replace [SEG] in stage 1: embeddings of an object's appearance and places. Places are encoded like
    SAM 2's points, by Fourier features with the frequencies of its image embedding: given plain coordinates, a decoder
    does not learn to use them (docs/log.md)."""

    def __init__(self, frequencies: torch.Tensor):
        """`frequencies` (2, width / 2): Fourier frequencies of the tracker, see [`of_tracker`]."""
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
        # Same magnitude as SAM 2's point embeddings; smaller prompts are ignored (docs/log.md)
        self.level = nn.LayerNorm(width)

    @classmethod
    def of_tracker(cls, tracker: SamaMaskTracker) -> "AttributePrompts":
        """New prompts with the Fourier frequencies of a tracker."""
        return cls(tracker.sam.shared_image_embedding.positional_embedding)

    def forward(self, looks: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Prompts (num_objects, width) of looks (num_objects, 3), where the last index of an attribute means "not
        given", and places (num_objects, 7), zeros where not given."""
        words = [embedding(looks[:, number]) for number, embedding in enumerate(self.words)]
        centres, known = places[:, :-1].unflatten(1, (len(CENTRES), 2)), places[:, -1:]
        with torch.autocast(places.device.type, enabled=False):  # bfloat16 would round angles by up to 0.03
            angles = 2 * math.pi * (2 * centres - 1) @ self.frequencies
            prompt = sum(words) + known * self.place(torch.cat([angles.sin(), angles.cos()], -1).flatten(1))
            return self.level(prompt + self.mix(prompt))


class MaskLosses:
    """The attribute prompts, auxiliary heads on the image features of the tracker, and the losses of a step."""

    def __init__(self, tracker: SamaMaskTracker, processor: SamaProcessor, seed: int):
        self.tracker, self.processor = tracker, processor
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.prompts = AttributePrompts.of_tracker(tracker)
            self.heads = PatchHeads(tracker.config.mask_config.prompt_encoder_config.hidden_size)
        self.generator = torch.Generator()

    @property
    def modules(self) -> dict[str, nn.Module]:
        """What the phases train, by its name in `state.pt`."""
        return {"tracker": self.tracker, "prompts": self.prompts, "heads": self.heads}

    def copy_decoder(self) -> None:
        """Let the decoder of prompts start as a copy of that of clicks and boxes."""
        self.tracker.sam.mask_decoder.load_state_dict(self.tracker.original_mask_decoder.state_dict())

    @contextmanager
    def any_candidate(self, seed: torch.Tensor) -> Iterator[None]:
        """Make the decoders return a random one of their three candidate masks while the block runs. If the best one
        were trained every time, each candidate would specialise in some colours, and prompts would only select among
        the candidates."""
        self.generator.manual_seed(int(seed))
        decoders = self.tracker.sam.mask_decoder, self.tracker.original_mask_decoder
        handles = [decoder.register_forward_hook(self.choose_candidate) for decoder in decoders]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def choose_candidate(self, module: nn.Module, inputs: tuple, output: tuple) -> tuple[torch.Tensor, ...]:
        """Forward hook of a mask decoder that keeps one candidate per object instead of three."""
        masks, predicted_iou, tokens, object_score = output
        chosen = torch.randint(masks.shape[2], (*masks.shape[:2], 1), generator=self.generator).to(masks.device)
        return (
            masks.take_along_dim(chosen[..., None, None], 2),
            predicted_iou.take_along_dim(chosen, 2),
            tokens.take_along_dim(chosen[..., None], 2),
            object_score,
        )

    def point_losses(self, batch: Batch) -> Losses:
        """Single frames by clicks and boxes, see [`MaskExamples.frame_batch`]."""
        inputs, labels, tracker = batch["inputs"], batch["labels"], self.tracker
        features = tracker.encode_frames(inputs["pixels"])
        losses, metrics = self.heads.losses(features.image.flatten(2).transpose(1, 2), labels)
        scale = features.image.float().square().mean()
        chosen, points, kinds = features.take(inputs["rows"]).take(inputs["seen"]), inputs["points"], inputs["labels"]
        groups = rows_by_length(kinds)
        with self.any_candidate(inputs["seed"]):
            found = [
                tracker.segment_points(chosen.take(rows), points[rows, :end], kinds[rows, :end]).transpose()
                for rows, end in groups
            ]
        order = inputs["seen"][torch.cat([rows for rows, _ in groups])]
        loss, overlap, _ = compare_masks(found, labels["masks"][order], self.processor)
        losses |= {"mask": loss, "scale": F.relu(scale - 1)}
        return losses, metrics | {"points": overlap.mean(), "scale": scale}

    def prompt_losses(self, batch: Batch) -> Losses:
        """Single frames or short clips by attributes."""
        inputs, masks = batch["inputs"], batch["labels"]["masks"]
        prompts = self.prompts(inputs["looks"], inputs["places"]) + inputs["noise"]
        with self.any_candidate(inputs["seed"]):
            if "seen" not in inputs:
                return self.clip_losses(inputs, masks, prompts)
            features = self.tracker.encode_frames(inputs["pixels"]).take(inputs["rows"])
            found = self.tracker.segment_objects(features, prompts)
        loss, overlap, _ = compare_masks([found], masks, self.processor)
        return {"mask": loss}, {"words": overlap[inputs["seen"]].mean()}

    def clip_losses(self, inputs: Tensors, masks: torch.Tensor, prompts: torch.Tensor) -> Losses:
        """Short clips: one or two frames are prompted, memory reaches the others."""
        loss, overlap, present, reached = self.follow(inputs, masks, prompts)
        kinds = {"memory": present & reached, "prompted": present & ~reached}
        return {"mask": loss}, {name: overlap[kind].mean() for name, kind in kinds.items() if kind.any()}

    def follow(self, inputs: Tensors, masks: torch.Tensor, prompts: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Loss of all masks; and IoU, presence and whether it was reached by memory for each mask."""
        features, rows = self.tracker.encode_frames(inputs["pixels"]), inputs["rows"]
        num_clips, num_objects = int(rows.max()) + 1, len(rows)
        num_frames = len(inputs["pixels"]) // num_clips
        track = self.tracker.track(
            prompts,
            num_frames,
            inputs["prompted"].tolist(),
            lambda frame: features.take(frame * num_clips + (rows if num_clips > 1 else rows[:1])),
        )
        found = sorted(track, key=lambda frame: frame.frame_index)
        reached = torch.tensor([not frame.prompted for frame in found], device=rows.device)
        return *compare_masks(found, masks, self.processor), reached.repeat_interleave(num_objects)


def compare_masks(
    found: list[TrackedFrame | ObjectMasks], masks: torch.Tensor, processor: SamaProcessor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Total loss, and IoU and presence (num_masks,) of each mask; bool `masks` (num_masks, height, width), frame by
    frame. Logits are resized to the masks, not vice versa: at the resolution of the logits the best possible
    mask has an IoU of only 0.75 with the true one (docs/log.md)."""
    logits = torch.cat([one.ungated_logits.flatten(0, -3) for one in found]).float()
    iou = torch.cat([one.predicted_iou.flatten() for one in found]).float()
    score = torch.cat([one.object_score.flatten() for one in found]).float()
    logits, targets = processor.resize_mask_logits(logits, *masks.shape[-2:]), masks.float()
    bce = mask_bce(logits.flatten(1), targets.flatten(1)).mean()
    dice = mask_dice(logits.flatten(1), targets.flatten(1)).mean()
    overlap, present = mask_iou(logits, targets), masks.flatten(1).any(1)
    presence = F.binary_cross_entropy_with_logits(score, present.float())
    loss = BCE_WEIGHT * bce + DICE_WEIGHT * dice + IOU_WEIGHT * (iou - overlap).abs().mean()
    return loss + PRESENCE_WEIGHT * presence, overlap, present


def plan(losses: MaskLosses, config: SamaConfig, arguments: argparse.Namespace) -> list[Phase]:
    """The three phases. Masks by clicks stay as the first one leaves them."""
    tracker, rate, fixed = losses.tracker, arguments.learning_rate, (losses.processor, config, arguments)
    sam, before = tracker.sam, arguments.point_steps + arguments.prompt_steps
    points = MaskExamples(*fixed, arguments.point_steps)
    prompts = MaskExamples(*fixed, arguments.prompt_steps, arguments.point_steps)
    clips = MaskExamples(*fixed, arguments.clip_steps, before, memory_steps=arguments.memory_steps)
    encoders = [sam.vision_encoder, sam.prompt_encoder, sam.no_memory_embedding]
    of_points = [*encoders, tracker.original_mask_decoder, losses.heads]
    of_prompts = [sam.mask_decoder, losses.prompts]
    return [
        Phase(points, losses.point_losses, rate, of_points, weights=MASK_PHASE_WEIGHTS),
        Phase(prompts, losses.prompt_losses, rate, of_prompts, weights=MASK_PHASE_WEIGHTS, begin=losses.copy_decoder),
        Phase(clips, losses.prompt_losses, rate, [sam], encoders, weights=MASK_PHASE_WEIGHTS),
    ]


@torch.no_grad()
def evaluate(losses: MaskLosses, config: SamaConfig, arguments: argparse.Namespace) -> dict[str, float]:
    """Mean IoU of visible objects in validation clips, prompted by all attributes in the first and a middle frame."""
    losses.tracker.eval()
    examples, found = MaskExamples(losses.processor, config, arguments, 0, split="val"), defaultdict(list)
    for index in range(arguments.examined):
        clip = examples.clip(index, hiding=0)
        words = [(torch.from_numpy(look_classes(clip)), torch.from_numpy(place_of(clip.masks)))]
        batch = move(examples.collate_clips([clip], [range(FRAMES)], [0, FRAMES // 2], words), arguments.device)
        inputs = batch["inputs"]
        prompts = losses.prompts(inputs["looks"], inputs["places"])
        for name, value in losses.clip_losses(inputs, batch["labels"]["masks"], prompts)[1].items():
            found[name].append(value.item())
    return {name: float(np.mean(values)) for name, values in found.items()}


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of this stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model",
        type=folder_with("config.json"),
        required=True,
        help="a model made by recipes/sama_tiny/initialize.py",
    )
    parser.add_argument("--to", type=Path, required=True, help="output folder")
    parser.add_argument("--point-steps", type=int, default=5000, help="steps on frames, by clicks and boxes")
    parser.add_argument("--prompt-steps", type=int, default=2500, help="steps on frames, by attributes")
    parser.add_argument("--clip-steps", type=int, default=5000, help="steps on clips, some on frames")
    parser.add_argument("--memory-steps", type=int, default=3, choices=range(5), help="clip steps in four with memory")
    parser.add_argument("--images", type=int, default=8, help="frames per step and process without memory")
    parser.add_argument("--clips", type=int, default=2, help="clips per step and process with memory")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--examined", type=int, default=100, help="number of validation clips")
    add_run_arguments(parser)
    return parser.parse_args(argv)


def main() -> None:
    arguments = parse_arguments()
    model, processor = start(arguments.model, arguments)
    losses = MaskLosses(model.model.mask_tracker, processor, arguments.seed)
    for module in losses.modules.values():
        module.to(arguments.device)
    train_and_save(model, processor, plan(losses, model.config, arguments), losses.modules, arguments)
    if not process_index():
        found = evaluate(losses, model.config, arguments)
        print("validation:", ", ".join(f"{name} {value:.3f}" for name, value in found.items()))


if __name__ == "__main__":
    main()
