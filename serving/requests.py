"""From a checked request to the engine's question: messages in order, regions in the video, masks of earlier
answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..objects_sama import MaskTrack
from ..regions_sama import MAX_MASK_PIXELS
from .engine import EarlierObject, EarlierTurn, Question
from .errors import ApiError
from .files import StoredFile
from .limits import Limits, option
from .object_notation import object_number
from .schema import (
    AssistantMessage,
    ChatRequest,
    ImagePart,
    MediaSource,
    Message,
    ObjectField,
    ObjectMasks,
    RegionField,
    RegionPart,
    TextPart,
    UserMessage,
    VideoPart,
)


DEFAULT_NEW_TOKENS = 512


class MediaReference(NamedTuple):
    """The video or picture that a conversation is about, and the field that names it."""

    kind: str
    source: MediaSource
    param: str


def find_media(messages: Sequence[Message]) -> MediaReference | None:
    """
    The video or picture of a conversation.

    Raises:
        ApiError: if there are several, or if it is not in the first question.
    """
    found: MediaReference | None = None
    questions = 0
    for index, message in enumerate(messages):
        if not isinstance(message, UserMessage):
            continue
        questions += 1
        for number, part in enumerate(message.content if isinstance(message.content, list) else ()):
            if not isinstance(part, VideoPart | ImagePart):
                continue
            param = f"messages[{index}].content[{number}]"
            if questions > 1:
                raise ApiError(400, f"{param} is a video or picture, which belongs in the first question.", param)
            if found is not None:
                raise ApiError(400, f"{param} is a second video or picture; a conversation is about one.", param)
            source, kind = (part.video_url, "video") if isinstance(part, VideoPart) else (part.image_url, "image")
            found = MediaReference(kind, source, f"{param}.{part.type}")
    return found


@dataclass(frozen=True)
class RequestTurns:
    """
    The turns of a request.

    Attributes:
        system (`str`, *optional*)
        earlier (`tuple[EarlierTurn, ...]`): questions with their answers.
        parts (`tuple`, *optional*): of the last question, if it has no answer yet.
    """

    system: str | None
    earlier: tuple[EarlierTurn, ...]
    parts: tuple | None


class ConversationReader:
    """
    Checks the messages of a request against its video and the limits.

    Args:
        messages (sequence of messages)
        media ([`StoredFile`], *optional*): the video or picture that they are about.
        limits ([`Limits`])
    """

    def __init__(self, messages: Sequence[Message], media: StoredFile | None, limits: Limits):
        self.messages, self.media, self.limits = messages, media, limits
        self.known: set[int] = set()  # objects of the answers so far
        self.num_tracks = 0  # objects with masks; one that is found again may be sent again

    def read(self) -> RequestTurns:
        """The conversation; raises an [`ApiError`] for what does not fit together."""
        self._at_most(len(self.messages), "messages", "The conversation", "messages")
        first, system = 0, None
        if self.messages[0].role in ("system", "developer"):
            first, system = 1, self._text(0)
        earlier, parts = [], None
        for index in range(first, len(self.messages)):
            message, expected = self.messages[index], "user" if (index - first) % 2 == 0 else "assistant"
            if message.role != expected:
                raise ApiError(
                    400,
                    f"messages[{index}].role is {message.role}, but {expected} is expected there: an optional system "
                    "message comes first, then questions and answers in turn.",
                    f"messages[{index}].role",
                )
            if isinstance(message, UserMessage):
                parts = self._question(index, message)
            elif isinstance(message, AssistantMessage):
                earlier.append(EarlierTurn(parts or (), self._text(index), self._objects(index, message)))
                parts = None
        return RequestTurns(system, tuple(earlier), parts)

    def _at_most(self, count: int, limit: str, what: str, param: str) -> None:
        most = vars(self.limits)[limit]
        if count > most:
            unit = limit.replace("_", " ")
            raise ApiError(400, f"{what} has {count:,} {unit}, at most {most:,} ({option(limit)}).", param)

    def _text(self, index: int) -> str:
        content = self.messages[index].content
        text = content if isinstance(content, str) else "".join(p.text for p in content if isinstance(p, TextPart))
        self._at_most(len(text), "text_characters", f"messages[{index}]", f"messages[{index}].content")
        return text

    def _question(self, index: int, message: UserMessage) -> tuple:
        name = f"messages[{index}].content"
        content = (
            [TextPart(type="text", text=message.content)] if isinstance(message.content, str) else message.content
        )
        self._at_most(sum(isinstance(part, RegionPart) for part in content), "regions", f"messages[{index}]", name)
        parts: list[str | dict] = []
        for number, part in enumerate(content):
            if isinstance(part, TextPart):
                before = parts.pop() if parts and isinstance(parts[-1], str) else ""
                parts.append(f"{before}{part.text}")
            elif isinstance(part, RegionPart):
                parts.append(self.region(part.region, f"{name}[{number}].region"))
        self._at_most(sum(len(part) for part in parts if isinstance(part, str)), "text_characters", name, name)
        if not any(isinstance(part, dict) or part.strip() for part in parts):
            raise ApiError(400, f"{name} asks nothing: it has neither text nor a region.", name)
        return tuple(parts)

    def region(self, region: RegionField, param: str) -> dict:
        """A region as the engine takes it."""
        if region.object is not None:
            number = object_number(region.object)
            if number not in self.known:
                raise ApiError(
                    400, f"{param}.object is {region.object}, but no answer before it has this object.", param
                )
            return {"object": number}
        frame, media = region.frame or 0, self.media
        if media is None:
            raise ApiError(400, f"{param} points at something, but the conversation has no video or picture.", param)
        if frame >= media.num_frames:
            raise ApiError(
                400,
                f"{param}.frame is {frame}; the {media.kind} has {media.num_frames} frames, counted from 0.",
                param,
            )
        values: dict = {"frame": frame}
        if region.box is not None:
            values["box"] = region.box
        if region.points is not None:
            self._at_most(len(region.points), "points", param, param)
            values |= {"points": region.points, "labels": region.labels or [1] * len(region.points)}
        if region.scribble is not None:
            self._at_most(len(region.scribble), "scribble_points", param, param)
            values["scribble"] = region.scribble
        if region.mask is not None:
            self._check_size(region.mask.size, f"{param}.mask.size")
            values["mask"] = {"size": region.mask.size, "counts": region.mask.counts}
        return values

    def _check_size(self, size: Sequence[int], param: str) -> None:
        height, width = (self.media.height, self.media.width) if self.media else (0, 0)
        if list(size) != [height, width] or height * width > MAX_MASK_PIXELS:
            raise ApiError(
                400,
                f"{param} is {size[0]} x {size[1]} (height x width), but the frames are {height} x {width}.",
                param,
            )

    def _objects(self, index: int, message: AssistantMessage) -> tuple[EarlierObject, ...]:
        objects, numbers, text = [], set(), self._text(index)
        self._check_tracks(message, f"messages[{index}].objects")
        for number, item in enumerate(message.objects or ()):
            name = f"messages[{index}].objects[{number}]"
            found = self._object(item, text, name)
            if found.number in numbers:
                raise ApiError(400, f"{name}.id is {item.id}, which another object of the message has.", f"{name}.id")
            objects.append(found)
            numbers.add(found.number)
        self.known |= numbers
        return tuple(objects)

    def _check_tracks(self, message: AssistantMessage, param: str) -> None:
        """Refuses more masks than the objects of a conversation have, before anything is made of them."""
        self._at_most(len(message.objects or ()), "objects", "The conversation", param)
        self.num_tracks += sum(item.masks is not None for item in message.objects or ())
        frames = self.media.num_frames if self.media else 1
        most = self.limits.objects * self.limits.video_frames // frames
        if self.num_tracks > most:
            raise ApiError(
                400,
                f"The conversation has masks of {self.num_tracks} objects on {frames} frames; at most {most} are "
                "accepted. Send the masks of each object once.",
                param,
            )

    def _object(self, item: ObjectField, text: str, name: str) -> EarlierObject:
        if item.start is None or item.end is None:
            raise ApiError(400, f"{name} has no start and end, the characters of its phrase in the text.", name)
        start, end = item.start, item.end
        if not start <= end <= len(text):
            raise ApiError(
                400, f"{name} is at characters {start} to {end} of a text of {len(text)} characters.", f"{name}.end"
            )
        if item.phrase not in (None, "", text[start:end]):
            raise ApiError(400, f"{name}.phrase is not what its start and end select of the text.", f"{name}.phrase")
        track = None if item.masks is None else self._track(item.masks, name)
        return EarlierObject(object_number(item.id), text[start:end], (start, end), item.score, track)

    def _track(self, masks: ObjectMasks, name: str) -> MaskTrack:
        if self.media is None:
            raise ApiError(400, f"{name} has masks, but the conversation has no video or picture.", f"{name}.masks")
        size, counts = masks.size, masks.counts
        self._check_size(size, f"{name}.masks.size")
        track = MaskTrack(self.media.num_frames, self.media.height, self.media.width)
        for key, code in counts.items():
            param = f"{name}.masks.counts"
            if int(key) >= len(track):
                raise ApiError(400, f"{param} has a frame {key}; the {self.media.kind} has {len(track)}.", param)
            try:
                track.set_rle(int(key), {"size": size, "counts": code})
            except ValueError as error:
                raise ApiError(400, f"{param} of frame {key}: {error}", param) from None
        return track


def question_of(request: ChatRequest, media: StoredFile | None, path: Path | None, limits: Limits) -> Question:
    """
    The engine's question for a request.

    Args:
        request ([`ChatRequest`])
        media ([`StoredFile`], *optional*): the stored video or picture.
        path (`Path`, *optional*): where it lies.
        limits ([`Limits`])

    Raises:
        ApiError: for messages that do not fit together, or are beyond the limits.
    """
    conversation = ConversationReader(request.messages, media, limits).read()
    if conversation.parts is None:
        raise ApiError(400, "The last of the messages is not a question of the user.", "messages")
    tokens, name = request.max_completion_tokens, "max_completion_tokens"
    if tokens is None:
        tokens, name = request.max_tokens, "max_tokens"
    if tokens is not None and tokens > limits.new_tokens:
        raise ApiError(400, f"{name} is {tokens:,}, at most {limits.new_tokens:,} ({option('new_tokens')}).", name)
    return Question(
        parts=conversation.parts,
        earlier=conversation.earlier,
        source=None if path is None else str(path),
        source_id=None if media is None else media.id,
        kind="video" if media is None else media.kind,
        system=conversation.system,
        masks=request.masks == "rle",
        max_new_tokens=min(DEFAULT_NEW_TOKENS, limits.new_tokens) if tokens is None else tokens,
        temperature=request.temperature or 0.0,
        top_p=1.0 if request.top_p is None else request.top_p,
        seed=request.seed or 0,
    )
