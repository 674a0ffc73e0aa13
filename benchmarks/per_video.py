"""
The aggregation of SAMA-Bench (evaluation spec 1.6, 1.7): a metric is computed over the answers about one video, a
number of the table is the unweighted mean over videos, of one source or of all; never a mean of the sources' means.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence

from sama.metrics.captions import CAPTION_METRICS, Corpus, caption_scores_by_group
from sama.metrics.clair import clair, mean_clair
from sama.metrics.values import FIXED, RELEASE, Value

from .benchmark import Score
from .rows import mean_row


# Word in the name of a video, in the order in which the release looks for them
SOURCES = ("mevis", "lvvis", "ref_youtube_vos", "VidSTG")
OTHER_SOURCE = "other"
NO_JUDGE = "no judge was given: --judge_url or --judge_model"
Both = tuple[Value, Value]  # as it should be, and as the release computes it


def source_of(video: str) -> str:
    """The data set that a video comes from."""
    return next((word for word in SOURCES if word in video), OTHER_SOURCE)


def caption_values(corpora: Mapping[Hashable, Corpus]) -> dict[Hashable, dict[str, Both]]:
    """Metric of `CAPTION_METRICS` -> values, for each corpus of references and predictions."""
    fixed = caption_scores_by_group(corpora, FIXED)
    # The two modes differ in corpora of one sample only, and Java is slow to start
    single = {name: corpus for name, corpus in corpora.items() if len(corpus[0]) == 1}
    release = fixed | (caption_scores_by_group(single, RELEASE) if single else {})
    return {
        name: {metric: (fixed[name][metric], release[name][metric]) for metric in CAPTION_METRICS} for name in fixed
    }


def clair_values(corpora: Mapping[Hashable, Corpus], judge: Callable | None) -> dict[Hashable, Both]:
    """
    CLAIR of each corpus: the mean over its samples, without those whose text the judge refuses. Once the judge cannot
    be reached it is not asked again, and no corpus has a value: a mean over those that came first would pass for the
    CLAIR of all.
    """
    if judge is None:
        return dict.fromkeys(corpora, (Value(None, NO_JUDGE),) * 2)
    values = {}
    for name, (references, predictions) in corpora.items():
        pairs = list(zip(predictions, references, strict=True))
        try:
            values[name] = mean_clair([clair(*pair, judge) for pair in pairs]), _release_clair(pairs, judge)
        except OSError as error:
            return dict.fromkeys(corpora, (Value(None, f"the judge cannot be reached: {error}"),) * 2)
    return values


def _release_clair(pairs: Sequence[tuple[str, str]], judge: Callable) -> Value:
    try:
        return mean_clair([clair(*pair, judge, RELEASE) for pair in pairs])
    except ValueError:  # one score such as "85%" ends the video
        return Value(0.0)


def source_rows(
    videos: Mapping[str, Mapping[str, Both]], names: Sequence[str], prefix: str = "", only_all: Sequence[str] = ()
) -> list[Score]:
    """
    Means over videos in percent: first over all, then over those of each source.

    Args:
        videos (mapping): Video -> metric -> values in [0, 1] (CIDEr up to 10).
        names (sequence of `str`): The metrics, in the order of the table.
        prefix (`str`): In front of the names of the parts.
        only_all (sequence of `str`): Metrics that have no row for single sources.
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
            fixed, release = ([_percent(value) for value in values] for values in zip(*both, strict=True))
            reason = next((value.reason for value, _ in both if value.reason), "")
            rows.append(mean_row(name, fixed, "videos", f"{prefix}{part}", release, reason, members))
    return rows


def word_overlap(reference: str, prediction: str) -> float:
    """F1 of the words of two texts: a quick look at an answer, for progress bars and galleries; no result."""
    words = [Counter(text.lower().split()) for text in (reference, prediction)]
    common = sum((words[0] & words[1]).values())
    return 2 * common / max(sum(map(Counter.total, words)), 1)


def _percent(value: Value) -> float | None:
    return None if value.value is None else 100 * value.value
