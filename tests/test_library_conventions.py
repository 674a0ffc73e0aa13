"""What users of other models of the library write works here too."""

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor, TextIteratorStreamer, TextStreamer, pipeline

from sama.rendered_text_sama import TextReader
from sama.templates_sama import CHAT_TEMPLATES, TURN_FORMATS, render_messages


ROOT = Path(__file__).parent.parent
TINY, CLIP = ROOT / "checkpoints" / "sama-tiny", str(ROOT / "assets" / "toy_world.mp4")
BOX = {"frame": 3, "box": [20, 20, 60, 60]}


@pytest.fixture(scope="module")
def model():
    return AutoModel.from_pretrained(TINY, trust_remote_code=True, dtype=torch.float32)


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(TINY, trust_remote_code=True)


@pytest.fixture(scope="module")
def image() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def question(*parts) -> list[dict]:
    return [{"role": "user", "content": list(parts)}]


def text_part(text: str) -> dict:
    return {"type": "text", "text": text}


def same(found, expected) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=0, rtol=0, msg=name)


# The model


def test_generate_returns_the_ids(model, processor):
    inputs = processor.apply_chat_template(question(text_part("Hi.")))
    ids = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert isinstance(ids, torch.Tensor)
    new = ids[:, inputs["input_ids"].shape[1] :]
    output = model.generate(**inputs, max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
    assert torch.equal(output.sequences[:, inputs["input_ids"].shape[1] :], new) and len(output.seg_states) == 1
    config = copy.deepcopy(model.generation_config)
    config.return_dict_in_generate = True
    assert torch.equal(model.generate(**inputs, generation_config=config, max_new_tokens=4).sequences, ids)


# Two steps: the template's text, then the processor


def test_text_of_the_template_with_its_video(processor):
    messages = [
        *question({"type": "video", "video": CLIP}, text_part("What is "), {"type": "region", **BOX}, text_part("?")),
        {"role": "assistant", "content": "<p> It </p> [SEG]."},
        *question(text_part("And "), {"type": "region", **BOX}, text_part(" then?")),
    ]
    expected = processor.apply_chat_template(messages)
    text = processor.apply_chat_template(messages, tokenize=False)
    # An answer is tokenized apart from its surroundings; in this conversation that makes no difference
    same(processor(text=text, videos=CLIP, regions=[BOX, BOX]), expected)
    same(processor(text=[text], videos=[CLIP], regions=[[BOX, BOX]], return_tensors="pt", padding=True), expected)


@pytest.mark.parametrize("turn_format", ["newlines", "newline_after", "no_newlines"])
def test_text_of_the_template_in_a_batch(processor, image, turn_format):
    conversations = [
        [
            {"role": "system", "content": "Be brief."},
            *question({"type": "image", "image": image}, text_part("What is this?")),
        ],
        question(text_part("Hi.")),
    ]
    expected = processor.apply_chat_template(conversations, turn_format=turn_format)
    texts = processor.apply_chat_template(conversations, turn_format=turn_format, tokenize=False)
    same(processor(text=texts, images=[[image], None]), expected)


def test_a_bare_question_becomes_a_turn(processor, image):
    expected = processor.apply_chat_template(question({"type": "image", "image": image}, text_part("What is this?")))
    same(processor(text="What is this?", images=image), expected)
    same(processor(text="What is this?", images=[image]), expected)
    region = {"type": "region", **BOX}
    asked = question({"type": "video", "video": CLIP}, text_part("What is "), region, text_part("?"))
    same(processor(text="What is <region>?", videos=[CLIP], regions=[BOX]), processor.apply_chat_template(asked))


def test_text_and_video_that_do_not_fit(processor, image):
    text = processor.apply_chat_template(question({"type": "video", "video": CLIP}, text_part("Hi.")), tokenize=False)
    with pytest.raises(ValueError, match="does not show the given video or image"):
        processor(text=text, images=image)
    with pytest.raises(ValueError, match="IMG_CONTEXT> tokens but no video or image was given"):
        processor(text=text)
    with pytest.raises(ValueError, match="1 videos were given for 2 texts"):
        processor(text=[text, text], videos=[CLIP])
    with pytest.raises(ValueError, match="The question has 1 <region> but 0 regions"):
        processor(text="What is <region>?", videos=CLIP)
    with pytest.raises(ValueError, match="either messages or text=, got neither"):
        processor()
    with pytest.raises(ValueError, match="content parts of the messages"):
        processor(question(text_part("Hi.")), videos=CLIP)


@pytest.mark.parametrize("key", ["path", "url", "video"])
def test_names_of_a_video(processor, key):
    expected = processor(text="Hi.", videos=CLIP)
    same(processor.apply_chat_template(question({"type": "video", key: CLIP}, text_part("Hi."))), expected)


# Keywords


def test_keywords_of_other_processors(processor):
    messages = question({"type": "video", "video": CLIP}, text_part("Hi."))
    expected = processor.apply_chat_template(messages)
    found = processor.apply_chat_template(
        messages, return_tensors="pt", padding=True, tools=None, processor_kwargs={"truncation": False}
    )
    same(found, expected)
    fewer = processor.apply_chat_template(messages, processor_kwargs={"num_frames": 4})
    assert fewer["num_context_frames"].tolist() == [4]
    assert processor(text="Hi.", videos=CLIP, num_frames=4)["num_context_frames"].tolist() == [4]


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"fps": 2}, "no argument 'fps'; use num_frames="),
        ({"max_length": 10}, "no argument 'max_length'; use fewer frames"),
        ({"truncation": True}, "supports only truncation=None, got True"),
        ({"padding": "max_length"}, "supports only padding=True, got 'max_length'"),
        ({"colour": 1}, "no argument 'colour'"),
        ({"num_frames": 0}, "num_frames must be a whole number from 1 on, got 0"),
        ({"num_frames": True}, "num_frames must be"),
        ({"processor_kwargs": {"padding": True}, "padding": True}, "processor_kwargs must be a dict of arguments not"),
    ],
)
def test_keywords_that_mean_nothing_here(processor, keywords, message):
    with pytest.raises(ValueError, match=message):
        processor.apply_chat_template(question(text_part("Hi.")), **keywords)


def test_an_answer_to_be_continued(processor):
    messages = [*question(text_part("Hi.")), {"role": "assistant", "content": "This is"}]
    text = processor.apply_chat_template(messages, tokenize=False, continue_final_message=True)
    assert text == "<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\nThis is"
    with pytest.raises(ValueError, match="needs a conversation that ends with an answer"):
        processor.apply_chat_template(messages[:1], continue_final_message=True)


def test_a_question_that_opens_no_answer_is_noticed(processor, caplog):
    processor.apply_chat_template(question(text_part("Hi.")), add_generation_prompt=False)
    assert "no answer is opened" in caplog.text


# Pipelines and streamers


def test_pipeline(model, processor, image):
    run = pipeline("image-text-to-text", model=model, processor=processor)
    messages = question({"type": "image", "image": image}, text_part("What is this?"))
    inputs = processor.apply_chat_template(messages)
    ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    expected = processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]
    options = {"max_new_tokens": 8, "generate_kwargs": {"do_sample": False}, "return_full_text": False}
    assert run(text=messages, **options)[0]["generated_text"].strip() == expected
    assert run(images=image, text="What is this?", **options)[0]["generated_text"].strip() == expected
    begun = [*messages, {"role": "assistant", "content": "This is"}]
    assert run(text=begun, max_new_tokens=4)[0]["generated_text"]


def test_auto_map_names_the_class_of_today():
    import json

    auto_map = json.loads((TINY / "config.json").read_text())["auto_map"]
    assert auto_map["AutoModelForMultimodalLM"] == auto_map["AutoModelForImageTextToText"]


def test_streamed_text_is_the_text_of_the_reply(model, processor, capsys):
    chat = model.start_chat(processor, video=CLIP)
    streamer = TextIteratorStreamer(processor.tokenizer, timeout=10)
    reply = chat.ask("What is <region>?", [BOX], streamer=streamer, masks=False)
    assert "[SEG]" in reply.tagged_text and "".join(streamer) == reply.text
    chat.reset()
    chat.ask("What is <region>?", [BOX], streamer=TextStreamer(processor.tokenizer), masks=False)
    assert capsys.readouterr().out == reply.text + "\n"
    chat.reset()
    inputs = processor(text="What is <region>?", videos=CLIP, regions=[BOX])
    ids = model.generate(
        **inputs, max_new_tokens=64, streamer=TextStreamer(processor, skip_prompt=True, skip_special_tokens=True)
    )
    assert capsys.readouterr().out == reply.text + "\n"
    new = ids[:, inputs["input_ids"].shape[1] :]
    assert processor.batch_decode(new, skip_special_tokens=True) == [reply.text]
    assert processor.decode(new[0], skip_special_tokens=True) == reply.text
    assert "[SEG]" in processor.batch_decode(new)[0]


# Copies


def test_copies(model, processor):
    expected = processor(text="Hi.", videos=CLIP)
    for twin in (copy.deepcopy(processor), pickle.loads(pickle.dumps(processor))):
        same(twin(text="Hi.", videos=CLIP), expected)
    chat = model.start_chat(processor, video=CLIP)
    for copied in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="A chat cannot be copied or pickled: .* start another"):
            copied(chat)


# Found in review


def test_an_open_answer_of_another_template(processor):
    messages = [*question(text_part("Hi.")), {"role": "assistant", "content": "The red ball rolls"}]
    for name in CHAT_TEMPLATES:
        text = processor.apply_chat_template(messages, chat_template=name, tokenize=False, continue_final_message=True)
        assert text.endswith("\nThe red ball rolls")


def test_decoding_of_batches_and_for_pipelines(processor):
    ids = processor.tokenizer(["The <p> man </p> [SEG] walks.", "Yes <p> it </p> [SEG] is."])["input_ids"]
    texts = ["The man walks.", "Yes it is."]
    assert processor.decode(ids, skip_special_tokens=True) == texts == processor.batch_decode(ids, True)
    for row, text in zip(ids, texts, strict=True):
        assert processor.decode(torch.tensor(row), skip_special_tokens=True) == text
        assert processor.post_process_image_text_to_text(torch.tensor([row])) == [text]
    assert processor.decode([], skip_special_tokens=True) == ""


def test_text_of_another_template_is_no_question(processor):
    messages = question({"type": "video", "video": CLIP}, text_part("Hi."))
    text = processor.apply_chat_template(messages, chat_template="phi3_chat", tokenize=False)
    with pytest.raises(ValueError, match="was not written by this processor's chat template"):
        processor(text=text, videos=CLIP)


def test_text_of_a_template_that_begins_with_a_token_is_known(processor):
    """The token stands in front of the system message, not of the question."""
    template, tokens = CHAT_TEMPLATES["internlm2_chat"], {"bos_token": "<s>"}
    reader = TextReader(template, tokens, processor.family.tags, TURN_FORMATS["newlines"])
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi."}]
    for start in (0, 1):
        assert reader.is_rendered(render_messages(messages[start:], template, tokens, True).text)
    assert not reader.is_rendered("Hi.")


@pytest.mark.parametrize(("first", "second"), [({}, {"num_frames": 12}), ({"num_frames": 12}, {})])
def test_both_steps_choose_as_many_frames(processor, first, second):
    video = np.zeros((100, 16, 16, 3), dtype=np.uint8)
    messages = question({"type": "video", "video": video}, text_part("Hi."))
    text = processor.apply_chat_template(messages, tokenize=False, **first)
    with pytest.raises(ValueError, match="context tokens for a question, but this call .* the same `num_frames`"):
        processor(text=text, videos=video, **second)
    assert "input_ids" in processor(text=text, videos=video, **first)


@pytest.mark.parametrize("regions", [[], [BOX, BOX]])
def test_regions_that_do_not_fit_the_text_of_the_template(processor, regions):
    part = {"type": "region", **BOX}
    messages = question({"type": "video", "video": CLIP}, text_part("What is "), part, text_part("?"))
    text = processor.apply_chat_template(messages, tokenize=False)
    with pytest.raises(ValueError, match=f"The text has 1 regions but {len(regions)} were given"):
        processor(text=text, videos=CLIP, regions=regions)


def test_text_of_the_template_is_not_longer_than_the_model_reads(processor):
    text = processor.apply_chat_template(
        question(text_part("so " * 9000)), tokenize=False, add_generation_prompt=False
    )
    with pytest.raises(ValueError, match="more than the 8192 that the model can read"):
        processor(text=text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text": 5}, "text must be a string or a list of at least 1 string, got 5"),
        ({"text": []}, r"text must be a string or a list of at least 1 string, got \[\]"),
        ({"text": "Hi.", "regions": 5}, "`regions` must be a list with one region for each <region>, got int"),
        ({"text": "Hi.", "padding": np.array([1, 2])}, "supports only padding=True"),
        ({"messages": [{"role": "user", "content": "Hi."}], "text": ""}, "either messages or text=, got both"),
        ({"messages": [{"role": "user", "content": "Hi."}], "chat_template": "nope"}, "'nope' is neither a jinja"),
        ({"messages": [{"role": "user", "content": "Hi."}], "chat_template": 5}, "'5' is neither a jinja"),
    ],
)
def test_arguments_of_wrong_types(processor, arguments, message):
    with pytest.raises(ValueError, match=message):
        processor(**arguments)


def test_a_failed_question_ends_the_librarys_stream(model, processor):
    streamer = TextIteratorStreamer(processor.tokenizer, timeout=10)
    with pytest.raises(ValueError, match="1 <region> but 0 regions"):
        model.start_chat(processor, video=CLIP).ask("What is <region>?", streamer=streamer)
    assert "".join(streamer) == ""
