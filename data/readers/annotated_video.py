"""The videos of SAMA-239K and SAMA-Bench: their frames, mask files and objects."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from ..frames import ANNOTATED_STRIDE, VIDEO_SUFFIXES, frame_name
from ..records import DataError, require_field, require_type
from .grounded_dialogue import Round
from .source_reader import SourceReader


# Part of the path of a video -> key of its mask file in `files`; the first match counts
STORES = {
    "mevis": "mevis_masks",
    "lvvis": "lvvis_masks",
    "ref_youtube_vos": "ref_youtube_vos_masks",
    "VidSTG": "vidstg_masks",
    "sav": "sav_masks",
}
NO_MASK = -1  # an object without masks, in anno_map
OBJECT_NUMBER = re.compile(r"obj([0-9]{1,9})(?![0-9])")


@dataclass(frozen=True)
class AnnotatedVideo:
    """
    Attributes:
        visual (`dict`): `video` of the record.
        store (`str`): Key of its mask file in `files`.
        keys (`list`): Key of each object in that file, or `None` for an object without masks.
        allowances (`dict`): "short" or "fit", as in the objects of a record.
    """

    visual: dict
    store: str
    keys: list[str | None]
    allowances: dict

    def objects(self, names: list[str]) -> dict:
        """`objects` of the record. The name "3+4" stands for the union of "3" and "4"."""
        single = [key for name in names for key in name.split("+")]
        unions = {name: {"union": name.split("+")} for name in names if "+" in name}
        return {key: {"store": self.store, "key": key, **self.allowances} for key in single} | unions


def annotated_video(reader: SourceReader, item: Mapping, fit: bool = False) -> AnnotatedVideo:
    """Frames and mask keys of a video of SAMA-239K or SAMA-Bench."""
    name = require_field(item, "video", str)
    store = next((store for word, store in STORES.items() if word in name), None)
    if store is None:
        raise DataError(f"{name!r} belongs to none of {', '.join(STORES)}", field="video")
    if store not in reader.files:
        raise DataError(f"{name!r} needs the mask file {store!r}, which the catalogue does not name", field="video")
    anno_map = enumerate(require_field(item, "anno_map", list))
    keys = [require_type(key, (int, str), f"anno_map[{position}]") for position, key in anno_map]
    is_file = PurePosixPath(name).suffix in VIDEO_SUFFIXES
    visual = {"path": reader.media(name, "video"), "frames": None, "stride": ANNOTATED_STRIDE if is_file else 1}
    if not is_file:
        # In the order of the file: the names of VidSTG are not zero-padded and must not be sorted
        visual["frames"] = [
            frame_name(entry, f"frames[{i}]") for i, entry in enumerate(require_field(item, "frames", list))
        ]
    allowances = {"fit": True} if fit else {"short": True} if is_file else {}
    named = [None if str(key) == str(NO_MASK) else str(key) for key in keys]
    return AnnotatedVideo(visual, store, named, allowances)


def described_objects(reader: SourceReader, item: Mapping, keys: list) -> Iterator[tuple[str, str, str]]:
    """Key in `description`, object name and text of each description, in the order of the file."""
    for key, words in require_field(item, "description", dict, default={}).items():
        field = f"description.{key}"
        found = OBJECT_NUMBER.search(key)
        if not found or int(found[1]) >= len(keys):
            raise DataError(f"refers to none of the {len(keys)} objects of anno_map", field=field)
        description = require_type(words, str, field).strip()
        if keys[int(found[1])] is None:
            reader.drop("descriptions of objects without masks")
        elif not description:
            reader.drop("empty descriptions")
        else:
            yield key, keys[int(found[1])], description


def dialogue_record(reader: SourceReader, name: str, video: AnnotatedVideo, rounds: list[Round]) -> dict:
    """A record of some rounds about a video."""
    used = [key for one in rounds for key in (*one.regions, *one.targets)]
    return {
        "id": f"{reader.source}/{name}",
        "source": reader.source,
        "video": dict(video.visual),
        "objects": video.objects(list(dict.fromkeys(used))),
        "messages": [message for one in rounds for message in (one.question, one.answer)],
        "layout": "sama_conversation",
        "region_shape": "box",
    }
