"""Questions about several objects at once that the benchmark does not ask: what two regions are, and all objects of a
colour, shape or motion. The recipe of sama-tiny practises them, because people ask them."""

from .questions import LOOK, Scene, ToyTurn, agreeing_in_number, aspects_of, full_name, group_slots, members


def ask_identities(scene: Scene) -> ToyTurn | None:
    """What the objects of two regions are."""
    candidates = scene.eligible(*LOOK)
    if len(candidates) < 2:
        return None
    a, b = (candidates[i] for i in scene.rng.permutation(len(candidates))[:2])
    slots = {"a": scene.subject(a), "b": scene.subject(b)}
    slots |= {name: scene.phrase(i, full_name(scene.objects[i])) for name, i in (("look", a), ("other", b))}
    return scene.turn("identities", slots, discloses=aspects_of([a, b], *LOOK, "motion"))


def ask_all(scene: Scene, aspect: str, value: str) -> ToyTurn | None:
    """Segment all objects of a certain colour, shape or motion. Only where nothing about this aspect is known yet,
    like [`questions.ask_count`]."""
    found = members(scene, aspect, value)
    if found is None:
        return None
    slots, discloses = group_slots(scene, aspect, value, found)
    if aspect == "motion":
        return scene.turn("all_motion", slots, discloses=discloses)
    words = "all_look" if found else "none_look"
    return agreeing_in_number(scene.turn("all_look", slots, discloses=discloses, words=words), len(found))
