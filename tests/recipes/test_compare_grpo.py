"""Comparison of supervision and reinforcement: both trainings, the questions, the table, and what is kept."""

import json
from argparse import Namespace
from pathlib import Path

import pytest
from checkpoint import CHECKPOINT

from sama.benchmarks.toy_world import ToyWorldBenchmark
from sama.evaluation.provenance import checkpoint_hash
from sama.processing_sama import SamaProcessor
from sama.recipes.sama_tiny import compare_grpo
from sama.recipes.sama_tiny.compare_grpo import (
    ALL_FRAMES,
    KINDS,
    TRAIN_FRAMES,
    ask,
    keep_settings,
    table,
    toy_mixture,
    train,
)
from sama.training.checkpoints import TrainingError
from sama.training.rewards import REWARDS, reward_masks


def rows(kind: str, hits: int, count: int) -> list[dict]:
    return [{"kind": kind, "answer": float(place < hits), "masks": 0.5} for place in range(count)]


def test_table_has_each_kind_with_its_interval():
    base, trained = rows("count_look", 1, 2) + rows("order", 0, 2), rows("count_look", 2, 2) + rows("order", 0, 2)
    lines = table({"base": base, "reinforced": trained}).splitlines()
    assert lines[0] == "| questions | n | base | reinforced |" and len(lines) == 4 + len(KINDS)
    assert lines[3] == "| count_look | 2 | 0.50 (0.09 to 0.91) | 1.00 (0.34 to 1.00) |"
    assert "| count_motion | 0 |  |  |" in lines
    assert lines[-2].startswith("| all | 4 | 0.25") and lines[-1] == "| track mIoU, all | 4 | 0.500 | 0.500 |"


@pytest.fixture
def options(tmp_path) -> Namespace:
    """One update of one prompt and two questions."""
    return Namespace(
        model=CHECKPOINT, to=tmp_path, steps=1, prompts=1, answers=2, questions=2, learning_rate=3e-6, seed=0, cpu=True
    )


@pytest.fixture(scope="module")
def processor():
    return SamaProcessor.from_pretrained(CHECKPOINT, trust_remote_code=True)


def test_results_of_other_settings_are_not_taken(options, monkeypatch):
    options.model = options.to / "model"
    options.model.mkdir()
    (options.model / "config.json").write_text("{}")
    keep_settings(options)
    monkeypatch.chdir(options.to.parent)
    keep_settings(Namespace(**vars(options) | {"to": Path(options.to.name)}))
    with pytest.raises(TrainingError, match="with learning_rate 3e-06, not 3e-05"):
        keep_settings(Namespace(**vars(options) | {"learning_rate": 3e-5}))
    (options.model / "config.json").write_text("{ }")  # another checkpoint under the same path
    with pytest.raises(TrainingError, match=r"with checkpoint \w{16}, not \w{16}"):
        keep_settings(options)
    settings = json.loads((options.to / "settings.json").read_text())
    keep = settings | {"checkpoint": checkpoint_hash(str(options.model))}
    for earlier in (keep | {"toy_world": "4"}, {name: keep[name] for name in keep if name != "toy_world"}):
        (options.to / "settings.json").write_text(json.dumps(earlier))
        with pytest.raises(TrainingError, match=f"with toy_world (4|unknown), not {ToyWorldBenchmark.version}"):
            keep_settings(options)


@pytest.mark.parametrize("name", ["supervised", "reinforced"])
def test_models_are_trained_and_asked(options, processor, monkeypatch, name):
    """One update each; a trained model is not trained again."""
    monkeypatch.setattr(compare_grpo, "DIALOGUES", 20)
    judged = []
    monkeypatch.setitem(REWARDS, "masks", lambda *pair: (judged.append(pair), reward_masks(*pair))[1])
    folder = train(name, options, processor)
    state = json.loads((folder / "trainer_state.json").read_text())
    assert state["global_step"] == 1 and state["log_history"]
    prompted = len(toy_mixture(processor, options.to, 0, 0)[0].prompted)
    assert len(judged) == (2 if name == "reinforced" else 0)
    assert all(prompted < answer.masks.shape[1] <= prompted + TRAIN_FRAMES for answer, _ in judged)  # short clips
    monkeypatch.setattr(compare_grpo, "load_model", lambda *words: pytest.fail("trained again"))
    assert train(name, options, processor) == folder
    rows = ask(folder, options, processor)
    assert len(rows) == 2 and {row["kind"] for row in rows} <= {*KINDS}
    assert all(0 <= row["masks"] <= 1 and row["answer"] in (0, 1) for row in rows)
    assert table({name: rows}).splitlines()[-1].startswith("| track mIoU, all | 2 |")


def test_masks_are_judged_on_tracked_frames(options, processor):
    for number in (0, TRAIN_FRAMES, ALL_FRAMES):
        mixture = toy_mixture(processor, options.to, 7, number)
        sample = next(one for one in map(mixture.__getitem__, range(20)) if one.objects)
        others = len(sample.video) - len(sample.prompted)
        assert others > TRAIN_FRAMES and len(sample.frames) - len(sample.prompted) == min(number, others)
