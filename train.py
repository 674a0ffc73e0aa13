"""Trains SAMA on a mixture.

python train.py --model_name_or_path checkpoints/sama-tiny --mixture data_configs/toy.yaml --output_dir outputs/toy
python train.py --config run.yaml --learning_rate 1e-5      # flags override the file
torchrun --nproc_per_node 8 train.py --config run.yaml --resume_from_checkpoint last
"""

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path


try:
    from transformers.utils import logging
    from trl import ModelConfig, TrlParser

    from sama.data.mixture import load_mixture
    from sama.data.records import DataError
    from sama.modeling_sama import SamaForConditionalGeneration
    from sama.processing_sama import SamaProcessor
    from sama.serving.loading import check_model_name
    from sama.training.adapters import add_lora, quantization
    from sama.training.arguments import DataArguments, SamaTrainingArguments
    from sama.training.model_card import write_model_card
    from sama.training.output_lock import lock_output
    from sama.training.parts import freeze_all_but, hold_trained_in_float32, parameter_table
    from sama.training.sharding import join_processes
    from sama.training.trainer import LAST, SamaTrainer, TrainingError, find_checkpoint
except ModuleNotFoundError as error:
    if __name__ != "__main__" or error.name is None or error.name.startswith("sama"):
        raise
    sys.exit(f"train: The Python module {error.name} is not installed. Run: pip install 'sama[train]'")


TERMINATED = 128 + 15  # a shell's exit code for SIGTERM


def parse(arguments: Sequence[str] | None = None) -> tuple[SamaTrainingArguments, DataArguments, ModelConfig]:
    """Parses the command line and the file given by `--config`; the command line takes precedence."""
    parser = TrlParser((SamaTrainingArguments, DataArguments, ModelConfig), description=__doc__.splitlines()[0])
    training, data, model = parser.parse_args_and_config(arguments)
    if not model.model_name_or_path:
        parser.error("--model_name_or_path is required: a checkpoint folder or a model name on the Hub")
    return training, data, model


def load_model(options: ModelConfig, training: SamaTrainingArguments):
    """Loads the model, adds adapters and freezes all but the parts to train."""
    join_processes(training)
    model = SamaForConditionalGeneration.from_pretrained(
        options.model_name_or_path,
        revision=options.model_revision,
        dtype=options.dtype,
        attn_implementation=options.attn_implementation,
        quantization_config=quantization(options),
    )
    if options.use_peft:
        model = add_lora(model, options, training.parts)
    freeze_all_but(model, training.parts)
    if training.deepspeed_plugin is None:  # DeepSpeed keeps its own float32 copies
        hold_trained_in_float32(model)
    return model


def build(training: SamaTrainingArguments, data: DataArguments, options: ModelConfig) -> SamaTrainer:
    """Builds the trainer with its model, processor and mixture."""
    processor = SamaProcessor.from_pretrained(
        options.model_name_or_path,
        revision=options.model_revision,
        trust_remote_code=Path(options.model_name_or_path).is_dir(),  # code of the Hub is not run
    )
    mixture = load_mixture(
        data.mixture,
        processor,
        seed=training.seed if training.data_seed is None else training.data_seed,
        root=data.data_root,
        cache=data.data_cache,
        on_error=data.on_error,
        rendering=data.rendering(training.memory_training),
    )
    return SamaTrainer(load_model(options, training), training, mixture, processor, options)


def finish(trainer: SamaTrainer, base: str | None = None) -> None:
    """Saves the trained model with its processor, the trainer state and, with `base`, a model card that names the
    model it was made from, and prints how many samples were skipped."""
    trainer.model.config.trained = True
    folder = Path(trainer.args.output_dir)
    with trainer.writing("the trained model"):
        trainer.save_model()
        if trainer.args.should_save:
            trainer.save_fingerprint(folder)
        trainer.save_state()  # with it the run is finished
        if base and trainer.is_world_process_zero():
            write_model_card(folder, base)  # in place of PEFT's empty template
    for source, counts in trainer.train_dataset.report().items():
        if trainer.is_world_process_zero() and (counts["skipped"] or counts["shortened"]):
            print(f"{source}: {counts}")
    if trainer.is_world_process_zero():
        print(f"Saved to {folder}")


def run(training: SamaTrainingArguments, data: DataArguments, options: ModelConfig) -> int:
    """Trains and saves, or finds that the run is finished; returns the exit code."""
    try:
        check_model_name(options.model_name_or_path)
        trainer = build(training, data, options)
    except DataError:
        raise
    except (OSError, ValueError) as error:  # of a missing model, or settings that exclude each other
        raise TrainingError(str(error)) from error
    steps = trainer.finished_steps()
    if steps is not None:
        if trainer.is_world_process_zero():
            print(f"This run is finished: {steps} updates, the model is in {training.output_dir}. Nothing is trained.")
        return 0
    resumed = trainer.resume_point(training.resume_from_checkpoint)
    if trainer.is_world_process_zero():
        with trainer.writing("mixture.json"):
            trainer.train_dataset.save(Path(training.output_dir) / "mixture.json")
        print(f"{trainer.train_dataset}\n\n{parameter_table(trainer.model)}\n")
        print(f"Resuming from {resumed}" if resumed else "Starting from the model", flush=True)
    trainer.train(resume_from_checkpoint=resumed)
    if trainer.sigterm.stopped:
        found = find_checkpoint(training.output_dir)
        print(f"train: stopped by SIGTERM, saved {found}; continue with --resume_from_checkpoint {LAST}", flush=True)
        return TERMINATED
    finish(trainer, options.model_name_or_path)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Trains as the command line says; returns the exit code."""
    try:
        training, data, options = parse(argv)
    except (OSError, ValueError) as error:
        return stop(error)
    try:
        # Before the model is loaded, which takes long
        with lock_output(training.output_dir) if training.should_save else nullcontext():
            return run(training, data, options)
    except (TrainingError, DataError) as error:
        return stop(error)


def stop(error: Exception) -> int:
    """Prints the error as one sentence; the exit code. The traceback is logged at the level of debugging."""
    logging.get_logger("sama.train").debug("stopped", exc_info=error)
    print(f"train: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    return 1


if __name__ == "__main__":
    sys.exit(main())
