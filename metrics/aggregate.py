"""Means over videos, sources and processes (evaluation spec 1.7), and what the release makes of them."""

from collections.abc import Iterable, Mapping, Sequence

from .values import Value, mean


RANK_EPSILON = 1e-5
# The one source that the release's last script reads, by its name in the path
RELEASE_SOURCE = "VidSTG"


def mean_over_videos(videos: Mapping[str, Mapping[str, float | None]], only: str = "") -> dict[str, Value]:
    """
    Unweighted mean over videos of each metric: a video with one question weighs as much as one with ten. The number of
    SAMA-Bench is this mean over all videos of all sources, not a mean of the sources' means.

    Args:
        videos (mapping): Video -> its metrics by name; `None` for one that could not be computed.
        only (`str`): Leave out videos without this in their names. The release's script for SAMA-Bench-G does so with
            `RELEASE_SOURCE`.
    """
    kept = [metrics for name, metrics in videos.items() if only in name]
    names = dict.fromkeys(name for metrics in kept for name in metrics)
    return {name: mean([metrics.get(name) for metrics in kept], "videos") for name in names}


def release_rank_mean(ranks: Iterable[Sequence[float]], epsilon: float = RANK_EPSILON) -> float:
    """
    What the release writes for a file whose videos were shared by several processes: the plain mean of the processes'
    means, however many videos each had. For comparison only.

    Args:
        ranks (iterable of sequences of `float`): The values of each process.
        epsilon (`float`): Added to each number of videos; SAMA-Bench-C adds nothing.
    """
    means = [sum(values) / (len(values) + epsilon) for values in ranks]
    return sum(means) / len(means)
