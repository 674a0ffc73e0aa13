"""At which sizes `gpu.py` measures: the released ones on a GPU, or with `tiny` those of sama-tiny on any machine, to
see that every section works. Models have random weights, which cost the same as trained ones."""

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sama.configuration_sama import SamaConfig
from sama.conversion.released_sizes import released_config
from sama.modeling_sama import SamaForConditionalGeneration
from sama.overlay_sama import write_video
from sama.processing_sama import SamaProcessor
from sama.profiling.cases import randomize
from sama.profiling.training_memory import GIGABYTE, Workload
from sama.video_sama import SamaVideo


ROOT = Path(__file__).resolve().parent.parent
CHECKPOINT = ROOT / "checkpoints" / "sama-tiny"
CLIP = ROOT / "assets" / "bigbuckbunny.mp4"
FPS = 24.0
# Dense bfloat16 operations a second that the maker states, by a part of the GPU's name; the first that fits counts
PEAKS = {"H200": 989.4e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989.4e12, "A100": 312e12}
TINY_WORKLOAD = Workload(
    batch=1, tokens=64, labels=8, questions=1, question_tokens=4, frames=2, sam_frames=2, objects=2
)


@dataclass(frozen=True)
class Scale:
    """Sizes of everything that is measured.

    Args:
        size (`str`): of the language model, "1b", "4b" or "8b".
        tiny (`bool`): sama-tiny's sizes instead.
    """

    size: str = "1b"
    tiny: bool = False

    @property
    def device(self) -> str:
        """Where to measure."""
        return "cuda" if torch.cuda.is_available() else "cpu"

    @property
    def workload(self) -> Workload:
        """One micro-batch of training."""
        return TINY_WORKLOAD if self.tiny else Workload()

    @property
    def objects(self) -> tuple[int, ...]:
        """Numbers of objects that are tracked."""
        return (1, 2) if self.tiny else (1, 4, 8, 20)

    @property
    def num_frames(self) -> int:
        """Frames of the video."""
        return 7 if self.tiny else 40

    @property
    def frame_size(self) -> tuple[int, int]:
        """Height and width of the video."""
        return (48, 64) if self.tiny else (720, 1280)

    @property
    def answer_tokens(self) -> int:
        """Tokens of each answer."""
        return 5 if self.tiny else 33

    @property
    def batches(self) -> tuple[int, ...]:
        """Numbers of frames that the image encoder gets at once."""
        return (1, 2) if self.tiny else (1, 4, 8)

    @property
    def repeats(self) -> int:
        """Runs of each measurement, after one that warms up."""
        return 1 if self.tiny else 3

    def released(self) -> SamaConfig:
        """The configuration of the released model."""
        return SamaConfig.from_pretrained(CHECKPOINT) if self.tiny else released_config(self.size)

    def chat_config(self) -> SamaConfig:
        """The released sizes with the tokens of sama-tiny's tokenizers, which are at hand."""
        settings = self.released().to_dict()
        adopt_tokens(settings, SamaConfig.from_pretrained(CHECKPOINT).to_dict())
        return SamaConfig(**settings)

    def processor(self, config: SamaConfig) -> SamaProcessor:
        """A processor for `config`, with sama-tiny's tokenizers."""
        height, _ = config.vision_config.image_size
        saved = SamaProcessor.from_pretrained(CHECKPOINT, trust_remote_code=False, image_size=height)
        parts = (saved.image_processor, saved.tokenizer, saved.qformer_tokenizer, saved.chat_template)
        return SamaProcessor(*parts, config=config)

    def model(self, config: SamaConfig) -> SamaForConditionalGeneration:
        """A model with random weights, in bfloat16 on a GPU and in float32 elsewhere."""
        with torch.device(self.device):
            dtype = torch.bfloat16 if self.device == "cuda" else torch.float32
            model = SamaForConditionalGeneration._from_config(config, dtype=dtype).eval()
        randomize(model.model.mask_tracker)  # as initialised, masks would be all but constant
        return model

    def video(self, folder: Path) -> tuple[str | list[np.ndarray], str]:
        """The repository's clip at the video's size, played forwards and backwards: a file, or frames where nothing
        reads or writes videos; and which of them."""
        height, width = self.frame_size
        try:
            frames = clip_frames(self.num_frames, height, width)
            path = write_video(folder / "clip.mp4", frames, FPS)
            return str(path), f"an H.264 file of {width}x{height} pixels"
        except ImportError as error:
            generator = np.random.default_rng(0)
            picture = generator.integers(0, 256, (height // 16, width // 16 + self.num_frames, 3), dtype=np.uint8)
            wide = np.asarray(Image.fromarray(picture).resize((width + 16 * self.num_frames, height)))
            drifting = [wide[:, 4 * index : 4 * index + width] for index in range(self.num_frames)]
            return drifting, f"frames in memory of {width}x{height} pixels, not decoded: {error}"


def clip_frames(num_frames: int, height: int, width: int) -> Iterator[np.ndarray]:
    """Frames of the repository's clip at another size, forwards and backwards."""
    clip = SamaVideo.open(CLIP)
    period = 2 * len(clip) - 2
    for index in range(num_frames):
        frame = clip[min(index % period, period - index % period)]
        yield np.asarray(Image.fromarray(frame).resize((width, height)))


def adopt_tokens(settings: dict[str, Any], others: dict[str, Any]) -> None:
    """Sets every token id in `settings`, at any depth, to that of `others`."""
    for name, value in others.items():
        if isinstance(value, dict) and isinstance(settings.get(name), dict):
            adopt_tokens(settings[name], value)
        elif str(name).endswith("_token_id") and name in settings:
            settings[name] = copy.deepcopy(value)


def synchronize() -> None:
    """Waits for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def once(action: Callable[[], object]) -> float:
    """Wall time of `action` in seconds, until the GPU has done it."""
    synchronize()
    start = time.perf_counter()
    action()
    synchronize()
    return time.perf_counter() - start


def seconds(action: Callable[[], object], repeats: int = 3) -> float:
    """Shortest wall time of `action` in seconds over several runs, after a run that warms up."""
    return min([once(action) for _ in range(repeats + 1)][1:])


def peak(action: Callable[[], object]) -> str:
    """Peak of allocated GPU memory in gigabytes while `action` runs, including what was allocated before; "-" without
    a GPU."""
    if not torch.cuda.is_available():
        action()
        return "-"
    torch.cuda.reset_peak_memory_stats()
    action()
    return f"{torch.cuda.max_memory_allocated() / GIGABYTE:.1f}"


def utilisation(operations: int, duration: float) -> str:
    """Operations a second as a share of the GPU's stated peak; "-" where that is not known."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    peaks = [value for part, value in PEAKS.items() if part in name]
    return f"{operations / duration / peaks[0]:.0%}" if peaks else "-"
