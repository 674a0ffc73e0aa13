"""What a run does when a video, the disk or the process fails: one video is an error row, a full disk a sentence, and
what was finished stays. The models answer without a server."""

import json
import os
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from small_run import SETTINGS, Models, annotate, make_run, read_clips, rows
from worked_example import command as arguments_of
from worked_example import make_example

from sama.annotation import command, pipeline
from sama.annotation.annotator import error_row
from sama.annotation.costs import Costs
from sama.annotation.errors import AnnotationError, BudgetError, OutputError, PermanentError, UnansweredError
from sama.annotation.estimate import estimate_run
from sama.annotation.json_lines import AppendOnlyFile
from sama.annotation.objects import list_videos
from sama.annotation.pipeline import RenderedSamples, RunCounts
from sama.annotation.scenes import BrokenScene, Scene, SceneObject
from sama.annotation.store import ReplyStore
from sama.bulk.pool import ProcessLost
from sama.data.masks import encode_rle
from sama.data.records import DataError


LATIN_1 = os.fsdecode(b"caf\xe9")


@pytest.fixture
def example(tmp_path):
    """Two clips, no mistakes."""
    return make_example(tmp_path, 2, 0)


def fail_for(monkeypatch, video: str, error: Exception) -> None:
    """Annotating this video raises the error."""
    made = pipeline.Annotator.__call__

    def call(self, scene: Scene):
        if scene.id == video:
            raise error
        return made(self, scene)

    monkeypatch.setattr(pipeline.Annotator, "__call__", call)


def full(*_, **__):
    raise OSError(28, "No space left on device")


# ---- one video


def test_an_unforeseen_error_is_an_error_row_and_the_others_are_kept(example, monkeypatch):
    fail_for(monkeypatch, example.truths[0].name, RuntimeError("out of\nmemory"))
    assert annotate(example, Models(example)).videos == {"kept": 1, "error": 1}
    (row,) = rows(example, "errors")
    # What a pool of actors says of it
    assert row == {"video": example.truths[0].name, "class": "lost", "message": "RuntimeError: out of memory"}


def test_a_process_that_is_lost_ends_the_run(example, monkeypatch, capsys):
    fail_for(monkeypatch, example.truths[0].name, RuntimeError("CUDA error: an illegal access"))
    with pytest.raises(ProcessLost, match="an illegal access"):
        annotate(example, Models(example, may_stop=True))

    def lost(given):
        raise ProcessLost("CUDA error")

    monkeypatch.setattr(command, "annotate", lost)
    assert command.main(arguments_of(example, "http://127.0.0.1:9/v1")) == 1
    assert capsys.readouterr().err.startswith("annotate: This process can no longer compute (CUDA error).")


def test_objects_that_are_left_out_are_counted_and_named(example):
    before = annotate(example, Models(example)).items["objects"]
    scene, *others = read_clips(example)
    first, dot = scene.objects[0], np.zeros(scene.objects[0].masks[0]["size"], bool)
    dot[0, 0] = True
    small = SceneObject("dot", tuple(encode_rle(dot) for _ in first.masks))
    twin, rare = replace(first, name="twin"), SceneObject("rare", (None,) * len(first.masks))
    scene = replace(scene, objects=(*scene.objects, small, twin, rare))
    counts = annotate(example, Models(example), scenes=[scene, *others])
    assert before["annotated"] == sum(len(truth.objects) for truth in example.truths)
    assert counts.items["objects"] == before + Counter(given=3, merged=1, small=1, brief=1)
    left_out = [row["left_out"] for row in rows(example, "provenance") if row["video"]["id"] == scene.id]
    assert left_out and all(one.keys() >= {"dot", "twin", "rare"} for one in left_out)
    assert left_out[0]["twin"] == f"the same object as {first.name}"
    assert left_out[0]["rare"] == "visible in 0 frames, fewer than 3"


def test_a_name_that_is_not_unicode_is_an_error_row(example):
    scenes = read_clips(example)
    renamed = replace(scenes[0], id=f"toy/{LATIN_1}")
    inside = replace(scenes[0], visual=scenes[0].visual | {"path": LATIN_1}, id="inside")
    broken = BrokenScene(f"{LATIN_1}.mp4", DataError(f"{LATIN_1}.mp4 cannot be read"))
    counts = annotate(example, Models(example), scenes=[renamed, inside, broken, scenes[1]])
    assert counts.videos == {"kept": 1, "error": 3}
    found = {row["video"]: row["message"] for row in rows(example, "errors")}
    assert list(found) == [r"toy/caf\udce9", "inside", r"caf\udce9.mp4"]
    assert all("is not Unicode: rename its files" in found[name] for name in list(found)[:2])
    assert r"caf\udce9.mp4 cannot be read" in found[r"caf\udce9.mp4"]
    (problem,) = estimate_run([renamed], SETTINGS, {}).problems
    assert problem[0] == r"toy/caf\udce9"


def test_a_file_name_that_is_not_unicode_is_listed(tmp_path):
    try:
        (tmp_path / f"{LATIN_1}.mp4").touch()
    except OSError:
        pytest.skip("this file system has only names in UTF-8")
    (scene,) = list_videos(tmp_path, "mine")
    assert error_row(scene.id, ValueError(scene.id))["message"] == r"mine/caf\udce9.mp4"


# ---- the end of a run


def test_the_first_error_says_why_a_run_ends_and_ends_all_requests(example):
    endpoint = Models(example, may_stop=True)
    run, told = make_run(example, endpoint), []
    run.stop_callbacks.append(told.append)
    first, second = BudgetError("spent"), PermanentError("The run was stopped.")
    run.stop(first)
    run.stop(second)
    assert run.stopped is first and told == [first] and endpoint.stopped is first


# ---- a full disk


def test_a_full_disk_while_samples_are_chosen_stops_the_run_and_keeps_the_results(example, monkeypatch):
    annotate(example, Models(example))
    shutil.rmtree(example.output / "rendered")
    for name in ("RenderedSamples.wants", "RenderedSamples.add"):
        with monkeypatch.context() as patch:
            patch.setattr(f"sama.annotation.pipeline.{name}", full)
            counts = annotate(example, Models(example, may_stop=True))
        assert isinstance(counts.stopped, OutputError) and "rendered cannot be written" in str(counts.stopped)
        assert counts.videos == {"kept": 2} and len(rows(example, "records")) == 4


def test_a_full_disk_while_the_files_are_written_leaves_the_old_ones(example, monkeypatch):
    annotate(example, Models(example))
    before = (example.output / "records.jsonl").read_bytes()
    for name in ("RenderedSamples.finish", "_write_lines"):
        with monkeypatch.context() as patch:
            patch.setattr(f"sama.annotation.pipeline.{name}", full)
            with pytest.raises(OutputError, match="annotation cannot be written .No space left"):
                annotate(example, Models(example))
        assert (example.output / "records.jsonl").read_bytes() == before


@pytest.mark.parametrize("name", ["write_summary", "write_report"])
@pytest.mark.parametrize("stopped", [None, BudgetError("The budget is spent.")])
def test_a_full_disk_at_the_end_is_one_sentence(example, monkeypatch, capsys, name, stopped):
    monkeypatch.setattr(command.Run, "run", lambda *_: RunCounts(videos=Counter(kept=1), stopped=stopped))
    monkeypatch.setattr(command, name, full)
    assert command.main(arguments_of(example, "http://127.0.0.1:9/v1")) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert ("The budget is spent" if stopped else "cannot be written (No space left on device)") in error


def test_the_command_names_the_option_of_too_many_failures(example, monkeypatch, capsys):
    stopped = UnansweredError("None of the last 20 requests was answered.")
    monkeypatch.setattr(command.Run, "run", lambda *_: RunCounts(stopped=stopped))
    assert command.main(arguments_of(example, "http://127.0.0.1:9/v1")) == 1
    assert capsys.readouterr().err == f"annotate: {stopped} --request-failures sets the number.\n"


def test_a_run_that_cannot_begin_leaves_its_folder_free(example, monkeypatch, capsys):
    monkeypatch.setattr(command.Run, "run", lambda *_: RunCounts(videos=Counter(kept=1)))
    assert command.main(arguments_of(example, "ftp://127.0.0.1:9/v1")) == 1
    assert "expected one such as http://" in capsys.readouterr().err
    assert command.main(arguments_of(example, "http://127.0.0.1:9/v1")) == 0


# ---- leftovers of a kill


def test_no_other_run_may_begin_before_the_report_is_written(example, monkeypatch):
    """It would remove the temporary files of this one, as those of a run that was killed."""
    refused = []

    def write_report(folder, spent):
        with pytest.raises(AnnotationError, match="is in use") as error:
            AppendOnlyFile(folder / "costs.jsonl")
        refused.append(error)

    monkeypatch.setattr(command.Run, "run", lambda *_: RunCounts(videos=Counter(kept=1)))
    monkeypatch.setattr(command, "write_report", write_report)
    assert command.main(arguments_of(example, "http://127.0.0.1:9/v1")) == 0
    assert len(refused) == 1
    AppendOnlyFile(example.output / "costs.jsonl").close()


def test_leftovers_of_killed_runs_are_removed_by_the_next_one(example, monkeypatch):
    output = example.output
    annotate(example, Models(example))
    kept = set(output.rglob("*"))
    samples = RenderedSamples(output / "rendered")
    (samples.folder / "0123456789abcdef").mkdir()
    (samples.folder / "0123456789abcdef" / "00000.jpg").touch()
    (samples.folder / ".index.77.part.json").touch()
    (output / ".records.77.part.jsonl").touch()
    (output / ".run.77.part.json").touch()
    (output / "videos" / f".{'a' * 64}.77.part.json").touch()
    reply = next(ReplyStore(output / "store").folder.glob("*/*.json"))
    (reply.parent / f".{reply.stem[:16]}.77.140225.part").touch()
    others = {output / ".reviewed_records.77.part.jsonl", output / "store" / "note.txt"}  # of a review, of a person
    for path in others:
        path.touch()
    monkeypatch.setattr(command.Run, "run", lambda *_: RunCounts(videos=Counter(kept=1)))
    with pytest.MonkeyPatch.context() as patch:  # another run may be at work where there are no locks
        patch.setattr(Costs, "locked", False)
        assert command.main(arguments_of(example, "http://127.0.0.1:9/v1")) == 0
        assert (output / ".records.77.part.jsonl").exists()
    assert command.main(arguments_of(example, "http://127.0.0.1:9/v1")) == 0
    new = {output / name for name in ("costs.jsonl", "run.json", "report.html")}
    assert set(output.rglob("*")) == kept | new | others
    assert json.loads((samples.folder / "index.json").read_text())
