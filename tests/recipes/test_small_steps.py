"""Steps between the stages of sama-tiny: additional layers, and recovered prompts."""

from argparse import Namespace

import pytest
import torch
from checkpoint import CHECKPOINT

from sama.modeling_sama import SamaForConditionalGeneration
from sama.processing_sama import SamaProcessor
from sama.recipes.sama_tiny.deepen import deepen
from sama.recipes.sama_tiny.examples import TrainingExamples
from sama.recipes.sama_tiny.read_prompts import fit, gather
from sama.recipes.sama_tiny.train_masks import AttributePrompts


@pytest.fixture(scope="module")
def model():
    return SamaForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()


def test_new_layers_keep_the_outputs_and_get_gradients(model):
    deep = deepen(model, 2, 1, seed=0).eval()
    layers = deep.model.backbone.language_model.layers, deep.model.backbone.vision_tower.encoder.layer
    assert len(layers[0]) == model.config.text_config.num_hidden_layers + 2
    assert len(layers[1]) == model.config.vision_config.num_hidden_layers + 1
    ids, pixels = torch.arange(20, 40)[None], torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    wanted, found = (one(input_ids=ids, mm_token_type_ids=torch.zeros_like(ids)).logits for one in (model, deep))
    wanted_frames, found_frames = (one.model.encode_frames(pixels).features for one in (model, deep))
    assert torch.equal(wanted, found) and torch.equal(wanted_frames, found_frames)
    (found.square().mean() + found_frames.square().mean()).backward()
    assert all(layer.mlp.down_proj.weight.grad.any() for layer in layers[0])
    assert all(layer.lambda_1.grad.any() for layer in layers[1])


def test_recovered_prompts_fit_those_of_the_model(model):
    steps = {"mask_steps": 0, "probe_steps": 0, "dialogue_steps": 4, "batch_size": 4}
    arguments = Namespace(**steps, seed=0, device="cpu", num_workers=0)
    examples = TrainingExamples(
        SamaProcessor.from_pretrained(CHECKPOINT, trust_remote_code=True), model.config, arguments
    )
    gathered = gather(model, examples)
    blocks = [examples[block] for block in range(len(examples))]
    given = [example["targets"].get("looks", torch.zeros(0, 3)) for block in blocks for example in block]
    assert torch.equal(gathered["looks"], torch.cat(given).to(gathered["looks"]))
    assert len(gathered["found"]) > 10
    torch.manual_seed(0)
    frequencies = torch.randn(2, 8)
    true, prompts = AttributePrompts(frequencies), AttributePrompts(frequencies)
    with torch.no_grad():
        gathered["found"] = true(gathered["looks"], gathered["places"])
        elsewhere = true(gathered["looks"], gathered["places"].roll(1, 0))
    assert not torch.allclose(gathered["found"], elsewhere)
    before = fit(prompts, gathered, seed=0, steps=1)
    assert fit(prompts, gathered, seed=0, steps=200) < 0.5 * before
