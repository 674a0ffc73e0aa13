"""The store of uploaded files: what arrives whole stays once, what does not leaves nothing, and what is used stays."""

import errno
import hashlib
import os
import signal
import subprocess
import sys
import threading
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from upload_limits import SmallLimits
from video_files import write_clip

from sama.serving import conversion, file_locks, files, media
from sama.serving.files import FileMissing, FileRefused, FileStore, display_name, file_chunks
from sama.video_sama import SamaVideo


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return Path(write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4"))


@pytest.fixture
def in_process(monkeypatch):
    """Converts without a process of its own, whose start would take most of the time of a test."""
    monkeypatch.setattr(
        files, "convert", lambda path, folder, limits, costs, stop: media.normalise(path, folder, limits)
    )


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


def test_a_deleted_file_that_is_sent_again_stays(store, monkeypatch):
    """It is sent again just before its last user, who knows that it was deleted, removes it."""
    stored, locked = store.add([picture((1, 2, 3))]), store._locked

    def sent_again_before():
        monkeypatch.setattr(store, "_locked", locked)
        store.add([picture((1, 2, 3))])
        return locked()

    with store.use(stored.id):
        store.delete(stored.id)
        monkeypatch.setattr(store, "_locked", sent_again_before)
    assert store.get(stored.id).id == stored.id


def test_a_deletion_that_is_overtaken_by_the_same_file_has_no_effect(store, monkeypatch):
    stored, locked = store.add([picture((1, 2, 3))]), store._locked

    def sent_again_before():
        monkeypatch.setattr(store, "_locked", locked)
        store.add([picture((1, 2, 3))])
        return locked()

    monkeypatch.setattr(store, "_locked", sent_again_before)
    store.delete(stored.id)
    assert store.get(stored.id).id == stored.id


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


# ---- what leaves nothing --------------------------------------------------------------------------------------------


def test_a_file_that_is_too_large_is_refused_while_it_arrives(store):
    arrived = []

    def endless():
        while True:
            arrived.append(1)
            yield bytes(2**18)

    with pytest.raises(FileRefused, match="too large: at most 1,048,576 bytes are accepted") as caught:
        store.add(endless())
    assert caught.value.status == 413 and len(arrived) == 5
    assert left(store) == []


@pytest.mark.parametrize("error", [ConnectionResetError("gone"), GeneratorExit(), KeyboardInterrupt()])
def test_an_upload_that_is_cut_leaves_nothing(store, clip, error):
    def cut():
        yield clip.read_bytes()[:1000]
        raise error

    with pytest.raises(type(error)):
        store.add(cut())
    assert left(store) == []


@pytest.mark.parametrize(("content", "status"), [(b"", 400), (b"text", 415), (picture((1, 2, 3))[:50], 400)])
def test_a_file_that_is_refused_leaves_nothing(store, content, status):
    with pytest.raises(FileRefused) as caught:
        store.add([content], "secret name")
    assert caught.value.status == status
    assert left(store) == []


class FullDisk:
    """A file on a disk that is full after 1,000 bytes."""

    def __init__(self, path, mode):
        self.file, self.space = open(path, mode), 1000

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        self.file.close()

    def write(self, data):
        self.space -= len(data)
        if self.space < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(data)


def test_a_full_disk_is_a_refusal(store, clip, monkeypatch):
    monkeypatch.setattr(files, "open", FullDisk, raising=False)
    with pytest.raises(FileRefused, match="no space left on the server") as caught:
        store.add([clip.read_bytes()[:800], clip.read_bytes()[800:]])
    assert caught.value.status == 507
    monkeypatch.undo()
    assert left(store) == []


@pytest.mark.parametrize("name", ["VideoWriter", "json"])
def test_a_disk_that_is_full_when_the_copy_is_written(store, clip, monkeypatch, name):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    place = (media, "VideoWriter") if name == "VideoWriter" else (files.json, "dumps")
    monkeypatch.setattr(*place, full)
    with pytest.raises(FileRefused, match="no space left on the server") as caught:
        store.add(file_chunks(clip))
    assert caught.value.status == 507
    assert left(store) == []


def test_the_process_tells_of_a_full_disk(monkeypatch, tmp_path):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(conversion, "normalise", full)
    outcome = conversion._outcome("", "", SmallLimits(), conversion.ConversionLimits())
    assert outcome == {"refused": "There is no space left on the server for the file.", "status": 507}


UPLOAD = """
import sys, time
from upload_limits import SmallLimits
from sama.serving.files import FileStore, file_chunks

def chunks():
    content = open(sys.argv[2], "rb").read()
    yield content[:1000]
    print("arriving", flush=True)
    if sys.argv[3] == "arriving":
        time.sleep(60)
    yield content[1000:]

if sys.argv[3] == "converting":
    from sama.serving import files
    converted = files.convert
    def convert(*arguments):
        media = converted(*arguments)
        print("converting", flush=True)
        time.sleep(60)
    files.convert = convert
FileStore(sys.argv[1], SmallLimits()).add(chunks())
"""


@pytest.mark.parametrize("moment", ["arriving", "converting"])
def test_a_killed_process_leaves_only_what_the_next_one_sweeps(store, clip, moment, in_process):
    kept = store.add([picture((1, 2, 3))])
    command = [sys.executable, "-c", UPLOAD, str(store.folder), str(clip), moment]
    paths = [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        while process.stdout.readline().strip() != moment.encode():
            assert process.poll() is None
        beside = FileStore(store.folder, SmallLimits(), clock=store._clock)  # sees that the upload is in use
        incoming = [name for name in left(beside) if name.startswith("incoming-")]
        assert len(incoming) == 1
        process.send_signal(signal.SIGKILL)
    assert incoming[0] in left(store)
    after = FileStore(store.folder, SmallLimits(), clock=store._clock)
    assert left(after) == [kept.id.removeprefix("file-")]
    assert after.get(kept.id).num_frames == 1
    assert after.add(file_chunks(clip)).num_frames == 6  # sent again


def test_what_is_damaged_is_swept_at_the_start_and_can_come_again(store, clip):
    digest = store.add(file_chunks(clip)).id.removeprefix("file-")
    for damage in (
        lambda folder: (folder / "original").write_bytes(b"short"),
        lambda folder: (folder / "file.json").write_text("{"),
        lambda folder: (folder / "file.json").write_text("[1]"),
        lambda folder: (folder / "file.json").unlink(),
        lambda folder: (folder / "content.mp4").unlink(),
    ):
        damage(store.folder / digest)
        with pytest.raises(FileMissing):
            store.get(f"file-{digest}")
        assert store.add(file_chunks(clip)).num_frames == 6
        damage(store.folder / digest)
        assert left(FileStore(store.folder, SmallLimits(), clock=store._clock)) == []
        assert store.add(file_chunks(clip)).num_frames == 6


# ---- at the same time -----------------------------------------------------------------------------------------------


def test_two_uploads_of_the_same_bytes_at_once(store, clip, monkeypatch):
    """Both are converted before either is given its name."""
    barrier, results = threading.Barrier(2), []

    def convert(path, folder, limits, costs, stop):
        barrier.wait(10)
        return media.normalise(path, folder, limits)

    monkeypatch.setattr(files, "convert", convert)
    uploads = [
        threading.Thread(target=lambda name=name: results.append(store.add(file_chunks(clip), name))) for name in "ab"
    ]
    for upload in uploads:
        upload.start()
    for upload in uploads:
        upload.join()
    assert {stored.id for stored in results} == {results[0].id} and {stored.filename for stored in results} == {*"ab"}
    assert left(store) == [results[0].id.removeprefix("file-")]
    assert store.get(results[0].id).num_frames == 6


def test_a_known_file_does_not_wait_for_conversions(store, clip):
    stored = store.add(file_chunks(clip))
    for _ in range(files.MAX_CONVERSIONS):
        store._converting.acquire()
    results = []
    upload = threading.Thread(target=lambda: results.append(store.add(file_chunks(clip))), daemon=True)
    upload.start()
    upload.join(20)
    assert results == [stored]


def test_a_file_that_many_send_at_once_is_converted_few_times(store, clip, monkeypatch):
    converted = []

    def convert(path, folder, limits, costs, stop):
        converted.append(path)
        return media.normalise(path, folder, limits)

    monkeypatch.setattr(files, "convert", convert)
    uploads = [threading.Thread(target=lambda: store.add(file_chunks(clip))) for _ in range(12)]
    for upload in uploads:
        upload.start()
    for upload in uploads:
        upload.join()
    assert 1 <= len(converted) <= files.MAX_CONVERSIONS
    assert len(left(store)) == 1


# ---- how long files stay --------------------------------------------------------------------------------------------


def test_files_expire_after_their_last_use(store, clock):
    first, second = store.add([picture((1, 2, 3))]), store.add([picture((3, 2, 1))])
    clock.now += 900
    assert store.get(first.id).expires_at == first.expires_at + 900
    clock.now += 200
    with pytest.raises(FileMissing, match="it may have expired: send it again"):
        store.get(second.id)
    store.sweep()
    assert left(store) == [first.id.removeprefix("file-")]
    clock.now += 1000
    assert left(FileStore(store.folder, SmallLimits(), clock=clock)) == []


def test_the_least_recently_used_files_make_room(tmp_path, in_process, clock):
    store = FileStore(tmp_path / "store", SmallLimits(store_bytes=3 * 3 * 4096), clock=clock)  # three files of 3 each
    stored = []
    for value in range(3):
        stored.append(store.add([picture((value, 0, 0))]))
        clock.now += 1
    store.get(stored[0].id)  # now the second one is the oldest
    stored.append(store.add([picture((3, 0, 0))]))
    assert left(store) == sorted(stored[number].id.removeprefix("file-") for number in (0, 2, 3))


def test_a_file_in_use_is_kept(tmp_path, in_process, clock):
    store = FileStore(tmp_path / "store", SmallLimits(store_bytes=3 * 4096), clock=clock)
    other = FileStore(tmp_path / "store", SmallLimits(store_bytes=3 * 4096), clock=clock)
    stored = store.add([picture((1, 2, 3))])
    with store.use(stored.id) as used:
        clock.now += 5000
        assert used == stored
        with pytest.raises(FileRefused, match="all files together may have 12,288 bytes, and the others") as caught:
            other.add([picture((3, 2, 1))])
        assert caught.value.status == 507
        other.sweep()
        assert left(store) == [stored.id.removeprefix("file-")]
    assert store.get(stored.id).id == stored.id  # its time begins again when its use ends
    later = other.add([picture((3, 2, 1))])
    assert left(store) == [later.id.removeprefix("file-")]


def test_a_deleted_file_is_gone_when_its_last_user_is_done(store, clip):
    stored = store.add(file_chunks(clip))
    with store.use(stored.id):
        path = store.path(stored.id)
        store.delete(stored.id)
        with pytest.raises(FileMissing):
            store.get(stored.id)
        assert path.read_bytes() == clip.read_bytes()
    assert left(store) == []
    with pytest.raises(FileMissing):
        store.delete(stored.id)
    assert store.add(file_chunks(clip)).id == stored.id
    store.delete(stored.id)
    assert left(store) == []


def test_a_file_that_is_deleted_while_a_frame_is_read_is_gone_afterwards(store, clip, monkeypatch):
    stored = store.add(file_chunks(clip))
    read_frame = files.read_frame

    def delete_and_read(*arguments):
        store.delete(stored.id)
        return read_frame(*arguments)

    monkeypatch.setattr(files, "read_frame", delete_and_read)
    assert store.frame(stored.id, 0)
    assert left(store) == []


def test_a_file_that_cannot_fit_costs_nobody_else(tmp_path, in_process, clock):
    """Nothing is removed for an upload that is refused all the same."""
    store = FileStore(tmp_path / "store", SmallLimits(store_bytes=4 * 4096), clock=clock)
    kept = store.add([picture((1, 2, 3))])
    with pytest.raises(FileRefused, match="in use or too small to make room") as caught:
        store.add([bytes(5 * 4096)])
    assert caught.value.status == 507 and left(store) == [kept.id.removeprefix("file-")]


def test_a_deleted_file_that_comes_again_while_it_is_used_stays(store, clip):
    stored = store.add(file_chunks(clip))
    with store.use(stored.id):
        store.delete(stored.id)
        store.add(file_chunks(clip))
    assert store.get(stored.id).num_frames == 6


def test_an_error_while_a_file_is_used_is_passed_on(store, clip):
    stored = store.add(file_chunks(clip))
    for error in (FileNotFoundError("mine"), KeyError("mine")):
        with pytest.raises(type(error), match="mine"), store.use(stored.id):
            raise error


@pytest.mark.skipif(not file_locks.HAS_LOCKS, reason="files are not locked on Windows")
def test_locks_suit_nfs(store, monkeypatch):
    """On NFS, a shared lock needs a file that is open for reading, and an exclusive one needs one open for writing."""
    fcntl, flock = file_locks.fcntl, file_locks.fcntl.flock

    def flock_of_nfs(descriptor, kind):
        mode = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
        if mode not in ((os.O_RDONLY, os.O_RDWR) if kind & fcntl.LOCK_SH else (os.O_WRONLY, os.O_RDWR)):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flock(descriptor, kind)

    monkeypatch.setattr(fcntl, "flock", flock_of_nfs)
    stored = store.add([picture((1, 2, 3))])
    store.get(stored.id)
    store.delete(stored.id)
    store.sweep()
    assert left(store) == []
