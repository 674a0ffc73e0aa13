"""
When the next request may be sent: limits on requests and tokens a minute, pauses that an endpoint asks for, and the
number of requests at a time, which falls while an endpoint is overloaded. The limits hold for all threads together.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class RateLimit:
    """
    Spaces requests evenly, so that no minute holds more of them, or of their tokens, than is allowed.

    Waiting is left to the caller: what is stored are times only, so that an actor can hold a limit for many processes.

    Args:
        requests_per_minute (`float`, *optional*): No limit by default.
        tokens_per_minute (`float`, *optional*): No limit by default.
        clock (`Callable`): Seconds that never go back.
    """

    def __init__(
        self,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.requests_per_minute, self.tokens_per_minute, self.clock = requests_per_minute, tokens_per_minute, clock
        self._lock = threading.Lock()
        self._next_request = self._next_tokens = self._paused_until = float("-inf")

    def reserve(self, tokens: int) -> float:
        """The time at which a request of so many tokens may start, if no pause comes between."""
        with self._lock:
            return self._reserve(tokens)

    def _reserve(self, tokens: int) -> float:
        start = max(self.clock(), self._next_request, self._next_tokens, self._paused_until)
        if self.requests_per_minute is not None:
            self._next_request = start + 60 / self.requests_per_minute
        if self.tokens_per_minute is not None:
            self._next_tokens = start + 60 * tokens / self.tokens_per_minute
        return start

    def renew(self, start: float, tokens: int) -> float:
        """A reserved start, or another one behind the pause that it fell into: all those that waited would otherwise
        start at once when it ends."""
        with self._lock:
            return start if start >= self._paused_until else self._reserve(tokens)

    def pause(self, seconds: float) -> None:
        """Holds back all requests that have not started for so many seconds."""
        with self._lock:
            self._paused_until = max(self._paused_until, self.clock() + seconds)

    def delay(self, start: float) -> float:
        """Seconds until a request with a reserved start may be sent, 0 or less if that is now. Ask again after the
        wait: a pause may have come."""
        with self._lock:
            return max(start, self._paused_until) - self.clock()


class ConcurrencyLimit:
    """
    At most so many requests at a time. Each time the endpoint is overloaded, the number is halved; after as many
    successes as it has slots it grows by one again.

    Args:
        most (`int`): The number in the beginning, which is never exceeded.
    """

    def __init__(self, most: int):
        self.most = self.allowed = most
        self._running = self._successes = self._halvings = 0
        self._free = threading.Condition()

    @contextmanager
    def slot(self) -> Iterator[int]:
        """Waits for a slot and occupies it during the block. The value is for [`overloaded`]."""
        with self._free:
            self._free.wait_for(lambda: self._running < self.allowed)
            self._running += 1
            halvings = self._halvings
        try:
            yield halvings
        finally:
            with self._free:
                self._running -= 1
                self._free.notify_all()

    def overloaded(self, slot: int) -> None:
        """The endpoint was too busy for a request. Requests that were sent together count once."""
        with self._free:
            if slot == self._halvings:
                self._halvings += 1
                self._successes, self.allowed = 0, max(1, self.allowed // 2)

    def succeeded(self) -> None:
        """The endpoint answered a request."""
        with self._free:
            self._successes += 1
            if self._successes >= self.allowed and self.allowed < self.most:
                self._successes = 0
                self.allowed += 1
                self._free.notify_all()
