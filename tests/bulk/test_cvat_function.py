"""The auto-annotation function: what CVAT's SDK would be given, with the SDK where it is installed, and with a module
that has what its documentation describes."""

import sys
from functools import partial
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from bulk_fixtures import (
    CLIP,
    PICTURE,
    RING,
    ScriptedModel,
    cvat_pixels,
    surrounded,
    true_tracks,
    write_media,
    write_truth,
)  # fmt: skip
from PIL import Image

from sama.benchmarks.benchmark import PredictedObject, PredictedTurn, Prediction
from sama.bulk import cvat_function
from sama.bulk.answers import write_answers
from sama.bulk.jobs import AskedQuestion, VideoJob
from sama.bulk.pool import BulkError
from sama.data.masks import decode_rle, encode_rle


def documented() -> ModuleType:
    """The names of `cvat_sdk.auto_annotation` that the function uses, as they are documented."""

    def shape(kind):
        return lambda label_id, points, **more: SimpleNamespace(type=kind, label_id=label_id, points=points, **more)

    module = ModuleType("cvat_sdk.auto_annotation")
    module.label_spec = lambda name, id, **more: SimpleNamespace(name=name, id=id, **more)
    module.DetectionFunctionSpec = lambda *, labels: SimpleNamespace(labels=labels)
    module.mask, module.polygon = shape("mask"), shape("polygon")
    return module


@pytest.fixture(params=["documented", "installed"])
def sdk(request, monkeypatch):
    if request.param == "documented":
        monkeypatch.setitem(sys.modules, "cvat_sdk", ModuleType("cvat_sdk"))
        monkeypatch.setitem(sys.modules, "cvat_sdk.auto_annotation", documented())
    else:
        pytest.importorskip("cvat_sdk.auto_annotation", reason="CVAT's SDK is not installed: pip install cvat-sdk")


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("answers")
    write_truth(folder)
    return folder


def context(name: str, threshold: float | None = None, polygons: bool = False):
    return SimpleNamespace(frame_name=name, conf_threshold=threshold, conv_mask_to_poly=polygons)


def test_stored_masks_of_a_frame(sdk, answers):
    function = cvat_function.create(answers=str(answers), video=CLIP)
    assert [(one.id, one.name) for one in function.spec.labels] == [(0, "the <b> & one"), (1, "it"), (2, "thing")]
    picture, tracks = Image.new("RGB", (256, 256)), true_tracks()
    shapes = function.detect(context("frame_000003.jpg"), picture)
    assert [(str(one.type), one.label_id, one.group) for one in shapes] == [
        ("mask", 0, 1),
        ("mask", 1, 2),
        ("mask", 2, 3),
    ]
    for one, track in zip(shapes, (tracks[0], tracks[1], tracks[0]), strict=True):
        assert (cvat_pixels(list(map(int, one.points)), (256, 256)) == decode_rle(track[3])).all()
    assert [one.label_id for one in function.detect(context("3"), picture)] == [0, 1, 2]
    # An object without a score is kept, whatever is asked for
    assert [one.label_id for one in function.detect(context("00003.png", 0.6), picture)] == [0, 1]


def test_polygons_where_cvat_wants_them(sdk, answers):
    function = cvat_function.create(answers=str(answers), video=PICTURE)
    (one,) = function.detect(context(PICTURE, polygons=True), Image.new("RGB", (12, 9)))
    assert str(one.type) == "polygon"
    assert (surrounded(np.array(one.points).reshape(-1, 2), RING.shape) == RING).all()


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("frame.jpg", (256, 256), "not named by the number of a frame of 'clips/toy.mp4', 0 to 23"),
        ("frame_000024.jpg", (256, 256), "not named by the number of a frame"),
        ("frame_000003.jpg", (128, 256), "has 128 x 256 pixels, 'clips/toy.mp4' 256 x 256"),
    ],
)
def test_pictures_of_another_video_are_refused(sdk, answers, name, size, message):
    function = cvat_function.create(answers=str(answers), video=CLIP)
    with pytest.raises(BulkError, match=message):
        function.detect(context(name), Image.new("RGB", size))


@pytest.fixture
def pictures(tmp_path):
    """Answers about three pictures of one size, each about another row of it."""
    jobs, predictions = [], []
    for row, name in enumerate(("photo.webp", "a/x.jpg", "b/x.jpg")):
        mask = np.zeros((3, 5), dtype=bool)
        mask[row] = True
        jobs.append(VideoJob({"image": {"path": name}}, [AskedQuestion(name, "Where?", label="row")]))
        turn = PredictedTurn("[SEG]", [PredictedObject("", [encode_rle(mask)], 1.0)])
        predictions.append(Prediction(name, [turn], num_frames=1, height=3, width=5))
    write_answers(tmp_path, jobs, iter(predictions), 10)
    return tmp_path


def rows_of(function, name: str) -> list[int]:
    """The rows of pixels that the function finds on a picture."""
    (one,) = function.detect(context(name), Image.new("RGB", (5, 3)))
    return np.flatnonzero(cvat_pixels(list(map(int, one.points)), (3, 5)).all(axis=1)).tolist()


def test_pictures_are_found_by_their_names(sdk, pictures):
    function = cvat_function.create(answers=str(pictures))
    names = ("b/x.jpg", "photo.webp", "share/a/x.jpg", "share/photo.webp")
    assert [rows_of(function, name) for name in names] == [[2], [0], [1], [0]]
    one = cvat_function.create(answers=str(pictures), video="a/x.jpg")
    assert rows_of(one, "x.jpg") == [1]  # CVAT's client uploads files without their folders
    for asked, name, message in (
        (function, "x.jpg", "is the name of 2 pictures with answers, such as 'a/x.jpg' and 'b/x.jpg'"),
        (function, "photo.jpg", "not among the 3 pictures with answers, the first of which is 'photo.webp'"),
        (one, "photo.webp", "not among the 1 pictures with answers, the first of which is 'a/x.jpg'"),
        (one, "", "not among the 1 pictures"),
    ):
        with pytest.raises(BulkError, match=message):
            rows_of(asked, name)


def test_a_picture_in_the_top_folder_is_told_from_one_of_the_same_name_below():
    function = SimpleNamespace(videos=[SimpleNamespace(name=name, is_image=True) for name in ("x.jpg", "a/x.jpg")])
    picture_of = partial(cvat_function.StoredFunction._picture_of, function)
    assert [picture_of(name).name for name in ("a/x.jpg", "share/a/x.jpg")] == ["a/x.jpg"] * 2
    with pytest.raises(BulkError, match="is the name of 2 pictures"):
        picture_of("x.jpg")


def test_a_model_is_asked_for_each_label(sdk, monkeypatch, tmp_path):
    model, media = ScriptedModel(), write_media(tmp_path / "media")
    monkeypatch.setattr(cvat_function, "_load", lambda name, device: (model, None))
    monkeypatch.setattr(model, "start_chat", scripted_chat(model))
    function = cvat_function.create(labels="dog, red ball")
    with Image.open(media / PICTURE) as picture:
        shapes = function.detect(context(PICTURE), picture)
        assert function.detect(context(PICTURE, 0.9), picture) == []
    assert [text for text, _ in model.asked[:2]] == [
        "Please segment dog in this image.", "Please segment red ball in this image."
    ]  # fmt: skip
    assert [one.label_id for one in shapes] == [0, 1]
    assert (cvat_pixels(list(map(int, shapes[0].points)), RING.shape)[:4]).all()


def scripted_chat(model):
    """A `start_chat` that opens pictures, as that of a model does."""
    from sama.video_sama import SamaVideo

    start = model.start_chat
    return lambda processor, image: start(processor, image=SamaVideo.open(image, "image"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "Give either labels"),
        ({"labels": "dog", "answers": "x"}, "Give either labels"),
        ({"labels": "dog,dog"}, "Give different labels"),
        ({"labels": "dog", "question": "What?"}, "a question with {}"),
    ],
)
def test_arguments_that_do_not_fit(arguments, message):
    with pytest.raises(BulkError, match=message):
        cvat_function.create(**arguments)


def test_the_video_must_be_named(sdk, answers):
    with pytest.raises(BulkError, match="has 2 videos ''"):
        cvat_function.create(answers=str(answers))


def test_the_sdk_is_asked_for(answers, monkeypatch):
    monkeypatch.setitem(sys.modules, "cvat_sdk.auto_annotation", None)
    monkeypatch.setitem(sys.modules, "cvat_sdk", ModuleType("cvat_sdk"))
    with pytest.raises(BulkError, match="CVAT's SDK is not installed. Run: pip install cvat-cli"):
        cvat_function.create(answers=str(answers), video=CLIP)
