"""The memory estimate compared with values computed by hand."""

import pytest
import torch
from tiny_model import tiny_config, tiny_model
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.modeling_layers import GradientCheckpointingLayer

from sama.profiling.training_memory import (
    SETTINGS,
    STRATEGIES,
    Memory,
    Parameters,
    SavedTensors,
    Setting,
    Workload,
    build,
    count_parameters,
    estimate,
    main,
)


COUNT = Parameters(
    replicated_trained=80, replicated_frozen=40, shardable_trained=160, shardable_frozen=400, largest=10
)
BY_NAME = {setting.name: setting for setting in SETTINGS}


@pytest.mark.parametrize(
    ("strategy", "gpus", "expected"),
    [
        # 240 trained at 4 + 2 bytes, 440 frozen at 2; gradients 4 and, exchanged, 4 more; moments 8
        ("DDP", 1, Memory(240 * 6 + 440 * 2, 240 * 4, 240 * 8)),
        ("DDP", 8, Memory(240 * 6 + 440 * 2, 240 * 8, 240 * 8)),
        ("ZeRO-2", 1, Memory(680 * 2, 240 * 2, 240 * 12)),
        ("ZeRO-2", 8, Memory(680 * 2, 30 * 2, 30 * 12)),
        ("ZeRO-3", 1, Memory(680 * 2, 240 * 2, 240 * 12)),
        # 120 replicated, 560 / 8 sharded, two modules of 10 gathered
        ("ZeRO-3", 8, Memory(120 * 2 + 70 * 2 + 20 * 2, 30 * 2, 30 * 12)),
        ("FSDP2", 1, Memory(240 * 4 + 440 * 2, 240 * 4, 240 * 8)),
        ("FSDP2", 8, Memory(30 * 4 + 55 * 2 + 120 * 2 + 20 * 2, 30 * 4, 30 * 8)),
    ],
)
def test_states_of_each_strategy(strategy, gpus, expected):
    assert STRATEGIES[strategy](COUNT, gpus) == expected


def test_four_bits():
    count = Parameters(shardable_frozen=1000, four_bit=640)
    # half a byte, a byte for 64 and a float32 for 64 x 256
    assert STRATEGIES["ZeRO-2"](count, 1).parameters == 360 * 2 + 320 + 10 + 640 * 4 / 16384


class Layer(GradientCheckpointingLayer):
    """Two linear layers; autograd saves the input of each and the ReLU's output."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 32, bias=False), nn.Linear(32, 8, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(hidden_states).relu())


def test_saved_tensors_of_layers():
    model = nn.Sequential(Layer(), Layer(), Layer(), nn.Linear(8, 2, bias=False))
    saved = SavedTensors(model)
    with saved.watch():
        model(torch.zeros(4, 8))
    # Per layer its input, 4 x 8 floats, and the ReLU's output, 4 x 32; outside, the input of the last linear layer
    assert saved.total == 3 * (128 + 512) + 128
    assert saved.checkpointed == 3 * 128 + 512 + 128
    with torch.no_grad(), saved.watch():
        model(torch.ones(4, 8))
    assert saved.total == 3 * (128 + 512) + 128


def test_weights_are_not_activations():
    layer = nn.Linear(8, 32, bias=False)
    saved = SavedTensors(layer)
    with saved.watch():
        layer(torch.zeros(4, 8, requires_grad=True))
    assert saved.total == 4 * 8 * 4


SMALL = Workload(batch=1, tokens=64, labels=8, questions=1, question_tokens=8, frames=4, sam_frames=1, objects=2)


@pytest.fixture(scope="module")
def estimated():
    return {name: estimate(tiny_config(), BY_NAME[name], SMALL) for name in ("published", "full")}


def test_parameters_of_each_setting(estimated):
    with FakeTensorMode():  # a step of training adds nothing here
        counts = {
            name: count_parameters(build(tiny_config(), BY_NAME[name]), BY_NAME[name]) for name in ("LoRA", "QLoRA")
        }
    counts |= {name: count for name, (count, _) in estimated.items()}
    model = tiny_model()
    parts = dict(model.named_parameters())
    total = sum(parameter.numel() for parameter in parts.values())
    heads = sum(parameters.numel() for name, parameters in parts.items()
                if "sam.mask_decoder.iou_prediction" in name or "sam.mask_decoder.pred_obj" in name)  # fmt: skip
    published = sum(
        sum(parameter.numel() for parameter in part.parameters())
        for part in (
            model.model.context_aggregator, model.model.region_encoder, model.model.seg_projection,
            model.model.backbone.multi_modal_projector, model.model.mask_tracker.sam.mask_decoder,
        )
    ) - heads  # fmt: skip
    assert counts["published"].trained == published
    # Width 32, keys and values 16, feed-forward 64, two layers: in + out of q, k, v, o, gate, up, down
    ends = 2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 64)
    assert counts["LoRA"].trained == published + 2 * 128 * ends
    matrices = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64
    assert counts["QLoRA"].four_bit == 2 * matrices
    tower = sum(parameter.numel() for parameter in model.model.backbone.vision_tower.parameters())
    language = sum(parameter.numel() for parameter in model.model.backbone.language_model.parameters())
    assert counts["full"].trained == published + tower + language + 300 * 32
    assert counts["full"].largest == max(300 * 32, matrices + 32 + 16 + 16 + 64)  # biases of q, k and v, two norms
    for name in ("published", "full"):
        count = counts[name]
        assert count.trained + count.replicated_frozen + count.shardable_frozen == total


def test_activations_grow_with_what_is_trained(estimated):
    published, full = estimated["published"][1], estimated["full"][1]
    assert 0 < published.checkpointed < published.total < full.total


def test_activations_grow_with_the_text():
    nothing = Setting("head", parts=("seg_head",))
    short = estimate(tiny_config(), nothing, SMALL)[1].total
    long = estimate(tiny_config(), nothing, Workload(**vars(SMALL) | {"tokens": 128}))[1].total
    assert long > short


@pytest.mark.slow
def test_table(capsys, monkeypatch, tmp_path):
    tiny_config().save_pretrained(tmp_path)
    arguments = ["training_memory.py", "--config", str(tmp_path), "--gpus", "2", "--tokens", "32", "--detail"]
    monkeypatch.setattr("sys.argv", arguments)
    main()
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(table) == 4 * 4 - 2 + 2 and len({line.count("|") for line in table}) == 1


def test_a_configuration_that_cannot_be_estimated(capsys, monkeypatch, tmp_path):
    config = tiny_config()
    config.aggregator_config, config.region_prompts = None, "none"
    config.save_pretrained(tmp_path / "sa2va")
    for name, message in (("sa2va", "has no context aggregator"), ("missing", "missing")):
        monkeypatch.setattr("sys.argv", ["training_memory.py", "--config", str(tmp_path / name)])
        with pytest.raises(SystemExit):
            main()
        assert message in capsys.readouterr().err
