"""SAMA on every family of vision-language models: without aggregator it computes what the library's own model does."""

import numpy as np
import pytest
import torch
from checkpoint import count_calls
from processor_fixtures import noise_video
from tiny_backbones import CHECKED, tiny_backbone
from transformers import AutoModelForImageTextToText

from sama.configuration_sama import DENSE_FRAME_TOKEN, REGION_CELL_TOKEN
from sama.inputs_sama import VISUAL_INPUT_NAMES, SamaVisualInputs
from sama.serving.session import ChatSession


@pytest.fixture(scope="module", params=CHECKED)
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


# ---- regions of a Sa2VA


@pytest.fixture(scope="module")
def cells():
    """A Sa2VA on InternVL, which reads regions as copies of the tokens that they cover."""
    return tiny_backbone("internvl", with_aggregator=False, region_prompts="cells", seed=1)


def left_half(height: int = 24, width: int = 40) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[:, : width // 2] = True
    return mask


@torch.no_grad()
def test_a_region_is_a_copy_of_the_tokens_that_it_covers(cells):
    model, processor = cells
    left, whole = left_half(), np.ones((24, 40), bool)
    image = {"type": "image", "image": noise_video(1, 24, 40)[0]}
    regions = [{"type": "region", "frame": 0, "mask": mask} for mask in (left, whole)]
    content = [image, {"type": "text", "text": "Is "}, regions[0], {"type": "text", "text": " in "}, regions[1]]
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": "?"}]}]
    text, tags = processor.apply_chat_template(messages, tokenize=False), processor.family.tags
    shown = ", ".join(f"region{n}<vp>{tags.context * count}</vp>" for n, count in ((1, 2), (2, 4)))
    assert f"</img>\nThere are 2 part regions in the picture: {shown}.\nIs region1 in region2?" in text
    inputs = processor.apply_chat_template(messages)
    types = inputs["mm_token_type_ids"]
    visual = SamaVisualInputs(**{name: inputs.get(name) for name in VISUAL_INPUT_NAMES})
    embeds, _ = model.model.embed_inputs(inputs["input_ids"], types, visual)
    last = embeds[types == DENSE_FRAME_TOKEN][-4:].unflatten(0, (2, 2))  # the whole picture is the last tile
    expected = torch.cat([last[:, 0], last.flatten(0, 1)])
    torch.testing.assert_close(embeds[types == REGION_CELL_TOKEN], expected)


def test_a_chat_makes_masks_of_clicks(cells):
    model, processor = cells
    chat = model.start_chat(processor, image=noise_video(1, 24, 40)[0])
    reply = chat.ask("What is <region>?", [{"points": [[5, 5]], "frame": 0}], max_new_tokens=3, masks=False)
    assert reply.completion_tokens == 3
    with pytest.raises(ValueError, match="in the first question only, and 1 of 2 come in later ones"):
        chat.ask("And <region>?", [{"frame": 0, "mask": left_half()}], max_new_tokens=3)


def test_an_earlier_region_is_read_like_a_new_one(cells):
    """Where only the turns of a conversation are known, as after a restart."""
    model, processor = cells
    picture = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    region = {"frame": 0, "box": [4, 4, 30, 30]}
    first, second = (ChatSession(model.start_chat(processor, image=picture), max_new_tokens=3) for _ in range(2))
    list(first.ask("What is <region>?", [region]))
    second.restore(first.turns)
    (*_, done), (*_, other) = (session.ask("And now?") for session in (first, second))
    assert other.turn.reply.prompt_tokens == done.turn.reply.prompt_tokens


def test_regions_that_a_sa2va_cannot_read(cells):
    _, processor = cells
    region = {"type": "region", "frame": 0, "mask": left_half()}
    ask = lambda visual, region: processor.apply_chat_template(  # noqa: E731
        [{"role": "user", "content": [visual, {"type": "text", "text": "What is "}, region]}]
    )
    with pytest.raises(ValueError, match="reads regions of a still only"):
        ask({"type": "video", "video": noise_video(3, 24, 40)}, region)
    image = {"type": "image", "image": noise_video(1, 24, 40)[0]}
    with pytest.raises(ValueError, match="regions that are given as masks"):
        ask(image, {"type": "region", "frame": 0, "box": [1, 1, 9, 9]})
    _, processor = tiny_backbone("internvl", with_aggregator=False)
    with pytest.raises(ValueError, match="was not trained to read regions"):
        ask(image, region)
    with pytest.raises(ValueError, match="`region_prompts` must be cells or none without aggregator, got 'encoded'"):
        tiny_backbone("internvl", with_aggregator=False, region_prompts="encoded")


# ---- pixels and kept frames


def test_a_reset_keeps_the_frames_of_a_still(cells):
    model, processor = cells
    chat, region = model.start_chat(processor, image=noise_video(1, 24, 40)[0]), {"frame": 0, "mask": left_half()}
    calls = count_calls(model.model.backbone.vision_tower)
    for _ in range(2):
        chat.ask("What is <region>?", [region], max_new_tokens=3, masks=False)
        chat.reset()
    assert len(calls) == 1 and len(chat.state.frames) == calls[0] == len(chat.state.frame_features)


class OtherImageProcessor:
    """Stands for the image processor that needs torchvision: a saved one is loaded as it where that is installed."""

    def __init__(self, image_processor):
        self.__dict__.update(vars(image_processor))
        self.settings = image_processor.to_dict()

    def to_dict(self) -> dict:
        return self.settings | {"image_processor_type": "Qwen2VLImageProcessor"}


def test_qwens_pixels_come_from_the_image_processor_that_resizes_with_pil():
    _, processor = tiny_backbone("qwen3_vl")
    saved = processor.image_processor
    portable = processor.family.portable(OtherImageProcessor(saved))
    assert type(portable) is type(saved) and portable.to_dict() == saved.to_dict()
    assert processor.family.portable(saved) is saved


def test_a_frame_that_is_too_long_is_refused():
    _, processor = tiny_backbone("qwen2_5_vl")
    content = [{"type": "image", "image": np.zeros((8, 1700, 3), np.uint8)}, {"type": "text", "text": "What is it?"}]
    with pytest.raises(ValueError, match="1700x8 pixels has sides of a ratio of more than 200"):
        processor.apply_chat_template([{"role": "user", "content": content}])
