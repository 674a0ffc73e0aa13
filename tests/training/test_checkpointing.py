"""Gradient checkpointing and frozen encoders: what a training step keeps for its backward pass, counted, and that its
gradients do not depend on it."""

from collections import Counter
from functools import partial

import pytest
import torch
from backbone_batches import few_frames, fresh_model, training_batch
from tiny_backbones import tiny_backbone
from tiny_trackers import tiny_mask_config
from torch import nn
from transformers import PreTrainedModel
from trl import ModelConfig

from sama import modeling_sama, modeling_sama_tracker
from sama.checkpointing_sama import checkpointed
from sama.inputs_sama import VISUAL_INPUT_NAMES, SamaVisualInputs
from sama.training.adapters import add_lora
from sama.training.parts import PUBLISHED_PARTS, freeze_all_but, parse_parts


torch.set_num_threads(1)  # the models are tiny

CASES = [("internvl", "sam2.1"), ("qwen2_5_vl", "edgetam"), ("qwen3_vl", "sam3")]
CHUNK = 2  # frames at once
ENCODERS = ("model.backbone.vision_tower.", "model.backbone.visual.", "model.mask_tracker.sam.vision_encoder.")


@pytest.fixture(scope="module", params=CASES, ids=" ".join)
def case(request):
    """A model, its processor and a training batch in float64."""
    backbone, tracker = request.param
    made = tiny_backbone(backbone, mask_config=tiny_mask_config(tracker).to_dict())
    batch = training_batch(few_frames(made[1]))
    exact = {
        name: value.double() for name, value in batch.items() if torch.is_tensor(value) and value.is_floating_point()
    }
    return made, batch | exact


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    for module in (modeling_sama, modeling_sama_tracker):
        monkeypatch.setattr(module, "FRAMES_AT_ONCE", CHUNK)


def model_of(case, parts=PUBLISHED_PARTS) -> nn.Module:
    model = fresh_model(case[0]).double()
    freeze_all_but(model, parts)
    return model


class Step:
    """A training step: its gradients; the bytes that autograd keeps, by module, each storage counted once and weights
    not; and how many outputs of each module require a gradient."""

    def __init__(self, model: nn.Module, batch: dict):
        self.known = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
        self.kept, self.with_gradient = Counter(), Counter()
        self.alive, self.inside = [], [""]
        hooks = []
        for name, module in model.named_modules():
            hooks.append(module.register_forward_pre_hook(partial(self.enter, name)))
            hooks.append(module.register_forward_hook(partial(self.leave, name)))
        model.zero_grad()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            with torch.autograd.graph.saved_tensors_hooks(self.pack, lambda tensor: tensor):
                loss = model(**batch, use_cache=False).loss
            for hook in hooks:
                hook.remove()
            loss.backward()
        self.gradients = {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
        self.alive.clear()

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.known:
            self.known.add(storage._cdata)
            self.alive.append(tensor)  # so that no address is used again
            self.kept[self.inside[-1]] += storage.nbytes()
        return tensor

    def enter(self, name: str, module: nn.Module, inputs: tuple) -> None:
        self.inside.append(name)

    def leave(self, name: str, module: nn.Module, inputs: tuple, output: object) -> None:
        self.inside.pop()
        found = output if isinstance(output, tuple) else (output,)
        self.with_gradient[name] += any(torch.is_tensor(value) and value.requires_grad for value in found)

    def in_encoders(self) -> tuple[int, int]:
        """Bytes kept within the two image encoders, without the projector, and outputs that require a gradient."""
        names = [
            name
            for name in {*self.kept, *self.with_gradient}
            if name.replace("base_model.model.", "").startswith(ENCODERS)
        ]
        names = [name for name in names if "merger" not in name]
        return sum(self.kept[name] for name in names), sum(self.with_gradient[name] for name in names)


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert expected and set(found) == set(expected)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-9, rtol=1e-6, msg=lambda text, n=name: f"{n} {text}")


def test_frozen_encoders_keep_nothing(case):
    model, batch = model_of(case), case[1]
    plain = Step(model, batch)
    for use_reentrant in (False, True):
        model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        step = Step(model, batch)
        assert plain.in_encoders() == step.in_encoders() == (0, 0)
        assert 2 * step.kept.total() < plain.kept.total()
        assert_same(step.gradients, plain.gradients)
    if case[0][0].config.backbone_config.model_type != "qwen3_vl":  # its patch embeddings are unknown to the library
        PreTrainedModel.enable_input_require_grads(model)
        library = Step(model, batch)  # what this test is for
        assert library.in_encoders()[1] and library.kept.total() > step.kept.total()


def test_trained_encoders_are_checkpointed(case):
    """Reentrant checkpointing loses the gradients of what it was not given as an input."""
    model, batch = model_of(case, parse_parts("all", memory_training=True)), case[1]
    plain = Step(model, batch)
    model.gradient_checkpointing_enable({"use_reentrant": True})
    step = Step(model, batch)
    assert 0 < step.in_encoders()[0] < plain.in_encoders()[0] and step.in_encoders()[1]
    assert_same(step.gradients, plain.gradients)


def test_adapters_behind_frozen_patch_embeddings_get_their_gradients(case):
    targets = r".*\.(vision_tower|visual|vision_encoder)\..*\.(q_proj|qkv)"
    options = ModelConfig(use_peft=True, lora_r=2, lora_dropout=0.0, lora_target_modules=targets)
    model, batch = model_of(case), case[1]
    model.gradient_checkpointing_enable({"use_reentrant": True})  # before anything is added or trained
    model = add_lora(model, options, ("seg_head",)).double()
    freeze_all_but(model, ("seg_head",))
    step = Step(model, batch)
    assert any(".lora_B." in name for name in step.gradients) and step.in_encoders()[1]
    assert all(gradient.any() for name, gradient in step.gradients.items() if ".lora_B." in name)
    model.gradient_checkpointing_disable()
    assert_same(Step(model, batch).gradients, step.gradients)


@pytest.mark.parametrize("case", CASES[:1], indirect=True, ids=" ".join)
def test_qlora_prepares_a_model_without_its_frozen_encoders(case):
    """A CPU does not compute in 4 bits, only the flag is set. What is frozen and not quantized keeps its dtype."""
    model, batch = model_of(case), case[1]
    model.is_loaded_in_4bit = True
    dtypes = {parameter.dtype for parameter in model.bfloat16().parameters()}
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model = add_lora(model, ModelConfig(use_peft=True, load_in_4bit=True, lora_r=2, lora_dropout=0.0), ("projector",))
    freeze_all_but(model, ("projector",))
    assert {parameter.dtype for parameter in model.parameters() if not parameter.requires_grad} == dtypes
    model.double()
    step = Step(model, batch)
    assert step.in_encoders() == (0, 0)
    assert all(gradient.any() for name, gradient in step.gradients.items() if ".lora_B." in name)
    model.gradient_checkpointing_disable()
    plain = Step(model, batch)
    assert step.kept.total() < plain.kept.total()
    assert_same(plain.gradients, step.gradients)


def test_frozen_encoders_work_in_chunks(case, monkeypatch):
    model, batch = model_of(case), case[1]
    family, tracker = model.model.family, model.model.mask_tracker
    encode_frames, encode_pixels = family.encode_frames, tracker.encode_pixels
    sizes = {"tower": [], "sam": []}

    def count_frames(*inputs):
        tokens = encode_frames(*inputs)
        sizes["tower"].append(len(tokens.features))
        return tokens

    def count_pixels(pixels, *settings):
        sizes["sam"].append(len(pixels))
        return encode_pixels(pixels, *settings)

    given = {name: value for name, value in batch.items() if name in VISUAL_INPUT_NAMES}
    pixels, grids = batch["pixel_values"], SamaVisualInputs(**given).with_counts_on_cpu().grids
    monkeypatch.setattr(family, "encode_frames", count_frames)
    monkeypatch.setattr(tracker, "encode_pixels", count_pixels)
    frames = model.model.encode_frames(pixels, grids)
    features = tracker.encode_frames(batch["sam_pixel_values"])
    assert all(len(found) > 1 and max(found) == CHUNK for found in sizes.values())
    for module in (modeling_sama, modeling_sama_tracker):
        monkeypatch.setattr(module, "FRAMES_AT_ONCE", 100)
    torch.testing.assert_close(vars(model.model.encode_frames(pixels, grids)), vars(frames))
    torch.testing.assert_close(vars(tracker.encode_frames(batch["sam_pixel_values"])), vars(features))
    assert [found[-1] for found in sizes.values()] == [len(frames.features), len(features.image)]


@pytest.mark.parametrize("case", CASES[:1], indirect=True, ids=" ".join)
@pytest.mark.parametrize("prompted", [True, False])
def test_levels_of_the_original_decoder_are_made_where_they_are_read(case, prompted):
    model, batch = model_of(case), case[1]
    calls = Counter()
    decoder = model.model.mask_tracker.original_mask_decoder
    for name in ("conv_s0", "conv_s1"):
        decoder.get_submodule(name).register_forward_pre_hook(lambda *_, n=name: calls.update([n]))
    flags = torch.ones_like(batch["sam_prompted"]) if prompted else batch["sam_prompted"]
    model(**{**batch, "sam_prompted": flags})
    # Clicks of the questions are decoded by the original decoder too, each frame for itself
    chunks = len(batch["region_prompt_pixel_values"]) + (
        0 if prompted else -(-len(batch["sam_pixel_values"]) // CHUNK)
    )
    assert calls == {"conv_s0": chunks, "conv_s1": chunks}


def test_a_layer_is_given_tensors_by_position():
    calls = []

    def checkpoint(function, *inputs):
        calls.append(inputs)
        return function(*inputs)

    def layer(first, second, third):
        return first * second + third

    one, two = torch.ones(2, requires_grad=True), torch.full((2,), 3.0)
    assert torch.equal(checkpointed(checkpoint, partial(layer, third=one), two, 2), 2 * two + 1)
    (given,) = calls
    assert [value is expected for value, expected in zip(given, (two, 2, one), strict=True)] == [True] * 3
    assert torch.equal(checkpointed(checkpoint, partial(layer, third=two), two, 2), 3 * two)
    assert len(calls) == 1
