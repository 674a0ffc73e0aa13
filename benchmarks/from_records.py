"""Records, as the training readers give them, to what a benchmark asks."""

from collections.abc import Callable, Mapping, Sequence

from sama.data.masks import decode_rle, encode_rle, filled_box
from sama.data.records import object_masks
from sama.data.wording import MASK_REQUEST, MASK_REQUEST_MARK, TEMPLATES
from sama.objects_sama import MaskTrack
from sama.video_sama import SamaVideo

from .benchmark import Track, Turn


def track_of(masks: Track, video: SamaVideo, box: bool = False) -> MaskTrack:
    """
    An object's masks as a region of a question, at the video's own size.

    Args:
        masks (`Track`): Run-length codes, one a frame; the last frames may lack theirs.
        video ([`SamaVideo`]): What they lie in.
        box (`bool`): Replace each mask by its filled box, as the release shows regions in SAMA-Bench-G.
    """
    track = MaskTrack(len(video), video.height, video.width)
    for frame, code in enumerate(masks):
        if code is not None:
            mask = decode_rle(code, (video.height, video.width), resize=True)
            track[frame] = filled_box(mask) if box else mask
    return track


def fitted(masks: Track, video: SamaVideo) -> Track:
    """The same masks at the video's own size, exactly one entry a frame."""
    size = [video.height, video.width]
    codes = [*masks, *[None] * (len(video) - len(masks))]
    return [
        code if code is None or code["size"] == size else encode_rle(decode_rle(code, size, resize=True))
        for code in codes
    ]


def no_store(store: str, key: str) -> Track:
    """The `lookup` of [`record_turns`] for records that hold their masks themselves."""
    raise KeyError(key)


def question_text(message: Mapping) -> str:
    """
    The words of a user message with `<region>` marks; of a set of templates the first is taken. A preamble stands in
    front, a request for masks, where the record wants one, behind.
    """
    opening, words = (_marked(message.get(name, [])) for name in ("preamble", "content"))
    if "templates" in message:
        words = TEMPLATES[message["templates"]][0].replace("{}", words)
    if message.get("wants_masks", False) and MASK_REQUEST_MARK not in words:
        words = words.strip() + MASK_REQUEST
    return (opening + words).strip()


def _marked(content: Sequence[Mapping]) -> str:
    return "".join("<region>" if part["type"] == "region" else part["text"] for part in content)


def reference_text(message: Mapping) -> str:
    """The words of an answer with its tags: one [SEG] for each grounded phrase, whatever it stands for."""
    words = ""
    for part in message["content"]:
        tagged = f"<p> {part['text']} </p> [SEG]" if part["text"] else "[SEG]"
        words += tagged if part["type"] == "grounded" else part["text"]
    if "templates" in message:
        words = TEMPLATES[message["templates"]][0].replace("{}", words)
    return words.strip()


def record_turns(record: Mapping, video: SamaVideo | None, lookup: Callable, box: bool = False) -> list[Turn]:
    """
    The questions of a record with what is known of their answers; `info` is that of the question with that of the
    answer over it.

    Args:
        record (`dict`): A valid record.
        video ([`SamaVideo`], *optional*): What it shows, opened.
        lookup (`callable`): `lookup(store, key)` gives the masks of an object in a mask file.
        box (`bool`): Show regions as filled boxes.

    A grounded phrase of several objects stands for each of them in turn, with as many [SEG]s.
    """
    turns, tracks = [], {}

    def masks(name: str) -> Track:
        if name not in tracks:
            tracks[name] = fitted(object_masks(record, name, len(video), lookup), video)
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
            Turn(
                text=question_text(message),
                regions=regions,
                reference=None if answer is None else reference_text(_one_by_one(answer)),
                targets=[masks(name) for name in names],
                info={**message.get("info", {}), **(answer or {}).get("info", {})},
            )
        )
    return turns


def _one_by_one(answer: Mapping) -> dict:
    """An answer in which a phrase of several objects is followed by a bare [SEG] for each further one."""
    content = []
    for part in answer["content"]:
        content.append(part)
        for _ in part.get("objects", [])[1:]:
            content += [{"type": "text", "text": " "}, {"type": "grounded", "text": "", "objects": part["objects"]}]
    return {**answer, "content": content}
