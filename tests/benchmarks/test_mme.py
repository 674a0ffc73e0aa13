"""MME with answers written by hand."""

import shutil
from pathlib import Path

import pytest
from benchmark_answers import ROOT, answer, opened, predictions
from PIL import Image

from sama.benchmarks.benchmark import BenchmarkError
from sama.benchmarks.published import published_yes_or_no
from sama.metrics.mme import PERCEPTION, REASONING, yes_or_no


YES, NO = answer(("Yes.", [])), answer(("No", []))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAMA_CACHE", str(tmp_path / "cache"))


def parts(scores, published: bool = False) -> dict:
    return {row.part: row.published if published else row.value for row in scores.rows}


def test_accuracy_of_questions_and_of_pictures():
    mme = opened("mme")
    assert mme.outline()["color/one"] == ["color/one/0", "color/one/1"]
    right = {"color/one/0": YES, "color/one/1": NO, "color/two/0": YES, "OCR/1/0": NO, "OCR/1/1": YES}
    scores = mme.score(predictions(mme, right | {"color/two/1": YES}))
    # 3 of 4 answers and 1 of 2 pictures
    found = {name: value for name, value in parts(scores).items() if value is not None}
    assert found == {"OCR": 200, "color": 125}
    assert scores.rows[0].part == "perception" and "no score in artwork, " in scores.rows[0].reason
    assert {row.part: row.count for row in scores.rows if row.count} == {"perception": 6, "OCR": 2, "color": 4}


def test_an_image_with_an_open_question_is_not_in_acc_plus():
    mme = opened("mme")
    (row,) = [row for row in mme.score(predictions(mme, {"OCR/1/0": NO})).rows if row.part == "OCR"]
    assert (row.value, row.published, row.count) == (None, None, 1) and "all its questions" in row.reason
    some = {"color/one/0": YES, "color/one/1": NO, "color/two/0": YES}
    # 2 of 3 answers, 0 of the 1 image that is complete
    found = parts(mme.score(predictions(mme, some | {"color/one/0": NO})))["color"]
    assert found == pytest.approx(100 * 2 / 3)


def test_a_folder_that_is_no_category_is_named_at_once(tmp_path):
    root = Path(shutil.copytree(ROOT / "mme", tmp_path / "mme")).parent
    shutil.copytree(root / "mme" / "color", root / "mme" / "extra")
    with pytest.raises(BenchmarkError, match=r"mme.extra' is none of the 14 categories of MME \(OCR, "):
        opened("mme", root)


def test_sums_over_all_categories(tmp_path):
    # The case mme.rating: two pictures a category, all right but one answer in "color"
    for name in (*PERCEPTION, *REASONING):
        for picture in "ab":
            folder = tmp_path / "mme" / name
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 20)).save(folder / f"{picture}.png")
            (folder / f"{picture}.txt").write_text("Is it so?\tYes\nIs it not?\tNo\n")
    mme = opened("mme", tmp_path)
    answers = {name: NO if name.endswith("/1") else YES for names in mme.outline().values() for name in names}
    found = parts(mme.score(predictions(mme, answers | {"color/b/1": YES})))
    assert (found["perception"], found["reasoning"], found["color"], found["OCR"]) == (1925, 800, 125, 200)


@pytest.mark.parametrize(
    ("text", "consistent", "official"),
    [
        ("Yes.", True, True),
        ("No, it is not", False, False),
        ("The answer is yes", True, None),
        ("Not yes and not no", None, False),
        ("Nothing like it", None, False),
        ("<p> Yes </p> [SEG]", True, None),
        ("", None, None),
    ],
)
def test_what_an_answer_says(text, consistent, official):
    assert (yes_or_no(text), published_yes_or_no(text)) == (consistent, official)


def test_no_masks_are_asked_for():
    mme = opened("mme")
    question = mme.questions("OCR/1")[0]
    assert question.masks is False and question.turns[0].text == "Is there a word? Please answer yes or no."
