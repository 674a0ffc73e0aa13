"""RefCOCO, RefCOCO+ and RefCOCOg with answers written by hand; the example of evaluation spec 3."""

from dataclasses import replace

import pytest
from benchmark_answers import box, masks, opened, perfect, predictions, text_of, values

from sama.benchmarks.benchmark import BenchmarkError, PredictedObject


TOP, HALF, SQUARE, BESIDE = box(0, 0, 10, 4), box(0, 0, 5, 4), box(5, 5, 10, 10), box(0, 5, 5, 10)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAMA_CACHE", str(tmp_path / "cache"))


def test_one_question_a_sentence():
    refcoco = opened("refcoco")
    assert refcoco.outline() == {"1": ["1/0", "1/1", "1/2"]}
    assert text_of(refcoco, "1/1") == ["Please segment middle in this image."]
    assert opened("refcoco", split="testA").outline() == {"2": ["2/0"]}
    assert text_of(opened("refcocog", split="test"), "2/0") == ["Please segment a man in a picture in this image."]
    assert values(refcoco.score(perfect(refcoco))) == {"cIoU": 100, "gIoU": 100}
    assert opened("refcoco+", split="testB").outline() == {"1": ["1/0"]}


def test_ciou_and_giou():
    refcoco = opened("refcoco+")
    # 20 of 40, 25 of 25, 0 of 50 pixels
    answers = {"1/0": masks([HALF]), "1/1": masks([SQUARE]), "1/2": masks([BESIDE])}
    scores = refcoco.score(predictions(refcoco, answers))
    assert values(scores) == {"cIoU": pytest.approx(100 * 45 / 115), "gIoU": pytest.approx(50)}
    assert values(scores, published=True) == pytest.approx({"cIoU": 100 * 0.3913043439, "gIoU": 100 * 0.499999851})
    assert [sample.value for sample in scores.samples] == [0.5, 1, 0]


def test_an_answer_without_a_mask_counts():
    refcoco = opened("refcoco")
    scores = refcoco.score(predictions(refcoco, {"1/0": masks([HALF]), "1/1": masks()}))
    assert values(scores) == pytest.approx({"cIoU": 100 * 20 / 65, "gIoU": 25})
    assert values(scores, published=True) == pytest.approx({"cIoU": 50, "gIoU": 25}, abs=1e-4)
    silent = refcoco.score(predictions(refcoco, {"1/1": masks()}))
    assert values(silent) == {"cIoU": 0, "gIoU": 0} and values(silent, published=True)["cIoU"] is None


def test_several_masks_are_united_except_in_the_release():
    refcoco = opened("refcoco")
    scores = refcoco.score(predictions(refcoco, {"1/0": masks([HALF], [box(5, 0, 10, 4)])}))
    assert values(scores) == {"cIoU": 100, "gIoU": 100}
    assert values(scores, published=True)["cIoU"] == pytest.approx(50)


def test_the_release_tears_overlapping_polygons():
    # 15 pixels and 8 others, 2 of them in common: 21 together, 19 in the release
    refcoco = opened("refcoco", split="testA")
    scores = refcoco.score(perfect(refcoco))
    assert values(scores)["cIoU"] == 100
    assert values(scores, published=True)["cIoU"] == pytest.approx(100 * 19 / 21)


def test_no_answers_no_score():
    rows = opened("refcoco").score([]).rows
    assert [(row.value, row.count, row.reason) for row in rows] == [(None, 0, "there are no expressions")] * 2


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ({"size": [24, 32], "counts": "0"}, "'1/0'.*: the mask is|'1/0'.*truncated or damaged"),
        ({"size": [65535, 65535], "counts": "0"}, "'1/0'.*exceeds the limits"),
        ({"size": ["24", 32], "counts": "0"}, "'1/0'.*in whole pixels, got"),
        ({"counts": "0"}, "'1/0'.*a mask is null, a run-length code or a list of them"),
    ],
)
def test_a_damaged_mask_of_a_prediction_names_its_question(mask, message):
    refcoco = opened("refcoco")
    (found,) = predictions(refcoco, {"1/0": masks([HALF])})
    broken = replace(found, turns=[replace(found.turns[0], objects=[PredictedObject("a", [mask])])])
    with pytest.raises(BenchmarkError, match=message):
        refcoco.score([broken])
    with pytest.raises(
        BenchmarkError, match="for '1/0' has 0 turns, the question 1: the prediction was probably made"
    ):
        refcoco.score([replace(found, turns=[])])
