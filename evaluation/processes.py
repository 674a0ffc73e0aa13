"""Synchronisation of processes started by torchrun or `accelerate launch`."""

import os
from datetime import timedelta

import torch


TIMEOUT = timedelta(days=7)  # a process with short videos waits for the others


def rank_and_size() -> tuple[int, int]:
    """Rank of this process, from 0, and the number of processes."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def join() -> None:
    """Joins the process group. Only barriers are used, so that gloo is enough on any device."""
    if rank_and_size()[1] > 1 and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo", timeout=TIMEOUT)


def wait_for_all() -> None:
    """A barrier over all processes."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def leave() -> None:
    """Leaves the process group."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def device() -> str:
    """The device of this process: its own GPU, MPS, or the CPU."""
    if torch.cuda.is_available():
        return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"
    return "mps" if torch.backends.mps.is_available() else "cpu"
