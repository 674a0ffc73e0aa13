"""Grounded captions of stills and region captions with answers written by hand."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from benchmark_answers import ROOT, NoMeteor, answer, box, opened, predictions, text_of, values

from sama.benchmarks import region_captions
from sama.benchmarks.benchmark import BenchmarkError, Tools
from sama.data.masks import encode_rle
from sama.data.records import DataError
from sama.metrics.captions import CAPTION_METRICS
from sama.metrics.values import Value


needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="Java is not installed")
I1 = answer(
    ("<p> The man </p> [SEG] and <p> a dog </p> [SEG].",
     [("The man", [box(2, 2, 10, 12)]), ("a dog", [box(10, 14, 14, 18)])]),
)  # fmt: skip
I2 = answer(
    ("<p> A cat </p> [SEG] on the <p> grass </p> [SEG].",
     [("A cat", [box(0, 0, 10, 10)]), ("grass", [box(10, 10, 20, 20)])]),
)  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAMA_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def no_captions(monkeypatch):
    nothing = {name: Value(None, "left out in this test") for name in CAPTION_METRICS}
    monkeypatch.setattr(
        region_captions, "caption_scores_by_group", lambda corpora, *_: dict.fromkeys(corpora, nothing)
    )


@pytest.fixture
def no_meteor(monkeypatch):
    monkeypatch.setattr("pycocoevalcap.meteor.meteor.Meteor", NoMeteor)


def similar(first, second) -> np.ndarray:
    """0.9 for the man, 1 for the cat, as in the case gcgimg.metrics."""
    table = {("a man", "the man"): 0.9, ("a cat", "a cat"): 1.0}
    return np.array([[table.get((one.lower(), other.lower()), 0.2) for other in second] for one in first])


def test_masks_of_grounded_captions(no_captions):
    captions = opened("grounded_captions")
    scores = captions.score(predictions(captions, {"i1": I1, "i2": I2}), Tools(similarity=similar))
    found = values(scores)
    # The man: 80 of 100 pixels; the ball is not found. The cat is right, the grass is one too many
    assert found["mIoU"] == pytest.approx(100 * (0.8 / 2 + 1 / 2) / 2)
    assert values(scores, published=True)["mIoU"] == pytest.approx(90)
    assert found["Recall"] == values(scores, published=True)["Recall"] == pytest.approx(200 / 3)
    # COCO's 101 points, of 2 found in the order right, wrong, right, wrong: as the release prints it
    assert (found["AP50"], found["AP"]) == (pytest.approx(55.4, abs=0.05), pytest.approx(42.2, abs=0.05))
    assert [row.name for row in scores.rows[:5]] == ["AP50", "mIoU", "Recall", "METEOR", "CIDEr"]
    assert [sample.value for sample in scores.samples] == pytest.approx([0.4, 0.5])


def test_questions_of_grounded_captions(no_captions):
    assert opened("grounded_captions", split="test").outline() == {"i3": ["i3"]}
    wording = "with interleaved segmentation masks for"
    assert wording in text_of(opened("grounded_captions"), "i1")[0]
    released = text_of(opened("grounded_captions", preset="published"), "i1")[0]
    assert wording.replace("interleaved ", "interleaved     ") in released
    right = opened("grounded_captions", split="test")
    (question,) = right.questions("i3")
    made = predictions(
        right, {"i3": answer(("<p> A red square </p> [SEG].", [("A red square", question.turns[0].targets[0])]))}
    )
    found = values(right.score(made))
    assert (found["AP50"], found["mIoU"], found["Recall"]) == (pytest.approx(100), 100, None)
    silent = right.score(predictions(right, {"i3": answer(("A square.", []))}), Tools(similarity=similar))
    assert (values(silent)["AP50"], values(silent)["mIoU"], values(silent)["Recall"]) == (0, 0, 0)


def test_a_true_mask_that_does_not_fit_fails_its_question_alone(tmp_path):
    path = Path(shutil.copytree(ROOT, tmp_path / "root")) / "glamm_data" / "annotations" / "val_gcg_coco_mask_gt.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["annotations"][0]["segmentation"] = encode_rle(np.ones((10, 20), dtype=bool))
    path.write_text(json.dumps(content), encoding="utf-8")
    captions = opened("grounded_captions", tmp_path / "root")
    with pytest.raises(DataError, match="10"):
        captions.questions("i1")
    assert captions.questions("i2")


@pytest.mark.parametrize(
    ("name", "file", "entry"),
    [
        ("grounded_captions", "val_gcg_coco_caption_gt.json", "i1"),
        ("region_captions", "finetune_refcocog_val_with_mask.json", "11"),
    ],
)
def test_an_image_that_is_listed_twice_is_named_at_once(tmp_path, name, file, entry):
    path = Path(shutil.copytree(ROOT, tmp_path / "root")) / "glamm_data" / "annotations" / file
    content = json.loads(path.read_text())
    content["annotations"].append(content["annotations"][0])
    path.write_text(json.dumps(content))
    with pytest.raises(
        BenchmarkError, match=f"{name} .val.: the annotation files have 2 entries with the id '{entry}'"
    ):
        opened(name, tmp_path / "root")


def test_no_answers_no_scores():
    for name in ("grounded_captions", "region_captions"):
        rows = opened(name).score([], Tools(similarity=similar)).rows
        assert {row.value for row in rows} == {None} and all(row.reason for row in rows)


@needs_java
def test_texts_of_grounded_captions(no_meteor):
    captions = opened("grounded_captions")
    answers = {"i1": I1, "i2": answer(("A cat\non the <p> grass </p> [SEG].", []))}
    scores = captions.score(predictions(captions, answers))
    # "A man plays with a ball": of "The man and a dog" 2 of 5 words stand in it; "A cat on the grass" is right; the
    # release makes "catthe" of the line break. 10 words for 11, and 9
    assert values(scores)["Bleu_1"] == pytest.approx(100 * 7 / 10 * np.exp(1 - 11 / 10), rel=1e-5)
    assert values(scores, published=True)["Bleu_1"] == pytest.approx(100 * 5 / 9 * np.exp(1 - 11 / 9), rel=1e-5)


@needs_java
def test_region_captions(no_meteor):
    regions = opened("region_captions")
    assert regions.outline() == {"11": ["11"], "21": ["21"]}
    assert text_of(regions, "11") == [
        "There are 1 part regions in the picture: region1<region>.\n"
        "Please give me a short description of the region in the picture marked by region1."
    ]
    answers = {
        "11": answer(("The region marked by region1 is red car on left.", [])),
        "21": answer(("Region1 shows a small brown dog", [])),
    }
    scores = regions.score(predictions(regions, answers))
    # The case regioncap.metrics, with whose texts metrics/test_recorded_values.py runs the real METEOR
    found = values(scores)
    assert (found["METEOR"], found["CIDEr"]) == (50, pytest.approx(343.566336, rel=1e-6))
    assert found["Bleu_1"] == pytest.approx(77.2184789568, rel=1e-6)
    assert [row.name for row in scores.rows[:2]] == ["METEOR", "CIDEr"] and scores.rows[0].count == 2
