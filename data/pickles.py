"""Reads pickles from strangers: containers, numbers, strings, bytes and numpy arrays, and nothing that could run."""

import collections
import io
import pickle
from pathlib import Path

import numpy as np

from .records import DataError


# Letters of numpy types without pointers in them: an object array made from raw bytes would let a file write memory
PLAIN_KINDS = "biufcSU"

# A damaged or hostile pickle can make the unpickler raise any of these
DAMAGES = (
    EOFError, ValueError, TypeError, AttributeError, IndexError, KeyError, OverflowError, ImportError, MemoryError,
    RecursionError,
)  # fmt: skip


class _PlainType:
    """Stands in for `numpy.dtype`, whose own way of restoring itself lets a file set flags of memory management."""

    __slots__ = ("dtype",)

    def __init__(self, name, align=False, copy=True):
        if not isinstance(name, str) or np.dtype(name).kind not in PLAIN_KINDS:
            raise pickle.UnpicklingError(f"it holds a numpy array of type {name!r}")
        self.dtype = np.dtype(name)

    def __setstate__(self, state):
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _PlainArray(np.ndarray):
    """A numpy array that is only ever filled from bytes of a plain type."""

    def __setstate__(self, state):
        version, shape, kind, fortran, data = state
        if not isinstance(kind, _PlainType) or not isinstance(data, bytes | str):
            raise pickle.UnpicklingError("it holds a numpy array of objects")
        data = data.encode("latin-1") if isinstance(data, str) else data  # written by Python 2
        super().__setstate__((version, shape, kind.dtype, fortran, data))


class _Maker:
    """A function that a pickle may call. Unlike a plain function it cannot be changed by the pickle."""

    __slots__ = ("_make",)

    def __init__(self, make):
        self._make = make

    def __call__(self, *arguments):
        return self._make(*arguments)

    def __setstate__(self, state):
        raise pickle.UnpicklingError("it tries to change the reader")


def _empty_array(kind, shape, letter):
    return np.ndarray.__new__(_PlainArray, (0,))  # what it is made with is overwritten by its state


def _array_of_buffer(buffer, kind: _PlainType, shape, order):
    return np.frombuffer(buffer, dtype=kind.dtype).reshape(shape, order=order)


def _number(kind: _PlainType, data):
    data = data.encode("latin-1") if isinstance(data, str) else data
    return np.frombuffer(data, dtype=kind.dtype)[0]


def _text_to_bytes(text, encoding="latin-1"):
    """How the older protocols write bytes."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"it encodes text as {encoding!r}")
    return text.encode("latin-1")


def _empty_bytes():
    return b""


ALLOWED = {
    ("numpy", "dtype"): _PlainType,
    ("numpy", "ndarray"): "the class that _reconstruct is told to make, which it does not ask",
    ("_codecs", "encode"): _Maker(_text_to_bytes),
    ("collections", "OrderedDict"): collections.OrderedDict,
}
for _module in ("numpy.core", "numpy._core"):
    ALLOWED[_module + ".multiarray", "_reconstruct"] = _Maker(_empty_array)
    ALLOWED[_module + ".multiarray", "scalar"] = _Maker(_number)
    ALLOWED[_module + ".numeric", "_frombuffer"] = _Maker(_array_of_buffer)
for _module in ("builtins", "__builtin__"):  # the second is its name in Python 2
    ALLOWED[_module, "set"], ALLOWED[_module, "frozenset"] = set, frozenset
    ALLOWED[_module, "bytes"] = _Maker(_empty_bytes)


class PlainUnpickler(pickle.Unpickler):
    """An unpickler that knows the names in `ALLOWED` only."""

    def find_class(self, module: str, name: str):
        try:
            return ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, and only plain containers, numbers, strings, bytes and numpy arrays "
                "are read"
            ) from None


def load_plain_pickle(path: Path):
    """
    The content of a pickle file, or [`DataError`] if it is damaged or holds anything but plain data.

    A pickle cannot be read as a stream, so the whole file is in memory for as long as the caller keeps the result.
    """
    try:
        with open(path, "rb") as file:
            return _load(file)
    except FileNotFoundError:
        raise DataError("there is no such file", file=path) from None
    except pickle.UnpicklingError as error:
        raise DataError(f"this pickle is not read: {error}", file=path) from error
    except DAMAGES as error:
        raise DataError(f"this pickle is damaged ({type(error).__name__}: {error})", file=path) from error


def loads_plain_pickle(data: bytes):
    """The content of a pickle given as bytes; raises what `pickle` raises."""
    return _load(io.BytesIO(data))


def _load(file):
    # The pickled strings of Python 2, in which the RefCOCO files were written, are bytes; this reading never fails
    return PlainUnpickler(file, encoding="latin-1").load()
