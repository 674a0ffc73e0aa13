"""Errors of a GPU: those of one job, and those after which the process can no longer compute."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .pool import ProcessLost


OUT_OF_MEMORY = ("out of memory", "ALLOC_FAILED")


@contextmanager
def fatal_gpu_errors() -> Iterator[None]:
    """Turns an error of the GPU in the block, which no later computation survives, into [`ProcessLost`]. Running out
    of its memory is not one of them."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        # Of the driver and of libraries, running out of memory is a plain RuntimeError
        if isinstance(error, torch.OutOfMemoryError) or any(one in text for one in OUT_OF_MEMORY):
            torch.cuda.empty_cache()
        elif "CUDA error" in text:
            raise ProcessLost(text) from error
        raise
