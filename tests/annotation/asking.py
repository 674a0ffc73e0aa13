"""Questions to a scripted endpoint, with a clock that stands still."""

import base64
import io
import json
import threading

from PIL import Image
from scripted_endpoint import ScriptedEndpoint

from sama.annotation.completions import CompletionRequest
from sama.annotation.endpoint import Endpoint, EndpointSettings


SCHEMA = {"title": "Reply", "type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]}
ANSWER = json.dumps(
    {
        "conversation": [
            {
                "question": f"What does <obj{n}> do?",
                "answer": f"It follows <p> the dog </p> <obj{n}>.",
                "evidence": [{"object": f"obj{n}", "first": 1, "last": 4}],
            }
            for n in (1, 2)
        ]
    }
)


class Time:
    """A clock that only goes on when somebody sleeps."""

    def __init__(self):
        self.now, self.waits, self._lock = 0.0, [], threading.Lock()

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        with self._lock:
            self.waits.append(seconds)
            self.now += seconds


def make_endpoint(server: ScriptedEndpoint, time: Time, costs=None, **settings) -> Endpoint:
    settings = EndpointSettings(server.url, **{"timeout_s": 10.0, "concurrency": 1, **settings})
    return Endpoint(settings, costs, clock=time.clock, sleep=time.sleep, jitter=lambda: 1.0)


def question(text="Describe.", **fields) -> CompletionRequest:
    messages = [{"role": "system", "content": "Answer in JSON."}, {"role": "user", "content": text}]
    return CompletionRequest("writer", messages, **{"schema": SCHEMA, "max_tokens": 100, **fields})


def with_picture(data: bytes) -> CompletionRequest:
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    parts = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": url}}]
    return question(parts)


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (2, 2)).save(file, "PNG")
    return file.getvalue()
