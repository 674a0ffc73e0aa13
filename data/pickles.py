"""
Reads pickle files from untrusted sources: containers, numbers, strings, bytes and numpy arrays; nothing is executed.

A pickle names the functions and classes it is rebuilt with. `ALLOWED` lists the only names that are accepted, and
stand-ins of our own are used for those whose real counterparts could be misused. Before a file is unpickled,
[`pickle_scan.check_opcodes`] refuses those that would take memory or time out of proportion.
"""

import mmap
import pickle
import re
from pathlib import Path

import numpy as np

from .pickle_scan import BAD_KEY, check_opcodes
from .records import DataError, reading


# Kinds of numpy types without pointers. An object array made from raw bytes would let a file write memory.
PLAIN_TYPE = re.compile(r"[<>|=]?[biufcSU]\d{1,9}")

# What the unpickler can raise for a damaged or malicious file, besides `UnpicklingError`
DAMAGE_ERRORS = (
    EOFError, ValueError, TypeError, AttributeError, IndexError, KeyError, OverflowError, ImportError, RecursionError,
    BufferError, SystemError,
)  # fmt: skip
MAX_COPIED = 2**28  # bytes and entries that functions of a pickle may copy, in addition to the size of its file


class _PlainType:
    """Stands in for `numpy.dtype`, whose `__setstate__` would let a file set memory management flags."""

    __slots__ = ("dtype",)

    def __init__(self, name, align=False, copy=True):
        if not isinstance(name, str) or not PLAIN_TYPE.fullmatch(name):
            raise pickle.UnpicklingError(f"it contains a numpy array of type {name!r}")
        self.dtype = np.dtype(name)

    def __setstate__(self, state):
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _PlainArray(np.ndarray):
    """A numpy array that accepts only the bytes of a plain type as its state."""

    def __setstate__(self, state):
        version, shape, kind, fortran, data = state
        if not isinstance(kind, _PlainType) or not isinstance(data, bytes | str):
            raise pickle.UnpicklingError("it contains a numpy array of objects")
        data = data.encode("latin-1") if isinstance(data, str) else data  # written by Python 2
        super().__setstate__((version, shape, kind.dtype, fortran, data))


class _AllowedFunction:
    """
    A function that a pickle may call. Unlike a plain function, it has no attributes that a pickle can change.

    A pickle can hand the same large value to a function as often as it likes, so what all calls copy is limited.
    """

    __slots__ = ("_function", "_left")

    def __init__(self, function, left: list[int]):
        self._function, self._left = function, left

    def __call__(self, *arguments):
        self._left[0] -= sum(len(one) for one in arguments if isinstance(one, str | bytes | list | set | frozenset))
        if self._left[0] < 0:
            raise pickle.UnpicklingError("it copies the same values again and again")
        return self._function(*arguments)

    def __setstate__(self, state):
        raise pickle.UnpicklingError("it tries to change the reader")


def _empty_array(kind, shape, letter):
    return np.ndarray.__new__(_PlainArray, (0,))  # shape and content follow as its state


def _array_from_buffer(buffer, kind: _PlainType, shape, order):
    return np.frombuffer(buffer, dtype=kind.dtype).reshape(shape, order=order)


def _scalar(kind: _PlainType, data):
    data = data.encode("latin-1") if isinstance(data, str) else data  # written by Python 2
    return np.frombuffer(data, dtype=kind.dtype)[0]


def _text_to_bytes(text, encoding="latin-1"):
    """Protocols below 3 write bytes as text."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"it encodes text as {encoding!r}")
    return text.encode("latin-1")


def _empty_bytes():
    return b""


def _check_keys(items) -> None:
    # Hashes of tuples and of large numbers can be chosen so that a set or dictionary takes quadratic time
    if not all(isinstance(item, str | bytes | float | None) or (isinstance(item, int) and -(2**63) <= item < 2**63)
               for item in items):  # fmt: skip
        raise pickle.UnpicklingError(BAD_KEY)


def _set(items=()):
    _check_keys(items)
    return set(items)


def _frozenset(items=()):
    return frozenset(_set(items))


def _ordered(items=()):
    """A plain dictionary, which keeps its order as well and has no attributes that a pickle can set."""
    pairs = [(key, value) for key, value in items]
    _check_keys(key for key, _ in pairs)
    return dict(pairs)


# Name -> class or text, which are used as they are, or function, which is wrapped in [`_AllowedFunction`]
ALLOWED = {
    ("numpy", "dtype"): _PlainType,
    # Only an argument of `_reconstruct`, which ignores it
    ("numpy", "ndarray"): "numpy.ndarray",
    ("_codecs", "encode"): _text_to_bytes,
    ("collections", "OrderedDict"): _ordered,
}
for _module in ("numpy.core", "numpy._core"):
    ALLOWED[_module + ".multiarray", "_reconstruct"] = _empty_array
    ALLOWED[_module + ".multiarray", "scalar"] = _scalar
    ALLOWED[_module + ".numeric", "_frombuffer"] = _array_from_buffer
for _module in ("builtins", "__builtin__"):  # the second is its name in Python 2
    ALLOWED[_module, "set"], ALLOWED[_module, "frozenset"] = _set, _frozenset
    ALLOWED[_module, "bytes"] = _empty_bytes


class PlainUnpickler(pickle.Unpickler):
    """An unpickler that accepts only the names in `ALLOWED`. It does not limit memory and time by itself."""

    def __init__(self, file, size: int = 0, **options):
        super().__init__(file, **options)
        self._left = [size + MAX_COPIED]

    def find_class(self, module: str, name: str):
        try:
            found = ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, and only plain containers, numbers, strings, bytes and numpy arrays "
                "are accepted"
            ) from None
        return found if isinstance(found, type | str) else _AllowedFunction(found, self._left)


def load_plain_pickle(path: Path):
    """
    The content of a pickle file. A pickle cannot be streamed: all of it is in memory while the caller keeps it.

    Raises:
        DataError: if the file is missing or damaged, contains anything but plain data, or would take memory or time
            out of proportion to its size.
    """
    try:
        with reading(path), open(path, "rb") as file:
            size = path.stat().st_size
            if not size:
                raise EOFError("the file is empty")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                check_opcodes(content)
            # Strings written by Python 2, as in the RefCOCO files, are bytes; decoding as latin-1 never fails
            return PlainUnpickler(file, size, encoding="latin-1").load()
    except DataError:
        raise
    except pickle.UnpicklingError as error:
        raise DataError(f"this pickle is not accepted: {error}", file=path) from error
    except DAMAGE_ERRORS as error:
        raise DataError(f"this pickle is damaged ({type(error).__name__}: {error})", file=path) from error
