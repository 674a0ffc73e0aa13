"""Name of a benchmark on the command line -> what opens it."""

from collections.abc import Callable

from .benchmark import Benchmark, BenchmarkError
from .toy_world import ToyWorldBenchmark


# A name may stand for a class, or for a class with some of its options chosen (`functools.partial`)
BENCHMARKS: dict[str, Callable[..., Benchmark]] = {ToyWorldBenchmark.name: ToyWorldBenchmark}


def open_benchmark(name: str, **arguments) -> Benchmark:
    """The benchmark of this name; arguments as for [`Benchmark`]."""
    if name not in BENCHMARKS:
        raise BenchmarkError(f"There is no benchmark {name!r}, only {', '.join(BENCHMARKS)}.")
    return BENCHMARKS[name](**arguments)
