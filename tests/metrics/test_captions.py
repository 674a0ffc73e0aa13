"""Caption metrics: values counted by hand where they can be, and what is reported where they cannot be computed."""

import math
import os
import stat
import sys
from pathlib import Path

import pytest
from benchmark_answers import NoMeteor

from sama.metrics import captions
from sama.metrics.captions import CAPTION_METRICS, CaptionError, caption_scores, caption_scores_by_group, tokenize


pytest.importorskip("pycocoevalcap", reason="caption metrics come from pycocoevalcap: pip install -e .[eval]")


@pytest.fixture(scope="module")
def needs_java():
    try:
        captions.java()
    except CaptionError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def scores(needs_java):
    """Three corpora from one start of the tokenizer; the recorded cases compute METEOR."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pycocoevalcap.meteor.meteor.Meteor", NoMeteor)
        return caption_scores_by_group(
            {
                "two": (["a cat sits on the mat", "two dogs run"], ["A cat sits on the mat.", "two dogs run"]),
                "one": (["a cat sits"], ["a cat sits"]),
                "wrong": (["a cat sits", "dogs run"], ["blue sky", ""]),
            }
        )


def test_tokenize(needs_java):
    texts = [
        "The man, wearing a Blue shirt, walks .",
        "",
        "two\nlines\u2028and more",
        "don't (stop) ünïcode",
        "1 1/2 cups",
    ]
    assert tokenize(texts) == [
        "the man wearing a blue shirt walks",
        "",
        "two lines and more",
        "do n't -lrb- stop -rrb- ünïcode",
        "1\u00a01/2 cups",  # one token
    ]
    assert tokenize([]) == []


def test_perfect_captions(scores):
    found = {name: score.value for name, score in scores["two"].items()}
    assert list(found) == list(CAPTION_METRICS)
    assert all(found[name] == pytest.approx(1) for name in ("Bleu_1", "Bleu_2", "ROUGE_L"))
    assert found["METEOR"] == 0.5  # what the scorer says
    # All words are in one text of the two, so that tf-idf agrees for each n-gram: 10 for the text with n-grams of all
    # four lengths, 7.5 for the one with three words
    assert found["CIDEr"] == pytest.approx((10 + 7.5) / 2)


def test_wrong_captions(scores):
    found = scores["wrong"]
    assert found["CIDEr"].value == found["ROUGE_L"].value == 0


def test_cider_of_one_sample(scores, needs_java):
    assert scores["one"]["CIDEr"].value is None and "there is only one" in scores["one"]["CIDEr"].reason
    assert captions._cider({0: ["a cat"]}, {0: ["a cat"]}, "published").value == 0


def test_rouge_by_hand():
    # Longest common subsequence "the dog runs", 3 of 4 predicted and of 5 true words
    precision, recall, beta = 3 / 4, 3 / 5, 1.2
    expected = (1 + beta**2) * precision * recall / (recall + beta**2 * precision)
    found = captions._rouge({0: ["the big dog runs fast"]}, {0: ["the dog runs away"]})
    assert found.value == pytest.approx(expected)


def test_bleu_by_hand():
    # 3 of 4 words, 2 of 3 pairs; one word shorter than the reference
    found = captions._bleu({0: ["the big dog runs fast"]}, {0: ["the big dog sits"]})
    brevity = math.exp(1 - 5 / 4)
    assert found["Bleu_1"].value == pytest.approx(brevity * 3 / 4)
    assert found["Bleu_2"].value == pytest.approx(brevity * math.sqrt(3 / 4 * 2 / 3))


def test_cider_by_hand():
    # Single words: "a" is in both texts and weighs nothing; the others weigh ln 2, and one of two agrees
    found = captions._cider({0: ["a red"], 1: ["a blue"]}, {0: ["a red"], 1: ["a green"]}, "consistent")
    # First text: both n-gram lengths that it has agree, of four: 2/4 of 10. Second: nothing agrees
    assert found.value == pytest.approx(10 * 2 / 4 / 2)


def test_empty_corpora_start_nothing(monkeypatch):
    monkeypatch.setattr(captions, "tokenize", None)
    found = caption_scores_by_group({"none": ([], []), "blank": (["", " "], ["a", "b"])})
    assert set(found["none"].values()) == {(None, "there are no samples")}
    assert set(found["blank"].values()) == {(None, "all references are empty")}


def test_references_of_punctuation_alone_are_empty(needs_java, monkeypatch):
    monkeypatch.setattr("pycocoevalcap.meteor.meteor.Meteor", NoMeteor)
    empty = {(None, "all references are empty")}
    assert set(caption_scores([".", "..."], ["a dog", "x"]).values()) == empty
    found = caption_scores_by_group({"marks": ([".", "?"], ["a", "b"]), "words": ([".", "a cat"], ["x", "a cat"])})
    assert set(found["marks"].values()) == empty
    assert found["words"]["ROUGE_L"].value == 0.5  # one of the two texts has words to compare


def test_lengths_differ():
    with pytest.raises(ValueError, match="1 references but 2 predictions in group 0"):
        caption_scores(["a"], ["a", "b"])


def test_without_java(monkeypatch):
    monkeypatch.setenv("PATH", "")
    found = caption_scores(["a cat"], ["a cat"])
    assert all(score.value is None and "Java is not installed" in score.reason for score in found.values())


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script stands for Java")
def test_a_java_that_fails(monkeypatch, tmp_path):
    fake_java(tmp_path, monkeypatch, "echo no memory >&2; exit 3")
    found = caption_scores(["a cat"], ["a cat"])
    assert all("exit code 3" in score.reason and "no memory" in score.reason for score in found.values())


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script stands for Java")
def test_meteor_alone_fails(monkeypatch, tmp_path):
    fake_java(tmp_path, monkeypatch, 'case "$*" in *meteor*) echo heap >&2; exit 1;; *) cat;; esac')
    found = caption_scores_by_group({1: (["a cat", "a dog"], ["a cat", "a dog"]), 2: (["x", "y"], ["x", "y"])})
    for scores in found.values():
        assert scores["METEOR"].value is None and "METEOR's Java process failed" in scores["METEOR"].reason
        assert scores["ROUGE_L"].value == 1


def fake_java(folder: Path, monkeypatch, script: str) -> None:
    program = folder / "java"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_no_file_is_left(needs_java, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = set(captions._installed().rglob("*"))
    tokenize(["a cat"])
    assert list(tmp_path.iterdir()) == [] and set(captions._installed().rglob("*")) == before
