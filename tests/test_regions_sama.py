"""Every form in which a user may point at something, and one sentence for everything else."""

import json
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from processor_fixtures import noise_video
from pycocotools import mask as coco

from sama.data.masks import frame_code
from sama.objects_sama import MaskTrack, as_region, prepare_region
from sama.regions_sama import MAX_LINE_POINTS, MAX_MASK_PIXELS, MAX_POINTS, Region, decode_rle, mask_array
from sama.video_sama import SamaVideo


@pytest.fixture(scope="module")
def video():
    return SamaVideo.open(noise_video(48))  # 30 x 20 pixels, 24 frames a second


def prepared(region, video):
    return prepare_region(region, video, [0], "mask")


def blob(height=20, width=30) -> np.ndarray:
    mask = np.zeros((height, width), dtype=bool)
    mask[3:9, 5:17] = True
    mask[12, 20] = True
    return mask


# Masks


def mask_forms(mask: np.ndarray) -> dict:
    compressed = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    text = {"size": compressed["size"], "counts": compressed["counts"].decode()}
    column = np.concatenate(([0], mask.T.ravel().astype(int), [-1]))
    edges = np.flatnonzero(np.diff(np.concatenate(([0], column[1:-1], [2]))) != 0)
    runs = np.diff(np.concatenate(([0], edges))).tolist()
    palette = Image.fromarray(mask.astype(np.uint8), "L").convert("P")
    palette.putdata(mask.astype(np.uint8).ravel().tolist())
    return {
        "bool array": mask,
        "float array": mask.astype(np.float32) * 0.5,
        "nested lists": mask.astype(int).tolist(),
        "tensor": torch.from_numpy(mask),
        "bfloat16 tensor": torch.from_numpy(mask).to(torch.bfloat16),
        "grey picture": Image.fromarray(mask.astype(np.uint8) * 255),
        "colour picture": Image.fromarray(np.stack([mask.astype(np.uint8) * 255] * 3, -1)),
        "palette picture": palette,
        "one bit picture": Image.fromarray(mask),
        "COCO run lengths": {"size": list(mask.shape), "counts": runs},
        "compressed run lengths": text,
        "compressed run lengths as bytes": dict(compressed),
        "run lengths from JSON": json.loads(json.dumps(text)),
    }


@pytest.mark.parametrize("form", mask_forms(blob()))
def test_forms_of_a_mask(form, video):
    region = prepared({"frame": 12, "mask": mask_forms(blob())[form]}, video)
    assert region.frame == 12 and region.mask.dtype == bool
    np.testing.assert_array_equal(region.mask, blob())


def test_run_lengths_as_pycocotools_reads_them():
    rng = np.random.default_rng(0)
    for density in (0.0, 0.02, 0.5, 0.98, 1.0):
        for shape in ((1, 1), (7, 300), (311, 40)):
            mask = rng.random(shape) < density
            code = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
            np.testing.assert_array_equal(decode_rle(code), mask)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ({"size": [20, 30]}, "need counts"),
        ({"counts": [600]}, "need a size"),
        ({"size": [20.0, 30], "counts": [600]}, r"need a size .* got \[20.0, 30\]"),
        ({"size": ["20", "30"], "counts": [600]}, "need a size"),
        ({"size": [True, 600], "counts": [600]}, "need a size"),
        ({"size": [-20, -30], "counts": [600]}, "need a size"),
        ({"size": [65535, 65535], "counts": [65535**2]}, f"more than {MAX_MASK_PIXELS} pixels"),
        ({"size": [20, 30], "counts": [600.0]}, "need counts"),
        ({"size": [20, 30], "counts": ["600"]}, "need counts"),
        ({"size": [20, 30], "counts": [True, 599]}, "need counts"),
        ({"size": [20, 30], "counts": [599]}, "add up to 599, .* size 20 x 30 has 600"),
        ({"size": [20, 30], "counts": [700, -100]}, "add up to 600, with -100 as the smallest"),
        ({"size": [20, 30], "counts": "\x00\x01"}, "truncated or damaged"),
        ({"size": [20, 30], "counts": "é"}, "truncated or damaged"),
        ({"size": [20, 30], "counts": "o" * 50}, "truncated or damaged"),
        ({"size": [20, 30], "counts": "o"}, "truncated or damaged"),
        ({"size": [10, 30], "counts": [300]}, r"shape \(10, 30\), the frames of 'array' are \(20, 30\)"),
        (np.full((20, 30), np.nan), "NaN in 600 of its 600"),
        (np.full((20, 30), "a"), "must be numbers"),
        ([[0, 1], [0]], "rows of different lengths"),
        ("mask.png", "must be numbers"),
        (np.ones((1, 20, 30)), r"shape \(1, 20, 30\)"),
        (np.zeros((20, 30)), "on frame 0 is empty"),
    ],
)
def test_wrong_masks(mask, message, video):
    with pytest.raises(ValueError, match=message):
        prepared({"mask": mask}, video)


def test_masks_on_several_frames_in_any_form(video):
    forms = mask_forms(blob())
    empty = np.zeros((20, 30), dtype=bool)
    masks = [empty, forms["compressed run lengths"], forms["tensor"]]
    assert prepared({"frame": [0, 4, 7], "mask": masks}, video).frame == 4


def test_masks_from_the_json_of_an_answer(video):
    track = MaskTrack(48, 20, 30)
    track[30] = track[31] = blob()
    masks = json.loads(json.dumps([frame_code(track, frame) for frame in range(48)]))
    assert masks[0] is None and prepared({"frame": 30, "mask": masks[30]}, video).mask.sum() == blob().sum()
    region = prepared({"frame": list(range(48)), "mask": masks}, video)
    assert region.frame == 30 and (region.mask == blob()).all()
    with pytest.raises(ValueError, match="The mask of the region is empty on all 2 frames given"):
        prepared({"frame": [0, 1], "mask": masks[:2]}, video)
    with pytest.raises(ValueError, match="The region has no box on any of the 2 frames given"):
        prepared({"frame": [0, 1], "box": [None, None]}, video)


def test_mask_array_of_a_picture_with_alpha():
    picture = Image.new("RGBA", (4, 3), (0, 0, 0, 255))
    picture.putpixel((2, 1), (9, 0, 0, 255))
    assert np.argwhere(mask_array(picture)).tolist() == [[1, 2]]


def test_the_darkest_colours_belong_to_a_mask():
    """Numbers of objects that are written as colours begin with them; as grey they would be black."""
    picture = Image.new("RGB", (4, 3))
    picture.putpixel((2, 1), (1, 0, 0))
    picture.putpixel((3, 2), (0, 0, 4))
    assert np.argwhere(mask_array(picture)).tolist() == [[1, 2], [2, 3]]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_do_not_belong_to_a_mask(mode):
    """Programs that cut out an object often leave its surroundings white and transparent."""
    picture = Image.new("RGBA", (6, 5), (255, 255, 255, 0))
    picture.paste((255, 255, 255, 255), (2, 1, 4, 3))
    assert np.argwhere(mask_array(picture.convert(mode))).tolist() == [[1, 2], [1, 3], [2, 2], [2, 3]]


def test_a_transparent_colour_does_not_belong_to_a_mask():
    picture = Image.new("L", (4, 3), 255)
    picture.putpixel((2, 1), 9)
    picture.info["transparency"] = 255
    assert np.argwhere(mask_array(picture)).tolist() == [[1, 2]]


# Frames and times


@pytest.mark.parametrize("frame", [1.5, 12.0, float("nan"), "3", None, True, [0, 1.5], {"at": 3}])
def test_wrong_frames(frame):
    with pytest.raises(ValueError, match="frame must be a whole number or a list of them"):
        Region(frame=frame, box=(0, 0, 9, 9))


def test_time_instead_of_a_frame(video):
    assert prepared({"time": 0.0, "box": (0, 0, 9, 9)}, video).frame == 0
    assert prepared({"time": 0.99, "box": (0, 0, 9, 9)}, video).frame == 23
    assert prepared({"time": 1, "box": (0, 0, 9, 9)}, video).frame == 24
    assert prepared({"time": [0.5, 1.0], "box": [(0, 0, 2, 2), (0, 0, 9, 9)]}, video).frame == 24
    with pytest.raises(ValueError, match=r"no frame at 2 s: 'array' lasts 2 s \(48 frames at 24 a second\)"):
        prepared({"time": 2.0, "box": (0, 0, 9, 9)}, video)
    for time in (-1.0, float("nan"), float("inf"), "3", True):
        with pytest.raises(ValueError, match="time must be seconds from 0 on"):
            Region(time=time, box=(0, 0, 9, 9))
    with pytest.raises(ValueError, match="takes either a frame or a time, got frame 3 and 1.0 s"):
        Region(frame=3, time=1.0, box=(0, 0, 9, 9))
    with pytest.raises(ValueError, match="takes either a frame or a time, got frame 0 and 1.0 s"):
        prepared({"frame": 0, "time": 1.0, "box": (0, 0, 9, 9)}, video)


# Boxes and points


def test_a_box_that_sticks_out_by_less_than_a_pixel_is_clipped(video):
    region = prepared({"box": [-0.4, 2.0, 30.9, 20.5]}, video)
    assert region.points.tolist() == [[0, 2], [30, 20]] and region.area == 30 * 18
    with pytest.raises(ValueError, match="does not lie inside the 30x20 pixels"):
        prepared({"box": [-1.0, 2.0, 30.0, 20.0]}, video)


@pytest.mark.parametrize(
    ("region", "message"),
    [
        ({"box": (0.1, 0.2, 0.5, 0.9)}, r"looks normalised to 0..1; .* width 30 and the height 20"),
        ({"points": [(0.4, 0.6)]}, "points .* looks normalised"),
        ({"scribble": [(0.4, 0.6)] * 5000}, "^The scribble .{1,300} looks normalised"),
        ({"scribble": [(0.4, 0.6), (0.9, 1.0)]}, "looks normalised"),
        ({"box": ("0", "0", "9", "9")}, "takes 4 numbers"),
        ({"box": (False, True, 9, 9)}, "takes 4 numbers"),
        ({"box": np.array([True] * 4)}, "takes 4 numbers"),
        ({"box": (0, 0, 10**400, 9)}, "takes 4 numbers"),
        ({"box": (0, 0, float("inf"), 9)}, "does not lie inside"),
        ({"box": {"x": 1}}, "takes 4 numbers"),
        ({"box": "0,0,9,9"}, "takes 4 numbers"),
        ({"points": [("3", "5")]}, r"must be a list of \(x, y\) pairs"),
        ({"points": [(3, True)]}, r"must be a list of \(x, y\) pairs"),
        ({"points": [(3, 5), (3,)]}, r"must be a list of \(x, y\) pairs"),
        ({"points": [[[3, 5]]]}, r"must be a list of \(x, y\) pairs"),
        ({"points": {(3, 5)}}, r"must be a list of \(x, y\) pairs"),
        ({"points": [(3, 5)] * (MAX_POINTS + 1)}, "at most 1000 points coordinates, got 1001"),
        ({"scribble": np.zeros((MAX_LINE_POINTS + 1, 2))}, "at most 10000 scribble coordinates, got 10001"),
        ({"scribble": [(3, 5)] * 10**6}, "at most 10000 scribble coordinates, got 1000000"),
        ({"points": [(3, 5)], "labels": [1.0]}, "takes as many labels"),
        ({"points": [(3, 5)], "labels": [True]}, "takes as many labels"),
        ({"points": [(3, 5)], "labels": "1"}, "takes as many labels"),
        ({"points": [(3, 5)], "labels": 5}, "takes as many labels"),
        ({"frame": [0, 3], "points": 7}, "takes one prompt a frame, got 2 frames, 1 points prompts"),
        ({"frame": [0, 3], "box": [(0, 0, 9, 9)]}, "takes one prompt a frame"),
        ({"bbox": (0, 0, 9, 9)}, r"unknown fields bbox; it takes frame, time, .* Write 'box' instead of 'bbox'"),
        ({"point": (3, 5), "label": 1}, "Write 'labels' instead of 'label' and 'points' instead of 'point'"),
        ({7: 1}, "unknown fields 7"),
        ({"object": 1}, "gives an object by its number, which a `ChatSession` knows"),
        ({}, "takes exactly one of mask, box, points, scribble; got none"),
    ],
)
def test_wrong_regions(region, message, video):
    with pytest.raises(ValueError, match=message):
        prepared(region, video)


def test_arrays_and_tensors_of_numbers(video):
    for box in (np.array([1, 2, 9, 9]), torch.tensor([1.0, 2.0, 9.0, 9.0]), [np.float32(1), np.int64(2), 9, 9]):
        assert prepared({"box": box}, video).points.tolist() == [[1, 2], [9, 9]]
    assert prepared({"points": torch.tensor([[3, 5]])}, video).points.tolist() == [[3, 5]]
    assert as_region({"points": [(3, 5)], "labels": np.array([1])}).kind == "points"


# Found in review


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("region", "message"),
    [
        ({"points": np.array(3.0)}, r"must be a list of \(x, y\) pairs"),
        ({"points": torch.tensor(3.0)}, r"must be a list of \(x, y\) pairs"),
        ({"frame": [0, 3], "points": torch.tensor(3.0)}, "takes one prompt a frame, got 2 frames, 1 points prompts"),
        ({"frame": [0], "points": 7}, "takes one prompt a frame, got 1 frames, 1 points prompts"),
        ({"frame": [0], "mask": {"size": [20, 30], "counts": "0"}}, "1 mask prompts and 1 lists of labels; give each"),
        ({"frame": [0], "points": [[(3, 5)]], "labels": 1}, "takes one prompt a frame"),
        ({"box": torch.tensor([True] * 4)}, "takes 4 numbers"),
        ({"box": torch.tensor([1j] * 4)}, "takes 4 numbers"),
        ({"box": nested(5000)}, "takes 4 numbers"),
        ({"frame": nested(5000), "box": (0, 0, 9, 9)}, "frame must be a whole number"),
        ({"time": 10**400, "box": (0, 0, 9, 9)}, "time must be seconds from 0 on"),
        ({"time": 1e308, "box": (0, 0, 9, 9)}, "no frame at 1e"),
        ({"mask": {"size": [20, 30], "counts": "\ud800"}}, "run-length code of the mask is truncated"),
        ({"mask": torch.ones(20, 30, dtype=torch.complex64)}, "must be numbers"),
    ],
)
def test_more_wrong_regions(region, message, video):
    with pytest.raises(ValueError, match=message):
        prepared(region, video)


def test_a_mask_in_a_damaged_picture(video):
    file = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8)).save(file, "png")
    picture = Image.open(BytesIO(file.getvalue()[:200]))
    with pytest.raises(ValueError, match="The picture of a region's mask cannot be decoded"):
        prepared({"mask": picture}, video)


def test_tensors_of_frames_labels_and_sparse_masks(video):
    region = {"frame": torch.tensor([2, 3]), "box": torch.tensor([[0, 0, 2, 2], [0, 0, 9, 9]])}
    assert prepared(region, video).frame == 3
    assert prepared({"points": [(3, 5)], "labels": torch.tensor([1])}, video).labels == [1]
    assert prepared({"mask": torch.from_numpy(blob()).float().to_sparse()}, video).mask.sum() == blob().sum()
