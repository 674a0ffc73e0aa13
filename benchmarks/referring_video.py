"""
Referring segmentation in videos: MeViS, Ref-YouTube-VOS, Ref-DAVIS17 and ReVOS. Protocols: evaluation spec 4.

One question an expression; its answer's masks are compared with the truth frame by frame (J and F), all frames count,
the benchmark's value is the mean over expressions, in percent. If an answer holds several [SEG]s, their union counts;
the release takes the first. An answer without [SEG] is an empty mask everywhere.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

import numpy as np

from sama.data.masks import union
from sama.data.wording import TEMPLATES
from sama.metrics.jf import REVOS_GROUPS, accuracy, revos_table, robustness
from sama.metrics.values import FIXED, RELEASE
from sama.video_sama import SamaVideo

from . import frame_masks
from .benchmark import Benchmark, BenchmarkError, Measures, Prediction, Question, Score, Scores, Tools, Track, Turn
from .from_catalogue import CatalogueBenchmark
from .from_records import fitted, record_turns
from .rows import mean_row


ON_SERVER = "only the challenge server has the masks of this split: write a submission"


class ReferringVideo(CatalogueBenchmark):
    """What the four have in common."""

    version: ClassVar[int] = 1
    max_new_tokens: ClassVar[int] = 2048
    headline: ClassVar[str] = "J"

    def question_ids(self, records: list[dict]) -> list[str]:
        return [f"{self.local_name(record)}/{info['expression_id']}" for record in records for info in _infos(record)]

    def group_questions(self, records: list[dict], video: SamaVideo) -> list[Question]:
        (record,) = records
        turns, names = record_turns(record, video, self.source.lookup), self.question_ids(records)
        answers = [message["content"][0]["objects"][0] for message in record["messages"] if message["role"] != "user"]
        return [
            Question(name, self.group_of(record), [self.turn(turn, target, record, video)], layout=self.layout)
            for name, turn, target in zip(names, turns, answers or [""] * len(turns), strict=True)
        ]

    def turn(self, turn: Turn, target: str, record: Mapping, video: SamaVideo) -> Turn:
        """The question as this benchmark asks it; `target` names the object that is meant, "3+4" two of them."""
        phrase = turn.info["expression"]
        if "?" in phrase:  # a question already
            text = phrase
        else:
            tidy = phrase if self.preset == "published" else phrase.replace(".", "").strip().lower()
            text = TEMPLATES["segment_video_bench"][0].format(tidy)
        info = {**turn.info, **self.known(turn.info, target, record, video)}
        return Turn(text, (), turn.reference, turn.targets, info)

    def known(self, info: Mapping, target: str, record: Mapping, video: SamaVideo) -> dict:
        """What `measure` needs to know besides the true masks."""
        return {}

    def measure(self, question: Question, prediction: Prediction) -> Measures:
        turn, found = question.turns[0], [item.masks for item in prediction.turns[0].objects]
        measures = Measures(question.id, question.group, num_frames=prediction.num_frames, num_objects=1)
        if not turn.targets:
            return measures
        frame_masks.check_shape(question, prediction, turn.targets)
        fixed = self.values(turn, found, prediction)
        # More than one [SEG] is rare: nothing is computed twice without need
        release = self.values(turn, found[:1], prediction) if len(found) > 1 else fixed
        fixed, release = (
            values | self.further_values(turn, tracks, prediction, mode)
            for values, tracks, mode in ((fixed, found, FIXED), (release, found[:1], RELEASE))
        )
        about = {"type_id": turn.info.get("type_id"), "video": question.group}
        measures.facts = {"fixed": fixed, "published": release, **about}
        measures.value, measures.ious = fixed["J"], [fixed["J"]]
        return measures

    def values(self, turn: Turn, found: Sequence[Track], prediction: Prediction) -> dict[str, float]:
        """J and F as means over frames, each in [0, 1]."""
        size = (prediction.height, prediction.width)
        each = frame_masks.track_jf(
            frame_masks.united(turn.targets, prediction.num_frames, size),
            frame_masks.united(found, prediction.num_frames, size),
        )
        j, f = np.mean(each, axis=0)
        return {"J": float(j), "F": float(f)}

    def further_values(
        self, turn: Turn, found: Sequence[Track], prediction: Prediction, mode: str
    ) -> dict[str, float]:
        """What a benchmark measures besides."""
        return {}

    def running_value(self, question: Question, prediction: Prediction) -> float | None:
        targets = question.turns[0].targets
        if not targets:
            return None
        size, found = (prediction.height, prediction.width), [item.masks for item in prediction.turns[0].objects]
        both = (frame_masks.united(some, prediction.num_frames, size) for some in (targets, found))
        return frame_masks.mean_over(frame_masks.region_similarity, *both)

    def summarise(self, samples: Sequence[Measures], tools: Tools) -> list[Score]:
        reason = "" if "masks" in self.source.entry.files else ON_SERVER
        return jf_rows([sample.facts for sample in samples if sample.facts], "all", reason)


class MeViS(ReferringVideo):
    """MeViS; the masks of `valid` are on the server, those of `valid_u` are public."""

    name: ClassVar[str] = "mevis"
    splits: ClassVar[tuple[str, ...]] = ("valid_u", "valid")


class RefYoutubeVOS(ReferringVideo):
    """Ref-YouTube-VOS; scored here too if a file of masks lies where the catalogue says."""

    name: ClassVar[str] = "ref_youtube_vos"
    splits: ClassVar[tuple[str, ...]] = ("valid",)
    spare_files: ClassVar[tuple[str, ...]] = ("masks",)


class ReVOS(ReferringVideo):
    """ReVOS: J, F, and in percent the share of right pixels (A) and of foreground that is not hit wrongly (R)."""

    name: ClassVar[str] = "revos"
    splits: ClassVar[tuple[str, ...]] = ("valid",)
    spare_files: ClassVar[tuple[str, ...]] = ("foreground_masks",)

    def group_questions(self, records: list[dict], video: SamaVideo) -> list[Question]:
        (record,), lookup = records, self.source.lookup
        single = {name: item for name, item in record["objects"].items() if "union" not in item}
        self._parts = {name: fitted(lookup(item["store"], item["key"]), video) for name, item in single.items()}
        if "foreground_masks" in self.source.masks:
            self._foreground = fitted(lookup("foreground_masks", self.group_of(record)), video)
        else:
            self._foreground = [union(codes) for codes in zip(*self._parts.values(), strict=True)]
        return super().group_questions(records, video)

    def known(self, info: Mapping, target: str, record: Mapping, video: SamaVideo) -> dict:
        return {"parts": [self._parts[name] for name in target.split("+")], "foreground": self._foreground}

    def further_values(
        self, turn: Turn, found: Sequence[Track], prediction: Prediction, mode: str
    ) -> dict[str, float]:
        number, size = prediction.num_frames, (prediction.height, prediction.width)

        def videos():
            # The release compares pictures of 0 and 255 with the sum of an expression's objects
            guesses = frame_masks.united(found, number, size)
            if mode == RELEASE:
                return frame_masks.summed(turn.info["parts"], number, size), (mask * np.uint8(255) for mask in guesses)
            return frame_masks.united(turn.targets, number, size), guesses

        def robust(truth, guess, front):
            return robustness(truth[None], guess[None], front[None], mode)

        front = frame_masks.frames(turn.info["foreground"], number, size)
        return {
            "A": frame_masks.mean_over(lambda truth, guess: accuracy(truth[None], guess[None], mode), *videos()),
            "R": frame_masks.mean_over(robust, *videos(), front),
        }

    def summarise(self, samples: Sequence[Measures], tools: Tools) -> list[Score]:
        rated = [sample.facts for sample in samples if sample.facts]
        tables = {
            mode: revos_table([(facts["type_id"], facts[mode]) for facts in rated], mode)
            for mode in ("fixed", RELEASE)
        }
        counts = {name: sum(facts["type_id"] == kind for facts in rated) for kind, name in REVOS_GROUPS.items()}
        counts["overall"] = sum(counts.values())
        return [
            Score(
                metric, score.value, counts[part], part, tables[RELEASE][part][metric].value, reason=score.reason or ""
            )
            for part in ("overall", *REVOS_GROUPS.values())
            for metric, score in sorted(tables["fixed"][part].items(), key=lambda item: item[0] != "J&F")
        ]


class RefDavis17(ReferringVideo):
    """
    Ref-DAVIS17 by the protocol of davis2017: the objects of a video that one annotator describes share the pixels of a
    frame, J and F are averaged over objects, and the result over the four annotators. The release takes each
    expression by itself. A row without the first and the last frame, as in the semi-supervised task, stands beside.
    """

    name: ClassVar[str] = "ref_davis17"
    splits: ClassVar[tuple[str, ...]] = ("valid",)
    ANNOTATORS: ClassVar[int] = 4

    def known(self, info: Mapping, target: str, record: Mapping, video: SamaVideo) -> dict:
        """Expression 4 * i + k is what annotator k writes about object i."""
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
            raise BenchmarkError(f"{record['id']}: the four expressions of object {number} are about {siblings}.")
        return {"annotator": annotator, "object": number}

    def score(self, predictions: Iterable[Prediction], tools: Tools | None = None) -> Scores:
        samples, shared = [], {}
        for question, prediction in self.paired(predictions):
            samples.append(self.measure(question, prediction))
            key = question.group, question.turns[0].info["annotator"]
            shared.setdefault(key, []).append((question, prediction, samples[-1]))
        for (_, annotator), entries in shared.items():
            self._merge(annotator, sorted(entries, key=lambda entry: entry[0].turns[0].info["object"]))
        return Scores(self.summarise(samples, tools or Tools()), samples)

    def _merge(self, annotator: int, entries: list[tuple[Question, Prediction, Measures]]) -> None:
        """Add to the facts of an annotator's samples of a video what their masks are worth once they share pixels."""
        size, number = (entries[0][1].height, entries[0][1].width), entries[0][1].num_frames
        answers = [prediction.turns[0].objects for _, prediction, _ in entries]
        truths = [frame_masks.united(question.turns[0].targets, number, size) for question, _, _ in entries]
        guesses = [frame_masks.united([item.masks for item in objects], number, size) for objects in answers]
        confidences, each = [_confidence(objects) for objects in answers], [[] for _ in entries]
        for true, found in zip(zip(*truths, strict=True), zip(*guesses, strict=True), strict=True):
            for values, *pair in zip(each, true, share_pixels(found, confidences), strict=True):
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
                    by_annotator.setdefault(facts["annotator"], []).append({**facts, "fixed": facts[key]})
            found = [jf_rows(group, part) for group in by_annotator.values()]
            count = sum(map(len, by_annotator.values()))
            for position, name in enumerate(("J&F", "J", "F")):
                row = mean_row(name, [group[position].value for group in found], "annotators", part=part)
                row.count = count
                rows.append(row)
        for row, single in zip(rows, jf_rows(rated, "all"), strict=False):
            row.published = single.published
        return rows


def share_pixels(masks: Sequence[np.ndarray], confidences: Sequence[float | None]) -> list[np.ndarray]:
    """
    Masks of one frame of which no pixel is in two: it goes to the object of which the model is surest, of equally sure
    ones, or where it does not say, to the first.

    Args:
        masks (sequence of `np.ndarray`): Bool, of shape `(height, width)`.
        confidences (sequence of `float` or `None`): Of each object.
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
        facts (sequence of `dict`): "fixed" and "published" of each expression, J and F or `None`, and its
            "video": expressions about one video are right or wrong together, which the intervals know.
        part, reason (`str`): Of the rows.
    """

    def percent(mode: str, name: str) -> list[float | None]:
        rated = [one[mode] and (one[mode] | {"J&F": (one[mode]["J"] + one[mode]["F"]) / 2}) for one in facts]
        return [one and 100 * one[name] for one in rated]

    videos = [one["video"] for one in facts]
    return [
        mean_row(name, percent("fixed", name), "expressions", part, percent("published", name), reason, videos)
        for name in ("J&F", "J", "F")
    ]


def _jf(values: Sequence[tuple[float, float]]) -> dict[str, float]:
    j, f = np.mean(values, axis=0)
    return {"J": float(j), "F": float(f)}


def _confidence(objects: Sequence) -> float | None:
    scores = [item.score for item in objects]
    return None if None in scores else max(scores, default=0.0)


def _infos(record: Mapping) -> list[dict]:
    return [message["info"] for message in record["messages"] if message["role"] == "user"]


REFERRING_VIDEO: dict[str, type[Benchmark]] = {kind.name: kind for kind in (MeViS, RefYoutubeVOS, RefDavis17, ReVOS)}
