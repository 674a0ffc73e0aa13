"""Training examples of stage 2: dialogues and probes about toy world, and targets of the auxiliary losses."""

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
from sama.inputs_sama import questions_by_shape
from sama.objects_sama import Region
from sama.processing_sama import SamaProcessor
from sama.recipes.sama_tiny.labels import (
    attention_targets,
    cells,
    colours_of_cells,
    draw_stamps,
    facts,
    looks_of_cells,
    object_ids,
    places,
    unique_name,
)
from sama.recipes.sama_tiny.mask_examples import frame_of, prompt_attributes
from sama.toy_world.clip import Clip
from sama.toy_world.world import ToyWorld
from sama.video_sama import SamaVideo


TRAJECTORY_TIMES = 8  # moments of a clip at which heads predict the place of an object
TASKS = {
    "dialogue": 4, "refer_look": 2, "refer_motion": 3, "description": 0.3, "video_qa": 0.5, "caption": 0.3,
    "still": 0.3,
}  # fmt: skip
BLOCK = 4  # steps whose examples are drawn together and sorted by length
MASK_REGIONS = 0.85  # share of dialogues with masks only as regions; the others mix in clicks, boxes and scribbles
MASKS, REHEARSED = 512, 96  # masks per step in the first phase, and in the later ones


@dataclass
class TrainingExample:
    """A conversation about a clip, and the objects that it refers to.

    Args:
        messages (`list[dict]`): Input of the processor.
        clip (`Clip`): The clip.
        subjects (`list[int]`): Index of the object that each user turn asks about, -1 if unknown.
        regions, segs (`list[int]`): Index of the object of each region and of each [SEG], in reading order.
        frames (`list[int]`): The context frames.
        shown (`int`): The frame in which the masks of the [SEG]s are supervised.
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
        """Whether the context frames are frames of a video, not tiles of a still image."""
        return len(self.frames) <= self.clip.num_frames


class TrainingExamples(Dataset):
    """A data set of blocks of `BLOCK` steps; an item is the list of batches of a block."""

    def __init__(self, processor: SamaProcessor, config: SamaConfig, arguments: argparse.Namespace):
        self.processor, self.config, self.arguments, self.seed = processor, config, arguments, arguments.seed
        self.grid, self.process, self.processes = grid_size(config), process_index(), num_processes()
        self.world = ToyWorld({"split": "train", "tasks": TASKS}, self.seed)
        moving = {"dialogue": 3, "caption": 1, "refer_look": 1}
        self.probe_world = ToyWorld({"split": "train", "tasks": moving}, self.seed + 1)

    @property
    def phases(self) -> tuple[int, int, int]:
        """Number of steps up to the end of each of the three phases."""
        masks, arguments = self.arguments.mask_steps, self.arguments
        return masks, masks + arguments.probe_steps, masks + arguments.probe_steps + arguments.dialogue_steps

    def __len__(self) -> int:
        return -(-self.phases[-1] // BLOCK)

    def __getitem__(self, block: int) -> list[dict[str, dict[str, torch.Tensor]]]:
        """The batch of each step of a block: `stamps` and, after the first phase, `inputs` and `targets`."""
        steps = range(BLOCK * block, min(BLOCK * (block + 1), self.phases[-1]))
        batches = [{"stamps": self.stamps(step)} for step in steps]
        for with_language in (False, True):
            own = [
                place
                for place, step in enumerate(steps)
                if self.phases[0] <= step and with_language == (step >= self.phases[1])
            ]
            for place, examples in zip(own, self.of_similar_length(block, len(own), with_language), strict=True):
                inputs = self.encode(examples)
                batches[place] |= {"inputs": inputs, "targets": self.targets(examples, inputs)}
        return batches

    def of_similar_length(self, block: int, steps: int, with_language: bool) -> list[list[TrainingExample]]:
        """The examples of some steps of a block, sorted by number of messages and split into batches."""
        size, draw = self.arguments.batch_size, self.dialogue if with_language else self.probe
        first = (block * self.processes + self.process) * BLOCK * size
        drawn = sorted((draw(first + number) for number in range(steps * size)), key=lambda one: len(one.messages))
        order = np.random.default_rng([self.seed, 2, block]).permutation(steps)
        return [drawn[place * size : (place + 1) * size] for place in order]

    def dialogue(self, index: int) -> TrainingExample:
        """A record of toy world, rendered like the Trainer does."""
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
        pointed = [object_ids(message, "region", "object") for message in asked[: len(sample.messages) // 2]]
        subjects = [
            (regions or object_ids(answer, "grounded", "objects") or [-1])[0]
            for regions, answer in zip(pointed, answers, strict=False)
        ]
        regions = [thing for one in pointed for thing in one]
        segs = [int(name) for name in sample.objects]
        shown = frame_of(clip, segs, rng) if segs else 0
        example = TrainingExample(sample.messages, clip, subjects, regions, segs, shown=shown)
        return self.with_context_frames(example, video)

    def probe(self, index: int) -> TrainingExample:
        """A clip and short questions about each of its objects, by region and, if one is unique, by name."""
        rng = np.random.default_rng([self.seed, 1, index])
        clip = self.probe_world.generate(index)[1]
        video = SamaVideo.open(list(clip.frames))
        dense = self.processor.choose_frames(video).dense
        messages, subjects, regions = [], [], []
        for thing in range(len(clip.objects)):
            name, seen = unique_name(clip, thing, rng), [frame for frame in dense if clip.seen[thing, frame]]
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
        return self.with_context_frames(TrainingExample(messages, clip, subjects, regions), video)

    def with_context_frames(self, example: TrainingExample, video: SamaVideo) -> TrainingExample:
        """Set the context frames: frame indices of a clip, or zeros for the tiles of a still image."""
        tiles = len(self.processor.tile_pixel_values(video)) if video.is_image else 0
        example.frames = [0] * tiles if tiles else list(self.processor.choose_frames(video).context)
        return example

    def encode(self, examples: list[TrainingExample]) -> dict[str, torch.Tensor]:
        """Model inputs with labels."""
        batch = self.processor.apply_chat_template(
            [example.messages for example in examples], add_generation_prompt=False, return_assistant_tokens_mask=True
        )
        batch["labels"] = batch["input_ids"].masked_fill(batch.pop("assistant_masks") == 0, IGNORED)
        return dict(batch)

    def stamps(self, step: int) -> dict[str, torch.Tensor]:
        """Flattened masks of single objects at the input size of the shape encoders, their classes and places."""
        number, side = (MASKS if step < self.phases[0] else REHEARSED), self.config.region_mask_size
        masks, classes, spots = draw_stamps(number, np.random.default_rng([self.seed, 3, step, self.process]))
        masks = F.interpolate(torch.from_numpy(masks)[:, None].float(), (side, side), mode="nearest").flatten(1)
        return {"masks": masks, "places": spots, **classes}

    def targets(self, examples: list[TrainingExample], inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The targets of all heads and prompts; see the methods below. Targets of questions are ordered by the
        number of context frames, like in the aggregator."""
        questions = [(example, subject) for example in examples for subject in example.subjects]
        regions = [(example.clip, thing) for example in examples for thing in example.regions]
        segs = [(example.clip, thing) for example in examples for thing in example.segs]
        targets = self.context_targets(questions) | self.frame_targets(examples, inputs)
        groups = questions_by_shape(inputs["num_context_frames"][:, None], inputs["question_samples"])
        targets |= self.question_targets([questions[place] for group in groups for place in group.tolist()])
        if regions:
            targets["regions"] = torch.tensor([facts(*one) for one in regions]).T
            targets["trajectory"] = torch.from_numpy(np.stack([trajectory_of(*one) for one in regions]))
        if segs:
            targets |= dict(zip(("looks", "places"), map(torch.from_numpy, prompt_attributes(segs)), strict=True))
            targets["seg trajectory"] = torch.from_numpy(np.stack([trajectory_of(*one) for one in segs]))
            targets |= self.mask_targets([example for example in examples if example.segs])
        return targets

    def mask_targets(self, examples: list[TrainingExample]) -> dict[str, torch.Tensor]:
        """A frame of each example as input of SAM 2, (num_examples, 3, size, size); and for each [SEG] the row of
        its frame and its mask, (num_segs, height, width)."""
        return {
            "sam frames": torch.stack(
                [self.processor.sam_pixel_values(example.clip.frames[example.shown]) for example in examples]
            ),
            "seg rows": torch.arange(len(examples)).repeat_interleave(
                torch.tensor([len(example.segs) for example in examples])
            ),
            "seg masks": torch.from_numpy(
                np.concatenate([example.clip.masks[example.segs, example.shown] for example in examples])
            ),
        }

    def frame_targets(
        self, examples: list[TrainingExample], inputs: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """For each cell of the context frames the content by colour, and the shape and size of the object that
        covers most of it. Tiles of still images are excluded."""
        counts = zip(inputs["num_context_frames"].tolist(), inputs["num_extra_frames"].tolist(), strict=True)
        rows, first, held, seen = [], 0, [], []
        for example, (context, extra) in zip(examples, counts, strict=True):
            if example.whole_frames:
                rows += range(first, first + context)
                held.append(
                    colours_of_cells(example.clip, example.frames, self.grid).reshape(context, self.grid**2, -1)
                )
                seen.append(looks_of_cells(example.clip, example.frames, self.grid))
            first += context + extra
        return {
            "frames": torch.tensor(rows),
            "colours": torch.from_numpy(np.concatenate(held)),
            "seen": torch.from_numpy(np.concatenate(seen)),
        }

    def context_targets(self, questions: list[tuple[TrainingExample, int]]) -> dict[str, torch.Tensor]:
        """Place of the object in question in the frame of each context token, and a mask of the known ones."""
        known = [[subject >= 0 and example.whole_frames] * len(example.frames) for example, subject in questions]
        where = [places(example.clip, [max(subject, 0)], example.frames)[0] for example, subject in questions]
        known = torch.tensor([one for tokens in known for one in tokens])
        return {"context known": known, "context": torch.from_numpy(np.concatenate(where))[known]}

    def question_targets(self, questions: list[tuple[TrainingExample, int]]) -> dict[str, torch.Tensor]:
        """Colour and shape of the object in question. And for each pair of a question with known subject and a
        context frame of its video: its index among all `pairs`; its question (`pair questions`); the object's
        content of each cell (`held`); the target of the cells' attention to temporal tokens (`attention`) and
        its `weights`. Cells of the object, cells of other objects and background cells have the same total
        weight."""
        classes = [facts(example.clip, thing)[:2] if thing >= 0 else [IGNORED] * 2 for example, thing in questions]
        found, first, counted = defaultdict(list), 0, 0
        for number, (example, subject) in enumerate(questions):
            pairs = first + np.arange(len(example.frames))
            first += len(example.frames)
            if subject < 0 or not example.whole_frames:
                continue
            masks, counted = example.clip.masks[:, example.frames], counted + 1
            found["pairs"].append(pairs)
            found["pair questions"].append(np.full(len(example.frames), number))
            found["held"].append(cells(masks[subject], self.grid, of_frame=True))
            found["attention"].append(
                attention_targets(masks[subject], self.grid, self.config.aggregator_config.num_temporal_queries)
            )
            thing, things = (cells(mask, self.grid)[..., 0] > 0 for mask in (masks[subject], masks.any(0)))
            kinds = [kind for kind in (thing, things & ~thing, ~things) if kind.any()]
            found["weights"].append(sum(kind / kind.sum() for kind in kinds).astype(np.float32) / len(kinds))
        pairs = {name: torch.from_numpy(np.concatenate(parts)) for name, parts in found.items()}
        return pairs | {"counted": torch.tensor(counted), "subjects": torch.tensor(classes).T}


def trajectory_of(clip: Clip, thing: int) -> np.ndarray:
    """The places of an object at `TRAJECTORY_TIMES` moments, see [`places`]."""
    moments = np.linspace(0, clip.num_frames - 1, TRAJECTORY_TIMES).round().astype(int)
    return places(clip, [thing], moments)[0]


def grid_size(config: SamaConfig) -> int:
    """Number of cells along a side of a frame."""
    return int(config.backbone_config.image_seq_length**0.5)


def num_processes() -> int:
    """Number of processes that torchrun has started."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def process_index() -> int:
    """Index of this process."""
    return distributed.get_rank() if distributed.is_initialized() else 0
