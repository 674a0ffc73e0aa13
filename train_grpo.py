"""Trains SAMA by reinforcement: it answers questions of a mixture, and rewards judge the text and the masks.

python train_grpo.py --model_name_or_path checkpoints/sama-tiny --mixture data_configs/toy.yaml
python train_grpo.py --config recipes/grpo_toy.yaml --rewards masks=1,answer=2     # flags override the file
torchrun --nproc_per_node 8 train_grpo.py --config run.yaml --resume_from_checkpoint last
"""

import sys
from collections.abc import Sequence


try:
    from trl import ModelConfig, TrlParser

    from sama.serving.loading import check_model_name
    from sama.training.arguments import DataArguments
    from sama.training.grpo import SamaGRPOTrainer
    from sama.training.grpo_arguments import SamaGRPOArguments
    from sama.training.launch import (
        as_training_errors,
        load_data,
        load_model,
        load_processor,
        run_program,
        run_trainer,
    )
    from sama.training.prompts import TurnMixture
except ModuleNotFoundError as error:
    if __name__ != "__main__" or error.name is None or error.name.startswith("sama"):
        raise
    sys.exit(f"train_grpo: The Python module {error.name} is not installed. Run: pip install 'sama[train]'")


def parse(arguments: Sequence[str] | None = None) -> tuple[SamaGRPOArguments, DataArguments, ModelConfig]:
    """Parses the command line and the file given by `--config`; the command line takes precedence."""
    parser = TrlParser((SamaGRPOArguments, DataArguments, ModelConfig), description=__doc__.splitlines()[0])
    training, data, model = parser.parse_args_and_config(arguments)
    if not model.model_name_or_path:
        parser.error("--model_name_or_path is required: a checkpoint folder or a model name on the Hub")
    return training, data, model


def build(training: SamaGRPOArguments, data: DataArguments, options: ModelConfig) -> SamaGRPOTrainer:
    """Builds the trainer with its model, processor and prompts."""
    processor = load_processor(options)
    mixture = TurnMixture(load_data(training, data, processor, memory=True), training.kinds)
    return SamaGRPOTrainer(load_model(options, training), training, mixture, processor, options)


def run(training: SamaGRPOArguments, data: DataArguments, options: ModelConfig) -> int:
    """Trains and saves, or finds that the run is finished; returns the exit code."""
    with as_training_errors():
        check_model_name(options.model_name_or_path)
        trainer = build(training, data, options)
    return run_trainer(trainer, "train_grpo", options.model_name_or_path)


def main(argv: Sequence[str] | None = None) -> int:
    """Trains as the command line says; returns the exit code."""
    return run_program("train_grpo", parse, run, argv)


if __name__ == "__main__":
    sys.exit(main())
