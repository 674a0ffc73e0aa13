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

An interrupted run resumes from `state.pt` with identical losses.
"""

import argparse
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader, Dataset

from sama.data.files import atomic_path
from sama.losses_sama import mask_bce, mask_dice, mask_iou
from sama.modeling_sama import SamaForConditionalGeneration
from sama.modeling_sama_tracker import ObjectMasks, SamaMaskTracker, TrackedFrame
from sama.processing_sama import SamaProcessor
from sama.recipes.sama_tiny.heads import PatchHeads
from sama.recipes.sama_tiny.mask_examples import FRAMES, MaskExamples, look_of, place_of
from sama.toy_world.shapes import COLOURS, SHAPES, SIZES


WARM_UP, FLOOR, WEIGHT_DECAY = 50, 0.05, 0.01
# Small objects have few pixels, so dice has the weight of BCE, unlike in the published recipe
BCE_WEIGHT, DICE_WEIGHT, IOU_WEIGHT, PRESENCE_WEIGHT = 2.0, 2.0, 0.1, 0.2
HEAD_WEIGHTS = {"patch looks": 0.3, "occupied": 0.5, "offsets": 3.0, "windows": 3.0}
# Keeps features from growing beyond the position encodings added to them, of magnitude 1 (docs/log.md)
SCALE_WEIGHT = 0.1
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
        angles = 2 * math.pi * (2 * centres - 1) @ self.frequencies
        prompt = sum(words) + known * self.place(torch.cat([angles.sin(), angles.cos()], -1).flatten(1))
        return self.level(prompt + self.mix(prompt))


class MaskTraining:
    """The tracker, its attribute prompts, auxiliary heads on its image features, and the losses of a step."""

    def __init__(self, tracker: SamaMaskTracker, processor: SamaProcessor, seed: int):
        self.tracker, self.processor = tracker, processor
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.width = tracker.config.mask_config.prompt_encoder_config.hidden_size
            self.prompts = AttributePrompts.of_tracker(tracker)
            self.heads = PatchHeads(self.width)
        self.generator = torch.Generator()

    @property
    def modules(self) -> dict[str, nn.Module]:
        """What is trained, by its name in `state.pt`."""
        return {"tracker": self.tracker, "prompts": self.prompts, "heads": self.heads}

    def examples(self, arguments: argparse.Namespace) -> MaskExamples:
        """The training batches, at the sizes of this tracker."""
        grid = self.tracker.sam.backbone_feature_sizes[-1][0]
        return MaskExamples(self.processor, grid, self.width, arguments)

    def enter(self, phase: str) -> None:
        """Choose what a phase trains. Masks by clicks stay as the first phase leaves them."""
        sam = self.tracker.sam
        of_points = [sam.vision_encoder, sam.prompt_encoder, self.tracker.original_mask_decoder, self.heads]
        trained = {"points": of_points, "prompts": [sam.mask_decoder, self.prompts], "clips": [sam]}[phase]
        frozen = [sam.vision_encoder, sam.prompt_encoder] if phase == "clips" else []
        for modules, train in ((self.modules.values(), False), (trained, True), (frozen, False)):
            for module in modules:
                module.requires_grad_(train)
        sam.no_memory_embedding.requires_grad_(phase == "points")

    def loss(self, phase: str, example: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        """Loss and metrics of a step of a phase."""
        if phase == "points":
            return self.point_loss(example)
        return self.prompt_loss(example) if "seen" in example else self.clip_loss(example)

    @contextmanager
    def any_candidate(self, step: int) -> Iterator[None]:
        """Make the decoders return a random one of their three candidate masks while the block runs. If the best one
        were trained every time, each candidate would specialise in some colours, and prompts would only select among
        the candidates."""
        self.generator.manual_seed(step)
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

    def point_loss(self, example: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        """Loss and metrics of single frames by clicks and boxes, see [`MaskExamples.frame_batch`]."""
        tracker, seen = self.tracker, example["seen"]
        features = tracker.encode_frames(example["pixels"])
        losses, metrics = self.heads.losses(features.image.flatten(2).transpose(1, 2), example)
        scale = features.image.square().mean()
        chosen = features.take(example["rows"]).take(seen)
        found = tracker.segment_points(chosen, example["points"], example["labels"]).transpose()
        loss, overlap, _ = compare_masks([found], example["masks"][seen], self.processor)
        loss = loss + sum(HEAD_WEIGHTS[name] * value for name, value in losses.items())
        report = {"points": overlap.mean().item(), "scale": scale.item()}
        report |= {name: value.item() for name, value in metrics.items()}
        return loss + SCALE_WEIGHT * F.relu(scale - 1), report

    def prompt_loss(self, example: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        """Loss and metrics of single frames by attributes."""
        features = self.tracker.encode_frames(example["pixels"]).take(example["rows"])
        prompts = self.prompts(example["looks"], example["places"]) + example["noise"]
        found = self.tracker.segment_objects(features, prompts)
        loss, overlap, _ = compare_masks([found], example["masks"], self.processor)
        return loss, {"words": overlap[example["seen"]].mean().item()}

    def clip_loss(self, example: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        """Loss and metrics of short clips: one or two frames are prompted by attributes, memory reaches the others."""
        prompts = self.prompts(example["looks"], example["places"]) + example.get("noise", 0)
        loss, overlap, present, reached = self.follow(example, prompts)
        report = {}
        for name, kind in (("memory", reached), ("prompted", ~reached)):
            if (present & kind).any():
                report[name] = overlap[present & kind].mean().item()
        return loss, report

    def follow(self, example: dict[str, torch.Tensor], prompts: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Loss of all masks; and IoU, presence and whether it was reached by memory for each mask."""
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
    """Total loss, and IoU and presence (num_masks,) of each mask; bool `masks` (num_masks, height, width), frame by
    frame. Logits are resized to the masks, not vice versa: at the resolution of the logits the best possible
    mask has an IoU of only 0.75 with the true one (docs/log.md)."""
    logits = torch.cat([one.ungated_logits.flatten(0, -3) for one in found])
    iou = torch.cat([one.predicted_iou.flatten() for one in found])
    score = torch.cat([one.object_score.flatten() for one in found])
    logits, targets = processor.resize_mask_logits(logits, *masks.shape[-2:]), masks.float()
    bce = mask_bce(logits.flatten(1), targets.flatten(1)).mean()
    dice = mask_dice(logits.flatten(1), targets.flatten(1)).mean()
    overlap, present = mask_iou(logits, targets), masks.flatten(1).any(1)
    presence = F.binary_cross_entropy_with_logits(score, present.float())
    loss = BCE_WEIGHT * bce + DICE_WEIGHT * dice + IOU_WEIGHT * (iou - overlap).abs().mean()
    return loss + PRESENCE_WEIGHT * presence, overlap, present


def schedule(step: int, steps: int) -> float:
    """Factor on the learning rate: linear warm-up, then a cosine decay to `FLOOR`."""
    wave = 0.5 * (1 + math.cos(math.pi * step / steps))
    return min(1.0, (step + 1) / WARM_UP) * (FLOOR + (1 - FLOOR) * wave)


def train(training: MaskTraining, arguments: argparse.Namespace, state_path: Path) -> None:
    """Run the three phases, resuming from `state_path` if it exists."""
    modules = nn.ModuleDict(training.modules).to(arguments.device)
    parameters = [*modules.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=arguments.learning_rate, weight_decay=WEIGHT_DECAY)
    examples = training.examples(arguments)
    first, sums = load_state(state_path, training.modules, optimizer, arguments.device), defaultdict(list)
    for step, example in enumerate(prefetch(examples, first, arguments), start=first):
        phase, start, end = examples.phase(step)
        training.enter(phase)
        if phase == "prompts" and step == start:
            tracker = training.tracker
            tracker.sam.mask_decoder.load_state_dict(tracker.original_mask_decoder.state_dict())
        torch.manual_seed(arguments.seed + step)  # dropout in the memory
        for group in optimizer.param_groups:
            group["lr"] = arguments.learning_rate * schedule(step - start, end - start)
        optimizer.zero_grad()
        with training.any_candidate(step):
            loss, report = training.loss(phase, example)
        loss.backward()
        for name, value in report.items():
            sums[name].append(value)
        nn.utils.clip_grad_norm_([each for each in parameters if each.grad is not None], 1.0)
        optimizer.step()
        last = step + 1 == len(examples)
        if (step + 1) % arguments.log_steps == 0 or last:
            print(f"step {step + 1}:", ", ".join(f"{k} {np.mean(v):.3f}" for k, v in sums.items()), flush=True)
            sums.clear()
        if (step + 1) % arguments.save_steps == 0 or last:
            save_state(state_path, training.modules, optimizer, step + 1)


def folder_with(name: str) -> Callable[[str], Path]:
    """The type of an option that names a folder with this file."""

    def folder(text: str) -> Path:
        if not (Path(text) / name).is_file():
            raise argparse.ArgumentTypeError(f"there is no {Path(text) / name}")
        return Path(text)

    return folder


def load_state(path: Path, modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer, device: str) -> int:
    """Load modules and optimizer if the file exists; the number of steps done so far."""
    if not path.is_file():
        return 0
    state = torch.load(path, weights_only=True, map_location=device)
    for name, module in modules.items():
        module.load_state_dict(state[name])
    optimizer.load_state_dict(state["optimizer"])
    print(f"resuming from step {state['step']}")
    return state["step"]


def save_state(path: Path, modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer, step: int) -> None:
    """Save modules and optimizer atomically."""
    state = {name: module.state_dict() for name, module in modules.items()}
    with atomic_path(path) as temporary:
        torch.save(state | {"optimizer": optimizer.state_dict(), "step": step}, temporary)


def prefetch(examples: Dataset, first: int, arguments: argparse.Namespace) -> Iterator:
    """Examples from index `first` on, moved to the device; generated by `num_workers` processes in advance."""
    if arguments.num_workers:  # an example has many small tensors, each of which would hold an open file
        torch.multiprocessing.set_sharing_strategy("file_system")
    loader = DataLoader(
        examples, batch_size=None, sampler=range(first, len(examples)), num_workers=arguments.num_workers
    )
    for example in loader:
        yield tree_map(lambda part: part.to(arguments.device), example)


@torch.no_grad()
def evaluate(training: MaskTraining, arguments: argparse.Namespace) -> dict[str, float]:
    """Mean IoU of visible objects in validation clips, prompted by all attributes in the first and a middle frame."""
    training.tracker.eval()
    examples, found = training.examples(argparse.Namespace(**vars(arguments) | {"split": "val"})), defaultdict(list)
    for index in range(arguments.examined):
        clip = examples.world.generate(index)[1]
        words = [(torch.from_numpy(look_of(clip)), torch.from_numpy(place_of(clip.masks)))]
        example = examples.clip_batch([clip], [range(FRAMES)], [0, FRAMES // 2], words)
        _, report = training.clip_loss({name: part.to(arguments.device) for name, part in example.items()})
        for name, value in report.items():
            found[name].append(value)
    return {name: float(np.mean(values)) for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model",
        type=folder_with("config.json"),
        required=True,
        help="a model made by recipes/sama_tiny/initialize.py",
    )
    parser.add_argument("--to", type=Path, required=True, help="output folder")
    for name, steps, about in (
        ("point", 1000, "on frames, by clicks and boxes"),
        ("prompt", 800, "on frames, by attributes"),
        ("clip", 1200, "on clips, some on frames"),
    ):
        parser.add_argument(f"--{name}-steps", type=int, default=steps, help=f"steps {about}")
    parser.add_argument("--memory-steps", type=int, default=3, choices=range(5), help="clip steps in four with memory")
    parser.add_argument("--images", type=int, default=16, help="frames per step without memory")
    parser.add_argument("--clips", type=int, default=4, help="clips per step with memory")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--num-workers", type=int, default=0, help="processes that generate clips")
    parser.add_argument("--log-steps", type=int, default=50)
    parser.add_argument("--save-steps", type=int, default=200)
    parser.add_argument("--examined", type=int, default=100, help="number of validation clips")
    arguments = argparse.Namespace(**vars(parser.parse_args()), split="train")
    model = SamaForConditionalGeneration.from_pretrained(arguments.model, dtype=torch.float32)
    processor = SamaProcessor.from_pretrained(arguments.model, trust_remote_code=True)
    tracker = model.model.mask_tracker.train()
    training = MaskTraining(tracker, processor, arguments.seed)
    arguments.to.mkdir(parents=True, exist_ok=True)
    train(training, arguments, arguments.to / "state.pt")
    found = evaluate(training, arguments)
    print("validation:", ", ".join(f"{name} {value:.3f}" for name, value in found.items()))
    model.save_pretrained(arguments.to)
    processor.save_pretrained(arguments.to)


if __name__ == "__main__":
    main()
