"""Arguments of a training run: those of transformers' Trainer, with optimiser, schedule and trained parts of the
published recipe as defaults, and SAMA's. One epoch and 64 samples an update are set by scripts/train_released.sh."""

from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments

from .parts import PUBLISHED_PARTS, parse_parts


# Settings of the Trainer that SAMA's losses and its order of samples do not use, with their defaults
NOT_USED = {"label_smoothing_factor": 0.0, "train_sampling_strategy": "random", "dataloader_drop_last": False}


@dataclass
class SamaTrainingArguments(TrainingArguments):
    """[`TrainingArguments`] with the published optimiser, schedule and trained parts as defaults, and SAMA's own."""

    output_dir: str = field(
        default="outputs/train", metadata={"help": "Folder for checkpoints, logs and the trained model."}
    )
    learning_rate: float = field(default=4e-5, metadata={"help": "Peak learning rate, reached after the warmup."})
    weight_decay: float = field(
        default=0.05, metadata={"help": "Applied to every trained parameter, including biases."}
    )
    warmup_steps: float = field(
        default=0.05, metadata={"help": "Warmup updates, or the fraction of the run if below 1."}
    )
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Schedule after the warmup."})
    per_device_train_batch_size: int = field(default=2, metadata={"help": "Samples per process and forward pass."})
    logging_steps: float = field(default=10, metadata={"help": "Updates between two log entries."})
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Keep disabled: a NaN or infinite loss stops the run with an error."}
    )
    report_to: None | str | list[str] = field(
        default="tensorboard",
        metadata={"help": "tensorboard, trackio, none, or another of the Trainer's integrations."},
    )
    save_steps: float = field(default=1000, metadata={"help": "Updates between two checkpoints."})
    save_total_limit: int | None = field(default=3, metadata={"help": "Number of newest checkpoints to keep."})
    bf16: bool | None = field(
        default=None,
        metadata={
            "help": "Compute in bfloat16 with float32 weights. Default: on if the GPU supports it and fp16 is off."
        },
    )
    dataloader_num_workers: int = field(
        default=4, metadata={"help": "Processes that load batches; 0 loads in the main process."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Keep disabled: samples have no columns."})
    ddp_find_unused_parameters: bool | None = field(
        default=False,
        metadata={"help": "Not needed: the model gives parameters that a batch does not use a zero gradient."},
    )
    use_cache: bool = field(
        default=True, metadata={"help": "Setting of the saved model; training itself uses no cache."}
    )
    train_parts: str = field(
        default=",".join(PUBLISHED_PARTS),
        metadata={
            "help": "Parts to train, comma-separated: aggregator, seg_head, mask_decoder, projector, vision_tower, "
            "language_model, memory, sam_encoder, sam_heads, prompt_encoder, or all."
        },
    )
    memory_training: bool = field(
        default=False,
        metadata={
            "help": "Also compute mask losses on propagated frames, which trains SAM 2's memory. By default, as "
            "published, only frames prompted by [SEG] have mask losses."
        },
    )

    accept_changes: bool = field(
        default=False,
        metadata={
            "help": "Resume although data or settings are not those of the checkpoint's run; differences are logged."
        },
    )

    def __post_init__(self):
        if self.bf16 is None:
            on_gpu = not self.use_cpu and torch.cuda.is_available()
            self.bf16 = not self.fp16 and on_gpu and torch.cuda.is_bf16_supported()
        for name, default in NOT_USED.items():
            if vars(self).get(name, default) != default:
                raise ValueError(f"{name} is {vars(self)[name]!r}, but this training does not use it; leave it out")
        self.parts  # noqa: B018  raises for an unknown part
        super().__post_init__()
        if self.n_gpu > 1:  # the library would cut every batch in pieces, whatever belongs together
            raise ValueError(
                f"one process sees {self.n_gpu} GPUs: start one for each with `accelerate launch`, or choose one with "
                "CUDA_VISIBLE_DEVICES=0"
            )

    @property
    def parts(self) -> tuple[str, ...]:
        """The names in `train_parts`; `memory_training` adds the memory."""
        return parse_parts(self.train_parts, self.memory_training)


@dataclass
class DataArguments:
    """Arguments of the training data."""

    mixture: str = field(metadata={"help": "Mixture of data sources, a YAML file such as those in data_configs."})
    data_root: str | None = field(
        default=None, metadata={"help": "Data folder. Default: the environment variable SAMA_DATA_ROOT."}
    )
    data_cache: str | None = field(default=None, metadata={"help": "Cache folder for annotations as Arrow files."})
    on_error: str | None = field(
        default=None,
        metadata={"help": "What to do with a broken sample; overrides the mixture.", "choices": ["raise", "skip"]},
    )
    turns: int | None = field(
        default=None, metadata={"help": "Maximum number of turns per sample; overrides the mixture."}
    )
    memory_frames: int = field(
        default=3, metadata={"help": "Propagated frames per video with --memory_training, and in reinforcement."}
    )

    def rendering(self, memory_training: bool) -> dict:
        """Rendering settings that override the mixture's."""
        turns = {} if self.turns is None else {"turns": self.turns}
        return {**turns, "memory_frames": self.memory_frames if memory_training else 0}
