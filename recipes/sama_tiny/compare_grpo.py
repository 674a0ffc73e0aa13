"""
Compares supervision and reinforcement: trains the small model further on questions that compare or count, once by
each, from the same weights with the same number of updates on the same prompts, and asks all three models about
held-out clips.

    python recipes/sama_tiny/compare_grpo.py --to outputs/grpo_comparison

The same command resumes a stopped run: trainings continue from their last checkpoints, and models that were asked are
not asked again. Results of other settings, weights or clips are refused. `table.md` in the folder has the result.

Masks are judged on tracks: in reinforcement on the frames that [SEG] prompts and three others, in held-out clips on
all frames.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from trl import ModelConfig

from sama.benchmarks.toy_world import ToyWorldBenchmark
from sama.data.files import write_text_atomically
from sama.data.mixture import load_mixture
from sama.drawing.tables import markdown_table
from sama.evaluation.provenance import checkpoint_hash
from sama.metrics.intervals import wilson
from sama.modeling_sama import SamaForConditionalGeneration
from sama.processing_sama import SamaProcessor
from sama.resources import SMALL_MODEL
from sama.toy_world.clip import ToySettings
from sama.training.arguments import SamaTrainingArguments
from sama.training.checkpoints import STATE_FILE, TrainingError
from sama.training.grpo import SamaGRPOTrainer, track_answers
from sama.training.grpo_arguments import SamaGRPOArguments
from sama.training.launch import load_model
from sama.training.prompts import PromptCollator, TurnMixture
from sama.training.resumable import LAST
from sama.training.rewards import REWARDS, SampledAnswer
from sama.training.trainer import SamaTrainer


KINDS = ("order", "count_look", "count_motion")
PARTS = "aggregator,projector,language_model"
REWARD_WEIGHTS = "answer=1,masks=0.5,count=0.25,format=0.25,consistency=0.25"
VAL_SEED = 7  # of the benchmark's clips; the training clips have 0
BATCH = 8  # prompts that are answered together
DIALOGUES = 20_000
# Frames that are tracked beside those that [SEG] prompts: as in recipes/grpo_toy.yaml, and all
TRAIN_FRAMES, ALL_FRAMES = 3, ToySettings().frames[1]


def toy_mixture(processor, folder: Path, seed: int, memory_frames: int) -> TurnMixture:
    """Dialogues of toy world, each up to a question of one of the kinds, with masks on the prompted frames and
    `memory_frames` others."""
    path = folder / f"mixture_{seed}_{memory_frames}.yaml"
    options = {
        "samples": DIALOGUES,
        "seed": seed,
        "settings": {"split": "train" if seed == 0 else "val", "tasks": {"dialogue": 1}},
    }
    source = {"format": "toy_world", "options": options}
    content = {"sources": {"toy": source}, "rendering": {"memory_frames": memory_frames}}
    write_text_atomically(path, json.dumps(content))  # JSON is YAML
    return TurnMixture(load_mixture(path, processor, seed=0), KINDS)


def shared_settings(options: argparse.Namespace, folder: Path) -> dict:
    """Arguments of both trainings."""
    return {
        "output_dir": str(folder),
        "train_parts": PARTS,
        "learning_rate": options.learning_rate,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "max_steps": options.steps,
        "save_steps": 20,
        "save_total_limit": 1,
        "logging_steps": 5,
        "dataloader_num_workers": 0,
        "report_to": "none",
        "use_cpu": options.cpu,
        "seed": options.seed,
    }


def train(name: str, options: argparse.Namespace, processor) -> Path:
    """Trains one of the two, or resumes it; returns the folder of the trained model."""
    folder = options.to / name
    if (folder / STATE_FILE).is_file():  # written last
        return folder
    settings = shared_settings(options, folder)
    if name == "supervised":
        arguments = SamaTrainingArguments(per_device_train_batch_size=options.prompts, **settings)
    else:
        arguments = SamaGRPOArguments(
            per_device_train_batch_size=options.prompts * options.answers,
            num_generations=options.answers,
            max_completion_length=48,
            rewards=REWARD_WEIGHTS,
            completion_steps=20,
            **settings,
        )
    loading = ModelConfig(model_name_or_path=str(options.model), dtype="float32")
    trainer_class = SamaTrainer if name == "supervised" else SamaGRPOTrainer
    # Supervision has mask losses on prompted frames alone, and would prompt the others as well
    mixture = toy_mixture(processor, options.to, 0, 0 if name == "supervised" else TRAIN_FRAMES)
    trainer = trainer_class(load_model(loading, arguments), arguments, mixture, processor, loading)
    trainer.train(resume_from_checkpoint=trainer.resume_point(LAST))
    trainer.save_model()
    trainer.save_state()
    return folder


@torch.no_grad()
def ask(model_folder: Path, options: argparse.Namespace, processor) -> list[dict]:
    """Greedy answers of a model to held-out questions: kind, whether the words are right, and the IoU of tracks."""
    model = SamaForConditionalGeneration.from_pretrained(model_folder, dtype="float32").eval()
    mixture, rows = toy_mixture(processor, options.to, VAL_SEED, ALL_FRAMES), []
    collator, index = PromptCollator(processor), 0
    while len(rows) < options.questions:
        samples = []
        while len(samples) < min(BATCH, options.questions - len(rows)):
            sample, index = mixture[index], index + 1
            samples += [] if sample is None else [sample]
        batch = collator(samples)
        output = model.generate(**batch["inputs"], max_new_tokens=48, do_sample=False, return_dict_in_generate=True)
        new = output.sequences[:, batch["inputs"]["input_ids"].shape[1] :]
        for ids, states, prompt, frames in zip(
            new, output.seg_states, batch["prompts"], batch["sam_frames"], strict=True
        ):
            masks = track_answers(model, processor, [states], prompt, frames)[0]
            answer = SampledAnswer(processor.post_process_answer(ids).tagged_text, masks)
            found = {name: REWARDS[name](answer, prompt.reference) for name in ("answer", "masks")}
            rows.append({"id": prompt.id, "kind": prompt.reference.info["kind"], "text": answer.tagged_text, **found})
    return rows


def table(results: dict[str, Sequence[dict]]) -> str:
    """A row for each kind: the share of right answers of each model with its 95 % interval; then the IoU of tracks."""
    by_kind: dict[str, dict[str, list[dict]]] = defaultdict(dict)
    for name, rows in results.items():
        for kind in (*KINDS, "all"):
            by_kind[kind][name] = [row for row in rows if kind in ("all", row["kind"])]
    lines = []
    for kind, found in by_kind.items():
        cells = []
        for rows in found.values():
            hits = int(sum(row["answer"] for row in rows))
            low, high = wilson(hits, len(rows)) if rows else (0, 1)
            cells.append(f"{hits / len(rows):.2f} ({low:.2f} to {high:.2f})" if rows else "")
        lines.append([kind, len(next(iter(found.values()))), *cells])
    masks = [f"{np.mean([row['masks'] for row in rows]):.3f}" for rows in results.values()]
    lines.append(["track mIoU, all", len(next(iter(results.values()))), *masks])
    return markdown_table(["questions", "n", *results], lines)


def keep_settings(options: argparse.Namespace) -> None:
    """Writes what results depend on beside them: the options, the weights and the version of the clips. Raises a
    [`TrainingError`] if those in the folder were made with others."""
    settings = {name: str(value) for name, value in vars(options).items() if name not in ("to", "model")}
    settings |= {"checkpoint": checkpoint_hash(str(options.model)), "toy_world": str(ToyWorldBenchmark.version)}
    path = options.to / "settings.json"
    if not path.is_file():
        write_text_atomically(path, json.dumps(settings, indent=2) + "\n")
        return
    earlier = json.loads(path.read_text(encoding="utf-8"))
    for name, value in settings.items():
        if earlier.get(name) != value:
            raise TrainingError(
                f"{options.to} has results with {name} {earlier.get(name, 'unknown')}, not {value}: choose another "
                "--to."
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=SMALL_MODEL)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--prompts", type=int, default=4, help="of an update")
    parser.add_argument("--answers", type=int, default=8, help="sampled for each prompt")
    parser.add_argument("--questions", type=int, default=240, help="held-out ones")
    parser.add_argument("--learning-rate", type=float, default=3e-6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cpu", action="store_true")
    options = parser.parse_args()
    options.to.mkdir(parents=True, exist_ok=True)
    keep_settings(options)
    processor = SamaProcessor.from_pretrained(options.model, trust_remote_code=True)
    results = {}
    for name in ("base", "supervised", "reinforced"):
        path = options.to / f"answers_{name}.json"
        if not path.is_file():
            folder = options.model if name == "base" else train(name, options, processor)
            write_text_atomically(path, json.dumps(ask(folder, options, processor)))
        results[name] = json.loads(path.read_text(encoding="utf-8"))
    write_text_atomically(options.to / "table.md", table(results) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
