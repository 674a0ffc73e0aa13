"""The stages around the models: objects, pictures, the store, records and SAMA-239K's files."""

import io
import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fixture_sources import FIXTURES, SOURCES
from moving_squares import SIZE, moving, scene_line
from PIL import Image

from sama.annotation.checks import CheckLimits, VideoFacts, check_turn, evidence_for
from sama.annotation.completions import Completion, Usage
from sama.annotation.errors import AnnotationError
from sama.annotation.export import (
    check_round_trip,
    description_messages,
    item_hash,
    make_record,
    tagged_text,
    take_expressions,
    turn_messages,
    turn_record,
)
from sama.annotation.held_out import HeldOut
from sama.annotation.objects import list_videos, read_scenes, read_source, trusted_by_source
from sama.annotation.render import COLORS, RenderSettings, object_colors, render, shown_frames
from sama.annotation.sama239k import ANNOTATIONS, MASKS, write_sama239k
from sama.annotation.scenes import BrokenScene, Scene, select_objects, track_iou
from sama.annotation.schema import Statement, Turn
from sama.annotation.store import ReplyStore, reply_key
from sama.data.frames import open_visual
from sama.data.masks import decode_rle, encode_rle
from sama.data.readers import READERS
from sama.data.records import DataError
from sama.overlay_sama import write_video


# ---- objects


def test_objects_from_json_lines(videos, tmp_path):
    refer = [
        {"role": "user", "content": [{"type": "text", "text": "a square"}], "templates": "segment_video"},
        {"role": "assistant", "content": [{"type": "grounded", "text": "", "objects": ["4"]}]},
    ]
    file = tmp_path / "objects.jsonl"
    file.write_text(
        scene_line("clip.mp4", expressions={"4": ["my square"]}, info={"licence": "cc0", "url": "u"}, messages=refer)
        + scene_line("folder", expressions={"5": ["x"]})
        + scene_line("missing.mp4")
        + scene_line("clip.mp4", id="b", objects={"4": {"masks": [None]}})
        + scene_line("clip.mp4", id="c", info={"license": "cc0"})
        + "{broken\n"
        + scene_line("clip.mp4", id="e", objects={})
        + scene_line("folder", id="f", objects={"4": {"masks": [{"size": [5, 5], "counts": "i0"}] * 6}})
        + scene_line("clip.mp4", id="g")
    )
    first, *broken = read_scenes(videos, file, "mine")
    assert first.objects[0].expressions == ("a square", "my square") and first.info == {"licence": "cc0", "url": "u"}
    assert all(isinstance(one, BrokenScene) for one in broken)
    problems = [
        "'5', which is not among the objects",
        "no",
        "1 masks for 6 frames",
        "info.license",
        "not JSON",
        "--propose",
        "is 5 x 5, its video 48 x 64",
        "that of line 1, too",
    ]
    for number, (one, words) in enumerate(zip(broken, problems, strict=True), start=2):
        assert one.id == f"mine/line {number}" and "objects.jsonl, item " in str(one.error) and words in str(one.error)


def test_objects_from_pngs_and_mask_files(videos, tmp_path):
    one, two = moving(4), moving(30, hidden=(0, 1))
    for name, numbers in (("folder", [f"f{i + 7}" for i in range(6)]), ("clip", [str(i) for i in range(6)])):
        (tmp_path / "png" / name).mkdir(parents=True)
        for index, number in enumerate(numbers):
            values = np.full(SIZE, 255 * (index == 5), dtype=np.uint8)  # 255 is void
            for value, track in ((3, one), (9, two)):
                if track.masks[index] is not None and index < 5:
                    values[decode_rle(track.masks[index])] = value
            Image.fromarray(values).save(tmp_path / "png" / name / f"{number}.png")
    clip, folder = read_scenes(videos, tmp_path / "png", "mine")
    assert clip.visual["path"] == "clip.mp4" and folder.visual["frames"] == [f"f{i}.png" for i in range(7, 13)]
    for scene in (clip, folder):
        assert [one.name for one in scene.objects] == ["3", "9"]
        assert scene.objects[0].masks == (*one.masks[:5], None) and scene.objects[1].visible == {2, 3, 4}
    for name, found in (("clip", ["1"]), ("folder", ["255", "300"])):  # of 1 and of 16 bits, where 255 is an object
        files = sorted((tmp_path / "png" / name).iterdir(), key=lambda path: int(path.stem.lstrip("f")))
        for file, code in zip(files, one.masks, strict=True):
            mask = decode_rle(code)
            wide = np.where(mask, 255, 0).astype(np.uint16)
            wide[40:, :20] = 300
            Image.fromarray(mask if name == "clip" else wide).save(file)
        scenes = {scene.id: scene for scene in read_scenes(videos, tmp_path / "png", "mine")}
        assert [each.name for each in scenes[f"mine/{name}"].objects] == found
    Image.new("RGB", SIZE[::-1]).save(tmp_path / "png" / "clip" / "0.png")
    Image.new("L", (5, 5)).save(tmp_path / "png" / "folder" / "f7.png")
    broken = list(read_scenes(videos, tmp_path / "png", "mine"))
    assert ["mode RGB" in str(broken[0].error), "5 x 5, its video 48 x 64" in str(broken[1].error)] == [True, True]

    store = {"clip/a": list(one.masks), "clip/b": list(two.masks), "folder/x": list(one.masks)[:3], "gone/x": []}
    (tmp_path / "masks.json").write_text(json.dumps(store))
    (tmp_path / "masks.pkl").write_bytes(pickle.dumps(store))
    for name in ("masks.json", "masks.pkl"):
        scene, short, gone = read_scenes(videos, tmp_path / name, "mine")
        assert [one.name for one in scene.objects] == ["a", "b"] and scene.objects[1].masks == two.masks
        assert "3 masks for 6 frames" in str(short.error) and "no video 'gone'" in str(gone.error)
    (tmp_path / "masks.json").write_text(json.dumps({"7": []}))
    with pytest.raises(DataError, match="'7' is not video/object"):
        list(read_scenes(videos, tmp_path / "masks.json", "mine"))


def test_objects_from_a_source_of_the_catalogue(tmp_path, monkeypatch):
    root = FIXTURES
    monkeypatch.setenv("SAMA_CACHE", str(tmp_path))
    form, files, options = SOURCES["mevis"]
    catalogue = tmp_path / "catalogue.yaml"
    catalogue.write_text(json.dumps({"mevis": {"format": form, "files": files, "options": options}}))
    scenes = list(read_source(catalogue, "mevis", root))
    assert scenes and all(scene.objects for scene in scenes)
    assert any(one.expressions for scene in scenes for one in scene.objects)
    assert all(len(one.masks) == len(scene.open()) for scene in scenes for one in scene.objects)
    with pytest.raises(AnnotationError, match="no source 'mevi'"):
        list(read_source(catalogue, "mevi", root))


def test_videos_of_a_source_may_lie_where_the_catalogue_trusts_them(videos, tmp_path, monkeypatch):
    monkeypatch.setenv("SAMA_CACHE", str(tmp_path / "cache"))
    asked = [{"role": "user", "content": [{"type": "text", "text": "What?"}]}]
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "media").symlink_to(videos)
    (tmp_path / "root" / "records.jsonl").write_text(scene_line("media/clip.mp4", messages=asked))
    files = {"records": "records.jsonl", "media": "."}
    catalogue = tmp_path / "catalogue.yaml"
    catalogue.write_text(json.dumps({"mine": {"format": "json_lines", "files": files, "links": ["media"]}}))
    (scene,) = read_source(catalogue, "mine", tmp_path / "root")
    for one in (scene, Scene.from_json(scene.to_json())):
        assert len(one.open()) == 6
    assert videos.resolve() in trusted_by_source(catalogue, "mine", tmp_path / "root")
    assert scene.digest() == replace(scene, trusted=()).digest()
    told = description_messages(1, [Statement(text="A square.", first=0, last=5)], ["4"])
    (tmp_path / "records.jsonl").write_text(json.dumps(make_record(scene, "1", told)) + "\n")
    with pytest.raises(DataError, match="name the links that you trust"):
        write_sama239k(tmp_path / "records.jsonl", scene.root, tmp_path / "out")
    trusted = [Path(one) for one in scene.trusted]
    assert write_sama239k(tmp_path / "records.jsonl", scene.root, tmp_path / "out", trusted)["videos"] == 1


def test_empty_masks_are_not_visible(videos, tmp_path):
    empty = encode_rle(np.zeros(SIZE, dtype=bool))
    masks = [*moving(4).masks[:3], empty, empty, None]
    (tmp_path / "masks.json").write_text(json.dumps({"clip/a": masks}))
    (scene,) = read_scenes(videos, tmp_path / "masks.json", "mine")
    assert scene.objects[0].masks == (*moving(4).masks[:3], None, None, None)


class Expressions:
    """A source with one record an expression, which call their objects alike; one of its two videos is missing."""

    lookup = None

    def __init__(self, root: Path):
        self.root, self.trusted = root, (root.resolve(),)
        rows = [("clip.mp4", moving(4)), ("missing.mp4", moving(4)), ("clip.mp4", moving(30)), ("clip.mp4", moving(4))]
        self.records = [
            {"id": str(n), "source": "s", "video": {"path": path}, "objects": {"target": {"masks": list(one.masks)}},
             "messages": []}
            for n, (path, one) in enumerate(rows)
        ]  # fmt: skip

    def __len__(self) -> int:
        return len(self.records)

    def record(self, index: int) -> dict:
        return self.records[index]

    def visual(self, record: dict):
        return open_visual(record, self.root)


def test_a_source_with_a_missing_video_and_objects_of_one_name(videos, monkeypatch):
    monkeypatch.setattr("sama.annotation.objects.read_catalogue", lambda path: {"mine": None})
    monkeypatch.setattr("sama.annotation.objects.open_source", lambda entry, root: Expressions(root))
    scene, broken = read_source(Path("none"), "mine", videos)
    assert [(one.name, one.masks) for one in scene.objects] == [
        ("target", moving(4).masks), ("target (2)", moving(30).masks)
    ]  # fmt: skip
    assert isinstance(broken, BrokenScene) and broken.id == "missing.mp4"


def test_which_objects_are_annotated():
    small, rare = moving(20, width=1), moving(30, hidden=(0, 1, 2, 3))
    twin = replace(moving(4), name="twin", expressions=("said",))
    shifted = replace(moving(5), name="shifted")
    assert track_iou(moving(4).masks, moving(5).masks) == pytest.approx(11 / 13)
    kept, reasons = select_objects([moving(4), small, rare, twin, moving(40)])
    assert [one.name for one in kept] == ["4", "40"] and kept[0].expressions == ("said",)
    assert reasons["20"].reason.startswith("0.033% of the frame") and "2 frames" in reasons["30"].reason
    assert reasons["twin"] == ("merged", "the same object as 4")
    assert select_objects([moving(4), shifted])[1] == {"shifted": ("merged", "the same object as 4")}
    kept, reasons = select_objects([moving(4, hidden=(0, 2, 5))], shown=(0, 2, 5))
    assert not kept and reasons["4"] == ("not shown", "visible in none of the shown frames")
    many = [replace(moving(3 * i, width=2 + i % 3), name=f"o{i}") for i in range(14)]
    kept, reasons = select_objects(many)
    assert len(kept) == 10 and all(one.name in [m.name for m in many] for one in kept)
    assert list(reasons.values()) == [("surplus", "beyond the 10 largest objects")] * 4


# ---- pictures


@pytest.mark.parametrize(
    ("frames", "shown"), [(1, (0,)), (2, (0, 1)), (16, tuple(range(16))), (17, None), (100, None), (1000, None)]
)
def test_shown_frames_have_the_first_and_the_last(frames, shown):
    found = shown_frames(frames, 16)
    assert shown is None or found == shown
    assert len(found) == min(frames, 16) and found[0] == 0 and found[-1] == frames - 1 and list(found) == sorted(found)


def test_colours_differ_within_a_video_and_between_videos():
    found = {object_colors(f"v{i}", 10, 0) for i in range(20)}
    assert len(found) == 20 and all(len(set(colors)) == 10 for colors in found)
    assert object_colors("v", 4, 0) == object_colors("v", 4, 0) != object_colors("v", 4, 1)
    with pytest.raises(ValueError, match=f"{len(COLORS) + 1} objects but only {len(COLORS)} colours"):
        object_colors("v", len(COLORS) + 1, 0)


@pytest.mark.parametrize("style", ["contour", "box"])
def test_pictures_are_drawn_in_the_colours_and_repeat(videos, style):
    (scene,) = [one for one in list_videos(videos, "s") if one.visual["path"] == "folder"]
    objects, settings = [moving(4), moving(34, hidden=(0,))], RenderSettings(3, 192, style)
    found = render(scene.id, scene.open(), objects, settings)
    assert found == render(scene.id, scene.open(), objects, settings)
    assert found.shown == (0, 2, 5) and found.crop_frames == (0, 2) and len(found.crops) == 2
    drawn, plain = (np.asarray(Image.open(io.BytesIO(one[1])), dtype=int) for one in (found.drawn, found.plain))
    assert drawn.shape == plain.shape == (144, 192, 3)
    far = np.abs(drawn - plain).max(axis=2) > 90
    assert 50 < far.sum() < 4000  # outlines and numbers, and not the areas
    for color in found.colors:
        near = np.abs(drawn - COLORS[color]).max(axis=2) < 40
        assert (near & far).sum() > 30
    first = [np.asarray(Image.open(io.BytesIO(one[0])), dtype=int) for one in (found.drawn, found.plain)]
    changed = np.flatnonzero((np.abs(first[0] - first[1]).max(axis=2) > 90).any(axis=0))
    assert changed.max() < 60  # the second object, which is hidden, would begin at 102


def test_settings_of_pictures_are_checked():
    for arguments, words in (((1,), "At least 2 frames"), ((16, 20), "of 20 pixels"), ((16, 640, "dots"), "'dots'")):
        with pytest.raises(ValueError, match=words):
            RenderSettings(*arguments)


# ---- the store


def test_replies_are_kept_whole(tmp_path):
    store, key = ReplyStore(tmp_path), reply_key("describe", 1, "abc")
    assert store.get(key) is None
    reply = Completion("half \ud800 and \N{DOG FACE}", "stop", None, Usage(3, 1, 2), 0.5, 2, "m-1")
    assert store.get(store.put(key, "describe", reply).key).completion == reply
    different = {reply_key(*one) for one in (("describe", 2, "abc"), ("verify", 1, "abc"), ("describe", 1, "abd"))}
    assert key not in different | {reply_key("describe", 1, "abc", 1)} and len(different) == 3
    assert [path.suffix for path in tmp_path.rglob("*.*")] == [".json"]
    next(tmp_path.rglob("*.json")).write_text('{"stage": "describe"}')
    with pytest.raises(AnnotationError, match="cannot be read .* Delete it"):
        store.get(key)


# ---- records


def checked_turn(question: str, answer: str, num_objects: int = 2):
    facts = VideoFacts(6, (0, 5), (frozenset(range(6)),) * num_objects, ((),) * num_objects, ())
    turn = Turn(turn=1, question=question, answer=answer, kind="k", evidence=evidence_for([1, 2], facts))
    return check_turn(turn, facts, CheckLimits(), "turns[0]")


def test_a_turn_becomes_a_record_and_comes_back(videos):
    checked = checked_turn(
        "What does <obj2> do ] there?", "Well, <p> it </p> <obj2> meets <p> both of them </p> <obj1> now."
    )
    assert not checked.problems
    scene = Scene("v", "s", {"path": "clip.mp4"}, (moving(4), moving(34)), videos)
    names = ["4", "34"]
    messages = turn_messages(checked, names)
    record = make_record(scene, "v/1", messages)
    assert [part["type"] for part in record["messages"][1]["content"]] == [
        "text",
        "grounded",
        "text",
        "grounded",
        "text",
    ]
    assert [tagged_text(one, names) for one in record["messages"]] == [checked.turn.question, checked.turn.answer]
    check_round_trip(checked, names)
    only = make_record(
        scene, "v/2", turn_messages(checked_turn("What is <obj1> now?", "<p> It </p> <obj1> is."), names)
    )
    assert list(only["objects"]) == ["4"]

    edited, problems = turn_record(record, names, "Where is <obj1>?", "<p> The square </p> <obj1> is left.")
    assert not problems and list(edited["objects"]) == ["4"]
    assert item_hash({}, edited) != item_hash({}, record) and item_hash({}, record) == item_hash({}, dict(record))
    both = make_record(scene, "v/3", messages, all_objects=True)
    described = [
        description_messages(number, [Statement(text="It is a square.", first=0, last=5)], names) for number in (1, 2)
    ]
    changed = [
        both,
        {**both, "objects": dict(reversed(both["objects"].items()))},  # other labels
        *({**both, "messages": one} for one in described),  # the same text about another object
        {**both, "video": {"path": "other.mp4"}},
    ]
    assert len({item_hash({}, one) for one in changed}) == len(changed)
    for texts, code in (
        (("Where is it?", "<p> x y </p> <obj1>"), "question_untagged"),
        (("Where is <obj1>?", "<p> x y <obj1>"), "tag_unbalanced"),
        (("Where is <obj3>?", "<p> x y </p> <obj1>"), "tag_unknown"),
        (("Where is <obj1>?", "It is in the bounding box, <p> x </p> <obj1>"), "leak"),
    ):
        made, problems = turn_record(record, names, *texts)
        assert made is None and problems[0].code == code
    _, problems = turn_record(edited, names, "Where is <obj2>?", "<p> The square </p> <obj2> is left.")
    assert problems[0].code == "object_missing"


def test_doubts_do_not_refuse_an_edit_and_the_review_knows_the_expressions(videos):
    scene = Scene("v", "s", {"path": "clip.mp4"}, (moving(4), moving(34)), videos)
    names = ["4", "34"]
    messages = turn_messages(checked_turn("What is <obj1> now?", "<p> It </p> <obj1> is."), names)
    record = make_record(scene, "v/1", messages, all_objects=True)
    assert "expressions" not in record  # nothing is said of them
    texts = "Where is <obj1>?", "<p> The man on track 2 </p> <obj1> is in the red outline."
    made, problems = turn_record(record, names, *texts, colors=("red",))
    assert made is None and [one.code for one in problems] == ["leak"]
    told = {"4": ["in the red outline of a map"]}
    made, problems = turn_record(record, names, *texts, colors=("red",), expressions=told)
    assert not problems and tagged_text(made["messages"][1], names) == texts[1]
    scene = replace(scene, objects=(replace(scene.objects[0], expressions=tuple(told["4"])), scene.objects[1]))
    again = make_record(scene, "v/1", messages, all_objects=True)
    assert take_expressions(again) == told and again == record
    assert "expressions" not in make_record(scene, "v/1", messages)


def test_a_turn_that_differs_after_the_round_trip_is_an_error():
    checked = checked_turn("What is <obj1> now?", "<p> It </p> <obj1> is.")
    checked.answer.parts[0] = ("It </p>", (1,))
    with pytest.raises(AnnotationError, match="differs after a round trip"):
        check_round_trip(checked, ["a", "b"])


@pytest.mark.parametrize("file", [{}, {"frames": None, "stride": 1}])  # both forms of a record
def test_sama239k_files_are_read_by_its_reader(videos, tmp_path, file):
    scenes = [Scene("v", "s", {"path": path, **more}, (moving(4), moving(34)), videos) for path, more in (
        ("clip.mp4", file), ("folder", {"frames": [f"f{i}.png" for i in range(7, 13)]}))]  # fmt: skip
    checked = checked_turn("What does <obj2> do?", "<p> It </p> <obj2> meets <p> both </p> <obj1>.")
    told = description_messages(2, [Statement(text="A square.", first=0, last=5)], ["4", "34"])
    with open(tmp_path / "records.jsonl", "w") as file:
        for scene in scenes:
            for messages in (told, turn_messages(checked, ["4", "34"])):
                file.write(json.dumps(make_record(scene, f"{scene.visual['path']}/{len(messages)}", messages)) + "\n")
    counts = write_sama239k(tmp_path / "records.jsonl", videos, tmp_path / "root")
    assert counts == {"videos": 2, "rounds": 2, "descriptions": 2}
    files = {"annotations": ANNOTATIONS, "media": ".", "mevis_masks": MASKS}
    dropped: dict = {}
    for name, kind in (("sama239k_conversation", 1), ("sama239k_description", 0)):
        records = list(READERS[name](files, tmp_path / "root", {"rounds": 1} if kind else {}))
        assert len(records) == 2 and not dropped
        for record in records:
            masks = json.loads((tmp_path / "root" / MASKS).read_text())
            regions = [
                part["object"] for message in record["messages"] for part in message["content"] if "object" in part
            ]
            assert masks[record["objects"][regions[0]]["key"]] == list(moving(34).masks)
        if kind:
            (question, answer) = records[0]["messages"]
            assert [part.get("text") for part in answer["content"]] == ["It", " meets ", "both", "."]
    before = {path: path.read_bytes() for path in (tmp_path / "root").rglob("*.*")}
    assert write_sama239k(tmp_path / "records.jsonl", videos, tmp_path / "root") == counts
    assert {path: path.read_bytes() for path in (tmp_path / "root").rglob("*.*")} == before
    first = json.loads((tmp_path / "root" / ANNOTATIONS).read_text())
    (videos / "folder" / "f9.png").write_bytes((videos / "folder" / "f7.png").read_bytes())
    write_sama239k(tmp_path / "records.jsonl", videos, tmp_path / "root")  # the frames are not those of before
    second = json.loads((tmp_path / "root" / ANNOTATIONS).read_text())
    assert [one["video"] == two["video"] for one, two in zip(first, second, strict=True)] == [True, False]


def test_records_of_a_video_with_other_masks_under_one_name_are_refused(videos, tmp_path):
    told = description_messages(1, [Statement(text="A square.", first=0, last=5)], ["a"])
    with open(tmp_path / "records.jsonl", "w") as file:
        for start in (4, 34):
            scene = Scene(f"{start}", "s", {"path": "clip.mp4"}, (replace(moving(start), name="a"),), videos)
            file.write(json.dumps(make_record(scene, f"{start}/description", told)) + "\n")
    with pytest.raises(DataError, match="34/description.*other masks of the object 'a'"):
        write_sama239k(tmp_path / "records.jsonl", videos, tmp_path / "root")


def test_held_out_videos_are_refused(videos, tmp_path):
    held = HeldOut([videos])
    assert len(held) == 2
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "copy.mp4").write_bytes((videos / "clip.mp4").read_bytes())
    rng = np.random.default_rng(1)
    write_video(tmp_path / "new" / "other.mp4", rng.integers(0, 255, (6, *SIZE, 3), dtype=np.uint8), 10)
    frames = [
        np.asarray(Image.open(path)) for path in sorted((videos / "folder").iterdir(), key=lambda p: int(p.stem[1:]))
    ]
    enlarged = [np.asarray(Image.fromarray(frame).resize((128, 96))) for frame in frames]
    write_video(tmp_path / "new" / "smaller.mp4", enlarged, 10)
    found = {}
    for scene in list_videos(tmp_path / "new", "n"):
        try:
            held.check(scene)
        except AnnotationError as error:
            found[scene.visual["path"]] = str(error)
    assert set(found) == {"copy.mp4", "smaller.mp4"}
    assert "same bytes" in found["copy.mp4"] and "looks like the held-out video videos/folder" in found["smaller.mp4"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="contains no videos"):
        HeldOut([tmp_path / "empty"])
    (tmp_path / "new" / "notes.txt").touch()
    (tmp_path / "new" / "again.M4V").write_bytes((videos / "clip.mp4").read_bytes())
    assert len(HeldOut([tmp_path / "new"])) == 4
    (tmp_path / "new" / "film.rm").touch()
    with pytest.raises(DataError, match="film.rm.*is no video of a known kind, and could not be compared"):
        HeldOut([tmp_path / "new"])


def test_uniform_videos_are_told_apart_by_their_colours(tmp_path):
    def write(name: str, left: int, quality: int) -> None:
        (tmp_path / name / "v").mkdir(parents=True)
        for number in range(3):
            frame = np.full((*SIZE, 3), 90, dtype=np.uint8)
            frame[20:28, left : left + 8] = 200
            Image.fromarray(frame).save(tmp_path / name / "v" / f"{number}.jpg", quality=quality)

    write("held", 8, 95)
    write("copy", 8, 60)
    write("other", 40, 95)
    held = HeldOut([tmp_path / "held"])
    (copy,), (other,) = (list_videos(tmp_path / name, "n") for name in ("copy", "other"))
    held.check(other)
    with pytest.raises(AnnotationError, match="looks like the held-out video"):
        held.check(copy)
