"""Training examples of stage 1: frames and short clips of toy world, and the attributes that prompt their objects."""

from argparse import Namespace

import numpy as np
import torch

from sama.configuration_sama import PADDING_LABEL, SamaConfig
from sama.processing_sama import SamaProcessor
from sama.recipes.sama_tiny.labels import patch_labels
from sama.recipes.sama_tiny.phases import Batch, Examples, stacked
from sama.toy_world.clip import Clip, ClipConstraints, propose_clips
from sama.toy_world.motion import draw_solo_motions
from sama.toy_world.shapes import COLOURS, SHAPES, SIZES
from sama.toy_world.world import ToyWorld


# Clips of these tasks do not depend on the wording of questions
CLIP_TASK_WEIGHTS = {"description": 2, "refer_look": 3, "refer_motion": 2, "caption": 1}
FRAMES, CLIP_FRAMES = 16, 5  # length of a toy clip, and frames of it in a step with memory
STRIDES = 3  # largest distance between the frames of a step with memory
HIDING = 0.4  # share of clips in which an object is made to hide, in addition to random ones
HIDDEN = 0.5  # probability of preferring a frame in which an object is hidden
BESIDE = 3  # largest distance in frames from a frame in which an object is hidden to those beside it
PROMPT_NOISE = 0.5  # maximum standard deviation of the noise on prompts, whose variance is 1
LEFT_OUT = 0.15  # probability of leaving out a colour or shape that is not needed
PLACE_ALONE, LOOK_ALONE = 0.6, 0.2  # probability of giving the place only, and of leaving it out
NOTHING = (len(COLOURS), len(SHAPES), len(SIZES))  # attributes of an object of which none is given
# What the generators of examples are seeded with after the seed of the run, apart from the tags of stages 2 and 3
# (examples.py); clips of another split than "train" have other backgrounds
CLIPS, STEPS, HELD_OUT_CLIPS = 10, 11, 12
SHIFT, JITTER = 0.04, 0.03  # noise on all centres of an object and on each one, in fractions of the frame


def look_classes(clip: Clip) -> np.ndarray:
    """Colour, shape and size of each object as class indices, (num_objects, 3)."""
    kinds = [list(kind) for kind in (COLOURS, SHAPES, SIZES)]
    looks = [(thing.colour, thing.shape, thing.size) for thing in clip.objects]
    return np.array([[kind.index(word) for kind, word in zip(kinds, look, strict=True)] for look in looks])


def place_of(masks: np.ndarray) -> np.ndarray:
    """Mean, first and last centre of each object's visible pixels, x before y, in fractions of the frame, and a 1:
    (num_objects, 7); zeros for objects that are never visible."""
    height, width = masks.shape[-2:]
    rows, columns = (np.arange(side) + 0.5 for side in (height, width))
    places = np.zeros((len(masks), 7), dtype=np.float32)
    for place, track in zip(places, masks, strict=True):
        seen = track[track.any(axis=(1, 2))]
        if len(seen):
            area = seen.sum(axis=(1, 2))
            x, y = (seen.sum(1) @ columns / area / width), (seen.sum(2) @ rows / area / height)
            place[:] = (x.mean(), y.mean(), x[0], y[0], x[-1], y[-1], 1)
    return places


def prompt_attributes(things: list[tuple[Clip, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Looks (num_objects, 3) and places (num_objects, 7) of objects for [`AttributePrompts`]. The size is given
    only if colour and shape are ambiguous: answers rarely mention it, and the language model would have to see
    it."""
    looks = []
    for clip, thing in things:
        own = look_classes(clip)
        look, others = own[thing].copy(), np.delete(own, thing, axis=0)
        if not (others[:, :2] == look[:2]).all(1).any():
            look[2] = len(SIZES)
        looks.append(look)
    return np.stack(looks), np.concatenate([place_of(clip.masks[[thing]]) for clip, thing in things])


def sample_attributes(clip: Clip, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Looks and places of a clip's objects for [`AttributePrompts`]. Half of the time those that the language model
    will be trained to give; otherwise attributes that are not needed are left out at random. For some objects
    only the place is given: a look is sufficient so often that the decoder would not learn to use places
    (docs/log.md)."""
    if rng.random() < 0.5:
        given, places = prompt_attributes([(clip, thing) for thing in range(len(clip.objects))])
        return torch.from_numpy(given), torch.from_numpy(perturb_places(places, rng))
    looks, places = look_classes(clip), perturb_places(place_of(clip.masks), rng)
    given = looks.copy()
    for number, look in enumerate(looks):
        others = np.delete(looks, number, axis=0)
        unique = not (others == look).all(1).any()
        chance = rng.random()
        if places[number].any() and chance < PLACE_ALONE:
            given[number] = NOTHING
            continue
        if unique and chance > 1 - LOOK_ALONE:
            places[number] = 0
        for kind, unknown in enumerate(NOTHING):
            trial = given[number].copy()
            trial[kind] = unknown
            known = trial != NOTHING
            decides = places[number].any() or not (others[:, known] == look[known]).all(1).any()
            if decides and rng.random() < (0.5 if kind == 2 else LEFT_OUT):
                given[number] = trial
    return torch.from_numpy(given), torch.from_numpy(places)


def perturb_places(places: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add noise to places, since predicted ones are never exact."""
    centres = places[:, :-1].reshape(len(places), -1, 2)
    gaps = SHIFT * rng.standard_normal((len(places), 1, 2)) + JITTER * rng.standard_normal(centres.shape)
    blurred = np.concatenate([(centres + gaps).reshape(len(places), -1), places[:, -1:]], 1)
    return (blurred * places[:, -1:]).astype(np.float32)  # zeros where a thing is never seen


def frame_of(clip: Clip, things: list[int] | slice, rng: np.random.Generator) -> int:
    """A random frame of a clip: often one in which one of these objects is hidden, if there is any, otherwise one
    in which at least one of them is visible."""
    hidden = np.flatnonzero(clip.covered[things].any(0)) if rng.random() < HIDDEN else ()
    return int(rng.choice(hidden if len(hidden) else np.flatnonzero(clip.seen[things].any(0))))


def frames_beside_hiding(clip: Clip, things: list[int]) -> np.ndarray:
    """The frames in which one of these objects is visible at most `BESIDE` frames before or after it is hidden."""
    around = np.ones(2 * BESIDE + 1)
    near = np.stack([np.convolve(covered, around)[BESIDE:-BESIDE] > 0 for covered in clip.covered[things]])
    return np.flatnonzero((near & clip.seen[things].astype(bool)).any(0))


def point_at(mask: np.ndarray, size: int, rng: np.random.Generator) -> tuple[list, list]:
    """A click or a box on a mask, as two points with labels, in pixels of a square image of side `size`; the second
    point of a click is padding."""
    rows, columns = np.nonzero(mask)
    y_scale, x_scale = size / mask.shape[0], size / mask.shape[1]
    if rng.random() < 0.5:
        chosen = rng.integers(len(rows))
        return [[(columns[chosen] + 0.5) * x_scale, (rows[chosen] + 0.5) * y_scale], [0, 0]], [1, PADDING_LABEL]
    corners = [[columns.min() * x_scale, rows.min() * y_scale]]
    return [*corners, [(columns.max() + 1) * x_scale, (rows.max() + 1) * y_scale]], [2, 3]


class MaskExamples(Examples):
    """
    The batches of a phase of stage 1: single frames, or short clips. Objects that are hard to tell apart are frequent,
    because a decoder that has seen few of them segments both. So are hiding objects: a decoder that has seen few of
    them segments the occluder (docs/log.md).

    Args:
        memory_steps (`int`): Steps in four that use short clips.
        split (`str`): Split of toy world.
    """

    def __init__(
        self,
        processor: SamaProcessor,
        config: SamaConfig,
        arguments: Namespace,
        steps: int,
        first: int = 0,
        memory_steps: int = 0,
        split: str = "train",
    ):
        super().__init__(processor, config, arguments, steps, first)
        self.memory_steps, mask_config = memory_steps, self.config.mask_config
        self.grid = mask_config.vision_config.backbone_feature_sizes[-1][0]
        self.width = mask_config.prompt_encoder_config.hidden_size
        self.world = ToyWorld({"frames": [FRAMES, FRAMES], "split": split, "tasks": CLIP_TASK_WEIGHTS}, self.seed)

    def batch(self, step: int) -> Batch:
        with_memory = (self.first + step) % 4 >= 4 - self.memory_steps
        size = max(self.arguments.images, self.arguments.clips)
        rng = np.random.default_rng([self.seed, STEPS, self.first + step, self.process])
        number = self.arguments.clips if with_memory else self.arguments.images
        clips = [self.clip(index) for index in self.indices(step, size)[:number]]
        found = self.memory_batch(clips, rng) if with_memory else self.frame_batch(clips, rng)
        found["inputs"]["seed"] = torch.tensor(int(rng.integers(2**31)))
        return found

    def memory_batch(self, clips: list[Clip], rng: np.random.Generator) -> Batch:
        """A few frames of each clip, of which one or two are prompted."""
        strides = rng.integers(1, STRIDES + 1, len(clips))
        frames = [
            rng.integers(FRAMES - stride * (CLIP_FRAMES - 1)) + stride * np.arange(CLIP_FRAMES) for stride in strides
        ]
        prompted = sorted(rng.choice(CLIP_FRAMES, rng.integers(1, 3), replace=False).tolist())
        words = [sample_attributes(clip, rng) for clip in clips]
        found = self.collate_clips(clips, frames, prompted, words)
        found["inputs"]["noise"] = self.noise(words, rng)
        return found

    def clip(self, index: int, hiding: float = HIDING) -> Clip:
        """The clip of this index: a random one or, in a share of `hiding`, one in which the first object hides. Its
        background has a generator of its own, so that it does not depend on the wording of questions."""
        kind = CLIPS if self.world.settings.split == "train" else HELD_OUT_CLIPS
        rng = np.random.default_rng([self.seed, kind, index])
        if rng.random() >= hiding:
            return self.world.render(self.world.generate(index, frames=False)[1], rng)
        settings = self.world.settings
        number = rng.integers(2, settings.things[1] + 1)
        constraints = ClipConstraints(motions=["hide", *draw_solo_motions(number - 1, rng)])
        return self.world.render(next(propose_clips(settings, constraints, number, FRAMES, rng)), rng)

    def frame_batch(self, clips: list[Clip], rng: np.random.Generator) -> Batch:
        """
        One frame of each clip: all objects prompted by attributes, and the visible ones by a click or a box.

        Raises:
            ValueError: if no object is visible in any of the frames.
        """
        chosen = [[frame_of(clip, slice(None), rng)] for clip in clips]
        words = [sample_attributes(clip, rng) for clip in clips]
        found = self.collate_clips(clips, chosen, [0], words)
        found["inputs"]["noise"] = self.noise(words, rng)
        masks, size = found["labels"]["masks"].numpy(), self.processor.sam_image_size
        seen = np.flatnonzero(masks.any((1, 2)))
        if not len(seen):
            raise ValueError(f"no object is visible in the {len(clips)} frames of this step: raise --images")
        points, labels = zip(*(point_at(masks[row], size, rng) for row in seen), strict=True)
        found["inputs"] |= {
            "seen": torch.from_numpy(seen),
            "points": torch.tensor(points, dtype=torch.float32),
            "labels": torch.tensor(labels, dtype=torch.int32),
        }
        patches = [patch_labels(clip, frame, self.grid) for clip, (frame,) in zip(clips, chosen, strict=True)]
        found["labels"] |= stacked(patches)
        return found

    def collate_clips(self, clips: list[Clip], frames: list, prompted: list[int], words: list) -> Batch:
        """The same number of frames of each clip, ordered by time, then by clip; masks of all objects (num_frames *
        num_objects, height, width), the clip of each object, and its attributes."""
        pairs = [pair for moment in zip(*frames, strict=True) for pair in zip(clips, moment, strict=True)]
        looks, places = (torch.cat(parts) for parts in zip(*words, strict=True))
        rows = torch.arange(len(clips)).repeat_interleave(torch.tensor([len(clip.masks) for clip in clips]))
        inputs = {
            "pixels": torch.stack([self.processor.sam_pixel_values(clip.frames[frame]) for clip, frame in pairs]),
            "rows": rows,
            "prompted": torch.tensor(prompted),
            "looks": looks,
            "places": places,
        }
        masks = np.concatenate([clip.masks[:, frame] for clip, frame in pairs])
        return {"inputs": inputs, "labels": {"masks": torch.from_numpy(masks)}}

    def noise(self, words: list, rng: np.random.Generator) -> torch.Tensor:
        """Noise on the prompts, because predicted ones are never exact."""
        number = sum(len(looks) for looks, _ in words)
        level = PROMPT_NOISE * rng.random((number, 1))
        return torch.from_numpy((level * rng.standard_normal((number, self.width))).astype(np.float32))
