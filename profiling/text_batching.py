"""Tokens a second of several conversations that generate at the same time on one device: one token of one conversation
in turns, and all of them in one batch.

    python profiling/text_batching.py [--model FOLDER] [--language-model 1b] [--sessions 1 4 16] [--tokens 64]
        [--rounds 5] [--threads 2] [--compile] [--out TABLE.md]

The sessions are those of the server, without HTTP: a question about an example clip that was read before, its text
streamed. All ways are measured alternately in one run; a ratio is the median over the rounds. Times depend on the
machine, the forwards of the language model do not. `--compile` adds a batch whose steps are compiled; the time of
compiling them is not measured.
"""

import argparse
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from transformers import AutoModel, AutoProcessor

from sama.configuration_sama import SamaConfig
from sama.conversion.backbones import INTERNVL
from sama.conversion.released_sizes import LANGUAGE_MODELS, VISION
from sama.drawing.tables import markdown_table
from sama.generation_sama import DecodingBatch
from sama.modeling_sama import SamaForConditionalGeneration
from sama.resources import EXAMPLE_CLIPS, SMALL_MODEL
from sama.serving.scheduling import DeviceSchedule
from sama.serving.session import ChatSession, Done


CLIP = EXAMPLE_CLIPS / "toy_world.mp4"
WORDS = ("Describe", "the", "video", "and", "what", "the", "red", "circle", "does", "in", "it")


def load(folder: str, language_model: str | None, device: str, dtype: torch.dtype):
    """A checkpoint and its processor; with `language_model`, the checkpoint's parts around a language model of a
    released size, all weights random."""
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    if language_model is None:
        model = AutoModel.from_pretrained(folder, trust_remote_code=True, dtype=dtype)
        return model.to(device).eval(), processor
    settings = SamaConfig.from_pretrained(folder).to_dict()
    large, num_rows, _ = LANGUAGE_MODELS[language_model]
    text = INTERNVL.config({"llm_config": large, "vision_config": VISION})["text_config"] | {
        "vocab_size": num_rows,
        "tie_word_embeddings": False,
    }
    settings["backbone_config"] |= {"text_config": text}
    with torch.device(device):
        model = SamaForConditionalGeneration(SamaConfig(**settings)).to(dtype)
    return model.eval(), processor


def generate_together(first, num_sessions: int, num_tokens: int, batch: DecodingBatch | None) -> tuple[float, float]:
    """Seconds in which branches of the chat `first` write `num_tokens` each, in a batch or in turns, and seconds of
    the CPU that it takes, which other work on the machine changes less."""
    schedule, sessions = DeviceSchedule(), []
    for _ in range(num_sessions):
        chat = first.branch()
        chat.decoding_batch = batch
        sessions.append(ChatSession(chat, num_tokens, schedule=schedule))
    exact = {"min_new_tokens": num_tokens, "stop_strings": None, "masks": False}
    start, cpu_start = time.perf_counter(), time.process_time()
    streams = [
        session.ask(" ".join(WORDS[: 1 + index % len(WORDS)]), **exact) for index, session in enumerate(sessions)
    ]
    with ThreadPoolExecutor(num_sessions) as readers:  # an answer waits for its reader
        for *_, last in readers.map(list, streams):
            if not isinstance(last, Done):
                raise RuntimeError(f"An answer failed: {last}")
    return time.perf_counter() - start, time.process_time() - cpu_start


def measure(
    model, processor, batches: dict[str, DecodingBatch | None], sessions: list[int], num_tokens: int, rounds: int
) -> str:
    """The table for each number of sessions; ratios to the first of `batches`."""
    first, rows, forwards = model.start_chat(processor, video=CLIP), [], []
    first.ask("Hello", max_new_tokens=2, masks=False)
    hook = model.model.register_forward_pre_hook(lambda *_: forwards.append(None))
    for number in sessions:
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in batches}
        row = [f"{number}"]
        counts = {}
        for _ in range(rounds + 1):  # the first warms up
            for name, batch in batches.items():
                forwards.clear()
                times[name].append(generate_together(first, number, num_tokens, batch))
                counts[name] = len(forwards) / (number * num_tokens)
        baseline = next(iter(times.values()))
        for name, found in times.items():
            seconds, cpu_seconds = (statistics.median(part) for part in zip(*found[1:], strict=True))
            ratio = statistics.median(one[0] / other[0] for one, other in zip(baseline[1:], found[1:], strict=True))
            cpu = 1000 * cpu_seconds / (number * num_tokens)
            row += [f"{number * num_tokens / seconds:.0f}", f"{ratio:.2f}", f"{cpu:.2f}", f"{counts[name]:.2f}"]
        rows.append(row)
    hook.remove()
    columns = ("tokens/s", "ratio", "CPU ms a token", "forwards a token")
    return markdown_table(["sessions", *(f"{name}: {column}" for name in batches for column in columns)], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default=str(SMALL_MODEL))
    parser.add_argument("--language-model", choices=LANGUAGE_MODELS, help="size of a language model of random weights")
    parser.add_argument("--sessions", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch, on a CPU")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    model, processor = load(arguments.model, arguments.language_model, device, dtype)
    batches: dict[str, DecodingBatch | None] = {"turns": None, "batch": DecodingBatch()}
    if arguments.compile:
        batches["compiled"] = DecodingBatch({})
    table = measure(model, processor, batches, arguments.sessions, arguments.tokens, arguments.rounds)
    print(table)
    if arguments.out:
        arguments.out.write_text(table + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
