"""One clip of toy world: its objects, their start positions, rendering, visibility and events."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from .backgrounds import BACKGROUNDS
from .motion import (
    CIRCLE_RADIUS,
    DIRECTIONS,
    HIDING_DISTANCE,
    KEY_TIMES,
    MOTIONS,
    SOLO_MOTIONS,
    START_SIZES,
    TRAVEL,
    ToyObject,
    Trajectory,
    compute_trajectory,
    draw_solo_motions,
    start_margin,
)
from .shapes import OCCLUDERS, PATTERNS, SEEN_PAIRS, SIZES, UNSEEN_PAIRS, painted, stamp


SPLITS = ("train", "val", "unseen")
DEFAULT_TASKS = {
    "dialogue": 3, "description": 1, "refer_look": 1, "refer_motion": 1, "video_qa": 1, "caption": 1, "still": 1,
}  # fmt: skip
# Tasks that are sampled only where the settings name them. They were added later: as a default they would change the
# clips of every seed
OPTIONAL_TASKS = ("no_target", "long_dialogue")
FRAME_SIDE = 64  # default height and width of a frame in pixels
SEEN_SHARE = 0.5  # fraction of an object's pixels and frames that must be visible before questions are asked about it
HELPER_GROWTH = 1.12  # an object to hide behind is at the upper end of large


@dataclass(frozen=True)
class ToySettings:
    """
    Settings of the clip generator.

    Args:
        frames, things, turns (`(int, int)`): Minimum and maximum number of frames, of objects and of dialogue turns.
            A dialogue may have fewer turns than the minimum when the clip has fewer objects, because facts that were
            already disclosed are not asked about again.
        height, width (`int`): Frame size in pixels.
        speed (`float`): Factor on the length of all movements, from 0.5 to 1.4.
        background (`str`): "texture", "photo" or "mixed"; see [`draw_background`].
        split (`str`): "train"; "val": other clips from the same distribution; "unseen": pairs of colour and shape that
            never occur in the other two.
        tasks (`dict[str, float]`): Relative sampling weight of each task of `toy_world.tasks.TASKS`. Tasks that are
            not listed are not sampled; by default `DEFAULT_TASKS` are.

    Raises:
        ValueError: if a setting is out of range or the tasks need more objects than `things` allows.
    """

    frames: tuple[int, int] = (8, 24)
    things: tuple[int, int] = (2, 4)
    turns: tuple[int, int] = (2, 4)
    height: int = FRAME_SIDE
    width: int = FRAME_SIDE
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
            raise ValueError(
                f"{self.height} x {self.width}: sides must have 32 pixels or more, one at most twice the other"
            )
        if not 0.5 <= self.speed <= 1.4:
            raise ValueError(f"speed is {self.speed}, expected 0.5 to 1.4")
        for name, value, choices in (("background", self.background, BACKGROUNDS), ("split", self.split, SPLITS)):
            if value not in choices:
                raise ValueError(f"{name} is {value!r}, expected one of {', '.join(choices)}")
        known = (*DEFAULT_TASKS, *OPTIONAL_TASKS)
        unknown = sorted(set(self.tasks) - set(known))
        if unknown or min(self.tasks.values(), default=-1) < 0 or sum(self.tasks.values()) <= 0:
            raise ValueError(f"tasks must be weights of {', '.join(known)}, got {dict(self.tasks)}")
        if self.things[1] < 2 and any(self.tasks.get(task) for task in ("refer_look", "refer_motion")):
            raise ValueError(
                f"things is {self.things}, but refer_look and refer_motion need 2: raise it, or drop these tasks"
            )


@dataclass
class ClipConstraints:
    """
    What a task requires of a clip; everything else is sampled.

    Args:
        pairs (`list[(colour, shape)]`, *optional*): Colour and shape of each object.
        motions (`list[str]`, *optional*): Motion of each object. If the first one is "hide", the first object hides
            behind the second, which stands still regardless of its entry here.
        occluder (`bool`): The first object gets a large neighbour that it could hide behind, whatever its motion. Only
            used with `motions`.
        same_size, same_pattern (`bool`): The first two objects share this attribute.
        other_size (`bool`): The first two objects have different sizes.
        rest (`bool`): A still image: nothing moves, and objects may lie closer to the border.
    """

    pairs: list[tuple[str, str]] | None = None
    motions: list[str] | None = None
    occluder: bool = False
    same_size: bool = False
    same_pattern: bool = False
    other_size: bool = False
    rest: bool = False


@dataclass
class Clip:
    """
    A clip: its objects and what is visible of them.

    Args:
        objects (`list[ToyObject]`): The objects; only the first one may hide, always behind the second.
        trajectories (`list[Trajectory]`): The trajectory of each object.
        masks (`numpy.ndarray` of shape `(num_objects, num_frames, height, width)`): Visible pixels, bool.
        areas (`numpy.ndarray` of shape `(num_objects, num_frames)`): Pixels of each object without occlusion.
        frames (`numpy.ndarray` of shape `(num_frames, height, width, 3)`, *optional*): uint8; `None` if the clip was
            not rendered.
        areas_in_frame (`numpy.ndarray` of shape `(num_objects, num_frames)`, *optional*): The pixels of `areas` that
            lie inside the frame; `areas` by default.

    Derived attributes: `seen` (visible pixels per object and frame), `invisible` (present without a visible pixel),
    `covered` (invisible because of full occlusion, not because the object is outside the frame), `clear` (visible
    enough to ask about), `at_start` and `at_end` (visible in the first and last frame).
    """

    objects: list[ToyObject]
    trajectories: list[Trajectory]
    masks: np.ndarray
    areas: np.ndarray
    frames: np.ndarray | None = None
    areas_in_frame: np.ndarray | None = None

    def __post_init__(self):
        if self.areas_in_frame is None:
            self.areas_in_frame = self.areas
        self.seen = self.masks.sum(axis=(2, 3))
        share = self.seen / np.maximum(self.areas, 1)
        present = np.array([trajectory.present for trajectory in self.trajectories])
        clear = (share >= SEEN_SHARE) & present
        enough = clear.sum(axis=1) >= np.maximum(SEEN_SHARE * present.sum(axis=1), min(2, self.num_frames))
        starts_clear = clear[:, 0] | np.array([toy_object.motion == "appear" for toy_object in self.objects])
        self.clear = enough & starts_clear & (self.areas.max(axis=1) >= 12)
        self.at_start, self.at_end = share[:, 0] >= SEEN_SHARE, share[:, -1] >= SEEN_SHARE
        self.invisible = (self.seen == 0) & present
        self.covered = self.invisible & (self.areas_in_frame > 0)

    @property
    def num_frames(self) -> int:
        """Length of the clip."""
        return self.masks.shape[1]

    def visible_again(self, index: int) -> bool:
        """Whether an object is fully occluded at some time but visible at the start and at the end."""
        return bool(self.covered[index].any() and self.at_start[index] and self.at_end[index])


def split_pairs(split: str) -> Sequence[tuple[str, str]]:
    """The pairs of colour and shape that occur in a split."""
    return UNSEEN_PAIRS if split == "unseen" else SEEN_PAIRS


def draw_motions(constraints: ClipConstraints, number: int, rng: np.random.Generator) -> tuple[list[str], bool]:
    """
    The motions of a clip, and whether its first object gets a large neighbour that it could hide behind.

    Raises:
        ValueError: if the constraints need such a neighbour in a clip of one object.
    """
    if constraints.rest:
        return ["still"] * number, False
    if constraints.motions is not None:
        hides = constraints.motions[0] == "hide" or constraints.occluder
        if hides and number < 2:
            raise ValueError(f"hiding needs at least 2 objects, got {number}: an object hides behind another one")
        return constraints.motions, hides
    motions = draw_solo_motions(number, rng)
    motions[0] = (*SOLO_MOTIONS, "hide")[rng.integers(len(MOTIONS) if number > 1 else len(SOLO_MOTIONS))]
    # An object with another motion gets such a neighbour equally often, so that the neighbour does not predict hiding
    return motions, motions[0] == "hide" or (number > 1 and rng.random() < 1 / len(SOLO_MOTIONS))


def sample_objects(
    settings: ToySettings,
    constraints: ClipConstraints,
    motions: list[str],
    with_occluder: bool,
    rng: np.random.Generator,
) -> list[ToyObject]:
    """The objects of a clip with their appearance and motion parameters, but without positions."""
    pool = split_pairs(settings.split)
    pairs = constraints.pairs or [pool[i] for i in rng.choice(len(pool), len(motions), False)]
    objects = [
        ToyObject(shape, colour, _draw_size(motion, rng), PATTERNS[rng.integers(len(PATTERNS))], motion=motion)
        for (colour, shape), motion in zip(pairs, motions, strict=True)
    ]
    objects[0].role = "focus"
    if with_occluder:
        _make_occluder(objects, settings.split, rng)
    if constraints.same_size:
        _make_one_size(objects[:2], rng)
    if constraints.other_size:
        order = rng.permutation(len(SIZES))[:2]
        objects[0].size, objects[1].size = (tuple(SIZES)[i] for i in order)
    if constraints.same_pattern:
        objects[1].pattern = objects[0].pattern
    for toy_object in objects:
        _draw_motion_parameters(toy_object, settings.speed, rng)
    if with_occluder:
        objects[1].scale, objects[1].depth = HELPER_GROWTH, 0.5
        # Unless it hides, it moves in front and is never occluded
        objects[0].scale, objects[0].depth = min(objects[0].scale, 1.0), 1.0 if objects[0].motion == "hide" else 0.0
    return objects


def _draw_size(motion: str, rng: np.random.Generator) -> str:
    choices = START_SIZES.get(motion, tuple(SIZES))
    return choices[rng.integers(len(choices))]


def _make_one_size(twins: list[ToyObject], rng: np.random.Generator) -> None:
    choices = set(SIZES).intersection(*(START_SIZES.get(twin.motion, SIZES) for twin in twins))
    size = sorted(choices)[rng.integers(len(choices))]
    for twin in twins:
        twin.size = size


def _make_occluder(objects: list[ToyObject], split: str, rng: np.random.Generator) -> None:
    """Turn the first two objects into a small one and a large compact one that it could hide behind."""
    small, large = objects[:2]
    large.role, large.size = "helper", "large"
    compact = [pair for pair in split_pairs(split) if pair[1] in OCCLUDERS]
    pair = compact[rng.integers(len(compact))]
    for toy_object in objects:
        if (toy_object.colour, toy_object.shape) == pair:
            toy_object.colour, toy_object.shape = large.colour, large.shape
    large.colour, large.shape = pair
    small.size = "small"
    if small.motion in START_SIZES:
        small.size = START_SIZES[small.motion][0]
    if small.motion == "hide":
        small.behind = 1
    if small.motion == "hide" or rng.random() < 0.5:
        large.motion = "still"
    elif large.motion in START_SIZES:
        large.motion = "circle"


def _draw_motion_parameters(toy_object: ToyObject, speed: float, rng: np.random.Generator) -> None:
    toy_object.direction = tuple(DIRECTIONS)[rng.integers(len(DIRECTIONS))]
    toy_object.amount = CIRCLE_RADIUS * speed if toy_object.motion == "circle" else rng.uniform(*TRAVEL) * speed
    toy_object.phase, toy_object.key = rng.random(), rng.uniform(*KEY_TIMES)
    toy_object.scale = rng.uniform(0.93, 1.07)
    toy_object.depth = SIZES[toy_object.size] + rng.uniform(-0.06, 0.06)  # small objects are usually in front


def place_objects(objects: list[ToyObject], margin: float, rng: np.random.Generator) -> None:
    """
    Set the start position of every object. Start positions depend on sizes only, never on motions, so that they give
    no hint at them. A hiding object starts next to its occluder, but so does one that has a neighbour without hiding.
    """
    starts = []
    for toy_object in objects:
        if toy_object.role == "helper":
            starts.append(_beside(starts[0], rng))
        else:
            starts.append(_free_start(toy_object, objects, starts, margin, rng))
    for toy_object, start in zip(objects, starts, strict=True):
        toy_object.start = start
    if objects[0].motion == "hide":
        objects[0].goal = objects[1].start
        objects[0].exit = _beside(objects[1].start, rng, edge=0.08)


def _free_start(
    toy_object: ToyObject, objects: list[ToyObject], starts: list, margin: float, rng: np.random.Generator
) -> tuple[float, float]:
    """Uniform inside the margin and, if possible within 60 attempts, clear of the objects placed so far."""
    gap = 0.9
    for _ in range(60):
        x, y = rng.uniform(margin, 1 - margin, 2)
        near = (
            (other.diameter + toy_object.diameter) / 2 * gap > max(abs(x - start[0]), abs(y - start[1]))
            for other, start in zip(objects, starts, strict=False)
        )
        if not any(near):
            break
        gap *= 0.98
    return float(x), float(y)


def _beside(centre: tuple[float, float], rng: np.random.Generator, edge: float = 0.2) -> tuple[float, float]:
    """A position at the hiding distance from `centre`, at least `edge` away from the border."""
    while True:
        angle = rng.uniform(0, 2 * np.pi)
        x, y = centre[0] + HIDING_DISTANCE * np.cos(angle), centre[1] + HIDING_DISTANCE * np.sin(angle)
        if edge <= x <= 1 - edge and edge <= y <= 1 - edge:
            return float(x), float(y)


def draw(objects: list[ToyObject], num_frames: int, size: tuple[int, int], background: np.ndarray | None) -> Clip:
    """
    Render objects onto a background, back to front.

    Args:
        objects (`list[ToyObject]`): The objects.
        num_frames (`int`): Number of frames.
        size (`(height, width)`): Frame size in pixels.
        background (`numpy.ndarray` of shape `(height, width, 3)`, *optional*): uint8. Without it no frames are
            rendered; masks and everything else are the same.
    """
    height, width = size
    short = min(size)
    trajectories = []
    for toy_object in objects:
        half = toy_object.diameter * short / 2
        trajectories.append(compute_trajectory(toy_object, num_frames, (half / width, half / height)))
    owner = np.full((num_frames, height, width), 255, dtype=np.uint8)
    frames = None if background is None else np.repeat(background[None], num_frames, axis=0)
    areas, areas_in_frame = np.zeros((2, len(objects), num_frames), dtype=np.int64)
    for index in sorted(range(len(objects)), key=lambda one: -objects[one].depth):
        toy_object, trajectory = objects[index], trajectories[index]
        sides = np.maximum(np.round(trajectory.diameters * short), 3).astype(int).tolist()
        lefts = np.round(trajectory.centres[:, 0] * width - trajectory.diameters * short / 2).astype(int).tolist()
        tops = np.round(trajectory.centres[:, 1] * height - trajectory.diameters * short / 2).astype(int).tolist()
        for frame in np.flatnonzero(trajectory.present).tolist():
            box = _overlap(lefts[frame], tops[frame], sides[frame], size)
            if frames is None:
                solid = stamp(toy_object.shape, sides[frame])[0] >= 128
            else:
                paint, remains, solid = painted(toy_object.shape, toy_object.colour, toy_object.pattern, sides[frame])
            areas[index, frame] = np.count_nonzero(solid)
            if box is None:
                continue
            target, source = box
            inside = solid[source]
            areas_in_frame[index, frame] = np.count_nonzero(inside)
            owner[frame][target][inside] = index
            if frames is not None:
                ground = frames[frame][target]
                frames[frame][target] = (ground * remains[source] + paint[source]) // 255
    masks = owner[None] == np.arange(len(objects), dtype=np.uint8)[:, None, None, None]
    return Clip(objects, trajectories, masks, areas, frames, areas_in_frame)


def _overlap(left: int, top: int, side: int, size: tuple[int, int]) -> tuple[tuple, tuple] | None:
    """Slices of the frame and of the stamp in which they overlap; `None` if they do not."""
    x1, y1, x2, y2 = max(left, 0), max(top, 0), min(left + side, size[1]), min(top + side, size[0])
    if x1 >= x2 or y1 >= y2:
        return None
    target = (slice(y1, y2), slice(x1, x2))
    return target, (slice(y1 - top, y2 - top), slice(x1 - left, x2 - left))


def events(clip: Clip) -> list[dict]:
    """
    The events of a clip in temporal order: `{"thing", "kind", "first", "last"}`, with the object's index and inclusive
    frame indices. Kinds are the motions; "hidden" for every span of full occlusion (for an object whose motion is
    "hide", "by" is the index of its occluder); "stops" for the pause of a stopping object; "first seen"; "gone".
    """
    found = []
    for index, (toy_object, trajectory) in enumerate(zip(clip.objects, clip.trajectories, strict=True)):
        seen = np.flatnonzero(clip.seen[index])
        if not seen.size:
            continue
        last = clip.num_frames - 1
        found.append({"thing": index, "kind": toy_object.motion, "first": int(seen[0]), "last": int(seen[-1])})
        if seen[0] > 0:
            found.append({"thing": index, "kind": "first seen", "first": int(seen[0]), "last": int(seen[0])})
        if toy_object.motion == "leave":
            found.append({"thing": index, "kind": "gone", "first": int(seen[-1]) + 1, "last": last})
        if toy_object.motion == "stop":
            rest = 1 + np.flatnonzero(np.abs(np.diff(trajectory.centres, axis=0)).sum(axis=1) < 1e-9)
            if rest.size:
                found.append({"thing": index, "kind": "stops", "first": int(rest[0]), "last": int(rest[-1])})
        found += _hidden_spans(clip, index)
    return sorted(found, key=lambda event: (event["first"], event["last"], event["thing"]))


def _hidden_spans(clip: Clip, index: int) -> list[dict]:
    steps = np.flatnonzero(np.diff(np.concatenate(([0], clip.covered[index], [0]))))
    found = []
    for first, end in zip(steps[::2].tolist(), steps[1::2].tolist(), strict=True):
        event = {"thing": index, "kind": "hidden", "first": first, "last": end - 1}
        if clip.objects[index].behind is not None:
            event["by"] = clip.objects[index].behind
        found.append(event)
    return found


class NoClipError(ValueError):
    """No clip fits what was asked for."""


def propose_clips(
    settings: ToySettings, constraints: ClipConstraints, number: int, num_frames: int, rng: np.random.Generator
) -> Iterator[Clip]:
    """
    Propose clips without frames that satisfy the constraints, until the caller accepts one. Motions and number of
    objects are drawn once and shared by all proposals, so that rejecting clips does not bias them.

    Raises:
        NoClipError: if 400 attempts did not lead to a clip that the caller accepts.
        ValueError: if an object is to hide in a clip of one object.
    """
    motions, with_occluder = draw_motions(constraints, number, rng)
    margin = 0.15 if constraints.rest else start_margin(settings.speed)
    for _ in range(400):
        objects = sample_objects(settings, constraints, motions, with_occluder, rng)
        place_objects(objects, margin, rng)
        clip = draw(objects, num_frames, (settings.height, settings.width), None)
        hidden = all(clip.visible_again(i) for i, toy_object in enumerate(objects) if toy_object.motion == "hide")
        if hidden and clip.clear[0]:
            yield clip
    raise NoClipError(f"no clip of {number} objects fits these settings: {settings}. Reduce things or speed")
