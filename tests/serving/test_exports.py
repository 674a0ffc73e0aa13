"""Files to download: what is in them is what was answered, and nothing remains of one that is not complete."""

import io
import json
import os
import tracemalloc
import zipfile
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from video_files import quarters, turn, write_clip

from sama.drawing.regions import label_masks
from sama.objects_sama import MaskTrack
from sama.overlay_sama import object_color, overlay_masks
from sama.serving.answer_files import draw_objects
from sama.serving.exports import FORMATS, ExportObject, export, frame_ranges
from sama.serving.media import FileRefused
from sama.video_sama import SamaVideo


NUM_FRAMES = 6
MESSAGES = [
    {"role": "user", "content": [{"type": "video_url", "video_url": {"file_id": "file-0"}}]},
    {"role": "assistant", "content": "Der Würfel \ud83d.", "objects": [{"id": "o1", "phrase": "Der Würfel"}]},
]  # fmt: skip


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    clip = write_clip(folder / "clip.mp4", NUM_FRAMES, sound=("aac", 16000))
    return Path(turn(clip, folder / "turned.mp4", 90, mirrored=False))  # 48 wide, 80 high


@pytest.fixture
def video(path) -> SamaVideo:
    return SamaVideo.open(str(path))


def track(video, frames, rows, columns) -> MaskTrack:
    """A rectangle that goes down by one row a frame."""
    masks = np.zeros((len(video), video.height, video.width), dtype=bool)
    for index in frames:
        masks[index, rows[0] + index : rows[1] + index, columns[0] : columns[1]] = True
    return MaskTrack.from_masks(masks)


@pytest.fixture
def objects(video) -> list[ExportObject]:
    return [
        ExportObject(3, "the “second” one", (255, 255, 0), track(video, [1, 2, 4], (40, 60), (20, 40))),
        ExportObject(1, "the cube", object_color(0), track(video, range(NUM_FRAMES), (5, 25), (5, 15))),
        ExportObject(2, "the cube", object_color(1), track(video, [], (0, 0), (0, 0))),
    ]


# ---- the overlay ----------------------------------------------------------------------------------------------------


def test_the_overlay_is_the_video_with_its_masks_and_its_sound(tmp_path, video, objects):
    written = export(tmp_path, "mp4", video, objects, name="my clip/ü")
    assert (written.filename, written.media_type) == ("my_clip_masks.mp4", "video/mp4")
    drawn = SamaVideo.open(str(written.path))
    assert (len(drawn), drawn.height, drawn.width, drawn.fps) == (NUM_FRAMES, 80, 48, 8.0)
    colors = {one.number: one.color for one in objects}
    for index, frame in enumerate(drawn):
        expected = draw_objects(video, index, {one.number: one.track for one in sorted(objects, key=number)}, colors)
        assert np.abs(frame.astype(int) - expected).mean() < 8
        assert np.abs(expected.astype(int) - video[index]).mean() > 1  # the masks are visible
    with av.open(str(written.path)) as container:
        assert [stream.type for stream in container.streams] == ["video", "audio"]
        assert container.streams.audio[0].codec_context.name == "aac"


def number(one: ExportObject) -> int:
    return one.number


def test_a_chosen_colour_is_drawn(video):
    one = track(video, [0], (10, 70), (10, 40))
    assert (draw_objects(video, 0, {7: one}, {7: (1, 2, 3)})[60, 10] == (1, 2, 3)).all()  # on its outline
    assert (draw_objects(video, 0, {7: one})[60, 10] == object_color(6)).all()


def test_objects_are_drawn_one_after_another(video):
    rng = np.random.default_rng(0)
    masks = rng.random((5, len(video), video.height, video.width)) < 0.5
    masks[:, :, 20:60, 10:30] |= np.array([1, 1, 0, 1, 1], dtype=bool)[:, None, None, None]  # they overlap
    masks[3] = False
    tracks = {number: MaskTrack.from_masks(one) for number, one in enumerate(masks, start=1)}
    colors = [object_color(number - 1) for number in tracks]
    together = overlay_masks(video[2], masks[:, 2], colors)
    together = label_masks(together, masks[:, 2], [str(number) for number in tracks], colors)
    assert np.array_equal(draw_objects(video, 2, tracks), together)


def test_many_objects_of_large_frames_take_the_memory_of_one():
    picture = SamaVideo.open(Image.new("RGB", (1000, 800)))
    tracks = {number: MaskTrack(1, 800, 1000) for number in range(1, 101)}
    for number, one in tracks.items():
        one.set_rle(0, {"size": [800, 1000], "counts": [number * 1000, 100, 800_000 - 100 - number * 1000]})
    tracemalloc.start()
    draw_objects(picture, 0, tracks)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50 * 800_000  # half of what the masks take together


def test_the_overlay_of_a_picture_is_a_picture(tmp_path):
    picture = SamaVideo.open(Image.fromarray(quarters()))
    one = ExportObject(1, "", object_color(0), track(picture, [0], (5, 25), (5, 15)))
    written = export(tmp_path, "mp4", picture, [one])
    assert (written.filename, written.media_type) == ("conversation_masks.png", "image/png")
    expected = draw_objects(picture, 0, {1: one.track})
    assert np.array_equal(np.asarray(Image.open(written.path)), expected)


# ---- the masks ------------------------------------------------------------------------------------------------------


def test_the_masks_as_pictures(tmp_path, video, objects):
    written = export(tmp_path, "png", video, objects)
    assert (written.filename, written.media_type) == ("conversation_masks.zip", "application/zip")
    with zipfile.ZipFile(written.path) as archive:
        assert archive.testzip() is None
        names = set(archive.namelist())
        first = {f"o1/{index:05d}.png" for index in range(NUM_FRAMES)}
        assert names == first | {f"o3/{index:05d}.png" for index in (1, 2, 4)} | {"objects.json"}
        for one in objects:
            for index in one.track.visible_frames():
                image = Image.open(io.BytesIO(archive.read(f"o{one.number}/{index:05d}.png")))
                assert image.mode == "L"
                assert np.array_equal(np.asarray(image), one.track[index] * np.uint8(255))
        described = json.loads(archive.read("objects.json"))
    assert described == {
        "num_frames": NUM_FRAMES,
        "height": 80,
        "width": 48,
        "fps": 8.0,
        "objects": [
            {"id": "o1", "phrase": "the cube", "color": "#ff4068", "frames": [[0, 5]]},
            {"id": "o2", "phrase": "the cube", "color": "#00beff", "frames": []},
            {"id": "o3", "phrase": "the “second” one", "color": "#ffff00", "frames": [[1, 2], [4, 4]]},
        ],
    }


def test_the_masks_as_coco(tmp_path, video, objects, capsys):
    written = export(tmp_path, "coco", video, objects, name="clip")
    assert (written.filename, written.media_type) == ("clip_coco.json", "application/json")
    data = COCO(str(written.path))
    assert [(one["id"], one["name"]) for one in data.loadCats(data.getCatIds())] == [
        (1, "the cube"),
        (2, "the “second” one"),
    ]
    images = data.loadImgs(data.getImgIds())
    assert [one["frame_index"] for one in images] == list(range(NUM_FRAMES))
    assert {(one["width"], one["height"]) for one in images} == {(48, 80)}
    found = {}
    for annotation in data.loadAnns(data.getAnnIds()):
        frame = annotation["image_id"] - 1
        mask = data.annToMask(annotation).astype(bool)
        found[annotation["track_id"], frame] = mask
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box = [columns[0], rows[0], len(columns), len(rows)]
        assert (annotation["area"], annotation["bbox"], annotation["iscrowd"]) == (mask.sum(), box, 0)
        assert annotation["category_id"] == {1: 1, 3: 2}[annotation["track_id"]]
    assert set(found) == {(one.number, frame) for one in objects for frame in one.track.visible_frames()}
    for one in objects:
        for frame in one.track.visible_frames():
            assert np.array_equal(found[one.number, frame], one.track[frame])


def test_coco_without_objects_and_without_phrases(tmp_path, video, objects, capsys):
    assert COCO(str(export(tmp_path, "coco", video, []).path)).getAnnIds() == []
    data = COCO(str(export(tmp_path, "coco", video, [replace(objects[0], phrase="")]).path))
    assert [one["name"] for one in data.loadCats(data.getCatIds())] == ["object 3"]


# ---- the conversation -----------------------------------------------------------------------------------------------


def test_the_conversation_can_be_sent_again(tmp_path, video, objects):
    written = export(tmp_path, "json", video, objects, MESSAGES)
    assert (written.filename, written.media_type) == ("conversation.json", "application/json")
    content = written.path.read_bytes()
    assert "Würfel".encode() in content  # readable
    assert json.loads(content) == {"format": "sama-conversation", "version": 1, "messages": MESSAGES}


# ---- all of them ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
def test_the_same_content_gives_the_same_bytes(tmp_path, video, objects, format):
    contents = set()
    for name in "ab":
        (tmp_path / name).mkdir()
        written = export(tmp_path / name, format, video, objects[:: 1 if name == "a" else -1], MESSAGES)
        contents.add(written.path.read_bytes())
    assert len(contents) == 1


class Stopped(Exception):
    pass


@pytest.mark.parametrize("format", FORMATS)
def test_nothing_remains_of_an_export_that_is_not_complete(tmp_path, video, objects, format):
    with pytest.raises(FileRefused, match=r"The export has more than 100 bytes \(--max-export-bytes\)") as caught:
        export(tmp_path, format, video, objects, MESSAGES, max_bytes=100)
    assert caught.value.status == 413
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("format", ["mp4", "png", "coco"])
def test_an_export_can_be_stopped_between_two_frames(tmp_path, video, objects, format):
    def progress(frames):
        yield from frames[:2]
        raise Stopped

    with pytest.raises(Stopped):
        export(tmp_path, format, video, objects, progress=progress)
    assert os.listdir(tmp_path) == []


def test_what_does_not_fit_together(tmp_path, video, objects):
    with pytest.raises(ValueError, match="is one of mp4, png, coco, json, got 'gif'"):
        export(tmp_path, "gif", video, objects)
    with pytest.raises(ValueError, match="Object 1 occurs 2 times"):
        export(tmp_path, "png", video, [objects[1], objects[1]])
    short = replace(objects[0], track=MaskTrack(NUM_FRAMES - 1, 80, 48))
    with pytest.raises(ValueError, match=r"object 3 are .* = \(5, 80, 48\), but the video is \(6, 80, 48\)"):
        export(tmp_path, "coco", video, [short])


@pytest.mark.parametrize(
    ("frames", "ranges"), [([], []), ([3], [[3, 3]]), ([0, 1, 2, 5, 7, 8], [[0, 2], [5, 5], [7, 8]])]
)
def test_frame_ranges(frames, ranges):
    assert frame_ranges(frames) == ranges


@pytest.mark.parametrize(
    ("name", "filename"),
    [("clip.mp4", "clip.mp4_coco.json"), ('a"\r\nX: b', "a_X_b_coco.json"), ("../..", "conversation_coco.json")],
)
def test_names_of_downloads_are_plain(tmp_path, video, name, filename):
    assert export(tmp_path, "coco", video, [], name=name).filename == filename
