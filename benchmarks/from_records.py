"""Converts records of the data readers to benchmark turns."""

from collections.abc import Callable, Mapping, Sequence

from sama.data.masks import decode_rle, filled_box
from sama.data.records import DataError, is_no_target, no_target_content, sized_object_masks
from sama.data.wording import MASK_REQUEST, MASK_REQUEST_MARK, NO_TARGET_ANSWERS, TEMPLATES
from sama.objects_sama import MaskTrack
from sama.video_sama import SamaVideo

from .benchmark import BenchmarkTurn, RLETrack


def track_of(masks: RLETrack, video: SamaVideo, box: bool = False) -> MaskTrack:
    """
    The masks of an object as a region of a question.

    Args:
        masks (`RLETrack`): One entry per frame, at the size of the video.
        video ([`SamaVideo`]): The video of the masks.
        box (`bool`): Replace each mask by its filled bounding box, the region prompt of SAMA-Bench-G.
    """
    track = MaskTrack(len(video), video.height, video.width)
    for frame, code in enumerate(masks):
        if code is not None:
            mask = decode_rle(code, (video.height, video.width))
            track[frame] = filled_box(mask) if box else mask
    return track


def masks_on_video(record: Mapping, name: str, video: SamaVideo, lookup: Callable) -> RLETrack:
    """The masks of an object of a record at the size of the video, one entry per frame. As in training, masks of
    another size are resized if the object allows it with "fit"; otherwise they raise `DataError` with both sizes."""
    return sized_object_masks(record, name, (video.height, video.width), len(video), lookup)


def no_store(store: str, key: str) -> RLETrack:
    """The `lookup` of [`record_turns`] for records that contain their masks: a [`DataError`]."""
    raise DataError(f"the masks are in a mask file ({store!r}), which is not read here: write them into the record")


def system_texts(record: Mapping) -> list[str]:
    """The system messages of a record. As in training they come before its questions, wherever they are."""
    return [_marked(message["content"]) for message in record["messages"] if message["role"] == "system"]


def question_text(message: Mapping) -> str:
    """
    The text of a user message, with `<region>` for each region. From a set of templates the first is used. A preamble
    comes before the text, and the request for masks after it if the record asks for masks.
    """
    opening, words = (_marked(message.get(name, [])) for name in ("preamble", "content"))
    if "templates" in message:
        words = TEMPLATES[message["templates"]][0].replace("{}", words)
    if message.get("wants_masks", False) and MASK_REQUEST_MARK not in words:
        words = words.strip() + MASK_REQUEST
    return (opening + words).strip()


def _marked(content: Sequence[Mapping]) -> str:
    return "".join("<region>" if part["type"] == "region" else part["text"] for part in content)


def reference_text(message: Mapping, visual: str = "video") -> str:
    """The text of an answer with tags: one [SEG] per grounded phrase. An answer that nothing fits has no tags; if it
    has no words of its own, it is the first sentence for this kind of visual, "image" or "video"."""
    content, words = message["content"], ""
    if is_no_target(message):
        content = no_target_content(content)
        if content is None:
            return NO_TARGET_ANSWERS[visual][0]
    for part in content:
        tagged = f"<p> {part['text']} </p> [SEG]" if part["text"] else "[SEG]"
        words += tagged if part["type"] == "grounded" else part["text"]
    if "templates" in message:
        words = TEMPLATES[message["templates"]][0].replace("{}", words)
    return words.strip()


def record_turns(record: Mapping, video: SamaVideo | None, lookup: Callable, box: bool = False) -> list[BenchmarkTurn]:
    """
    The turns of a record with their reference answers. `info` merges that of the question and that of the answer; the
    answer wins.

    Args:
        record (`dict`): A valid record.
        video ([`SamaVideo`], *optional*): The video of the record.
        lookup (`callable`): `lookup(store, key)` returns the masks of an object in a mask file.
        box (`bool`): Use filled bounding boxes as regions.

    A grounded phrase with several objects gets one [SEG] and one target per object.

    Raises:
        DataError: for masks that are missing or do not fit the video.
    """
    turns, tracks, visual = [], {}, "image" if "image" in record else "video"

    def masks(name: str) -> RLETrack:
        if name not in tracks:
            tracks[name] = masks_on_video(record, name, video, lookup)
        return tracks[name]

    messages: Sequence[Mapping] = [message for message in record["messages"] if message["role"] != "system"]
    for position, message in enumerate(messages):
        if message["role"] != "user":
            continue
        answer = messages[position + 1] if position + 1 < len(messages) else None
        answer = answer if answer is not None and answer["role"] == "assistant" else None
        parts = [*message.get("preamble", []), *message["content"]]
        regions = [track_of(masks(part["object"]), video, box) for part in parts if "object" in part]
        names = [name for part in (answer or {"content": []})["content"] for name in part.get("objects", [])]
        turns.append(
            BenchmarkTurn(
                text=question_text(message),
                regions=regions,
                reference=None if answer is None else reference_text(_one_by_one(answer), visual),
                targets=[masks(name) for name in names],
                info={**message.get("info", {}), **(answer or {}).get("info", {})},
                no_target=answer is not None and is_no_target(answer),
            )
        )
    return turns


def _one_by_one(answer: Mapping) -> dict:
    """An answer in which a phrase with several objects is followed by a bare [SEG] for each further object."""
    content = []
    for part in answer["content"]:
        content.append(part)
        for _ in part.get("objects", [])[1:]:
            content += [{"type": "text", "text": " "}, {"type": "grounded", "text": "", "objects": part["objects"]}]
    return {**answer, "content": content}
