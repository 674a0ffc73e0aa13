"""Videos and masks that people have: hidden files, damaged names, folders of other files beside the frames."""

import json
import os

import numpy as np
import pytest
from moving_squares import SIZE, moving, scene_line
from PIL import Image

from sama.annotation.command import parse
from sama.annotation.export import description_messages, make_record
from sama.annotation.held_out import HeldOut
from sama.annotation.objects import list_videos, read_scenes
from sama.annotation.provenance import video_hash
from sama.annotation.sama239k import write_sama239k
from sama.annotation.scenes import BrokenScene, Scene
from sama.annotation.schema import Statement
from sama.data.records import DataError


def test_hidden_files_are_neither_videos_nor_frames_nor_masks(videos, tmp_path):
    for name in (".DS_Store", "._clip.mp4", "folder/._f7.png"):
        (videos / name).write_bytes(b"\0")
    (videos / ".ipynb_checkpoints").mkdir()
    assert [scene.id for scene in list_videos(videos, "s")] == ["s/clip.mp4", "s/folder"]
    masks = tmp_path / "masks" / "folder"
    masks.mkdir(parents=True)
    for number in range(7, 13):
        Image.fromarray(np.full(SIZE, 1, dtype=np.uint8)).save(masks / f"f{number}.png")
    (masks / "._f7.png").write_bytes(b"\0")
    (masks.parent / ".ipynb_checkpoints").mkdir()
    (scene,) = read_scenes(videos, masks.parent, "s")
    assert len(scene.visual["frames"]) == len(scene.objects[0].masks) == 6
    assert len(HeldOut([videos])) == 2


def test_nulls_of_a_record_are_missing(videos, tmp_path):
    video = {"path": "clip.mp4", "stride": None, "frames": None, "num_frames": None, "upright": None}
    (tmp_path / "objects.jsonl").write_text(
        scene_line("clip.mp4", video=video, image=None, expressions=None, messages=None,
                   info={"licence": "cc0", "url": None})
        + scene_line("folder", objects=None) + scene_line("clip.mp4", video=None)
    )  # fmt: skip
    first, *broken = read_scenes(videos, tmp_path / "objects.jsonl", "s")
    assert len(first.objects) == 1 and first.info == {"licence": "cc0"} and first.visual == {"path": "clip.mp4"}
    for one, words in zip(broken, ("--propose", "needs a video or an image"), strict=True):
        assert isinstance(one.error, DataError) and words in str(one.error)


def test_a_video_that_is_written_otherwise_is_the_same(videos, tmp_path):
    names = [{"path": "clip.mp4"}, {"path": "./clip.mp4"}, {"path": "clip.mp4", "stride": 1}]
    (tmp_path / "objects.jsonl").write_text("".join(scene_line(f"{i}", video=name) for i, name in enumerate(names)))
    first, *others = read_scenes(videos, tmp_path / "objects.jsonl", "s")
    assert isinstance(first, Scene)
    assert all("that of line 1, too" in str(one.error) for one in others) and len(others) == 2


def test_masks_of_0_and_255_alone_are_explained(videos, tmp_path):
    folder = tmp_path / "masks" / "folder"
    folder.mkdir(parents=True)
    picture = Image.fromarray(np.full(SIZE, 255, dtype=np.uint8))
    picture.save(folder / "f7.png")
    (binary,) = read_scenes(videos, folder.parent, "s")
    assert "masks/folder: has no value but 255, which is void" in str(binary.error) and "from 1" in str(binary.error)
    Image.new("L", SIZE[::-1]).save(folder / "f7.png")
    (empty,) = read_scenes(videos, folder.parent, "s")
    assert "--propose" in str(empty.error)


@pytest.mark.parametrize("name", ["thumb.mp4", "film.rm", "more"])
def test_what_lies_beside_held_out_frames_is_not_overlooked(videos, name):
    if name == "more":
        (videos / "folder" / name).mkdir()
    else:
        (videos / "folder" / name).write_bytes((videos / "clip.mp4").read_bytes())
    with pytest.raises(DataError, match=f"{name}.*move"):
        HeldOut([videos])


def test_a_folder_with_frames_and_a_video_is_neither(videos):
    (videos / "folder" / "folder.mp4").write_bytes((videos / "clip.mp4").read_bytes())
    clip, folder = list_videos(videos, "s")
    assert isinstance(folder, BrokenScene) and "also the video 'folder.mp4'" in str(folder.error)
    assert isinstance(clip, Scene)


@pytest.mark.parametrize("name", ["/elsewhere/clip", "../clip", "a" * 300, "folder/../clip"])
def test_one_bad_name_in_a_mask_file_leaves_the_others(videos, tmp_path, name):
    track = list(moving(4).masks)
    (tmp_path / "masks.json").write_text(json.dumps({f"{name}/1": track, "clip/1": track}))
    bad, good = read_scenes(videos, tmp_path / "masks.json", "s")
    assert isinstance(bad, BrokenScene) and isinstance(good, Scene) and good.id == "s/clip"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_a_folder_without_permission_leaves_the_others(videos):
    (videos / "folder").chmod(0)
    clip, folder = list_videos(videos, "s")
    assert isinstance(folder, BrokenScene) and isinstance(clip, Scene)


def test_a_folder_that_a_record_names_without_its_frames_is_that_of_its_frames(videos, tmp_path):
    (tmp_path / "masks.jsonl").write_text(scene_line("folder"))
    (scene,) = read_scenes(videos, tmp_path / "masks.jsonl", "s")
    listed = next(one for one in list_videos(videos, "s") if one.visual["path"] == "folder")
    assert scene.visual["frames"] == [f"f{number}.png" for number in range(7, 13)]
    assert video_hash(scene) == video_hash(listed) and len(scene.open()) == 6


def test_upright_frames_are_exported_as_they_are_annotated(tmp_path):
    picture = np.zeros((*SIZE, 3), dtype=np.uint8)
    picture[: SIZE[0] // 2] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # half a turn
    (tmp_path / "clip").mkdir()
    for number in range(6):
        Image.fromarray(picture).save(tmp_path / "clip" / f"{number}.jpg", exif=exif, quality=95)
    names = [f"{number}.jpg" for number in range(6)]
    for upright in (True, False):
        visual = {"path": "clip", "frames": names, **({"upright": True} if upright else {})}
        scene = Scene("v", "s", visual, (moving(4),), tmp_path)
        messages = description_messages(1, [Statement(text="A square.", first=0, last=5)], ["4"])
        (tmp_path / "records.jsonl").write_text(json.dumps(make_record(scene, "v/description", messages)) + "\n")
        write_sama239k(tmp_path / "records.jsonl", tmp_path, tmp_path / f"out {upright}")
        stored = next((tmp_path / f"out {upright}").rglob("00000.jpg"))
        with Image.open(stored) as image:
            pixels = np.asarray(image)  # as stored
        assert np.abs(pixels.astype(int) - scene.open()[0].astype(int)).max() < 16


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (("--source", "s", "--videos", "v"), "--videos"),
        (("--source", "s", "--name", "mine"), "--name"),
        (("--propose", "m", "--videos", "v", "--mask-origin", "people"), "--mask-origin"),
        (("--masks", "m", "--videos", "v", "--propose-request", "Describe it."), "--propose-request"),
        (("--masks", "m", "--videos", "v", "--blind-terms", "yes"), "--blind-terms"),
        (("--masks", "m", "--videos", "v", "--blind-revision", "1"), "--blind-revision"),
    ],
)
def test_options_without_effect_are_refused(options, name, capsys):
    needed = ("--output", "o", "--endpoint", "http://localhost", "--model", "a", "--verifier-model", "b")
    with pytest.raises(SystemExit):
        parse([*needed, *options])
    assert f"{name} has no effect with" in capsys.readouterr().err
