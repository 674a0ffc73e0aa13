"""Exports and other downloads through HTTP, for which no model is needed."""

from dataclasses import replace
from io import BytesIO

import pytest
from http_server import question, running_server
from PIL import Image

from sama.serving.limits import Limits
from sama.serving.server import create_app


def no_engine():
    raise ValueError("There is no model.")


def png() -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (64, 48), "teal").save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def serve(store, limits):
    """Runs a server with some limits changed."""

    def serve(**changed):
        changed_limits: Limits = replace(limits, **changed)
        return running_server(create_app(no_engine, store, changed_limits), changed_limits)

    return serve


def conversation(file_id: str) -> list[dict]:
    asked = question("What is it?")
    asked["content"] = [{"type": "image_url", "image_url": {"file_id": file_id}}, *asked["content"]]
    return [asked, {"role": "assistant", "content": "A colour.", "objects": []}]


def test_an_export_has_a_limit(serve):
    with serve(export_bytes=100) as client:
        messages = conversation(client.upload(png(), "a.png").json()["id"])
        answer = client.post("/v1/exports", {"messages": messages, "format": "json"})
        assert answer.status == 413
        assert answer.error["message"] == "The export has more than 100 bytes (--max-export-bytes)."
