"""All sentence templates of toy world. Slots in braces take text, a region or a grounded phrase."""

import re

import numpy as np


NUMBERS = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight")
YES_NO, ORDER = ("yes", "no"), ("before", "after")
MOTION_QUESTIONS = ("What does {a} do?", "What is {a} doing?", "What happens to {a}?", "How does {a} move?")
REFER_QUESTIONS = (
    "Please segment {look}.", "Can you segment {look}?", "Where is {look}?", "Find {look}.", "Show me {look}.",
)  # fmt: skip
ALL_QUESTIONS = ("Please segment all {look}.", "Where are the {look}?", "Find all {look}.", "Show me all {look}.")

# Kind of question -> templates of the question, templates of the answer. All answers of a kind ground the same
# objects: a random choice there would be impossible to predict. What is seen comes before "yes" or "no": models learn
# to compare words that stand in the text before they learn to compare what they have not said (docs/log.md)
TEMPLATES = {
    "colour": (
        (
            "What color is {a}?", "Which color does {a} have?", "Tell me the color of {a}.", "What colour is {a}?",
            "Which colour does {a} have?",
        ),
        ("{it} is {answer}.",),
    ),
    "shape": (
        ("What shape is {a}?", "Which shape does {a} have?", "Tell me the shape of {a}."),
        ("{it} is {article} {answer}.",),
    ),
    "size": (
        ("How big is {a}?", "Is {a} small, medium or large?", "Tell me the size of {a}."),
        ("{it} is {answer}.",),
    ),
    "identity": (("What is {a}?", "What do you see in {a}?"), ("It is {look}.", "This is {look}.")),
    "identities": (
        ("What are {a} and {b}?", "What is {a} and {b}?", "What do you see in {a} and {b}?"),
        ("This is {look} and this is {other}.",),
    ),
    "motion": (
        MOTION_QUESTIONS,
        ("{name} {answer}.",),
    ),
    "hiding": (MOTION_QUESTIONS, ("{name} hides behind {other}.",)),
    "check_motion": (("Does {a} {motion}?", "Is it true that {a} {moves}?"), ("{name} {truth}, so {answer}.",)),
    "at_start": (
        ("Can {a} be seen at the start?", "Is {a} there from the start?"),
        ("{name} {truth}, so {answer}.",),
    ),
    "at_end": (("Can {a} be seen at the end?", "Is {a} still there at the end?"), ("{name} {truth}, so {answer}.",)),
    # The events come in the order of the answer: in the other order, the answer is not learned (docs/log.md)
    "order": (
        (
            "When {a} {first}, is that before or after {b} {second}?",
            "{a} {first}. Is that before or after {b} {second}?",
        ),
        ("{name} {first} {answer} {other} {second}.",),
    ),
    "hides_behind": (
        ("Does {a} hide behind {b}?", "Is {a} hidden by {b} at some time?"),
        ("{name} {truth}, so {answer}.",),
    ),
    "beside": (
        ("At the start, is {a} to the left or to the right of {b}?", "Is {a} left or right of {b} at the start?"),
        ("{name} is to the {answer} of {other}.",),
    ),
    "above": (
        ("At the start, is {a} above or below {b}?", "Is {a} higher or lower than {b} at the start: above or below?"),
        ("{name} is {answer} {other}.",),
    ),
    "larger": (
        ("Which one is larger, {a} or {b}?", "Of {a} and {b}, which one is larger?"),
        ("The {answer} one, {name}, is larger.",),
    ),
    "mover_colour": (
        (
            "What color is the thing that {motion}?", "One thing {motion}. What color is it?",
            "What colour is the thing that {motion}?",
        ),
        ("{it} is {answer}.",),
    ),
    "mover_shape": (
        ("What shape is the thing that {motion}?", "One thing {motion}. What shape is it?"),
        ("{it} is {article} {answer}.",),
    ),
    "count_all": (
        (
            "How many things are there?", "How many things can be seen in all?", "How many objects are in the video?",
            "How many objects are there?",
        ),
        ("There are {group}.",),
    ),
    "count_look": (
        ("How many {look} are there?", "What is the number of {look}?", "How many {look} can be seen?"),
        ("There are {group}.",),
    ),
    # The things that move come before their number, as what is seen comes before "yes" or "no"
    "count_motion": (
        ("How many things {motion}?", "Count the things that {motion}.", "How many objects {motion}?"),
        ("{group} {verb}, so {answer}.",),
    ),
    "all_look": (ALL_QUESTIONS, ("Here are {group}.",)),
    "none_look": (ALL_QUESTIONS, ("There are {group}.",)),
    "all_motion": (
        ("Which things {motion}?", "What {moves}?", "Please segment all things that {motion}."),
        ("{group} {verb}.",),
    ),
    "refer": (
        REFER_QUESTIONS,
        ("It is {name}.", "Here is {name}.", "Sure, this is {name}."),
    ),
    # A grounded phrase without objects: it says that nothing fits, and has no [SEG]
    "no_target": (
        REFER_QUESTIONS,
        ("There is {none}.", "I see {none}."),
    ),
    "describe": (
        ("Describe {a}.", "Please describe {a} in detail.", "Tell me about {a}.", "What can you say about {a}?"),
        ("{sentences}",),
    ),
    "caption": (
        (
            "Describe what happens, with masks.", "What happens here? Please show every thing.",
            "Describe everything.", "Describe the video.", "What happens in the video?", "What is there?",
            "What can be seen?",
        ),
        ("{sentences}",),
    ),
}  # fmt: skip
# A still image has no start
STILL_CHANGES = {"At the start, is": "Is", " at the start": "", "in the video": "in the picture"}


def wording(kind: str, rng: np.random.Generator, still: bool = False) -> tuple[str, str]:
    """Random templates of the question and of the answer."""
    questions, answers = TEMPLATES[kind]
    question, answer = questions[rng.integers(len(questions))], answers[rng.integers(len(answers))]
    if still:
        for old, new in STILL_CHANGES.items():
            question = question.replace(old, new)
    return question, answer


def fill(template: str, slots: dict) -> list[dict]:
    """
    Fill the slots of a template.

    Args:
        template (`str`): Text with slots in braces.
        slots (`dict`): Slot name to a string, a content part, or a list of both.

    Returns:
        Content parts in the record format. Adjacent texts are joined and the first letter is capitalised.
    """
    parts = []
    for position, piece in enumerate(re.split(r"\{(\w+)\}", template)):
        value = slots[piece] if position % 2 else piece
        for one in value if isinstance(value, list) else [value]:
            if not isinstance(one, str):
                parts.append(dict(one))
            elif one and parts and parts[-1]["type"] == "text":
                parts[-1]["text"] += one
            elif one:
                parts.append({"type": "text", "text": one})
    first = parts[0]
    if first["type"] != "region":
        first["text"] = first["text"][:1].upper() + first["text"][1:]
    return parts


def enumeration(items: list) -> list:
    """Items with a comma or "and" between them."""
    found = []
    for number, item in enumerate(items):
        found += [item] if not number else [" and " if number == len(items) - 1 else ", ", item]
    return found


def plural(noun: str) -> str:
    """The plural of a noun of toy world."""
    return f"{noun}es" if noun.endswith("s") else f"{noun}s"


def plain(parts: list[dict]) -> str:
    """The text of a message, with `<region>` for each region."""
    return "".join("<region>" if part["type"] == "region" else part["text"] for part in parts)
