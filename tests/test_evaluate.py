"""evaluate.py: whole runs, runs that were cut off, several processes, and everything that can be wrong."""

import json
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from checkpoint import CHECKPOINT, load_checkpoint
from PIL import Image
from processes import finish, run_script, start, start_group

from sama import evaluate
from sama.benchmarks.registry import open_benchmark
from sama.benchmarks.toy_world import ToyWorldBenchmark
from sama.bulk.benchmark_run import with_absolute_paths
from sama.evaluation import run as evaluation_run
from sama.evaluation.inference import PredictionRunner
from sama.evaluation.predictions import PREDICTIONS, RUN, PredictionFiles
from sama.evaluation.report import TABLE
from sama.objects_sama import GroundedPhrase, MaskTrack


ROOT = Path(__file__).parent.parent
# Answers of three tokens: the small checkpoint may be untrained, and then writes one object after the other
TOY = ["--benchmark", "toy_world", "--option", "clips=5", "--limit", "3", "--max_new_tokens", "3"]
PLAIN = [*TOY, "--no_gallery"]
FILES = ["gallery", "plots.png", PREDICTIONS, "results.json", "results.md", RUN]


def test_requests_a_minute_reach_the_judge(tmp_path, capsys):
    given = ["--model", "m", *TOY, "--judge_url", "http://localhost:1/v1", "--judge_model", "small"]
    files = PredictionFiles(tmp_path)
    for more, expected in ([], None), (["--judge_rpm", "30"], 30.0):
        tools, named = evaluation_run.open_tools(evaluate.parse([*given, *more]), files)
        assert tools.judge.judge.settings.requests_per_minute == expected
        assert named["judge"]["model"] == "small" and "requests_per_minute" not in named["judge"]
    with pytest.raises(SystemExit):
        evaluate.parse([*given, "--judge_rpm", "0"])
    assert "--judge_rpm must be more than 0" in capsys.readouterr().err


def test_arguments_are_no_options_of_a_benchmark(capsys):
    with pytest.raises(SystemExit):
        evaluate.parse(["--model", "m", *TOY, "--option", "split=val"])
    assert "split is no option of a benchmark: give --split" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--limit", "--max_new_tokens"])
@pytest.mark.parametrize("value", ["0", "-1"])
def test_numbers_below_one_are_refused(option, value, capsys):
    with pytest.raises(SystemExit):
        evaluate.parse(["--model", "m", *TOY, option, value])
    assert f"{option} must be at least 1" in capsys.readouterr().err


def test_the_home_folder_in_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "ckpt").mkdir()
    for name, expected in (("~/ckpt", str(tmp_path / "ckpt")), ("owner/name", "owner/name"), ("~/none", "~/none")):
        for option in ("model", "judge_model", "similarity_model"):
            assert vars(evaluate.parse(["--model=m", f"--{option}={name}", *TOY]))[option] == expected
    assert evaluation_run.output_folder(evaluate.parse(["--model=m", "--output=~/x", *TOY]), None) == tmp_path / "x"
    assert with_absolute_paths(evaluate.parse(["--model=m", "--data_root=~/d", *TOY])).data_root == str(tmp_path / "d")


class ScriptedModel:
    """Says the same to everything, with a mask of everything; `asked` counts."""

    def __init__(self):
        self.asked = 0

    def start_chat(self, processor, video=None, image=None):
        shown = video if video is not None else image
        return ScriptedChat(self, shown)


class ScriptedChat:
    def __init__(self, model, video):
        self.model, self.video = model, video

    def reset(self):
        pass

    def ask(self, text, regions, max_new_tokens, masks, do_sample):
        self.model.asked += 1
        if self.video is None:
            return SimpleNamespace(tagged_text="Hi.", objects=[])
        for index in range(len(self.video)):
            self.video[index]  # as a model would, which finds what is broken
        track = MaskTrack.from_masks(np.ones((len(self.video), self.video.height, self.video.width), dtype=bool))
        return SimpleNamespace(tagged_text="<p> It </p> [SEG].", objects=[GroundedPhrase("It", (0, 2), track, 0.5)])


@pytest.fixture
def scripted(monkeypatch):
    model = ScriptedModel()
    monkeypatch.setattr(evaluation_run, "load", lambda arguments: (model, SimpleNamespace(turn_format="newlines")))
    return model


def run(output: Path, *arguments: str, model: str = str(CHECKPOINT)) -> int:
    return evaluate.main(["--model", model, "--output", str(output), *arguments])


def results(output: Path) -> dict:
    return json.loads((output / "results.json").read_text(encoding="utf-8"))


def test_a_released_model_is_named_before_anything_is_written(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"model_type": "sa2va_chat"}')
    assert run(tmp_path / "output", *PLAIN, model=str(tmp_path)) == 1
    assert "must be converted first" in capsys.readouterr().err and not (tmp_path / "output").exists()


# Whole runs with the small checkpoint


@pytest.fixture(scope="module")
def toy_run(tmp_path_factory):
    """A run through the command line's own function with the checkpoint in this process."""
    output = tmp_path_factory.mktemp("toy")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation_run, "load", lambda arguments: load_checkpoint())
        assert run(output, *TOY) == 0
    return output


def test_toy_world_from_questions_to_pictures(toy_run):
    assert sorted(path.name for path in toy_run.iterdir()) == FILES
    lines = [json.loads(line) for line in (toy_run / PREDICTIONS).read_text(encoding="utf-8").splitlines()]
    assert [line["question"] for line in lines] == ["0", "1", "2"]
    assert all(line["error"] is None and line["num_frames"] >= 8 and line["turns"] for line in lines)
    assert all(set(item) == {"phrase", "masks", "score"} for line in lines for turn in line["turns"]
               for item in turn["objects"])  # fmt: skip
    found = results(toy_run)
    assert found["samples"] == {"scored": 3, "failed": 0, "skipped": 2}
    assert (found["benchmark"], found["version"], found["split"], found["preset"]) == (
        "toy_world",
        6,
        "val",
        "consistent",
    )
    assert len(found["checkpoint"]) == 16 and found["commit"] and "evaluate.py" in found["command"]
    assert {row["name"] for row in found["scores"]} >= {"mask mIoU", "choice between the twins", "accuracy, motion"}
    assert "3 questions scored, 0 failed, 2 not asked." in (toy_run / "results.md").read_text(encoding="utf-8")


def test_scores_come_from_the_file_alone(toy_run, tmp_path, monkeypatch, capsys):
    shutil.copytree(toy_run, tmp_path / "copy")
    monkeypatch.setattr(evaluation_run, "load", lambda arguments: pytest.fail("the model was loaded"))
    arguments = ["--benchmark", "toy_world", "--option", "clips=5", "--score_only"]
    assert evaluate.main([*arguments, "--output", str(tmp_path / "copy")]) == 0
    assert results(tmp_path / "copy")["scores"] == results(toy_run)["scores"]
    assert "mask mIoU" in capsys.readouterr().out
    assert evaluate.main([*arguments, "--output", str(tmp_path / "none")]) == 1
    assert "There are no predictions" in capsys.readouterr().err


def test_predictions_from_elsewhere_can_be_scored(toy_run, tmp_path, capsys):
    shutil.copy(toy_run / PREDICTIONS, tmp_path)
    arguments = ["--benchmark", "toy_world", "--option", "clips=5", "--score_only", "--output", str(tmp_path)]
    assert evaluate.main(arguments) == 1 and "no run.json" in capsys.readouterr().err
    assert evaluate.main([*arguments, "--accept_foreign"]) == 0
    assert results(tmp_path)["scores"] == results(toy_run)["scores"]
    assert "Checkpoint `unknown`" in (tmp_path / "results.md").read_text(encoding="utf-8")


def test_a_run_that_goes_on_can_be_looked_at(toy_run, tmp_path):
    part = tmp_path / "predictions.part0.jsonl"
    shutil.copy(toy_run / PREDICTIONS, part)
    shutil.copy(toy_run / RUN, tmp_path)
    arguments = ["--benchmark", "toy_world", "--option", "clips=5", "--score_only", "--no_gallery"]
    assert evaluate.main([*arguments, "--output", str(tmp_path)]) == 0
    assert part.exists() and results(tmp_path)["samples"]["scored"] == 3


COMMAND = ["--model", str(CHECKPOINT), *PLAIN, "--output"]
ON_THE_CPU = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """The output folder of `python evaluate.py`, which nothing stopped."""
    output = tmp_path_factory.mktemp("whole")
    log = output.with_suffix(".txt")
    finish(start(log, run_script, ROOT / "evaluate.py", *COMMAND, output, **ON_THE_CPU), log)
    return output


def test_two_processes_give_the_file_and_the_scores_of_one(whole_run, tmp_path):
    log, output = tmp_path / "log.txt", tmp_path / "two"
    for process in start_group(log, evaluate.main, [*COMMAND, str(output)], **ON_THE_CPU):
        finish(process, log)
    one, two = ((folder / PREDICTIONS).read_bytes() for folder in (whole_run, output))
    assert one == two and len(one.splitlines()) == 3
    assert results(whole_run)["scores"] == results(output)["scores"]
    assert sorted(path.name for path in output.iterdir()) == [PREDICTIONS, "results.json", "results.md", RUN]


def test_a_killed_run_goes_on_where_it_stopped(whole_run, tmp_path):
    """SIGKILL after the first answer; the rest is asked, and the file is what a run without a stop writes."""
    log, output = tmp_path / "log.txt", tmp_path / "killed"
    arguments = [*COMMAND, str(output)]
    process, part = start(log, evaluate.main, arguments, **ON_THE_CPU), output / "predictions.part0.jsonl"
    while process.is_alive() and not (part.exists() and part.read_bytes().count(b"\n")):
        time.sleep(0.01)
    assert process.is_alive(), log.read_text(encoding="utf-8")[-2000:]
    process.kill()
    process.join()
    answered = part.read_bytes()
    assert 1 <= answered.count(b"\n") < 3 and not (output / PREDICTIONS).exists()
    finish(start(log, evaluate.main, arguments, **ON_THE_CPU), log)
    expected = (whole_run / PREDICTIONS).read_bytes()
    assert (output / PREDICTIONS).read_bytes() == expected and expected.startswith(answered.rpartition(b"\n")[0])
    assert results(output)["scores"] == results(whole_run)["scores"]


# Runs that are cut off, with scripted answers


def test_nothing_is_asked_twice(scripted, tmp_path, monkeypatch):
    assert run(tmp_path / "whole", *PLAIN) == 0
    asked, scripted.asked = scripted.asked, 0
    ask, seen = PredictionRunner.ask, []

    def interrupted(self, start, video, question):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(question.id)
        return ask(self, start, video, question)

    with monkeypatch.context() as patch:
        patch.setattr(PredictionRunner, "ask", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "cut", *PLAIN)
    part = tmp_path / "cut" / "predictions.part0.jsonl"
    part.write_bytes(part.read_bytes()[:-20])  # the second line was still being written
    before, scripted.asked = scripted.asked, 0
    assert run(tmp_path / "cut", *PLAIN) == 0
    assert 0 < before and scripted.asked < asked
    assert (tmp_path / "cut" / PREDICTIONS).read_bytes() == (tmp_path / "whole" / PREDICTIONS).read_bytes()
    scripted.asked = 0
    assert run(tmp_path / "cut", *PLAIN) == 0 and scripted.asked == 0


def count_calls(monkeypatch, *names: str) -> dict[str, int]:
    """Counts the calls of methods of the toy world benchmark."""
    calls = dict.fromkeys(names, 0)

    def counted(name: str, method):
        def call(*arguments):
            calls[name] += 1
            return method(*arguments)

        return call

    for name in names:
        monkeypatch.setattr(ToyWorldBenchmark, name, counted(name, vars(ToyWorldBenchmark)[name]))
    return calls


def test_questions_and_measures_are_computed_once(scripted, tmp_path, monkeypatch):
    calls = count_calls(monkeypatch, "questions", "measure")
    assert run(tmp_path, *PLAIN) == 0
    assert calls == {"questions": 3, "measure": 3}
    before = results(tmp_path)["scores"]
    assert run(tmp_path, *PLAIN, "--score_only") == 0
    assert calls == {"questions": 6, "measure": 6} and results(tmp_path)["scores"] == before
    assert run(tmp_path, *PLAIN) == 0  # nothing left to ask: measures come from the file
    assert calls == {"questions": 9, "measure": 9} and results(tmp_path)["scores"] == before


def test_gallery_builds_the_questions_of_a_group_once(scripted, tmp_path, monkeypatch):
    calls = count_calls(monkeypatch, "questions", "measure")
    assert run(tmp_path, *TOY) == 0
    assert calls == {"questions": 3 + 3, "measure": 3}  # three groups are asked, and shown in three images


def test_a_larger_limit_asks_only_what_is_new(scripted, tmp_path):
    assert run(tmp_path, *PLAIN, "--limit", "1") == 0
    first = (tmp_path / PREDICTIONS).read_bytes()
    assert run(tmp_path, *PLAIN, "--limit", "2") == 0
    assert (tmp_path / PREDICTIONS).read_bytes().startswith(first)
    assert results(tmp_path)["samples"] == {"scored": 2, "failed": 0, "skipped": 3}


def test_groups_are_dealt_to_processes_whole(scripted, tmp_path, monkeypatch):
    assert run(tmp_path / "one", *PLAIN) == 0
    arguments = evaluate.parse(["--model", str(CHECKPOINT), *PLAIN])
    benchmark, files = open_benchmark("toy_world", clips=5), PredictionFiles(tmp_path / "two")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, names in ((1, ["1"]), (0, ["0", "2"])):
        monkeypatch.setenv("RANK", str(rank))
        evaluation_run.predict(arguments, benchmark, evaluation_run.asked_groups(benchmark, 3), files)
        lines = files.part(rank).read_text(encoding="utf-8").splitlines()
        assert [json.loads(line)["question"] for line in lines] == names
    files.merge(["0", "1", "2"])
    assert (tmp_path / "one" / PREDICTIONS).read_bytes() == files.merged.read_bytes()


# What can be wrong


def test_predictions_of_another_model_are_refused_and_can_be_taken(scripted, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(CHECKPOINT, other)
    (other / "generation_config.json").write_text("{}", encoding="utf-8")
    assert run(tmp_path / "run", *PLAIN) == 0
    assert run(tmp_path / "run", *PLAIN, model=str(other)) == 1
    assert "the digest of the model is" in (message := capsys.readouterr().err) and "--accept_foreign" in message
    assert run(tmp_path / "run", *PLAIN, "--preset", "published") == 1
    assert "preset is consistent there and published here" in capsys.readouterr().err
    assert run(tmp_path / "run", *PLAIN, "--accept_foreign", model=str(other)) == 0
    assert [one["model"] for one in results(tmp_path / "run")["before"]] == [str(CHECKPOINT)]
    table = (tmp_path / "run" / TABLE).read_text(encoding="utf-8")
    assert f"Some answers may be of an earlier run: Checkpoint `{CHECKPOINT}`" in table


def test_runs_of_earlier_versions_can_be_scored(scripted, tmp_path):
    """The preset `published` was called `release`."""
    assert run(tmp_path, *PLAIN, "--preset", "release") == 0
    about = json.loads((tmp_path / RUN).read_text(encoding="utf-8"))
    assert about["preset"] == "published"
    (tmp_path / RUN).write_text(json.dumps({**about, "preset": "release"}), encoding="utf-8")
    assert run(tmp_path, *PLAIN, "--preset", "published", "--score_only") == 0
    assert results(tmp_path)["preset"] == "published"


def test_a_corrupt_line_is_reported_with_its_number(scripted, tmp_path, capsys):
    assert run(tmp_path, *PLAIN) == 0
    lines = (tmp_path / PREDICTIONS).read_bytes().splitlines(keepends=True)
    (tmp_path / PREDICTIONS).write_bytes(b"".join([lines[0], b"{broken\n", *lines[2:]]))
    assert run(tmp_path, *PLAIN) == 1
    assert f"{PREDICTIONS}, line 2 is not a valid prediction" in capsys.readouterr().err
    (tmp_path / PREDICTIONS).write_bytes(lines[0] + b"".join(lines[2:]))
    assert run(tmp_path, *PLAIN) == 0
    assert (tmp_path / PREDICTIONS).read_bytes() == b"".join(lines)


def write_records(folder: Path) -> None:
    records = []
    for name in ("good", "bad"):
        (folder / name).mkdir(parents=True)
        for frame in range(2):
            Image.fromarray(np.full((24, 32, 3), 90, dtype=np.uint8)).save(folder / name / f"{frame}.png")
        mask = {"size": [24, 32], "counts": [0, 24 * 32]}
        records.append({
            "id": name, "video": {"path": name, "frames": ["0.png", "1.png"]}, "objects": {"a": {"masks": [mask] * 2}},
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "Segment it."}]},
                {"role": "assistant", "content": [{"type": "grounded", "text": "It", "objects": ["a"]}]},
            ],
        })  # fmt: skip
    (folder / "records.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")


@pytest.fixture
def no_caption_scores(monkeypatch):
    """Caption metrics start Java; a test about something else does without them."""
    monkeypatch.setattr("sama.metrics.captions.find_spec", lambda name: None)


def test_a_video_that_does_not_decode_is_counted_and_can_be_retried(scripted, tmp_path, capsys, no_caption_scores):
    write_records(tmp_path / "data")
    arguments = ["--benchmark", "json_lines", "--data_root", str(tmp_path / "data"), "--no_gallery"]
    whole = (tmp_path / "data" / "bad" / "1.png").read_bytes()
    (tmp_path / "data" / "bad" / "1.png").write_bytes(whole[:40])
    assert run(tmp_path / "run", *arguments) == evaluation_run.SOME_FAILED == 3
    assert "1 failed, first bad: " in capsys.readouterr().err
    found = results(tmp_path / "run")
    assert found["samples"] == {"scored": 1, "failed": 1, "skipped": 0}
    assert [failure["question"] for failure in found["failures"]] == ["bad"]
    assert {row["name"]: row["value"] for row in found["scores"]}["mIoU"] == 100.0
    (tmp_path / "data" / "bad" / "1.png").write_bytes(whole)
    scripted.asked = 0
    assert run(tmp_path / "run", *arguments) == 3 and scripted.asked == 0
    assert run(tmp_path / "run", *arguments, "--retry_failed") == 0 and scripted.asked == 1
    assert results(tmp_path / "run")["samples"] == {"scored": 2, "failed": 0, "skipped": 0}


def test_answers_about_one_folder_are_not_scored_against_another(scripted, tmp_path, capsys, no_caption_scores):
    for name in ("one", "two"):
        write_records(tmp_path / name)
    records = tmp_path / "two" / "records.jsonl"
    records.write_text(records.read_text(encoding="utf-8").replace("Segment it", "Find it"), encoding="utf-8")
    arguments = ["--benchmark", "json_lines", "--no_gallery", "--data_root"]
    assert run(tmp_path / "run", *arguments, str(tmp_path / "one")) == 0
    (tmp_path / "one").rename(tmp_path / "moved")  # where the files lie does not matter
    assert run(tmp_path / "run", *arguments, str(tmp_path / "moved")) == 0
    for more in ([], ["--score_only"]):
        assert run(tmp_path / "run", *arguments, str(tmp_path / "two"), *more) == 1
        message = capsys.readouterr().err
        assert "the digest of what is asked is" in message and "--accept_foreign" in message
    assert run(tmp_path / "run", *arguments, str(tmp_path / "two"), "--accept_foreign") == 0


def test_answers_of_another_dtype_are_not_mixed(scripted, tmp_path, capsys):
    assert run(tmp_path, *PLAIN, "--dtype", "float32") == 0
    assert run(tmp_path, *PLAIN, "--dtype", "bfloat16") == 1
    assert "dtype is float32 there and bfloat16 here" in capsys.readouterr().err


def test_results_say_who_asked_and_who_scored(scripted, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation_run, "commit_of", lambda folder: "asked")
    assert run(tmp_path, *PLAIN) == 0
    monkeypatch.setattr(evaluation_run, "commit_of", lambda folder: "scored")
    assert run(tmp_path, *PLAIN, "--score_only") == 0
    found = results(tmp_path)
    assert (found["commit"], found["scored_by"]["commit"], found["scored_by"]["version"]) == ("asked", "scored", 6)
    assert "evaluate.py" in found["scored_by"]["command"]


def test_a_picture_that_fails_loses_no_results(scripted, tmp_path, monkeypatch, capsys):
    def broken(*arguments):
        raise ValueError("the answers were made with other files")

    monkeypatch.setattr(evaluation_run, "write_gallery", broken)
    assert run(tmp_path, *TOY) == 1
    assert capsys.readouterr().err.strip().endswith("evaluate: the answers were made with other files")
    assert results(tmp_path)["samples"]["scored"] == 3


def test_json_lines_with_the_checkpoint(tmp_path, monkeypatch, no_caption_scores):
    write_records(tmp_path / "data")
    monkeypatch.setattr(evaluation_run, "load", lambda arguments: load_checkpoint())
    arguments = ["--benchmark", "json_lines", "--data_root", str(tmp_path / "data"), "--max_new_tokens", "3"]
    assert run(tmp_path / "run", *arguments) == 0
    assert results(tmp_path / "run")["samples"]["scored"] == 2
    assert (tmp_path / "run" / "gallery" / "best.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--benchmark", "json_lines"], "needs the folder of its data: pass --data_root"),
        (["--benchmark", "json_lines", "--data_root", "nowhere"], "missing nowhere/records.jsonl, nowhere"),
        (["--benchmark", "toys"], "There is no benchmark 'toys'; known are"),
        (["--benchmark", "toy_world", "--split", "train"], "no split 'train'"),
        (["--benchmark", "toy_world", "--option", "clips=x"], "'x', expected int"),
        ([*PLAIN, "--similarity_model", "nowhere"], "nowhere"),
        ([*PLAIN, "--judge_url", "http://localhost:1/v1"], "needs the name of its model: --judge_model"),
        ([*PLAIN, "--judge_url", "localhost", "--judge_model", "m"], "localhost"),
    ],
)
def test_one_sentence_for_what_is_missing(scripted, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.delenv("SAMA_DATA_ROOT", raising=False)
    assert run(tmp_path, *arguments) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("evaluate: ") and message in error


def test_command_line_that_cannot_be_meant(capsys):
    for arguments in (["--benchmark", "toy_world"], [*PLAIN, "--model", "m", "--option", "clips"]):
        with pytest.raises(SystemExit):
            evaluate.main(arguments)
    message = capsys.readouterr().err
    assert "--model is missing" in message and "NAME=VALUE" in message


def test_presets_reach_the_model_and_the_processor():
    arguments = evaluate.parse(["--model", str(CHECKPOINT), "--benchmark", "toy_world", "--preset", "published"])
    model, processor = evaluation_run.load(arguments)
    assert model.config.preset == processor.preset == "published"
    assert model.dtype.itemsize == 4 or model.device.type != "cpu"
