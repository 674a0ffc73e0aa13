"""The replies that models are asked for: pydantic models, whose JSON schemas are sent with the requests."""

from functools import cache
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


MAX_ITEMS, MAX_CHARACTERS = 200, 4000  # of any list and text: no reply that makes sense reaches them

Text = Annotated[str, Field(max_length=MAX_CHARACTERS)]
ObjectTag = Annotated[str, Field(max_length=40, description="tag of an object of the list without brackets: obj1")]
Frame = Annotated[int, Field(description="number of a frame of the video")]


class _Reply(BaseModel):
    # Strict: "3" is not a number. Unknown fields are an error: a misspelt field would silently be lost
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Statement(_Reply):
    """A statement about an object, with the first and last frame in which it can be seen."""

    text: Text
    first: Frame
    last: Frame


class ObjectDescription(_Reply):
    """All statements about one object."""

    object: ObjectTag
    statements: list[Statement] = Field(max_length=MAX_ITEMS)


class Descriptions(_Reply):
    """A description of each object of the list."""

    objects: list[ObjectDescription] = Field(max_length=MAX_ITEMS)


class Evidence(_Reply):
    """An object of a turn, and the frames that show what the turn says of it."""

    object: ObjectTag
    first: Frame
    last: Frame


class PhraseSpan(_Reply):
    """A phrase of a plain answer, as our HTTP interface gives it: `answer[start:end]`, in Unicode characters."""

    object: ObjectTag
    phrase: Text
    start: int
    end: int


class Turn(_Reply):
    """
    A question and its answer. Usually the answer has tags; a model with grounded output may give a plain answer and
    its `phrases` instead.
    """

    turn: Annotated[int, Field(description="number of the turn, counted from 1")]
    question: Text
    answer: Text
    kind: Annotated[str, Field(max_length=40, description="appearance, action, interaction, position, role or other")]
    evidence: list[Evidence] = Field(max_length=MAX_ITEMS)
    phrases: list[PhraseSpan] = Field(default=[], max_length=MAX_ITEMS)


class Dialogue(_Reply):
    """A conversation about the video."""

    turns: list[Turn] = Field(max_length=MAX_ITEMS)


class Verdict(_Reply):
    """What the frames say about a claim."""

    claim: Annotated[int, Field(description="number of the claim in the list")]
    verdict: Literal["true", "false", "unseen"]


class Verdicts(_Reply):
    """A verdict for each claim of the list."""

    verdicts: list[Verdict] = Field(max_length=MAX_ITEMS)


class BlindAnswer(_Reply):
    """The answer to a question of the list, given without the video."""

    question: Annotated[int, Field(description="number of the question in the list")]
    answer: Text


class BlindAnswers(_Reply):
    """An answer to each question of the list."""

    answers: list[BlindAnswer] = Field(max_length=MAX_ITEMS)


class Judgement(_Reply):
    """Whether an answer says the same as the reference."""

    question: Annotated[int, Field(description="number of the question in the list")]
    same: bool


class Judgements(_Reply):
    """A judgement for each answer of the list."""

    judgements: list[Judgement] = Field(max_length=MAX_ITEMS)


@cache
def json_schema(model: type[BaseModel]) -> dict[str, Any]:
    """
    The JSON schema that is sent to an endpoint. Fields with a default are left out: the strict mode of structured
    output requires every field, and they are accepted without being asked for. Not to be changed by the caller.
    """
    return _required_only(model.model_json_schema())


def _required_only(node: Any) -> Any:
    if isinstance(node, list):
        return [_required_only(item) for item in node]
    if not isinstance(node, dict):
        return node
    node = {key: _required_only(value) for key, value in node.items()}
    if "properties" in node:
        node["properties"] = {name: node["properties"][name] for name in node.get("required", [])}
    used = str({key: value for key, value in node.items() if key != "$defs"})
    if "$defs" in node:
        everything = used + str(node["$defs"])
        node["$defs"] = {name: value for name, value in node["$defs"].items() if f"#/$defs/{name}'" in everything}
    return node
