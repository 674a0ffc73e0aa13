"""Ablations of SAMA's parts: short trainings of sama-tiny from one start with one budget, compared in one table.

    python recipes/sama_tiny/ablations.py --model checkpoints/sama-tiny --masks outputs/tiny/masks \\
        --start outputs/tiny/language --to outputs/ablations

Dialogue variants are trained as in train_language.py, with a part disabled in training and evaluation. Mask
variants start from the trained full model and are trained with train.py. Disabled parts are set to zero by hooks.
All variants answer the same held-out questions of toy world by generation. The result of a variant is written to
`<variant>.json`; an interrupted run resumes with the missing variants, and dialogue variants from their last state.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sama.benchmarks.benchmark import Benchmark, digest_of
from sama.benchmarks.registry import open_benchmark
from sama.data.files import write_text_atomically
from sama.drawing.tables import markdown_table
from sama.evaluation.inference import PredictionRunner
from sama.evaluation.provenance import checkpoint_hash
from sama.modeling_sama import SamaForConditionalGeneration
from sama.processing_sama import SamaProcessor
from sama.recipes.sama_tiny.examples import DialogueExamples
from sama.recipes.sama_tiny.phases import Phase, folder_with, train
from sama.recipes.sama_tiny.practice import practice_dialogues
from sama.recipes.sama_tiny.train_language import DialogueLosses
from sama.toy_world.clip import Clip
from sama.toy_world.questions import ToyTurn
from sama.toy_world.world import ToyWorld


ROOT = Path(__file__).resolve().parents[2]
FULL = "full"
STATE = "state.pt"
ROUNDS = 3  # rounds per training dialogue, except in the variant with one
Trained = tuple[SamaForConditionalGeneration, SamaProcessor]
CONSISTENT, PUBLISHED = "consistent", "published"


# Disabled parts


def without_context(model: SamaForConditionalGeneration) -> None:
    """Set all context tokens to zero, so that the language model sees dense frames and regions only."""
    model.model.context_aggregator.register_forward_hook(lambda module, inputs, output: torch.zeros_like(output))


def without_shape(model: SamaForConditionalGeneration) -> None:
    """Set the shape feature of every region to zero, for the language model and for the aggregator."""
    inner = model.model
    for encoder in (inner.region_encoder, inner.context_aggregator.region_encoder):
        encoder.register_forward_hook(lambda module, inputs, output: (output[0], torch.zeros_like(output[1])))


def unchanged(model: SamaForConditionalGeneration) -> None:
    """Disable nothing."""


@dataclass(frozen=True)
class Dialogues:
    """A variant trained on dialogues: the part it disables and the number of rounds per training dialogue."""

    title: str
    disable: Callable[[SamaForConditionalGeneration], None] = unchanged
    rounds: int = ROUNDS


@dataclass(frozen=True)
class Masks:
    """A variant trained on masks: the preset of propagation, and whether training uses memory."""

    title: str
    preset: str
    memory: bool


VARIANTS: dict[str, Dialogues | Masks] = {
    FULL: Dialogues("full model"),
    "no-context": Dialogues("without context aggregator", without_context),
    "no-shape": Dialogues("without region shape feature", without_shape),
    "one-turn": Dialogues("1 turn in training", rounds=1),
    "consistent": Masks("masks, consistent", CONSISTENT, memory=False),
    "consistent-memory": Masks("masks, consistent, memory training", CONSISTENT, memory=True),
    "published": Masks("masks, published", PUBLISHED, memory=False),
    "published-memory": Masks("masks, published, memory training", PUBLISHED, memory=True),
}


# Training


class WindowedToyWorld(ToyWorld):
    """Toy world with records cut to a random window of at most `rounds` rounds."""

    def __init__(self, world: ToyWorld, rounds: int):
        super().__init__(world.settings, world.seed, world.tasks)
        self.rounds = rounds

    def record(self, index: int, task: str, clip: Clip, turns: list[ToyTurn]) -> dict:
        """The record with a window of its messages."""
        record = super().record(index, task, clip, turns)
        messages, others = record["messages"], len(record["messages"]) // 2 - self.rounds
        rng = np.random.default_rng([self.seed, index, self.rounds])
        first = 2 * int(rng.integers(max(others, 0) + 1))
        return record | {"messages": messages[first : first + 2 * self.rounds]}


def load(folder: Path, preset: str = CONSISTENT) -> Trained:
    """The model in float32 and its processor, both with a preset."""
    model = SamaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, preset=preset)
    return model, SamaProcessor.from_pretrained(folder, trust_remote_code=True, preset=preset)


def save(model: SamaForConditionalGeneration, processor: SamaProcessor, folder: Path) -> None:
    """Write the model and its processor."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def train_dialogues(variant: Dialogues, arguments: argparse.Namespace, folder: Path) -> Trained:
    """Train the start for `--steps` steps on dialogues."""
    model, processor = load(arguments.model)
    variant.disable(model)
    losses = DialogueLosses(model.train(), processor, arguments.seed)
    losses.start_from(arguments.start, arguments.masks)
    model.model.mask_tracker.requires_grad_(False)
    settings = {"dialogues": arguments.batch_size, "seed": arguments.seed, "device": "cpu", "num_workers": 0}
    settings |= {"bf16": False, "log_steps": 25, "save_steps": 50}
    plan = argparse.Namespace(**settings)
    examples = DialogueExamples(processor, model.config, plan, arguments.steps)
    examples.world = WindowedToyWorld(practice_dialogues(arguments.seed), variant.rounds)
    frozen = [*losses.frozen, model.model.mask_tracker.sam.mask_decoder]
    phase = Phase(examples, losses.dialogues, arguments.learning_rate, [*losses.modules.values()], frozen)
    train([phase], losses.modules, plan, folder / STATE)
    save(model, processor, folder)
    return model, processor


def train_masks(variant: Masks, arguments: argparse.Namespace, folder: Path) -> Trained:
    """Train the full variant for `--mask-steps` steps with train.py and the parts of the published recipe."""
    start, trained = folder / "start", folder / "trained"
    save(*load(arguments.to / FULL, variant.preset), start)
    options = {
        "model_name_or_path": start,
        "mixture": ROOT / "data_configs" / "toy.yaml",
        "output_dir": trained,
        "max_steps": arguments.mask_steps,
        "per_device_train_batch_size": arguments.mask_batch_size,
        "learning_rate": arguments.mask_learning_rate,
        "memory_training": variant.memory,
        "turns": ROUNDS,
        "seed": arguments.seed,
        "save_strategy": "no",
        "report_to": "none",
        "logging_steps": 10,
        "dataloader_num_workers": 0,
        "use_cpu": True,
        "disable_tqdm": True,
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    subprocess.run([sys.executable, str(ROOT / "train.py"), *words], check=True)
    return load(trained, variant.preset)


# Evaluation


def held_out(arguments: argparse.Namespace) -> Benchmark:
    """The benchmark that all variants are evaluated on."""
    return open_benchmark("toy_world", split="val", clips=arguments.clips)


def evaluate(model: SamaForConditionalGeneration, processor: SamaProcessor, benchmark: Benchmark) -> dict:
    """Scores and number of failed questions, serialisable as JSON."""
    runner = PredictionRunner(model.eval(), processor, benchmark, benchmark.max_new_tokens)
    predictions = [
        prediction for group, names in benchmark.outline().items() for _, prediction in runner.ask_group(group, names)
    ]
    failed = sum(prediction.error is not None for prediction in predictions)
    scores = [
        {
            "score": f"{row.part}: {row.name}",
            "value": row.value,
            "interval": row.interval,
            "count": row.count,
            "chance": row.chance,
        }
        for row in benchmark.score(predictions).rows
    ]
    return {"failed": failed, "scores": scores}


def budget(variant: Dialogues | Masks, arguments: argparse.Namespace) -> dict:
    """Everything except the variant that determines a result; the start by its content, not by its path."""
    names = ["steps", "batch_size", "learning_rate", "seed", "clips"]
    names += ["mask_steps", "mask_batch_size", "mask_learning_rate"] if isinstance(variant, Masks) else []
    states = {name: folder and digest_of([folder / STATE]) for name, folder in
              (("masks", arguments.masks), ("start", arguments.start))}  # fmt: skip
    start = {"model": checkpoint_hash(str(arguments.model)), **states}
    return {name: vars(arguments)[name] for name in names} | start


def run_variant(name: str, arguments: argparse.Namespace) -> dict:
    """The result of a variant, read from its file or computed now.

    Raises:
        ValueError: if the file was computed with another budget.
    """
    path, variant = arguments.to / f"{name}.json", VARIANTS[name]
    wanted = budget(variant, arguments)
    if path.is_file():
        result = json.loads(path.read_text(encoding="utf-8"))
        if result["budget"] != wanted:
            raise ValueError(
                f"{path} has the budget {result['budget']}, not {wanted}: choose another folder with --to"
            )
        return result
    folder, begin = arguments.to / name, time.process_time()
    folder.mkdir(parents=True, exist_ok=True)
    train_variant = train_dialogues if isinstance(variant, Dialogues) else train_masks
    model, processor = train_variant(variant, arguments, folder)
    result = {"variant": name, "budget": wanted} | evaluate(model, processor, held_out(arguments))
    print(f"{name}: done after {time.process_time() - begin:.0f} s of this process", flush=True)
    write_text_atomically(path, json.dumps(result, indent=1))
    return result


def report(results: Sequence[dict]) -> str:
    """The table of all results, with a row per score and a column per variant."""
    columns = [{row["score"]: row for row in result["scores"]} for result in results]
    rows = []
    for score, first in columns[0].items():
        if any(column[score]["value"] is not None for column in columns):
            chance = "" if first["chance"] is None else f"{first['chance']:.2f}"
            rows.append([score, first["count"], chance, *(cell(column[score]) for column in columns)])
    titles = [
        VARIANTS[result["variant"]].title + (f" ({result['failed']} questions failed)" if result["failed"] else "")
        for result in results
    ]
    return markdown_table(["held-out toy world, ± half of the 95 % interval", "n", "chance", *titles], rows)


def cell(row: dict) -> str:
    """A score with half of its interval."""
    if row["value"] is None:
        return "-"
    if row["interval"] is None:  # a single clip gives no interval
        return f"{row['value']:.2f}"
    low, high = row["interval"]
    return f"{row['value']:.2f} ± {(high - low) / 2:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", type=folder_with("config.json"), required=True, help="a sama-tiny, for sizes and processor"
    )
    parser.add_argument(
        "--masks", type=folder_with(STATE), required=True, help="output folder of recipes/sama_tiny/train_masks.py"
    )
    parser.add_argument(
        "--start",
        type=folder_with(STATE),
        help="made by train_language.py; default: --model",
    )
    parser.add_argument("--to", type=Path, required=True, help="output folder; the table is table.md")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--steps", type=int, default=100, help="steps of a dialogue variant")
    parser.add_argument("--batch-size", type=int, default=16, help="dialogues per step")
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--mask-steps", type=int, default=60, help="steps of a mask variant")
    parser.add_argument("--mask-batch-size", type=int, default=4, help="dialogues per step of a mask variant")
    parser.add_argument("--mask-learning-rate", type=float, default=2e-4)
    parser.add_argument("--clips", type=int, default=60, help="number of evaluation clips")
    parser.add_argument(
        "--seed", type=int, default=1, help="of the dialogues; with that of --start, its dialogues are shown again"
    )
    arguments = parser.parse_args()
    # Mask variants start from the full variant
    names = [name for name in VARIANTS if name in (FULL, *arguments.variants)]
    results = [run_variant(name, arguments) for name in names]
    text = report(results)
    (arguments.to / "table.md").write_text(text + "\n", encoding="utf-8")
    print(f"\n{text}\n")


if __name__ == "__main__":
    main()
