"""Encoder calls, time and memory of a checkpoint's chat, tracking and training, as Markdown tables.

    python profiling/inference.py [--model DIR] [--section calls turns questions objects memory training]

Times are medians of several runs and depend on the machine; counts do not, and tests assert them.
"""

import argparse
import statistics
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import torch
from transformers import AutoModel, AutoProcessor

from sama.drawing.tables import markdown_table
from sama.overlay_sama import write_video
from sama.profiling.gpu_scale import synchronize
from sama.profiling.training import measure_training
from sama.video_sama import SamaVideo


ROOT = Path(__file__).resolve().parent.parent
CLIP = ROOT / "assets" / "bigbuckbunny.mp4"
SETTLED_FRAMES = 50  # by then the tracker's memory is full
SECTIONS = ("calls", "turns", "questions", "objects", "memory", "training")


def load(path: str):
    """Loads the checkpoint as a user does."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModel.from_pretrained(path, trust_remote_code=True, dtype=torch.float32).to(device).eval()
    return model, AutoProcessor.from_pretrained(path, trust_remote_code=True)


def seconds(action: Callable[[], object], repeats: int = 5) -> float:
    """Median wall time of `action` in seconds, after a warmup run."""
    action()
    times = []
    for _ in range(repeats):
        synchronize()
        start = time.perf_counter()
        action()
        synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def make_video(folder: Path, num_frames: int) -> Path:
    """Writes the repository's clip, played forwards and backwards until it has `num_frames` frames."""
    clip, path = SamaVideo.open(CLIP), folder / f"{num_frames}.mp4"
    period = 2 * len(clip) - 2
    order = (min(index % period, period - index % period) for index in range(num_frames))
    write_video(path, (clip[index] for index in order), clip.fps)
    return path


def count_calls(module: torch.nn.Module) -> list[int]:
    """A list to which each later call of `module` appends its batch size."""
    sizes: list[int] = []
    module.register_forward_pre_hook(
        lambda _, args, kwargs: sizes.append(len(args[0] if args else kwargs["pixel_values"])), with_kwargs=True
    )
    return sizes


def answer_states(model, num_objects: int) -> torch.Tensor:
    """Random but reproducible [SEG] states of an answer with `num_objects` objects."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(num_objects, model.config.text_config.hidden_size, generator=generator).to(model.device)


def measure_calls(model, processor, folder: Path) -> str:
    """Encoder calls in a conversation of three turns with objects in every answer."""
    video = SamaVideo.open(make_video(folder, 96))
    sam_calls, vision_calls = (
        count_calls(model.model.mask_tracker.sam.vision_encoder),
        count_calls(model.model.backbone.vision_tower),
    )
    chat, rows = model.start_chat(processor, video=video), []
    for turn, num_objects in enumerate((1, 4, 8), start=1):
        reply = chat.ask("What happens here?", max_new_tokens=4)
        chat.track_objects(answer_states(model, num_objects))
        rows.append([turn, num_objects, reply.prefilled_tokens, sum(vision_calls), sum(sam_calls)])
    header = ["turn", "objects tracked", "tokens read", "frames through the vision tower", "frames through SAM 2"]
    context = len(processor.choose_frames(video).context)
    return (
        markdown_table(header, rows)
        + f"\n\n{len(video)} frames, {context} context frames; the last two columns are cumulative."
    )


def measure_turns(model, processor, folder: Path) -> str:
    """Time to the first token of a later turn, with and without the state of the earlier turns."""
    path = make_video(folder, 96)
    questions = ["What happens here?", "Who is that?", "And what comes next?"]
    # One token for both, without [SEG], which would start tracking
    generation = {"max_new_tokens": 1, "suppress_tokens": [model.config.seg_token_id]}

    def later() -> tuple[float, int]:
        chat = model.start_chat(processor, video=SamaVideo.open(path))
        for question in questions:
            chat.ask(question, **generation)
        start = time.perf_counter()
        reply = chat.ask("And then?", **generation)
        return time.perf_counter() - start, reply.prefilled_tokens

    def cold() -> tuple[float, int]:
        video = SamaVideo.open(path)
        start = time.perf_counter()
        inputs = processor.apply_chat_template(conversation(video), return_dict=True).to(model.device)
        model.generate(**inputs, **generation)
        return time.perf_counter() - start, inputs["input_ids"].shape[1]

    def conversation(video: SamaVideo) -> list[dict]:
        messages = [
            {"role": "user", "content": [{"type": "video", "video": video}, {"type": "text", "text": questions[0]}]}
        ]
        for question in [*questions[1:], "And then?"]:
            messages += [{"role": "assistant", "content": "x"}, {"role": "user", "content": question}]
        return messages

    rows, first = [], None
    for name, action in (("whole conversation from the start", cold), ("state kept between turns", later)):
        action()
        times, tokens = zip(*(action() for _ in range(5)), strict=True)
        median = statistics.median(times)
        first = first or median
        rows.append([name, tokens[0], f"{median * 1e3:.0f} ms", f"{first / median:.1f}x"])
    context = len(processor.choose_frames(SamaVideo.open(path)).context)
    return markdown_table(
        [f"turn 4, {context} context frames, to the first token", "tokens read", "time", "speed"], rows
    )


def measure_questions(model, processor, folder: Path) -> str:
    """Independent questions about one video with one object per answer: a new chat for each, and one chat that is
    reset."""
    path, questions = make_video(folder, 48), [f"What happens in part {number}?" for number in range(8)]
    calls = [
        count_calls(module)
        for module in (model.model.backbone.vision_tower, model.model.mask_tracker.sam.vision_encoder)
    ]
    lengths: list[int] = []
    model.model.backbone.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: lengths.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    states = answer_states(model, 1)

    def new_chats() -> None:
        for question in questions:
            chat = model.start_chat(processor, video=SamaVideo.open(path))
            chat.ask(question, max_new_tokens=2, masks=False)
            chat.track_objects(states)

    def one_chat() -> None:
        chat = model.start_chat(processor, video=SamaVideo.open(path))
        for question in questions:
            chat.reset()
            chat.ask(question, max_new_tokens=2, masks=False)
            chat.track_objects(states)

    rows, first = [], None
    for name, action in (("a new chat each", new_chats), ("one chat, reset", one_chat)):
        for counted in (*calls, lengths):
            counted.clear()
        action()
        counts = [sum(length for length in lengths if length > 1), *(sum(counted) for counted in calls)]
        median = seconds(action, repeats=3)
        first = first or median
        rows.append([name, *counts, f"{median:.2f} s", f"{first / median:.1f}x"])
    header = ["8 questions about 48 frames", "tokens read", "frames through the vision tower", "frames through SAM 2"]
    return markdown_table([*header, "time", "speed"], rows)


def measure_objects(model, processor, folder: Path) -> str:
    """Time of tracking several objects together over 32 frames, compared with one run per object."""
    video = SamaVideo.open(make_video(folder, 32))
    frames, prompted = processor.sam_frames(video), processor.choose_frames(video).prompted

    def track(num_objects: int) -> float:
        states = answer_states(model, num_objects)
        return seconds(lambda: list(model.segment_video(states, frames, prompted)), repeats=3)

    times = {num_objects: track(num_objects) for num_objects in (1, 2, 4, 8)}
    rows = [
        [count, f"{value:.2f} s", f"{value / times[1]:.2f}", f"{value / (count * times[1]):.0%}"]
        for count, value in times.items()
    ]
    return markdown_table(["objects", "32 frames", "relative to one object", "relative to single runs"], rows)


def measure_memory(path: str, folder: Path) -> str:
    """Memory of a process that tracks two objects through videos of increasing length, of the tracker alone: a chat
    keeps features of frames for later turns in addition, up to the `max_memory_bytes` of its store."""
    rows = []
    for num_frames in (60, 300, 1200):
        video = make_video(folder, num_frames)
        command = [sys.executable, __file__, "--model", path, "--track", str(video)]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
        settled, peak, masks, alive = (float(value) for value in printed.split())
        rows.append([num_frames, f"{settled:.0f} MiB", f"{peak - settled:.0f} MiB", f"{masks:.0f} MiB", int(alive)])
    header = [
        "frames",
        f"process after {SETTLED_FRAMES} frames, no features kept",
        "growth up to the peak",
        "masks returned",
        "frame features alive at once",
    ]
    return markdown_table(header, rows)


class FeatureCounter:
    """Counts how many frames' features are alive at once, with a weak reference to each."""

    def __init__(self):
        self.alive = self.peak = 0

    def add(self, features) -> None:
        self.alive += 1
        self.peak = max(self.peak, self.alive)
        weakref.finalize(features, self.remove)

    def remove(self) -> None:
        self.alive -= 1


def track_and_report(path: str, video_path: str) -> None:
    """Tracks two objects and prints memory once the tracker's memory is full, peak memory after that, size of the
    masks (all in MiB), and the largest number of frame features alive at once."""
    model, processor = load(path)
    video, counter = processor.open_video(video_path), FeatureCounter()
    tracker, frames = model.model.mask_tracker, processor.sam_frames(video)
    process, sizes = psutil.Process(), []

    def features(index: int):
        encoded = tracker.encode_frames(frames[index][None])
        counter.add(encoded)
        return encoded

    def watch(tracked):
        for frame in tracked:
            sizes.append(process.memory_info().rss / 2**20)
            yield frame

    chat = model.start_chat(processor, video=video)
    chat.sam_features = features
    tracks, _ = chat.track_objects(answer_states(model, 2), watch)
    masks = sum(len(track.to_rle(index)["counts"]) * 4 for track in tracks for index in range(len(video))) / 2**20
    print(sizes[SETTLED_FRAMES], max(sizes[SETTLED_FRAMES:]), masks, counter.peak)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "checkpoints" / "sama-tiny"), help="checkpoint folder")
    parser.add_argument(
        "--section", nargs="+", choices=SECTIONS, default=SECTIONS, help="tables to print (default: all)"
    )
    parser.add_argument("--track", metavar="VIDEO", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.track:
        track_and_report(arguments.model, arguments.track)
        return
    sections = {
        "calls": measure_calls,
        "turns": measure_turns,
        "questions": measure_questions,
        "objects": measure_objects,
    }
    with TemporaryDirectory() as folder:
        for name in arguments.section:
            if name == "memory":
                text = measure_memory(arguments.model, Path(folder))
            elif name == "training":
                text = measure_training(arguments.model)
            else:
                text = sections[name](*load(arguments.model), Path(folder))
            print(f"\n{text}\n", flush=True)


if __name__ == "__main__":
    main()
