"""Errors of a GPU: those of one job, and those after which the process can compute nothing any more."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .pool import ProcessLost


@contextmanager
def surviving() -> Iterator[None]:
    """Turns an error of the GPU in the block, which no later computation survives, into [`ProcessLost`]. Running out
    of its memory is not one of them."""
    try:
        yield
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        raise
    except RuntimeError as error:
        if "CUDA error" in str(error):
            raise ProcessLost(str(error)) from error
        raise
