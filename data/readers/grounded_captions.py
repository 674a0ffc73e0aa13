"""Grounded captions (GLaMM's GCG): spans of phrases, overlaps between them, and the record of an image."""

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence

from sama.regions_sama import shortened

from ..masks import to_rle
from ..numbers import is_whole
from ..records import DataError
from .source_reader import SourceReader, assistant, grounded, text, user


Span = tuple[int, int]


def strip_quotes(caption: str) -> str:
    """A caption without the blanks and double quotes around it."""
    return caption.strip().strip('"').strip()


def checked_span(positions: list, caption: str, field: str) -> tuple[int, int]:
    """A span from [start, end] or from a list of one such pair."""
    pair = positions[0] if len(positions) == 1 else positions
    if not isinstance(pair, list) or len(pair) != 2 or not all(map(is_whole, pair)):
        raise DataError(f"is {shortened(positions)} where [start, end] is expected", field=field)
    start, end = pair
    if not 0 <= start < end <= len(caption):
        raise DataError(f"[{start}, {end}] lies outside a caption of {len(caption)} characters", field=field)
    return start, end


def phrase_span(positions: list, caption: str, phrase: str, field: str) -> Span:
    """
    The span of a phrase in the stripped caption. The positions may be relative to the caption of the file, with its
    quotes and blanks, or to the stripped one: the place with the phrase decides. If neither has it, they are relative
    to the stripped one, as the published training assumes.
    """
    stripped = strip_quotes(caption)
    offset = caption.find(stripped)
    if offset:
        start, end = checked_span(positions, caption, field)
        if _same_words(caption[start:end], phrase) and not _same_words(stripped[start:end], phrase):
            return checked_span([start - offset, end - offset], stripped, field)
    return checked_span(positions, stripped, field)


def _same_words(words: str, phrase: str) -> bool:
    return words.casefold().split() == phrase.casefold().split()


def find_phrase(caption: str, phrase: str) -> Span | None:
    """The span of the first place with the phrase as whole words, regardless of case."""
    pattern = r"\s+".join(re.escape(word) for word in phrase.split())
    found = re.search(rf"(?<!\w){pattern}(?!\w)", caption, re.IGNORECASE) if pattern else None
    return found.span() if found else None


def trim_overlaps(caption: str, spans: Iterable[Span]) -> dict[Span, Span | None]:
    """
    Maps each span to what is left of it when overlaps are removed: a span ends where the next one begins; of two with
    the same start, the longer one begins behind the shorter. `None` if no word is left.
    """
    kept: dict[Span, Span | None] = {}
    ordered = sorted(set(spans))
    position = 0
    starts = [start for start, _ in ordered]
    for start, end in ordered:
        later = bisect_right(starts, start)
        left, right = max(start, position), min([end, *starts[later : later + 1]])
        words = caption[left:right]
        left, right = left + len(words) - len(words.lstrip()), right - len(words) + len(words.rstrip())
        kept[start, end] = (left, right) if any(map(str.isalnum, words)) else None
        position = max(position, right)
    return kept


def grounded_parts(caption: str, names_at: Mapping[Span, Sequence[str]]) -> list[dict]:
    """The caption as text and grounded parts. Spans must not overlap; a span may have several objects."""
    parts, position = [], 0
    for (start, end), names in sorted(names_at.items()):
        parts += [text(caption[position:start]), grounded(caption[start:end], list(names))]
        position = end
    parts.append(text(caption[position:]))
    return [part for part in parts if part["text"]]


def caption_record(reader: SourceReader, index: int, name: str, caption: str, found: list, size) -> Iterator[dict]:
    """The record of an image. `found` has span, mask (see [`to_rle`]) and field of each grounded phrase."""
    masks = []
    for span, mask, field in found:
        try:
            code = to_rle(mask, size)
        except (ValueError, TypeError) as error:
            raise DataError(str(error), field=field) from error
        if code is None:
            reader.drop("phrases without a mask")
        else:
            masks.append((span, code))
    # Only now: a phrase that is left out must not shorten its neighbour
    kept = trim_overlaps(caption, [span for span, _ in masks])
    objects, names_at = {}, {}
    for span, code in masks:
        if kept[span] is None:
            reader.drop("phrases inside other phrases")
            continue
        objects[str(len(objects))] = {"masks": [code]}
        names_at.setdefault(kept[span], []).append(str(len(objects) - 1))
    if not objects:
        reader.drop("captions without a mask")
        return
    yield {
        "id": f"{reader.source}/{index}",
        "source": reader.source,
        "image": {"path": reader.media(name, "file_name")},
        "objects": objects,
        "messages": [user([], templates="caption_image"), assistant(grounded_parts(caption, names_at))],
        "layout": "gcg",
    }
