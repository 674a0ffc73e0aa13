"""A Ray of this machine alone, with two replicas of the small model, one of which is killed."""

import http.client
import json
import os
import signal
import tempfile
import threading
import time
from pathlib import Path

import pytest
from http_server import Answer, Client, question


pytestmark = pytest.mark.slow
ray = pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
pytest.importorskip("ray.serve", reason="Ray Serve is not installed: pip install -e '.[ray]'")

ROOT = Path(__file__).parent.parent.parent
KEY = "key-of-the-test"
HEADERS = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
RING = {"frame": 12, "box": [48, 70, 137, 159]}
PORT = 18_123


class KeyClient(Client):
    """Sends the API key with every request."""

    def request(self, method: str, path: str, body: bytes | None = None, headers: dict | None = None) -> Answer:
        return super().request(method, path, body, {"Authorization": f"Bearer {KEY}"} | (headers or {}))


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """A client of the application, with the handle of its replicas."""
    from ray import serve

    folder = tmp_path_factory.mktemp("files")
    variables = {
        "SAMA_API_KEY": KEY,
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT.parent),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        from sama.serving.ray_app import AppArguments, app_builder

        settings = {"include_dashboard": False, "log_to_driver": False, "_node_ip_address": "127.0.0.1"}
        ray.init(num_cpus=2, object_store_memory=200 * 2**20, **settings)
        try:
            serve.start(http_options={"host": "127.0.0.1", "port": PORT})
            limits = {"running": 2, "waiting": 2, "new_tokens": 64}
            arguments = AppArguments(replicas=2, gpus=0, cpus=0.5, folder=folder, limits=limits)
            serve.run(app_builder(arguments), name="sama")
            client = KeyClient(PORT)
            client.handle = serve.get_deployment_handle("Model", app_name="sama")
            while client.get("/health").status != 200:
                time.sleep(0.2)
            yield client
        finally:
            serve.shutdown()
            ray.shutdown()


@pytest.fixture(scope="module")
def clip(client) -> str:
    return client.get("/v1/examples").json()["data"][0]["id"]


def host_of(client, key: str):
    """The status of the replica to which the questions about a file go."""
    return client.handle.options(method_name="status", multiplexed_model_id=key).remote().result()


def settled_host(client, key: str):
    """The same, when Ray Serve's routers have heard where it is: the same one several times in a row."""
    found: list = []
    while len(found) < 8 or len({status.process for status in found[-8:]}) > 1:
        assert len(found) < 100, "the questions about a file do not stay with one replica"
        found.append(host_of(client, key))
        time.sleep(0.25)
    return found[-1]


def stateless(client, messages: list[dict]) -> dict:
    """The answer of a server in this process that has never heard of the conversation."""
    from checkpoint import load_checkpoint
    from http_server import running_server

    from sama.serving.engine import Engine
    from sama.serving.files import FileStore
    from sama.serving.limits import Limits
    from sama.serving.server import create_app

    limits = Limits()
    content = (ROOT / "assets" / "toy_world.mp4").read_bytes()
    engine = Engine(*load_checkpoint(), min_component_fraction=0.05)
    with tempfile.TemporaryDirectory() as folder:
        store = FileStore(folder, limits)
        store.add([content], "toy_world.mp4")
        with running_server(create_app(engine, store, limits, model_name="sama-tiny"), limits) as server:
            answer = server.ask(messages).json()["choices"][0]["message"]
    engine.close()
    return answer


def test_config_files_are_as_ray_wants_them(monkeypatch):
    import yaml
    from ray.serve.schema import ServeDeploySchema

    from sama.serving.ray_app import AppArguments, app_builder

    kubernetes = yaml.safe_load((ROOT / "deploy" / "rayservice.yaml").read_text())["spec"]["serveConfigV2"]
    for text in ((ROOT / "deploy" / "serve.yaml").read_text(), kubernetes):
        config = ServeDeploySchema.model_validate(yaml.safe_load(text))
        AppArguments.model_validate(config.applications[0].args)
    assert AppArguments(allow_hosts="a.example,b.example").allow_hosts == ("a.example", "b.example")
    for wrong in ({"replica": 2}, {"limits": {"speed": 1}}, {"replicas": 0}):
        with pytest.raises(ValueError, match="replica|speed"):
            AppArguments(**wrong)
    monkeypatch.delenv("SAMA_API_KEY", raising=False)
    with pytest.raises(ValueError, match="SAMA_API_KEY"):
        app_builder(AppArguments())


def test_only_the_key_opens_it(client):
    assert Client(PORT).get("/v1/models").status == 401
    assert [card["id"] for card in client.get("/v1/models").json()["data"]] == ["sama-tiny"]
    assert "content-security-policy" in Client(PORT).get("/health").headers


def test_a_conversation_outlives_its_replica(client, clip):
    messages = [question("What is <region>?", RING, video=clip)]
    first = client.ask(messages).json()
    messages += [first["choices"][0]["message"], question("Where does <region> go?", {"object": "o1"})]

    before = settled_host(client, clip)
    second = client.ask(messages).json()
    after = host_of(client, clip)
    assert after.process == before.process
    assert after.engine.reused_tokens > before.engine.reused_tokens
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] > 0

    messages += [second["choices"][0]["message"], question("What colour is it?")]
    os.kill(after.process, signal.SIGKILL)
    third = client.ask(messages)
    while third.status == 503:
        assert third.error["code"] == "replica_lost"
        third = client.ask(messages)
    assert third.status == 200
    assert host_of(client, clip).process != after.process
    assert third.json()["choices"][0]["message"] == stateless(client, messages)


def test_answers_stream(client, clip):
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=60)
    body = json.dumps({"messages": [question("What is <region>?", RING, video=clip)], "stream": True})
    connection.request("POST", "/v1/chat/completions", body, HEADERS)
    response = connection.getresponse()
    assert response.getheader("content-type") == "text/event-stream; charset=utf-8"
    pieces, running = [], []
    while piece := response.read1(65_536):
        pieces.append(piece)
        running.append(host_of(client, clip).engine.running)
    connection.close()
    assert len(pieces) > 5 and 1 in running[:5]  # the first pieces arrive while the rest is computed
    assert b"".join(pieces).endswith(b"data: [DONE]\n\n")


def test_leaving_cancels_the_answer(client, clip):
    before = {host.host: host.engine.cancelled for host in every_host(client)}
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=60)
    body = json.dumps({"messages": [question("What is <region>?", RING, video=clip)], "stream": True})
    connection.request("POST", "/v1/chat/completions", body, HEADERS)
    connection.getresponse().read1(100)
    connection.close()
    deadline = time.monotonic() + 30
    while all(host.engine.cancelled == before.get(host.host, 0) for host in every_host(client)):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def every_host(client) -> list:
    """The status of all replicas, which are asked at random."""
    found = {}
    for _ in range(20):
        status = client.handle.status.remote().result()
        found[status.host] = status
    return list(found.values())


def test_a_mask_is_previewed(client, clip):
    mask = client.post("/v1/regions/preview", {"file_id": clip, "region": RING}).json()
    assert mask["frame"] == 12 and mask["area"] > 1_000
    wrong = client.post("/v1/regions/preview", {"file_id": clip, "region": {"frame": 99, "box": [0, 0, 9, 9]}})
    assert wrong.status == 400


def test_answers_of_many_clients_are_their_own(client, clip):
    questions = [[question(f"What is <region> number {one}?", RING, video=clip)] for one in range(6)]
    answers = {}

    def ask(index: int) -> None:
        answer = client.ask(questions[index], max_tokens=16)
        while answer.status == 429:
            time.sleep(0.2)
            answer = client.ask(questions[index], max_tokens=16)
        answers[index] = answer.json()["choices"][0]["message"]["content"]

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(questions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, messages in enumerate(questions):
        assert client.ask(messages, max_tokens=16).json()["choices"][0]["message"]["content"] == answers[index]
