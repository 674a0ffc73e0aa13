"""LLaVA-1.5's instruction mix: conversations about an image or none, as a JSON list of human and gpt messages."""

from collections.abc import Iterator, Mapping

from ..records import take
from .conversations import rounds_of
from .reading import Reading, assistant, text, user
from .streams import stream_list


def read_llava(files: Mapping, root, options: Mapping | None = None) -> Iterator[dict]:
    """One record a conversation. Files: annotations, media (folder of images)."""
    reading = Reading(files, root, options, "llava", ["annotations", "media"])
    path = reading.path("annotations")

    def read_item(index: int, item: Mapping) -> Iterator[dict]:
        messages = []
        for question, answer, _ in rounds_of(take(item, "conversations", list), reading, skip_first_answers=True):
            messages += [user([text(question)]), assistant([text(answer)])]
        record = {"id": f"{reading.source}/{index}", "source": reading.source, "messages": messages, "layout": "llava"}
        image = take(item, "image", str, default=None)
        if image is not None:
            record["image"] = {"path": reading.media(image, "image")}
        if messages:
            yield record
        else:
            reading.drop("conversations without a complete round")

    yield from reading.convert(stream_list(path), read_item, path)
