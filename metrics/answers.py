"""
What is left of an answer before it is compared: tags, end marks, standing phrases (evaluation spec 1.5, 5, 6).

Our own answers come parsed by `prompts_sama`: words without tags, a phrase for each [SEG]. These functions are for the
texts as they were written, and for what the release does to them.
"""

import re

from .values import FIXED, RELEASE, check_mode


MAX_WORDS, MAX_CHARACTERS = 300, 2000
SAMA_TAGS = ("<p>", "</p>", "[SEG]", "<|im_end|>", "<s>", "<|end|>")
_OLDER_TAGS = {"<seg>": "[SEG]", "<g_s>": "<p>", "<g_e>": "</p>"}
_END_MARKS = ("<|im_end|>", "<|end|>", "<|endoftext|>", "<s>", "</s>")
_PHRASE = re.compile(r"<p>(.*?)</p>", re.DOTALL)
_REGION_OPENING = re.compile(
    r"^\s*(?:the\s+)?region(?:\s+marked\s+(?:by|as)\s+region\s*1|\s*1)?\s+(?:is|shows)\b\s*:?", re.IGNORECASE
)
# In this order, from everywhere in the text
_RELEASE_REGION_WORDS = (
    "region1", "Region1", "The region marked by", "The region marked as", "The region marked", "is", "shows", ":",
)  # fmt: skip


def phrases(answer: str, lower: bool = True) -> list[str]:
    """Every `<p> ... </p>` of an answer, stripped. Whether a [SEG] follows does not matter, as in the release, which
    pairs the phrases with the masks by position."""
    found = [match.strip() for match in _PHRASE.findall(answer)]
    return [phrase.lower() for phrase in found] if lower else found


def current_tags(answer: str) -> str:
    """An answer of SAMA-Bench with today's tags instead of `<g_s>`, `<g_e>` and `<seg>`, stripped."""
    answer = answer.strip()
    for older, tag in _OLDER_TAGS.items():
        answer = answer.replace(older, tag)
    return answer


def caption(answer: str) -> str:
    """The words of a SAMA-Bench answer: without tags, one blank between words. The blank before punctuation stays."""
    for tag in SAMA_TAGS:
        answer = answer.replace(tag, "")
    return " ".join(answer.split())


def shortened(text: str, max_words: int = MAX_WORDS, max_characters: int = MAX_CHARACTERS) -> str:
    """The first words and characters of a text, before it is compared; a short text stays as it is."""
    words = text.split()
    return (text if len(words) <= max_words else " ".join(words[:max_words]))[:max_characters]


def image_caption(answer: str) -> tuple[str, list[str]]:
    """
    The caption and the phrases of an image GCG answer, as the release cleans them: lines are joined without a blank,
    every `<...>` goes, phrases keep their case.
    """
    text = answer.replace("<s>", "").replace("\n", "").replace("  ", " ").split("ASSISTANT: ")[-1]
    words = re.sub(r"<.*?>", "", text).replace("[SEG]", "")
    return " ".join(words.split()).strip("'").strip(), phrases(text, lower=False)


def region_caption(answer: str, mode: str = FIXED) -> str:
    """
    A description of RefCOCOg's region without what repeats the question.

    Args:
        answer (`str`): As it was written.
        mode (`str`): "fixed": without tags, end marks, and an opening such as "The region marked by region1 is".
            "published": without these words and every "is", "shows" and ":" anywhere, inside words too: "a fish"
            becomes "a fh".
    """
    check_mode(mode)
    for mark in _END_MARKS:
        answer = answer.replace(mark, "")
    text = re.sub(r"<.*?>", "", answer).replace("[SEG]", "")
    if mode == RELEASE:
        for word in _RELEASE_REGION_WORDS:
            text = text.replace(word, "")
        return " ".join(text.split())
    return " ".join(_REGION_OPENING.sub("", text).split())


def mme_answer(answer: str) -> str:
    """An answer to MME as the release writes it into its result file: without `<|im_end|>`, full stops and lines."""
    return answer.replace("<|im_end|>", "").replace(".", "").replace("\n", "").strip()
