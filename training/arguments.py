"""What a training run is told: everything that Transformers' Trainer takes, with the published recipe as defaults."""

from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments

from .parts import PUBLISHED_PARTS, parse_parts


@dataclass
class SamaTrainingArguments(TrainingArguments):
    """[`TrainingArguments`] with the published recipe as defaults, and what SAMA adds to them."""

    output_dir: str = field(default="outputs/train", metadata={"help": "Checkpoints, curves and the trained model."})
    learning_rate: float = field(default=4e-5, metadata={"help": "The highest learning rate, after the warm-up."})
    weight_decay: float = field(default=0.05, metadata={"help": "Of every trained parameter, biases included."})
    warmup_steps: float = field(default=0.05, metadata={"help": "Updates, or below 1 a share of the run."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "What follows the warm-up."})
    per_device_train_batch_size: int = field(default=2, metadata={"help": "Samples of a process in one forward."})
    logging_steps: float = field(default=10, metadata={"help": "Updates between two lines of the log."})
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Leave it off: a loss that is no number stops the run with a message."}
    )
    report_to: None | str | list[str] = field(
        default="tensorboard", metadata={"help": "tensorboard, trackio, none, or another that the Trainer knows."}
    )
    save_steps: float = field(default=1000, metadata={"help": "Updates between two checkpoints."})
    save_total_limit: int | None = field(default=3, metadata={"help": "Newest checkpoints that are kept."})
    bf16: bool | None = field(
        default=None, metadata={"help": "Compute in bfloat16, weights in float32. By default where a GPU can."}
    )
    dataloader_num_workers: int = field(default=4, metadata={"help": "Processes that make batches; 0 for none."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Leave it off: samples have no columns."})
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Not needed: the model gives what a batch does not use a gradient of zero."}
    )
    use_cache: bool = field(default=True, metadata={"help": "What the saved model does; training keeps no cache."})
    train_parts: str = field(
        default=",".join(PUBLISHED_PARTS),
        metadata={
            "help": "What is trained, comma-separated: aggregator, seg_head, mask_decoder, projector, vision_tower, "
            "language_model, memory, sam_encoder, sam_heads, prompt_encoder, or all."
        },
    )
    memory_training: bool = field(
        default=False,
        metadata={
            "help": "Compare masks also on frames that are reached by propagation, and train SAM 2's memory. Without "
            "it, as published, only frames that [SEG] prompts are compared."
        },
    )

    def __post_init__(self):
        if self.bf16 is None:
            self.bf16 = not self.use_cpu and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        self.parts  # noqa: B018  a wrong name shall stop the program here
        super().__post_init__()

    @property
    def parts(self) -> tuple[str, ...]:
        """The names in `train_parts`; `memory_training` adds the memory."""
        return parse_parts(self.train_parts, self.memory_training)


@dataclass
class DataArguments:
    """What a run reads."""

    mixture: str = field(metadata={"help": "The mixture, a YAML file of data_configs."})
    data_root: str | None = field(default=None, metadata={"help": "Instead of the variable SAMA_DATA_ROOT."})
    data_cache: str | None = field(default=None, metadata={"help": "Where annotations are kept as Arrow files."})
    on_error: str | None = field(
        default=None,
        metadata={"help": "A broken sample, instead of what the mixture says.", "choices": ["raise", "skip"]},
    )
    turns: int | None = field(default=None, metadata={"help": "Most rounds of a sample, instead of the mixture's."})
    memory_frames: int = field(
        default=3, metadata={"help": "With --memory_training: frames of a video that are reached by propagation."}
    )

    def rendering(self, memory_training: bool) -> dict:
        """What takes the place of the mixture's own settings of rendering."""
        turns = {} if self.turns is None else {"turns": self.turns}
        return {**turns, "memory_frames": self.memory_frames if memory_training else 0}
