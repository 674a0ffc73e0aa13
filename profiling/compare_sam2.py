"""Our mask tracker against the `sam2` package's own video predictor: the same random weights, sizes, clicks and
frames, in one process, alternately.

    python profiling/compare_sam2.py [--encoder tiny] [--image_size 256] [--objects 1 4 8] [--frames 32] [--rounds 7]
        [--version 2.1] [--threads 1] [--compile] [--device cpu] [--dtype float32]

The package is installed without its dependencies, of which torchvision is not needed here: `pip install --no-deps
sam2`, then `pip install hydra-core iopath tqdm`. Its predictor tracks each object by itself, and encodes a frame once
for all of them. Both get frames as tensors, one click an object in the first frame, and give masks at the frames' own
size. The package's memories are rounded to bfloat16, so ours are, too; holes of masks are not filled (the package
needs a CUDA extension for that). With --compile both are compiled, the package as its `SAM2VideoPredictorVOS`. In
bfloat16 the package runs under autocast, as its documentation says, and ours has bfloat16 weights.

Ratios above 1 say that ours is faster. It is an error if masks differ by more than 1e-4 of the largest logit in
float32; in bfloat16 the difference is reported.
"""

import argparse
import math
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from sama.configuration_sama import SamaConfig
from sama.conversion.pieces import ORIGINAL_DECODER, SAM
from sama.conversion.trackers import map_tracker
from sama.drawing.tables import markdown_table
from sama.modeling_sama_tracker import SamaMaskTracker, build_mask_tracker
from sama.profiling.cases import drifting_frames, randomize, tracker_config
from sama.profiling.ratios import alternate, cpu_and_wall, median_wall, ratio
from sama.tracking_sama import PointPrompts


try:
    from hydra.utils import instantiate
    from omegaconf import OmegaConf
    from sam2 import sam2_video_predictor
except ImportError as error:
    raise ImportError(
        "The sam2 package is compared with: pip install --no-deps sam2, then pip install hydra-core iopath tqdm."
    ) from error

CONFIGS = Path(str(find_spec("sam2").origin)).parent / "configs"
FILES = {"2.0": "sam2/sam2_hiera_{}.yaml", "2.1": "sam2.1/sam2.1_hiera_{}.yaml"}
PREDICTOR = "sam2.sam2_video_predictor.SAM2VideoPredictor"
LETTERS = {"tiny": "t", "large": "l"}
# What the package's `build_sam2_video_predictor` sets beyond the configuration of a model
STABILITY = {
    "dynamic_multimask_via_stability": True,
    "dynamic_multimask_stability_delta": 0.05,
    "dynamic_multimask_stability_thresh": 0.98,
}
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: math.inf}  # of the largest logit


class MasksDifferError(RuntimeError):
    """Two trackers that should give the same masks do not."""


def package_predictor(encoder: str, image_size: int, version: str, compiled: bool = False) -> Any:
    """The package's video predictor from its own configuration file, for another image size, with random weights: the
    same ones in each call."""
    config = OmegaConf.load(CONFIGS / FILES[version].format(LETTERS[encoder])).model
    config.update({"_target_": PREDICTOR + ("VOS" if compiled else ""), "compile_image_encoder": compiled})
    config.update({"image_size": image_size, "binarize_mask_from_pts_for_mem_enc": True, "fill_hole_area": 0})
    config.update({"sam_mask_decoder_extra_args": STABILITY})
    return randomize(instantiate(config, _recursive_=True))


def our_tracker(predictor: Any, encoder: str, version: str) -> SamaMaskTracker:
    """Our tracker with the package's weights, through the converter's key map."""
    mask_config, state = tracker_config(encoder, predictor.image_size, version), predictor.state_dict()
    tracker = build_mask_tracker(SamaConfig(sam_config=mask_config, round_memory_to_bfloat16=True)).eval()
    pieces = {
        name.replace(SAM, "sam.").replace(ORIGINAL_DECODER, "original_mask_decoder."): piece
        for name, piece in map_tracker(state).pieces.items()
    }
    tracker.load_state_dict({name: one.make(*(state[key] for key in one.keys)) for name, one in pieces.items()})
    return tracker


def clicks(objects: int, image_size: int) -> torch.Tensor:
    """One click an object, (num_objects, 1, 2), in pixels, spread over the frame."""
    generator = torch.Generator().manual_seed(2)
    return (0.1 + 0.8 * torch.rand(objects, 1, 2, generator=generator)) * image_size


def package_masks(predictor: Any, frames: torch.Tensor, points: torch.Tensor) -> Iterator[torch.Tensor]:
    """Mask logits (num_objects, size, size) of each frame in turn, by the package."""
    size = frames.shape[-1]
    # The package reads folders of JPEG files or, with decord, videos; the frames are given instead
    sam2_video_predictor.load_video_frames = lambda **_: (frames, size, size)
    state = predictor.init_state("")
    for number, point in enumerate(points):
        predictor.add_new_points_or_box(state, 0, number, points=point, labels=torch.ones(1, dtype=torch.int32))
    sam2_video_predictor.tqdm = lambda frames, **_: frames  # no progress bars
    for _, _, masks in predictor.propagate_in_video(state):
        yield masks[:, 0]


def our_masks(tracker: SamaMaskTracker, frames: torch.Tensor, points: torch.Tensor) -> Iterator[torch.Tensor]:
    """The same by our tracker."""
    labels = torch.ones(1, *points.shape[:2], dtype=torch.int32, device=points.device)
    prompts, size = PointPrompts(points[None], labels), frames.shape[-2:]
    for frame in tracker.track(prompts, len(frames), [0], lambda index: tracker.encode_frames(frames[index][None])):
        yield F.interpolate(frame.mask_logits[None].float(), size, mode="bilinear", align_corners=False)[0]


def largest_difference(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> float:
    """The largest difference of mask logits, relative to the largest of the package's logits."""
    scale = max(mask.abs().max().item() for mask in theirs)
    found = [(one.float() - other.float()).abs().max().item() for one, other in zip(ours, theirs, strict=True)]
    return max(found) / scale if all(map(math.isfinite, found)) else math.inf  # `max` would pass over NaN


def synchronized(masks: Callable[[], Iterator[torch.Tensor]]) -> tuple[float, float]:
    """Wall and CPU seconds of going through all masks, on a GPU until they are there."""

    def action() -> None:
        for _ in masks():
            pass
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return cpu_and_wall(action)


def compare(
    ours: Callable, theirs: Callable, frames: torch.Tensor, objects: int, rounds: int, tolerance: float
) -> list[str]:
    """The row for a number of objects.

    Raises:
        MasksDifferError: if masks differ by more than `tolerance` of the largest logit.
    """
    points = clicks(objects, frames.shape[-1]).to(frames.device)
    found = largest_difference(list(ours(frames, points)), list(theirs(frames, points)))
    if found > tolerance:
        raise MasksDifferError(
            f"Masks of {objects} object(s) differ by {found:.1e} of the largest logit, more than {tolerance:.1e}; "
            "were the weights converted for another image encoder or version?"
        )
    measures = [partial(synchronized, partial(masks, frames, points)) for masks in (theirs, ours)]
    times = alternate(measures, rounds)
    speeds = [f"{len(frames) / median_wall(one):.2f}" for one in times]
    return [str(objects), *speeds, ratio(*times, which=0), ratio(*times, which=1), f"{found:.1e}"]


@torch.no_grad()
def comparison(arguments: argparse.Namespace) -> str:
    """The table."""
    device, dtype = torch.device(arguments.device), vars(torch)[arguments.dtype]
    predictor = package_predictor(arguments.encoder, arguments.image_size, arguments.version, arguments.compile)
    tracker = our_tracker(predictor, arguments.encoder, arguments.version).to(device, dtype)
    if arguments.compile:
        tracker.compile_parts()
    predictor.to(device)
    frames = drifting_frames(arguments.frames, arguments.image_size).to(device)

    def theirs(*inputs) -> Iterator[torch.Tensor]:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            yield from package_masks(predictor, *inputs)

    ours = partial(our_masks, tracker)
    rounds, tolerance = arguments.rounds, TOLERANCE[dtype]
    rows = [compare(ours, theirs, frames, objects, rounds, tolerance) for objects in arguments.objects]
    header = ["objects", "frames a second, sam2", "ours", "ratio of wall times", "ratio of CPU times"]
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU thread(s)"
    return (
        markdown_table([*header, "largest relative difference"], rows)
        + f"\n\nSAM {arguments.version}, Hiera-{arguments.encoder}, {arguments.frames} frames of "
        f"{arguments.image_size} pixels, {arguments.dtype}, {'compiled' if arguments.compile else 'eager'}, {where}, "
        f"torch {torch.__version__}, {rounds} rounds."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", choices=LETTERS, default="tiny")
    parser.add_argument("--image_size", type=int, default=256)
    parser.add_argument("--objects", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--version", choices=FILES, default="2.1")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--compile", action="store_true", help="compile both")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(comparison(arguments))


if __name__ == "__main__":
    main()
