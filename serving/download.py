"""Files that are made of a conversation for download."""

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from ..feature_store_sama import make_feature_folder
from ..overlay_sama import object_color
from ..video_sama import SamaVideo
from .errors import ApiError
from .exports import Export, ExportObject
from .exports import export as write_export
from .limits import option
from .questions import EarlierTurn
from .requests import ConversationReader, find_media
from .schema import ExportRequest
from .service import Service


def export(service: Service, request: ExportRequest, holding: ExitStack, stop: threading.Event) -> Export:
    """
    Writes what an [`ExportRequest`] asks for.

    Args:
        service ([`Service`])
        request ([`ExportRequest`])
        holding (`ExitStack`): keeps the file until it is closed.
        stop (`threading.Event`): ends the export when it is set.

    Raises:
        ApiError: for messages that do not fit together, without a video or picture or without an answer.
    """
    reference = find_media(request.messages)
    if reference is None:
        raise ApiError(400, "The messages are about no video or picture, so nothing can be exported.", "messages")
    media = service.open_media(reference, holding, stop)
    conversation = ConversationReader(request.messages, media, service.limits).read()
    if conversation.parts is not None or not conversation.earlier:
        raise ApiError(400, "The last of the messages is not an answer of the assistant.", "messages")
    folder = Path(holding.enter_context(make_feature_folder()))  # which does not outlive its process
    return write_export(
        folder,
        request.format,
        SamaVideo.open(str(service.store.path(media.id)), media.kind),
        export_objects(conversation.earlier),
        [message.model_dump(exclude_unset=True) for message in request.messages],
        name=Path(media.filename).stem,
        max_bytes=service.limits.export_bytes,
        progress=_Progress(service.limits.request_seconds, stop),
    )


def export_objects(turns: Sequence[EarlierTurn]) -> list[ExportObject]:
    """The objects of a conversation that have masks; of one that several answers are about, those of the first."""
    found: dict[int, ExportObject] = {}
    for turn in turns:
        for one in turn.objects:
            if one.track is not None and one.number not in found:
                found[one.number] = ExportObject(one.number, one.phrase, object_color(one.number - 1), one.track)
    return list(found.values())


class _Progress:
    """Hands on the frames of an export until its client has left, or it takes too long."""

    def __init__(self, seconds: float, stop: threading.Event):
        self.seconds, self.stop, self.started = seconds, stop, time.monotonic()

    def __call__(self, frames: Iterable[int]) -> Iterator[int]:
        for frame in frames:
            if self.stop.is_set():
                raise ApiError(400, "The connection was closed before the export was complete.")
            if time.monotonic() > self.started + self.seconds:
                raise ApiError(
                    504, f"The export took longer than {self.seconds:g} seconds ({option('request_seconds')})."
                )
            yield frame
