"""Inputs that do not fit a backbone end in one clear sentence."""

import pytest
import torch
from processor_fixtures import language_tokenizer, qformer_tokenizer
from test_backbone_properties import QWEN, conversations, few_frames
from tiny_backbones import TOKEN_PIXELS, tiny_backbone, tiny_backbone_config
from transformers import AutoConfig

from sama.configuration_sama import DENSE_FRAME_TOKEN
from sama.modeling_sama_backbones import Qwen25VLFamily, backbone_family
from sama.processing_sama import SamaProcessor
from sama.prompts_sama import LANGUAGE_TAGS


@pytest.fixture(scope="module", params=QWEN)
def qwen(request):
    model, processor = tiny_backbone(request.param)
    return model, few_frames(processor)


def without(name: str):
    return lambda inputs: inputs.pop(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("position_ids"), r"position_ids.*shape \(3, batch_size, length\), got none"),
        (lambda inputs: inputs.update(position_ids=inputs["position_ids"][0]), r"got those of shape \(1, \d+\)"),
        (without("frame_grids"), "`frame_grids` is needed"),
        (without("mm_token_type_ids"), "without `mm_token_type_ids`"),
        (without("pixel_values"), r"marks \d+ tokens as frames, context or regions, but 0 frames were given"),
        (lambda inputs: inputs.update(frame_grids=inputs["frame_grids"] + 1), r"\d+ rows.*\d+ patches"),
        (lambda inputs: inputs.update(dense_frames=inputs["dense_frames"][:1]), r"\d+ dense frame placeholders.*\d+"),
    ],
    ids=["positions", "plain positions", "grids", "types", "pixels", "other grids", "fewer frames"],
)
def test_inputs_that_lack_something_are_refused(qwen, change, message):
    model, processor = qwen
    inputs = dict(processor.apply_chat_template(conversations()[0]))
    change(inputs)
    with pytest.raises(ValueError, match=message):
        model(**inputs)


def test_kept_features_without_their_deep_stack_are_refused():
    model, processor = tiny_backbone("qwen3_vl")
    inputs = dict(few_frames(processor).apply_chat_template(conversations()[0]))
    pixels = inputs.pop("pixel_values")
    counts = inputs["num_context_frames"] + inputs["num_extra_frames"]
    with torch.no_grad():
        features = model.model.encode_frames(pixels, inputs["frame_grids"].repeat_interleave(counts, 0)).features
        with pytest.raises(ValueError, match="3 levels of deep-stack features.*`deepstack_features`"):
            model(**inputs, frame_features=features)


def test_a_frame_that_is_cut_is_refused(qwen):
    _, processor = qwen
    inputs = processor.apply_chat_template(conversations()[0])
    types = inputs["mm_token_type_ids"][0].tolist()
    cut = types[: types.index(DENSE_FRAME_TOKEN) + 3]
    grid = tuple(inputs["frame_grids"][0].tolist())
    with pytest.raises(ValueError, match=f"3 placeholders in a row, but {grid[0]} x {grid[1]} tokens"):
        processor.family.position_ids(cut, grid)


def test_a_batch_that_is_cut_is_refused(qwen):
    model, processor = qwen
    inputs = dict(processor.apply_chat_template(conversations()[0]))
    length = inputs["mm_token_type_ids"][0].tolist().index(DENSE_FRAME_TOKEN) + 3
    for name in ("input_ids", "attention_mask", "mm_token_type_ids", "position_ids"):
        inputs[name] = inputs[name][..., :length]
    with pytest.raises(ValueError, match="3 dense frame placeholders in the text but .* was the text cut"):
        model(**inputs)


@pytest.mark.parametrize("name", ["patch_size", "merge_size", "temporal_patch_size"])
def test_an_image_processor_of_another_vision_tower_is_refused(qwen, name):
    _, processor = qwen
    family: Qwen25VLFamily = processor.family
    sizes = family.patch_sizes()
    image_processor = type(processor.image_processor)(**{**sizes, name: sizes[name] + 1})
    with pytest.raises(ValueError, match=f"`{name}` is {sizes[name] + 1} in the image processor but {sizes[name]} in"):
        SamaProcessor(
            image_processor=image_processor,
            tokenizer=processor.tokenizer,
            qformer_tokenizer=processor.qformer_tokenizer,
            config=processor.config,
        )


def test_an_image_processor_of_another_family_is_refused():
    """InternVL's has no patches, and Qwen's no square."""
    internvl, qwen = (tiny_backbone(name)[1] for name in ("internvl", "qwen3_vl"))
    for own, other in ((internvl, qwen), (qwen, internvl)):
        with pytest.raises(ValueError, match=type(other.image_processor).__name__):
            SamaProcessor(
                image_processor=other.image_processor,
                tokenizer=own.tokenizer,
                qformer_tokenizer=own.qformer_tokenizer,
                config=own.config,
            )


def test_frames_that_keep_their_proportions_have_no_side():
    config = tiny_backbone_config("qwen3_vl")
    with pytest.raises(ValueError, match="keep their proportions.*`size`"):
        SamaProcessor(tokenizer=None, config=config, image_size=TOKEN_PIXELS * 4)


def test_a_tokenizer_without_the_placeholder_is_refused():
    tokenizer = language_tokenizer((*LANGUAGE_TAGS, "<|vision_start|>", "<|vision_end|>"))
    with pytest.raises(ValueError, match=r"The tokenizer lacks <\|image_pad\|>"):
        SamaProcessor(
            tokenizer=tokenizer, qformer_tokenizer=qformer_tokenizer(), config=tiny_backbone_config("qwen3_vl")
        )


def test_backbones_that_nobody_knows_are_refused():
    with pytest.raises(ValueError, match="The backbone is a 'llava', expected one of internvl, qwen2_5_vl, qwen3_vl"):
        backbone_family(AutoConfig.for_model("llava"))
    with pytest.raises(ValueError, match=r"transformers \d+\.\d+\.\d+ has no model of the type 'qwen9_vl'"):
        tiny_backbone_config("qwen3_vl", backbone_config={"model_type": "qwen9_vl"})
