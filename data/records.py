"""
The record, which every source is turned into, and the error for wrong data.

A record is a plain dict:

    id, source      names for messages and reports
    video           {"path": file or folder, "frames": [file names] or None, "stride": 1}, optionally "num_frames";
                    or {"toy": settings}
    image           {"path": file}. A record has a video, an image, or neither (text alone). Pictures, also as frames
                    of a video, are used as they are stored; with "upright": True turned as their EXIF data says
    objects         name -> {"masks": [rle or None, ...]}, one entry for each frame (1 for an image);
                    or {"store": name of a mask file, "key": key in it}; or {"union": [names of other objects]}.
                    "short": True allows fewer masks than frames (SA-V); "fit": True also allows masks of another size
                    than the frames, which are resized (SAMA-Bench)
    messages        [{"role": "user" or "assistant", "content": [parts]}]; a part is
                    {"type": "text", "text"}, in user turns {"type": "region", "object"},
                    in answers {"type": "grounded", "text", "objects": [names]}; an empty text gives a bare [SEG].
                    "objects": [] says that the expression of the question fits nothing: the answer has no [SEG] and
                    names no other objects. Its "text" is what was looked for. Without a text part that says so, the
                    whole answer is drawn from wording.py: [`is_no_target`], [`no_target_content`].
                    "templates": name of a set in wording.py whose slot the content fills,
                    "preamble": parts in front of the first question, "wants_masks": the answer has masks and the
                    question does not ask for them, "info": what a benchmark needs to know
    sampling, layout, region_shape, frame_policy    choices of the published training: see PUBLISHED_CHOICES
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial, reduce
from pathlib import Path

import numpy as np

from sama.regions_sama import shortened
from sama.templates_sama import SOURCE_TURN_FORMATS, TURN_FORMATS

from .json_text import MAX_DEPTH, without_surrogates
from .masks import MAX_SIDE, decode_rle, encode_rle, to_rle, union
from .numbers import LARGEST
from .wording import TEMPLATES


RECORD_KEYS = {"id", "source", "video", "image", "objects", "messages"}
# What the published training does with a record of its source. The preset `published` of the renderer follows it.
PUBLISHED_CHOICES = {
    "sampling",  # {"turns": 5, "replace": True, "unit": "turn" or "object"}: how a sample draws from the record
    "layout",  # newlines around the context tokens, by the names of `templates_sama.SOURCE_TURN_FORMATS`
    "region_shape",  # "box": regions become their filled bounding boxes; "mask": they stay as they are
    "frame_policy",  # "segments": a random frame of each of 32 equal segments
}
MESSAGE_KEYS = {"role", "content", "templates", "preamble", "wants_masks", "info"}
PART_KEYS = {"text": {"text"}, "region": {"object", "name"}, "grounded": {"text", "objects"}}
PARTS_OF_ROLE = {"system": ("text",), "user": ("text", "region"), "assistant": ("text", "grounded")}
ALLOWANCES = ("short", "fit")  # keys of an object whose masks need not match the frames
OBJECT_KEYS = {"masks": ALLOWANCES, "store": ("key", *ALLOWANCES), "union": ()}  # beside the key of this name
SAMPLING_UNITS, REGION_SHAPES, POLICIES = ("turn", "object"), ("box", "mask"), ("segments",)
MAX_FRAMES = 2**31 - 1  # stores keep the number of frames in 32 bits
VIDEO_KEYS = {"path", "frames", "stride", "num_frames", "toy", "upright"}
KIND_NAMES = {str: "a string", int: "a whole number", list: "a list", dict: "an object", bool: "true or false"}
REQUIRED = object()


def describe_error(error: BaseException) -> str:
    """An exception in one line, with its kind, for a row of results."""
    return without_surrogates(f"{type(error).__name__}: {' '.join(str(error).split())}")


class DataError(ValueError):
    """
    A mistake in the data. The message is one sentence with the place and the problem.

    Args:
        problem (`str`): What is wrong, without a subject: "is missing".
        source, file, index, field (*optional*): Name of the source, its file, the item in the file, the path of the
            field in the item. Callers add what was not known where the error was raised: [`DataError.with_context`].
        missing (sequence of `str`): If a file or folder is missing, the paths where it was looked for; relative ones
            are relative to the data root.
        unreadable (sequence of `str`): Paths of files that are there and cannot be read, beside the file of the item.
    """

    def __init__(
        self,
        problem: str,
        *,
        source=None,
        file=None,
        index=None,
        field: str | None = None,
        missing: Sequence[str] = (),
        unreadable: Sequence[str] = (),
    ):
        self.problem, self.source, self.file, self.index, self.field = problem, source, file, index, field
        self.missing, self.unreadable = tuple(missing), tuple(unreadable)
        where = [None if source is None else f"{source}", None if file is None else f"{file}"]
        where += [None if index is None else f"item {index}", f"field '{field}'" if field else None]
        named = ", ".join(word for word in where if word is not None)
        super().__init__(f"{named}: {problem}." if named else f"{problem}.")

    def with_context(self, *, source=None, file=None, index=None, field: str | None = None) -> "DataError":
        """A copy with the missing parts of the place filled in; `field` is put in front of the known field."""
        path = ".".join(part for part in (field, self.field) if part)
        return type(self)(
            self.problem,
            source=source if self.source is None else self.source,
            file=file if self.file is None else self.file,
            index=index if self.index is None else self.index,
            field=path,
            missing=self.missing,
            unreadable=self.unreadable,
        )

    def __reduce__(self):
        # Worker processes send errors as pickles; by default they would be rebuilt from the finished sentence
        place = self.source, self.file, self.index, self.field
        return _rebuild_error, (type(self), self.problem, *place, self.missing, self.unreadable)


def _rebuild_error(kind, problem, source, file, index, field, missing, unreadable) -> DataError:
    place = {"source": source, "file": file, "index": index, "field": field}
    return kind(problem, **place, missing=missing, unreadable=unreadable)


def require_field(item: Mapping, key: str, kind: type | tuple[type, ...], default=REQUIRED, at: str = ""):
    """
    A field of an item of an annotation file.

    Args:
        item (`dict`): The item.
        key (`str`): Name of the field.
        kind (`type` or tuple of types): The type it must have. A bool does not count as a number.
        default (*optional*): Returned for a field that is missing or null, which is an error without it.
        at (`str`): Path of `item` in the outermost item, for the message.

    Raises:
        DataError: if `item` is not a mapping, or the field is missing or has another type.
    """
    if not isinstance(item, Mapping):
        raise DataError(f"is {_kind_name(item)} where an object is expected", field=at)
    path = f"{at}.{key}" if at else key
    if item.get(key) is None and default is not REQUIRED:
        return default
    if key not in item:
        raise DataError("is missing", field=path)
    return require_type(item[key], kind, path)


def require_type(value, kind: type | tuple[type, ...], field: str):
    """
    `value` if it has the type `kind`, else [`DataError`]. Numbers must be finite and fit 64 bits, and text must be
    valid Unicode: what comes later writes both to files.
    """
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        expected = " or ".join(KIND_NAMES.get(one, one.__name__) for one in kinds)
        raise DataError(f"is {_kind_name(value)} where {expected} is expected", field=field)
    problem = _scalar_problem(value)
    if problem:
        raise DataError(problem, field=field)
    return value


def _scalar_problem(value) -> str | None:
    """What makes a number or a text unusable; `None` for everything else."""
    if isinstance(value, int | float) and not -LARGEST <= value <= LARGEST:
        return f"is {shortened(value)}, expected a finite number of at most 64 bits"
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            return "contains half of a Unicode character (a surrogate such as \\ud800)"
    return None


@contextmanager
def reading(file, field: str | None = None) -> Iterator[None]:
    """Turns errors of opening and reading a file into [`DataError`]: missing, a folder, a loop of links, no rights."""
    try:
        yield
    except FileNotFoundError:
        raise DataError("there is no such file", file=file, field=field) from None
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror or error})", file=file, field=field) from error


def require_size(item: Mapping, at: str = "") -> tuple[int, int]:
    """`(height, width)` of the image of an item, both at least 1; [`DataError`] otherwise."""
    size = require_field(item, "height", int, at=at), require_field(item, "width", int, at=at)
    for key, length in zip(("height", "width"), size, strict=True):
        if not 1 <= length <= MAX_SIDE:
            raise DataError(f"is {length}, expected 1 to {MAX_SIDE} pixels", field=f"{at}.{key}" if at else key)
    return size


def _kind_name(value) -> str:
    return "null" if value is None else KIND_NAMES.get(type(value), f"a {type(value).__name__}")


def validate_record(record: dict) -> dict:
    """Returns the record, or raises [`DataError`] with the first field that does not follow the description above."""
    unknown = sorted(set(require_type(record, dict, "")) - RECORD_KEYS - PUBLISHED_CHOICES)
    if unknown:
        raise DataError(f"is not part of a record, which has {', '.join(sorted(RECORD_KEYS))}", field=unknown[0])
    require_field(record, "id", str)
    require_field(record, "source", str)
    num_frames = _check_visual(record)
    objects = require_field(record, "objects", dict, default={})
    for name, item in objects.items():
        _check_object(item, objects, num_frames, f"objects.{name}")
    if objects and "video" not in record and "image" not in record:
        raise DataError("needs a video or an image that shows the objects", field="objects")
    messages = require_field(record, "messages", list)
    if not messages:
        raise DataError("is empty", field="messages")
    for position, message in enumerate(messages):
        _check_message(message, objects, f"messages[{position}]")
        if is_no_target(message) and "video" not in record and "image" not in record:
            raise DataError("needs a video or an image in which nothing fits", field=f"messages[{position}].content")
    _check_choices(record)
    _check_writable(record)
    return record


def _check_choices(record: dict) -> None:
    """Checks what the record says of the published training."""
    layouts = (*TURN_FORMATS, *SOURCE_TURN_FORMATS)
    for field, known in (("layout", layouts), ("region_shape", REGION_SHAPES), ("frame_policy", POLICIES)):
        value = require_field(record, field, str, default=None)
        if value is not None and value not in known:
            raise DataError(f"is {shortened(value)}, expected one of {', '.join(known)}", field=field)
    sampling = require_field(record, "sampling", dict, default=None)
    if sampling is not None:
        if require_field(sampling, "turns", int, at="sampling") < 1:
            raise DataError("is smaller than 1", field="sampling.turns")
        require_field(sampling, "replace", bool, default=False, at="sampling")
        unit = require_field(sampling, "unit", str, default="turn", at="sampling")
        if unit not in SAMPLING_UNITS:
            raise DataError(
                f"is {shortened(unit)}, expected one of {', '.join(SAMPLING_UNITS)}", field="sampling.unit"
            )


def _check_writable(record: dict) -> None:
    """Raises [`DataError`] for a value that JSON cannot hold, in parts of the record that have no fixed form."""
    try:
        json.dumps(record, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, TypeError, RecursionError) as error:
        field, problem = next(_unwritable(record, "", 0), ("", f"cannot be written as JSON ({error})"))
        raise DataError(problem, field=field) from error


def _unwritable(value, at: str, depth: int) -> Iterator[tuple[str, str]]:
    """Field and problem of each value that JSON cannot hold."""
    if depth > MAX_DEPTH:
        yield at, f"is nested more than {MAX_DEPTH} levels deep"
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str) or _scalar_problem(key):
                yield at, f"has the key {shortened(key)}, expected text of whole Unicode characters"
            else:
                yield from _unwritable(inner, f"{at}.{key}" if at else key, depth + 1)
    elif isinstance(value, list | tuple):
        for position, inner in enumerate(value):
            yield from _unwritable(inner, f"{at}[{position}]", depth + 1)
    elif value is not None and not isinstance(value, str | int | float):
        yield at, f"is {_kind_name(value)}, which JSON cannot hold"
    elif problem := _scalar_problem(value):
        yield at, problem


def _check_visual(record: dict) -> int | None:
    """Checks video and image. Returns the number of frames, or `None` where the record does not state it."""
    if "video" in record and "image" in record:
        raise DataError("is given in addition to an image; a record has 1 of them", field="video")
    if "image" in record:
        image = require_field(record, "image", dict)
        require_field(image, "path", str, at="image")
        require_field(image, "upright", bool, default=False, at="image")
        return 1
    if "video" not in record:
        return None
    video = require_field(record, "video", dict)
    unknown = sorted(set(video) - VIDEO_KEYS)
    if unknown:
        raise DataError(f"is unknown; a video has {', '.join(sorted(VIDEO_KEYS))}", field=f"video.{unknown[0]}")
    if "toy" in video:
        require_field(video, "toy", dict, at="video")
        return None
    require_field(video, "path", str, at="video")
    require_field(video, "upright", bool, default=False, at="video")
    if require_field(video, "stride", int, default=1, at="video") < 1:
        raise DataError("is smaller than 1", field="video.stride")
    frames = require_field(video, "frames", list, default=None, at="video")
    if frames is None:
        number = require_field(video, "num_frames", int, default=None, at="video")
        if number is not None and not 1 <= number <= MAX_FRAMES:
            raise DataError(f"is {number}, expected 1 to {MAX_FRAMES} frames", field="video.num_frames")
        return number
    if video.get("stride", 1) != 1 or "num_frames" in video:
        raise DataError("is a list, of which all are used: leave out stride and num_frames", field="video.frames")
    for position, frame in enumerate(frames):
        require_type(frame, str, f"video.frames[{position}]")
    if not frames:
        raise DataError("is empty", field="video.frames")
    return len(frames)


def _check_object(item: dict, objects: dict, num_frames: int | None, at: str) -> None:
    forms = [key for key in ("masks", "store", "union") if key in require_type(item, dict, at)]
    if len(forms) != 1:
        raise DataError(f"has {len(forms)} of masks, store and union where exactly 1 is expected", field=at)
    for allowance in ALLOWANCES:
        require_field(item, allowance, bool, default=False, at=at)
    unknown = sorted(set(item) - {forms[0], *OBJECT_KEYS[forms[0]]})
    if unknown:
        raise DataError(f"is unknown in an object with {forms[0]}", field=f"{at}.{unknown[0]}")
    if forms == ["store"]:
        require_field(item, "store", str, at=at)
        require_field(item, "key", str, at=at)
    elif forms == ["union"]:
        names = require_field(item, "union", list, at=at)
        if not names:
            raise DataError("is empty", field=f"{at}.union")
        for position, name in enumerate(names):
            other = objects.get(require_type(name, str, f"{at}.union[{position}]"), {"union": None})
            if "union" in require_type(other, dict, f"objects.{name}"):
                raise DataError(f"names {name!r}, which is not an object with masks of its own", field=f"{at}.union")
    else:
        masks = require_field(item, "masks", list, at=at)
        if num_frames is not None:
            check_length(masks, num_frames, _may_be_short(item), f"{at}.masks")


def _may_be_short(item: Mapping) -> bool:
    return any(item.get(allowance, False) for allowance in ALLOWANCES)


def check_length(masks: list, num_frames: int, short: bool, field: str) -> None:
    """Raises [`DataError`] unless there is one mask for each frame. With `short` masks may be missing at the end."""
    surplus = [position for position in range(num_frames, len(masks)) if masks[position] is not None]
    if surplus or (len(masks) != num_frames and not short):
        raise DataError(f"has {len(masks)} masks for {num_frames} frames", field=field)


def _check_message(message: dict, objects: dict, at: str) -> None:
    role = require_field(message, "role", str, at=at)
    if role not in PARTS_OF_ROLE:
        raise DataError(f"is {role!r}, expected one of {', '.join(PARTS_OF_ROLE)}", field=f"{at}.role")
    unknown = sorted(set(message) - MESSAGE_KEYS)
    if unknown:
        raise DataError(f"is unknown; a message has {', '.join(sorted(MESSAGE_KEYS))}", field=f"{at}.{unknown[0]}")
    templates = require_field(message, "templates", str, default=None, at=at)
    if templates is not None and templates not in TEMPLATES:
        raise DataError(f"is {templates!r}, expected one of {', '.join(TEMPLATES)}", field=f"{at}.templates")
    require_field(message, "wants_masks", bool, default=False, at=at)
    require_field(message, "info", dict, default={}, at=at)
    for name, default in (("preamble", []), ("content", REQUIRED)):
        for position, part in enumerate(require_field(message, name, list, default=default, at=at)):
            _check_part(part, role, objects, f"{at}.{name}[{position}]")
    named = [name for part in message["content"] for name in part.get("objects", [])]
    if named and is_no_target(message):
        problem = f"names {len(named)} objects beside a phrase without any; words without masks are a text part"
        raise DataError(problem, field=f"{at}.content")


def is_no_target(message: Mapping) -> bool:
    """Whether a message of a valid record answers that nothing fits: it has a grounded part without objects."""
    return any(part["type"] == "grounded" and not part["objects"] for part in message["content"])


def no_target_content(content: Sequence[dict]) -> list[dict] | None:
    """The content of an answer that nothing fits as plain text: "I see no ", "cat", ".". `None` if it has no words
    but the phrases: a phrase alone does not say that nothing fits."""
    if not any(part["type"] == "text" and part["text"].strip() for part in content):
        return None
    return [{"type": "text", "text": part["text"]} for part in content]


def _check_part(part: dict, role: str, objects: dict, at: str) -> None:
    kind = require_field(part, "type", str, at=at)
    if kind not in PARTS_OF_ROLE[role]:
        expected = ", ".join(PARTS_OF_ROLE[role])
        raise DataError(f"is {kind!r}; the parts of the role {role!r} are {expected}", field=f"{at}.type")
    unknown = sorted(set(part) - PART_KEYS[kind] - {"type"})
    if unknown:
        raise DataError(f"is unknown in a part of type {kind!r}", field=f"{at}.{unknown[0]}")
    if kind != "region":
        require_field(part, "text", str, at=at)
    if kind == "text":
        return
    field = "object" if kind == "region" else "objects"
    named = [require_field(part, field, str, at=at)] if kind == "region" else require_field(part, field, list, at=at)
    for name in named:
        if require_type(name, str, f"{at}.{field}") not in objects:
            raise DataError(f"names {name!r}, which is not among the {len(objects)} objects", field=f"{at}.{field}")


def object_masks(
    record: dict, name: str, num_frames: int, lookup: Callable[[str, str], list], frames: Sequence[int] | None = None
) -> list[dict | None]:
    """
    The masks of an object of a record: one run-length code, or `None`, for each frame.

    Args:
        record (`dict`): A valid record.
        name (`str`): Name of the object.
        num_frames (`int`): Number of frames of the opened video.
        lookup (`callable`): `lookup(store, key)` returns the masks of an object in a mask file, or raises `KeyError`.
        frames (sequence of `int`, *optional*): Only these frames.

    Raises:
        DataError: if the number of masks is wrong, or the mask file has no such key.
    """
    item, field = record["objects"][name], f"objects.{name}"
    frames = range(num_frames) if frames is None else frames
    with _record_context(record, item.get("store")):
        if "union" in item:
            tracks = [object_masks(record, part, num_frames, lookup, frames) for part in item["union"]]
            return [_with_field(union, entries, field) for entries in zip(*tracks, strict=True)]
        try:
            masks = item["masks"] if "masks" in item else lookup(item["store"], item["key"])
        except KeyError:
            raise DataError(f"there is no mask {item['key']!r} in the mask file", field=field) from None
        check_length(masks, num_frames, _may_be_short(item), f"{field}.masks")
        # Codes are checked when they are decoded
        return [
            _with_field(partial(to_rle, check=False), masks[frame], f"{field}.masks[{frame}]")
            if frame < len(masks)
            else None
            for frame in frames
        ]


def decode_object(
    record: dict,
    name: str,
    size: Sequence[int],
    num_frames: int,
    lookup: Callable[[str, str], list],
    frames: Sequence[int] | None = None,
) -> np.ndarray:
    """
    The masks of an object as a bool array of shape `(num_frames, height, width)`.

    Args:
        record, name, num_frames, lookup, frames: As in [`object_masks`].
        size (`(height, width)`): Size of the frames. Masks of another size are resized if the object allows it with
            "fit", and raise [`DataError`] otherwise.
    """
    if "union" in record["objects"][name]:
        parts = record["objects"][name]["union"]
        return reduce(np.logical_or, (decode_object(record, part, size, num_frames, lookup, frames) for part in parts))
    codes = object_masks(record, name, num_frames, lookup, frames)
    numbers = range(num_frames) if frames is None else frames
    return np.stack([_decode(record, name, size, frame, code) for frame, code in zip(numbers, codes, strict=True)])


def sized_object_masks(
    record: dict, name: str, size: Sequence[int], num_frames: int, lookup: Callable[[str, str], list]
) -> list[dict | None]:
    """The masks of [`object_masks`] at the size of the frames; masks of another size as in [`decode_object`]."""
    if "union" in record["objects"][name]:
        parts = record["objects"][name]["union"]
        tracks = [sized_object_masks(record, part, size, num_frames, lookup) for part in parts]
        return [union(entries) for entries in zip(*tracks, strict=True)]
    codes = object_masks(record, name, num_frames, lookup)
    for frame, code in enumerate(codes):
        if code is not None and tuple(code["size"]) != tuple(size):
            codes[frame] = encode_rle(_decode(record, name, size, frame, code))
    return codes


def _decode(record: dict, name: str, size: Sequence[int], frame: int, code: dict | None) -> np.ndarray:
    item = record["objects"][name]
    resize = item.get("fit", False)
    with _record_context(record, item.get("store")):
        return _with_field(partial(decode_rle, size=size, resize=resize), code, f"objects.{name}.masks[{frame}]")


@contextmanager
def _record_context(record: dict, store: str | None) -> Iterator[None]:
    try:
        yield
    except DataError as error:
        raise error.with_context(source=record["source"], file=store, index=record["id"]) from error


def _with_field(function: Callable, entry, field: str):
    """`function(entry)`, whose errors become a [`DataError`] of this field."""
    try:
        return function(entry)
    except (ValueError, TypeError) as error:
        raise DataError(str(error), field=field) from error


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Number (from 1) and bytes of each line of a text file that is not empty."""
    with reading(path), open(path, "rb") as lines:
        yield from ((number, line) for number, line in enumerate(lines, start=1) if line.strip())
