"""What every training program does: load the data and the model, start or resume, save at the end."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import yaml
from accelerate.utils import gather_object
from transformers.utils import logging
from trl import ModelConfig

from sama.data.mixture import Mixture, load_mixture
from sama.data.model_cards import card_metadata
from sama.data.records import DataError
from sama.modeling_sama import SamaForConditionalGeneration
from sama.processing_sama import SamaProcessor

from .adapters import add_lora, quantization
from .arguments import DataArguments, SamaTrainingArguments
from .checkpoints import TrainingError, find_checkpoint
from .model_card import CARD_TAG, write_model_card
from .output_lock import lock_output
from .parts import freeze_all_but, hold_trained_in_float32, parameter_table
from .resumable import LAST, ResumableTrainer
from .sharding import join_processes


TERMINATED = 128 + 15  # a shell's exit code for SIGTERM


def load_processor(options: ModelConfig) -> SamaProcessor:
    """Loads the processor of the model. Code of the Hub is not run."""
    return SamaProcessor.from_pretrained(
        options.model_name_or_path,
        revision=options.model_revision,
        trust_remote_code=Path(options.model_name_or_path).is_dir(),
    )


def load_data(training: SamaTrainingArguments, data: DataArguments, processor, memory: bool) -> Mixture:
    """Opens the mixture; with `memory`, samples also have masks on frames that are not prompted."""
    return load_mixture(
        data.mixture,
        processor,
        seed=training.seed if training.data_seed is None else training.data_seed,
        root=data.data_root,
        cache=data.data_cache,
        on_error=data.on_error,
        rendering=data.rendering(memory),
    )


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


def run_trainer(trainer: ResumableTrainer, program: str, base: str) -> int:
    """Trains and saves, or finds that the run is finished; returns the exit code.

    Args:
        trainer ([`ResumableTrainer`])
        program (`str`): Its name, in front of messages.
        base (`str`): The model that training started from, for the model card.
    """
    training = trainer.args
    steps = trainer.finished_steps()
    if steps is not None:
        if trainer.is_world_process_zero():
            if CARD_TAG not in (card_metadata(training.output_dir).get("tags") or ()):  # killed before it was written
                with trainer.writing("the model card"):
                    write_model_card(Path(training.output_dir), base)
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
        message = f"stopped by SIGTERM, saved {found}; continue with --resume_from_checkpoint {LAST}"
        print(f"{program}: {message}", flush=True)
        return TERMINATED
    finish(trainer, base)
    return 0


def finish(trainer: ResumableTrainer, base: str | None = None) -> None:
    """Saves the trained model with its processor, the trainer state and, with `base`, a model card that names the
    model it was made from, and prints how many samples all processes have skipped since they were started."""
    trainer.model.config.trained = True
    folder = Path(trainer.args.output_dir)
    with trainer.writing("the trained model"):
        trainer.save_model()
        if trainer.args.should_save:
            trainer.save_fingerprint(folder)
        trainer.save_state()  # with it the run is finished
        if base and trainer.is_world_process_zero():
            write_model_card(folder, base)  # in place of PEFT's empty template
    reports = gather_object([trainer.train_dataset.report()])
    if trainer.is_world_process_zero():
        for source in reports[0]:
            counts = {name: sum(report[source][name] for report in reports) for name in reports[0][source]}
            if counts["skipped"] or counts["shortened"]:
                print(f"{source}: {counts}")
        print(f"Saved to {folder}")


def run_program(program: str, parse: Callable, run: Callable, arguments: Sequence[str] | None) -> int:
    """
    The main function of a training program: reads its command line and trains; returns the exit code. What a user can
    cause ends in one sentence, with the traceback logged at the level of debugging.

    Args:
        program (`str`): Its name, in front of messages.
        parse (`Callable`): Command line -> arguments of training, of the data and of the model.
        run (`Callable`): Trains with these; returns the exit code.
        arguments (`list[str]`, *optional*): The command line.
    """

    def stop(error: Exception) -> int:
        logging.get_logger(f"sama.{program}").debug("stopped", exc_info=error)
        print(f"{program}: {sentence_of(error)}", file=sys.stderr, flush=True)
        return 1

    words = sys.argv[1:] if arguments is None else arguments
    try:
        if words and words[-1] == "--config":
            raise ValueError("--config is the last word: it needs the name of a file")
        training, data, options = parse(arguments)
    except (OSError, ValueError, yaml.YAMLError) as error:
        return stop(error)
    try:
        # Before the model is loaded, which takes long
        with lock_output(training.output_dir) if training.should_save else nullcontext():
            return run(training, data, options)
    except (TrainingError, DataError) as error:
        return stop(error)


def sentence_of(error: Exception) -> str:
    """The message of an error in one line. That of a loader worker, to which torch adds the worker's traceback, is the
    message of the error there."""
    text = " ".join(str(error).split())
    if text.startswith(f"Caught {type(error).__name__} in DataLoader worker"):
        text = text.rpartition(f"{type(error).__name__}: ")[2].removesuffix(" .")
    return text


@contextmanager
def as_training_errors() -> Iterator[None]:
    """Raises [`TrainingError`] for a model that cannot be loaded, and for settings that exclude each other."""
    try:
        yield
    except DataError:
        raise
    except (OSError, ValueError) as error:
        raise TrainingError(str(error)) from error
