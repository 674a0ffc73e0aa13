"""Files to download: the video with the masks drawn in, the masks as pictures or as COCO JSON, and the conversation.

Everything is written frame by frame, gets its name when it is complete, and has the same bytes for the same content.
docs/uploads.md describes the formats.
"""

import json
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from pycocotools import mask as coco

from ..data.files import atomic_path
from ..data.masks import to_rle
from ..overlay_sama import Color, VideoWriter
from .answer_files import draw_objects
from .limits import Limits, option
from .media import TOO_LARGE, FileRefused, png_bytes
from .object_notation import hex_color, object_id


FORMATS = ("mp4", "png", "coco", "json")
MIN_DIGITS = 5  # of a frame's number in a file name
ZIP_TIME = (1980, 1, 1, 0, 0, 0)  # the earliest that ZIP knows
CONVERSATION, VERSION = "sama-conversation", 1


@dataclass(frozen=True, eq=False)
class ExportObject:
    """
    An object of a conversation.

    Attributes:
        number (`int`): Counted from 1; its id is `o1`.
        phrase (`str`): What names it; may be empty.
        color (RGB triple): In which it is drawn.
        track ([`MaskTrack`]): Its masks.
    """

    number: int
    phrase: str
    color: Color
    track: Any


class Export(NamedTuple):
    """A file to download: where it lies, under which name it is offered (letters, digits and `._-`), and its type."""

    path: Path
    filename: str
    media_type: str


@dataclass(frozen=True)
class _Content:
    """What is exported."""

    video: Any
    objects: tuple[ExportObject, ...]
    messages: Sequence[Mapping]
    max_bytes: int
    progress: Callable[[Sequence[int]], Iterable[int]]

    def frames(self) -> Iterator[int]:
        yield from self.progress(range(len(self.video)))

    def check_size(self, size: int) -> None:
        if size > self.max_bytes:
            raise FileRefused(
                f"The export has more than {self.max_bytes:,} bytes ({option('export_bytes')}).", TOO_LARGE
            )


def export(
    folder: Path,
    format: str,
    video: Any,
    objects: Sequence[ExportObject],
    messages: Sequence[Mapping] = (),
    name: str = "conversation",
    max_bytes: int = Limits.export_bytes,
    progress: Callable[[Sequence[int]], Iterable[int]] = iter,
) -> Export:
    """
    Writes one file of a conversation into a folder.

    Args:
        folder (`Path`): Exists; the file is named by its format.
        format (`str`): "mp4": the video with the masks drawn in, of a picture a PNG. "png": the masks as a ZIP of PNG
            files. "coco": the masks as COCO JSON. "json": the messages.
        video ([`SamaVideo`]): What the conversation is about.
        objects (sequence of [`ExportObject`]): With different numbers.
        messages (sequence of mappings): As a request holds them; only for "json".
        name (`str`, *optional*): What the name of the download begins with.
        max_bytes (`int`, *optional*): Of the file.
        progress (`Callable`, *optional*): Wraps the frame indices, as `tqdm` does; what it raises ends the export.

    Raises:
        FileRefused: if the file would be too large (413).
        ValueError: for another format, a number that occurs twice, or a track that does not fit the video.
    """
    if format not in FORMATS:
        raise ValueError(f"The format of an export is one of {', '.join(FORMATS)}, got {format!r}.")
    content = _Content(video, tuple(sorted(objects, key=lambda one: one.number)), messages, max_bytes, progress)
    _check(content)
    stem = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._-")[:60] or "conversation"
    if format == "mp4" and video.is_image:
        return Export(_write_picture(folder / "overlay.png", content), f"{stem}_masks.png", "image/png")
    if format == "mp4":
        return Export(_write_overlay(folder / "overlay.mp4", content), f"{stem}_masks.mp4", "video/mp4")
    if format == "png":
        return Export(_write_zip(folder / "masks.zip", content), f"{stem}_masks.zip", "application/zip")
    if format == "coco":
        pieces = _coco(content, stem)
        return Export(_write_text(folder / "coco.json", pieces, content), f"{stem}_coco.json", "application/json")
    pieces = json.JSONEncoder(ensure_ascii=False, allow_nan=False, indent=1).iterencode(_conversation(content))
    return Export(_write_text(folder / "conversation.json", pieces, content), f"{stem}.json", "application/json")


def _check(content: _Content) -> None:
    numbers = [one.number for one in content.objects]
    twice = next((number for number in numbers if numbers.count(number) > 1), None)
    if twice is not None:
        raise ValueError(f"Object {twice} occurs {numbers.count(twice)} times; each number is that of one object.")
    video = content.video
    expected = (len(video), video.height, video.width)
    for one in content.objects:
        found = (len(one.track), one.track.height, one.track.width)
        if found != expected:
            raise ValueError(
                f"The masks of object {one.number} are (frames, height, width) = {found}, but the video is {expected}."
            )


# ---- pictures -------------------------------------------------------------------------------------------------------


def _drawn(content: _Content, index: int) -> np.ndarray:
    tracks = {one.number: one.track for one in content.objects}
    colors = {one.number: one.color for one in content.objects}
    return draw_objects(content.video, index, tracks, colors)


def _write_picture(path: Path, content: _Content) -> Path:
    with atomic_path(path) as temporary:
        Image.fromarray(_drawn(content, 0)).save(temporary)
        content.check_size(temporary.stat().st_size)
    return path


def _write_overlay(path: Path, content: _Content) -> Path:
    with atomic_path(path) as temporary:
        with VideoWriter(temporary, content.video.fps, content.video) as writer:
            for index in content.frames():
                writer.write(_drawn(content, index))
                if writer.temporary.exists():  # from the first packet on, which the encoder holds back
                    content.check_size(writer.temporary.stat().st_size)
        content.check_size(temporary.stat().st_size)
    return path


def _write_zip(path: Path, content: _Content) -> Path:
    """A PNG file for each object and each frame on which it is visible: 255 is the object, 0 is not."""
    digits = max(MIN_DIGITS, len(str(len(content.video) - 1)))
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        with zipfile.ZipFile(file, "w") as archive:
            text = json.dumps(_description(content), ensure_ascii=False, indent=1)
            archive.writestr(_zip_entry("objects.json"), _encoded(text))
            for index in content.frames():
                for one in content.objects:
                    if one.track.area(index):
                        pixels = one.track[index].astype(np.uint8) * 255
                        name = f"{object_id(one.number)}/{index:0{digits}d}.png"
                        archive.writestr(_zip_entry(name), png_bytes(pixels))
                        content.check_size(file.tell())
        content.check_size(file.tell())
    return path


def _zip_entry(name: str) -> zipfile.ZipInfo:
    """An entry without what differs from one run and one system to the next."""
    entry = zipfile.ZipInfo(name, ZIP_TIME)
    entry.create_system, entry.external_attr = 3, 0o644 << 16
    return entry


def _description(content: _Content) -> dict:
    video = content.video
    objects = [
        {
            "id": object_id(one.number),
            "phrase": one.phrase,
            "color": hex_color(one.color),
            "frames": frame_ranges(one.track.visible_frames()),
        }
        for one in content.objects
    ]
    size = {"num_frames": len(video), "height": video.height, "width": video.width, "fps": float(video.fps)}
    return {**size, "objects": objects}


def frame_ranges(frames: Sequence[int]) -> list[list[int]]:
    """Ascending frames as `[first, last]` of each stretch."""
    ranges: list[list[int]] = []
    for frame in frames:
        if ranges and frame == ranges[-1][1] + 1:
            ranges[-1][1] = frame
        else:
            ranges.append([frame, frame])
    return ranges


# ---- JSON -----------------------------------------------------------------------------------------------------------


def _write_text(path: Path, pieces: Iterable[str], content: _Content) -> Path:
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        for piece in pieces:
            file.write(_encoded(piece))
            content.check_size(file.tell())
        file.write(b"\n")
    return path


def _encoded(text: str) -> bytes:
    """JSON as UTF-8. Half of a surrogate pair, which cannot be encoded in UTF-8, becomes JSON's escape for it."""
    return text.encode("utf-8", "backslashreplace")


def _conversation(content: _Content) -> dict:
    return {"format": CONVERSATION, "version": VERSION, "messages": list(content.messages)}


def _coco(content: _Content, name: str) -> Iterator[str]:
    """COCO JSON, piece by piece: an image a frame, a category a phrase, and the object's number in each annotation."""
    video, digits = content.video, max(MIN_DIGITS, len(str(len(content.video) - 1)))
    phrases = list(dict.fromkeys(one.phrase or f"object {one.number}" for one in content.objects))
    categories = [{"id": number, "name": phrase, "supercategory": ""} for number, phrase in enumerate(phrases, 1)]
    yield '{"info": ' + _json({"description": name, "fps": float(video.fps)})
    yield ',\n"categories": ' + _json(categories)
    yield ',\n"images": ['
    for index in range(len(video)):
        image = {"id": index + 1, "file_name": f"{index:0{digits}d}.png", "frame_index": index}
        yield (",\n" if index else "\n") + _json(image | {"width": video.width, "height": video.height})
    yield '],\n"annotations": ['
    yield from _annotations(content, phrases)
    yield "]}"


def _annotations(content: _Content, phrases: list[str]) -> Iterator[str]:
    number = 0
    for index in content.frames():
        for one in content.objects:
            area = one.track.area(index)
            if area == 0:
                continue
            number += 1
            code: Any = to_rle(one.track.to_rle(index))
            category = phrases.index(one.phrase or f"object {one.number}") + 1
            annotation = {"id": number, "image_id": index + 1, "category_id": category, "track_id": one.number}
            shape = {"segmentation": code, "area": area, "bbox": coco.toBbox(code).tolist(), "iscrowd": 0}
            yield (",\n" if number > 1 else "\n") + _json(annotation | shape)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
