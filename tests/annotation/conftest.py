"""What tests of the endpoint client share."""

import pytest
from asking import ANSWER, Time, make_endpoint, question
from moving_squares import write_videos
from scripted_endpoint import KEY, scripted_endpoint

from sama.annotation.completions import Completion
from sama.annotation.costs import Costs, Price


@pytest.fixture
def api_key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def time(api_key):
    return Time()


@pytest.fixture
def ask(time):
    """A function that asks an endpoint with faults once; its last server, endpoint and costs are its attributes."""

    def run(faults=None, request=None, text=ANSWER, budget=None, **settings) -> Completion:
        with scripted_endpoint(lambda request: text, faults) as run.server:
            run.costs = Costs(prices={"writer": Price(2, 10, 1)}, budget=budget)
            run.endpoint = make_endpoint(run.server, time, run.costs, **settings)
            return run.endpoint.complete(request or question(), "describe", "clip")

    return run


@pytest.fixture
def videos(tmp_path):
    """A folder with a video file and a folder of frames."""
    return write_videos(tmp_path / "videos")
