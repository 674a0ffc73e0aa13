"""What sama-tiny answers, selects and learns, computed through the public interfaces. test_oracles.py compares it
with the values recorded beside this file; running this file as a program records them anew:

    python tests/oracles/oracles.py
"""

import gzip
import json
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from pycocotools import mask as coco_mask
from transformers import AutoModel, AutoProcessor, TrainerCallback

from sama import demo, evaluate, train
from sama.evaluation.predictions import PREDICTIONS
from sama.toy_world.world import ToyWorld


FOLDER = Path(__file__).parent
ROOT = FOLDER.parent.parent
CHECKPOINT = ROOT / "checkpoints" / "sama-tiny"
NUM_CONVERSATIONS, NUM_QUESTIONS, NUM_UPDATES = 20, 40, 20
QUESTIONS = (
    "What is <region>?",
    "What does <region> do?",
    "Which is larger, <region> or <region>?",
    "Segment the circle.",
)
SEED = 1234  # of the clips that the conversations are about; neither trained on nor part of the benchmark


def compressed(track, num_frames: int) -> list[str | None]:
    """The masks of a `MaskTrack` as COCO's compressed run lengths, `None` where the object is not visible."""
    masks = []
    for frame in range(num_frames):
        rle = coco_mask.frPyObjects(track.to_rle(frame), track.height, track.width)
        masks.append(rle["counts"].decode("ascii") if coco_mask.area(rle) else None)
    return masks


def region_for(kind: str, masks: np.ndarray) -> dict:
    """A region of the given kind on the object with `masks` (num_frames, height, width), on its most visible frame."""
    frame = int(masks.sum((1, 2)).argmax())
    rows, columns = np.nonzero(masks[frame])
    left, right, top, bottom = (int(x) for x in (columns.min(), columns.max(), rows.min(), rows.max()))
    middle = len(rows) // 2
    x, y = int(columns[middle]), int(rows[middle])
    prompts = {
        "box": {"box": [left, top, right + 1, bottom + 1]},
        "points": {"points": [[x, y], [0, 0]], "labels": [1, 0]},
        "scribble": {"scribble": [[left, top], [x, y], [right, bottom]]},
        "mask": {"mask": masks[frame]},
    }
    return {"frame": frame, **prompts[kind]}


def converse(model, processor, index: int) -> list[dict]:
    """One conversation of four turns: a region of each kind in turn, a phrase of an earlier answer, a referring
    expression."""
    sample = ToyWorld({"tasks": {"dialogue": 1}, "frames": [8, 16]}, seed=SEED)[index]
    chat = model.start_chat(processor, video=sample.frames)
    kinds = ("box", "points", "scribble", "mask")
    visible = [masks for masks in sample.masks if masks.any()]
    first, second = (region_for(kinds[(index + n) % 4], visible[(index + n) % len(visible)]) for n in (0, 1))
    turns = []
    for number, question in enumerate(
        (
            "What is <region>?",
            "What does <region> do?",
            "Which is larger, <region> or <region>?",
            "Segment the circle.",
        )
    ):
        earlier = [item for turn in turns for item in turn.objects if item.track.visible_frames()]
        regions = ([first], [earlier[0] if earlier else first], [first, second], [])[number]
        turns.append(chat.ask(question, regions=regions, max_new_tokens=40))
    return [
        {
            "tokens": processor.tokenizer(reply.tagged_text, add_special_tokens=False)["input_ids"],
            "text": reply.text,
            "prefilled_tokens": reply.prefilled_tokens,
            "objects": [
                {"phrase": item.text, "span": list(item.span), "masks": compressed(item.track, len(chat.video))}
                for item in reply.objects
            ],
            "size": [chat.video.height, chat.video.width],
        }
        for reply in turns
    ]


def conversations(count: int = NUM_CONVERSATIONS) -> list[list[dict]]:
    """Conversations about generated clips, in float32."""
    model = AutoModel.from_pretrained(CHECKPOINT, trust_remote_code=True, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(CHECKPOINT, trust_remote_code=True)
    return [converse(model, processor, index) for index in range(count)]


def evaluate_toy_world(folder: Path, *more: str) -> dict:
    """Runs `evaluate.py --benchmark toy_world` in `folder`: every prediction, and every score by part and name."""
    assert evaluate.main(["--benchmark", "toy_world", "--no_gallery", "--out", str(folder), *more]) == 0
    lines = (folder / PREDICTIONS).read_text().splitlines()
    scores = json.loads((folder / "results.json").read_text())["scores"]
    kept = ("part", "name", "value", "count", "interval", "chance")
    return {
        "predictions": sorted(map(json.loads, lines), key=lambda row: int(row["question"])),
        "scores": [{name: score[name] for name in kept} for score in scores],
    }


def benchmark_rows(count: int = NUM_QUESTIONS) -> dict:
    """Predictions and scores of the first questions of toy world."""
    with TemporaryDirectory() as folder:
        return evaluate_toy_world(Path(folder), "--model", str(CHECKPOINT), "--limit", str(count))


def rescored(predictions: list[dict]) -> list[dict]:
    """The scores of predictions that are given."""
    with TemporaryDirectory() as folder:
        (Path(folder) / PREDICTIONS).write_text("".join(json.dumps(row) + "\n" for row in predictions))
        return evaluate_toy_world(Path(folder), "--score_only", "--accept_foreign")["scores"]


class StopAfter(TrainerCallback):
    """Ends a run after the update `step`, with the schedule of the whole run."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **others):
        control.should_training_stop |= state.global_step >= self.step


def training_losses(count: int = NUM_UPDATES) -> list[dict]:
    """The first of twenty updates of sama-tiny on data_configs/toy.yaml at the default seed: what was logged at
    each."""
    with TemporaryDirectory() as folder:
        flags = {
            "model_name_or_path": CHECKPOINT,
            "mixture": ROOT / "data_configs" / "toy.yaml",
            "output_dir": Path(folder) / "run",
            "max_steps": NUM_UPDATES,
            "logging_steps": 1,
            "save_strategy": "no",
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 1,
            "dataloader_num_workers": 0,
            "use_cpu": True,
            "report_to": "none",
            "disable_tqdm": True,
        }
        words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
        trainer = train.build(*train.parse(words))
        trainer.add_callback(StopAfter(count))
        trainer.train()
    kept = ("loss", "lm_loss", "mask_loss", "dice_loss", "grad_norm", "learning_rate")
    return [{name: entry[name] for name in kept} for entry in trainer.state.log_history if "loss" in entry]


def demo_file() -> dict:
    """The JSON of `demo.py` about the generated clip that ships."""
    with TemporaryDirectory() as folder:
        out = Path(folder) / "answer.mp4"
        script = [
            word for kind, text in demo.EXAMPLES[ROOT / "assets" / "toy_world.mp4"] for word in (f"--{kind}", text)
        ]
        assert demo.main(["--video", str(ROOT / "assets" / "toy_world.mp4"), *script, "--out", str(out)]) == 0
        found = json.loads(out.with_suffix(".json").read_text())
    return {name: value for name, value in found.items() if name not in ("model", "video")}  # paths of this machine


ORACLES: dict[str, Callable] = {
    "conversations": conversations,
    "benchmark_rows": benchmark_rows,
    "training_losses": training_losses,
    "demo_file": demo_file,
}


def recorded(name: str):
    """The recorded value of an oracle."""
    return json.loads(gzip.decompress((FOLDER / f"{name}.json.gz").read_bytes()))


def main() -> int:
    for name in sys.argv[1:] or ORACLES:
        text = json.dumps(ORACLES[name]())
        (FOLDER / f"{name}.json.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
        print(f"{name}: {len(text)} characters")
    return 0


if __name__ == "__main__":
    sys.exit(main())
