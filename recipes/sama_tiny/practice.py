"""The clips and dialogues of toy world for stages 2 and 3: questions that are learned last are more frequent than in
the benchmark."""

from collections import Counter
from collections.abc import Callable
from functools import partial

import numpy as np

from sama.toy_world import questions
from sama.toy_world.clip import Clip, ClipConstraints, ToySettings, propose_clips, split_pairs
from sama.toy_world.motion import SOLO_MOTIONS
from sama.toy_world.questions import Scene, ToyTurn, ask_count
from sama.toy_world.several import ask_all, ask_identities
from sama.toy_world.shapes import COLOURS, SHAPES
from sama.toy_world.tasks import MOST_COUNTED, QA_KINDS, TASKS, conversation, draw_number, draw_pairs, shuffled
from sama.toy_world.world import ToyWorld


TASK_WEIGHTS = {
    "dialogue": 10, "refer_look": 1.2, "refer_motion": 2.5, "description": 0.2, "video_qa": 1, "caption": 0.5,
    "still": 0.3, "no_target": 2.5,
}  # fmt: skip
VIDEO_TASK_WEIGHTS = {"dialogue": 6, "refer_look": 1, "refer_motion": 3, "no_target": 0.5}
# Weights of kinds of questions: of general dialogues, and of those that compare two objects, or an object with a
# statement. Where such questions are few, they are not learned at all (docs/log.md)
GENERAL = {
    questions.ask_motion: 2, questions.ask_check_motion: 6, questions.ask_order: 2, questions.ask_larger: 2.5,
    questions.ask_mover_colour: 3, questions.ask_mover_shape: 4, questions.ask_hides_behind: 2,
    questions.ask_beside: 0.8, questions.ask_above: 0.8, questions.ask_at_start: 1, questions.ask_at_end: 1,
    questions.ask_colour: 0.3, questions.ask_shape: 0.3, questions.ask_size: 0.3, questions.ask_identity: 0.5,
    ask_identities: 1,
}  # fmt: skip
COMPARISONS = {
    questions.ask_check_motion: 5, questions.ask_at_start: 6, questions.ask_at_end: 6, questions.ask_order: 3,
    questions.ask_hides_behind: 8, questions.ask_motion: 0.5, questions.ask_larger: 0.5,
}  # fmt: skip
# Share of dialogues that open with a count, and with a question about order
GENERAL_OPENINGS, COMPARISON_OPENINGS = (0.25, 0.15), (0.1, 0.4)
COMPARISON_SHARE, COUNT_SHARE = 0.4, 0.25  # of the task "dialogue"
# Of the other dialogues, the share whose questions are shuffled: those that count and compare moments come first
# otherwise, and are not learned elsewhere (docs/log.md)
SHUFFLED_SHARE = 0.5
# Least and most turns of a dialogue: the frames of a clip cost the same however many turns it has
TURNS, QA_TURNS = (1, 6), (1, 4)
WITH_REGIONS_AND_MASKS, WITH_MASKS = (False, True, True), (False, False, True)
# Share of clips in which motions are drawn by weight, and of those whose objects are much alike
HARD_MOTION_SHARE, ALIKE_SHARE = 0.4, 0.3
# Share of the clips with counts in which objects are much alike; the others are drawn like those of general dialogues.
# With two motions at most in all of them, objects of other clips are counted too high (docs/log.md)
COUNTED_ALIKE_SHARE = 0.5
# Share of the clips with motions by weight in which the first object has a neighbour to hide behind; in half of these
# it does hide
OCCLUDER_SHARE = 0.6
MOTION_WEIGHTS = {"stop": 4.0, "zigzag": 2.0}  # 1 for the others; a stop is hard to tell from a straight movement


def draw_weighted_motions(number: int, rng: np.random.Generator, pool: tuple[str, ...] = SOLO_MOTIONS) -> list[str]:
    """Random motions of `number` objects, hard ones more often."""
    weights = np.array([MOTION_WEIGHTS.get(motion, 1.0) for motion in pool])
    return [pool[i] for i in rng.choice(len(pool), number, p=weights / weights.sum())]


def draw_alike(number: int, rng: np.random.Generator, split: str) -> ClipConstraints:
    """Constraints of a clip with two motions at most, and with two colours or two shapes."""
    motions = draw_weighted_motions(number, rng, tuple(dict.fromkeys(draw_weighted_motions(2, rng))))
    place, values = ((0, tuple(COLOURS)), (1, SHAPES))[rng.integers(2)]
    chosen = {values[i] for i in rng.choice(len(values), 2, replace=False)}
    pool = [pair for pair in split_pairs(split) if pair[place] in chosen]
    return ClipConstraints(pairs=draw_pairs(pool, number, rng), motions=motions)


def draw_constraints(number: int, rng: np.random.Generator, split: str) -> ClipConstraints:
    """Constraints of a clip of one of three kinds: as in the benchmark, with hard motions, or with objects that are
    much alike."""
    chance = rng.random()
    if chance < HARD_MOTION_SHARE:
        motions, occluder = draw_weighted_motions(number, rng), number > 1 and rng.random() < OCCLUDER_SHARE
        if occluder and rng.random() < 0.5:
            motions[0] = "hide"
        return ClipConstraints(motions=motions, occluder=occluder)
    return draw_alike(number, rng, split) if chance < HARD_MOTION_SHARE + ALIKE_SHARE else ClipConstraints()


def draw_counted(number: int, rng: np.random.Generator, split: str) -> ClipConstraints:
    """Constraints of a clip whose objects are counted: of much alike objects, or as of general dialogues."""
    return (draw_alike if rng.random() < COUNTED_ALIKE_SHARE else draw_constraints)(number, rng, split)


def count_of(aspect: str, segment: bool = False) -> Callable[[Scene], ToyTurn | None]:
    """A question that counts by colour, shape or motion ("all": all objects), or with `segment` a request to segment
    all of them. The number is drawn first, of those that the clip allows, and larger ones more often."""
    values = {"colour": tuple(COLOURS), "shape": SHAPES, "motion": SOLO_MOTIONS, "all": ("",)}[aspect]

    def ask(scene: Scene) -> ToyTurn | None:
        known = {name for _, name in scene.disclosed}
        if known and (aspect == "all" or aspect in known):
            return None
        found = Counter("" if aspect == "all" else getattr(one, aspect) for one in scene.objects)
        most = ToySettings().things[1] if aspect == "all" else MOST_COUNTED
        numbers = sorted({found[value] for value in values if found[value] <= most})
        weights = np.maximum(numbers, 0.5)
        number = scene.rng.choice(numbers, p=weights / weights.sum())
        value = scene.pick([value for value in values if found[value] == number])
        return ask_all(scene, aspect, value) if segment else ask_count(scene, aspect, value, most)

    return ask


COUNTS = {
    count_of("colour"): 1, count_of("shape"): 1, count_of("motion"): 3, count_of("all"): 0.3,
    count_of("colour", segment=True): 0.3, count_of("shape", segment=True): 0.3, count_of("motion", segment=True): 1,
}  # fmt: skip


def practice_dialogue(settings: ToySettings, rng: np.random.Generator) -> tuple[Clip, list[ToyTurn]]:
    """The task "dialogue" with other kinds of questions, more turns and harder clips."""
    constrain, constrain_counted = (partial(draw, split=settings.split) for draw in (draw_constraints, draw_counted))
    fixed, chance = (settings, rng), rng.random()
    if chance < COUNT_SHARE:
        return conversation(*fixed, COUNTS, TURNS, WITH_REGIONS_AND_MASKS, (0, 0), constrain_counted)
    if chance < COUNT_SHARE + COMPARISON_SHARE:
        return conversation(*fixed, COMPARISONS, TURNS, WITH_REGIONS_AND_MASKS, COMPARISON_OPENINGS, constrain)
    clip, turns = conversation(*fixed, GENERAL, TURNS, WITH_REGIONS_AND_MASKS, GENERAL_OPENINGS, constrain)
    return clip, shuffled(turns, rng) if rng.random() < SHUFFLED_SHARE else turns


def practice_video_qa(settings: ToySettings, rng: np.random.Generator) -> tuple[Clip, list[ToyTurn]]:
    """The task "video_qa" with masks: people also name an object instead of pointing at it, and nothing in such a
    question says whether masks are wanted."""
    return conversation(settings, rng, QA_KINDS, QA_TURNS, WITH_MASKS)


def practice_clip(settings: ToySettings, rng: np.random.Generator) -> tuple[Clip, list[ToyTurn]]:
    """A clip without turns."""
    number, num_frames = draw_number(settings.things, rng), draw_number(settings.frames, rng)
    constraints = draw_constraints(number, rng, settings.split)
    return next(propose_clips(settings, constraints, number, num_frames, rng)), []


PRACTICE_TASKS = {"dialogue": practice_dialogue, "video_qa": practice_video_qa}


def practice_dialogues(seed: int) -> ToyWorld:
    """The dialogues of stage 3."""
    return ToyWorld({"split": "train", "tasks": TASK_WEIGHTS}, seed, TASKS | PRACTICE_TASKS)


def practice_clips(seed: int) -> ToyWorld:
    """The clips of stage 2."""
    return ToyWorld({"split": "train", "tasks": VIDEO_TASK_WEIGHTS}, seed, TASKS | {"dialogue": practice_clip})
