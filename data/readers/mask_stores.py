"""Mask files: key -> one mask a frame. MeViS, ReVOS, LV-VIS, SA-V and VidSTG as JSON, the others as pickle."""

from collections.abc import Callable, Iterator
from pathlib import Path

from ..masks import to_rle
from ..pickles import load_plain_pickle
from ..records import DataError, require_type
from .streams import stream_object


OF_LVVIS, OF_REVOS = "segmentations", "masks_rle"


def read_mask_store(
    path: Path, on_error: Callable[[str, DataError], None] | None = None
) -> Iterator[tuple[str, list[dict | None]]]:
    """
    Key and masks of each object of a mask file, as compressed run-length codes or `None`, in the file's order. An
    object whose masks are broken is an error, or, with `on_error(key, error)`, told there and left out.

    JSON is read as a stream: no more than one object is in memory. A pickle cannot be read so; it is in memory whole.
    Codes are brought into one form, not decoded: [`masks.decode_rle`] finds the damaged ones.
    """
    for key, value in _pickled(path) if path.suffix in (".pkl", ".p", ".pickle") else stream_object(path):
        # SAMA-Bench keeps the whole LV-VIS annotation around its masks, ReVOS's file of foregrounds also their size
        field = "" if not isinstance(value, dict) else OF_REVOS if OF_REVOS in value else OF_LVVIS
        masks = value.get(field) if field else value
        try:
            entries = enumerate(require_type(masks, list, field))
            compact = [_compact(entry, position) for position, entry in entries]
        except DataError as error:
            if on_error is None:
                raise error.with_context(file=path, index=key) from error
            on_error(str(key), error)
            continue
        yield str(key), compact


def _compact(entry, position: int) -> dict | None:
    try:
        return to_rle(entry, check=False)
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(str(error), field=f"[{position}]") from error


def _pickled(path: Path) -> Iterator[tuple]:
    content = load_plain_pickle(path)
    if not isinstance(content, dict):
        raise DataError(f"holds {type(content).__name__} where a dictionary of masks is expected", file=path)
    yield from content.items()
