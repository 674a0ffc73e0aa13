"""Several processes, as torchrun or `accelerate launch` start them: which one this is, and waiting for one another."""

import os
from datetime import timedelta

import torch


WAIT = timedelta(days=7)  # a process whose videos are short waits for the others


def rank_and_size() -> tuple[int, int]:
    """Number of this process, from 0, and how many there are."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def join() -> None:
    """Meets the other processes. They exchange nothing but that they are there, so gloo will do on any device."""
    if rank_and_size()[1] > 1 and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo", timeout=WAIT)


def wait_for_all() -> None:
    """Returns when every process has come here."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def leave() -> None:
    """Ends what `join` began."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def device() -> str:
    """The device of this process: a GPU of its own where there are some."""
    if torch.cuda.is_available():
        return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"
    return "mps" if torch.backends.mps.is_available() else "cpu"
