"""SAMA-Bench: 13 files with grounded questions (-G) and object descriptions (-C) about the same videos."""

from collections.abc import Iterator, Mapping

from ..records import DataError, require_field
from .annotated_video import AnnotatedVideo, annotated_video, described_objects, dialogue_record
from .grounded_dialogue import grounded_rounds
from .source_reader import SourceReader, assistant, region, text, user
from .streams import stream_list


FOLDER_DIGITS = 5


def read_sama_bench_g(files: Mapping, root, options: Mapping | None = None) -> Iterator[dict]:
    """
    One record for each round, without the earlier rounds. Files: annotations (a list), media, and four mask files.
    `info` of the question has `answer` and `entries` as in the file, where some entries are empty.
    """
    yield from _read(SourceReader(files, root, options, "sama_bench_g", ["annotations", "media"]), _questions)


def read_sama_bench_c(files: Mapping, root, options: Mapping | None = None) -> Iterator[dict]:
    """One record for each description. Files: the same."""
    yield from _read(SourceReader(files, root, options, "sama_bench_c", ["annotations", "media"]), _descriptions)


def _read(reader: SourceReader, function) -> Iterator[dict]:
    names = reader.files["annotations"]
    for name in [names] if isinstance(names, str) else names:
        path = reader.root / name

        def read_item(index: int, item: Mapping, stem: str = path.stem) -> Iterator[dict]:
            return function(reader, f"{stem}/{index}", item)

        yield from reader.convert(stream_list(path), read_item, path)


def _questions(reader: SourceReader, name: str, item: Mapping) -> Iterator[dict]:
    video = _video(reader, item)
    for number, one in enumerate(grounded_rounds(reader, item, video.keys)):
        if one is not None:
            record = dialogue_record(reader, f"{name}/{number}", video, [one])
            raw = {"answer": item["conversation"][2 * number + 1]["value"], "entries": item["groundtruth"][number]}
            one.question["info"] |= {"video": item["video"], **raw}
            yield record


def _descriptions(reader: SourceReader, name: str, item: Mapping) -> Iterator[dict]:
    video = _video(reader, item)
    ids = require_field(item, "description_id", dict)
    for key, target, description in described_objects(reader, item, video.keys):
        if key not in ids:
            raise DataError("is missing", field=f"description_id.{key}")
        info = {"description_id": ids[key], "video": item["video"]}
        yield {
            "id": f"{reader.source}/{name}/{key.strip('<>')}",
            "source": reader.source,
            "video": dict(video.visual),
            "objects": video.objects([target]),
            "messages": [
                user([region(target)], templates="describe_region_bench", info=info),
                assistant([text(description)]),
            ],
            "layout": "sama_description",
            "region_shape": "mask",
        }


def _video(reader: SourceReader, item: Mapping) -> AnnotatedVideo:
    """The video of an item. Folders of LV-VIS have five digits; the files of the benchmark omit leading zeros."""
    name = require_field(item, "video", str)
    folder, _, last = name.rpartition("/")
    if "lvvis" in name and last.isdecimal():
        item = {**item, "video": f"{folder}/{last.zfill(FOLDER_DIGITS)}"}
    return annotated_video(reader, item, fit=True)
