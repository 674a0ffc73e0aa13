"""One server for all tests of it: loading the model and converting the example clips costs seconds."""

import pytest
from checkpoint import load_checkpoint

from sama.serving.limits import Limits


SMALL_LIMITS = Limits(
    upload_bytes=2**20, json_bytes=2**20, json_values=20_000, running=2, waiting=2, new_tokens=64, messages=20,
    header_seconds=10.0, body_seconds=10.0, text_characters=2_000, connections=200, points=100, buffered_bytes=2**22,
)  # fmt: skip


@pytest.fixture(scope="session")
def limits() -> Limits:
    return SMALL_LIMITS


@pytest.fixture(scope="session")
def engine():
    pytest.importorskip("fastapi", reason="the server is not installed: pip install -e .[serve]")
    from sama.serving.engine import Engine

    engine = Engine(*load_checkpoint(), SMALL_LIMITS)
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    from sama.serving.files import FileStore

    return FileStore(tmp_path_factory.mktemp("store"), SMALL_LIMITS)


@pytest.fixture(scope="session")
def server(engine, store):
    """A client of the running server."""
    from http_server import running_server

    from sama.serving.server import create_app

    with running_server(create_app(engine, store, SMALL_LIMITS, model_name="sama-tiny"), SMALL_LIMITS) as client:
        yield client


@pytest.fixture(scope="session")
def clip(server) -> str:
    """The id of the example clip of toy world, of 24 frames of 256 x 256."""
    return server.get("/v1/examples").json()["data"][0]["id"]
