"""Settings that `sama serve`, `sama chat` and the application of Ray Serve have in common."""

import argparse
import ctypes
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from .limits import Limits
from .loading import DEFAULT_MODEL, load_model


# What imports torch is imported when a model is loaded, so that --help does not wait for it
if TYPE_CHECKING:
    from .engine import Engine

# Rather than an option, which other users of the machine may see in the list of processes
KEY_VARIABLE = "SAMA_API_KEY"
COMPONENT_FRACTION = 0.05
M_ARENA_MAX = -8  # of glibc's malloc.h


class ModelSettings(Protocol):
    """Which model is loaded, and how: see [`load_model`] and [`component_fraction`]."""

    model: str
    device: str
    dtype: str
    preset: str | None
    trust_remote_code: bool
    memory_pool: int | None
    compile: bool
    min_component_fraction: float | None


def component_fraction(given: float | None, preset: str) -> float:
    """How large a part of a mask must be, as a fraction of the mask, to be kept: by default 0.05, and for a model with
    the preset "published" 0, since the release drops nothing."""
    if given is not None:
        return given
    return 0.0 if preset == "published" else COMPONENT_FRACTION


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say which model is loaded, and how: those of [`ModelSettings`]."""
    parser.add_argument("--model", default=str(DEFAULT_MODEL), help="folder or Hub name (default: the small model)")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"))
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    parser.add_argument("--preset", choices=("published", "consistent"), help="default: the model's own")
    parser.add_argument(
        "--min-component-fraction", type=float, metavar="F",
        help="drop specks smaller than this fraction of their mask (default: 0.05; 0 with the preset published)",
    )  # fmt: skip
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run the code of a model on the Hub instead of this package's"
    )
    parser.add_argument(
        "--memory-pool", type=int, choices=(1, 2), help="2: faster masks of large frames, an approximation"
    )
    parser.add_argument(
        "--compile", action="store_true", help="compile the model, which takes minutes (not measured on a GPU)"
    )


def check_model_options(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Ends the program if a value is wrong."""
    fraction = arguments.min_component_fraction
    if fraction is not None and not 0 <= fraction <= 1:
        parser.error(f"--min-component-fraction must lie between 0 and 1, got {fraction}")


def limit_malloc_arenas() -> None:
    """
    Lets all threads of this process share two areas of memory, where the C library is glibc.

    Otherwise glibc gives most threads an area of their own, which never shrinks, and with a thread for each answer the
    memory of a server grows for a long time. Computing takes turns, so two are enough.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").mallopt(M_ARENA_MAX, 2)


def make_engine(settings: ModelSettings, limits: Limits) -> "Engine":
    """Loads a model and makes its engine. Raises what [`load_model`] raises."""
    from .engine import Engine

    limit_malloc_arenas()
    model, processor = load_model(
        settings.model,
        settings.device,
        settings.dtype,
        settings.preset,
        settings.trust_remote_code,
        settings.memory_pool,
        settings.compile,
    )
    fraction = component_fraction(settings.min_component_fraction, model.config.preset)
    return Engine(model, processor, limits, fraction, compile_options={} if settings.compile else None)
