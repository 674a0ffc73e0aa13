"""What one request, one client and the whole server may use. Every limit is an option of `sama serve`."""

import argparse
import math
from collections.abc import Iterator
from dataclasses import Field, dataclass, field, fields
from typing import Any


MIB, GIB = 2**20, 2**30


def _limit(default: float, help: str) -> Any:
    """A field of [`Limits`] with the text of its option."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Limits:
    """
    All limits of the server. The help text of each field is its documentation: `sama serve --help` and docs/serving.md
    show it.

    Raises:
        ValueError: for a limit that is not a number above 0, or not a whole number where the default is one.
    """

    # of a video or picture
    upload_bytes: int = _limit(512 * MIB, "bytes of an uploaded or fetched video or picture")
    video_seconds: float = _limit(600.0, "seconds of a video")
    video_frames: int = _limit(20_000, "frames of a video")
    frame_pixels: int = _limit(2**25, "pixels of a frame or picture, width times height")
    # of the stored files
    store_bytes: int = _limit(20 * GIB, "bytes of all stored files, their playable copies included")
    file_seconds: float = _limit(6 * 3600.0, "seconds after its last use until a stored file expires")
    export_bytes: int = _limit(2 * GIB, "bytes of an exported file")
    # of a request
    json_bytes: int = _limit(96 * MIB, "bytes of a JSON body, data URLs included; larger videos go through /v1/files")
    json_values: int = _limit(200_000, "values in a JSON body")
    messages: int = _limit(200, "messages of a conversation")
    text_characters: int = _limit(20_000, "characters of the text of a message")
    regions: int = _limit(32, "regions in a message")
    points: int = _limit(1_000, "clicks of a region")
    scribble_points: int = _limit(10_000, "points of a scribble")
    objects: int = _limit(256, "objects of a conversation")
    new_tokens: int = _limit(2_048, "tokens of an answer")
    request_seconds: float = _limit(600.0, "seconds of a request, waiting included; its answer is cancelled then")
    # of a URL that is fetched with --allow-urls
    fetch_seconds: float = _limit(60.0, "seconds for fetching a URL")
    redirects: int = _limit(3, "redirects of a fetched URL, all on one host")
    # of the server
    running: int = _limit(16, "answers that are computed at the same time")
    waiting: int = _limit(32, "requests that wait for their turn; more are answered with 429")
    conversations: int = _limit(64, "kept conversations; the oldest are dropped, and read again when they go on")
    cache_bytes: int = _limit(2 * GIB, "bytes of kept conversations and video features on the device")
    feature_bytes: int = _limit(32 * GIB, "bytes of SAM 2's features of video frames, in memory and on the disk")
    feature_memory_bytes: int = _limit(
        2 * GIB, "bytes of them that are kept in memory, and not in the temporary folder"
    )
    buffered_bytes: int = _limit(2 * GIB, "bytes of all request bodies that are being received or processed")
    connections: int = _limit(512, "open connections; more are closed at once")
    header_seconds: float = _limit(15.0, "seconds for the request line and headers")
    body_seconds: float = _limit(
        20.0, "seconds for a body or the sending of a file, in addition to its size divided by --min-body-rate"
    )
    body_rate: int = _limit(32 * 1024, "bytes a second at which a body must arrive, and a file be read, on average")

    def __post_init__(self):
        for one in fields(self):
            value = vars(self)[one.name]
            number = isinstance(value, int) if one.type is int else isinstance(value, int | float)
            if isinstance(value, bool) or not number or not 0 < value < math.inf:
                kind = "whole number" if one.type is int else "number"
                raise ValueError(f"The limit {one.name} must be a {kind} above 0, got {value!r}.")


def option(name: str) -> str:
    """The option of `sama serve` that sets a limit."""
    return f"--max-{name.replace('_', '-')}" if not name.endswith("rate") else f"--min-{name.replace('_', '-')}"


def described_limits() -> Iterator[tuple[Field, str, str]]:
    """Each limit with its default as text and its help text."""
    for one in fields(Limits):
        yield one, f"{one.default:,.0f}", one.metadata["help"]


def add_limit_options(parser: argparse.ArgumentParser) -> None:
    """Adds an option for each limit, in a group of its own."""
    group = parser.add_argument_group("limits", "Beyond them, a request is refused with one sentence.")
    for one, default, text in described_limits():
        kind = int if one.type is int else float
        group.add_argument(
            option(one.name), dest=one.name, type=kind, default=one.default, metavar="N",
            help=f"{text} (default: {default})",
        )  # fmt: skip


def limits_from(arguments: argparse.Namespace) -> Limits:
    """The limits of a parsed command line; raises `ValueError` for one that is not above 0."""
    return Limits(**{one.name: vars(arguments)[one.name] for one in fields(Limits)})
