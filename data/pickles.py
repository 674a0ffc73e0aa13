"""
Reads pickle files from untrusted sources: containers, numbers, strings, bytes and numpy arrays; nothing is executed.

A pickle names the functions and classes it is rebuilt with. `ALLOWED` lists the only names that are accepted, and
stand-ins of our own are used for those whose real counterparts could be misused.
"""

import collections
import pickle
from pathlib import Path

import numpy as np

from .records import DataError


# Kinds of numpy types without pointers. An object array made from raw bytes would let a file write memory.
PLAIN_KINDS = "biufcSU"

# What the unpickler can raise for a damaged or malicious file, besides `UnpicklingError`
DAMAGE_ERRORS = (
    EOFError, ValueError, TypeError, AttributeError, IndexError, KeyError, OverflowError, ImportError, MemoryError,
    RecursionError,
)  # fmt: skip


class _PlainType:
    """Stands in for `numpy.dtype`, whose `__setstate__` would let a file set memory management flags."""

    __slots__ = ("dtype",)

    def __init__(self, name, align=False, copy=True):
        if not isinstance(name, str) or np.dtype(name).kind not in PLAIN_KINDS:
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
    """A function that a pickle may call. Unlike a plain function, it has no attributes that a pickle can change."""

    __slots__ = ("_function",)

    def __init__(self, function):
        self._function = function

    def __call__(self, *arguments):
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


ALLOWED = {
    ("numpy", "dtype"): _PlainType,
    # Only an argument of `_reconstruct`, which ignores it
    ("numpy", "ndarray"): "numpy.ndarray",
    ("_codecs", "encode"): _AllowedFunction(_text_to_bytes),
    ("collections", "OrderedDict"): collections.OrderedDict,
}
for _module in ("numpy.core", "numpy._core"):
    ALLOWED[_module + ".multiarray", "_reconstruct"] = _AllowedFunction(_empty_array)
    ALLOWED[_module + ".multiarray", "scalar"] = _AllowedFunction(_scalar)
    ALLOWED[_module + ".numeric", "_frombuffer"] = _AllowedFunction(_array_from_buffer)
for _module in ("builtins", "__builtin__"):  # the second is its name in Python 2
    ALLOWED[_module, "set"], ALLOWED[_module, "frozenset"] = set, frozenset
    ALLOWED[_module, "bytes"] = _AllowedFunction(_empty_bytes)


class PlainUnpickler(pickle.Unpickler):
    """An unpickler that accepts only the names in `ALLOWED`."""

    def find_class(self, module: str, name: str):
        try:
            return ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, and only plain containers, numbers, strings, bytes and numpy arrays "
                "are accepted"
            ) from None


def load_plain_pickle(path: Path):
    """
    The content of a pickle file. A pickle cannot be streamed: all of it is in memory while the caller keeps it.

    Raises:
        DataError: if the file is missing or damaged, or contains anything but plain data.
    """
    try:
        with open(path, "rb") as file:
            # Strings written by Python 2, as in the RefCOCO files, are bytes; decoding as latin-1 never fails
            return PlainUnpickler(file, encoding="latin-1").load()
    except FileNotFoundError:
        raise DataError("there is no such file", file=path) from None
    except pickle.UnpicklingError as error:
        raise DataError(f"this pickle is not accepted: {error}", file=path) from error
    except DAMAGE_ERRORS as error:
        raise DataError(f"this pickle is damaged ({type(error).__name__}: {error})", file=path) from error
