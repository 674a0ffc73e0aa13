"""
Questions about a clip of toy world, with answers that are true and cannot be guessed from the text.

Answers are balanced when a question is made, not by rejecting samples: a subject is drawn without regard to the
answer; a yes/no answer is drawn first, and only if the clip allows both. Facts that an earlier turn disclosed are not
asked about again. If the drawn subject does not suit a question, the question is dropped instead of drawing another
subject, because a second draw would correlate with the answers of later questions about the remaining objects. The
facts that the dropped question would have disclosed are then treated as disclosed, too.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .clip import Clip
from .motion import KEY_EVENTS, MOTIONS, SOLO_MOTIONS, ToyObject
from .shapes import COLOURS, SHAPES, SIZES
from .wording import NUMBERS, ORDER, YES_NO, enumeration, fill, plain, plural, wording


LOOK = ("colour", "shape", "size")
NAMED = ("colour", "shape")  # what the name of an object discloses
MIN_OFFSET = 0.13  # minimum offset for left/right and above/below, in fractions of the frame


@dataclass
class ToyTurn:
    """
    A question and its answer.

    Args:
        kind (`str`): Kind of question, a key of `toy_world.wording.TEMPLATES`.
        question, answer_parts (`list[dict]`): Content parts of the two messages.
        answer (`str`, *optional*): The decisive word or words, for questions with a closed set of answers.
        choices (`tuple[str]`): That set. The text of the answer contains `answer` and no other member of it.
        discloses (`set[(int, str)]`): (object index, aspect) pairs that are known after this turn.
    """

    kind: str
    question: list[dict]
    answer_parts: list[dict]
    answer: str | None = None
    choices: tuple[str, ...] = ()
    discloses: set = field(default_factory=set)

    @property
    def question_text(self) -> str:
        """The question as plain text."""
        return plain(self.question)

    @property
    def answer_text(self) -> str:
        """The answer as plain text."""
        return plain(self.answer_parts)


class Scene:
    """
    A clip together with the state of the dialogue about it.

    Args:
        clip (`Clip`): The clip.
        rng (`numpy.random.Generator`): Source of randomness.
        regions (`bool`): Whether questions refer to objects by region; otherwise by name.
        masks (`bool`): Whether answers contain grounded phrases; otherwise they are plain text.
    """

    def __init__(self, clip: Clip, rng: np.random.Generator, regions: bool = True, masks: bool = True):
        self.clip, self.rng, self.regions, self.masks = clip, rng, regions, masks
        self.objects = clip.objects
        self.disclosed: set[tuple[int, str]] = set()
        self.still = clip.num_frames == 1

    def pick(self, options: Sequence[Any]) -> Any:
        """A random one of the options."""
        return options[self.rng.integers(len(options))]

    def eligible(self, *aspects: str, helpers: bool = False) -> list[int]:
        """Indices of the clearly visible objects with none of these aspects disclosed. Helpers are excluded by
        default, because their appearance is not random."""
        return [
            i
            for i, toy_object in enumerate(self.objects)
            if self.clip.clear[i]
            and (helpers or toy_object.role != "helper")
            and not any((i, aspect) in self.disclosed for aspect in aspects)
            and (self.regions or not any(aspect in NAMED for aspect in aspects))
        ]

    def subject(self, i: int) -> dict | str:
        """How a question refers to an object: a region part or its name."""
        return {"type": "region", "object": str(i)} if self.regions else self.name_of(i)

    def name_of(self, i: int, article: str = "the") -> str:
        """The name of an object: colour and shape, with the size only where it is needed to tell two objects apart."""
        toy_object = self.objects[i]
        others = (one for one in self.objects if one is not toy_object)
        alike = [one for one in others if (one.colour, one.shape) == (toy_object.colour, toy_object.shape)]
        size = f"{toy_object.size} " if alike and all(one.size != toy_object.size for one in alike) else ""
        return with_article(f"{size}{toy_object.colour} {toy_object.shape}", article)

    def phrase(self, objects: int | list[int], words: str) -> dict | str:
        """A phrase of an answer, grounded in these objects if answers have masks."""
        names = [str(i) for i in (objects if isinstance(objects, list) else [objects])]
        return {"type": "grounded", "text": words, "objects": names} if self.masks and names else words

    def turn(
        self, kind: str, slots: dict, answer: str | None = None, choices=(), discloses=(), words: str = ""
    ) -> ToyTurn:
        """Fill a random template of this kind, or of the kind `words` if given."""
        question, reply = wording(words or kind, self.rng, self.still)
        slots = {"answer": answer or "", "article": with_article(answer or "-", "a").split()[0]} | slots
        return ToyTurn(kind, fill(question, slots), fill(reply, slots), answer, tuple(choices), set(discloses))


def with_article(noun: str, article: str) -> str:
    """A noun with its article; "a" becomes "an" where the noun needs it."""
    if article == "a" and noun.startswith((*"aeiou", "hour")):
        article = "an"
    return f"{article} {noun}"


def in_reading_order(clip: Clip, things: list[int]) -> list[int]:
    """Objects in the order of their first appearance, then from left to right, as a viewer could list them."""
    first_seen = (clip.seen > 0).argmax(axis=1)
    return sorted(things, key=lambda i: (first_seen[i], clip.objects[i].start[0]))


def aspects_of(candidates: Iterable[int], *aspects: str) -> set[tuple[int, str]]:
    """(object index, aspect) pairs of some objects, as in [`ToyTurn`].discloses."""
    return {(i, aspect) for i in candidates for aspect in aspects}


# Questions about one object


def _attribute(scene: Scene, kind: str, choices: tuple[str, ...]) -> ToyTurn | None:
    candidates = scene.eligible(kind)
    if kind == "size":
        roles = {toy_object.role for toy_object in scene.objects}
        candidates = [i for i in candidates if not ("helper" in roles and scene.objects[i].role)]
    if not candidates:
        return None
    i = scene.pick(candidates)
    if kind == "size" and not scene.objects[i].constant_size:
        # Otherwise the remaining objects would grow or shrink more often than chance
        scene.disclosed |= aspects_of([i], "size", "motion")
        return None
    it = scene.phrase(i, "this thing" if scene.masks or scene.regions else "it")
    discloses = {(i, kind)} | (set() if scene.regions else aspects_of([i], *NAMED))
    if kind == "size":
        discloses.add((i, "motion"))  # only objects that neither grow nor shrink are asked for their size
    return scene.turn(kind, {"a": scene.subject(i), "it": it}, getattr(scene.objects[i], kind), choices, discloses)


def ask_colour(scene: Scene) -> ToyTurn | None:
    """The colour of an object."""
    return _attribute(scene, "colour", tuple(COLOURS))


def ask_shape(scene: Scene) -> ToyTurn | None:
    """The shape of an object."""
    return _attribute(scene, "shape", SHAPES)


def ask_size(scene: Scene) -> ToyTurn | None:
    """The size of an object, unless it grows or shrinks."""
    return _attribute(scene, "size", tuple(SIZES))


def ask_identity(scene: Scene) -> ToyTurn | None:
    """What an object is: size, colour and shape."""
    candidates = scene.eligible(*LOOK)
    if not candidates:
        return None
    i = scene.pick(candidates)
    slots = {"a": scene.subject(i), "look": scene.phrase(i, full_name(scene.objects[i]))}
    return scene.turn("identity", slots, discloses=aspects_of([i], *LOOK, "motion"))


def full_name(toy_object: ToyObject) -> str:
    """Size, colour and shape with an article. An object that grows or shrinks has no size, so the name discloses part
    of the motion."""
    size = f"{toy_object.size} " if toy_object.constant_size else ""
    return with_article(f"{size}{toy_object.colour} {toy_object.shape}", "a")


def _moving(scene: Scene) -> list[int]:
    return [] if scene.still else scene.eligible("motion")


def ask_motion(scene: Scene) -> ToyTurn | None:
    """How an object moves."""
    candidates = _moving(scene)
    if not candidates:
        return None
    focus = [i for i in candidates if scene.objects[i].role == "focus"]
    i = focus[0] if focus and scene.rng.random() < 0.6 else scene.pick(candidates)
    slots = {"a": scene.subject(i), "name": scene.phrase(i, scene.name_of(i))}
    answer, choices = MOTIONS[scene.objects[i].motion].third, [motion.third for motion in MOTIONS.values()]
    discloses = aspects_of([i], "motion", *NAMED)
    if scene.objects[i].motion != "hide":
        return scene.turn("motion", slots, answer, choices, discloses)
    other = scene.objects[i].behind
    slots["other"] = scene.phrase(other, scene.name_of(other))
    return scene.turn("motion", slots, answer, choices, discloses | _hiding_disclosures(i, other), words="hiding")


def _hiding_disclosures(i: int, other: int) -> set[tuple[int, str]]:
    """Facts disclosed by hiding: the occluder is larger, and it is named."""
    return aspects_of([i, other], "size") | aspects_of([other], *NAMED)


def ask_check_motion(scene: Scene) -> ToyTurn | None:
    """Whether an object has a certain motion; a false one must not be plausible."""
    candidates = [i for i in _moving(scene) if scene.objects[i].motion != "hide"]
    if not candidates:
        return None
    i, answer = scene.pick(candidates), scene.pick(YES_NO)
    truth = scene.objects[i].motion
    named = (
        truth
        if answer == "yes"
        else scene.pick([name for name in SOLO_MOTIONS if name not in scene.objects[i].plausible_motions])
    )
    slots = {"a": scene.subject(i), "motion": MOTIONS[named].base, "moves": MOTIONS[named].third}
    slots |= {"name": scene.phrase(i, scene.name_of(i)), "truth": MOTIONS[truth].third}
    return scene.turn("check_motion", slots, answer, YES_NO, aspects_of([i], "motion", *NAMED))


def _presence(scene: Scene, kind: str, motion: str, truths: tuple[str, str]) -> ToyTurn | None:
    """Whether an object is present at one end of the clip; asked only if one is and another is not."""
    there = scene.clip.at_start if kind == "at_start" else scene.clip.at_end
    absent = [i for i in _moving(scene) if scene.objects[i].motion == motion]
    present = [i for i in _moving(scene) if scene.objects[i].motion != motion and there[i]]
    if scene.still or not absent or not present:
        return None
    answer = scene.pick(YES_NO)
    i = scene.pick(present if answer == "yes" else absent)
    slots = {"a": scene.subject(i), "name": scene.phrase(i, scene.name_of(i)), "truth": truths[YES_NO.index(answer)]}
    # The question itself discloses that some object appears or leaves
    discloses = aspects_of(range(len(scene.objects)), "motion") | aspects_of([i], *NAMED)
    return scene.turn(kind, slots, answer, YES_NO, discloses)


def ask_at_start(scene: Scene) -> ToyTurn | None:
    """Whether an object is there at the start, if one is and another appears later."""
    return _presence(scene, "at_start", "appear", ("is there from the start", "appears later"))


def ask_at_end(scene: Scene) -> ToyTurn | None:
    """Whether an object is there at the end, if one is and another leaves."""
    return _presence(scene, "at_end", "leave", ("is there until the end", "leaves before the end"))


# Questions about two objects


def _pair_slots(scene: Scene, a: int, b: int) -> dict:
    slots = {"a": scene.subject(a), "b": scene.subject(b)}
    return slots | {"name": scene.phrase(a, scene.name_of(a)), "other": scene.phrase(b, scene.name_of(b))}


def key_frame(clip: Clip, i: int) -> int | None:
    """
    The frame of an object's key moment: the first one in which it is visible (appear), gone (leave) or at rest (stop).
    `None` if the visible moment is another frame, because of occlusion or a thin tip that leaves last.
    """
    frame = int(np.ceil(clip.objects[i].key * (clip.num_frames - 1)))
    seen = np.flatnonzero(clip.seen[i])
    shown = {"appear": seen[0], "leave": seen[-1] + 1}.get(clip.objects[i].motion, frame)
    return frame if shown == frame else None


def ask_order(scene: Scene) -> ToyTurn | None:
    """Whether the key moment of an object comes before or after that of another."""
    candidates = [i for i in _moving(scene) if scene.objects[i].motion in KEY_EVENTS]
    if len(candidates) < 2:
        return None
    a, b = (candidates[i] for i in scene.rng.permutation(len(candidates))[:2])
    times = key_frame(scene.clip, a), key_frame(scene.clip, b)
    if None in times or abs(times[0] - times[1]) < max(1, scene.clip.num_frames // 8):
        return None
    first, second = (KEY_EVENTS[scene.objects[i].motion] for i in (a, b))
    answer = ORDER[times[0] > times[1]]
    slots = _pair_slots(scene, a, b) | {"first": first, "second": second}
    return scene.turn("order", slots, answer, ORDER, aspects_of([a, b], "motion", *NAMED))


def ask_hides_behind(scene: Scene) -> ToyTurn | None:
    """Whether the small object hides behind its large neighbour."""
    helpers = [i for i, toy_object in enumerate(scene.objects) if toy_object.role == "helper"]
    focus = [i for i in _moving(scene) if scene.objects[i].role == "focus"]
    if not helpers or not focus:
        return None
    a, b = focus[0], helpers[0]
    hides = scene.objects[a].motion == "hide"
    slots = _pair_slots(scene, a, b)
    truth = ["hides behind ", slots["other"]] if hides else MOTIONS[scene.objects[a].motion].third
    discloses = aspects_of([a], "motion", *NAMED) | _hiding_disclosures(a, b)
    return scene.turn("hides_behind", slots | {"truth": truth}, YES_NO[not hides], YES_NO, discloses)


def _side(scene: Scene, kind: str, axis: int, choices: tuple[str, str]) -> ToyTurn | None:
    candidates = scene.eligible(kind, helpers=True)
    starts = {i: scene.objects[i].start for i in candidates}
    if len(candidates) < 2:
        return None
    a, b = (candidates[i] for i in scene.rng.permutation(len(candidates))[:2])
    scene.disclosed |= aspects_of([a, b], "motion")  # even if the question is dropped
    offset, across = (abs(starts[a][one] - starts[b][one]) for one in (axis, 1 - axis))
    if offset < max(MIN_OFFSET, 0.5 * across) or not scene.clip.at_start[[a, b]].all():
        return None
    answer = choices[starts[a][axis] > starts[b][axis]]
    # An object that is visible at the start does not appear later, which discloses part of its motion
    return scene.turn(kind, _pair_slots(scene, a, b), answer, choices, aspects_of([a, b], kind, "motion", *NAMED))


def ask_beside(scene: Scene) -> ToyTurn | None:
    """Whether an object is to the left or to the right of another at the start."""
    return _side(scene, "beside", 0, ("left", "right"))


def ask_above(scene: Scene) -> ToyTurn | None:
    """Whether an object is above or below another at the start."""
    return _side(scene, "above", 1, ("above", "below"))


def ask_larger(scene: Scene) -> ToyTurn | None:
    """Which of two objects is larger; neither of them grows or shrinks."""
    candidates = scene.eligible("size", helpers=True)
    if len(candidates) < 2:
        return None
    a, b = (candidates[i] for i in scene.rng.permutation(len(candidates))[:2])
    scene.disclosed |= aspects_of([a, b], "motion")  # even if the question is dropped
    rank = {i: tuple(SIZES).index(scene.objects[i].size) for i in (a, b)}
    if rank[a] == rank[b] or not (scene.objects[a].constant_size and scene.objects[b].constant_size):
        return None
    winner = a if rank[a] > rank[b] else b
    slots = _pair_slots(scene, a, b) | {"name": scene.phrase(winner, scene.name_of(winner))}
    choices = ("first", "second")
    discloses = aspects_of([a, b], "size", "motion") | aspects_of([winner], *NAMED)
    return scene.turn("larger", slots, choices[winner == b], choices, discloses)


# Questions about all objects


def _mover(scene: Scene, kind: str, aspect: str, choices: tuple[str, ...]) -> ToyTurn | None:
    """The appearance of the only object with a certain motion."""
    if scene.still or not scene.clip.clear.all():
        return None
    candidates = [
        i
        for i, toy_object in enumerate(scene.objects)
        if toy_object.role != "helper"
        and not {(i, "motion"), (i, aspect)} & scene.disclosed
        and not any(toy_object.motion in other.plausible_motions for other in scene.objects if other is not toy_object)
        # Objects that are invisible just before they leave count, too: without them, questions would change
        and (toy_object.motion != "hide" or scene.clip.invisible.any(axis=1).sum() == 1)
    ]
    if not candidates:
        return None
    i = scene.pick(candidates)
    toy_object, it = scene.objects[i], scene.phrase(i, "this thing" if scene.masks else "it")
    slots = {"motion": MOTIONS[toy_object.motion].third, "it": it}
    return scene.turn(kind, slots, getattr(toy_object, aspect), choices, aspects_of([i], aspect, "motion"))


def ask_mover_colour(scene: Scene) -> ToyTurn | None:
    """The colour of the only object with a certain motion."""
    return _mover(scene, "mover_colour", "colour", tuple(COLOURS))


def ask_mover_shape(scene: Scene) -> ToyTurn | None:
    """The shape of the only object with a certain motion."""
    return _mover(scene, "mover_shape", "shape", SHAPES)


def ask_count(scene: Scene, aspect: str, value: str, most: int, least: int = 0) -> ToyTurn | None:
    """
    How many objects have a certain colour, shape or motion; `aspect` "all" counts all objects. Must open a dialogue,
    because any earlier answer would be a hint, and discloses its aspect for all objects. A count by motion also
    discloses colour and shape of the objects that it names.
    """
    found = members(scene, aspect, value)
    if found is None:
        return None
    answer = NUMBERS[len(found)]
    kind = {"all": "count_all", "motion": "count_motion"}.get(aspect, "count_look")
    slots, discloses = group_slots(scene, aspect, value, found)
    return agreeing_in_number(scene.turn(kind, slots, answer, NUMBERS[least : most + 1], discloses), len(found))


def members(scene: Scene, aspect: str, value: str) -> list[int] | None:
    """The objects with this value of an aspect, in reading order; `None` if a viewer could not tell which they are."""
    doubtful = aspect == "motion" and any(
        value in one.plausible_motions and value != one.motion for one in scene.objects
    )
    if doubtful or not scene.clip.clear.all():
        return None
    chosen = [i for i, one in enumerate(scene.objects) if aspect == "all" or getattr(one, aspect) == value]
    return in_reading_order(scene.clip, chosen)


def group_slots(scene: Scene, aspect: str, value: str, found: list[int]) -> tuple[dict, set[tuple[int, str]]]:
    """Slots of an answer about [`members`], and what it discloses. Those of a motion are named, and each has a phrase
    of its own; others are one phrase."""
    discloses = aspects_of(range(len(scene.objects)), aspect)
    if aspect == "motion":
        names = [scene.phrase(i, scene.name_of(i)) for i in found]
        third, base = MOTIONS[value]
        slots = {"motion": base, "moves": third, "verb": base if len(found) > 1 else third}
        slots["group"] = enumeration(names) or "nothing"
        # The order of their names may tell which one is on the left
        return slots, discloses | aspects_of(found, *NAMED, "beside")
    noun = {"colour": f"{value} thing", "shape": value}.get(aspect, "thing")
    words = f"{NUMBERS[len(found)]} {noun if len(found) == 1 else plural(noun)}" if found else "none"
    return {"group": scene.phrase(found, words), "look": plural(noun)}, discloses


def agreeing_in_number(turn: ToyTurn, number: int) -> ToyTurn:
    """The turn itself, with "is" in place of "are" before a single object."""
    if number == 1:
        for part in turn.answer_parts:
            part["text"] = part["text"].replace("There are", "There is").replace("Here are", "Here is")
    return turn


# Referring segmentation


# What a description by appearance names
FORMS = (("colour",), ("shape",), ("size",), NAMED, ("size", "colour"), ("size", "shape"), LOOK)


def expressions(objects: list[ToyObject], i: int) -> list[str]:
    """All descriptions by appearance that match this object only."""
    look = look_of(objects[i])
    return [f"the {described(look, aspects)}" for aspects in FORMS if fits_alone(objects, i, aspects)]


def described(look: dict[str, str], aspects: tuple[str, ...]) -> str:
    """A description without an article by some aspects of a look: "small thing", "red circle that leaves"."""
    words = " ".join(look[one] for one in ("size", "colour", "shape") if one in aspects)
    noun = "" if "shape" in aspects else " thing"
    moves = f" that {MOTIONS[look['motion']].third}" if "motion" in aspects else ""
    return f"{words}{noun}{moves}"


def look_of(toy_object: ToyObject) -> dict[str, str]:
    """What a description can name of an object."""
    return {aspect: getattr(toy_object, aspect) for aspect in (*LOOK, "motion")}


def fits(look: dict[str, str], aspects: tuple[str, ...], toy_object: ToyObject) -> bool:
    """Whether a description could mean an object. An object of changing size fits every size, one whose motion can be
    seen in several ways each of them."""
    for aspect in aspects:
        if aspect == "size" and not toy_object.constant_size:
            continue
        allowed = toy_object.plausible_motions if aspect == "motion" else {getattr(toy_object, aspect)}
        if look[aspect] not in allowed:
            return False
    return True


def fits_alone(objects: list[ToyObject], i: int, aspects: tuple[str, ...]) -> bool:
    """Whether the description of an object by `aspects` is clear and fits no other object."""
    if "size" in aspects and not objects[i].constant_size:
        return False
    look = look_of(objects[i])
    return not any(fits(look, aspects, other) for other in objects if other is not objects[i])


def ask_refer(scene: Scene, candidates: list[int] | None = None) -> ToyTurn | None:
    """Segment an object described by its appearance; drawn from the eligible objects among `candidates`."""
    candidates = [i for i in scene.eligible("refer", helpers=True) if candidates is None or i in candidates]
    candidates = [i for i in candidates if expressions(scene.objects, i)]
    if not candidates:
        return None
    i = scene.pick(candidates)
    look = scene.pick(expressions(scene.objects, i))
    slots = {"look": look, "name": scene.phrase(i, look)}
    return scene.turn("refer", slots, discloses=aspects_of([i], "refer", "motion", *LOOK))


def ask_refer_motion(scene: Scene, i: int) -> ToyTurn:
    """Segment one of two identical-looking objects, described by its motion."""
    toy_object = scene.objects[i]
    look = f"the {toy_object.colour} {toy_object.shape} that {MOTIONS[toy_object.motion].third}"
    return scene.turn(
        "refer", {"look": look, "name": scene.phrase(i, look)}, discloses=aspects_of([i], "refer", "motion", *LOOK)
    )
