"""Untrusted annotation files: no path in them leaves the data root, and no pickle executes code."""

import json
import os
import pickle
import shutil

import pytest
from data_fixtures import copied, source
from fixture_sources import SOURCES
from test_reader_errors import read

from sama.data.records import DataError


@pytest.fixture
def root(tmp_path):
    return copied(tmp_path)


# source, file below the root, place of a path in it, what the release's files have in front of the path
PLACES = [
    ("refcoco", "coco/refcoco/instances.json", ("images", 0, "file_name"), ""),
    ("llava", "llava_data/llava_v1_5_mix665k.json", (0, "image"), ""),
    ("mevis", "video_datas/mevis/train/meta_expressions.json", ("videos", "vid_b", "frames", 0), ""),
    ("ref_youtube_vos", SOURCES["ref_youtube_vos"][1]["expressions"], ("videos", "ant", "frames", 1), ""),
    ("chat_univi", "video_datas/chat_univi/video_chat.json", (0, "video"), ""),
    ("ref_sav", "ref_sav/Ref-SAV.json", ("sav_000001", "video_path"), "sav_000/"),
    ("ref_sav", "ref_sav/Ref-SAV.json", ("sav_000001", "anno_path"), "sav_000/"),
    ("gcg_openpsg", "glamm_data/annotations/OpenPsgGCG_train.json", (0, "file_name"), ""),
    ("gcg_flickr", "glamm_data/annotations/flickr_mergedGT_GCG_train.json", ("images", 0, "file_name"), ""),
    ("gcg_refcocog", "glamm_data/annotations/RefCOCOg_GCG_train.json", (0, "101", "img_file_name"), ""),
    ("osprey_part", "osprey-724k/Osprey-724K/osprey_part_level.json", (0, "file_name"), ""),
    ("sama239k_conversation", "sama239k_data/sama239k_train_final.json", (0, "video"), "mevis/"),
    ("sama239k_conversation", "sama239k_data/sama239k_train_final.json", (0, "frames", 1), ""),
    ("sama239k_conversation", "sama239k_data/sama239k_train_final.json", (3, "frames", 0, "raw_filename"), ""),
    ("sama239k_conversation", "sama239k_data/sama239k_train_final.json", (4, "video"), "sav_train/"),
    ("sama_bench_g", "sama_bench/VidSTG_1.json", (0, "frames", 0, "raw_filename"), ""),
    ("sama_bench_c", "sama_bench/lvvis_0.json", (0, "video"), "lvvis/"),
    ("json_lines", "custom/records.jsonl", ("video", "path"), ""),
    ("json_lines", "custom/records.jsonl", ("video", "frames", 1), ""),
]
WAYS_OUT = ["../../../../secret.mp4", "a/../../../../../secret.mp4", "..\\secret.mp4", "C:\\secret.mp4"]


@pytest.mark.parametrize("hostile", [*WAYS_OUT, "/secret.mp4"])
@pytest.mark.parametrize(("name", "file", "place", "before"), PLACES)
def test_no_path_of_an_annotation_leads_out(root, name, file, place, before, hostile):
    path = root / file
    content = json.loads(path.read_text().splitlines()[0] if file.endswith(".jsonl") else path.read_text())
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    # Behind a folder "/secret.mp4" would only be a path inside it
    inner[place[-1]] = hostile if hostile == "/secret.mp4" and before != "sav_000/" else before + hostile
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"leaves the data folder: |is not a file name: |belongs to none of ") as told:
        read(name, root)
    assert told.value.source == name and told.value.file == file and told.value.index is not None


def test_names_of_videos_that_are_folders(root):
    """In files of expressions the path is the name of the video itself."""
    path = root / SOURCES["revos"][1]["expressions"]
    path.write_text(path.read_text().replace('"TAO/train/clip"', '"TAO/../../../../secret"'))
    with pytest.raises(DataError, match=r"item TAO/\.\./\.\./\.\./\.\./secret: leaves the data folder"):
        read("revos", root)


def shown_files(found, record):
    """The files behind what a record shows."""
    visual = record.get("image") or record.get("video")
    path = found.root / visual["path"]
    return [path / name for name in visual["frames"]] if visual.get("frames") else [path]


@pytest.mark.parametrize("name", SOURCES)
def test_no_link_to_a_file_outside_is_followed(name, root, tmp_path):
    found = source(name, tmp_path / "cache", root)
    record = found.record(0)
    file, outside = shown_files(found, record)[0], tmp_path / "secret"
    shutil.move(file, outside)
    file.symlink_to(outside)
    with pytest.raises(DataError, match=r"is a link that leaves the data folder"):
        found.visual(record)


@pytest.mark.parametrize("name", ["mevis", "sama239k_description", "sama_bench_g", "json_lines"])
def test_no_link_to_a_folder_outside_is_followed(name, root, tmp_path):
    found = source(name, tmp_path / "cache", root)
    record = found.record(0)
    folder, outside = shown_files(found, record)[0].parent, tmp_path / "secret"
    shutil.move(folder, outside)
    folder.symlink_to(outside)
    with pytest.raises(DataError, match=r"is a link that leaves the data folder"):
        found.visual(record)


class RunsCode:
    def __reduce__(self):
        return os.system, ("echo harmed > harmed",)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("refcoco", "refs"),
        ("refcoco+", "refs"),
        ("refcocog", "refs"),
        ("ref_youtube_vos", "masks"),
        ("ref_davis17", "masks"),
        ("sama239k_conversation", "ref_youtube_vos_masks"),
        ("sama239k_description", "ref_youtube_vos_masks"),
    ],
)
@pytest.mark.parametrize("action", ["raise", "skip"])
def test_no_pickle_of_a_source_runs(name, key, action, root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = SOURCES[name][1][key]
    (root / file).write_bytes(pickle.dumps([RunsCode()] if key == "refs" else {"0": [None, RunsCode()]}))
    with pytest.raises(DataError, match="this pickle is not accepted: it asks for .*system") as told:
        source(name, tmp_path / "cache", root, action)
    assert told.value.source == name and str(told.value.file).endswith(file)
    assert not (tmp_path / "harmed").exists()
