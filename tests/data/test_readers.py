"""Every source's reader on its fixture, against expectations written by hand (data.md 1 and evaluation.md 1 to 4)."""

import copy
import json
from collections import Counter

import numpy as np
import pytest
from fixture_sources import FIXTURES, SOURCES

from sama.data.frames import open_visual, trusted_folders
from sama.data.readers import READERS, read_mask_store
from sama.data.records import PUBLISHED_CHOICES, VIDEO_KEYS, DataError, decode_object, validate_record


HEIGHT, WIDTH = 24, 32


def read(source, dropped=None, **options):
    reader, files, fixed = SOURCES[source]
    return list(READERS[reader](files, FIXTURES, {**fixed, "source": source, "dropped": dropped, **options}))


def stores_of(source):
    """lookup(store, key), from the mask files that the source names."""
    files = {key: name for key, name in SOURCES[source][1].items() if key == "masks" or key.endswith("_masks")}
    stores = {key: dict(read_mask_store(FIXTURES / name)) for key, name in files.items()}
    return lambda store, key: stores[store][key]


def masks(source, record, name, size=(HEIGHT, WIDTH)):
    visual = record.get("video", {})
    frames = visual.get("frames")
    num_frames = 1 if "image" in record else len(frames) if frames else visual["num_frames"]
    return decode_object(record, name, size, num_frames, stores_of(source))


def boxes(*frames, size=(HEIGHT, WIDTH)):
    """Masks of frames that hold the given rectangles each: (x1, y1, x2, y2), a list of them, or None."""
    track = np.zeros((len(frames), *size), dtype=bool)
    for mask, found in zip(track, frames, strict=True):
        for x1, y1, x2, y2 in found if isinstance(found, list) else [found] if found else []:
            mask[y1:y2, x1:x2] = True
    return track


def written(part):
    if part["type"] == "region":
        return f"<{part['object']}>"
    return part["text"] if part["type"] == "text" else f"[{part['text']}|{' '.join(part['objects'])}]"


def turns(record):
    """The messages in shorthand: "<7>" is a region, "[a ball|9]" a phrase with its object, "set: " a template set."""
    shown = []
    for message in record["messages"]:
        words = "".join(map(written, message["content"]))
        shown.append(f"{message['templates']}: {words}" if "templates" in message else words)
    assert [message["role"] for message in record["messages"]] == ["user", "assistant"] * (len(shown) // 2)
    return shown


def questions(record):
    return turns(record)[::2]


def targets(record):
    """The objects of the answers that are a bare [SEG]."""
    assert all(answer.startswith("segment_answer: [|") for answer in turns(record)[1::2])
    return [answer.removeprefix("segment_answer: [|")[:-1] for answer in turns(record)[1::2]]


# All sources


def test_every_reader_has_a_fixture():
    assert {reader for reader, _, _ in SOURCES.values()} == set(READERS)


@pytest.mark.parametrize("source", SOURCES)
def test_records_are_valid_and_the_same_every_time(source):
    records = read(source)
    assert len(records) >= 2
    assert len({record["id"] for record in records}) == len(records)
    for record in records:
        validate_record(record)
        assert record["source"] == source or record["id"] == "mine/1"
    assert read(source) == records


@pytest.mark.parametrize("source", SOURCES)
def test_every_mask_fits_the_frames_that_really_open(source):
    _, files, _ = SOURCES[source]
    trusted, lookup = trusted_folders(FIXTURES, files), stores_of(source)
    for record in read(source):
        video = open_visual(record, FIXTURES, trusted)
        if video is None:
            assert not record.get("objects")
            continue
        for name in record.get("objects", {}):
            track = decode_object(record, name, (video.height, video.width), len(video), lookup)
            assert track.shape == (len(video), video.height, video.width) and track.any()


# Stills


def test_refcoco():
    dropped = Counter()
    first, second = read("refcoco", dropped)
    assert first["id"] == "refcoco/1" and first["layout"] == "refcoco"
    assert first["image"] == {"path": "coco/train2014/COCO_train2014_000000000001.jpg"}
    phrases = ["the left man", "man in red", "right dog", "small dog"]
    assert questions(first) == [f"segment_image: {phrase}" for phrase in phrases]
    assert targets(first) == ["11", "11", "12", "12"]
    assert first["messages"][0]["info"] == {"sentence": "The Left man."}
    assert np.array_equal(masks("refcoco", first, "12"), boxes((20, 2, 30, 10)))
    assert second["id"] == "refcoco/2" and questions(second) == ["segment_image: the wall"]
    assert np.array_equal(masks("refcoco", second, "21"), boxes((0, 0, 32, 6)))
    assert dropped == {"empty sentences": 1}


def test_refcoco_splits():
    assert [record["id"] for record in read("refcoco", split="val")] == ["refcoco/3"]
    assert [questions(record) for record in read("refcoco", split="testA")] == [["segment_image: top"]]
    assert [record["id"] for record in read("refcoco", split="test")] == ["refcoco/2", "refcoco/3"]


def test_refcoco_plus_and_g():
    assert [questions(record) for record in read("refcoco+")] == [["segment_image: man"], ["segment_image: wall"]]
    dog, wall = read("refcocog")
    assert questions(dog) == ["segment_image: a small dog on the right"] and targets(dog) == ["12"]
    assert questions(wall) == ["segment_image: a red wall"]


def test_refcoco_overlapping_polygons_are_united_not_summed():
    """data.md 6.3: the release adds the polygons, so that the overlap is 2 in the target."""
    (mask,) = masks("refcoco", read("refcoco")[0], "11")
    assert mask.dtype == bool and np.array_equal(mask[None], boxes([(2, 2, 12, 12), (8, 8, 20, 20)]))


def test_refcoco_sentences_are_not_fixed_when_the_program_starts():
    """data.md 6.3: the release draws one sentence an object once. The record holds all; a sample draws from them."""
    record = read("refcoco")[0]
    assert Counter(targets(record)) == {"11": 2, "12": 2}
    assert record["sampling"] == {"turns": 5, "replace": True, "unit": "object"}


def test_llava():
    dropped = Counter()
    first, text_only, odd, last = read("llava", dropped)
    assert first["image"] == {"path": "llava_data/llava_images/coco/train2017/000000000001.jpg"}
    assert turns(first)[1:] == ["Square.", "What\ncolour?", "Red."] and first["layout"] == "llava"
    # An answer before the first question is passed over, a last question without an answer is left out
    assert "image" not in text_only and "objects" not in text_only
    assert turns(text_only) == ["Name a colour.", "Blue."]
    assert turns(odd) == ["Where is it?", "Left."] and dropped == {"last messages without an answer": 1}
    # The picture belongs to the first question, whether or not it says <image>
    assert turns(last) == ["Is it red?", "Yes."] and "image" in last


def test_llava_keeps_the_newlines_of_the_first_question():
    """data.md 6.3: the release deletes them without a blank: "it?Answer"."""
    assert turns(read("llava")[0])[0] == "What is it?\nAnswer the question using a single word."


def test_llava_conversations_are_not_changed_by_reading():
    """data.md 6.3: the release edits its stored conversations, and a second visit doubles the image tokens."""
    from sama.data.readers.conversations import conversation_rounds
    from sama.data.readers.source_reader import SourceReader

    messages = [{"from": "human", "value": "<image>\nWhy?"}, {"from": "gpt", "value": "So. "}]
    before, reader = copy.deepcopy(messages), SourceReader({}, FIXTURES, {}, "llava", [])
    first = list(conversation_rounds(messages, reader))
    assert messages == before and first == list(conversation_rounds(messages, reader)) == [("Why?", "So.", 0)]


def test_gcg_openpsg():
    dog, sky, _ = read("gcg_openpsg")
    assert dog["image"] == {"path": "glamm_data/images/coco2017/train2017/p1.jpg"} and dog["layout"] == "gcg"
    assert turns(dog) == ["caption_image: ", "[A dog|0] runs for [a ball|1]."]
    # One phrase, two codes: their union
    assert np.array_equal(masks("gcg_openpsg", dog, "0"), boxes([(0, 0, 8, 8), (4, 4, 12, 12)]))
    assert np.array_equal(masks("gcg_openpsg", dog, "1"), boxes((20, 0, 24, 4)))
    assert turns(sky)[1] == "[Sky|0] over a field."


def test_gcg_spans_are_taken_from_the_caption_that_they_count_in():
    """
    data.md 1.7: captions lose quotes and blanks. Positions in the tidied caption and positions in the one that stands
    in the file both give the phrase; what stands in neither place is taken from the tidied one, as in the release.
    """
    from sama.data.readers.grounded_captions import phrase_span

    _, _, cat = read("gcg_openpsg")
    assert turns(cat)[1] == "[A cat|0] on [Straw|1]."
    assert np.array_equal(masks("gcg_openpsg", cat, "0"), boxes((2, 2, 6, 6)))
    assert phrase_span([0, 5], ' "A cat on straw" ', "a cat", "f") == (0, 5)
    assert phrase_span([2, 7], ' "A cat on straw" ', "a  Cat", "f") == (0, 5)
    assert phrase_span([2, 7], ' "A cat on straw" ', "kitten", "f") == (2, 7)
    assert phrase_span([[2, 7]], "A cat on straw", "a cat", "f") == (2, 7)
    with pytest.raises(DataError, match=r"field 'f': \[10, 16\] lies outside a caption of 14 characters"):
        phrase_span([10, 16], ' "A cat on straw" ', "kitten", "f")


def test_gcg_grandf():
    dropped = Counter()
    cats, cat = read("gcg_grandf", dropped)
    assert turns(cats)[1] == "[Two cats|0] sleep." and turns(cat)[1] == "[One cat|0]."
    assert np.array_equal(masks("gcg_grandf", cats, "0"), boxes([(0, 0, 8, 8), (16, 0, 24, 8)]))
    # data.md 1.7: the release shows its first item in the place of a caption without a mask
    assert dropped == {"captions without a mask": 1} and cat["id"] == "gcg_grandf/2"


def test_gcg_flickr():
    dropped = Counter()
    men, kite = read("gcg_flickr", dropped)
    # In the order of the caption; two people of one phrase
    assert turns(men)[1] == "[Two men|1 2] with [a red kite|0]"
    assert turns(kite)[1] == "A kite above [trees|0]"
    assert np.array_equal(masks("gcg_flickr", men, "2", (40, 40)), boxes((10, 0, 18, 30), size=(40, 40)))
    assert dropped == {"short captions and small images": 1, "ignored and empty boxes": 2}


def test_gcg_refcocog_finds_phrases_in_any_case_and_as_whole_words():
    """data.md 6.3: found without regard to case but located with it, a capitalised phrase spoils the whole answer."""
    dropped = Counter()
    _, second = read("gcg_refcocog", dropped)
    assert turns(second)[1] == "a woman, a [man|0]"
    assert dropped == {"phrases that are not in their caption": 1}


def test_gcg_refcocog_spans_that_overlap_are_trimmed():
    """data.md 6.3: the release trims while it walks another list than the one it changes."""
    first = read("gcg_refcocog")[0]
    assert turns(first)[1] == "[a woman next to a|1] [man in red|0]"
    assert np.array_equal(masks("gcg_refcocog", first, "1"), boxes([(0, 0, 8, 8), (4, 4, 12, 12)]))


@pytest.mark.parametrize(
    ("spans", "kept"),
    [
        ([(0, 5), (8, 12)], [(0, 5), (8, 12)]),
        ([(0, 12), (4, 8)], [(0, 3), (4, 7)]),
        ([(4, 8), (0, 6), (6, 12)], [(4, 6), (0, 3), (6, 12)]),
        ([(0, 12), (0, 3)], [(4, 12), (0, 3)]),
        ([(3, 4), (0, 3)], [None, (0, 3)]),
        ([(0, 3), (0, 3)], [(0, 3), (0, 3)]),
    ],
)
def test_trimming(spans, kept):
    from sama.data.readers.grounded_captions import trim_overlaps

    trimmed = trim_overlaps("one two four", spans)
    assert [trimmed[span] for span in spans] == kept


def test_osprey_conversation():
    dropped = Counter()
    first, second = read("osprey_conversation", dropped)
    assert first["image"] == {"path": "osprey-724k/coco/train2014/one.jpg"}
    assert turns(first)[1:] == ["region1 is left of region2.", "Is region2 big?", "Yes."]
    assert np.array_equal(masks("osprey_conversation", first, "1"), boxes((0, 0, 8, 8)))  # polygon
    assert np.array_equal(masks("osprey_conversation", first, "2"), boxes((4, 4, 12, 12)))  # uncompressed
    assert np.array_equal(masks("osprey_conversation", second, "1"), boxes((16, 0, 24, 8)))  # compressed
    assert second["image"] == {"path": "osprey-724k/coco/train2017/three.jpg"}
    assert dropped == {"last messages without an answer": 1}
    assert first["layout"] == "osprey" and first["region_shape"] == "mask"


def test_osprey_lists_its_regions_without_the_left_over_image_tag():
    """data.md 6.3: the words "<image> " stay in the release's prompt; and the newlines of the question are gone."""
    first = read("osprey_conversation")[0]["messages"][0]
    listed = "".join(map(written, first["preamble"]))
    assert listed == "There are 2 part regions in the picture: region1<1>, region2<2>.\n"
    assert written(first["content"][0]) == "What is region1 to region2?\nSay it shortly."


def test_osprey_descriptions():
    two, four = read("osprey_description")
    assert turns(two) == [
        "describe_region_image: region1", "A red square.", "describe_region_image: region2", "Another one.",
    ]  # fmt: skip
    assert "preamble" in two["messages"][0] and "preamble" not in two["messages"][2]
    assert turns(four) == ["describe_region_image: region1", "A part of the wall."]


def test_osprey_part_short_and_lvis():
    assert [turns(record)[1] for record in read("osprey_part")] == ["region1 is left of region2.", "Yes."]
    short = read("osprey_short")
    assert turns(short[0]) == ["What colour is region1? Answer the question using a single word or phrase.", "Red"]
    assert turns(short[1])[0] == "Is region2 big? Answer the question using a single word or phrase."
    assert [turns(record) for record in read("osprey_lvis")] == [
        ["Is region1 a dog?", "No."], ["Is region1 a wall?", "Yes."],
    ]  # fmt: skip


# Referring segmentation in videos


def test_mevis():
    vid_b, vid_a = read("mevis")
    assert vid_b["id"] == "mevis/vid_b" and vid_b["layout"] == "referring_video"
    folder, frames = "video_datas/mevis/train/JPEGImages/vid_b", ["00000.jpg", "00001.jpg", "00002.jpg"]
    assert vid_b["video"] == {"path": folder, "frames": frames, "stride": 1}
    # Sorted as strings: "0", "10", "2"
    phrases = ["the moving dog", "dog on the right", "two dogs"]
    assert questions(vid_b) == [f"segment_video: {phrase}" for phrase in phrases]
    assert targets(vid_b) == ["7", "8", "7+8"]
    assert vid_b["messages"][0]["info"] == {"expression_id": "0", "expression": "The Moving dog."}
    seven, eight = [(0, 0, 8, 8), None, (4, 0, 12, 8)], [(16, 0, 24, 12), (18, 0, 26, 8), None]
    assert np.array_equal(masks("mevis", vid_b, "7"), boxes(*seven))
    assert np.array_equal(masks("mevis", vid_b, "8"), boxes(*eight))
    assert np.array_equal(masks("mevis", vid_b, "7+8"), boxes(*seven) | boxes(*eight))
    assert len(vid_a["video"]["frames"]) == 13 and targets(vid_a) == ["9"]


def test_referring_video_draws_no_expression_itself():
    """data.md 6.3: with replacement, some of a video's expressions repeat while others never come. All are kept."""
    assert [len(questions(record)) for record in read("ref_youtube_vos")] == [11, 2]
    assert read("ref_youtube_vos")[0]["sampling"] == {"turns": 5, "replace": True, "unit": "turn"}


def test_revos():
    animals, cup = read("revos")
    assert animals["id"] == "revos/LVVIS/train/00001"
    assert animals["video"]["path"] == "video_datas/revos/LVVIS/train/00001"
    # A question is asked as it stands
    assert questions(animals) == ["Which animal is about to jump?", "segment_video: the two animals"]
    assert [message["info"]["type_id"] for message in animals["messages"][::2]] == [1, 0]
    assert targets(animals) == ["0", "0+1"]
    assert np.array_equal(masks("revos", animals, "0+1"), boxes((0, 0, 4, 4), [(1, 0, 5, 4), (2, 2, 9, 6)]))
    assert cup["video"]["frames"] == ["f1.jpg", "f2.jpg"]


def test_ref_youtube_vos_counts_in_file_order_with_expressions_sorted_as_strings():
    zebra, ant = read("ref_youtube_vos")
    numbers = [0, 1, 10, 2, 3, 4, 5, 6, 7, 8, 9]
    assert questions(zebra) == [f"segment_video: zebra number {number}" for number in numbers]
    assert targets(zebra) == [str(key) for key in range(11)]
    assert questions(ant) == ["segment_video: an ant", "segment_video: the other ant"] and targets(ant) == ["11", "12"]
    assert np.array_equal(masks("ref_youtube_vos", ant, "12"), boxes((12, 0, 16, 4), None))


def test_ref_davis17_counts_over_sorted_videos():
    bear, dog = read("ref_davis17")
    assert (bear["id"], dog["id"]) == ("ref_davis17/bear", "ref_davis17/dog")
    assert targets(bear) == ["0", "1"] and targets(dog) == ["2"]
    assert np.array_equal(masks("ref_davis17", dog, "2"), boxes((2, 0, 6, 4), (2, 0, 6, 4)))


def test_a_split_without_masks_gives_questions():
    _, files, options = SOURCES["ref_youtube_vos"]
    files = {key: name for key, name in files.items() if key != "masks"}
    record = list(READERS["referring_video"](files, FIXTURES, options))[1]
    assert [message["role"] for message in record["messages"]] == ["user", "user"] and record["objects"] == {}


def test_ref_sav():
    first, second = read("ref_sav")
    path = "ref_sav/sam_v_full/sav_train/sav_000/sav_000001.mp4"
    assert first["video"] == {"path": path, "frames": None, "stride": 4, "num_frames": 4}
    assert questions(first) == [
        "segment_described: A Square that moves right.",
        "segment_described: A square that sinks.",
    ]
    assert targets(first) == ["0", "1"] and list(second["objects"]) == ["1"]
    assert np.array_equal(masks("ref_sav", first, "0"), boxes(*((i, 0, i + 8, 8) for i in range(4))))
    assert np.array_equal(masks("ref_sav", second, "1"), boxes(*((16, i, 24, i + 8) for i in range(3))))
    short = read("ref_sav", captions="short")[0]
    assert questions(short) == [f"segment_video: {words}" for words in ("square", "moving square", "sinking square")]


def test_sav_videos_give_every_fourth_frame():
    """Frame i of the file is grey 20 * i; the annotated ones are 0, 4, 8 and 12."""
    for source in ("ref_sav", "sama239k_description"):
        record = next(record for record in read(source) if record["video"]["path"].endswith("sav_000001.mp4"))
        video = open_visual(record, FIXTURES)
        assert len(video) == 4 and video.fps == 6
        assert [video[index].mean() for index in range(4)] == pytest.approx([0, 80, 160, 240], abs=6)


def test_chat_univi():
    one, two = read("chat_univi")
    assert one["video"] == {
        "path": "video_datas/chat_univi/Activity_Videos/v_one.mp4", "frames": None, "stride": 1,
    }  # fmt: skip
    # The newline beside <image> stays, see test_rendering.py
    assert turns(one) == ["What happens?\n", "It grows brighter."] and one["frame_policy"] == "segments"
    # Named .mkv, published as .mp4
    assert two["video"]["path"].endswith("/v_two.mp4") and len(open_visual(two, FIXTURES)) == 6
    assert turns(two) == ["\nIs it dark?", "At first.", "And then?", "No."]


def test_json_lines():
    ball, hello = read("json_lines")
    assert ball["video"] == {"path": "custom/media/clip", "frames": ["0.png", "1.png"]}
    assert turns(ball) == ["What is <ball>?", "[A ball|ball]."]
    assert np.array_equal(masks("json_lines", ball, "ball"), boxes((0, 0, 4, 4), None))
    assert hello["id"] == "json_lines/line 3" and turns(hello) == ["Hello", "Hi."]


@pytest.mark.parametrize(
    "place",
    [(), ("video",), ("sampling",), ("messages", 0), ("messages", 0, "content", 0), ("messages", 1, "content", 0)],
)
def test_json_lines_with_null_keys_are_read_as_without_them(place, tmp_path):
    """As tables write them, with all their columns."""
    phrase = {"type": "grounded", "text": "a ball", "objects": ["ball"]}
    record = {
        "video": {"path": "a.mp4"},
        "objects": {"ball": {"masks": [None, None]}},
        "sampling": {"turns": 1},
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "What?"}]},
            {"role": "assistant", "content": [phrase], "info": {"answer": None}},
        ],
    }
    keys = {
        (): PUBLISHED_CHOICES - {"sampling"} | {"image"}, ("video",): VIDEO_KEYS - {"path"},
        ("sampling",): {"replace", "unit"},
        ("messages", 0): {"preamble", "templates", "wants_masks", "info"},
    }.get(place, {"name"})  # fmt: skip
    nulls = json.loads(json.dumps(record))
    inner = nulls
    for key in place:
        inner = inner[key]
    inner |= dict.fromkeys(keys)
    found = []
    for item in (record, nulls):
        (tmp_path / "mine.jsonl").write_text(json.dumps(item))
        found += READERS["json_lines"]({"records": "mine.jsonl", "media": "."}, tmp_path)
    assert found[0] == found[1] and found[1]["messages"][1]["info"] == {"answer": None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objects": {"both": {"union": []}}}, "field 'objects.both.union': is empty"),
        ({"video": {"toy": {"seed": 0}}}, "field 'video.toy': is for generated clips"),
    ],
)
def test_json_lines_that_nothing_can_be_made_of(changes, message, tmp_path):
    said = [{"role": role, "content": [{"type": "text", "text": "Yes."}]} for role in ("user", "assistant")]
    (tmp_path / "mine.jsonl").write_text(json.dumps({"video": {"path": "a.mp4"}, "messages": said} | changes))
    with pytest.raises(DataError, match=message):
        list(READERS["json_lines"]({"records": "mine.jsonl", "media": "."}, tmp_path))
