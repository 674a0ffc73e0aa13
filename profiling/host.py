"""What the host does for each frame of a track, before and after it left the critical path, as a Markdown table.

    OMP_NUM_THREADS=1 python profiling/host.py [--size 1024] [--repeats 9]

CPU time of this process in milliseconds, the two ways measured alternately; the ratio is the median of the ratios.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import nn

from sama.configuration_sama import IMAGENET_MEAN, IMAGENET_STD, SamaConfig
from sama.drawing.tables import markdown_table
from sama.modeling_sama_tracker import SamaMaskTracker, build_mask_tracker
from sama.objects_sama import column_runs
from sama.pixels_sama import normalized_pixels


def milliseconds(action: Callable[[], object]) -> float:
    """CPU time of all threads of the process."""
    start = time.process_time()
    action()
    return (time.process_time() - start) * 1e3


def compared(before: Callable[[], object], after: Callable[[], object], repeats: int) -> list[str]:
    """Median times of two actions that are run alternately, and the median of their ratios."""
    before(), after()
    pairs = [(milliseconds(before), milliseconds(after)) for _ in range(repeats)]
    times = [f"{statistics.median(column):.1f} ms" for column in zip(*pairs, strict=True)]
    return [*times, f"{statistics.median(old / max(new, 1e-6) for old, new in pairs):.2f}x"]


def normalized_by_arithmetic(picture: Image.Image, size: int) -> torch.Tensor:
    """Pixel values without the table."""
    pixels = np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    pixels = (pixels - np.asarray(IMAGENET_MEAN, dtype=np.float32)) / np.asarray(IMAGENET_STD, dtype=np.float32)
    return torch.from_numpy(pixels).movedim(-1, 0).contiguous()


def runs_by_transposing(mask: np.ndarray) -> np.ndarray:
    """Run lengths of a whole mask, column by column."""
    flat = mask.T.ravel()
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    return np.diff(np.concatenate(([0], changes, [flat.size])))


def make_tracker(size: int) -> SamaMaskTracker:
    """A SAM 2 with the image encoder of Hiera-tiny and random weights."""
    sizes = [[size // stride] * 2 for stride in (4, 8, 16)]
    hiera = {"model_type": "sam2_hiera_det_model", "image_size": [size, size]}
    vision = {"model_type": "sam2_vision_model", "backbone_feature_sizes": sizes, "backbone_config": hiera}
    prompts = {"image_size": size}
    mask_config = {
        "model_type": "sam2_video",
        "image_size": size,
        "vision_config": vision,
        "prompt_encoder_config": prompts,
        "memory_attention_rope_feat_sizes": sizes[-1],
    }
    return build_mask_tracker(SamaConfig(mask_config=mask_config)).eval()


class Neck:
    """Switches the sines of an image encoder's neck on and off."""

    def __init__(self, tracker: SamaMaskTracker):
        self.neck, self.sines = tracker.sam.vision_encoder.neck, tracker.position_encoding
        self.without: nn.Module = self.neck.position_encoding

    def switch(self, sines: bool) -> None:
        self.neck.position_encoding = self.sines if sines else self.without


@torch.no_grad()
def measure(size: int, repeats: int) -> str:
    """The table."""
    rng, rows = np.random.default_rng(0), []
    frame = Image.fromarray(rng.integers(0, 256, (720, 1280, 3), dtype=np.uint8))
    squared = frame.resize((size, size), Image.Resampling.BICUBIC)
    for name, picture in ((f"720p frame to {size} px and normalised", frame), ("of which normalised", squared)):
        ways = (
            lambda picture=picture: normalized_by_arithmetic(picture, size),
            lambda picture=picture: normalized_pixels(picture, size, IMAGENET_MEAN, IMAGENET_STD),
        )
        rows.append([name, *compared(*ways, repeats)])
    rows_of, columns_of = np.mgrid[:720, :1280]
    mask = (rows_of - 300) ** 2 + (columns_of - 600) ** 2 < 200**2
    rows.append(
        [
            "one 720p mask to run lengths",
            *compared(lambda: runs_by_transposing(mask), lambda: column_runs(mask), repeats),
        ]
    )
    tracker, side = make_tracker(256), 256
    neck, pixels = Neck(tracker), torch.randn(8, 3, side, side)

    def encode(sines: bool, batch_size: int) -> None:
        neck.switch(sines)
        for start in range(0, 8, batch_size):
            tracker.encode_frames(pixels[start : start + batch_size], tuned=sines).split()

    name = "8 frames of 256 px through Hiera-tiny: with sines, both decoders' levels / without, one decoder's"
    rows.append([name, *compared(lambda: encode(True, 1), lambda: encode(False, 1), repeats)])
    for batch_size in (4, 8):
        name = f"the same without sines: one by one / {batch_size} at a time"
        rows.append([name, *compared(lambda: encode(False, 1), lambda size=batch_size: encode(False, size), repeats)])
    return markdown_table(["for each frame", "before", "after", "ratio"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024, help="side of the mask model's input in pixels")
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    print(measure(arguments.size, arguments.repeats))


if __name__ == "__main__":
    main()
