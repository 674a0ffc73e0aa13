"""
What the published evaluation code computes differently: errors and shortcuts that its numbers depend on.

Everything in this file exists only for the `published` column of the results. Sources: evaluation spec 1.5, 1.6, 4.3,
6 and 9. Metrics whose formula itself differs take `preset="published"`, see `sama.metrics`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from sama.metrics.answers import mme_answer
from sama.metrics.clair import clair, mean_clair
from sama.metrics.recall import GroundedPair
from sama.metrics.values import PUBLISHED, Value

from . import frame_masks
from .benchmark import BenchmarkTurn, RLETrack
from .matrices import float_matrix, similarity_matrix


def published_rows(turn: BenchmarkTurn) -> list[int]:
    """
    SAMA-Bench-G: for each true mask of the published code, its index among the targets of the turn.

    For an empty entry of `groundtruth` the published code repeats the previous mask. If there is no previous mask it
    fails; here the entry is left out.
    """
    rows, position = [], 0
    for entry in turn.info["entries"]:
        position += bool(entry)
        if position:
            rows.append(position - 1)
    return rows


def published_ious(facts: Mapping) -> np.ndarray:
    """The IoU matrix of one answer as the published code sees it, see [`published_rows`]."""
    ious = float_matrix(facts.get("published_ious", facts["ious"]), len(facts["found"]))
    return ious[facts["rows"]] if "rows" in facts else ious


def published_pairs(answers: Iterable[Mapping], similarity: Callable) -> Iterator[GroundedPair]:
    """The input of recall: phrases and masks are counted separately and paired by position."""
    for facts in answers:
        similarities = similarity_matrix(facts["published_wanted"], facts["published_found"], similarity)
        yield GroundedPair(published_ious(facts), similarities)


def published_clair(pairs: Sequence[tuple[str, str]], judge: Callable) -> Value:
    """CLAIR of one video; a single score such as "85%" sets the whole video to 0."""
    try:
        return mean_clair([clair(*pair, judge, PUBLISHED) for pair in pairs])
    except ValueError:
        return Value(0.0)


def published_yes_or_no(answer: str) -> bool | None:
    """MME: the official calculator looks for yes or no in the first four letters of the saved answer."""
    start = mme_answer(answer).lower()[:4]
    return True if "yes" in start else False if "no" in start else None


def published_revos_masks(
    parts: Sequence[RLETrack], found: Sequence[RLETrack], num_frames: int, size: frame_masks.Size
) -> tuple[Iterator[np.ndarray], Iterator[np.ndarray]]:
    """ReVOS: true and predicted masks as A and R compare them, uint8: the sum of the masks of the true objects, and a
    prediction with the values 0 and 255."""
    guesses = (mask * np.uint8(255) for mask in frame_masks.united(found, num_frames, size))
    # Without any object the sum of their masks is an empty mask in every frame
    return frame_masks.summed(parts or [[]], num_frames, size), guesses
