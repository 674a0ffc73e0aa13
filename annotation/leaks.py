"""
Words that give away the pictures that the writing model was shown: numbers, boxes and outlines are drawn for it alone,
and a text that mentions them describes something that is not in the video.
"""

import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple

from .tags import TAG


SHAPES = "box|boxes|outline|outlines|frame|border|contour|contours|rectangle|label|mask|overlay|highlight|marker"
VERBS = "labell?ed|numbered|marked|outlined|highlighted|annotated|circled|enclosed|framed|boxed"
# About the drawing
PLAIN = (
    r"\bobj(?:ect)?[ _#-]*[0-9]+\b",
    r"\bbounding[ -]*box(?:es)?\b",
    r"\bbbox(?:es)?\b",
    r"\b(?:label|mask|marker|contour|outline)[ #]+[0-9]+\b",
    rf"\b(?:{VERBS})\s+(?:with|by|as|in|using)?\s*(?:an?|the)?\s*(?:label|box|outline|contour)\b",
    r"\b(?:segmentation|overlaid|superimposed)\s+(?:mask|label|number|outline)s?\b",
)
# May be about the video: a player's shirt has a number, too, and so have tracks of a station
DOUBTFUL = (
    r"\b(?:number|digit|no\.)[ #]*[0-9]+\b",
    r"\b(?:region|track|segment|tag)[ #]+[0-9]+\b",
    r"\b[a-z]+ ?#[0-9]+\b",
    rf"\b(?:{VERBS})\s+(?:with|by|as|in|using)?\s*(?:an?|the)?\s*(?:number|[0-9]+)\b",
    r"\bnumbered\s+(?:one|two|three|four|five|six|seven|eight|nine|ten)\b",
    r"\bthe\s+(?:outlined|highlighted|boxed|circled|numbered|annotated)\s+(?!(?:by|with|in|as)\b)[a-z]+",
)


class Leak(NamedTuple):
    """Start, end and words of a leak in a text; whether a person should decide."""

    start: int
    end: int
    words: str
    review: bool


def find_leaks(text: str, colors: Sequence[str], expressions: Sequence[str] = ()) -> Iterator[Leak]:
    """
    The words of a text that describe the drawn marks.

    Args:
        text (`str`): Tags are not looked at.
        colors (sequence of `str`): Names of the colours that were drawn over this video. Other colours are the video's
            own: "the red box" is a leak only where something was drawn in red.
        expressions (sequence of `str`): What the source says about the objects. A leak that stands in one of them may
            be true, and goes to a person.
    """
    without_tags = TAG.sub(lambda match: " " * len(match[0]), text)
    known, end, hidden = [expression.lower() for expression in expressions], -1, False
    found = [(match, doubtful) for pattern, doubtful in _patterns(tuple(colors)) for match in pattern.finditer(
        without_tags)]  # fmt: skip
    for match, doubtful in sorted(found, key=lambda one: (one[0].start(), -one[0].end())):
        if match.start() < end and (doubtful or not hidden):
            continue  # a part of the one before, and not surer than that
        end, hidden = max(end, match.end()), doubtful
        words = " ".join(match[0].lower().split())
        yield Leak(match.start(), end, match[0], doubtful or any(words in expression for expression in known))


@cache
def _patterns(colors: tuple[str, ...]) -> list[tuple[re.Pattern, bool]]:
    plain: list[str] = list(PLAIN)
    unsure: list[str] = list(DOUBTFUL)
    if colors:
        names = "|".join(map(re.escape, colors))
        plain.append(rf"\b(?:{names})(?:[ -]colou?red)?\s+(?:bounding\s+)?(?:{SHAPES})\b")
        plain.append(rf"\b(?:{VERBS})\s+(?:with|by|in)?\s*(?:an?|the)?\s*(?:{names})\b")
        unsure.append(rf"\b(?:{names})-(?:{VERBS})\b")
        plain.append(rf"\b(?:{SHAPES})\s+(?:in|of)\s+(?:{names})\b")
    return [
        (re.compile(pattern, re.IGNORECASE), doubtful)
        for patterns, doubtful in ((plain, False), (unsure, True))
        for pattern in patterns
    ]
