"""SAMA-239K: one file of grounded dialogues and object descriptions for videos of five sources."""

from collections.abc import Iterator, Mapping

from ..records import require_field
from .annotated_video import annotated_video, described_objects, dialogue_record
from .grounded_dialogue import grounded_rounds
from .source_reader import SourceReader, assistant, region, text, user
from .streams import stream_list


def read_sama239k_conversation(files: Mapping, root, options: Mapping | None = None) -> Iterator[dict]:
    """
    One record for every four consecutive rounds about a video (option `rounds`). Files: annotations, media, and the
    five mask files of `STORES`.
    """
    reader = SourceReader(files, root, options, "sama239k_conversation", ["annotations", "media"], rounds=4)

    def read_item(index: int, item: Mapping) -> Iterator[dict]:
        if not require_field(item, "conversation", list, default=[]):
            return
        video = annotated_video(reader, item)
        rounds = list(grounded_rounds(reader, item, video.keys))
        for chunk, group in enumerate(chunks(rounds, reader.options["rounds"])):
            kept = [one for one in group if one is not None]
            if any(one.targets for one in kept):
                yield dialogue_record(reader, f"{index}/{chunk}", video, kept)
            elif kept:
                reader.drop("rounds in a record without any [SEG]", len(kept))

    path = reader.path("annotations")
    yield from reader.convert(stream_list(path), read_item, path)


def read_sama239k_description(files: Mapping, root, options: Mapping | None = None) -> Iterator[dict]:
    """One record for every three described objects of a video (option `objects`). Files: the same."""
    reader = SourceReader(files, root, options, "sama239k_description", ["annotations", "media"], objects=3)

    def read_item(index: int, item: Mapping) -> Iterator[dict]:
        if not require_field(item, "description", dict, default={}):
            return
        video = annotated_video(reader, item)
        described = list(described_objects(reader, item, video.keys))
        for chunk, group in enumerate(chunks(described, reader.options["objects"])):
            messages = []
            for _, name, description in group:
                messages.append(user([region(name)], templates="describe_region_video"))
                messages.append(assistant([text(description)]))
            yield {
                "id": f"{reader.source}/{index}/{chunk}",
                "source": reader.source,
                "video": dict(video.visual),
                "objects": video.objects([name for _, name, _ in group]),
                "messages": messages,
                "layout": "sama_description",
                "region_shape": "box",
            }

    path = reader.path("annotations")
    yield from reader.convert(stream_list(path), read_item, path)


def chunks(items: list, size: int) -> Iterator[list]:
    """Consecutive items in lists of `size`; the last list may be shorter."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
