"""Labels of the auxiliary heads agree with the clips that they describe."""

import numpy as np
import pytest

from sama.recipes.sama_tiny.examples import moment_of
from sama.recipes.sama_tiny.labels import (
    CLOSED_SETS,
    MAX_FRAMES,
    WINDOW,
    cells,
    draw_single_masks,
    key_moment,
    object_classes,
    objects_of_cells,
    patch_labels,
    places,
    track_labels,
)
from sama.toy_world.clip import Clip
from sama.toy_world.motion import MOTIONS, ToyObject, Trajectory
from sama.toy_world.shapes import COLOURS, SHAPES
from sama.toy_world.world import ToyWorld


GRID = 4


def clip_of(*tracks: list[tuple[int, int] | None], side: int = 8) -> Clip:
    """A clip of 32 x 32 pixels with squares at these corners (row, column); `None` where a thing is not there."""
    masks = np.zeros((len(tracks), len(tracks[0]), 32, 32), dtype=bool)
    for thing, track in enumerate(tracks):
        for frame, corner in enumerate(track):
            if corner is not None:
                masks[thing, frame, corner[0] : corner[0] + side, corner[1] : corner[1] + side] = True
    objects = [ToyObject("square", "red", "small", motion="zigzag", direction="up") for _ in tracks]
    there = [np.array([corner is not None for corner in track]) for track in tracks]
    trajectories = [Trajectory(np.zeros((len(own), 2)), np.zeros(len(own)), own) for own in there]
    return Clip(objects, trajectories, masks, masks.sum((2, 3)))


@pytest.fixture(scope="module")
def clips():
    world = ToyWorld({"split": "train", "tasks": {"dialogue": 1}})
    return [world.generate(index)[1] for index in range(5)]


def test_cells_by_hand():
    mask = np.zeros((8, 8), dtype=bool)
    mask[0:2, 4:6] = True  # the upper left quarter of the upper right cell of 2 x 2
    held = cells(mask, 2)
    assert held[1].tolist() == pytest.approx([0.25, 0.25 * (-1 - 1 / 3) / 2, 0.25 * (-1 - 1 / 3) / 2])
    assert not held[[0, 2, 3]].any()


def test_single_masks_are_visible_and_match_their_places():
    masks, classes, spots = draw_single_masks(40, np.random.default_rng(0))
    assert masks.any((1, 2)).all() and len(set(classes[:, 1].tolist())) > 8 and (classes[:, 0] == -100).all()
    rows, columns = np.nonzero(masks[7])
    side = masks.shape[-1]
    assert spots[7].tolist() == pytest.approx(
        [1, (columns.mean() + 0.5) / side, (rows.mean() + 0.5) / side, masks[7].sum() ** 0.5 / side]
    )


def test_classes_and_places_are_those_of_the_clip(clips):
    for clip in clips:
        for thing, one in enumerate(clip.objects):
            colour, shape, size, _, _ = object_classes(clip, thing)
            assert (list(COLOURS)[colour], SHAPES[shape]) == (one.colour, one.shape)
            assert (size == -100) == (one.motion in ("grow", "shrink"))
        found = places(clip, [0], [0])[0, 0]
        if clip.seen[0, 0]:
            rows, columns = np.nonzero(clip.masks[0, 0])
            assert found[1] == pytest.approx((columns.mean() + 0.5) / clip.masks.shape[-1])
            assert found[2] == pytest.approx((rows.mean() + 0.5) / clip.masks.shape[-2])


def test_masks_are_enlarged_for_a_grid_that_does_not_divide_them():
    labels = patch_labels(clip_of([(0, 0)], side=16), 0, 12)
    occupied = labels["occupied"].reshape(12, 12)
    assert occupied[:6, :6].all() and occupied.sum() == 36
    assert labels["offsets"][0].tolist() == pytest.approx([0.25 - 1 / 24, 0.25 - 1 / 24, 0.5])


def test_an_object_that_is_never_seen_has_no_moment():
    clip = clip_of([(0, 0), (0, 0)], [None, None])
    clip.objects[1].motion = "appear"
    assert key_moment(clip, 1) == -1


def test_the_object_of_a_cell_covers_most_of_it():
    clip = clip_of([(0, 2)], [(0, 10)])  # six of eight columns of the first cell; the second takes six of the next
    assert objects_of_cells(clip, [0], GRID)[0].tolist() == [0, 1, 1, -1] + [-1] * 12


def test_patches_know_the_centre_and_the_outline_of_their_object():
    labels = patch_labels(clip_of([(8, 8)]), 0, GRID)
    assert np.flatnonzero(labels["occupied"]).tolist() == [5]
    assert labels["offsets"][5].tolist() == pytest.approx([0, 0, 0.25])
    window = labels["windows"].reshape(-1, WINDOW, WINDOW)[5]
    third = WINDOW // 3
    assert window[third : 2 * third, third : 2 * third].all() and window.sum() == third**2
    assert labels["patch looks"][5].tolist() == [0, 1, 0] and (labels["patch looks"][6] == -100).all()


def test_a_cell_remembers_what_was_last_seen_in_it():
    there, gone = [(0, 0)] * 3, [(8, 16), (8, 16), None]
    labels = track_labels(clip_of(there, gone), [0, 1, 2], GRID)
    moments, positions = np.divmod(labels["cells"], GRID**2)
    assert list(zip(moments.tolist(), positions.tolist(), strict=True)) == [(t, p) for t in range(3) for p in (0, 6)]
    last = labels["past"][-1]
    assert last[:3, 0].tolist() == [1, 1, 0] and not last[3:].any() and last.shape == (MAX_FRAMES, 4)
    assert labels["past_known"].sum(1).tolist() == [1, 1, 2, 2, 3, 3]
    assert labels["movements_known"].sum(1).tolist() == [0, 0, 1, 1, 2, 1]  # the second object is gone in the end
    centres = labels["centres"].reshape(3, -1)
    assert centres.sum(1).tolist() == [2, 2, 1] and centres[0, 6] == 1
    # Motion and its direction cannot be known before the last two frames
    assert (labels["classes"][:2, 3:] == -100).all() and (labels["classes"][2:, 3:] >= 0).all()


def test_movements_are_those_between_neighbouring_frames():
    labels = track_labels(clip_of([(0, 0), (0, 8), (16, 8)]), [0, 1, 2], GRID)
    last = labels["cells"] >= 2 * GRID**2
    assert labels["movements"][last][:, :2].tolist() == [[[0.25, 0], [0, 0.5]]]
    assert labels["movements_known"][last].tolist() == [[True, True, *[False] * (MAX_FRAMES - 3)]]


def test_objects_are_counted_when_they_appear():
    clip = clip_of([(0, 0), None], [(8, 16), (0, 0)], [None, (8, 16)])
    counts = track_labels(clip, [0, 1], GRID)["counts"].tolist()
    assert counts == [1] * 6 + [2] * 10 + [2] * 6 + [3] * 10


def test_alike_objects_are_counted_when_they_were_seen():
    clip = clip_of([(0, 0)] * 3, [(8, 16), None, None], [None, (0, 16), (0, 16)])
    clip.objects[1].shape, clip.objects[2].motion = "circle", "left"
    labels = track_labels(clip, [0, 1, 2], GRID)
    assert labels["group_cells"].tolist() == [16 * frame + cell for frame in range(3) for cell in range(12, 16)]
    counts, sizes = labels["groups"][::GRID], [len(CLOSED_SETS[kind]) for kind in ("colour", "shape", "motion")]
    colours, shapes, motions = np.split(counts, np.cumsum(sizes)[:-1], axis=1)
    assert colours[:, 0].tolist() == [2, 3, 3] and not colours[:, 1:].any()
    assert shapes[:, SHAPES.index("square")].tolist() == [1, 2, 2]
    assert shapes[:, SHAPES.index("circle")].tolist() == [1, 1, 1]
    left, zigzag = (list(MOTIONS).index(motion) for motion in ("left", "zigzag"))
    assert (motions[0] == -100).all() and motions[1:, [left, zigzag]].tolist() == [[1, 2], [1, 2]]


def test_a_cell_knows_its_frame_and_when_its_object_stopped():
    clip = clip_of([(0, 0)] * 9, [(8, 16)] * 9)
    clip.objects[0].motion = "stop"
    clip.objects[0].key = 0.5  # at rest in frame 4 of 9, between the dense frames 3 and 6
    labels = track_labels(clip, [0, 3, 6, 8], GRID)
    assert labels["time"].tolist() == [frame for frame in range(4) for _ in range(GRID**2)]
    moments, positions = np.divmod(labels["cells"], GRID**2)
    found = labels["moments"][positions == 0].tolist()
    assert found == pytest.approx([-1, -1, (1 + 1 / 3) / MAX_FRAMES, (1 + 1 / 3) / MAX_FRAMES])
    assert (labels["moments"][positions != 0] == -1).all() and moments.max() == 3
    assert [moment_of(clip, thing) for thing in (0, 1)] == [0.5, -1]  # of the whole clip


def test_two_objects_in_one_cell_are_counted():
    clip = clip_of([(0, 0)], [(1, 1)], [(2, 2)], side=3)
    assert track_labels(clip, [0], GRID)["centres"][0] == 2  # two or more
