"""One clip of toy world: who plays in it, where everything starts, how it is drawn, what is seen and what happens."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from .backgrounds import BACKGROUNDS
from .motion import (
    ALONE,
    BESIDE,
    CIRCLE_RADIUS,
    DIRECTIONS,
    KEY_TIMES,
    MOTIONS,
    SIZES_OF,
    TRAVEL,
    Thing,
    Track,
    start_margin,
    track,
)
from .shapes import OCCLUDERS, PATTERNS, SEEN_PAIRS, SIZES, UNSEEN_PAIRS, painted, stamp


SPLITS = ("train", "val", "unseen")
DEFAULT_TASKS = {
    "dialogue": 3, "description": 1, "refer_look": 1, "refer_motion": 1, "video_qa": 1, "caption": 1, "still": 1,
}  # fmt: skip
SEEN_SHARE = 0.5  # of a thing's pixels and frames that must be seen before a question is asked about it
HELPER_GROWTH = 1.12  # a thing to hide behind is at the upper end of large


@dataclass(frozen=True)
class ToySettings:
    """
    What clips of toy world are like.

    Args:
        frames, things, turns (`(int, int)`): Fewest and most frames of a clip, things in it, turns of a dialogue. No
            dialogue is forced to have more turns than things: what is told is not asked again.
        height, width (`int`): Of a frame.
        speed (`float`): Factor on the length of all ways, from 0.5 to 1.4.
        background (`str`): "texture", "photo" or "mixed"; see [`draw_background`].
        split (`str`): "train"; "val": other clips of the same kinds; "unseen": colours and shapes in pairs that no
            clip of the other two shows.
        tasks (`dict[str, float]`): How often each task comes, in any unit; see `toy_tasks.TASKS`. A task that is not
            named does not come.
    """

    frames: tuple[int, int] = (8, 24)
    things: tuple[int, int] = (2, 4)
    turns: tuple[int, int] = (2, 4)
    height: int = 64
    width: int = 64
    speed: float = 1.0
    background: str = "texture"
    split: str = "train"
    tasks: dict[str, float] = field(default_factory=lambda: dict(DEFAULT_TASKS))

    def __post_init__(self):
        bounds = (("frames", self.frames, 8, 24), ("things", self.things, 1, 6), ("turns", self.turns, 1, 4))
        for name, (low, high), least, most in bounds:
            if not least <= low <= high <= most:
                raise ValueError(f"{name} is {(low, high)}, expected two numbers from {least} to {most}, lower first")
        if min(self.height, self.width) < 32 or max(self.height, self.width) > 2 * min(self.height, self.width):
            raise ValueError(f"{self.height} x {self.width}: sides are 32 pixels or more, one at most twice the other")
        if not 0.5 <= self.speed <= 1.4:
            raise ValueError(f"speed is {self.speed}, expected 0.5 to 1.4")
        for name, value, choices in (("background", self.background, BACKGROUNDS), ("split", self.split, SPLITS)):
            if value not in choices:
                raise ValueError(f"{name} is {value!r}, expected one of {', '.join(choices)}")
        unknown = sorted(set(self.tasks) - set(DEFAULT_TASKS))
        if unknown or min(self.tasks.values(), default=-1) < 0 or sum(self.tasks.values()) <= 0:
            raise ValueError(f"tasks are weights of {', '.join(DEFAULT_TASKS)}, got {dict(self.tasks)}")
        if self.things[1] < 2 and any(self.tasks.get(task) for task in ("refer_look", "refer_motion")):
            raise ValueError("refer_look and refer_motion need clips of 2 things: raise things, or leave them out")


@dataclass
class Wish:
    """
    What a task needs of a clip; everything else is drawn freely.

    Args:
        pairs (`list[(colour, shape)]`, *optional*): The looks, one a thing.
        motions (`list[str]`, *optional*): The motions, one a thing. If the first one is "hide", that thing hides
            behind the second one, which stands still, whatever was wished for it.
        same_size, same_pattern (`bool`): The first two things agree in it.
        other_size (`bool`): The first two things differ in size, and keep it.
        rest (`bool`): A still: nothing moves and things stand anywhere.
    """

    pairs: list[tuple[str, str]] | None = None
    motions: list[str] | None = None
    same_size: bool = False
    same_pattern: bool = False
    other_size: bool = False
    rest: bool = False


@dataclass
class Clip:
    """
    A clip, seen and described.

    Args:
        things (`list[Thing]`): In no particular order, but that the first one may hide behind the second.
        tracks (`list[Track]`): Where each one is.
        masks (`numpy.ndarray` of shape `(num_things, num_frames, height, width)`): Their visible pixels.
        areas (`numpy.ndarray` of shape `(num_things, num_frames)`): Pixels each would have if nothing hid it.
        frames (`numpy.ndarray` of shape `(num_frames, height, width, 3)`, *optional*): uint8; absent when only the
            description was asked for.
    """

    things: list[Thing]
    tracks: list[Track]
    masks: np.ndarray
    areas: np.ndarray
    frames: np.ndarray | None = None

    def __post_init__(self):
        self.seen = self.masks.sum(axis=(2, 3))
        share = self.seen / np.maximum(self.areas, 1)
        present = np.array([path.present for path in self.tracks])
        clear = (share >= SEEN_SHARE) & present
        enough = clear.sum(axis=1) >= np.maximum(SEEN_SHARE * present.sum(axis=1), min(2, self.num_frames))
        starts_clear = clear[:, 0] | np.array([thing.motion == "appear" for thing in self.things])
        self.clear = enough & starts_clear & (self.areas.max(axis=1) >= 12)
        self.at_start, self.at_end = share[:, 0] >= SEEN_SHARE, share[:, -1] >= SEEN_SHARE

        self.covered = (self.seen == 0) & present

    @property
    def num_frames(self) -> int:
        return self.masks.shape[1]

    def visible_again(self, place: int) -> bool:
        """Whether a thing is hidden completely at some time and seen at the end."""
        return bool(self.covered[place].any() and self.at_start[place] and self.at_end[place])


def looks(split: str) -> Sequence[tuple[str, str]]:
    """The pairs of colour and shape that a split shows."""
    return UNSEEN_PAIRS if split == "unseen" else SEEN_PAIRS


def draw_motions(wish: Wish, number: int, rng: np.random.Generator) -> tuple[list[str], bool]:
    """The motions of a clip, and whether its first thing has a large neighbour that it could hide behind."""
    if wish.rest:
        return ["still"] * number, False
    if wish.motions is not None:
        hides = wish.motions[0] == "hide"
        if hides and number < 2:
            raise ValueError(f"a thing hides behind another one, and {number} is wished for")
        return wish.motions, hides
    motions = [ALONE[i] for i in rng.integers(len(ALONE), size=number)]
    motions[0] = (*ALONE, "hide")[rng.integers(len(MOTIONS) if number > 1 else len(ALONE))]
    # As often as a thing hides, one has the same neighbour and does something else
    return motions, motions[0] == "hide" or (number > 1 and rng.random() < 1 / len(ALONE))


def cast(settings: ToySettings, wish: Wish, motions: list[str], paired: bool, rng) -> list[Thing]:
    """The things of a clip, with their looks and the manner of their motions, without places."""
    pool = looks(settings.split)
    pairs = wish.pairs or [pool[i] for i in rng.choice(len(pool), len(motions), False)]
    things = [
        Thing(shape, colour, _draw_size(motion, rng), PATTERNS[rng.integers(len(PATTERNS))], motion=motion)
        for (colour, shape), motion in zip(pairs, motions, strict=True)
    ]
    things[0].role = "focus"
    if paired:
        _make_pair(things, settings.split, rng)
    if wish.same_size:
        _make_one_size(things[:2], rng)
    if wish.other_size:
        order = rng.permutation(len(SIZES))[:2]
        things[0].size, things[1].size = (tuple(SIZES)[i] for i in order)
    if wish.same_pattern:
        things[1].pattern = things[0].pattern
    for thing in things:
        _draw_manner(thing, settings.speed, rng)
    if paired:
        things[1].scale, things[1].depth = HELPER_GROWTH, 0.5
        # In front if it does not hide: it must not be hidden on its way either
        things[0].scale, things[0].depth = min(things[0].scale, 1.0), 1.0 if things[0].motion == "hide" else 0.0
    return things


def _draw_size(motion: str, rng: np.random.Generator) -> str:
    choices = SIZES_OF.get(motion, tuple(SIZES))
    return choices[rng.integers(len(choices))]


def _make_one_size(twins: list[Thing], rng: np.random.Generator) -> None:
    choices = set(SIZES).intersection(*(SIZES_OF.get(twin.motion, SIZES) for twin in twins))
    size = sorted(choices)[rng.integers(len(choices))]
    for twin in twins:
        twin.size = size


def _make_pair(things: list[Thing], split: str, rng: np.random.Generator) -> None:
    """A small thing and a large compact one that it could hide behind."""
    small, large = things[:2]
    large.role, large.size = "helper", "large"
    compact = [pair for pair in looks(split) if pair[1] in OCCLUDERS]
    pair = compact[rng.integers(len(compact))]
    for thing in things:
        if (thing.colour, thing.shape) == pair:
            thing.colour, thing.shape = large.colour, large.shape
    large.colour, large.shape = pair
    small.size = "small"
    if small.motion in SIZES_OF:
        small.size = SIZES_OF[small.motion][0]
    if small.motion == "hide":
        small.behind = 1
    if small.motion == "hide" or rng.random() < 0.5:
        large.motion = "still"
    elif large.motion in SIZES_OF:
        large.motion = "circle"


def _draw_manner(thing: Thing, speed: float, rng: np.random.Generator) -> None:
    thing.direction = tuple(DIRECTIONS)[rng.integers(len(DIRECTIONS))]
    thing.amount = CIRCLE_RADIUS * speed if thing.motion == "circle" else rng.uniform(*TRAVEL) * speed
    thing.phase, thing.key = rng.random(), rng.uniform(*KEY_TIMES)
    thing.scale = rng.uniform(0.93, 1.07)
    thing.depth = SIZES[thing.size] + rng.uniform(-0.06, 0.06)  # small things are usually in front


def place(things: list[Thing], margin: float, rng: np.random.Generator) -> None:
    """
    Give every thing its start. A start follows from sizes and from nothing else: no motion is looked at, but for the
    place *behind* which a thing hides, and that thing has the same neighbour when it does something else.
    """
    starts = []
    for thing in things:
        if thing.role == "helper":
            starts.append(_beside(starts[0], rng))
        else:
            starts.append(_free_start(thing, things, starts, margin, rng))
    for thing, start in zip(things, starts, strict=True):
        thing.start = start
    if things[0].motion == "hide":
        things[0].goal = things[1].start
        things[0].exit = _beside(things[1].start, rng, edge=0.08)


def _free_start(thing: Thing, things: list[Thing], starts: list, margin: float, rng) -> tuple[float, float]:
    """Uniform in the inner part of the picture, apart from those that are placed if that can be had."""
    gap = 0.9
    for _ in range(60):
        x, y = rng.uniform(margin, 1 - margin, 2)
        near = (
            (other.diameter + thing.diameter) / 2 * gap > max(abs(x - start[0]), abs(y - start[1]))
            for other, start in zip(things, starts, strict=False)
        )
        if not any(near):
            break
        gap *= 0.98
    return float(x), float(y)


def _beside(centre: tuple[float, float], rng: np.random.Generator, edge: float = 0.2) -> tuple[float, float]:
    """A place at the hiding distance, not closer than `edge` to the edge of the picture."""
    while True:
        angle = rng.uniform(0, 2 * np.pi)
        x, y = centre[0] + BESIDE * np.cos(angle), centre[1] + BESIDE * np.sin(angle)
        if edge <= x <= 1 - edge and edge <= y <= 1 - edge:
            return float(x), float(y)


def draw(things: list[Thing], num_frames: int, size: tuple[int, int], background: np.ndarray | None) -> Clip:
    """
    Lay the things on the background, far ones first.

    Args:
        things (`list[Thing]`): The things.
        num_frames (`int`): Length of the clip.
        size (`(height, width)`): Of a frame.
        background (`numpy.ndarray` of shape `(height, width, 3)`, *optional*): uint8. Without it no frames are drawn;
            masks and everything else are the same.
    """
    height, width = size
    short = min(size)
    tracks = []
    for thing in things:
        half = thing.diameter * short / 2
        tracks.append(track(thing, num_frames, (half / width, half / height)))
    owner = np.full((num_frames, height, width), 255, dtype=np.uint8)
    frames = None if background is None else np.repeat(background[None], num_frames, axis=0)
    areas = np.zeros((len(things), num_frames), dtype=np.int64)
    for index in sorted(range(len(things)), key=lambda one: -things[one].depth):
        thing, path = things[index], tracks[index]
        sides = np.maximum(np.round(path.diameters * short), 3).astype(int).tolist()
        lefts = np.round(path.centres[:, 0] * width - path.diameters * short / 2).astype(int).tolist()
        tops = np.round(path.centres[:, 1] * height - path.diameters * short / 2).astype(int).tolist()
        for frame in np.flatnonzero(path.present).tolist():
            box = _overlap(lefts[frame], tops[frame], sides[frame], size)
            if frames is None:
                solid = stamp(thing.shape, sides[frame])[0] >= 128
            else:
                paint, remains, solid = painted(thing.shape, thing.colour, thing.pattern, sides[frame])
            areas[index, frame] = np.count_nonzero(solid)
            if box is None:
                continue
            target, source = box
            owner[frame][target][solid[source]] = index
            if frames is not None:
                ground = frames[frame][target]
                frames[frame][target] = (ground * remains[source] + paint[source]) // 255
    masks = owner[None] == np.arange(len(things), dtype=np.uint8)[:, None, None, None]
    return Clip(things, tracks, masks, areas, frames)


def _overlap(left: int, top: int, side: int, size: tuple[int, int]) -> tuple[tuple, tuple] | None:
    """Slices of the picture and of the stamp where a stamp at this place meets the picture."""
    x1, y1, x2, y2 = max(left, 0), max(top, 0), min(left + side, size[1]), min(top + side, size[0])
    if x1 >= x2 or y1 >= y2:
        return None
    target = (slice(y1, y2), slice(x1, x2))
    return target, (slice(y1 - top, y2 - top), slice(x1 - left, x2 - left))


def events(clip: Clip) -> list[dict]:
    """
    What happens, in order of time: `{"thing", "kind", "first", "last"}` with frame numbers, ends included. Kinds are
    the motions, "hidden" for every stretch in which a thing that is there is completely covered by others ("by" names
    what is in front where a thing hides on purpose), "stops" for the rest of a thing that stops, "first seen", "gone".
    """
    found = []
    for index, (thing, path) in enumerate(zip(clip.things, clip.tracks, strict=True)):
        seen = np.flatnonzero(clip.seen[index])
        if not seen.size:
            continue
        last = clip.num_frames - 1
        found.append({"thing": index, "kind": thing.motion, "first": int(seen[0]), "last": int(seen[-1])})
        if seen[0] > 0:
            found.append({"thing": index, "kind": "first seen", "first": int(seen[0]), "last": int(seen[0])})
        if thing.motion == "leave":
            found.append({"thing": index, "kind": "gone", "first": int(seen[-1]) + 1, "last": last})
        if thing.motion == "stop":
            rest = 1 + np.flatnonzero(np.abs(np.diff(path.centres, axis=0)).sum(axis=1) < 1e-9)
            if rest.size:
                found.append({"thing": index, "kind": "stops", "first": int(rest[0]), "last": int(rest[-1])})
        found += _hidden_stretches(clip, index)
    return sorted(found, key=lambda event: (event["first"], event["last"], event["thing"]))


def _hidden_stretches(clip: Clip, index: int) -> list[dict]:
    steps = np.flatnonzero(np.diff(np.concatenate(([0], clip.covered[index], [0]))))
    found = []
    for first, end in zip(steps[::2].tolist(), steps[1::2].tolist(), strict=True):
        event = {"thing": index, "kind": "hidden", "first": first, "last": end - 1}
        if clip.things[index].behind is not None:
            event["by"] = clip.things[index].behind
        found.append(event)
    return found


def stage(settings: ToySettings, wish: Wish, number: int, num_frames: int, rng: np.random.Generator) -> Iterator[Clip]:
    """
    Clips without frames for a wish, one after the other until the caller has one that serves. All have the motions and
    the number of things that were drawn first, so that looking for a good clip does not prefer any of them.
    """
    motions, paired = draw_motions(wish, number, rng)
    margin = 0.15 if wish.rest else start_margin(settings.speed)
    for _ in range(400):
        things = cast(settings, wish, motions, paired, rng)
        place(things, margin, rng)
        clip = draw(things, num_frames, (settings.height, settings.width), None)
        hidden = all(clip.visible_again(i) for i, thing in enumerate(things) if thing.motion == "hide")
        if hidden and clip.clear[0]:
            yield clip
    raise ValueError(f"no clip of {number} things fits these settings: {settings}. Fewer things or a lower speed help")
