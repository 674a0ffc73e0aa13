"""
The toy world benchmark: held-out generated clips, scored by the text and the masks of the answers.

    grounded dialogue   questions with regions, answers with masks, the model's own answers as history
    referring           an object described by its appearance, or one of two twins described by its motion alone
    no target           an object described by its appearance or motion; half of the descriptions fit nothing

"val" has clips from the training distribution, "unseen" has pairs of colour and shape that training never shows;
"no_target" has clips like those of "val" and the third task alone, "long" has dialogues of five turns alone, whose
questions come in random order, so that an earlier answer may disclose what a later question asks; and clips with many
objects have five questions more often. Its rows therefore state no chance. A text answer is correct if it contains the
expected word and no other one of the question's choices.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from sama.metrics.answers import named_choices
from sama.metrics.intervals import bootstrap_mean, wilson
from sama.metrics.iou import PairCounts, count_pair, giou, greedy_pairs, miou
from sama.metrics.no_target import Presence
from sama.metrics.recall import IOU_THRESHOLD
from sama.metrics.values import mean
from sama.prompts_sama import parse_tagged_text
from sama.toy_world.backgrounds import check_background
from sama.toy_world.clip import ToySettings
from sama.toy_world.world import ToySample, ToyWorld
from sama.video_sama import SamaVideo

from .benchmark import (
    Benchmark,
    BenchmarkError,
    BenchmarkTurn,
    Measures,
    PredictedTurn,
    Prediction,
    Question,
    RLETrack,
    Score,
    Tools,
)
from .frame_masks import any_pixel, are_touching, united
from .from_records import no_store, record_turns
from .rows import presence_rows
from .tracks import track_overlaps


TASKS = {"dialogue": 3, "refer_look": 1, "refer_motion": 1}
NO_TARGET, LONG = "no_target", "long"  # splits with one task
TASK_OF_SPLIT = {NO_TARGET: "no_target", LONG: "long_dialogue"}
MAIN_KINDS = ("colour", "size", "shape", "motion")
DIALOGUE, LOOK, MOTION = "grounded dialogue", "referring by look", "referring by motion only"
TARGET_OR_NONE = "referring, target or none"


class ToyWorldBenchmark(Benchmark):
    """One question per clip: its dialogue. The same seed, split and index give the same clip."""

    name = "toy_world"
    # Earlier versions:
    # 5: "long" had two fewer dialogues.
    # 4: An object that appears was not among those that stand still.
    # 3: Other wordings; answers to counts by motion named no object.
    # 2: Check questions were answered "Yes, it moves left."; several objects were in no fixed order.
    # 1: Some masks were random.
    version = 6
    splits = ("val", "unseen", NO_TARGET, LONG)
    # The sources of the catalogue have the seeds 0, 1 and 2, so that training and benchmark share no clips
    options = {"clips": 300, "seed": 7, "size": 64, "background": "texture"}
    max_new_tokens = 64

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        for name, least in (("clips", 1), ("seed", 0)):
            if self.chosen[name] < least:
                raise BenchmarkError(
                    f"The option {name} of toy_world is {self.chosen[name]}, expected {least} or more."
                )
        size, split, tasks = self.chosen["size"], self.split, TASKS
        if split in TASK_OF_SPLIT:
            split, tasks = "val", {TASK_OF_SPLIT[split]: 1}
        try:
            settings = ToySettings(
                height=size, width=size, split=split, background=self.chosen["background"], tasks=tasks
            )
            check_background(settings.background)
        except (ValueError, ImportError) as error:
            raise BenchmarkError(f"toy_world cannot be drawn: {error}.") from error
        self.world = ToyWorld(settings, self.chosen["seed"])
        self._drawn: tuple[str, ToySample] | None = None

    def outline(self) -> dict[str, list[str]]:
        """Group -> its only question, with the same name."""
        return {str(index): [str(index)] for index in range(self.chosen["clips"])}

    def open(self, group: str) -> SamaVideo:
        """The rendered clip."""
        return SamaVideo.open(self._sample(group).frames)

    def questions(self, group: str) -> list[Question]:
        """The dialogue about a clip, with all its turns."""
        sample = self._sample(group)
        turns = record_turns(sample.record, self.open(group), no_store)
        about = sample.record["video"]["toy"]
        answers = [message for message in sample.record["messages"] if message["role"] == "assistant"]
        annotated = [
            replace(turn, info={**turn.info, "task": about["task"], **object_facts(sample, answer, about)})
            for turn, answer in zip(turns, answers, strict=True)
        ]
        return [Question(id=group, group=group, turns=annotated)]

    def _sample(self, group: str) -> ToySample:
        if self._drawn is None or self._drawn[0] != group:
            self._drawn = group, self.world[int(group)]
        return self._drawn[1]

    def measure(self, question: Question, prediction: Prediction) -> Measures:
        """Correctness of the text and IoU of the objects of each turn."""
        turns = [
            measure_turn(turn, answer, prediction)
            for turn, answer in zip(question.turns, prediction.turns, strict=True)
        ]
        ious = [iou for turn in turns for iou in turn["ious"]]
        turn_values = [turn["miou"] for turn in turns]
        return Measures(
            question=question.id,
            group=question.group,
            value=mean(turn_values, "turns").value,
            ious=ious,
            num_frames=prediction.num_frames,
            num_objects=len(ious),
            turn_values=turn_values,
            facts={"task": question.turns[0].info["task"], "turns": turns},
        )

    def summarise(self, samples: Sequence[Measures], tools: Tools) -> list[Score]:
        """Scores of dialogues (masks, then text by kind and by turn), of referring by look and by motion only; of the
        split "long" those of dialogues alone; of "no_target" those of referring to something that may not be there."""
        turns = defaultdict(list)
        for sample in samples:
            for number, turn in enumerate(sample.facts["turns"], start=1):
                turns[sample.facts["task"]].append({**turn, "number": number, "clip": sample.group})
        if self.split == NO_TARGET:
            return _no_target_rows(turns[NO_TARGET])
        if self.split == LONG:
            # No chance: see the top of this file
            return _dialogue_rows([turn | {"chance": None} for turn in turns[TASK_OF_SPLIT[LONG]]])
        twins = turns["refer_motion"]
        return [
            *_dialogue_rows(turns["dialogue"]),
            *_mask_rows(LOOK, turns["refer_look"]),
            *_mask_rows(MOTION, twins),
            *_twin_rows(twins),
        ]


def object_facts(sample: ToySample, answer: Mapping, about: Mapping) -> dict:
    """For each target, whether it is first visible in the second half (`late`) and whether it reappears after full
    occlusion (`hidden`); and the masks of its twin, if any (`twin`), and whether the two touch (`touching`)."""
    names = [name for part in answer["content"] for name in part.get("objects", [])]
    seen = sample.masks.any(axis=(2, 3))
    half, events = seen.shape[1] / 2, about["events"]
    back = {
        event["thing"]
        for event in events
        if event["kind"] == "hidden" and seen[event["thing"], : event["first"]].any()
        and seen[event["thing"], event["last"] + 1 :].any()
    }  # fmt: skip
    facts = {
        "late": [bool(seen[int(name)].any() and seen[int(name)].argmax() >= half) for name in names],
        "hidden": [int(name) in back for name in names],
    }
    if about["task"] == "refer_motion":  # the twins are the first two objects
        facts["twin"] = sample.record["objects"][str(1 - int(names[0]))]["masks"]
        facts["touching"] = are_touching(sample.masks[0], sample.masks[1])
    return facts


def measure_turn(turn: BenchmarkTurn, answer: PredictedTurn, prediction: Prediction) -> dict:
    """
    Measures of one answer, serialisable as JSON: `kind`; `chance`; `right` (`None` for a question without choices);
    `ious` of the reference objects under greedy matching, 0 for missed ones; `miou` of the answer, which also counts
    surplus objects; `late` and `hidden` of the objects; `chosen`: whether the first mask overlaps more with the
    target than with its twin, and `touching`: whether the two touch; and of a question whose target may be missing its
    `presence` (has a target, anything predicted) and its `giou`: the IoU of all masks together, which is 1 if nothing
    fits and no pixel is predicted.
    """
    size = (prediction.height, prediction.width)
    found = [item.masks for item in answer.objects]
    matrix = track_overlaps(turn.targets, found, prediction.num_frames, size).ious()
    ious = [0.0] * len(turn.targets)
    for truth, guess in greedy_pairs(matrix):
        ious[truth] = float(matrix[truth, guess])
    chosen = touching = None
    if "twin" in turn.info:
        touching = turn.info["touching"]
        pair = [turn.targets[0], turn.info["twin"]]
        target, twin = track_overlaps(pair, found[:1], prediction.num_frames, size).ious().sum(axis=1)
        chosen = bool(target > twin)
    choices, mean_iou, presence = turn.info["choices"], miou(matrix), {}
    if turn.info.get("task") == NO_TARGET:
        presence = measure_presence(turn, found, prediction)
        mean_iou = presence["giou"] if turn.no_target else mean_iou
    return {
        "kind": turn.info["kind"],
        "right": is_right(answer.text, turn.info["answer"], choices) if choices else None,
        "chance": 1 / len(choices) if choices else None,
        "ious": ious,
        "miou": mean_iou,
        "late": turn.info["late"],
        "hidden": turn.info["hidden"],
        "chosen": chosen,
        "touching": touching,
        **presence,
    }


def measure_presence(turn: BenchmarkTurn, found: Sequence[RLETrack], prediction: Prediction) -> dict:
    """`presence` and `giou` of a question whose target may be missing, see [`measure_turn`]."""
    size = (prediction.height, prediction.width)
    masks = [united(tracks, prediction.num_frames, size) for tracks in (turn.targets, found)]
    counts = [count_pair(*pair)[:2] for pair in zip(*masks, strict=True)]
    whole = PairCounts(*map(sum, zip(*counts, strict=True)), answered=True)
    return {"presence": [not turn.no_target, any_pixel(found, size)], "giou": giou([whole]).value}


def is_right(answer: str, expected: str, choices: Iterable[str]) -> bool:
    """Whether the answer names the expected choice and no other one, as the reward `answer` of reinforcement does."""
    return named_choices(parse_tagged_text(answer)[0], choices) == [expected]


# Rows of the table


def _dialogue_rows(turns: Sequence[dict]) -> list[Score]:
    """Masks of dialogues, all and those of objects that are hard to find, and correctness of their text."""
    return [
        *_mask_rows(DIALOGUE, turns),
        _mask_mean("mask mIoU, several objects", DIALOGUE, [turn for turn in turns if len(turn["ious"]) > 1]),
        _iou_row("mask IoU, first seen in the second half", DIALOGUE, turns, "late"),
        _iou_row("mask IoU, through full occlusion", DIALOGUE, turns, "hidden"),
        *_word_rows(turns),
    ]


def _mask_rows(part: str, turns: Sequence[dict]) -> list[Score]:
    """mIoU over answers with masks, and recall over their reference objects."""
    ious = [iou for turn in turns for iou in turn["ious"]]
    return [
        _mask_mean("mask mIoU", part, turns),
        _share(f"recall at IoU {IOU_THRESHOLD}", part, [iou >= IOU_THRESHOLD for iou in ious]),
    ]


def _mask_mean(name: str, part: str, turns: Sequence[dict]) -> Score:
    """mIoU over answers with masks."""
    with_masks = [turn for turn in turns if turn["miou"] is not None]
    return _mean(name, part, [turn["miou"] for turn in with_masks], [turn["clip"] for turn in with_masks])


def _twin_rows(turns: Sequence[dict]) -> list[Score]:
    """Share of right choices between the twins: of all, and of those that touch or overlap in some frame."""
    name = "choice between the twins"
    touching = [turn for turn in turns if turn["touching"]]
    return [
        _share(name, MOTION, [turn["chosen"] for turn in turns], 0.5),
        _share(f"{name}, touching", MOTION, [turn["chosen"] for turn in touching], 0.5),
    ]


def _no_target_rows(turns: Sequence[dict]) -> list[Score]:
    """gIoU over all descriptions, N-acc, T-acc, and the mask rows of those with a target."""
    with_target = [turn for turn in turns if turn["presence"][0]]
    values = [turn["giou"] for turn in turns]
    return [
        _mean("gIoU", TARGET_OR_NONE, values, [turn["clip"] for turn in turns]),
        *presence_rows([Presence(*turn["presence"]) for turn in turns], TARGET_OR_NONE, scale=1),
        *_mask_rows(f"{TARGET_OR_NONE}: with target", with_target),
    ]


def _iou_row(name: str, part: str, turns: Sequence[dict], which: str) -> Score:
    """Mean IoU of the objects that are marked in the list `which`."""
    chosen = [
        (iou, turn["clip"])
        for turn in turns
        for iou, marked in zip(turn["ious"], turn[which], strict=True)
        if marked
    ]  # fmt: skip
    return _mean(name, part, [iou for iou, _ in chosen], [clip for _, clip in chosen])


def _word_rows(turns: Sequence[dict]) -> list[Score]:
    """Accuracy of answers with choices: overall, by kind, and by turn."""
    judged = [turn for turn in turns if turn["right"] is not None]
    others = sorted({turn["kind"] for turn in judged} - set(MAIN_KINDS))
    numbers = sorted({turn["number"] for turn in judged})

    def row(name: str, keep: Callable[[dict], bool]) -> Score:
        chosen = [turn for turn in judged if keep(turn)]
        chances = [turn["chance"] for turn in chosen if turn["chance"] is not None]
        chance = sum(chances) / len(chances) if chances else None
        return _share(name, "region questions", [turn["right"] for turn in chosen], chance)

    return [
        row("accuracy", lambda turn: True),
        *(row(f"accuracy, {kind}", lambda turn, kind=kind: turn["kind"] == kind) for kind in (*MAIN_KINDS, *others)),
        *(row(f"accuracy, turn {number}", lambda turn, number=number: turn["number"] == number) for number in numbers),
    ]


def _mean(name: str, part: str, values: Sequence[float], clips: Sequence[str]) -> Score:
    if not values:
        return Score(name, None, 0, part, reason="no such object was asked for")
    return Score(name, sum(values) / len(values), len(values), part, interval=bootstrap_mean(values, clips))


def _share(name: str, part: str, hits: Sequence[bool], chance: float | None = None) -> Score:
    if not hits:
        return Score(name, None, 0, part, reason="no such question was asked")
    return Score(name, sum(hits) / len(hits), len(hits), part, interval=wilson(sum(hits), len(hits)), chance=chance)
