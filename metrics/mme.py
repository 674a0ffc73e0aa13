"""MME: pairs of yes-or-no questions about an image, in 14 categories (evaluation spec 6)."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from .answers import YES_NO, named_choices
from .values import Value


PERCEPTION = (
    "OCR", "artwork", "celebrity", "color", "count", "existence", "landmark", "position", "posters", "scene",
)  # fmt: skip
REASONING = ("code_reasoning", "commonsense_reasoning", "numerical_calculation", "text_translation")


class YesNo(NamedTuple):
    """One answered question: its category, its image, whether the answer is correct, and how many questions there are
    about the image."""

    category: str
    image: str
    right: bool
    questions: int = 2


def yes_or_no(answer: str) -> bool | None:
    """`True` for yes, `False` for no; `None` if the text names both or neither, see [`named_choices`]."""
    named = named_choices(answer, YES_NO)
    return named == ["yes"] if len(named) == 1 else None


def mme_rating(answers: Iterable[YesNo]) -> dict[str, Value]:
    """
    The MME scores.

    Args:
        answers (iterable of [`YesNo`]): All answers, in any order.

    Returns:
        `dict`: For each category the percentage of correct answers (acc) plus the percentage of images with all
        answers correct (acc+), at most 200; for `perception` and `reasoning` the sum over their categories, without a
        value as long as a category has none. An image with unanswered questions is not in acc+: one correct answer
        does not make it a correct image.

    Raises:
        `ValueError`: An unknown category.
    """
    by_category: dict[str, dict[str, list[YesNo]]] = {name: {} for name in (*PERCEPTION, *REASONING)}
    for answer in answers:
        if answer.category not in by_category:
            raise ValueError(f"MME has no category {answer.category!r}, only {', '.join(by_category)}.")
        by_category[answer.category].setdefault(answer.image, []).append(answer)
    points = {name: _points(images) for name, images in by_category.items()}
    return {"perception": _total(points, PERCEPTION), "reasoning": _total(points, REASONING), **points}


def _points(images: Mapping[str, list[YesNo]]) -> Value:
    if not images:
        return Value(None, "no question of this category was answered")
    rights = [answer.right for answers in images.values() for answer in answers]
    complete = [answers for answers in images.values() if len(answers) >= answers[0].questions]
    if not complete:
        return Value(None, "no image of this category has answers to all its questions")
    whole = [all(answer.right for answer in answers) for answers in complete]
    return Value(100 * sum(rights) / len(rights) + 100 * sum(whole) / len(whole))


def _total(points: Mapping[str, Value], names: Iterable[str]) -> Value:
    missing = [name for name in names if points[name].value is None]
    if missing:
        return Value(None, f"no score in {', '.join(missing)}")
    return Value(sum(points[name].value or 0.0 for name in names))
