"""When requests may start, with a clock that stands still."""

import threading

import pytest

from sama.annotation.rate_limit import ConcurrencyLimit, RateLimit


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_requests_are_spaced_evenly():
    limit = RateLimit(requests_per_minute=30, clock=Clock())
    assert [limit.reserve(0) for _ in range(4)] == [100, 102, 104, 106]


def test_large_requests_leave_more_time_behind_them():
    limit = RateLimit(requests_per_minute=60, tokens_per_minute=6000, clock=Clock())
    assert [limit.reserve(tokens) for tokens in (1000, 10, 400, 0)] == [100, 110, 111, 115]


def test_unused_time_is_not_saved_up():
    limit = RateLimit(requests_per_minute=30, clock=(clock := Clock()))
    limit.reserve(0)
    clock.now = 500
    assert [limit.reserve(0) for _ in range(3)] == [500, 502, 504]


def test_without_limits_everything_starts_at_once():
    limit = RateLimit(clock=Clock())
    assert {limit.reserve(10**9) for _ in range(5)} == {100}


def test_a_pause_holds_back_reserved_starts_and_only_grows():
    limit = RateLimit(clock=(clock := Clock()))
    start = limit.reserve(0)
    assert limit.delay(start) == 0
    limit.pause(30)
    limit.pause(10)
    assert limit.delay(start) == limit.delay(limit.reserve(0)) == 30
    clock.now = 130
    assert limit.delay(start) == 0


def test_busy_replies_halve_the_slots_once_for_all_who_were_sent_together():
    limit = ConcurrencyLimit(8)
    with limit.slot() as first, limit.slot() as second:
        limit.overloaded(first)
        limit.overloaded(second)
    assert limit.allowed == 4
    with limit.slot() as later:
        limit.overloaded(later)
    assert limit.allowed == 2
    for expected in (2, 3, 3, 3, 4):
        limit.succeeded()
        assert limit.allowed == expected


@pytest.mark.parametrize("halvings", [1, 5])
def test_one_slot_always_remains_and_no_more_than_the_most_come_back(halvings):
    limit = ConcurrencyLimit(2)
    for _ in range(halvings):
        with limit.slot() as slot:
            limit.overloaded(slot)
    assert limit.allowed == 1
    for _ in range(20):
        limit.succeeded()
    assert limit.allowed == 2


def test_no_more_run_than_there_are_slots():
    limit, running, most, lock = ConcurrencyLimit(3), [0], [0], threading.Lock()
    full = threading.Barrier(3, timeout=30)  # three must be inside at the same time

    def work():
        for _ in range(4):
            with limit.slot():
                with lock:
                    running[0] += 1
                    most[0] = max(most[0], running[0])
                full.wait()
                with lock:
                    running[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert most == [3] and running == [0]


def test_after_a_pause_the_rate_is_kept_by_those_who_waited():
    clock = Clock()
    rate = RateLimit(requests_per_minute=10, clock=clock)
    starts = [rate.reserve(1) for _ in range(8)]  # 100, 106, ..., 142
    rate.pause(60)
    clock.now = 160.0
    renewed = [rate.renew(start, 1) for start in starts]
    assert renewed == [160.0 + 6 * number for number in range(8)]
    assert [rate.renew(start, 1) for start in renewed] == renewed and rate.reserve(1) == 208.0
