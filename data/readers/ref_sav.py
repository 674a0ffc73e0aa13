"""Ref-SAV: long descriptions of objects in SA-V videos, with a JSON file of masks for each video."""

import re
from collections.abc import Iterator, Mapping

from ..frames import ANNOTATED_STRIDE, safe_path
from ..json_text import parse_json
from ..masks import to_rle
from ..records import DataError, require_field, require_type
from .source_reader import SourceReader, assistant, grounded, text, user
from .streams import stream_object


CAPTIONS = ("long", "short")
NUMBER = re.compile(r"[0-9]{1,9}")


def read_ref_sav(files: Mapping, root, options: Mapping | None = None) -> Iterator[dict]:
    """
    One record for each video, with its objects as turns. Files: annotations, media (folder of SA-V videos and mask
    files). Option `captions`: "long" (one description per object, as in the published training) or "short" (several
    phrases per object).
    """
    reader = SourceReader(files, root, options, "ref_sav", ["annotations", "media"], captions="long")
    if reader.options["captions"] not in CAPTIONS:
        found = reader.options["captions"]
        raise DataError(f"is {found!r}, expected long or short", source=reader.source, field="captions")
    path = reader.path("annotations")
    yield from reader.convert(stream_object(path), lambda name, item: _read_video(reader, name, item), path)


def _read_video(reader: SourceReader, name: str, item: Mapping) -> Iterator[dict]:
    # The paths of the annotations begin with a folder that the published archives do not have
    video, masks = (require_field(item, key, str).partition("/")[2] for key in ("video_path", "anno_path"))
    masklet = _read_masklet(reader, masks)
    objects, messages = {}, []
    for key, description in require_field(item, "objects", dict).items():
        field = f"objects.{key}"
        objects[key] = {"masks": _channel(masklet, key, field)}
        if reader.options["captions"] == "long":
            captions, templates = [require_field(description, "formated", str, at=field)], "segment_described"
        else:
            captions, templates = require_field(description, "short_caps", list, at=field), "segment_video"
        for position, caption in enumerate(captions):
            words = require_type(caption, str, f"{field}.short_caps[{position}]")
            if not words.strip():
                reader.drop("empty expressions")
                continue
            messages.append(user([text(words)], templates=templates))
            messages.append(assistant([grounded("", [key])], templates="segment_answer"))
    if not messages:
        reader.drop("videos without a described object")
        return
    yield {
        "id": f"{reader.source}/{name}",
        "source": reader.source,
        "video": {
            "path": reader.media(video, "video_path"),
            "frames": None,
            "stride": ANNOTATED_STRIDE,
            "num_frames": len(masklet),
        },
        "objects": objects,
        "messages": messages,
        "sampling": {"turns": 5, "replace": True, "unit": "object"},
        "layout": "referring_video",
    }


def _read_masklet(reader: SourceReader, name: str) -> list[list]:
    """The masks of a video: a list for each annotated frame, with a run-length code for each object."""
    path = safe_path(reader.root, reader.media(name, "anno_path"), reader.trusted, "anno_path")
    try:
        masklet = require_field(parse_json(path.read_bytes()), "masklet", list)
        return [require_type(frame, list, f"masklet[{position}]") for position, frame in enumerate(masklet)]
    except FileNotFoundError:
        raise DataError(f"there is no file '{path}'", field="anno_path", missing=[str(path)]) from None
    except DataError as error:
        raise DataError(error.problem, field=f"anno_path.{error.field}", unreadable=[str(path)]) from error
    except OSError as error:
        problem = f"'{path}' cannot be read ({error.strerror})"
        raise DataError(problem, field="anno_path", unreadable=[str(path)]) from error
    except ValueError as error:
        problem = f"'{path}' is truncated or not JSON: it {error}"
        raise DataError(problem, field="anno_path", unreadable=[str(path)]) from error


def _channel(masklet: list[list], key: str, field: str) -> list[dict | None]:
    """The masks of object `key`, its index in the codes of each frame."""
    fewest = min(map(len, masklet), default=0)
    if not NUMBER.fullmatch(key) or int(key) >= fewest:
        raise DataError(f"the mask file lacks object {key!r} in some frame, which has {fewest} objects", field=field)
    try:
        return [to_rle(frame[int(key)]) for frame in masklet]
    except (ValueError, TypeError) as error:
        raise DataError(str(error), field=f"{field}.masklet") from error
