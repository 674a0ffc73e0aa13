"""Memory and time of a training step with each saving of `train.py` on and off, as a Markdown table.

    python profiling/training.py [--model checkpoints/sama-tiny] [--steps 3]

The model has the classes and the processor of a checkpoint at sizes that a CPU can still train and at which it shows
where memory goes; its weights are random, and what is trained is the published recipe. What the product always does is
switched off here, not there. Each row is a process of its own, so that its peak of memory is its own. Bytes kept for
the backward pass and counts are the same everywhere; memory and time are not.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import torch
from torch.nn import functional as F

from sama.configuration_sama import SamaConfig
from sama.data.collator import IGNORED, SamaCollator
from sama.data.rendering import Renderer, RenderSettings
from sama.drawing.tables import markdown_table
from sama.modeling_sama import SamaForConditionalGeneration
from sama.processing_sama import SamaProcessor
from sama.toy_world.world import ToyWorld
from sama.training.parts import PUBLISHED_PARTS, freeze_all_but, hold_trained_in_float32
from sama.video_sama import SamaVideo


ROOT = Path(__file__).resolve().parent.parent
SAMPLES = 2
FRAME_SIZE, PATCH_SIZE, FRAME_TOKENS, SAM_SIZE = 224, 14, 64, 256
TEXT = {
    "vocab_size": 48000, "hidden_size": 384, "intermediate_size": 1152, "num_hidden_layers": 6,
    "num_attention_heads": 6, "num_key_value_heads": 2,
}  # fmt: skip
VISION = {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 6}
WORLD = {
    "height": FRAME_SIZE, "width": FRAME_SIZE, "frames": [16, 16], "things": [3, 3], "turns": [3, 3],
    "tasks": {"dialogue": 1},
}  # fmt: skip
MIB = 2**20


@dataclass
class Setup:
    """A model, a batch, and what a variant may change: in which precision it computes, and what it counts."""

    model: SamaForConditionalGeneration
    batch: dict
    autocast: bool = False
    counts: dict[str, int] = field(default_factory=dict)


def larger_config(path: str) -> SamaConfig:
    """The configuration of a checkpoint at the sizes of this file."""
    settings = SamaConfig.from_pretrained(path).to_dict()
    text, vision, sam = (settings[name] for name in ("text_config", "vision_config", "sam_config"))
    text.pop("layer_types")  # one for each layer, of which there are others now
    text.update(TEXT)
    vision.update(VISION | {"image_size": [FRAME_SIZE] * 2, "patch_size": [PATCH_SIZE] * 2})
    backbone = sam["vision_config"]["backbone_config"]
    backbone["image_size"] = [SAM_SIZE] * 2
    sam["vision_config"]["backbone_feature_sizes"] = [[SAM_SIZE // stride] * 2 for stride in (4, 8, 16)]
    sam["image_size"] = sam["prompt_encoder_config"]["image_size"] = SAM_SIZE
    sam["memory_attention_rope_feat_sizes"] = [SAM_SIZE // 16] * 2
    return SamaConfig(**settings | {"image_seq_length": FRAME_TOKENS})


def make_batch(path: str) -> dict:
    """Dialogues of toy world, every object of an answer with its masks, as the Trainer collates them."""
    processor = SamaProcessor.from_pretrained(
        path,
        trust_remote_code=True,
        image_size=FRAME_SIZE,
        image_seq_length=FRAME_TOKENS,
        sam_image_size=SAM_SIZE,
    )
    render, world = Renderer(processor, RenderSettings(regions="mask")), ToyWorld(WORLD)
    samples = []
    for index in range(SAMPLES):
        frames, record, _ = world[index]
        samples.append(render(record, SamaVideo.open(list(frames)), None, np.random.default_rng(index)))
    return SamaCollator(processor)(samples)


# What can be on or off


def head_everywhere(setup: Setup) -> None:
    """The head runs at every position, and what has no label is left out of the loss afterwards."""
    model = setup.model

    def score_labels(hidden_states, labels, num_items_in_batch):
        targets = labels[:, 1:]
        logits = model.lm_head(hidden_states[:, :-1])
        loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
        return logits[targets != IGNORED], loss

    model.score_labels = score_labels


def encoder_with_graph(setup: Setup) -> None:
    """SAM 2's image encoder as if it were trained: everything in it is kept for a backward pass."""
    setup.model.model.mask_tracker.sam.vision_encoder.requires_grad_(True)


def frames_for_each_use(setup: Setup) -> None:
    """A frame is encoded again where it is dense, where a region lies on it, and by SAM 2 for every object."""
    batch, tracker = setup.batch, setup.model.model.mask_tracker
    uses, pixels = torch.cat([batch["dense_frames"], batch["region_frames"]]), batch["pixel_values"]
    batch["pixel_values"] = torch.cat([pixels, pixels[uses]])
    batch["num_extra_frames"][-1] += len(uses)  # behind all others, as frames that only carry a region
    rows = len(pixels) + torch.arange(len(uses), device=uses.device)
    num_dense = len(batch["dense_frames"])
    batch["dense_frames"], batch["region_frames"] = rows[:num_dense], rows[num_dense:]
    objects = torch.tensor([len(masks) for masks in batch["target_masks"]])
    repeats = objects.repeat_interleave(batch["sam_frame_counts"].cpu())
    frames = torch.arange(len(repeats)).repeat_interleave(repeats)
    encode_frames = tracker.encode_frames
    tracker.encode_frames = lambda pixels: encode_frames(pixels[frames]).take(repeats.cumsum(0) - repeats)


def checkpointing(setup: Setup) -> None:
    """Layers keep their inputs alone, and are computed again in the backward pass: `--gradient_checkpointing`."""
    setup.model.gradient_checkpointing_enable({"use_reentrant": False})


def bfloat16(setup: Setup) -> None:
    """`--dtype bfloat16 --bf16`: frozen weights and products in bfloat16, trained weights in float32."""
    setup.model.to(torch.bfloat16)
    hold_trained_in_float32(setup.model)
    setup.autocast = True


ALWAYS = (head_everywhere, encoder_with_graph, frames_for_each_use)
VARIANTS: dict[str, Sequence[Callable[[Setup], None]]] = {
    "default: float32, no checkpointing": (),
    "logits at all positions": (head_everywhere,),
    "SAM 2's frozen encoder with a graph": (encoder_with_graph,),
    "frames encoded for each use": (frames_for_each_use,),
    "all three": ALWAYS,
    "gradient checkpointing": (checkpointing,),
    "bfloat16": (bfloat16,),
    "checkpointing and bfloat16": (checkpointing, bfloat16),
}


# Measuring


class SavedBytes:
    """Bytes that autograd keeps for the backward pass, each tensor once. Weights are left out."""

    def __init__(self, model: torch.nn.Module):
        self.known = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        self.total = 0

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.known:
            self.known.add(storage.data_ptr())
            self.total += storage.nbytes()
        return tensor

    def counting(self):
        """While it is entered, what is kept is counted."""
        return torch.autograd.graph.saved_tensors_hooks(self.keep, lambda tensor: tensor)


def count_rows(setup: Setup) -> None:
    """Counts what goes through the head, the vision tower and SAM 2's encoder, in rows of their inputs."""
    inner = setup.model.model
    modules = {
        "head": setup.model.lm_head,
        "vision": inner.vision_tower,
        "sam": inner.mask_tracker.sam.vision_encoder,
    }
    for name, module in modules.items():

        def add(_, args, kwargs, name=name):
            given = args[0] if args else kwargs["pixel_values"]
            setup.counts[name] = given.numel() // given.shape[-1] if name == "head" else len(given)

        module.register_forward_pre_hook(add, with_kwargs=True)


def peak_memory(device: str) -> float:
    """The most memory of this process so far, in bytes."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def clock(device: str) -> float:
    """Seconds: of this process's own work on one thread, which other programs do not disturb; of the wall on a GPU."""
    if device == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def measure(path: str, variant: str, steps: int) -> dict[str, float]:
    """What training steps of a variant need; to be called in a fresh process."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(1)
    torch.manual_seed(0)
    batch = make_batch(path)
    empty = 0 if device == "cuda" else psutil.Process().memory_info().rss
    model = SamaForConditionalGeneration(larger_config(path)).train().to(device)
    batch = {name: value.to(device) if name != "target_masks" else value for name, value in batch.items()}
    freeze_all_but(model, PUBLISHED_PARTS)
    optimizer = torch.optim.AdamW(parameter for parameter in model.parameters() if parameter.requires_grad)
    setup = Setup(model, batch)
    for change in VARIANTS[variant]:
        change(setup)
    count_rows(setup)
    saved, times = SavedBytes(model), []
    for step in range(steps + 1):  # the first is not timed: the optimiser makes its state
        start = clock(device)
        with torch.autocast(device, torch.bfloat16, enabled=setup.autocast):
            with saved.counting() if step == 0 else nullcontext():
                loss = model(**setup.batch, use_cache=False).loss
        loss.backward()
        optimizer.step()
        model.zero_grad()
        times.append(clock(device) - start)
    found = {"peak": peak_memory(device) - empty, "saved": saved.total, "seconds": statistics.median(times[1:])}
    return found | setup.counts


def measure_training(path: str, steps: int = 3) -> str:
    """The table, a process for each row."""
    rows, first = [], None
    for variant in VARIANTS:
        command = [sys.executable, __file__, "--model", path, "--steps", str(steps), "--variant", variant]
        printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1]
        found = json.loads(printed)
        first = first or found
        cells = [f"{found[name] / first[name]:.2f}" for name in ("peak", "saved", "seconds")]
        rows.append([variant, *cells, found["head"], found["vision"], found["sam"]])
    rows[0][1:4] = [f"{first['peak'] / MIB:.0f} MiB", f"{first['saved'] / MIB:.0f} MiB", f"{first['seconds']:.1f} s"]
    header = ["training step", "peak memory", "kept for backward", "time", "rows of the head"]
    header += ["frames through the vision tower", "frames through SAM 2"]
    return markdown_table(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "checkpoints" / "sama-tiny"), help="checkpoint folder")
    parser.add_argument("--steps", type=int, default=3, help="steps that are timed, after one to warm up")
    parser.add_argument("--variant", choices=VARIANTS, help="measure this one here, and print its numbers as JSON")
    arguments = parser.parse_args()
    if arguments.variant:
        print(json.dumps(measure(arguments.model, arguments.variant, arguments.steps)))
    else:
        print(measure_training(arguments.model, arguments.steps))


if __name__ == "__main__":
    main()
