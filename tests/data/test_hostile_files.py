"""Files that crashed, hung, took gigabytes, escaped with another project's error, or were repaired in silence."""

import json

import pytest
from data_fixtures import copied
from fixture_sources import SOURCES
from PIL import Image
from test_reader_errors import annotations_of, edit, read

from sama.data.catalogue import Entry, FileSource, ToySource, read_catalogue
from sama.data.frames import image_size, safe_path
from sama.data.mixture import read_mixture
from sama.data.pickles import load_plain_pickle
from sama.data.readers import BENCHMARK_READERS, read_mask_store
from sama.data.readers.streams import stream_list
from sama.data.records import DataError, validate_record


SIZE = (24, 32)
HEADER = b"\x93NUMPY\x01\x00\x08\x00{'a': (\n"  # of a NumPy file, cut off


@pytest.fixture
def root(tmp_path):
    return copied(tmp_path)


# Errors of other projects


def test_a_broken_line_is_a_broken_item(root):
    path = root / annotations_of("json_lines")
    good = path.read_text().splitlines()[0]
    lines = [good, "{'id'}", '{"id": 3}', "9" * 5000, "[" * 3000, '{"id": "\\ud800"}', "[1]", "NaN"]
    path.write_bytes("\n".join(lines).encode() + b'\n{"id": "\xff"}\n' + good.encode())
    broken = []
    records = read("json_lines", root, on_error=broken.append)
    assert len(records) == 2 and [error.index for error in broken] == [f"line {number}" for number in range(2, 10)]
    assert all(type(error) is DataError and error.file == annotations_of("json_lines") for error in broken)
    with pytest.raises(DataError, match=r"item line 2: is not JSON \(Expecting property name"):
        read("json_lines", root)


RECORD = {
    "id": "1",
    "source": "mine",
    "image": {"path": "a.jpg"},
    "objects": {"1": {"masks": [None]}},
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "?"}], "info": {}},
        {"role": "assistant", "content": [{"type": "grounded", "text": "a", "objects": ["1"]}]},
    ],
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": [1]}, "field 'id': is a list where a string is expected"),
        ({"id": "\ud800"}, "field 'id': contains half of a Unicode character"),
        ({"objects": {"1": {"union": [["2"]]}}}, r"field 'objects\.1\.union\[0\]': is a list where a string"),
        ({"objects": {"1": {"union": ["2"]}, "2": 5}}, r"field 'objects\.2': is a whole number where an object"),
        ({"objects": {"\ud800": {"masks": [None]}, "1": {"masks": [None]}}}, "field 'objects': has the key"),
        ({"messages": [{"role": ["user"], "content": []}]}, r"field 'messages\[0\]\.role': is a list"),
        ({"messages": {"role": "user"}}, "field 'messages': is an object where a list"),
        ({"sampling": {"turns": "5"}}, r"field 'sampling\.turns': is a string where a whole number"),
        ({"sampling": {"turns": True}}, r"field 'sampling\.turns': is true or false where a whole number"),
        (
            {"sampling": {"turns": 1, "unit": "word"}},
            r"'sampling\.unit': is 'word', expected one of turn, object",
        ),
        ({"layout": "x"}, "field 'layout': is 'x', expected one of"),
        ({"region_shape": 3}, "field 'region_shape': is a whole number"),
        ({"image": None}, "field 'image': is null where an object is expected"),
    ],
)
def test_records_of_wrong_types(change, message):
    assert validate_record(RECORD)
    with pytest.raises(DataError, match=message):
        validate_record(RECORD | change)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), r"field 'messages\[0\]\.info\.x': is nan, expected a finite number"),
        ("\udc00", r"info\.x': contains half of a Unicode character"),
        ({(1, 2): 3}, r"info\.x': has the key \(1, 2\), expected text"),
        ({1, 2}, r"info\.x': is a set, which JSON cannot hold"),
    ],
)
def test_info_that_cannot_be_stored(value, message):
    with pytest.raises(DataError, match=message):
        validate_record(RECORD | {"messages": [{**RECORD["messages"][0], "info": {"x": value}}]})


def test_one_object_name_is_not_a_list_of_letters():
    part = {"type": "grounded", "text": "a", "objects": "1"}
    with pytest.raises(DataError, match=r"content\[0\]\.objects': is a string where a list is expected"):
        validate_record(RECORD | {"messages": [{"role": "assistant", "content": [part]}]})


@pytest.mark.parametrize(
    ("number", "message"),
    [(0, "is 0"), (-3, "is -3"), (2**40, "is 1099511627776"), (True, "is true"), (3.0, "is a float")],
)
def test_numbers_of_frames(number, message):
    record = RECORD | {
        "video": {"path": "v.mp4", "num_frames": number},
        "objects": {},
        "messages": RECORD["messages"][:1],
    }
    del record["image"]
    with pytest.raises(DataError, match=rf"video\.num_frames': {message}"):
        validate_record(record)


@pytest.mark.parametrize(
    ("bbox", "message"),
    [
        (["1", 2, 30, 40], r"bbox\[0\]': is a string where a whole number or float is expected"),
        ([1, 2, True, 40], r"bbox\[2\]': is true or false where"),
        ([1, 2, 30, None], r"bbox\[3\]': is null where"),
        ([0.1, 0.2, 0.5, 0.6], r"bbox': is \[0.1, 0.2, 0.5, 0.6\], which looks normalised: pixels are expected"),
        ("abcd", r"bbox': is a string where a list is expected"),
    ],
)
def test_boxes_of_flickr(root, bbox, message):
    edit(root, "gcg_flickr", lambda content: content["annotations"][0].update(bbox=bbox))
    with pytest.raises(DataError, match=message):
        read("gcg_flickr", root)
    broken = []
    assert len(read("gcg_flickr", root, on_error=broken.append)) + 1 == len(read("gcg_flickr", copied(root / "x")))
    assert len(broken) == 1


@pytest.mark.parametrize(
    ("source", "change", "count"),
    [
        ("gcg_flickr", lambda content: content["annotations"][0].pop("image_id"), 1),
        ("gcg_flickr", lambda content: content["images"][0].update(height=-480), 1),
        ("gcg_flickr", lambda content: content["images"][0].update(height="480"), 1),
        ("osprey_part", lambda content: content[0].update(height=2**31), 1),
        ("osprey_part", lambda content: content[0]["annotation"][0].update(segmentation=[[1e9] * 6]), 1),
        ("gcg_refcocog", lambda content: content[0]["101"]["refs"][0].update(segmentation=[[float("1e300")] * 6]), 1),
        ("gcg_openpsg", lambda content: content[0]["groundings"]["A dog"].update(token_positives=[True, 2]), 1),
        ("ref_sav", lambda content: content["sav_000001"]["objects"].update({"7" * 5000: {"formated": "x"}}), 1),
        ("sama239k_description", lambda content: content[1]["description"].update({"obj" + "1" * 5000: "x"}), 1),
        ("chat_univi", lambda content: content[0].update(video="."), 1),
        ("llava", lambda content: content[0].update(image="x" * 5000), 0),
        ("osprey_part", lambda content: content[0].update(file_name="x" * 300), 1),
    ],
)
def test_broken_items_can_be_skipped(root, source, change, count):
    edit(root, source, change)
    broken = []
    records = read(source, root, on_error=broken.append)
    assert len(broken) == count and all(type(error) is DataError and error.file for error in broken)
    assert isinstance(records, list)


@pytest.mark.parametrize(("place", "change"), [("annotations", {"image_id": [1]}), ("images", {"id": None})])
def test_broken_instances_can_be_skipped(root, place, change):
    path = root / "coco/refcoco/instances.json"
    content = json.loads(path.read_text())
    content[place][0].update(change)
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"instances\.json, item {place}\[0\], field"):
        read("refcoco", root)
    broken = []
    assert read("refcoco", root, on_error=broken.append)
    assert broken[0].file == "coco/refcoco/instances.json" and broken[0].index == f"{place}[0]"


def test_expressions_behind_a_video_that_cannot_be_counted(root):
    """Their numbers are their masks: a guess would give the next video the masks of this one."""
    edit(
        root,
        "ref_youtube_vos",
        lambda content: content["videos"].update(
            {name: video if position else 5 for position, (name, video) in enumerate(content["videos"].items())}
        ),
    )
    broken = []
    assert read("ref_youtube_vos", root, on_error=broken.append) == []
    assert "is a whole number where an object" in str(broken[0])
    assert "whose expressions cannot be counted" in str(broken[1])


def test_text_of_mme_that_is_not_utf8(tmp_path):
    (tmp_path / "mme" / "OCR").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "mme" / "OCR" / "a.png")
    (tmp_path / "mme" / "OCR" / "a.txt").write_bytes(b"Is it a caf\xe9?\tYes\n")
    options = {"source": "mme"}
    with pytest.raises(DataError, match=r"mme, mme/OCR, item a, field 'line 1': is not UTF-8 text \(byte 11\)"):
        list(BENCHMARK_READERS["mme"]({"media": "mme"}, tmp_path, options))
    assert list(BENCHMARK_READERS["mme"]({"media": "mme"}, tmp_path, options | {"on_error": "skip"})) == []


def test_pictures_that_are_too_large_or_none(tmp_path, monkeypatch):
    Image.new("RGB", (40, 40)).save(tmp_path / "big.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow refuses twice as many
    with pytest.raises(DataError, match=r"big\.png. has 1,600 pixels; a picture may have 200 at most"):
        image_size(tmp_path / "big.png")


@pytest.mark.parametrize("name", ["x" * 300, "loop/x", "a/" * 3000])
def test_paths_that_lead_nowhere(tmp_path, name):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    try:
        found = safe_path(tmp_path, name, field="image")
    except DataError as error:
        assert "is not a path that can be followed" in str(error)
    else:
        assert found == tmp_path / name  # some versions of Python only notice when the file is opened
    for stream in (stream_list, lambda path: [load_plain_pickle(path)]):
        with pytest.raises(DataError, match=r"there is no such file|cannot be read \((File name too long|Too many)"):
            list(stream(tmp_path / name))


def test_a_folder_in_the_place_of_a_file(tmp_path):
    for read_it in (stream_list, load_plain_pickle, read_catalogue, read_mixture):
        with pytest.raises(DataError, match=r"cannot be read \(Is a directory\)"):
            list(read_it(tmp_path))


def test_osprey_needs_only_the_folder_that_has_the_picture(root, tmp_path):
    files = SOURCES["osprey_part"][1]
    missing = [*files["media"], "osprey-724k/coco/absent"]
    source = FileSource(Entry("osprey", "osprey", files | {"media": missing}), root, tmp_path / "cache", "raise")
    assert len(source) == len(read("osprey_part", root))
    absent = Entry("osprey", "osprey", files | {"media": ["absent", "missing"]})
    with pytest.raises(DataError, match=r"absent: there is no such file"):
        FileSource(absent, root, tmp_path / "cache", "raise")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: !!int ''", "is not YAML"),
        ("a: !!bool x", "is not YAML"),
        ("[" * 5000, "is not YAML"),
        ("a: \xff", None),
        ("1: {format: llava}", "is a whole number where a string is expected"),
        ("a: {format: llava, 3: 4}", "field '3': is unknown"),
        ("a: {format: llava, files: {x_masks: [b]}}", "files.x_masks': is a list where a string is expected"),
        ("a: {format: llava, links: [3]}", r"links\[0\]': is a whole number where a string is expected"),
    ],
)
def test_catalogues(tmp_path, content, message):
    path = tmp_path / "catalogue.yaml"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match=message or "is not YAML") as caught:
        read_catalogue(path)
    assert type(caught.value) is DataError and "catalogue.yaml" in str(caught.value)


@pytest.mark.parametrize("weight", [".nan", ".inf", "true", "-1", "1e300", "'2'"])
def test_weights(tmp_path, weight):
    (tmp_path / "m.yaml").write_text(f"sources: {{a: {{format: llava, weight: {weight}}}}}")
    with pytest.raises(DataError, match=r"m\.yaml.*field 'sources\.a(\.weight)?'"):
        read_mixture(tmp_path / "m.yaml")


def test_options_of_readers_have_the_type_of_their_default(root):
    for name, options in (
        ("sama239k_conversation", {"rounds": "4"}),
        ("sama239k_conversation", {"rounds": 0}),
        ("sama239k_description", {"objects": True}),
        ("osprey_part", {"short_answers": "yes"}),
    ):
        with pytest.raises(DataError, match=f"{name}, field '{next(iter(options))}': is "):
            read(name, root, **options)
    with pytest.raises(DataError, match=r"options.samples': is '5', expected a whole number from 1 on"):
        ToySource(Entry("toy", "toy_world", options={"samples": "5"}))


# Mask files and stores


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"size": [24, 32], "counts": [1.5]}, "are whole numbers, got 1.5"),
        ({"size": [65535, 65535], "counts": "06"}, "exceeds the limits"),
        ({"size": [-1, 5], "counts": "06"}, "has no pixels"),
        ([[1e9, 0, 0, 0, 5, 5]], "polygons need the height and width"),
    ],
)
def test_mask_files(tmp_path, entry, message):
    (tmp_path / "m.json").write_text(json.dumps({"3": [None, entry]}))
    with pytest.raises(DataError, match=rf"m\.json, item 3, field '\[1\]': .*{message}"):
        list(read_mask_store(tmp_path / "m.json"))


def test_damaged_stores(root, tmp_path):
    name, cache = "ref_davis17", tmp_path / "cache"
    reader, files, options = SOURCES[name]

    def open_source():
        return FileSource(Entry(name, reader, files, options), root, cache, "raise")

    open_source()
    for file, data in (
        ("info.json", b"[]"),
        ("info.json", b"\xff"),
        ("keys.npy", b""),
        ("keys.npy", HEADER),
        ("rows.arrow", b"no arrow"),
    ):
        for path in cache.rglob(file):
            whole = path.read_bytes()
            path.write_bytes(data)
            with pytest.raises(DataError, match="this store is damaged .*: delete it, it will be built again"):
                open_source()
            path.write_bytes(whole)
    open_source()
