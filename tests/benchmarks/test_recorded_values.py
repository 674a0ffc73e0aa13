"""
The recorded values of the official scripts against the `published` columns of the benchmarks, from files to scores.
tests/metrics/test_recorded_values.py checks the functions one by one.
"""

import json
import pickle

import numpy as np
import pytest
from benchmark_answers import NoMeteor, answer, box, masks, opened, predictions, values
from golden_cases import recorded_cases
from PIL import Image

from sama.benchmarks.benchmark import BenchmarkTurn, Tools
from sama.benchmarks.per_video import source_rows
from sama.benchmarks.published import published_rows
from sama.metrics.values import Value


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("pycocoevalcap.meteor.meteor.Meteor", NoMeteor)


@pytest.fixture(scope="module")
def cases() -> dict[str, dict]:
    return recorded_cases()


def drawn(words: str) -> dict:
    """A rectangle from its description: "y5:15 x5:10 (FP 20)"."""
    y, x = ([int(number) for number in part[1:].split(":")] for part in words.split()[:2])
    return box(x[0], y[0], x[1], y[1])


def rounded(found: dict, expected: dict) -> None:
    """The scripts print percentages with two decimals, and call J&F and the reasoning group by other names."""
    assert {name.replace("&", ""): round(value, 2) for name, value in found.items()} == {
        name.replace("&", ""): pytest.approx(value, abs=0.0051) for name, value in expected.items()
    }


def test_mevis_script(cases):
    # The fixture is the case's own: a video without a folder of predictions is one whose answer has no mask
    mevis, given = opened("mevis"), cases["vos.mevis_script"]["input"]
    both = mevis.questions("v1")[1].turns[0].targets[0]
    found = {"v1/0": masks([drawn(words) for words in given["pred"]["v1/0"]]), "v1/1": masks(both), "v2/0": masks()}
    scores = mevis.score(predictions(mevis, found))
    rounded(values(scores, published=True), cases["vos.mevis_script"]["output"]["result"])
    rounded(values(scores), cases["vos.mevis_script"]["output"]["result"])


def test_davis_script(cases, tmp_path):
    given = cases["vos.davis_script"]["input"]
    root = tmp_path / "video_datas/davis17"
    phrases = {name: {str(i): {"exp": f"square {i}"} for i in range(4)} for name in ("b-vid", "a-vid")}
    videos = {name: {"frames": ["00000"], "expressions": asked} for name, asked in phrases.items()}
    # Ours needs four expressions a video; "b-vid/0" and "b-vid/1" have the mask numbers 4 and 5 then
    truth = {key: [drawn(words)] for key, words in given["gt"].items()}
    tracks = {"0": truth["0"], "4": truth["1"], "5": truth["2"]} | dict.fromkeys("12367", truth["0"])
    for name in phrases:
        folder = root / "valid/JPEGImages" / name
        folder.mkdir(parents=True)
        Image.new("RGB", (20, 20)).save(folder / "00000.jpg")
    notes = root / "meta_expressions/valid/meta_expressions.json"
    notes.parent.mkdir(parents=True)
    notes.write_text(json.dumps({"videos": videos}))
    (root / "mask_dict.pkl").write_bytes(pickle.dumps(tracks, protocol=2))
    davis = opened("ref_davis17", tmp_path)
    found = {"a-vid/0": masks(truth["0"]), "b-vid/0": masks(truth["1"])}
    found["b-vid/1"] = masks([drawn(given["pred"]["b-vid/1"])])
    scores = davis.score(predictions(davis, found))
    rounded(values(scores, published=True), cases["vos.davis_script"]["output"]["result"])


def test_revos_script(cases):
    revos, name, given = opened("revos"), "LVVIS/train/00009", cases["vos.revos_script"]["input"]["pred"]
    exact = masks([box(5, 5, 15, 15)] * 2)
    found = {f"{name}/0": exact, f"{name}/2": exact, f"{name}/1": masks([drawn(one) for one in given["1 (type 1)"]])}
    scores, expected = revos.score(predictions(revos, found)), cases["vos.revos_script"]["output"]["result"]
    for part, recorded in (("referring", "referring"), ("reasoning", "reason"), ("overall", "overall")):
        rounded(values(scores, part, published=True), expected[recorded])


def test_refcoco_scripts(cases):
    refcoco = opened("refcoco")
    half, middle, beside = box(0, 0, 5, 4), box(5, 5, 10, 10), box(0, 5, 5, 10)
    answers = {
        "two_images": {"1/0": masks([half]), "1/1": masks([middle]), "1/2": masks([beside])},
        "one_expression_without_seg": {"1/0": masks([half]), "1/1": masks()},
    }
    for name, given in answers.items():
        scores = refcoco.score(predictions(refcoco, given))
        for case, release in (("refcoco.sama_evaluate", True), ("refcoco.sa2va_evaluate", False)):
            recorded = cases[case]["output"][name]
            expected = {metric: 100 * recorded[metric] for metric in ("cIoU", "gIoU")}
            # Sa2VA adds 1e-5 to each union of gIoU, which only the release's column does
            assert values(scores, published=release) == pytest.approx(expected, rel=1e-6 if release else 1e-5)


def test_image_captions_script(cases):
    case = cases["gcgimg.metrics"]
    table = {tuple(pair.split("|")): value for pair, value in case["input"]["sim"]["table"].items()}

    def similarity(first, second) -> np.ndarray:
        return np.array(
            [[table.get((one, other), case["input"]["sim"]["default"]) for other in second] for one in first]
        )

    captions, given = opened("grounded_captions"), case["input"]
    found = {}
    for name, words in given["pred"].items():
        labels = given["pred_labels"][name]
        text = " ".join(f"<p> {label} </p> [SEG]" for label in labels)
        found[name] = answer((text, [(label, [drawn(mask)]) for label, mask in zip(labels, words, strict=True)]))
    # The fixture writes its labels as the case does
    scores = captions.score(predictions(captions, found), Tools(similarity=similarity))
    release, output = values(scores, published=True), case["output"]
    assert {name: round(release[name] / 100, 3) for name in ("mIoU", "Recall")} == {
        name: output[name] for name in ("mIoU", "Recall")
    }
    precision = {key.split("|")[0].split("IoU=")[1].strip(): value for key, value in output["coco"].items() if
                 key.startswith("Average Precision") and "area=   all" in key}  # fmt: skip
    assert values(scores)["AP50"] == pytest.approx(100 * precision["0.50"], abs=0.05)
    assert values(scores)["AP"] == pytest.approx(100 * precision["0.50:0.95"], abs=0.05)


def test_tables_of_sama_bench(cases):
    case = cases["agg.bench_g_final"]
    videos = {}
    for name, metrics in case["input"].items():
        plain = {key: value for key, value in metrics.items() if key != "caption_scores"} | metrics["caption_scores"]
        videos[name] = {key: (Value(value), Value(value)) for key, value in plain.items()}
    rows = source_rows(videos, list(case["output"]))
    # As shipped the script of -G keeps VidSTG only; that of -C is the mean over all videos
    for part, recorded in (("VidSTG", "agg.bench_g_final"), ("all", "agg.bench_c_final")):
        found = {row.name: row.published / 100 for row in rows if row.part == part}
        assert {name: found[name] for name in cases[recorded]["output"]} == pytest.approx(
            cases[recorded]["output"], abs=5.1e-7
        )


def test_empty_entry_repeats_the_mask_before_it(cases):
    case = cases["bench_g.gt_empty_entry"]
    rows = published_rows(BenchmarkTurn("", info={"entries": case["input"]["groundtruth"]}))
    areas = [44, 160]  # of objects 11 and 12
    assert [areas[row] for row in rows] == case["output"]["areas_frame5"]


def test_questions(cases):
    mevis = opened("mevis", preset="published")
    case = cases["vos.prompt"]
    for text, expected in zip(case["input"], case["output"], strict=True):
        asked = mevis.turn(BenchmarkTurn("", info={"expression": text}), "", {}, None)
        assert asked.text == expected["after_cleaning"]
    captions = opened("grounded_captions", preset="published")
    assert captions.questions("i1")[0].turns[0].text == cases["prompts.exact"]["output"]["image_gcg"]
    regions = opened("region_captions").questions("11")[0].turns[0].text
    assert f"<image>\n{regions.splitlines()[1]}" == cases["prompts.exact"]["output"]["region_caption"]
