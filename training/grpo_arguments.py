"""Arguments of reinforcement: those of trl's GRPO with the defaults of SAMA, and SAMA's own."""

from dataclasses import dataclass, field

from trl import GRPOConfig

from .arguments import SamaTrainingArguments
from .rewards import Reward, read_rewards


DEFAULT_REWARDS = "masks=1,answer=1,count=0.5,format=0.5,consistency=0.5,length=0.2"
# Parts that the log-probabilities of an answer depend on; only masks depend on the others
TEXT_PARTS = ("vision_tower", "projector", "language_model", "aggregator")
MASK_LOSS_PARTS = ("seg_head", "mask_decoder")
# Settings of trl that are ignored or behave differently here
UNSUPPORTED = {
    "use_vllm": False,
    "use_liger_kernel": False,
    "num_iterations": 1,
    "memory_training": False,
    "sync_ref_model": False,
    "off_policy_mask_threshold": None,
    "multi_objective_aggregation": "sum_then_normalize",
    "generation_kwargs": None,
    "chat_template_kwargs": None,
    "pad_to_multiple_of": None,
    "log_completions": False,  # trl's own log does not show masks; completion_steps writes ours
}


@dataclass
class SamaGRPOArguments(SamaTrainingArguments, GRPOConfig):
    """[`SamaTrainingArguments`] and trl's `GRPOConfig`, with additional arguments.

    Every batch has new answers of the present model: `num_iterations` is 1, and each of the accumulated batches
    samples its own.
    """

    output_dir: str = field(
        default="outputs/grpo", metadata={"help": "Folder for checkpoints, logs and the trained model."}
    )
    learning_rate: float = field(default=1e-6, metadata={"help": "Peak learning rate, reached after the warmup."})
    weight_decay: float = field(default=0.0, metadata={"help": "Applied to every trained parameter."})
    per_device_train_batch_size: int = field(
        default=8,
        metadata={"help": "Answers per process and forward pass: num_generations of each prompt."},
    )
    train_parts: str = field(
        default="aggregator,projector,language_model",
        metadata={
            "help": "Parts to train, comma-separated: language_model, aggregator, projector, vision_tower; with "
            "--best_answer_mask_loss also seg_head and mask_decoder. With LoRA leave out language_model."
        },
    )
    disable_dropout: bool = field(
        default=True,
        metadata={"help": "Disable dropout, so that answers are scored by the same model that sampled them."},
    )
    max_completion_length: int | None = field(default=128, metadata={"help": "Most tokens of an answer."})
    rewards: str = field(
        default=DEFAULT_REWARDS,
        metadata={
            "help": "Rewards with their weights, comma-separated: masks, answer, words, count, format, consistency, "
            "length, or module:function for one of your own."
        },
    )
    question_kinds: str = field(
        default="",
        metadata={"help": "Only questions of these kinds, comma-separated, as the info of the records names them."},
    )
    best_answer_mask_loss: float = field(
        default=0.0,
        metadata={
            "help": "Weight of the mask losses of each prompt's best answer, which train seg_head and mask_decoder. "
            "By default 0: only tokens are trained."
        },
    )
    completion_steps: int = field(
        default=50, metadata={"help": "Updates between two logs of answers with their masks; 0 writes none."}
    )

    def __post_init__(self):
        self.reward_weights = [weight for _, weight in self.chosen_rewards.values()]
        super().__post_init__()
        for name, only in UNSUPPORTED.items():
            if vars(self).get(name, only) != only:
                raise ValueError(f"{name}={vars(self)[name]} is not supported by SAMA's GRPO, only {only}.")
        if self.scale_rewards not in ("group", "none"):
            raise ValueError(f"scale_rewards is {self.scale_rewards!r}, expected group or none.")
        if self.per_device_train_batch_size % self.num_generations:
            raise ValueError(
                f"per_device_train_batch_size is {self.per_device_train_batch_size}, which is not a multiple of "
                f"num_generations, {self.num_generations}: all answers to a prompt are in one batch."
            )
        if self.steps_per_generation != self.gradient_accumulation_steps:
            raise ValueError(
                f"steps_per_generation is {self.steps_per_generation} with {self.gradient_accumulation_steps} "
                "accumulated batches: every batch samples its own answers, so leave it out."
            )
        possible = TEXT_PARTS + (MASK_LOSS_PARTS if self.best_answer_mask_loss else ())
        wrong = [part for part in self.parts if part not in possible]
        if wrong:
            raise ValueError(
                f"train_parts has {', '.join(wrong)}, but rewards reach the tokens of answers alone; expected some of "
                f"{', '.join(possible)}. --best_answer_mask_loss also trains {', '.join(MASK_LOSS_PARTS)}."
            )

    @property
    def chosen_rewards(self) -> dict[str, tuple[Reward, float]]:
        """The functions and weights in `rewards`, imported at each call: not stored, since arguments are pickled with
        every checkpoint and a reward may be a lambda."""
        return read_rewards(self.rewards)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The names in `question_kinds`."""
        return tuple(name.strip() for name in self.question_kinds.split(",") if name.strip())

    @property
    def prompts_per_batch(self) -> int:
        """Prompts of a process in a forward pass."""
        return self.per_device_train_batch_size // self.num_generations
