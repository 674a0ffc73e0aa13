"""
Aggregation of SAMA-Bench (evaluation spec 1.6, 1.7): a metric is computed over the answers about one video, and a row
is the unweighted mean over the videos of one source or of all sources. Means of sources are never averaged.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence

from sama.metrics.captions import CAPTION_METRICS, Corpus, caption_scores_by_group
from sama.metrics.clair import clair, mean_clair
from sama.metrics.values import CONSISTENT, PUBLISHED, Value

from .benchmark import Score
from .published import published_clair
from .rows import mean_row, percent


# Substrings of video names, in the order of the published code
SOURCES = ("mevis", "lvvis", "ref_youtube_vos", "VidSTG")
OTHER_SOURCE = "other"
NO_JUDGE = "no judge was given: --judge_url or --judge_model"
Both = tuple[Value, Value]  # consistent and published


def source_of(video: str) -> str:
    """The data set that a video comes from."""
    return next((word for word in SOURCES if word in video), OTHER_SOURCE)


def caption_values(corpora: Mapping[Hashable, Corpus]) -> dict[Hashable, dict[str, Both]]:
    """For each corpus of references and predictions: metric of `CAPTION_METRICS` -> consistent and published value."""
    consistent = caption_scores_by_group(corpora, CONSISTENT)
    # The presets differ for corpora of one sample only, and Java is slow to start
    single = {name: corpus for name, corpus in corpora.items() if len(corpus[0]) == 1}
    published = consistent | (caption_scores_by_group(single, PUBLISHED) if single else {})
    return {
        name: {metric: (values[metric], published[name][metric]) for metric in CAPTION_METRICS}
        for name, values in consistent.items()
    }


def clair_values(corpora: Mapping[Hashable, Corpus], judge: Callable | None) -> dict[Hashable, Both]:
    """
    CLAIR of each corpus: the mean over its samples, without those that the judge refuses.

    As soon as the judge cannot be reached, no corpus has a value: a mean over the first few corpora could be mistaken
    for the result of the benchmark.
    """
    if judge is None:
        return dict.fromkeys(corpora, (Value(None, NO_JUDGE),) * 2)
    values = {}
    for name, (references, predictions) in corpora.items():
        pairs = list(zip(predictions, references, strict=True))
        try:
            values[name] = mean_clair([clair(*pair, judge) for pair in pairs]), published_clair(pairs, judge)
        except OSError as error:
            return dict.fromkeys(corpora, (Value(None, f"the judge cannot be reached: {error}"),) * 2)
    return values


def source_rows(
    videos: Mapping[str, Mapping[str, Both]], names: Sequence[str], prefix: str = "", only_all: Sequence[str] = ()
) -> list[Score]:
    """
    Means over videos in percent: over all videos first, then by source.

    Args:
        videos (mapping): Video -> metric -> values in [0, 1] (CIDEr up to 10).
        names (sequence of `str`): The metrics, in the order of the table.
        prefix (`str`): Put before the name of each part.
        only_all (sequence of `str`): Metrics that get no rows by source.
    """
    parts = {"all": list(videos)} | {
        source: found
        for source in (*SOURCES, OTHER_SOURCE)
        if (found := [video for video in videos if source_of(video) == source])
    }
    rows = []
    for part, members in parts.items():
        for name in (*names, *(only_all if part == "all" else ())):
            both = [videos[video][name] for video in members]
            consistent, published = ([percent(value) for value in values] for values in zip(*both, strict=True))
            reason = next((value.reason for value, _ in both if value.reason), "")
            rows.append(mean_row(name, consistent, "videos", f"{prefix}{part}", published, reason, members))
    return rows


def word_overlap(reference: str, prediction: str) -> float:
    """F1 over the words of two texts: a quick estimate for the progress bar and the gallery, never a result."""
    words = [Counter(text.lower().split()) for text in (reference, prediction)]
    common = sum((words[0] & words[1]).values())
    return 2 * common / max(sum(map(Counter.total, words)), 1)
