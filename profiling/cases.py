"""Named cases that `compare_revisions.py` measures, and the process that measures them for one checkout.

The process is started by the path of this file with the `PYTHONPATH` of the checkout to be measured, which may be
older than this file. So nothing here may use what an earlier revision lacks, nor anything of `sama.profiling`.

A case is a function that prepares what it needs and returns two functions: one that is called before each run and is
not timed, and the run itself, which gets what the first one returned and returns named results.
"""

import contextlib
import gc
import json
import sys
import time
import zlib
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from torch.nn import functional as F

from sama import configuration_sama
from sama.configuration_sama import SamaConfig
from sama.conversion.configs import sam2_config
from sama.modeling_sama import SamaForConditionalGeneration
from sama.processing_sama import SamaProcessor


CHECKPOINT = (
    Path(configuration_sama.__file__).resolve().parent / "checkpoints" / "sama-tiny"
)  # of the checkout that is measured
CLIP = Path(__file__).resolve().parents[1] / "assets" / "bigbuckbunny.mp4"  # one file for both checkouts
ENCODERS = {"tiny": (96, (1, 2, 7, 2)), "large": (144, (2, 6, 36, 4))}  # width and blocks of Hiera's published sizes
NUM_FRAMES, IMAGE_SIZE = 32, 256
PROMPTED = [0, 8, 16, 24, 31]
# In transformers and in the sam2 package; the positions of clicks are a buffer, drawn from the global generator
SCORE_BIAS = ("pred_obj_score_head.proj_out.bias", "pred_obj_score_head.layers.2.bias")
CLICK_POSITIONS = ("positional_embedding", "positional_encoding_gaussian_matrix")
PRESENT = 5.0  # an object score that keeps every mask: comparing empty masks would show nothing
CLICK = [{"frame": 8, "points": [[107, 114]]}]
QUESTIONS = ("What is <region>?", "What does <region> do?")
WORLD = {"frames": [16, 16], "things": [3, 3], "turns": [3, 3], "tasks": {"dialogue": 1}}
NUM_SAMPLES = 2

Results = dict[str, Any]  # name to a tensor, or to a text
Case = tuple[Callable[[], Any], Callable[[Any], Results]]


# Mask trackers


def tracker_config(encoder: str, image_size: int, version: str = "2.0") -> dict[str, Any]:
    """Entries of `mask_config` for a SAM 2 (`version` "2.0" or "2.1") with a published image encoder ("tiny" or
    "large"), for any image size."""
    width, blocks = ENCODERS[encoder]
    trunk = "image_encoder.trunk."
    shapes: dict[str, tuple[int, ...]] = {
        f"{trunk}patch_embed.proj.weight": (width,),
        f"{trunk}pos_embed": (1, width, 7, 7),
        "image_encoder.neck.convs.0.conv.weight": (256,),
        "maskmem_tpos_enc": (7,),
    }
    shapes |= {f"{trunk}blocks.{number}.norm1.weight": (width,) for number in range(sum(blocks))}
    shapes |= {f"{trunk}blocks.{sum(blocks[:stage])}.proj.weight": (width,) for stage in range(1, len(blocks))}
    if version == "2.1":
        shapes |= {"obj_ptr_tpos_proj.weight": (64, 256), "no_obj_embed_spatial": (1, 64)}
    return sam2_config(shapes, "", {"sam_image_size": image_size})


@torch.no_grad()
def randomize(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Draws all parameters of a SAM 2, each from a generator of its own name, so that another revision of the same
    module gets the same values. Matrices keep the size of what they multiply, as in a trained model; objects are
    always there."""
    buffers = [(name, one) for name, one in module.named_buffers() if name.endswith(CLICK_POSITIONS)]
    for name, tensor in (*module.named_parameters(), *buffers):
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) + seed)
        values = torch.randn(tensor.shape, generator=generator)
        values *= tensor[0].numel() ** -0.5 if tensor.ndim > 1 and "emb" not in name else 0.1
        tensor.copy_(values + 1 if tensor.ndim == 1 and name.endswith("weight") else values)
        if name.endswith(SCORE_BIAS):
            tensor.fill_(PRESENT)
    return module.eval()


def drifting_frames(num_frames: int, size: int) -> torch.Tensor:
    """Normalised frames (num_frames, 3, size, size) of a smooth picture that drifts, so that frames resemble each
    other as in a video."""
    generator = torch.Generator().manual_seed(1)
    step = 16
    coarse = torch.randn(1, 3, size // step + 2, size // step + 2 + num_frames // 4, generator=generator)
    wide = F.interpolate(coarse, scale_factor=step, mode="bicubic")
    return torch.stack([wide[0, :, :size, 4 * index : 4 * index + size] for index in range(num_frames)])


@cache
def random_model(encoder: str, image_size: int) -> SamaForConditionalGeneration:
    """sama-tiny with a SAM 2 of published sizes and random weights in its place."""
    settings = SamaConfig.from_pretrained(CHECKPOINT).to_dict()
    settings["mask_config"] = tracker_config(encoder, image_size)
    model = SamaForConditionalGeneration(SamaConfig(**settings)).float()
    randomize(model.model.mask_tracker)
    randomize(model.model.seg_projection)
    return model.eval()


def seg_states(width: int, objects: int) -> torch.Tensor:
    """Random but reproducible [SEG] states of an answer, (num_objects, width)."""
    return torch.randn(objects, width, generator=torch.Generator().manual_seed(0))


def tracking(encoder: str, objects: int, image_size: int = IMAGE_SIZE, num_frames: int = NUM_FRAMES) -> Case:
    """Mask logits of objects through a video whose frames are tensors."""
    model, frames = random_model(encoder, image_size), drifting_frames(num_frames, image_size)
    states = seg_states(model.config.text_config.hidden_size, objects)
    prompted = [index for index in PROMPTED if index < num_frames]

    def run(_) -> Results:
        tracked = model.segment_video(states, frames, prompted)
        return {f"frame {frame.frame_index}": frame.mask_logits.clone() for frame in tracked}

    return (lambda: None), run


# Turns of sama-tiny


def tiny_processor() -> Any:
    """The processor of sama-tiny, by this checkout's own code: a question about trust would read the requests."""
    return SamaProcessor.from_pretrained(CHECKPOINT, trust_remote_code=False)


@cache
def tiny_model() -> tuple[Any, Any]:
    """sama-tiny in float32, and its processor."""
    model = SamaForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    return model, tiny_processor()


def reply_results(reply) -> Results:
    """Text and masks of a reply."""
    masks = {
        f"object {number}": torch.from_numpy(np.stack([np.asarray(mask) for mask in one.masks])).float()
        for number, one in enumerate(reply.objects)
        if one.track is not None
    }
    return {"text": reply.tagged_text, **masks}


def first_turn(masks: bool) -> Case:
    """The first question about a video file: decoding, encoders, prefill, answer, and with `masks` the track."""
    model, processor = tiny_model()

    def run(_) -> Results:
        chat = model.start_chat(processor, video=str(CLIP))
        return reply_results(chat.ask(QUESTIONS[0], CLICK, masks=masks, max_new_tokens=32))

    return (lambda: None), run


def later_turn(masks: bool) -> Case:
    """The second question about a video file, frames and state of the first one being kept."""
    model, processor = tiny_model()
    base = model.start_chat(processor, video=str(CLIP))
    base.ask(QUESTIONS[0], CLICK, masks=masks, max_new_tokens=32)
    return (
        lambda: base.branch(1),
        lambda chat: reply_results(chat.ask(QUESTIONS[1], CLICK, masks=masks, max_new_tokens=32)),
    )


def later_tracks(objects: int) -> Case:
    """Several objects of a later answer through the file, frames being kept."""
    model, processor = tiny_model()
    chat = model.start_chat(processor, video=str(CLIP))
    chat.ask(QUESTIONS[0], CLICK, max_new_tokens=32)
    states = seg_states(model.config.text_config.hidden_size, objects)

    def run(_) -> Results:
        tracks, scores = chat.track_objects(states)
        found = {f"object {number}": track for number, track in enumerate(tracks)}
        masks = {
            name: torch.from_numpy(np.stack([track[index] for index in range(len(chat.video))])).float()
            for name, track in found.items()
        }
        return {"scores": torch.tensor(scores), **masks}

    return (lambda: None), run


# Training


def training_step() -> Case:
    """Forward and backward of sama-tiny on toy-world dialogues with masks, with the published parts trained."""
    # These need the packages of training, which a machine for measuring inference may lack
    from sama.data.collator import SamaCollator
    from sama.data.rendering import Renderer, RenderSettings
    from sama.toy_world.world import ToyWorld
    from sama.training.parts import PUBLISHED_PARTS, freeze_all_but
    from sama.video_sama import SamaVideo

    model = SamaForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32).train()
    processor = tiny_processor()
    freeze_all_but(model, PUBLISHED_PARTS)
    render, world = Renderer(processor, RenderSettings(regions="mask")), ToyWorld(WORLD)
    samples = []
    for index in range(NUM_SAMPLES):
        frames, record, _ = world[index]
        samples.append(render(record, SamaVideo.open(list(frames)), None, np.random.default_rng(index)))
    batch = SamaCollator(processor)(samples)

    def prepare() -> None:
        model.zero_grad()
        torch.manual_seed(0)  # dropout

    def run(_) -> Results:
        loss = model(**batch, use_cache=False).loss
        loss.backward()
        norms = [parameter.grad.norm() for parameter in model.parameters() if parameter.grad is not None]
        return {"loss": loss.detach(), "gradient norms": torch.stack(norms)}

    return prepare, run


CASES: dict[str, Callable[[], Case]] = {
    "track 1 object, Hiera-tiny": partial(tracking, "tiny", 1),
    "track 4 objects, Hiera-tiny": partial(tracking, "tiny", 4),
    "track 8 objects, Hiera-tiny": partial(tracking, "tiny", 8),
    "track 4 objects, Hiera-L": partial(tracking, "large", 4, num_frames=20),
    "first turn with masks": partial(first_turn, masks=True),
    "later turn with masks": partial(later_turn, masks=True),
    "later turn, text alone": partial(later_turn, masks=False),
    "later tracks of 4 objects": partial(later_tracks, 4),
    "training step": training_step,
}
GRADIENTS = {"training step"}


# The process


def measure(prepare: Callable[[], Any], run: Callable[[Any], Results]) -> tuple[float, float, Results]:
    """Wall and CPU seconds of one run, and what it returned."""
    given = prepare()
    gc.collect()
    start, start_cpu = time.perf_counter(), time.process_time()
    results = run(given)
    return time.perf_counter() - start, time.process_time() - start_cpu, results


def serve(requests: TextIO, answers: TextIO) -> None:
    """Answers requests, one JSON object a line: {"case": name, "save": path or null} is answered by {"wall": seconds,
    "cpu": seconds}, and an exception by {"error": text}. The first run of a case warms up."""
    prepared = {}
    for line in requests:
        request = json.loads(line)
        name = request["case"]
        try:
            with torch.set_grad_enabled(name in GRADIENTS):
                if name not in prepared:
                    prepared = {name: CASES[name]()}  # only one is kept, for memory
                wall, cpu, results = measure(*prepared[name])
            if request["save"]:
                torch.save(results, request["save"])
            answer = {"wall": wall, "cpu": cpu}
        except Exception as error:  # reported by the other process, with the case
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    torch.manual_seed(0)
    standard_output = sys.stdout  # for the answers alone
    with contextlib.redirect_stdout(sys.stderr):
        serve(sys.stdin, standard_output)
