"""
Stage 7: checks that ask a model, and so give a score instead of the truth. Thresholds are starting values: calibrate
them on decisions of people (docs/annotation.md).
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from ..data.masks import decode_rle
from ..metrics.iou import overlaps
from . import prompts
from .calls import VideoCalls
from .checks import CheckedTurn, VideoFacts
from .locate import Locator
from .problems import Problem
from .render import COLORS, Rendering
from .replies import read_reply
from .scenes import SceneObject
from .schema import BlindAnswers, Descriptions, Judgements, Statement
from .tags import grounded_spans, object_number


# Phrases that say nothing of their object
IN_CONTEXT = re.compile(
    r"(?:he|she|it|him|her|they|them|this|that|these|those|one|"
    r"(?:the|this|that|an)? ?(?:other|others|another|first|second|former|latter|same)(?: one)?)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class ScoreSettings:
    """
    Thresholds of the scored checks.

    Args:
        blind_tries (`int`): How often a model without the video answers each question, at least `blind_right` times; 0
            leaves the check out.
        blind_right (`int`): Right answers from which a question counts as answerable without the video.
        keep_iou, review_iou (`float`): Mean IoU from which a relocated phrase is kept, and from which a person
            decides.
        palette_share (`float`): Share of the videos that are described a second time with other colours.
    """

    blind_tries: int = 3
    blind_right: int = 2
    keep_iou: float = 0.5
    review_iou: float = 0.3
    palette_share: float = 0.02

    def __post_init__(self):
        if self.blind_tries < 0 or not 1 <= self.blind_right:
            raise ValueError(
                f"blind_tries is {self.blind_tries}, expected 0 on; blind_right {self.blind_right}, 1 on."
            )
        if 0 < self.blind_tries < self.blind_right:
            raise ValueError(
                f"blind_tries is {self.blind_tries} and blind_right {self.blind_right}: so many right answers are "
                "never reached, and nothing would be rejected. Expected as many tries, or 0 to leave the check out."
            )
        if not 0 <= self.review_iou <= self.keep_iou <= 1 or not 0 <= self.palette_share <= 1:
            raise ValueError(
                f"review_iou is {self.review_iou}, keep_iou {self.keep_iou} and palette_share {self.palette_share}: "
                "expected 0 to 1, and review_iou not above keep_iou."
            )


# ---- without the video ------------------------------------------------------------------------------------------


def blind_question(turn: CheckedTurn) -> str:
    """The question with [1] in the place of a tag."""
    pieces = (text + "".join(f"[{number}]" for number in numbers) for text, numbers in turn.question.parts)
    return " ".join("".join(pieces).split())


def blind_answers(calls: VideoCalls, turns: Mapping[int, CheckedTurn], tries: int) -> dict[int, tuple[int, int]]:
    """How many of the answers that a model gives without the video are judged right, and how many are judged, by
    turn."""
    places, right, judged = sorted(turns), dict.fromkeys(turns, 0), dict.fromkeys(turns, 0)
    questions = [blind_question(turns[place]) for place in places]
    for attempt in range(tries if places else 0):
        reply = calls.ask("blind", "blind", prompts.blind(questions), BlindAnswers, attempt)
        value, _ = read_reply(reply.completion, BlindAnswers)
        answers = {} if value is None else {one.question: one.answer for one in value.answers}
        rows = {
            number: (question, turns[place].answer.plain, answers[number])
            for number, (place, question) in enumerate(zip(places, questions, strict=True), start=1)
            if number in answers
        }
        if not rows:
            continue
        reply = calls.ask("judge", "verifier", prompts.judge(list(rows.values())), Judgements)
        value, _ = read_reply(reply.completion, Judgements)
        same = {} if value is None else {one.question: one.same for one in value.judgements}
        for position, number in enumerate(rows, start=1):
            right[places[number - 1]] += same.get(position, False)
            judged[places[number - 1]] += position in same
    return {place: (right[place], judged[place]) for place in turns}


def blind_problems(answers: Mapping[int, tuple[int, int]], settings: ScoreSettings) -> dict[int, list[Problem]]:
    """The turns that can be answered without the video; for a person those with too few judged answers to tell."""
    found = {}
    for place, (right, judged) in answers.items():
        at = f"turns[{place - 1}]"
        if right >= settings.blind_right:
            found[place] = [Problem("blind", at, f"{right} of {judged} answers without the video are right")]
        elif judged < settings.blind_right:
            detail = f"{judged} of {settings.blind_tries} answers without the video could be judged"
            found[place] = [Problem("blind", at, detail, review=True)]
    return found


# ---- relocation -------------------------------------------------------------------------------------------------


def mean_iou(found: np.ndarray, masks: Sequence[dict | None]) -> float:
    """
    Mean IoU over the frames in which the object is visible.

    Args:
        found (`numpy.ndarray` of shape `(num_frames, height, width)`): Bool.
        masks (sequence of run-length codes): One for each frame, `None` where the object is not visible.
    """
    values = []
    for mask, code in zip(found, masks, strict=True):
        if code is not None:
            truth = decode_rle(code, mask.shape)
            values.append(overlaps([truth], [mask]).ious()[0, 0])
    return float(np.mean(values)) if values else 0.0


def relocate(
    locator: Locator, video, turns: Mapping[int, CheckedTurn], objects: Sequence[SceneObject]
) -> dict[int, list[tuple[str, int, list[float]]]]:
    """
    For each turn its phrases of one object: the words, the number of the object, and the IoU of what the segmentation
    model finds for these words with each object of the video. Equal phrases are looked for once.
    """
    phrases = {}
    for place, turn in turns.items():
        spans = grounded_spans(turn.answer.parts)
        phrases[place] = [(phrase, numbers[0]) for _, _, phrase, numbers in spans if len(numbers) == 1]
    words = list(dict.fromkeys(phrase for listed in phrases.values() for phrase, _ in listed))
    ious = {}
    with closing(locator.locate(video, words)) as found:  # also after an error: it holds the model
        for phrase in words:
            # Neither by a variable nor by zip, which would hold these masks while the next ones are made
            ious[phrase] = _ious(next(found), objects)
    return {place: [(phrase, number, ious[phrase]) for phrase, number in listed] for place, listed in phrases.items()}


def _ious(found: np.ndarray, objects: Sequence[SceneObject]) -> list[float]:
    """The IoU of masks, of shape `(num_frames, height, width)`, with each object."""
    return [round(mean_iou(found, one.masks), 4) for one in objects]


def relocation_problems(
    scores: Mapping[int, Sequence[tuple[str, int, Sequence[float]]]], settings: ScoreSettings
) -> dict[int, list[Problem]]:
    """Phrases that do not lead to their own object: rejected below `review_iou`, for a person below `keep_iou`. What
    means an object only in its sentence, such as "it" or "the dog" of two dogs, is never rejected."""
    found: dict[int, list[Problem]] = {}
    meant: dict[str, set[int]] = {}
    for phrase, number, _ in (one for phrases in scores.values() for one in phrases):
        meant.setdefault(phrase.lower(), set()).add(number)
    for place, phrases in scores.items():
        for phrase, number, ious in phrases:
            own, best = ious[number - 1], int(np.argmax(ious)) + 1
            if own >= settings.keep_iou and own >= ious[best - 1]:
                continue
            detail = f"{phrase!r} finds obj{number} with an IoU of {own:.2f}, obj{best} with {ious[best - 1]:.2f}"
            ambiguous = IN_CONTEXT.fullmatch(phrase) is not None or len(meant[phrase.lower()]) > 1
            doubtful = ambiguous or (own >= settings.review_iou and own >= ious[best - 1])
            found.setdefault(place, []).append(Problem("relocate", f"turns[{place - 1}].answer", detail, doubtful))
    return found


# ---- other colours ----------------------------------------------------------------------------------------------


def in_sample(name: str, share: float) -> bool:
    """Whether a name belongs to a sample of so large a share: the same in every run, whatever the other names are."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) < share * 2**64


def palette_problems(
    calls: VideoCalls, swapped: Rendering, facts: VideoFacts, statements: Mapping[int, Sequence[Statement]]
) -> dict[int, list[Problem]]:
    """
    Objects whose description has the word for their drawn colour, and does not have it when they are drawn in another.

    Args:
        swapped ([`Rendering`]): The same frames with other colours.
        statements (`dict[int, list[Statement]]`): By object, with the colours of `facts`.
    """
    messages = prompts.describe(swapped, facts.expressions)
    value, _ = read_reply(calls.ask("palette", "writer", messages, Descriptions).completion, Descriptions)
    again = {
        object_number(one.object, facts.num_objects): " ".join(s.text for s in one.statements)
        for one in (() if value is None else value.objects)
    }
    found = {}
    for number, listed in statements.items():
        if number not in again:
            found[number] = [Problem("palette", f"obj{number}", "it is not described in other colours", review=True)]
            continue
        first, second = _color_words(" ".join(one.text for one in listed)), _color_words(again[number])
        leaked = {facts.colors[number - 1]} & (first - second) or {swapped.colors[number - 1]} & (second - first)
        if leaked:
            detail = f"{min(leaked)!r} is said only where the object is drawn in {min(leaked)}"
            found[number] = [Problem("palette", f"obj{number}", detail)]
    return found


def _color_words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", text.lower())) & set(COLORS)
