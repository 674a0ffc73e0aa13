"""Everything that can be wrong with the input of the processor: one clear sentence each."""

import numpy as np
import pytest
import torch
from processor_fixtures import (
    INTERNVL_TAGS,
    assistant,
    box_part,
    language_tokenizer,
    noise_video,
    qformer_tokenizer,
    text_of,
    tiny_processor,
    user,
    video_part,
)

from sama.objects_sama import Region
from sama.prompts_sama import QFORMER_TAGS


torch.set_num_threads(1)


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


def region(**prompt):
    return {"type": "region", "frame": 0, **prompt}


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (region(frame=30, box=(0, 0, 5, 5)), "Frame 30 does not exist: 'array' has 30 frames"),
        (region(box=(0, 0, 31, 5)), r"box \(0.0, 0.0, 31.0, 5.0\) does not lie inside the 30x20 pixels"),
        (region(box=(5, 0, 2, 5)), r"second corner above or to the left of its first one .* \(x, y, width, height\)"),
        (region(box=(5, 2, 5, 9)), r"box \(5.0, 2.0, 5.0, 9.0\) has zero area"),
        (region(box=(5, 2, 5)), "takes 4 numbers .* got 3"),
        (region(box=(5, 2, 5, "a")), "takes 4 numbers .* got"),
        (region(box=7), "takes 4 numbers .* got 7"),
        (region(points=[(3, 5), (4,)]), r"list of \(x, y\) pairs"),
        (region(points=[(3, 5)], labels=["yes"]), "at least one 1; got"),
        ({"type": "region", "frame": "3", "box": (0, 0, 5, 5)}, "frame must be a whole number .* got '3'"),
        ({"type": "region", "frame": None, "box": (0, 0, 5, 5)}, "frame must be a whole number .* got None"),
        ({"type": "region", "frame": [2, 2], "box": [(0, 0, 5, 5)] * 2}, r"frames \[2, 2\] repeat"),
        (region(mask=np.zeros((20, 30))), "mask of the region on frame 0 is empty"),
        (region(mask=np.ones((10, 30))), r"has shape \(10, 30\), the frames of 'array' are \(20, 30\)"),
        (region(points=[(30, 5)]), r"point \(30, 5\) lies outside the 30x20 pixels"),
        (region(points=[(3, float("nan"))]), "lies outside"),
        (region(points=[(3, 5)], labels=[1, 0]), r"1 points takes as many labels.*got \[1, 0\]"),
        (region(points=[(3, 5)], labels=[0]), "at least one 1"),
        (region(points=[]), "must be a list of"),
        (region(scribble=[(0, 0), (-1, 5)]), r"point \(-1, 5\) lies outside"),
        (region(), "takes exactly one of mask, box, points, scribble; got none"),
        (region(polygon=[]), "unknown keys polygon"),
        ({"type": "region", "region": "the dog"}, "or an object of an earlier answer, got str"),
        ({"type": "region", "region": Region(box=(0, 0, 1, 1)), "frame": 3}, "gives both 'region' and frame"),
        ({"type": "audio", "path": "x"}, "type 'audio', expected one of video, image, region, text"),
        ({"type": "grounded", "text": "x", "objects": []}, "type 'grounded', expected one of"),
        ({"type": "text"}, "lacks text"),
        ({"type": "text", "text": 7}, "must be a string, got int"),
        ("Is <region> there?", "has 1 <region>; in messages a region is a content part"),
        ("Is \ud800 there?", r"is not valid Unicode: character 3 is the lone surrogate U\+D800"),
        ({"type": "video", "video": noise_video(2)}, "A second video or image"),
    ],
)
def test_wrong_content(processor, part, message):
    with pytest.raises(ValueError, match=message):
        processor.apply_chat_template([user(video_part(), "What is ", part, "?")])


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "at least 1 message, got 0"),
        ([{"role": "user"}], "must be a dict with 'role' and 'content'"),
        ([{"role": "robot", "content": "x"}], "role 'robot', expected one of system, user, assistant"),
        ([user(box_part(), "What?")], "comes before the video or image"),
        ([user("What is ", box_part(), "?"), assistant("A"), user(video_part())], "comes before the video"),
        ([{"role": "user", "content": None}], "content must be a string or a list of parts, got NoneType"),
        ([user(video_part())], "is empty: it needs text or a region"),
        ([user({"type": "video"}, "x")], "takes exactly one of 'path', 'url' and 'video', got 0"),
        (
            [user({"type": "image", "image": noise_video(2)}, "x")],
            "An image is one picture, but .* is a video of 2 frames",
        ),
        ("Hi.", "must be a list of messages such as .* got str"),
        (user("Hi."), "must be a list of messages such as .* got dict"),
        (["Hi."], "Message 0 must be a dict with 'role' and 'content', got 'Hi.'"),
        ([{"role": ["user"], "content": "x"}], r"has the role \['user'\], expected one of"),
        ([{"role": "user", "content": [{"type": ["text"], "text": "x"}]}], r"type \['text'\], expected one of"),
        ([user(video_part(), "")], "is empty: it needs text or a region"),
        (
            [user("x"), {"role": "assistant", "content": [{"type": "grounded", "text": "x", "objects": "abc"}]}],
            "objects of a grounded part of message 1 .* must be a list, got 'abc'",
        ),
        ([user("x"), assistant("a \udfff")], r"character 2 is the lone surrogate U\+DFFF"),
    ],
)
def test_wrong_messages(processor, messages, message):
    with pytest.raises(ValueError, match=message):
        processor.apply_chat_template(messages)


def test_no_such_video_file(processor, tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no file"):
        processor.apply_chat_template([user({"type": "video", "path": str(tmp_path / "no.mp4")}, "What?")])


def test_regions_and_region_words_must_match(processor):
    region = Region(box=(0, 0, 5, 5))
    parts = processor.question_parts("What is <region> doing?", [region])
    assert [part["type"] for part in parts] == ["text", "region", "text"]
    assert processor.question_parts("<region>", [region]) == [{"type": "region", "region": region}]
    with pytest.raises(ValueError, match="The question has 1 <region> but 2 regions were given"):
        processor.question_parts("What is <region> doing?", [region, region])


def test_text_too_long_for_the_model():
    processor = tiny_processor(tokenizer=language_tokenizer(model_max_length=50))
    with pytest.raises(ValueError, match="has 1[0-9]+ tokens, more than the 50"):
        processor.apply_chat_template([user("long " * 20)])


def test_tokenizer_without_the_tags():
    with pytest.raises(ValueError, match=r"The tokenizer lacks \[SEG\]"):
        tiny_processor(tokenizer=language_tokenizer([tag for tag in INTERNVL_TAGS if tag != "[SEG]"]))
    with pytest.raises(ValueError, match="The qformer_tokenizer lacks <pos>"):
        tiny_processor(qformer_tokenizer=qformer_tokenizer([tag for tag in QFORMER_TAGS if tag != "<pos>"]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"turn_format": "mine"}, "turn_format='mine' is unknown, expected one of newlines, "),
        ({"preset": "old"}, "preset='old' is unknown"),
        ({"region_shape": "circle"}, "`region_shape` must be one of .* got 'circle'"),
        ({"image_seq_length": 5}, "image_seq_length=5 is not a square"),
        ({"image_token_id": 5}, "`image_token_id` is 5 in the configuration, but the tokenizer gives <IMG_CONTEXT>"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        tiny_processor(**settings)


def test_other_tensors_and_templates_without_marks(processor):
    with pytest.raises(ValueError, match="PyTorch tensors only"):
        processor.apply_chat_template([user("Hi.")], return_tensors="np")
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    assert text_of(processor, [user("Hi."), assistant("Ho.")], chat_template=template) == "Hi.Ho."
    with pytest.raises(ValueError, match="no {% generation %} block"):
        processor.apply_chat_template([user("Hi.")], chat_template=template, return_assistant_tokens_mask=True)


def test_layouts_that_do_not_fit():
    messages = [[user("a")], [user("b")]]
    with pytest.raises(ValueError, match="3 turn formats were given for 2 conversations"):
        tiny_processor().apply_chat_template(messages, turn_format=["llava"] * 3)
    with pytest.raises(ValueError, match="turn_format='x' is unknown, expected one of newlines"):
        tiny_processor().apply_chat_template(messages[0], turn_format="x")
