"""Trains SAMA on a mixture.

python train.py --model_name_or_path checkpoints/sama-tiny --mixture data_configs/toy.yaml --output_dir outputs/toy
python train.py --config run.yaml --learning_rate 1e-5      # flags override the file
torchrun --nproc_per_node 8 train.py --config run.yaml --resume_from_checkpoint last
"""

import sys
from collections.abc import Sequence


try:
    from trl import ModelConfig, TrlParser

    from sama.serving.loading import check_model_name
    from sama.training.arguments import DataArguments, SamaTrainingArguments
    from sama.training.launch import (
        TERMINATED,
        as_training_errors,
        finish,
        load_data,
        load_model,
        load_processor,
        run_program,
        run_trainer,
    )
    from sama.training.trainer import SamaTrainer
except ModuleNotFoundError as error:
    if __name__ != "__main__" or error.name is None or error.name.startswith("sama"):
        raise
    sys.exit(f"train: The Python module {error.name} is not installed. Run: pip install 'sama[train]'")


__all__ = ["TERMINATED", "build", "finish", "main", "parse"]


def parse(arguments: Sequence[str] | None = None) -> tuple[SamaTrainingArguments, DataArguments, ModelConfig]:
    """Parses the command line and the file given by `--config`; the command line takes precedence."""
    parser = TrlParser((SamaTrainingArguments, DataArguments, ModelConfig), description=__doc__.splitlines()[0])
    training, data, model = parser.parse_args_and_config(arguments)
    if not model.model_name_or_path:
        parser.error("--model_name_or_path is required: a checkpoint folder or a model name on the Hub")
    return training, data, model


def build(training: SamaTrainingArguments, data: DataArguments, options: ModelConfig) -> SamaTrainer:
    """Builds the trainer with its model, processor and mixture."""
    processor = load_processor(options)
    mixture = load_data(training, data, processor, memory=training.memory_training)
    return SamaTrainer(load_model(options, training), training, mixture, processor, options)


def run(training: SamaTrainingArguments, data: DataArguments, options: ModelConfig) -> int:
    """Trains and saves, or finds that the run is finished; returns the exit code."""
    with as_training_errors():
        check_model_name(options.model_name_or_path)
        trainer = build(training, data, options)
    return run_trainer(trainer, "train", options.model_name_or_path)


def main(argv: Sequence[str] | None = None) -> int:
    """Trains as the command line says; returns the exit code."""
    return run_program("train", parse, run, argv)


if __name__ == "__main__":
    sys.exit(main())
