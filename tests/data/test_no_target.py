"""Expressions that fit nothing, from the annotation file to the batch: readers, rendering, mixture, preview."""

import json
import logging
import pickle
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from processor_fixtures import noise_video, tiny_processor

from sama.data.catalogue import Entry, open_source
from sama.data.collator import SamaCollator
from sama.data.masks import encode_rle
from sama.data.mixture import Mixture
from sama.data.readers import READERS
from sama.data.records import DataError, is_no_target, validate_record
from sama.data.rendering import NO_TARGET, NothingToAskError, Renderer, RenderSettings
from sama.data.validation import MixtureValidator
from sama.data.wording import NO_TARGET_ANSWERS
from sama.drawing.preview import preview_sheet
from sama.video_sama import SamaVideo


SIZE = (8, 12)
BALL = encode_rle(np.eye(*SIZE, dtype=bool))
EXPRESSIONS = {
    "0": {"exp": "The ball", "type_id": 0, "obj_id": [1], "anno_id": [9]},
    "1": {"exp": "a cat that is not there", "type_id": 2, "obj_id": [], "anno_id": []},
    "2": {"exp": "Which of them would swim?", "type_id": 2, "anno_id": []},
}
VIDEOS = {
    "both": {"frames": ["00000", "00001"], "expressions": EXPRESSIONS},
    "none": {"frames": ["00000", "00001"], "expressions": {"0": EXPRESSIONS["1"]}},
}
FILES = {"expressions": "meta.json", "media": "frames", "masks": "masks.json"}


@pytest.fixture
def root(tmp_path):
    """A data root in the form of ReVOS: one video with an expression that fits and two that do not, one with none."""
    folder = tmp_path / "root"
    for name in VIDEOS:
        (folder / "frames" / name).mkdir(parents=True)
        for frame in ("00000", "00001"):
            Image.new("RGB", SIZE[::-1], (90, 120, 30)).save(folder / "frames" / name / f"{frame}.jpg")
    (folder / "meta.json").write_text(json.dumps({"videos": VIDEOS}))
    (folder / "masks.json").write_text(json.dumps({"9": [BALL, None]}))
    return folder


def opened(root, tmp_path, preset, on_error="raise"):
    source = open_source(Entry("revos", "referring_video", FILES), root, tmp_path / "cache", on_error)
    return Mixture([(source, 1)], Renderer(tiny_processor(), RenderSettings(preset=preset)), 0, on_error)


def answers(sample) -> list[str]:
    parts = [message["content"] for message in sample.messages if message["role"] == "assistant"]
    return ["".join(part["text"] or "[SEG]" for part in content) for content in parts]


# Readers


def test_an_empty_list_of_annotations_is_a_question_without_objects(root):
    both, none = READERS["referring_video"](FILES, root, {"source": "revos"})
    said = [message for message in both["messages"] if message["role"] == "assistant"]
    assert [message["content"][0]["objects"] for message in said] == [["9"], [], []]
    assert set(both["objects"]) == {"9"} and none["objects"] == {}
    assert [is_no_target(message) for message in none["messages"]] == [False, True]


def refcoco(tmp_path, refs: list[dict], as_json: bool) -> list[dict]:
    images = [{"id": 1, "file_name": "1.jpg", "height": SIZE[0], "width": SIZE[1]}]
    boxes = {7: [0, 0, 4, 0, 4, 4, 0, 4], 8: [6, 0, 9, 0, 9, 4, 6, 4]}
    notes = [{"id": key, "image_id": 1, "segmentation": [shape]} for key, shape in boxes.items()]
    (tmp_path / "instances.json").write_text(json.dumps({"images": images, "annotations": notes}))
    name = "grefs.json" if as_json else "refs.p"
    (tmp_path / name).write_bytes(json.dumps(refs).encode() if as_json else pickle.dumps(refs))
    files = {"instances": "instances.json", "refs": name, "media": "images"}
    return list(READERS["refcoco"](files, tmp_path, {"dropped": Counter()}))


def ref(ann_id, **extra) -> dict:
    return {"image_id": 1, "ann_id": ann_id, "split": "train", "sentences": [{"raw": "A thing."}], **extra}


@pytest.mark.parametrize("as_json", [True, False])
def test_grefcoco_has_several_objects_one_or_none(tmp_path, as_json):
    refs = [ref(7), ref([7, 8], no_target=False), ref([-1], no_target=True), ref([]), ref([8])]
    (record,) = refcoco(tmp_path, refs, as_json)
    said = [message["content"][0]["objects"] for message in record["messages"] if message["role"] == "assistant"]
    assert said == [["7"], ["7+8"], [], [], ["8"]]
    assert record["objects"]["7+8"] == {"union": ["7", "8"]}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (ref([7, -1]), r"field 'refs\[0\]\.ann_id': names 1 annotations beside -1"),
        (ref([7], no_target=True), r"field 'refs\[0\]\.no_target': is True, but ann_id names 1 annotations"),
        (ref([-1], no_target=False), r"field 'refs\[0\]\.no_target': is False, but ann_id names 0 annotations"),
        (ref(["7"]), r"field 'refs\[0\]\.ann_id\[0\]': is a string"),
        (ref([9]), r"field 'refs\[0\]\.ann_id': 9 is not among the annotations"),
    ],
)
def test_contradictions_of_grefcoco_are_errors(tmp_path, entry, message):
    with pytest.raises(DataError, match=message):
        refcoco(tmp_path, [entry], as_json=True)


def test_json_lines_keep_their_own_words(tmp_path):
    part = {"type": "grounded", "text": "a cow", "objects": []}
    said = [{"type": "text", "text": "I do not see "}, part, {"type": "text", "text": "."}]
    asked = {"role": "user", "content": [{"type": "text", "text": "Where is the cow?"}]}
    line = {"image": {"path": "a.png"}, "messages": [asked, {"role": "assistant", "content": said}]}
    (tmp_path / "mine.jsonl").write_text(json.dumps(line))
    (record,) = READERS["json_lines"]({"records": "mine.jsonl", "media": "."}, tmp_path)
    sample = Renderer(tiny_processor())(record, SamaVideo.open(noise_video(1)[0]), None, np.random.default_rng(0))
    assert answers(sample) == ["I do not see a cow."] and not sample.objects


# Rendering


def record_of(*contents, visual="video", templates=None) -> dict:
    messages = []
    for content in contents:
        extra = {} if templates is None else {"templates": templates}
        messages.append({"role": "user", "content": [{"type": "text", "text": "the thing"}]})
        messages.append({"role": "assistant", "content": content, **extra})
    shown = {"image": {"path": "x"}} if visual == "image" else {"video": {"path": "x", "frames": ["0.jpg"] * 10}}
    return validate_record({"id": "r", "source": "s", **shown, "objects": {}, "messages": messages})


NOTHING = [{"type": "grounded", "text": "", "objects": []}]


@pytest.mark.parametrize("visual", ["image", "video"])
@pytest.mark.parametrize(("phrase", "templates"), [("", None), ("", "segment_answer"), ("a cow", "segment_answer")])
def test_the_answer_is_drawn_and_has_no_seg(visual, phrase, templates):
    """A phrase alone, what was looked for, would not say that nothing fits."""
    record, found = record_of([NOTHING[0] | {"text": phrase}], visual=visual, templates=templates), set()
    video = SamaVideo.open(noise_video(1)[0] if visual == "image" else noise_video(10))
    for seed in range(30):
        sample = Renderer(tiny_processor())(record, video, None, np.random.default_rng(seed))
        again = Renderer(tiny_processor())(record, video, None, np.random.default_rng(seed))
        assert answers(sample) == answers(again)
        found.update(answers(sample))
        assert sample.objects == [] and sample.frames == [] and sample.targets.shape == (0, 0, 0, 0)
    assert found == set(NO_TARGET_ANSWERS[visual])


def test_each_question_that_nothing_fits_is_drawn_by_itself():
    """Sampling by object takes one sentence of each object; what fits nothing shares no object with the others."""
    sampling = {"turns": 5, "replace": True, "unit": "object"}
    record = {**record_of(*[NOTHING] * 4), "sampling": sampling}
    sample = Renderer(tiny_processor())(record, SamaVideo.open(noise_video(10)), None, np.random.default_rng(0))
    assert len(answers(sample)) == 4


def test_the_published_preset_drops_the_expression_and_counts_it(root, tmp_path, caplog):
    consistent, published = (opened(root, tmp_path, preset) for preset in ("consistent", "published"))
    sample = consistent[0]
    assert sample.objects == ["9"] and len(answers(sample)) == 3 and not sample.left_out
    assert sum("[SEG]" not in text for text in answers(sample)) == 2
    with caplog.at_level(logging.WARNING):
        sample = published[0]
        assert set(sample.objects) == {"9"} and sample.left_out == {NO_TARGET: 2}
        assert all("[SEG]" in text for text in answers(sample))
        # Nothing is left of a video with such expressions alone, which is no error
        assert published[1] is None and consistent[1].objects == []
    assert published.report() == {"revos": {"read": 1, "skipped": 1, "shortened": 1, "rounds left out": 3}}
    assert [record.getMessage() for record in caplog.records] == [f"revos: has {NO_TARGET}"]
    with pytest.raises(NothingToAskError, match="has only questions that nothing fits"):
        published.render(0, 1, np.random.default_rng(0))


@pytest.mark.parametrize(("preset", "left_out"), [("consistent", None), ("published", 3)])
def test_validation_counts_them_and_finds_no_problem(root, tmp_path, preset, left_out):
    sources = {"revos": {"format": "referring_video", "files": FILES}}
    (tmp_path / "mixture.yaml").write_text(json.dumps({"sources": sources, "rendering": {"preset": preset}}))
    validator = MixtureValidator(tmp_path / "mixture.yaml", tiny_processor, str(root), str(tmp_path / "cache"))
    report = validator.run()
    assert report["problems"] == 0
    assert report["sources"]["revos"]["counts"].get(NO_TARGET) == left_out


# Batch and pictures


def test_batches_with_and_without_masks(root, tmp_path):
    mixture, processor = opened(root, tmp_path, "consistent"), tiny_processor()
    batch = SamaCollator(processor)([mixture[0], mixture[1], None])
    assert batch["sam_frame_counts"].tolist() == [2, 0]
    assert [target.shape[0] for target in batch["target_masks"]] == [1, 0]
    learned = batch["labels"][1][batch["labels"][1] >= 0]
    text = processor.tokenizer.decode(learned)
    assert "[SEG]" not in text and any(text.startswith(answer) for answer in NO_TARGET_ANSWERS["video"])
    alone = SamaCollator(processor)([mixture[1]])
    assert alone["sam_pixel_values"].shape[0] == 0 and (alone["labels"] >= 0).any()


def test_a_preview_shows_the_plain_answer(root, tmp_path):
    mixture = opened(root, tmp_path, "consistent")
    for index in range(2):
        sheet = preview_sheet(mixture[index], [0, 1])
        assert sheet.width >= 900 and np.asarray(sheet).std() > 0


def test_the_error_of_a_worker_keeps_its_class():
    error = pickle.loads(pickle.dumps(NothingToAskError("has nothing", field="messages", source="mine", index="3")))
    assert type(error) is NothingToAskError and "mine, item 3, field 'messages'" in str(error)
