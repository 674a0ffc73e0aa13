"""The ablations: disabled parts are zero, dialogues are cut to a window of rounds, results are reused."""

import json
from argparse import Namespace

import pytest
import torch
from checkpoint import CHECKPOINT
from tiny_model import tiny_model

from sama.modeling_sama import SamaForConditionalGeneration
from sama.recipes.sama_tiny import ablations
from sama.recipes.sama_tiny.train_masks import AttributePrompts
from sama.toy_world.world import ToyWorld


BUDGET = {"steps": 1, "batch_size": 1, "learning_rate": 1e-3, "seed": 0, "clips": 1}


def test_context_tokens_are_zero():
    model = tiny_model()
    ablations.without_context(model)
    width = model.config.text_config.hidden_size
    frames, summaries = torch.randn(1, 3, 4, width), torch.randn(1, 3, 4, 32)
    question, videos = torch.ones(2, 5, dtype=torch.long), torch.zeros(2, dtype=torch.long)
    context = model.model.context_aggregator(frames, summaries, question, torch.ones_like(question), videos)
    assert context.shape == (2, 3, width) and not context.any()


def test_shape_features_are_zero_for_both_readers():
    model = tiny_model()
    ablations.without_shape(model)
    inner, side = model.model, model.config.region_mask_size
    frames, cells, masks = torch.randn(1, 4, 32), torch.ones(1, 4), torch.ones(1, side, side)
    for encoder in (inner.region_encoder, inner.context_aggregator.region_encoder):
        pooled, shape = encoder(frames, cells, masks)
        assert pooled.any() and not shape.any()


@pytest.mark.parametrize("rounds", [1, 3])
def test_dialogues_are_cut_to_a_window_of_rounds(rounds):
    settings = {
        "tasks": {"dialogue": 1},
        "turns": [4, 4],
        "things": [4, 4],
        "frames": [8, 8],
        "height": 32,
        "width": 32,
    }
    whole = ToyWorld(settings)
    cut = ablations.WindowedToyWorld(whole, rounds)
    firsts = set()
    for index in range(6):
        every, kept = whole.describe(index)["messages"], cut.describe(index)["messages"]
        first = every.index(kept[0])
        assert kept == every[first : first + 2 * rounds] and first % 2 == 0 and len(kept) == 2 * rounds
        firsts.add(first)
    assert len(firsts) > 1


def result(name: str, value: float | None, failed: int = 0) -> dict:
    row = {"score": "words: accuracy", "value": value, "interval": [0.2, 0.6], "count": 20, "chance": 0.125}
    return {"variant": name, "budget": BUDGET, "failed": failed, "scores": [row]}


def test_the_table_has_a_column_for_each_variant():
    text = ablations.report([result("full", 0.4), result("no-shape", None, failed=2)])
    header, _, row = text.splitlines()
    assert header.endswith("| n | chance | full model | without region shape feature (2 questions failed) |")
    assert row == "| words: accuracy | 20 | 0.12 | 0.40 ± 0.20 | - |"


def test_one_clip_has_no_interval():
    row = result("full", 0.4)["scores"][0] | {"interval": None}
    assert ablations.cell(row) == "0.40"


def start(folder) -> dict:
    """Placeholder folders of the model and the masks that the ablations start from."""
    for name in ("model", "masks"):
        (folder / name).mkdir()
    (folder / "masks" / "state.pt").write_bytes(b"masks")
    return {"model": folder / "model", "masks": folder / "masks", "start": None}


def test_one_step_of_a_variant_is_trained_and_saved(tmp_path, monkeypatch):
    """With sama-tiny; its answers are not evaluated."""
    model = SamaForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32)
    prompts = AttributePrompts.of_tracker(model.model.mask_tracker)
    (tmp_path / "masks").mkdir()
    # Of stage 1; without --start the model keeps its own
    other = {name: torch.zeros_like(value) for name, value in model.model.mask_tracker.state_dict().items()}
    state = {"tracker": other, "prompts": prompts.state_dict()}
    torch.save(state, tmp_path / "masks" / "state.pt")
    monkeypatch.setattr(ablations, "evaluate", lambda model, processor, benchmark: {"failed": 0, "scores": []})
    paths = {"model": CHECKPOINT, "masks": tmp_path / "masks", "start": None, "to": tmp_path / "to"}
    arguments = Namespace(**paths, **(BUDGET | {"batch_size": 2}))
    kept = ablations.run_variant("no-shape", arguments)
    assert kept == json.loads((tmp_path / "to" / "no-shape.json").read_text()) and kept["budget"]["start"] is None
    trained = SamaForConditionalGeneration.from_pretrained(tmp_path / "to" / "no-shape", dtype=torch.float32)
    moved = [not torch.equal(*pair) for pair in zip(trained.parameters(), model.parameters(), strict=True)]
    assert any(moved)
    for ours, theirs in zip(
        trained.model.mask_tracker.parameters(), model.model.mask_tracker.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_a_finished_variant_is_reused_and_another_budget_is_an_error(tmp_path):
    arguments = Namespace(to=tmp_path, **start(tmp_path), **BUDGET)
    kept = result("full", 0.4) | {"budget": ablations.budget(ablations.VARIANTS["full"], arguments)}
    (tmp_path / "full.json").write_text(json.dumps(kept))
    assert ablations.run_variant("full", arguments) == kept
    (tmp_path / "masks" / "state.pt").write_bytes(b"other")
    with pytest.raises(ValueError, match="'masks': "):
        ablations.run_variant("full", arguments)
    (tmp_path / "masks" / "state.pt").write_bytes(b"masks")
    arguments.steps = 2
    with pytest.raises(ValueError, match=r"'steps': 1.*'steps': 2"):
        ablations.run_variant("full", arguments)
