"""scripts/extract_vidstg_frames.py: arguments that name nothing."""

import sys

import pytest

from sama.scripts.extract_vidstg_frames import main


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
    paths = [str(tmp_path / name) for name in (videos, annotations, "output")]
    monkeypatch.setattr(sys, "argv", ["extract_vidstg_frames.py", *paths, "--workers", workers])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2 and message in capsys.readouterr().err
