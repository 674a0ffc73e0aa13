"""Bodies that are wrong: each is refused with one sentence that names the field, and nothing else happens."""

import json

import pydantic
import pytest
from http_server import question

from sama.serving import schema
from sama.serving.bodies import read_json
from sama.serving.errors import ApiError, field_name
from sama.serving.limits import Limits


HELLO = [{"role": "user", "content": "Hello"}]
PART = "messages[0].content"
CHAT = "/v1/chat/completions"
BOX = {"frame": 0, "box": [10, 10, 60, 60]}


def part(**region) -> list[dict]:
    return [{"role": "user", "content": [{"type": "region", "region": region}]}]


def answer(text: str = "A ring.", **found) -> dict:
    return {"role": "assistant", "content": text, "objects": [{"id": "o1", "start": 0, "end": 6} | found]}


# ---- JSON


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"", "body"),
        (b"{", "line 1"),
        (b"[]", "body"),
        (b"null", "body"),
        (b'"text"', "body"),
        (b"\xef\xbb\xbf{}", "byte-order mark"),
        (b"\xff\xfe{\0}\0", "not UTF-8"),
        (b'{"messages": "\xed\xa0\x80"}', "not UTF-8"),
        (b'{"model": "\\ud800"}', "surrogate"),
        (b'{"\\udc00": 1}', "surrogate"),
        (b'{"temperature": NaN}', "NaN"),
        (b'{"temperature": -Infinity}', "Infinity"),
        (b'{"temperature": 1e999}', "too large"),
        (b'{"seed": 1' + b"0" * 5000 + b"}", "too large"),
        (b'{"model": "a", "model": "b"}', "given twice"),
        (b"[" * 15_000, "nested too deeply"),
        (b'{"a":' * 15_000, "nested too deeply"),
        (b"[" + b"0," * 30_000 + b"0]", "--max-json-values"),
        (b'{"a": 1} {}', "not JSON"),
        (b"{\"a\": '1'}", "not JSON"),
        (b'{"a": "\n"}', "not JSON"),
    ],
)
def test_what_is_not_strict_json(server, body, sentence):
    result = server.post(CHAT, body)
    assert result.status == 400 and sentence in result.error["message"]


def test_json_reader_reads_json():
    value = {
        "text": "\U0001f600 é\u0000",
        "numbers": [0, -1, 1.5, -(2**63), 2**64 - 1],
        "none": None,
        "twice": [{"a": 1}, {"a": 1}],
    }
    for ensure_ascii in (True, False):
        assert read_json(json.dumps(value, ensure_ascii=ensure_ascii).encode(), Limits()) == value
    with pytest.raises(ApiError, match="4 values, at most 3"):
        read_json(b"[1,[2,3]]", Limits(json_values=3))


@pytest.mark.parametrize("text", ["[" * 300_000, '["\\,{' * 100_000, '\\"[,' * 100_000])
def test_brackets_inside_texts_are_no_values(text):
    value = {"masks": {"0": text, "1": [text, "\\"]}}  # codes of masks are such texts
    assert read_json(json.dumps(value).encode(), Limits()) == value
    with pytest.raises(ApiError, match="400,00. values, at most 200,000"):
        read_json(json.dumps([text] + [[]] * 200_000).encode(), Limits())


@pytest.mark.parametrize(
    "body", [b"[" + b"[]," * 300_000 + b"[]]", b'"["' * 500_000, b"[" * 300_000 + b'"' + b'\\"' * 2_000_000]
)
def test_bodies_of_many_values_are_refused_unparsed(monkeypatch, body):
    monkeypatch.setattr("sama.serving.bodies.json.loads", lambda *_, **__: pytest.fail("it was parsed"))
    with pytest.raises(ApiError, match="--max-json-values"):
        read_json(body, Limits())


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Type": ""},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "application/jsonp"},
        {"Content-Encoding": "gzip"},
        {"Content-Encoding": "identity, br"},
    ],
)
def test_other_types_and_encodings(server, headers):
    result = server.post(CHAT, {"messages": HELLO}, **headers)
    assert result.status == 415 and result.error["message"]


def test_json_type_may_have_parameters(server):
    assert server.post(CHAT, {"messages": []}, **{"Content-Type": "Application/JSON; charset=utf-8"}).status == 400


# ---- fields


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({}, "messages"),
        ({"messages": HELLO, "temprature": 0}, "temprature"),
        ({"messages": HELLO, "x" * 10_000: 0}, "x" * 57 + "..."),
        ({"messages": HELLO, "temperature": "0"}, "temperature"),
        ({"messages": HELLO, "temperature": 2.1}, "temperature"),
        ({"messages": HELLO, "temperature": True}, "temperature"),
        ({"messages": HELLO, "top_p": 0}, "top_p"),
        ({"messages": HELLO, "max_tokens": 0}, "max_tokens"),
        ({"messages": HELLO, "max_tokens": 1e3}, "max_tokens"),
        ({"messages": HELLO, "max_tokens": 65}, "max_tokens"),
        ({"messages": HELLO, "max_completion_tokens": 10**12}, "max_completion_tokens"),
        ({"messages": HELLO, "max_tokens": 3, "max_completion_tokens": 4}, None),
        ({"messages": HELLO, "n": 2}, "n"),
        ({"messages": HELLO, "n": True}, "n"),
        ({"messages": HELLO, "stop": "\n"}, "stop"),
        ({"messages": HELLO, "logprobs": True}, "logprobs"),
        ({"messages": HELLO, "tools": [{"type": "function"}]}, "tools"),
        ({"messages": HELLO, "response_format": {"type": "json_object"}}, "response_format"),
        ({"messages": HELLO, "frequency_penalty": 0.5}, "frequency_penalty"),
        ({"messages": HELLO, "reasoning_effort": "low"}, "reasoning_effort"),
        ({"messages": HELLO, "masks": "png"}, "masks"),
        ({"messages": HELLO, "stream": "true"}, "stream"),
        ({"messages": HELLO, "stream_options": {"include_usage": True}}, None),
        ({"messages": HELLO, "model": "gpt-5"}, "model"),
        ({"messages": [{"content": "Hello"}]}, "messages[0].role"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": ["Hello"]}, "messages[0]"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": " \n"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "x" * 2001}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": "Hello", "name": "me"}]}, "messages[0].name"),
        ({"messages": [*HELLO, {"role": "system", "content": "x"}]}, "messages[1].role"),
        ({"messages": [*HELLO, *HELLO]}, "messages[1].role"),
        ({"messages": [answer(), *HELLO]}, "messages[0].role"),
        ({"messages": [*HELLO, {"role": "assistant", "content": "Hi"}]}, "messages"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages"),
        ({"messages": HELLO * 21}, "messages"),
        ({"messages": part()}, "messages[0].content[0].region"),
        ({"messages": part(box=[1, 2, 3])}, "messages[0].content[0].region.box"),
        ({"messages": part(box=[1, 2, "3", 4])}, "messages[0].content[0].region.box[2]"),
        ({"messages": part(bbox=[1, 2, 3, 4])}, "messages[0].content[0].region.bbox"),
        ({"messages": part(box=[1, 2, 3, 4], points=[[1, 2]])}, "messages[0].content[0].region"),
        ({"messages": part(points=[[1, 2]], labels=[1, 0])}, "messages[0].content[0].region"),
        ({"messages": part(points=[[1, 2]], labels=[2])}, "messages[0].content[0].region.labels[0]"),
        ({"messages": part(frame=-1, box=[1, 2, 3, 4])}, "messages[0].content[0].region.frame"),
        ({"messages": part(object="3")}, "messages[0].content[0].region.object"),
        ({"messages": part(object="o0")}, "messages[0].content[0].region.object"),
        ({"messages": part(object="o1")}, "messages[0].content[0].region"),
        ({"messages": part(**BOX)}, "messages[0].content[0].region"),
        ({"messages": part(mask={"size": [65535, 65535], "counts": "0"})}, "messages[0].content[0].region"),
        ({"messages": part(mask={"size": [2, 2], "counts": 4})}, "messages[0].content[0].region.mask.counts"),
    ],
)
def test_fields_that_are_refused(server, fields, param):
    result = server.post(CHAT, fields)
    error = result.error
    assert result.status == (404 if param == "model" else 400) and error["type"] in (
        "invalid_request_error", "not_found_error",
    )  # fmt: skip
    assert error["param"] == param
    assert param is None or len(param) > 50 or param.split(".")[-1].split("[")[0] in error["message"]


def test_million_points_are_refused_before_they_are_parsed(server):
    body = json.dumps({"messages": part(points=[[1, 2]] * 100_000)}).encode()
    assert "--max-json-values" in server.post(CHAT, body).error["message"]


@pytest.mark.parametrize(
    ("region", "errors"),
    [
        ({"points": [["a", "b"]] * 50_000}, 1),
        ({"scribble": [[1, 2]] * 50_000}, 1),
        ({"points": [[1, 2]], "labels": [7] * 100_000}, 1),
        ({"mask": {"size": [2, 2], "counts": [-1] * 100_000}}, 1),
    ],
)
def test_of_many_errors_one_is_made(region, errors):
    with pytest.raises(pydantic.ValidationError) as raised:
        schema.PreviewRequest.model_validate({"file_id": "file-" + "0" * 64, "region": region})
    assert raised.value.error_count() == errors
    for messages in ([{"role": "user"}] * 50_000, [{"role": "user", "content": [{}] * 50_000}]):
        with pytest.raises(pydantic.ValidationError) as raised:
            schema.ChatRequest.model_validate({"messages": messages})
        assert raised.value.error_count() == 1


# ---- videos and pictures


def video(url: str | None = None, kind: str = "video_url", **source) -> dict:
    return {"type": kind, kind: source if url is None else {"url": url}}


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (video("https://example.org/clip.mp4"), "--allow-urls"),
        (video("HTTP://example.org/clip.mp4"), "--allow-urls"),
        (video("file:///etc/passwd"), "data: URL"),
        (video("ftp://example.org/clip.mp4"), "data: URL"),
        (video("/etc/passwd"), "data: URL"),
        (video(""), "data: URL"),
        (video("data:video/mp4;base64"), "no comma"),
        (video("data:video/mp4;base64,@@@@"), "base64"),
        (video("data:video/mp4;base64,AAAAA"), "base64"),
        (video("data:video/mp4;base64,é"), "base64"),
        (video("data:video/mp4;base64,"), "empty"),
        (video("data:text/html,<b>"), ""),
        (video(file_id="file-" + "0" * 64), "There is no file"),
        (video(file_id="../../etc/passwd"), "file_id"),
        (video(file_id="file-" + "0" * 64) | {"type": "image_url"}, "image_url is missing"),
        (video(), "exactly one of url and file_id"),
        (video("data:,", "image_url") | {"detail": "high"}, "detail"),
    ],
)
def test_sources_that_are_refused(server, source, sentence):
    result = server.ask([{"role": "user", "content": [source, {"type": "text", "text": "Hello"}]}])
    assert result.status in (400, 404, 415) and sentence in result.error["message"]
    assert result.error["param"].startswith("messages[0].content[0]")


def test_a_conversation_is_about_one_video_in_its_first_question(server, clip):
    two = question("Hello", video=clip)
    two["content"].insert(0, two["content"][0])
    assert server.ask([two]).error["param"] == "messages[0].content[1]"
    later = [*HELLO, {"role": "assistant", "content": "Hi"}, question("Hello", video=clip)]
    assert server.ask(later).error["param"] == "messages[2].content[0]"
    picture = {"type": "image_url", "image_url": {"file_id": clip}}
    result = server.ask([{"role": "user", "content": [picture, {"type": "text", "text": "Hello"}]}])
    assert "send it as video_url" in result.error["message"]


@pytest.mark.parametrize(
    ("region", "sentence"),
    [
        ({"frame": 24, "box": [10, 10, 60, 60]}, "24 frames"),
        ({"frame": 0, "box": [10, 10, 600, 60]}, "256x256"),
        ({"frame": 0, "box": [60, 60, 10, 10]}, "x1 < x2"),
        ({"frame": 0, "points": [[-5, 0]]}, ""),
        ({"frame": 0, "points": [[1, 2]] * 101}, "--max-points"),
        ({"frame": 0, "mask": {"size": [128, 128], "counts": "0"}}, "256 x 256"),
        ({"frame": 0, "mask": {"size": [256, 256], "counts": [1, 2]}}, "65536"),
        ({"frame": 0, "mask": {"size": [256, 256], "counts": "\u0000"}}, "damaged"),
    ],
)
def test_regions_outside_the_video(server, clip, region, sentence):
    for fields in ({}, {"stream": True}):
        result = server.ask([question("What is <region>?", region, video=clip)], **fields)
        assert result.status == 400 and sentence in result.error["message"]


@pytest.mark.parametrize(
    ("message", "param"),
    [
        (answer(id="1"), "messages[1].objects[0].id"),
        (answer(id="o1" + "0" * 30), "messages[1].objects[0].id"),
        (answer(end=8), "messages[1].objects[0].end"),
        (answer(start=3, end=2), "messages[1].objects[0].end"),
        (answer(start=-1), "messages[1].objects[0].start"),
        (answer(end=None), "messages[1].objects[0]"),
        (answer(phrase="A disc"), "messages[1].objects[0].phrase"),
        (answer(score=2), "messages[1].objects[0].score"),
        (answer(color="red"), "messages[1].objects[0].color"),
        (answer(masks={"size": [256, 255], "counts": {}}), "messages[1].objects[0].masks.size"),
        (answer(masks={"size": [256, 256], "counts": {"24": "0"}}), "messages[1].objects[0].masks.counts"),
        (answer(masks={"size": [256, 256], "counts": {"00": "0"}}), "messages[1].objects[0].masks.counts"),
        (answer(masks={"size": [256, 256], "counts": {"0": "0"}}), "messages[1].objects[0].masks.counts"),
        ({**answer(), "objects": answer()["objects"] * 2}, "messages[1].objects[1].id"),
        ({**answer(), "objects": answer()["objects"] * 2, "tool_calls": [{}]}, "messages[1].tool_calls"),
    ],
)
def test_answers_of_the_request_that_are_refused(server, clip, message, param):
    result = server.ask([question("Hello", video=clip), message, *HELLO])
    assert result.status == 400 and result.error["param"].removesuffix(".[key]") == param


def test_an_object_without_masks_is_known_only_as_long_as_the_server_remembers_it(server, engine, clip):
    messages = [question("What is <region>?", {"frame": 12, "box": [48, 70, 137, 159]}, video=clip)]
    said = server.ask(messages).json()["choices"][0]["message"]
    for item in said["objects"]:
        del item["masks"], item["frames"]
    messages += [said, question("What does <region> do?", {"object": "o1"})]
    assert server.ask(messages, masks="none").status == 200
    engine.forget(clip)
    result = server.ask(messages, masks="none")
    assert result.status == 400 and "masks" in result.error["message"]
    without_objects = [messages[0], {"role": "assistant", "content": said["content"]}, *HELLO]
    assert server.ask(without_objects, masks="none", max_tokens=3).status == 200


@pytest.mark.parametrize(
    ("location", "name"),
    [
        (("messages", 0, "user", "content", "parts", 1, "region", "region", "box"), f"{PART}[1].region.box"),
        (("messages", 3, "assistant", "content", "parts", 1, "text"), "messages[3].content[1].text"),
        (("messages", 0, "user", "content", "text"), "messages[0].content"),
        (("messages", 0, "user", "content", "parts", 0, "text", "text"), "messages[0].content[0].text"),
        (("region", "mask", "counts", "plain", 3), "region.mask.counts[3]"),
        (("messages", 1, "assistant", "objects", 0, "masks", "counts", "1"), "messages[1].objects[0].masks.counts.1"),
        ((), ""),
    ],
)  # fmt: skip
def test_locations_become_names_of_fields(location, name):
    assert field_name(location) == name
