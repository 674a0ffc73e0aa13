"""Broken annotation files: one sentence that names source, file, index and field; and what skipping does."""

import json
import logging
import pickle
import shutil
import sys
import tracemalloc
from collections import Counter
from pathlib import Path

import make_fixtures
import numpy as np
import pytest
from fixture_sources import FIXTURES, SOURCES
from PIL import Image

from sama.data.readers import READERS, read_mask_store
from sama.data.readers.streams import stream_list, stream_object
from sama.data.records import DataError
from sama.scripts import extract_vidstg_frames


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def annotations_of(source):
    files = SOURCES[source][1]
    return next(files[key] for key in ("annotations", "expressions", "records", "refs") if key in files)


@pytest.fixture
def root(tmp_path):
    shutil.copytree(FIXTURES, tmp_path / "root")
    return tmp_path / "root"


def read(source, root, dropped=None, **options):
    reader, files, fixed = SOURCES[source]
    return list(READERS[reader](files, root, {**fixed, "source": source, "dropped": dropped, **options}))


def edit(root, source, change):
    """Change the parsed annotation file of a source."""
    path = root / annotations_of(source)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


ONE_FILE = [source for source in SOURCES if not source.startswith("sama_bench")]


@pytest.mark.parametrize("source", ONE_FILE)
def test_missing_file(root, source):
    (root / annotations_of(source)).unlink()
    with pytest.raises(DataError) as caught:
        read(source, root)
    assert str(caught.value) == f"{source}, {annotations_of(source)}: there is no such file."


@pytest.mark.parametrize("source", [source for source in ONE_FILE if annotations_of(source).endswith(".json")])
def test_cut_json(root, source):
    path = root / annotations_of(source)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError) as caught:
        read(source, root)
    assert str(caught.value).startswith(f"{source}, {annotations_of(source)}: is truncated or not JSON ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "contains an object where a list is expected"),
        ('"x"', "contains something else where a list is expected"),
        ("[]", "contains no items: a list with at least 1 is expected"),
        ("", "contains something else where a list is expected"),
        ('[{"a": 1}, {"a"', r"is truncated or not JSON after item 0 \("),
    ],
)
def test_lists_that_are_none(tmp_path, content, message):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DataError, match=rf"a\.json: {message}"):
        list(stream_list(tmp_path / "a.json"))


def test_objects_that_are_none(tmp_path):
    (tmp_path / "a.json").write_text('{"video": {}}')
    with pytest.raises(DataError, match="contains no items: an object with at least 1 is expected under 'videos'"):
        list(stream_object(tmp_path / "a.json", "videos"))


@pytest.mark.parametrize("source", ["sama_bench_g", "sama_bench_c"])
@pytest.mark.parametrize("file", SOURCES["sama_bench_g"][1]["annotations"])
def test_each_of_the_files_of_the_bench_may_be_missing_or_cut(root, source, file):
    content = (root / file).read_bytes()
    (root / file).write_bytes(content[:-40])
    with pytest.raises(DataError) as caught:
        read(source, root)
    assert str(caught.value).startswith(f"{source}, {file}: is truncated or not JSON ")
    (root / file).unlink()
    with pytest.raises(DataError) as caught:
        read(source, root)
    assert str(caught.value) == f"{source}, {file}: there is no such file."


BREAKS = [
    ("llava", lambda c: c[1].pop("conversations"), "item 1, field 'conversations': is missing."),
    ("llava", lambda c: c[0].update(image="../../secret.jpg"), "item 0, field 'image': leaves the data folder"),
    ("llava", lambda c: c[0].update(image="/secret.jpg"), "item 0, field 'image': leaves the data folder"),
    ("llava", lambda c: c.__setitem__(2, "x"), "item 2: is a string where an object is expected."),
    (
        "llava",
        lambda c: c[0]["conversations"][1].update({"from": "human"}),
        "item 0, field 'conversations[1].from': is 'human' where 'gpt' is expected.",
    ),
    ("chat_univi", lambda c: c[0].update(video="v.mp4"), "item 0, field 'video': there is no file 'video_datas/"),
    (
        "mevis",
        lambda c: c["videos"]["vid_b"]["expressions"]["2"].pop("anno_id"),
        "item vid_b, field 'expressions.2.anno_id': is missing.",
    ),
    (
        "mevis",
        lambda c: c["videos"]["vid_b"]["frames"].__setitem__(0, "../../x"),
        "item vid_b, field 'frames[0]': is not a file name: '../../x.jpg'.",
    ),
    ("mevis", lambda c: c["videos"].update({"../x": c["videos"]["vid_a"]}), "item ../x: leaves the data folder"),
    (
        "ref_sav",
        lambda c: c["sav_000001"].update(anno_path="a/b.json"),
        "item sav_000001, field 'anno_path': there is no file ",
    ),
    (
        "ref_sav",
        lambda c: c["sav_000001"]["objects"].update({"2": {"formated": "x"}}),
        "item sav_000001, field 'objects.2': the mask file lacks object '2' in some frame, which has 2 objects.",
    ),
    (
        "gcg_openpsg",
        lambda c: c[0]["groundings"]["A dog"].update(token_positives=[5, 50]),
        "item 0, field 'groundings.A dog': [5, 50] lies outside a caption of 25 characters.",
    ),
    (
        "gcg_openpsg",
        lambda c: c[1]["groundings"]["Sky"]["rle_masks"][0].update(counts="0"),
        "item 1, field 'groundings.Sky': the run-length code of the mask covers 0 pixels instead of 24 x 32",
    ),
    (
        "gcg_flickr",
        lambda c: c["annotations"][0].pop("image_id"),
        "item annotations[0], field 'image_id': is missing.",
    ),
    (
        "gcg_refcocog",
        lambda c: c[0]["101"].update(img_file_name="x.jpg"),
        "item 0, field '101.img_file_name': there is no file ",
    ),
    ("osprey_part", lambda c: c[0].update(file_name="x.jpg"), "item 0, field 'file_name': 'x.jpg' is in none of the"),
    (
        "osprey_part",
        lambda c: c[0]["annotation"].pop(),
        "item 0, field 'conversations[0].value': asks about region 2 of 1.",
    ),
    (
        "osprey_description",
        lambda c: c[0]["description"].pop(),
        "item 0, field 'description': describes 1 of 2 regions.",
    ),
    (
        "osprey_conversation",
        lambda c: c[0]["annotation"][1]["segmentation"]["counts"].pop(),
        "item 0, field 'annotation[1].segmentation': the run-length code of the mask covers ",
    ),
    (
        "sama239k_conversation",
        lambda c: c[0]["groundtruth"][1].append([9]),
        "item 0, field 'groundtruth[1]': names the mask 9, which anno_map does not have.",
    ),
    (
        "sama239k_conversation",
        lambda c: c[0]["obj_masks"].pop(),
        "item 0, field 'obj_masks': has 5 entries for 6 rounds.",
    ),
    ("sama239k_conversation", lambda c: c[3].update(video="x/y"), "item 3, field 'video': 'x/y' belongs to none of "),
    ("sama239k_conversation", lambda c: c[0].update(frames=None), "item 0, field 'frames': is null where a list is"),
    (
        "sama239k_description",
        lambda c: c[1]["description"].update({"<obj7>": "x"}),
        "item 1, field 'description.<obj7>': refers to none of the 1 objects of anno_map.",
    ),
]


@pytest.mark.parametrize(("source", "change", "message"), BREAKS)
def test_broken_items(root, source, change, message):
    edit(root, source, change)
    with pytest.raises(DataError) as caught:
        read(source, root)
    assert str(caught.value).startswith(f"{source}, {annotations_of(source)}, {message}")
    assert str(caught.value).count("\n") == 0


def test_broken_refcoco(root):
    path = root / annotations_of("refcoco")
    refs = pickle.loads(path.read_bytes())
    refs[1]["ann_id"] = 99
    path.write_bytes(pickle.dumps(refs))
    with pytest.raises(DataError, match=r"item 1, field 'refs\[1\]\.ann_id': 99 is not among the annotations"):
        read("refcoco", root)
    del refs[2]["split"]
    path.write_bytes(pickle.dumps(refs))
    with pytest.raises(
        DataError, match=r"^refcoco, coco/refcoco/refs\(unc\)\.p, item 2, field 'split': is missing\.$"
    ):
        read("refcoco", root)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["images"][0].pop("height"), "item image 1, field 'height': is missing."),
        (lambda c: c["annotations"][0].pop("segmentation"), "item annotation 11, field 'segmentation': is missing."),
        (
            lambda c: c["annotations"][0]["segmentation"][1].pop(),
            "item annotation 11, field 'segmentation': a polygon is a flat list of at least 3 pairs of numbers.",
        ),
        (lambda c: c["images"].pop(0), None),
    ],
)
def test_broken_refcoco_instances(root, change, message):
    """What is wrong in instances.json is said of that file, not of the references."""
    path = root / "coco/refcoco/instances.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(DataError) as caught:
        read("refcoco", root)
    absent = "refcoco, coco/refcoco/refs(unc).p, item 1, field 'image_id': is not among the images of coco/refcoco/"
    expected = absent if message is None else f"refcoco, coco/refcoco/instances.json, {message}"
    assert str(caught.value).startswith(expected)


def test_record_with_an_unknown_part(root):
    path = root / annotations_of("json_lines")
    path.write_text(path.read_text().replace('"type": "region"', '"type": "click"'))
    message = (
        r"^json_lines, custom/records\.jsonl, item line 1, field 'messages\[0\]\.content\[1\]\.type': is 'click'; "
    )
    with pytest.raises(DataError, match=message):
        read("json_lines", root)


def test_media_that_is_a_link_out_of_the_data_root(root, tmp_path):
    inside, outside = root / "sama239k_data" / "sav_train", tmp_path / "sav"
    shutil.move(inside, outside)
    inside.symlink_to(outside)
    with pytest.raises(DataError, match=r"item 4, field 'video': is a link that leaves the data folder"):
        read("sama239k_conversation", root)
    assert len(read("sama239k_conversation", root, links=["sama239k_data/sav_train"])) == 4


def test_unknown_options_and_missing_files():
    with pytest.raises(DataError, match=r"^llava, field 'linked': is an unknown option, expected dropped, links, "):
        list(READERS["llava"]({"annotations": "a", "media": "b"}, FIXTURES, {"linked": []}))
    with pytest.raises(DataError, match=r"^llava, field 'media': is missing among the files\.$"):
        list(READERS["llava"]({"annotations": "a"}, FIXTURES, {}))
    with pytest.raises(DataError, match=r"field 'mask_keys': is 'count', expected one of anno_id, counter, "):
        read("mevis", FIXTURES, mask_keys="count")
    with pytest.raises(DataError, match=r"field 'captions': is 'all', expected long or short"):
        read("ref_sav", FIXTURES, captions="all")


def test_skipping_leaves_out_and_counts_and_shows_nothing_else_instead(root, caplog):
    """data.md 6.3 and 1: the release shows another, random sample in the place of a broken one."""
    whole = read("llava", root)
    edit(root, "llava", lambda content: content[1].pop("conversations"))
    dropped, errors = Counter(), []
    with caplog.at_level(logging.WARNING):
        assert read("llava", root, dropped, on_error="skip") == [whole[0], *whole[2:]]
    assert dropped["broken items"] == 1 and "item 1, field 'conversations': is missing." in caplog.text
    assert read("llava", root, on_error=errors.append) == [whole[0], *whole[2:]]
    assert [error.index for error in errors] == [1]


def test_frames_are_sorted_by_their_names_without_suffix(root):
    """data.md 1.3: masks are numbered so; "f1.jpg" would come behind "f1-2.jpg"."""
    edit(root, "revos", lambda content: content["videos"]["TAO/train/clip"].update(frames=["f1-2", "f1", "f10"]))
    assert read("revos", root)[1]["video"]["frames"] == ["f1.jpg", "f1-2.jpg", "f10.jpg"]


def test_a_skipped_video_does_not_shift_the_running_numbers(root):
    edit(root, "ref_youtube_vos", lambda content: content["videos"]["zebra"].update(frames=None))
    (ant,) = read("ref_youtube_vos", root, on_error="skip")
    assert list(ant["objects"]) == ["11", "12"]


# Mask files


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"3": {"masks": []}}, r"m\.json, item 3, field 'segmentations': is null where a list is expected"),
        (
            {"3": [None, 5]},
            r"m\.json, item 3, field '\[1\]': a mask is null, a run-length code or a list of them, got int",
        ),
        ({"3": [[[1, 2, 3, 4, 5, 6]]]}, r"m\.json, item 3, field '\[0\]': polygons need the height and width"),
    ],
)
def test_broken_mask_files(tmp_path, content, message):
    write_json(tmp_path / "m.json", content)
    with pytest.raises(DataError, match=message):
        list(read_mask_store(tmp_path / "m.json"))


def test_big_mask_files_are_streamed(tmp_path):
    """12 MB of codes are read with a few megabytes."""
    entry = json.dumps([{"size": [24, 32], "counts": "0" * 1000}] * 200)
    path = tmp_path / "masks.json"
    with path.open("w") as file:
        file.write("{" + ",".join(f'"{key}": {entry}' for key in range(60)) + "}")
    assert path.stat().st_size > 12e6
    tracemalloc.start()
    keys = [key for key, masks in read_mask_store(path) if len(masks) == 200]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert keys == [str(key) for key in range(60)] and peak < 4e6


# Scripts


def test_fixtures_are_what_the_script_makes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["make_fixtures.py", str(tmp_path)])
    make_fixtures.main()
    made, kept = (
        {path.relative_to(root): path for path in root.rglob("*") if path.is_file()} for root in (tmp_path, FIXTURES)
    )
    assert set(made) == set(kept)
    # Pictures and videos depend on the versions of their encoders
    same = [path for path in kept if path.suffix not in (".jpg", ".png", ".mp4")]
    assert [path for path in same if made[path].read_bytes() != kept[path].read_bytes()] == []
    assert sum(path.stat().st_size for path in kept.values()) < 1e6
    assert "files" in capsys.readouterr().out


def test_extract_vidstg_frames(tmp_path, monkeypatch, capsys):
    videos, annotations, output = tmp_path / "videos", tmp_path / "json", tmp_path / "out"
    writer = make_fixtures.Writer(videos)
    writer.video("2400.mp4", 10)
    writer.video("without.mp4", 3)
    (videos / "broken.mp4").write_bytes(b"no video")
    for name in ("2400", "broken"):
        write_json(annotations / f"{name}.json", {})
    arguments = [str(videos), str(annotations), str(output), "--workers", "1"]
    monkeypatch.setattr(sys, "argv", [extract_vidstg_frames.__file__, *arguments])
    for expected in ("3 frames written", "0 frames written"):  # the second time they are there
        assert extract_vidstg_frames.main() == 1
        printed = capsys.readouterr().out
        assert expected in printed and "2 of 3 videos have annotations" in printed
        assert "broken: " in printed and "1 videos failed" in printed
    assert sorted(path.name for path in (output / "2400").iterdir()) == ["frame_0.jpg", "frame_4.jpg", "frame_8.jpg"]
    pictures = [np.asarray(Image.open(output / "2400" / f"frame_{index}.jpg")).mean() for index in (0, 4, 8)]
    assert pictures == pytest.approx([0, 80, 160], abs=6)
    assert Path(output / "without").exists() is False
