"""The store of uploaded files: what arrives whole stays once, what does not leaves nothing, and what is used stays."""

import hashlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from upload_limits import SmallLimits
from video_files import write_clip

from sama.serving import files, media
from sama.serving.files import FileMissing, FileRefused, FileStore, display_name, file_chunks
from sama.video_sama import SamaVideo


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return Path(write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4"))


@pytest.fixture
def in_process(monkeypatch):
    """Converts without a process of its own, whose start would take most of the time of a test."""
    monkeypatch.setattr(files, "convert", lambda path, folder, limits, costs: media.normalise(path, folder, limits))


class Clock:
    now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path, in_process, clock) -> FileStore:
    return FileStore(tmp_path / "store", SmallLimits(), clock=clock)


def left(store: FileStore) -> list[str]:
    """What lies in the folder of a store."""
    return sorted(path.name for path in store.folder.iterdir() if path.name != ".lock")


def picture(color, suffix="png") -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (20, 10), color).save(buffer, suffix)
    return buffer.getvalue()


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(data)))


# ---- what is stored -------------------------------------------------------------------------------------------------


def test_a_video_is_stored_with_a_playable_copy(tmp_path, clip, clock):
    """Through the real process."""
    store = FileStore(tmp_path / "store", SmallLimits(), clock=clock)
    stored = store.add(file_chunks(clip), "../holiday.mp4")
    content = clip.read_bytes()
    assert stored.id == "file-" + hashlib.sha256(content).hexdigest()
    assert (stored.filename, stored.kind, stored.bytes) == ("holiday.mp4", "video", len(content))
    assert (stored.width, stored.height, stored.num_frames, stored.fps, stored.duration) == (80, 48, 6, 8.0, 0.75)
    assert (stored.created_at, stored.expires_at, stored.warnings) == (clock.now, clock.now + 1000, ())
    assert store.get(stored.id) == stored
    assert store.path(stored.id).read_bytes() == content
    assert store.content(stored.id).suffix == ".mp4"
    assert len(SamaVideo.open(str(store.content(stored.id)))) == 6
    assert left(store) == [stored.id.removeprefix("file-")]


@pytest.mark.parametrize(("suffix", "copy"), [("png", ".png"), ("jpeg", ".jpg"), ("bmp", ".png")])
def test_a_picture_is_stored(store, suffix, copy):
    stored = store.add([picture((200, 30, 30), suffix)], "red")
    assert (stored.kind, stored.width, stored.height, stored.num_frames) == ("image", 20, 10, 1)
    assert (stored.fps, stored.duration) == (0, 0)
    assert store.content(stored.id).suffix == copy
    assert abs(pixels(store.frame(stored.id, 0)).astype(int) - (200, 30, 30)).max() <= 2
    assert abs(np.asarray(Image.open(store.content(stored.id))).astype(int) - (200, 30, 30)).max() <= 2


def test_a_frame_is_that_of_the_video(store, clip):
    stored, video = store.add(file_chunks(clip)), SamaVideo.open(str(clip))
    for index in (5, 0, 3):
        assert np.array_equal(pixels(store.frame(stored.id, index)), video[index])
    for index in (-1, 6):
        with pytest.raises(FileRefused, match=f"Frame {index} does not exist: the video has 6 frames") as caught:
            store.frame(stored.id, index)
        assert caught.value.status == 400


def test_the_same_bytes_are_one_file(store, clip, clock):
    first = store.add(file_chunks(clip), "first.mp4")
    clock.now += 500
    second = store.add(file_chunks(clip), "second.mp4")
    assert (second.id, second.filename, second.created_at) == (first.id, "second.mp4", first.created_at)
    assert second.expires_at == first.expires_at + 500
    assert len(left(store)) == 1


@pytest.mark.parametrize(
    "name", ["file-" + "0" * 64, "file-" + "A" * 64, "file-../../etc/passwd", "", None, "x" * 10**5]
)
def test_a_file_that_is_not_there(store, name):
    for method in (store.get, store.path, store.content, store.delete):
        with pytest.raises(FileMissing, match="There is no") as caught:
            method(name)
        assert caught.value.status == 404
        assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("clip.mp4", "clip.mp4"),
        ("C:\\films\\clip.mp4", "clip.mp4"),
        ("../../etc/passwd", "passwd"),
        ("a\r\nSet-Cookie: b\x00.mp4", "a Set-Cookie: b.mp4"),
        ("gnp.\u202e4pm.exe", "gnp.4pm.exe"),
        ("Straße  日本.mp4", "Straße 日本.mp4"),
        ("..", "upload"),
        ("", "upload"),
        ("x" * 500 + ".webm", "x" * 114 + "….webm"),
    ],
)
def test_names_are_for_display(given, shown):
    assert display_name(given) == shown
