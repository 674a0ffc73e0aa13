"""Masks, JSON and pickles that crashed the interpreter, hung, took gigabytes, or were repaired in silence."""

import json
import pickle
import tracemalloc

import numpy as np
import pytest

from sama.data.json_text import JSONGuard, parse_json
from sama.data.masks import decode_rle, encode_rle, to_rle, union
from sama.data.pickles import load_plain_pickle
from sama.data.readers.streams import stream_list, stream_object
from sama.data.records import DataError


SIZE = (24, 32)


# Polygons and run-length codes, before the C code


@pytest.mark.parametrize(
    ("polygon", "message"),
    [
        ([0, 0, float("nan"), 0, 10, 10], "is made of finite numbers, got nan"),
        ([0, 0, float("inf"), 0, 10, 10], "is made of finite numbers, got inf"),
        ([0, 0, 10**400, 0, 10, 10], "is made of finite numbers, got 1000"),
        ([0, 0, "5", 0, 10, 10], "is made of finite numbers, got '5'"),
        ([0, 0, True, 0, 10, 10], "is made of finite numbers, got True"),
        ([0, 0, 2**31, 0, 10, 10], r"point \(2.14748e\+09, 0\), far outside its image of 24 x 32"),
        ([0, 0, 1e7, 0, 10, 10], r"point \(1e\+07, 0\), far outside"),
        ([0, 0, 10, 0, 10, -1e9], r"point \(10, -1e\+09\), far outside"),
        ([0, 0, 31, 23] * 50_000, "have 200006 numbers, more than 100000"),
        ([0, 0, 31, 23] * 20_000, "are 1240024 pixels long together, more than 1000000"),
        ([0.1, 0.1, 0.9, 0.1, 0.5, 0.9], "lie inside 0..1 of an image of 24 x 32.*look normalised"),
    ],
)
def test_polygons(polygon, message):
    with pytest.raises(ValueError, match=message):
        to_rle([[1, 1, 9, 1, 9, 9], polygon] if "normalised" not in message else [polygon], SIZE)


def test_a_polygon_that_sticks_out_is_cut_at_the_image():
    mask = decode_rle(to_rle([[-3, -3, 12, -3, 12, 30, -3, 30]], SIZE))
    expected = np.zeros(SIZE, dtype=bool)
    expected[:, :12] = True
    assert np.array_equal(mask, expected)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ([24.0, 32], r"is \[height, width\] in whole pixels, got \[24.0, 32\]"),
        (["24", 32], "in whole pixels, got"),
        ([True, 768], "in whole pixels, got"),
        ([24, 32, 1], "in whole pixels, got"),
        (7, "in whole pixels, got 7"),
        ([-24, -32], "-24 x -32 .* has no pixels"),
        ([0, 5], "0 x 5 .* has no pixels"),
        ([65535, 65535], "65535 x 65535 .* exceeds the limits of 65535 pixels a side and 134217728 pixels"),
        ([1, 2**20], "1 x 1048576 .* exceeds the limits"),
        ([2**70, 1], "in whole pixels, got"),
    ],
)
@pytest.mark.parametrize(
    "use",
    [
        to_rle,
        decode_rle,
        lambda code: decode_rle(code, SIZE, resize=True),
        lambda code: union([code, code]),
        lambda code: to_rle([[0, 0, 5, 0, 5, 5]], code["size"]),
    ],
)
def test_sizes_are_checked_before_anything_is_decoded(size, message, use):
    with pytest.raises(ValueError, match=message):
        use({"size": size, "counts": [768]})


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([100.0, 668], "counts of a run-length code are whole numbers, got 100.0"),
        (["768"], "are whole numbers, got '768'"),
        ([True, 767], "are whole numbers, got True"),
        ([2**62, 2**62, 2**62, 2**62, 768], "covers 18446744073709552384 pixels instead of 24 x 32"),
        ([2**64], "are whole numbers, got 18446744073709551616"),
        (768, "are text or a list of numbers, got 768"),
        (None, "are text or a list of numbers, got None"),
        ({"0": 768}, "are text or a list of numbers"),
        ("0" * 20_000, "truncated or damaged"),
        ("oooooooooooooo0", "truncated or damaged"),
        ("\ud800", "truncated or damaged"),
    ],
)
def test_counts(counts, message):
    with pytest.raises(ValueError, match=message):
        to_rle({"size": [24, 32], "counts": counts})


def test_a_mask_larger_than_its_frame_is_not_decoded():
    """100 million pixels for a frame of 768: only those that are wanted are looked up."""
    code = {"size": [10_000, 10_000], "counts": [5 * 10**7, 5 * 10**7]}
    tracemalloc.start()
    mask, both = decode_rle(code, SIZE, resize=True), union([code, code, code])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2e6 and both == to_rle(code)
    assert not mask[:, :16].any() and mask[:, 16:].all()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((0, 5)), "0 x 5 .* has no pixels"),
        (np.full((3, 4), np.nan), "contains NaN or infinity"),
        (np.array([["a"]]), "holds numbers, or true and false, got the type <U1"),
        (np.array([[None]]), "got the type object"),
    ],
)
def test_arrays_that_are_no_masks(mask, message):
    with pytest.raises(ValueError, match=message):
        encode_rle(mask)


# JSON


def test_deep_json_is_refused_in_its_bytes(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"[" * 40_000 + b"]" * 40_000)
    tracemalloc.start()
    with pytest.raises(DataError, match=r"a\.json: is truncated or not JSON at its start \(is nested more than 100 "):
        list(stream_list(path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5e6
    with pytest.raises(ValueError, match="^is nested more than 100 levels deep$"):
        parse_json(path.read_bytes())
    path.write_bytes(b'{"a": ' * 40_000)
    with pytest.raises(DataError, match="nested more than 100"):
        list(stream_object(path))
    assert parse_json(b"[" * 100 + b"]" * 100) is not None


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 1000])
def test_depth_is_counted_outside_of_text_alone(piece):
    """Brackets in text, escaped quotes and backslashes, in pieces that cut them anywhere."""
    text = json.dumps([{"a": '[{"' * 200 + "\\" * 7, "b\\": ["]", '"[', "\U0001f600"]}] * 3).encode()
    guard = JSONGuard()
    for start in range(0, len(text), piece):
        guard.check(text[start : start + piece])
    assert guard._depth == 0 and not guard._in_string
    deep = b'["\\\\", "\\"[", ' * 101
    guard = JSONGuard()
    with pytest.raises(ValueError, match="more than 100 levels"):
        for start in range(0, len(deep), piece):
            guard.check(deep[start : start + piece])


@pytest.mark.parametrize("piece", [1, 4, 1000])
@pytest.mark.parametrize(
    ("text", "is_whole"),
    [
        (rb'"\ud83d\ude00"', True),
        (rb'"\\ud800"', True),
        (rb'"\ud800"', False),
        (rb'"\ude00"', False),
        (rb'"\ud800\u0041"', False),
        (rb'"\uD83D \uDE00"', False),
        (rb'"\ud83d\\\ude00"', False),
    ],
)
def test_surrogates(text, is_whole, piece):
    guard, pieces = JSONGuard(), [text[start : start + piece] for start in range(0, len(text), piece)]
    if is_whole:
        for one in (*pieces, b""):
            guard.check(one)
        assert parse_json(text)
        return
    with pytest.raises(ValueError, match="half of a Unicode character"):
        for one in (*pieces, b""):
            guard.check(one)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[NaN]", "is not JSON that can be read .NaN is not a JSON number"),
        (b"[-Infinity]", "-Infinity is not a JSON number"),
        (b"[" + b"9" * 5000 + b"]", "is not JSON that can be read"),
        (b'["caf\xe9"]', "is not UTF-8 text .byte 5 is 0xe9"),
        (b"[1,]", "is not JSON .Expecting|is not JSON .Illegal"),
    ],
)
def test_texts_that_are_no_json(tmp_path, content, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse_json(content)
    assert type(caught.value) is ValueError
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.json: is truncated or not JSON (at its start|after item 0)"):
        list(stream_list(tmp_path / "a.json"))


def test_a_byte_order_mark_is_no_error(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf[1, 2]")
    assert [value for _, value in stream_list(tmp_path / "a.json")] == [1, 2]
    assert parse_json(b"\xef\xbb\xbf[1]") == [1]


# Pickles


def pickled(tmp_path, data):
    (tmp_path / "m.pkl").write_bytes(data)
    return load_plain_pickle(tmp_path / "m.pkl")


MODULUS = 2**61 - 1  # hashes of whole numbers are remainders of it


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x80\x02Nr\xff\xff\xff\x3f.", "stores value number 1073741823 as one of its first 3"),
        (b"Np1073741823\n.", "stores value number 1073741823"),
        (b"\x95" + b"\xff" * 7 + b"\x3fN.", "a frame of 4611686018427387903 bytes in a file of 11 bytes"),
        (b"\x8b\xff\xff\xff\x7fab.", "contains a number of 2147483647 bytes"),
        (b"\x8e" + b"\xff" * 7 + b"\x3fab.", "BINBYTES8 ends at byte 4611686018427387912 of a file of 12"),
        (b"B\xff\xff\xff\x7fab.", "BINBYTES ends at byte 2147483652 of a file of 8 bytes"),
        (b"I" + b"9" * 5000 + b"\n.", "contains a number of 5000 characters"),
        (pickle.dumps(10**100), "contains a number of 42 bytes"),
        (pickle.dumps({number * MODULUS: None for number in range(1, 50)}), "a key that is neither text nor a number"),
        (pickle.dumps({number * MODULUS: None for number in range(1, 50)}, 0), "a key that is neither text nor"),
        (pickle.dumps({number * MODULUS for number in range(1, 50)}, 2), "a key that is neither text nor a number"),
        (pickle.dumps({(1, 2): None}), "a key that is neither text nor a number"),
        (pickle.dumps({(1, 2)}, 4), "a key that is neither text nor a number"),
        (pickle.dumps(frozenset({(1, 2)}), 2), "a key that is neither text nor a number"),
        (b"N", "damaged .EOFError: the file ends without STOP"),
        (b"", "damaged .EOFError: the file is empty"),
        (b"\xfe.", "damaged .TypeError"),
        (b"u.", "damaged .IndexError"),
        (b"h\x05.", "damaged|not accepted"),
    ],
)
def test_pickles_that_would_take_memory_or_time(tmp_path, data, message):
    with pytest.raises(DataError, match=message) as caught:
        pickled(tmp_path, data)
    assert "m.pkl: this pickle is" in str(caught.value)


def test_a_pickle_cannot_copy_a_text_again_and_again(tmp_path, monkeypatch):
    monkeypatch.setattr("sama.data.pickles.MAX_COPIED", 10_000)
    text = b"X" + (50_000).to_bytes(4, "little") + b"a" * 50_000
    copy = b"c_codecs\nencode\nh\x00\x8c\x06latin1\x86R0"
    assert pickled(tmp_path, text + b"q\x00" + copy + b".").startswith("aaa")
    with pytest.raises(DataError, match="copies the same values again and again"):
        pickled(tmp_path, text + b"q\x00" + copy * 3 + b".")


@pytest.mark.parametrize("protocol", range(6))
def test_keys_of_plain_pickles(tmp_path, protocol):
    content = {"a": 1, 7: 2, 2**62: 3, -5: 4, 1.5: 5, None: 6, True: 7, "b": {"c": (1, [2], {3, "x"}, 10**30)}}
    assert pickled(tmp_path, pickle.dumps(content, protocol)) == content


def test_a_key_that_an_object_has_twice():
    with pytest.raises(ValueError, match="has the key 'b' 2 times"):
        parse_json(b'[{"a": {"b": 1, "c": 2, "b": 3}}]')
