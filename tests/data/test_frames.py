"""Pictures and videos behind a record: stored pixels for annotations, and paths that cannot be opened."""

import numpy as np
import pytest
from PIL import Image
from video_files import cut, turn, write_clip

from sama.data.frames import StridedFrames, image_size, open_visual, safe_path, visual_key
from sama.data.records import DataError, validate_record
from sama.video_sama import SamaVideo


def record(**visual):
    question = {"role": "user", "content": [{"type": "text", "text": "What is there?"}]}
    return validate_record({"id": "s/1", "source": "s", "messages": [question], **visual})


@pytest.fixture
def sideways(tmp_path):
    """A picture of 48 rows and 32 columns that viewers show turned, twice."""
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = np.arange(48 * 32 * 3, dtype=np.uint32).reshape(48, 32, 3).astype(np.uint8)
    for name in ("0.png", "1.png", "0.tif"):
        Image.fromarray(stored).save(tmp_path / name, exif=exif.tobytes())
    return stored


def test_one_video_has_one_key_however_it_is_written():
    same = [
        {"path": "a.mp4"},
        {"path": "./a.mp4", "frames": None, "num_frames": None},
        {"stride": 1, "upright": False, "path": "a.mp4"},
        {"path": "a.mp4", "stride": None, "upright": None},
    ]
    assert len({visual_key({"video": video}) for video in same}) == 1
    others = [
        {"path": "b/a.mp4"},
        {"path": "a.mp4", "stride": 2},
        {"path": "a.mp4", "upright": True},
        {"path": "a.mp4", "num_frames": 1},
        {"path": "a.mp4", "frames": ["1.png"]},
        {"toy": {"seed": 1}},
    ]
    assert len({visual_key({"video": video}) for video in (same[0], *others)}) == len(others) + 1
    assert visual_key({"image": same[0]}) != visual_key({"video": same[0]}) and visual_key({}) is None
    with pytest.raises(DataError, match=r"field 'video\.path': leaves the data folder"):
        visual_key({"video": {"path": "../a.mp4"}})


def test_annotations_lie_on_the_stored_pixels(tmp_path, sideways):
    for name in ("0.png", "0.tif"):
        np.testing.assert_array_equal(open_visual(record(image={"path": name}), tmp_path)[0], sideways)
        assert image_size(tmp_path / name) == (48, 32)
    video = open_visual(record(video={"path": ".", "frames": ["0.png", "1.png"]}), tmp_path)
    np.testing.assert_array_equal(video[1], sideways)


def test_a_record_may_say_that_pictures_are_turned(tmp_path, sideways):
    turned = np.rot90(sideways, -1)
    np.testing.assert_array_equal(open_visual(record(image={"path": "0.png", "upright": True}), tmp_path)[0], turned)
    video = open_visual(record(video={"path": ".", "frames": ["0.png", "1.png"], "upright": True}), tmp_path)
    np.testing.assert_array_equal(video[1], turned)
    with pytest.raises(DataError, match="field 'image.upright'.*true or false is expected"):
        record(image={"path": "0.png", "upright": 1})


def test_videos_are_as_a_player_shows_them(tmp_path):
    cut(turn(write_clip(tmp_path / "a.mp4", 8), tmp_path / "b.mp4", 90, False), tmp_path / "c.mp4", 0.25)
    video = open_visual(record(video={"path": "c.mp4", "stride": 2}), tmp_path)
    assert (len(video), video.height, video.width) == (3, 80, 48)
    assert video.sound is None and video.fps == 4


def test_times_of_every_second_frame(tmp_path):
    times = [0.0, 0.1, 0.2, 0.5, 0.6, 1.4]
    video = SamaVideo.open(write_clip(tmp_path / "uneven.mp4", 6, times))
    assert np.allclose(SamaVideo(StridedFrames(video, 2)).times, [0, 0.2, 0.6, video.times[-1]], atol=1e-3)
    assert np.allclose(SamaVideo(StridedFrames(video, 2, 2)).times, [0, 0.2, 0.6], atol=1e-3)


def test_an_animated_picture_is_no_image(tmp_path):
    pictures = [Image.new("RGB", (8, 8), (value, 0, 0)) for value in (0, 200)]
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:])
    with pytest.raises(DataError, match="s, item s/1, field 'image.path': .*a.gif' is a video of 2 frames"):
        open_visual(record(image={"path": "a.gif"}), tmp_path)
    assert len(open_visual(record(video={"path": "a.gif"}), tmp_path)) == 2


def test_paths_that_cannot_be_opened(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    for name in ("loop", "x" * 300, "\ud800.png"):
        with pytest.raises(DataError, match="field 'image.path'"):
            open_visual(record(image={"path": name}), tmp_path)
        with pytest.raises((DataError, ValueError)):
            SamaVideo.open(safe_path(tmp_path, name, field="image.path"))


def test_a_picture_of_too_many_pixels(tmp_path, sideways, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(DataError, match="has 1,536 pixels; a picture may have 1,000 at most"):
        image_size(tmp_path / "0.png", "image")
    with pytest.raises(DataError, match="has 1,536 pixels"):
        open_visual(record(image={"path": "0.png"}), tmp_path)
