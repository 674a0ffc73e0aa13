"""ZeRO-2, ZeRO-3 and FSDP2 with two processes on a CPU, with gradient checkpointing, against one process without it.
Each test checks the number of processes and the class of the wrapper, because some launches silently run independent
processes."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from distributed_worker import RATE, UPDATES, mixed_model, sharded_layers, totals
from processes import finish, free_port, run_script, start_group
from safetensors.torch import load_file
from tiny_model import tiny_model
from torch.distributed.run import __file__ as torchrun
from training_fixtures import toy_mixture
from transformers import AutoModel

from sama.training.parts import PUBLISHED_PARTS, part_of
from sama.training.sharding import REPLICATED, SHARDABLE


ROOT = Path(__file__).parents[2]
WORKER = ROOT / "tests" / "distributed_worker.py"
needs_deepspeed = pytest.mark.skipif(
    find_spec("deepspeed") is None,
    reason="deepspeed is not installed: pip install -e .[deepspeed]",
)
SMALL_MODEL = ROOT / "checkpoints" / "sama-tiny"  # large enough for ZeRO-3 to shard matrices
TRAINING = [
    "--model_name_or_path", str(SMALL_MODEL), "--use_cpu", "true",
    "--max_steps", "2", "--per_device_train_batch_size", "1", "--learning_rate", "1e-3", "--logging_steps", "1",
    "--dataloader_num_workers", "0", "--report_to", "none", "--save_strategy", "no", "--disable_tqdm", "true",
    "--turns", "1", "--warmup_steps", "0",
]  # fmt: skip


def training(folder: Path) -> list[str]:
    """The arguments of two updates on clips with regions and masks."""
    mixture = toy_mixture(folder, tasks={"dialogue": 1})
    return [*TRAINING, "--mixture", str(mixture), "--output_dir", str(folder / "run")]


def variables(folder: Path) -> dict[str, str]:
    # A build in the user's folder that is killed leaves a lock that blocks the next launch forever
    return {"OMP_NUM_THREADS": "1", "TORCH_EXTENSIONS_DIR": str(folder / "extensions")}


def launch(launcher: list[str], folder: Path, *words: str) -> dict:
    """Runs two processes of the worker; returns their reports."""
    command = [sys.executable, *launcher, str(WORKER), str(folder), *words]
    environment = os.environ | variables(folder) | {"PYTHONPATH": os.pathsep.join([str(ROOT.parent), *sys.path])}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def expected():
    """The weights after the same updates in one process."""
    model = mixed_model()
    optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], RATE)
    for pair in UPDATES:
        for batch in pair:
            model(**batch, **totals(pair), use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    before, after = mixed_model().state_dict(), model.state_dict()
    assert sum(not torch.equal(before[name], after[name]) for name in after) > 200
    assert max((before[name] - after[name]).abs().max() for name in after if after[name].is_floating_point()) > 1e-3
    return after


@pytest.fixture(scope="module", params=["forked", pytest.param("torchrun", marks=pytest.mark.slow)])
def sharded(request, tmp_path_factory):
    """Folder and reports of two processes that make the same updates in every way that is installed, and then train
    under ZeRO-3. One launch for all, and forked processes by default, since most of its time goes into imports."""
    folder = tmp_path_factory.mktemp(request.param)
    words = ["fsdp2"]
    if find_spec("deepspeed"):
        deepspeed = ["--deepspeed", str(ROOT / "scripts/accelerate/zero3.json")]
        words = ["zero2", "zero3", "fsdp2", "train", *training(folder), *deepspeed]
    if request.param == "torchrun":
        return folder, launch([torchrun, "--nproc_per_node", "2", "--master_port", free_port()], folder, *words)
    log = folder / "log.txt"
    for process in start_group(log, run_script, WORKER, folder, *words, **variables(folder)):
        finish(process, log)
    return folder, json.loads((folder / "report.json").read_text(encoding="utf-8"))


def assert_same_weights(file: Path, expected: dict[str, torch.Tensor]) -> None:
    found = torch.load(file)
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        # Gradients are sums in another order: differences of 1.1e-6 occur, beside updates of more than 1e-3
        torch.testing.assert_close(found[name], tensor, atol=5e-6, rtol=1e-4, msg=lambda text, n=name: f"{n}: {text}")


@needs_deepspeed
@pytest.mark.parametrize("stage", [2, 3])
def test_zero_equals_one_process(stage, sharded, expected):
    """One process has text only, the other frames, a region and masks: they use different parts."""
    folder, reports = sharded
    report = reports[f"zero{stage}"]
    assert (report["world"], report["wrapper"], report["stage"]) == (2, "DeepSpeedEngine", stage)
    names = [name for name, _ in tiny_model().named_parameters()]
    assert report["sharded"] == [name for name in names if stage == 3 and name.startswith(SHARDABLE)]
    assert_same_weights(folder / f"zero{stage}.pt", expected)


def test_fsdp2_equals_one_process(sharded, expected):
    folder, reports = sharded
    report = reports["fsdp2"]
    units = ["FSDPEmbedding", "FSDPInternVLVisionLayer", "FSDPLinear", "FSDPQwen2DecoderLayer", "FSDPQwen2RMSNorm"]
    assert report["units"] == [*units, "FSDPSamaForConditionalGeneration"]
    assert (report["world"], report["kinds"], report["num_units"]) == (2, ["DTensor"], 4)
    assert_same_weights(folder / "fsdp2.pt", expected)
    saved = folder / "fsdp2"
    assert report["wrapper"].startswith("FSDP") and (saved / "modeling_sama.py").is_file()
    assert not list(saved.glob("_fsdp*")) and "fsdp" not in (saved / "config.json").read_text(encoding="utf-8").lower()
    loaded = AutoModel.from_pretrained(saved, trust_remote_code=True)
    assert set(loaded.state_dict()) == set(expected)


@pytest.fixture(scope="module")
def by_accelerate(tmp_path_factory):
    """Folder and report of two processes that train under ZeRO-2."""
    folder = tmp_path_factory.mktemp("accelerate")
    launcher = [
        "-m", "accelerate.commands.launch", "--config_file", "scripts/accelerate/zero2.yaml",
        "--num_processes", "2", "--main_process_port", free_port(),
    ]  # fmt: skip
    return folder, launch(launcher, folder, "train", *training(folder))


@pytest.mark.slow
@needs_deepspeed
def test_train_under_zero2_by_accelerate(by_accelerate):
    folder, reports = by_accelerate
    report = reports["train"]
    assert (report["world"], report["wrapper"], report["stage"]) == (2, "DeepSpeedEngine", 2)
    check_run(report, folder / "run")


@needs_deepspeed
def test_train_under_zero3(sharded):
    folder, reports = sharded
    report = reports["train"]
    assert (report["world"], report["wrapper"], report["stage"]) == (2, "DeepSpeedEngine", 3)
    assert any(name.startswith("model.backbone.language_model.") for name in report["sharded"])
    assert not any(name.startswith(REPLICATED) for name in report["sharded"])
    check_run(report, folder / "run")


@pytest.mark.slow
@needs_deepspeed
def test_both_stages_train_alike(sharded, by_accelerate):
    """The same losses, of which the second comes after an update, and the same weights at the end."""
    (one, reports), (other, others) = sharded, by_accelerate
    assert reports["train"]["losses"] == pytest.approx(others["train"]["losses"], rel=1e-3)
    mine, theirs = (saved_weights(folder / "run") for folder in (one, other))
    for name in mine:
        torch.testing.assert_close(mine[name], theirs[name], atol=1e-3, rtol=1e-3, msg=lambda m, n=name: f"{n} {m}")


def saved_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint, which must be complete."""
    from sama.modeling_sama import SamaForConditionalGeneration

    model, info = SamaForConditionalGeneration.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    assert not any(info.values())
    return model.state_dict()


def check_run(report: dict, folder: Path) -> None:
    """Checks for finite losses, and a complete saved model whose trained parts have moved."""
    losses = torch.tensor(report["losses"])
    assert len(losses) == 2 and losses.isfinite().all()
    before, after = saved_weights(SMALL_MODEL), saved_weights(folder)
    assert set(load_file(folder / "model.safetensors")) == set(before)  # no legacy names of the library
    moved = {part_of(name) for name in before if not torch.equal(before[name], after[name])}
    assert moved == set(PUBLISHED_PARTS)


def test_fsdp2_units_are_shardable():
    model = tiny_model()
    assert sharded_layers(model) == ["InternVLVisionLayer", "Qwen2DecoderLayer"]
    names = {name for name, _ in model.named_parameters()}
    assert names == {name for name in names if name.startswith(SHARDABLE + REPLICATED)}
    config = (ROOT / "scripts/accelerate/fsdp2.yaml").read_text(encoding="utf-8")
    assert f"fsdp_transformer_layer_cls_to_wrap: {','.join(sharded_layers(model))}\n" in config


@pytest.mark.parametrize("kinds", [(False, True), (True, False), (True, True)])
def test_gradient_order_does_not_depend_on_the_batch(kinds, monkeypatch):
    from distributed_worker import sample

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda *group: 2)
    model, orders = mixed_model(), []
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    for seen, masks in ((False, False), kinds):
        order = []
        hooks = [
            parameter.register_post_accumulate_grad_hook(lambda _, name=name, order=order: order.append(name))
            for name, parameter in trained
        ]
        model(**sample(1, seen, masks), use_cache=False).loss.backward()
        orders.append(order)
        for hook in hooks:
            hook.remove()
    assert orders[0] == orders[1]
    assert sorted(orders[0]) == sorted(name for name, _ in trained)
