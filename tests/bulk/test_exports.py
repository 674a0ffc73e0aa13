"""Exports hold the masks that went in, pixel by pixel, read as each tool reads its format."""

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from bulk_fixtures import CLIP, PICTURE, RING, cvat_pixels, surrounded, true_tracks, write_media, write_truth
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from sama.bulk.answers import SCHEMA, AnsweredVideo, decode, read_rows, read_videos
from sama.bulk.command import main
from sama.bulk.exports import FORMATS, WRITERS, check_names, export
from sama.bulk.exports.cvat import mask_points, write_cvat
from sama.bulk.exports.fiftyone import FIELD, sample_of
from sama.bulk.exports.frames import FrameWriter, frame_name, joined, rings_of
from sama.bulk.exports.label_studio import brush_runs
from sama.bulk.exports.yolo import write_yolo
from sama.bulk.pool import BulkError
from sama.data.masks import decode_rle, encode_rle


SPECKS = np.random.default_rng(0).random((13, 17)) < 0.5
MASKS = {"ring": RING, "specks": SPECKS, "all": np.ones((3, 5), dtype=bool), "corner": np.eye(4, dtype=bool)}


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    """The folder of the answers, and that of the media."""
    folder = tmp_path_factory.mktemp("truth")
    write_truth(folder / "answers")
    return folder / "answers", write_media(folder / "media")


def visible(track) -> list[int]:
    return [frame for frame, code in enumerate(track) if code is not None]


def number_of_masks() -> int:
    first, second = (len(visible(track)) for track in true_tracks()[:2])
    return 2 * first + second + 1


@pytest.mark.parametrize("level", [0.5, 0.9])
@pytest.mark.parametrize("name", MASKS)
def test_rings_surround_exactly_the_mask(name, level):
    mask = MASKS[name]
    rings = rings_of(mask, level)
    assert (np.logical_xor.reduce([surrounded(ring, mask.shape) for ring in rings]) == mask).all()
    assert (surrounded(joined(rings), mask.shape) == mask).all()


def test_parts_and_holes_are_rings():
    assert len(rings_of(MASKS["all"])) == 1
    assert len(rings_of(RING)) == 2 + (len(rings_of(MASKS["corner"])) > 1)


def brush_pixels(stream: list[int]) -> np.ndarray:
    """What Label Studio's decoder reads: see `label_studio_sdk.converter.brush.decode_rle`."""
    bits = "".join(f"{byte:08b}" for byte in stream)
    place = 0

    def take(count: int) -> int:
        nonlocal place
        place += count
        return int(bits[place - count : place], 2)

    total, word = take(32), take(5) + 1
    widths = [take(4) + 1 for _ in range(4)]
    values, lengths = [], []
    while sum(lengths) < total:
        is_run, length = take(1), take(widths[take(2)]) + 1
        values += [take(word) for _ in range(1 if is_run else length)]
        lengths += [length] if is_run else [1] * length
    return np.repeat(values, lengths).reshape(-1, 4)[:, 3]


@pytest.mark.parametrize("name", MASKS)
def test_brush_runs_are_read_back(name):
    mask = MASKS[name]
    assert (brush_pixels(brush_runs(mask)).reshape(mask.shape) == mask * 255).all()


def test_long_runs_are_written_in_parts():
    mask = np.zeros((256, 300), dtype=bool)
    mask[200:] = True
    assert (brush_pixels(brush_runs(mask)).reshape(mask.shape) == mask * 255).all()


@pytest.mark.parametrize("name", MASKS)
def test_cvat_points_are_read_back(name):
    assert (cvat_pixels(mask_points(MASKS[name]), MASKS[name].shape) == MASKS[name]).all()


def test_coco(truth, tmp_path):
    counts = export("coco", truth[0], tmp_path / "coco", truth[1], with_frames=True)
    assert counts == {"videos": 2, "frames": 25, "masks": number_of_masks()}
    read = COCO(tmp_path / "coco" / "annotations.json")
    assert [one["name"] for one in read.loadCats(read.getCatIds())] == ["the <b> & one", "it", "thing", "ring"]
    tracks = true_tracks()
    for number, track, score in ((1, tracks[0], 0.9), (2, tracks[1], None), (3, tracks[0], 0.5)):
        found = [
            one
            for one in read.loadAnns(read.getAnnIds())
            if one["track_id"] == number and read.imgs[one["image_id"]]["file_name"].startswith(CLIP)
        ]
        assert [read.imgs[one["image_id"]]["frame_index"] for one in found] == visible(track)
        for one, frame in zip(found, visible(track), strict=True):
            assert (read.annToMask(one) == decode_rle(track[frame])).all()
            assert one["area"] == coco_mask.area(track[frame]) and one.get("score") == score
    for image in read.loadImgs(read.getImgIds()):
        with Image.open(tmp_path / "coco" / "images" / image["file_name"]) as picture:
            assert picture.size == (image["width"], image["height"])
    assert read.imgs[25]["file_name"] == PICTURE


def test_yolo(truth, tmp_path):
    to = tmp_path / "yolo"
    assert export("yolo", truth[0], to)["masks"] == number_of_masks()
    assert not (to / "images").exists()
    names = yaml.safe_load((to / "data.yaml").read_text(encoding="utf-8"))["names"]
    assert names == {0: "the <b> & one", 1: "it", 2: "thing", 3: "ring"}
    lines = (to / "labels/train" / PICTURE).with_suffix(".txt").read_text().splitlines()
    assert len(lines) == 1 and lines[0].startswith("3 ")
    ring = np.array(lines[0].split()[1:], dtype=float).reshape(-1, 2) * (12, 9)
    assert (surrounded(ring + 0.25, RING.shape) == RING).all()
    # Whether a reader cuts or rounds, points become pixels of the border of the mask
    for points in (np.trunc(ring), np.round(ring)):
        assert RING[points[:, 1].astype(int), points[:, 0].astype(int)].all()
    track = true_tracks()[0]
    files = sorted((to / "labels/train" / CLIP).iterdir())
    assert [path.name for path in files] == [f"{index:05d}.txt" for index in range(24)]
    assert [index for index, path in enumerate(files) if "2 " in {one[:2] for one in path.open()}] == visible(track)


def test_label_studio(truth, tmp_path):
    to = tmp_path / "label-studio"
    counts = export("label-studio", truth[0], to, truth[1], with_frames=True)
    tasks = json.loads((to / "tasks.json").read_text(encoding="utf-8"))
    assert len(tasks) == counts["frames"] and counts["masks"] == number_of_masks()
    config = ElementTree.parse(to / "labeling_config.xml")
    known = [one.get("value") for one in config.iter("Label")]
    tags = {one.get("name"): one for one in config.getroot()}
    tracks = true_tracks()
    for task in tasks:
        assert (to / "images" / task["data"]["image"].split("?d=images/")[1]).is_file()
        for result in task["predictions"][0]["result"]:
            assert tags[result["from_name"]].tag == "BrushLabels" and tags[result["to_name"]].tag == "Image"
            assert result["value"]["brushlabels"][0] in known
            pixels = brush_pixels(result["value"]["rle"]).reshape(result["original_height"], result["original_width"])
            frame = task["data"]["frame"]
            track = tracks[result["id"].startswith("o2f")]
            truth_mask = RING if task["data"]["video"] == PICTURE else decode_rle(track[frame])
            assert ((pixels > 0) == truth_mask).all()


def test_cvat(truth, tmp_path):
    to = tmp_path / "cvat"
    assert export("cvat", truth[0], to)["masks"] == number_of_masks()
    labels = json.loads((to / "labels.json").read_text(encoding="utf-8"))
    assert [one["name"] for one in labels] == ["the <b> & one", "it", "thing", "ring"]
    tracks, seen = true_tracks(), {1: [], 2: [], 3: []}
    for image in ElementTree.parse(to / f"{CLIP}.xml").iter("image"):
        index = int(image.get("id"))
        assert image.get("name") == f"frame_{index:06d}"
        for mask in image.iter("mask"):
            runs = list(map(int, mask.get("rle").split(",")))
            left, top, width, height = (int(mask.get(key)) for key in ("left", "top", "width", "height"))
            pixels = cvat_pixels([*runs, left, top, left + width - 1, top + height - 1], (256, 256))
            number = int(mask.get("group_id"))
            assert (pixels == decode_rle(tracks[number == 2][index])).all()
            seen[number].append(index)
    assert seen == {1: visible(tracks[0]), 2: visible(tracks[1]), 3: visible(tracks[0])}


def test_fiftyone_is_asked_for(truth, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fiftyone", None)
    with pytest.raises(BulkError, match="FiftyOne is not installed. Run: pip install fiftyone"):
        export("fiftyone", truth[0], tmp_path / "fiftyone", truth[1])


def test_yolo_refuses_a_folder_by_which_labels_are_found(tmp_path):
    video = SimpleNamespace(name="images/a.mp4", objects=(), num_frames=1)
    with pytest.raises(BulkError, match="'images/a.mp4' lies in a folder 'images'"):
        write_yolo(lambda: iter([video]), tmp_path, FrameWriter(None, False))


@pytest.fixture
def fiftyone(monkeypatch):
    """The package without its database, which is a program that not every machine has."""
    monkeypatch.setenv("FIFTYONE_DISABLE_SERVICES", "1")
    monkeypatch.setenv("FIFTYONE_DO_NOT_TRACK", "true")
    return pytest.importorskip("fiftyone", reason="FiftyOne is not installed: pip install fiftyone")


def test_fiftyone_samples(truth, fiftyone):
    counts = {"videos": 0, "frames": 0, "masks": 0}
    clip, picture = read_videos(truth[0])
    for video in (clip, picture):
        sample = sample_of(fiftyone, video, FrameWriter(truth[1], False), counts)
        assert sample.filepath == str(truth[1] / video.name)
        for index, found in video.by_frame():
            at = sample if video.is_image else sample.frames[index + 1]
            for one, detection in zip(found, at[FIELD].detections, strict=True):
                pixels = detection.to_segmentation(frame_size=(video.width, video.height)).mask > 0
                assert (pixels == decode(video, one, index)).all()
                assert (detection.label, detection.index) == (one.label, one.number)
    assert counts["videos"] == 2 and counts["masks"] == number_of_masks()
    with pytest.raises(BulkError, match="was shown as some of its frames"):
        part = replace(clip, visual={"video": {"path": CLIP, "stride": 2}})
        sample_of(fiftyone, part, FrameWriter(truth[1], False), counts)
    with pytest.raises(BulkError, match=r"'a.gif' is an animated picture"):
        sample_of(fiftyone, replace(clip, name="a.gif"), FrameWriter(truth[1], False), counts)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--export", "cvat", "--frames", "--media", "."], "cvat takes the videos themselves"),
        (["--export", "coco", "--frames", "--media", "nowhere"], "there is no file|No such file|nowhere"),
    ],
)
def test_mistakes_are_sentences(truth, tmp_path, capsys, arguments, message):
    assert main(["--output", str(truth[0]), "--to", str(tmp_path / "to"), *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("predict: ") and error.count("\n") == 1
    assert re.search(message, error)


def test_an_export_is_not_mixed_with_another(truth, tmp_path):
    (tmp_path / "old.txt").write_text("")
    with pytest.raises(BulkError, match="is not an empty folder"):
        export("coco", truth[0], tmp_path)
    with pytest.raises(BulkError, match="There are no answers"):
        export("coco", tmp_path, tmp_path / "new")
    assert set(FORMATS) == {"coco", "yolo", "label-studio", "cvat", "fiftyone"}


def test_another_video_is_refused(truth, tmp_path):
    media = write_media(tmp_path / "media")
    Image.new("RGB", (7, 7)).save(media / PICTURE)
    with pytest.raises(BulkError, match=r"\(1, 7, 7\), but its answers are about \(1, 9, 12\)"):
        export("coco", truth[0], tmp_path / "to", media, with_frames=True)


@pytest.mark.parametrize(
    ("format", "counts", "message"),
    [(one, "1", "damaged mask on frame 0") for one in ("coco", "yolo", "cvat", "label-studio")]
    + [(one, None, "empty mask on frame 0") for one in ("yolo", "cvat", "label-studio")],  # COCO can hold them
)
def test_bad_masks_are_named(tmp_path, format, counts, message):
    row = next(read_rows(write_truth(tmp_path / "truth")[1][0]))
    empty = encode_rle(np.zeros((256, 256), dtype=bool))["counts"]
    row["turns"][0]["objects"][0]["masks"] = [{"frame": 0, "counts": counts or empty}]
    pq.write_table(pa.Table.from_pylist([row], SCHEMA), tmp_path / "answers.parquet")
    with pytest.raises(BulkError, match=f"'first' has an? {message}"):
        export(format, tmp_path / "answers.parquet", tmp_path / "to")


def test_two_videos_of_one_name_are_refused():
    def pictures(*names):
        return [SimpleNamespace(name=name, is_image=True) for name in names]

    video, folder = (SimpleNamespace(name=name, is_image=False, num_frames=3) for name in ("c.mp4", "c"))
    # Pictures that are neither JPEG nor PNG are written with .png behind their names
    names = "c.jpg", "c/00003.jpg", "x.jpg", "x.bmp", "x.webp"
    check_names([video, folder, *pictures(*names)], "yolo", written=True)
    framed = [*pictures("c/00002.jpg"), folder]
    for twice in ([video, video], pictures("x.jpg", "x.png"), pictures("x.webp", "x.webp.png"), framed):
        with pytest.raises(BulkError, match="would have the same files in an export"):
            check_names(twice, "yolo", written=True)
    check_names(pictures("x.jpg", "x.png", "x.webp", "x.webp.png"), "coco", written=False)  # each has its own name
    for twice in ([video, video], pictures("x.webp", "x.webp.png"), framed):
        with pytest.raises(BulkError, match="would have the same files in an export"):
            check_names(twice, "coco", written=True)


def test_pictures_keep_their_names_unless_they_are_written():
    picture = SimpleNamespace(name="a/b.webp", is_image=True)
    assert [frame_name(picture, 0, written) for written in (False, True)] == ["a/b.webp", "a/b.webp.png"]


def test_files_of_two_runs_are_refused(truth, tmp_path):
    answers = Path(shutil.copytree(truth[0], tmp_path / "answers"))
    file = next(answers.glob("answers-*.parquet"))
    shutil.copy(file, answers / "answers-00001-of-00009.parquet")
    with pytest.raises(BulkError, match="are not all of one run; predict again"):
        list(read_videos(answers))


@pytest.mark.parametrize("shown", [{"path": "c.mp4", "stride": 2}, {"path": "c", "frames": ["00005.jpg"]}])
def test_parts_of_the_frames_are_no_video_for_cvat(shown, tmp_path):
    video = AnsweredVideo("c.mp4", {"video": shown}, 3, 4, 5, [])
    with pytest.raises(BulkError, match="CVAT shows video files; 'c.mp4' was shown as some of its frames"):
        write_cvat(lambda: iter([video]), tmp_path, FrameWriter(None, False))
    for file in ({"path": "c.mp4"}, {"path": "c.mp4", "frames": None, "stride": 1}):  # both forms of a record
        whole = replace(video, visual={"video": file})
        assert write_cvat(lambda whole=whole: iter([whole]), tmp_path, FrameWriter(None, False))["videos"] == 1


@pytest.mark.parametrize("existed", [False, True])
def test_a_failed_export_leaves_nothing_behind(truth, tmp_path, monkeypatch, existed):
    def fail(videos, to, frames):
        (to / "annotations.json").write_text("half of")
        raise OSError("No space left on device")

    def fail_behind(videos, to, frames):
        (to / "images").mkdir()
        fail(videos, to, frames)

    to = tmp_path / "coco"
    if existed:  # a link is emptied, not removed
        (tmp_path / "elsewhere").mkdir()
        to.symlink_to(tmp_path / "elsewhere")
    with monkeypatch.context() as patch:
        patch.setitem(WRITERS, "coco", fail_behind)
        with pytest.raises(OSError, match="No space"):
            export("coco", truth[0], to)
    assert list(to.iterdir()) == [] if existed else not to.exists()
    assert export("coco", truth[0], to)["masks"] == number_of_masks()
