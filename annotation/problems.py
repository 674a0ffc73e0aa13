"""What a check finds in a reply: a code, a place, and a sentence that the model can act on."""

from dataclasses import dataclass
from typing import NamedTuple


class Code(NamedTuple):
    """
    What a code stands for.

    Attributes:
        meaning (`str`): The rule that was broken, for reports and for the model that is asked to correct its reply.
        exact (`bool`): Whether the check computes the truth. The others ask a model and may be wrong.
    """

    meaning: str
    exact: bool = True


CODES = {
    # the reply as a whole
    "json": Code("the reply must be one JSON object without duplicate keys, NaN or infinity"),
    "schema": Code("the reply must follow the JSON schema"),
    "finish": Code("the reply must be complete, but it was cut at the maximum length"),
    "refusal": Code("the model refused to answer, or the answer was filtered or empty"),
    # tags
    "tag_unknown": Code("tags are <objN> for an object of the list, and <p> and </p> around phrases of answers"),
    "tag_unbalanced": Code("every <p> needs its </p>"),
    "tag_nested": Code("a phrase must not contain another phrase or an object tag"),
    "tag_alone": Code("in answers, an object tag must directly follow a phrase, and a phrase must be followed by one"),
    "phrase_empty": Code("a phrase needs words"),
    "span": Code("text[start:end] must equal the phrase, and phrases must not overlap"),
    # objects
    "object_missing": Code("every object must be covered: described, shown in an answer, named in the evidence"),
    "object_twice": Code("an object must be tagged once in a question and once in an answer"),
    "question_untagged": Code("every question must ask about an object by its tag"),
    "not_visible": Code("the object must be visible in a shown frame of the stated interval"),
    "interval": Code("first and last must be frames of the video, first not after last"),
    "count": Code("the number of turns must lie in the stated range, and number words must equal the tagged objects"),
    # text
    "leak": Code("the text must not mention the drawn marks: numbers, labels, boxes, outlines and their colours"),
    "turn_order": Code("turns must be numbered 1, 2, 3, ... in order, each a question with its answer"),
    "duplicate": Code("a turn must not repeat another one"),
    "length": Code("texts must be neither too short nor too long"),
    # asked of a model
    "false": Code("the verifying model calls the statement false", exact=False),
    "unseen": Code("the verifying model does not see what the statement says", exact=False),
    "blind": Code("the question can be answered without the video", exact=False),
    "relocate": Code("the phrase does not lead a segmentation model to its object", exact=False),
    "palette": Code("the description depends on the drawn colours", exact=False),
}


@dataclass(frozen=True)
class Problem:
    """
    A rule that a reply breaks.

    Args:
        code (`str`): Key of `CODES`.
        at (`str`): Where: `turns[2].answer[10:16]`, `objects[0].statements[1]`; `""` for the reply as a whole.
        detail (`str`): What was found there.
        review (`bool`): Whether a person should decide, because the check can be wrong in this case.
    """

    code: str
    at: str
    detail: str
    review: bool = False

    def __post_init__(self):
        if self.code not in CODES:
            raise ValueError(f"The code {self.code!r} is not one of {', '.join(CODES)}.")

    def to_dict(self) -> dict[str, str]:
        """Code, place and detail as JSON values."""
        return {"code": self.code, "at": self.at, "detail": self.detail}

    def sentence(self) -> str:
        """The problem in words, for the model that is asked to correct its reply."""
        return f"{self.at or 'the reply'}: {self.code}: {self.detail} ({CODES[self.code].meaning})"

    def within(self, at: str) -> "Problem":
        """The same problem, with its place below `at`."""
        joint = "" if not self.at or self.at.startswith("[") else "."
        return Problem(self.code, f"{at}{joint}{self.at}", self.detail, self.review)
