"""Takes turns on a device: of many threads that compute, one does so at a time, for one step."""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


# The order of those who wait. A question that has not been answered with a token yet goes before the rest.
FIRST_TOKEN, LATER_STEP = 0, 1
# Turns of `FIRST_TOKEN` in a row while others wait: more than reading a question takes, so that it is not held up, but
# not so many that a client with one preview after the other brings the answers of all to a stop
MAX_IN_FRONT = 8


class DeviceSchedule:
    """
    Gives a device to one thread after another: to those of rank `FIRST_TOKEN` first, and within a rank in the order in
    which they came.

    A thread that computes calls [`DeviceTurn.pass_on`] between two steps, such as tokens or frames. So a new question
    waits for the rest of one step, and threads of one rank take turns. After `MAX_IN_FRONT` turns in front of a thread
    of rank `LATER_STEP`, that thread has one.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._lines: tuple[deque[threading.Event], ...] = (deque(), deque())  # by rank
        self._in_front = 0
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
            if any(self._lines):
                self._call_next()
            else:
                self._taken = False

    def pass_on(self, rank: int) -> None:
        """Lets those compute who come before this thread, and waits for its next turn."""
        with self._lock:
            if not any(self._lines) or (self._next_rank() > rank and not self._is_limit_reached()):
                return
            called = self._stand_in_line(rank)
            self._call_next()
        called.wait()

    def num_waiting(self) -> int:
        """How many threads wait for a turn."""
        return sum(map(len, self._lines))

    def _stand_in_line(self, rank: int) -> threading.Event:
        called = threading.Event()
        self._lines[rank].append(called)
        return called

    def _next_rank(self) -> int:
        return LATER_STEP if not self._lines[FIRST_TOKEN] or self._is_limit_reached() else FIRST_TOKEN

    def _is_limit_reached(self) -> bool:
        return self._in_front >= MAX_IN_FRONT and bool(self._lines[LATER_STEP])

    def _call_next(self) -> None:
        rank = self._next_rank()
        self._in_front = self._in_front + 1 if rank == FIRST_TOKEN and self._lines[LATER_STEP] else 0
        self._lines[rank].popleft().set()

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
