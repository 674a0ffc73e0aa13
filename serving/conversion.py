"""Probes and converts an uploaded file in a process of its own, with limits of time, memory and file size: whatever a
file does to a decoder, the server goes on."""

import errno
import json
import logging
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .media import NO_SPACE, TOO_LARGE, FileRefused, Media, MediaLimits, normalise


resource: Any = None  # on Windows: only the time is limited

try:
    import resource
except ImportError:
    pass

logger = logging.getLogger(__name__)

MODULE = "sama.serving.conversion"
NO_SPACE_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT})
NICENESS = 5  # answers come before uploads
PARENT_POLL_SECONDS = 0.5
STOP_POLL_SECONDS = 0.2
MAX_WARNINGS = 20
GIB = 2**30


@dataclass(frozen=True)
class ConversionLimits:
    """
    What converting one file may cost.

    Attributes:
        seconds (`float`): From start to end.
        memory_bytes (`int`): Address space of the process.
        output_bytes (`int`): Size of the playable copy.
    """

    seconds: float = 900.0
    memory_bytes: int = 6 * GIB
    output_bytes: int = 4 * GIB


@dataclass(frozen=True)
class _MediaLimits:
    """The part of the server's limits that goes to the process."""

    video_seconds: float
    video_frames: int
    frame_pixels: int


def convert(
    path: Path, folder: Path, limits: MediaLimits, costs: ConversionLimits, stop: threading.Event | None = None
) -> Media:
    """
    [`normalise`] in a process of its own.

    Args:
        path (`Path`): The file.
        folder (`Path`): Where the playable copy is written.
        limits: Of the video or picture.
        costs ([`ConversionLimits`]): Of the process.
        stop (`threading.Event`, *optional*): Ends the process when it is set.

    Raises:
        FileRefused: as [`normalise`] does; also if the process crashes, is stopped, or exceeds its limits (413), and
            if there is no space for the copy (507).
    """
    media_limits = _MediaLimits(limits.video_seconds, limits.video_frames, limits.frame_pixels)
    settings = {"parent": os.getpid(), "limits": asdict(media_limits), "costs": asdict(costs)}
    # -P: a module of the folder that the server was started in, such as types.py, must not be imported
    command = [sys.executable, "-P", "-m", MODULE, str(path), str(folder), json.dumps(settings)]
    exit_code, output, errors = _run(command, costs.seconds, stop)
    try:
        result = json.loads(output)
    except ValueError:  # it died
        logger.warning(
            f"Converting an upload ended with exit code {exit_code}: {errors.decode(errors='replace')[-2000:]}"
        )
        raise FileRefused("The file cannot be converted: it is damaged in a way that stops the decoder.") from None
    if "refused" in result:
        raise FileRefused(result["refused"], result["status"])
    return Media(**{**result, "warnings": tuple(result["warnings"])})


def _run(command: Sequence[str], seconds: float, stop: threading.Event | None) -> tuple[int, bytes, bytes]:
    """Runs a process to its end; returns its exit code, output and errors. It is killed where this raises."""
    # One thread for NumPy's libraries: each of them reserves memory
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    pipe, end = subprocess.PIPE, time.monotonic() + seconds
    with subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe) as process:
        try:
            while True:
                try:
                    left = max(0.0, end - time.monotonic())
                    output, errors = process.communicate(timeout=min(left, STOP_POLL_SECONDS))
                    return process.returncode, output, errors
                except subprocess.TimeoutExpired:
                    check_stop(stop)
                if time.monotonic() >= end:
                    raise FileRefused(
                        f"Converting the file takes longer than {seconds:g} seconds, the most that is allowed.",
                        TOO_LARGE,
                    )
        except BaseException:
            process.kill()
            raise


def check_stop(stop: threading.Event | None) -> None:
    """Raises [`FileRefused`] if `stop` is set."""
    if stop is not None and stop.is_set():
        raise FileRefused("Storing the file was stopped, because its request has ended.")


# ---- in the process -------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str]) -> None:
    """Converts the file and writes what became of it to the standard output, as JSON."""
    path, folder, settings = arguments[0], arguments[1], json.loads(arguments[2])
    costs = ConversionLimits(**settings["costs"])
    threading.Thread(target=_end_with, args=(settings["parent"],), daemon=True).start()
    _limit(costs)
    json.dump(_outcome(path, folder, _MediaLimits(**settings["limits"]), costs), sys.stdout)


def _end_with(parent: int) -> None:
    """Ends this process when its parent was killed."""
    while os.getppid() == parent:
        time.sleep(PARENT_POLL_SECONDS)
    os._exit(1)


def _limit(costs: ConversionLimits) -> None:
    if resource is None:
        return
    os.nice(NICENESS)
    seconds = math.ceil(costs.seconds) * (os.cpu_count() or 1)
    limits = {
        resource.RLIMIT_AS: costs.memory_bytes,
        resource.RLIMIT_FSIZE: costs.output_bytes,
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_CORE: 0,
    }
    for kind, most in limits.items():
        _, hard = resource.getrlimit(kind)
        resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _outcome(path: str, folder: str, limits: _MediaLimits, costs: ConversionLimits) -> dict:
    try:
        media = normalise(path, folder, limits)
        return asdict(media) | {"warnings": media.warnings[:MAX_WARNINGS]}
    except FileRefused as error:
        if not _ran_out_of_memory(error):
            return {"refused": str(error), "status": error.status}
    except MemoryError:
        pass
    except OSError as error:
        if error.errno == errno.EFBIG:
            most = costs.output_bytes
            return {"refused": f"Its playable copy would have more than {most:,} bytes.", "status": TOO_LARGE}
        if error.errno in NO_SPACE_ERRORS:
            return {"refused": "There is no space left on the server for the file.", "status": NO_SPACE}
        if error.errno != errno.ENOMEM:
            raise
    gibibytes = costs.memory_bytes / GIB
    return {"refused": f"Converting the file needs more than {gibibytes:.1f} GiB of memory.", "status": TOO_LARGE}


def _ran_out_of_memory(error: BaseException | None) -> bool:
    """Whether that is why a reader refused a file. Readers take it for damage."""
    while error is not None:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
            return True
        error = error.__cause__
    return False


if __name__ == "__main__":
    main(sys.argv[1:])
