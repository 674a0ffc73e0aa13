"""All stages for one video: a function of the video, the settings and the models' replies."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

from ..resources import PACKAGE
from .calls import ModelChoice, Replies, VideoCalls
from .checks import CheckedTurn, CheckLimits, VideoFacts
from .converse import converse
from .describe import describe
from .errors import AnnotationError
from .export import (
    check_round_trip,
    description_messages,
    item_hash,
    make_record,
    tagged_text,
    turn_messages,
)
from .locate import ModelLocator
from .problems import Problem
from .provenance import Origin, prompt_hash, provenance_row, video_hash
from .refine import Finding, Settled
from .render import Rendering, RenderSettings, object_colors, render, shown_frames
from .scenes import LeftOut, Scene, SceneObject, select_objects
from .schema import Statement
from .score import (
    ScoreSettings,
    blind_answers,
    blind_problems,
    in_sample,
    palette_problems,
    relocate,
    relocation_problems,
)


OBJECTS, DESCRIPTION, CONVERSATION = "objects", "description", "conversation"  # what is counted


@dataclass(frozen=True)
class AnnotationSettings:
    """
    Everything that decides what is made of a video, apart from the models.

    Args:
        rendering ([`RenderSettings`]): The pictures.
        limits ([`CheckLimits`]): Bounds of the checks.
        scores ([`ScoreSettings`]): Thresholds of the scored checks.
        origin ([`Origin`]): Licences and names of the sources.
        rounds (`int`): How often corrections are asked for.
        audit_share (`float`): Share of the accepted items that are put into the review as well.
        seed (`int`): Decides which.
    """

    rendering: RenderSettings = RenderSettings()
    limits: CheckLimits = CheckLimits()
    scores: ScoreSettings = ScoreSettings()
    origin: Origin = Origin()
    rounds: int = 1
    audit_share: float = 0.05
    seed: int = 0

    def __post_init__(self):
        if self.rounds < 0 or not 0 <= self.audit_share <= 1:
            raise ValueError(f"rounds is {self.rounds} and audit_share {self.audit_share}, expected 0 on and 0 to 1.")

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return asdict(self)


@dataclass
class VideoResult:
    """
    What was made of a video, as the lines of the output files.

    Attributes:
        records, rejected, review, review_records, findings, provenance (`list[dict]`): Lines.
        counts (`dict[str, dict[str, int]]`): Of the objects: given, annotated, merged, and left out by reason. By
            stage: items, kept, refined, rejected, review.
    """

    records: list[dict] = field(default_factory=list)
    rejected: list[dict] = field(default_factory=list)
    review: list[dict] = field(default_factory=list)
    review_records: list[dict] = field(default_factory=list)
    findings: list[dict] = field(default_factory=list)
    provenance: list[dict] = field(default_factory=list)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def state(self) -> str:
        """`kept` if there are records, else `review` if a person has to decide, else `rejected`."""
        return "kept" if self.records else "review" if self.review else "rejected"  # audited items have a record


def annotate_video(
    scene: Scene,
    settings: AnnotationSettings,
    answer: Replies,
    models: Mapping[str, ModelChoice],
    locator: ModelLocator | None = None,
) -> tuple[VideoResult, Rendering]:
    """
    Makes the records of a video. Also returns the pictures, of which a report shows some.

    Args:
        scene ([`Scene`]): The video and its objects.
        settings ([`AnnotationSettings`]): How.
        answer (`Callable`): From a [`Question`] to its reply, such as [`StoredReplies`].
        models (`dict[str, ModelChoice]`): "writer" and "verifier"; "blind" for questions without the video.
        locator ([`ModelLocator`], *optional*): Finds phrases again; without one they are not looked for.

    Raises:
        AnnotationError: if the video cannot be annotated, or an endpoint gives no reply.
        DataError: if the video or its masks cannot be read.
    """
    annotation = _Annotation(scene, settings, VideoCalls(answer, dict(models), scene.id), locator)
    return annotation.run(), annotation.rendering


def objects_to_annotate(scene: Scene, shown: Sequence[int]) -> tuple[tuple[SceneObject, ...], dict[str, LeftOut]]:
    """What `select_objects` returns for a video; [`AnnotationError`] if there is no object."""
    objects, left_out = select_objects(scene.objects, shown)
    if not objects:
        reasons = "; ".join(f"{name}: {one.reason}" for name, one in left_out.items())
        raise AnnotationError(f"{scene.id} has no object that can be annotated ({reasons or 'none is given'}).")
    return objects, left_out


class _Annotation:
    """The stages, and what they have found so far."""

    def __init__(self, scene: Scene, settings: AnnotationSettings, calls: VideoCalls, locator: ModelLocator | None):
        self.settings, self.calls, self.locator, self.result = settings, calls, locator, VideoResult()
        settings.origin.check(scene, calls.models)
        self.video = scene.open()
        shown = shown_frames(len(self.video), settings.rendering.frames)
        objects, self.left_out = objects_to_annotate(scene, shown)
        counts = Counter(given=len(scene.objects), annotated=len(objects), merged=0)
        counts.update(one.code for one in self.left_out.values())
        self.result.counts[OBJECTS] = dict(counts)
        self.scene = replace(scene, objects=objects)
        self.names = [one.name for one in objects]
        self.rendering = render(scene.id, self.video, objects, settings.rendering)
        self.facts = VideoFacts(
            len(self.video),
            self.rendering.shown,
            tuple(one.visible for one in objects),
            tuple(one.expressions for one in objects),
            self.rendering.colors,
        )
        self.sha256 = video_hash(scene)

    def run(self) -> VideoResult:
        """All stages in order."""
        statements = self.describe()
        if statements:
            self.converse(statements)
        return self.result

    # ---- descriptions

    def describe(self) -> dict[int, list[Statement]]:
        """The statements about each object that passed; makes the record of the descriptions."""
        settings = self.settings
        settled = describe(self.calls, self.rendering, self.facts, settings.limits, settings.rounds)
        kept = {number: entries[0].statements for number, entries in settled.kept.items()}
        sure = {number: listed for number, listed in kept.items() if number not in settled.doubtful}
        if sure and in_sample(f"palette/{self.scene.id}", settings.scores.palette_share):
            found = palette_problems(self.calls, self.swapped_rendering(), self.facts, sure)
            self.note(settled, found)
        passed = {number: listed for number, listed in sure.items() if number not in settled.failed | settled.doubtful}
        self.log(DESCRIPTION, settled)
        texts = {
            number: {"statements": [one.model_dump() for entry in entries for one in entry.statements]}
            for number, entries in settled.items.items()
        }
        self.reject(DESCRIPTION, settled, texts)
        for number in sorted(settled.doubtful.keys() & kept.keys()):
            messages = description_messages(number, kept[number], self.names)
            self.review(DESCRIPTION, number, messages, (texts[number], settled.doubtful[number], {}))
        if passed:
            items = {
                number: (description_messages(number, listed, self.names), texts[number])
                for number, listed in sorted(passed.items())
            }
            self.keep(DESCRIPTION, items, {})
        self.state_origin(DESCRIPTION, settled, {})
        return passed

    def swapped_rendering(self) -> Rendering:
        """The same frames, in which each object has another colour."""
        rendering, old = self.settings.rendering, self.rendering.colors

        def differs(seed: int) -> bool:
            colors = object_colors(self.scene.id, len(self.names), seed)
            return all(one != other for one, other in zip(colors, old, strict=True))

        seed = next(filter(differs, count(rendering.seed + 1)))
        return render(self.scene.id, self.video, self.scene.objects, replace(rendering, seed=seed))

    # ---- dialogue

    def converse(self, statements: Mapping[int, list[Statement]]) -> None:
        """Makes the record of the dialogue."""
        settings = self.settings
        settled, turns = converse(self.calls, self.rendering, self.facts, statements, settings.limits, settings.rounds)
        checked = dict(enumerate(turns, start=1))
        scores = self.score(settled, {place: checked[place] for place in settled.kept})
        self.log(CONVERSATION, settled)
        texts = {place: {"question": turn.question, "answer": turn.answer} for place, turn in settled.items.items()}
        self.reject(CONVERSATION, settled, texts)
        items = {}
        for place in sorted(settled.kept):
            check_round_trip(checked[place], self.names)
            messages = turn_messages(checked[place], self.names)
            texts[place] = {
                "question": tagged_text(messages[0], self.names),
                "answer": tagged_text(messages[1], self.names),
            }
            if place in settled.doubtful:
                found = texts[place], settled.doubtful[place], scores.get(place, {})
                self.review(CONVERSATION, place, messages, found)
            else:
                items[place] = messages, texts[place]
        if items:
            self.keep(CONVERSATION, items, scores)
        self.state_origin(CONVERSATION, settled, scores)

    def score(self, settled: Settled, turns: Mapping[int, CheckedTurn]) -> dict[int, dict[str, Any]]:
        """The scored checks of the turns that passed the exact ones; returns the scores by turn."""
        scores: dict[int, dict[str, Any]] = {place: {} for place in turns}
        wanted = self.settings.scores
        if "blind" in self.calls.models and wanted.blind_tries:
            answers = blind_answers(self.calls, turns, wanted.blind_tries)
            for place, (right, judged) in answers.items():
                scores[place] |= {"blind_right": right, "blind_judged": judged}
            self.note(settled, blind_problems(answers, wanted))
        if self.locator is not None:
            found = relocate(self.locator, self.video, turns, self.scene.objects)
            for place, phrases in found.items():
                scores[place]["relocate_iou"] = [ious[number - 1] for _, number, ious in phrases]
            self.note(settled, relocation_problems(found, wanted))
        return scores

    # ---- lines of the output files

    def note(self, settled: Settled, found: Mapping[int, list[Problem]]) -> None:
        """Adds problems of the scored checks to those of a reply. They are not sent back: a score is no correction."""
        for item, problems in found.items():
            settled.findings += [Finding(self.settings.rounds + 1, item, problem) for problem in problems]
            failed = [problem for problem in problems if not problem.review]
            if failed:
                settled.failed[item] = [*settled.failed.get(item, []), *failed]
                settled.doubtful.pop(item, None)
            elif item not in settled.failed:
                settled.doubtful[item] = [*settled.doubtful.get(item, []), *problems]

    def log(self, kind: str, settled: Settled) -> None:
        """Findings and counts of a stage."""
        for finding in settled.findings:
            place = {"video": self.scene.id, "stage": kind, "round": finding.round, "item": finding.item}
            self.result.findings.append(place | finding.problem.to_dict())
        items = set(settled.items) | {item for item in settled.failed if item is not None}  # some are missing
        failed = len(items) if None in settled.failed else len(settled.failed)
        found = Counter(items=len(items), rejected=failed, refined=len(settled.refined))
        found["review"] = len([item for item in settled.doubtful if item in settled.kept])
        found["kept"] = len(settled.kept) - found["review"]
        self.result.counts[kind] = dict(found)

    def record_id(self, kind: str) -> str:
        return f"{self.scene.id}/{kind}"

    def place(self, kind: str, item: int | None) -> dict[str, Any]:
        """Record, turn and object of an item."""
        is_object = kind == DESCRIPTION and item is not None and 1 <= item <= len(self.names)
        turn = item - 1 if kind == CONVERSATION and item is not None else None
        return {
            "record": self.record_id(kind),
            "turn": turn,
            "object": self.names[item - 1] if is_object and item is not None else None,
        }

    def reject(self, kind: str, settled: Settled, texts: Mapping[int, dict]) -> None:
        """The lines of `rejected.jsonl`: one for each failed item, or one for the reply as a whole."""
        for item, problems in sorted(settled.failed.items(), key=lambda one: one[0] or 0):
            text = {"items": list(texts.values())} if item is None else texts.get(item, {})
            reasons = [problem.to_dict() for problem in problems]
            self.result.rejected.append(self.place(kind, item) | {"stage": kind, "reasons": reasons, "text": text})

    def keep(self, kind: str, items: Mapping[int, tuple[list[dict], dict]], scores: Mapping[int, dict]) -> None:
        """The record of all items that passed, and the sample of them that people look at."""
        messages = [message for one, _ in items.values() for message in one]
        record = make_record(self.scene, self.record_id(kind), messages)
        self.result.records.append(record)
        for item, (one, text) in items.items():
            if in_sample(f"audit/{self.settings.seed}/{record['id']}/{item}", self.settings.audit_share):
                self.review(kind, item, one, (text, [], scores.get(item, {})), audit=True)

    def state_origin(self, kind: str, settled: Settled, scores: Mapping[int, dict]) -> None:
        """The line of `provenance.jsonl` about the record of a stage, if it has items that are kept or reviewed."""
        if not settled.kept:
            return
        objects = {
            f"obj{number}": {"name": name, "color": color}
            for number, (name, color) in enumerate(zip(self.names, self.rendering.colors, strict=True), start=1)
        }
        about = {
            "video_sha256": self.sha256,
            "objects": objects,
            "left_out": {name: one.reason for name, one in self.left_out.items()},
            "frames": list(self.rendering.shown),
            "damaged_frames": self.video.damaged_frames,  # of those that were read: a neighbour stands for them
            "scores": {str(item): scores[item] for item in settled.kept if scores.get(item)},
            "refined": sorted(settled.refined & set(settled.kept)),
        }
        row = provenance_row(self.record_id(kind), self.scene, self.settings.origin, self.calls, about)
        self.result.provenance.append(row)

    def review(
        self,
        kind: str,
        item: int,
        messages: list[dict],
        found: tuple[dict, list[Problem], dict],
        audit: bool = False,
    ) -> None:
        """An item of the review queue, with a record of its own that holds all objects of the video. `audit`: it was
        accepted, and a person looks at it to measure the checks."""
        text, problems, scores = found
        name = f"{self.record_id(kind)}/{item}"
        record = make_record(self.scene, name, messages, all_objects=True)
        codes = {problem.code for problem in problems}
        self.result.review_records.append(record)
        self.result.review.append(
            {
                "id": name,
                **self.place(kind, item),
                "reasons": [problem.to_dict() for problem in problems],
                "text": text,
                "frames": list(self.rendering.shown),
                "masks_ref": {
                    "file": "review_records.jsonl",
                    "id": name,
                    "objects": {f"obj{number}": one for number, one in enumerate(self.names, start=1)},
                },
                "scores": scores,
                "audit": audit,
                "suggested": "reject" if "unseen" in codes else "accept",
                "item_hash": item_hash(text, record),
            }
        )


def settings_key(settings: AnnotationSettings, models: Mapping[str, ModelChoice], locator: str) -> str:
    """Everything but the video that decides a [`VideoResult`], as text. `locator`: the models with [SEG], if any."""
    chosen = {
        role: [model.name, model.revision, model.terms, model.host, model.max_tokens, model.temperature, model.seed]
        for role, model in models.items()
    }
    return json.dumps([settings.to_dict(), chosen, code_hash(bool(locator)), prompt_hash(), locator], sort_keys=True)


# Files of this package that decide nothing of a [`VideoResult`]
WITHOUT_INFLUENCE = {
    *("command", "completions", "costs", "endpoint", "errors", "estimate", "held_out", "html", "json_lines"),
    *("pipeline", "pool", "rate_limit", "report", "review", "review_merge", "review_server", "sama239k", "store"),
}
# Files outside of it that do: they decode frames and masks, read records and replies, draw the pictures, and compare
# masks
OF_INFLUENCE = (
    *("data/frames.py", "data/json_text.py", "data/masks.py", "data/records.py", "drawing/regions.py"),
    *("metrics/iou.py", "overlay_sama.py", "pictures_sama.py", "video_readers_sama.py", "video_sama.py"),
)


@cache
def code_hash(with_model: bool = False) -> str:
    """A hash of the code of stages and checks: with changed checks, results are made anew from the same replies.
    `with_model`: also of the models with [SEG]."""
    digest = hashlib.sha256()
    for path in code_files(with_model):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def code_files(with_model: bool = False) -> list[Path]:
    """The files whose code decides what is made of a video. `with_model`: by models with [SEG], too."""
    own = [path for path in sorted((PACKAGE / "annotation").glob("*.py")) if path.stem not in WITHOUT_INFLUENCE]
    found = own + [PACKAGE / name for name in OF_INFLUENCE]
    if with_model:  # all files that are saved with a checkpoint, how it is loaded, and what it is asked
        more = [*sorted(PACKAGE.glob("*_sama*.py")), PACKAGE / "serving/loading.py", PACKAGE / "data/wording.py"]
        found += [path for path in more if path not in found]
    return found
