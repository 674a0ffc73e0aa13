"""A tiny checkpoint, mixtures and training runs."""

import json
import os
import signal
from pathlib import Path

import torch
import yaml
from processor_fixtures import tiny_processor
from tiny_model import IMAGE_SIZE, tiny_model
from transformers import TrainerCallback

from sama import train
from sama.training.trainer import SamaTrainer


TOY = {"format": "toy_world", "options": {"samples": 8, "settings": {"frames": [8, 9], "things": [2, 2]}}}


def save_checkpoint(folder: Path, **overrides) -> Path:
    """Saves a tiny model and its processor, without dropout so that runs can be compared."""
    processor = tiny_processor(image_size=IMAGE_SIZE)
    mark, position = processor.qformer_tokenizer.convert_tokens_to_ids(["<mask>", "<pos>"])
    ids = {
        "image_token_id": processor.image_token_id,
        "seg_token_id": processor.seg_token_id,
        "qformer_mask_token_id": mark,
        "qformer_position_token_id": position,
    }
    model = tiny_model(num_mask_points=64, **ids, **overrides)
    for part in ("spatial_qformer_config", "temporal_qformer_config"):
        settings = getattr(model.config.aggregator_config, part)
        settings.hidden_dropout_prob = settings.attention_probs_dropout_prob = 0.0
    model.config.mask_config.memory_attention_dropout = model.config.mask_config.memory_attention_rope_dropout = 0.0
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def toy_mixture(folder: Path, samples: int = 8, texts: int = 0, tasks: dict | None = None, **settings) -> Path:
    """Writes a mixture of toy world and `texts` conversations without images."""
    world = {**TOY["options"]["settings"], **({"tasks": tasks} if tasks else {})}
    sources = {"toy": {**TOY, "options": {"samples": samples, "settings": world}}}
    if texts:
        records = [
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": f"Say {number}."}]},
                    {"role": "assistant", "content": [{"type": "text", "text": f"It is {number}."}]},
                ]
            }
            for number in range(texts)
        ]
        (folder / "texts.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        sources["texts"] = {"format": "json_lines", "files": {"records": "texts.jsonl", "media": "."}}
    path = folder / "mixture.yaml"
    path.write_text(yaml.safe_dump({"sources": sources, **settings}))
    return path


def flags(checkpoint: Path, mixture: Path, output: Path, **options) -> list[str]:
    """Command-line flags of a tiny run."""
    options = {
        "model_name_or_path": checkpoint,
        "mixture": mixture,
        "output_dir": output,
        "data_root": mixture.parent,
        "data_cache": mixture.parent / "cache",
        "use_cpu": True,
        "report_to": "none",
        "logging_steps": 1,
        "dataloader_num_workers": 0,
        "learning_rate": 1e-3,
        "disable_tqdm": True,
        **options,
    }
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def trainer_of(*arguments, **options) -> SamaTrainer:
    """The trainer of a tiny run; takes the arguments of [`flags`]."""
    return train.build(*train.parse(flags(*arguments, **options)))


def history(output: Path) -> list[dict]:
    """The log entries of a run's updates."""
    state = json.loads((output / "trainer_state.json").read_text())
    return [entry for entry in state["log_history"] if "loss" in entry]


class GradientRecorder(TrainerCallback):
    """Records the gradients of each update before the optimizer step."""

    def __init__(self):
        self.updates: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.updates.append(
            {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.requires_grad}
        )


def record_run(*arguments, **options) -> dict:
    """Losses and gradients of each update of a short run, without clipping."""
    trainer, recorder = trainer_of(*arguments, max_grad_norm=0, optim="sgd", save_strategy="no", **options), None
    recorder = GradientRecorder()
    trainer.add_callback(recorder)
    masks = []
    trainer.model.register_forward_pre_hook(
        lambda _, args, inputs: masks.append(sum(target.numel() for target in inputs["target_masks"])),
        with_kwargs=True,
    )
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {
        "logged": logged,
        "gradients": recorder.updates,
        "wrapper": type(trainer.model_wrapped).__name__,
        "world_size": trainer.args.world_size,
        "batches_without_masks": masks.count(0),
    }


def record_rank(checkpoint: Path, mixture: Path, output: Path, cases: list[dict]) -> None:
    """One process of a distributed run: records a run for each set of options and saves the results."""
    found = [record_run(checkpoint, mixture, output / str(number), **options) for number, options in enumerate(cases)]
    torch.save(found, output / f"rank{torch.distributed.get_rank()}.pt")
    torch.distributed.destroy_process_group()


def train_until_renamed(name: str, arguments: list[str]) -> int:
    """Runs train.py, which is killed during a save: when `name` is written but not yet renamed."""
    replace = os.replace

    def kill(source, target):
        if str(target).endswith(name):
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    os.replace = kill
    return train.main(arguments)
