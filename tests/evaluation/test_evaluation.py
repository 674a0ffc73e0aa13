"""The parts of a run, without a model: files of predictions, asking, tables, plots and sheets."""

import json

import numpy as np
import pytest
from PIL import Image

from sama.benchmarks.benchmark import (
    Benchmark,
    BenchmarkTurn,
    Measures,
    PredictedObject,
    PredictedTurn,
    Prediction,
    Question,
    Score,
    Scores,
)
from sama.data.masks import encode_rle
from sama.drawing import gallery
from sama.drawing.gallery import draw_case, draw_turn, key_frames, write_gallery
from sama.drawing.sheets import caption_band, title_band
from sama.evaluation.inference import PredictionRunner
from sama.evaluation.plots import _bins, write_plots
from sama.evaluation.predictions import WORDS, PredictionError, PredictionFiles, PredictionWriter
from sama.evaluation.report import markdown, reasons_of, rows_of, terminal_table
from sama.objects_sama import GroundedPhrase, MaskTrack, Region
from sama.video_sama import SamaVideo


IDENTITY = {
    "checkpoint": "abc", "benchmark": "plain", "version": 1, "split": "all", "preset": "consistent", "options": {},
    "annotations": "def", "dtype": "float32", "max_new_tokens": 8,
}  # fmt: skip


def prediction(name: str, text: str = "Yes.", error: str | None = None) -> Prediction:
    return Prediction(name, [] if error else [PredictedTurn(text)], 2, 24, 32, error)


class PlainBenchmark(Benchmark):
    """Two videos of two frames, three questions and one; what is answered "Yes." is right."""

    name, version, splits = "plain", 1, ("all",)
    groups = {"one": ["a", "b", "c"], "two": ["d"]}
    histories = {"c": "reference"}

    def outline(self):
        return self.groups

    def open(self, group):
        return SamaVideo.open(np.full((2, 24, 32, 3), 90, dtype=np.uint8))

    def questions(self, group):
        track = MaskTrack.from_masks(np.ones((2, 24, 32), dtype=bool))
        return [
            Question(
                name, group,
                [BenchmarkTurn(f"Is <region> {name}?", [track], "Yes."), BenchmarkTurn("Sure?", reference="No.")],
                history=self.histories.get(name, "own"), masks=name != "b", layout="refcoco" if name == "b" else None,
            )
            for name in self.groups[group]
        ]  # fmt: skip

    def measure(self, question, prediction):
        right = float(prediction.turns[0].text == "Yes.")
        return Measures(question.id, question.group, right, [right], prediction.num_frames, 1)

    def summarise(self, samples, tools):
        values = [sample.value for sample in samples]
        return [Score("right", sum(values) / len(values), len(values)), Score("style", None, 0, reason="no judge")]


# Files


def test_parts_are_put_together_in_the_order_of_the_benchmark(tmp_path):
    files = PredictionFiles(tmp_path)
    for rank, names in ((0, "ca"), (1, "db")):
        with PredictionWriter(files.part(rank)) as writer:
            for name in names:
                writer.write(prediction(name))
    files.merge("abcd")
    lines = [json.loads(line)["question"] for line in files.merged.read_text(encoding="utf-8").splitlines()]
    assert lines == ["a", "b", "c", "d"] and files.parts() == []
    assert [found.question for found in files.read(["d", "x", "a"])] == ["d", "a"]
    assert next(files.read("a")) == prediction("a")


def test_questions_of_an_earlier_run_with_a_larger_limit_stay(tmp_path):
    files = PredictionFiles(tmp_path)
    with PredictionWriter(files.part(0)) as writer:
        for name in "zab":
            writer.write(prediction(name))
    files.merge("ab")
    assert list(files.index()) == ["a", "b", "z"]


def test_a_later_answer_takes_the_place_of_a_failure(tmp_path):
    files = PredictionFiles(tmp_path)
    with PredictionWriter(files.part(0)) as writer:
        writer.write(prediction("a", error="OSError: broken"))
        writer.write(prediction("b"))
    assert [line.failed for line in files.index().values()] == [True, False]
    files.merge("ab")
    with PredictionWriter(files.part(0)) as writer:
        writer.write(prediction("a"))
    files.merge("ab")
    assert [found.error for found in files.read("ab")] == [None, None]
    assert len(files.merged.read_bytes().splitlines()) == 2


def test_a_failure_of_another_part_does_not_take_the_place_of_an_answer(tmp_path):
    files = PredictionFiles(tmp_path)
    for rank, error in ((1, "OSError: broken"), (0, None)):
        with PredictionWriter(files.part(rank)) as writer:
            writer.write(prediction("a", error=error))
    assert not files.index()["a"].failed
    files.merge("a")
    assert [found.error for found in files.read("a")] == [None]


def test_a_line_that_was_cut_off_is_no_answer_and_is_removed(tmp_path):
    files = PredictionFiles(tmp_path)
    with PredictionWriter(files.part(0)) as writer:
        writer.write(prediction("a"))
        writer.write(prediction("b"))
    whole = files.part(0).read_bytes()
    files.part(0).write_bytes(whole[:-7])
    assert list(files.index()) == ["a"]
    with PredictionWriter(files.part(0)) as writer:
        writer.write(prediction("b"))
    assert files.part(0).read_bytes() == whole


def test_two_runs_do_not_write_one_part(tmp_path):
    pytest.importorskip("fcntl")
    files = PredictionFiles(tmp_path)
    with PredictionWriter(files.part(0)) as writer:
        writer.write(prediction("a"))
        with pytest.raises(PredictionError, match=r"Another run is writing .*predictions.part0.jsonl; .*--output"):
            PredictionWriter(files.part(0))
        with pytest.raises(PredictionError, match="Another run is writing"):
            files.merge("a")
        with PredictionWriter(files.part(1)) as other:
            other.write(prediction("b"))
    files.merge("ab")
    assert [found.question for found in files.read("ab")] == ["a", "b"] and files.parts() == []


def test_the_last_line_of_a_foreign_file_needs_no_newline(tmp_path):
    files = PredictionFiles(tmp_path)
    lines = [json.dumps(prediction(name).to_dict()) for name in "ba"]
    files.merged.write_text("\n".join(lines), encoding="utf-8")
    assert [found.question for found in files.read("ab")] == ["a", "b"]
    files.merge("ab")
    assert files.merged.read_text(encoding="utf-8").splitlines() == lines[::-1]
    files.merged.write_text("\n".join(lines)[:-5], encoding="utf-8")
    with pytest.raises(PredictionError, match=r"predictions.jsonl, line 2 is not a valid prediction"):
        files.index()


TURN = '{"question": "a", "turns": [{"text": "t", "objects": %s}]}'


@pytest.mark.parametrize(
    "line",
    [
        "{",
        '{"question": "a"}',
        '{"question": "a", "turns": [], "colour": 1}',
        "[1]",
        "NaN",
        "[" * 3000,
        '{"question": 5, "turns": []}',
        '{"question": "a", "turns": [], "height": "24"}',
        '{"question": "a", "turns": [], "height": -24}',
        '{"question": "a", "turns": [], "num_frames": true}',
        '{"question": "a", "turns": [], "num_frames": 1e999}',
        '{"question": "a", "turns": [{"text": 5, "objects": []}]}',
        '{"question": "\\ud800", "turns": []}',
        TURN % '"abc"',
        TURN % '[{"phrase": "p", "masks": "abc"}]',
        TURN % '[{"phrase": "p", "masks": ["abc"]}]',
        TURN % '[{"phrase": ["p"], "masks": []}]',
        TURN % '[{"phrase": "p", "masks": [], "score": "0.5"}]',
    ],
)
def test_a_broken_line_is_reported_with_its_number(tmp_path, line):
    files = PredictionFiles(tmp_path)
    good = json.dumps(prediction("a").to_dict())
    files.merged.write_text(f"{good}\n{line}\n{good}\n", encoding="utf-8")
    with pytest.raises(PredictionError, match=r"predictions.jsonl, line 2 is not a valid prediction.*remove the line"):
        files.index()


@pytest.mark.parametrize(
    "name", ["checkpoint", "version", "preset", "options", "annotations", "dtype", "max_new_tokens"]
)
def test_predictions_of_another_run_are_refused(tmp_path, name):
    files = PredictionFiles(tmp_path)
    files.write_run({**IDENTITY, "commit": "1"})
    files.check_run({**IDENTITY, name: "other"})  # nothing was answered yet
    files.merged.write_text("", encoding="utf-8")
    files.check_run({**IDENTITY, "commit": "2"})  # the same questions to the same model
    with pytest.raises(
        PredictionError, match=f"{WORDS.get(name, name)} is .* there and other here; .*--accept_foreign"
    ):
        files.check_run({**IDENTITY, name: "other"})
    files.check_run({**IDENTITY, name: "other"}, accept_foreign=True)
    files.write_run({**IDENTITY, name: "other", "commit": "2"})
    assert files.read_run()["before"] == [{**IDENTITY, "commit": "1"}]


def test_predictions_of_nobody_are_refused(tmp_path):
    files = PredictionFiles(tmp_path)
    files.check_run(IDENTITY)
    files.merged.write_text("", encoding="utf-8")
    with pytest.raises(PredictionError, match=r"no run.json.*--accept_foreign"):
        files.check_run(IDENTITY)
    with pytest.raises(PredictionError, match=r"run.json is missing"):
        files.read_run()


# Asking


class Reply:
    def __init__(self, text: str, objects: list):
        self.tagged_text, self.objects = text, objects


class Chat:
    """Writes down what it is told; answers with the number of the question."""

    def __init__(self, log: list, turn_format: str, video):
        self.log, self.turn_format, self.video = log, turn_format, video

    def reset(self):
        self.log.append(("reset", self.turn_format))

    def ask(self, text, regions, max_new_tokens, masks, do_sample):
        if "c" in text and self.video is None:
            raise ValueError("The conversation\nis too long.")
        self.log.append((text, len(regions), masks, max_new_tokens))
        return Reply(f"answer to {text}", [])

    def replace_answer(self, text):
        self.log.append(("replace", text))


class Model:
    def __init__(self):
        self.log = []

    def start_chat(self, processor, video=None, image=None):
        self.log.append(("chat", processor.turn_format))
        return Chat(self.log, processor.turn_format, video)


class Processor:
    turn_format = "newlines"


def test_questions_of_a_video_share_a_chat():
    model, processor = Model(), Processor()
    found = list(PredictionRunner(model, processor, PlainBenchmark(), 8).ask_group("one", ["a", "c"]))
    assert [(question.id, one.question, len(one.turns), one.num_frames) for question, one in found] == [
        ("a", "a", 2, 2), ("c", "c", 2, 2),
    ]  # fmt: skip
    assert model.log == [
        ("chat", "newlines"),
        ("reset", "newlines"), ("Is <region> a?", 1, True, 8), ("Sure?", 0, True, 8),
        ("reset", "newlines"), ("Is <region> c?", 1, True, 8), ("replace", "Yes."), ("Sure?", 0, True, 8),
    ]  # fmt: skip


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_a_score_that_is_no_number_is_none(tmp_path, monkeypatch, score):
    objects = [GroundedPhrase("it", (0, 2), score=score), GroundedPhrase("it", (0, 2), score=0.12345)]
    monkeypatch.setattr(Chat, "ask", lambda *_, **options: Reply("[SEG] [SEG]", objects))
    ((_, found),) = PredictionRunner(Model(), Processor(), PlainBenchmark(), 8).ask_group("one", ["a"])
    files = PredictionFiles(tmp_path)
    with PredictionWriter(files.part(0)) as writer:
        writer.write(found)
        with pytest.raises(ValueError, match="not JSON compliant"):
            writer.write(Prediction("b", [PredictedTurn("", [PredictedObject("", [], score)])]))
    files.merge("ab")
    assert [[item.score for item in turn.objects] for turn in next(files.read("a")).turns] == [[None, 0.1235]] * 2


def test_a_question_with_a_turn_format_of_its_own_has_a_chat_of_its_own():
    model, processor = Model(), Processor()
    list(PredictionRunner(model, processor, PlainBenchmark(), 8).ask_group("one", ["a", "b"]))
    assert [entry for entry in model.log if entry[0] == "chat"] == [("chat", "newlines"), ("chat", "no_newlines")]
    assert ("Is <region> b?", 1, False, 8) in model.log and processor.turn_format == "newlines"


def test_a_video_that_cannot_be_read_fails_all_its_questions(monkeypatch):
    def broken(self, group):
        raise OSError("no such\nframe")

    monkeypatch.setattr(PlainBenchmark, "open", broken)
    found = list(PredictionRunner(Model(), Processor(), PlainBenchmark(), 8).ask_group("one", ["a", "b"]))
    assert [(question, one.question, one.error) for question, one in found] == [
        (None, "a", "OSError: no such frame"), (None, "b", "OSError: no such frame"),
    ]  # fmt: skip


def test_a_question_that_cannot_be_asked_fails_alone(monkeypatch):
    monkeypatch.setattr(PlainBenchmark, "open", lambda self, group: None)
    found = list(PredictionRunner(Model(), Processor(), PlainBenchmark(), 8).ask_group("one", ["a", "c"]))
    assert [one.error for _, one in found] == [None, "ValueError: The conversation is too long."]


def test_a_bug_is_no_failed_question(monkeypatch):
    def broken(self, group):
        raise KeyError("x")

    monkeypatch.setattr(PlainBenchmark, "open", broken)
    with pytest.raises(KeyError):
        list(PredictionRunner(Model(), Processor(), PlainBenchmark(), 8).ask_group("one", ["a"]))


# Scores


def test_failed_questions_are_in_no_score_and_strange_ones_are_an_error():
    found = [prediction("a"), prediction("b", error="OSError: x"), prediction("d", "No.")]
    for one in (found[0], found[2]):
        one.turns.append(PredictedTurn("No."))
    scores = PlainBenchmark().score(found)
    assert [(row.value, row.count) for row in scores.rows] == [(0.5, 2), (None, 0)]
    with pytest.raises(ValueError, match="'x', which is not a question of plain"):
        PlainBenchmark().score([prediction("x")])


def test_a_score_without_value_says_why():
    with pytest.raises(ValueError, match="no value and no reason"):
        Score("J", None, 0)


def test_table_leaves_out_empty_columns():
    scores = [
        Score("mIoU", 0.5, 4, "val", interval=(0.25, 0.75)),
        Score("colour", 0.25, 4, "val", chance=0.125),
        Score("CLAIR", None, 0, "words", reason="no judge"),
    ]
    rows = rows_of(scores)
    assert rows[0] == ("part", "score", "value", "95 %", "chance", "count")
    assert rows[1] == ("val", "mIoU", "0.500", "0.250 to 0.750", "", "4")
    assert rows[3] == ("words", "CLAIR", "none", "", "", "0")
    lines = terminal_table(scores).splitlines()
    assert (
        lines[2].startswith("     ") and "val" not in lines[2] and len({line.index("  ") for line in lines[:2]}) == 2
    )


def test_a_reason_stands_once_below_the_table():
    missing = [("METEOR", "Java is not installed"), ("CLAIR", "no judge"), ("CIDEr", "Java is not installed")]
    scores = [Score(name, None, 0, part, reason=reason) for part in ("all", "mevis") for name, reason in missing]
    expected = ["no METEOR; CIDEr: Java is not installed", "no CLAIR: no judge"]
    assert terminal_table(scores).splitlines()[-3:] == ["", *expected]
    about = {
        **IDENTITY, "commit": "c", "command": "x", "left_out": {}, "failures": [],
        "samples": {"scored": 0, "failed": 0, "skipped": 0},
    }  # fmt: skip
    text = markdown(about, Scores(scores, []))
    assert "| all | METEOR | none | 0 |" in text and all(text.count(line) == 1 for line in expected)
    assert text.count("Java") == 1 and "no " not in terminal_table([Score("mIoU", 0.5, 1)])


def test_markdown_names_failures():
    about = {
        **IDENTITY, "model": "m", "commit": "c", "command": "python evaluate.py", "left_out": {"empty": 2},
        "samples": {"scored": 1, "failed": 21, "skipped": 0},
        "failures": [{"question": str(number), "error": "OSError: x"} for number in range(21)],
    }  # fmt: skip
    text = markdown(about, Scores([Score("mIoU", 0.5, 1, published=0.25)], []))
    assert "| all | mIoU | 0.500 | 0.250 | 1 |" in text
    assert "1 questions scored, 21 failed, 0 not asked." in text and "`19`: OSError: x" in text
    assert "and 1 more" in text and "left out of the annotation files: 2 empty" in text


def plt_ticks(axes):
    return [label.get_text() for label in axes.get_xticklabels()]


def test_plots(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    samples = [Measures(str(i), "g", i / 20, [i / 20], i, i % 3) for i in range(20)]
    drawn = []
    savefig = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kw: (drawn.append(self), savefig(self, *args, **kw)))
    path = write_plots(tmp_path, samples, "IoU", "toy_world")
    assert Image.open(path).size[0] > 1000
    (figure,) = drawn
    assert figure.get_suptitle() == "toy_world: 20 questions, 20 objects"
    histogram, *bars = figure.axes
    assert histogram.get_ylabel() == "number of objects" and all(tick == int(tick) for tick in histogram.get_yticks())
    assert {axes.get_ylabel() for axes in bars} == {"IoU"} and all(axes.get_title() for axes in figure.axes)
    assert plt_ticks(bars[1]) == ["0", "1", "2"]
    assert write_plots(tmp_path, [Measures("a", "g")], "IoU") is None


def test_places_are_put_into_bins_of_about_equal_numbers():
    assert _bins([1, 2, 1], [0.0, 1.0, 0.5]) == [("1", [0.0, 0.5]), ("2", [1.0])]
    bins = _bins(list(range(24)), [0.5] * 24)
    assert [len(values) for _, values in bins] == [3] * 8 and bins[0][0] == "0\u20132"
    # Equal places stay together, and nothing is lost
    bins = _bins([0] * 30 + list(range(1, 10)), [0.5] * 39)
    assert bins[0] == ("0", [0.5] * 30) and sum(len(values) for _, values in bins) == 39


@pytest.mark.parametrize("size", [(64, 36), (36, 64), (48, 48)], ids=["portrait", "landscape", "square"])
def test_a_sheet_of_the_gallery_has_a_bounded_height_and_its_question_is_the_question(monkeypatch, size):
    height, width = size
    clip = SamaVideo.open(np.full((9, height, width, 3), 90, dtype=np.uint8))
    track = [encode_rle(np.ones(size, dtype=bool))] * 9
    words = "many words about what happens in the video " * 20
    turn = BenchmarkTurn(words, [], f"<p> it </p> [SEG] {words}", [track])
    question = Question("some-id", "one", [turn] * 6)
    answer = PredictedTurn(f"<p> it </p> [SEG] {words}", [PredictedObject("it", track)])
    benchmark = PlainBenchmark()
    monkeypatch.setattr(benchmark, "open", lambda group: clip)
    asked, titles = [], []
    monkeypatch.setattr(
        gallery, "caption_band", lambda *given, **options: asked.append(given[1]) or caption_band(*given, **options)
    )
    monkeypatch.setattr(gallery, "title_band", lambda width, title: titles.append(title) or title_band(width, title))
    sheet = draw_case(
        benchmark, question, Measures("some-id", "one", 0.5), Prediction("some-id", [answer] * 6, 9, *size)
    )
    assert sheet.height <= gallery.MAX_CASE_HEIGHT + 60 and sheet.width >= gallery.MIN_WIDTH
    assert set(asked) == {words, ""} and "some-id" in titles[0] and titles[0].endswith(" of 6")


def test_of_a_long_conversation_the_gallery_draws_the_turns_with_the_lowest_values(monkeypatch):
    monkeypatch.setattr(gallery, "MAX_CASE_HEIGHT", 400)
    titles, drawn = [], []
    monkeypatch.setattr(gallery, "title_band", lambda width, title: titles.append(title) or title_band(width, title))
    monkeypatch.setattr(
        gallery, "draw_turn", lambda video, turn, answer: drawn.append(answer.text) or Image.new("RGB", (640, 150))
    )
    question = Question("id", "one", [BenchmarkTurn("?", [], None, [])] * 4)
    prediction = Prediction("id", [PredictedTurn(text) for text in "abcd"])
    for values, shown in (
        ([0.9, None, 0.0, 0.5], "turns 3, 4"),
        ([], "turns 1, 2"),
        ([None, None, None, 0.1], "turns 1, 4"),
    ):
        draw_case(PlainBenchmark(), question, Measures("id", "one", 0.5, turn_values=values), prediction)
        assert titles[-1].endswith(f"0.50, {shown} of 4")
    assert drawn == [*"cda", *"abc", *"dab"]  # each time one that does not fit


def test_gallery_shows_best_median_and_worst(tmp_path):
    benchmark = PlainBenchmark()
    samples = [Measures(name, group, value) for name, group, value in (("a", "one", 1.0), ("d", "two", 0.0))]
    asked = []

    def read(names):
        asked.append(names)
        return [Prediction(name, [PredictedTurn("Yes."), PredictedTurn("No.")], 2, 24, 32) for name in names]

    paths = write_gallery(tmp_path / "gallery", benchmark, samples, read)
    assert [path.name for path in paths] == ["best.png", "median.png", "worst.png"]
    assert asked == [["a", "d"]]
    assert write_gallery(tmp_path / "none", benchmark, [Measures("a", "one")], read) == []
    assert not (tmp_path / "none").exists()


def test_sheet_shows_frames_with_targets_and_the_region_that_lies_on_one_frame():
    video = SamaVideo.open(np.zeros((10, 24, 32, 3), dtype=np.uint8))
    code = encode_rle(np.ones((24, 32), dtype=bool))
    seen = [None] * 6 + [code] * 4
    turn = BenchmarkTurn("Where is <region>?", [Region(frame=1, box=(2, 2, 9, 9))], "<p> It </p> [SEG]", [seen])
    frames = key_frames(video, turn)
    assert frames[0] == 1 and set(frames[1:]) <= set(range(6, 10)) and len(frames) == 4


def test_turn_of_text_alone_and_of_an_image_are_drawn():
    image = SamaVideo.open(np.zeros((24, 32, 3), dtype=np.uint8))
    mask = np.zeros((24, 32), dtype=bool)
    mask[4:9, 4:9] = True
    turn = BenchmarkTurn("What is <region>?", [Region(frame=0, mask=mask)], "A dog.")
    answer = PredictedTurn("<p> A cat </p> [SEG]", [PredictedObject("A cat", [None])])
    alone = draw_turn(None, BenchmarkTurn("Hello?", reference="Hi."), PredictedTurn(""))
    assert draw_turn(image, turn, answer).height > alone.height > 0


def test_a_reason_names_all_its_scores_also_those_with_commas():
    scores = [Score(name, None, 0, reason="no judge") for name in ("CLAIR, part 1", "style", "CLAIR, part 1")]
    assert reasons_of([*scores, Score("right", 1.0, 2)]) == ["no CLAIR, part 1; style: no judge"]
