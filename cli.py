"""The console command `sama`: one sub-command per entry point.

    sama chat --example                  is    python demo.py --example
    sama train --config run.yaml         is    python train.py --config run.yaml

Each entry point is a module with `main(argv: Sequence[str] | None) -> int`, which reads its own options and returns
the exit code. To add a sub-command, add one line to `COMMANDS`: the module, a summary
for `sama --help`, and the optional extra of pyproject.toml that holds its dependencies. A module is imported only when
its sub-command is called, so `sama --help` does not wait for torch.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from typing import NamedTuple

from sama.resources import DATA_CONFIGS, SMALL_MODEL


USAGE_ERROR = 2  # as argparse returns it


class Command(NamedTuple):
    """An entry point of the package: module below `sama`, one line of help, extra with its dependencies."""

    module: str
    summary: str
    extra: str | None = None


COMMANDS = {
    "chat": Command("demo", "ask about a video and point at things in it", "demo"),
    "serve": Command("serve", "a page for the browser and an HTTP server", "serve"),
    "train": Command("train", "train or fine-tune on a mixture of data sets", "train"),
    "grpo": Command("train_grpo", "train by rewards for sampled answers and their masks", "train"),
    "evaluate": Command("evaluate", "run a benchmark and score the answers", "eval"),
    "annotate": Command("annotate", "make training data: describe videos and check it", "annotate"),
    "convert": Command("conversion.convert", "convert released checkpoints"),
}


def usage() -> str:
    """The text of `sama --help`."""
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items())
    return (
        "usage: sama [--help] [--version] COMMAND [OPTIONS]\n\n"
        "Chat about a video, point at things in it, get text whose phrases carry mask tracks.\n\n"
        f"commands:\n{commands}\n\n"
        "`sama COMMAND --help` lists the options of a command.\n"
        "On several GPUs: torchrun --nproc_per_node 8 -m sama.train ... (or sama.evaluate)\n\n"
        f"small model:  {SMALL_MODEL}\n"
        f"data configs: {DATA_CONFIGS}"
    )


def missing_dependency(name: str, error: ImportError) -> str | None:
    """One sentence for a dependency that is missing or has an unsupported version; None for a defect in our code."""
    if not isinstance(error, ModuleNotFoundError):
        return str(error) if error.name is None else None  # the version check of the model files names no module
    if error.name is None or error.name.split(".")[0] == "sama":
        return None
    extra = COMMANDS[name].extra
    requirement = f"'sama[{extra}]'" if extra else "sama"
    return f"The Python module {error.name} is not installed. Run: pip install {requirement}"


def run(name: str, argv: list[str]) -> int:
    """Hands `argv` to the entry point of a sub-command and returns its exit code."""
    called_as = sys.argv
    sys.argv = [f"sama {name}", *argv]  # argparse takes the program's name from it, evaluate records the command
    try:
        return import_module(f"sama.{COMMANDS[name].module}").main(argv)
    except ImportError as error:
        sentence = missing_dependency(name, error)
        if sentence is None:
            raise
        print(f"sama {name}: {sentence}", file=sys.stderr)
        return 1
    finally:
        sys.argv = called_as


def main(argv: Sequence[str] | None = None) -> int:
    """The command line of `sama`; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments:
        print(usage(), file=sys.stderr)
        return USAGE_ERROR
    first, *rest = arguments
    if first in ("-h", "--help"):
        print(usage())
        return 0
    if first == "--version":
        print(f"sama {version('sama')}")
        return 0
    if first not in COMMANDS:
        print(f"sama: unknown command {first!r}, expected one of {', '.join(COMMANDS)}.", file=sys.stderr)
        return USAGE_ERROR
    return run(first, rest)


if __name__ == "__main__":
    sys.exit(main())
