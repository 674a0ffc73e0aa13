"""A run over 1,000 videos with an endpoint that fails, which is killed twice: see `many_videos.py`."""

import many_videos
import pytest


@pytest.mark.slow
def test_a_thousand_videos_with_faults_and_kills_lose_and_repeat_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", many_videos.KEY)
    figures = many_videos.run(tmp_path, many_videos.NUM_VIDEOS)
    assert figures.problems == []
    assert set(figures.faults) == {
        *many_videos.PASSING,
        *many_videos.LASTING,
        *many_videos.OF_DIALOGUES,
        "insufficient_quota",
    }
    assert 0.1 < sum(figures.faults.values()) / figures.calls < 0.15
