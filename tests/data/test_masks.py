"""Masks: every encoding of the annotation files, damaged codes, unions, boxes."""

import numpy as np
import pytest
from pycocotools import mask as coco

from sama.data.masks import decode_rle, encode_rle, filled_box, jitter_box, tight_box, to_rle, union


# A 2 x 3 picture with the left column and the pixel at the lower right: column-major 1 1 0 0 0 1
PIXELS = np.array([[1, 0, 0], [1, 0, 1]], dtype=bool)
RUNS = {"size": [2, 3], "counts": [0, 2, 3, 1]}


def canvas(*boxes, height=24, width=32):
    mask = np.zeros((height, width), dtype=bool)
    for x1, y1, x2, y2 in boxes:
        mask[y1:y2, x1:x2] = True
    return mask


def compressed(mask):
    return coco.encode(np.asfortranarray(mask.astype(np.uint8)))


def test_uncompressed_code_is_column_major_and_begins_with_zeros():
    assert np.array_equal(decode_rle(RUNS), PIXELS)


def test_compressed_codes_with_str_and_bytes():
    code = compressed(PIXELS)
    text = {"size": [2, 3], "counts": code["counts"].decode()}
    assert np.array_equal(decode_rle(code), PIXELS)
    assert np.array_equal(decode_rle(text), PIXELS)
    assert to_rle(code) == to_rle(RUNS) == encode_rle(PIXELS) == text


def test_none_is_an_empty_mask_of_the_frame():
    assert to_rle(None) is None and to_rle([]) is None
    assert decode_rle(None, size=(2, 3)).tolist() == [[False] * 3] * 2
    with pytest.raises(ValueError, match="needs the height and width"):
        decode_rle(None)


def test_lists_of_codes_and_of_polygons_are_united_not_summed():
    """data.md 6.3: the release adds them up, which gives 2 where they overlap."""
    expected = canvas((2, 2, 12, 12), (8, 8, 20, 20))
    codes = [compressed(canvas((2, 2, 12, 12))), compressed(canvas((8, 8, 20, 20)))]
    polygons = [[2, 2, 12, 2, 12, 12, 2, 12], [8, 8, 20, 8, 20, 20, 8, 20]]
    for entry in (codes, polygons):
        decoded = decode_rle(entry, size=(24, 32))
        assert decoded.dtype == bool
        assert np.array_equal(decoded, expected)


@pytest.mark.parametrize("seed", range(20))
def test_run_lengths_are_read_as_pycocotools_writes_them(seed):
    rng = np.random.default_rng(seed)
    mask = rng.random((int(rng.integers(1, 90)), int(rng.integers(1, 90)))) < rng.random() ** 3
    assert np.array_equal(decode_rle(encode_rle(mask)), mask)


@pytest.mark.parametrize("cut", [1, 3, 5])
def test_a_truncated_code_is_an_error(cut):
    """pycocotools decodes it without an error and returns uninitialised memory behind the last run."""
    code = encode_rle(canvas((3, 3, 20, 20)))
    damaged = code | {"counts": code["counts"][:-cut]}
    with pytest.raises(ValueError, match="truncated or damaged"):
        decode_rle(damaged)
    with pytest.raises(ValueError, match="truncated or damaged"):
        to_rle(damaged)


@pytest.mark.parametrize(
    "counts", ["", "\n\n", "zzzz", "~~~~~~~~~~~~~~~~~~~~~~0", "h\xe9llo", [3, 2], [7], [-1, 7], []]
)
def test_damaged_codes(counts):
    with pytest.raises(ValueError, match="truncated or damaged"):
        decode_rle({"size": [2, 3], "counts": counts})


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("abc", "a mask is null, a run-length code or a list of them, got str"),
        ({"counts": "12"}, "a mask is null"),
        ([[1, 2, 3, 4]], "at least 3 pairs"),
        ([[1, 2, 3, 4, 5, 6, 7]], "at least 3 pairs"),
        ([[]], "at least 3 pairs"),
    ],
)
def test_what_is_no_mask(entry, message):
    with pytest.raises(ValueError, match=message):
        decode_rle(entry, size=(24, 32))


def test_polygons_need_a_size():
    with pytest.raises(ValueError, match="height and width of their image"):
        to_rle([[0, 0, 4, 0, 4, 4]])


def test_size_must_fit_unless_it_is_to_be_resized():
    code = encode_rle(canvas((8, 8, 24, 16), height=48, width=64))
    with pytest.raises(ValueError, match=r"48 x 64 \(height x width\), its frame 24 x 32"):
        decode_rle(code, size=(24, 32))
    assert np.array_equal(decode_rle(code, size=(24, 32), resize=True), canvas((4, 4, 12, 8)))


def test_union():
    both = union([encode_rle(canvas((0, 0, 4, 4))), None, RUNS | {"size": [24, 32], "counts": [768 - 24, 24]}])
    assert np.array_equal(decode_rle(both), canvas((0, 0, 4, 4), (31, 0, 32, 24)))
    assert union([None, None]) is None
    with pytest.raises(ValueError, match="cannot be united"):
        union([RUNS, encode_rle(canvas((0, 0, 4, 4)))])


def test_filled_box():
    shape = canvas((4, 2, 6, 10), (4, 8, 20, 10))
    assert tight_box(shape) == (4, 2, 20, 10)
    assert np.array_equal(filled_box(shape), canvas((4, 2, 20, 10)))
    assert tight_box(canvas()) is None and not filled_box(canvas()).any()


def test_jitter_box_stays_near_and_inside_and_is_decided_by_its_generator():
    shape = canvas((10, 4, 30, 24))
    boxes = [tight_box(jitter_box(shape, np.random.default_rng(seed))) for seed in range(50)]
    assert boxes[3] == tight_box(jitter_box(shape, np.random.default_rng(3)))
    assert len(set(boxes)) > 10
    for x1, y1, x2, y2 in boxes:
        assert 8 <= x1 <= 12 and 2 <= y1 <= 6 and 28 <= x2 <= 32 and 22 <= y2 <= 24
    assert jitter_box(canvas((31, 23, 32, 24)), np.random.default_rng(0), amount=0.9).any()
    assert not jitter_box(canvas(), np.random.default_rng(0)).any()


def test_encode_rle_wants_two_dimensions():
    with pytest.raises(ValueError, match=r"\(height, width\), got \(1, 2, 3\)"):
        encode_rle(PIXELS[None])
