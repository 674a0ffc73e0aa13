"""Your own records as a benchmark, with scores counted by hand."""

import json
import re
import shutil

import numpy as np
import pytest
from benchmark_answers import NoMeteor
from PIL import Image

from sama.benchmarks.benchmark import BenchmarkError, PredictedObject, PredictedTurn, Prediction
from sama.benchmarks.json_lines import measure_masks
from sama.benchmarks.registry import open_benchmark
from sama.benchmarks.tracks import track_overlaps
from sama.data.masks import encode_rle
from sama.data.records import DataError
from sama.evaluation.inference import PredictionRunner
from sama.metrics.captions import CAPTION_METRICS
from sama.metrics.values import Value


SIZE = (20, 20)


def square(left: int, right: int) -> dict:
    """A square of 10 rows, from one column to another."""
    mask = np.zeros(SIZE, dtype=bool)
    mask[5:15, left:right] = True
    return encode_rle(mask)


def user(*parts) -> dict:
    return {"role": "user", "content": list(parts)}


def said(*parts) -> dict:
    return {"role": "assistant", "content": list(parts)}


def text(words: str) -> dict:
    return {"type": "text", "text": words}


ASKED = {"type": "region", "object": "a"}
VIDEO = {"path": "clip", "frames": ["0.png", "1.png"]}
RECORDS = [
    {
        "id": "one", "video": VIDEO, "objects": {"a": {"masks": [square(5, 15), square(5, 15)]}},
        "messages": [
            user(text("What is "), ASKED, text("?")),
            said({"type": "grounded", "text": "A ball", "objects": ["a"]}, text(".")),
            user(text("Is it red?")), said(text("Yes.")),
        ],
    },
    {
        "id": "two", "video": VIDEO, "objects": {"a": {"masks": [square(5, 15), None]}},
        "messages": [user(text("Segment it.")), said({"type": "grounded", "text": "", "objects": ["a"]})],
    },
    {"id": "words", "messages": [user(text("Hello")), said(text("Hi."))]},
]  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "clip").mkdir()
    for name in VIDEO["frames"]:
        Image.fromarray(np.full((*SIZE, 3), 90, dtype=np.uint8)).save(tmp_path / "clip" / name)
    (tmp_path / "records.jsonl").write_text("\n".join(map(json.dumps, RECORDS)), encoding="utf-8")
    return tmp_path


def predicted(name: str, *turns) -> Prediction:
    said = [PredictedTurn(words, [PredictedObject("", masks) for masks in tracks]) for words, *tracks in turns]
    return Prediction(name, said, 2, *SIZE)


def test_records_about_one_video_are_one_group(folder):
    benchmark = open_benchmark("json_lines", data_root=folder)
    assert list(benchmark.outline().values()) == [["one", "two"], ["words"]]
    (first, second), (words,) = (benchmark.questions(group) for group in benchmark.outline())
    assert [turn.text for turn in first.turns] == ["What is <region>?", "Is it red?"]
    assert [turn.reference for turn in first.turns] == ["<p> A ball </p> [SEG].", "Yes."]
    assert len(first.turns[0].regions) == 1 and first.turns[0].targets == [RECORDS[0]["objects"]["a"]["masks"]]
    assert second.turns[0].reference == "[SEG]" and not words.masks
    assert benchmark.open("words") is None


def test_records_that_show_other_frames_are_other_groups(folder):
    shown = [
        {**VIDEO, "frames": ["0.png", "1.png", "0.png"]},
        {**VIDEO, "frames": ["0.png", "0.png", "0.png"]},
        {"path": "clip.mp4", "num_frames": 4},
        {"path": "clip.mp4", "num_frames": 8},
        {"num_frames": 8, "path": "./clip.mp4", "stride": 1},  # the same, written otherwise
    ]
    records = [{**RECORDS[2], "id": str(number), "video": video} for number, video in enumerate(shown)]
    records.append({**RECORDS[2], "id": "still", "image": {"path": "clip.mp4"}})
    (folder / "records.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    outline = open_benchmark("json_lines", data_root=folder).outline()
    assert list(outline.values()) == [["0"], ["1"], ["2"], ["3", "4"], ["still"]]


@pytest.mark.parametrize("count", [1, 3])
def test_tracks_of_another_length_are_an_error(folder, count):
    benchmark = open_benchmark("json_lines", data_root=folder)
    with pytest.raises(ValueError, match=rf"^The prediction for 'two': A track has {count} entries for 2 frames\.$"):
        benchmark.score([predicted("two", ("[SEG]", [square(5, 15)] * count))])
    assert track_overlaps([[]], [[square(5, 15)] * 2], 2, SIZE).ious().tolist() == [[0.0]]


def test_scores_by_hand(folder, monkeypatch):
    monkeypatch.setattr("pycocoevalcap.meteor.meteor.Meteor", NoMeteor)
    benchmark = open_benchmark("json_lines", data_root=folder)
    shifted = [square(10, 20), square(5, 15)]
    scores = benchmark.score([
        # Frame 0: 50 of 150 pixels in common, frame 1 all 100: IoU 150/250 over the volume, J (1/3 + 1) / 2
        predicted("one", ("<p> A ball </p> [SEG].", shifted), ("Yes.",)),
        # Nothing found where something is: IoU 0; J and F 0 in frame 0, 1 in frame 1, in which nothing is to be found
        predicted("two", ("No.",)),
        predicted("words", ("Hi.",)),
    ])  # fmt: skip
    rows = {row.name: row for row in scores.rows}
    assert rows["mIoU"].value == pytest.approx(30.0) and rows["mIoU"].count == 2
    assert rows["recall at IoU 0.5"].value == pytest.approx(50.0)
    assert rows["J"].value == pytest.approx(100 * (2 / 3 + 1 / 2) / 2)
    assert rows["J&F"].value == pytest.approx((rows["J"].value + rows["F"].value) / 2)
    assert 50 < rows["F"].value < 75  # of the shifted square's edge between none and all is right
    assert rows["METEOR"].count == 4 and (rows["METEOR"].value is None) == bool(rows["METEOR"].reason)
    assert [sample.ious for sample in scores.samples] == [[0.6], [0.0], []]
    assert scores.samples[0].value == pytest.approx(0.6) and scores.samples[2].value is None


def test_a_mask_on_something_else_is_not_silence(folder):
    """The object is visible in one of two frames. Silence is right in the other one, a mask elsewhere in both is right
    in none."""
    benchmark = open_benchmark("json_lines", data_root=folder)
    (question,) = [one for group in benchmark.outline() for one in benchmark.questions(group) if one.id == "two"]
    for tracks, expected in (((), 0.5), (([square(16, 20)] * 2,), 0.0)):
        prediction = predicted("two", ("It.", *tracks))
        facts = measure_masks(question.turns[0], prediction.turns[0], prediction)
        ((region, contour),) = facts["jf"]
        assert facts["ious"] == [0.0] and region == expected
        assert contour == 0.5 if not tracks else contour < 0.2  # two edges are near each other


def write(folder, *records) -> None:
    (folder / "records.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")


@pytest.mark.skipif(shutil.which("java") is None, reason="Java is not installed")
def test_references_without_words_have_mask_scores_alone(folder, monkeypatch):
    monkeypatch.setattr("pycocoevalcap.meteor.meteor.Meteor", NoMeteor)
    answer = said({"type": "grounded", "text": "", "objects": ["a"]}, text("."))
    write(folder, *({**RECORDS[1], "id": name, "messages": [RECORDS[1]["messages"][0], answer]} for name in "xy"))
    benchmark = open_benchmark("json_lines", data_root=folder)
    rows = benchmark.score([predicted(name, ("[SEG].", [square(5, 15), None])) for name in "xy"]).rows
    assert {row.value for row in rows if row.part == "masks"} == {100}
    assert {(row.value, row.reason) for row in rows if row.part == "words"} == {(None, "all references are empty")}


@pytest.mark.parametrize("name", ["a", "both"])
def test_only_masks_that_may_be_fitted_are_resized(folder, name):
    tall = np.zeros((40, 20), dtype=bool)
    tall[10:30, 5:15] = True  # the square at twice its height
    objects = {"a": {"masks": [encode_rle(tall), None]}, "both": {"union": ["a"]}}
    answer = said({"type": "grounded", "text": "", "objects": [name]})
    record = {**RECORDS[1], "objects": objects, "messages": [RECORDS[1]["messages"][0], answer]}
    write(folder, RECORDS[0], record)
    benchmark = open_benchmark("json_lines", data_root=folder)
    (group,) = benchmark.outline()
    other, question = benchmark.questions(group)
    message = r"item two, field 'objects.a.masks\[0\]': the mask is 40 x 20 .*, its frame 20 x 20"
    assert re.search(message, question.error) and not question.turns
    assert other.error is None and len(other.turns) == 2  # another record about the same video
    (failed,) = (answer for _, answer in PredictionRunner(None, None, benchmark, 8).ask_group(group, ["two"]))
    assert failed == Prediction("two", error=question.error)
    answers = predicted("one", ("[SEG]", [square(5, 15)] * 2), ("Yes.",)), failed
    assert [sample.question for sample in benchmark.score(answers).samples] == ["one"]
    write(folder, {**record, "objects": {**objects, "a": {**objects["a"], "fit": True}}})
    (question,) = open_benchmark("json_lines", data_root=folder).questions(group)
    assert question.turns[0].targets == [[square(5, 15), None]]


def test_reference_history_is_an_option_that_names_the_run(folder):
    benchmark = open_benchmark("json_lines", data_root=folder, history="reference")
    assert benchmark.questions(next(iter(benchmark.outline())))[0].history == "reference"
    assert benchmark.identity["options"]["history"] == "reference"


def test_answers_without_a_reference_are_in_no_mask_score(folder, monkeypatch):
    words = dict.fromkeys(CAPTION_METRICS, Value(None, "left out in this test"))
    monkeypatch.setattr("sama.benchmarks.json_lines.caption_scores", lambda *texts: words)
    write(folder, {**RECORDS[1], "id": "known"}, {**RECORDS[1], "id": "open", "messages": [user(text("Segment."))]})
    benchmark, right = open_benchmark("json_lines", data_root=folder), ("[SEG]", [square(5, 15), None])
    scores = benchmark.score([predicted("known", right), predicted("open", right)])
    assert {(row.value, row.count) for row in scores.rows if row.part == "masks"} == {(100, 1)}
    assert scores.samples[1].value is None


def test_the_history_is_one_of_two_and_has_an_answer_to_every_question(folder):
    with pytest.raises(BenchmarkError, match="history is 'refrence', expected one of own, reference"):
        open_benchmark("json_lines", data_root=folder, history="refrence")
    system = {"role": "system", "content": [text("Be brief.")]}
    write(folder, RECORDS[0], {**RECORDS[2], "id": "two", "messages": [user(text("A")), system, user(text("B"))]})
    assert len(open_benchmark("json_lines", data_root=folder).records) == 2
    message = "Question 1 of 2 of the record 'two' has no reference answer"
    with pytest.raises(BenchmarkError, match=message):
        open_benchmark("json_lines", data_root=folder, history="reference").outline()
    write(folder, {**RECORDS[2], "messages": [user(text("A")), system, said(text("B")), user(text("C"))]})
    assert len(open_benchmark("json_lines", data_root=folder, history="reference").records) == 1


def test_the_data_root_is_a_variable_or_below_the_home_folder(folder, monkeypatch):
    monkeypatch.setenv("SAMA_DATA_ROOT", str(folder))
    assert open_benchmark("json_lines").data_root == folder
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.setenv("SAMA_DATA_ROOT", "nowhere")
    assert open_benchmark("json_lines", data_root=f"~/{folder.name}").data_root == folder


def test_bad_files(folder, monkeypatch):
    monkeypatch.delenv("SAMA_DATA_ROOT", raising=False)
    with pytest.raises(BenchmarkError, match="json_lines .*missing .*mine.jsonl"):
        open_benchmark("json_lines", data_root=folder, records="mine.jsonl")
    with pytest.raises(BenchmarkError, match="--data_root"):
        open_benchmark("json_lines")
    (folder / "records.jsonl").write_text('{"messages": []}', encoding="utf-8")
    with pytest.raises(DataError, match="line 1, field 'messages'"):
        open_benchmark("json_lines", data_root=folder).outline()
    (folder / "records.jsonl").write_text("\n".join([json.dumps(RECORDS[2])] * 2), encoding="utf-8")
    with pytest.raises(BenchmarkError, match="Two records have the id 'words'"):
        open_benchmark("json_lines", data_root=folder).outline()


def test_a_media_folder_that_is_a_link(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (folder / "clip").rename(elsewhere / "clip")
    (folder / "mine").symlink_to(elsewhere)
    benchmark = open_benchmark("json_lines", data_root=folder, media="mine")
    assert [len(benchmark.open(group)) for group in benchmark.outline() if "clip" in group] == [2]


def test_masks_in_a_mask_file_are_not_read(folder):
    write(folder, RECORDS[1] | {"objects": {"a": {"store": "masks", "key": "7"}}})
    benchmark = open_benchmark("json_lines", data_root=folder)
    (group,) = benchmark.outline()
    (question,) = benchmark.questions(group)
    assert "the masks are in a mask file ('masks'), which is not read here" in question.error
