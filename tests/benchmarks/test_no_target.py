"""Expressions that fit nothing, in every benchmark with referring questions: asked with empty masks, scored by N-acc,
T-acc, and J&F, gIoU or R."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from benchmark_answers import ROOT, answer, box, masks, opened, perfect, predictions, text_of, values
from PIL import Image

from sama.benchmarks.benchmark import BenchmarkError, PredictedObject, PredictedTurn, Prediction
from sama.benchmarks.registry import open_benchmark
from sama.data.wording import NO_TARGET_ANSWERS
from sama.drawing.gallery import write_gallery
from sama.evaluation.plots import write_plots
from sama.evaluation.report import terminal_table


MIDDLE, CORNER, WHOLE = box(5, 5, 15, 15), box(0, 0, 5, 4), box(0, 0, 20, 20)
SILENT = answer(("Nothing in the video fits that description.", []))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAMA_CACHE", str(tmp_path / "cache"))


def with_nothing(tmp_path, name: str, path: str, video: str, **extra) -> Path:
    """The fixtures with one more expression of a video, which fits nothing."""
    root = Path(shutil.copytree(ROOT, tmp_path / "root"))
    meta = json.loads((root / path).read_text())
    meta["videos"][video]["expressions"]["7"] = {"exp": "A cat.", "anno_id": [], "obj_id": [], **extra}
    (root / path).write_text(json.dumps(meta))
    return root


@pytest.fixture
def mevis(tmp_path):
    return opened("mevis", with_nothing(tmp_path, "mevis", "video_datas/mevis/valid_u/meta_expressions.json", "v1"))


def revos_root(tmp_path):
    path = "video_datas/revos/meta_expressions_valid_.json"
    return with_nothing(tmp_path, "revos", path, "LVVIS/train/00009", type_id=2)


def test_it_is_asked_with_empty_masks(mevis):
    assert mevis.outline()["v1"] == ["v1/0", "v1/1", "v1/7"]
    turn = mevis.questions("v1")[-1].turns[0]
    assert turn.no_target and turn.targets == [] and turn.reference == NO_TARGET_ANSWERS["video"][0]
    assert text_of(mevis, "v1/7") == ["Please segment a cat."]
    assert not mevis.questions("v1")[0].turns[0].no_target


@pytest.mark.parametrize(
    ("said", "j", "n_acc"),
    [
        (SILENT, 1, 100),
        (masks([None, None]), 1, 100),  # a [SEG] without a pixel predicts nothing
        (masks([MIDDLE, MIDDLE]), 0, 0),
        (masks([None, CORNER]), 0.5, 0),  # silent in one of two frames
        (masks([WHOLE, WHOLE]), 0, 0),  # which have no boundary inside the frame
    ],
    ids=["silent", "empty mask", "masks", "one frame", "whole frames"],
)
def test_mevis(mevis, said, j, n_acc):
    scores = mevis.score(predictions(mevis, {"v1/0": masks([MIDDLE, MIDDLE]), "v1/7": said}))
    found = values(scores)
    assert found["J"] == found["F"] == pytest.approx(100 * (1 + j) / 2)
    assert (found["N-acc"], found["T-acc"]) == (n_acc, 100)
    assert {row.name: row.count for row in scores.rows} == {"J&F": 2, "J": 2, "F": 2, "N-acc": 1, "T-acc": 1}
    sample = scores.samples[1]
    assert (sample.value, sample.ious, sample.num_objects) == (j, [], 0)


def test_the_release_scores_whole_frames_by_their_boundary(mevis):
    scores = mevis.score(predictions(mevis, {"v1/7": masks([WHOLE, WHOLE])}))
    assert (values(scores)["F"], values(scores, published=True)["F"]) == (0, 100)


def test_silence_about_a_target_lowers_t_acc(mevis):
    found = values(mevis.score(predictions(mevis, {"v1/0": SILENT, "v1/1": masks([MIDDLE] * 2), "v1/7": SILENT})))
    assert (found["N-acc"], found["T-acc"]) == (100, 50)


def test_revos_keeps_its_groups_and_measures_hallucination(tmp_path):
    name, square = "LVVIS/train/00009", masks([MIDDLE, MIDDLE])
    before = opened("revos")
    told = {f"{name}/{number}": square for number in range(3)}
    revos = opened("revos", revos_root(tmp_path))
    # 20 pixels in each frame where nothing is, of 400 in the foreground
    after = revos.score(predictions(revos, {**told, f"{name}/7": masks([CORNER, CORNER])}))
    expected = before.score(predictions(before, told))
    for part in ("overall", "referring", "reasoning"):
        assert values(after, part) == values(expected, part)
        assert values(after, part, published=True) == values(expected, part, published=True)
    assert values(after, "no target") == {"N-acc": 0, "T-acc": 100, "R": pytest.approx(95)}
    assert values(after, "no target", published=True) == {"N-acc": None, "T-acc": None, "R": None}
    silent = revos.score(predictions(revos, {**told, f"{name}/7": SILENT}))
    assert values(silent, "no target") == {"N-acc": 100, "T-acc": 100, "R": 100}


def test_revos_of_a_video_in_which_nothing_fits(tmp_path):
    """Without any object and without the file of foregrounds, the foreground is empty."""
    root = revos_root(tmp_path)
    (root / "video_datas/revos/mask_dict_foreground.json").unlink()
    path = root / "video_datas/revos/meta_expressions_valid_.json"
    meta = json.loads(path.read_text())
    video = meta["videos"]["LVVIS/train/00009"]
    video["expressions"] = {"7": video["expressions"]["7"]}
    path.write_text(json.dumps(meta))
    revos = opened("revos", root)
    assert values(revos.score(perfect(revos)), "no target") == {"N-acc": 100, "T-acc": None, "R": 100}


def test_grefcoco():
    grefcoco = opened("grefcoco")
    assert grefcoco.outline() == {"1": ["1/0", "1/1", "1/2"], "2": ["2/0"]}
    assert text_of(grefcoco, "1/2") == ["Please segment a man in blue in this image."]
    assert values(grefcoco.score(perfect(grefcoco))) == {"cIoU": 100, "gIoU": 100, "N-acc": 100, "T-acc": 100}
    # 40 of 40; nothing of 65; 20 pixels too many; silent
    answers = {"1/0": masks([box(0, 0, 10, 4)]), "1/1": masks(), "1/2": masks([CORNER]), "2/0": SILENT}
    scores = grefcoco.score(predictions(grefcoco, answers))
    assert values(scores) == pytest.approx({"cIoU": 100 * 40 / 125, "gIoU": 50, "N-acc": 50, "T-acc": 50})
    assert set(values(scores, published=True).values()) == {None}
    # With targets alone the table is that of RefCOCO
    assert [row.name for row in opened("grefcoco", split="testA").score([]).rows] == ["cIoU", "gIoU"]


NOTHING = {"type": "grounded", "text": "", "objects": []}
RECORDS = [
    {
        "id": "one", "video": {"path": "clip", "frames": ["0.png", "1.png"]},
        "objects": {"a": {"masks": [MIDDLE, None]}},
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Segment the ball."}]},
            {"role": "assistant", "content": [{"type": "grounded", "text": "", "objects": ["a"]}]},
            {"role": "user", "content": [{"type": "text", "text": "Segment the cat."}]},
            {"role": "assistant", "content": [NOTHING]},
            {"role": "user", "content": [{"type": "text", "text": "Is it day?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]},
        ],
    },
]  # fmt: skip


def own_records(tmp_path):
    (tmp_path / "clip").mkdir()
    for name in ("0.png", "1.png"):
        Image.fromarray(np.full((20, 20, 3), 90, dtype=np.uint8)).save(tmp_path / "clip" / name)
    (tmp_path / "records.jsonl").write_text("\n".join(map(json.dumps, RECORDS)), encoding="utf-8")
    return open_benchmark("json_lines", data_root=tmp_path)


def said(*turns) -> Prediction:
    found = [PredictedTurn(words, [PredictedObject("", track) for track in tracks]) for words, *tracks in turns]
    return Prediction("one", found, 2, 20, 20)


@pytest.mark.parametrize(("tracks", "j"), [([], 1), ([[None, CORNER]], 0.5), ([[WHOLE, WHOLE]], 0)])
def test_json_lines(tmp_path, monkeypatch, tracks, j):
    monkeypatch.setattr("sama.benchmarks.json_lines.caption_scores", lambda *texts: {})
    monkeypatch.setattr("sama.benchmarks.json_lines.CAPTIONS", {})
    benchmark = own_records(tmp_path)
    (question,) = benchmark.questions(next(iter(benchmark.outline())))
    assert [turn.no_target for turn in question.turns] == [False, True, False]
    assert question.turns[1].reference == NO_TARGET_ANSWERS["video"][0]
    scores = benchmark.score([said(("[SEG]", [MIDDLE, None]), ("No.", *tracks), ("Yes.",))])
    found = values(scores, "masks")
    assert (found["N-acc"], found["T-acc"]) == (0 if tracks else 100, 100)
    assert found["mIoU"] == (50 if tracks else 100)
    assert found["J"] == found["F"] == found["J&F"] == 100 * (1 + j) / 2
    assert scores.samples[0].ious == [1.0]


def test_tables_plots_and_galleries_show_them(mevis, tmp_path):
    made = predictions(mevis, {"v1/0": masks([MIDDLE] * 2), "v1/1": SILENT, "v1/7": masks([CORNER] * 2)})
    scores = mevis.score(made)
    assert "N-acc" in terminal_table(scores.rows)
    assert write_plots(tmp_path, scores.samples, mevis.headline).is_file()
    alone = mevis.score(predictions(mevis, {"v1/7": SILENT}))
    assert write_plots(tmp_path, alone.samples, mevis.headline).is_file()
    by_id = {prediction.question: prediction for prediction in made}
    paths = write_gallery(tmp_path / "gallery", mevis, scores.samples, lambda names: [by_id[name] for name in names])
    assert len(paths) == 3


def test_toy_world():
    benchmark = open_benchmark("toy_world", split="no_target", clips=8)
    assert benchmark.identity != open_benchmark("toy_world", clips=8).identity
    made = {True: [], False: []}
    for group in benchmark.outline():
        ((question, video),) = [(question, benchmark.open(group)) for question in benchmark.questions(group)]
        for speaks in made:
            turns = []
            for turn in question.turns:
                tracks = turn.targets or ([[MIDDLE_64] * len(video)] if speaks else [])
                turns.append(PredictedTurn(turn.reference, [PredictedObject("", track) for track in tracks]))
            made[speaks].append(Prediction(question.id, turns, len(video), video.height, video.width))
    part = "referring, target or none"
    assert set(values(benchmark.score(made[False]), part).values()) == {1.0}
    spoken = {row.name: row for row in benchmark.score(made[True]).rows if row.part == part}
    assert (spoken["N-acc"].value, spoken["T-acc"].value) == (0, 1)
    assert spoken["gIoU"].value == pytest.approx(spoken["T-acc"].count / spoken["gIoU"].count)
    with pytest.raises(BenchmarkError, match="'0' has width 0; where nothing is to be found it is"):
        benchmark.score([replace(made[False][0], width=0)])
    names = {row.name for row in open_benchmark("toy_world", clips=1).score([]).rows}
    assert not {"N-acc", "T-acc", "gIoU"} & names


MIDDLE_64 = box(20, 20, 30, 30, side=64)
