"""The launchers: the arguments it passes to Accelerate and train.py, parsed by train.py's own parser."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from transformers import CONFIG_MAPPING, AutoModel

from sama.train import parse


ROOT = Path(__file__).parents[2]
CONFIGS = {
    "cpu": "NO", "single_gpu": "NO", "ddp": "MULTI_GPU", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED", "fsdp2": "FSDP",
}  # fmt: skip


@pytest.fixture
def launched(tmp_path):
    """A function that runs a launcher with an `accelerate` that only prints its arguments."""
    command = tmp_path / "accelerate"
    command.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n', encoding="utf-8")
    command.chmod(0o755)

    def run(*arguments: str, script: str = "train_released", **variables: str) -> subprocess.CompletedProcess:
        environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"} | variables
        command = ["bash", f"scripts/{script}.sh", *arguments]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)

    return run


def split(done: subprocess.CompletedProcess) -> tuple[list[str], list[str]]:
    """The arguments of Accelerate and those of train.py."""
    words = done.stdout.splitlines()
    place = words.index("train.py")
    return words[:place], words[place + 1 :]


@pytest.mark.parametrize("size", ["1b", "4b", "8b"])
@pytest.mark.parametrize(
    ("variables", "processes", "accumulation"), [({}, 8, 4), ({"NODES": "4", "RANK": "3"}, 32, 1)]
)
def test_published_settings(launched, tmp_path, size, variables, processes, accumulation):
    launch, words = split(launched(size, "start", "--output_dir", str(tmp_path / "out"), **variables))
    assert launch[launch.index("--num_processes") + 1] == str(processes)
    assert launch[launch.index("--machine_rank") + 1] == variables.get("RANK", "0")
    assert launch[launch.index("--config_file") + 1] == "scripts/accelerate/zero2.yaml"
    words[words.index("--bf16") + 1] = "false"  # requires a GPU
    training, data, model = parse([*words, "--use_cpu", "true"])
    assert model.model_name_or_path == "start"
    assert (ROOT / data.mixture).is_file() and data.mixture == f"data_configs/sama_{size}.yaml"
    assert training.per_device_train_batch_size * training.gradient_accumulation_steps * processes == 64
    assert training.gradient_accumulation_steps == accumulation
    published = {
        "learning_rate": 4e-5, "adam_beta1": 0.9, "adam_beta2": 0.999, "weight_decay": 0.05, "warmup_steps": 0.05,
        "max_grad_norm": 1.0, "num_train_epochs": 1.0, "gradient_checkpointing": True,
        "save_total_limit": 10 if size == "4b" else 3,
    }  # fmt: skip
    assert {name: vars(training)[name] for name in published} == published
    assert training.lr_scheduler_type == "cosine" and training.optim == "adamw_torch"
    assert training.parts == ("aggregator", "seg_head", "mask_decoder", "projector")
    assert training.output_dir == str(tmp_path / "out")  # further flags take precedence


@pytest.mark.parametrize("config", ["single_gpu", "cpu"])
@pytest.mark.parametrize("script", ["train_released", "train_sama_qwen3vl_4b", "train_sama_internvl3_8b"])
def test_one_process_has_the_same_samples_per_update(launched, config, script):
    arguments = ["1b"] if script == "train_released" else []
    for variables, accumulation in (({}, 32), ({"GPUS": "1", "BATCH": "4"}, 16)):
        launch, words = split(launched(*arguments, "start", script=script, CONFIG=config, **variables))
        assert launch[launch.index("--num_processes") + 1] == "1"
        assert words[words.index("--gradient_accumulation_steps") + 1] == str(accumulation)
    for variables, found in (({"GPUS": "8"}, "8 x 1"), ({"NODES": "2"}, "1 x 2")):
        done = launched(*arguments, "start", script=script, CONFIG=config, **variables)
        assert done.returncode == 1 and not done.stdout
        assert f"CONFIG={config} is one process, but GPUS x NODES is {found}:" in done.stderr


def test_the_head_of_the_launcher_names_its_variables():
    text = (ROOT / "scripts" / "train_released.sh").read_text()
    head = "".join(line for line in text.splitlines(True) if line.startswith("#"))
    variables = set(re.findall(r"\$\{([A-Z]+)\b", text))
    assert "PORT" in variables and [name for name in variables if not re.search(rf"\b{name}\b", head)] == []


def test_fsdp2_wraps_the_layers_of_the_language_model(launched):
    for size, layer in (("1b", "Qwen2DecoderLayer"), ("8b", "LlamaDecoderLayer")):
        launch, _ = split(launched(size, "start", CONFIG="fsdp2"))
        assert launch[launch.index("--fsdp_transformer_layer_cls_to_wrap") + 1] == f"InternVLVisionLayer,{layer}"


@pytest.mark.parametrize(
    ("name", "mixture", "layers"),
    [
        ("qwen3vl_4b", "sama_4b", "Qwen3VLVisionBlock,Qwen3VLTextDecoderLayer"),
        ("internvl3_8b", "sama_8b", "InternVLVisionLayer,Qwen2DecoderLayer"),
    ],
)
def test_other_backbones_have_the_same_recipe(launched, name, mixture, layers):
    launch, words = split(launched("start", "--seed", "3", script=f"train_sama_{name}", CONFIG="fsdp2"))
    assert launch[launch.index("--fsdp_transformer_layer_cls_to_wrap") + 1] == layers
    released = split(launched(mixture.removeprefix("sama_"), "start", "--seed", "3", CONFIG="fsdp2"))[1]
    assert [word.replace(f"outputs/sama_{name}", f"outputs/{mixture}") for word in words] == released
    family = CONFIG_MAPPING["qwen3_vl" if "qwen" in name else "internvl"]()
    with torch.device("meta"):
        backbone = AutoModel.from_config(family)
    assert set(layers.split(",")) <= {type(module).__name__ for module in backbone.modules()}
    done = launched(script=f"train_sama_{name}")
    assert done.returncode != 0 and f"usage: scripts/train_sama_{name}.sh MODEL" in done.stderr


def test_errors_are_messages(launched):
    for arguments in ([], ["1b"]):
        done = launched(*arguments)
        assert done.returncode != 0 and "usage" in done.stderr
    done = launched("2b", "start")
    assert done.returncode == 1 and "unknown size 2b" in done.stderr
    done = launched("1b", "start", GPUS="5")
    assert (
        done.returncode == 1
        and "64 samples per update cannot be divided into 5 processes with batches of 2" in done.stderr
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_accelerate_reads_its_configurations(name):
    from accelerate.commands.config.config_args import load_config_from_file

    path = ROOT / "scripts" / "accelerate" / f"{name}.yaml"
    config = load_config_from_file(str(path))
    assert config.distributed_type == CONFIGS[name]
    assert config.use_cpu == (name == "cpu")
    deepspeed = yaml.safe_load(path.read_text(encoding="utf-8")).get("deepspeed_config")
    assert deepspeed is None or (ROOT / deepspeed["deepspeed_config_file"]).is_file()
