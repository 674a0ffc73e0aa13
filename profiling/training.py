"""Memory and time of a training step with each optimization of `train.py` on and off, as a Markdown table.

    python profiling/training.py [--model checkpoints/sama-tiny] [--steps 3]

The model has a checkpoint's classes and processor, random weights, and sizes that a CPU can train; the published parts
are trained. Optimizations that are always on are disabled here by patching the model. Each row runs in its own
process, so that peak memory is measured separately. Saved bytes and counts are the same on every machine; memory and
time are not.
"""

import argparse
import json
import re
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
    """A model and a batch, which a variant may change, whether to use autocast, and the counts of [`count_rows`]."""

    model: SamaForConditionalGeneration
    batch: dict
    autocast: bool = False
    counts: dict[str, int] = field(default_factory=dict)


def larger_config(path: str) -> SamaConfig:
    """A checkpoint's configuration with the sizes of this file."""
    settings = SamaConfig.from_pretrained(path).to_dict()
    backbone, sam = settings["backbone_config"], settings["mask_config"]
    backbone["image_seq_length"] = FRAME_TOKENS
    text, vision = backbone["text_config"], backbone["vision_config"]
    text.pop("layer_types")  # one per layer, whose number changes
    text.update(TEXT)
    vision.update(VISION | {"image_size": [FRAME_SIZE] * 2, "patch_size": [PATCH_SIZE] * 2})
    sam["vision_config"]["backbone_config"]["image_size"] = [SAM_SIZE] * 2
    sam["vision_config"]["backbone_feature_sizes"] = [[SAM_SIZE // stride] * 2 for stride in (4, 8, 16)]
    sam["image_size"] = sam["prompt_encoder_config"]["image_size"] = SAM_SIZE
    sam["memory_attention_rope_feat_sizes"] = [SAM_SIZE // 16] * 2
    return SamaConfig(**settings)


def make_batch(path: str) -> dict:
    """A collated batch of toy-world dialogues with masks."""
    saved = SamaProcessor.from_pretrained(path, trust_remote_code=False, image_size=FRAME_SIZE)  # asks otherwise
    parts = (saved.image_processor, saved.tokenizer, saved.qformer_tokenizer, saved.chat_template)
    processor = SamaProcessor(*parts, config=larger_config(path))
    render, world = Renderer(processor, RenderSettings(regions="mask")), ToyWorld(WORLD)
    samples = []
    for index in range(SAMPLES):
        frames, record, _ = world[index]
        samples.append(render(record, SamaVideo.open(list(frames)), None, np.random.default_rng(index)))
    return SamaCollator(processor)(samples)


# Variants


def head_everywhere(setup: Setup) -> None:
    """Runs the head at every position, and ignores positions without a label in the loss."""
    model = setup.model

    def score_labels(hidden_states, labels, num_items_in_batch):
        targets = labels[:, 1:]
        logits = model.lm_head(hidden_states[:, :-1])
        loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
        return logits[targets != IGNORED], loss

    model.score_labels = score_labels


def encoder_with_graph(setup: Setup) -> None:
    """Keeps the autograd graph of SAM 2's image encoder, as if it were trained."""
    setup.model.model.mask_tracker.sam.vision_encoder.requires_grad_(True)


def frames_for_each_use(setup: Setup) -> None:
    """Encodes a frame again for its dense tokens and for each region, and in SAM 2 for each object."""
    batch, tracker = setup.batch, setup.model.model.mask_tracker
    uses, pixels = torch.cat([batch["dense_frames"], batch["region_frames"]]), batch["pixel_values"]
    batch["pixel_values"] = torch.cat([pixels, pixels[uses]])
    batch["num_extra_frames"][-1] += len(uses)  # after all others, like frames that only have a region
    rows = len(pixels) + torch.arange(len(uses), device=uses.device)
    num_dense = len(batch["dense_frames"])
    batch["dense_frames"], batch["region_frames"] = rows[:num_dense], rows[num_dense:]
    objects = torch.tensor([len(masks) for masks in batch["target_masks"]])
    repeats = objects.repeat_interleave(batch["sam_frame_counts"].cpu())
    frames = torch.arange(len(repeats)).repeat_interleave(repeats)
    encode_frames = tracker.encode_frames
    starts = repeats.cumsum(0) - repeats
    tracker.encode_frames = lambda pixels, **settings: encode_frames(pixels[frames], **settings).take(starts)


def checkpointing(setup: Setup) -> None:
    """`--gradient_checkpointing`: layers keep only their inputs and are recomputed in the backward pass."""
    setup.model.gradient_checkpointing_enable({"use_reentrant": False})


def bfloat16(setup: Setup) -> None:
    """`--dtype bfloat16 --bf16`: frozen weights and computation in bfloat16, trained weights in float32."""
    setup.model.to(torch.bfloat16)
    hold_trained_in_float32(setup.model)
    setup.autocast = True


ALWAYS = (head_everywhere, encoder_with_graph, frames_for_each_use)
VARIANTS: dict[str, Sequence[Callable[[Setup], None]]] = {
    "default: float32, no checkpointing": (),
    "logits at all positions": (head_everywhere,),
    "SAM 2's frozen encoder with autograd": (encoder_with_graph,),
    "frames encoded for each use": (frames_for_each_use,),
    "all three": ALWAYS,
    "gradient checkpointing": (checkpointing,),
    "bfloat16": (bfloat16,),
    "checkpointing and bfloat16": (checkpointing, bfloat16),
}


# Measuring


class SavedBytes:
    """Bytes that autograd saves for the backward pass; each storage counts once, weights do not count."""

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
        """A context manager in which saved tensors are counted."""
        return torch.autograd.graph.saved_tensors_hooks(self.keep, lambda tensor: tensor)


def count_rows(setup: Setup) -> None:
    """Counts the input rows of the head, and the frames through the vision tower and SAM 2's image encoder."""
    inner = setup.model.model
    modules = {
        "head": setup.model.lm_head,
        "vision": inner.backbone.vision_tower,
        "sam": inner.mask_tracker.sam.vision_encoder,
    }
    for name, module in modules.items():

        def add(_, args, kwargs, name=name):
            given = args[0] if args else kwargs["pixel_values"]
            setup.counts[name] = given.numel() // given.shape[-1] if name == "head" else len(given)

        module.register_forward_pre_hook(add, with_kwargs=True)


def peak_memory(device: str) -> float:
    """Peak memory of this process in bytes."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.is_file():  # not getrusage, whose value for a new process includes its parent's peak
        return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def clock(device: str) -> float:
    """Time in seconds: CPU time of this process, which other programs do not affect, or wall time on a GPU."""
    if device == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def measure_variant(path: str, variant: str, steps: int) -> dict[str, float]:
    """Memory, time and counts of a variant's training steps; to be called in a new process."""
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
    for step in range(steps + 1):  # the first, which creates the optimizer state, is not timed
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
    """The table, measured in one process per row."""
    rows, first = [], None
    for variant in VARIANTS:
        command = [sys.executable, __file__, "--model", path, "--steps", str(steps), "--variant", variant]
        printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1]
        found = json.loads(printed)
        first = first or found
        cells = [f"{found[name] / first[name]:.2f}" for name in ("peak", "saved", "seconds")]
        rows.append([variant, *cells, found["head"], found["vision"], found["sam"]])
    rows[0][1:4] = [f"{first['peak'] / MIB:.0f} MiB", f"{first['saved'] / MIB:.0f} MiB", f"{first['seconds']:.1f} s"]
    header = ["training step", "peak memory", "saved for backward", "time", "rows through the head"]
    header += ["frames through the vision tower", "frames through SAM 2"]
    return markdown_table(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "checkpoints" / "sama-tiny"), help="checkpoint folder")
    parser.add_argument("--steps", type=int, default=3, help="timed steps after a warmup step")
    parser.add_argument("--variant", choices=VARIANTS, help="measure one variant in this process and print it as JSON")
    arguments = parser.parse_args()
    if arguments.variant:
        print(json.dumps(measure_variant(arguments.model, arguments.variant, arguments.steps)))
    else:
        print(measure_training(arguments.model, arguments.steps))


if __name__ == "__main__":
    main()
