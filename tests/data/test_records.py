"""The record: what is valid, what the error says, and how the masks of an object are found."""

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest

from sama.data.frames import open_visual, safe_path, trusted_folders
from sama.data.masks import decode_rle, encode_rle
from sama.data.published import TEMPLATE_SETS
from sama.data.records import (
    DataError,
    decode_object,
    is_no_target,
    object_masks,
    read_lines,
    require_field,
    sized_object_masks,
    validate_record,
)
from sama.data.wording import TEMPLATES


MASK = encode_rle(np.eye(4, dtype=bool))
RECORD = {
    "id": "mevis/abc/3",
    "source": "mevis",
    "video": {"path": "clips/abc", "frames": ["0.jpg", "1.jpg"], "stride": 1},
    "objects": {"7": {"masks": [MASK, None]}, "9": {"store": "masks", "key": "9"}, "7+9": {"union": ["7", "9"]}},
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "What is "}, {"type": "region", "object": "7"}]},
        {
            "role": "assistant",
            "content": [{"type": "grounded", "text": "a ball", "objects": ["9"]}, {"type": "text", "text": "."}],
        },
    ],
}


def changed(*path, value=None, remove=False):
    """RECORD with one place of it changed."""
    record = copy.deepcopy(RECORD)
    place = record
    for key in path[:-1]:
        place = place[key]
    if remove:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return record


def test_design_example_is_valid():
    assert validate_record(RECORD) is RECORD


def test_an_answer_without_objects_says_that_nothing_fits():
    record = changed("messages", 1, "content", value=[{"type": "grounded", "text": "", "objects": []}])
    assert validate_record(record) is record and is_no_target(record["messages"][1])
    assert not any(is_no_target(message) for message in RECORD["messages"])


def test_text_image_and_toy_records_are_valid():
    message = {"role": "user", "content": [{"type": "text", "text": "Hello"}]}
    validate_record({"id": "1", "source": "mine", "messages": [message]})
    validate_record({"id": "1", "source": "mine", "messages": [message], "image": {"path": "a.jpg"}})
    validate_record({"id": "1", "source": "toy", "messages": [message], "video": {"toy": {"seed": 1}}})


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (changed("id", remove=True), "field 'id': is missing."),
        (changed("id", value=3), "field 'id': is a whole number where a string is expected."),
        (changed("mesages", value=[]), "field 'mesages': is not part of a record, which has id, image, messages, "),
        (changed("messages", value=[]), "field 'messages': is empty."),
        (
            changed("image", value={"path": "x.jpg"}),
            "field 'video': is given in addition to an image; a record has 1 of them.",
        ),
        (changed("video", "frames", value=[]), "field 'video.frames': is empty."),
        (changed("video", "frames", 1, value=1), "field 'video.frames[1]': is a whole number where a string is"),
        (changed("video", "stride", value=0), "field 'video.stride': is smaller than 1."),
        (changed("video", "stride", value=4), "field 'video.frames': is a list, of which all are used"),
        (changed("video", "num_frames", value=2), "field 'video.frames': is a list, of which all are used"),
        (changed("video", "strides", value=4), "field 'video.strides': is unknown; a video has frames, num_frames, "),
        (changed("video", remove=True), "field 'objects': needs a video or an image that shows the objects."),
        (changed("objects", "7", "masks", value=[MASK]), "field 'objects.7.masks': has 1 masks for 2 frames."),
        (changed("objects", "7", "masks", value=[MASK] * 3), "field 'objects.7.masks': has 3 masks for 2 frames."),
        (changed("objects", "7", value={}), "field 'objects.7': has 0 of masks, store and union where exactly 1 is"),
        (changed("objects", "9", "key", remove=True), "field 'objects.9.key': is missing."),
        (changed("objects", "9", "name", value="x"), "field 'objects.9.name': is unknown in an object with store."),
        (
            changed("objects", "7+9", "union", value=["8"]),
            "field 'objects.7+9.union': names '8', which is not an object",
        ),
        (changed("objects", "7+9", "union", value=["7+9"]), "field 'objects.7+9.union': names '7+9', which is not"),
        (changed("messages", 0, "role", value="human"), "field 'messages[0].role': is 'human', expected one of"),
        (changed("messages", 0, "content", value="Hi"), "field 'messages[0].content': is a string where a list is"),
        (
            changed("messages", 0, "templates", value="segment"),
            "field 'messages[0].templates': is 'segment', expected one of segment_image, segment_video, ",
        ),
        (
            changed("messages", 0, "wants_masks", value=1),
            "field 'messages[0].wants_masks': is a whole number where true",
        ),
        (changed("messages", 0, "text", value="Hi"), "field 'messages[0].text': is unknown; a message has content, "),
        (
            changed("messages", 0, "content", 0, "type", value="video"),
            "field 'messages[0].content[0].type': is 'video'; the parts of the role 'user' are text, region.",
        ),
        (
            changed("messages", 1, "content", 0, "type", value="region"),
            "field 'messages[1].content[0].type': is 'region'; the parts of the role 'assistant' are text, grounded.",
        ),
        (
            changed("messages", 0, "content", 1, "object", value="8"),
            "field 'messages[0].content[1].object': names '8', which is not among the 3 objects.",
        ),
        (
            changed("messages", 1, "content", 0, "objects", value=["9", "1"]),
            "field 'messages[1].content[0].objects': names '1', which is not among the 3 objects.",
        ),
        (
            changed("messages", 1, "content", 1, value={"type": "grounded", "text": "a cat", "objects": []}),
            "field 'messages[1].content': names 1 objects beside a phrase without any; words without masks are a text "
            "part.",
        ),
        (
            {
                "id": "1",
                "source": "mine",
                "messages": [{"role": "assistant", "content": [{"type": "grounded", "text": "", "objects": []}]}],
            },
            "field 'messages[0].content': needs a video or an image in which nothing fits.",
        ),
        (
            changed("messages", 0, "content", 0, "bold", value=True),
            "field 'messages[0].content[0].bold': is unknown in a part of type 'text'.",
        ),
        ([], "is a list where an object is expected."),
    ],
)
def test_wrong_records(record, message):
    with pytest.raises(DataError) as caught:
        validate_record(record)
    assert str(caught.value).startswith(message)


def test_error_names_source_file_index_and_field():
    error = DataError("is missing", field="exp")
    whole = error.with_context(field="expressions.0").with_context(source="mevis", file="meta.json", index="abc")
    assert str(whole) == "mevis, meta.json, item abc, field 'expressions.0.exp': is missing."
    # What is known already stays
    assert str(whole.with_context(source="other", index=3)) == str(whole)


def test_error_can_be_pickled():
    error = DataError("is missing", source="mevis", file="meta.json", index=3, field="exp")
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) and again.field == "exp" and again.index == 3


def test_require_field():
    assert require_field({"a": 1}, "a", int) == 1 and require_field({"a": None}, "a", int, default=2) == 2
    for item in ({"a": True}, {"a": "1"}, {"a": None}):
        with pytest.raises(DataError, match="field 'a': is .* where a whole number is expected"):
            require_field(item, "a", int)


def lookup(store, key):
    return {("masks", "9"): [None, MASK]}[store, key]


def test_masks_of_an_object_inline_from_a_store_and_united():
    eye, empty = np.eye(4, dtype=bool), np.zeros((4, 4), dtype=bool)
    assert object_masks(RECORD, "7", 2, lookup) == [MASK, None]
    assert object_masks(RECORD, "9", 2, lookup) == [None, MASK]
    assert object_masks(RECORD, "7+9", 2, lookup, frames=[1]) == [MASK]
    assert np.array_equal(decode_object(RECORD, "7+9", (4, 4), 2, lookup), [eye, eye])
    assert np.array_equal(decode_object(RECORD, "7", (4, 4), 2, lookup, frames=[1, 0, 0]), [empty, eye, eye])


def test_fit_fills_up_and_resizes():
    record = changed("objects", "7", value={"masks": [MASK], "fit": True})
    masks = decode_object(validate_record(record), "7", (8, 8), 2, lookup)
    assert np.array_equal(masks[0], np.kron(np.eye(4), np.ones((2, 2))).astype(bool)) and not masks[1].any()
    # Surplus entries are passed over if nothing is in them
    record["objects"]["7"]["masks"] = [MASK, None, None]
    assert object_masks(validate_record(record), "7", 2, lookup) == [MASK, None]
    record["objects"]["7"]["masks"] = [MASK, None, MASK]
    with pytest.raises(DataError, match="has 3 masks for 2 frames"):
        object_masks(record, "7", 2, lookup)


def test_each_part_of_a_union_is_resized_by_its_own_allowance():
    objects = {
        "small": {"masks": [MASK, None], "fit": True},
        "same": {"masks": [encode_rle(np.eye(8, dtype=bool)), None]},
        "both": {"union": ["small", "same"]},
    }
    record = changed("objects", value={**RECORD["objects"], **objects})
    masks = decode_object(validate_record(record), "both", (8, 8), 2, lookup)
    expected = np.kron(np.eye(4), np.ones((2, 2))).astype(bool) | np.eye(8, dtype=bool)
    assert np.array_equal(masks, [expected, np.zeros((8, 8), dtype=bool)])
    sized = sized_object_masks(record, "both", (8, 8), 2, lookup)
    assert np.array_equal(decode_rle(sized[0], (8, 8)), expected) and sized[1] is None
    record["objects"]["same"]["masks"] = [MASK, None]
    with pytest.raises(DataError, match=r"objects.same.masks\[0\]': the mask is 4 x 4"):
        decode_object(record, "both", (8, 8), 2, lookup)
    record["objects"]["both"]["fit"] = True
    with pytest.raises(DataError, match="objects.both.fit': is unknown in an object with union"):
        validate_record(record)


def test_short_fills_up_and_does_not_resize():
    record = changed("objects", "7", value={"masks": [MASK], "short": True})
    masks = decode_object(validate_record(record), "7", (4, 4), 2, lookup)
    assert np.array_equal(masks, [np.eye(4, dtype=bool), np.zeros((4, 4), dtype=bool)])
    with pytest.raises(
        DataError, match=r"field 'objects.7.masks\[0\]': the mask is 4 x 4 \(height x width\), its frame 8 x"
    ):
        decode_object(record, "7", (8, 8), 2, lookup)
    with pytest.raises(DataError, match="field 'objects.7.short': is a string where true or false is expected"):
        validate_record(changed("objects", "7", value={"masks": [MASK, None], "short": "yes"}))


@pytest.mark.parametrize(
    ("name", "num_frames", "size", "masks", "message"),
    [
        ("9", 3, (4, 4), None, "mevis, masks, item mevis/abc/3, field 'objects.9.masks': has 2 masks for 3 frames."),
        (
            "8",
            2,
            (4, 4),
            None,
            "mevis, masks, item mevis/abc/3, field 'objects.8': there is no mask '8' in the mask file.",
        ),
        ("9", 2, (4, 5), None, "mevis, masks, item mevis/abc/3, field 'objects.9.masks[1]': the mask is 4 x 4 "),
        (
            "7",
            2,
            (4, 4),
            [None, {"size": [4, 4], "counts": "0"}],
            "field 'objects.7.masks[1]': the run-length code of",
        ),
        (
            "7",
            2,
            (4, 4),
            [None, 7],
            "field 'objects.7.masks[1]': a mask is null, a run-length code or a list of them, got",
        ),
    ],
)
def test_masks_that_are_wrong(name, num_frames, size, masks, message):
    record = changed("objects", "8", value={"store": "masks", "key": "8"})
    if masks is not None:
        record["objects"]["7"]["masks"] = masks
    with pytest.raises(DataError) as caught:
        decode_object(record, name, size, num_frames, lookup)
    assert message in str(caught.value) and str(caught.value).count("item mevis/abc/3") == 1


def test_lines(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text("one\n\n  \ntwo")
    assert list(read_lines(path)) == [(1, b"one\n"), (4, b"two")]
    for place, message in (("absent", "there is no such file"), (".", "cannot be read")):
        with pytest.raises(DataError, match=message):
            list(read_lines(tmp_path / place))


# Paths


@pytest.mark.parametrize(
    "name",
    ["../secret.jpg", "a/../../secret.jpg", "/secret.jpg", "C:/secret.jpg", "C:secret.jpg", "..\\secret.jpg", ""],
)
def test_paths_cannot_leave_the_data_folder(tmp_path, name):
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret.jpg").write_bytes(b"")
    with pytest.raises(DataError, match="field 'image': (leaves the data folder|is not a path)"):
        safe_path(root, name, field="image")


def test_links_cannot_leave_the_data_folder_unless_they_are_trusted(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "media").mkdir(parents=True)
    outside.mkdir()
    (outside / "a.jpg").write_bytes(b"")
    (root / "media" / "link").symlink_to(outside)
    (root / "media" / "file.jpg").symlink_to(outside / "a.jpg")
    (root / "media" / "inside").symlink_to(root / "media")
    for name in ("media/link/a.jpg", "media/file.jpg", "media/inside/link/a.jpg"):
        with pytest.raises(DataError, match="is a link that leaves the data folder.*under `links`"):
            safe_path(root, name)
    assert safe_path(root, "media/inside/new.jpg") == root / "media/inside/new.jpg"
    # A folder that the catalogue itself names may be a link, and so may those it lists
    assert safe_path(root, "media/link/a.jpg", trusted_folders(root, {"media": "media/link"})).is_file()
    assert safe_path(root, "media/link/a.jpg", trusted_folders(root, {"media": "media"}, ["media/link"])).is_file()


def test_opening_a_record_without_its_frame(tmp_path):
    (tmp_path / "clips" / "abc").mkdir(parents=True)
    message = r"mevis, item mevis/abc/3, field 'video\.frames\[0\]': there is no file '.*0\.jpg'\."
    with pytest.raises(DataError, match=message):
        open_visual(RECORD, tmp_path)
    with pytest.raises(
        DataError, match=r"mevis, item mevis/abc/3, field 'video\.path': there is no file '.*x\.mp4'\."
    ):
        open_visual(changed("video", value={"path": "x.mp4", "stride": 4}), tmp_path)
    with pytest.raises(DataError, match=r"field 'video\.path': leaves the data folder"):
        open_visual(changed("video", "path", value="../abc"), tmp_path)
    with pytest.raises(DataError, match=r"field 'video\.path': there is no folder '.*abd'\."):
        open_visual(changed("video", "path", value="clips/abd"), tmp_path)
    (tmp_path / "clips" / "abc" / "0.jpg").symlink_to(tmp_path.parent / "elsewhere.jpg")
    with pytest.raises(DataError, match=r"field 'video\.frames\[0\]': is a link that leaves the data folder"):
        open_visual(changed("video", "frames", value=["0.jpg"]), tmp_path)


def test_a_video_that_is_shorter_than_its_masks():
    record = changed("video", value={"path": "sav_000001.mp4", "stride": 4, "num_frames": 5})
    root = Path(__file__).parents[1] / "fixtures" / "ref_sav" / "sam_v_full" / "sav_train" / "sav_000"
    with pytest.raises(DataError, match=r"has 4 frames at a stride of 4, 5 are expected\."):
        open_visual(record, root)


# Wording


def test_template_sets_have_the_sizes_of_the_release():
    sizes = {"segment_image": 16, "segment_described": 1, "caption_image": 6, "segment_answer": 5}
    sizes |= {
        "describe_region_image": 30,
        "describe_region_video": 20,
        "describe_region_bench": 1,
        "segment_video": 16,
    }
    # A benchmark asks in one wording
    sizes |= dict.fromkeys(
        ("segment_image_bench", "segment_video_bench", "caption_image_bench", "caption_region_bench"), 1
    )
    assert {name: len(set(sentences)) for name, sentences in TEMPLATES.items()} == sizes


def test_every_template_has_the_slot_of_its_set():
    for name, sentences in TEMPLATES.items():
        assert {sentence.count("{}") for sentence in sentences} == {0 if name.startswith("caption_image") else 1}


def test_questions_about_videos_do_not_say_image():
    """data.md 6.3: those of the release do; its preset takes the other set."""
    assert not any(
        "image" in sentence for name in TEMPLATES if name.endswith("_video") for sentence in TEMPLATES[name]
    )
    assert TEMPLATE_SETS == {"segment_video": "segment_image"}
