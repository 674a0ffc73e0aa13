"""SAMA with aggregator and regions on every family of backbones: what must hold whatever the backbone is."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from checkpoint import count_calls, dictate
from processor_fixtures import assistant, box_part, language_tokenizer, mask_part, noise_video, qformer_tokenizer, user
from tiny_backbones import BACKBONES, TOKEN_PIXELS, tiny_backbone, tiny_backbone_config
from transformers import AutoConfig
from transformers.quantizers.quantizers_utils import should_convert_module
from trl import ModelConfig

from sama.configuration_sama import DENSE_FRAME_TOKEN
from sama.modeling_sama import SamaForConditionalGeneration
from sama.modeling_sama_backbones import Qwen25VLFamily, backbone_family
from sama.objects_sama import Region
from sama.processing_sama import SamaProcessor
from sama.prompts_sama import LANGUAGE_TAGS
from sama.training.adapters import NOT_QUANTIZED, add_lora
from sama.training.parts import freeze_all_but, parse_parts, part_of


HEIGHT, WIDTH, NUM_FRAMES = 24, 40, 6
CLOSE = {"atol": 2e-4, "rtol": 1e-3}
QWEN = [name for name in BACKBONES if name.startswith("qwen")]


def few_frames(processor: SamaProcessor) -> SamaProcessor:
    """Three context frames and two dense ones, so that a region may lie on a frame that is neither."""
    processor.max_context_frames, processor.num_dense_frames = 3, 2
    return processor


@pytest.fixture(scope="module", params=BACKBONES)
def sama(request):
    model, processor = tiny_backbone(request.param)
    return model, few_frames(processor)


@pytest.fixture(scope="module", params=QWEN)
def qwen(request):
    model, processor = tiny_backbone(request.param)
    return model, few_frames(processor)


def video(height: int = HEIGHT, width: int = WIDTH, frames: int = NUM_FRAMES) -> dict:
    return {"type": "video", "video": noise_video(frames, height, width)}


def click_part(frame: int) -> dict:
    return {"type": "region", "frame": frame, "points": [(30, 12), (4, 4)], "labels": [1, 0]}


def conversations() -> list[list[dict]]:
    """Videos of different sizes and lengths with masks, clicks and boxes, one of them over two turns, an image, and
    text alone."""
    return [
        [
            user(video(), "What is ", mask_part(2, (HEIGHT, WIDTH)), "?"),
            assistant("A ball [SEG]."),
            user("And ", click_part(4), " near ", box_part(1, (2, 3, 20, 18)), "?"),
        ],
        [user(video(40, 16, 3), "Who is ", box_part(1, (2, 3, 12, 30)), "?")],
        [user({"type": "image", "image": noise_video(1, 32, 24)[0]}, "What is ", box_part(0, (2, 3, 20, 18)), "?")],
        [user("Hello, how are you?")],
    ]


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
def test_regions_and_frames_are_read(sama):
    """No two of these conversations are the same to the model: their frames, their question and their regions count."""
    model, processor = sama
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
    found = [torch.zeros(0, model.config.text_config.hidden_size)]
    handle = model.model.seg_projection.register_forward_pre_hook(lambda _, args: found.append(args[0]))
    chat.ask(question, regions, **dictate(processor, answer))
    handle.remove()
    return torch.cat(found)


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


def test_reset_and_branches_are_conversations_of_their_own(sama):
    model, processor = sama
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


def test_a_video_is_read_again_after_a_failure(sama):
    """A failed question leaves the keys and values of the video, and a system message put in front makes them useless:
    the frames are read again, with all that belongs to them."""
    model, processor = sama
    chat = model.start_chat(processor, video=noise_video(NUM_FRAMES, HEIGHT, WIDTH))
    with pytest.raises(KeyboardInterrupt):
        chat.ask("Who?", logits_processor=[Broken()])
    ask(model, processor, chat, *TURNS[1])
    fresh = chat.branch(0)
    fresh.add_messages([{"role": "system", "content": "Be brief."}])
    states = ask(model, processor, fresh, *TURNS[0])
    torch.testing.assert_close(states, seg_states(model, processor, fresh.messages), **CLOSE)


def test_a_chat_in_text_alone(sama):
    model, processor = sama
    chat = model.start_chat(processor)
    states = torch.cat([chat_states(model, processor, chat, text) for text in ("Hello?", "Again?")])
    torch.testing.assert_close(states, seg_states(model, processor, chat.messages), **CLOSE)


def chat_states(model, processor, chat, question: str) -> torch.Tensor:
    outputs, generate = [], model.generate
    model.generate = lambda **kwargs: outputs.append(generate(**kwargs)) or outputs[-1]
    chat.ask(question, **dictate(processor, "A[SEG]"))
    del model.generate
    return outputs[0].seg_states[0]


# ---- training -------------------------------------------------------------------------------------------------------


def training_batch(processor: SamaProcessor) -> dict:
    """The answers of [`conversations`] with targets for each of their [SEG]s in two frames."""
    chosen = [[*messages, assistant("A <p>ball</p>[SEG].")] for messages in conversations()]
    chosen[2][-1] = chosen[3][-1] = assistant("Fine.")
    batch = processor.apply_chat_template(chosen, add_generation_prompt=False, return_assistant_tokens_mask=True)
    batch = dict(batch)
    labels = torch.where(batch.pop("assistant_masks") == 1, batch["input_ids"], -100)
    counts = (labels == processor.seg_token_id).sum(1).tolist()
    frames = [2 if count else 0 for count in counts]
    generator, size = torch.Generator().manual_seed(0), processor.sam_image_size
    return batch | {
        "labels": labels,
        "sam_pixel_values": torch.randn(sum(frames), 3, size, size, generator=generator),
        "sam_frame_counts": torch.tensor(frames),
        "sam_prompted": torch.tensor([True, False] * (sum(frames) // 2)),
        "target_masks": [
            torch.rand(count, num, 24, 32, generator=generator) > 0.5
            for count, num in zip(counts, frames, strict=True)
        ],
    }


def gradients(model, batch: dict) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**batch, use_cache=False).loss.backward()
    return {name: one.grad for name, one in model.named_parameters() if one.requires_grad}


def fresh_model(sama) -> SamaForConditionalGeneration:
    """Another model with the same weights, ready to be trained, without dropout."""
    model = SamaForConditionalGeneration(sama[0].config)
    model.load_state_dict(sama[0].state_dict())
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    freeze_all_but(model, parse_parts("all", memory_training=True))
    return model.train()


def test_every_trained_parameter_gets_a_gradient_and_checkpointing_changes_none(sama):
    model, batch = fresh_model(sama), training_batch(sama[1])


    expected = gradients(model, batch)
    missing = [name for name, grad in expected.items() if grad is None or not grad.any()]
    assert not [name for name in missing if part_of(name) != "memory"], missing
    assert {part_of(name) for name in expected} >= {"vision_tower", "projector", "language_model", "aggregator"}
    expected = {name: grad.clone() for name, grad in expected.items() if grad is not None}
    model.gradient_checkpointing_enable()
    assert model.is_gradient_checkpointing
    found = gradients(model, batch)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-4, msg=lambda text, n=name: f"{n} {text}")
