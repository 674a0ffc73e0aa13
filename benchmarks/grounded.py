"""
Answers whose phrases carry masks, compared with the true ones: what SAMA-Bench-G and image captions have in common.

In our own mode a mask goes with the phrase that its [SEG] stands for. The release counts phrases and masks apart and
pairs them by position, and gives SAMA-Bench's empty entries of the truth the mask before them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from sama.metrics.iou import mean_miou, miou
from sama.metrics.recall import GLAMM, GroundedPair, recall
from sama.metrics.values import RELEASE, Value
from sama.prompts_sama import parse_tagged_text

from .benchmark import Prediction, Question, Track
from .frame_masks import check_shape
from .tracks import track_overlaps


NO_SIMILARITY = "no text similarity was given: --similarity_model with the folder of a BERT"


def seg_phrases(tagged: str) -> list[str]:
    """The phrase of each [SEG], in order and lower case; "" for a [SEG] without one."""
    return [phrase.strip().lower() for phrase, _ in parse_tagged_text(tagged)[1]]


def overlap_facts(
    question: Question, prediction: Prediction, truths: Sequence[Track], turn: int, empty_is_nan: bool = False
) -> dict:
    """
    IoUs of the true objects of a turn with the predicted ones, and the phrases of the latter, ready for JSON.

    Args:
        question, prediction: What was asked and answered.
        truths (sequence of `Track`): The true objects.
        turn (`int`): Which turn.
        empty_is_nan (`bool`): What the release makes of two empty masks; it is written as `None`.
    """
    objects = prediction.turns[turn].objects
    check_shape(question, prediction, truths)
    size = (prediction.height, prediction.width)
    counts = track_overlaps(truths, [item.masks for item in objects], prediction.num_frames, size)
    facts = {"ious": counts.ious().tolist(), "found": [item.phrase.strip().lower() for item in objects]}
    if empty_is_nan:
        rows = counts.ious(np.nan).tolist()
        facts["release_ious"] = [[None if np.isnan(value) else value for value in row] for row in rows]
    return facts


def matrix(rows: list, columns: int) -> np.ndarray:
    """A matrix from JSON, which forgets how many columns a matrix without rows has; of `None` it makes nan."""
    return np.array(rows, dtype=float).reshape(len(rows), columns)


def turn_value(facts: Mapping) -> float | None:
    """The mIoU of one answer, `None` if no object was to be found and none was."""
    return miou(matrix(facts["ious"], len(facts["found"])))


def miou_values(answers: Sequence[Mapping]) -> tuple[Value, Value]:
    """mIoU over answers, as it should be and as the release computes it."""
    fixed = [matrix(one["ious"], len(one["found"])) for one in answers]
    return mean_miou(fixed), mean_miou([release_ious(one) for one in answers], RELEASE)


def release_ious(facts: Mapping) -> np.ndarray:
    """The matrix of the release: `rows` says which true mask it takes for each of its own."""
    found = matrix(facts.get("release_ious", facts["ious"]), len(facts["found"]))
    return found[facts["rows"]] if "rows" in facts else found


def recall_values(answers: Sequence[Mapping], similarity: Callable | None, mode: str = RELEASE) -> tuple[Value, Value]:
    """
    Recall over answers, as it should be and in the mode of the release ("published" or "glamm").

    Of each answer, `wanted` and `found` are the phrases by mask, `release_wanted` and `release_found` those of the
    release. A true object without a phrase has no words to be found by and does not count.
    """
    if similarity is None:
        return Value(None, NO_SIMILARITY), Value(None, NO_SIMILARITY)
    return recall(_fixed_pairs(answers, similarity)), recall(_release_pairs(answers, similarity), mode)


def glamm_recall(answers: Sequence[Mapping], similarity: Callable | None) -> Value:
    """Recall as GLaMM and VideoGLaMM compute it, of the same phrases and masks as the release."""
    return recall_values(answers, similarity, GLAMM)[1]


def _fixed_pairs(answers: Iterable[Mapping], similarity: Callable) -> Iterable[GroundedPair]:
    for one in answers:
        named = [row for row, phrase in enumerate(one["wanted"]) if phrase]
        likeness = _similarities([one["wanted"][row] for row in named], one["found"], similarity)
        likeness[:, [not phrase for phrase in one["found"]]] = 0
        yield GroundedPair(matrix(one["ious"], len(one["found"]))[named], likeness)


def _release_pairs(answers: Iterable[Mapping], similarity: Callable) -> Iterable[GroundedPair]:
    for one in answers:
        likeness = _similarities(one["release_wanted"], one["release_found"], similarity)
        yield GroundedPair(release_ious(one), likeness)


def _similarities(first: Sequence[str], second: Sequence[str], similarity: Callable) -> np.ndarray:
    if not first or not second:
        return np.zeros((len(first), len(second)))
    return np.array(similarity(first, second), dtype=float).reshape(len(first), len(second))
