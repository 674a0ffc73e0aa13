"""scripts/predict.py with a model that is told what to say: answers as Parquet, runs that were cut off, errors."""

import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from bulk_fixtures import CLIP, PICTURE, ScriptedModel, write_media, write_truth

from sama.bulk import command
from sama.bulk import predict as prediction
from sama.bulk.answers import SCHEMA, read_rows, read_videos
from sama.bulk.command import main
from sama.bulk.gpu_errors import fatal_gpu_errors
from sama.bulk.jobs import VideoJob, jobs_of_folder
from sama.bulk.pool import BulkError, Job, PoolSettings, ProcessLost, run_jobs


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> Path:
    return write_media(tmp_path_factory.mktemp("media") / "files")


@pytest.fixture
def model(monkeypatch):
    scripted = ScriptedModel()
    monkeypatch.setattr(prediction, "load", lambda arguments: (scripted, SimpleNamespace(turn_format="newlines")))
    return scripted


def run(output: Path, media: Path, *arguments: str) -> int:
    return main(["--output", str(output), "--videos", str(media), *arguments])


def table_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.parquet")}


def test_answers_are_parquet(media, tmp_path, model, capsys):
    assert run(tmp_path / "out", media, "--question", "Where?", "--question", "What?") == 3
    captured = capsys.readouterr()
    assert "4 questions answered, 2 failed. 1 Parquet files" in captured.out
    assert "predict: 2 failed, first broken.mp4#1: DataError: " in captured.err
    rows = {row["id"]: row for row in read_rows(tmp_path / "out")}
    assert list(rows) == [f"{name}#{number}" for name in ("broken.mp4", CLIP, PICTURE) for number in (1, 2)]
    assert parquet.read_schema(tmp_path / "out" / "answers-00000-of-00001.parquet").equals(SCHEMA)
    row = rows[f"{CLIP}#1"]
    assert (row["video"], row["num_frames"], row["height"], row["error"]) == (CLIP, 24, 256, None)
    (turn,) = row["turns"]
    assert (turn["question"], turn["answer"], turn["tagged_answer"]) == ("Where?", "half.", "<p> half </p> [SEG].")
    (found,) = turn["objects"]
    assert turn["answer"][found["start"] : found["end"]] == found["phrase"] == "half" and found["score"] == 0.5
    assert [mask["frame"] for mask in found["masks"]] == list(range(24))
    assert rows["broken.mp4#1"]["turns"] == [] and "broken.mp4" in rows["broken.mp4#1"]["error"]


@pytest.mark.parametrize(
    ("question", "message"), [("What is <region>?", "has 0 regions for 1 <region>"), (" ", "is empty")]
)
def test_a_question_that_cannot_be_asked_ends_before_a_model_is_loaded(media, tmp_path, capsys, question, message):
    assert run(tmp_path / "out", media, "--question", question) == 1
    assert message in capsys.readouterr().err


def test_a_home_folder_behind_an_equals_sign(media, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    found = command.parse(["--output=~/out", "--videos=~/clips", "--question", "Where?", "--model=~"])
    assert (found.output, found.videos, found.model) == (tmp_path / "out", tmp_path / "clips", str(tmp_path))


def test_a_file_name_that_is_not_unicode_fails_its_questions_alone(media, tmp_path, model):
    folder = tmp_path / os.fsdecode(b"\xe9")
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system has only names in UTF-8")
    for name in (PICTURE, os.fsdecode(b"caf\xe9.png")):
        shutil.copyfile(media / PICTURE, folder / name)
    (folder / "broken.mp4").touch()
    assert run(tmp_path / "out", folder, "--question", "Where?") == 3
    broken, named, answered = read_rows(tmp_path / "out")
    assert r"\udce9/broken.mp4" in broken["error"]
    assert (named["id"], named["video"]) == (r"caf\udce9.png#1", r"caf\udce9.png")
    assert r"is not UTF-8: 'caf\udce9.png'; rename the file" in named["error"]
    assert answered["id"] == f"{PICTURE}#1" and answered["error"] is None
    job = jobs_of_folder(folder, [{"question": "Where?"}])[1]
    assert VideoJob.from_json(job.to_json().encode().decode()) == job  # what a worker of a pool is sent
    assert main(["--output", str(tmp_path / "out"), "--export", "coco", "--to", str(tmp_path / "coco")]) == 0


@pytest.mark.parametrize("own", ["consistent", "published"])
def test_the_preset_is_that_of_the_checkpoint(media, tmp_path, model, monkeypatch, own):
    monkeypatch.setattr(prediction.SamaConfig, "from_pretrained", lambda name: SimpleNamespace(preset=own))
    run(tmp_path / "own", media, "--question", "Where?")
    run(tmp_path / "given", media, "--question", "Where?", "--preset", "published")
    found = {name: json.loads((tmp_path / name / "run.json").read_text())["preset"] for name in ("own", "given")}
    assert found == {"own": own, "given": "published"}


def test_an_interrupted_run_goes_on(media, tmp_path, model, monkeypatch):
    (tmp_path / "q.txt").write_text("Where?\nWhat?\n", encoding="utf-8")
    questions = ("--questions", str(tmp_path / "q.txt"), "--shard-size", "1")
    assert run(tmp_path / "whole", media, *questions) == 3
    asked = len(model.asked)

    def stop_at_picture(*arguments, **options):
        if model.asked and len(model.asked) == asked + 2:
            raise KeyboardInterrupt
        return ask(*arguments, **options)

    ask = prediction.answer_job
    monkeypatch.setattr(prediction, "answer_job", stop_at_picture)
    assert run(tmp_path / "cut", media, *questions) == 130
    assert table_bytes(tmp_path / "cut") == {}
    part = tmp_path / "cut" / "predictions.part0.jsonl"
    part.write_bytes(part.read_bytes() + b'{"question": "torn')  # as by a machine that lost its power
    monkeypatch.setattr(prediction, "answer_job", ask)
    assert run(tmp_path / "cut", media, *questions) == 3
    assert len(model.asked) == 2 * asked  # nothing twice
    assert table_bytes(tmp_path / "cut") == table_bytes(tmp_path / "whole") and len(table_bytes(tmp_path / "cut")) == 3
    assert run(tmp_path / "cut", media, *questions) == 3 and len(model.asked) == 2 * asked
    assert run(tmp_path / "cut", media, *questions[:2]) == 3 and len(table_bytes(tmp_path / "cut")) == 1


def test_answers_about_one_video_are_kept_one_by_one(media, tmp_path, model, monkeypatch):
    def stop_at_third(*arguments, **options):
        for answer in ask(*arguments, **options):
            if len(model.asked) == 3:
                raise KeyboardInterrupt
            yield answer

    ask = prediction.answer_job
    (tmp_path / "videos" / CLIP).parent.mkdir(parents=True)
    shutil.copyfile(media / CLIP, tmp_path / "videos" / CLIP)
    asked = [argument for text in ("Where?", "What?", "When?") for argument in ("--question", text)]
    with monkeypatch.context() as patch:
        patch.setattr(prediction, "answer_job", stop_at_third)
        assert run(tmp_path / "out", tmp_path / "videos", *asked) == 130
    part = (tmp_path / "out" / "predictions.part0.jsonl").read_text(encoding="utf-8")
    assert [json.loads(line)["question"] for line in part.splitlines()] == [f"{CLIP}#1", f"{CLIP}#2"]
    assert run(tmp_path / "out", tmp_path / "videos", *asked) == 0 and len(model.asked) == 4


def test_other_questions_are_refused(media, tmp_path, model, capsys):
    assert run(tmp_path, media, "--question", "Where?", "--limit", "2") == 3
    assert len(list(read_rows(tmp_path))) == 2
    assert run(tmp_path, media, "--question", "Where?") == 3  # a larger limit goes on
    assert len(list(read_rows(tmp_path))) == 3
    assert run(tmp_path, media, "--question", "What?") == 1
    message = capsys.readouterr().err
    assert "run: the digest of the questions is" in message and "accept_foreign" not in message  # evaluate.py has it
    (media / "more.png").write_bytes((media / PICTURE).read_bytes())
    code = run(tmp_path, media, "--question", "Where?")
    (media / "more.png").unlink()  # other tests have this folder, too
    assert code == 1
    assert "run: the digest of the videos and their files is" in capsys.readouterr().err


def test_a_defect_is_a_row(media, tmp_path, model):
    asked = [argument for text in ("Where?", "crash", "What?") for argument in ("--question", text)]
    assert run(tmp_path, media, *asked) == 3
    errors = {row["id"]: row["error"] and row["error"].split(":")[0] for row in read_rows(tmp_path)}
    expected = {f"broken.mp4#{number}": "DataError" for number in (1, 2, 3)}
    expected |= {f"{name}#{number}": None for name in (CLIP, PICTURE) for number in (1, 3)}
    assert errors == expected | {f"{name}#2": "ZeroDivisionError" for name in (CLIP, PICTURE)}
    before = len(model.asked)
    assert run(tmp_path, media, *asked) == 3 and len(model.asked) == before
    assert run(tmp_path, media, *asked, "--retry-failed") == 3
    assert [text for text, _ in model.asked[before:]] == ["crash", "crash"]


def test_rows_are_read_as_videos(tmp_path):
    jobs, paths = write_truth(tmp_path, shard_size=1)
    assert [path.name for path in paths] == [f"answers-{number:05d}-of-00004.parquet" for number in range(4)]
    videos = list(read_videos(tmp_path))
    assert [(video.name, len(video.objects)) for video in videos] == [(CLIP, 3), (PICTURE, 1)]
    assert [one.label for one in videos[0].objects] == ["the <b> & one", "it", "thing"]
    assert [job.names for job in jobs][0] == ["first", "second"]


def test_damaged_answers_are_named(tmp_path):
    write_truth(tmp_path)
    path = next(tmp_path.glob("*.parquet"))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BulkError, match="is damaged or no Parquet file"):
        list(read_rows(tmp_path))
    parquet.write_table(pa.table({"id": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(BulkError, match="other.parquet does not hold answers: error, height"):
        list(read_rows(tmp_path / "other.parquet"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either --records or --videos"),
        (["--videos", "x"], "--videos needs --question or --questions"),
        (["--records", "x", "--question", "y"], "records have their questions"),
        (["--videos", "x", "--media", "y", "--question", "z"], "--media is the folder of the videos of --records"),
        (["--videos", "x", "--question", "z", "--limit", "0"], "--limit must be at least 1, got 0"),
        (["--export", "coco"], "--export needs the folder --to"),
        (["--export", "coco", "--to", "x", "--frames"], "--frames needs the folder of the videos"),
        (["--videos", "x", "--question", "z", "--to", "y"], "--to and --frames belong to --export"),
    ],
)
def test_options_that_do_not_fit(capsys, arguments, message):
    with pytest.raises(SystemExit):
        main(["--output", "o", *arguments])
    assert message in capsys.readouterr().err


def test_errors_are_sentences(tmp_path, media, capsys):
    assert run(tmp_path, tmp_path / "none", "--question", "What?") == 1
    assert "there is no such folder" in capsys.readouterr().err
    assert run(tmp_path, media, "--question", "What?", "--model", str(tmp_path)) == 1
    assert "has no config.json" in capsys.readouterr().err
    (tmp_path / "config.json").write_text('{"model_type": "sa2va_chat"}')
    assert run(tmp_path, media, "--question", "What?", "--model", str(tmp_path)) == 1
    assert "must be converted first" in capsys.readouterr().err and not list(tmp_path.rglob("run.json"))
    assert main(["--output", str(tmp_path / "none"), "--export", "coco", "--to", str(tmp_path / "to")]) == 1
    assert "There are no answers" in capsys.readouterr().err


# ---- jobs in one process


def shout(text: str) -> str:
    if text == "lost":
        raise ProcessLost("the GPU fell off")
    if text == "bad":
        raise ValueError("of two\nlines")
    return text.upper()


def test_jobs_in_this_process():
    results = list(run_jobs([Job(3, "a"), Job(1, "bad"), Job(2, "b")], lambda: shout))
    assert [tuple(one) for one in results] == [(3, "A", None), (1, None, "ValueError: of two lines"), (2, "B", None)]
    assert list(run_jobs([], lambda: pytest.fail("no worker is needed"))) == []
    with pytest.raises(ProcessLost):
        list(run_jobs([Job(0, "lost")], lambda: shout))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("CUDA error: device-side assert triggered"), ProcessLost),
        (RuntimeError("shapes do not fit"), RuntimeError),
        (torch.OutOfMemoryError("CUDA out of memory"), torch.OutOfMemoryError),
        (RuntimeError("CUDA error: out of memory"), RuntimeError),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate.handle.`"), RuntimeError),
    ],
)
def test_errors_of_a_gpu_end_the_process_unless_its_memory_is_full(monkeypatch, error, expected):
    emptied = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))
    with pytest.raises(expected, match=str(error)), fatal_gpu_errors():
        raise error
    assert bool(emptied) == any(one in str(error) for one in ("memory", "ALLOC"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"actors": 0}, "at least 1 actor, got 0"),
        ({"actors": 1, "gpus": -1}, "got -1 and 1.0"),
        ({"actors": 1, "gpus": 1.5}, "a part of one GPU or whole ones, got 1.5"),
    ],
)
def test_pools_that_cannot_be(settings, message):
    with pytest.raises(BulkError, match=message):
        PoolSettings(**settings)


def test_ray_is_asked_for(media, tmp_path, model, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert run(tmp_path, media, "--question", "What?", "--ray", "2") == 1
    assert "Ray Data is not installed. Run: pip install 'sama[ray]'" in capsys.readouterr().err
