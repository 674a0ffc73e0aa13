"""Two things measured alternately: medians and ratios with their intervals."""

import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np


RESAMPLES = 2000


def cpu_and_wall(action: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds of `action`, of all threads of this process."""
    start, start_cpu = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - start, time.process_time() - start_cpu


def alternate(measures: Sequence[Callable[[], tuple[float, float]]], rounds: int) -> list[list[tuple[float, float]]]:
    """Wall and CPU seconds of each of `measures` in each round. Every second round goes backwards, A B B A, so that a
    machine that slows down slows all."""
    times: list[list[tuple[float, float]]] = [[] for _ in measures]
    for number in range(rounds):
        order = range(len(measures)) if number % 2 == 0 else reversed(range(len(measures)))
        for index in order:
            times[index].append(measures[index]())
    return times


def interval(ratios: Sequence[float]) -> tuple[float, float, float]:
    """Median of ratios, and the 95 % interval of the median by bootstrap over the rounds."""
    generator, values = np.random.default_rng(0), np.asarray(ratios)
    draws = values[generator.integers(len(values), size=(RESAMPLES, len(values)))]
    low, high = np.quantile(np.median(draws, axis=1), (0.025, 0.975))
    return float(np.median(values)), float(low), float(high)


def ratio(first: Sequence[tuple[float, float]], second: Sequence[tuple[float, float]], which: int) -> str:
    """How many times longer the first one took, round by round, with its interval; `which` is 0 for wall time and 1
    for CPU time."""
    middle, low, high = interval([one[which] / other[which] for one, other in zip(first, second, strict=True)])
    return f"{middle:.2f}x [{low:.2f}, {high:.2f}]"


def median_wall(times: Sequence[tuple[float, float]]) -> float:
    """Median of the wall seconds."""
    return statistics.median(wall for wall, _ in times)
