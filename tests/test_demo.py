"""demo.py: what may be typed, what is written, and how it fails. The chat is a stand-in over small real arrays."""

import builtins
import importlib.util
import json
import os
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from PIL import Image, features
from processes import finish, run_script, start
from pycocotools import mask as coco_mask

from sama import demo
from sama.overlay_sama import PALETTE, write_video
from sama.serving.answer_files import key_frames
from sama.serving.region_arguments import group_questions


ROOT = Path(__file__).parent.parent
CHECKPOINT = ROOT / "checkpoints" / "sama-tiny"
NUM_FRAMES, HEIGHT, WIDTH = 9, 48, 64


# Stand-ins with the members that demo.py uses


class FakeTrack:
    def __init__(self, masks):
        self.stored, (self.height, self.width) = masks, masks.shape[1:]

    def __len__(self):
        return len(self.stored)

    def __getitem__(self, index):
        return self.stored[index]

    def area(self, index):
        return int(self.stored[index].sum())

    def visible_frames(self):
        return [index for index in range(len(self)) if self.area(index)]

    def to_rle(self, index):
        flat = np.concatenate(([0], self.stored[index].T.ravel(), [2])).astype(int)
        edges = np.flatnonzero(np.diff(flat)) if not flat[1] else np.concatenate(([0], np.flatnonzero(np.diff(flat))))
        counts = np.diff(np.concatenate(([0], edges))).tolist()
        return {"size": [self.height, self.width], "counts": counts}


class FakeVideo(list):
    fps, height, width, is_image, name = 12.5, HEIGHT, WIDTH, False, "fake"
    times, pixel_aspect, sound = None, 1, None

    def check_frame(self, index):
        assert 0 <= index < len(self)


class FakeChat:
    """Answers "A square moves." with one moving square; a question with "fail" in it fails, with "none" finds none."""

    def __init__(self, num_frames=NUM_FRAMES):
        rng = np.random.default_rng(0)
        self.video = FakeVideo(rng.integers(0, 255, (num_frames, HEIGHT, WIDTH, 3), dtype=np.uint8))
        self.asked = []
        self.between_steps, self.decoding_batch = lambda: None, None
        self.processor = SimpleNamespace(
            region_frame=lambda item, video: item.track.visible_frames()[0],
            tokenizer=SimpleNamespace(all_special_tokens=[]),
            choose_frames=lambda video: SimpleNamespace(prompted=[0]),
            answer_suffix="",
        )

    def ask(self, text, regions, max_new_tokens, streamer, masks, on_answer, on_frame):
        self.asked.append((text, regions, max_new_tokens))
        if "fail" in text:
            raise ValueError("The box (0, 0, 0, 0)\nhas zero area.")
        if "none" in text:
            on_answer(reply := SimpleNamespace(text="Nothing.", tagged_text="Nothing.", objects=[]))
            return reply
        masks = np.zeros((len(self.video), HEIGHT, WIDTH), dtype=bool)
        objects = [SimpleNamespace(text="A square", span=(0, 8), score=0.875, track=FakeTrack(masks))]
        reply = SimpleNamespace(text="A square moves.", tagged_text="<p> A square </p> [SEG] moves.", objects=objects)
        on_answer(reply)
        for index in range(len(self.video)):
            masks[index, 10:25, 3 * index : 3 * index + 15] = index != 4  # hidden on frame 4
            on_frame(index, masks[index : index + 1])
        return reply


@pytest.fixture
def chat(monkeypatch):
    """A stand-in chat that `demo.run` finds instead of a loaded model."""
    chat = FakeChat()

    def start_chat(processor, video=None, image=None):
        chat.source = (video and video.name, image and image.name)
        if image is not None:
            chat.video = FakeVideo(chat.video[:1])
            chat.video.is_image = True
        return chat

    model = SimpleNamespace(config=SimpleNamespace(trained=False, preset="consistent"), start_chat=start_chat)
    monkeypatch.setattr(demo, "load_model", lambda *arguments: (model, None))
    return chat


@pytest.fixture
def clip(tmp_path):
    return write_video(tmp_path / "clip.mp4", FakeChat().video, fps=12.5)


# The command line


def test_arguments_keep_their_order():
    arguments = demo.parse_arguments(["--video", "a.mp4", "--ask", "q1", "--region", "r1", "--ask", "q2"])
    assert arguments.script == [("ask", "q1"), ("region", "r1"), ("ask", "q2")]
    assert demo.parse_arguments(["--video", "a.mp4"]).script == []


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["--video", "a", "--image", "b"],
        ["--example", "--ask", "q"],
        ["--video", "a", "--max-new-tokens", "0"],
        ["--video", "a", "--preset", "old"],
    ],
)
def test_arguments_that_do_not_fit(argv, capsys):
    with pytest.raises(SystemExit, match="2"):
        demo.parse_arguments(argv)
    assert "error:" in capsys.readouterr().err


def test_the_examples_are_three_turns_about_clips_that_ship():
    needed = {
        clip.name: [len(regions) for _, regions in group_questions(script)] for clip, script in demo.EXAMPLES.items()
    }
    assert needed == {"toy_world.mp4": [1, 1, 0]}
    assert all(clip.is_file() for clip in demo.EXAMPLES)


def test_an_example_points_at_its_first_region_for_an_object_that_no_answer_has(tmp_path, chat, clip, monkeypatch):
    script = [
        ("ask", "none in <region>"),
        ("region", "frame=2,point=9,9"),
        ("ask", "<region>?"),
        ("region", "object=1"),
    ]
    monkeypatch.setattr(demo, "EXAMPLES", {clip: [*script, ("ask", "And <region>?"), ("region", "object=1")]})
    assert demo.main(["--example", "--out", str(tmp_path / "answer.mp4")]) == 0
    _, (_, (second,), _), (_, (third,), _) = chat.asked
    assert second["points"] == [(9, 9)] and third.text == "A square"
    assert (tmp_path / "answer_clip.mp4").is_file() and (tmp_path / "answer_clip_sheet.png").is_file()


def test_key_frames():
    masks = np.zeros((10, 2, 2), dtype=bool)
    masks[6:9] = True
    assert key_frames(10, [], 4) == [1, 3, 6, 8]
    assert key_frames(10, [FakeTrack(masks)], 4) == [6, 7, 8]
    assert key_frames(10, [FakeTrack(masks)], 1) == [7]
    assert key_frames(1, [], 4) == [0]


# What is written


CONVERSATION = ["--ask", "What is <region>?", "--region", "frame=3,box=5,6,40,30", "--ask", "none here"]
CONVERSATION += ["--ask", "And <region> by <region>?", "--region", "object=1", "--region", "frame=2,point=9,9"]


@pytest.mark.parametrize(("model", "shown"), [("checkpoints/sama-tiny", True), ("./checkpoints", False)])
def test_the_small_model_is_known_by_any_path(tmp_path, chat, clip, capsys, monkeypatch, model, shown):
    """What it is worth on real films is said, however it is named."""
    monkeypatch.chdir(ROOT)
    arguments = ["--video", str(clip), "--model", model, "--ask", "none", "--out", str(tmp_path / "answer.mp4")]
    assert demo.main(arguments) == 0
    assert (demo.SMALL_MODEL_NOTE in capsys.readouterr().out) == shown


def test_files_of_a_conversation(tmp_path, chat, clip, capsys):
    out = tmp_path / "new" / "answer.mp4"
    assert demo.main(["--video", str(clip), "--out", str(out), "--max-new-tokens", "7", *CONVERSATION]) == 0
    assert sorted(os.listdir(out.parent)) == ["answer.json", "answer.mp4", "answer_sheet.png"]

    (question, (region,), limit), _, (_, regions, _) = chat.asked
    assert (question, limit, chat.source) == ("What is <region>?", 7, (str(clip), None))
    assert region == {"frame": 3, "box": (5, 6, 40, 30)}
    assert regions[0].text == "A square" and regions[1] == {"frame": 2, "points": [(9, 9)], "labels": [1]}

    with av.open(str(out)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == NUM_FRAMES and frames[0].shape == (HEIGHT, WIDTH, 3)
    with Image.open(out.with_name("answer_sheet.png")) as sheet:
        assert sheet.height > 3 * sheet.width // 8  # a block of frames and text for each of three turns

    printed = capsys.readouterr().out
    assert printed.count("untrained") == 1 and "A square moves." in printed
    assert "visible on 8 of 9 frames, score 0.88" in printed and "no mask in this answer" in printed


def test_json_of_a_conversation(tmp_path, chat, clip):
    out = tmp_path / "answer.mp4"
    assert demo.main(["--video", str(clip), "--out", str(out), "--model", "some/model", *CONVERSATION]) == 0
    record = json.loads((tmp_path / "answer.json").read_text(encoding="utf-8"))
    turns = record.pop("turns")
    expected = {"model": "some/model", "video": str(clip), "fps": 12.5, "num_frames": 9, "height": 48, "width": 64}
    assert record == expected
    assert [turn["regions"] for turn in turns] == [["frame=3,box=5,6,40,30"], [], ["object=1", "frame=2,point=9,9"]]
    assert [turn["answer"] for turn in turns] == ["A square moves.", "Nothing.", "A square moves."]
    assert turns[0]["tagged_answer"] == "<p> A square </p> [SEG] moves."
    first, second = turns[0]["objects"][0], turns[2]["objects"][0]
    assert (first["number"], first["phrase"], first["span"], first["score"]) == (1, "A square", [0, 8], 0.875)
    assert (second["number"], turns[1]["objects"]) == (1, [])  # asked about again, found again
    assert first["color"] == second["color"] == "#{:02x}{:02x}{:02x}".format(*PALETTE[0])
    assert first["masks"][4] is None and len(first["masks"]) == NUM_FRAMES
    mask = coco_mask.decode(first["masks"][0])
    assert mask.shape == (HEIGHT, WIDTH) and mask[10:25, :15].all() and mask.sum() == 15 * 15


def test_an_image_is_answered_with_an_image(tmp_path, chat, capsys):
    picture = tmp_path / "picture.png"
    Image.fromarray(chat.video[0]).save(picture)
    command = ["--image", str(picture), "--ask", "What is <region>?", "--region", "box=5,6,40,30", "--out"]
    assert demo.main([*command, str(tmp_path / "answer.mp4")]) == 2
    assert "must end in .bmp or .jpeg or .jpg or .png" in capsys.readouterr().err
    assert demo.main([*command, str(tmp_path / "answer.jpg")]) == 0
    assert chat.source == (None, str(picture))
    with Image.open(tmp_path / "answer.jpg") as image:
        assert image.size == (WIDTH, HEIGHT)


@pytest.mark.parametrize("suffix", [".gif", ".avif"])
def test_stills_of_every_format_are_images(tmp_path, chat, capsys, suffix):
    if suffix == ".avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    picture = str(tmp_path / f"picture{suffix}")
    Image.fromarray(chat.video[0]).save(picture)
    command = ["--ask", "q", "--out"]
    assert demo.main(["--image", picture, *command, str(tmp_path / "answer.png")]) == 0
    assert chat.source == (None, picture)
    assert demo.main(["--video", picture, *command, str(tmp_path / "answer.mp4")]) == 2
    assert "is an image; give it as --image" in capsys.readouterr().err


def test_a_folder_of_frames_is_a_video(tmp_path, chat):
    (tmp_path / "frames").mkdir()
    for number in (10, 9):
        Image.fromarray(chat.video[0]).save(tmp_path / "frames" / f"{number}.png")
    folder = str(tmp_path / "frames")
    assert demo.main(["--video", folder, "--ask", "q", "--out", str(tmp_path / "answer.mp4")]) == 0
    assert chat.source == (folder, None)


# Errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--video", "https://host.org/a.mp4", "--ask", "q"], "'https://host.org/a.mp4' is a URL; download it first"),
        (["--video", ".", "--ask", "q"], "holds no pictures to use as frames"),
        (["--video", "absent.mp4", "--ask", "q"], "There is no file 'absent.mp4'."),
        (["--video", "", "--ask", "q"], "The path is empty"),
        (["--ask", "<region>", "--region", "box=1"], "box= takes 4 numbers, got 1"),
        (["--ask", "<region>"], "has 1 <region> marks but 0"),
        (["--ask", "fail"], "The box (0, 0, 0, 0) has zero area."),
        (["--ask", "none", "--ask", "<region>", "--region", "object=1"], "There is no object 1"),
        (["--ask", "q", "--out", "answer.avi"], "must end in .mp4"),
        (["--ask", "q", "--out", "clip.mp4/answer.mp4"], "is a file, not a folder"),
    ],
)
def test_an_error_is_one_sentence_and_exit_code_2(tmp_path, chat, clip, capsys, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    source = [] if "--video" in change else ["--video", str(clip)]
    assert demo.main([*source, *change]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("chat: ") and error.count("\n") == 1
    with pytest.raises((ValueError, OSError)):
        demo.main([*source, *change, "--debug"])


def test_what_was_answered_before_an_error_is_written(tmp_path, chat, clip):
    out = tmp_path / "answer.mp4"
    assert demo.main(["--video", str(clip), "--out", str(out), "--ask", "q", "--ask", "fail"]) == 2
    assert len(json.loads((tmp_path / "answer.json").read_text(encoding="utf-8"))["turns"]) == 1
    assert out.exists()


# The prompt


def type_lines(monkeypatch, *lines):
    waiting = list(lines)

    def fake_input(prompt=""):
        if not waiting:
            raise EOFError
        return waiting.pop(0)

    monkeypatch.setattr(builtins, "input", fake_input)
    return waiting


@pytest.mark.parametrize("end", [["quit"], []], ids=["quit", "ctrl-d"])
def test_interactive(tmp_path, chat, clip, capsys, monkeypatch, end):
    lines = ["", "What is <region>?", "box=1", "frame=9,box=5,6,40,30", "frame=3,box=5,6,40,30", "fail"]
    lines += ["And <region>?", "object=9", "mask=no.png", "object=1", *end]
    waiting = type_lines(monkeypatch, *lines)
    assert demo.main(["--video", str(clip), "--out", str(tmp_path / "answer.mp4")]) == 0
    assert waiting == []
    assert [text for text, _, _ in chat.asked] == ["What is <region>?", "fail", "And <region>?"]
    printed = capsys.readouterr().out
    assert "box= takes 4 numbers" in printed and "has zero area." in printed
    assert "no frame 9; the video has 9" in printed and "no object 9; the answers so far have 1" in printed
    assert 'There is no mask file "no.png"' in printed and "point=x,y" in printed and "scribble=" in printed
    assert len(json.loads((tmp_path / "answer.json").read_text(encoding="utf-8"))["turns"]) == 2


def test_interactive_without_a_question_writes_nothing(tmp_path, chat, clip, monkeypatch):
    type_lines(monkeypatch)
    assert demo.main(["--video", str(clip), "--out", str(tmp_path / "answer.mp4")]) == 0
    assert sorted(os.listdir(tmp_path)) == ["clip.mp4"]


# The real thing


@pytest.mark.skipif(
    not CHECKPOINT.is_dir(), reason="checkpoints/sama-tiny does not exist: recipes/sama_tiny/initialize.py makes it"
)
@pytest.mark.skipif(importlib.util.find_spec("sama") is None, reason="the package sama is not installed")
def test_the_examples_run_in_a_process_of_its_own(tmp_path):
    out = tmp_path / "answer.mp4"
    log = tmp_path / "log.txt"
    options = ["--example", "--out", out, "--max-new-tokens", "8", "--device", "cpu"]
    finish(start(log, run_script, ROOT / "demo.py", *options), log)
    printed = log.read_text(encoding="utf-8")
    assert printed.count("Turn 3") == 1 and "real video" in printed  # what the model cannot do
    record = json.loads((tmp_path / "answer_toy_world.json").read_text(encoding="utf-8"))
    assert len(record["turns"]) == 3 and record["num_frames"] == 24
    assert (tmp_path / "answer_toy_world.mp4").exists() and (tmp_path / "answer_toy_world_sheet.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--video", "clip.mp4", "--ask", "Who?", "--out", "clip.mp4"], "would overwrite clip.mp4"),
        (["--image", "clip.mp4", "--ask", "Who?", "--out", "a.png"], "clip.mp4 is a video; give it as --video"),
        (["--video", "picture.png", "--ask", "Who?", "--out", "a.mp4"], "picture.png is an image; give it as --image"),
        (["--video", "clip.mp4", "--ask", " "], "question given with --ask is empty"),
        (["--video", "clip.mp4", "--ask", "<region>?", "--region", "mask=no.png"], "no file no.png"),
        (["--video", "clip.mp4", "--ask", "Who?", "--model", "./nowhere"], "no folder ./nowhere"),
        (["--video", "clip.mp4", "--ask", "Who?", "--model", "sama-tny"], "no folder sama-tny"),
        (["--video", "clip.mp4", "--ask", "Who?", "--model", "me/no such"], "no name on the Hub"),
        (
            ["--video", "clip.mp4", "--ask", "<region>?", "--region", "frame=3,box=1,1,9,9"],
            "no frame 3; the video has 3",
        ),
        (
            ["--video", "clip.mp4", "--ask", "<region>?", "--region", "object=1"],
            "no object 1; the answers so far have 0",
        ),
        (["--video", "clip.mp4", "--ask", "Who?", "--out", "clip.mp4/a.mp4"], "clip.mp4 is a file, not a folder"),
    ],
)
def test_mistakes_are_told_before_a_model_is_loaded(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    write_video("clip.mp4", np.zeros((3, 32, 48, 3), dtype=np.uint8), 10)
    Image.fromarray(np.zeros((32, 48, 3), dtype=np.uint8)).save("picture.png")
    before = (tmp_path / "clip.mp4").read_bytes()
    assert demo.main(arguments) == 2
    assert message in capsys.readouterr().err
    assert (tmp_path / "clip.mp4").read_bytes() == before
