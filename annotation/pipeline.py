"""
All videos of a run: several at a time, each one's result kept as soon as it is there, and the output files written
from the results in the order of the input. A run that was killed goes on where it was, and ends with the same files.
"""

import hashlib
import heapq
import json
import logging
import shutil
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from ..bulk.gpu_errors import fatal_gpu_errors
from ..bulk.pool import ProcessLost
from ..data.files import atomic_path, remove_temporaries, write_text_atomically
from ..data.frames import MEDIA_ERRORS
from .annotator import Annotator, error_row
from .calls import ModelChoice, StoredReplies
from .duplicates import duplicates_across
from .errors import AnnotationError, StopError, output_errors
from .held_out import HeldOut
from .problems import Problem
from .render import render, shown_frames
from .scenes import BrokenScene, Scene, writable
from .store import ReplyStore
from .video import CONVERSATION, AnnotationSettings, VideoResult, objects_to_annotate, settings_key


logger = logging.getLogger(__name__)

FILES = ("records", "rejected", "review", "review_records", "findings", "provenance")  # lines of a VideoResult
ERRORS = "errors"
NUM_SAMPLES = 20  # videos whose drawn frames are kept for the report


@dataclass
class RunCounts:
    """
    What a run came to, for `run.json` and the report.

    Attributes:
        videos (`Counter`): kept, review, rejected, error.
        items (`dict[str, Counter]`): By stage: items, kept, review, rejected, refined. Of the objects: given,
            annotated, merged, and left out by reason.
        findings, reasons (`Counter`): By code: everything that was found, and what items were rejected for.
        duplicates (`int`): Dialogues that repeat that of another video.
        stopped ([`StopError`], *optional*): Why the run ended before its end; the files hold what was finished before.
    """

    videos: Counter = field(default_factory=Counter)
    items: dict[str, Counter] = field(default_factory=dict)
    findings: Counter = field(default_factory=Counter)
    reasons: Counter = field(default_factory=Counter)
    duplicates: int = 0
    stopped: StopError | None = None

    def add(self, result: VideoResult) -> None:
        """Adds the result of a video."""
        self.videos[result.state] += 1
        for stage, counts in result.counts.items():
            self.items.setdefault(stage, Counter()).update(counts)
        self.findings.update(row["code"] for row in result.findings)
        self.reasons.update(reason["code"] for row in result.rejected for reason in row["reasons"])


class Outcome(NamedTuple):
    """What became of a video: its place in the input, its id, and the file of its result or its error row."""

    index: int
    video: str
    result: Path | dict


class Pending(NamedTuple):
    """A video that must be annotated, and the file of its result."""

    scene: Scene
    path: Path


class Run:
    """
    A run over many videos.

    Args:
        folder (`Path`): Of the output; what an earlier run left there is used.
        settings ([`AnnotationSettings`]): How videos are annotated.
        models (`dict[str, ModelChoice]`): "writer", "verifier", optionally "blind".
        checkpoints (`str`): The models with [SEG] of the run, if there are any: part of what decides the result.
        held_out ([`HeldOut`], *optional*): Videos that must not be annotated.
    """

    def __init__(
        self,
        folder: Path,
        settings: AnnotationSettings,
        models: Mapping[str, ModelChoice],
        checkpoints: str = "",
        held_out: HeldOut | None = None,
    ):
        self.folder, self.models = folder, models
        self.stopped: StopError | None = None
        self.stop_callbacks: list[Callable[[StopError], object]] = []  # called once, with the error
        self._lock = threading.Lock()
        # A video that is held out since then must not come back from its result
        self._key = settings_key(settings, models, checkpoints) + ("" if held_out is None else held_out.digest())
        self.replies = StoredReplies(ReplyStore(folder / "store"), models)
        self.annotator = Annotator(settings, models, self.replies, held_out=held_out)
        self.samples = RenderedSamples(folder / "rendered")
        (folder / "videos").mkdir(exist_ok=True)

    def run(
        self,
        scenes: Iterable[Scene | BrokenScene],
        concurrency: int = 8,
        progress: Callable[[str], None] | None = None,
        annotate: Callable[["Run", Iterable[Scene | BrokenScene]], Iterator[Outcome]] | None = None,
    ) -> RunCounts:
        """
        Annotates all videos and writes the output files; without a video, those of an earlier run stay.

        Args:
            scenes (iterable of [`Scene`]): The videos; a [`BrokenScene`] becomes an error row,
                and so does a video with the id of an earlier one.
            concurrency (`int`): Videos at a time.
            progress (`Callable`, *optional*): Called with the id of each finished video.
            annotate (`Callable`, *optional*): Annotates the videos elsewhere, as a pool does; by default threads of
                this process do.
        """
        found: list[Outcome] = []
        scenes = _with_different_ids(scenes)
        for outcome in self._in_threads(scenes, concurrency) if annotate is None else annotate(self, scenes):
            found.append(outcome)
            if progress is not None:
                progress(outcome.video)
        if not found and self.stopped is None:
            return RunCounts()
        counts = self._write([(one.video, one.result) for one in sorted(found, key=lambda one: one.index)])
        counts.stopped = self.stopped
        return counts

    def _in_threads(self, scenes: Iterable[Scene | BrokenScene], concurrency: int) -> Iterator[Outcome]:
        """All videos in their order."""
        waiting: deque[tuple[int, str, Future]] = deque()

        def next_outcome() -> Outcome:
            index, video, future = waiting[0]
            outcome = Outcome(index, video, future.result())
            waiting.popleft()
            return outcome

        with ThreadPoolExecutor(concurrency, thread_name_prefix="annotate") as pool:
            try:
                for index, scene in enumerate(scenes):
                    waiting.append((index, scene.id, pool.submit(self._one, scene)))
                    while len(waiting) > 2 * concurrency:
                        yield next_outcome()
                while waiting:
                    yield next_outcome()
            except BaseException:
                # Ctrl-C among them. Without this, the calls that wait would be waited for
                for _, _, future in waiting:
                    future.cancel()
                self.stop_requests()
                raise

    def stop(self, error: StopError) -> None:
        """Ends the run: nothing is asked any more. Of several errors, the first says why."""
        with self._lock:
            first, self.stopped = self.stopped is None, self.stopped or error
        self.stop_requests(self.stopped)
        for callback in self.stop_callbacks if first else ():
            callback(error)

    def stop_requests(self, error: StopError | None = None) -> None:
        """Lets all requests that wait, and all later ones, end, with this error."""
        for model in self.models.values():
            if model.endpoint is not None:
                model.endpoint.stop(error)

    def result_path(self, scene: Scene) -> Path:
        """The file of a video's result, whether it is there or not; `OSError` if the video is not."""
        path = scene.root / scene.visual["path"]
        # Not all bytes: they are read when it is annotated
        about = [file.stat() for file in (path, *(path / name for name in scene.visual.get("frames") or ()))]
        files = [[one.st_size, one.st_mtime_ns] for one in about]
        key = hashlib.sha256(f"{self._key}/{scene.digest()}/{json.dumps(files)}".encode()).hexdigest()
        return self.folder / "videos" / f"{key}.json"

    def look_up(self, scene: Scene | BrokenScene) -> Path | dict | Pending:
        """The result of a video, or its error row, or that it must be annotated."""
        if isinstance(scene, BrokenScene):
            return error_row(scene.id, scene.error)
        try:
            path = self.result_path(scene)
        except OSError as error:
            return error_row(scene.id, error)
        if path.exists() and _is_whole(path):
            try:
                with output_errors(self.samples.folder):
                    wanted = self.samples.wants(scene.id, path.stem)
                if wanted:
                    self._draw_again(scene, path)
            except StopError as error:  # the result is there nevertheless
                self.stop(error)
            return path
        # After a stop, nothing is drawn in vain
        return Pending(scene, path) if self.stopped is None else error_row(scene.id, self.stopped)

    def _draw_again(self, scene: Scene, path: Path) -> None:
        """The drawn frames of a result that is there, such as that of a video which another run left out.
        [`OutputError`] if they cannot be written."""
        if not scene.objects:  # they were proposed, and would have to be again
            return
        try:
            if _read_result(path).state != "kept":
                return
            settings, video = self.annotator.settings.rendering, scene.open()
            objects, _ = objects_to_annotate(scene, shown_frames(len(video), settings.frames))
            drawn = render(scene.id, video, objects, settings).drawn_frames
        except Exception:  # the result is there nevertheless; the report goes without its pictures
            logger.warning("%s cannot be drawn for the report", scene.id, exc_info=True)
            return
        with output_errors(self.samples.folder):
            self.samples.add(scene.id, path.stem, drawn)

    def keep(self, pending: Pending, result: str, drawn: Mapping[int, bytes] | None) -> Path | dict:
        """
        Keeps the result of a video. Returns its file; an error row, and stops the run, if it cannot be written.

        Args:
            pending ([`Pending`]): What [`look_up`] returned.
            result (`str`): JSON of the [`VideoResult`].
            drawn (`dict[int, bytes]`, *optional*): If there are records: the drawn frames, by their numbers.
        """
        try:
            with output_errors(self.folder):
                if drawn is not None:
                    self.samples.add(pending.scene.id, pending.path.stem, drawn)
                write_text_atomically(pending.path, result)
            return pending.path
        except StopError as error:
            self.stop(error)
            return error_row(pending.scene.id, error)

    def _one(self, scene: Scene | BrokenScene) -> Path | dict:
        """The file of a video's result, or its error row."""
        pending = self.look_up(scene)
        if not isinstance(pending, Pending):
            return pending
        try:
            with fatal_gpu_errors():
                result, rendering = self.annotator(pending.scene)
        except ProcessLost:
            raise
        except Exception as error:  # whatever is wrong with one video, the others are annotated
            if isinstance(error, StopError):
                self.stop(error)
            elif not isinstance(error, MEDIA_ERRORS):
                logger.warning("%s failed", scene.id, exc_info=True)
            return error_row(scene.id, error)
        drawn = rendering.drawn_frames if result.state == "kept" else None
        return self.keep(pending, json.dumps(asdict(result)), drawn)

    def _write(self, outcomes: list[tuple[str, Path | dict]]) -> RunCounts:
        """Writes all output files, each of which is the old or the new one at any time. [`OutputError`] if they cannot
        be written."""
        counts = RunCounts()
        repeated = duplicates_across(dict(self._dialogues(outcomes)))
        counts.duplicates = len(repeated)
        with output_errors(self.folder), ExitStack() as stack:
            self.samples.finish()
            paths = {
                name: stack.enter_context(atomic_path(self.folder / f"{name}.jsonl")) for name in (*FILES, ERRORS)
            }
            files = {name: stack.enter_context(open(path, "w", encoding="utf-8")) for name, path in paths.items()}
            for video, outcome in outcomes:
                if isinstance(outcome, dict):
                    counts.videos["error"] += 1
                    _write_lines(files[ERRORS], [outcome])
                    continue
                result = _read_result(outcome)
                if video in repeated:
                    _reject_dialogue(result, video, repeated[video])
                counts.add(result)
                for name in FILES:
                    _write_lines(files[name], vars(result)[name])
        return counts

    def remove_leftovers(self) -> None:
        """Removes what killed runs left half written. No other run may work in the folder."""
        with output_errors(self.folder):
            written = {f"{name}.jsonl" for name in (*FILES, ERRORS)} | {"run.json", "report.html"}
            remove_temporaries(self.folder, written)  # a review may be writing others
            remove_temporaries(self.folder / "videos")
            self.samples.remove_leftovers()
            self.replies.store.remove_leftovers()

    def _dialogues(self, outcomes: list[tuple[str, Path | dict]]) -> Iterator[tuple[str, str]]:
        """Id and whole dialogue of each video that has one."""
        for video, outcome in outcomes:
            if isinstance(outcome, Path):
                record = _dialogue(_read_result(outcome))
                if record is not None:
                    parts = [part for message in record["messages"] for part in message["content"]]
                    yield video, " ".join(part.get("text", "") for part in parts)


class RenderedSamples:
    """
    The drawn frames of a few videos: of those of the run with the smallest hashes, so that a run that was killed and
    one that was not keep the same ones.

    Args:
        folder (`Path`): Has a folder for each of them, and `index.json` with their names.
    """

    def __init__(self, folder: Path):
        self.folder, self._lock = folder, threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)
        index = folder / "index.json"
        # Videos of earlier runs hold no places until they are seen in this one
        self._earlier: dict[str, str] = _read_index(index)
        self._index: dict[str, str] = {}

    def wants(self, video: str, key: str) -> bool:
        """Whether the drawn frames of a video are to be added: it is one of the samples so far, and what was drawn for
        the result with this key is not there."""
        with self._lock:
            name = rendered_folder(key)
            if self._earlier.get(video) == name and (self.folder / name).is_dir():
                self._index[video] = self._earlier.pop(video)
                self._choose()
            return video not in self._index and video in self._chosen({**self._index, video: name})

    def add(self, video: str, key: str, drawn: Mapping[int, bytes]) -> None:
        """Keeps the drawn frames of a video if it is one of the samples. `key`: of its result, which names their
        folder, so that frames of other settings are not mixed with them."""
        with self._lock:
            self._remove(self._earlier.pop(video, None), self._index.pop(video, None))
            name = rendered_folder(key)
            if video in self._chosen({**self._index, video: name}):
                path = self.folder / name
                path.mkdir(exist_ok=True)
                for number, picture in drawn.items():
                    (path / f"{number:05d}.jpg").write_bytes(picture)
                self._index[video] = name
            self._choose()

    def remove_leftovers(self) -> None:
        """Removes what a run that was killed had not drawn to its end."""
        with self._lock:
            remove_temporaries(self.folder)
            known = {*self._earlier.values(), *self._index.values()}
            self._remove(*(path.name for path in self.folder.iterdir() if path.is_dir() and path.name not in known))

    def finish(self) -> None:
        """Removes what is left of earlier runs over other videos, or of other settings."""
        with self._lock:
            self._remove(*self._earlier.values())
            self._earlier = {}
            self._choose()

    @staticmethod
    def _chosen(index: Mapping[str, str]) -> list[str]:
        return heapq.nsmallest(NUM_SAMPLES, index, key=rendered_folder)

    def _choose(self) -> None:
        chosen = self._chosen(self._index)
        self._remove(*(self._index[one] for one in self._index.keys() - set(chosen)))
        self._index = {one: self._index[one] for one in sorted(chosen)}
        write_text_atomically(self.folder / "index.json", json.dumps(self._index | self._earlier, indent=1))

    def _remove(self, *names: str | None) -> None:
        for name in filter(None, names):
            shutil.rmtree(self.folder / name, ignore_errors=True)


def rendered_folder(name: str) -> str:
    """A name for the folder of a video's drawn frames, and what the samples are chosen by: an id may hold anything."""
    return hashlib.sha256(name.encode()).hexdigest()[:16]


def _read_result(path: Path) -> VideoResult:
    try:
        return VideoResult(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise AnnotationError(f"{path} cannot be read ({error}).") from error


def _is_whole(path: Path) -> bool:
    """Whether a result can be read. Where it cannot, as after a power cut, the video is annotated again: its replies
    are stored."""
    try:
        _read_result(path)
    except AnnotationError as error:
        logger.warning("%s Its video is annotated again.", error)
        return False
    return True


def _read_index(path: Path) -> dict[str, str]:
    """The names of drawn samples; none if the file is damaged, since they can be drawn again."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _dialogue(result: VideoResult) -> dict | None:
    return next((one for one in result.records if one["id"].endswith(f"/{CONVERSATION}")), None)


def _reject_dialogue(result: VideoResult, video: str, other: str) -> None:
    """Moves the dialogue of a video to the rejected ones."""
    record = _dialogue(result)
    assert record is not None  # it was compared
    problem = Problem("duplicate", "", f"the dialogue repeats that of {other}")
    result.records.remove(record)
    audited = {row["id"] for row in result.review if row["audit"] and row["record"] == record["id"]}
    result.review = [row for row in result.review if row["id"] not in audited]
    result.review_records = [one for one in result.review_records if one["id"] not in audited]
    if not any(row["record"] == record["id"] for row in result.review):
        result.provenance = [row for row in result.provenance if row["id"] != record["id"]]
    counts = result.counts[CONVERSATION]
    counts["rejected"], counts["kept"] = counts["rejected"] + counts["kept"], 0
    result.findings.append({"video": video, "stage": CONVERSATION, "round": 0, "item": None} | problem.to_dict())
    text = {"messages": record["messages"]}
    place = {"record": record["id"], "turn": None, "object": None, "stage": CONVERSATION}
    result.rejected.append(place | {"reasons": [problem.to_dict()], "text": text})


def _with_different_ids(scenes: Iterable[Scene | BrokenScene]) -> Iterator[Scene | BrokenScene]:
    """The videos, with whole paths, since an actor has another working directory; one with the id of an earlier one
    is broken, and so is one whose records could not be written."""
    seen: set[str] = set()
    for scene in map(writable, scenes):
        if scene.id in seen:
            error = AnnotationError(f"Two videos have the id {scene.id!r}; ids name the records.")
            scene = BrokenScene(scene.id, error)
        seen.add(scene.id)
        yield scene if isinstance(scene, BrokenScene) else replace(scene, root=scene.root.absolute())


def _write_lines(file, rows: Iterable[dict]) -> None:
    for row in rows:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
