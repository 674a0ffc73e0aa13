"""
Referring segmentation in videos: MeViS, Ref-YouTube-VOS, Ref-DAVIS17 and ReVOS. Protocols: evaluation spec 4.

One question per expression. Masks are compared with the annotation frame by frame (J and F), over all frames; the
score is the mean over expressions, in percent. The masks of an answer with several [SEG]s are united; the published
code takes the first. An answer without [SEG] is an empty mask in every frame.

An expression that fits nothing is asked as the others are and compared with empty masks: J and F of a frame are 1
without a predicted pixel and 0 with one. Where there are such expressions, further rows have N-acc and T-acc
(`metrics/no_target.py`), and R of ReVOS on them, which measures how much is hallucinated.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

import numpy as np

from sama.data.masks import union
from sama.data.wording import TEMPLATES
from sama.metrics.jf import REVOS_GROUPS, accuracy, revos_table, robustness
from sama.metrics.no_target import Presence
from sama.metrics.values import CONSISTENT, PRESETS, PUBLISHED
from sama.video_sama import SamaVideo

from . import frame_masks
from .benchmark import (
    Benchmark,
    BenchmarkError,
    BenchmarkTurn,
    Measures,
    Prediction,
    Question,
    RLETrack,
    Score,
    Scores,
    Tools,
)
from .from_catalogue import CatalogueBenchmark
from .from_records import masks_on_video, record_turns
from .published import published_revos_masks
from .rows import mean_row, presence_rows


NO_TARGET = "no target"  # part of the rows about expressions that fit nothing
FOREGROUND = "foreground_masks"  # ReVOS: key in the catalogue of the file with the union of all objects of a video
ON_SERVER = "only the challenge server has the masks of this split: write a submission"


class ReferringVideo(CatalogueBenchmark):
    """The protocol that the four data sets share."""

    version: ClassVar[int] = 2  # before: where nothing fits, F of a mask of the whole frame was 1
    max_new_tokens: ClassVar[int] = 2048
    headline: ClassVar[str] = "J"

    def question_ids(self, records: list[dict]) -> list[str]:
        return [f"{self.local_name(record)}/{info['expression_id']}" for record in records for info in _infos(record)]

    def group_questions(self, records: list[dict], video: SamaVideo) -> list[Question]:
        (record,) = records
        turns, names = record_turns(record, video, self.source.lookup), self.question_ids(records)
        answers = [_target(message) for message in record["messages"] if message["role"] != "user"]
        return [
            Question(name, self.group_of(record), [self.turn(turn, target, record, video)], layout=self.layout)
            for name, turn, target in zip(names, turns, answers or [""] * len(turns), strict=True)
        ]

    def turn(self, turn: BenchmarkTurn, target: str, record: Mapping, video: SamaVideo) -> BenchmarkTurn:
        """The question in the wording of the benchmark. `target` is the key of the true object, "3+4" for two
        objects, "" for none."""
        phrase = turn.info["expression"]
        if "?" in phrase:  # the expression is a question already
            text = phrase
        else:
            expression = phrase if self.preset == PUBLISHED else phrase.replace(".", "").strip().lower()
            text = TEMPLATES["segment_video_bench"][0].format(expression)
        info = {**turn.info, **self.further_info(turn.info, target, record, video)}
        return BenchmarkTurn(text, (), turn.reference, turn.targets, info, turn.no_target)

    def further_info(self, info: Mapping, target: str, record: Mapping, video: SamaVideo) -> dict:
        """What `measure` needs besides the true masks."""
        return {}

    def measure(self, question: Question, prediction: Prediction) -> Measures:
        turn, found = question.turns[0], [item.masks for item in prediction.turns[0].objects]
        measures = Measures(question.id, question.group, num_frames=prediction.num_frames, num_objects=1)
        if turn.no_target:
            measures.num_objects = 0
        elif not turn.targets:
            return measures
        frame_masks.check_shape(question, prediction, turn.targets)
        consistent = self.values(turn, found, prediction, CONSISTENT)
        # Several [SEG]s are rare; with one the presets agree on J and F of a target
        agree = len(found) <= 1 and not turn.no_target
        published = consistent if agree else self.values(turn, found[:1], prediction, PUBLISHED)
        consistent, published = (
            values | self.further_values(turn, tracks, prediction, preset)
            for values, tracks, preset in ((consistent, found, CONSISTENT), (published, found[:1], PUBLISHED))
        )
        about = {"type_id": turn.info.get("type_id"), "video": question.group}
        predicted = frame_masks.any_pixel(found, (prediction.height, prediction.width))
        presence = {"has_target": not turn.no_target, "predicted": predicted}
        measures.facts = {"consistent": consistent, "published": published, **about, "presence": presence}
        measures.value, measures.ious = consistent["J"], [] if turn.no_target else [consistent["J"]]
        return measures

    def values(
        self, turn: BenchmarkTurn, found: Sequence[RLETrack], prediction: Prediction, preset: str
    ) -> dict[str, float]:
        """J and F of an expression, means over frames in [0, 1]."""
        number, size = prediction.num_frames, (prediction.height, prediction.width)
        guess = frame_masks.united(found, number, size)
        if turn.no_target and preset == CONSISTENT:
            each = frame_masks.no_target_jf(guess)
        else:
            each = frame_masks.track_jf(frame_masks.united(turn.targets, number, size), guess)
        j, f = np.mean(each, axis=0)
        return {"J": float(j), "F": float(f)}

    def further_values(
        self, turn: BenchmarkTurn, found: Sequence[RLETrack], prediction: Prediction, preset: str
    ) -> dict[str, float]:
        """Further metrics of one data set."""
        return {}

    def summarise(self, samples: Sequence[Measures], tools: Tools) -> list[Score]:
        reason = "" if "masks" in self.source.entry.files else ON_SERVER
        rated = [sample.facts for sample in samples if sample.facts]
        return [*jf_rows(rated, "all", reason), *presence_rows(_presences(rated))]


class MeViS(ReferringVideo):
    """MeViS. The masks of `valid` are on the challenge server only, those of `valid_u` are public."""

    name: ClassVar[str] = "mevis"
    splits: ClassVar[tuple[str, ...]] = ("valid_u", "valid")


class RefYoutubeVOS(ReferringVideo):
    """Ref-YouTube-VOS. It is scored locally if the optional file of masks in the catalogue exists."""

    name: ClassVar[str] = "ref_youtube_vos"
    splits: ClassVar[tuple[str, ...]] = ("valid",)
    optional_files: ClassVar[tuple[str, ...]] = ("masks",)


class ReVOS(ReferringVideo):
    """ReVOS: J, F, pixel accuracy (A) and robustness against false positives (R), in percent."""

    name: ClassVar[str] = "revos"
    splits: ClassVar[tuple[str, ...]] = ("valid",)
    optional_files: ClassVar[tuple[str, ...]] = (FOREGROUND,)

    def group_questions(self, records: list[dict], video: SamaVideo) -> list[Question]:
        (record,), lookup = records, self.source.lookup
        single = [name for name, item in record["objects"].items() if "union" not in item]
        self._parts = {name: masks_on_video(record, name, video, lookup) for name in single}
        if FOREGROUND in self.source.masks:
            item = {"store": FOREGROUND, "key": self.group_of(record)}
            self._foreground = masks_on_video({**record, "objects": {FOREGROUND: item}}, FOREGROUND, video, lookup)
        else:
            self._foreground = [union(codes) for codes in zip(*self._parts.values(), strict=True)]
        return super().group_questions(records, video)

    def further_info(self, info: Mapping, target: str, record: Mapping, video: SamaVideo) -> dict:
        names = target.split("+") if target else []
        return {"parts": [self._parts[name] for name in names], "foreground": self._foreground}

    def further_values(
        self, turn: BenchmarkTurn, found: Sequence[RLETrack], prediction: Prediction, preset: str
    ) -> dict[str, float]:
        number, size = prediction.num_frames, (prediction.height, prediction.width)

        def videos():
            """True and predicted masks, as iterators over frames."""
            if preset == PUBLISHED:
                return published_revos_masks(turn.info["parts"], found, number, size)
            return frame_masks.united(turn.targets, number, size), frame_masks.united(found, number, size)

        def robust(truth, guess, front):
            return robustness(truth[None], guess[None], front[None], preset)

        front = frame_masks.frames(turn.info["foreground"], number, size)
        return {
            "A": frame_masks.mean_over(lambda truth, guess: accuracy(truth[None], guess[None], preset), *videos()),
            "R": frame_masks.mean_over(robust, *videos(), front),
        }

    def summarise(self, samples: Sequence[Measures], tools: Tools) -> list[Score]:
        rated = [sample.facts for sample in samples if sample.facts]
        tables = {
            preset: revos_table([(facts["type_id"], facts[preset]) for facts in rated], preset) for preset in PRESETS
        }
        counts = {name: sum(facts["type_id"] == kind for facts in rated) for kind, name in REVOS_GROUPS.items()}
        counts["overall"] = sum(counts.values())
        table = [
            Score(
                metric,
                score.value,
                counts[part],
                part,
                tables[PUBLISHED][part][metric].value,
                reason=score.reason or "",
            )
            for part in ("overall", *REVOS_GROUPS.values())
            for metric, score in sorted(tables[CONSISTENT][part].items(), key=lambda item: item[0] != "J&F")
        ]
        return [*table, *self._no_target_rows(rated)]

    def _no_target_rows(self, rated: Sequence[Mapping]) -> list[Score]:
        """N-acc, T-acc over all expressions, and R over those that fit nothing, whatever their type. The published
        evaluation has no row for them."""
        unmatched = [facts for facts in rated if not facts["presence"]["has_target"]]
        if not unmatched:
            return []
        values, videos = [100 * facts[CONSISTENT]["R"] for facts in unmatched], [facts["video"] for facts in unmatched]
        row = mean_row("R", values, "expressions", NO_TARGET, clusters=videos)
        return [*presence_rows(_presences(rated), NO_TARGET), row]


class RefDavis17(ReferringVideo):
    """
    Ref-DAVIS17 with the protocol of davis2017: the masks of all objects of a video that one annotator describes are
    made disjoint, J and F are averaged over objects, and the result over the four annotators. The published code
    scores every expression on its own. Further rows leave out the first and the last frame, as in the semi-supervised
    task.
    """

    name: ClassVar[str] = "ref_davis17"
    splits: ClassVar[tuple[str, ...]] = ("valid",)
    ANNOTATORS: ClassVar[int] = 4

    def further_info(self, info: Mapping, target: str, record: Mapping, video: SamaVideo) -> dict:
        """Expression 4 * i + k is by annotator k about object i."""
        count, name = len(_infos(record)), info["expression_id"]
        if count % self.ANNOTATORS or not name.isdecimal() or int(name) >= count:
            raise BenchmarkError(
                f"{record['id']} has {count} expressions, among them {name!r}; expected numbers from 0 on, "
                f"{self.ANNOTATORS} for each object."
            )
        number, annotator = divmod(int(name), self.ANNOTATORS)
        siblings = {
            one.get("obj_id") for one in _infos(record) if int(one["expression_id"]) // self.ANNOTATORS == number
        }
        if len(siblings) > 1:
            raise BenchmarkError(
                f"{record['id']}: the expressions of object {number} name different objects: {siblings}."
            )
        return {"annotator": annotator, "object": number}

    def score(
        self,
        predictions: Iterable[Prediction],
        tools: Tools | None = None,
        measured: Mapping[str, Measures] | None = None,
    ) -> Scores:
        """As in [`Benchmark`]. The questions of `measured` predictions are built again, because making masks disjoint
        needs all objects of a video at once; their measures are not computed again."""
        samples, by_annotator = [], {}
        for question, prediction in self.paired(predictions):
            sample = (measured or {}).get(question.id) or self.measured(question, prediction)
            samples.append(sample)
            key = question.group, question.turns[0].info["annotator"]
            by_annotator.setdefault(key, []).append((question, prediction, sample))
        for (_, annotator), entries in by_annotator.items():
            self._measure_disjoint(annotator, sorted(entries, key=lambda entry: entry[0].turns[0].info["object"]))
        return Scores(self.summarise(samples, tools or Tools()), samples)

    def _measure_disjoint(self, annotator: int, entries: list[tuple[Question, Prediction, Measures]]) -> None:
        """Adds J and F of the disjoint masks to the facts of the samples of one video and annotator."""
        size, number = (entries[0][1].height, entries[0][1].width), entries[0][1].num_frames
        answers = [prediction.turns[0].objects for _, prediction, _ in entries]
        truths = [frame_masks.united(question.turns[0].targets, number, size) for question, _, _ in entries]
        guesses = [frame_masks.united([item.masks for item in objects], number, size) for objects in answers]
        confidences, each = [_confidence(objects) for objects in answers], [[] for _ in entries]
        for true, found in zip(zip(*truths, strict=True), zip(*guesses, strict=True), strict=True):
            for values, *pair in zip(each, true, disjoint_masks(found, confidences), strict=True):
                values.append(frame_masks.frame_jf(*pair))
        for (_, _, sample), values in zip(entries, each, strict=True):
            inner = _jf(values[1:-1]) if len(values) > 2 else None
            sample.facts |= {"annotator": annotator, "merged": _jf(values), "inner": inner}

    def summarise(self, samples: Sequence[Measures], tools: Tools) -> list[Score]:
        rated = [sample.facts for sample in samples if sample.facts]
        rows = []
        for key, part in (("merged", "all"), ("inner", "without first and last frame")):
            by_annotator: dict[int, list] = {}
            for facts in rated:
                if facts[key] is not None:
                    by_annotator.setdefault(facts["annotator"], []).append({**facts, "consistent": facts[key]})
            found = [jf_rows(group, part) for group in by_annotator.values()]
            count = sum(map(len, by_annotator.values()))
            for position, name in enumerate(("J&F", "J", "F")):
                row = mean_row(name, [group[position].value for group in found], "annotators", part=part)
                row.count = count
                rows.append(row)
        for row, single in zip(rows, jf_rows(rated, "all"), strict=False):
            row.published = single.published
        return rows


def disjoint_masks(masks: Sequence[np.ndarray], confidences: Sequence[float | None]) -> list[np.ndarray]:
    """
    The masks of one frame without overlap. A pixel in several masks goes to the object with the highest confidence,
    and on a tie, or if confidences are missing, to the first of them.

    Args:
        masks (sequence of `np.ndarray`): Bool arrays of shape `(height, width)`.
        confidences (sequence of `float` or `None`): One per object.
    """
    known = all(value is not None for value in confidences)
    order = sorted(range(len(masks)), key=lambda index: -confidences[index] if known else 0)
    taken, shared = np.zeros_like(masks[0]), list(masks)
    for index in order:
        shared[index] = masks[index] & ~taken
        taken = taken | masks[index]
    return shared


def jf_rows(facts: Sequence[Mapping], part: str, reason: str = "") -> list[Score]:
    """
    Rows of J&F, J and F in percent.

    Args:
        facts (sequence of `dict`): Of each expression "consistent" and "published" with J and F, or `None`, and its
            "video": the confidence intervals treat expressions about one video as correlated.
        part, reason (`str`): Of the rows.
    """

    def percent(preset: str, name: str) -> list[float | None]:
        rated = [one[preset] and (one[preset] | {"J&F": (one[preset]["J"] + one[preset]["F"]) / 2}) for one in facts]
        return [one and 100 * one[name] for one in rated]

    videos = [one["video"] for one in facts]
    return [
        mean_row(name, percent("consistent", name), "expressions", part, percent("published", name), reason, videos)
        for name in ("J&F", "J", "F")
    ]


def _jf(values: Sequence[tuple[float, float]]) -> dict[str, float]:
    j, f = np.mean(values, axis=0)
    return {"J": float(j), "F": float(f)}


def _confidence(objects: Sequence) -> float | None:
    scores = [item.score for item in objects]
    return None if None in scores else max(scores, default=0.0)


def _target(answer: Mapping) -> str:
    """The name of the object of an answer; "" if the expression fits nothing."""
    return next(iter(answer["content"][0]["objects"]), "")


def _presences(rated: Sequence[Mapping]) -> list[Presence]:
    return [Presence(**facts["presence"]) for facts in rated]


def _infos(record: Mapping) -> list[dict]:
    return [message["info"] for message in record["messages"] if message["role"] == "user"]


REFERRING_VIDEO: dict[str, type[Benchmark]] = {kind.name: kind for kind in (MeViS, RefYoutubeVOS, RefDavis17, ReVOS)}
