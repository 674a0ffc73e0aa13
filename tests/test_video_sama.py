"""Reading videos, choosing frames, mask tracks and region types."""

import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from processor_fixtures import clip, noise_video
from video_files import write_growing

import sama.video_readers_sama as readers
from sama.objects_sama import GroundedPhrase, MaskTrack, Region
from sama.video_sama import FrameChoice, SamaVideo, choose_frames


av = pytest.importorskip("av")


def write_video(path, num_frames, height=64, width=96, container_options=None, start=0):
    """An MPEG-4 file of plain grey frames, frame i of brightness 10 * i."""
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = width, height, "yuv420p", 4
        container.start_encoding()
        for index in range(num_frames):
            grey = np.full((height, width, 3), (start + 10 * index) % 256, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        if num_frames:
            container.mux(stream.encode())
    return str(path)


@pytest.fixture(params=["decord", "av"])
def reader(request, monkeypatch):
    """Run a test with each of the two libraries that read video files."""
    pytest.importorskip(request.param)
    monkeypatch.setattr(readers, "av" if request.param == "decord" else "decord", None)
    return request.param


def opened_with_warnings(source):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        video = SamaVideo.open(source)
        frames = list(video)
    return video, frames, [str(item.message) for item in caught]


# Video files


def test_real_clip(reader):
    video = SamaVideo.open(clip("carphone_pristine"))
    assert (len(video), video.height, video.width, video.is_image) == (120, 144, 176, False)
    assert video.fps == pytest.approx(29.97, abs=0.01)
    frame = video[60]
    assert frame.shape == (144, 176, 3) and frame.dtype == np.uint8
    assert not np.array_equal(frame, video[61])
    assert SamaVideo.open(video) is video


def test_any_order_of_access_gives_the_same_frames(reader):
    forward = SamaVideo.open(clip("bikes"))
    wanted = [0, 1, 2, 40, 39, 38, 37, 249, 120, 121, 119, 5]
    expected = dict(zip(sorted(wanted), forward.frames(sorted(wanted)), strict=True))
    jumping = SamaVideo.open(clip("bikes"))
    for index in wanted:
        np.testing.assert_array_equal(jumping[index], expected[index])


def test_decord_and_pyav_read_the_same_pixels(monkeypatch):
    pytest.importorskip("decord")
    by_decord = SamaVideo.open(clip("carphone_pristine")).frames([0, 50, 119])
    monkeypatch.setattr(readers, "decord", None)
    by_av = SamaVideo.open(clip("carphone_pristine")).frames([0, 50, 119])
    np.testing.assert_array_equal(by_decord, by_av)


def test_stepping_backward_decodes_in_chunks(reader):
    video = SamaVideo.open(clip("carphone_pristine"))
    calls = []
    read = video._frames._reader.read
    video._frames._reader.read = lambda index: calls.append(index) or read(index)
    backward = [video[index] for index in range(40, 20, -1)]
    assert len(calls) <= 20 + readers.BACKWARD_CHUNK
    assert len(video._frames._chunk) <= readers.BACKWARD_CHUNK
    np.testing.assert_array_equal(backward[-1], SamaVideo.open(clip("carphone_pristine"))[21])


def test_frame_out_of_range(reader, tmp_path):
    video = SamaVideo.open(write_video(tmp_path / "five.mp4", 5))
    for index in (5, -1):
        with pytest.raises(ValueError, match=rf"Frame {index} does not exist.*has 5 frames"):
            video[index]


def test_one_frame_video(reader, tmp_path):
    video = SamaVideo.open(write_video(tmp_path / "one.mp4", 1))
    assert len(video) == 1 and not video.is_image and video[0].shape == (64, 96, 3)
    assert choose_frames(1, "consistent").dense == [0]


def test_zero_frame_video(reader, tmp_path):
    path = write_video(tmp_path / "zero.mp4", 0)
    with pytest.raises(ValueError, match="zero.mp4' is (a video with 0 frames|not a video)"):
        SamaVideo.open(path)


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no file '.*missing.mp4'"):
        SamaVideo.open(str(tmp_path / "missing.mp4"))


@pytest.mark.parametrize("content", [b"", b"this is a letter, not a video " * 40])
def test_not_a_video(reader, tmp_path, content):
    path = tmp_path / "letter.mp4"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="letter.mp4' is not a video that can be read"):
        SamaVideo.open(path)


def test_file_without_an_index_is_not_a_video(reader, tmp_path):
    # The index of this clip stands at its end, so a cut file has none.
    path = tmp_path / "cut.mp4"
    path.write_bytes(open(clip("carphone_pristine"), "rb").read()[:200_000])
    with pytest.raises(ValueError, match="cut.mp4' is not a video that can be read"):
        SamaVideo.open(path)


# Damaged files and changing sizes are for PyAV: decord hides the second and does not repeat itself on the first.


def test_truncated_video_reads_what_decodes(tmp_path):
    whole = write_video(tmp_path / "whole.mp4", 40, container_options={"movflags": "faststart"})
    path = tmp_path / "cut.mp4"
    content = open(whole, "rb").read()
    path.write_bytes(content[: int(len(content) * 0.7)])
    video, frames, messages = opened_with_warnings(path)
    assert 0 < len(video) < 40 and len(frames) == len(video)
    # The very last frame lacks a part of its data, which the decoder fills in.
    np.testing.assert_array_equal(frames[-2], SamaVideo.open(whole)[len(video) - 2])
    assert f"Only the first {len(video)} of 40 frames" in messages[0] and video.damaged_frames == [len(video) - 1]


def test_last_frames_that_do_not_decode(tmp_path):
    content = bytearray(open(clip("carphone_pristine"), "rb").read())
    start, end = content.index(b"mdat"), content.index(b"moov")
    middle = start + (end - start) * 7 // 10
    content[middle:end] = bytes(end - middle)
    path = tmp_path / "damaged.mp4"
    path.write_bytes(content)
    video, frames, messages = opened_with_warnings(path)
    assert 60 < len(video) < 120 and len(frames) == len(video)
    np.testing.assert_array_equal(frames[50], SamaVideo.open(clip("carphone_pristine"))[50])
    assert f"Only the first {len(video)} of 120 frames" in messages[0] and min(video.damaged_frames) > 60


def test_video_whose_frames_change_size(tmp_path):
    if "libx264" not in av.codecs_available:
        pytest.skip("this PyAV cannot write H.264, the format in which a size can change")
    path = write_growing(tmp_path / "growing.ts", num_frames=8, step=20)
    video, frames, messages = opened_with_warnings(path)
    assert len(video) == 16 and {frame.shape for frame in frames} == {(64, 96, 3)}
    assert len(messages) == 1 and "resized to the size of the first one" in messages[0]


def test_no_library_to_read_videos(monkeypatch):
    monkeypatch.setattr(readers, "decord", None)
    monkeypatch.setattr(readers, "av", None)
    with pytest.raises(ImportError, match="needs av or decord"):
        SamaVideo.open(clip("bikes"))


# Other sources


def test_lists_arrays_and_stills(tmp_path):
    frames = noise_video(3)
    paths = [tmp_path / f"{index}.png" for index in range(3)]
    for path, frame in zip(paths, frames, strict=True):
        Image.fromarray(frame).save(path)
    for source in (frames, list(frames), paths, [str(p) for p in paths], [Image.fromarray(f) for f in frames]):
        video = SamaVideo.open(source)
        assert (len(video), video.height, video.width, video.is_image) == (3, 20, 30, False)
        np.testing.assert_array_equal(video[2], frames[2])
    for source in (paths[0], Image.fromarray(frames[0]), frames[0]):
        image = SamaVideo.open(source)
        assert image.is_image and len(image) == 1
        np.testing.assert_array_equal(image[0], frames[0])


def test_listed_frames_of_another_size_are_resized_with_one_warning():
    frames = [noise_video(1)[0], noise_video(1, 40, 10)[0], noise_video(1, 10, 10)[0]]
    video, read, messages = opened_with_warnings(frames)
    assert {frame.shape for frame in read} == {(20, 30, 3)} and len(video) == 3
    assert len(messages) == 1 and "Frame 1 of 'list of frames' is 10x40, the first frame is 30x20" in messages[0]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "has 0 frames"),
        (np.zeros((0, 4, 4, 3), np.uint8), "has 0 frames"),
        (np.zeros((2, 4, 4, 3), np.int32), "as uint8 or as floats from 0 to 1, got int32"),
        (np.zeros((2, 4, 4), np.uint8), r"got uint8 of shape \(2, 4, 4\)"),
        ([3, 4], "Expected frame 0 of 'list of frames' to be a path, a PIL image, an array or a tensor, got int"),
        (7, "got int"),
    ],
)
def test_wrong_sources(source, message):
    with pytest.raises(ValueError, match=message):
        SamaVideo.open(source)


def test_broken_image(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="broken.png' is not an image that can be read"):
        SamaVideo.open(tmp_path / "broken.png")


def test_a_folder_of_frames_is_a_video_in_natural_order(tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    with pytest.raises(ValueError, match="frames' holds no pictures to use as frames: it is empty"):
        SamaVideo.open(folder)
    (folder / "notes.txt").write_text("notes")
    (folder / ".hidden.png").write_text("no picture")
    with pytest.raises(ValueError, match="none of its 1 files is one"):
        SamaVideo.open(folder)
    for number, name in enumerate(("frame_1.png", "frame_2.PNG", "frame_10.png", "frame_011.png")):
        Image.new("RGB", (30, 20), (10 * number, 0, 0)).save(folder / name)
    video, frames, messages = opened_with_warnings(str(folder))
    assert (len(video), video.height, video.width, video.is_image) == (4, 20, 30, False)
    assert [frame[0, 0, 0] for frame in frames] == [0, 10, 20, 30]
    assert len(messages) == 1 and "1 of the files in" in messages[0] and "for example 'notes.txt'" in messages[0]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([noise_video(1)[0], noise_video(1)[0]], "An image is one picture, got a list of 2"),
        ([noise_video(1)[0]], "An image is one picture, got a list of 1"),
        (noise_video(2), "'array' is a video of 2 frames; give it as a video"),
    ],
)
def test_an_image_is_one_picture(source, message):
    with pytest.raises(ValueError, match=message):
        SamaVideo.open(source, "image")


def test_a_video_is_no_image(tmp_path):
    path = write_video(tmp_path / "clip.mp4", 1)
    for source in (path, SamaVideo.open(path)):
        with pytest.raises(ValueError, match="clip.mp4' is a video of 1 frames; give it as a video"):
            SamaVideo.open(source, "image")
    assert SamaVideo.open(noise_video(1)[0], "image").is_image and SamaVideo.open(noise_video(1)[0], "video").is_image
    with pytest.raises(ValueError, match="The kind is 'image' or 'video', got 'film'"):
        SamaVideo.open(path, "film")


# Frame choice


@pytest.mark.parametrize(
    ("num_frames", "count"),
    [(1, 1), (2, 2), (5, 5), (7, 7), (8, 7), (9, 6), (12, 7), (13, 5), (14, 7), (16, 8), (18, 6), (20, 8), (25, 9),
     (60, 20), (80, 27), (94, 32), (1000, 32)],
)  # fmt: skip
def test_context_frames_follow_the_official_table(num_frames, count):
    context = choose_frames(num_frames, "consistent").context
    assert len(context) == count
    assert context == sorted(set(context)) and 0 <= context[0] and context[-1] < num_frames


@pytest.mark.parametrize(
    ("num_frames", "positions"),
    [(14, [0, 2, 3, 4, 6]), (24, [0, 2, 4, 5, 7]), (30, [1, 3, 5, 7, 9]), (48, [1, 4, 8, 11, 14]),
     (60, [2, 6, 10, 14, 18]), (300, [3, 9, 16, 22, 28])],
)  # fmt: skip
def test_dense_frames_lie_in_the_middle_of_equal_stretches(num_frames, positions):
    choice = choose_frames(num_frames, "consistent")
    assert [choice.context.index(frame) for frame in choice.dense] == positions
    assert choice.prompted == choice.dense


@pytest.mark.parametrize("num_frames", range(6, 300, 7))
def test_dense_frames_reach_both_ends(num_frames):
    """The release's training leaves the last fifth of a short video out of the dense frames."""
    choice = choose_frames(num_frames, "consistent")
    positions, last = [choice.context.index(frame) for frame in choice.dense], len(choice.context) - 1
    assert positions[0] <= last / 5 and last - positions[-1] <= last / 5
    assert abs(positions[0] - (last - positions[-1])) <= 1


def test_golden_context_of_14_frames():
    assert choose_frames(14, "published").context == [0, 3, 6, 7, 9, 10, 12]


def test_context_over_96_frames_by_hand():
    """Every third frame: 34 of 100 frames, of which 32 are kept; frames 48 and 99 are left out."""
    expected = [*range(0, 48, 3), *range(51, 99, 3)]
    assert choose_frames(100, "published").context == choose_frames(100, "consistent").context == expected
    assert choose_frames(96, "published").context == list(range(0, 96, 3))


@pytest.mark.parametrize(("preset", "expected"), [("published", [0, 1]), ("consistent", [0, 99])])
def test_a_model_without_context_frames_keeps_to_the_most_frames(preset, expected):
    choice = choose_frames(100, preset, max_context_frames=2, num_dense_frames=5, with_context=False)
    assert choice == FrameChoice(expected, expected, expected)


@pytest.mark.parametrize("num_frames", range(1, 40))
def test_dense_frames_are_distinct_context_frames(num_frames):
    for policy in ("published", "consistent"):
        choice = choose_frames(num_frames, policy)
        assert len(set(choice.dense)) == len(choice.dense) == min(5, len(choice.context))
        assert set(choice.dense) <= set(choice.context)
        assert len(choice.prompted) == len(choice.dense) and max(choice.prompted) < num_frames


def test_policies():
    release = choose_frames(300, "published")
    assert release.dense == release.context[:5] and release.prompted == [0, 1, 2, 3, 4]
    consistent = choose_frames(300, "consistent")
    assert consistent.dense != release.dense and consistent.prompted == consistent.dense
    assert choose_frames(300, "release") == release
    assert len(choose_frames(300, "consistent", max_context_frames=4, num_dense_frames=2).context) == 4
    with pytest.raises(ValueError, match="preset='new' is unknown, expected one of published, consistent"):
        choose_frames(10, "new")
    with pytest.raises(ValueError, match="at least 1 frame, got 0"):
        choose_frames(0, "published")


# Mask tracks, regions, phrases


def random_masks(seed=0, shape=(6, 9, 13)):
    masks = np.random.default_rng(seed).random(shape) > 0.6
    masks[1] = False
    masks[2] = True
    return masks


def test_mask_track_keeps_every_pixel():
    masks = random_masks()
    track = MaskTrack.from_masks(masks)
    np.testing.assert_array_equal(track.masks(), masks)
    assert track.masks().dtype == bool
    assert [track.area(index) for index in range(6)] == masks.sum(axis=(1, 2)).tolist()
    assert track.visible_frames() == [0, 2, 3, 4, 5]
    track[0] = np.zeros((9, 13), dtype=bool)
    assert track.area(0) == 0 and len(track) == 6
    assert MaskTrack(3, 4, 5).visible_frames() == []


def test_run_lengths_are_those_of_coco():
    mask_utils = pytest.importorskip("pycocotools.mask")
    track = MaskTrack.from_masks(random_masks(1))
    for index in range(6):
        rle = track.to_rle(index)
        assert sum(rle["counts"]) == 9 * 13
        compressed = mask_utils.frPyObjects(rle, 9, 13)
        np.testing.assert_array_equal(mask_utils.decode(compressed).astype(bool), track[index])


def test_mask_track_errors():
    track = MaskTrack(2, 4, 5)
    with pytest.raises(ValueError, match=r"shape \(5, 4\) does not fit a track of \(4, 5\)"):
        track[0] = np.zeros((5, 4))
    with pytest.raises(ValueError, match="Frame 2 does not exist: the track has 2 frames"):
        track[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "takes exactly one of mask, box, points, scribble; got none"),
        ({"box": (0, 0, 1, 1), "points": [(0, 0)]}, "got 2: box, points"),
        ({"box": (0, 0, 1, 1), "labels": [1]}, "labels only with points"),
    ],
)
def test_region_takes_exactly_one_prompt(arguments, message):
    with pytest.raises(ValueError, match=message):
        Region(**arguments)


def test_region_over_several_frames():
    region = Region(frame=[3, 5], points=[[(1, 1)], [(2, 2), (3, 3)]], labels=[[1], [1, 0]])
    assert [(single.frame, single.labels) for single in region.per_frame()] == [(3, [1]), (5, [1, 0])]
    with pytest.raises(ValueError, match="got 2 frames, 1 box prompts"):
        Region(frame=[3, 5], box=[(0, 0, 1, 1)]).per_frame()


def test_phrase_masks():
    masks = random_masks()
    np.testing.assert_array_equal(GroundedPhrase("a dog", (0, 5), MaskTrack.from_masks(masks), 0.5).masks, masks)
    with pytest.raises(ValueError, match="'a dog' has no masks"):
        assert GroundedPhrase("a dog", (0, 5)).masks


# Arrays and tensors of decoders


def decoder_forms(frames: np.ndarray) -> dict:
    tensor = torch.from_numpy(frames)
    return {
        "frames, height, width, channels": tensor,
        "frames, channels, height, width": tensor.movedim(-1, 1),
        "floats": tensor.float() / 255,
        "half precision": tensor.movedim(-1, 1).half() / 255,
        "float array": frames.astype(np.float64) / 255,
        "list of tensors": list(tensor.movedim(-1, 1)),
        "list of arrays with channels first": list(np.moveaxis(frames, -1, 1)),
        "list of PIL images": [Image.fromarray(frame) for frame in frames],
    }


@pytest.mark.parametrize("form", decoder_forms(noise_video(1)))
def test_frames_as_decoders_give_them(form):
    frames = noise_video(4)
    video = SamaVideo.open(decoder_forms(frames)[form])
    assert (len(video), video.height, video.width) == (4, 20, 30) and not video.is_image
    np.testing.assert_array_equal(np.stack(list(video)), frames)


def test_one_frame_of_a_decoder_is_an_image():
    frame = noise_video(1)[0]
    for source in (frame, torch.from_numpy(frame).movedim(-1, 0), frame / 255):
        video = SamaVideo.open(source)
        assert video.is_image
        np.testing.assert_array_equal(video[0], frame)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (torch.zeros(4, 20, 30, 3, dtype=torch.int64), "as uint8 or as floats from 0 to 1, got int64"),
        (np.full((4, 20, 30, 3), 2.0), "must lie between 0 and 1, got 2 to 2; give frames that are not normalised"),
        (torch.full((4, 3, 20, 30), -1.0), "must lie between 0 and 1, got -1 to -1"),
        (np.full((4, 20, 30, 3), np.nan), "must lie between 0 and 1, got nan"),
        (torch.zeros(4, 3, 20, 3, dtype=torch.uint8), "not clear which dimension holds the 3 channels"),
        (torch.zeros(4, 20, 30, 4, dtype=torch.uint8), r"\(frames, height, width, 3\) or .* \(4, 20, 30, 4\)"),
        (torch.zeros(1, 4, 3, 20, 30, dtype=torch.uint8), r"got uint8 of shape \(1, 4, 3, 20, 30\)"),
        (torch.zeros(20, 30, dtype=torch.uint8), r"got uint8 of shape \(20, 30\)"),
    ],
)
def test_arrays_of_decoders_that_are_not_clear(source, message):
    with pytest.raises(ValueError, match=message):
        SamaVideo.open(source)
