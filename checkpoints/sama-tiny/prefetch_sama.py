"""Work that runs ahead of its use, or behind it, on a thread of its own; results and errors come in order."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any

import torch


def prefetch(function: Callable[[Any], Any], items: Iterable, depth: int) -> Generator[Any, None, None]:
    """`map(function, items)`, computed on a thread up to `depth` items ahead. What `function` raises is raised where
    its result would come. The thread ends with the generator, also when that is closed early."""
    remaining = iter(items)
    with ThreadPoolExecutor(1, thread_name_prefix="sama_prefetch") as thread:
        pending = deque(thread.submit(function, item) for item in islice(remaining, depth))
        try:
            while pending:
                result = pending.popleft().result()
                pending.extend(thread.submit(function, item) for item in islice(remaining, 1))
                yield result
                del result  # a frame must not live until the next one is ready
        finally:
            for future in pending:
                future.cancel()


class BackgroundWorker:
    """Calls functions one after another on a thread, which ends with the `with` block. At most `depth` calls have not
    returned, or their results were not taken."""

    def __init__(self, depth: int):
        self.depth = depth
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sama_background")
        self._pending: deque[Future] = deque()

    def submit(self, function: Callable, *arguments) -> list:
        """Calls a function in the background. Returns the results of earlier calls that are there by now, in order,
        and waits for them if there are more than `depth`; what a function raised is raised here."""
        self._pending.append(self._thread.submit(function, *arguments))
        return self._take(self.depth)

    def finish(self) -> list:
        """Waits for the results that are left, and returns them in order."""
        return self._take(0)

    def _take(self, left: int) -> list:
        results = []
        while self._pending and (len(self._pending) > left or self._pending[0].done()):
            results.append(self._pending.popleft().result())
        return results

    def __enter__(self) -> "BackgroundWorker":
        return self

    def __exit__(self, *error) -> None:
        self._thread.shutdown(wait=True)


def copy_to_host(tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Starts to copy a tensor to the CPU; the result waits for the copy and returns it, on any thread. So the thread
    that computes does not wait for a GPU."""
    if tensor.device.type != "cuda":
        copy = tensor.cpu()
        return lambda: copy
    copy, copied = tensor.to("cpu", non_blocking=True), torch.cuda.Event()
    copied.record(torch.cuda.current_stream(tensor.device))

    def wait() -> torch.Tensor:
        copied.synchronize()
        return copy

    return wait
