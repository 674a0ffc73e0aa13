"""Speed of the boundary measure F on a pair of masks, compared with dilation-based implementations, as a Markdown
table.

    python profiling/metrics.py [--height 480 --width 854] [--repeats 30]

The reference implementation (DAVIS 2017) dilates both boundaries by a disk, with OpenCV; the dilations of scikit-image
and scipy are timed as well. Libraries that are not installed are skipped. One thread, CPU time. The values must agree.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec

import numpy as np

from sama.drawing.tables import markdown_table
from sama.metrics.jf import boundary_f, boundary_map, boundary_radius, disk


Dilate = Callable[[np.ndarray, np.ndarray], np.ndarray]


def usual_f(truth: np.ndarray, prediction: np.ndarray, dilate: Dilate) -> float:
    """F by dilation: the boundary maps of the whole frame are dilated by a disk, as in DAVIS 2017."""
    element = disk(boundary_radius(*truth.shape)).astype(np.uint8)
    edges = [boundary_map(mask) for mask in (truth, prediction)]
    wide = [dilate(edge.astype(np.uint8), element).astype(bool) for edge in edges]
    counts = [int(edge.sum()) for edge in edges]
    if 0 in counts:
        return float(counts == [0, 0])
    recall, precision = (int((edges[i] & wide[1 - i]).sum()) / counts[i] for i in (0, 1))
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def dilations() -> dict[str, Dilate]:
    """The dilation functions of the installed libraries."""
    found: dict[str, Dilate] = {}
    if find_spec("cv2"):
        cv2 = import_module("cv2")
        cv2.setNumThreads(1)
        found["OpenCV"] = cv2.dilate
    if find_spec("skimage"):
        morphology = import_module("skimage.morphology")
        found["scikit-image"] = morphology.dilation
    if find_spec("scipy"):
        ndimage = import_module("scipy.ndimage")
        found["scipy"] = lambda edge, element: ndimage.binary_dilation(edge, element.astype(bool))
    return found


def pairs(height: int, width: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Pairs of masks of shape `(height, width)`, from easy to hard."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:height, :width]
    angle = np.arctan2(rows - height / 2, columns - width / 2)
    distance = np.hypot(rows - height / 2, columns - width / 2)

    def blob(size: float, lobes: int, shift: int) -> np.ndarray:
        """A flower with `lobes` petals, shifted by `shift` pixels to the right."""
        return np.roll(distance < size * height * (1 + 0.3 * np.sin(lobes * angle)), shift, axis=1)

    small = np.zeros((height, width), dtype=bool)
    small[100:140, 200:260] = True
    noise = rng.random((2, height, width)) < 0.5
    return {
        "small box, 3 px off": (small, np.roll(small, 3, axis=1)),
        "object, 2 px off": (blob(0.25, 5, 0), blob(0.25, 5, 2)),
        "object, 20 px off": (blob(0.25, 5, 0), blob(0.25, 5, 20)),
        "large ragged object, 12 px off": (blob(0.35, 60, 0), blob(0.35, 60, 12)),
        "far apart": (blob(0.1, 5, -300), blob(0.1, 5, 300)),
        "noise": (noise[0], noise[1]),
        "empty prediction": (blob(0.25, 5, 0), np.zeros((height, width), dtype=bool)),
    }


def milliseconds(action: Callable[[], object], repeats: int) -> float:
    """Median CPU time in milliseconds, after one warm-up run."""
    action()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        action()
        times.append(time.process_time() - start)
    return 1000 * statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=854)
    parser.add_argument("--repeats", type=int, default=30)
    options = parser.parse_args()
    usual = dilations()
    print(f"F of a pair of {options.width}x{options.height} masks, milliseconds (relative to ours)\n")
    rows = []
    for name, (truth, prediction) in pairs(options.height, options.width).items():
        ours = milliseconds(lambda: boundary_f(truth, prediction), options.repeats)  # noqa: B023
        cells = [f"{ours:.2f}"]
        for dilate in usual.values():
            if usual_f(truth, prediction, dilate) != boundary_f(truth, prediction):
                raise SystemExit(f"The values for '{name}' differ.")
            took = milliseconds(lambda: usual_f(truth, prediction, dilate), options.repeats)  # noqa: B023
            cells.append(f"{took:.2f} ({took / ours:.1f}x)")
        rows.append([name, *cells])
    print(markdown_table(["pair", "ours", *usual], rows))


if __name__ == "__main__":
    main()
