"""The readers of SAMA-239K and SAMA-Bench on their fixtures (data.md 1.9 to 1.11, evaluation.md 1 and 2)."""

from collections import Counter

import numpy as np
import pytest
from fixture_sources import FIXTURES, SOURCES
from test_readers import boxes, masks, questions, read, turns

from sama.data.frames import open_visual
from sama.data.readers import READERS
from sama.data.readers.grounded_dialogue import answer_parts, grounded_rounds
from sama.data.readers.source_reader import SourceReader


MASK_REQUEST = "Response with interleaved segmentation masks."


def test_sama239k_conversation():
    dropped = Counter()
    mevis, rvos, vidstg, sav = read("sama239k_conversation", dropped)
    assert mevis["id"] == "sama239k_conversation/0/0"
    assert mevis["layout"] == "sama_conversation" and mevis["region_shape"] == "box"
    assert turns(mevis) == [
        "What is the man <3> doing?",
        "[The man|3] feeds [a dog|4].",
        f"How do <3> and <4> differ? {MASK_REQUEST}",
        "[Both|3+4] run.",
        "What is behind it?",
        "The sky and [the dog|4].",
    ]
    # The second question asks for masks itself
    assert [message.get("wants_masks", False) for message in mevis["messages"][::2]] == [True, False, True]
    assert [message["info"] for message in mevis["messages"][::2]] == [{"round": 0}, {"round": 1}, {"round": 3}]
    assert turns(rvos) == ["Show it.", "It is [|2] here."]
    assert turns(vidstg) == ["What does <0> do?", "[The child|0] runs."]
    assert turns(sav) == ["Where does <10> go?", "[It|10] goes right."]
    assert dropped == {
        "last messages without an answer": 1,
        "rounds whose <mask> and obj_masks differ in number": 1,
        "rounds whose [SEG] and groundtruth differ in number": 1,
        "rounds in a record without any [SEG]": 1,
    }


def test_sama239k_rounds_per_record():
    # Rounds 0 and 1, 2 and 3, 4 and 5; the last two have no [SEG] left
    assert [len(questions(record)) for record in read("sama239k_conversation", rounds=2)[:2]] == [2, 1]


def test_sama239k_masks_of_five_stores():
    mevis, rvos, vidstg, sav = read("sama239k_conversation")
    man = [(0, 0, 8, 12), None, *((i, 0, i + 8, 12) for i in range(1, 5))]
    dog = [(20, 12, 28, 20)] * 6
    assert np.array_equal(masks("sama239k_conversation", mevis, "3"), boxes(*man))
    assert np.array_equal(masks("sama239k_conversation", mevis, "3+4"), boxes(*man) | boxes(*dog))
    assert np.array_equal(masks("sama239k_conversation", rvos, "2"), boxes((2, 0, 6, 4), None))
    assert np.array_equal(
        masks("sama239k_conversation", vidstg, "0"), boxes(*((i, i, i + 6, i + 6) for i in range(4)))
    )
    stores = [
        record["objects"][name]["store"]
        for record, name in zip((mevis, rvos, vidstg, sav), "3 2 0 10".split(), strict=True)
    ]
    assert stores == ["mevis_masks", "ref_youtube_vos_masks", "vidstg_masks", "sav_masks"]
    lvvis = read("sama239k_description")[1]
    assert np.array_equal(masks("sama239k_description", lvvis, "5"), boxes(None, (2, 2, 10, 6)))


def test_sama239k_empty_groundtruth_takes_no_mask():
    """data.md 6.3: an empty entry passes the filter and repeats the mask before it, which shifts all that follow."""
    mevis = read("sama239k_conversation")[0]
    assert turns(mevis)[5] == "The sky and [the dog|4]."


@pytest.mark.parametrize(
    ("groundtruth", "names"), [([[], [3]], ["3"]), ([[3], []], ["3"]), ([[3], [], [4]], ["3", "4"]), ([[]], [])]
)
def test_sama239k_empty_groundtruth_wherever_it_stands(groundtruth, names):
    """data.md 6.3: the release repeats the mask before it, or takes None where there is none before."""
    answer = " and ".join(f"<p> thing {name} </p> [SEG]" for name in names) or "Nothing."
    item = {"conversation": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": answer}]}
    item |= {"obj_masks": [[]], "groundtruth": [groundtruth]}
    reader = SourceReader({}, FIXTURES, {}, "sama239k_conversation", [])
    (one,) = grounded_rounds(reader, item, ["3", "4"])
    assert one.targets == names and not reader.dropped
    assert [part["objects"] for part in one.answer["content"] if "objects" in part] == [[name] for name in names]


def test_sama239k_an_object_may_be_listed_twice_in_anno_map():
    """data.md 6.3: a duplicate id ends the release's worker with exit(0)."""
    assert turns(read("sama239k_description")[0])[4:] == ["describe_region_video: <4>", "That dog."]


def test_sama239k_descriptions():
    """data.md 6.3: a description of an object without masks (-1) is a KeyError in the release; here it is counted."""
    dropped = Counter()
    mevis, lvvis, vidstg, sav = read("sama239k_description", dropped)
    assert turns(mevis)[:4] == ["describe_region_video: <3>", "A man.", "describe_region_video: <4>", "A dog."]
    assert list(mevis["objects"]) == ["3", "4"]
    assert mevis["layout"] == "sama_description" and mevis["region_shape"] == "box"
    assert [turns(record)[1] for record in (lvvis, vidstg, sav)] == ["A car.", "A child.", "A square."]
    assert dropped == {"descriptions of objects without masks": 1}
    assert [len(questions(record)) for record in read("sama239k_description", objects=2)[:2]] == [2, 1]


def test_vidstg_frames_stay_in_the_order_of_the_file():
    """data.md 5.3: sorted as strings, frame_12 would come before frame_4. The pictures are grey 0, 20, 40, 60."""
    vidstg = read("sama239k_conversation")[2]
    assert vidstg["video"]["frames"] == ["frame_0.jpg", "frame_4.jpg", "frame_8.jpg", "frame_12.jpg"]
    video = open_visual(vidstg, FIXTURES)
    assert [video[index].mean() for index in range(4)] == pytest.approx([0, 20, 40, 60], abs=2)


def test_sav_masks_may_end_before_the_frames():
    sav = read("sama239k_conversation")[3]
    assert sav["video"] == {"path": "sama239k_data/sav_train/sav_000/sav_000001.mp4", "frames": None, "stride": 4}
    assert sav["objects"]["10"] == {"store": "sav_masks", "key": "10", "short": True}


@pytest.mark.parametrize(
    ("answer", "names", "parts"),
    [
        ("<p> The man </p> [SEG] pets <p> a dog </p> [SEG].", "ab", ["[The man|a]", " pets ", "[a dog|b]", "."]),
        ("<p>Two</p>[SEG][SEG]", "ab", ["[Two|a b]"]),
        ("Sure, [SEG].", "a", ["Sure, ", "[|a]", "."]),
        ("A <p> sky </p> over <p> a sea </p> [SEG]", "a", ["A sky over ", "[a sea|a]"]),
        ("<p> open <p> man </p> [SEG] and </p> more", "a", ["open ", "[man|a]", " and more"]),
        ("<p> line\nbreak </p>\n[SEG]", "a", ["[line\nbreak|a]"]),
        ("Nothing.", "", ["Nothing."]),
    ],
)
def test_tagged_answers(answer, names, parts):
    """data.md 6.3 and evaluation.md 1.5: phrases and masks counted apart are paired wrongly; left-over tags stay."""
    shown = [
        part["text"] if part["type"] == "text" else f"[{part['text']}|{' '.join(part['objects'])}]"
        for part in answer_parts(answer, list(names))
    ]
    assert shown == parts


# SAMA-Bench


def test_sama_bench_g():
    records = read("sama_bench_g")
    # 13 files: one video with two rounds each, and in mevis.json a second one of which four rounds are left
    assert len(records) == 13 * 2 + 4
    first, without_masks = records[:2]
    assert first["id"] == "sama_bench_g/mevis/0/0" and turns(first) == ["What is <11>?", "[It|11] is a square."]
    as_written = {"answer": "<p> It </p> [SEG] is a square.", "entries": [[11]]}
    about = {"round": 0, "question_id": 0, "video": "mevis/val_u/JPEGImages/m1", **as_written}
    assert first["messages"][0]["info"] == about
    assert first["messages"][0]["wants_masks"] and first["region_shape"] == "box"
    assert turns(without_masks) == ["What shape is <11>?", "Square."]
    assert "wants_masks" not in without_masks["messages"][0]
    # Every round stands alone
    assert [turns(record)[0] for record in records[2:6]] == [
        "What is the man <3> doing?", f"How do <3> and <4> differ? {MASK_REQUEST}", "What is behind it?", "Why?",
    ]  # fmt: skip
    assert [record["messages"][0]["info"]["question_id"] for record in records[2:6]] == [900, 902, 906, 908]


def test_sama_bench_g_keeps_the_rounds_that_the_official_loader_keeps(tmp_path):
    """The case bench_g.preprocess recorded from the official code: rounds 0 and 2 of 4 stay."""
    from test_reader_errors import write_json

    talk = [
        ("human", "<video>\nWhat is <mask> doing?"), ("gpt", "<p> The man </p> [SEG] throws <p> a ball </p> [SEG]."),
        ("human", "Compare <mask> and <mask>."), ("gpt", "<p> The man </p> [SEG] is bigger."),
        ("human", "Segment both people."), ("gpt", "<p> The people </p> [SEG] stand."),
        ("human", "How does <mask> relate to <mask>?"), ("gpt", "It throws it. No masks."),
        ("human", "dangling"),
    ]  # fmt: skip
    item = {"video": "mevis/a", "frames": ["0"], "anno_map": [11, 12, -1], "obj_masks": [[11], [11], [], [11, 12]]}
    item |= {"groundtruth": [[[11], [12]], [[11]], [[11, 12]], [[12]]]}
    item["conversation"] = [{"from": role, "value": value} for role, value in talk]
    write_json(tmp_path / "mevis.json", [item])
    files = {"annotations": "mevis.json", "media": ".", "mevis_masks": "masks.json"}
    records = list(READERS["sama_bench_g"](files, tmp_path, {}))
    assert [turns(record) for record in records] == [
        ["What is <11> doing?", "[The man|11] throws [a ball|12]."],
        ["Segment both people.", "[The people|11+12] stand."],
    ]
    assert all(record["messages"][0]["wants_masks"] for record in records)


def test_sama_bench_c():
    records = read("sama_bench_c")
    assert len(records) == 13 + 1
    assert records[0]["id"] == "sama_bench_c/mevis/0/obj0"
    assert turns(records[0]) == ["describe_region_bench: <11>", "A square."]
    assert records[0]["messages"][0]["info"] == {"description_id": 2, "video": "mevis/val_u/JPEGImages/m1"}
    assert turns(records[1]) == ["describe_region_bench: <4>", "A dog."]
    # The true mask and not its box, unlike -G
    assert {record["region_shape"] for record in records} == {"mask"}


def test_sama_bench_masks_are_padded_unwrapped_and_resized():
    by_id = {record["id"]: record for record in read("sama_bench_g")}
    short, lvvis = by_id["sama_bench_g/mevis/0/0"], by_id["sama_bench_g/lvvis_0/0/0"]
    assert np.array_equal(masks("sama_bench_g", short, "11"), boxes((0, 0, 8, 8), None, None))
    # LV-VIS: folders of five digits, masks inside the whole annotation
    assert lvvis["video"]["path"] == "sama_bench/lvvis/val/JPEGImages/00002"
    assert lvvis["messages"][0]["info"]["video"] == "lvvis/val/JPEGImages/2"
    assert np.array_equal(masks("sama_bench_g", lvvis, "21"), boxes(None, (3, 3, 9, 9), (4, 3, 10, 9)))
    rvos = by_id["sama_bench_g/ref_youtube_vos_1/0/0"]
    assert np.array_equal(masks("sama_bench_g", rvos, "31"), boxes(*[(4, 4, 12, 8)] * 3))
    vidstg = [by_id[f"sama_bench_g/VidSTG_{part}/0/0"]["video"]["frames"] for part in range(8)]
    assert vidstg == [["frame_0.jpg", "frame_4.jpg", "frame_8.jpg", "frame_12.jpg"]] * 8


M1, LV = "mevis/val_u/JPEGImages/m1", "lvvis/val/JPEGImages/00002"
R1, STG = "ref_youtube_vos/valid/JPEGImages/r1", "VidSTG/val/3001"
BENCH_VIDEOS = {
    # file: folder, object, first question_id, its boxes on each frame
    "mevis": (M1, "11", 0, [(0, 0, 8, 8), None, None]),
    **{f"lvvis_{i}": (LV, "21", 100 + 10 * i, [None, (3, 3, 9, 9), (4, 3, 10, 9)]) for i in range(2)},
    **{f"ref_youtube_vos_{i}": (R1, "31", 200 + 10 * i, [(4, 4, 12, 8)] * 3) for i in range(2)},
    **{f"VidSTG_{i}": (STG, "41", 300 + 10 * i, [(0, 0, 4, 4)] * 4) for i in range(8)},
}  # fmt: skip


@pytest.mark.parametrize("file", BENCH_VIDEOS)
def test_each_file_of_the_bench(file):
    folder, name, number, expected = BENCH_VIDEOS[file]
    asked, shape = [record for record in read("sama_bench_g") if record["id"].startswith(f"sama_bench_g/{file}/0/")]
    (described,) = [record for record in read("sama_bench_c") if record["id"] == f"sama_bench_c/{file}/0/obj0"]
    assert turns(asked) == [f"What is <{name}>?", f"[It|{name}] is a square."]
    assert turns(shape) == [f"What shape is <{name}>?", "Square."]
    assert turns(described) == [f"describe_region_bench: <{name}>", "A square."]
    assert [record["messages"][0]["info"]["question_id"] for record in (asked, shape)] == [number, number + 1]
    assert described["messages"][0]["info"]["description_id"] == number + 2
    for record in (asked, shape, described):
        assert record["video"]["path"] == f"sama_bench/{folder}" and len(record["video"]["frames"]) == len(expected)
        assert np.array_equal(masks("sama_bench_g", record, name), boxes(*expected))


def test_files_of_the_bench_are_thirteen():
    files = SOURCES["sama_bench_g"][1]["annotations"]
    assert len(files) == 13 and files == [f"sama_bench/{name}.json" for name in BENCH_VIDEOS]
