"""
Questions about a clip of toy world, with answers that are true and cannot be guessed.

Answers are balanced where a question is made, never by throwing samples away: a subject is drawn without looking at
the answer, or, where there are two answers, the answer is drawn first and only if the clip can give both. What an
earlier turn has told about a thing is not asked again. A subject that does not suit is not replaced by one that does:
that would tell something about the things that are left. For the same reason what it would have told counts as told.
"""

from dataclasses import dataclass, field

import numpy as np

from .clip import Clip
from .motion import ALONE, KEYED, MOTIONS, Thing
from .shapes import COLOURS, SHAPES, SIZES
from .wording import NUMBERS, YES_NO, fill, plain, plural, wording


LOOK = ("colour", "shape", "size")
NAMED = ("colour", "shape")  # what a thing's name gives away
MIN_OFFSET = 0.13  # between two centres that lie beside or above each other, in shares of the picture


@dataclass
class Turn:
    """
    A question and its answer.

    Args:
        kind (`str`): Kind of question, a key of `toy_wording.TEMPLATES`.
        question, answer_parts (`list[dict]`): Parts of the two messages.
        answer (`str`, *optional*): The word or words that decide, if there is a closed set of them.
        choices (`tuple[str]`): That set. Of its members the answer alone stands in the answer's text.
        tells (`set[(int, str)]`): Things and aspects that are known after this turn.
    """

    kind: str
    question: list[dict]
    answer_parts: list[dict]
    answer: str | None = None
    choices: tuple[str, ...] = ()
    tells: set = field(default_factory=set)

    @property
    def question_text(self) -> str:
        return plain(self.question)

    @property
    def answer_text(self) -> str:
        return plain(self.answer_parts)


class Scene:
    """
    A clip as the questions see it.

    Args:
        clip (`Clip`): The clip.
        rng (`numpy.random.Generator`): Where chance comes from.
        regions (`bool`): Questions point at things; otherwise they name them.
        masks (`bool`): Answers have grounded phrases; otherwise they are words.
    """

    def __init__(self, clip: Clip, rng: np.random.Generator, regions: bool = True, masks: bool = True):
        self.clip, self.rng, self.regions, self.masks = clip, rng, regions, masks
        self.things = clip.things
        self.told: set[tuple[int, str]] = set()
        self.still = clip.num_frames == 1

    def pick(self, options):
        return options[self.rng.integers(len(options))]

    def fair(self, *aspects: str, helpers: bool = False) -> list[int]:
        """Things to ask about: well seen, and with none of these aspects told. A helper's look is fixed."""
        return [
            i
            for i, thing in enumerate(self.things)
            if self.clip.clear[i]
            and (helpers or thing.role != "helper")
            and not any((i, aspect) in self.told for aspect in aspects)
            and (self.regions or not any(aspect in NAMED for aspect in aspects))
        ]

    def subject(self, i: int):
        """How a question speaks of a thing."""
        return {"type": "region", "object": str(i)} if self.regions else self.called(i)

    def called(self, i: int, article: str = "the") -> str:
        """The name of a thing: colour and shape, which no other thing shares; its size where another one does."""
        thing = self.things[i]
        alike = [
            one for one in self.things if one is not thing and (one.colour, one.shape) == (thing.colour, thing.shape)
        ]
        size = f"{thing.size} " if alike and all(one.size != thing.size for one in alike) else ""
        return with_article(f"{size}{thing.colour} {thing.shape}", article)

    def say(self, objects: int | list[int], words: str):
        """A phrase of an answer, with its mask if answers have masks."""
        names = [str(i) for i in (objects if isinstance(objects, list) else [objects])]
        return {"type": "grounded", "text": words, "objects": names} if self.masks and names else words

    def turn(self, kind: str, slots: dict, answer: str | None = None, choices=(), tells=(), words: str = "") -> Turn:
        """Fill a wording of this kind; `words` names another set of wordings than the kind's own."""
        question, reply = wording(words or kind, self.rng, self.still)
        slots = {"answer": answer or "", "article": with_article(answer or "-", "a").split()[0]} | slots
        return Turn(kind, fill(question, slots), fill(reply, slots), answer, tuple(choices), set(tells))


def with_article(noun: str, article: str) -> str:
    if article == "a" and noun.startswith((*"aeiou", "hour")):
        article = "an"
    return f"{article} {noun}"


def known(places, *aspects: str) -> set[tuple[int, str]]:
    return {(i, aspect) for i in places for aspect in aspects}


# One thing


def _attribute(scene: Scene, kind: str, choices: tuple[str, ...]) -> Turn | None:
    places = scene.fair(kind)
    if kind == "size":
        roles = {thing.role for thing in scene.things}
        places = [i for i in places if not ("helper" in roles and scene.things[i].role)]
    if not places:
        return None
    i = scene.pick(places)
    if kind == "size" and not scene.things[i].sized:
        scene.told |= known([i], "size", "motion")  # or the things left would grow and shrink too often
        return None
    answer = {"colour": scene.things[i].colour, "shape": scene.things[i].shape, "size": scene.things[i].size}[kind]
    it = scene.say(i, "this thing" if scene.regions else "it")
    tells = {(i, kind)} | (set() if scene.regions else known([i], *NAMED))
    if kind == "size":
        tells.add((i, "motion"))  # only a thing that does not grow or shrink is asked for its size
    return scene.turn(kind, {"a": scene.subject(i), "it": it}, answer, choices, tells)


def ask_colour(scene: Scene) -> Turn | None:
    return _attribute(scene, "colour", tuple(COLOURS))


def ask_shape(scene: Scene) -> Turn | None:
    return _attribute(scene, "shape", SHAPES)


def ask_size(scene: Scene) -> Turn | None:
    return _attribute(scene, "size", tuple(SIZES))


def ask_identity(scene: Scene) -> Turn | None:
    places = scene.fair(*LOOK)
    if not places:
        return None
    i = scene.pick(places)
    thing = scene.things[i]
    size = f"{thing.size} " if thing.sized else ""
    look = scene.say(i, with_article(f"{size}{thing.colour} {thing.shape}", "a"))
    return scene.turn("identity", {"a": scene.subject(i), "look": look}, tells=known([i], *LOOK))


def _moving(scene: Scene) -> list[int]:
    return [] if scene.still else scene.fair("motion")


def ask_motion(scene: Scene) -> Turn | None:
    places = _moving(scene)
    if not places:
        return None
    focus = [i for i in places if scene.things[i].role == "focus"]
    i = focus[0] if focus and scene.rng.random() < 0.6 else scene.pick(places)
    slots = {"a": scene.subject(i), "name": scene.say(i, scene.called(i))}
    answer, choices = MOTIONS[scene.things[i].motion].third, [motion.third for motion in MOTIONS.values()]
    tells = known([i], "motion", *NAMED)
    if scene.things[i].motion != "hide":
        return scene.turn("motion", slots, answer, choices, tells)
    other = scene.things[i].behind
    slots["other"] = scene.say(other, scene.called(other))
    return scene.turn("motion", slots, answer, choices, tells | _hiding_tells(i, other), words="hiding")


def _hiding_tells(i: int, other: int) -> set[tuple[int, str]]:
    """What hides something is larger, and its name is given."""
    return known([i, other], "size") | known([other], *NAMED)


def ask_check_motion(scene: Scene) -> Turn | None:
    places = [i for i in _moving(scene) if scene.things[i].motion != "hide"]
    if not places:
        return None
    i, answer = scene.pick(places), scene.pick(YES_NO)
    truth = scene.things[i].motion
    named = truth if answer == "yes" else scene.pick([name for name in ALONE if name not in scene.things[i].seems])
    slots = {"a": scene.subject(i), "motion": MOTIONS[named].base, "moves": MOTIONS[named].third}
    slots |= {"name": scene.say(i, scene.called(i)), "truth": MOTIONS[truth].third}
    return scene.turn("check_motion", slots, answer, YES_NO, known([i], "motion", *NAMED))


def _presence(scene: Scene, kind: str, motion: str, truths: tuple[str, str]) -> Turn | None:
    """Whether a thing is there at one end of the clip; asked where one is and another is not."""
    there = scene.clip.at_start if kind == "at_start" else scene.clip.at_end
    absent = [i for i in _moving(scene) if scene.things[i].motion == motion]
    present = [i for i in _moving(scene) if scene.things[i].motion != motion and there[i]]
    if scene.still or not absent or not present:
        return None
    answer = scene.pick(YES_NO)
    i = scene.pick(present if answer == "yes" else absent)
    slots = {"a": scene.subject(i), "name": scene.say(i, scene.called(i)), "truth": truths[YES_NO.index(answer)]}
    # That it is asked at all tells that some thing appears or leaves
    tells = known(range(len(scene.things)), "motion") | known([i], *NAMED)
    return scene.turn(kind, slots, answer, YES_NO, tells)


def ask_at_start(scene: Scene) -> Turn | None:
    return _presence(scene, "at_start", "appear", ("is there from the start", "appears later"))


def ask_at_end(scene: Scene) -> Turn | None:
    return _presence(scene, "at_end", "leave", ("is there until the end", "leaves before the end"))


# Two things


def _pair_slots(scene: Scene, a: int, b: int) -> dict:
    slots = {"a": scene.subject(a), "b": scene.subject(b)}
    return slots | {"name": scene.say(a, scene.called(a)), "other": scene.say(b, scene.called(b))}


def key_frame(clip: Clip, i: int) -> int | None:
    """
    The first frame in which a thing that appears is seen, one that leaves is gone, one that stops rests; `None` if
    what is seen is another frame, because others are in front or a thin end is the last to leave.
    """
    frame = int(np.ceil(clip.things[i].key * (clip.num_frames - 1)))
    seen = np.flatnonzero(clip.seen[i])
    shown = {"appear": seen[0], "leave": seen[-1] + 1}.get(clip.things[i].motion, frame)
    return frame if shown == frame else None


def ask_order(scene: Scene) -> Turn | None:
    places = [i for i in _moving(scene) if scene.things[i].motion in KEYED]
    if len(places) < 2:
        return None
    a, b = (places[i] for i in scene.rng.permutation(len(places))[:2])
    times = key_frame(scene.clip, a), key_frame(scene.clip, b)
    if None in times or abs(times[0] - times[1]) < max(1, scene.clip.num_frames // 8):
        return None
    first, second = (KEYED[scene.things[i].motion] for i in (a, b))
    answer = "before" if times[0] < times[1] else "after"
    slots = _pair_slots(scene, a, b) | {"first": first, "second": second}
    return scene.turn("order", slots, answer, ("before", "after"), known([a, b], "motion", *NAMED))


def ask_hides_behind(scene: Scene) -> Turn | None:
    helpers = [i for i, thing in enumerate(scene.things) if thing.role == "helper"]
    focus = [i for i in _moving(scene) if scene.things[i].role == "focus"]
    if not helpers or not focus:
        return None
    a, b = focus[0], helpers[0]
    hides = scene.things[a].motion == "hide"
    slots = _pair_slots(scene, a, b)
    truth = ["hides behind ", slots["other"]] if hides else MOTIONS[scene.things[a].motion].third
    tells = known([a], "motion", *NAMED) | _hiding_tells(a, b)
    return scene.turn("hides_behind", slots | {"truth": truth}, YES_NO[not hides], YES_NO, tells)


def _side(scene: Scene, kind: str, axis: int, choices: tuple[str, str]) -> Turn | None:
    places = scene.fair(kind, helpers=True)
    starts = {i: scene.things[i].start for i in places}
    if len(places) < 2:
        return None
    a, b = (places[i] for i in scene.rng.permutation(len(places))[:2])
    scene.told |= known([a, b], "motion")  # also where they do not suit
    offset, across = (abs(starts[a][one] - starts[b][one]) for one in (axis, 1 - axis))
    if offset < max(MIN_OFFSET, 0.5 * across) or not scene.clip.at_start[[a, b]].all():
        return None
    answer = choices[starts[a][axis] > starts[b][axis]]
    # What is there at the start does not appear later: that much of the motion is told
    return scene.turn(kind, _pair_slots(scene, a, b), answer, choices, known([a, b], kind, "motion", *NAMED))


def ask_beside(scene: Scene) -> Turn | None:
    return _side(scene, "beside", 0, ("left", "right"))


def ask_above(scene: Scene) -> Turn | None:
    return _side(scene, "above", 1, ("above", "below"))


def ask_larger(scene: Scene) -> Turn | None:
    places = scene.fair("size", helpers=True)
    if len(places) < 2:
        return None
    a, b = (places[i] for i in scene.rng.permutation(len(places))[:2])
    scene.told |= known([a, b], "motion")  # also where they do not suit
    rank = {i: tuple(SIZES).index(scene.things[i].size) for i in (a, b)}
    if rank[a] == rank[b] or not (scene.things[a].sized and scene.things[b].sized):
        return None
    winner = a if rank[a] > rank[b] else b
    slots = _pair_slots(scene, a, b) | {"name": scene.say(winner, scene.called(winner))}
    choices = ("first", "second")
    return scene.turn(
        "larger", slots, choices[winner == b], choices, known([a, b], "size", "motion") | known([winner], *NAMED)
    )


# Many things


def _mover(scene: Scene, kind: str, aspect: str, choices: tuple[str, ...]) -> Turn | None:
    """The look of the only thing with a motion."""
    if scene.still or not scene.clip.clear.all():
        return None
    places = [
        i
        for i, thing in enumerate(scene.things)
        if thing.role != "helper"
        and not {(i, "motion"), (i, aspect)} & scene.told
        and not any(thing.motion in other.seems for other in scene.things if other is not thing)
        and (thing.motion != "hide" or scene.clip.covered.any(axis=1).sum() == 1)
    ]
    if not places:
        return None
    i = scene.pick(places)
    answer = scene.things[i].colour if aspect == "colour" else scene.things[i].shape
    slots = {
        "motion": MOTIONS[scene.things[i].motion].third,
        "it": scene.say(i, "this thing" if scene.masks else "it"),
    }
    return scene.turn(kind, slots, answer, choices, known([i], aspect, "motion"))


def ask_mover_colour(scene: Scene) -> Turn | None:
    return _mover(scene, "mover_colour", "colour", tuple(COLOURS))


def ask_mover_shape(scene: Scene) -> Turn | None:
    return _mover(scene, "mover_shape", "shape", SHAPES)


def ask_count(scene: Scene, aspect: str, value: str, most: int, least: int = 0) -> Turn | None:
    """
    How many things have a look or a motion; `aspect` "all" counts everything. Comes first in a dialogue, because any
    answer before it would be a hint, and closes its aspect for the turns after it.
    """
    things = scene.things
    doubtful = aspect == "motion" and any(value in thing.seems and value != thing.motion for thing in things)
    if doubtful or not scene.clip.clear.all():
        return None
    values = {"all": [""] * len(things), "colour": [thing.colour for thing in things]}
    values |= {"shape": [thing.shape for thing in things], "motion": [thing.motion for thing in things]}
    places = [i for i, one in enumerate(values[aspect]) if one == value]
    answer = NUMBERS[len(places)]
    kind = {"all": "count_all", "motion": "count_motion"}.get(aspect, "count_look")
    noun = {"colour": f"{value} thing", "shape": value}.get(aspect, "thing")
    group = noun if len(places) == 1 else plural(noun)
    words = f"{answer} {group}" if places else "none"
    slots = {"group": scene.say(places, words), "look": plural(noun)}
    if aspect == "motion":
        slots["motion"] = MOTIONS[value].base
    turn = scene.turn(kind, slots, answer, NUMBERS[least : most + 1], known(range(len(things)), aspect))
    return _one_thing_agrees(turn) if len(places) == 1 else turn


def _one_thing_agrees(turn: Turn) -> Turn:
    """There *is* one, and one thing *moves*."""
    for part in turn.answer_parts:
        part["text"] = part["text"].replace("There are", "There is")
        for motion in MOTIONS.values():
            part["text"] = part["text"].replace(f" {motion.base}.", f" {motion.third}.")
    return turn


# Segmenting


def expressions(things: list[Thing], i: int) -> list[str]:
    """Every way to name a thing by its look that fits no other thing; one that changes its size may be of any."""
    thing, found = things[i], []
    for aspects in (("colour",), ("shape",), ("size",), NAMED, ("size", "colour"), ("size", "shape"), LOOK):
        if "size" in aspects and not thing.sized:
            continue
        if not any(all(_may_be(other, thing, aspect) for aspect in aspects) for other in things if other is not thing):
            words = {"size": thing.size, "colour": thing.colour, "shape": thing.shape}
            noun = "" if "shape" in aspects else " thing"
            found.append("the " + " ".join(words[one] for one in ("size", "colour", "shape") if one in aspects) + noun)
    return found


def _may_be(other: Thing, thing: Thing, aspect: str) -> bool:
    if aspect == "size":
        return other.size == thing.size or not other.sized
    return other.colour == thing.colour if aspect == "colour" else other.shape == thing.shape


def ask_refer(scene: Scene, places: list[int] | None = None) -> Turn | None:
    """Segment a thing named by its look; `places` says which, otherwise it is drawn."""
    places = [i for i in scene.fair("refer", helpers=True) if places is None or i in places]
    places = [i for i in places if expressions(scene.things, i)]
    if not places:
        return None
    i = scene.pick(places)
    look = scene.pick(expressions(scene.things, i))
    slots = {"look": look, "name": scene.say(i, look)}
    return scene.turn("refer", slots, tells=known([i], "refer", "motion", *LOOK))


def ask_refer_motion(scene: Scene, i: int) -> Turn:
    """Segment one of two things that look the same, by its motion."""
    thing = scene.things[i]
    look = f"the {thing.colour} {thing.shape} that {MOTIONS[thing.motion].third}"
    return scene.turn("refer", {"look": look, "name": scene.say(i, look)}, tells=known([i], "refer", "motion", *LOOK))
