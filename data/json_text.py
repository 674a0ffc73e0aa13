"""JSON of untrusted files: nesting, Unicode and numbers are checked in the bytes, before a parser sees them."""

import json
import re
from collections import Counter
from typing import BinaryIO

import numpy as np


# Annotation files nest about ten deep. Parsers take memory that grows with the square of the depth, or overflow their
# stack
MAX_DEPTH = 100
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_CHANGES = np.zeros(256, dtype=np.int8)  # of the depth, by byte
_CHANGES[[ord("["), ord("{")]], _CHANGES[[ord("]"), ord("}")]] = 1, -1
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
# An escaped half of a character that no other half follows, and what may be the beginning of an escaped pair
_LONE_SURROGATE = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F]"
)
_OPEN_ESCAPE = re.compile(rb"\\(?:u[0-9a-fA-F]{0,4}(?:\\(?:u[0-9a-fA-F]{0,4})?)?)?\Z")


class JSONGuard:
    """
    Passes the bytes of a JSON file on to a parser and checks them on their way, in pieces and in bounded memory.

    Args:
        file (binary file): The file, opened for reading.

    Raises:
        ValueError: from `read`, where the file nests deeper than `MAX_DEPTH` or has an unpaired surrogate.
    """

    def __init__(self, file: BinaryIO | None = None):
        self._file, self._depth, self._in_string, self._rest = file, 0, False, b""

    def read(self, size: int = -1) -> bytes:
        """The next `size` bytes of the file."""
        data = self._file.read(size)
        self.check(data)
        return data

    def check(self, data: bytes) -> None:
        """Checks the next piece of the text."""
        text = (self._rest + data).replace(b"\\\\", b"_")  # escaped backslashes escape nothing
        self._rest = b""
        if data and (unfinished := _OPEN_ESCAPE.search(text)):
            text, self._rest = text[: unfinished.start()], unfinished[0]
        if b"\\u" in text and _LONE_SURROGATE.search(text):
            raise ValueError("contains half of a Unicode character (a surrogate such as \\ud800)")
        pieces = text.replace(b'\\"', b"").split(b'"')
        outside = b"".join(pieces[self._in_string :: 2])
        self._in_string ^= len(pieces) % 2 == 0
        brackets = outside.translate(None, _NO_BRACKETS)
        if brackets:
            depths = self._depth + np.cumsum(_CHANGES[np.frombuffer(brackets, dtype=np.uint8)], dtype=np.int64)
            if depths.max() > MAX_DEPTH:
                raise ValueError(f"is nested more than {MAX_DEPTH} levels deep")
            self._depth = int(depths[-1])


def parse_json(data: bytes):
    """
    The content of a JSON text in UTF-8.

    Raises:
        ValueError: if it is not JSON, is nested too deeply, contains NaN, Infinity or half a character, or has a key
            twice, of which parsers keep one or the other. The message has no subject: "is not JSON (...)". A number
            that is too large for a float becomes infinity.
    """
    guard = JSONGuard()
    guard.check(data)
    try:
        text = data.removeprefix(BYTE_ORDER_MARK).decode("utf-8")
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_with_unique_keys)
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 text (byte {error.start} is 0x{error.object[error.start]:02x})") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON ({error})") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, which Python does not read
        raise ValueError(f"is not JSON that can be read ({str(error).partition(';')[0]})") from error


def without_surrogates(text: str) -> str:
    r"""The text with half characters, as names of files in other encodings than UTF-8 have them, written as `\udce9`:
    no file of UTF-8 can hold them. JSON stays JSON, with the same values."""
    return text.encode(errors="backslashreplace").decode()


def _refuse_constant(name: str):
    raise ValueError(f"{name} is not a JSON number")


def _with_unique_keys(pairs: list[tuple[str, object]]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        [(key, count)] = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"has the key {key[:80]!r} {count} times")
    return found
