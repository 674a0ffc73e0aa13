"""Every benchmark asked of checkpoints/sama-tiny: questions fit the model, answers fit the scores."""

import json
import math
from pathlib import Path

import pytest
from benchmark_answers import ROOT, NoMeteor, opened
from fixture_sources import FIXTURES
from PIL import Image

from sama.benchmarks.benchmark import Prediction
from sama.benchmarks.registry import BENCHMARKS, open_benchmark
from sama.chat_sama import SamaChat
from sama.evaluate import main
from sama.evaluation import run as evaluation_run
from sama.evaluation.inference import PredictionRunner
from sama.evaluation.submission import check_submission
from sama.modeling_sama import SamaForConditionalGeneration
from sama.processing_sama import SamaProcessor


TINY = Path(__file__).parents[2] / "checkpoints" / "sama-tiny"
QUESTIONS, TOKENS = 2, 12
# Toy world and a person's own records go through whole runs in test_evaluate.py
NAMES = [name for name in BENCHMARKS if name not in ("toy_world", "json_lines")]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("pycocoevalcap.meteor.meteor.Meteor", NoMeteor)


@pytest.fixture(scope="module")
def tiny():
    if not TINY.is_dir():
        pytest.skip("checkpoints/sama-tiny does not exist: make it with recipes/sama_tiny/initialize.py")
    model = SamaForConditionalGeneration.from_pretrained(TINY, dtype="float32").eval()
    return model, SamaProcessor.from_pretrained(TINY)


def root_of(name: str) -> Path:
    return FIXTURES if name.startswith("sama_bench") else ROOT


def asked(tiny, benchmark, groups: int = 1) -> list[Prediction]:
    """The model's answers to the first questions, read back from their lines."""
    runner = PredictionRunner(*tiny, benchmark, TOKENS)
    lines = [
        json.dumps(prediction.to_dict())
        for group, names in list(benchmark.outline().items())[:groups]
        for _, prediction in runner.ask_group(group, names[:QUESTIONS])
    ]
    return [Prediction.from_dict(json.loads(line)) for line in lines]


def check(scores, predictions) -> None:
    assert [prediction.error for prediction in predictions] == [None] * len(predictions)
    assert len(scores.samples) == len(predictions)
    assert json.loads(json.dumps([sample.facts for sample in scores.samples], allow_nan=False)) is not None
    for row in scores.rows:
        assert row.value is None or (math.isfinite(row.value) and row.count)
        assert row.value is not None or row.reason


@pytest.mark.parametrize("name", NAMES)
def test_whole_run_over_the_first_question(tiny, name, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation_run, "load", lambda arguments: tiny)
    where = ["--data_root", str(root_of(name)), "--output", str(tmp_path / "run")]
    command = ["--model", str(TINY), "--benchmark", name, *where, "--max_new_tokens", str(TOKENS), "--limit", "1"]
    assert main(command) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))
    assert (results["benchmark"], results["samples"]["scored"], results["samples"]["failed"]) == (name, 1, 0)
    assert results["scores"] and results["annotations"]
    for row in results["scores"]:
        assert row["reason"] if row["value"] is None else math.isfinite(row["value"]) and row["count"]
    assert (tmp_path / "run" / "gallery" / "best.png").is_file()


def test_conversations_of_sama_bench_g(tiny):
    benchmark = opened("sama_bench_g", FIXTURES, asked="own,reference", preset="published")
    predictions = asked(tiny, benchmark)
    assert [len(prediction.turns) for prediction in predictions] == [2, 2]
    check(benchmark.score(predictions), predictions)


def test_system_messages_begin_the_conversation(tiny, tmp_path, monkeypatch):
    Image.new("RGB", (40, 20)).save(tmp_path / "a.png")
    messages = [
        {"role": role, "content": [{"type": "text", "text": text}]}
        for role, text in (("system", "Be brief."), ("user", "What is it?"), ("user", "And?"), ("system", "Be kind."))
    ]
    record = {"image": {"path": "a.png"}, "messages": messages}
    plain = {**record, "messages": messages[1:3]}
    (tmp_path / "records.jsonl").write_text("\n".join(map(json.dumps, (record, plain))), encoding="utf-8")
    asked_with, ask = [], SamaChat.ask
    monkeypatch.setattr(
        SamaChat, "ask", lambda chat, *args, **options: asked_with.append(chat.messages) or ask(chat, *args, **options)
    )
    predictions = asked(tiny, open_benchmark("json_lines", data_root=tmp_path))
    assert [prediction.error for prediction in predictions] == [None, None]
    system = [{"role": "system", "content": text} for text in ("Be brief.", "Be kind.")]
    assert [messages[:2] for messages in asked_with[:2]] == [system, system]
    assert [message["role"] for message in asked_with[1][2:]] == ["user", "assistant"]
    assert asked_with[2] == []  # the next question about the same picture has none


def test_run_and_zip(tmp_path, capsys):
    if not TINY.is_dir():
        pytest.skip("checkpoints/sama-tiny does not exist: make it with recipes/sama_tiny/initialize.py")
    where = ["--data_root", str(ROOT), "--split", "valid", "--output", str(tmp_path / "run")]
    command = ["--model", str(TINY), "--benchmark", "mevis", *where, "--max_new_tokens", str(TOKENS), "--no_gallery"]
    assert main([*command, "--submission", str(tmp_path / "mevis.zip")]) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["samples"] == {"scored": 3, "failed": 0, "skipped": 0}
    assert [row["value"] for row in results["scores"]] == [None] * 3
    assert check_submission(tmp_path / "mevis.zip", opened("mevis", split="valid")) == []
    # Other benchmarks have no server, which is said at once
    run = ["--model", str(TINY), "--data_root", str(ROOT), "--output", str(tmp_path / "other"), "--no_gallery"]
    assert main([*run, "--benchmark", "revos", "--submission", str(tmp_path / "revos.zip")]) == 1
    assert "revos has no challenge server" in capsys.readouterr().err and not (tmp_path / "other").exists()
