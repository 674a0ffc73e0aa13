"""Measurements on a GPU at the released sizes with random weights: memory of a training step compared with the
estimate of `training_memory.py`, tracking with SAM 2 at full size, and attention implementations.

    python profiling/gpu.py [--size 1b] [--section training tracking attention]

Random weights cost the same as trained ones. Times depend on the GPU, whose name is printed.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from sama.configuration_sama import SamaConfig
from sama.conversion.released_sizes import LANGUAGE_MODELS, released_config
from sama.drawing.tables import markdown_table
from sama.modeling_sama import SamaForConditionalGeneration
from sama.profiling.training_memory import GIGABYTE, SETTINGS, Workload, build, ddp, estimate, training_step


PUBLISHED = SETTINGS[0]
TRACKED_FRAMES, PROMPTED = 40, [0, 8, 16, 24, 32]
PROMPT_TOKENS = 8192  # of a conversation up to its first answer


def seconds(action: Callable[[], object], repeats: int = 3) -> float:
    """Shortest wall time of `action` in seconds over several runs, after a warmup run."""
    times = []
    for _ in range(repeats + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        action()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def peak(action: Callable[[], object]) -> float:
    """Peak allocated memory in gigabytes while `action` runs, including what was allocated before."""
    torch.cuda.reset_peak_memory_stats()
    action()
    return torch.cuda.max_memory_allocated() / GIGABYTE


def measure_training(config: SamaConfig) -> str:
    """Memory and time of the published setting: trained weights in float32, bfloat16 autocast, AdamW."""
    workload, rows = Workload(), []
    count, saved = estimate(config, PUBLISHED, workload)
    model = build(config, PUBLISHED)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.float()
    optimizer = torch.optim.AdamW(trained, lr=1e-5)

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            parts = training_step(model, workload)
        sum(part.float().mean() for part in parts).backward()
        optimizer.step()
        optimizer.zero_grad()

    for name, activations in (("off", saved.total), ("on", saved.checkpointed)):
        if name == "on":
            model.gradient_checkpointing_enable({"use_reentrant": False})
        estimated = replace(ddp(count, 1), activations=activations).total / GIGABYTE
        duration = seconds(step)
        rows.append([name, f"{estimated:.1f}", f"{peak(step):.1f}", f"{1000 * duration:.0f}"])
    about = (
        f"{workload.batch} samples of {workload.tokens} tokens, {workload.frames} context frames, {workload.objects} "
    )
    header = ["gradient checkpointing", "GB estimated", "GB measured", "ms per step"]
    return markdown_table(header, rows) + f"\n\n{about}objects in {workload.sam_frames} frames each."


@torch.no_grad()
def measure_tracking(config: SamaConfig) -> str:
    """Frames per second of SAM 2's image encoder alone and of tracking, in float32 and bfloat16."""
    rows, size = [], config.mask_config.image_size
    model = SamaForConditionalGeneration._from_config(config, dtype=torch.float32).eval()
    tracker = model.model.mask_tracker
    del model
    width = config.mask_config.prompt_encoder_config.hidden_size
    for dtype in (torch.float32, torch.bfloat16):
        tracker.to(dtype)
        pixels = torch.zeros(8, 3, size, size, dtype=dtype)
        encoded = 8 / seconds(lambda pixels=pixels: [tracker.encode_frames(frame[None]) for frame in pixels])
        row = [str(dtype).removeprefix("torch."), f"{encoded:.1f}"]
        for objects in (1, 5, 20):
            prompts = torch.randn(objects, width, dtype=dtype)

            def track(prompts=prompts, pixels=pixels) -> None:
                features = lambda index: tracker.encode_frames(pixels[index % 8][None])  # noqa: E731
                for _ in tracker.track(prompts, TRACKED_FRAMES, PROMPTED, features):
                    pass

            duration = seconds(track, repeats=1)
            row.append(f"{TRACKED_FRAMES / duration:.1f} ({peak(track):.1f})")
        rows.append(row)
    header = ["dtype", "frames per second, encoder alone", *(f"with {n} objects (GB)" for n in (1, 5, 20))]
    return (
        markdown_table(header, rows)
        + f"\n\n{TRACKED_FRAMES} frames of {size} pixels, {len(PROMPTED)} of them prompted."
    )


@torch.no_grad()
def measure_attention(config: SamaConfig) -> str:
    """Prefill time and memory of each attention implementation in bfloat16, and the error of its last hidden state
    relative to float32."""
    rows = []
    model = SamaForConditionalGeneration._from_config(config, dtype=torch.bfloat16).eval()
    language = model.model.backbone.language_model
    embeds = torch.randn(1, PROMPT_TOKENS, config.text_config.hidden_size, dtype=torch.bfloat16)

    def prefill() -> torch.Tensor:
        return language(inputs_embeds=embeds.to(language.embed_tokens.weight.dtype), use_cache=False).last_hidden_state

    kinds = {"eager": None, "sdpa, math": SDPBackend.MATH, "sdpa, flash": SDPBackend.FLASH_ATTENTION}
    found = {}
    for name, backend in kinds.items():
        language.set_attn_implementation("eager" if backend is None else "sdpa")
        with sdpa_kernel(backend or SDPBackend.MATH):
            duration = seconds(prefill)
            found[name] = prefill()[:, -1].float(), duration, peak(prefill)
    language.float()
    reference = prefill()[:, -1]
    for name, (state, duration, memory) in found.items():
        error = ((state - reference).norm() / reference.norm()).item()
        rows.append([name, f"{1000 * duration:.0f}", f"{memory:.1f}", f"{error:.3f}"])
    header = ["attention", "ms", "GB", "relative error against float32"]
    return markdown_table(header, rows) + f"\n\nA prompt of {PROMPT_TOKENS} tokens."


SECTIONS = {"training": measure_training, "tracking": measure_tracking, "attention": measure_attention}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=LANGUAGE_MODELS, default="1b")
    parser.add_argument("--section", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("no CUDA GPU is available")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, SAMA {arguments.size}\n", flush=True)
    torch.manual_seed(0)
    for name in arguments.section:
        torch.cuda.empty_cache()
        with torch.device("cuda"):
            print(f"### {name}\n\n{SECTIONS[name](released_config(arguments.size))}\n", flush=True)


if __name__ == "__main__":
    main()
