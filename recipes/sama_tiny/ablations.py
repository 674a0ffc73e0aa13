"""What each part of SAMA contributes: short trainings of the small model from one start with one budget, as one table.

    python recipes/sama_tiny/ablations.py --model checkpoints/sama-tiny --masks outputs/tiny-masks \\
        --start outputs/tiny-language --to outputs/ablations

The first variants train dialogues as train_language.py does, with something left out, in training and in
use alike; the others train masks with train.py, from what the first one has learned. What is left out is set to zero
by hooks here; the product has no switch for it. Every variant is asked the same held-out questions of toy world, which
it answers by generation. The result of a variant is a file, `<variant>.json`: started again, a run goes on with those
that are missing, and a variant of dialogues from its last state.
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
from sama.drawing.tables import markdown_table
from sama.evaluation.inference import PredictionRunner
from sama.evaluation.provenance import checkpoint_hash
from sama.modeling_sama import SamaForConditionalGeneration
from sama.processing_sama import SamaProcessor
from sama.recipes.sama_tiny.examples import Lessons
from sama.recipes.sama_tiny.train_language import Teacher, learn, trained_parts
from sama.toy_world.clip import Clip
from sama.toy_world.questions import Turn
from sama.toy_world.world import ToyWorld


ROOT = Path(__file__).resolve().parents[2]
FULL = "full"
STATE = "state.pt"
ROUNDS = 3  # of a dialogue in training, but for the variant with one
CONSISTENT, RELEASE = "consistent", "published"


# What is left out


def without_context(model: SamaForConditionalGeneration) -> None:
    """Every context token is zero: the language model sees the dense frames and the regions alone."""
    model.model.context_aggregator.register_forward_hook(lambda module, inputs, output: torch.zeros_like(output))


def without_shape(model: SamaForConditionalGeneration) -> None:
    """The shape feature of every region is zero, for the language model and for the aggregator."""
    inner = model.model
    for encoder in (inner.region_encoder, inner.context_aggregator.region_encoder):
        encoder.register_forward_hook(lambda module, inputs, output: (output[0], torch.zeros_like(output[1])))


def nothing(model: SamaForConditionalGeneration) -> None:
    """The whole model."""


@dataclass(frozen=True)
class Dialogues:
    """A variant that trains dialogues: what it leaves out, and of how many rounds a dialogue in training is."""

    title: str
    leave_out: Callable[[SamaForConditionalGeneration], None] = nothing
    rounds: int = ROUNDS


@dataclass(frozen=True)
class Masks:
    """A variant that trains masks: how they are carried through the video, and whether training does so too."""

    title: str
    policy: str
    memory: bool


VARIANTS: dict[str, Dialogues | Masks] = {
    FULL: Dialogues("full model"),
    "no-context": Dialogues("without context aggregator", without_context),
    "no-shape": Dialogues("without region shape feature", without_shape),
    "one-turn": Dialogues("1 turn in training", rounds=1),
    "consistent": Masks("masks, consistent", CONSISTENT, memory=False),
    "consistent-memory": Masks("masks, consistent, memory training", CONSISTENT, memory=True),
    "published": Masks("masks, release", RELEASE, memory=False),
    "release-memory": Masks("masks, release, memory training", RELEASE, memory=True),
}


# Training


class Rounds(ToyWorld):
    """Toy world whose records keep a window of at most `rounds` rounds, which starts anywhere in the dialogue."""

    def __init__(self, settings, seed: int, rounds: int):
        super().__init__(settings, seed)
        self.rounds = rounds

    def record(self, index: int, task: str, clip: Clip, turns: list[Turn]) -> dict:
        """The record, cut."""
        record = super().record(index, task, clip, turns)
        messages, others = record["messages"], len(record["messages"]) // 2 - self.rounds
        rng = np.random.default_rng([self.seed, index, self.rounds])
        first = 2 * int(rng.integers(max(others, 0) + 1))
        return record | {"messages": messages[first : first + 2 * self.rounds]}


def load(folder: Path, policy: str = CONSISTENT) -> tuple[SamaForConditionalGeneration, SamaProcessor]:
    """The model of a folder in float32 and its processor, both under a policy of masks."""
    model = SamaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, preset=policy)
    return model, SamaProcessor.from_pretrained(folder, trust_remote_code=True, preset=policy)


def save(model: SamaForConditionalGeneration, processor: SamaProcessor, folder: Path) -> None:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def train_dialogues(variant: Dialogues, arguments: argparse.Namespace, folder: Path):
    """The start, and `--steps` steps of dialogues."""
    model, processor = load(arguments.model)
    variant.leave_out(model)
    torch.manual_seed(arguments.seed)  # dropout
    teacher = Teacher(model.train(), processor, arguments.seed)
    masks = torch.load(arguments.masks / STATE, weights_only=True)
    model.model.mask_tracker.load_state_dict(masks["tracker"])
    model.model.mask_tracker.requires_grad_(False)
    teacher.prompts.load_state_dict(masks["prompts"])
    if arguments.start:
        state = torch.load(arguments.start / STATE, weights_only=True)
        trained_parts(model).load_state_dict(state["parts"])
        teacher.heads.load_state_dict(state["heads"])
    plan = argparse.Namespace(
        mask_steps=0,
        sight_steps=0,
        dialogue_steps=arguments.steps,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        decoder_rate=0.0,
        seed=arguments.seed,
        device="cpu",
        num_workers=0,
        log_steps=25,
        save_steps=50,
    )
    lessons = Lessons(processor, model.config, plan)
    lessons.world = Rounds(lessons.world.settings, arguments.seed, variant.rounds)
    learn(teacher, lessons, folder / STATE)
    save(model, processor, folder)
    return model, processor


def train_masks(variant: Masks, arguments: argparse.Namespace, folder: Path):
    """What the full model has learned, and `--mask-steps` steps of train.py with the published parts."""
    start, trained = folder / "start", folder / "trained"
    save(*load(arguments.to / FULL, variant.policy), start)
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
    return load(trained, variant.policy)


# Asking


def held_out(arguments: argparse.Namespace) -> Benchmark:
    """The questions that every variant is asked."""
    return open_benchmark("toy_world", split="val", clips=arguments.clips)


def examine(model, processor, benchmark: Benchmark) -> dict:
    """The scores of a model, and how many questions failed, ready for JSON."""
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
    """Everything that decides a result but for the variant; of the start its contents, not its paths."""
    names = ["steps", "batch_size", "learning_rate", "seed", "clips"]
    names += ["mask_steps", "mask_batch_size", "mask_learning_rate"] if isinstance(variant, Masks) else []
    states = {name: folder and digest_of([folder / STATE]) for name, folder in
              (("masks", arguments.masks), ("start", arguments.start))}  # fmt: skip
    start = {"model": checkpoint_hash(str(arguments.model)), **states}
    return {name: vars(arguments)[name] for name in names} | start


def finish(name: str, arguments: argparse.Namespace) -> dict:
    """The result of a variant: from its file, or trained and asked now. `ValueError` for a file of another budget."""
    path, variant = arguments.to / f"{name}.json", VARIANTS[name]
    wanted = budget(variant, arguments)
    if path.is_file():
        result = json.loads(path.read_text(encoding="utf-8"))
        if result["budget"] != wanted:
            raise ValueError(f"{path} has the budget {result['budget']}, not {wanted}; name another folder with --to")
        return result
    folder, begin = arguments.to / name, time.process_time()
    folder.mkdir(parents=True, exist_ok=True)
    train = train_dialogues if isinstance(variant, Dialogues) else train_masks
    model, processor = train(variant, arguments, folder)
    result = {"variant": name, "budget": wanted} | examine(model, processor, held_out(arguments))
    print(f"{name}: done after {time.process_time() - begin:.0f} s of this process", flush=True)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(result, indent=1), encoding="utf-8")
    unfinished.replace(path)
    return result


def report(results: Sequence[dict]) -> str:
    """The table of all results: a row for each score, a column for each variant."""
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
    if row["value"] is None:
        return "-"
    if row["interval"] is None:  # one clip says nothing about variation
        return f"{row['value']:.2f}"
    low, high = row["interval"]
    return f"{row['value']:.2f} ± {(high - low) / 2:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a small SAMA: its sizes and its processor")
    parser.add_argument("--masks", type=Path, required=True, help="what recipes/sama_tiny/train_masks.py wrote")
    parser.add_argument(
        "--start", type=Path, help="what recipes/sama_tiny/train_language.py wrote; else the model itself"
    )
    parser.add_argument("--to", type=Path, required=True, help="folder of the results; table.md is the table")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--steps", type=int, default=100, help="of a variant of dialogues")
    parser.add_argument("--batch-size", type=int, default=16, help="dialogues in a step")
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--mask-steps", type=int, default=60, help="of a variant of masks")
    parser.add_argument("--mask-batch-size", type=int, default=4, help="dialogues in a step of these")
    parser.add_argument("--mask-learning-rate", type=float, default=2e-4)
    parser.add_argument("--clips", type=int, default=60, help="held-out clips that are asked about")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    # The variants of masks start from the full model
    names = [name for name in VARIANTS if name in (FULL, *arguments.variants)]
    results = [finish(name, arguments) for name in names]
    text = report(results)
    (arguments.to / "table.md").write_text(text + "\n", encoding="utf-8")
    print(f"\n{text}\n")


if __name__ == "__main__":
    main()
