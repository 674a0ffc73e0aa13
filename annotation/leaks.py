"""
Words that give away the pictures that the writing model was shown: numbers, boxes and outlines are drawn for it alone,
and a text that mentions them describes something that is not in the video.

This is a rule about words, and no proof. Only what hardly ever stands in a true text is a sure leak. What may as well
be true ("he carries a green box") is for a person, and what the patterns do not have is missed.
"""

import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple

from .tags import TAG


# Verbs for what is drawn over a picture, and verbs for what often is so in a video: a labelled jar, a framed picture
DRAWN = "outlined|highlighted|annotated|circled|marked|boxed"
FOUND = "labell?ed|numbered|enclosed|encircled|surrounded|bordered|framed"
VERBS = f"{DRAWN}|{FOUND}"
BY = r"\s+(?:with|by|as|in|using)\s+(?:(?:an?|the|its)\s+)?"
# What is hardly ever in a video, what may be, and what is in most of them
LINES = r"(?:outlines?|contours?|overlays?|bounding[ -]*box(?:es)?)"
MARKS = (
    r"(?:box(?:es)?|frames?|borders?|rectangles?|labels?|masks?|highlights?|markers?|numbers?|digits?|numerals?)\b"
    r"(?!\s+(?:collies?|terriers?|trucks?|cars?|vans?|kites?|offices?|makers?)\b)"
)
FORMS = r"(?:circles?|ellips[ei]s|ovals?|squares?|rings?|lines?|strokes?)"
# Words before and behind a colour: "a thick bright red dashed box"
STYLE = (
    r"(?:(?:bright(?:ly)?|light|dark|deep|pale|vivid|neon|glowing|thick|thin|bold|solid|broken|dashed|dotted|narrow|"
    r"wide|large|small|rectangular|square|circular|round(?:ed)?|oval|colou?red|drawn)[ -]+){0,3}"
)
PAINTED = r"(?:[ -]colou?r(?:ed)?)?"
AROUND = (
    r"\s+(?:(?:is|are|was|were|that|which|drawn|shown|placed|seen|appears?)\s+)*(?:around|surround|enclos|encircl)"
)
NUMBERS = "one|two|three|four|five|six|seven|eight|nine|ten"
# What follows a word that is no adjective of another one: the end of a clause, and not "stripes" or ", white and blue"
COLOR_WORDS = "red|blue|green|yellow|orange|purple|cyan|magenta|lime|pink|white|black|gr[ae]y|brown|gold|silver"
END = (
    rf"(?=\s*(?:$|[.;:!?)\"']|,(?!\s*(?:{COLOR_WORDS})\b))|\s+(?:and|or)\b(?!\s+(?:{COLOR_WORDS})\b)|"
    r"\s+(?:but|while|is|are|was|were|has|have|in|on|at|to|near|with|from|as|behind|beside|before|after|here|"
    r"throughout|during|when|who|which|that)\b)"
)
UNIT = r"(?!\s*(?:m|cm|km|kg|metres?|meters?|feet|inch(?:es)?|seconds?|minutes?|people|men|women)\b)"
# About the drawing
PLAIN = (
    r"\bobj[ _#-]*[0-9]+\b",
    rf"\bobjects?[ _#-]*[0-9]+\b{UNIT}",
    rf"\bobjects?[ -]+(?:{NUMBERS})\b{END}",
    r"\bbounding[ -]*box(?:es)?\b",
    r"\bbbox(?:es)?\b",
    r"\b(?:label|mask|marker|contour|outline)[ #]+[0-9]+\b",
    # Not "in": players are marked in the box, too
    rf"\b(?:{DRAWN})\s+(?:with|by|using)\s+(?:an?\s+|the\s+)?{STYLE}(?:box(?:es)?|rectangles?|{LINES})\b",
    r"\b(?:segmentation|overlaid|superimposed)\s+(?:mask|label|number|outline)s?\b",
)
# May be about the video: a player's shirt has a number, too, and so have tracks of a station
DOUBTFUL = (
    rf"\bobjects?[ _#-]*(?:[0-9]+|{NUMBERS})\b",
    r"\b(?:number|digit|no\.)[ #]*[0-9]+\b",
    r"\b(?:region|track|segment|tag)[ #]+[0-9]+\b",
    r"\b[a-z]+ ?#[0-9]+\b",
    rf"\b(?:{VERBS})\s+(?:with|by|as|in|using)?\s*(?:an?|the)?\s*(?:number|[0-9]+)\b",
    rf"\b(?:{VERBS})(?:{BY}|\s+){STYLE}(?:labels?|box(?:es)?|{LINES})\b",
    rf"\bnumbered\s+(?:{NUMBERS})\b",
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
            own: "the red outline" is a leak only where something was drawn in red.
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
        color = rf"{STYLE}(?:{names}){PAINTED}"
        thing, dashed = rf"{color}[\s-]+{STYLE}", rf"(?:dashed|dotted)[ -]+{STYLE}"
        plain += [
            rf"\b{thing}{LINES}\b",
            rf"\b{LINES}\s+(?:in|of)\s+(?:an?\s+)?{color}\b",
            # In the video, it is lines of roads that are dashed
            rf"\b(?:{dashed}{thing}|{thing}{dashed})(?:box|frame|border|rectangle|circle)(?:e?s)?\b",
            rf"\b{thing}box(?:es)?{AROUND}",
            rf"\b(?:{DRAWN}){BY}{color}\b{END}",
            rf"\b(?:{DRAWN}){BY}{thing}(?:box(?:es)?|rectangles?|{LINES})\b",
        ]
        unsure += [
            rf"\b{thing}{MARKS}",
            rf"\b{MARKS}\s+in\s+(?:an?\s+)?{color}\b",
            rf"\b(?:in|inside|within)\s+(?:an?|the|this|that|its)\s+{thing}{FORMS}\b",
            rf"\b{thing}{FORMS}{AROUND}",
            rf"\b(?:{VERBS}){BY}{thing}{FORMS}\b",
            # "marked with red flags" may be true, "surrounded by green trees" is in most videos
            rf"\b(?:{DRAWN})(?:{BY}|\s+){color}\b",
            rf"\b(?:{FOUND}){BY}{color}\b{END}",
            rf"\b(?:{names})-(?:{VERBS})\b",
        ]
    return [
        (re.compile(pattern, re.IGNORECASE), doubtful)
        for patterns, doubtful in ((plain, False), (unsure, True))
        for pattern in patterns
    ]
