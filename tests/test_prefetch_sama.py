"""Work ahead of its use and behind it: order, bounds, errors, and threads that end."""

import threading

import pytest
import torch

from sama.prefetch_sama import BackgroundWorker, copy_to_host, prefetch


def own_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("sama_")]


def test_items_are_computed_ahead_but_not_further_than_asked():
    begun, callers = [], set()

    def work(item: int) -> int:
        begun.append(item)
        callers.add(threading.current_thread())
        return -item

    for item, result in enumerate(prefetch(work, range(20), depth=3)):
        assert result == -item and len(begun) <= item + 4  # three wait while this one is used
    assert begun == list(range(20)) and threading.current_thread() not in callers and not own_threads()
    assert list(prefetch(work, [], depth=3)) == []


def test_an_error_comes_in_its_place_and_ends_the_thread():
    results = []
    with pytest.raises(ZeroDivisionError):
        for result in prefetch(lambda item: 6 // (2 - item), range(9), depth=4):
            results.append(result)
    assert results == [3, 6] and not own_threads()


def test_the_thread_ends_with_a_generator_that_is_closed_early():
    begun, wait = [], threading.Event()
    items = prefetch(lambda item: begun.append(item) or wait.wait(10), range(100), depth=2)
    wait.set()
    next(items)
    assert own_threads()
    items.close()
    assert not own_threads() and len(begun) <= 4


def test_results_of_the_background_come_in_order_and_all():
    with BackgroundWorker(depth=2) as worker:
        results = []
        for item in range(10):
            results += worker.submit(pow, item, 2)
            assert item + 1 - len(results) <= 2
        results += worker.finish()
    assert results == [item**2 for item in range(10)] and not own_threads()


def test_an_error_in_the_background_is_raised_to_the_caller():
    with pytest.raises(ZeroDivisionError), BackgroundWorker(depth=2) as worker:
        results = worker.submit(divmod, 4, 2) + worker.submit(divmod, 1, 0)
        worker.submit(divmod, 6, 2)
        assert results in ([], [(2, 0)])
        worker.finish()
    assert not own_threads()


def test_what_is_on_the_cpu_is_not_copied():
    tensor = torch.ones(3)
    assert copy_to_host(tensor)() is tensor
