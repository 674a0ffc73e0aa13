"""Memory and start-up time of a large mask file in data loader workers, and samples per second of toy world.

    python profiling/data_loading.py [--size 200] [--samples 240] [--section masks samples]

The mask file is synthetic: real run-length codes with 60 frames of 480 x 854 per object. "Added" is the memory that
the processes use after opening the file minus before, with shared pages counted once (PSS). "Private" is the part that
is not file-backed; the rest are pages of the file, shared by all processes, which the system can reclaim. Reads /proc,
so it runs on Linux only.
"""

import argparse
import json
import multiprocessing
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil
import torch
from torch.utils.data import DataLoader

from sama.data.collator import SamaCollator
from sama.data.masks import encode_rle
from sama.data.mixture import load_mixture
from sama.data.sampler import MixtureSampler
from sama.data.store import open_masks
from sama.drawing.tables import markdown_table
from sama.processing_sama import SamaProcessor
from sama.profiling.training import peak_memory


ROOT = Path(__file__).resolve().parent.parent
MEGABYTE = 1 << 20
FRAMES, HEIGHT, WIDTH, TRACKS = 60, 480, 854, 16
WORKERS, LOOKUPS = 4, 500
LARGE = 500  # MB above which the baseline runs in one process instead of four, to fit into memory
FACTOR_NEEDED = 6  # peak memory of the baseline as a multiple of the file size, with a margin


def write_masks(path: Path, megabytes: int) -> int:
    """Writes a mask file of about this size; returns its number of objects."""
    rng, tracks = np.random.default_rng(0), []
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    for _ in range(TRACKS):
        x, y, size = rng.uniform(200, 600), rng.uniform(150, 330), rng.uniform(60, 140)
        edge = size * (1 + 0.1 * np.sin(rng.integers(5, 40) * np.arctan2(rows - y, columns - x)))
        masks = [encode_rle(np.hypot(columns - x - 2 * frame, rows - y) < edge) for frame in range(FRAMES)]
        tracks.append(json.dumps(masks))
    count, written = 0, 0
    with open(path, "w", encoding="utf-8") as file:
        while written < megabytes * MEGABYTE:
            written += file.write(f'{"," if count else "{"}"{count}": {tracks[count % TRACKS]}')
            count += 1
        file.write("}")
    return count


def read_store(path: Path, cache: Path) -> Callable[[str], list]:
    """Lookup of an object's masks in the memory-mapped store."""
    return open_masks(path, cache, "profiling").__getitem__


def read_whole(path: Path, cache: Path) -> Callable[[str], list]:
    """Baseline: lookup of an object's masks in the whole file, loaded into memory."""
    with open(path, encoding="utf-8") as file:
        return json.load(file).__getitem__


def build(path: Path, cache: Path, results) -> None:
    """Builds the store in a separate process; puts seconds and peak memory in MB, before and after, into `results`."""
    before, start = peak_memory("cpu") / 2**20, time.perf_counter()
    open_masks(path, cache, "profiling")
    results.put((time.perf_counter() - start, before, peak_memory("cpu") / 2**20))


def work(read: Callable, arguments: tuple, count: int, number: int, barrier, results) -> None:
    """Data loader worker `number`: opens the masks and reads some; puts the added memory in MB, total and private, and
    the seconds to open the file and to read an object into `results`."""
    barrier.wait()
    before = _memory()
    barrier.wait()
    start = time.perf_counter()
    lookup = read(*arguments)
    opened = time.perf_counter() - start
    start = time.perf_counter()
    for key in np.random.default_rng(number).integers(0, count, LOOKUPS):
        assert len(lookup(str(key))) == FRAMES
    reading = (time.perf_counter() - start) / LOOKUPS
    barrier.wait()
    after = _memory()
    barrier.wait()
    results.put((*(now - then for now, then in zip(after, before, strict=True)), opened, reading))


def _memory() -> tuple[float, float]:
    """Memory of this process in MB: total, where a page shared by n processes counts 1 / n, and without file pages."""
    rollup = Path("/proc/self/smaps_rollup").read_text()
    return tuple(
        int(re.search(rf"^{name}:\s+(\d+) kB", rollup, re.MULTILINE)[1]) / 1024 for name in ("Pss", "Pss_Anon")
    )


def measure_workers(read: Callable, arguments: tuple, count: int, workers: int) -> list[str]:
    """Table cells for `workers` processes: added and private memory of all together, time until the last has opened
    the masks, and time per object."""
    context = multiprocessing.get_context("spawn")
    barrier, queue = context.Barrier(workers), context.Queue()
    shared = (barrier, queue)
    processes = [
        context.Process(target=work, args=(read, arguments, count, number, *shared)) for number in range(workers)
    ]
    for process in processes:
        process.start()
    results = np.array([queue.get() for _ in processes])
    for process in processes:
        process.join()
    added, own, opened, reading = results.T
    memory = [f"{amounts.sum():,.0f} MB" for amounts in (added, own)]
    return [*memory, f"{opened.max():.2f} s", f"{1000 * reading.mean():.3f} ms"]


def measure_masks(megabytes: int, folder: Path) -> str:
    """Table of the store and the baseline for a mask file of this size."""
    free = shutil.disk_usage(folder).free / MEGABYTE
    if free < 3 * megabytes:
        needed = f"A mask file of {megabytes} MB and its store need {3 * megabytes} MB of disk space"
        raise SystemExit(f"{needed}, but only {free:.0f} MB are free")
    path, cache = folder / "masks.json", folder / "cache"
    count = write_masks(path, megabytes)
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=build, args=(path, cache, queue))
    process.start()
    seconds, before, peak = queue.get()
    process.join()
    rows = [
        ("build once, streaming", 1, f"{peak - before:,.0f} MB (peak)", "", f"{seconds:.1f} s", ""),
        ("memory-mapped store", WORKERS, *measure_workers(read_store, (path, cache), count, WORKERS)),
    ]
    workers = 1 if megabytes >= LARGE else WORKERS
    needed = FACTOR_NEEDED * megabytes * workers
    if psutil.virtual_memory().available / MEGABYTE > needed:
        rows.append(("JSON loaded per process", workers, *measure_workers(read_whole, (path, cache), count, workers)))
    else:
        rows.append(("JSON loaded per process", workers, f"skipped: up to {needed:,} MB", "", "", ""))
    title = f"A mask file of {megabytes:,} MB, {count:,} objects; each process reads {LOOKUPS}\n\n"
    return title + markdown_table(("method", "processes", "added memory", "private", "start", "per object"), rows)


def measure_samples(samples: int, folder: Path, workers: int = 2, batch_size: int = 4) -> str:
    """Table of the samples per second from toy world to collated batches."""
    processor = SamaProcessor.from_pretrained(ROOT / "checkpoints" / "sama-tiny", trust_remote_code=True)
    mixture = load_mixture(ROOT / "data_configs" / "toy.yaml", processor, cache=folder)
    sampler = MixtureSampler(mixture.lengths, batch_size)
    loader = iter(
        DataLoader(mixture, batch_size, sampler=sampler, num_workers=workers, collate_fn=SamaCollator(processor))
    )
    start = time.perf_counter()
    next(loader)
    first, start = time.perf_counter() - start, time.perf_counter()
    for _ in range(samples // batch_size):
        next(loader)
    rate = samples // batch_size * batch_size / (time.perf_counter() - start)
    frame = f"at most {processor.max_frame_tokens} tokens a frame, SAM 2 input {processor.sam_image_size} px"
    rows = [("toy.yaml", workers, batch_size, f"{first:.1f} s", f"{rate:.0f}")]
    return f"Toy world with the processor of sama-tiny ({frame})\n\n" + markdown_table(
        ("mixture", "workers", "batch", "first batch", "samples per second"), rows
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=200, help="size of the mask file in MB (default: %(default)s)")
    parser.add_argument(
        "--samples", type=int, default=240, help="samples to read from toy world (default: %(default)s)"
    )
    parser.add_argument("--section", nargs="+", choices=("masks", "samples"), default=["masks", "samples"])
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        if "masks" in options.section:
            print(measure_masks(options.size, Path(folder)), end="\n\n")
        if "samples" in options.section:
            print(measure_samples(options.samples, Path(folder)))


if __name__ == "__main__":
    main()
