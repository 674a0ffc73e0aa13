"""
Requests to segment something that may not be there: half of the descriptions fit one object, half fit none.

Whether something fits is drawn after what the description names (colour, size, motion, ...), and only if the clip
allows both, so that the wording does not give the answer away. A description of nothing uses the looks of the split
alone: a pair of colour and shape that training never shows would give it away, too.
"""

from itertools import product

from .clip import split_pairs
from .motion import SOLO_MOTIONS, ToyObject
from .questions import FORMS, LOOK, NAMED, Scene, ToyTurn, aspects_of, described, fits, fits_alone, look_of
from .shapes import SIZES


BY_MOTION = (*NAMED, "motion")
MOTION_SHARE = 0.3  # share of descriptions that name the motion
NEAR_SHARE = 0.5  # share of descriptions of nothing that differ from some object in one aspect only, where possible


def looks_of_nothing(objects: list[ToyObject], aspects: tuple[str, ...], split: str) -> list[dict[str, str]]:
    """The values of `aspects` that occur in a split and fit no object."""
    values = {
        "size": tuple(SIZES),
        "colour": dict.fromkeys(colour for colour, _ in split_pairs(split)),
        "shape": dict.fromkeys(shape for _, shape in split_pairs(split)),
        "motion": SOLO_MOTIONS,
    }
    pairs = set(split_pairs(split))
    looks = [dict(zip(aspects, chosen, strict=True)) for chosen in product(*(values[aspect] for aspect in aspects))]
    if set(NAMED) <= set(aspects):
        looks = [look for look in looks if (look["colour"], look["shape"]) in pairs]
    return [look for look in looks if not any(fits(look, aspects, one) for one in objects)]


def is_near(look: dict[str, str], objects: list[ToyObject]) -> bool:
    """Whether a look differs from some object in one aspect only."""
    return any(sum(not fits(look, (aspect,), one) for aspect in look) == 1 for one in objects)


def ask_refer_or_none(scene: Scene, split: str, asked: set[str]) -> ToyTurn | None:
    """
    Segment an object described by its appearance or motion, or say that there is none.

    Args:
        scene (`Scene`): The clip and its dialogue.
        split (`str`): The split whose looks are named.
        asked (`set[str]`): Descriptions of earlier turns, which are not asked again; this one is added.
    """
    aspects = BY_MOTION if scene.rng.random() < MOTION_SHARE else scene.pick(FORMS)
    candidates = [i for i in scene.eligible("refer") if fits_alone(scene.objects, i, aspects)]
    nothing = looks_of_nothing(scene.objects, aspects, split)
    if not candidates or not nothing:
        return None
    if scene.rng.random() < 0.5:
        i = scene.pick(candidates)
        words = described(look_of(scene.objects[i]), aspects)
        slots = {"look": f"the {words}", "name": scene.phrase(i, f"the {words}")}
        turn = scene.turn("refer", slots, discloses=aspects_of([i], "refer", "motion", *LOOK))
    else:
        if scene.rng.random() < NEAR_SHARE:
            nothing = [look for look in nothing if is_near(look, scene.objects)] or nothing
        words = described(scene.pick(nothing), aspects)
        none = {"type": "grounded", "text": f"no {words}", "objects": []} if scene.masks else f"no {words}"
        turn = scene.turn("no_target", {"look": f"the {words}", "none": none})
    if words in asked:
        return None
    asked.add(words)
    return turn
