"""
Text normalisation before answers are compared: tags, end-of-turn tokens, boilerplate (evaluation spec 1.5, 5, 6).

The processor parses answers into text and phrases. The functions here work on the raw generated text, as the published
evaluation does.
"""

import re
from collections.abc import Iterable, Sequence

from .values import CONSISTENT, PUBLISHED, check_preset


MAX_WORDS, MAX_CHARACTERS = 300, 2000
SAMA_TAGS = ("<p>", "</p>", "[SEG]", "<|im_end|>", "<s>", "<|end|>")
_OLDER_TAGS = {"<seg>": "[SEG]", "<g_s>": "<p>", "<g_e>": "</p>"}
_END_MARKS = ("<|im_end|>", "<|end|>", "<|endoftext|>", "<s>", "</s>")
_PHRASE = re.compile(r"<p>(.*?)</p>", re.DOTALL)
_REGION_OPENING = re.compile(
    r"^\s*(?:the\s+)?region(?:\s+marked\s+(?:by|as)\s+region\s*1|\s*1)?\s+(?:is|shows)\b\s*:?", re.IGNORECASE
)
# Removed in this order, wherever they occur
_PUBLISHED_REGION_WORDS = (
    "region1", "Region1", "The region marked by", "The region marked as", "The region marked", "is", "shows", ":",
)  # fmt: skip

YES_NO = ("yes", "no")
# Words that open a clause: a "no" before one of them is an answer, before any other word it is a determiner
_CLAUSE_OPENERS = "yes no or and it he she they this that these those the there a an i we you not".split()
_DETERMINER_NO = re.compile(rf"\bno(?:-|\s+(?!(?:{'|'.join(_CLAUSE_OPENERS)})\b))(?=\w)", re.IGNORECASE)
_ONE_LETTER_WORDS, _NOT_BEFORE_A_WORD = ("A", "I"), r"(?!\s+(?!(?:is|or|and)\b)\w)"


def phrases(answer: str, lower: bool = True) -> list[str]:
    """The text of every `<p> ... </p>` in an answer, stripped. A phrase counts with or without a [SEG] behind it: the
    published evaluation pairs phrases and masks by position."""
    found = [match.strip() for match in _PHRASE.findall(answer)]
    return [phrase.lower() for phrase in found] if lower else found


def named_choices(text: str, choices: Iterable[str]) -> list[str]:
    """
    The choices that a text names as whole words, in any case, in the order of `choices`.

    - "red" is not named by "dark red" where that is a choice, too.
    - Beside "yes", "no" is not named by the determiner in "Yes, there is no dog".
    - If all choices are single letters, they are named as capitals, see [`named_letters`].
    """
    choices = list(choices)
    if choices and all(re.fullmatch(r"[A-Za-z]", choice) for choice in choices):
        return named_letters(text, choices)
    found = _named_words(text, choices)
    names_both = {choice.lower() for choice in found} == set(YES_NO)
    return _named_words(without_determiner_no(text), choices) if names_both else found


def _named_words(text: str, choices: Sequence[str]) -> list[str]:
    """The choices in a text, longer ones first: what one choice covers names no other."""
    found, rest = set(), text.lower()
    for choice in sorted(choices, key=len, reverse=True):
        rest, count = re.subn(rf"(?<!\w){re.escape(choice.lower())}(?!\w)", "|", rest)
        found |= {choice} if count else set()
    return [choice for choice in choices if choice in found]


def without_determiner_no(text: str) -> str:
    """A text without each "no" that belongs to the word after it: "no dog", "no-entry", but not "no, it stops" or
    "no it stops"."""
    return _DETERMINER_NO.sub("", text)


def named_letters(text: str, letters: Sequence[str]) -> list[str]:
    """The letters that a text names as capitals. The article "A" and the pronoun "I" are not named: no word but "is",
    "or" and "and" may follow these two, unless "answer", "option" or "choice" precedes."""
    found = []
    for name in letters:
        letter = rf"{name.upper()}(?![\w'’])"
        alone = rf"(?<![\w'’]){letter}" + (_NOT_BEFORE_A_WORD if name.upper() in _ONE_LETTER_WORDS else "")
        introduced = rf"\b(?i:answer|option|choice)(?:\s+is)?:?\s+{letter}"
        found += [name] if re.search(f"{alone}|{introduced}", text) else []
    return found


def current_tags(answer: str) -> str:
    """A SAMA-Bench answer with `<g_s>`, `<g_e>` and `<seg>` replaced by `<p>`, `</p>` and `[SEG]`, stripped."""
    answer = answer.strip()
    for older, tag in _OLDER_TAGS.items():
        answer = answer.replace(older, tag)
    return answer


def caption(answer: str) -> str:
    """The text of a SAMA-Bench answer without tags and with single spaces. A space before punctuation stays."""
    for tag in SAMA_TAGS:
        answer = answer.replace(tag, "")
    return " ".join(answer.split())


def shortened(text: str, max_words: int = MAX_WORDS, max_characters: int = MAX_CHARACTERS) -> str:
    """A text cut to its first words and characters; a shorter text is returned unchanged."""
    words = text.split()
    return (text if len(words) <= max_words else " ".join(words[:max_words]))[:max_characters]


def image_caption(answer: str) -> tuple[str, list[str]]:
    """
    The caption and the phrases of an image GCG answer, cleaned as in the published evaluation: lines are joined
    without a space, every `<...>` is removed, phrases keep their case.
    """
    text = answer.replace("<s>", "").replace("\n", "").replace("  ", " ").split("ASSISTANT: ")[-1]
    words = re.sub(r"<.*?>", "", text).replace("[SEG]", "")
    return " ".join(words.split()).strip("'").strip(), phrases(text, lower=False)


def region_caption(answer: str, preset: str = CONSISTENT) -> str:
    """
    A RefCOCOg region description without the words that repeat the question.

    Args:
        answer (`str`): The raw generated text.
        preset (`str`): "consistent" removes tags, end-of-turn tokens and an opening such as "The region marked by
            region1 is". "published" removes these words and every "is", "shows" and ":" anywhere, also inside words:
            "a fish" becomes "a fh".
    """
    check_preset(preset)
    for mark in _END_MARKS:
        answer = answer.replace(mark, "")
    text = re.sub(r"<.*?>", "", answer).replace("[SEG]", "")
    if preset == PUBLISHED:
        for word in _PUBLISHED_REGION_WORDS:
            text = text.replace(word, "")
        return " ".join(text.split())
    return " ".join(_REGION_OPENING.sub("", text).split())


def mme_answer(answer: str) -> str:
    """An MME answer as the published evaluation saves it: without `<|im_end|>`, full stops and line breaks."""
    return answer.replace("<|im_end|>", "").replace(".", "").replace("\n", "").strip()
