"""Toy world: reproducible bytes, exact visible masks, motions that match their names, and export to disk."""

import json
import pickle
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from sama.data.readers.mask_stores import read_mask_store
from sama.data.readers.sama239k import read_sama239k_conversation, read_sama239k_description
from sama.toy_world import backgrounds
from sama.toy_world.backgrounds import PHOTOS, draw_background
from sama.toy_world.clip import DEFAULT_TASKS, ClipConstraints, ToySettings, draw, events, propose_clips
from sama.toy_world.export import ANNOTATIONS, STORES, write_records, write_sama239k
from sama.toy_world.motion import DIRECTIONS, MOTIONS, START_SIZES, ToyObject, compute_trajectory
from sama.toy_world.shapes import COLOURS, SEEN_PAIRS, SHAPES, SIZES, UNSEEN_PAIRS, stamp
from sama.toy_world.world import ToyWorld


SMALL = ToySettings(frames=(8, 12), height=48, width=48)
FILM = replace(SMALL, tasks={"dialogue": 1, "description": 1, "refer_motion": 1})


def decoded(codes: list, size: tuple[int, int]) -> np.ndarray:
    return np.stack([np.zeros(size, bool) if code is None else coco.decode(code).astype(bool) for code in codes])


def clips(settings: ToySettings, number: int, seed: int = 0):
    world = ToyWorld(settings, seed)
    return [world.generate(index, frames=False)[1] for index in range(number)]


def test_same_seed_same_bytes():
    first, second = ToyWorld(SMALL, seed=3), ToyWorld(json.loads(json.dumps(SMALL.__dict__)), seed=3)
    order = [5, 0, 3, 0]
    frames, records, masks = zip(*(first[index] for index in order), strict=True)
    for index, *expected in reversed(list(zip(order, frames, records, masks, strict=True))):
        again = second[index]
        assert again.frames.tobytes() == expected[0].tobytes()
        assert json.dumps(again.record) == json.dumps(expected[1]) == json.dumps(second.describe(index))
        assert again.masks.tobytes() == expected[2].tobytes()


def test_seed_split_and_index_give_different_clips():
    worlds = [ToyWorld(SMALL, seed=0), ToyWorld(SMALL, seed=1), ToyWorld(replace(SMALL, split="val"), seed=0)]
    samples = [world[index].frames.tobytes() for world in worlds for index in range(4)]
    assert len(set(samples)) == len(samples)


@pytest.mark.parametrize(("height", "width"), [(48, 48), (40, 64)])
def test_sample_matches_its_record(height, width):
    world = ToyWorld(replace(SMALL, height=height, width=width), seed=1)
    tasks = set()
    for index in range(40):
        frames, record, masks = world[index]
        toy = record.get("video", record.get("image"))["toy"]
        tasks.add(toy["task"])
        num_frames = 1 if "image" in record else len(frames)
        assert frames.dtype == np.uint8 and frames.shape == (num_frames, height, width, 3)
        assert masks.dtype == bool and masks.shape == (len(record["objects"]), num_frames, height, width)
        assert 2 <= len(masks) <= 4 and ("image" in record or 8 <= num_frames <= 12)
        for name, item in record["objects"].items():
            assert (decoded(item["masks"], (height, width)) == masks[int(name)]).all()
        named = [part for message in record["messages"] for part in message["content"] if part["type"] != "text"]
        for part in named:
            for name in part.get("objects", [part.get("object")]):
                assert masks[int(name)].any()
        assert all(0 <= event["first"] <= event["last"] < num_frames for event in toy["events"])
    assert tasks == set(DEFAULT_TASKS)


def test_masks_are_the_visible_pixels():
    """A mask is the silhouette of the object minus those of the objects in front of it."""
    for clip in clips(replace(SMALL, things=(3, 5)), 25):
        size = clip.masks.shape[2:]
        alone = [draw([toy_object], clip.num_frames, size, None).masks[0] for toy_object in clip.objects]
        for i, toy_object in enumerate(clip.objects):
            nearer = [alone[j] for j, other in enumerate(clip.objects) if other.depth < toy_object.depth]
            visible = alone[i] & ~np.logical_or.reduce(nearer) if nearer else alone[i]
            assert (clip.masks[i] == visible).all()
        assert clip.masks.sum(axis=0).max() <= 1


def test_pixels_of_a_mask_have_the_colour_of_the_object():
    world = ToyWorld(replace(SMALL, height=96, width=96), seed=2)
    palette = np.array(list(COLOURS.values()), dtype=float)
    for index in range(20):
        _, clip, _ = world.generate(index)
        for toy_object, masks in zip(clip.objects, clip.masks, strict=True):
            if masks.sum() > 400:
                typical = np.median(clip.frames[masks], axis=0)
                assert tuple(COLOURS)[np.abs(palette - typical).sum(axis=1).argmin()] == toy_object.colour


def test_background_is_static():
    world = ToyWorld(SMALL, seed=4)
    for index in range(10):
        frames, _, masks = world[index]
        covered = masks.any(axis=(0, 1))
        near = np.zeros_like(covered)
        for row, column in np.argwhere(covered):  # anti-aliased tips reach slightly beyond a mask
            near[max(row - 3, 0) : row + 4, max(column - 3, 0) : column + 4] = True
        assert (frames[:, ~near] == frames[0, ~near]).all()


def test_hiding_is_full_occlusion_and_ends():
    found = 0
    for clip in clips(replace(SMALL, tasks={"caption": 1}), 150):
        for i, toy_object in enumerate(clip.objects):
            if toy_object.motion == "hide":
                seen = clip.seen[i] > 0
                assert seen[0] and seen[-1] and not seen.all()
                hidden = [event for event in events(clip) if event["thing"] == i and event["kind"] == "hidden"]
                assert len(hidden) >= 1 and hidden[0]["by"] == toy_object.behind
                frames = range(hidden[0]["first"], hidden[0]["last"] + 1)
                alone = draw([toy_object], clip.num_frames, clip.masks.shape[2:], None).masks[0]
                assert all(clip.seen[i, frame] == 0 and alone[frame].any() for frame in frames)
                assert (alone[frames[0]] <= clip.masks[:, frames[0]].any(axis=0)).all()
                found += 1
    assert found >= 5


def test_an_object_outside_the_frame_is_not_hidden():
    """In frame 6 the object is still present, but has no pixel inside the frame. A screen at the border hides it
    before that."""
    clip = ToyWorld(ToySettings(tasks={"dialogue": 1}), 0).generate(274, frames=False)[1]
    leaving, screen = clip.objects[1], ToyObject("square", "blue", "large", start=(1, 0.54), scale=1.2, depth=-1)
    screened = draw([screen, leaving], clip.num_frames, clip.masks.shape[2:], None)
    assert leaving.motion == "leave" and clip.trajectories[1].present.tolist() == [True] * 7 + [False] * 11
    for one, covered in ((clip, []), (screened, [4, 5])):
        assert one.areas[1, 6] and not one.areas_in_frame[1, 6] and one.invisible[1, 6]
        assert np.flatnonzero(one.covered[1]).tolist() == covered
        hidden = [event for event in events(one) if event["kind"] == "hidden"]
        assert hidden == ([{"thing": 1, "kind": "hidden", "first": 4, "last": 5}] if covered else [])


@pytest.mark.parametrize("motion", MOTIONS)
@pytest.mark.parametrize("num_frames", [8, 24])
def test_motion_matches_its_name(motion, num_frames):
    toy_object = ToyObject(
        "circle", "red", "medium", start=(0.4, 0.55), motion=motion, direction="up", phase=0.3, key=0.4
    )
    toy_object.goal, toy_object.exit = (0.6, 0.55), (0.6, 0.8)
    centres, diameters, present = compute_trajectory(toy_object, num_frames, (0.1, 0.1))
    steps = np.diff(centres, axis=0)
    moved = centres[-1] - centres[0]
    assert np.allclose(centres[0], toy_object.start)
    assert present.all() == (motion not in ("appear", "leave"))
    if motion in DIRECTIONS:
        assert np.allclose(moved, 0.2 * np.array(DIRECTIONS[motion])) and np.allclose(steps, steps[0])
    elif motion == "circle":
        assert np.allclose(moved, 0) and np.allclose(np.linalg.norm(steps, axis=1), np.linalg.norm(steps[0]))
    elif motion == "zigzag":
        turns = np.diff(np.sign(steps[:, 0]))
        assert np.count_nonzero(turns) >= 3 and (steps[:, 1] < 0).all()
    elif motion == "stop":
        rests = np.linalg.norm(steps, axis=1) < 1e-9
        assert rests.any() and not rests[0] and not rests[-1] and np.allclose(moved, (0, -0.2))
    elif motion in START_SIZES:
        assert np.allclose(moved, 0) and (np.diff(diameters) > 0).all() == (motion == "grow")
    elif motion == "appear":
        assert not present[0] and present[-1] and np.allclose(moved, 0)
    elif motion == "leave":
        outside = centres[:, 1] <= -0.1
        assert present[0] and not present[-1] and not (~outside & ~present).any()
    elif motion == "hide":
        assert np.allclose(centres[-1], toy_object.exit)
        assert (np.abs(centres - toy_object.goal).sum(axis=1) < 1e-9).any()
    else:
        assert motion == "still" and np.allclose(moved, 0)


def test_starts_do_not_hint_at_motions():
    """Predicting the most frequent motion per cell of a 3 x 3 grid, fitted on one half, is at chance on the other."""
    rows = []
    for clip in clips(replace(SMALL, tasks={"description": 1, "refer_motion": 1}), 2500):
        rows += [(toy_object.start, toy_object.motion) for toy_object in clip.objects if toy_object.role != "helper"]
    cells = [(int(x * 3 / 1.0001), int(y * 3 / 1.0001)) for (x, y), _ in rows]
    for names in (tuple(MOTIONS), tuple(DIRECTIONS)):
        kept = [(cell, motion) for cell, (_, motion) in zip(cells, rows, strict=True) if motion in names]
        counts = {cell: Counter() for cell in cells}
        for cell, motion in kept[::2]:
            counts[cell][motion] += 1
        hits = [counts[cell].most_common(1)[0][0] == motion for cell, motion in kept[1::2]]
        chance = max(Counter(motion for _, motion in kept).values()) / len(kept)
        assert np.mean(hits) <= chance + 4 * np.sqrt(chance * (1 - chance) / len(hits))


def test_vocabulary():
    assert len(SHAPES) >= 12 and len(COLOURS) >= 8 and len(SIZES) >= 3
    stamps = {shape: stamp(shape, 24)[0] for shape in SHAPES}
    for one, cover in stamps.items():
        assert 0.15 < cover.mean() / 255 < 0.95
        for other in stamps:
            assert one == other or np.abs(cover.astype(int) - stamps[other]).mean() > 20, (one, other)
    assert not set(SEEN_PAIRS) & set(UNSEEN_PAIRS) and len(SEEN_PAIRS) + len(UNSEEN_PAIRS) == len(SHAPES) * len(
        COLOURS
    )
    assert {shape for _, shape in UNSEEN_PAIRS} == set(SHAPES)
    assert set(Counter(colour for colour, _ in UNSEEN_PAIRS).values()) == {len(SHAPES) // len(COLOURS)}


@pytest.mark.parametrize("split", ["train", "val", "unseen"])
def test_splits_by_pair(split):
    allowed = set(UNSEEN_PAIRS if split == "unseen" else SEEN_PAIRS)
    shown = {
        (toy_object.colour, toy_object.shape)
        for clip in clips(replace(SMALL, split=split), 200)
        for toy_object in clip.objects
    }
    assert shown <= allowed and len(shown) >= 0.9 * len(allowed)


def test_speed_and_number_follow_the_settings():
    lengths = {}
    for speed in (0.5, 1.4):
        objects = [
            toy_object for clip in clips(replace(FILM, speed=speed, things=(4, 4)), 40) for toy_object in clip.objects
        ]
        assert len(objects) == 160
        lengths[speed] = np.mean([toy_object.amount for toy_object in objects if toy_object.motion in DIRECTIONS])
    assert lengths[1.4] == pytest.approx(2.8 * lengths[0.5], rel=0.2)


@pytest.mark.parametrize(
    "change",
    [
        {"speed": 1.4, "things": (6, 6)},
        {"things": (1, 1), "tasks": {"dialogue": 1, "description": 1, "still": 1, "caption": 1, "video_qa": 1}},
        {"turns": (4, 4), "things": (1, 4)},
        {"split": "unseen", "things": (5, 6), "height": 32, "width": 32},
    ],
)
def test_extreme_settings_give_clips(change):
    assert len(clips(replace(SMALL, **change), 40)) == 40


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"frames": (4, 8)}, "frames is"),
        ({"frames": (12, 8)}, "lower first"),
        ({"things": (2, 9)}, "things is"),
        ({"height": 16}, "32 pixels"),
        ({"speed": 3.0}, "speed is 3.0"),
        ({"background": "sky"}, "expected one of texture"),
        ({"split": "test"}, "expected one of train"),
        ({"tasks": {"poetry": 1}}, "must be weights of dialogue"),
        ({"tasks": {"dialogue": 0}}, "must be weights of dialogue"),
        ({"things": (1, 1)}, r"things is \(1, 1\)"),
    ],
)
def test_invalid_settings_are_errors(change, words):
    with pytest.raises(ValueError, match=words):
        replace(SMALL, **change)


def test_unknown_setting_and_negative_index():
    with pytest.raises(ValueError, match="unknown toy world setting 'colors'"):
        ToyWorld({"colors": 3})
    with pytest.raises(IndexError, match="expected 0 or more"):
        ToyWorld(SMALL)[-1]


def test_photographs_are_never_replaced_silently(monkeypatch, tmp_path):
    monkeypatch.setattr(backgrounds, "find_spec", lambda name: None)
    backgrounds._load_photo.cache_clear()
    with pytest.raises(ImportError, match="scikit-image"):
        ToyWorld(replace(SMALL, background="photo"))[0]


def test_photographs_as_background(monkeypatch, tmp_path):
    (tmp_path / "data").mkdir()
    for number, name in enumerate(PHOTOS):
        Image.new("L", (300, 200), 20 * number).save(tmp_path / "data" / name)
    package = type("Package", (), {"origin": str(tmp_path / "__init__.py")})
    monkeypatch.setattr(backgrounds, "find_spec", lambda name: package)
    backgrounds._load_photo.cache_clear()
    rng = np.random.default_rng(0)
    for _ in range(20):
        picture = draw_background("photo", (40, 60), rng)
        assert picture.shape == (40, 60, 3) and picture.dtype == np.uint8 and np.ptp(picture) <= 2
        assert backgrounds.DARKEST - 1 <= picture.mean() <= backgrounds.BRIGHTEST
    backgrounds._load_photo.cache_clear()


def test_rejecting_every_clip_is_an_error():
    constraints = ClipConstraints(motions=["still", "still"])
    settings = replace(SMALL, things=(2, 2))
    with pytest.raises(ValueError, match="no clip of 2 objects"):
        for _ in propose_clips(settings, constraints, 2, 8, np.random.default_rng(0)):
            pass


def test_a_hiding_object_hides_behind_the_second_one():
    constraints = ClipConstraints(motions=["hide", "circle", "left"])
    clip = next(propose_clips(SMALL, constraints, 3, 12, np.random.default_rng(0)))
    assert clip.objects[0].behind == 1 and clip.objects[1].role == "helper" and clip.visible_again(0)
    assert [toy_object.motion for toy_object in clip.objects] == ["hide", "still", "left"]
    with pytest.raises(ValueError, match="needs at least 2 objects, got 1"):
        next(propose_clips(SMALL, ClipConstraints(motions=["hide"]), 1, 12, np.random.default_rng(0)))


# On disk


def read_sama239k(folder) -> tuple[list, dict]:
    stores = {}
    for store, name in STORES.items():
        raw = (folder / name).read_bytes()
        stores[store] = pickle.loads(raw) if name.endswith(".pkl") else json.loads(raw)
    return json.loads((folder / ANNOTATIONS).read_text()), stores


def test_sama239k_files(tmp_path):
    world = ToyWorld(replace(FILM, height=40), seed=6)
    assert write_sama239k(world, tmp_path, range(12)) == tmp_path / ANNOTATIONS
    videos, stores = read_sama239k(tmp_path)
    assert len(videos) == 12
    for index, video in enumerate(videos):
        _, clip, turns = world.generate(index)
        masks = stores[next(store for store in stores if video["video"].startswith(store))]
        assert (video["height"], video["width"]) == (40, 48)
        assert len(set(video["anno_map"])) == len(clip.objects) == len(video["anno_map"])
        for i, key in enumerate(video["anno_map"]):
            assert (decoded(masks[str(key)], (40, 48)) == clip.masks[i]).all()
        names = [frame["raw_filename"] if isinstance(frame, dict) else frame for frame in video["frames"]]
        for name, frame in zip(names, clip.frames, strict=True):
            with Image.open(tmp_path / video["video"] / f"{name.removesuffix('.jpg')}.jpg") as picture:
                assert np.abs(np.asarray(picture).astype(int) - frame).mean() < 6
        assert len(video["conversation"]) == 2 * len(turns)
        for turn, question, answer, regions, truth in zip(
            turns,
            video["conversation"][::2],
            video["conversation"][1::2],
            video["obj_masks"],
            video["groundtruth"],
            strict=True,
        ):
            assert (
                question["from"] == "human" and question["value"].replace("<mask>", "<region>") == turn.question_text
            )
            assert answer["value"].replace("<p> ", "").replace(" </p> [SEG]", "") == turn.answer_text
            assert question["value"].count("<mask>") == len(regions) and answer["value"].count("[SEG]") == len(truth)
            assert set(regions).union(*truth) <= set(video["anno_map"])
        for name, words in video["description"].items():
            toy_object = clip.objects[int(name.strip("<obj>"))]
            assert toy_object.colour in words and toy_object.shape in words
    assert any(isinstance(frame, dict) for video in videos for frame in video["frames"])


def test_stills_do_not_go_into_sama239k(tmp_path):
    with pytest.raises(ValueError, match="leave 'still' out"):
        write_sama239k(ToyWorld(replace(SMALL, tasks={"still": 1})), tmp_path, range(1))


def test_real_readers_read_the_export(tmp_path):
    world = ToyWorld(replace(FILM, tasks={"dialogue": 1}), seed=6)
    write_sama239k(world, tmp_path, range(8))
    keys = ("mevis_masks", "lvvis_masks", "ref_youtube_vos_masks", "vidstg_masks")
    files = {"annotations": ANNOTATIONS, "media": "."} | dict(zip(keys, STORES.values(), strict=True))
    dropped = Counter()
    dialogues = list(read_sama239k_conversation(files, tmp_path, {"dropped": dropped}))
    descriptions = list(read_sama239k_description(files, tmp_path))
    turns = [world.generate(index)[2] for index in range(8)]
    assert sum(len(record["messages"]) for record in dialogues) + 2 * dropped.total() == 2 * sum(map(len, turns))
    kinds = Counter(
        part["type"] for record in dialogues for message in record["messages"] for part in message["content"]
    )
    assert min(kinds["text"], kinds["region"], kinds["grounded"]) > 8
    assert len({record["video"]["path"] for record in descriptions}) == 8
    for name in STORES.values():
        assert all(len(masks) >= 8 for _, masks in read_mask_store(tmp_path / name))


def test_records_on_disk(tmp_path):
    world = ToyWorld(SMALL, seed=8)
    path = write_records(world, tmp_path, range(20))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for index, record in enumerate(lines):
        frames, original, _ = world[index]
        assert record["messages"] == original["messages"] and record["objects"] == original["objects"]
        if "image" in record:
            assert (tmp_path / record["image"]["path"]).is_file()
        else:
            files = [tmp_path / record["video"]["path"] / name for name in record["video"]["frames"]]
            assert len(files) == len(frames) and all(file.is_file() for file in files)
    assert {"image", "video"} <= set().union(*lines)
