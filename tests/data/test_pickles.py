"""Untrusted pickles: plain data is read, anything that could execute code or corrupt memory is an error."""

import codecs
import collections
import io
import os
import pickle
import pickletools

import numpy as np
import pytest

from sama.data.pickles import PlainUnpickler, load_plain_pickle
from sama.data.readers import read_mask_store
from sama.data.records import DataError


PLAIN = {
    "7": [{"size": [24, 32], "counts": b"PQ\xff"}, None],
    "more": ("text", 1, 2.5, True, 10**30, {1, 2}, frozenset({3}), collections.OrderedDict(a=1), [[]], b""),
}
ARRAYS = [
    np.arange(6, dtype=np.float32).reshape(2, 3),
    np.asfortranarray(np.arange(6).reshape(2, 3)),
    np.array([True, False]),
    np.array(["ab", "c"]),
    np.arange(3, dtype=">i4"),
    np.zeros((0, 4)),
]


def loaded(data):
    return PlainUnpickler(io.BytesIO(data), encoding="latin-1").load()


@pytest.mark.parametrize("protocol", range(6))
def test_plain_containers(protocol):
    assert loaded(pickle.dumps(PLAIN, protocol)) == PLAIN


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype}{array.shape}")
def test_numpy_arrays_and_numbers(array, protocol):
    found = loaded(pickle.dumps({"a": array, "n": np.float64(2.5)}, protocol))
    # numpy turns a foreign byte order into its own
    assert isinstance(found["a"], np.ndarray) and found["a"].dtype.newbyteorder("=") == array.dtype.newbyteorder("=")
    assert np.array_equal(found["a"], array) and found["n"] == 2.5


def test_names_of_older_numpy_and_python():
    data = pickle.dumps(ARRAYS[0], 2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert np.array_equal(loaded(data), ARRAYS[0])
    # A dictionary with a str of Python 2, protocol 0, as refs(unc).p has them: not ASCII, and still read
    assert loaded(b"(dp0\nS'raw'\np1\nS'caf\\xe9'\np2\ns.") == {"raw": "caf\xe9"}


class RunsCode:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (os.system, ("echo harmed > harmed",)),
        (eval, ("open('harmed', 'w')",)),
        (open, ("harmed", "w")),
        (getattr, (os, "system")),
        (codecs.decode, (b"", "hex")),
        (np.load, ("harmed", None, True)),
        (bytearray, (10**12,)),
    ],
)
def test_a_malicious_pickle_does_nothing_but_raise(tmp_path, monkeypatch, function, arguments):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "refs(unc).p"
    content = (
        [{"ref_id": 1}, RunsCode(function, *arguments)] if function is not getattr else RunsCode(getattr, 1, "real")
    )
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(
        DataError, match=r"refs\(unc\)\.p: this pickle is not accepted: it asks for .*only plain"
    ) as caught:
        load_plain_pickle(path)
    assert f".{function.__name__}, " in str(caught.value)
    assert not (tmp_path / "harmed").exists()


def test_dotted_names_do_not_reach_through_what_is_allowed():
    # numpy.dtype.type.mro and the like
    data = b"\x80\x04\x8c\x05numpy\x8c\x0edtype.__init__\x93."
    with pytest.raises(pickle.UnpicklingError, match=r"numpy\.dtype\.__init__"):
        loaded(data)


def test_arrays_of_objects_are_not_made():
    """Bytes taken for an array of object pointers would be a way to write memory."""
    with pytest.raises(pickle.UnpicklingError, match="array of"):
        loaded(pickle.dumps(np.array([None, {}], dtype=object)))
    with pytest.raises(pickle.UnpicklingError, match="type"):
        loaded(pickle.dumps(np.zeros(2, dtype=[("a", "i4"), ("b", "O")])))


def test_flags_of_a_type_cannot_be_forged():
    """numpy restores a dtype from whatever flags the file says; ours only takes the byte order."""
    data = pickle.dumps(np.arange(4, dtype=np.float64), 2)
    # The state of the dtype ends with three numbers: size, alignment and the flags, which are set to 63 here
    marker = b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t"
    assert data.count(marker) == 1
    found = loaded(data.replace(marker, marker.replace(b"K\x00", b"K\x3f")))
    assert found.dtype.flags == np.dtype(np.float64).flags and found.tolist() == [0, 1, 2, 3]


def test_a_pickle_cannot_change_the_reader():
    # BUILD on the object that stands for numpy's _reconstruct
    data = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n}U\x05_makeK\x01sb."
    assert "BUILD" in [opcode.name for opcode, _, _ in pickletools.genops(data)]
    with pytest.raises(pickle.UnpicklingError, match="change the reader"):
        loaded(data)
    assert np.array_equal(loaded(pickle.dumps(ARRAYS[0], 2)), ARRAYS[0])


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_damaged_pickles(tmp_path, protocol):
    whole = pickle.dumps({str(i): [1, "x", None] for i in range(50)}, protocol)
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        (tmp_path / "m.pkl").write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"m\.pkl: this pickle is (damaged|not accepted)"):
            load_plain_pickle(tmp_path / "m.pkl")


def test_missing_pickle_and_pickle_without_masks(tmp_path):
    with pytest.raises(DataError, match=r"absent\.pkl: there is no such file\."):
        load_plain_pickle(tmp_path / "absent.pkl")
    (tmp_path / "list.pkl").write_bytes(pickle.dumps([1]))
    with pytest.raises(DataError, match="contains list where a dictionary of masks is expected"):
        list(read_mask_store(tmp_path / "list.pkl"))


def test_masks_in_a_pickle(tmp_path):
    mask = {"size": (np.int64(2), np.int64(3)), "counts": b"06"}
    data = io.BytesIO()
    pickle.dump({3: [mask, None], "4": [None]}, data, protocol=2)
    (tmp_path / "mask_dict.pkl").write_bytes(data.getvalue())
    stored = dict(read_mask_store(tmp_path / "mask_dict.pkl"))
    assert stored == {"3": [{"size": [2, 3], "counts": "06"}, None], "4": [None]}
