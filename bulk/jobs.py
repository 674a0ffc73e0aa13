"""
What is asked about which video: a job is a video or picture with all questions about it, so that it is read once.

Questions come from records (docs/data.md), or from a folder of videos and a list of questions. A job holds paths and
texts, never pixels: whoever computes it opens the file itself, below the same folder.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from ..benchmarks.benchmark import BenchmarkTurn, Prediction, Question
from ..benchmarks.from_records import no_store, question_text, record_turns, system_texts
from ..data.frames import VIDEO_SUFFIXES, open_visual, visual_key
from ..data.json_text import parse_json, without_surrogates
from ..data.readers import READERS
from ..data.records import DataError, describe_error, read_lines, require_field, require_type
from ..evaluation.inference import READING_ERRORS, PredictionRunner
from ..pictures_sama import IMAGE_SUFFIXES, number_of_frames, opened_picture
from ..regions_sama import region_from_fields
from ..video_sama import SamaVideo


SOURCE = "predict"  # what messages call the questions
QUESTION_KEYS = {"question", "video", "id", "regions", "label"}
REGION = "<region>"
HASH_DIGITS = 16
STATE_BYTES = 2**20  # of the beginning of a file, by which another one is told from it


@dataclass(frozen=True)
class AskedQuestion:
    """
    A conversation about a video.

    Args:
        id (`str`): Unique in a run.
        text (`str`): The question; with a record, empty.
        regions (list of `dict`): What each `<region>` of the text stands for, as `Region` takes it.
        record (`dict`, *optional*): Instead of a text, a record whose messages are asked in turn.
        label (`str`, *optional*): What exports call the objects of the answer, instead of their phrases.
    """

    id: str
    text: str = ""
    regions: list[dict] = field(default_factory=list)
    record: dict | None = None
    label: str | None = None

    def texts(self) -> list[str]:
        """The question of each turn."""
        if self.record is None:
            return [self.text]
        return [question_text(message) for message in self.record["messages"] if message["role"] == "user"]


@dataclass(frozen=True)
class VideoJob:
    """
    A video and what is asked about it.

    Args:
        visual (`dict`): `{"video": ...}` or `{"image": ...}` as in a record; empty for questions about text alone.
        questions (sequence of [`AskedQuestion`])
    """

    visual: dict
    questions: Sequence[AskedQuestion]

    @property
    def names(self) -> list[str]:
        """The ids of its questions."""
        return [question.id for question in self.questions]

    def to_json(self) -> str:
        """The job as a text for a worker."""
        return without_surrogates(json.dumps(asdict(self), ensure_ascii=False, sort_keys=True))

    @classmethod
    def from_json(cls, text: str) -> "VideoJob":
        """The inverse of [`to_json`]."""
        found = json.loads(text)
        return cls(found["visual"], [AskedQuestion(**question) for question in found["questions"]])


# ---- where jobs come from -------------------------------------------------------------------------------------------


def jobs_of_records(path: Path, media: Path) -> list[VideoJob]:
    """
    A job for each video of the records, in the order in which they first occur. Records without a question are left
    out; reference answers are not used.

    Args:
        path (`Path`): JSON Lines of records.
        media (`Path`): Folder that their paths are relative to.

    Raises:
        DataError: for a wrong record, or an id that occurs twice.
    """
    grouped: dict[str, tuple[dict, list[AskedQuestion]]] = {}
    seen: set[str] = set()
    _check_folder(media)
    files = {"records": str(path.resolve()), "media": "."}
    for record in READERS["json_lines"](files, media, {"source": SOURCE}):
        asked = AskedQuestion(record["id"], record=without_answers(record))
        if not asked.texts():
            continue
        _add_id(seen, record["id"], path)
        visual = {kind: record[kind] for kind in ("video", "image") if kind in record}
        key = visual_key(record) or f"text {record['id']}"
        grouped.setdefault(key, (visual, []))[1].append(asked)
    return [VideoJob(visual, questions) for visual, questions in grouped.values()]


def without_answers(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record with its questions and system messages alone, and the objects that questions point at: masks are most
    of a record."""
    messages = [message for message in record["messages"] if message["role"] != "assistant"]
    parts = [part for message in messages for part in (*message.get("preamble", []), *message["content"])]
    objects = record.get("objects", {})
    names = {part["object"] for part in parts if "object" in part}
    names |= {name for whole in list(names) for name in objects[whole].get("union", [])}
    return {**record, "messages": messages, "objects": {name: objects[name] for name in objects if name in names}}


def jobs_of_folder(folder: Path, questions: Sequence[Mapping[str, Any]]) -> list[VideoJob]:
    """
    A job for each video and picture below a folder, by name, that a question is about. Hidden files, and those in
    hidden folders, do not count. Questions about a file whose name is not UTF-8 fail when they are asked; the others
    have answers.

    Args:
        folder (`Path`)
        questions (sequence of mappings): As [`read_questions`] returns them. One that names no video is asked about
            every one.

    Raises:
        DataError: without videos or questions, for a question about a video that is not there, or an id that occurs
            twice.
    """
    _check_folder(folder)
    names = _media_files(folder)
    if not names or not questions:
        raise DataError(f"has {len(names)} videos and pictures for {len(questions)} questions", file=folder)
    missing = sorted({one["video"] for one in questions if one.get("video")} - set(names))
    if missing:
        raise DataError(f"has no video or picture {missing[0]!r}, which a question is about", file=folder)
    jobs, seen = [], set()
    for name in names:
        asked = []
        for number, one in enumerate((one for one in questions if one.get("video") in (None, name)), start=1):
            identity = one.get("id")
            if identity is None or one.get("video") is None:  # one that is given for all videos becomes one for each
                identity = f"{without_surrogates(name)}#{number if identity is None else identity}"
            _add_id(seen, identity, folder)
            asked.append(AskedQuestion(identity, one["question"], one.get("regions") or [], label=one.get("label")))
        if asked:
            jobs.append(VideoJob({_kind(folder / name): {"path": name, "upright": True}}, asked))
    return jobs


def _kind(path: Path) -> str:
    """Whether a file is a video or an image: animated pictures are videos. One that cannot be read stays an image,
    and fails when it is asked about."""
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        return "video"
    try:
        with opened_picture(str(path)) as image:
            return "image" if number_of_frames(image) == 1 else "video"
    except (OSError, ValueError):
        return "image"


def _media_files(folder: Path) -> list[str]:
    known = (*VIDEO_SUFFIXES, *IMAGE_SUFFIXES)
    paths = (path for path in folder.rglob("*") if path.suffix.lower() in known and path.is_file())
    names = (path.relative_to(folder) for path in paths)
    return sorted(name.as_posix() for name in names if not any(part.startswith(".") for part in name.parts))


def read_questions(path: Path) -> list[dict[str, Any]]:
    """
    The questions of a file. JSON Lines (`.jsonl`): objects with `question` and, optionally, `video` (path below the
    folder), `regions` (one for each `<region>` of the question), `id` and `label`. Every other file: one question a
    line, asked about every video.

    Raises:
        DataError: with the line, for a wrong question.
    """
    is_text, questions = path.suffix.lower() != ".jsonl", []
    for number, line in read_lines(path):
        try:
            questions.append(checked_question({"question": _decoded(line)} if is_text else parse_json(line)))
        except ValueError as error:
            found = error if isinstance(error, DataError) else DataError(str(error).rstrip("."))
            raise found.with_context(file=path, index=f"line {number}") from error
    return questions


def checked_question(item: Any) -> dict[str, Any]:
    """The question if it is one, see [`read_questions`]; [`DataError`] otherwise."""
    unknown = sorted(set(cast(dict, require_type(item, dict, ""))) - QUESTION_KEYS)
    if unknown:
        raise DataError(f"is unknown; a question has {', '.join(sorted(QUESTION_KEYS))}", field=unknown[0])
    text = cast(str, require_field(item, "question", str))
    if not text.strip():
        raise DataError("is empty", field="question")
    for name in ("video", "id", "label"):
        require_field(item, name, str, default=None)
    regions = cast(list, require_field(item, "regions", list, default=[]))
    if len(regions) != text.count(REGION):
        problem = f"has {len(regions)} regions for {text.count(REGION)} {REGION} in the question"
        raise DataError(problem, field="regions")
    if regions and item.get("video") is None:
        raise DataError("is missing: regions lie in one video", field="video")
    if item.get("video") == "":
        raise DataError("is empty; leave it out to ask about every video", field="video")
    for position, region in enumerate(regions):
        try:
            region_from_fields(cast(dict, require_type(region, dict, "")))
        except ValueError as error:
            raise DataError(str(error).rstrip("."), field=f"regions[{position}]") from error
    return item


def _decoded(line: bytes) -> str:
    try:
        return line.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise DataError("is not UTF-8") from error


def _add_id(seen: set[str], name: str, file: Path) -> None:
    if name in seen:
        raise DataError(f"has 2 questions with the id {name!r}; ids must be unique", file=file)
    seen.add(name)


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise DataError("there is no such folder", file=folder)


def digests_of_jobs(jobs: Sequence[VideoJob], media: Path) -> dict[str, str]:
    """
    What tells runs apart, as digits: `annotations` differ for other questions, videos or regions, and for other files
    of the same names in `media`. `questions` and `videos` say which of them: the first differ for other texts and
    regions, whatever they are asked about, the second for other videos or files.
    """
    whole, videos = hashlib.sha256(), hashlib.sha256()
    questions = set()
    for job in jobs:
        state = file_state(job.visual, media)
        whole.update(f"{job.to_json()}\n{state}\n".encode())
        videos.update(f"{json.dumps(job.visual, sort_keys=True)}\n{state}\n".encode())
        for one in job.questions:
            asked = one.record and one.record["messages"]
            questions.add(json.dumps({**asdict(one), "id": "", "record": asked}, sort_keys=True))
    texts = hashlib.sha256("\n".join(sorted(questions)).encode())
    found = {"annotations": whole, "questions": texts, "videos": videos}
    return {name: digest.hexdigest()[:HASH_DIGITS] for name, digest in found.items()}


def file_state(visual: Mapping[str, Any], media: Path) -> str:
    """What a file of a job is known by wherever its folder lies: its size and beginning, or names and sizes of the
    pictures in a folder; empty for a video without a file, and for one that cannot be read, which asking reports."""
    shown = next(iter(visual.values()), {})
    name = shown.get("path") if isinstance(shown, Mapping) else shown
    path = media / name if isinstance(name, str) else None
    try:
        if path is not None and path.is_dir():
            return json.dumps(sorted((one.name, one.stat().st_size) for one in path.iterdir() if one.is_file()))
        if path is None or not path.is_file():
            return ""
        with open(path, "rb") as file:
            return f"{path.stat().st_size} {hashlib.sha256(file.read(STATE_BYTES)).hexdigest()}"
    except OSError:
        return ""


# ---- asking ---------------------------------------------------------------------------------------------------------


class JobQuestions:
    """
    The video and the questions of a job in the form in which [`PredictionRunner`] asks for those of a benchmark.

    Args:
        job ([`VideoJob`])
        media (`Path`): Folder that its path is relative to.
    """

    def __init__(self, job: VideoJob, media: Path):
        self.job, self.media = job, media

    @cached_property
    def video(self) -> SamaVideo | None:
        """The opened video. `OSError` or `ValueError` if it cannot be read."""
        return open_visual({"id": self.job.names[0], "source": SOURCE, **self.job.visual}, self.media)

    def _turns(self, asked: AskedQuestion) -> list[BenchmarkTurn]:
        if asked.record is not None:
            return record_turns(asked.record, self.video, no_store)
        return [BenchmarkTurn(asked.text, [region_from_fields(region) for region in asked.regions])]

    def open(self, group: str) -> SamaVideo | None:
        """The video."""
        return self.video

    def questions(self, group: str) -> list[Question]:
        """All of them. One whose regions or masks do not fit the video cannot be asked; the others can. `OSError` or
        `ValueError` if the video cannot be read."""
        is_seen = self.video is not None
        return [self._question(asked, is_seen) for asked in self.job.questions]

    def _question(self, asked: AskedQuestion, is_seen: bool) -> Question:
        try:
            system = [] if asked.record is None else system_texts(asked.record)
            return Question(asked.id, "", self._turns(asked), masks=is_seen, system=system)
        except READING_ERRORS as error:
            return Question(asked.id, "", error=describe_error(error))


def answer_job(job: VideoJob, media: Path, model: Any, processor: Any, max_new_tokens: int) -> Iterator[Prediction]:
    """Yields a prediction for each question of a job, in their order; one with an error where there is no answer."""
    runner = PredictionRunner(model, processor, JobQuestions(job, media), max_new_tokens)
    yield from (prediction for _, prediction in runner.ask_group("", job.names))
