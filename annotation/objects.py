"""Stage 1: the objects of each video, from mask files in every form that this repository reads."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, cast

import numpy as np

from ..data.catalogue import open_source, read_catalogue
from ..data.frames import MEDIA_ERRORS, VIDEO_SUFFIXES, join_inside, trusted_folders, visual_key
from ..data.json_text import parse_json
from ..data.masks import encode_rle, to_rle
from ..data.readers import read_mask_store
from ..data.readers.json_lines import without_nulls
from ..data.records import DataError, object_masks, read_lines, require_field, require_type, validate_record
from ..pictures_sama import opened_picture, pictures_in_folder
from ..video_sama import SamaVideo
from .errors import AnnotationError
from .scenes import BrokenScene, Scene, SceneObject, area


INFO_FIELDS = {"dataset", "url", "licence", "mask_licence", "mask_origin", "split"}
VOID = 255  # in PNG masks of 8 bits, as DAVIS has it: neither an object nor background
# A record has messages; what annotation is given usually has none yet
NO_MESSAGES = [{"role": "user", "content": []}]


def read_scenes(videos: Path, masks: Path, source: str) -> Iterator[Scene | BrokenScene]:
    """
    The videos of a folder with the objects of a mask file.

    Args:
        videos (`Path`): Folder of the videos: files, or folders of frames.
        masks (`Path`): One of

            - JSON Lines of records. Messages are optional; `expressions` (object name -> list of texts) and `info`
              (`dataset`, `url`, `licence`, `mask_licence`, `mask_origin`, `split`) are allowed in addition.
            - a mask file, JSON or pickle, with the keys `video/object`.
            - a folder with a folder of PNG files for each video, whose values are the numbers of the objects.
        source (`str`): Name of the data set in records.

    Returns:
        `Iterator`: [`Scene`], or [`BrokenScene`] for a video or a line that cannot be read.

    Raises:
        DataError: if the folder does not exist; while it is read, if the mask file as a whole cannot be read.
    """
    if not videos.is_dir():
        raise DataError("there is no such folder", file=videos)
    if masks.is_dir():
        return _png_scenes(videos, masks, source)
    if masks.suffix == ".jsonl":
        return _record_scenes(videos, masks, source)
    return _store_scenes(videos, masks, source)


def read_source(catalogue: Path, name: str, root: Path | None) -> Iterator[Scene | BrokenScene]:
    """The videos of a source of a catalogue with all objects of their records, and its expressions about them. A video
    that cannot be read is a [`BrokenScene`]."""
    entries = read_catalogue(catalogue)
    if name not in entries:
        known = ", ".join(entries)
        raise AnnotationError(f"The catalogue {catalogue} has no source {name!r}, expected one of {known}.")
    source: Any = open_source(entries[name], root)
    by_video: dict[str | None, list[dict]] = {}
    for index in range(len(source)):
        record = source.record(index)
        if "video" in record and "toy" not in record["video"]:
            by_video.setdefault(visual_key(record), []).append(record)
    for records in by_video.values():
        yield _attempt(lambda records=records: _source_scene(source, name, records), records[0]["video"]["path"])


def trusted_by_source(catalogue: Path, name: str, root: Path | None) -> tuple[Path, ...]:
    """The folders that a source of a catalogue trusts: its videos may be links to other disks."""
    entry = read_catalogue(catalogue)[name]
    return () if root is None else trusted_folders(root, entry.files, entry.links)


def _source_scene(source: Any, name: str, records: list[dict]) -> Scene:
    video, objects = source.visual(records[0]), {}
    for record in records:
        for one in _record_objects(record, video, source.lookup, _told(record)):
            # Some sources name the object of each expression alike
            names = (one.name if number == 1 else f"{one.name} ({number})" for number in count(1))
            free = next(new for new in names if new not in objects or objects[new].masks == one.masks)
            earlier = objects.get(free, one)
            expressions = tuple(dict.fromkeys((*earlier.expressions, *one.expressions)))
            objects[free] = SceneObject(free, one.masks, expressions)
    visual = records[0]["video"]
    trusted = tuple(map(str, source.trusted))
    return Scene(visual["path"], name, visual, tuple(objects.values()), source.root, {"dataset": name}, trusted)


# ---- JSON Lines -------------------------------------------------------------------------------------------------


def _record_scenes(videos: Path, path: Path, source: str) -> Iterator[Scene | BrokenScene]:
    seen: dict[str | None, int] = {}
    for number, line in read_lines(path):

        def read(line: bytes = line, number: int = number) -> Scene:
            try:
                scene = _record_scene(line, videos, source, number)
                first = seen.setdefault(visual_key({"video": scene.visual}), number)
                if first != number:
                    problem = f"is that of line {first}, too: put all objects of a video into one line"
                    raise DataError(problem, field="video")
                return scene
            except DataError as error:
                raise error.with_context(file=path, index=f"line {number}") from error

        yield _attempt(read, f"{source}/line {number}")


def _attempt(read: Callable[[], Scene], name: str) -> Scene | BrokenScene:
    try:
        return read()
    except MEDIA_ERRORS as error:
        return BrokenScene(name, error)


def _record_scene(line: bytes, videos: Path, source: str, number: int) -> Scene:
    try:
        item = cast(dict[str, Any], require_type(parse_json(line), dict, ""))
    except ValueError as error:
        raise error if isinstance(error, DataError) else DataError(str(error)) from error
    item = without_nulls(item)  # as the reader of records does; it leaves `info` as it is, whose form is fixed here
    expressions = cast(dict[str, Any], require_field(item, "expressions", dict, default={}))
    info = without_nulls(cast(dict[str, Any], require_field(item, "info", dict, default={})))
    unknown = sorted(set(info) - INFO_FIELDS)
    if unknown:
        raise DataError(f"is unknown, expected {', '.join(sorted(INFO_FIELDS))}", field=f"info.{unknown[0]}")
    for key in info:
        require_field(info, key, str, at="info")
    rest = {key: value for key, value in item.items() if key not in ("expressions", "info")}
    defaults = {"id": f"{source}/line {number}", "source": source, "messages": NO_MESSAGES}
    record = validate_record({**defaults, **rest})
    if "video" not in record or "toy" in record["video"]:
        raise DataError("is missing: only videos of files are annotated", field="video")
    told = {name: [*_told(record).get(name, ())] for name in record.get("objects", {})}
    for name, texts in expressions.items():
        for position, text in enumerate(cast(list, require_field(expressions, name, list, at="expressions"))):
            require_type(text, str, f"expressions.{name}[{position}]")
        if name not in told:
            raise DataError(f"names {name!r}, which is not among the objects", field="expressions")
        told[name] += texts
    scene = Scene(record["id"], record["source"], record["video"], (), videos, info)
    video = scene.open()
    scene = replace(scene, visual=_with_listed_frames(scene))
    return _with_objects(scene, list(_record_objects(record, video, _no_store, told)))


def _with_listed_frames(scene: Scene) -> dict:
    """The video of a record; where it is a folder of frames that the record does not list, with their names."""
    folder, visual = scene.root / scene.visual["path"], scene.visual
    if visual.get("frames") is not None or not folder.is_dir():
        return visual
    names = [Path(path).name for path in pictures_in_folder(str(folder))[0]]
    listed = names[:: visual.get("stride", 1)][: visual.get("num_frames")]
    return {name: value for name, value in visual.items() if name not in ("stride", "num_frames")} | {"frames": listed}


def _record_objects(
    record: dict, video: SamaVideo, lookup, told: Mapping[str, Iterable[str]]
) -> Iterator[SceneObject]:
    for name, item in record.get("objects", {}).items():
        if "union" not in item:  # a group has no identity of its own
            masks = object_masks(record, name, len(video), lookup)
            masks = [_checked(code, f"objects.{name}.masks[{frame}]", video) for frame, code in enumerate(masks)]
            yield SceneObject(name, tuple(masks), tuple(told.get(name, ())))


def _checked(code: dict | None, field: str, video: SamaVideo) -> dict | None:
    """A code of the size of its video; `None` for an empty one, which many tools write where nothing is visible."""
    try:
        found = to_rle(code)
    except ValueError as error:
        raise DataError(str(error), field=field) from error
    if found is not None and tuple(found["size"]) != (video.height, video.width):
        shown = " x ".join(map(str, found["size"]))
        raise DataError(f"is {shown}, its video {video.height} x {video.width} (height x width)", field=field)
    return found if found is not None and area(found) else None


def _no_store(store: str, key: str) -> list:
    raise KeyError(key)


def _told(record: dict) -> dict[str, list[str]]:
    """Object name to the referring expressions about it alone."""
    found: dict[str, list[str]] = {}
    for question, answer in zip(record["messages"], record["messages"][1:], strict=False):
        names = [name for part in answer["content"] for name in part.get("objects", [])]
        if str(question.get("templates", "")).startswith("segment") and len(names) == 1:
            text = "".join(part.get("text", "") for part in question["content"]).strip()
            found.setdefault(names[0], []).append(text)
    return found


def _with_objects(scene: Scene, objects: list[SceneObject]) -> Scene:
    if not objects:
        raise DataError("is empty: there is nothing to annotate; --propose finds objects", field="objects")
    return Scene(scene.id, scene.source, scene.visual, tuple(objects), scene.root, scene.info)


# ---- mask files and folders of pictures -------------------------------------------------------------------------


def _store_scenes(videos: Path, path: Path, source: str) -> Iterator[Scene | BrokenScene]:
    by_video: dict[str, list[SceneObject]] = {}
    for key, masks in read_mask_store(path):
        video, slash, name = key.rpartition("/")
        if not slash or not video or not name:
            raise DataError(f"the key {key!r} is not video/object; name other files in a catalogue", file=path)
        by_video.setdefault(video, []).append(SceneObject(name, tuple(masks)))
    for name, objects in by_video.items():
        yield _attempt(
            lambda name=name, objects=objects: _store_scene(videos, path, name, objects, source), f"{source}/{name}"
        )


def _store_scene(videos: Path, path: Path, name: str, objects: list[SceneObject], source: str) -> Scene:
    scene, checked = video_scene(videos, name, source), []
    video = scene.open()
    for one in objects:
        if len(one.masks) != len(video):
            problem = f"has {len(one.masks)} masks for {len(video)} frames"
            raise DataError(problem, file=path, index=f"{name}/{one.name}")
        codes = (_checked(code, f"{name}/{one.name}[{i}]", video) for i, code in enumerate(one.masks))
        checked.append(SceneObject(one.name, tuple(codes)))
    return _with_objects(scene, checked)


def _png_scenes(videos: Path, masks: Path, source: str) -> Iterator[Scene | BrokenScene]:
    folders = sorted(path for path in masks.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders:
        raise DataError("contains no folder of PNG masks", file=masks)
    for folder in folders:
        yield _attempt(lambda folder=folder: _png_scene(videos, folder, source), f"{source}/{folder.name}")


def _png_scene(videos: Path, folder: Path, source: str) -> Scene:
    scene = video_scene(videos, folder.name, source)
    video = scene.open()
    tracks: dict[int, list[dict | None]] = {}
    has_void = False
    for file, frame in _frame_numbers(folder, scene, len(video)).items():
        values = _read_png(file, (video.height, video.width))
        void = VOID if values.dtype == np.uint8 else 0
        for value in np.unique(values[(values != 0) & (values != void)]).tolist():
            tracks.setdefault(value, [None] * len(video))[frame] = encode_rle(values == value)
        has_void = has_void or bool(void and (values == void).any())
    if has_void and not tracks:
        problem = f"has no value but {VOID}, which is void and no object: number the objects from 1 in its masks"
        raise DataError(problem, file=folder)
    return _with_objects(scene, [SceneObject(str(value), tuple(track)) for value, track in sorted(tracks.items())])


def _frame_numbers(folder: Path, scene: Scene, num_frames: int) -> dict[Path, int]:
    """The frame that each PNG file belongs to: by its name among the frames of a folder, else by its number."""
    video = scene.root / scene.visual["path"]
    names = [Path(name).stem for name in scene.visual.get("frames") or []]
    found = {}
    for file in sorted(folder.glob("[!.]*.png")):
        if names:
            frame = names.index(file.stem) if file.stem in names else -1
        else:
            frame = int(file.stem) if file.stem.isdecimal() else -1
        if not 0 <= frame < num_frames:
            raise DataError(f"belongs to no frame of '{video}', which has {num_frames}", file=file)
        found[file] = frame
    return found


def _read_png(path: Path, size: tuple[int, int]) -> np.ndarray:
    try:
        with opened_picture(str(path)) as image:
            if image.mode not in ("P", "L", "I", "I;16", "1"):
                raise DataError(f"has the mode {image.mode}, expected the numbers of objects (P or L)", file=path)
            values = np.asarray(image)
            if values.dtype == bool:
                values = values.astype(np.uint8)
    except MEDIA_ERRORS as error:
        raise error if isinstance(error, DataError) else DataError(f"cannot be read ({error})", file=path) from error
    if values.shape != size:
        shown = " x ".join(map(str, values.shape))
        raise DataError(f"is {shown}, its video {size[0]} x {size[1]} (height x width)", file=path)
    return values


def video_scene(videos: Path, name: str, source: str) -> Scene:
    """A video of a folder without objects: `name` with a suffix, or a folder of frames. Hidden files do not count."""
    join_inside(".", name)  # raises for a name that leaves the folder
    path = next((path for suffix in ("", *VIDEO_SUFFIXES) if (path := videos / f"{name}{suffix}").exists()), None)
    if path is None:
        raise DataError(f"there is no video {name!r} (suffixes: {', '.join(VIDEO_SUFFIXES)})", file=videos)
    visual: dict = {"path": path.relative_to(videos).as_posix(), "stride": 1}
    if path.is_dir():
        pictures, others = pictures_in_folder(str(path))
        films = [other for other in others if Path(other).suffix.lower() in VIDEO_SUFFIXES]
        if films:
            raise DataError(f"holds frames and also the video {films[0]!r}: move one of them away", file=path)
        visual["frames"] = [Path(picture).name for picture in pictures]
    return Scene(f"{source}/{name}", source, visual, (), videos)


def list_videos(videos: Path, source: str) -> Iterator[Scene | BrokenScene]:
    """All videos of a folder, without objects: files, and folders of frames. Hidden ones do not count. One that cannot
    be read is a [`BrokenScene`]."""
    if not videos.is_dir():
        raise DataError("there is no such folder", file=videos)
    for path in sorted(videos.iterdir()):
        if not path.name.startswith(".") and (path.suffix.lower() in VIDEO_SUFFIXES or path.is_dir()):
            yield _attempt(lambda path=path: video_scene(videos, path.name, source), f"{source}/{path.name}")
