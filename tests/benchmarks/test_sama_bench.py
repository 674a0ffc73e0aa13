"""SAMA-Bench-G and -C with answers written by hand, over the fixtures of its readers (32 x 24, 3 or 4 frames)."""

import shutil

import numpy as np
import pytest
from benchmark_answers import NoMeteor, answer, opened, perfect, predictions, text_of, values
from fixture_sources import FIXTURES

from sama.benchmarks import per_video
from sama.benchmarks.benchmark import BenchmarkError, BenchmarkTurn, Tools
from sama.benchmarks.per_video import NO_JUDGE, source_of, source_rows, word_overlap
from sama.benchmarks.published import published_rows
from sama.data.masks import encode_rle
from sama.metrics.captions import CAPTION_METRICS
from sama.metrics.clair import RefusedTextError
from sama.metrics.values import Value


M1, M2 = "mevis/val_u/JPEGImages/m1", "mevis/val_u/JPEGImages/m2"
needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="Java is not installed")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAMA_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def no_captions(monkeypatch):
    """Java takes seconds to start."""
    nothing = {name: Value(None, "left out in this test") for name in CAPTION_METRICS}
    monkeypatch.setattr(per_video, "caption_scores_by_group", lambda corpora, *_: dict.fromkeys(corpora, nothing))


@pytest.fixture
def no_meteor(monkeypatch):
    monkeypatch.setattr("pycocoevalcap.meteor.meteor.Meteor", NoMeteor)


def same(first, second) -> np.ndarray:
    """A text similarity: 1 for equal phrases."""
    return np.array([[float(one == other) for other in second] for one in first])


def rectangle(x1: int, y1: int, x2: int, y2: int) -> dict:
    mask = np.zeros((24, 32), dtype=bool)
    mask[y1:y2, x1:x2] = True
    return encode_rle(mask)


MAN, DOG = [rectangle(0, 0, 8, 12)] * 3, [rectangle(20, 12, 28, 20)] * 3


def bench(name: str = "sama_bench_g", **options):
    return opened(name, FIXTURES, **options)


def test_asked_by_itself_and_in_conversation():
    outline = bench().outline()
    assert outline[M1] == ["mevis/0/0", "mevis/0/1", "mevis/0/own", "mevis/0/reference"]
    # Rounds 2 and 5 are broken in the file
    assert outline[M2] == ["mevis/1/0", "mevis/1/1", "mevis/1/3", "mevis/1/4", "mevis/1/own", "mevis/1/reference"]
    assert sum(len(names) for names in outline.values()) == 30 + 2 * 14
    questions = {question.id: question for question in bench().questions(M2)}
    assert [len(question.turns) for question in questions.values()] == [1, 1, 1, 1, 4, 4]
    assert [questions[f"mevis/1/{way}"].history for way in ("own", "reference")] == ["own", "reference"]
    assert bench().left_out["last messages without an answer"] == 1
    single = bench(asked="single", preset="published")
    assert single.outline()[M1] == ["mevis/0/0", "mevis/0/1"]
    assert single.questions(M1)[0].layout == "sama_conversation"
    with pytest.raises(BenchmarkError, match="asked contains 'alone'"):
        bench(asked="alone,own")


def test_questions_ask_for_masks_and_show_boxes():
    first, second = bench().questions(M2)[:2]
    assert first.turns[0].text == ("What is the man <region> doing? Response with interleaved segmentation masks.")
    assert text_of(bench(), "mevis/0/1") == ["What shape is <region>?"]
    assert first.turns[0].reference == "<p> The man </p> [SEG] feeds <p> a dog </p> [SEG]."
    assert [len(question.turns[0].regions) for question in (first, second)] == [1, 2]
    assert second.turns[0].text.count("segmentation masks.") == 1 and len(second.turns[0].targets) == 1


def test_right_answers(no_captions):
    scores = bench().score(perfect(bench()), Tools(similarity=same))
    for prefix in ("", "own history, ", "reference history, "):
        for part in ("all", "mevis", "lvvis", "ref_youtube_vos", "VidSTG"):
            found = values(scores, prefix + part)
            assert (found["mIoU"], found["Recall"]) == (100, 100)
    # The release counts the rounds without masks as 0: half of them in four of the videos, of M2 round 4 of four
    release = values(scores, published=True)
    assert release["mIoU"] == pytest.approx(100 * (4 * 0.5 + 0.75) / 5)
    assert values(scores, "mevis", published=True)["mIoU"] == pytest.approx(100 * (0.5 + 0.75) / 2)
    counts = {row.part: row.count for row in scores.rows if row.name == "mIoU" and "history" not in row.part}
    assert counts == {"all": 5, "mevis": 2, "lvvis": 1, "ref_youtube_vos": 1, "VidSTG": 1}


def test_missed_and_surplus_objects_count(no_captions):
    g = bench(asked="single")
    # 32 of 64 pixels and 32 elsewhere; then the man is missed; then both are one object, and one too many is found
    half = [rectangle(0, 0, 4, 8), rectangle(16, 0, 20, 8), None]
    answers = {
        "mevis/0/0": answer(("<p> It </p> [SEG] is a square.", [("It", half)])),
        "mevis/1/0": answer(("A man feeds <p> a dog </p> [SEG].", [("a dog", DOG)])),
        "mevis/1/1": answer(("<p> Both </p> [SEG] [SEG].", [("Both", MAN), ("Both", DOG)])),
    }
    scores = g.score(predictions(g, answers), Tools(similarity=same))
    # Both cover 160 pixels a frame, the man 96 of them
    both = 96 / 160
    assert [sample.value for sample in scores.samples] == pytest.approx([1 / 3, 0.5, both / 2])
    assert values(scores)["mIoU"] == pytest.approx(100 * (1 / 3 + (0.5 + both / 2) / 2) / 2)
    assert values(scores, published=True)["mIoU"] == pytest.approx(100 * (1 / 3 + (1 + both) / 2) / 2)
    # M1: nothing reaches 0.5; M2: 2 of the 3 phrases
    assert values(scores)["Recall"] == pytest.approx(100 * (0 + 2 / 3) / 2)


def test_recall_pairs_a_mask_with_the_phrase_in_front_of_it(no_captions):
    g = bench(asked="single")
    text = "<p> the sky </p> and <p> the man </p> [SEG] feeds <p> a dog </p> [SEG]."
    answers = {"mevis/1/0": answer((text, [("the man", MAN), ("a dog", DOG)]))}
    scores = g.score(predictions(g, answers), Tools(similarity=same))
    assert values(scores)["Recall"] == 100
    # The release puts "the sky" to the man and "the man" to the dog
    assert values(scores, published=True)["Recall"] == 0 and values(scores)["Recall (GLaMM)"] == 0


def test_silence_is_not_rewarded(no_captions):
    g = bench(asked="single")
    answers = {
        "mevis/1/0": answer(("He feeds it.", [])),
        "mevis/1/3": answer(("<p> the dog </p> [SEG]", [("the dog", DOG)])),
    }
    scores = g.score(predictions(g, answers), Tools(similarity=same))
    assert values(scores)["Recall"] == pytest.approx(100 / 3)
    # The release leaves the silent answer out; of round 3 it counts the phrase without a mask too
    assert values(scores, published=True)["Recall"] == 0
    assert values(scores)["mIoU"] == 50


def test_what_was_not_given_is_not_computed(no_captions):
    g = bench(asked="own")
    scores = g.score(perfect(g))
    assert {row.part.split(",")[0] for row in scores.rows} == {"own history"}
    missing = {row.name: row.reason for row in scores.rows if row.value is None}
    assert missing["CLAIR"] == NO_JUDGE and "no text similarity" in missing["Recall"]
    empty = g.score([])
    assert [(row.value, row.count) for row in empty.rows] == [(None, 0)]


def test_published_code_repeats_a_mask_for_an_empty_entry():
    lists = ([[11], [], [12]], [[], [4]], [])
    assert [published_rows(BenchmarkTurn("", info={"entries": entries})) for entries in lists] == [
        [0, 0, 1], [0], [],
    ]  # fmt: skip


@needs_java
def test_captions_and_clair_by_video(no_meteor):
    c = bench("sama_bench_c")
    assert c.outline()["lvvis/val/JPEGImages/2"] == ["lvvis_0/0/obj0", "lvvis_1/0/obj0"]
    assert text_of(c, "mevis/1/obj1") == ["Please describe the region <region> in the video in detail."]
    # References: "A square." and, of M2, "A dog."
    answers = {"mevis/0/obj0": answer(("A red square.", [])), "mevis/1/obj1": answer(("A dog.", []))}
    answers |= {f"lvvis_{part}/0/obj0": answer(("A red square.", [])) for part in (0, 1)}
    judge = iter(['{"score": 80}'] * 2 + ['{"score": "40"}'] * 6)
    scores = c.score(predictions(c, answers), Tools(judge=lambda messages: next(judge)))
    # LCS 2 of 3 and of 2 words: 2.44 * 2/3 / (1 + 1.44 * 2/3); M2 is right, and of its 2 words both are
    rouge = 2.44 * (2 / 3) / (1 + 1.44 * 2 / 3)
    assert values(scores)["ROUGE_L"] == pytest.approx(100 * (rouge + 1 + rouge) / 3)
    assert values(scores)["Bleu_1"] == pytest.approx(100 * (2 / 3 + 1 + 2 / 3) / 3, rel=1e-6)
    assert values(scores)["CLAIR"] == pytest.approx(100 * (0.8 + 0.4 + 0.4) / 3)
    # A video with one description has no CIDEr, where the release has 0; of two equal ones nothing is rare: 0
    cider = {row.part: (row.value, row.count, row.published) for row in scores.rows if row.name == "CIDEr"}
    assert cider == {"all": (0, 1, 0), "mevis": (None, 0, 0), "lvvis": (0, 1, 0)}
    assert [(row.name, row.count) for row in scores.rows[:3]] == [("METEOR", 3), ("CIDEr", 1), ("CLAIR", 3)]


@needs_java
def test_cider_of_all_answers_together(no_meteor):
    g = bench(asked="single")
    scores = g.score(perfect(g))
    row = next(row for row in scores.rows if row.name == "CIDEr (one corpus)")
    assert row.value > values(scores)["CIDEr"]


def test_a_judge_that_is_down_is_asked_once():
    asked = []

    def judge(messages: list[dict]) -> str:
        asked.append(messages)
        raise ConnectionError("refused")

    found = per_video.clair_values({"a": (["x"], ["y"]), "b": (["x"], ["y"])}, judge)
    assert len(asked) == 1
    assert {value.reason for both in found.values() for value in both} == {"the judge cannot be reached: refused"}


def test_clair_of_a_part_of_the_videos_is_none():
    answers = iter(['{"score": 80}'] * 2)

    def judge(messages: list[dict]) -> str:
        for found in answers:
            return found
        raise ConnectionError("gone")

    names = [M1, "lvvis/val/2"]
    found = per_video.clair_values({name: (["x"], ["y"]) for name in names}, judge)
    rows = source_rows({name: {"CLAIR": found[name]} for name in names}, ["CLAIR"])
    assert {(row.value, row.published, row.reason) for row in rows} == {
        (None, None, "the judge cannot be reached: gone")
    }


def test_a_refused_text_leaves_out_its_sample_alone():
    def judge(messages: list[dict]) -> str:
        if "filtered" in messages[1]["content"]:
            raise RefusedTextError("HTTP 400: content filter")
        return '{"score": 80}'

    corpora = {"a": (["x", "x"], ["y", "filtered"]), "b": (["x"], ["filtered"]), "c": (["x"], ["y"])}
    found = per_video.clair_values(corpora, judge)
    assert [found[name][0].value for name in "abc"] == [found[name][1].value for name in "abc"] == [0.8, None, 0.8]
    assert found["b"][0].reason == "HTTP 400: content filter"


def test_a_score_in_percent_ends_a_video_of_the_release_only():
    ((consistent, published),) = per_video.clair_values(
        {"a": (["x"], ["y"])}, lambda messages: '{"score": "85%"}'
    ).values()
    assert (consistent.value, published.value) == (0.85, 0)


def test_sources_and_words():
    names = [M1, "lvvis/val/2", "ref_youtube_vos/valid/r1", "VidSTG/val/3", "davis/x"]
    assert [source_of(name) for name in names] == ["mevis", "lvvis", "ref_youtube_vos", "VidSTG", "other"]
    assert word_overlap("A red dog", "a dog") == pytest.approx(0.8) and word_overlap("", "") == 0
