"""SAMA with aggregator and regions on every family of backbones: what must hold whatever the backbone is."""

import numpy as np
import pytest
import torch
from backbone_batches import (
    HEIGHT,
    NUM_FRAMES,
    WIDTH,
    conversations,
    few_frames,
    fresh_model,
    gradients,
    save_backbones,
    training_batch,
)
from checkpoint import count_calls, dictate
from processor_fixtures import mask_part, noise_video, user
from tiny_backbones import CHECKED, FAMILY, tiny_backbone
from transformers.quantizers.quantizers_utils import should_convert_module
from trl import ModelConfig

from sama.modeling_sama import SamaForConditionalGeneration
from sama.objects_sama import Region
from sama.processing_sama import SamaProcessor
from sama.training.adapters import NOT_QUANTIZED, add_lora
from sama.training.parts import freeze_all_but, part_of


CLOSE = {"atol": 2e-4, "rtol": 1e-3}
QWEN = [name for name in FAMILY if name.startswith("qwen")]


@pytest.fixture(scope="module", params=CHECKED)
def sama(request):
    model, processor = tiny_backbone(request.param)
    return model, few_frames(processor)


@pytest.fixture(scope="module", params=FAMILY)
def family(request):
    """One language model of each family, for what does not depend on the language model."""
    model, processor = tiny_backbone(request.param)
    return model, few_frames(processor)


@pytest.fixture(scope="module", params=QWEN)
def qwen(request):
    model, processor = tiny_backbone(request.param)
    return model, few_frames(processor)


@torch.no_grad()
def test_a_batch_is_each_conversation_alone(sama):
    model, processor = sama
    answer = "[SEG]a[SEG]"
    together = processor.apply_chat_template(conversations())
    logits = model(**together, logits_to_keep=1).logits[:, -1]
    states = model.generate(**together, return_dict_in_generate=True, **dictate(processor, answer)).seg_states
    for row, own_states, messages in zip(logits, states, conversations(), strict=True):
        alone = processor.apply_chat_template(messages)
        torch.testing.assert_close(row, model(**alone, logits_to_keep=1).logits[0, -1], **CLOSE)
        output = model.generate(**alone, return_dict_in_generate=True, **dictate(processor, answer))
        torch.testing.assert_close(own_states, output.seg_states[0], **CLOSE)


@torch.no_grad()
def test_regions_and_frames_are_read(family):
    """No two of these conversations are the same to the model: frames, question and regions all count."""
    model, processor = family
    mask = mask_part(2, (HEIGHT, WIDTH))
    frames = noise_video(NUM_FRAMES, HEIGHT, WIDTH)
    changed = frames.copy()
    changed[processor.choose_frames(processor.open_video(frames)).context[1]] //= 2  # a context frame, not a dense one
    other = {**mask, "mask": np.roll(mask["mask"], 12, 1)}
    variants = [
        [user({"type": "video", "video": shown}, "What is ", region, text)]
        for shown, region, text in (
            (frames, mask, "?"), (frames, other, "?"), (frames, {**mask, "frame": 5}, "?"), (frames, mask, "!"),
            (changed, mask, "?"),
        )
    ]  # fmt: skip
    logits = [model(**processor.apply_chat_template(one), logits_to_keep=1).logits[0, -1] for one in variants]
    for first in range(len(logits)):
        for second in range(first):
            assert not torch.allclose(logits[first], logits[second], rtol=1e-4, atol=1e-5), (first, second)


# ---- chat -----------------------------------------------------------------------------------------------------------

BOX = Region(frame=1, box=(2, 3, 20, 18))
CLICK = Region(frame=4, points=[(30, 12), (4, 4)], labels=[1, 0])
MASK = Region(frame=5, mask=mask_part(5, (HEIGHT, WIDTH))["mask"])
TURNS = [
    ("What is <region>?", [BOX], "A [SEG] b[SEG]."),
    ("And then?", [], "It."),
    ("Is <region> near <region>?", [CLICK, MASK], "<p>B</p>[SEG]"),
]


def seg_states(model, processor, messages: list) -> torch.Tensor:
    """States of the [SEG]s of all answers of a whole conversation, read at once."""
    inputs = processor.apply_chat_template(messages, add_generation_prompt=False, return_assistant_tokens_mask=True)
    is_seg = (inputs["input_ids"] == processor.seg_token_id) & (inputs.pop("assistant_masks") == 1)
    found = []
    handle = model.lm_head.register_forward_pre_hook(lambda _, args: found.append(args[0]))
    with torch.no_grad():
        model(**inputs)
    handle.remove()
    return found[0][is_seg]


def ask(model, processor, chat, question: str, regions: list, answer: str) -> torch.Tensor:
    """The [SEG] states of an answer that is given."""
    outputs, generate = [], model.generate
    model.generate = lambda **kwargs: outputs.append(generate(**kwargs)) or outputs[-1]
    chat.ask(question, regions, masks=False, **dictate(processor, answer))
    del model.generate
    return outputs[0].seg_states[0]


def test_a_chat_answers_as_the_whole_conversation_read_at_once(sama):
    """Regions in the first and the last turn, one of them on a frame that nothing else needs; [SEG] as the last token.
    What `generate` collects with a kept cache are the states of teacher forcing."""
    model, processor = sama
    chat = model.start_chat(processor, video=noise_video(NUM_FRAMES, HEIGHT, WIDTH))
    choice = processor.choose_frames(chat.video)
    assert {CLICK.frame, MASK.frame} - set(choice.context)
    states = torch.cat([ask(model, processor, chat, *turn) for turn in TURNS])
    assert len(states) == 3
    torch.testing.assert_close(states, seg_states(model, processor, chat.messages), **CLOSE)
    reply = chat.ask("Why?", max_new_tokens=4, masks=False)
    inputs = processor.apply_chat_template(chat.messages[:-1])
    whole = model.generate(**inputs, max_new_tokens=4)[0, inputs["input_ids"].shape[1] :]
    assert reply.tagged_text == processor.post_process_answer(whole).tagged_text
    assert reply.prefilled_tokens < reply.prompt_tokens / 2


def test_reset_and_branches_are_conversations_of_their_own(family):
    model, processor = family
    shown = noise_video(NUM_FRAMES, HEIGHT, WIDTH)
    chat = model.start_chat(processor, video=shown)
    ask(model, processor, chat, *TURNS[0])
    branch = chat.branch(1)
    ask(model, processor, chat, *TURNS[1])
    calls = count_calls(model.get_submodule(f"model.backbone.{model.model.family.vision_tower[0].rstrip('.')}"))
    found = ask(model, processor, branch, *TURNS[2])
    torch.testing.assert_close(found, seg_states(model, processor, branch.messages)[2:], **CLOSE)
    assert len(calls) <= 2 and len(branch.messages) == 4  # only the frames of the new regions
    chat.reset()
    found = ask(model, processor, chat, *TURNS[2])
    assert len(chat.messages) == 2
    torch.testing.assert_close(found, seg_states(model, processor, chat.messages), **CLOSE)


class Broken:
    """A logits processor that fails when it is used."""

    def __call__(self, *arguments):
        raise KeyboardInterrupt


def test_a_video_is_read_again_after_a_failure(family):
    """A failed question leaves the keys and values of the video, and a system message put in front makes them useless:
    the frames are read again, with all that belongs to them."""
    model, processor = family
    chat = model.start_chat(processor, video=noise_video(NUM_FRAMES, HEIGHT, WIDTH))
    with pytest.raises(KeyboardInterrupt):
        chat.ask("Who?", logits_processor=[Broken()])
    ask(model, processor, chat, *TURNS[1])
    fresh = chat.branch(0)
    fresh.add_messages([{"role": "system", "content": "Be brief."}])
    states = ask(model, processor, fresh, *TURNS[0])
    torch.testing.assert_close(states, seg_states(model, processor, fresh.messages), **CLOSE)


def test_a_chat_in_text_alone(family):
    model, processor = family
    chat = model.start_chat(processor)
    states = torch.cat([ask(model, processor, chat, text, [], "A[SEG]") for text in ("Hello?", "Again?")])
    torch.testing.assert_close(states, seg_states(model, processor, chat.messages), **CLOSE)


# ---- training -------------------------------------------------------------------------------------------------------


# Of the last layer of the temporal Q-Former only the queries are read, not the words
UNREAD = (".temporal_qformer.encoder.layer.1.intermediate.", ".temporal_qformer.encoder.layer.1.output.")
DEEPSTACK = "model.backbone.visual.deepstack_merger_list."


def test_every_trained_parameter_gets_a_gradient_and_checkpointing_changes_none(sama):
    model = fresh_model(sama).double()
    batch = {name: value.double() if torch.is_tensor(value) and value.is_floating_point() else value
             for name, value in training_batch(sama[1]).items()}  # fmt: skip
    expected = {name: grad for name, grad in gradients(model, batch).items() if grad is not None}
    parts = ("vision_tower", "projector", "language_model", "aggregator", "seg_head")
    names = [name for name, _ in model.named_parameters() if part_of(name) in parts]
    missing = [name for name in names if name not in expected or not expected[name].any()]
    assert not [name for name in missing if not any(part in name for part in UNREAD)]
    assert {part_of(name) for name in names} == set(parts)
    assert any(name.startswith(DEEPSTACK) for name in names) is (model.config.backbone_config.model_type == "qwen3_vl")
    expected = {name: gradient.clone() for name, gradient in expected.items()}
    model.gradient_checkpointing_enable()
    assert model.is_gradient_checkpointing
    found = gradients(model, batch)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-9, rtol=1e-6, msg=lambda text, n=name: f"{n} {text}")


def test_a_process_with_text_alone_touches_what_others_train(family, monkeypatch):
    """In distributed training a batch in text alone runs a blank frame: every parameter of the vision tower and the
    projector gets a gradient, of zero."""
    model = fresh_model(family)
    monkeypatch.setattr(type(model.model), "is_distributed_training", property(lambda self: True))
    inputs = dict(family[1].apply_chat_template(conversations()[3]))
    found = gradients(model, inputs | {"labels": inputs["input_ids"]})
    names = [name for name in found if part_of(name) in ("vision_tower", "projector")]
    assert names and all(found[name] is not None and not found[name].any() for name in names)


def test_lora_wraps_the_language_model_only_and_saves_the_projector(family, tmp_path):
    from peft import PeftModel

    model, processor = family
    options = ModelConfig(use_peft=True, lora_r=2, lora_dropout=0.0)
    parts = ("projector", "seg_head")
    wrapped = add_lora(fresh_model(family), options, parts)
    freeze_all_but(wrapped, parts)
    names = [name for name, parameter in wrapped.named_parameters() if parameter.requires_grad]
    adapters = [name for name in names if "lora_" in name]
    assert adapters and all(".backbone.language_model.layers." in name for name in adapters)
    layers, matrices = model.config.text_config.num_hidden_layers, 7
    assert len(adapters) == 2 * layers * matrices
    saved = {name.split(".modules_to_save.")[0] for name in names if "lora_" not in name}
    wanted = {part_of(name) for name in names if "lora_" not in name}
    assert wanted == set(parts) and len(saved) == {"internvl": 1, "qwen2_5_vl": 1, "qwen3_vl": 4}[kind_of(model)] + 2
    batch = training_batch(processor)
    found = gradients(wrapped, batch)
    assert all(found[name] is not None for name in names)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if parameter.requires_grad:
                parameter.sub_(0.1 * found[name])
    wrapped.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(fresh_model(family), tmp_path).eval()
    inputs = processor.apply_chat_template(conversations())
    with torch.no_grad():
        expected, before = wrapped.eval()(**inputs).logits, model(**inputs).logits
        torch.testing.assert_close(again(**inputs).logits, expected)
        torch.testing.assert_close(again.merge_and_unload()(**inputs).logits, expected, atol=1e-4, rtol=1e-3)
    assert not torch.allclose(before, expected, atol=1e-4)


def kind_of(model) -> str:
    return model.config.backbone_config.model_type


def test_a_vision_tower_with_its_projector_inside_is_saved_whole(family):
    parts = ("vision_tower", "projector")
    wrapped = add_lora(fresh_model(family), ModelConfig(use_peft=True, lora_r=2), parts)
    freeze_all_but(wrapped, parts)
    found = gradients(wrapped, training_batch(family[1]))
    names = [name for name in found if "lora_" not in name]
    assert {part_of(name) for name in names} == set(parts) and all(".modules_to_save." in name for name in names)
    assert all(found[name] is not None and found[name].any() for name in names)


def test_four_bits_are_for_the_language_model_alone(sama):
    """What bitsandbytes would convert with the names that training hands it, by the library's own rule."""
    linear = [name for name, module in sama[0].named_modules() if isinstance(module, torch.nn.Linear)]
    converted = [name for name in linear if should_convert_module(name, list(NOT_QUANTIZED))]
    assert converted == [name for name in linear if name.startswith("model.backbone.language_model.")]
    assert len(converted) == 7 * sama[0].config.text_config.num_hidden_layers


# ---- saved models ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return save_backbones(tmp_path_factory.mktemp("saved"))


@pytest.mark.parametrize("name", FAMILY)
def test_a_saved_model_is_the_same_on_any_device_map_and_near_in_bfloat16(folders, name):
    model, processor = tiny_backbone(name)
    inputs = few_frames(processor).apply_chat_template(conversations())
    again = SamaProcessor.from_pretrained(folders[name])
    for key, value in again.apply_chat_template(conversations()).items():
        assert torch.equal(value, inputs[key]), key
    loaded, info = SamaForConditionalGeneration.from_pretrained(
        folders[name], device_map="auto", output_loading_info=True
    )
    assert not any(info.values())
    with torch.no_grad():
        expected = model(**inputs).logits
        on_device = {key: value.to(loaded.device) for key, value in inputs.items()}
        torch.testing.assert_close(loaded(**on_device).logits.cpu(), expected, **CLOSE)
    half = SamaForConditionalGeneration.from_pretrained(folders[name], dtype=torch.bfloat16)
    inputs = dict(inputs)
    seg = {"return_dict_in_generate": True, **dictate(processor, "A[SEG]")}
    with torch.no_grad():
        found = half(**inputs, logits_to_keep=1).logits[:, -1].float()
        states = half.generate(**inputs, **seg).seg_states
    assert torch.cosine_similarity(found, expected[:, -1], dim=-1).min() > 0.99
    assert all(len(one) == 1 and one.isfinite().all() for one in states)


@pytest.mark.parametrize(("height", "width"), [(24, 40), (40, 16), (9, 9), (16, 16), (200, 20)])
def test_a_frames_grid_is_the_one_that_its_pixels_are_cut_by(qwen, height, width):
    _, processor = qwen
    image_processor = processor.image_processor
    picture = noise_video(1, height, width)[0]
    made = image_processor(images=[picture], return_tensors="pt")["image_grid_thw"][0] // image_processor.merge_size
    rows, columns = processor.family.frame_grid(image_processor, height, width)
    assert [rows, columns] == made[1:].tolist() and rows * columns <= processor.max_frame_tokens


@pytest.mark.parametrize(("height", "width"), [(40, 8000), (8000, 40), (20, 3990)])
def test_no_frame_has_more_tokens_than_is_said(qwen, height, width):
    """Long ones have one row of tokens, which may be more pixels than a frame has otherwise."""
    _, processor = qwen
    size = processor.image_processor.size
    processor.image_processor.size = size | {"shortest_edge": 16, "longest_edge": 128 * 28**2}
    try:
        rows, columns = processor.family.frame_grid(processor.image_processor, height, width)
        assert rows * columns <= processor.max_frame_tokens
    finally:
        processor.image_processor.size = size
