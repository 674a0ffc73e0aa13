"""The tasks of toy world. Each one generates a suitable clip and the turns about it."""

from collections.abc import Callable, Sequence
from itertools import permutations
from typing import NamedTuple

import numpy as np

from .clip import Clip, ClipConstraints, NoClipError, ToySettings, propose_clips, split_pairs
from .motion import ALSO_SEEN_AS, KEY_EVENTS, MOTIONS, SOLO_MOTIONS, START_SIZES, draw_solo_motions
from .no_target import ask_refer_or_none
from .questions import (
    Scene,
    ToyTurn,
    ask_above,
    ask_at_end,
    ask_at_start,
    ask_beside,
    ask_check_motion,
    ask_colour,
    ask_count,
    ask_hides_behind,
    ask_identity,
    ask_larger,
    ask_motion,
    ask_mover_colour,
    ask_mover_shape,
    ask_order,
    ask_refer,
    ask_refer_motion,
    ask_shape,
    ask_size,
    full_name,
    in_reading_order,
)  # fmt: skip
from .shapes import COLOURS, SHAPES


MOST_COUNTED = 3
MOST_TRIES = 9  # descriptions drawn for up to three turns of the task no_target; some suit no object of the clip
LONG_TURNS = 5
OPENING_SHARES = (0.25, 0.15)  # share of dialogues that open with a count, and with a question about order
DIALOGUE_KINDS = {
    ask_motion: 3, ask_check_motion: 1, ask_colour: 1, ask_shape: 1, ask_size: 1, ask_identity: 1, ask_beside: 0.5,
    ask_above: 0.5, ask_larger: 1, ask_at_start: 1, ask_at_end: 1, ask_hides_behind: 2, ask_mover_colour: 1,
    ask_mover_shape: 1,
}  # fmt: skip
QA_KINDS = {
    ask_motion: 3, ask_check_motion: 1, ask_size: 1, ask_beside: 0.5, ask_above: 0.5, ask_larger: 1, ask_at_start: 1,
    ask_at_end: 1, ask_hides_behind: 1, ask_mover_colour: 2, ask_mover_shape: 2,
}  # fmt: skip
STILL_KINDS = {
    ask_colour: 1, ask_shape: 1, ask_size: 1, ask_identity: 1, ask_beside: 1, ask_above: 1, ask_larger: 1,
    ask_refer: 3,
}  # fmt: skip


class Count(NamedTuple):
    """Arguments of [`ask_count`]: how many objects have this value of this aspect."""

    aspect: str
    value: str
    most: int
    least: int = 0


def draw_number(bounds: tuple[int, int], rng: np.random.Generator) -> int:
    """A random integer between two bounds, both included."""
    return int(rng.integers(bounds[0], bounds[1] + 1))


def draw_pairs(pool: Sequence[tuple[str, str]], number: int, rng: np.random.Generator) -> list[tuple[str, str]]:
    """Different random pairs of colour and shape."""
    return [pool[i] for i in rng.choice(len(pool), number, replace=False)]


def shuffled(items: list, rng: np.random.Generator) -> list:
    """The items in random order."""
    return [items[i] for i in rng.permutation(len(items))]


def _plan_count(
    settings: ToySettings, number: int, still: bool, rng: np.random.Generator
) -> tuple[ClipConstraints, int, Count]:
    """Constraints, number of objects and question for counting; the count is drawn first, the objects follow."""
    aspect = ("all", "colour", "shape", "motion")[rng.integers(3 if still else 4)]
    if aspect == "all":
        return ClipConstraints(rest=still), number, Count("all", "", settings.things[1], settings.things[0])
    if aspect == "motion":
        value, most = SOLO_MOTIONS[rng.integers(len(SOLO_MOTIONS))], min(MOST_COUNTED, settings.things[1])
        count = int(rng.integers(most + 1))
        others = [motion for motion in SOLO_MOTIONS if value not in (motion, *ALSO_SEEN_AS.get(motion, ()))]
        number = max(number, count)
        motions = [value] * count + draw_solo_motions(number - count, rng, others)
        return ClipConstraints(motions=shuffled(motions, rng)), number, Count(aspect, value, most)
    place = ("colour", "shape").index(aspect)
    values = (tuple(COLOURS), SHAPES)[place]
    value = values[rng.integers(len(values))]
    chosen = [pair for pair in split_pairs(settings.split) if pair[place] == value]
    others = [pair for pair in split_pairs(settings.split) if pair[place] != value]
    most = min(MOST_COUNTED, len(chosen), settings.things[1])
    count = int(rng.integers(most + 1))
    number = max(number, count)
    pairs = draw_pairs(chosen, count, rng) + draw_pairs(others, number - count, rng)
    # An occluder would replace the appearance of an object, so motions without hiding are drawn here, too
    motions = None if still else draw_solo_motions(number, rng)
    return (
        ClipConstraints(pairs=shuffled(pairs, rng), motions=motions, rest=still),
        number,
        Count(aspect, value, most),
    )


def _plan_order(number: int, rng: np.random.Generator) -> tuple[ClipConstraints, int]:
    """Constraints with at least two objects that have a key moment, and the number of objects."""
    number = max(number, 2)
    motions = draw_solo_motions(2, rng, tuple(KEY_EVENTS)) + draw_solo_motions(number - 2, rng)
    return ClipConstraints(motions=shuffled(motions, rng)), number


def _talk(scene: Scene, kinds: dict, first: Callable | None, number: int) -> list[ToyTurn]:
    """Up to `number` turns: `first` if given (no turns at all if it fails), then kinds sampled by weight."""
    turns = []

    def add(ask: Callable) -> None:
        turn = ask(scene)
        if turn is not None and len(turns) < number:
            turns.append(turn)
            scene.disclosed |= turn.discloses

    if first is not None:
        add(first)
        if not turns:
            return []
    asks, weights = list(kinds), np.array(list(kinds.values()), dtype=float)
    for _ in range(2):
        for place in np.argsort(scene.rng.exponential(size=len(asks)) / weights):
            add(asks[place])
    return turns


def conversation(
    settings: ToySettings,
    rng: np.random.Generator,
    kinds: dict[Callable, float],
    bounds: tuple[int, int],
    mode: tuple[bool, bool, bool],
    opening_shares: tuple[float, float] = OPENING_SHARES,
    constrain: Callable[[int, np.random.Generator], ClipConstraints] | None = None,
) -> tuple[Clip, list[ToyTurn]]:
    """
    A clip and its turns.

    Args:
        settings (`ToySettings`), rng (`numpy.random.Generator`): Of the task.
        kinds (`dict[Callable, float]`): Weight of each kind of question.
        bounds (`(int, int)`): Least and most turns.
        mode (`(bool, bool, bool)`): Whether it is a still image, questions have regions, answers have masks.
        opening_shares (`(float, float)`): Share of dialogues that open with a count, and with a question about order.
        constrain (`Callable`, *optional*): The constraints of the other clips, given their number of objects.
    """
    (still, regions, masks), (count_share, order_share) = mode, opening_shares
    number = draw_number(settings.things, rng)
    num_frames = 1 if still else draw_number(settings.frames, rng)
    wanted, plan = draw_number(bounds, rng), rng.random()
    constraints, first = ClipConstraints(rest=still), None
    if plan < count_share:
        constraints, number, count = _plan_count(settings, number, still, rng)

        def first(scene):
            return ask_count(scene, *count)

    elif plan < count_share + order_share and not still and settings.things[1] > 1:
        constraints, number = _plan_order(number, rng)
        first = ask_order
    elif constrain is not None:
        constraints = constrain(number, rng)
    for clip in propose_clips(settings, constraints, number, num_frames, rng):
        turns = _talk(Scene(clip, rng, regions, masks), kinds, first, wanted)
        if len(turns) >= min(bounds[0], number):
            return clip, turns


def dialogue(settings: ToySettings, rng: np.random.Generator) -> tuple[Clip, list[ToyTurn]]:
    """Several turns with regions in the questions and masks in the answers."""
    return conversation(settings, rng, DIALOGUE_KINDS, settings.turns, (False, True, True))


def long_dialogue(settings: ToySettings, rng: np.random.Generator) -> tuple[Clip, list[ToyTurn]]:
    """Five turns with regions in the questions and masks in the answers, in random order. So a question that counts
    can come anywhere, and an earlier answer may disclose what a later question asks.

    Raises:
        NoClipError: if 30 conversations have fewer turns, for example because clips have one object only.
    """
    bounds = (LONG_TURNS, LONG_TURNS)
    for _ in range(30):
        try:
            clip, turns = conversation(settings, rng, DIALOGUE_KINDS, bounds, (False, True, True))
        except NoClipError:
            # Of three objects that all grow, to be counted, there is hardly anything else to ask
            continue
        if len(turns) == LONG_TURNS:
            return clip, shuffled(turns, rng)
    raise NoClipError(f"no clip with {LONG_TURNS} questions fits these settings: {settings}. Increase things")


def video_qa(settings: ToySettings, rng: np.random.Generator) -> tuple[Clip, list[ToyTurn]]:
    """One to three turns of plain text."""
    return conversation(settings, rng, QA_KINDS, (1, 3), (False, False, False))


def still(settings: ToySettings, rng: np.random.Generator) -> tuple[Clip, list[ToyTurn]]:
    """One to three turns about a still image, with regions and masks."""
    return conversation(settings, rng, STILL_KINDS, (1, 3), (True, True, True))


def refer_look(settings: ToySettings, rng: np.random.Generator) -> tuple[Clip, list[ToyTurn]]:
    """Segment objects described by their appearance; usually a distractor shares one attribute."""
    number, num_frames = max(2, draw_number(settings.things, rng)), draw_number(settings.frames, rng)
    pool = split_pairs(settings.split)
    first = pool[rng.integers(len(pool))]
    rivals = {
        "colour": [pair for pair in pool if pair[0] == first[0] and pair != first],
        "shape": [pair for pair in pool if pair[1] == first[1] and pair != first],
        "size": [first],
        "none": [pair for pair in pool if pair != first],
    }
    kind = tuple(rivals)[rng.integers(len(rivals))]
    if not rivals[kind]:
        kind = "none"
    second = rivals[kind][rng.integers(len(rivals[kind]))]
    others = draw_pairs([pair for pair in pool if pair not in (first, second)], number - 2, rng)
    constraints = ClipConstraints(pairs=[first, second, *others], other_size=kind == "size")
    steady = [motion for motion in SOLO_MOTIONS if motion not in START_SIZES]
    constraints.motions = draw_solo_motions(2, rng, steady) + draw_solo_motions(number - 2, rng)
    wanted = int(rng.integers(1, 4))
    for clip in propose_clips(settings, constraints, number, num_frames, rng):
        scene = Scene(clip, rng)
        turns = _talk(scene, {ask_refer: 1}, lambda scene: ask_refer(scene, [0, 1]), wanted)
        if turns:
            return clip, turns


def refer_motion(settings: ToySettings, rng: np.random.Generator) -> tuple[Clip, list[ToyTurn]]:
    """Segment one or both of two objects that differ in nothing but their motion."""
    number, num_frames = max(2, draw_number(settings.things, rng)), draw_number(settings.frames, rng)
    pool = split_pairs(settings.split)
    twin = pool[rng.integers(len(pool))]
    others = draw_pairs([pair for pair in pool if pair != twin], number - 2, rng)
    motions = [SOLO_MOTIONS[i] for i in rng.choice(len(SOLO_MOTIONS), 2, replace=False)]
    while any(one in ALSO_SEEN_AS.get(other, ()) for one, other in permutations(motions)):
        motions = [SOLO_MOTIONS[i] for i in rng.choice(len(SOLO_MOTIONS), 2, replace=False)]
    motions += draw_solo_motions(number - 2, rng)
    constraints = ClipConstraints(pairs=[twin, twin, *others], motions=motions, same_size=True, same_pattern=True)
    order = rng.permutation(2)[: int(rng.integers(1, 3))].tolist()
    for clip in propose_clips(settings, constraints, number, num_frames, rng):
        twins = clip.objects[:2]
        if clip.clear[:2].all() and not twins[0].plausible_motions & twins[1].plausible_motions:
            return clip, [ask_refer_motion(Scene(clip, rng), i) for i in order]


def no_target(settings: ToySettings, rng: np.random.Generator) -> tuple[Clip, list[ToyTurn]]:
    """One to three requests to segment something that is there or, in half of them, something that is not."""
    number, num_frames = draw_number(settings.things, rng), draw_number(settings.frames, rng)
    # No object hides, because no description mentions hiding
    motions = draw_solo_motions(number, rng)
    wanted = int(rng.integers(1, 4))
    for clip in propose_clips(settings, ClipConstraints(motions=motions), number, num_frames, rng):
        scene, asked, turns = Scene(clip, rng), set(), []
        for _ in range(MOST_TRIES):
            turn = ask_refer_or_none(scene, settings.split, asked) if len(turns) < wanted else None
            if turn is not None:
                turns.append(turn)
                scene.disclosed |= turn.discloses
        if turns:
            return clip, turns


def description(settings: ToySettings, rng: np.random.Generator) -> tuple[Clip, list[ToyTurn]]:
    """Describe one to three regions in plain text."""
    wanted = int(rng.integers(1, 4))
    number, num_frames = draw_number(settings.things, rng), draw_number(settings.frames, rng)
    for clip in propose_clips(settings, ClipConstraints(), number, num_frames, rng):
        scene = Scene(clip, rng, masks=False)
        candidates = scene.eligible(helpers=True)
        return clip, [describe_one(scene, candidates[i]) for i in rng.permutation(len(candidates))[:wanted]]


def caption(settings: ToySettings, rng: np.random.Generator) -> tuple[Clip, list[ToyTurn]]:
    """Describe all objects with masks, in reading order."""
    number, num_frames = draw_number(settings.things, rng), draw_number(settings.frames, rng)
    for clip in propose_clips(settings, ClipConstraints(), number, num_frames, rng):
        if clip.clear.all():
            scene = Scene(clip, rng)
            order = in_reading_order(clip, [*range(number)])
            sentences = [part for i in order for part in (*_caption_sentence(scene, i), " ")][:-1]
            return clip, [scene.turn("caption", {"sentences": sentences})]


def _caption_sentence(scene: Scene, i: int) -> list:
    toy_object, name = scene.objects[i], full_name(scene.objects[i])
    sentence = [scene.phrase(i, name[:1].upper() + name[1:]), f" {MOTIONS[toy_object.motion].third}"]
    if toy_object.behind is not None:
        sentence += [" behind ", scene.phrase(toy_object.behind, scene.name_of(toy_object.behind))]
    return [*sentence, "."]


def where(place: tuple[float, float]) -> str:
    """Words for a position on a 3 x 3 grid of the frame."""
    row = "top" if place[1] < 0.42 else "bottom" if place[1] > 0.58 else ""
    column = "left" if place[0] < 0.42 else "right" if place[0] > 0.58 else ""
    return f"at the {' '.join(word for word in (row, column) if word) or 'center'}"


def describe_one(scene: Scene, i: int) -> ToyTurn:
    """Two sentences: what an object is, where it starts and what it does."""
    toy_object = scene.objects[i]
    third, start = MOTIONS[toy_object.motion].third, where(toy_object.start)
    sentences = f"This is {full_name(toy_object)}. "
    if toy_object.motion in ("appear", "still"):
        sentences += f"It {third} {start}."
    elif toy_object.behind is not None:
        sentences += f"It starts {start}, hides behind {scene.name_of(toy_object.behind)} and comes back."
    else:
        sentences += f"It starts {start} and {third}."
    return scene.turn("describe", {"a": scene.subject(i), "sentences": sentences})


TASKS: dict[str, Callable[[ToySettings, np.random.Generator], tuple[Clip, list[ToyTurn]]]] = {
    "dialogue": dialogue,
    "description": description,
    "refer_look": refer_look,
    "refer_motion": refer_motion,
    "video_qa": video_qa,
    "caption": caption,
    "still": still,
    "no_target": no_target,
    "long_dialogue": long_dialogue,
}
