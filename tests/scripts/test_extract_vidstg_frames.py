"""scripts/extract_vidstg_frames.py: which frames are written, damaged videos, and arguments that name nothing."""

import re
import sys

import pytest
from video_files import damage, write_clip

from sama.scripts.extract_vidstg_frames import attempt, main


@pytest.fixture
def whole(tmp_path):
    """A video of 20 frames whose index lies in front."""
    path = tmp_path / "whole.mp4"
    write_clip(path, 20, options={"movflags": "faststart"})
    return path


def test_every_fourth_frame_of_a_whole_video(whole, tmp_path):
    assert attempt(whole, tmp_path / "output") == ("whole", 5, "")
    names = {path.name for path in (tmp_path / "output" / "whole").iterdir()}
    assert names == {f"frame_{index}.jpg" for index in (0, 4, 8, 12, 16)}
    assert attempt(whole, tmp_path / "output") == ("whole", 0, "")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["cut", "damaged"])
def test_no_folder_of_a_video_that_is_not_whole(whole, tmp_path, kind):
    """A folder would be skipped by each later run, also when the video was downloaded again."""
    path, output = tmp_path / f"{kind}.mp4", tmp_path / "output"
    if kind == "cut":
        path.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * 0.7)])
        message = r"only \d+ of its 20 frames can be decoded; download it again"
    else:
        damage(whole, path, 4)  # a key frame, which is frame 4
        message = r"\d frames are damaged, first 4; download it again"
    name, written, error = attempt(path, output)
    assert (name, written) == (kind, 0) and re.fullmatch(message, error)
    assert not output.exists() or not any(output.iterdir())


@pytest.mark.parametrize(
    ("videos", "annotations", "workers", "message"),
    [
        ("none", "annotations", "1", "there is no folder"),
        ("videos", "none", "1", "there is no folder"),
        ("videos", "annotations", "1", "holds no .mp4 file"),
        ("videos", "annotations", "0", "--workers is 0, expected 1 or more"),
    ],
)
def test_arguments_that_name_nothing(tmp_path, capsys, monkeypatch, videos, annotations, workers, message):
    for name in ("videos", "annotations"):
        (tmp_path / name).mkdir()
    (tmp_path / "videos" / "._1.mp4").touch()  # hidden
    paths = [str(tmp_path / name) for name in (videos, annotations, "output")]
    monkeypatch.setattr(sys, "argv", ["extract_vidstg_frames.py", *paths, "--workers", workers])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2 and message in capsys.readouterr().err
