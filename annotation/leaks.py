"""
Words that give away the pictures that the writing model was shown: numbers, boxes and outlines are drawn for it alone,
and a text that mentions them describes something that is not in the video.

This is a rule about words, and no proof. What is rarely true of a video is a sure leak. What may as well be true
("he carries a green box") is for a person, and what the patterns do not have is missed.
"""

import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple

from .tags import TAG
from .words import COLOR_WORDS, NUMBER_WORDS, UNITS


# Verbs for what is drawn over a picture, and verbs for what often is so in a video: a marked trail, a labelled jar
DRAWING_VERBS = "outlined|annotated|boxed"
MARKING_VERBS = f"{DRAWING_VERBS}|highlighted|circled|marked"
AMBIGUOUS_VERBS = "labell?ed|numbered|enclosed|encircled|surrounded|bordered|framed"
VERBS = f"{MARKING_VERBS}|{AMBIGUOUS_VERBS}"
BY = r"\s+(?:with|by|as|in|using)\s+(?:(?:an?|the|its)\s+)?"
# What is rarely in a video, what may be, and what is in most of them
SURE_SHAPES = r"(?:outlines?|contours?|overlays?|bounding[ -]*box(?:es)?)"
DOUBTFUL_SHAPES = (
    r"(?:box(?:es)?|frames?|borders?|rectangles?|labels?|masks?|highlights?|markers?|numbers?|digits?|numerals?)\b"
    r"(?!\s+(?:collies?|terriers?|trucks?|cars?|vans?|kites?|offices?|makers?)\b)"
)
COMMON_SHAPES = r"(?:circles?|ellips[ei]s|ovals?|squares?|rings?|lines?|strokes?)"
# Words before and behind a colour: "a thick bright red dashed box"
STYLE = (
    r"(?:(?:bright(?:ly)?|light|dark|deep|pale|vivid|neon|glowing|thick|thin|bold|solid|broken|dashed|dotted|narrow|"
    r"wide|large|small|rectangular|square|circular|round(?:ed)?|oval|colou?red|drawn)[ -]+){0,3}"
)
PAINTED = r"(?:[ -]colou?r(?:ed)?)?"
LINKS = r"(?:is|are|was|were|that|which|drawn|shown|placed|seen|appears?)"
SURROUNDS = r"(?:surround|enclos|encircl)(?:e|es|ed|s|ing)?\b"
AROUND = rf"\s+(?:{LINKS}\s+)*(?:around\b|{SURROUNDS})"
# Not "he carries a red box around" or "around the yard"
SURELY_AROUND = rf"\s+(?:(?:{LINKS}\s+)+around\b|around\s+(?:it|him|them)\b|(?:{LINKS}\s+)*{SURROUNDS})"
NUMBERS = "|".join(NUMBER_WORDS)
# What follows a word that is no adjective of another one: the end of a clause, and not "stripes" or ", white and blue"
STOP = (
    rf"\s*(?:$|[.;:!?)\"']|,(?!\s*(?:{COLOR_WORDS})\b))|\s+(?:and|or)\b(?!\s+(?:{COLOR_WORDS})\b)|\s+(?:but|while)\b"
)
AUXILIARIES = "is|are|was|were|has|have|had|does|did|can|could|will|would"
END = (
    rf"(?={STOP}|\s+(?:{AUXILIARIES}|in|on|at|to|near|with|from|as|behind|beside|before|after|here|throughout|during|"
    r"when|who|which|that)\b)"
)
END_OR_VERB = rf"(?={STOP}|\s+(?:{AUXILIARIES})\b)"
# Behind a number that is a name: not "the object 20 yards away", "objects 2 at a time"
NO_MEASURE = (
    rf"(?!\.[0-9]|\s*%|(?:\s*(?:-|to|or)\s*[0-9]+)?\s*(?:{UNITS}|people|men|women|by|at\s+a\s+time|on\s+top)\b)"
)
# "The object one is holding" and "no object two of them lift"; a capital letter begins a sentence or a name
NO_ARTICLE = "".join(rf"(?<!\b{word}\s)" for word in "the an no any each every which what this that".split())
NUMBER_BY_WORD = (
    rf"{NO_ARTICLE}\bobject[ -]+(?:{NUMBERS})\b(?=\s*(?:$|[.;:!?,)])|\s+(?:{AUXILIARIES})\b)",
    rf"\b(?-i:O)bject[ -]+(?:{NUMBERS})\b(?!\s+(?:at|by|of|on)\b){NO_MEASURE}",
)
# About the drawing
SURE_PATTERNS = (
    r"\bobj[ _#-]*[0-9]+\b",
    rf"\bobjects?[ _#-]*[0-9]+\b{NO_MEASURE}",
    *NUMBER_BY_WORD,
    r"\bbounding[ -]*box(?:es)?\b",
    r"\bbbox(?:es)?\b",
    rf"\b(?:label|mask|marker|contour|outline)[ #]+[0-9]+\b{NO_MEASURE}",
    # Not "in": players are boxed in the corner, too
    rf"\b(?:{DRAWING_VERBS})\s+(?:with|by|using)\s+(?:an?\s+|the\s+)?{STYLE}(?:box(?:es)?|rectangles?|{SURE_SHAPES})\b",
    r"\bsegmentation\s+(?:mask|label|number|outline)s?\b",
    r"\b(?:overlaid|superimposed)\s+(?:mask|outline)s?\b",
)
# May be about the video: a player's shirt has a number, too, and so have tracks of a station
DOUBTFUL_PATTERNS = (
    rf"\bobjects?[ _#-]*(?:[0-9]+|{NUMBERS})\b",
    rf"\b(?:number|digit|no\.)[ #]*[0-9]+\b{NO_MEASURE}",
    rf"\b(?:region|track|segment|tag)[ #]+[0-9]+\b{NO_MEASURE}",
    rf"\b[a-z]+ ?#[0-9]+\b{NO_MEASURE}",
    rf"\b(?:{VERBS})\s+(?:with|by|as|in|using)?\s*(?:an?|the)?\s*(?:number|[0-9]+)\b",
    rf"\b(?:{VERBS})(?:{BY}|\s+){STYLE}(?:labels?|box(?:es)?|rectangles?|{SURE_SHAPES})\b",
    rf"\bnumbered\s+(?:{NUMBERS})\b",
    r"\b(?:overlaid|superimposed)\s+(?:label|number)s?\b",
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
    known = [_normalized(expression) for expression in expressions]
    patterns = _patterns(tuple(colors))
    excused = [match.span() for pattern in patterns.excuses for match in pattern.finditer(without_tags)]

    def may_be_true(match: re.Match) -> bool:
        words = re.compile(rf"(?<!\w){re.escape(_normalized(match[0]))}(?!\w)")
        inside = any(start <= match.start() and match.end() <= end for start, end in excused)
        return inside or any(words.search(expression) for expression in known)

    found = [(match, may_be_true(match)) for pattern in patterns.sure for match in pattern.finditer(without_tags)]
    found += [(match, True) for pattern in patterns.doubtful for match in pattern.finditer(without_tags)]
    leaks: list[Leak] = []
    for match, review in sorted(found, key=lambda one: (one[0].start(), -one[0].end(), one[1])):
        # Not what overlaps one before and is not surer than that
        if not any(match.start() < one.end and (review or not one.review) for one in leaks):
            leaks.append(Leak(match.start(), match.end(), match[0], review))
    yield from leaks


def _normalized(text: str) -> str:
    return " ".join(text.lower().split())


class _Patterns(NamedTuple):
    """Sure and doubtful leaks, and phrases in which the words of a sure leak may be true."""

    sure: list[re.Pattern]
    doubtful: list[re.Pattern]
    excuses: list[re.Pattern]


@cache
def _patterns(colors: tuple[str, ...]) -> _Patterns:
    sure: list[str] = list(SURE_PATTERNS)
    doubtful: list[str] = list(DOUBTFUL_PATTERNS)
    excuses: list[str] = []
    if colors:
        names = "|".join(map(re.escape, colors))
        color = rf"{STYLE}(?:{names}){PAINTED}"
        colored, dashed = rf"{color}[\s-]+{STYLE}", rf"(?:dashed|dotted)[ -]+{STYLE}"
        sure += [
            rf"\b{colored}{SURE_SHAPES}\b",
            rf"\b{SURE_SHAPES}\s+in\s+(?:an?\s+)?{color}\b{END_OR_VERB}",
            # In the video, it is lines of roads and borders of tapes that are dashed
            rf"\b(?:{dashed}{colored}|{colored}{dashed})box(?:es)?\b",
            rf"\b{colored}box{SURELY_AROUND}",
            rf"\b(?:{DRAWING_VERBS}){BY}{color}\b{END}",
            rf"\b(?:{DRAWING_VERBS}){BY}{colored}(?:box(?:es)?|rectangles?|{SURE_SHAPES})\b",
        ]
        doubtful += [
            rf"\b{colored}{DOUBTFUL_SHAPES}",
            rf"\b{DOUBTFUL_SHAPES}\s+in\s+(?:an?\s+)?{color}\b",
            rf"\b{SURE_SHAPES}\s+(?:in|of)\s+(?:an?\s+)?{color}\b",
            rf"\b(?:{dashed}{colored}|{colored}{dashed})circles?\b",
            rf"\b(?:in|inside|within)\s+(?:an?|the|this|that|its)\s+{colored}{COMMON_SHAPES}\b",
            rf"\b{colored}{COMMON_SHAPES}{AROUND}",
            rf"\b(?:{VERBS}){BY}{colored}{COMMON_SHAPES}\b",
            # "marked with red flags" may be true, "surrounded by green trees" is in most videos
            rf"\b(?:{MARKING_VERBS})(?:{BY}|\s+){color}\b",
            rf"\b(?:{AMBIGUOUS_VERBS}){BY}{color}\b{END}",
            rf"\b(?:{names})-(?:{VERBS})\b",
        ]
        # A number on a shirt with a red outline, the red outlines of letters
        excuses += [
            rf"\b(?:with|has|have|had|having)\s+(?:an?\s+)?{colored}(?:outlines?|contours?|overlays?)\b",
            rf"\b{colored}(?:outlines|contours|overlays)\s+of\b",
        ]

    def compiled(expressions: list[str]) -> list[re.Pattern]:
        return [re.compile(expression, re.IGNORECASE) for expression in expressions]

    return _Patterns(compiled(sure), compiled(doubtful), compiled(excuses))
