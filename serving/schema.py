"""
What goes over HTTP, as pydantic models. They check requests and are the documentation at /docs.

The form is that of OpenAI's chat completions, with a content part `region` in questions and a field `objects` in
answers. A field that is not here is refused by its name. A field of OpenAI's API whose meaning the server does not
have is accepted only with the value that asks for nothing, and otherwise refused by its name, never ignored.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError, core_schema

from ..regions_sama import MAX_LINE_POINTS, MAX_POINTS


FILE_ID = r"^file-[0-9a-f]{64}$"
OBJECT_ID = r"^o[1-9][0-9]{0,5}$"  # larger numbers would not be anybody's objects
MAX_FRAME = 10**7
PROMPTS = ("box", "points", "scribble", "mask", "object")

Whole = Annotated[int, Field(ge=0, le=2**31)]
Pixels = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
# Lists are refused at their first wrong value, and beyond lengths that no limit reaches: a hundred thousand errors
# would keep the event loop busy for seconds
Point = Annotated[list[Pixels], Field(fail_fast=True, min_length=2, max_length=2)]
Box = Annotated[list[Pixels], Field(fail_fast=True, min_length=4, max_length=4)]
Points = Annotated[list[Point], Field(fail_fast=True, min_length=1, max_length=MAX_POINTS)]
Labels = Annotated[list[Annotated[int, Field(ge=0, le=1)]], Field(fail_fast=True, max_length=MAX_POINTS)]
Line = Annotated[list[Point], Field(fail_fast=True, min_length=2, max_length=MAX_LINE_POINTS)]
MAX_PARTS = 10_000
MAX_UNKNOWN_FIELDS = 16


class Model(BaseModel):
    """No unknown fields, and no value of another type: "12" is no number."""

    model_config = ConfigDict(extra="forbid", strict=True, ser_json_inf_nan="null")

    @model_validator(mode="before")
    @classmethod
    def check_names(cls, value: Any) -> Any:
        """Refuses many unknown fields at the first of them: pydantic makes an error for each."""
        if isinstance(value, dict) and len(value) > len(cls.model_fields) + MAX_UNKNOWN_FIELDS:
            name = next(name for name in value if name not in cls.model_fields)
            raise PydanticCustomError("unknown_field", "has unknown fields", {"name": name})
        return value


@dataclass(frozen=True)
class Only:
    """For fields of OpenAI's API that the server does not support: the values, beside null, that ask for nothing."""

    values: Sequence = ()

    def __get_pydantic_core_schema__(self, source, handler) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, schema, handler) -> dict:
        return {"enum": [None, *self.values], "description": "accepted with these values only, which change nothing"}

    def check(self, value):
        if value is None or any(type(value) is type(one) and value == one for one in self.values):
            return value
        accepted = " and ".join(map(json.dumps, (None, *self.values)))
        raise ValueError(f"is not supported by this server; it accepts {accepted}")


# ---- what is pointed at


class MaskCode(Model):
    """A mask as COCO run lengths."""

    size: Annotated[list[Annotated[int, Field(ge=1, le=65_535)]], Field(min_length=2, max_length=2)] = Field(
        description="[height, width]"
    )
    counts: Annotated[
        Annotated[str, Tag("compressed")] | Annotated[list[Whole], Field(fail_fast=True), Tag("plain")],
        Discriminator(lambda value: "plain" if isinstance(value, list) else "compressed"),
    ] = Field(description="COCO's compressed text, or the run lengths, column by column, zeros first")


class RegionField(Model):
    """
    Something pointed at: exactly one of `box`, `points`, `scribble`, `mask` and `object`. Coordinates are pixels of
    the video as a player shows it; frames are counted from 0.
    """

    frame: Annotated[int, Field(ge=0, le=MAX_FRAME)] | None = Field(None, description="0 if it is left out")
    box: Box | None = Field(None, description="[x1, y1, x2, y2]")
    points: Points | None = Field(None, description="clicks, [[x, y], ...]")
    labels: Labels | None = Field(
        None, description="one for each of `points`: 1 belongs to the object (the default), 0 does not"
    )
    scribble: Line | None = Field(None, description="a line, [[x, y], ...]")
    mask: MaskCode | None = None
    object: Annotated[str, Field(pattern=OBJECT_ID)] | None = Field(
        None, description="id of an object of an earlier answer; without `frame`"
    )

    @model_validator(mode="after")
    def check(self) -> "RegionField":
        given = [name for name in PROMPTS if vars(self)[name] is not None]
        if len(given) != 1:
            raise ValueError(f"takes exactly one of {', '.join(PROMPTS)}, got {' and '.join(given) or 'none'}")
        if self.labels is not None and (self.points is None or len(self.labels) != len(self.points)):
            count = 0 if self.points is None else len(self.points)
            raise ValueError(f"takes one label for each of its points, got {len(self.labels)} labels, {count} points")
        if self.object is not None and self.frame is not None:
            raise ValueError("takes no frame with an object, which is known on every frame")
        return self


class PointedRegionField(RegionField):
    """A region of one frame: not an object of an answer, which has its masks already."""

    @model_validator(mode="after")
    def check_prompt(self) -> "PointedRegionField":
        if self.object is not None:
            raise ValueError("takes a box, points, a scribble or a mask here, not an object")
        return self


# ---- what is found


_FRAME = re.compile(r"0|[1-9][0-9]{0,6}")


def _checked_counts(value):
    """The masks of an object; raises `ValueError` at the first that is none."""
    for frame, code in value.items() if isinstance(value, dict) else ():
        if not _FRAME.fullmatch(frame):
            raise ValueError(f"has a field '{frame[:20]}', which is no number of a frame")
        if not isinstance(code, str):
            raise ValueError(f"of frame {frame} should be COCO's compressed text")
    return value


class ObjectMasks(Model):
    """The masks of an object. Frames on which it is not visible are left out."""

    size: Annotated[list[Annotated[int, Field(ge=1, le=65_535)]], Field(min_length=2, max_length=2)] = Field(
        description="[height, width]"
    )
    counts: Annotated[dict[str, str], BeforeValidator(_checked_counts)] = Field(
        description="frame number to COCO's compressed run lengths"
    )


FrameRange = Annotated[list[Whole], Field(fail_fast=True, min_length=2, max_length=2)]


class ObjectField(Model):
    """An object of an answer: the phrase that names it, and where it is."""

    id: Annotated[str, Field(pattern=OBJECT_ID)] = Field(
        description="`o` and a number from 1, counted over the conversation; an object that is asked about keeps it, "
        "except with `masks: none`, where nothing shows which one it is"
    )
    phrase: str | None = None
    start: Whole | None = Field(None, description="first character of the phrase in the text")
    end: Whole | None = Field(None, description="the character after its last")
    color: Annotated[str, Field(pattern=r"^#[0-9a-f]{6}$")] | None = None
    score: Annotated[float, Field(ge=0, le=1)] | None = None
    frames: Annotated[list[FrameRange], Field(fail_fast=True)] | None = Field(
        None, description="where it is visible: [first, last] of each run of frames"
    )
    masks: ObjectMasks | None = None


# ---- messages


class TextPart(Model):
    type: Literal["text"]
    text: str


class RegionPart(Model):
    """Stands where the text would say `<region>`."""

    type: Literal["region"]
    region: RegionField


class MediaSource(Model):
    """A video or picture: exactly one of `url` and `file_id`."""

    url: str | None = Field(None, description="a data: URL; http(s) only where the server allows it")
    file_id: Annotated[str, Field(pattern=FILE_ID)] | None = Field(None, description="id of an uploaded file")
    detail: Annotated[Any, Only(["auto"])] = None

    @model_validator(mode="after")
    def check(self) -> "MediaSource":
        if (self.url is None) == (self.file_id is None):
            raise ValueError(f"takes exactly one of url and file_id, got {'none' if self.url is None else 'both'}")
        return self


class VideoPart(Model):
    type: Literal["video_url"]
    video_url: MediaSource


class ImagePart(Model):
    type: Literal["image_url"]
    image_url: MediaSource


UserPart = Annotated[TextPart | RegionPart | VideoPart | ImagePart, Field(discriminator="type")]
_PARTS = Field(fail_fast=True, max_length=MAX_PARTS)
_FORMS = Discriminator(lambda value: "parts" if isinstance(value, list) else "text")
Text = Annotated[str, Tag("text")]
TextOnly = Annotated[Text | Annotated[list[TextPart], _PARTS, Tag("parts")], _FORMS]
UserContent = Annotated[Text | Annotated[list[UserPart], _PARTS, Tag("parts")], _FORMS]


class SystemMessage(Model):
    role: Literal["system", "developer"]
    content: TextOnly
    name: Annotated[Any, Only()] = None


class UserMessage(Model):
    role: Literal["user"]
    content: UserContent
    name: Annotated[Any, Only()] = None


class AssistantMessage(Model):
    """An answer, as it was received; without `objects`, its text alone is history."""

    role: Literal["assistant"]
    content: TextOnly
    objects: Annotated[list[ObjectField], Field(fail_fast=True, max_length=MAX_PARTS)] | None = None
    name: Annotated[Any, Only()] = None
    refusal: Annotated[Any, Only()] = None
    annotations: Annotated[Any, Only([[]])] = None
    audio: Annotated[Any, Only()] = None
    function_call: Annotated[Any, Only()] = None
    tool_calls: Annotated[Any, Only([[]])] = None


Message = Annotated[SystemMessage | UserMessage | AssistantMessage, Field(discriminator="role")]
Messages = Annotated[list[Message], Field(fail_fast=True, min_length=1, max_length=MAX_PARTS)]


# ---- requests


class StreamOptions(Model):
    include_usage: bool | None = Field(None, description="a last chunk without choices that holds the usage")
    include_obfuscation: Annotated[Any, Only([False])] = None


class ChatRequest(Model):
    """A question about a video or picture, with the conversation before it."""

    messages: Messages = Field(
        description="an optional system message, then questions and answers in turn, the new question last; the video "
        "or picture is a part of the first question"
    )
    model: str | None = Field(None, description="the name that /v1/models lists; it may be left out")
    masks: Literal["rle", "none"] = Field("rle", description="whether objects are tracked and their masks sent")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = Field(None, description="tokens of the answer; default: 512")
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = Field(None, description="the newer name of max_tokens")
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = Field(
        None, description="0, the default, takes the likeliest token at each step"
    )
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = Field(
        None, description="the same request with the same seed has the same answer; default: 0"
    )
    user: str | None = Field(None, max_length=512, description="accepted, without an effect")
    safety_identifier: str | None = Field(None, max_length=512, description="accepted, without an effect")
    prompt_cache_key: str | None = Field(None, max_length=512, description="accepted, without an effect")
    n: Annotated[Any, Only([1])] = None
    stop: Annotated[Any, Only([[]])] = None
    frequency_penalty: Annotated[Any, Only([0, 0.0])] = None
    presence_penalty: Annotated[Any, Only([0, 0.0])] = None
    logit_bias: Annotated[Any, Only([{}])] = None
    logprobs: Annotated[Any, Only([False])] = None
    top_logprobs: Annotated[Any, Only([0])] = None
    response_format: Annotated[Any, Only([{"type": "text"}])] = None
    tools: Annotated[Any, Only([[]])] = None
    tool_choice: Annotated[Any, Only(["none", "auto"])] = None
    parallel_tool_calls: Annotated[Any, Only([False, True])] = None
    functions: Annotated[Any, Only([[]])] = None
    function_call: Annotated[Any, Only(["none", "auto"])] = None
    modalities: Annotated[Any, Only([["text"]])] = None
    store: Annotated[Any, Only([False])] = None
    metadata: Annotated[Any, Only([{}])] = None
    service_tier: Annotated[Any, Only(["auto", "default"])] = None
    audio: Annotated[Any, Only()] = None
    moderation: Annotated[Any, Only()] = None
    prediction: Annotated[Any, Only()] = None
    prompt_cache_options: Annotated[Any, Only()] = None
    prompt_cache_retention: Annotated[Any, Only()] = None
    reasoning_effort: Annotated[Any, Only()] = None
    verbosity: Annotated[Any, Only()] = None
    web_search_options: Annotated[Any, Only()] = None

    @model_validator(mode="after")
    def check(self) -> "ChatRequest":
        limits = (self.max_tokens, self.max_completion_tokens)
        if None not in limits and limits[0] != limits[1]:
            raise ValueError(f"max_tokens is {limits[0]} and max_completion_tokens {limits[1]}: give one of them")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options are for streamed answers, but stream is not true")
        return self


class PreviewRequest(Model):
    """A region whose mask is wanted at once."""

    file_id: Annotated[str, Field(pattern=FILE_ID)]
    region: PointedRegionField


class ExportRequest(Model):
    """A conversation to download: messages whose last is an answer."""

    messages: Messages
    format: Literal["mp4", "png", "coco", "json"] = Field(
        description="the video with its masks drawn; a zip of mask pictures; COCO JSON; the conversation as JSON"
    )


# ---- answers


class FileObject(Model):
    """A stored video or picture. Its id is the SHA-256 of its content."""

    id: str
    object: Literal["file"] = "file"
    filename: str
    kind: Literal["video", "image"]
    bytes: int
    width: int
    height: int
    num_frames: int
    fps: float | None
    duration: float | None
    created_at: int
    expires_at: int | None
    warnings: list[str] = Field(description="what is damaged or missing, such as frames that cannot be decoded")


class FileList(Model):
    object: Literal["list"] = "list"
    data: list[FileObject]


class DeletedFile(Model):
    id: str
    object: Literal["file"] = "file"
    deleted: bool


class PreviewMask(Model):
    """The mask of a region on its frame; `area` is in pixels."""

    size: list[int]
    counts: str
    frame: int
    area: int


class AnswerMessage(Model):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None
    objects: list[ObjectField] = []


class Choice(Model):
    index: int = 0
    message: AnswerMessage
    finish_reason: Literal["stop", "length"] = Field(description='"length": cut at max_tokens')
    logprobs: None = None


class PromptDetails(Model):
    cached_tokens: int = Field(description="tokens of the prompt that were known from an earlier request")


class Usage(Model):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class ChatCompletion(Model):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class Delta(Model):
    """What is new: the role, then pieces of the text, then objects without masks, then their masks frame by frame,
    then scores and visible frames."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    objects: list[ObjectField] | None = None
    frame: int | None = Field(
        None, description="the frame that was tracked, whether or not an object is visible on it"
    )


class ChunkChoice(Model):
    index: int = 0
    delta: Delta
    finish_reason: Literal["stop", "length"] | None = None
    logprobs: None = None


class ChatChunk(Model):
    """One event of a streamed answer: `data: {...}`; the last one is `data: [DONE]`."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None


class ModelCard(Model):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str


class ModelList(Model):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class Health(Model):
    status: Literal["ok"]
    model: str


class ErrorDetail(Model):
    message: str = Field(description="one sentence")
    type: str
    param: str | None = Field(description="the field of the request, for instance messages[0].content")
    code: str | None


class ErrorBody(Model):
    """The body of every answer with a status of 400 or more."""

    error: ErrorDetail
