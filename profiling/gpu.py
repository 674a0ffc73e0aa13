"""Measurements on a GPU at the released sizes with random weights, section by section, as Markdown.

    python profiling/gpu.py [--size 1b] [--section training tracking ...] [--output DIR] [--tiny]

`profiling/gpu.sh` runs all sections but `attention`, each with a time limit. With `--output` each section is written
to a file when it is complete, and one that this commit has measured on this GPU is not measured again. With `--tiny`
all sizes are those of sama-tiny, on a CPU, too: to see that everything works.

Random weights cost the same as trained ones. Times depend on the GPU, whose name is printed.
"""

import argparse
import gc
from dataclasses import replace
from pathlib import Path

import torch

from sama.conversion.released_sizes import LANGUAGE_MODELS
from sama.drawing.tables import markdown_table
from sama.evaluation.provenance import commit_of
from sama.profiling.gpu_inference import (
    measure_attention,
    measure_sam2,
    measure_sam2_compiled,
    measure_tracking,
    measure_tracking_compiled,
    measure_turns,
)
from sama.profiling.gpu_scale import Scale, peak, seconds, utilisation
from sama.profiling.operations import count
from sama.profiling.training_memory import GIGABYTE, SETTINGS, build, ddp, estimate, training_step
from sama.resources import PACKAGE


PUBLISHED = SETTINGS[0]


def measure_training(scale: Scale) -> str:
    """Memory and time of the published setting: trained weights in float32, bfloat16 autocast, AdamW. Utilisation
    counts the operations of a step without checkpointing, which are the useful ones, in both rows."""
    workload, rows = scale.workload, []
    counted, saved = estimate(scale.released(), PUBLISHED, workload)
    with torch.device(scale.device):
        model = build(scale.released(), PUBLISHED)
        if scale.device == "cpu":  # where bfloat16 is emulated
            model.float()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        for parameter in trained:
            parameter.data = parameter.data.float()
        optimizer = torch.optim.AdamW(trained, lr=1e-5)

        def step() -> None:
            with torch.autocast(scale.device, torch.bfloat16, enabled=scale.device != "cpu"):
                parts = training_step(model, workload)
            sum(part.float().mean() for part in parts).backward()
            optimizer.step()
            optimizer.zero_grad()

        operations = count(step)
        for name, activations in (("off", saved.total), ("on", saved.checkpointed)):
            if name == "on":
                model.gradient_checkpointing_enable({"use_reentrant": False})
            estimated = replace(ddp(counted, 1), activations=activations).total / GIGABYTE
            duration = seconds(step, scale.repeats)
            speed = [f"{1000 * duration:.0f}", utilisation(operations, duration)]
            rows.append([name, f"{estimated:.1f}", peak(step), *speed])
    header = ["gradient checkpointing", "GB estimated", "GB measured", "ms a step", "of the peak"]
    return (
        markdown_table(header, rows)
        + f"\n\n{workload.batch} samples of {workload.tokens} tokens, {workload.frames} context frames, "
        f"{workload.objects} objects in {workload.sam_frames} frames each; {operations / 1e12:.3g} * 10^12 operations."
    )


SECTIONS = {
    "training": measure_training,
    "tracking": measure_tracking,
    "tracking_compiled": measure_tracking_compiled,
    "sam2": measure_sam2,
    "sam2_compiled": measure_sam2_compiled,
    "turns": measure_turns,
    "attention": measure_attention,
}


def measure_section(name: str, scale: Scale, output: Path | None) -> str:
    """The text of a section: that of its file in `output` if it was measured there by this commit on this GPU,
    otherwise measured and written there."""
    path = None if output is None else output / f"{name}_{'tiny' if scale.tiny else scale.size}.md"
    about = f"### {name}, {'tiny' if scale.tiny else scale.size}\n\n{where(scale)}\n"
    if path is not None and path.is_file() and path.read_text(encoding="utf-8").startswith(about):
        return path.read_text(encoding="utf-8")
    gc.collect()
    torch.cuda.empty_cache()
    text = f"{about}\n{SECTIONS[name](scale)}\n"
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = path.with_suffix(".part")  # a section that is interrupted leaves no file that looks complete
        whole.write_text(text, encoding="utf-8")
        whole.replace(path)
    return text


def where(scale: Scale) -> str:
    """What is measured, and on what."""
    device = torch.cuda.get_device_name() if scale.device == "cuda" else "CPU"
    return f"{device}, torch {torch.__version__}, commit {commit_of(PACKAGE)}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=LANGUAGE_MODELS, default="1b")
    parser.add_argument("--section", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--output", type=Path, help="folder for the text of each section")
    parser.add_argument("--tiny", action="store_true", help="small sizes, on any machine")
    arguments = parser.parse_args()
    if not arguments.tiny and not torch.cuda.is_available():
        parser.error("no CUDA GPU is available; --tiny runs every section at small sizes without one")
    scale = Scale(arguments.size, arguments.tiny)
    torch.manual_seed(0)
    for name in arguments.section:
        print(measure_section(name, scale, arguments.output), flush=True)


if __name__ == "__main__":
    main()
