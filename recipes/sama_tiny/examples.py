"""Lessons of the small model's second stage: dialogues and sights of toy world, and what is true of them."""

import argparse
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import distributed
from torch.nn import functional as F
from torch.utils.data import Dataset

from sama.configuration_sama import SamaConfig
from sama.data.collator import IGNORED
from sama.data.rendering import Renderer, RenderSettings
from sama.modeling_sama import questions_by_length
from sama.processing_sama import SamaProcessor
from sama.recipes.sama_tiny.labels import (
    cells,
    colours_of_cells,
    draw_stamps,
    facts,
    looks_of_cells,
    name_of,
    named,
    places,
    readers,
)
from sama.recipes.sama_tiny.mask_examples import frame_of, told_of
from sama.toy_world.clip import Clip
from sama.toy_world.world import ToyWorld
from sama.video_sama import Region, SamaVideo


WAY_TIMES = 8  # moments of a clip at which a region's state tells where the thing is
TALK = {
    "dialogue": 4, "refer_look": 2, "refer_motion": 3, "description": 0.3, "video_qa": 0.5, "caption": 0.3,
    "still": 0.3,
}  # fmt: skip
BLOCK = 4  # steps whose lessons are drawn together, so that those of a step are of like length
MASK_REGIONS = 0.85  # share of dialogues whose regions are masks; in the others they are clicks, boxes, scribbles too
MASKS, REHEARSED = 512, 96  # masks in a step of the first phase, and in one of the others


@dataclass
class Lesson:
    """A conversation, and what is true of the things in it.

    Args:
        messages (`list[dict]`): As the processor takes them.
        clip (`Clip`): What is shown.
        subjects (`list[int]`): The thing that each user turn asks about, -1 where that is not known.
        regions, segs (`list[int]`): The thing of each region and of each [SEG], in reading order.
        frames (`list[int]`): The context frames.
        shown (`int`): The frame in which the masks of [SEG]s are looked at.
    """

    messages: list[dict]
    clip: Clip
    subjects: list[int]
    regions: list[int]
    segs: list[int] = field(default_factory=list)
    frames: list[int] = field(default_factory=list)
    shown: int = 0

    @property
    def whole_frames(self) -> bool:
        """Whether the context frames are frames, not tiles of a still."""
        return len(self.frames) <= self.clip.num_frames


class Lessons(Dataset):
    """Lessons by their number; and what the model sees in each step and what is true of it, a block at a time."""

    def __init__(self, processor: SamaProcessor, config: SamaConfig, arguments: argparse.Namespace):
        self.processor, self.config, self.arguments, self.seed = processor, config, arguments, arguments.seed
        self.grid, self.process, self.processes = grid_of(config), process(), processes()
        self.world = ToyWorld({"split": "train", "tasks": TALK}, self.seed)
        moving = {"dialogue": 3, "caption": 1, "refer_look": 1}
        self.sights = ToyWorld({"split": "train", "tasks": moving}, self.seed + 1)

    @property
    def phases(self) -> tuple[int, int, int]:
        """The first steps of the phases after the first one, and the number of all steps."""
        masks, arguments = self.arguments.mask_steps, self.arguments
        return masks, masks + arguments.sight_steps, masks + arguments.sight_steps + arguments.dialogue_steps

    def __len__(self) -> int:
        return -(-self.phases[-1] // BLOCK)

    def __getitem__(self, block: int) -> list[dict[str, dict[str, torch.Tensor]]]:
        """For each step of a block the parts `stamps` and, after the first phase, `inputs` and `truth`."""
        steps = range(BLOCK * block, min(BLOCK * (block + 1), self.phases[-1]))
        examples = [{"stamps": self.stamps(step)} for step in steps]
        for with_language in (False, True):
            own = [
                place
                for place, step in enumerate(steps)
                if self.phases[0] <= step and with_language == (step >= self.phases[1])
            ]
            for place, lessons in zip(own, self.of_like_length(block, len(own), with_language), strict=True):
                inputs = self.encode(lessons)
                examples[place] |= {"inputs": inputs, "truth": self.truth(lessons, inputs)}
        return examples

    def of_like_length(self, block: int, steps: int, with_language: bool) -> list[list[Lesson]]:
        """The lessons of some steps of a block, those of each step about equally long."""
        size, lesson = self.arguments.batch_size, self.dialogue if with_language else self.sight
        first = (block * self.processes + self.process) * BLOCK * size
        drawn = sorted((lesson(first + number) for number in range(steps * size)), key=lambda one: len(one.messages))
        order = np.random.default_rng([self.seed, 2, block]).permutation(steps)
        return [drawn[place * size : (place + 1) * size] for place in order]

    def dialogue(self, index: int) -> Lesson:
        """A record of toy world as the Trainer would see it."""
        rng = np.random.default_rng([self.seed, index])
        task, clip, turns = self.world.generate(index)
        record = self.world.record(index, task, clip, turns)
        if task == "still":
            video = SamaVideo.open(clip.frames[0])
        else:
            video = SamaVideo.open(list(clip.frames))
        shape = "mask" if rng.random() < MASK_REGIONS else "mixed"
        sample = Renderer(self.processor, RenderSettings(regions=shape))(record, video, None, rng)
        asked = [message for message in record["messages"] if message["role"] == "user"]
        answers = [message for message in record["messages"] if message["role"] == "assistant"]
        pointed = [named(message, "region", "object") for message in asked[: len(sample.messages) // 2]]
        subjects = [
            (regions or named(answer, "grounded", "objects") or [-1])[0]
            for regions, answer in zip(pointed, answers, strict=False)
        ]
        regions = [thing for one in pointed for thing in one]
        segs = [int(name) for name in sample.objects]
        shown = frame_of(clip, segs, rng) if segs else 0
        lesson = Lesson(sample.messages, clip, subjects, regions, segs, shown=shown)
        return self.finish(lesson, video)

    def sight(self, index: int) -> Lesson:
        """A clip and one short question for each of its things, by a region or by a name that suits it alone."""
        rng = np.random.default_rng([self.seed, 1, index])
        clip = self.sights.generate(index)[1]
        video = SamaVideo.open(list(clip.frames))
        dense = self.processor.choose_frames(video).dense
        messages, subjects, regions = [], [], []
        for thing in range(len(clip.objects)):
            name, seen = name_of(clip, thing, rng), [frame for frame in dense if clip.seen[thing, frame]]
            for by_name in (False, True):
                if not seen or (by_name and name is None):
                    continue
                frame = seen[rng.integers(len(seen))]
                part = {"type": "region", "region": Region(frame=frame, mask=clip.masks[thing, frame])}
                content = [{"type": "text", "text": f"Find {name}."}] if by_name else [part]
                messages += [{"role": "user", "content": content}]
                messages += [{"role": "assistant", "content": [{"type": "text", "text": "."}]}]
                subjects.append(thing)
                regions += [] if by_name else [thing]
        messages[0]["content"].insert(0, {"type": "video", "video": video})
        return self.finish(Lesson(messages, clip, subjects, regions), video)

    def finish(self, lesson: Lesson, video: SamaVideo) -> Lesson:
        """The lesson with its context frames: frames of a clip, or the tiles of a still."""
        tiles = len(self.processor.tile_pixel_values(video)) if video.is_image else 0
        lesson.frames = [0] * tiles if tiles else list(self.processor.choose_frames(video).context)
        return lesson

    def encode(self, lessons: list[Lesson]) -> dict[str, torch.Tensor]:
        """Model inputs with labels."""
        batch = self.processor.apply_chat_template(
            [lesson.messages for lesson in lessons], add_generation_prompt=False, return_assistant_tokens_mask=True
        )
        batch["labels"] = batch["input_ids"].masked_fill(batch.pop("assistant_masks") == 0, IGNORED)
        return dict(batch)

    def stamps(self, step: int) -> dict[str, torch.Tensor]:
        """Masks of single things at the size of the shape encoders, flat, their shapes and sizes, and places."""
        number, side = (MASKS if step < self.phases[0] else REHEARSED), self.config.region_mask_size
        masks, classes, spots = draw_stamps(number, np.random.default_rng([self.seed, 3, step, self.process]))
        masks = F.interpolate(torch.from_numpy(masks)[:, None].float(), (side, side), mode="nearest").flatten(1)
        return {"masks": masks, "places": spots, **classes}

    def truth(self, lessons: list[Lesson], inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What the heads and prompts are to find, see the methods below. Of what belongs to questions, those
        about videos with fewer context frames come first, as in the aggregator."""
        questions = [(lesson, subject) for lesson in lessons for subject in lesson.subjects]
        regions = [(lesson.clip, thing) for lesson in lessons for thing in lesson.regions]
        segs = [(lesson.clip, thing) for lesson in lessons for thing in lesson.segs]
        truth = self.of_context_tokens(questions) | self.of_frames(lessons, inputs)
        groups = questions_by_length(inputs["num_context_frames"], inputs["question_samples"])
        truth |= self.of_questions([questions[place] for group in groups for place in group.tolist()])
        if regions:
            truth["regions"] = torch.tensor([facts(*one) for one in regions]).T
            truth["way"] = torch.from_numpy(np.stack([way_of(*one) for one in regions]))
        if segs:
            truth |= dict(zip(("looks", "places"), map(torch.from_numpy, told_of(segs)), strict=True))
            truth["seg way"] = torch.from_numpy(np.stack([way_of(*one) for one in segs]))
            truth |= self.of_masks([lesson for lesson in lessons if lesson.segs])
        return truth

    def of_masks(self, lessons: list[Lesson]) -> dict[str, torch.Tensor]:
        """A frame of each lesson as SAM 2 takes it, (num_lessons, 3, size, size); and of each [SEG] the row of its
        frame, and its mask there, (num_segs, height, width)."""
        return {
            "sam frames": torch.stack(
                [self.processor.sam_pixel_values(lesson.clip.frames[lesson.shown]) for lesson in lessons]
            ),
            "seg rows": torch.arange(len(lessons)).repeat_interleave(
                torch.tensor([len(lesson.segs) for lesson in lessons])
            ),
            "seg masks": torch.from_numpy(
                np.concatenate([lesson.clip.masks[lesson.segs, lesson.shown] for lesson in lessons])
            ),
        }

    def of_frames(self, lessons: list[Lesson], inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What each cell of the context frames holds of each colour, and shape and size of the thing that it holds
        most of, where these are frames and not tiles."""
        counts = zip(inputs["num_context_frames"].tolist(), inputs["num_extra_frames"].tolist(), strict=True)
        rows, first, held, seen = [], 0, [], []
        for lesson, (context, extra) in zip(lessons, counts, strict=True):
            if lesson.whole_frames:
                rows += range(first, first + context)
                held.append(colours_of_cells(lesson.clip, lesson.frames, self.grid).reshape(context, self.grid**2, -1))
                seen.append(looks_of_cells(lesson.clip, lesson.frames, self.grid))
            first += context + extra
        return {
            "frames": torch.tensor(rows),
            "colours": torch.from_numpy(np.concatenate(held)),
            "seen": torch.from_numpy(np.concatenate(seen)),
        }

    def of_context_tokens(self, questions: list[tuple[Lesson, int]]) -> dict[str, torch.Tensor]:
        """Where the thing in question is in the frame of each context token, and for which tokens that is known."""
        known = [[subject >= 0 and lesson.whole_frames] * len(lesson.frames) for lesson, subject in questions]
        where = [places(lesson.clip, [max(subject, 0)], lesson.frames)[0] for lesson, subject in questions]
        known = torch.tensor([one for tokens in known for one in tokens])
        return {"context known": known, "context": torch.from_numpy(np.concatenate(where))[known]}

    def of_questions(self, questions: list[tuple[Lesson, int]]) -> dict[str, torch.Tensor]:
        """Colour and shape of the thing in question; and for each pair of a question and a context frame of its video,
        where a thing is known: its number among all `pairs` and that of its question (`askers`), where cells hold the
        thing (`held`), and which temporal tokens they are to read (`readers`) with which weight (`weights`). The few
        cells that hold the thing, those that hold another one and the bare ground weigh the same."""
        classes = [facts(lesson.clip, thing)[:2] if thing >= 0 else [IGNORED] * 2 for lesson, thing in questions]
        found, first, counted = defaultdict(list), 0, 0
        for number, (lesson, subject) in enumerate(questions):
            pairs = first + np.arange(len(lesson.frames))
            first += len(lesson.frames)
            if subject < 0 or not lesson.whole_frames:
                continue
            masks, counted = lesson.clip.masks[:, lesson.frames], counted + 1
            found["pairs"].append(pairs)
            found["askers"].append(np.full(len(lesson.frames), number))
            found["held"].append(cells(masks[subject], self.grid, of_frame=True))
            found["readers"].append(readers(masks[subject], self.grid, self.config.num_temporal_queries))
            thing, things = (cells(mask, self.grid)[..., 0] > 0 for mask in (masks[subject], masks.any(0)))
            kinds = [kind for kind in (thing, things & ~thing, ~things) if kind.any()]
            found["weights"].append(sum(kind / kind.sum() for kind in kinds).astype(np.float32) / len(kinds))
        pairs = {name: torch.from_numpy(np.concatenate(parts)) for name, parts in found.items()}
        return pairs | {"counted": torch.tensor(counted), "subjects": torch.tensor(classes).T}


def way_of(clip: Clip, thing: int) -> np.ndarray:
    """Where a thing is at `WAY_TIMES` moments, as [`places`] says."""
    moments = np.linspace(0, clip.num_frames - 1, WAY_TIMES).round().astype(int)
    return places(clip, [thing], moments)[0]


def grid_of(config: SamaConfig) -> int:
    """Cells along a side of a frame."""
    return int(config.image_seq_length**0.5)


def processes() -> int:
    """How many processes train together, as torchrun has started them."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def process() -> int:
    """The number of this one."""
    return distributed.get_rank() if distributed.is_initialized() else 0
