"""Training examples of stages 2 and 3: frames, videos and dialogues of toy world, with labels of the heads."""

from argparse import Namespace
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from sama.configuration_sama import DENSE_FRAME_TOKEN, SamaConfig
from sama.data.collator import IGNORED
from sama.data.rendering import UNSEEN, Renderer, RenderSettings
from sama.processing_sama import SamaProcessor
from sama.recipes.sama_tiny.heads import MOST_LISTED, PARTNER, QUESTIONED, TRAJECTORY_TIMES
from sama.recipes.sama_tiny.labels import (
    CLOSED_SETS,
    PLACE,
    colours_of_cells,
    draw_single_masks,
    key_moment,
    looks_of_cells,
    object_classes,
    object_ids,
    patch_labels,
    places,
    track_labels,
)
from sama.recipes.sama_tiny.mask_examples import frame_of, frames_beside_hiding, prompt_attributes
from sama.recipes.sama_tiny.phases import Batch, Examples, stacked
from sama.recipes.sama_tiny.practice import practice_clips, practice_dialogues
from sama.toy_world.clip import FRAME_SIDE, Clip, ClipConstraints, propose_clips
from sama.toy_world.tasks import draw_number
from sama.toy_world.wording import ORDER
from sama.toy_world.world import ToyWorld
from sama.video_sama import SamaVideo


OBJECTS_OF_A_FRAME = (2, 6)
# Questions about all objects, or all of a colour, shape or motion
OF_SEVERAL = ("count_all", "count_look", "count_motion", "all_look", "all_motion", "caption")
MASK_REGIONS = 0.85  # share of dialogues whose regions are all masks; in the others each is a mask or a box
# Probability of preferring a frame beside those in which an object is hidden: it is there, and the decoder has learned
# from many hidden objects to mark nothing (docs/log.md)
BESIDE_HIDING = 0.5
MASKS = 256  # single masks of a step and process
# What the generators of examples are seeded with after the seed of the run; 1 and 2 are those of the splits of toy
# world, 10 to 12 those of stage 1 (mask_examples.py)
SINGLE_FRAMES, SINGLE_MASKS, BATCHES, DIALOGUES = 20, 21, 22, 23


def joined(labels: list[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
    """The labels of several clips, concatenated by name."""
    return {name: torch.from_numpy(np.concatenate([one[name] for one in labels])) for name in labels[0]}


class VisionExamples(Examples):
    """Batches with labels of frames."""

    @property
    def grid(self) -> int:
        """Number of cells along a side of a frame."""
        return int(self.config.backbone_config.image_seq_length**0.5)

    @property
    def patch_grid(self) -> int:
        """Number of patches of the vision tower along a side of a frame."""
        vision = self.config.backbone_config.vision_config
        return vision.image_size[0] // vision.patch_size[0]

    def frame_labels(self, clips: list[Clip], frames: list[list[int]]) -> dict[str, torch.Tensor]:
        """Labels of all patches and cells of these frames of each clip."""
        pairs = [(clip, frame) for clip, own in zip(clips, frames, strict=True) for frame in own]
        cells = [
            {
                "cell colours": colours_of_cells(clip, own, self.grid).reshape(len(own), self.grid**2, -1),
                "cell looks": looks_of_cells(clip, own, self.grid),
            }
            for clip, own in zip(clips, frames, strict=True)
        ]
        return stacked([patch_labels(clip, frame, self.patch_grid) for clip, frame in pairs]) | joined(cells)

    def pixel_values(self, frames: list[np.ndarray]) -> torch.Tensor:
        """Input of the vision tower, (num_frames, 3, height, width)."""
        return self.processor.family.frame_pixel_values(
            self.processor.image_processor, [Image.fromarray(frame) for frame in frames]
        )


class FrameExamples(VisionExamples):
    """Single frames with two to six objects, and single masks. All frames of a clip show the same objects, so the same
    number of frames from fewer clips teaches less."""

    @cached_property
    def world(self) -> ToyWorld:
        """Renders the clips."""
        return ToyWorld({"split": "train", "things": OBJECTS_OF_A_FRAME}, self.seed)

    def batch(self, step: int) -> Batch:
        clips = [self.clip(index) for index in self.indices(step, self.arguments.frames)]
        labels = self.frame_labels(clips, [[0]] * len(clips))
        inputs = {"pixel_values": self.pixel_values([clip.frames[0] for clip in clips])}
        return {"inputs": inputs, "labels": labels, "single masks": self.single_masks(step)}

    def clip(self, index: int) -> Clip:
        rng = np.random.default_rng([self.seed, SINGLE_FRAMES, index])
        number = draw_number(OBJECTS_OF_A_FRAME, rng)
        found = propose_clips(self.world.settings, ClipConstraints(rest=True), number, 1, rng)
        return self.world.render(next(found), rng)

    def single_masks(self, step: int) -> dict[str, torch.Tensor]:
        """Flattened masks of single objects at the input size of the shape encoders, their classes and places."""
        side = self.config.region_mask_size
        rng = np.random.default_rng([self.seed, SINGLE_MASKS, self.first + step, self.process])
        masks, classes, spots = draw_single_masks(MASKS, rng)
        masks = F.interpolate(torch.from_numpy(masks)[:, None].float(), (side, side), mode="nearest").flatten(1)
        return {"masks": masks, "places": spots, "classes": classes}


class VideoExamples(VisionExamples):
    """The frames of clips as the language model reads them, without a question: every conversation about a clip begins
    with these tokens, and attention is causal, so their states are the same in all of them."""

    @cached_property
    def world(self) -> ToyWorld:
        """Draws the clips."""
        return practice_clips(self.seed)

    @cached_property
    def prefixes(self) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
        """Token ids and types up to the last dense frame, by the number of dense frames."""
        shortest, longest = self.world.settings.frames
        return dict(self.prefix(length) for length in range(shortest, longest + 1))

    @cached_property
    def frames(self) -> FrameExamples:
        """Other frames than those of the phase before."""
        return FrameExamples(self.processor, self.config, self.arguments, self.steps, self.arguments.frame_steps)

    def prefix(self, length: int) -> tuple[int, tuple[torch.Tensor, torch.Tensor]]:
        """The number of dense frames of a clip of this length, and token ids and types up to the last of them."""
        video = SamaVideo.open([np.zeros((FRAME_SIDE, FRAME_SIDE, 3), dtype=np.uint8)] * length)
        content = [{"type": "video", "video": video}, {"type": "text", "text": "."}]
        read = self.processor.apply_chat_template([[{"role": "user", "content": content}]])
        types = read["mm_token_type_ids"][0]
        end = int((types == DENSE_FRAME_TOKEN).nonzero()[-1]) + 1
        return len(self.processor.choose_frames(video).dense), (read["input_ids"][0, :end], types[:end])

    def batch(self, step: int) -> Batch:
        clips = [self.world.generate(index)[1] for index in self.indices(step, self.arguments.videos)]
        frames = [list(self.processor.choose_frames(SamaVideo.open(list(clip.frames))).dense) for clip in clips]
        shown = [clip.frames[frame] for clip, own in zip(clips, frames, strict=True) for frame in own]
        prefixes = [self.prefixes[len(own)] for own in frames]
        pad = partial(torch.nn.utils.rnn.pad_sequence, batch_first=True, padding_side="left")
        inputs = {
            "pixel_values": self.pixel_values(shown),
            "input_ids": pad([ids for ids, _ in prefixes], padding_value=self.processor.tokenizer.pad_token_id),
            "mm_token_type_ids": pad([types for _, types in prefixes]),
            "attention_mask": pad([torch.ones_like(ids) for ids, _ in prefixes]),
        }
        labels = self.frame_labels(clips, frames) | track_labels_of(clips, frames, self.grid)
        return {"inputs": inputs, "labels": labels, "frames": self.frames.batch(step)}


def track_labels_of(clips: list[Clip], frames: list[list[int]], grid: int) -> dict[str, torch.Tensor]:
    """[`labels.track_labels`] of several clips, with `cells` and `video_cells`, all cells of videos, as indices of all
    dense cells of the batch. The tiles of still images have no labels: their frame list is empty. Without any video
    there are none at all."""
    found, first = [], 0
    for clip, own in zip(clips, frames, strict=True):
        number = len(own) * grid**2
        if clip.num_frames > 1:
            labels = track_labels(clip, own, grid)
            own_cells = {"cells": first + labels["cells"], "group_cells": first + labels["group_cells"]}
            found.append(labels | own_cells | {"video_cells": first + np.arange(number)})
        first += number
    return joined(found) if found else {}


@dataclass
class Dialogue:
    """A conversation about a clip, and the objects that it refers to.

    Args:
        messages (`list[dict]`): Input of the processor.
        clip (`Clip`): The clip.
        pointed (`list[list[int]]`): Indices of the objects of the regions of each user turn.
        subjects (`list[int]`): Index of the object that each user turn points at, names or describes first, -1
            without one.
        described (`list[int]`): Index of the only object that the answer of each user turn marks, -1 if the question
            has a region or asks which of two objects is larger, or if the answer marks several objects or none.
        listed (`list[list[int] | None]`): Indices of the objects that the answer of each user turn lists, in order;
            `None` if the question is not one about several objects (`OF_SEVERAL`).
        infos (`list[dict]`): Kind and decisive words of each answer, see [`toy_world.world.messages`].
        segs (`list[int]`): Index of the object of each [SEG], in reading order.
        context, dense (`list[int]`): The context frames and the dense frames; the former are zeros for the tiles of a
            still image.
        shown (`int`): The frame in which the masks of the [SEG]s are supervised.
    """

    messages: list[dict]
    clip: Clip
    pointed: list[list[int]]
    subjects: list[int]
    described: list[int]
    listed: list[list[int] | None]
    infos: list[dict]
    segs: list[int] = field(default_factory=list)
    context: list[int] = field(default_factory=list)
    dense: list[int] = field(default_factory=list)
    shown: int = 0

    @property
    def regions(self) -> list[int]:
        """Index of the object of each region, in reading order."""
        return [thing for one in self.pointed for thing in one]


class DialogueExamples(VisionExamples):
    """
    Dialogues. Those of a block are drawn together and sorted by length.

    Args:
        with_masks (`bool`): Whether each batch has a frame of each dialogue for SAM 2, and masks of the [SEG]s in it.
    """

    def __init__(
        self,
        processor: SamaProcessor,
        config: SamaConfig,
        arguments: Namespace,
        steps: int,
        first: int = 0,
        with_masks: bool = False,
    ):
        super().__init__(processor, config, arguments, steps, first)
        self.world, self.with_masks = practice_dialogues(self.seed), with_masks

    def __getitem__(self, block: int) -> list[Batch]:
        steps, size = self.steps_of(block), self.arguments.dialogues
        drawn = [self.dialogue(index) for step in steps for index in self.indices(step, size)]
        drawn.sort(key=lambda one: len(one.messages))
        order = np.random.default_rng([self.seed, BATCHES, self.first, block]).permutation(len(steps))
        batches = [drawn[place * size : (place + 1) * size] for place in order]
        return [{"inputs": self.encode(own), "labels": self.labels(own)} for own in batches]

    def dialogue(self, index: int) -> Dialogue:
        """
        A record of toy world, rendered like the Trainer does.

        Raises:
            ValueError: if the renderer leaves out turns: labels are assigned by the order of turns.
        """
        rng = np.random.default_rng([self.seed, DIALOGUES, index])
        task, clip, turns = self.world.generate(index)
        record = self.world.record(index, task, clip, turns)
        video = SamaVideo.open(clip.frames[0] if task == "still" else list(clip.frames))
        shape = "mask" if rng.random() < MASK_REGIONS else "mixed"
        sample = Renderer(self.processor, RenderSettings(regions=shape))(record, video, None, rng)
        if UNSEEN in sample.left_out:
            raise ValueError(
                f"{record['id']}: {sample.left_out[UNSEEN]} {UNSEEN}: labels would be those of other turns"
            )
        asked = [message for message in record["messages"] if message["role"] == "user"]
        answers = [message for message in record["messages"] if message["role"] == "assistant"]
        asked, answers = (one[: len(sample.messages) // 2] for one in (asked, answers))
        pointed = [object_ids(message, "region", "object") for message in asked]
        marked = [object_ids(message, "grounded", "objects") for message in answers]
        segs, infos = [int(name) for name in sample.objects], [answer["info"] for answer in answers]
        subjects, described = [], []
        for regions, things, info in zip(pointed, marked, infos, strict=True):
            # The question names none of these: the larger one of two, and several objects in the order of their names
            unnamed = info["kind"] == "larger" or (info["kind"] in OF_SEVERAL and len(things) > 1)
            known = [] if unnamed and not regions else things
            subjects.append((regions or known or [-1])[0])
            described.append(known[0] if len(known) == 1 and not regions else -1)
        listed = [  # a caption may mark an object twice
            list(dict.fromkeys(things)) if info["kind"] in OF_SEVERAL else None
            for things, info in zip(marked, infos, strict=True)
        ]
        found = Dialogue(sample.messages, clip, pointed, subjects, described, listed, infos, segs)
        if video.is_image:
            found.context = [0] * len(self.processor.tile_pixel_values(video))
        else:
            frames = self.processor.choose_frames(video)
            found.context, found.dense = list(frames.context), list(frames.dense)
        if segs:
            beside = frames_beside_hiding(clip, segs) if rng.random() < BESIDE_HIDING else ()
            found.shown = int(rng.choice(beside)) if len(beside) else frame_of(clip, segs, rng)
        return found

    def encode(self, dialogues: list[Dialogue]) -> dict[str, torch.Tensor]:
        """Model inputs with labels."""
        batch = self.processor.apply_chat_template(
            [one.messages for one in dialogues], add_generation_prompt=False, return_assistant_tokens_mask=True
        )
        batch["labels"] = batch["input_ids"].masked_fill(batch.pop("assistant_masks") == 0, IGNORED)
        return dict(batch)

    def labels(self, dialogues: list[Dialogue]) -> dict[str, torch.Tensor]:
        """The labels of all heads and prompts; see the methods below and [`track_labels_of`]."""
        labels = self.context_labels(dialogues)
        labels |= track_labels_of([one.clip for one in dialogues], [one.dense for one in dialogues], self.grid)
        labels |= question_labels(dialogues)
        labels |= object_labels("region", [(one.clip, thing) for one in dialogues for thing in one.regions])
        things = [(one.clip, thing) for one in dialogues for thing in one.segs]
        labels |= object_labels("seg", things)
        if things:
            looks, spots = prompt_attributes(things)
            labels |= {"prompt looks": torch.from_numpy(looks), "prompt places": torch.from_numpy(spots)}
            if self.with_masks:
                labels |= self.mask_labels([one for one in dialogues if one.segs])
        return labels

    def mask_labels(self, dialogues: list[Dialogue]) -> dict[str, torch.Tensor]:
        """A frame of each dialogue as input of SAM 2, (num_dialogues, 3, size, size); and for each [SEG] the row of
        its frame and its mask, (num_segs, height, width)."""
        return {
            "sam_pixel_values": torch.stack(
                [self.processor.sam_pixel_values(one.clip.frames[one.shown]) for one in dialogues]
            ),
            "seg rows": torch.arange(len(dialogues)).repeat_interleave(
                torch.tensor([len(one.segs) for one in dialogues])
            ),
            "seg masks": torch.from_numpy(np.concatenate([one.clip.masks[one.segs, one.shown] for one in dialogues])),
        }

    def context_labels(self, dialogues: list[Dialogue]) -> dict[str, torch.Tensor]:
        """Place of the object in question in the frame of each context token, and a mask of the known ones."""
        asked = [(one, subject) for one in dialogues for subject in one.subjects]
        known = [[subject >= 0 and bool(one.dense)] * len(one.context) for one, subject in asked]
        where = [places(one.clip, [max(subject, 0)], one.context)[0] for one, subject in asked]
        known = torch.tensor([one for tokens in known for one in tokens])
        if not known.any():
            return {}
        return {"context known": known, "context": torch.from_numpy(np.concatenate(where))[known]}


def question_labels(dialogues: list[Dialogue]) -> dict[str, torch.Tensor]:
    """
    Labels of the objects that each question is about, of the turns that have them (`QUESTIONED`); and for all turns,
    -100 where not asked:

    - `fits`: whether the object that is asked for is there
    - `number`: how many objects the answer lists, see [`listed_labels`]
    - `order`: whether the first event is before or after the second one
    - `shape partners`, `colour partners`: the colour of an object whose shape is asked for, and vice versa
    """
    turns, labels = [], {}
    for one in dialogues:
        for things, described in zip(one.pointed, one.described, strict=True):
            chosen = [*things[:2], *[-1] * (2 - len(things)), described]
            turns.append([(one.clip, thing) for thing in chosen])
    for place, name in enumerate(QUESTIONED):
        known = [turn for turn, chosen in enumerate(turns) if chosen[place][1] >= 0]
        labels[f"{name} turns"] = torch.tensor(known, dtype=torch.long)
        labels |= object_labels(name, [turns[turn][place] for turn in known])
    for kind, partner in PARTNER.items():
        place = list(CLOSED_SETS).index(partner)
        labels[f"{kind} partners"] = torch.tensor(
            [
                object_classes(one.clip, subject)[place] if asks_for(info, kind) and subject >= 0 else IGNORED
                for one in dialogues
                for info, subject in zip(one.infos, one.subjects, strict=True)
            ]
        )
    infos = [info for one in dialogues for info in one.infos]
    fits = [{"refer": 1, "no_target": 0}.get(info["kind"], IGNORED) for info in infos]
    orders = [ORDER.index(info["answer"]) if info["kind"] == "order" else IGNORED for info in infos]
    labels |= {"fits": torch.tensor(fits), "order": torch.tensor(orders)}
    return labels | listed_labels([(one.clip, things) for one in dialogues for things in one.listed])


def listed_labels(turns: list[tuple[Clip, list[int] | None]]) -> dict[str, torch.Tensor]:
    """
    Labels of the objects that the answer of each turn lists, `None` where it does not answer such a question:

    - `number` (num_turns,): how many, -100 where not asked
    - `member turns` (num_asked,) and `members` (num_asked, `MOST_LISTED`, `TRAJECTORY_TIMES`, 4): the turns that ask,
      and the places of the objects in the order of the list, zeros after its end; missing if no turn asks
    """
    numbers = torch.tensor([IGNORED if things is None else len(things) for _, things in turns])
    asked = [turn for turn, (_, things) in enumerate(turns) if things is not None]
    if not asked:
        return {"number": numbers}
    members = np.zeros((len(asked), MOST_LISTED, TRAJECTORY_TIMES, PLACE), dtype=np.float32)
    for own, turn in zip(members, asked, strict=True):
        clip, things = turns[turn]
        for place, thing in enumerate(things[:MOST_LISTED]):
            own[place] = trajectory_of(clip, thing)
    return {"number": numbers, "member turns": torch.tensor(asked), "members": torch.from_numpy(members)}


def asks_for(info: dict, kind: str) -> bool:
    """Whether an answer names nothing of the look of an object but this."""
    return info["kind"] in (kind, f"mover_{kind}")


def object_labels(name: str, things: list[tuple[Clip, int]]) -> dict[str, torch.Tensor]:
    """Labels of [`heads.ObjectHeads`] for these objects; none at all without objects."""
    if not things:
        return {}
    return {
        f"{name} classes": torch.tensor([object_classes(*one) for one in things]),
        f"{name} trajectory": torch.from_numpy(np.stack([trajectory_of(*one) for one in things])),
        f"{name} moments": torch.tensor([moment_of(*one) for one in things]),
    }


def moment_of(clip: Clip, thing: int) -> float:
    """When an object appears, leaves or stops, as a fraction of the clip; -1 where [`labels.key_moment`] is."""
    frame = key_moment(clip, thing)
    return -1.0 if frame < 0 else frame / (clip.num_frames - 1)


def trajectory_of(clip: Clip, thing: int) -> np.ndarray:
    """The places of an object at `TRAJECTORY_TIMES` moments, see [`labels.places`]."""
    moments = np.linspace(0, clip.num_frames - 1, TRAJECTORY_TIMES).round().astype(int)
    return places(clip, [thing], moments)[0]
