"""profiling/operations.py: what is counted, and how this tracker compares with the release and with the limit."""

from dataclasses import astuple
from functools import cache

import pytest
import torch

from sama.profiling import operations
from sama.profiling.operations import Counts, Modules, count, limit, memory_sizes, meta_tracker, ours, release


PROMPTED, FRAMES = 2, 5  # the last one reads four memories


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


@pytest.fixture
def few_frames(monkeypatch):
    """Two prompted frames instead of five, and the last frame stands for the middle of a video: each counted operation
    costs a thousand times what it would cost to run."""
    monkeypatch.setattr(operations, "NUM_PROMPTED", PROMPTED)
    monkeypatch.setattr(operations, "settled_frame", lambda tracker: FRAMES - 1)


@cache
def counts(encoder: str, size: int, objects: int) -> list[Counts]:
    """Of the release, of ours and the limit, with [`few_frames`]."""
    tracker = meta_tracker(encoder, size)
    modules = Modules(tracker)
    return [release(modules, objects, FRAMES), ours(tracker, objects, FRAMES), limit(modules, objects, FRAMES)]


def test_a_product_and_an_attention():
    query, value = torch.empty(1, 1, 6, 8, device="meta"), torch.empty(1, 1, 10, 8, device="meta")
    assert count(lambda: query @ value.mT) == 2 * 6 * 10 * 8
    assert count(lambda: torch.nn.functional.scaled_dot_product_attention(query, value, value)) == 4 * 6 * 10 * 8


def test_released_modules_are_counted():
    """Of one layer of memory attention, by hand."""
    modules = Modules(meta_tracker("tiny", 64))
    cells, memories, pointers = 16, 2, 3
    tokens, layers = memories * cells + 4 * pointers, len(modules.sam.memory_attention.layers)
    projections = 2 * (6 * cells * 256 * 256 + 2 * tokens * 64 * 256 + 2 * cells * 256 * 2048)
    attention = 4 * cells * (cells + tokens) * 256
    assert modules.cells == cells and modules.attention(memories, pointers) == layers * (projections + attention)


@pytest.mark.parametrize("objects", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_objects_share_the_image_encoder(objects, few_frames):
    theirs, own, least = counts("tiny", 64, objects)
    encoder = Modules(meta_tracker("tiny", 64)).encoder
    # The finer levels for the second mask decoder are ours alone
    assert FRAMES * encoder <= own.first - own.later <= 1.01 * FRAMES * encoder
    assert least.first - least.later == FRAMES * encoder
    assert theirs.first == theirs.later and theirs.frame > objects * encoder
    assert least.frame <= own.frame and least.later <= own.later
    assert theirs.frame - own.frame >= (objects - 1) * encoder - 0.01 * encoder


def test_memories_grow_until_the_bank_is_full():
    tracker = meta_tracker("tiny", 64)
    sizes = [memory_sizes(index, tracker) for index in (5, 11, 12, 20, 30)]
    assert sizes == [(5, 5), (11, 11), (11, 12), (11, 20), (11, 20)] and operations.settled_frame(tracker) == 20


def test_true_size(few_frames):
    """Hiera-L at 1,024 pixels, four objects."""
    theirs, own, least = counts("large", 1024, 4)
    assert 1.5e12 < Modules(meta_tracker("large", 1024)).encoder < 2e12
    assert theirs.frame / own.frame > 2.5 and theirs.first / own.first > 2.5
    assert theirs.later / own.later > 5.0
    assert 1.0 <= own.frame / least.frame < 1.02 and 1.0 <= own.later / least.later < 1.02


@pytest.mark.slow
def test_whole_turns(few_frames, monkeypatch):
    """What is read counts once a turn, whatever the objects; in a later turn the release reads everything again."""
    tracker = meta_tracker("tiny", 64)
    monkeypatch.setattr(operations, "meta_tracker", lambda encoder, size: tracker)
    monkeypatch.setattr(operations, "language", lambda size, conversation: (10**15, 10**15, 10**12))
    row = operations.turns_table("1b", [2], FRAMES).splitlines()[2].split(" | ")
    theirs, own = release(Modules(tracker), 2, FRAMES), ours(tracker, 2, FRAMES)
    assert row[1:4] == [f"{(each.first + 10**15) / 1e9:,.0f}" for each in (theirs, own)] + ["1.0x"]
    assert row[5] == f"{(own.later + 10**12) / 1e9:,.0f}" and float(row[6].split("x")[0]) > 100


def test_table(few_frames, capsys, monkeypatch):
    """Each count in its place, of the sizes, objects and frames that were asked for."""
    found, asked = counts("tiny", 64, 1), []
    for name, each in zip(("release", "ours", "limit"), found, strict=True):

        def known(model: object, objects: int, frames: int, each: Counts = each) -> Counts:
            asked.append((model.config if isinstance(model, Modules) else model.mask_config, objects, frames))
            return each

        monkeypatch.setattr(operations, name, known)
    options = ["--encoder", "tiny", "--image_size", "64", "--objects", "3", "--frames", "9"]
    monkeypatch.setattr("sys.argv", ["operations.py", *options])
    operations.main()
    printed = capsys.readouterr().out
    assert asked == [(meta_tracker("tiny", 64).mask_config, 3, 9)] * 3
    parts = [" / ".join(operations.written(each) for each in part) for part in zip(*map(astuple, found), strict=True)]
    row = printed.splitlines()[-2]
    assert printed.startswith("### Hiera-tiny") and row.startswith("| 64 | 3 | ")
    assert [place for place, cell in enumerate(row.split(" | ")) if cell in parts] == [2, 5, 8]


def test_a_video_that_ends_too_early(capsys, monkeypatch):
    options = ["--encoder", "tiny", "--image_size", "64", "--objects", "1", "--frames", "20"]
    monkeypatch.setattr("sys.argv", ["operations.py", *options])
    with pytest.raises(SystemExit):
        operations.main()
    assert "A video of 20 frames is too short: frame 20 " in capsys.readouterr().err
