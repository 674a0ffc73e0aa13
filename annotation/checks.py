"""
The exact checks of replies: pure functions from a reply and what is known of the video to the rules that it breaks.

A text with broken tags is checked for nothing else, because what its tags refer to is unknown.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from .duplicates import duplicates_within
from .leaks import find_leaks
from .problems import Problem
from .schema import Descriptions, Dialogue, Evidence, Statement, Turn
from .tags import TAG, TaggedText, answer_from_spans, grounded_spans, object_number, read_answer, read_question
from .words import COLOR_WORDS, NUMBER_WORDS, UNITS


# Not "one", which is a pronoun as well
COUNT_WORDS = {"both": 2} | {word: number for word, number in NUMBER_WORDS.items() if word != "one"}
# Numbers that count something: no part of "three-wheeled", "2.5" or "2020", no measure, and no name as in "number 7"
COUNTED = re.compile(
    r"(?<![\w.,:/#-])(?<!number )(?<!numbers )(?<!no\. )(?<!formula )(?<!track )(?<!lane )(?<!team )(?<!group )"
    rf"([0-9]{{1,2}}|{'|'.join(COUNT_WORDS)})(?![\w%-]|[.,:/][0-9])(?! ?{UNITS}\b)"
)
# In front of the number that counts all that a phrase means: "all of the three dogs". Behind other words it may count
# something else: "the dogs with two collars"
DETERMINERS = re.compile(
    r"(?:(?:all|both|each|only|exactly|just|of|the|these|those|any|other|same|first|last|his|her|its|their|my|our|"
    r"your)\s+)*"
)
# Behind a number that surely counts objects: a plural ("two small dogs"), or nothing ("all three"). Not "the 5 gallon
# buckets" and "four wheel drive cars", nor what may be several objects each: "two pairs", "three boxes of eggs"
COLLECTIVES = (
    "pairs|teams|groups|rows|couples|sets|pieces|sides|lines|columns|crews|families|crowds|herds|flocks|bands|squads|"
    "lots|dozens|bunches|stacks|piles|kinds|types|sorts|halves|layers|classes|clubs|parties|trios|duos|packs|queues|"
    "series|gangs|choirs|armies|fleets|troops|clusters"
)
PLURAL = (
    rf"(?!(?:{COLLECTIVES}|gas)\b)(?:[a-z]+[^\W\dsiu]s|men|women|people|children|[a-z]+(?:men|women)|policemen|sheep|"
    r"fish|deer|geese|feet|mice|oxen)\b(?!\s+of\b)"
)
COUNTS_OBJECTS = re.compile(
    r"(?<=[a-z])$|\s+(?:of\s+)?(?:(?:the|these|those|his|her|its|their|other|big|small|large|little|tiny|young|old|"
    rf"tall|{COLOR_WORDS})\s+)*{PLURAL}"
)


@dataclass(frozen=True)
class VideoFacts:
    """
    What the checks know of a video.

    Args:
        num_frames (`int`): Frames of the video.
        shown (`tuple[int, ...]`): The frames that the model was shown.
        visible (`tuple[frozenset[int], ...]`): For each object the frames with a mask.
        expressions (`tuple[tuple[str, ...], ...]`): For each object what the source says about it.
        colors (`tuple[str, ...]`): Names of the drawn colours.
    """

    num_frames: int
    shown: tuple[int, ...]
    visible: tuple[frozenset[int], ...]
    expressions: tuple[tuple[str, ...], ...]
    colors: tuple[str, ...]

    @property
    def num_objects(self) -> int:
        return len(self.visible)

    def expressions_of(self, numbers: Sequence[int]) -> list[str]:
        """What the source says about these objects."""
        return [text for number in numbers for text in self.expressions[number - 1]]


@dataclass(frozen=True)
class CheckLimits:
    """
    Lower and upper bounds: words of texts, and turns of a dialogue.

    Args:
        statement, question, answer (`(int, int)`): Words.
        turns (`(int, int)`): Turns. The lower bound is that of a video with many objects: at least 2 turns for each
            object are asked for, as in SAMA-239K.
    """

    statement: tuple[int, int] = (3, 60)
    question: tuple[int, int] = (2, 60)
    answer: tuple[int, int] = (2, 150)
    turns: tuple[int, int] = (8, 24)
    turns_per_object: int = 2

    def turns_for(self, num_objects: int) -> tuple[int, int]:
        """Least and most turns of a dialogue about so many objects."""
        return min(self.turns_per_object * num_objects, self.turns[0]), self.turns[1]


@dataclass
class CheckedTurn:
    """A turn whose tags were read, and everything that is wrong with it."""

    turn: Turn
    question: TaggedText
    answer: TaggedText
    problems: list[Problem] = field(default_factory=list)

    @property
    def objects(self) -> list[int]:
        """All objects of the turn, in the order of their first tags."""
        return list(dict.fromkeys([*self.question.objects, *self.answer.objects]))


# ---- descriptions -----------------------------------------------------------------------------------------------


def check_descriptions(
    descriptions: Descriptions, facts: VideoFacts, limits: CheckLimits, wanted: Sequence[int] | None = None
) -> dict[int | None, list[Problem]]:
    """
    The problems of a reply that describes objects, by object; those of entries about unknown objects under 0.

    Args:
        descriptions ([`Descriptions`]): The reply.
        facts ([`VideoFacts`]): The video.
        limits ([`CheckLimits`]): Lengths.
        wanted (sequence of `int`, *optional*): The objects that were asked for; by default all.
    """
    found: dict[int | None, list[Problem]] = {}
    wanted, seen = range(1, facts.num_objects + 1) if wanted is None else wanted, set()
    for index, one in enumerate(descriptions.objects):
        number = object_number(one.object, facts.num_objects)
        if number is None:
            detail = f"{one.object!r} is none of the {facts.num_objects} objects"
            found.setdefault(0, []).append(Problem("tag_unknown", f"objects[{index}].object", detail))
            continue
        at = f"obj{number}"
        if number in seen:
            found.setdefault(number, []).append(Problem("object_twice", at, f"obj{number} was described before"))
        seen.add(number)
        problems = [problem.within(at) for problem in _check_statements(one.statements, number, facts, limits)]
        found.setdefault(number, []).extend(problems)
    for number in wanted:
        if number not in seen:
            found.setdefault(number, []).append(Problem("object_missing", f"obj{number}", "it is not described"))
    return {number: problems for number, problems in found.items() if problems}


def _check_statements(
    statements: Sequence[Statement], number: int, facts: VideoFacts, limits: CheckLimits
) -> Iterator[Problem]:
    if not statements:
        yield Problem("object_missing", "statements", f"obj{number} has no statements")
    repeated = duplicates_within([statement.text for statement in statements])
    for index, statement in enumerate(statements):
        at = f"statements[{index}]"
        for match in TAG.finditer(statement.text):
            where = f"{at}.text[{match.start()}:{match.end()}]"
            yield Problem("tag_unknown", where, f"{match[0]} has no meaning in a description")
        yield from _check_words(statement.text, f"{at}.text", limits.statement)
        yield from _check_leaks(statement.text, f"{at}.text", facts, [number])
        yield from _check_interval(number, statement.first, statement.last, at, facts)
        if index in repeated:
            yield Problem("duplicate", f"{at}.text", f"it repeats statements[{repeated[index]}]")


# ---- dialogues --------------------------------------------------------------------------------------------------


def check_dialogue(
    dialogue: Dialogue, facts: VideoFacts, limits: CheckLimits, corrected: Collection[int] = ()
) -> tuple[list[CheckedTurn], list[Problem]]:
    """Every turn of a dialogue with its problems, and the problems of the dialogue as a whole. `corrected`: indices of
    turns that were written again. If one of them repeats another turn, it is the duplicate, wherever it stands."""
    turns = [check_turn(turn, facts, limits, f"turns[{index}]") for index, turn in enumerate(dialogue.turns)]
    repeated = _repeated_turns(turns, corrected)
    for index, checked in enumerate(turns):
        if checked.turn.turn != index + 1:
            detail = f"the turn has number {checked.turn.turn} in place {index + 1}"
            checked.problems.append(Problem("turn_order", f"turns[{index}].turn", detail))
        if index in repeated:
            detail = f"it repeats turns[{repeated[index]}]"
            checked.problems.append(Problem("duplicate", f"turns[{index}].question", detail))
    least, most = limits.turns_for(facts.num_objects)
    if least <= len(turns) <= most:
        return turns, []
    return turns, [Problem("count", "turns", f"there are {len(turns)} turns, expected {least} to {most}")]


def _repeated_turns(turns: Sequence[CheckedTurn], corrected: Collection[int]) -> dict[int, int]:
    """Index of each turn that repeats another one, and the index of that one. Turns that are right so far come first,
    and corrected ones last among them. Turns whose questions are about other objects do not repeat each other, however
    alike they sound."""

    def rank(index: int) -> tuple[bool, bool]:
        return any(not one.review for one in turns[index].problems), index in corrected

    groups: dict[frozenset[int], list[int]] = {}
    for index in sorted(range(len(turns)), key=rank):
        checked = turns[index]
        groups.setdefault(frozenset(checked.question.objects), []).append(index)
    found = {}
    for indices in groups.values():
        questions = [turns[index].turn.question for index in indices]
        whole = [f"{turns[index].turn.question} {turns[index].turn.answer}" for index in indices]
        for texts in (questions, whole):
            found |= {indices[one]: indices[other] for one, other in duplicates_within(texts).items()}
    return found


def check_turn(turn: Turn, facts: VideoFacts, limits: CheckLimits, at: str) -> CheckedTurn:
    """A turn with all problems that can be seen without the others. `at` is its place in the reply."""
    question = read_question(turn.question, facts.num_objects)
    answer = read_answer(turn.answer, facts.num_objects)
    if turn.phrases and not TAG.search(turn.answer):
        answer = answer_from_spans(turn.answer, turn.phrases, facts.num_objects)
    elif turn.phrases:
        answer.problems.append(Problem("span", "phrases", "the answer has tags as well as phrases"))
    checked = CheckedTurn(turn, question, answer)
    broken = [problem.within("question") for problem in question.problems]
    places = "" if turn.phrases else "answer"
    broken += [problem.within(places) if places else problem for problem in answer.problems]
    problems = broken or [
        *_check_spans(answer, turn.answer if turn.phrases else answer_text(answer)),
        *_check_objects(checked),
        *_check_evidence(checked, facts),
        *_check_counts(answer),
    ]
    for name, text, bounds in (("question", turn.question, limits.question), ("answer", turn.answer, limits.answer)):
        problems += _check_words(text, name, bounds)
        if not broken:
            problems += _check_leaks(text, name, facts, checked.objects)
    checked.problems = [problem.within(at) for problem in problems]
    return checked


def answer_text(answer: TaggedText) -> str:
    """The text of an answer without its tags, as a reader of the record sees it."""
    return "".join(text for text, _ in answer.parts)


def _check_spans(answer: TaggedText, text: str) -> Iterator[Problem]:
    """The spans that the exported record will have, against the text that it will have."""
    end = 0
    for start, stop, phrase, _ in grounded_spans(answer.parts):
        if text[start:stop] != phrase or start < end:
            yield Problem("span", "answer", f"[{start}:{stop}] is {text[start:stop][:60]!r}, not {phrase[:60]!r}")
        end = stop


def _check_objects(checked: CheckedTurn) -> Iterator[Problem]:
    for name, numbers in (("question", checked.question.objects), ("answer", checked.answer.objects)):
        for number in dict.fromkeys(numbers):
            if numbers.count(number) > 1:
                times = numbers.count(number)
                yield Problem("object_twice", name, f"obj{number} is tagged {times} times, expected once")
    if not checked.answer.objects:
        yield Problem("object_missing", "answer", "the answer shows no object: no phrase is tagged")
    named = [object_number(one.object, 9999) for one in checked.turn.evidence]
    for number in checked.objects:
        if number not in named:
            yield Problem("object_missing", "evidence", f"obj{number} is tagged but has no evidence")


def _check_evidence(checked: CheckedTurn, facts: VideoFacts) -> Iterator[Problem]:
    for index, evidence in enumerate(checked.turn.evidence):
        at, number = f"evidence[{index}]", object_number(evidence.object, facts.num_objects)
        if number is None:
            detail = f"{evidence.object!r} is none of the {facts.num_objects} objects"
            yield Problem("tag_unknown", f"{at}.object", detail)
        elif number not in checked.objects:
            yield Problem("object_missing", f"{at}.object", f"obj{number} is tagged neither in question nor answer")
        else:
            yield from _check_interval(number, evidence.first, evidence.last, at, facts)


def _check_interval(number: int, first: int, last: int, at: str, facts: VideoFacts) -> Iterator[Problem]:
    if not 0 <= first <= last < facts.num_frames:
        yield Problem("interval", at, f"frames {first} to {last} of a video with frames 0 to {facts.num_frames - 1}")
    elif not any(first <= frame <= last for frame in facts.visible[number - 1] & set(facts.shown)):
        yield Problem("not_visible", at, f"obj{number} is visible in no shown frame from {first} to {last}")


def _check_counts(answer: TaggedText) -> Iterator[Problem]:
    """Numbers in phrases with several objects, as words or digits. A single object may well be a group: "two people".
    In "the two men and the dog", "the dogs of three men", "two teams" and "the 4 door cars" the number may count
    something else, which a person has to see."""
    for start, stop, phrase, numbers in grounded_spans(answer.parts):
        text = " ".join(phrase.lower().split())
        stated = list(COUNTED.finditer(text))
        if len(numbers) < 2 or not stated:
            continue
        counts_all = DETERMINERS.fullmatch(text, 0, stated[0].start()) is not None
        if len(numbers) in [_number(match[1]) for match in (stated[:1] if counts_all else stated)]:
            continue
        detail = f"[{start}:{stop}] {phrase!r} is tagged with {len(numbers)} objects"
        several = re.search(r"\b(?:and|or|with)\b|[,/&]", text) is not None
        sure = counts_all and not several and COUNTS_OBJECTS.match(text, stated[0].end()) is not None
        yield Problem("count", "answer", detail, review=not sure)


def _number(word: str) -> int:
    return int(word) if word.isdecimal() else COUNT_WORDS[word]


def _check_words(text: str, at: str, bounds: tuple[int, int]) -> Iterator[Problem]:
    # A full stop that a tag leaves alone is no word
    number = sum(any(letter.isalnum() for letter in word) for word in TAG.sub(" ", text).split())
    if not bounds[0] <= number <= bounds[1]:
        yield Problem("length", at, f"{number} words, expected {bounds[0]} to {bounds[1]}")


def _check_leaks(text: str, at: str, facts: VideoFacts, numbers: Sequence[int]) -> Iterator[Problem]:
    for leak in find_leaks(text, facts.colors, facts.expressions_of(numbers)):
        yield Problem("leak", f"{at}[{leak.start}:{leak.end}]", f"{leak.words!r}", review=leak.review)


def evidence_for(numbers: Sequence[int], facts: VideoFacts) -> list[Evidence]:
    """Evidence that spans all frames in which objects are visible, for turns that have no evidence of their own."""
    frames = {number: facts.visible[number - 1] for number in numbers}
    return [Evidence(object=f"obj{number}", first=min(seen), last=max(seen)) for number, seen in frames.items()]
