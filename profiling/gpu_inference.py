"""Sections of `gpu.py` that measure inference: tracking, the sam2 package's tracking, turns, attention."""

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.generation.streamers import BaseStreamer

from sama.drawing.tables import markdown_table
from sama.profiling.cases import drifting_frames, seg_states
from sama.profiling.gpu_scale import Scale, once, peak, seconds, synchronize


PROMPT_TOKENS = 8192  # of a conversation up to its first answer


# Tracking


@torch.no_grad()
def measure_tracking(scale: Scale, compiled: bool = False) -> str:
    """Frames a second from a file to run-length encoded masks, of a first answer and of a later one, and from frames
    that are on the GPU; and those of the image encoder alone."""
    config = scale.chat_config()
    model, processor = scale.model(config), scale.processor(config)
    tracker, size = model.model.mask_tracker, config.mask_config.image_size
    if compiled:
        tracker.compile_parts()
    pixels = drifting_frames(max(scale.batches), size).to(model.device, model.dtype)
    encoder = [
        [number, f"{number / seconds(lambda: tracker.encode_frames(pixels[:number]), scale.repeats):.1f}"]  # noqa: B023
        for number in scale.batches
    ]
    with TemporaryDirectory() as folder:
        video, kind = scale.video(Path(folder))
        rows = [tracking_row(scale, model, processor, video, objects) for objects in scale.objects]
    header = ["objects", "from the file, first answer", "later answer", "frames on the device", "GB"]
    return (
        markdown_table(["frames at once", "frames a second, image encoder alone"], encoder)
        + f"\n\n{markdown_table(header, rows)}\n\nFrames a second, to masks of the video's size, run-length encoded; "
        f"from frames on the device to mask logits. {scale.num_frames} frames of {kind}; {size} pixels in the mask "
        f"model; {model.dtype}; {'compiled' if compiled else 'eager'}; preset {config.preset}."
    )


def tracking_row(scale: Scale, model, processor, video, objects: int) -> list:
    """The row of a number of objects. Each pass takes seconds on a GPU, so all but the first are measured once."""
    states = seg_states(model.config.text_config.hidden_size, objects).to(model.device, model.dtype)
    frames = drifting_frames(scale.num_frames, processor.sam_image_size).to(model.device, model.dtype)
    prompted = range(min(5, scale.num_frames))

    def track() -> None:
        for _ in model.segment_video(states, frames, prompted):
            pass

    track()  # warms up
    chat = model.start_chat(processor, video=video)
    durations = [once(lambda: chat.track_objects(states)) for _ in ("first answer", "later answer")]
    memory = peak(lambda: durations.append(once(track)))
    return [objects, *(f"{scale.num_frames / duration:.1f}" for duration in durations), memory]


def measure_tracking_compiled(scale: Scale) -> str:
    """[`measure_tracking`], compiled."""
    return measure_tracking(scale, compiled=True)


def measure_sam2(scale: Scale, compiled: bool = False) -> str:
    """Our tracker and that of the sam2 package, alternately."""
    try:
        from sama.profiling.compare_sam2 import comparison
    except ImportError as error:
        return f"Not measured: {error}"
    sizes = {"encoder": "tiny", "image_size": 64, "frames": 3, "objects": [1], "rounds": 1}
    if not scale.tiny:
        sizes = {"encoder": "large", "image_size": 1024, "frames": 24, "objects": [1, 4, 8, 20], "rounds": 1}
    kind = "bfloat16" if scale.device == "cuda" else "float32"
    common = {"version": "2.1", "device": scale.device, "dtype": kind, "compile": compiled}
    return comparison(argparse.Namespace(**sizes, **common))


def measure_sam2_compiled(scale: Scale) -> str:
    """[`measure_sam2`], both compiled."""
    return measure_sam2(scale, compiled=True)


# Turns


class FirstToken(BaseStreamer):
    """A streamer that notes when the first token of an answer comes."""

    def __init__(self):
        self.calls, self.when = 0, 0.0

    def put(self, value: torch.Tensor) -> None:
        """Called with the prompt, then with each token."""
        self.calls += 1
        if self.calls == 2:
            self.when = time.perf_counter()

    def end(self) -> None:
        """Called after the answer."""


def turn_times(chat, question: str, tokens: int) -> tuple[float, float]:
    """Seconds to the first token of an answer of so many tokens, and from there to the last."""
    streamer = FirstToken()
    synchronize()
    start = time.perf_counter()
    chat.ask(question, masks=False, streamer=streamer, max_new_tokens=tokens, min_new_tokens=tokens)
    return streamer.when - start, time.perf_counter() - streamer.when


@torch.no_grad()
def measure_turns(scale: Scale) -> str:
    """Time to the first token of a first and of a later question about a video file, and tokens a second."""
    config = scale.chat_config()
    model, processor = scale.model(config), scale.processor(config)
    times, length = [], scale.answer_tokens
    with TemporaryDirectory() as folder:
        video, kind = scale.video(Path(folder))
        for _ in range(scale.repeats + 1):
            chat = model.start_chat(processor, video=video)
            questions = ("What happens here?", "And then?")
            times.append([value for question in questions for value in turn_times(chat, question, length)])
        tokens = len(chat.state.input_ids)
    first, decoding, later, _ = (min(column) for column in zip(*times[1:], strict=True))
    row = [f"{1000 * first:.0f}", f"{1000 * later:.0f}", f"{(length - 1) / decoding:.1f}"]
    header = ["ms to the first token, first question", "later question", "tokens a second"]
    return (
        markdown_table(header, [row])
        + f"\n\n{scale.num_frames} frames of {kind}, {tokens} tokens in the end, answers of {length} tokens, "
        f"{model.dtype}."
    )


# Attention


@torch.no_grad()
def measure_attention(scale: Scale) -> str:
    """Prefill time and memory of each attention implementation, and the error of its last hidden state relative to
    float32."""
    config, rows = scale.released(), []
    language = scale.model(config).model.backbone.language_model
    reference = language.embed_tokens.weight
    tokens = 32 if scale.tiny else PROMPT_TOKENS
    embeds = torch.randn(1, tokens, reference.shape[1], dtype=reference.dtype, device=reference.device)

    def prefill() -> torch.Tensor:
        return language(inputs_embeds=embeds.to(language.embed_tokens.weight.dtype), use_cache=False).last_hidden_state

    kinds = {"eager": None, "sdpa, math": SDPBackend.MATH, "sdpa, flash": SDPBackend.FLASH_ATTENTION}
    found = {}
    for name, backend in kinds.items():
        language.set_attn_implementation("eager" if backend is None else "sdpa")
        with sdpa_kernel(backend or SDPBackend.MATH):
            duration = seconds(prefill, scale.repeats)
            found[name] = prefill()[:, -1].float(), duration, peak(prefill)
    language.float()
    exact = prefill()[:, -1]
    for name, (state, duration, memory) in found.items():
        error = ((state - exact).norm() / exact.norm()).item()
        rows.append([name, f"{1000 * duration:.0f}", memory, f"{error:.3f}"])
    header = ["attention", "ms", "GB", "relative error against float32"]
    return markdown_table(header, rows) + f"\n\nA prompt of {tokens} tokens."
