"""The server as its clients use it: every route, OpenAI's client, curl, and what happens when a client leaves."""

import base64
import http.client
import json
import re
import shutil
import socket
import subprocess
import threading
import time
from dataclasses import replace

import pytest
from http_server import question, running_server, video_part
from PIL import Image

from sama.regions_sama import decode_rle
from sama.resources import EXAMPLE_CLIPS
from sama.serving import schema
from sama.serving.server import create_app


RING = {"frame": 12, "box": [48, 70, 137, 159]}
WHAT = ("What is <region>?", RING)
LONG = {"max_tokens": 64}


@pytest.fixture
def asked(server, clip):
    """The messages of a conversation after one answer."""
    messages = [question(*WHAT, video=clip)]
    return [*messages, server.ask(messages).json()["choices"][0]["message"]]


def without_ids(completion: dict) -> dict:
    return {name: value for name, value in completion.items() if name not in ("id", "created", "usage")}


# ---- about the server


def test_health_models_and_metrics(server, clip):
    assert server.get("/health").json() == {"status": "ok", "model": "sama-tiny"}
    assert [card["id"] for card in server.get("/v1/models").json()["data"]] == ["sama-tiny"]
    server.get(f"/v1/files/{clip}")
    server.request("BREW", "/coffee")
    metrics = server.get("/metrics")
    assert metrics.headers["content-type"].startswith("text/plain; version=0.0.4")
    text = metrics.body.decode()
    assert 'sama_requests_total{method="GET",route="/v1/files/{file_id}",status="200"}' in text
    assert re.search(r'sama_requests_total{method="other",route="(page|other)",status="40[45]"}', text)
    assert "sama_engine_running 0.0" in text and "sama_first_token_seconds_bucket" in text
    assert clip not in text


def test_everything_but_files_waits_for_the_model(store, limits):
    proceed = threading.Event()

    def load():
        proceed.wait()
        raise ValueError("The file /secret/folder/model.bin is broken.")

    with running_server(create_app(load, store, limits), limits) as client:
        for path in ("/health", "/v1/models"):
            answer = client.get(path)
            assert (answer.status, answer.headers["retry-after"]) == (503, "5")
            assert answer.error["message"] == "The model is being loaded." and answer.error["code"] == "loading"
        assert client.ask([{"role": "user", "content": "Hello"}]).status == 503
        assert client.get("/v1/examples").status == client.get("/metrics").status == 200
        proceed.set()
        while client.get("/health").error["code"] == "loading":
            time.sleep(0.01)
        message = client.get("/health").error["message"]
        assert message == "The model could not be loaded: The file model.bin is broken."


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/v1/files/{clip}", "/v1/files/{clip}/content", "/docs"])
def test_head_is_get_without_its_body(server, clip, path):
    path = path.format(clip=clip)
    answer, head = server.get(path), server.request("HEAD", path)
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == answer.headers["content-length"] == str(len(answer.body))


# ---- files


def test_a_file_from_upload_to_deletion(server):
    content = (EXAMPLE_CLIPS / "toy_world.mp4").read_bytes()
    stored = server.upload(content + b"\0" * 8, 'a"b\\..\u00e9.mp4').json()
    schema.FileObject.model_validate(stored)
    assert (stored["kind"], stored["num_frames"], stored["width"], stored["height"]) == ("video", 24, 256, 256)
    path = f"/v1/files/{stored['id']}"
    assert server.get(path).json()["id"] == stored["id"]
    playable = server.get(f"{path}/content")
    assert playable.headers["content-type"] in ("video/mp4", "video/webm")
    part = server.get(f"{path}/content", Range="bytes=100-199")
    assert (part.status, part.body) == (206, playable.body[100:200])
    assert server.get(f"{path}/content", Range="bytes=999999999-").status == 416
    assert server.request("DELETE", path).json() == {"id": stored["id"], "object": "file", "deleted": True}
    for method, gone in (("GET", path), ("DELETE", path), ("GET", f"{path}/content"), ("GET", f"{path}/frames/0")):
        answer = server.request(method, gone)
        assert answer.status == 404 and answer.error["code"] == "file_not_found"


def test_frames_are_pictures(server, clip, tmp_path):
    answer = server.get(f"/v1/files/{clip}/frames/12")
    assert answer.headers["content-type"] == "image/png" and "immutable" in answer.headers["cache-control"]
    (tmp_path / "frame.png").write_bytes(answer.body)
    with Image.open(tmp_path / "frame.png") as picture:
        assert picture.size == (256, 256)
    assert "24" in server.get(f"/v1/files/{clip}/frames/24").error["message"]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/files/file-1", 400),
        ("/v1/files/file-{x}", 404),
        ("/v1/files/..%2f..%2fetc%2fpasswd", 404),
        ("/v1/files/%2e%2e", 400),
        ("/v1/files/{clip}/frames/-1", 400),
        ("/v1/files/{clip}/frames/1e9", 400),
        ("/v1/files/{clip}/frames/99999999999999999999", 400),
        ("/v1/files/{clip}/", 404),
        ("/v1/files/", 404),
        ("/V1/models", 404),
        ("//v1/models", 404),
        ("/..%2f..%2fserve.py", 404),
        ("/%00", 404),
    ],
)
def test_wrong_addresses(server, clip, path, status):
    answer = server.get(path.format(clip=clip, x="0" * 64))
    assert answer.status == status and answer.error["type"] == (
        "not_found_error" if status == 404 else "invalid_request_error"
    )


@pytest.mark.parametrize(
    ("method", "path", "status", "allowed"),
    [
        ("GET", "/v1/chat/completions", 405, "POST"),
        ("POST", "/v1/models", 405, "GET, HEAD"),
        ("DELETE", "/v1/files", 405, "POST"),
        ("POST", "/index.html", 405, "GET, HEAD"),
        ("POST", "/v1/chat/completion", 404, None),
        ("DELETE", "/v1/nothing", 404, None),
        ("GET", "/v1/nothing", 404, None),
    ],
)
def test_wrong_methods_are_told_from_wrong_addresses(server, method, path, status, allowed):
    answer = server.request(method, path)
    assert answer.status == status and answer.headers.get("allow") == allowed
    if status == 404:
        assert answer.error["message"] == "There is nothing at this address."
    else:
        assert answer.error["message"] == "This address does not take this method."


def test_uploads_that_are_refused(server, limits):
    assert server.upload(b"not a video").status in (400, 415)
    assert server.upload(b"").error["message"]
    too_large = server.upload(b"\0" * (limits.upload_bytes + 70_000))
    assert too_large.status == 413 and "--max-upload-bytes" in too_large.error["message"]
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    assert server.request("POST", "/v1/files", b"--x\r\nbroken", form).status == 400
    assert server.request("POST", "/v1/files", b"--x--\r\n", form).error["param"] == "file"
    twice = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\na\r\n' * 2 + b"--x--\r\n"
    assert server.request("POST", "/v1/files", twice, form).status == 400
    named = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\na\r\n'
    named += b'--x\r\nContent-Disposition: form-data; name="folder"\r\n\r\n/\r\n--x--\r\n'
    assert "folder" in server.request("POST", "/v1/files", named, form).error["message"]
    assert server.post("/v1/files", {"file": "x"}).status == 415


# ---- questions


def test_an_answer_streamed_and_whole(server, clip):
    messages = [question(*WHAT, video=clip)]
    answer = server.ask(messages)
    completion = schema.ChatCompletion.model_validate(answer.json())
    message = completion.choices[0].message
    assert message.content.endswith(" is a large purple ring.") and completion.choices[0].finish_reason == "stop"
    (ring,) = message.objects
    assert (ring.id, ring.phrase, message.content[ring.start : ring.end]) == ("o1", "a large purple ring", ring.phrase)
    mask = decode_rle({"size": ring.masks.size, "counts": ring.masks.counts["12"]})
    assert mask.shape == (256, 256) and mask[70:159, 48:137].sum() > 0.9 * mask.sum() > 1000

    chunks = server.stream(messages)
    for chunk in chunks:
        schema.ChatChunk.model_validate(chunk)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("content", "") for delta in deltas) == message.content
    assert len([delta for delta in deltas if delta.get("content")]) > 3
    objects: dict[str, dict] = {}
    for delta in deltas:
        for item in delta.get("objects", ()):
            known = objects.setdefault(item["id"], {"masks": {"size": [256, 256], "counts": {}}})
            known["masks"]["counts"] |= item.get("masks", {"counts": {}})["counts"]
            known |= {name: value for name, value in item.items() if name != "masks"}
    assert list(objects.values()) == answer.json()["choices"][0]["message"]["objects"]
    assert sorted(delta["frame"] for delta in deltas if "frame" in delta) == list(range(24))
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["usage"]["completion_tokens"] == completion.usage.completion_tokens


def test_usage_chunk_is_sent_where_it_is_asked_for(server, clip):
    messages = [question("Hello", video=clip)]
    *chunks, last = server.stream(messages, stream_options={"include_usage": True}, masks="none", max_tokens=3)
    assert last["choices"] == [] and last["usage"]["completion_tokens"] == 3
    assert last["usage"]["total_tokens"] == last["usage"]["prompt_tokens"] + 3
    assert chunks[-1]["choices"][0]["finish_reason"] == "length" and chunks[-1]["usage"] is None


def test_openai_client_has_a_conversation(server, clip):
    import openai  # here, because every test process imports this file

    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0)
    assert [model.id for model in client.models.list()] == ["sama-tiny"]
    messages = [question(*WHAT, video=clip)]
    response = client.chat.completions.create(model="sama-tiny", messages=messages)
    messages.append(response.choices[0].message)
    messages.append(question("What does <region> do?", {"object": "o1"}))
    second = client.chat.completions.create(model="sama-tiny", messages=messages, temperature=0, n=1, stop=None)
    assert "ring" in second.choices[0].message.content
    assert second.choices[0].message.objects[0]["id"] == "o1"
    # The video and the first turn were read for the first question
    assert second.usage.prompt_tokens_details.cached_tokens > second.usage.prompt_tokens / 2
    stream = client.chat.completions.create(
        model="sama-tiny", messages=messages, stream=True, stream_options={"include_usage": True}
    )
    text, objects = "", 0
    for chunk in stream:
        for choice in chunk.choices:
            text += choice.delta.content or ""
            objects += len(choice.delta.objects or ()) if "objects" in choice.delta.model_extra else 0
    assert text == second.choices[0].message.content and objects > 24 and chunk.usage.completion_tokens > 0
    with pytest.raises(openai.BadRequestError, match="stop is not supported by this server") as raised:
        client.chat.completions.create(model="sama-tiny", messages=messages, stop=["\n"])
    assert raised.value.param == "stop"
    with pytest.raises(openai.NotFoundError, match="this is sama-tiny"):
        client.chat.completions.create(model="gpt-x", messages=messages)


def test_openai_client_uploads(server):
    import openai

    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0)
    with open(EXAMPLE_CLIPS / "toy_world.mp4", "rb") as clip:
        stored = client.files.create(file=clip, purpose="vision")
    assert stored.filename == "toy_world.mp4" and stored.num_frames == 24
    assert client.files.retrieve(stored.id).id == stored.id


def test_answers_do_not_depend_on_what_is_remembered(server, engine, clip, asked):
    messages = [*asked, question("What does <region> do?", {"object": "o1"})]
    remembered = server.ask(messages).json()
    engine.forget(clip)
    assert without_ids(server.ask(messages).json()) == without_ids(remembered)


def test_sampling_depends_on_the_seed(server, clip):
    def said(seed: int) -> str:
        sampling = {"temperature": 2.0, "seed": seed, "max_tokens": 12, "masks": "none"}
        return server.ask([question("Hello", video=clip)], **sampling).json()["choices"][0]["message"]["content"]

    assert said(1) == said(1)
    assert len({said(seed) for seed in range(4)}) > 1


def test_without_masks_objects_are_named_only(server, clip):
    (found,) = server.ask([question(*WHAT, video=clip)], masks="none").json()["choices"][0]["message"]["objects"]
    assert set(found) == {"id", "phrase", "start", "end", "color"}


def test_a_picture_and_a_text_alone(server, clip):
    frame = base64.b64encode(server.get(f"/v1/files/{clip}/frames/12").body).decode()
    picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{frame}", "detail": "auto"}}
    content = [picture, {"type": "text", "text": "What is "}, {"type": "region", "region": RING | {"frame": 0}}]
    answer = server.ask([{"role": "user", "content": content}]).json()["choices"][0]["message"]
    assert answer["objects"][0]["frames"] == [[0, 0]]
    system = {"role": "system", "content": "Be brief."}
    assert server.ask([system, {"role": "user", "content": "Hello"}], max_tokens=4).status == 200


def test_a_preview_is_the_mask_of_the_click(server, clip):
    answer = server.post(
        "/v1/regions/preview", {"file_id": clip, "region": {"frame": 12, "points": [[92, 76]]}}
    ).json()
    mask = decode_rle(answer)
    assert (answer["frame"], answer["size"], answer["area"]) == (12, [256, 256], int(mask.sum()))
    assert mask[76, 92] and mask[70:159, 48:137].sum() > 0.8 * mask.sum()


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"region": RING}, "file_id"),
        ({"file_id": "file-" + "0" * 64, "region": RING}, None),
        ({"region": {"object": "o1"}}, "region"),
        ({"region": {"frame": 24, "box": [1, 2, 3, 4]}}, "region"),
        ({"region": {"frame": 0, "box": [1, 2, 3000, 4]}}, None),
        ({"region": {"frame": 0, "points": [[1, 2]] * 101}}, "region"),
        ({"region": {"frame": 0, "points": [[1, 2]] * 1001}}, "region.points"),
        ({"region": {"mask": {"size": [65535, 65535], "counts": "0"}}}, "region.mask.size"),
        ({"region": {"mask": {"size": [256, 256], "counts": "0"}}}, None),
        ({"region": {"points": [[1, 2]], "labels": [0]}}, None),
    ],
)
def test_previews_that_are_refused(server, clip, body, param):
    answer = server.post("/v1/regions/preview", ({"file_id": clip} if param != "file_id" else {}) | body)
    assert answer.status in (400, 404) and (param is None or answer.error["param"] == param)


def test_exports(server, clip, asked):
    kinds = {"mp4": "video/mp4", "png": "application/zip", "coco": "application/json", "json": "application/json"}
    for name, kind in kinds.items():
        answer = server.post("/v1/exports", {"messages": asked, "format": name})
        assert (answer.status, answer.headers["content-type"]) == (200, kind)
        assert answer.headers["content-disposition"].startswith('attachment; filename="toy_world')
        assert len(answer.body) > 500
    assert json.loads(answer.body)["messages"] == asked
    for messages, sentence in ((asked[:1], "not an answer"), ([{"role": "user", "content": "Hello"}], "no video")):
        answer = server.post("/v1/exports", {"messages": messages, "format": "json"})
        assert answer.status == 400 and sentence in answer.error["message"]


# ---- clients that leave, and clients that are too many


def chat_request(clip: str, stream: bool) -> bytes:
    """A question as it goes over the connection."""
    body = json.dumps({"messages": [question(*WHAT, video=clip)], "stream": stream}).encode()
    lines = ["POST /v1/chat/completions HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


def wait_for_cancel(engine, before: int) -> None:
    deadline = time.monotonic() + 20
    while engine.status().cancelled == before or engine.status().running:
        assert time.monotonic() < deadline, engine.status()
        time.sleep(0.02)


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_ends_when_its_client_leaves(server, engine, clip, stream):
    before = engine.status()
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(chat_request(clip, stream))
        if stream:
            assert connection.recv(100)
        else:
            while engine.status().running == 0:
                time.sleep(0.001)
    wait_for_cancel(engine, before.cancelled)
    assert server.get("/health").status == 200


def test_a_slow_reader_keeps_nobody_waiting(server, engine, clip):
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(chat_request(clip, stream=True))
        connection.recv(10)
        assert server.ask([question("Hello", video=clip)], max_tokens=4).status == 200


def test_questions_beyond_the_waiting_line(server, engine, clip, limits):
    while engine.status().running:  # an answer of another test whose client has left
        time.sleep(0.01)
    answers = []

    def ask(number: int) -> None:
        answers.append(server.ask([question(f"Describe it, {number}.", video=clip)], **LONG))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused = [answer for answer in answers if answer.status == 429]
    assert {answer.status for answer in answers} == {200, 429} and len(refused) <= 6
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    assert refused[0].error["type"] == "rate_limit_error"


def test_a_request_has_a_time_limit(engine, store, limits, clip):
    short = replace(limits, request_seconds=0.05)
    with running_server(create_app(engine, store, short), short) as client:
        whole = client.ask([question(*WHAT, video=clip)])
        assert whole.status == 504 and whole.headers["x-should-retry"] == "false"
        assert "--max-request-seconds" in whole.error["message"]


# ---- curl


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_uploads_and_asks(server, tmp_path):
    def curl(*arguments: str) -> bytes:
        return subprocess.run(
            ["curl", "--silent", "--show-error", "--fail", *arguments], capture_output=True, check=True
        ).stdout

    stored = json.loads(curl("-F", f"file=@{EXAMPLE_CLIPS / 'toy_world.mp4'}", f"{server.url}/v1/files"))
    content = [video_part(stored["id"]), {"type": "text", "text": "What is "}, {"type": "region", "region": RING}]
    body = json.dumps({"messages": [{"role": "user", "content": content}], "stream": True})
    lines = curl("-N", "--json", body, f"{server.url}/v1/chat/completions").decode().splitlines()
    assert lines[-2] == "data: [DONE]" and "ring" in "".join(lines)


def test_1000_small_requests(server):
    connections = [http.client.HTTPConnection("127.0.0.1", server.port) for _ in range(3)]
    for number in range(1000):
        connection = connections[number % 3]
        connection.request("GET", "/health")
        response = connection.getresponse()
        assert response.status == 200 and response.read()
    for connection in connections:
        connection.close()
