"""ChatUniVi's video conversations: LLaVA's messages about a video file."""

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

from ..records import DataError, require_field
from .conversations import conversation_rounds
from .source_reader import SourceReader, assistant, text, user
from .streams import stream_list


def read_chat_univi(files: Mapping, root, options: Mapping | None = None) -> Iterator[dict]:
    """
    One record for each conversation. Files: annotations, media (folder of videos).

    The newline next to `<image>` stays in the question, because the published training keeps it; the preset
    `consistent` strips it.
    """
    reader = SourceReader(files, root, options, "chat_univi", ["annotations", "media"])
    path = reader.path("annotations")

    def read_item(index: int, item: Mapping) -> Iterator[dict]:
        messages = []
        for question, answer, _ in conversation_rounds(
            require_field(item, "conversations", list), reader, keep_blanks=True
        ):
            messages += [user([text(question)]), assistant([text(answer)])]
        if not messages:
            reader.drop("conversations without a complete round")
            return
        yield {
            "id": f"{reader.source}/{index}",
            "source": reader.source,
            "video": {"path": _video_path(reader, require_field(item, "video", str)), "frames": None, "stride": 1},
            "messages": messages,
            "layout": "chat_univi",
            "frame_policy": "segments",
        }

    yield from reader.convert(stream_list(path), read_item, path)


def _video_path(reader: SourceReader, name: str) -> str:
    """The path of a video. Some .mkv files of the annotations are distributed as .mp4."""
    paths = [reader.media(name, "video")]
    if name.endswith(".mkv"):
        paths.append(reader.media(str(PurePosixPath(name).with_suffix(".mp4")), "video"))
    found = next(filter(reader.has_file, paths), None)
    if found is None:
        raise DataError(f"there is no file '{paths[0]}'", field="video", missing=paths)
    return found
