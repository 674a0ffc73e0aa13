"""scripts/validate_data.py on fixtures: a clean mixture, and every kind of damage where it is."""

import json
from pathlib import Path

import processes
import pytest
import yaml
from data_fixtures import CONFIGS, copied, render
from fixture_sources import FIXTURES, SOURCES
from PIL import Image

from sama.data.validation import MixtureValidator
from sama.drawing.preview import preview_sheet
from sama.scripts.validate_data import main


def run(tmp_path, mixture, *arguments, root=FIXTURES):
    options = ["--root", root, "--cache", tmp_path / "cache", "--report", tmp_path / "report.json"]
    code = main([str(word) for word in (mixture, *options, "--workers", "0", *arguments)])
    report = tmp_path / "report.json"
    return code, json.loads(report.read_text()) if report.is_file() else None


@pytest.fixture
def mixture(tmp_path):
    """A mixture file over the catalogue that ships, of the sources named."""

    def write(*names):
        (tmp_path / "catalogue.yaml").write_text((CONFIGS / "catalogue.yaml").read_text())
        path = tmp_path / "mixture.yaml"
        path.write_text(yaml.safe_dump({"sources": dict.fromkeys(names, 1)}))
        return path

    return write


def test_everything_that_ships_is_valid(tmp_path, capsys):
    code, report = run(tmp_path, CONFIGS / "sama_1b.yaml")
    assert code == 0 and report["problems"] == 0 and len(report["sources"]) == 20
    assert report["sources"]["mevis"]["counts"]["records"] == 2
    assert report["sources"]["sama239k_conversation"]["counts"]["[SEG]"] == 7
    assert "rounds whose [SEG] and groundtruth differ in number" in capsys.readouterr().out


def test_toy_world_with_sheets(tmp_path):
    out = tmp_path / "sheets"
    code, report = run(tmp_path, CONFIGS / "toy.yaml", "--limit", "6", "--preview", "3", "--out", out, "--all-frames")
    counts = report["sources"]["toy_train"]["counts"]
    assert code == 0 and counts["records"] == 6 and counts["masks decoded"] > counts["frames decoded"] > 6
    assert len(list(out.glob("*.png"))) == 3
    assert Image.open(next(out.iterdir())).width >= 900


def test_a_preview_alone_reads_the_drawn_records_only(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(MixtureValidator, "run", lambda *_: pytest.fail("all records are read"))
    old = tmp_path / "outputs" / "preview" / "toy" / "preview_007_toy_train.png"
    old.parent.mkdir(parents=True)
    old.touch()
    mine = old.with_name("001_cat.png")
    mine.touch()
    assert main([str(CONFIGS / "toy.yaml"), "--preview", "2", "--cache", str(tmp_path / "cache")]) == 0
    assert sorted(path.name for path in old.parent.iterdir()) == [
        mine.name,
        "preview_000_toy_train.png",
        "preview_001_toy_train.png",
    ]
    assert "2 drawings in outputs/preview/toy" in capsys.readouterr().out


def test_sources_without_records_have_no_preview(tmp_path, mixture, caplog):
    root, out = copied(tmp_path), tmp_path / "sheets"
    llava = root / SOURCES["llava"][1]["annotations"]
    llava.write_text(json.dumps([{**item, "conversations": "nothing"} for item in json.loads(llava.read_text())]))
    code, report = run(tmp_path, mixture("llava"), "--preview", "3", "--out", out, root=root)
    assert code == 1 and set(report["sources"]["llava"]["problems"]) == {"broken items"}
    assert "no preview: llava has no records" in caplog.text and list(out.iterdir()) == []
    run(tmp_path, mixture("llava", "mevis"), "--preview", "3", "--out", out, root=root)
    assert [path.name for path in sorted(out.iterdir())] == [f"preview_00{number}_mevis.png" for number in range(3)]


@pytest.mark.parametrize(
    ("option", "value", "least"), [("limit", "-5", 1), ("limit", "0", 1), ("workers", "-3", 0), ("preview", "-1", 0)]
)
def test_numbers_that_are_too_small_are_refused(option, value, least, capsys):
    with pytest.raises(SystemExit) as end:
        main([str(CONFIGS / "toy.yaml"), f"--{option}", value])
    assert end.value.code == 2
    assert f"--{option} must be at least {least}, got {value}" in capsys.readouterr().err


def test_a_processor_that_does_not_exist_is_one_sentence(capsys):
    assert main([str(CONFIGS / "toy.yaml"), "--processor", "sama-tny"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_in_processes_as_in_one(tmp_path, mixture, monkeypatch):
    monkeypatch.setattr("sama.data.validation.get_context", lambda method: processes.CONTEXT)
    names = ("mevis", "refcoco", "llava")
    _, alone = run(tmp_path, mixture(*names))
    _, together = run(tmp_path, mixture(*names), "--workers", "2")
    assert alone == together


def damage(root):
    (root / "video_datas/mevis/train/JPEGImages/vid_b/00001.jpg").unlink()
    (root / "video_datas/mevis/train/JPEGImages/vid_a/00003.jpg").write_bytes(b"no picture")
    masks = root / SOURCES["sama239k_conversation"][1]["mevis_masks"]
    content = json.loads(masks.read_text())
    content["3"] = content["3"][:-1]
    masks.write_text(json.dumps(content))
    llava = root / SOURCES["llava"][1]["annotations"]
    items = json.loads(llava.read_text())
    items[1]["conversations"] = "nothing"
    llava.write_text(json.dumps(items))
    (root / SOURCES["gcg_openpsg"][1]["annotations"]).unlink()


def test_damage_is_found_and_named(tmp_path, mixture, capsys):
    root = copied(tmp_path)
    damage(root)
    path = mixture("mevis", "sama239k_conversation", "llava", "gcg_openpsg", "refcoco")
    code, report = run(tmp_path, path, root=root)
    found = {name: source["problems"] for name, source in report["sources"].items()}
    assert code == 1 and report["problems"] == sum(sum(problems.values()) for problems in found.values())
    assert found["mevis"] == {"missing files": 1, "undecodable frames": 1}
    assert set(found["sama239k_conversation"]) == {"masks that do not fit"}
    assert found["llava"] == {"broken items": 1}
    assert found["gcg_openpsg"] == {"source cannot be opened": 1}
    assert found["refcoco"] == {}
    printed = capsys.readouterr().out
    assert "mevis, item mevis/vid_b, field 'video.frames[1]': there is no file" in printed
    place = "sama239k_conversation, sama239k_data/mevis_train_mask_dict.json, item sama239k_conversation/0/0"
    assert f"{place}, field 'objects.3.masks': has 5 masks for 6 frames." in printed


def test_damaged_and_missing_files_have_their_kinds(tmp_path):
    """A video with damage in the middle, of which players show the frame before, and a file that is not there."""
    clip = Path(__file__).parents[2] / "assets" / "toy_world.mp4"
    content = bytearray(clip.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 3000] = bytes(3000)
    (tmp_path / "damaged.mp4").write_bytes(content)
    said = [{"role": role, "content": [{"type": "text", "text": "Yes [SEG]."}]} for role in ("user", "assistant")]
    lines = [{"video": {"path": name}, "messages": said} for name in ("damaged.mp4", "missing.mp4")]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, [*lines, {"messages": said}])))
    files = {"records": "mine.jsonl", "media": "."}
    path = tmp_path / "mixture.yaml"
    path.write_text(yaml.safe_dump({"sources": {"mine": {"format": "json_lines", "files": files}}}))
    code, report = run(tmp_path, path, "--all-frames", root=tmp_path)
    found = report["sources"]["mine"]
    assert code == 1 and found["problems"] == {"damaged videos": 1, "missing files": 1}  # and no [SEG] without a mask
    assert "damaged.mp4" in found["examples"]["damaged videos"][0]


def test_never_visible_object_is_a_note(tmp_path, mixture):
    root = copied(tmp_path)
    masks = root / SOURCES["mevis"][1]["masks"]
    content = json.loads(masks.read_text())
    content["7"] = [None] * len(content["7"])
    masks.write_text(json.dumps(content))
    code, report = run(tmp_path, mixture("mevis"), root=root)
    assert code == 0 and report["sources"]["mevis"]["notes"] == {"objects visible in no frame": 1}


def test_wrong_mixture_file_is_another_exit_code(tmp_path, mixture, capsys):
    assert run(tmp_path, mixture("nowhere"))[0] == 2
    assert "field 'sources.nowhere': is not in the catalogue" in capsys.readouterr().err
    assert run(tmp_path, tmp_path / "absent.yaml")[0] == 2


@pytest.mark.parametrize("name", SOURCES)
def test_every_kind_of_sample_can_be_drawn(name, tmp_path):
    sheet = preview_sheet(render(name, tmp_path), [0])
    assert sheet.width >= 900 and len(sheet.getcolors(sheet.width * sheet.height)) > 5


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"config.json": '{"model_type": "sa2va_chat"}'}, "is as it was released and must be converted first"),
        ({"config.json": '{"model_type": "sama"}', "processor_config.json": "{"}, "validate_data: "),
    ],
)
def test_a_processor_that_cannot_be_loaded_is_one_sentence(tmp_path, mixture, capsys, files, message):
    """Also with worker processes, which end without a word if they cannot load it."""
    (tmp_path / "model").mkdir()
    for name, content in files.items():
        (tmp_path / "model" / name).write_text(content)
    code, report = run(tmp_path, mixture("mevis"), "--processor", str(tmp_path / "model"), "--workers", "2")
    error = capsys.readouterr().err
    assert code == 2 and report is None and message in error and len(error.splitlines()) == 1
