"""Processes that are forked from a server which has imported PyTorch, transformers and this project.

In a fresh interpreter these imports take five seconds or more. The server imports them once for all tests of a pytest
process, and runs nothing else, so that what it forks starts without threads, GPU contexts or state of a test. Tests of
a script, of the imports themselves or of torchrun start a fresh interpreter instead. Processes that load batches come
from the same server: a process forked from one with threads may deadlock on a lock that another thread held then.
"""

import gc
import os
import runpy
import socket
import sys
from collections.abc import Callable
from multiprocessing import get_context, set_start_method
from multiprocessing.process import BaseProcess
from pathlib import Path


CONTEXT = get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch", "transformers", "sama.train", "sama.evaluate", "sama.annotate"])
set_start_method("forkserver", force=True)  # the default of Python 3.14


def start(log: Path, function: Callable[..., int | None], *arguments, **environment: str) -> BaseProcess:
    """Starts `function(*arguments)` in a process of its own, which exits with what it returns.

    `function` must be importable: a function of a test file is not. What the process prints goes to the file `log`.
    """
    process = CONTEXT.Process(target=_run, args=(log, environment, function, *arguments))
    process.start()
    return process


def _run(log: Path, environment: dict[str, str], function: Callable[..., int | None], *arguments) -> None:
    gc.freeze()  # what the server imported is no garbage: it is neither looked through again nor copied for that
    printed = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(printed, stream.fileno())
    os.environ.update(environment)
    sys.exit(function(*arguments))


def run_script(path: Path, *arguments) -> None:
    """Runs a script as `python path ...` would, for [`start`]."""
    sys.argv = [str(path), *map(str, arguments)]
    sys.path.insert(0, str(path.parent))
    runpy.run_path(str(path), run_name="__main__")


def run_script_anew(packages: tuple[str, ...], path: Path, *arguments) -> None:
    """Runs a script as [`run_script`] does, with this project and `packages` imported anew, if the script imports them
    at all: a package may read the environment when it is imported. All else stays imported."""
    for name in [name for name in sys.modules if name.partition(".")[0] in ("sama", *packages)]:
        del sys.modules[name]
    run_script(path, *arguments)


def run_script_without(package: str, path: Path, *arguments) -> None:
    """Runs a script as [`run_script_anew`] does, where `package` is not installed."""
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        del sys.modules[name]
    sys.modules[package] = None  # Python's own import raises `ModuleNotFoundError`
    run_script_anew((), path, *arguments)


def finish(process: BaseProcess, log: Path, seconds: float = 300) -> None:
    """Waits for a process, which must exit with 0."""
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
    assert process.exitcode == 0, f"exit code {process.exitcode}\n{log.read_text(encoding='utf-8')[-3000:]}"


def start_group(log: Path, function: Callable[..., int | None], *arguments, **environment: str) -> list[BaseProcess]:
    """Starts two processes with the environment of a process group, as torchrun sets it."""
    group = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    group |= environment
    return [start(log, function, *arguments, RANK=rank, LOCAL_RANK=rank, **group) for rank in ("0", "1")]


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])
