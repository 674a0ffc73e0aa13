"""
Scores of answers with grounded phrases, shared by SAMA-Bench-G and image captions.

Under "consistent" a mask belongs to the phrase of its [SEG]. The published code pairs phrases and masks by position,
see `published.py`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from sama.metrics.iou import matched_ious, mean_miou, miou
from sama.metrics.recall import GLAMM, GroundedPair, recall
from sama.metrics.values import PUBLISHED, Value
from sama.prompts_sama import parse_tagged_text

from .benchmark import Prediction, Question, RLETrack
from .frame_masks import check_shape
from .matrices import float_matrix, similarity_matrix
from .published import published_ious, published_pairs
from .tracks import track_overlaps


NO_SIMILARITY = "no text similarity was given: --similarity_model with the folder of a BERT"


def seg_phrases(tagged: str) -> list[str]:
    """The phrase of each [SEG] in order, lower case; "" for a [SEG] without a phrase."""
    return [phrase.strip().lower() for phrase, _ in parse_tagged_text(tagged)[1]]


def overlap_facts(
    question: Question, prediction: Prediction, truths: Sequence[RLETrack], turn: int, empty_is_nan: bool = False
) -> dict:
    """
    IoUs between the true and the predicted objects of a turn, and the predicted phrases, ready for JSON.

    Args:
        question, prediction: The question and its answers.
        truths (sequence of `RLETrack`): The true objects.
        turn (`int`): Index of the turn.
        empty_is_nan (`bool`): Also store `published_ious`, in which two empty masks have no IoU: NaN in the published
            code, `None` in JSON.
    """
    objects = prediction.turns[turn].objects
    check_shape(question, prediction, truths)
    size = (prediction.height, prediction.width)
    counts = track_overlaps(truths, [item.masks for item in objects], prediction.num_frames, size)
    facts = {"ious": counts.ious().tolist(), "found": [item.phrase.strip().lower() for item in objects]}
    if empty_is_nan:
        rows = counts.ious(np.nan).tolist()
        facts["published_ious"] = [[None if np.isnan(value) else value for value in row] for row in rows]
    return facts


def object_ious(facts: Mapping) -> list[float]:
    """The IoU of each true object of one answer with its prediction."""
    return matched_ious(float_matrix(facts["ious"], len(facts["found"])))


def turn_value(facts: Mapping) -> float | None:
    """The mIoU of one answer; `None` if there are neither true nor predicted objects."""
    return miou(float_matrix(facts["ious"], len(facts["found"])))


def miou_values(answers: Sequence[Mapping]) -> tuple[Value, Value]:
    """mIoU over answers, consistent and published."""
    consistent = [float_matrix(facts["ious"], len(facts["found"])) for facts in answers]
    return mean_miou(consistent), mean_miou([published_ious(facts) for facts in answers], PUBLISHED)


def recall_values(
    answers: Sequence[Mapping], similarity: Callable | None, preset: str = PUBLISHED
) -> tuple[Value, Value]:
    """
    Recall over answers, consistent and under `preset`, "published" or "glamm".

    The facts of an answer hold the phrases of its masks as `wanted` (true) and `found` (predicted), and those of the
    published code as `published_wanted` and `published_found`. A true object without a phrase is left out, because
    recall compares phrases.
    """
    if similarity is None:
        return Value(None, NO_SIMILARITY), Value(None, NO_SIMILARITY)
    return recall(_consistent_pairs(answers, similarity)), recall(published_pairs(answers, similarity), preset)


def glamm_recall(answers: Sequence[Mapping], similarity: Callable | None) -> Value:
    """Recall as GLaMM and VideoGLaMM compute it, on the phrases and masks of the published code."""
    return recall_values(answers, similarity, GLAMM)[1]


def _consistent_pairs(answers: Iterable[Mapping], similarity: Callable) -> Iterable[GroundedPair]:
    for facts in answers:
        named = [row for row, phrase in enumerate(facts["wanted"]) if phrase]
        similarities = similarity_matrix([facts["wanted"][row] for row in named], facts["found"], similarity)
        similarities[:, [not phrase for phrase in facts["found"]]] = 0
        yield GroundedPair(float_matrix(facts["ious"], len(facts["found"]))[named], similarities)
