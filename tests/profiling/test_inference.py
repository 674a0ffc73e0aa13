"""profiling/inference.py at small sizes: its counts, and that its calls exist."""

import pytest

from sama.profiling import inference
from sama.resources import SMALL_MODEL


@pytest.fixture(scope="module")
def loaded():
    return inference.load(str(SMALL_MODEL))


def test_later_turns_encode_no_frame_again(loaded, tmp_path, monkeypatch):
    make_video = inference.make_video
    monkeypatch.setattr(inference, "make_video", lambda folder, number: make_video(folder, 8))
    table = inference.measure_calls(*loaded, tmp_path)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
    first, second, third = ([int(cell) for cell in row] for row in rows[2:])
    assert (first[1], second[1], third[1]) == (1, 4, 8)
    assert first[3] == second[3] == third[3] > 0, "frames through the vision tower"
    assert first[4] == second[4] == third[4] == 8, "frames through SAM 2"


def test_a_turn_is_compared_with_a_conversation_that_is_read_anew(loaded, tmp_path, monkeypatch):
    make_video = inference.make_video
    monkeypatch.setattr(inference, "make_video", lambda folder, number: make_video(folder, 8))
    table = inference.measure_turns(*loaded, tmp_path)
    assert "tokens" in table and table.count("\n") >= 3
