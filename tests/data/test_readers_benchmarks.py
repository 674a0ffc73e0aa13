"""The readers of formats in which there is nothing to train on, and the fixtures of all benchmarks."""

import json
import shutil
import sys
from pathlib import Path

import make_benchmark_fixtures
import pytest

from sama.data.masks import decode_rle
from sama.data.readers import BENCHMARK_READERS, read_mask_store
from sama.data.records import DataError


ROOT = Path(__file__).parents[1] / "benchmark_fixtures"
NOTES = "glamm_data/annotations"
GCG = {
    "mask_annotations": f"{NOTES}/val_gcg_coco_mask_gt.json",
    "captions": f"{NOTES}/val_gcg_coco_caption_gt.json",
    "media": "glamm_data/images/grandf/val_test",
}
REGIONS = {"annotations": f"{NOTES}/finetune_refcocog_val_with_mask.json", "media": "coco/train2014"}


def read(format: str, files: dict, root: Path = ROOT) -> list[dict]:
    return list(BENCHMARK_READERS[format](files, root, {}))


def changed(tmp_path: Path, name: str, change) -> Path:
    """A copy of the fixtures in which `change` was applied to one JSON file."""
    root = Path(shutil.copytree(ROOT, tmp_path / "root"))
    content = json.loads((root / name).read_text())
    change(content)
    (root / name).write_text(json.dumps(content))
    return root


def areas(record: dict) -> dict[str, int]:
    return {name: int(decode_rle(item["masks"][0]).sum()) for name, item in record["objects"].items()}


def test_grounded_captions_have_a_label_for_each_mask():
    first, second = read("gcg_bench", GCG)
    assert first["image"] == {"path": "glamm_data/images/grandf/val_test/i1.jpg"}
    assert areas(first) == {"0": 100, "1": 16} and areas(second) == {"0": 100}
    labels = {"image_id": "i1", "caption": "A man plays with a ball.", "labels": ["a man", "a ball"]}
    assert first["messages"][0]["info"] == labels


def test_region_captions_point_at_the_object():
    first, second = read("region_captions", REGIONS)
    assert (areas(first), areas(second)) == ({"1": 40}, {"1": 16})
    shown = first["messages"][0]["preamble"]
    assert [part.get("text", part.get("object")) for part in shown] == [
        "There are 1 part regions in the picture: region1", "1", ".\n",
    ]  # fmt: skip
    assert second["messages"][0]["info"] == {"image_id": "2", "caption": "a small dog"}


def test_region_caption_may_stand_at_the_image(tmp_path):
    def move(content: dict) -> None:
        content["images"][1]["caption"] = content["annotations"][1].pop("caption")

    root = changed(tmp_path, REGIONS["annotations"], move)
    assert read("region_captions", REGIONS, root)[1]["messages"][0]["info"]["caption"] == "a small dog"


def test_mme_reads_flat_and_nested_categories():
    records = read("mme", {"media": "mme"})
    assert [record["id"] for record in records] == ["mme/OCR/1", "mme/color/one", "mme/color/two"]
    assert records[0]["image"] == {"path": "mme/OCR/images/1.jpg"}
    asked = [message for message in records[1]["messages"] if message["role"] == "user"]
    assert [message["info"]["answer"] for message in asked] == ["Yes", "No"]
    assert asked[0]["content"][0]["text"] == "Is it red? Please answer yes or no."


def test_foregrounds_of_revos_are_masks_by_video():
    found = dict(read_mask_store(ROOT / "video_datas/revos/mask_dict_foreground.json"))
    assert [int(decode_rle(code).sum()) for code in found["LVVIS/train/00009"]] == [400, 400]


@pytest.mark.parametrize(
    ("format", "files", "name", "change", "message"),
    [
        ("gcg_bench", GCG, GCG["captions"], lambda c: c["annotations"][0]["labels"].pop(), "has 1 entries for 2"),
        ("gcg_bench", GCG, GCG["captions"], lambda c: c["annotations"][0].update(image_id="x"), "'x' is not among"),
        (
            "gcg_bench", GCG, GCG["mask_annotations"],
            lambda c: c["annotations"][0].update(segmentation={"size": [20, 20], "counts": "00"}), "covers 0 pixels",
        ),
        ("region_captions", REGIONS, REGIONS["annotations"], lambda c: c["images"].pop(0), "1 is not among"),
        (
            "region_captions", REGIONS, REGIONS["annotations"],
            lambda c: c["annotations"][0].update(segmentation=[[0, 0]]), "at least 3 pairs",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(format, files, name, change, message, tmp_path):
    with pytest.raises(DataError, match=message):
        read(format, files, changed(tmp_path, name, change))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Is it?\tMaybe\n", "expected a question, a tab, and Yes or No"),
        ("Is it? Yes\n", "a tab"),
        ("\n", "contains no question"),
    ],
)
def test_wrong_mme_lines_are_named(text, message, tmp_path):
    root = Path(shutil.copytree(ROOT, tmp_path / "root"))
    (root / "mme/color/one.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        read("mme", {"media": "mme"}, root)


def test_mme_question_without_its_picture(tmp_path):
    root = Path(shutil.copytree(ROOT, tmp_path / "root"))
    (root / "mme/color/one.jpg").unlink()
    with pytest.raises(DataError, match="contains none of one.avif, one.bmp, .* one.jpg"):
        read("mme", {"media": "mme"}, root)
    with pytest.raises(DataError, match="there is no such folder"):
        read("mme", {"media": "absent"}, root)


def test_fixtures_are_what_the_script_makes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["make_benchmark_fixtures.py", str(tmp_path)])
    make_benchmark_fixtures.main()
    made, kept = (
        {path.relative_to(root): path for path in root.rglob("*") if path.is_file()} for root in (tmp_path, ROOT)
    )
    assert set(made) == set(kept)
    same = [path for path in kept if path.suffix != ".jpg"]
    assert [path for path in same if made[path].read_bytes() != kept[path].read_bytes()] == []
    assert sum(path.stat().st_size for path in kept.values()) < 1e5
    assert "files" in capsys.readouterr().out
