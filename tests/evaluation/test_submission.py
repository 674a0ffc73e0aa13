"""Zips for the servers of MeViS and Ref-YouTube-VOS, and what is found wrong with others."""

import io
import zipfile

import numpy as np
import pytest
from benchmark_answers import answer, box, masks, opened, predictions
from PIL import Image

from sama.benchmarks.benchmark import BenchmarkError, Prediction
from sama.evaluation.submission import check_submission, write_submission
from sama.metrics.submission import grey_mask, member_name


MIDDLE, LEFT = box(5, 5, 15, 15), box(5, 5, 10, 15)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAMA_CACHE", str(tmp_path / "cache"))


def mevis():
    return opened("mevis", split="valid")


def answers(benchmark) -> list[Prediction]:
    made = {
        "w1/0": masks([MIDDLE, None]),
        "w1/10": answer(("None.", [])),
        "w1/2": masks([LEFT, MIDDLE], [MIDDLE, None]),
    }
    return predictions(benchmark, made)


def written(tmp_path):
    write_submission(answers(mevis()), mevis(), tmp_path / "mevis.zip")
    return tmp_path / "mevis.zip"


def picture(archive: zipfile.ZipFile, name: str) -> Image.Image:
    return Image.open(io.BytesIO(archive.read(name)))


def png(values: np.ndarray, format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format=format)
    return buffer.getvalue()


def changed(path, drop: str = "", add: dict | None = None):
    """A copy of a zip without one member and with others."""
    other = path.with_name("changed.zip")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(other, "w") as target:
        for name in source.namelist():
            if name != drop:
                target.writestr(name, source.read(name))
        for name, content in (add or {}).items():
            target.writestr(name, content)
    return other


def test_zip_of_mevis(tmp_path):
    path = written(tmp_path)
    with zipfile.ZipFile(path) as archive:
        frames = [f"w1/{expression}/{frame}.png" for expression in ("0", "10", "2") for frame in ("00000", "00005")]
        assert archive.namelist() == frames
        first = picture(archive, "w1/0/00000.png")
        assert first.mode == "L" and np.unique(first).tolist() == [0, 255] and np.asarray(first).sum() == 255 * 100
        areas = [int((np.asarray(picture(archive, name)) > 0).sum()) for name in frames]
    # No [SEG] is an empty mask; two are united
    assert areas == [100, 0, 0, 0, 100, 100]
    assert check_submission(path, mevis()) == []
    again = tmp_path / "again.zip"
    write_submission(reversed(answers(mevis())), mevis(), again)
    assert again.read_bytes() == path.read_bytes()
    assert sorted(item.name for item in tmp_path.glob("*.zip*")) == ["again.zip", "mevis.zip"]


def test_zip_of_ref_youtube_vos(tmp_path):
    videos = opened("ref_youtube_vos")
    made = {"r1/0": masks([MIDDLE, None]), "r1/1": masks([MIDDLE, MIDDLE]), "r2/0": masks([LEFT])}
    write_submission(predictions(videos, made), videos, tmp_path / "rvos.zip")
    with zipfile.ZipFile(tmp_path / "rvos.zip") as archive:
        assert archive.namelist() == [
            "Annotations/r1/0/00000.png", "Annotations/r1/0/00005.png", "Annotations/r1/1/00000.png",
            "Annotations/r1/1/00005.png", "Annotations/r2/0/00000.png",
        ]  # fmt: skip
    assert check_submission(tmp_path / "rvos.zip", videos) == []
    problems = check_submission(written(tmp_path), videos)
    assert any("4 of 4 frames of the video 'r1' are missing" in line for line in problems)
    assert any("no frame of the expression file" in line and "Annotations" in line for line in problems)


@pytest.mark.parametrize(("preset", "area"), [("consistent", 50), ("published", 25)])
def test_the_release_writes_the_mask_of_the_first_seg(tmp_path, preset, area):
    valid = opened("mevis", split="valid", preset=preset)
    both = masks([box(5, 5, 10, 10), None], [box(10, 5, 15, 10), None])
    made = predictions(valid, {"w1/0": both, "w1/10": masks(), "w1/2": masks()})
    write_submission(made, valid, tmp_path / "mevis.zip")
    with zipfile.ZipFile(tmp_path / "mevis.zip") as archive:
        assert (np.asarray(picture(archive, "w1/0/00000.png")) > 0).sum() == area


def test_missing_answers_are_an_error(tmp_path):
    (first, *_), failed = answers(mevis()), Prediction("w1/2", error="OSError: the video cannot be read")
    with pytest.raises(BenchmarkError) as error:
        write_submission([first, failed], mevis(), tmp_path / "x.zip")
    assert str(error.value) == (
        "mevis (valid): 1 of 3 expressions were not asked, such as 'w1/10': run the whole benchmark first. "
        "1 of 3 expressions failed, such as 'w1/2' (OSError: the video cannot be read): remove the cause and run "
        "again with --retry_failed."
    )
    assert not list(tmp_path.glob("*x.zip*")) and not list(tmp_path.glob(".x*"))


def test_frames_must_be_those_of_the_expression_file(tmp_path):
    (first, *rest) = answers(mevis())
    short = Prediction(first.question, first.turns, 1, 20, 20)
    with pytest.raises(BenchmarkError, match="has 1 frames, the expression file 2"):
        write_submission([short, *rest], mevis(), tmp_path / "x.zip")


@pytest.mark.parametrize(
    ("drop", "content", "message"),
    [
        ("w1/2/00005.png", None, "1 of 6 frames of the video 'w1' are missing, such as 'w1/2/00005.png'"),
        ("w1/2/00005.png", np.zeros((20, 40), np.uint8), "is 20 x 40 (height x width), its video 20 x 20"),
        ("w1/2/00005.png", np.ones((20, 20), np.uint8), "contains the value 1, expected 0 and 255 only"),
        ("w1/2/00005.png", np.zeros((20, 20, 3), np.uint8), "is PNG in mode RGB, expected PNG in mode L"),
        ("w1/2/00005.png", b"no picture", "is not a readable image"),
        ("w1/2/00005.png", png(np.zeros((20, 20), np.uint8), "BMP"), "is BMP in mode L"),
    ],
)
def test_wrong_pictures_are_named(tmp_path, drop, content, message):
    content = png(content) if isinstance(content, np.ndarray) else content
    other = changed(written(tmp_path), drop, {} if content is None else {drop: content})
    (problem,) = check_submission(other, mevis())
    assert message in problem


def test_other_files_are_named(tmp_path):
    (problem,) = check_submission(changed(written(tmp_path), add={"w1/3/00000.png": b""}), mevis())
    assert "'w1/3/00000.png' is unexpected" in problem
    with pytest.warns(UserWarning, match="Duplicate name"):
        twice = changed(written(tmp_path), add={"w1/0/00000.png": png(np.zeros((20, 20), np.uint8))})
    assert "1 files occur more than once, such as 'w1/0/00000.png'" in check_submission(twice, mevis())[0]
    many = changed(written(tmp_path), add={f"x/{number}.png": b"" for number in range(30)})
    assert len(check_submission(many, mevis())) == 21
    (tmp_path / "no.zip").write_bytes(b"no zip")
    assert "is not a zip" in check_submission(tmp_path / "no.zip", mevis())[0]
    assert "There is no file" in check_submission(tmp_path / "absent.zip", mevis())[0]


def test_only_two_have_a_server():
    with pytest.raises(BenchmarkError, match="revos has no challenge server"):
        check_submission("x.zip", opened("revos"))
    with pytest.raises(BenchmarkError, match="mme has no challenge server"):
        write_submission([], opened("mme"), "x.zip")


def test_member_name():
    assert member_name("mevis", "v", "0", "00000") == "v/0/00000.png"
    assert member_name("ref_youtube_vos", "v", "0", "00000") == "Annotations/v/0/00000.png"
    with pytest.raises(ValueError, match="No archive format is known for 'davis'"):
        member_name("davis", "v", "0", "00000")


def test_grey_mask():
    found = grey_mask(np.array([[0, 1], [2, 0]]))
    assert found.dtype == np.uint8 and found.tolist() == [[0, 255], [255, 0]]
    with pytest.raises(ValueError, match=r"got \(2,\)"):
        grey_mask(np.zeros(2))
