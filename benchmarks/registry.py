"""The benchmarks by their names on the command line."""

from collections.abc import Callable

from .benchmark import Benchmark, BenchmarkError
from .grounded_captions import GroundedCaptions
from .json_lines import JsonLinesBenchmark
from .mme import MME
from .refcoco import REFCOCO
from .referring_video import REFERRING_VIDEO
from .region_captions import RegionCaptions
from .sama_bench_c import SamaBenchC
from .sama_bench_g import SamaBenchG
from .toy_world import ToyWorldBenchmark


# A value is a class, or a class with some options preset (`functools.partial`)
BENCHMARKS: dict[str, Callable[..., Benchmark]] = {
    **{kind.name: kind for kind in (SamaBenchG, SamaBenchC)},
    **REFERRING_VIDEO,
    **REFCOCO,
    **{kind.name: kind for kind in (GroundedCaptions, RegionCaptions, MME)},
    **{kind.name: kind for kind in (ToyWorldBenchmark, JsonLinesBenchmark)},
}


def open_benchmark(name: str, /, **arguments) -> Benchmark:
    """Opens the benchmark `name`; arguments as in [`Benchmark`], which names the options that there are."""
    if name not in BENCHMARKS:
        raise BenchmarkError(f"There is no benchmark {name!r}; known are {', '.join(BENCHMARKS)}.")
    return BENCHMARKS[name](**arguments)
