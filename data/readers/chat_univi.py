"""ChatUniVi's video conversations: LLaVA's messages about a video file."""

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

from ..records import DataError, take
from .conversations import rounds_of
from .reading import Reading, assistant, text, user
from .streams import stream_list


def read_chat_univi(files: Mapping, root, options: Mapping | None = None) -> Iterator[dict]:
    """
    One record a conversation. Files: annotations, media (folder of videos). The newline that stood beside `<image>`
    stays in the question: the release trains with it, the default rendering takes it away.
    """
    reading = Reading(files, root, options, "chat_univi", ["annotations", "media"])
    path = reading.path("annotations")

    def read_item(index: int, item: Mapping) -> Iterator[dict]:
        messages = []
        for question, answer, _ in rounds_of(take(item, "conversations", list), reading, keep_blanks=True):
            messages += [user([text(question)]), assistant([text(answer)])]
        if not messages:
            reading.drop("conversations without a complete round")
            return
        yield {
            "id": f"{reading.source}/{index}",
            "source": reading.source,
            "video": {"path": _video_path(reading, take(item, "video", str)), "frames": None, "stride": 1},
            "messages": messages,
            "layout": "chat_univi",
            "frame_policy": "segments",
        }

    yield from reading.convert(stream_list(path), read_item, path)


def _video_path(reading: Reading, name: str) -> str:
    """The annotations name the original files; published copies of some .mkv files are .mp4."""
    path = reading.media(name, "video")
    if (reading.root / path).is_file():
        return path
    other = reading.media(str(PurePosixPath(name).with_suffix(".mp4")), "video")
    if name.endswith(".mkv") and (reading.root / other).is_file():
        return other
    raise DataError(f"there is no file '{path}'", field="video")
