"""
MeViS, ReVOS, Ref-YouTube-VOS and Ref-DAVIS17: a file of expressions by video, and a file of masks.

They differ in the key of an expression in the mask file (option `mask_keys`):
    "anno_id"          the expression lists keys, whose masks are united (MeViS, ReVOS)
    "counter"          the index of the expression among all expressions in the order of the file (Ref-YouTube-VOS)
    "sorted_counter"   the same, with videos sorted by name (Ref-DAVIS17)
The expression ids of a video are sorted as strings: "0", "1", "10", "2". For a split without masks (no "masks" in
`files`) the questions have no answers. An empty list of keys (`"anno_id": []`, ReVOS and MeViS v2) says that the
expression fits nothing: its answer has no objects (see `records.py`).
"""

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

from ..frames import frame_name
from ..records import DataError, require_field, require_type
from .source_reader import SourceReader, add_union, assistant, grounded, text, user
from .streams import stream_object


MASK_KEYS = ("anno_id", "counter", "sorted_counter")


def read_referring_video(files: Mapping, root, options: Mapping | None = None) -> Iterator[dict]:
    """One record for each video, with its expressions as turns. Files: expressions, media (frame folders), masks."""
    reader = SourceReader(files, root, options, "referring_video", ["expressions", "media"], mask_keys="anno_id")
    kind = reader.options["mask_keys"]
    if kind not in MASK_KEYS:
        raise DataError(
            f"is {kind!r}, expected one of {', '.join(MASK_KEYS)}", source=reader.source, field="mask_keys"
        )
    counter = None if kind == "anno_id" else _Counter()
    path = reader.path("expressions")
    videos = stream_object(path, "videos")
    if kind == "sorted_counter":
        videos = _by_name(videos)
    yield from reader.convert(videos, lambda name, video: _read_video(reader, name, video, counter), path)


class _Counter:
    """The running number of an expression in its file, as long as the expressions of all videos can be counted."""

    def __init__(self):
        self._next, self.lost_at = 0, None

    def take(self, name: str) -> str:
        """The next number, as a key of the mask file; `name` is the video of the expression."""
        if self.lost_at is not None:
            raise DataError(
                f"comes after the video {self.lost_at!r}, whose expressions cannot be counted: which masks belong to "
                f"{name!r} is unknown"
            )
        self._next += 1
        return str(self._next - 1)


def _by_name(videos: Iterator[tuple]) -> Iterator[tuple]:
    # A generator, so that errors of the stream are raised inside `convert`, which adds the source
    yield from sorted(videos, key=lambda entry: entry[0])


def _read_video(reader: SourceReader, name: str, video: Mapping, counter) -> Iterator[dict]:
    try:
        expressions = require_field(video, "expressions", dict)
        # All numbers of a video are taken first, so that an error in it does not shift those of the next video
        keys = {exp_id: None if counter is None else counter.take(name) for exp_id in sorted(expressions)}
    except DataError:
        if counter is not None and counter.lost_at is None:
            counter.lost_at = name
        raise
    frames = [frame_name(entry, f"frames[{i}]") for i, entry in enumerate(require_field(video, "frames", list))]
    # The order of the masks: names without suffix, sorted as strings
    frames.sort(key=lambda file: PurePosixPath(file).stem)
    objects, messages = {}, []
    for exp_id, key in keys.items():
        field = f"expressions.{exp_id}"
        expression, phrase = expressions[exp_id], require_field(expressions[exp_id], "exp", str, at=field)
        info = {"expression_id": exp_id, "expression": phrase}
        if "type_id" in expression:
            info["type_id"] = require_field(expression, "type_id", int, at=field)
        if isinstance(expression.get("obj_id"), str):  # Ref-DAVIS17; a list in the other files, which is not used
            info["obj_id"] = expression["obj_id"]
        if "?" in phrase:  # ReVOS asks whole questions
            messages.append(user([text(phrase)], info=info))
        else:
            phrase = phrase.replace(".", "").strip().lower()
            if not phrase:
                reader.drop("empty expressions")
                continue
            messages.append(user([text(phrase)], templates="segment_video", info=info))
        if "masks" in reader.files:
            names = [key] if key is not None else _annotation_keys(expression, field)
            if names:
                objects.update({name: {"store": "masks", "key": name} for name in names})
                messages.append(assistant([grounded("", [add_union(objects, names)])], templates="segment_answer"))
            else:
                messages.append(assistant([grounded("", [])]))
    yield {
        "id": f"{reader.source}/{name}",
        "source": reader.source,
        "video": {"path": reader.media(name, ""), "frames": frames, "stride": 1},
        "objects": objects,
        "messages": messages,
        "sampling": {"turns": 5, "replace": True, "unit": "turn"},
        "layout": "referring_video",
    }


def _annotation_keys(expression: Mapping, field: str) -> list[str]:
    """The keys of the masks of an expression, each once; none if it fits nothing."""
    entries = require_field(expression, "anno_id", list, at=field)
    keys = [str(require_type(entry, (int, str), f"{field}.anno_id[{i}]")) for i, entry in enumerate(entries)]
    return list(dict.fromkeys(keys))
