"""What makes a result anew, and what ends a run or only a video. The models answer without a server."""

import ast
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from small_run import SETTINGS, Models, annotate, read_clips, rows
from worked_example import make_example

from sama.annotation import video as video_module
from sama.annotation.errors import AnnotationError, OutputError, output_errors
from sama.annotation.held_out import HeldOut
from sama.annotation.pipeline import RenderedSamples, rendered_folder
from sama.annotation.provenance import Origin
from sama.resources import PACKAGE
from sama.toy_world.export import RECORDS


@pytest.fixture
def example(tmp_path):
    """Three clips, no mistakes."""
    return make_example(tmp_path, 3, 0)


def test_another_revision_asks_again_and_another_host_does_not(example):
    endpoint = Models(example)
    annotate(example, endpoint, revision="v1")
    first = endpoint.asked
    assert first >= 9
    annotate(example, endpoint, revision="v1", host="b")
    assert endpoint.asked == first
    assert {row["writer"]["host"] for row in rows(example, "provenance")} == {"a"}  # which wrote the replies
    annotate(example, endpoint, revision="v2", host="b")
    assert endpoint.asked == 2 * first
    assert {(row["writer"]["revision"], row["writer"]["host"]) for row in rows(example, "provenance")} == {("v2", "b")}


def test_a_video_that_is_held_out_later_is_no_longer_in_the_records(example):
    endpoint = Models(example)
    assert annotate(example, endpoint).videos == {"kept": 3}
    asked, record = endpoint.asked, rows(example, "records")[0]
    held = example.folder / "held_out"
    shutil.copytree(example.folder / "clips" / record["video"]["path"], held / "other")
    counts = annotate(example, endpoint, held_out=HeldOut([held]))
    assert counts.videos == {"kept": 2, "error": 1} and endpoint.asked == asked
    assert "held-out video" in rows(example, "errors")[0]["message"]
    assert record["video"] not in [one["video"] for one in rows(example, "records")]


def test_changed_checks_make_results_anew_from_the_same_replies(example, monkeypatch):
    endpoint = Models(example)
    annotate(example, endpoint)
    results, asked = set((example.output / "videos").iterdir()), endpoint.asked
    monkeypatch.setattr(video_module, "code_hash", lambda with_model: "other checks")
    assert annotate(example, endpoint).videos == {"kept": 3}
    assert len(set((example.output / "videos").iterdir()) - results) == 3 and endpoint.asked == asked


def code_files(with_model: bool = False) -> set[str]:
    return {path.relative_to(PACKAGE).as_posix() for path in video_module.code_files(with_model)}


def imported(path: Path) -> set[str]:
    """The files of other folders of the package that a file of annotation imports from."""
    found = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.ImportFrom)]
    modules = {node.module for node in found if node.level == 2 and node.module is not None}
    return {f"{module.replace('.', '/')}.py" for module in modules}


def test_all_code_that_decides_results_is_in_their_key():
    own = {path for path in (PACKAGE / "annotation").glob("*.py") if path.stem not in video_module.WITHOUT_INFLUENCE}
    used = set().union(*map(imported, own))
    # What is read of a source is in the key itself; a locator alone is asked in the wording of training
    harmless = {"data/catalogue.py", "data/readers.py", "data/readers/json_lines.py", "resources.py"}
    assert {"data/masks.py", "data/records.py", "video_sama.py"} < used
    assert used - code_files() == harmless | {"data/wording.py"}
    assert {f"annotation/{path.name}" for path in own} < code_files()
    assert {path.stem for path in (PACKAGE / "annotation").glob("*.py")} > video_module.WITHOUT_INFLUENCE
    model = {"chat_sama.py", "modeling_sama.py", "processing_sama.py", "prompts_sama.py", "objects_sama.py"}
    assert model | {"data/wording.py", "serving/loading.py"} <= code_files(True) - code_files()
    hashes = {video_module.code_hash(with_model) for with_model in (False, True)}
    assert {len(one) for one in hashes} == {64} and len(hashes) == 2  # all of them can be read


@pytest.mark.parametrize("locator", ["", "sama-1b"])
def test_the_code_of_a_model_counts_where_one_is_used(monkeypatch, locator):
    monkeypatch.setattr(video_module, "code_hash", lambda with_model: f"with model: {with_model}")
    assert f"with model: {bool(locator)}" in video_module.settings_key(SETTINGS, {}, locator)


def test_a_frame_that_is_replaced_makes_its_video_anew(example):
    endpoint = Models(example)
    annotate(example, endpoint)
    before = {row["id"]: row["video"]["sha256"] for row in rows(example, "provenance")}
    record = rows(example, "records")[0]
    folder = example.folder / "clips" / record["video"]["path"]
    first, second = (folder / name for name in record["video"]["frames"][:2])
    first.write_bytes(second.read_bytes())
    annotate(example, endpoint)
    after = {row["id"]: row["video"]["sha256"] for row in rows(example, "provenance")}
    assert {name for name in before if before[name] != after[name]} == {
        name for name in before if name.startswith(record["id"].rpartition("/")[0] + "/")
    }


def test_a_damaged_frame_is_an_error_row_and_the_others_are_kept(example):
    record = json.loads((example.folder / "clips" / RECORDS).read_text().splitlines()[1])
    frame = example.folder / "clips" / record["video"]["path"] / record["video"]["frames"][0]
    frame.write_bytes(frame.read_bytes()[:60])
    assert annotate(example, Models(example)).videos == {"kept": 2, "error": 1}
    (row,) = rows(example, "errors")
    assert row["class"] == "data" and frame.name in row["message"]


def test_a_damaged_result_is_made_again_from_the_same_replies(example):
    endpoint = Models(example)
    annotate(example, endpoint)
    records, asked = rows(example, "records"), endpoint.asked
    first, second, _ = sorted((example.output / "videos").iterdir())
    first.write_bytes(b"")
    second.write_bytes(b"\0" * 100)
    (example.output / "rendered" / "index.json").write_bytes(b"")
    assert annotate(example, endpoint).videos == {"kept": 3}
    assert rows(example, "records") == records and endpoint.asked == asked


def test_a_run_without_videos_leaves_the_files_of_an_earlier_one(example):
    endpoint = Models(example)
    annotate(example, endpoint)
    files = {path: path.read_bytes() for path in example.output.rglob("*") if path.is_file()}
    assert not annotate(example, endpoint, scenes=[]).videos
    assert {path: path.read_bytes() for path in example.output.rglob("*") if path.is_file()} == files


@pytest.mark.parametrize("licence", ["", " ", "Unknown", "unknown"])
def test_a_blank_licence_is_unknown(example, licence):
    (scene, *_) = read_clips(example)
    known = Origin(licence="cc0-1.0", mask_licence="cc0-1.0")
    told = replace(scene, info={**scene.info, "licence": licence, "mask_licence": licence})
    with pytest.raises(AnnotationError, match="The licence of .* is unknown"):
        Origin().check(told, {})
    if licence.strip():  # it says so itself
        with pytest.raises(AnnotationError, match="The licence of .* is unknown"):
            known.check(told, {})
    else:  # a table without an entry says nothing
        known.check(told, {})
        assert known.of(told)["licence"] == "cc0-1.0"


def test_an_id_that_is_there_twice_is_an_error_row(example):
    clips = read_clips(example)
    assert annotate(example, Models(example), clips[:1] + clips).videos == {"kept": 3, "error": 1}
    assert "Two videos have the id" in rows(example, "errors")[0]["message"]


def test_a_reply_that_cannot_be_stored_ends_the_run(example, monkeypatch):
    def full(self, path, value):
        raise OSError(28, "No space left on device")

    endpoint = Models(example, may_stop=True)
    with monkeypatch.context() as patch:
        patch.setattr("sama.annotation.store.ReplyStore._write", full)
        counts = annotate(example, endpoint)
    assert isinstance(counts.stopped, OutputError) and "No space left on device" in str(counts.stopped)
    assert endpoint.asked <= 2 and counts.videos == {"error": 3}  # one for each of the two threads
    assert endpoint.stopped is counts.stopped  # so that no other reply is paid for and lost
    assert {row["class"] for row in rows(example, "errors")} == {"stopped"}
    assert annotate(example, endpoint).videos == {"kept": 3}


def test_an_error_of_writing_names_the_folder(tmp_path):
    with pytest.raises(OutputError, match="out cannot be written \\(No space"), output_errors(tmp_path / "out"):
        raise OSError(28, "No space left on device")


def test_drawn_frames_are_those_of_their_result(tmp_path):
    samples = RenderedSamples(tmp_path)
    samples.add("v", "first", {0: b"a", 3: b"b"})
    samples.add("v", "second", {0: b"c"})
    assert {path.name: path.read_bytes() for path in tmp_path.rglob("*.jpg")} == {"00000.jpg": b"c"}
    assert not samples.wants("v", "second")
    again = RenderedSamples(tmp_path)
    assert again.wants("v", "first") and not RenderedSamples(tmp_path).wants("v", "second")
    again.finish()  # a run in which it has no records any more
    assert json.loads((tmp_path / "index.json").read_text()) == {} and not list(tmp_path.rglob("*.jpg"))


def test_videos_of_an_earlier_run_hold_no_places_among_the_samples(tmp_path, monkeypatch):
    monkeypatch.setattr("sama.annotation.pipeline.NUM_SAMPLES", 2)
    names = sorted((f"v{number}" for number in range(6)), key=rendered_folder)
    for run in (names[:3], names[3:]):  # the hashes of the second run are larger
        samples = RenderedSamples(tmp_path)
        for name in run:
            samples.add(name, name, {0: name.encode()})
        samples.finish()
        assert set(json.loads((tmp_path / "index.json").read_text())) == set(run[:2])
        assert {path.read_bytes().decode() for path in tmp_path.rglob("*.jpg")} == set(run[:2])


def test_samples_that_another_run_removed_are_drawn_again(example):
    endpoint = Models(example)
    annotate(example, endpoint)
    before = {path.name: path.read_bytes() for path in (example.output / "rendered").rglob("*.jpg")}
    asked = endpoint.asked
    shutil.rmtree(example.output / "rendered")
    annotate(example, endpoint)
    assert before and before == {path.name: path.read_bytes() for path in (example.output / "rendered").rglob("*.jpg")}
    assert endpoint.asked == asked
