"""MeViS, Ref-YouTube-VOS, Ref-DAVIS17 and ReVOS with answers written by hand. 20 x 20 frames: the boundary is a pixel
wide; half of a square of 10 has J 0.5 and F 0.657143 (evaluation spec 4.2)."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from benchmark_answers import ROOT, box, masks, opened, perfect, predictions, text_of, values

from sama.benchmarks import frame_masks
from sama.benchmarks.benchmark import BenchmarkError, Prediction
from sama.benchmarks.referring_video import ON_SERVER, disjoint_masks
from sama.data.catalogue import read_catalogue
from sama.evaluation.inference import PredictionRunner


MIDDLE, LEFT, CORNER = box(5, 5, 15, 15), box(5, 5, 10, 15), box(0, 0, 5, 5)
HALF_J, HALF_F = 0.5, 0.6571428571


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAMA_CACHE", str(tmp_path / "cache"))


def expected(j: float, f: float) -> dict:
    return {
        "J": pytest.approx(j, abs=1e-4),
        "F": pytest.approx(f, abs=1e-4),
        "J&F": pytest.approx((j + f) / 2, abs=1e-4),
    }


def test_mevis_is_the_mean_over_expressions():
    mevis = opened("mevis")
    assert mevis.outline() == {"v1": ["v1/0", "v1/1"], "v2": ["v2/0"]}
    # (0.75, 0.828571), (1, 1) and nothing found
    both = mevis.questions("v1")[1].turns[0].targets[0]
    answers = {"v1/0": masks([MIDDLE, LEFT]), "v1/1": masks(both), "v2/0": masks()}
    scores = mevis.score(predictions(mevis, answers))
    j, f = (0.75 + 1 + 0) / 3, ((1 + HALF_F) / 2 + 1 + 0) / 3
    assert values(scores) == values(scores, published=True) == expected(100 * j, 100 * f)
    assert [row.count for row in scores.rows] == [3] * 3
    assert [sample.value for sample in scores.samples] == [0.75, 1, 0]


def test_second_mask_counts_except_in_the_release():
    mevis = opened("mevis")
    both = masks([LEFT, LEFT], [box(10, 5, 15, 15)] * 2)
    scores = mevis.score(predictions(mevis, {"v1/0": both}))
    assert values(scores) == expected(100, 100)
    assert values(scores, published=True) == expected(100 * HALF_J, 100 * HALF_F)


def test_questions_of_both_presets():
    assert text_of(opened("mevis"), "v1/0") == ["Please segment the square."]
    assert text_of(opened("mevis", preset="published"), "v1/0") == ["Please segment The square.."]
    assert text_of(opened("revos"), "LVVIS/train/00009/1") == ["Which of them would roll?"]
    assert [opened("mevis", preset=name).questions("v1")[0].layout for name in ("consistent", "published")] == [
        None, "published",
    ]  # fmt: skip


def test_server_splits_have_no_scores_and_say_why():
    valid = opened("mevis", split="valid")
    assert valid.outline() == {"w1": ["w1/0", "w1/10", "w1/2"]}
    scores = valid.score(predictions(valid, {"w1/10": masks([MIDDLE, None])}))
    assert values(scores) == {"J": None, "F": None, "J&F": None}
    assert {row.reason for row in scores.rows} == {ON_SERVER}


def test_ref_youtube_vos_is_scored_where_its_masks_lie(tmp_path):
    here = opened("ref_youtube_vos")
    assert here.outline() == {"r1": ["r1/0", "r1/1"], "r2": ["r2/0"]}
    assert values(here.score(perfect(here))) == expected(100, 100)
    root = Path(shutil.copytree(ROOT, tmp_path / "root"))
    (root / "video_datas/rvos/ref_youtube_valid_mask_dict.pkl").unlink()
    without = opened("ref_youtube_vos", root)
    assert {row.reason for row in without.score(predictions(without, {"r1/0": masks([MIDDLE, None])})).rows} == {
        ON_SERVER
    }


def test_revos_groups_and_the_wrong_values_of_the_release():
    # The case vos.revos_script: foreground is the whole frame, prediction 1 is half of it, then 20 pixels too many
    revos, name = opened("revos"), "LVVIS/train/00009"
    exact = masks([MIDDLE, MIDDLE])
    answers = {f"{name}/0": exact, f"{name}/1": masks([LEFT, box(5, 5, 17, 15)]), f"{name}/2": exact}
    scores = revos.score(predictions(revos, answers))
    # A: 50 and 20 of 400 pixels are wrong; R: 0 and 20 of them outside, of 400 in front
    a, r = 100 * (1 - (50 + 20) / 2 / 400), 100 * (1 - (0 + 20) / 2 / 400)
    fixed = values(scores, "reasoning")
    assert (fixed["A"], fixed["R"]) == (pytest.approx(a), pytest.approx(r, abs=1e-4))
    assert values(scores, "referring") == pytest.approx({"J&F": 100, "J": 100, "F": 100, "A": 100, "R": 100})
    assert values(scores, "overall")["A"] == pytest.approx((100 + a) / 2)
    released = {part: values(scores, part, published=True) for part in ("referring", "reasoning", "overall")}
    assert released["referring"] == pytest.approx({"J&F": 100, "J": 100, "F": 100, "A": 75, "R": 100})
    assert released["reasoning"] == pytest.approx({"J&F": 69.405, "J": 66.67, "F": 72.14, "A": 72.5, "R": 50})
    assert released["overall"]["J&F"] == pytest.approx(84.7025)
    assert [row.count for row in scores.rows if row.name == "J"] == [2, 1, 1]


@pytest.mark.parametrize(("tracks", "times"), [([[LEFT] * 2], 1), ([[LEFT] * 2, [CORNER] * 2], 2)])
def test_the_release_computes_j_and_f_anew_of_several_masks_only(monkeypatch, tracks, times):
    revos, name, calls = opened("revos"), "LVVIS/train/00009/0", []
    whole = frame_masks.track_jf
    monkeypatch.setattr(frame_masks, "track_jf", lambda *sides: calls.append(1) or whole(*sides))
    (sample,) = revos.score(predictions(revos, {name: masks(*tracks)})).samples
    assert len(calls) == times and set(sample.facts["consistent"]) == set(sample.facts["published"]) == {
        "J",
        "F",
        "A",
        "R",
    }


def test_revos_without_its_foreground_file_takes_all_objects(tmp_path):
    root = Path(shutil.copytree(ROOT, tmp_path / "root"))
    (root / "video_datas/revos/mask_dict_foreground.json").unlink()
    revos = opened("revos", root)
    scores = revos.score(predictions(revos, {"LVVIS/train/00009/0": masks([box(5, 5, 17, 15)] * 2)}))
    # 20 pixels outside, 100 in front
    assert values(scores, "referring")["R"] == pytest.approx(80, abs=1e-4)
    reasoning = [row for row in scores.rows if row.part == "reasoning"]
    assert {row.value for row in reasoning} == {None} and "no reasoning expressions" in reasoning[0].reason


def edit_json(path: Path, edit) -> None:
    """Replaces the content of a JSON file by `edit(content)`."""
    path.write_text(json.dumps(edit(json.loads(path.read_text()))))


@pytest.mark.parametrize("file", ["mask_dict.json", "mask_dict_foreground.json"])
def test_revos_names_a_mask_that_is_missing_or_does_not_fit(tmp_path, file):
    """Each is the reason why the questions about the video failed, not the end of the run."""
    path = Path(shutil.copytree(ROOT, tmp_path / "root")) / "video_datas/revos" / file
    whole = path.read_text()

    def errors(edit) -> list[str]:
        edit_json(path, edit)
        revos = opened("revos", tmp_path / "root")
        ((group, names),) = revos.outline().items()
        return [prediction.error for _, prediction in PredictionRunner(None, None, revos, 8).ask_group(group, names)]

    missing = errors(lambda content: {f"other {key}": masks for key, masks in content.items()})
    assert len(missing) == 3
    assert all(f"{file}, item " in error and "there is no mask '" in error for error in missing)
    path.write_text(whole)
    wide = box(0, 0, 40, 40, side=40)
    (error, *_) = errors(lambda content: dict.fromkeys(content, {"masks_rle": [wide, wide]}))
    assert file in error and "the mask is 40 x 40 (height x width), its frame 20 x 20" in error


def davis_answers(**changes) -> dict:
    left, right = [box(0, 0, 10, 20)] * 3, [box(10, 0, 20, 20)] * 3
    answers = {f"a-vid/{i}": masks(left if i < 4 else right) for i in range(8)}
    answers |= {f"b-vid/{i}": masks([MIDDLE] * 3) for i in range(4)}
    return answers | {name.replace("_", "-vid/"): change for name, change in changes.items()}


def test_davis_right_answers():
    davis = opened("ref_davis17")
    scores = davis.score(predictions(davis, davis_answers()))
    assert values(scores) == values(scores, published=True) == expected(100, 100)
    assert values(scores, "without first and last frame") == expected(100, 100)


def test_davis_objects_of_an_annotator_share_their_pixels():
    davis, everything = opened("ref_davis17"), [box(0, 0, 20, 20)] * 3
    # Annotator 1 gets the whole frame for both objects: the first takes it, the second has nothing left
    scores = davis.score(predictions(davis, davis_answers(a_1=masks(everything), a_5=masks(everything))))
    # J of the whole frame for a half is 0.5; the boundary of the half (20 pixels) is not found, F is 0
    shared, alone = (0.5 + 0 + 1) / 3, (0.5 + 0.5 + 1) / 3
    assert values(scores)["J"] == pytest.approx(100 * (3 + shared) / 4)
    assert values(scores)["F"] == pytest.approx(100 * (3 + 1 / 3) / 4)
    # The release counts every one of the 12 expressions by itself
    assert values(scores, published=True)["J"] == pytest.approx(100 * (9 + 3 * alone) / 12)
    surer = davis.score(
        predictions(davis, davis_answers(a_1=masks(everything, confidence=0.2), a_5=masks(everything, confidence=0.9)))
    )
    by_id = {sample.question: sample.facts["merged"]["J"] for sample in surer.samples}
    assert (by_id["a-vid/1"], by_id["a-vid/5"]) == (0, 0.5)


def test_davis_without_first_and_last_frame():
    davis = opened("ref_davis17")
    late = masks([None, MIDDLE, MIDDLE])
    scores = davis.score(predictions(davis, davis_answers(b_0=late)))
    assert values(scores)["J"] == pytest.approx(100 * (3 + (1 + 1 + 2 / 3) / 3) / 4)
    assert values(scores, "without first and last frame")["J"] == 100


def test_disjoint_masks():
    first, second = np.array([[True, True, False]]), np.array([[False, True, True]])
    assert [mask.tolist() for mask in disjoint_masks([first, second], [None, 0.5])] == [
        [[True, True, False]], [[False, False, True]],
    ]  # fmt: skip
    assert [mask.tolist() for mask in disjoint_masks([first, second], [0.4, 0.5])] == [
        [[True, False, False]], [[False, True, True]],
    ]  # fmt: skip


def test_davis_needs_four_annotators(tmp_path):
    root = Path(shutil.copytree(ROOT, tmp_path / "root"))
    path = root / "video_datas/davis17/meta_expressions/valid/meta_expressions.json"
    path.write_text(path.read_text().replace('"obj_id": "2"', '"obj_id": "3"', 1))
    with pytest.raises(BenchmarkError, match="expressions of object 1 name different objects"):
        opened("ref_davis17", root).questions("a-vid")


def test_masks_of_another_size_are_refused():
    mevis = opened("mevis")
    made = predictions(mevis, {"v1/0": masks([MIDDLE, MIDDLE])})
    other = [Prediction(made[0].question, made[0].turns, 2, 40, 20)]
    with pytest.raises(ValueError, match="2 frames of 40 x 20 .* the annotation 2 of 20 x 20"):
        mevis.score(other)


def test_missing_files_are_named_with_their_place(tmp_path):
    entry = read_catalogue(Path(ROOT).parent.parent / "data_configs" / "benchmarks.yaml")["mevis/valid_u"]
    with pytest.raises(BenchmarkError) as error:
        opened("mevis", tmp_path)
    assert all(str(tmp_path / name) in str(error.value) for name in entry.files.values())
    with pytest.raises(BenchmarkError, match="has no split 'val'"):
        opened("mevis", split="val")
    with pytest.raises(BenchmarkError, match="broken is 'mend'"):
        opened("mevis", broken="mend")
