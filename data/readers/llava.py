"""LLaVA-1.5's instruction mix: conversations with or without an image."""

from collections.abc import Iterator, Mapping

from ..records import require_field
from .conversations import conversation_rounds
from .source_reader import SourceReader, assistant, text, user
from .streams import stream_list


def read_llava(files: Mapping, root, options: Mapping | None = None) -> Iterator[dict]:
    """One record for each conversation. Files: annotations, media (folder of images)."""
    reader = SourceReader(files, root, options, "llava", ["annotations", "media"])
    path = reader.path("annotations")

    def read_item(index: int, item: Mapping) -> Iterator[dict]:
        messages = []
        for question, answer, _ in conversation_rounds(
            require_field(item, "conversations", list), reader, skip_first_answers=True
        ):
            messages += [user([text(question)]), assistant([text(answer)])]
        record = {"id": f"{reader.source}/{index}", "source": reader.source, "messages": messages, "layout": "llava"}
        image = require_field(item, "image", str, default=None)
        if image is not None:
            record["image"] = {"path": reader.media(image, "image")}
        if messages:
            yield record
        else:
            reader.drop("conversations without a complete round")

    yield from reader.convert(stream_list(path), read_item, path)
