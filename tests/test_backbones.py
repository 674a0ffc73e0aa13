"""SAMA on every family of vision-language models: without aggregator it computes what the library's own model does."""

import pytest
import torch
from processor_fixtures import noise_video
from tiny_backbones import BACKBONES, tiny_backbone
from transformers import AutoModelForImageTextToText

from sama.configuration_sama import DENSE_FRAME_TOKEN


@pytest.fixture(scope="module", params=BACKBONES)
def sa2va(request):
    """A model without aggregator, its processor, and the library's model with the same weights."""
    model, processor = tiny_backbone(request.param, with_aggregator=False)
    library = AutoModelForImageTextToText.from_config(model.config.backbone_config).eval()
    own = {name.replace("model.backbone.", "model."): tensor for name, tensor in model.state_dict().items()}
    library.load_state_dict({name: own[name] for name in library.state_dict()})
    return model, processor, library


def conversation(*turns: str, height: int = 24, width: int = 40, frames: int = 7, kind: str = "video") -> list[dict]:
    """Questions about noise, with answers between them."""
    visual = {"type": kind, kind: noise_video(frames, height, width)[slice(None) if kind == "video" else 0]}
    messages = []
    for number, text in enumerate(turns):
        content = [*([visual] if number == 0 else []), {"type": "text", "text": text}]
        messages += [{"role": "user", "content": content}, {"role": "assistant", "content": "A ball [SEG]."}]
    return messages[:-1]


def library_inputs(library, inputs: dict) -> dict:
    """Our inputs as the library's model takes them: every frame is an image."""
    kept = {name: inputs[name] for name in ("input_ids", "attention_mask", "pixel_values")}
    if library.config.model_type == "internvl":
        return kept
    merge = library.config.vision_config.spatial_merge_size
    counts = inputs["num_context_frames"] + inputs["num_extra_frames"]
    grids = (inputs["frame_grids"] * merge).repeat_interleave(counts, 0)
    kept["image_grid_thw"] = torch.cat([torch.ones_like(grids[:, :1]), grids], 1)
    return kept | {"mm_token_type_ids": (inputs["mm_token_type_ids"] == DENSE_FRAME_TOKEN).long()}


@pytest.mark.parametrize("kind", ["video", "image"])
@torch.no_grad()
def test_logits_and_greedy_tokens_are_those_of_the_library(sa2va, kind):
    model, processor, library = sa2va
    inputs = processor.apply_chat_template(conversation("What is it?", kind=kind))
    expected = library_inputs(library, inputs)
    logits = model(**inputs).logits
    torch.testing.assert_close(logits, library(**expected).logits, atol=1e-5, rtol=1e-5)
    greedy = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    found = model.generate(**inputs, **greedy)
    assert torch.equal(found, library.generate(**expected, **greedy))


@torch.no_grad()
def test_a_batch_of_videos_of_different_sizes_is_each_alone(sa2va):
    model, processor, library = sa2va
    chosen = [conversation("What is it?"), conversation("Who is that there?", height=40, width=16, frames=3)]
    inputs = processor.apply_chat_template(chosen)
    logits = model(**inputs).logits
    torch.testing.assert_close(
        logits[:, -1], library(**library_inputs(library, inputs)).logits[:, -1], atol=1e-5, rtol=1e-5
    )
    for row, messages in zip(logits, chosen, strict=True):
        alone = processor.apply_chat_template([messages])
        single = model(**alone).logits[0]
        torch.testing.assert_close(row[-len(single) :], single, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_later_turns_with_a_kept_cache_are_those_of_the_library(sa2va):
    model, processor, library = sa2va
    chat = model.start_chat(processor, video=noise_video(7, 24, 40))
    messages = []
    for text in ("What is it?", "And then?", "Why?"):
        reply = chat.ask(text, max_new_tokens=6, masks=False)
        messages = chat.messages
        inputs = processor.apply_chat_template(messages[:-1])
        expected = library.generate(
            **library_inputs(library, inputs), max_new_tokens=6, do_sample=False, pad_token_id=0
        )[0, inputs["input_ids"].shape[1] :]
        assert reply.tagged_text == processor.post_process_answer(expected).tagged_text
        assert reply.prefilled_tokens < reply.prompt_tokens or text == "What is it?"
