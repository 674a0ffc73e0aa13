"""Mask files: key -> one mask for each frame. JSON for MeViS, ReVOS, LV-VIS, SA-V and VidSTG; otherwise pickle."""

from collections.abc import Callable, Iterator
from pathlib import Path

from sama.regions_sama import shortened

from ..masks import to_rle
from ..pickles import load_plain_pickle
from ..records import DataError, require_type
from .streams import stream_object


LVVIS_FIELD, REVOS_FIELD = "segmentations", "masks_rle"


def read_mask_store(
    path: Path, on_error: Callable[[str, DataError], None] | None = None
) -> Iterator[tuple[str, list[dict | None]]]:
    """
    Yields key and masks of each object of a mask file, as compressed run-length codes or `None`, in the order of the
    file. An object with broken masks is an error, or is left out and passed to `on_error(key, error)`.

    JSON is streamed, with one object in memory at a time. A pickle is in memory as a whole. Codes are converted to one
    form but not decoded: [`masks.decode_rle`] finds the damaged ones.
    """
    for key, value in _pickled(path) if path.suffix in (".pkl", ".p", ".pickle") else stream_object(path):
        # SAMA-Bench has the whole LV-VIS annotation around the masks, the foreground file of ReVOS also their size
        field = "" if not isinstance(value, dict) else REVOS_FIELD if REVOS_FIELD in value else LVVIS_FIELD
        masks = value.get(field) if field else value
        try:
            require_type(key, (str, int), "")
            entries = enumerate(require_type(masks, list, field))
            compact = [_compact(entry, position) for position, entry in entries]
        except DataError as error:
            if on_error is None:
                raise error.with_context(file=path, index=_shown_key(key)) from error
            on_error(_shown_key(key), error)
            continue
        yield str(key), compact


def _shown_key(key) -> str:
    """The name of an object in messages and stores, even if it is not a valid key."""
    return str(key).encode(errors="replace").decode() if isinstance(key, str | int) else shortened(key)


def _compact(entry, position: int) -> dict | None:
    try:
        return to_rle(entry, check=False)
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(str(error), field=f"[{position}]") from error


def _pickled(path: Path) -> Iterator[tuple]:
    content = load_plain_pickle(path)
    if not isinstance(content, dict):
        raise DataError(f"contains {type(content).__name__} where a dictionary of masks is expected", file=path)
    yield from content.items()
