"""
The worked example of docs/annotation.md, run once: 300 planned mistakes of all kinds, which the checks must find, and
nothing else. Then what happens to its files when a run is killed, stopped, repeated or given other words.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import processes
import pytest
import toy_mistakes
import toy_truth
import worked_example
from processor_fixtures import tiny_processor
from scripted_endpoint import KEY, by_rate, scripted_endpoint
from worked_example import (
    MODEL_CODES,
    NUM_MISTAKES,
    command,
    expected_rejections,
    make_example,
    read_rows,
    rejections,
    score_lines,
    scores,
)

from sama.annotation import command as annotate
from sama.annotation import prompts
from sama.annotation.calls import ModelChoice
from sama.annotation.endpoint import Endpoint, EndpointSettings
from sama.annotation.objects import read_scenes
from sama.annotation.pipeline import ERRORS, FILES, Run
from sama.annotation.problems import CODES
from sama.data.readers import READERS
from sama.data.validation import MixtureValidator


RESULTS = [f"{name}.jsonl" for name in (*FILES, ERRORS)]
SMALL = (4, 16)  # clips and mistakes of the examples that are run several times


@pytest.fixture(autouse=True)
def api_key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """The whole example, annotated."""
    made = make_example(tmp_path_factory.mktemp("example"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", KEY)
        assert worked_example.run(made) == 0
    return made


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A small example, annotated without interruption, and the bodies of its requests."""
    made = make_example(tmp_path_factory.mktemp("small"), *SMALL, seed=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", KEY)
        with worked_example.toy_endpoint(made) as server:
            assert annotate.main(command(made, server.url)) == 0
            asked = [json.dumps(request, sort_keys=True) for request in server.requests]
    assert len(set(asked)) == len(asked)
    return made, asked


def results(folder: Path) -> dict[str, bytes]:
    """The output files that must not depend on how a run went."""
    return {name: (folder / name).read_bytes() for name in RESULTS}


def with_output(made, name: str):
    """The same clips and mistakes with a new output folder."""
    folder = made.folder.parent / f"{made.folder.name}_{name}"
    folder.mkdir()
    shutil.copytree(made.folder / "clips", folder / "clips", copy_function=shutil.copy2)
    return made._replace(folder=folder)


# ---- the checks


def test_exact_checks_find_all_planned_mistakes_and_nothing_else(example, capsys):
    found = scores(example)
    with capsys.disabled():
        sys.stdout.write("\n" + "\n".join(score_lines(found)) + "\n")
    assert sum(one.planted for one in found.values()) == NUM_MISTAKES
    exact = {code for code, meaning in CODES.items() if meaning.exact}
    assert set(found) == exact | set(MODEL_CODES)  # every code is planned
    for code, one in found.items():
        assert (one.right, one.wrong) == (one.planted, 0), code


def test_only_mistakes_that_stay_are_rejected(example):
    assert rejections(example) == expected_rejections(example)
    rows = read_rows(example.output / "rejected.jsonl")
    assert all(row["reasons"] and all(reason["detail"] for reason in row["reasons"]) for row in rows)


def test_right_texts_that_look_wrong_are_kept_and_those_that_may_be_true_are_not_rejected(example):
    found = worked_example.near_misses(example)
    assert set(found) == {(False, "kept"), (True, "review")} and sum(found.values()) == NUM_MISTAKES // 5
    assert {one.kind for one in example.planted if not one.code} == set(toy_mistakes.NEAR_MISSES)


def test_a_person_gets_what_cannot_be_seen_and_a_sample(example):
    rows = read_rows(example.output / "review.jsonl")
    doubtful = {(row["record"], row["turn"], row["object"]) for row in rows if not row["audit"]}
    planned = {
        (f"{one.video}/{one.stage}", one.item - 1 if one.stage == worked_example.CONVERSATION else None)
        for one in example.planted
        if one.kind in toy_mistakes.FOR_A_PERSON
    }
    assert {(record, turn) for record, turn, _ in doubtful} == planned and len(doubtful) > 5
    kept = {row["id"] for row in read_rows(example.output / "records.jsonl")}
    audited = [row for row in rows if row["audit"]]
    assert 5 < len(audited) < 60 and all(row["record"] in kept and not row["reasons"] for row in audited)
    records = {row["id"]: row for row in read_rows(example.output / "review_records.jsonl")}
    assert [row["id"] for row in rows] == list(records)
    for row in rows:
        objects = row["masks_ref"]["objects"].values()
        assert set(objects) == set(records[row["id"]]["objects"]) and row["item_hash"] and row["frames"]


def test_everything_that_is_kept_is_true(example):
    """Also what was corrected: nothing is mended by the code itself."""
    truths = {truth.name: truth for truth in example.truths}
    files = {"records": "annotation/records.jsonl", "media": "clips"}
    kept = 0
    for record in READERS["json_lines"](files, example.folder):
        video, _, stage = record["id"].rpartition("/")
        truth, messages = truths[video], record["messages"]
        names = [one.name for one in truth.objects]
        for question, answer in zip(messages[::2], messages[1::2], strict=True):
            text = worked_example.tagged(question, answer, names, stage)
            told = {truth.told(number) for number in range(1, len(names) + 1)}
            near = toy_truth.planted_claims(truth, example.planted, toy_mistakes.RIGHT)
            assert text in truth.facts() | told | near
            kept += 1
        for name, item in record["objects"].items():
            index = names.index(name)
            assert tuple(item["masks"]) == truth.objects[index].masks
    counts = json.loads((example.output / "run.json").read_text())
    assert sum(counts["videos"].values()) == len(truths) and counts["videos"].get("error", 0) == 0
    objects = counts["items"].pop("objects")
    assert objects["given"] == sum(number for name, number in objects.items() if name != "given")
    for stage in counts["items"].values():
        assert stage["items"] == stage["kept"] + stage["review"] + stage["rejected"]
    assert kept == sum(stage["kept"] for stage in counts["items"].values())


def test_records_are_ready_for_training(example, monkeypatch, tmp_path):
    monkeypatch.setenv("SAMA_CACHE", str(tmp_path))
    mixture = worked_example.write_mixture(example)
    report = MixtureValidator(mixture, tiny_processor, root=str(example.folder), limit=6).run()
    assert report["problems"] == 0, report
    counts = report["sources"]["mine"]["counts"]
    assert counts["records"] == 6 and counts["questions"] >= 6 and counts["[SEG]"] > 0


def commands_of_the_page() -> list[list[str]]:
    page = (Path(__file__).parent.parent.parent / "docs" / "annotation.md").read_text(encoding="utf-8")
    return [shlex.split(line) for line in re.findall(r"^(python (?:train|evaluate)\.py .*)$", page, re.MULTILINE)]


@pytest.mark.slow
def test_the_commands_of_the_page_train_and_evaluate(example, monkeypatch, tmp_path):
    root = Path(__file__).parent.parent.parent
    environment = {**os.environ, "SAMA_DATA_ROOT": str(example.folder), "SAMA_CACHE": str(tmp_path / "cache")}
    worked_example.write_mixture(example)
    train, evaluate = commands_of_the_page()
    for words in (train, evaluate):
        words = [
            str(root / word) if word.endswith(".py") or word.startswith("checkpoints/") else word for word in words
        ]
        words = [word.replace("outputs/annotation_example", str(example.folder)) for word in words]
        subprocess.run([sys.executable, *words[1:]], cwd=tmp_path, env=environment, check=True)
    (results,) = tmp_path.rglob("results.json")
    assert json.loads(results.read_text())["scores"]


def test_every_record_has_its_origin(example):
    rows = {row["id"]: row for row in read_rows(example.output / "provenance.jsonl")}
    records = [row["id"] for row in read_rows(example.output / "records.jsonl")]
    reviewed = [row["record"] for row in read_rows(example.output / "review.jsonl")]
    assert {*records, *reviewed} == set(rows)
    for row in rows.values():
        assert row["video"]["licence"] == "cc0-1.0" and len(row["video"]["sha256"]) == 64
        assert row["writer"] == {"model": "writer", "revision": "", "host": "127.0.0.1", "terms_allow_training": "yes"}
        assert all((example.output / "store" / key[:2] / f"{key}.json").is_file() for key in row["keys"])
        assert len(row["keys"]) >= 2 and row["audited"] is False
    scored = [row for row in rows.values() if row["id"].endswith("conversation")]
    assert all("blind_right" in score for row in scored for score in row["scores"].values())


def test_no_file_holds_the_key_or_a_picture_of_a_request(example):
    for path in example.output.rglob("*"):
        if path.is_file() and path.suffix != ".jpg":
            content = path.read_bytes()
            assert KEY.encode() not in content
            assert b"base64" not in content or path.name == "report.html"
    assert (example.output / "report.html").stat().st_size > 10_000


# ---- repeated, killed, stopped, changed


def test_a_finished_run_asks_nothing_and_changes_nothing(small):
    made, _ = small
    before = results(made.output)
    with worked_example.toy_endpoint(made) as server:
        assert annotate.main(command(made, server.url)) == 0
        shutil.rmtree(made.output / "videos")  # the replies alone are enough, too
        assert annotate.main(command(made, server.url)) == 0
        assert server.requests == []
    assert results(made.output) == before


def test_other_words_of_a_prompt_ask_again_only_what_depends_on_them(small, monkeypatch):
    made, asked = small
    again = with_output(made, "prompt")
    shutil.copytree(made.output, again.output)
    monkeypatch.setattr(prompts, "VERIFY", prompts.VERIFY + " Answer in English.")
    with worked_example.toy_endpoint(again) as server:
        assert annotate.main(command(again, server.url)) == 0
        systems = {request["messages"][0]["content"].split("\n")[0] for request in server.requests}
    verified = sum(prompts.VERIFY.removesuffix(" Answer in English.") in request for request in asked)
    assert systems == {prompts.VERIFY} and len(server.requests) == verified > 0
    for name in ("records.jsonl", "rejected.jsonl"):
        assert (again.output / name).read_bytes() == (made.output / name).read_bytes()


@pytest.mark.parametrize("times", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_killed_runs_give_the_same_files(small, tmp_path, times):
    """Five runs are killed, or ten."""
    made, asked = small
    killed = with_output(made, f"killed-{times}")
    rng = np.random.default_rng(0)
    running, left = [], [0]
    models = toy_truth.ToyModels(made.truths, made.planted)

    def answer(request: dict) -> str:
        left[0] -= 1  # also by requests of a killed run that are still being answered
        if left[0] <= 0 and running[-1].is_alive():  # while this and other requests are in flight
            os.kill(running[-1].pid, signal.SIGKILL)
        return models.answer(request)

    with scripted_endpoint(answer, models.fault, models=("writer", "verifier", "guesser")) as server:
        log, arguments = tmp_path / "log", command(killed, server.url)
        # By the fifth request a reply has been stored, since four videos are asked about at a time; the killed runs
        # together store fewer than there are
        for moment in rng.permutation([1, 2, 3, 5, 6] * times).tolist():
            left[0] = moment
            running.append(processes.start(log, annotate.main, arguments, OPENAI_API_KEY=KEY))
            running[-1].join(60)
            assert running[-1].exitcode == -signal.SIGKILL, log.read_text()
            assert not (killed.output / "records.jsonl").exists()
        left[0] = len(asked) + 1
        stored, before = len(list((killed.output / "store").rglob("*.json"))), len(server.requests)
        processes.finish(processes.start(log, annotate.main, arguments, OPENAI_API_KEY=KEY), log)
        repeated, last = len(server.requests) - len(asked), len(server.requests) - before
    assert results(killed.output) == results(made.output)
    # No reply that came is paid for again: at most those that were in flight, of the 4 videos at a time
    assert repeated <= 5 * times * 4 and 0 < last == len(asked) - stored < len(asked)


def annotate_until(moment: int, arguments: list[str]) -> int:
    """Annotates in a process that is killed when it has written `moment` files and is about to put the last of them in
    its place."""
    number, put = 0, os.replace

    def counted(*names) -> None:
        nonlocal number
        number += 1
        if number == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        put(*names)

    os.replace = counted
    return annotate.main(arguments)


def test_runs_killed_while_they_write_give_the_same_files(small, tmp_path):
    """Ten runs that have every reply, killed at different files: the index of drawn frames, outputs, run.json."""
    made, _ = small
    killed, log = with_output(made, "killed-writing"), tmp_path / "log"
    shutil.copytree(made.output / "store", killed.output / "store")
    with worked_example.toy_endpoint(killed) as server:
        arguments = command(killed, server.url)
        for moment in np.random.default_rng(1).permutation([1, 2, 4, 6, 8, 9, 10, 11, 12, 13]).tolist():
            running = processes.start(log, annotate_until, moment, arguments, OPENAI_API_KEY=KEY)
            running.join(60)
            assert running.exitcode == -signal.SIGKILL, log.read_text(encoding="utf-8")
        assert list(killed.output.rglob(".*.part*"))  # what the last one left half written
        processes.finish(processes.start(log, annotate.main, arguments, OPENAI_API_KEY=KEY), log)
        assert not server.requests
    assert results(killed.output) == results(made.output)
    assert not list(killed.output.rglob(".*.part*"))


def test_a_budget_stops_the_run_and_a_larger_one_ends_it(small, capsys):
    made, _ = small
    stopped = with_output(made, "budget")
    with worked_example.toy_endpoint(stopped) as server:
        arguments = command(stopped, server.url)
        assert annotate.main([*arguments, "--budget", "60000 tokens"]) == 1
        assert "The budget of 60,000 tokens does not allow another call" in capsys.readouterr().err
        errors = read_rows(stopped.output / "errors.jsonl")
        assert errors and {row["class"] for row in errors} == {"stopped"}
        assert len(read_rows(stopped.output / "records.jsonl")) < len(read_rows(made.output / "records.jsonl"))
        assert annotate.main(arguments) == 0
    assert results(stopped.output) == results(made.output)


def test_faults_of_the_endpoint_change_nothing(small):
    made, _ = small
    models = toy_truth.ToyModels(made.truths, made.planted)
    faulty = by_rate(0.3, ["429 zero", "500", "503", "reset", "cut", "no JSON"], seed=3)

    def fault(number: int, request: dict, repetition: int) -> str | None:
        return faulty(number, request, repetition) or models.fault(number, request, repetition)

    folder = with_output(made, "faults").output
    with scripted_endpoint(models.answer, fault, models=("writer", "verifier", "guesser")) as server:
        endpoint = Endpoint(EndpointSettings(server.url, concurrency=4, backoff_s=0.001, tries=12))
        given = annotate.parse(command(made, server.url))
        choices = {
            role: ModelChoice(endpoint, name, terms="yes", host="127.0.0.1")
            for role, name in (("writer", "writer"), ("verifier", "verifier"), ("blind", "guesser"))
        }
        run = Run(folder, annotate.annotation_settings(given), choices)
        counts = run.run(read_scenes(given.videos, given.masks, given.name), 4)
        assert sum(call.fault is not None for call in server.calls) > 8
    assert counts.stopped is None and results(folder) == results(made.output)


def test_a_video_without_an_answer_is_an_error_row_and_the_others_are_kept(small, capsys):
    made, _ = small
    models, bad = toy_truth.ToyModels(made.truths, made.planted), made.truths[2].name

    def fault(number: int, request: dict, repetition: int) -> str | None:
        pictures = not request["messages"][0]["content"].startswith((prompts.BLIND, prompts.JUDGE))
        return "400" if pictures and models.clip_of(request).name == bad else models.fault(number, request, repetition)

    broken = with_output(made, "error")
    with scripted_endpoint(models.answer, fault, models=("writer", "verifier", "guesser")) as server:
        assert annotate.main(command(broken, server.url)) == annotate.INCOMPLETE
        (row,) = read_rows(broken.output / "errors.jsonl")
        assert (row["video"], row["class"]) == (bad, "request")
        printed = capsys.readouterr().out
        assert "1 error" in printed and "(see errors.jsonl)" in printed
    with worked_example.toy_endpoint(broken) as server:  # another run asks for this video alone
        assert annotate.main(command(broken, server.url)) == 0
        assert {
            models.clip_of(r).name for r in server.requests if not isinstance(r["messages"][1]["content"], str)
        } == {bad}
    assert results(broken.output) == results(made.output)


def test_licences_and_terms_must_be_known(small, tmp_path, capsys):
    made, _ = small
    arguments = command(made, "http://127.0.0.1:9/v1")
    for flag, words in (
        ("--video-licence", "The licence of toy/train"),
        ("--mask-licence", "The mask_licence of toy/train"),
        ("--writer-terms", "terms of the writer writer allow training on its output is unknown"),
    ):
        place = arguments.index(flag)
        left = [*arguments[:place], *arguments[place + 2 :], "--output", str(tmp_path / flag)]
        assert annotate.main(left) == annotate.INCOMPLETE
        rows = read_rows(tmp_path / flag / "errors.jsonl")
        assert len(rows) == SMALL[0] and words in rows[0]["message"]
    assert annotate.main([*arguments, "--blind-terms", "no", "--output", str(tmp_path / "no")]) == annotate.INCOMPLETE
    assert "do not allow training" in read_rows(tmp_path / "no" / "errors.jsonl")[0]["message"]
    capsys.readouterr()


# ---- the command line


def test_a_dry_run_estimates_and_asks_nothing(small, capsys):
    made, _ = small
    arguments = [*command(made, "http://127.0.0.1:9/v1"), "--output", "not_made", "--dry-run"]
    assert annotate.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("about, for 4 videos (0 others") and lines[-1].startswith("price: ")
    assert [line.split(":")[0] for line in lines[1:-1]] == ["writer", "verifier", "blind"]
    assert annotate.main([*arguments, "--refine-rounds", "0"]) == 0
    fewer = capsys.readouterr().out.splitlines()
    # Two answers about each of four videos, of which 30 % are sent back
    completions = [re.search("and ([0-9,]+) completion", one[1])[1] for one in (lines, fewer)]
    assert completions == ["15,600", "12,000"]
    assert annotate.main([*arguments, "--budget", "much"]) == 1 and "The budget is 'much'" in capsys.readouterr().err
    assert annotate.main([*arguments, "--writer-terms", "no"]) == 0
    lines = capsys.readouterr().out.splitlines()
    refused = "cannot be annotated: The terms of the writer writer do not allow training on its output"
    assert all(f"{truth.name} {refused}" in line for truth, line in zip(made.truths, lines, strict=False))
    assert "about, for 0 videos (4 others cannot" in lines[4]
    assert annotate.main([*arguments, "--relocate", "nowhere"]) == 1 and "nowhere" in capsys.readouterr().err
    assert not Path("not_made").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("--masks", "nowhere.jsonl"), "nowhere.jsonl: there is no such file"),
        (("--videos", "nowhere"), "nowhere: there is no such folder"),
        (("--endpoint", "ftp://x"), "ftp://x"),
        (("--frames", "1"), "At least 2 frames"),
        (("--audit-share", "2"), "audit_share 2.0"),
        (("--keep-iou", "0.1"), "review_iou not above keep_iou"),
        (("--blind-right", "0"), "blind_right 0"),
        (("--blind-tries", "1"), "blind_tries is 1 and blind_right 2: so many right answers are never reached"),
        (("--price", "writer"), "The price is 'writer'"),
        (("--budget", "much"), "The budget is 'much'"),
        (("--held-out", "nowhere"), "nowhere: there is no such folder"),
        (("--relocate", "nowhere"), "nowhere"),
    ],
)
def test_mistakes_of_the_command_line_are_one_sentence(small, tmp_path, capsys, change, words):
    made, _ = small
    arguments = [*command(made, "http://127.0.0.1:9/v1"), "--output", str(tmp_path), *change]
    assert annotate.main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("annotate: ") and words in error and error.count("\n") == 1


def test_a_folder_that_is_missing_is_found_before_a_model_is_loaded(small, tmp_path, capsys, monkeypatch):
    made, _ = small
    monkeypatch.setattr(annotate, "prepare", lambda *_: pytest.fail("a model is loaded"))
    arguments = [*command(made, "http://127.0.0.1:9/v1"), "--output", str(tmp_path / "made"), "--videos", "nowhere"]
    assert annotate.main(arguments) == 1
    assert "nowhere: there is no such folder" in capsys.readouterr().err
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(("extra", "words"), [(["--propose", "x"], "one of --masks"), (["--draw", "dots"], "dots")])
def test_wrong_options_are_refused(small, capsys, extra, words):
    with pytest.raises(SystemExit) as stop:
        annotate.parse([*command(small[0], "http://127.0.0.1:9/v1"), *extra])
    assert stop.value.code == 2 and words in capsys.readouterr().err
