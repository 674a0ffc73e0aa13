"""Rewards: pure functions of an answer and its reference, each from 0 to 1, or `None` if it does not apply to the
question. Reinforcement adds them up by their weights (`--rewards masks=1,answer=1`); a function of your own is given
as `module:function`, for example `--rewards masks=1,my_package.my_module:polite=0.5`.

Masks are those that the tracker gives for the [SEG]s of the answer: a reward sees what a user would see.
"""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module

import numpy as np

from sama.metrics.answers import YES_NO, named_choices
from sama.metrics.iou import miou, overlaps
from sama.prompts_sama import ANSWER_TAGS, PHRASE_END, PHRASE_START, SEG

from .prompts import Reference, TaggedText, no_masks


NUMBER_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NOTHING = {"no", "none", "nothing", "neither"}
# At the beginning of a phrase: "2 dogs" and "two dogs", but not "3-wheeled", "2.5 m" or the year of "2020 model"
COUNTED = re.compile(rf"\W*(\d{{1,2}}|{'|'.join(NUMBER_WORDS)})(?![\w-]|[.,:]\d)", re.IGNORECASE)
# The number after what it counts, at the end of an answer: "The dog and the cat run, so two."
TOTAL = re.compile(rf"\bso (\d{{1,2}}|none|{'|'.join(NUMBER_WORDS[1:])})\W*$", re.IGNORECASE)
# The full reward allows this many times the length of the reference and some tokens; at twice that it is 0
LENGTH_RATIO, SPARE_TOKENS = 1.5, 8


@dataclass(frozen=True)
class SampledAnswer(TaggedText):
    """
    An answer that was sampled.

    Attributes:
        tagged_text (`str`): Its words with `<p> ... </p> [SEG]`, without the end mark.
        masks (`np.ndarray`): Bool, of shape `(num_objects, num_frames, height, width)`, on the frames of the
            reference: one object for each [SEG]. Where the reference has no frames, `num_frames` is 0.
        num_tokens (`int`): Tokens, the end mark included.
        ended (`bool`): Whether the model ended it; otherwise it was cut at the limit.
    """

    masks: np.ndarray = field(default_factory=no_masks)
    num_tokens: int = 0
    ended: bool = True


Reward = Callable[[SampledAnswer, Reference], float | None]


def reward_masks(answer: SampledAnswer, reference: Reference) -> float:
    """IoU of whole tracks, whose frames are counted together, averaged over objects under the best-first matching of
    `metrics.iou.miou`: a missing object and a surplus one count as 0. Where nothing is to be shown, 1 for an answer
    without masks."""
    if not len(reference.masks) or not len(answer.masks):
        return float(len(reference.masks) == len(answer.masks))
    if answer.masks.shape[1:] != reference.masks.shape[1:]:
        raise ValueError(
            f"The masks of an answer have (frames, height, width) {answer.masks.shape[1:]}, those of the reference "
            f"{reference.masks.shape[1:]}; were other frames tracked?"
        )
    return float(miou(overlaps(list(reference.masks), list(answer.masks)).ious(empty=1.0)))


def reward_answer(answer: SampledAnswer, reference: Reference) -> float | None:
    """1 if the answer names the right choice and no other one, see [`named_choices`]. `None` without choices."""
    choices = reference.info.get("choices")
    if not choices:
        return None
    return float(named_choices(answer.text, choices) == [reference.info["answer"]])


def reward_words(answer: SampledAnswer, reference: Reference) -> float | None:
    """F1 of the words of the answer with those of the reference. `None` where the question has choices: a sentence
    with the wrong one shares most words with the right sentence."""
    if reference.info.get("choices"):
        return None
    mine, theirs = words(answer.text), words(reference.text)
    common = sum(min(mine.count(word), theirs.count(word)) for word in set(mine))
    return 2 * common / (len(mine) + len(theirs)) if mine or theirs else 1.0


def reward_count(answer: SampledAnswer, reference: Reference) -> float:
    """1 if the answer shows as many objects as the reference."""
    return float(len(answer.phrases) == len(reference.masks))


def reward_format(answer: SampledAnswer, reference: Reference) -> float:
    """1 for an answer that has words (if the reference has), ends, and consists of text and `<p> phrase </p> [SEG]`,
    one or more [SEG]. A [SEG] may stand for itself where one of the reference does."""
    kinds, expected = _pieces(answer.tagged_text), _pieces(reference.tagged_text)
    units = "w|<w>s+|s" if re.search(r"(?<![>s])s", expected) else "w|<w>s+"
    worded = bool(words(answer.text)) or not words(reference.text)
    return float(bool(re.fullmatch(f"({units})+", kinds)) and worded and answer.ended)


def _pieces(tagged_text: str) -> str:
    """A letter for each tag and each text between tags."""
    tags = "".join(f"({re.escape(tag)})|" for tag in ANSWER_TAGS).removesuffix("|")
    found = [piece for piece in re.split(tags, tagged_text) if piece and piece.strip()]
    return "".join({PHRASE_START: "<", PHRASE_END: ">", SEG: "s"}.get(piece, "w") for piece in found)


def reward_consistency(answer: SampledAnswer, reference: Reference) -> float:
    """0 for an answer that contradicts itself: a phrase that begins with a number and another number of masks, or
    masks for nothing (unless the reference has as many for this phrase); a total that is not the number of masks,
    where that of the reference is; both yes and no, or several of the choices of the question (unless the reference
    does)."""
    known = _masks_by_phrase(reference)
    for phrase, count in _masks_by_phrase(answer):
        if (phrase, count) not in known and not _numbers_agree(phrase, count):
            return 0.0
    if _total_agrees(reference) and _total_agrees(answer) is False:
        return 0.0
    choices = reference.info.get("choices") or YES_NO
    return float(len(named_choices(answer.text, choices)) <= max(1, len(named_choices(reference.text, choices))))


def _masks_by_phrase(answer: TaggedText) -> list[tuple[str, int]]:
    """Each phrase of an answer that has masks, in lower case, and their number."""
    by_span: dict[tuple[int, int], list[str]] = {}
    for phrase, span in answer.phrases:
        by_span.setdefault(span, []).append(phrase)
    return [(phrases[0].lower(), len(phrases)) for phrases in by_span.values()]


def _numbers_agree(phrase: str, count: int) -> bool:
    """Whether a phrase that begins with a number has that many masks, and one that names nothing has none."""
    if next(iter(words(phrase)), "") in NOTHING:
        return False
    counted = COUNTED.match(phrase)
    return counted is None or _number(counted[1]) == count


def _total_agrees(answer: TaggedText) -> bool | None:
    """Whether the total at the end of an answer is the number of its masks; `None` without a total."""
    total = TOTAL.search(answer.text)
    return None if total is None else _number(total[1]) == len(answer.phrases)


def _number(word: str) -> int:
    if word.isdecimal():
        return int(word)
    return NUMBER_WORDS.index("no" if word.lower() == "none" else word.lower())


def reward_length(answer: SampledAnswer, reference: Reference) -> float:
    """1 up to a length that depends on the reference, then falling to 0 at twice that length."""
    allowed = LENGTH_RATIO * reference.num_tokens + SPARE_TOKENS
    return float(np.clip(2 - answer.num_tokens / allowed, 0, 1))


REWARDS: dict[str, Reward] = {
    "masks": reward_masks,
    "answer": reward_answer,
    "words": reward_words,
    "count": reward_count,
    "format": reward_format,
    "consistency": reward_consistency,
    "length": reward_length,
}


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation."""
    return re.findall(r"\w+", text.lower())


def read_rewards(text: str) -> dict[str, tuple[Reward, float]]:
    """
    The functions and weights in a comma-separated list of `name=weight`; a weight of 1 may be left out.

    Raises:
        ValueError: for an unknown name, a function that cannot be imported, and a weight that is not a number.
    """
    found: dict[str, tuple[Reward, float]] = {}
    for entry in filter(None, map(str.strip, text.split(","))):
        name, _, number = entry.partition("=")
        try:
            weight = float(number or 1)
        except ValueError:
            weight = float("nan")
        if not np.isfinite(weight) or weight == 0:
            raise ValueError(f"The reward {name!r} has the weight {number!r}, expected a number other than 0.")
        if name.rpartition(":")[2] in found or name in found:
            raise ValueError(f"The reward {name!r} is given twice.")
        found[name.rpartition(":")[2]] = (REWARDS[name] if name in REWARDS else imported_reward(name), weight)
    if not found:
        raise ValueError(f"No reward is given, expected some of {', '.join(REWARDS)}, or module:function.")
    return found


def imported_reward(name: str) -> Reward:
    """
    The function that `module:function` names.

    Raises:
        ValueError: for a name without a colon, a function that cannot be imported, and anything but a function.
    """
    module, colon, function = name.partition(":")
    if not colon:
        raise ValueError(f"The reward {name!r} is unknown, expected {', '.join(REWARDS)}, or module:function.")
    try:
        found = vars(import_module(module))[function]
    except (ImportError, KeyError, ValueError) as error:
        raise ValueError(f"The reward {name!r} cannot be imported ({type(error).__name__}: {error}).") from error
    if not inspect.isfunction(found):
        raise ValueError(f"The reward {name!r} is a {type(found).__name__}, not a function.")
    return found


def score(
    rewards: Mapping[str, tuple[Reward, float]], answers: Sequence[SampledAnswer], reference: Reference | None
) -> np.ndarray:
    """
    Each reward of each answer, float array of shape `(num_answers, num_rewards)`; NaN where one does not apply.

    Raises:
        ValueError: for a reward that fails, or returns neither a finite number nor `None`. It names the reward.
    """
    rows = np.full((len(answers), len(rewards)), np.nan)
    if reference is None:
        return rows
    for row, answer in zip(rows, answers, strict=True):
        row[:] = [_checked(name, reward, answer, reference) for name, (reward, _) in rewards.items()]
    return rows


def _checked(name: str, reward: Reward, answer: SampledAnswer, reference: Reference) -> float:
    """The value of a reward, NaN for `None`."""
    about = f"the answer {answer.tagged_text[:80]!r}"
    try:
        value = reward(answer, reference)
    except Exception as error:  # of a function of one's own
        raise ValueError(f"The reward {name!r} failed for {about}: {type(error).__name__}: {error}") from error
    if value is None:
        return float("nan")
    if not isinstance(value, float | int | np.number | np.bool_) or not np.isfinite(value):
        raise ValueError(f"The reward {name!r} is {value!r} for {about}, expected a finite number or None.")
    return float(value)


def advantages(totals: np.ndarray, scale: str) -> np.ndarray:
    """
    How much better each answer is than the others to the same prompt.

    Args:
        totals (`np.ndarray` of shape `(num_prompts, num_answers)`): Sum of the weighted rewards; NaN for answers that
            cannot be judged, whose advantage is 0.
        scale (`str`): "group" divides by the standard deviation of the prompt's answers, "none" does not.

    Raises:
        ValueError: for another scale.
    """
    if scale not in ("group", "none"):
        raise ValueError(f"scale_rewards is {scale!r}, expected group or none: groups are not compared.")
    centred = np.nan_to_num(_centred(totals))
    if scale == "none":
        return centred
    return centred / (np.nan_to_num(spreads(totals))[:, None] + 1e-4)


def spreads(totals: np.ndarray) -> np.ndarray:
    """The standard deviation of the judged answers to each prompt, of shape `(num_prompts,)`; NaN for prompts with
    fewer than two. `totals` is as in [`advantages`]."""
    counts = (~np.isnan(totals)).sum(1)
    variances = np.nansum(_centred(totals) ** 2, axis=1) / np.maximum(counts - 1, 1)
    return np.where(counts > 1, np.sqrt(variances), np.nan)


def _centred(totals: np.ndarray) -> np.ndarray:
    """Totals minus the mean of the judged ones of the same prompt."""
    counts = np.maximum((~np.isnan(totals)).sum(1, keepdims=True), 1)
    return totals - np.nansum(totals, axis=1, keepdims=True) / counts


def totals_of(scores: np.ndarray, weights: Sequence[float]) -> np.ndarray:
    """
    Weighted sums of rewards.

    Args:
        scores (`np.ndarray` of shape `(..., num_answers, num_rewards)`): As [`score`] returns them for the answers to
            a prompt.
        weights (sequence of `float`): One for each reward.

    Returns:
        `np.ndarray` of shape `(..., num_answers)`: Sums over the rewards that apply to the prompt. NaN for answers
        that lack one which others to the same prompt have, since their sums cannot be compared, and where none
        applies.
    """
    unknown = np.isnan(scores)
    applies = ~unknown.all(axis=-2, keepdims=True)
    total = np.nansum(scores * np.asarray(weights), axis=-1)
    return np.where((unknown & applies).any(-1) | ~applies.any(-1), np.nan, total)
