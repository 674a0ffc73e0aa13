"""Takes turns on a device: of many threads that compute, one does so at a time, for one step."""

import heapq
import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager


# The order of those who wait. A question that has not been answered with a token yet goes before the rest.
FIRST_TOKEN, LATER_STEP = 0, 1


class DeviceSchedule:
    """
    Gives a device to one thread after another: to those of the lowest rank first, in the order in which they came.

    A thread that computes calls [`DeviceTurn.pass_on`] between two steps, such as tokens or frames. So a thread of the
    lowest rank waits for the rest of one step, and threads of one rank take turns.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._order = itertools.count()
        self._waiting: list[tuple[int, int, threading.Event]] = []
        self._taken = False

    def acquire(self, rank: int) -> None:
        """Waits until it is this thread's turn."""
        with self._lock:
            if not self._taken:
                self._taken = True
                return
            called = self._stand_in_line(rank)
        called.wait()

    def release(self) -> None:
        """Ends the turn of this thread; the next one begins."""
        with self._lock:
            if self._waiting:
                self._call_next()
            else:
                self._taken = False

    def pass_on(self, rank: int) -> None:
        """Lets all compute who wait with this rank or a lower one, and waits for the next turn of this thread."""
        with self._lock:
            if not self._waiting or self._waiting[0][0] > rank:
                return
            called = self._stand_in_line(rank)
            self._call_next()
        called.wait()

    def _stand_in_line(self, rank: int) -> threading.Event:
        called = threading.Event()
        heapq.heappush(self._waiting, (rank, next(self._order), called))
        return called

    def _call_next(self) -> None:
        heapq.heappop(self._waiting)[-1].set()

    @contextmanager
    def turn(self, rank: int = FIRST_TOKEN) -> Iterator["DeviceTurn"]:
        """A turn for the `with` block."""
        self.acquire(rank)
        try:
            yield DeviceTurn(self, rank)
        finally:
            self.release()


class DeviceTurn:
    """
    What a thread holds while it uses a device.

    Attributes:
        rank (`int`): with which it waits for its next turn.
    """

    def __init__(self, schedule: DeviceSchedule, rank: int):
        self.schedule, self.rank = schedule, rank

    def pass_on(self) -> None:
        """Between two steps: lets those compute who come first."""
        self.schedule.pass_on(self.rank)

    @contextmanager
    def released(self) -> Iterator[None]:
        """Leaves the device to others for the `with` block, in which this thread waits for something else."""
        self.schedule.release()
        try:
            yield
        finally:
            self.schedule.acquire(self.rank)
