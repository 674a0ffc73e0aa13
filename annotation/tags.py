"""
The tags of questions and answers: `<obj3>` behind the noun of a question, and `<p> phrase </p> <obj3>` in an answer.

A text is read into the parts of a record, and written from them; everything that is wrong with its tags is a problem
with its place. Objects are numbers here, counted from 1 as in the list that the model is given.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from .problems import Problem
from .schema import PhraseSpan


# What a reader of records, a turn format or a tokenizer would take for a tag must not stand in a text, either: <vp>,
# </s>, <|im_end|>, <IMG_CONTEXT>, [SEG], in any case
NAMES = "s|p|vp|pos|img|img_context|image|video|region|mask|box|ref|quad|unk|pad|bos|eos|think"
TAG = re.compile(
    r"<obj([0-9]{1,4})>|(</?p>)|"
    rf"((?i:</?obj[^<>]{{0,40}}>|</?(?:{NAMES})\b[^<>]{{0,40}}>|<\|[^|<>]{{0,40}}\|>|\[/?(?:SEG|INST)\]))"
)
# Of scripts that separate words by blanks: the blanks inside <p> </p> belong to the tags
LETTER = re.compile(r"[0-9A-Za-z\u00c0-\u024f\u0370-\u052f]")
FOLLOWING_TAGS = re.compile(r"(?:\s*<obj[^<>]{0,40}>)+")


def tag(number: int) -> str:
    """`<obj3>` for 3."""
    return f"<obj{number}>"


@dataclass
class TaggedText:
    """
    A question or an answer, read.

    Attributes:
        parts (`list[(str, tuple[int, ...])]`): Text and the objects that it stands for: none for plain text, one for
            the empty text of a question's tag, one or more for a phrase of an answer.
        problems (`list[Problem]`): What is wrong with the tags.
    """

    parts: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    @property
    def objects(self) -> list[int]:
        """The objects in the order of their tags."""
        return [number for _, numbers in self.parts for number in numbers]

    @property
    def plain(self) -> str:
        """The text without tags; adjacent blanks that a tag leaves behind become one."""
        return re.sub(r"(?<=\s) +|\s+(?=[.,;:!?])", "", "".join(text for text, _ in self.parts)).strip()

    def add(self, text: str, numbers: tuple[int, ...] = ()) -> None:
        """Appends a part; empty plain text is left out."""
        if text or numbers:
            self.parts.append((text, numbers))


def read_question(text: str, num_objects: int) -> TaggedText:
    """The parts of a question: plain text, and an empty text for each `<objN>`."""
    found, position = TaggedText(), 0
    for match in TAG.finditer(text):
        found.add(text[position : match.start()])
        position = match.end()
        if match[1] and _is_known(match[1], num_objects):
            found.add("", (int(match[1]),))
        else:
            found.problems.append(_problem("tag_unknown", match, f"{match[0]} has no meaning in a question"))
    found.add(text[position:])
    if not found.objects and not found.problems:
        found.problems.append(Problem("question_untagged", "", "the question has no object tag"))
    return found


def read_answer(text: str, num_objects: int) -> TaggedText:
    """The parts of an answer: plain text, and phrases with the objects that their tags name."""
    found, tags = TaggedText(), list(TAG.finditer(text))
    unbalanced = _unbalanced(tags)
    for match in tags:
        if match[3] or (match[1] and not _is_known(match[1], num_objects)):
            found.problems.append(_problem("tag_unknown", match, f"{match[0]} is none of the {num_objects} objects"))
    if unbalanced is not None:
        # Which tags belong together is unknown, so that no more can be said
        other = {"<p>": "</p> follows", "</p>": "<p> precedes it"}[unbalanced[0]]
        found.problems.append(_problem("tag_unbalanced", unbalanced, f"no {other}"))
        return found
    position, opened, depth, nested = 0, None, 0, False
    for match in tags:
        if match.start() < position:
            continue  # read with the phrase before it
        if opened is None and match[2] == "<p>":
            found.add(text[position : match.start()])
            opened, depth, nested, position = match, 1, False, match.end()
        elif opened is None:
            if match[1] and _is_known(match[1], num_objects):
                found.problems.append(_problem("tag_alone", match, f"{match[0]} does not follow a phrase"))
        elif match[2] != "</p>":
            if not nested:
                found.problems.append(_problem("tag_nested", match, f"{match[0]} stands inside a phrase"))
            depth, nested = depth + (match[2] == "<p>"), True
        elif depth > 1:
            depth -= 1
        else:
            position, opened = _close_phrase(found, text, (opened, match), num_objects, nested), None
    found.add(text[position:])
    return found


def _unbalanced(tags: Sequence[re.Match]) -> re.Match | None:
    """The first <p> or </p> that has no partner."""
    opened: list[re.Match] = []
    for match in tags:
        if match[2] == "<p>":
            opened.append(match)
        elif match[2]:
            if not opened:
                return match
            opened.pop()
    return opened[0] if opened else None


def _close_phrase(found: TaggedText, text: str, ends: tuple[re.Match, re.Match], num_objects: int, nested) -> int:
    """Reads the objects behind a phrase; returns the position behind their tags."""
    opened, closed = ends
    phrase = text[opened.end() : closed.start()]
    following = FOLLOWING_TAGS.match(text, closed.end())
    end = following.end() if following else closed.end()
    names = re.findall(r"<obj([^<>]*)>", following[0]) if following else []
    where = f"[{opened.start()}:{end}]"
    if nested or not all(name.isdecimal() and _is_known(name, num_objects) for name in names):
        return end  # reported already
    if not phrase.strip():
        found.problems.append(Problem("phrase_empty", where, "there is nothing between <p> and </p>"))
    elif not names:
        found.problems.append(Problem("tag_alone", where, "no object tag follows the phrase"))
    elif is_glued(text[max(0, opened.start() - 1) : opened.start()], phrase.strip()):
        found.problems.append(Problem("span", where, f"there is no space before <p>{phrase[:60]}</p>"))
    else:
        found.add(phrase.strip(), tuple(map(int, names)))
    return end


def is_glued(before: str, phrase: str) -> bool:
    """Whether a phrase continues the word before it."""
    return LETTER.fullmatch(before) is not None and LETTER.match(phrase) is not None


def _is_known(digits: str, num_objects: int) -> bool:
    # "<obj01>" is another text than "<obj1>" and would not come back from a round trip
    return digits == str(int(digits)) and 1 <= int(digits) <= num_objects


def _problem(code: str, match: re.Match, detail: str) -> Problem:
    return Problem(code, f"[{match.start()}:{match.end()}]", detail)


def write_question(parts: Sequence[tuple[str, tuple[int, ...]]]) -> str:
    """The tagged text of a question."""
    return "".join(text + "".join(map(tag, numbers)) for text, numbers in parts)


def write_answer(parts: Sequence[tuple[str, tuple[int, ...]]]) -> str:
    """The tagged text of an answer."""
    return "".join(_phrase(text, numbers) if numbers else text for text, numbers in parts)


def _phrase(text: str, numbers: tuple[int, ...]) -> str:
    return f"<p> {text} </p> {' '.join(map(tag, numbers))}"


def answer_from_spans(answer: str, spans: Sequence[PhraseSpan], num_objects: int) -> TaggedText:
    """
    The parts of a plain answer with the spans of its phrases. Equal spans are one phrase of several objects. Positions
    are counted in Unicode characters. A span must not begin or end with blanks: the tagged text of a record has none
    at the edges of its phrases, so that such a span would not come back from it.
    """
    found, by_place = TaggedText(), {}
    for index, span in enumerate(spans):
        number = object_number(span.object, num_objects)
        if number is None:
            detail = f"{span.object!r} is none of the {num_objects} objects"
            found.problems.append(Problem("tag_unknown", f"phrases[{index}].object", detail))
        elif not 0 <= span.start < span.end <= len(answer) or answer[span.start : span.end] != span.phrase:
            shown = answer[max(0, span.start) : max(0, span.end)][:60]
            detail = f"answer[{span.start}:{span.end}] is {shown!r}, not {span.phrase[:60]!r}"
            found.problems.append(Problem("span", f"phrases[{index}]", detail))
        elif not span.phrase.strip():
            found.problems.append(Problem("phrase_empty", f"phrases[{index}]", f"{span.phrase[:60]!r} has no words"))
        elif span.phrase != span.phrase.strip():
            detail = f"{span.phrase[:60]!r} begins or ends with blanks, which belong to the text around the phrase"
            found.problems.append(Problem("span", f"phrases[{index}]", detail))
        elif span.start and is_glued(answer[span.start - 1], span.phrase):
            detail = f"{span.phrase[:60]!r} begins inside a word"
            found.problems.append(Problem("span", f"phrases[{index}]", detail))
        else:
            by_place.setdefault((span.start, span.end), (index, []))[1].append(number)
    position = 0
    for (start, end), (index, numbers) in sorted(by_place.items()):
        if start < position:
            detail = f"answer[{start}:{end}] overlaps the phrase before it, which ends at {position}"
            found.problems.append(Problem("span", f"phrases[{index}]", detail))
            continue
        found.add(answer[position:start])
        found.add(answer[start:end], tuple(numbers))
        position = end
    found.add(answer[position:])
    return found


def object_number(name: str, num_objects: int) -> int | None:
    """The number of `obj3` or `<obj3>`; `None` for everything else."""
    match = re.fullmatch(r"<?obj([0-9]{1,4})>?", name)
    return int(match[1]) if match and _is_known(match[1], num_objects) else None


def grounded_spans(parts: Sequence[tuple[str, tuple[int, ...]]]) -> Iterator[tuple[int, int, str, tuple[int, ...]]]:
    """Start, end, phrase and objects of each phrase in the joined text of the parts."""
    position = 0
    for text, numbers in parts:
        if numbers and text:
            yield position, position + len(text), text, numbers
        position += len(text)
