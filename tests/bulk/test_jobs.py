"""Questions become jobs: by records, or by a folder of videos; and everything that can be wrong with them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from bulk_fixtures import CLIP, PICTURE, RING, ScriptedModel, true_tracks, write_media
from PIL import Image
from processor_fixtures import tiny_processor

from sama.bulk.jobs import (
    VideoJob,
    answer_job,
    digests_of_jobs,
    file_state,
    jobs_of_folder,
    jobs_of_records,
    read_questions,
)
from sama.data.masks import encode_rle
from sama.data.records import DataError


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> Path:
    return write_media(tmp_path_factory.mktemp("media") / "files")


def digest_of(jobs, media: Path) -> str:
    return digests_of_jobs(jobs, media)["annotations"]


def ask(text: str) -> list[dict]:
    return [{"role": "user", "content": [{"type": "text", "text": text}]}]


def write_records(path: Path, *records: dict) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def answers(job: VideoJob, media: Path, model=None):
    return list(answer_job(job, media, model or ScriptedModel(), tiny_processor(), 8))


def test_records_of_a_video_are_one_job(media, tmp_path):
    region = {"type": "region", "object": "1"}
    clip, track = {"path": CLIP}, true_tracks()[0]
    path = write_records(
        tmp_path / "r.jsonl",
        {"id": "a", "video": clip, "messages": ask("One?")},
        {"id": "b", "image": {"path": PICTURE}, "messages": ask("Two?")},
        {"id": "c", "messages": ask("Three?")},
        {"id": "d", "video": clip, "objects": {"1": {"masks": track}, "2": {"masks": track}},
         "messages": [{"role": "user", "content": [region, {"type": "text", "text": "?"}]},
                      {"role": "assistant", "content": [{"type": "grounded", "text": "It", "objects": ["1"]}]},
                      *ask("And?")]},
        {"id": "e", "video": {**clip, "stride": 2}, "messages": ask("Four?")},
        {"id": "g", "video": {"path": f"./{CLIP}", "stride": 1, "frames": None}, "messages": ask("Five?")},
        {"id": "f", "video": clip, "messages": [{"role": "assistant", "content": [{"type": "text", "text": "!"}]}]},
    )  # fmt: skip
    jobs = jobs_of_records(path, media)
    assert [job.names for job in jobs] == [["a", "d", "g"], ["b"], ["c"], ["e"]]
    assert [question.texts() for question in jobs[0].questions] == [["One?"], ["<region>?", "And?"], ["Five?"]]
    assert VideoJob.from_json(jobs[0].to_json()) == jobs[0]
    assert [list(question.record["objects"]) for question in jobs[0].questions] == [[], ["1"], []]
    model = ScriptedModel()
    found = answers(jobs[0], media, model)
    assert model.asked == [("One?", 0), ("<region>?", 1), ("And?", 0), ("Five?", 0)]
    assert [len(one.turns) for one in found] == [1, 2, 1] and found[0].num_frames == 24
    assert answers(jobs[3], media)[0].num_frames == 12
    assert answers(jobs[2], media)[0].turns[0].text == "Hi."


def test_system_messages_are_part_of_the_question(media, tmp_path):
    system = {"role": "system", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]}
    one, two = ({"messages": messages} for messages in ([system, *ask("One?")], ask("One?")))
    path = write_records(tmp_path / "r.jsonl", {"id": "a", **one}, {"id": "b", "messages": [system]})
    (job,), model = jobs_of_records(path, media), ScriptedModel()
    assert [question.texts() for question in job.questions] == [["One?"]]
    assert answers(job, media, model)[0].error is None
    assert model.asked == [{"role": "system", "content": "Be brief."}, ("One?", 0)]
    (other,) = jobs_of_records(write_records(tmp_path / "r.jsonl", {"id": "a", **two}), media)
    assert digests_of_jobs([job], media)["questions"] != digests_of_jobs([other], media)["questions"]


def test_a_question_that_does_not_fit_fails_alone(media, tmp_path):
    region = [{"role": "user", "content": [{"type": "region", "object": "1"}, {"type": "text", "text": "?"}]}]
    path = write_records(
        tmp_path / "r.jsonl",
        {"id": "a", "video": {"path": CLIP}, "messages": ask("One?")},
        {"id": "b", "video": {"path": CLIP}, "objects": {"1": {"masks": [encode_rle(RING)]}}, "messages": region},
    )
    (job,) = jobs_of_records(path, media)
    first, second = answers(job, media)
    assert first.error is None and "has 1 masks for 24 frames" in second.error


def test_a_broken_video_fails_all_its_questions(media):
    (job,) = jobs_of_folder(media, [{"question": one, "video": "broken.mp4"} for one in ("One?", "Two?")])
    found = answers(job, media)
    assert [one.question for one in found] == ["broken.mp4#1", "broken.mp4#2"]
    assert all(one.error.startswith("DataError: ") and "broken.mp4" in one.error for one in found)


def test_a_folder_and_questions(media, tmp_path):
    lines = [
        {"question": "What is <region>?", "video": CLIP, "regions": [{"frame": 12, "box": [48, 70, 137, 159]}]},
        {"question": "Segment the ball.", "id": "ball", "label": "ball"},
        {"question": "Is <region> here?", "video": CLIP, "id": "out", "regions": [{"frame": 99, "points": [[1, 1]]}]},
    ]
    questions = read_questions(write_records(tmp_path / "q.jsonl", *lines))
    jobs = jobs_of_folder(media, questions)
    assert [job.names for job in jobs] == [
        ["broken.mp4#ball"], [f"{CLIP}#1", f"{CLIP}#ball", "out"], [f"{PICTURE}#ball"]
    ]  # fmt: skip
    assert [list(job.visual) for job in jobs] == [["video"], ["video"], ["image"]]
    assert {question.label for job in jobs for question in job.questions} == {"ball", None}
    found = answers(jobs[1], media)
    assert [one.error for one in found] == [None] * 3  # a model checks where regions lie, the scripted one does not
    picture = answers(jobs[2], media)[0]
    assert (picture.num_frames, picture.height, picture.width) == (1, 9, 12)
    (tmp_path / "q.txt").write_text("\ufeffOne?\n\nTwo ö?\n", encoding="utf-8")
    assert read_questions(tmp_path / "q.txt") == [{"question": "One?"}, {"question": "Two ö?"}]


def test_hidden_files_and_folders_are_left_out(media, tmp_path):
    folder = tmp_path / ".hidden" / "files"  # what lies above the folder does not count
    for name in ("a.png", "b/c.png", "._a.png", ".ipynb_checkpoints/a-checkpoint.png", "b/.d/e.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(media / PICTURE, folder / name)
    assert [job.names for job in jobs_of_folder(folder, [{"question": "What?"}])] == [["a.png#1"], ["b/c.png#1"]]


def test_animated_pictures_are_videos(tmp_path):
    rng = np.random.default_rng(0)
    frames = [Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)) for _ in range(3)]
    frames[0].save(tmp_path / "moving.webp", save_all=True, append_images=frames[1:], lossless=True)
    frames[0].save(tmp_path / "still.webp")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    broken, moving, still = jobs_of_folder(tmp_path, [{"question": "What?"}])
    assert [list(job.visual) for job in (broken, moving, still)] == [["image"], ["video"], ["image"]]
    assert [answers(job, tmp_path)[0].num_frames for job in (moving, still)] == [3, 1]
    assert "broken.png" in answers(broken, tmp_path)[0].error


def test_other_questions_have_another_digest(media):
    first, second = (jobs_of_folder(media, [{"question": text}]) for text in ("One?", "Two?"))
    assert digest_of(first, media) != digest_of(second, media)
    assert digest_of(first, media) == digest_of(jobs_of_folder(media, [{"question": "One?"}]), media)


def test_other_files_of_the_same_names_have_another_digest(media, tmp_path):
    jobs = jobs_of_folder(media, [{"question": "One?"}])
    moved = Path(shutil.copytree(media, tmp_path / "moved"))
    assert digest_of(jobs, moved) == digest_of(jobs, media)
    changed = next(path for path in sorted(moved.rglob("*")) if path.is_file())
    changed.write_bytes(bytes(reversed(changed.read_bytes())))
    assert digest_of(jobs, moved) != digest_of(jobs, media)


def test_an_empty_name_of_a_video_is_refused(tmp_path):
    (tmp_path / "q.jsonl").write_text('{"question": "One?", "video": ""}\n')
    with pytest.raises(DataError, match="is empty; leave it out to ask about every video"):
        read_questions(tmp_path / "q.jsonl")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"question": "What?", "answer": "x"}, "line 1, field 'answer': is unknown"),
        ({"question": " "}, "field 'question': is empty"),
        ({"question": 1}, "field 'question': is a whole number"),
        ({"question": "<region>?"}, "field 'regions': has 0 regions for 1 <region>"),
        ({"question": "<region>?", "regions": [{"frame": 0}]}, "field 'video': is missing"),
        ({"question": "<region>?", "video": CLIP, "regions": [{"frame": 0, "bbox": [0, 0, 1, 1]}]}, "regions"),
        ([], "is a list where an object is expected"),
    ],
)
def test_wrong_questions_are_named(tmp_path, line, message):
    with pytest.raises(DataError, match=r"q\.jsonl, item line 1") as error:
        read_questions(write_records(tmp_path / "q.jsonl", line))
    assert message.removeprefix("line 1, ") in str(error.value)


def test_broken_files_of_questions_are_named(tmp_path):
    contents = {
        "a.jsonl": b"{",
        "b.jsonl": b'{"question": "\\ud800"}',
        "c.txt": b"\xff\xfe",
        "d.txt": b"What is <region>?",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content + b"\n")
        with pytest.raises(DataError, match=name):
            read_questions(tmp_path / name)


def test_wrong_folders_and_ids_are_named(media, tmp_path):
    with pytest.raises(DataError, match="there is no such folder"):
        jobs_of_folder(tmp_path / "none", [{"question": "What?"}])
    with pytest.raises(DataError, match="has 0 videos and pictures for 1 questions"):
        jobs_of_folder(tmp_path, [{"question": "What?"}])
    with pytest.raises(DataError, match="has no video or picture 'x.mp4'"):
        jobs_of_folder(media, [{"question": "What?", "video": "x.mp4"}])
    twice = {"question": "What?", "video": CLIP, "id": "one"}
    with pytest.raises(DataError, match="2 questions with the id 'one'"):
        jobs_of_folder(media, [twice, twice])
    record = {"id": "a", "video": {"path": "../x.mp4"}, "messages": ask("What?")}
    with pytest.raises(DataError, match="leaves the data folder"):
        jobs_of_records(write_records(tmp_path / "r.jsonl", record), media)
    record["video"]["path"] = CLIP
    with pytest.raises(DataError, match="2 questions with the id 'a'"):
        jobs_of_records(write_records(tmp_path / "r.jsonl", record, record), media)


def test_masks_survive(media):
    (job,) = jobs_of_folder(media, [{"question": "What?", "video": PICTURE}])
    (found,) = answers(job, media)
    half = np.zeros((9, 12), dtype=bool)
    half[:4] = True
    assert found.turns[0].objects[0].masks == [encode_rle(half)]


def test_a_file_whose_state_cannot_be_known_ends_nothing(tmp_path):
    """Its question says why it cannot be read; one such name must not end the work on all the others."""
    assert file_state({"video": {"path": f"{'x' * 300}.mp4"}}, tmp_path) == ""
