"""
A record and a random generator -> what the processor takes: messages, and the masks that the answers promise.

The processor is the one that chat and evaluation use. This file only draws what is open in a record: which turns,
which words of a set of templates, how and on which frame a region is shown.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from sama.objects_sama import Region
from sama.video_sama import FrameChoice, SamaVideo

from .masks import filled_box, jitter_box, tight_box
from .records import DataError, decode_object, object_masks
from .wording import MASK_REQUEST, MASK_REQUEST_MARK, RELEASE_TEMPLATES, TEMPLATES, region_word


PRESETS = ("default", "published")
SHAPES = ("box", "mask", "jitter")
REGIONS = (*SHAPES, "mixed", "source")
REGION_WORD = "<region>"  # stands for a region where a question is one string, so no text may hold it
# Layouts in which the release deletes the newlines of the first question, and the one whose image tag it leaves there
JOINED_LAYOUTS, LEFTOVER_LAYOUT, LEFTOVER = ("llava", "osprey"), "osprey", "<image> "
POINT_SEEDS = 2**31
SEGMENTS, DENSE_SEGMENTS = 32, 5  # of the release's frames for the policy "segments"
# Why a sample has fewer rounds than its record asked for
TOO_LONG = "rounds that did not fit the context"
UNSEEN = "rounds about regions that are visible in no frame"
UNANSWERED = "questions without an answer"

Rounds = list[list[dict]]


@dataclass(frozen=True)
class RenderSettings:
    """
    How records become samples.

    Args:
        preset (`str`): "default"; or "published", which talks as the released checkpoints were taught: expressions
            drawn with replacement, questions about videos that say "image", each source's own newlines, boxes as
            regions.
        regions (`str`, *optional*): How a region is shown: "box" (its filled box), "mask", "jitter" (a box as drawn by
            hand), "mixed" (one of the three, drawn), "source" (what the release does with this source). By default
            "mixed", in the preset `release` "source".
        turns (`int`, *optional*): Most rounds of a sample; those of a record that asks for sampling are drawn.
        max_length (`int`, *optional*): Most tokens of a sample, where that is less than the tokenizer's own limit.
        memory_frames (`int`, defaults to 0): How many other frames of a video have targets beside the prompted ones,
            for training with memory.
    """

    preset: str = "default"
    regions: str | None = None
    turns: int | None = None
    max_length: int | None = None
    memory_frames: int = 0

    def __post_init__(self):
        if self.preset not in PRESETS:
            raise ValueError(f"preset is {self.preset!r}, expected one of {', '.join(PRESETS)}")
        if self.regions is not None and self.regions not in REGIONS:
            raise ValueError(f"regions is {self.regions!r}, expected one of {', '.join(REGIONS)}")
        for name, value in (("turns", self.turns), ("max_length", self.max_length)):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} is {value!r}, expected a whole number from 1 on")
        if not isinstance(self.memory_frames, int) or self.memory_frames < 0:
            raise ValueError(f"memory_frames is {self.memory_frames!r}, expected a whole number from 0 on")


@dataclass
class Sample:
    """
    A rendered record.

    Attributes:
        source (`str`), id (`str`): Of the record.
        messages (`list[dict]`): For `SamaProcessor.apply_chat_template`; the video is opened, not decoded.
        layout (`str`, *optional*): Layout of the text; `None` for the processor's own.
        video ([`SamaVideo`], *optional*): What it is about.
        frame_choice ([`FrameChoice`], *optional*): Which of its frames are used for what.
        frames (`list[int]`): The frames that have targets.
        prompted (`list[int]`): Those of them on which [SEG] prompts SAM 2: all, unless there are frames for memory.
        targets (`np.ndarray`): Bool, of shape `(num_objects, num_frames, height, width)`: one object for each [SEG],
            in the order of the text. Without [SEG] all lengths are 0.
        objects (`list[str]`): Their names in the record.
        left_out (`dict[str, int]`): Rounds that were left out, by reason.
        point_seed (`int`): Decides at which points its masks are compared in training.
    """

    source: str
    id: str
    messages: list[dict]
    layout: str | None = None
    video: SamaVideo | None = None
    frame_choice: FrameChoice | None = None
    frames: list[int] = field(default_factory=list)
    prompted: list[int] = field(default_factory=list)
    targets: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 0, 0), dtype=bool))
    objects: list[str] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
    point_seed: int = 0


class Renderer:
    """
    Renders records for one processor.

    Args:
        processor ([`SamaProcessor`]): Chooses frames, counts tokens, and names the tags that no text may hold.
        settings ([`RenderSettings`], *optional*): What is drawn and how.
    """

    def __init__(self, processor, settings: RenderSettings | None = None):
        self.processor, self.settings = processor, settings or RenderSettings()
        limit = processor.tokenizer.model_max_length
        self.max_length = min(limit, self.settings.max_length or limit)
        special = {*processor.tokenizer.all_special_tokens, *processor.qformer_tokenizer.all_special_tokens}
        self._tags = sorted(special | {REGION_WORD}, key=len, reverse=True)

    @property
    def published(self) -> bool:
        """Whether the preset is `published`."""
        return self.settings.preset == "published"

    def __call__(self, record: dict, video: SamaVideo | None, lookup: Callable, rng: np.random.Generator) -> Sample:
        """
        A sample of a record.

        Args:
            record (`dict`): A valid record.
            video ([`SamaVideo`], *optional*): What it shows, opened.
            lookup (`callable`): `lookup(store, key)` gives the masks of an object in a mask file.
            rng (`np.random.Generator`): Decides everything that is open.
        """
        masks, choice = _Masks(record, video, lookup), None
        if video is not None:
            choice = self.processor.choose_frames(video)
            if self.published and record.get("frame_policy") == "segments":
                choice = segment_frames(len(video), rng)
        masks.choice = choice
        sample = Sample(record["source"], record["id"], [], self._layout(record), video, choice)
        rounds = split_rounds(record["messages"], sample.left_out)
        if not rounds:
            raise DataError("holds no question with an answer", field="messages", **_names(record))
        chosen = [self._write(messages, record, rng) for messages in self._draw(rounds, record, rng)]
        shown = [one for one in chosen if self._show_regions(one[0]["content"], masks, rng)]
        if len(shown) < len(chosen):
            sample.left_out[UNSEEN] = len(chosen) - len(shown)
        if not shown:
            raise DataError(
                "has only questions about regions that are never visible", field="objects", **_names(record)
            )
        self._fit(record, shown, self._preamble(record, masks, rng), sample)
        self._add_targets(masks, sample, rng)
        sample.point_seed = int(rng.integers(POINT_SEEDS))
        return sample

    def _layout(self, record: dict) -> str | None:
        return record.get("layout", "published") if self.published else None

    def _draw(self, rounds: Rounds, record: dict, rng: np.random.Generator) -> Rounds:
        """The rounds of this sample: all, or those that are drawn. Their order is that of the drawing."""
        sampling, limit = record.get("sampling"), self.settings.turns
        if sampling is None:
            return rounds[:limit]
        count = min(sampling["turns"], limit or sampling["turns"])
        groups = [[one] for one in rounds]
        if sampling.get("unit") == "object":
            by_object: dict[tuple, Rounds] = {}
            for one in rounds:
                by_object.setdefault(tuple(_grounded_names(one)), []).append(one)
            groups = list(by_object.values())
        replace = self.published and sampling.get("replace", False)
        drawn = rng.choice(len(groups), count if replace else min(count, len(groups)), replace=replace)
        return [groups[i][rng.integers(len(groups[i]))] for i in drawn]

    def _write(self, messages: list[dict], record: dict, rng: np.random.Generator) -> list[dict]:
        """One round with its templates filled, as messages of role and content."""
        written = []
        for message in messages:
            content = [self._plain(part) for part in message["content"]]
            if "templates" in message:
                name = message["templates"]
                name = RELEASE_TEMPLATES.get(name, name) if self.published else name
                template = TEMPLATES[name][rng.integers(len(TEMPLATES[name]))]
                before, slot, after = template.partition("{}")
                parts = [{"type": "text", "text": before}, *(content if slot else []), {"type": "text", "text": after}]
                content = [part for part in parts if part["type"] != "text" or part["text"]]
            if message.get("wants_masks") and MASK_REQUEST_MARK not in _words(content):
                content.append({"type": "text", "text": MASK_REQUEST})
            if message["role"] == "user" and not self.published:
                content = _stripped(content)
            written.append({"role": message["role"], "content": content})
        if self.published and record.get("layout") in JOINED_LAYOUTS and messages[0] is _first_question(record):
            for part in written[0]["content"]:
                part.update({"text": part["text"].replace("\n", "")} if part["type"] == "text" else {})
        return written

    def _plain(self, part: dict) -> dict:
        """
        A copy of a part whose words hold no tag: a blank behind the first letter of what looks like one makes ordinary
        text of it. So `<p>` of a page in HTML becomes `< p>`, and "<|im_end|>" ends no turn.
        """
        if "text" not in part:
            return dict(part)
        text = part["text"]
        for tag in self._tags:
            text = text.replace(tag, f"{tag[0]} {tag[1:]}")
        return {**part, "text": text}

    def _show_regions(self, content: list[dict], masks: "_Masks", rng: np.random.Generator) -> bool:
        """Put a mask on a frame into each region of a question; `False` if one of them is visible in no frame."""
        parts = [part for part in content if part["type"] == "region"]
        if not parts:
            return True
        # All regions of a question lie on one frame if they can, so that the question is about one picture
        order = [int(frame) for frame in rng.permutation(masks.choice.dense)]
        found = {name: masks.visible(name, order, rng) for name in dict.fromkeys(part["object"] for part in parts)}
        shown = {name: self._region(region, masks.record, rng) for name, region in found.items() if region is not None}
        for part in parts:
            part["region"] = shown.get(part.pop("object"))
            part.pop("name", None)
        return len(shown) == len(found)

    def _region(self, found: tuple[int, np.ndarray], record: dict, rng: np.random.Generator) -> Region:
        return Region(frame=found[0], mask=self._shape(found[1], record, rng))

    def _preamble(
        self, record: dict, masks: "_Masks", rng: np.random.Generator
    ) -> list[tuple[str | None, list[dict]]]:
        """The parts in front of the first question, in groups: the name of a region, and its words with it. A region
        that is visible nowhere keeps its words."""
        groups, words = [], []
        for part in (part for message in record["messages"] for part in message.get("preamble", [])):
            words.append(self._plain(part))
            if part["type"] == "region":
                kept = words if self._show_regions(words, masks, rng) else words[:-1]
                groups, words = [*groups, (part["object"], kept)], []
        groups = [*groups, (None, words)] if words else groups
        if groups and self.published:
            groups = [(None, [{"type": "text", "text": LEFTOVER}]), *groups]
        return groups

    def _shape(self, mask: np.ndarray, record: dict, rng: np.random.Generator) -> np.ndarray:
        shape = self.settings.regions or ("source" if self.published else "mixed")
        if shape == "source":
            shape = record.get("region_shape", "mask")
        elif shape == "mixed":
            shape = SHAPES[rng.integers(len(SHAPES))]
        if shape == "mask":
            return mask
        return filled_box(mask) if shape == "box" else jitter_box(mask, rng)

    def _fit(self, record: dict, rounds: Rounds, preamble: list[tuple], sample: Sample) -> None:
        """Set the messages; leaves out whole rounds from the end until they fit the context."""
        system = [message for message in record["messages"] if message["role"] == "system"]
        system = [{"role": "system", "content": list(map(self._plain, message["content"]))} for message in system]
        kind = "image" if "image" in record else "video"
        shown = [] if sample.video is None else [{"type": kind, kind: sample.video}]
        for count in range(len(rounds), 0, -1):
            (question, *answers), *others = rounds[:count]
            # A list of regions too long for the Q-Former is cut to those that the rounds speak of
            for opening in (preamble, _named_groups(preamble, rounds[:count]))[: 1 + bool(preamble)]:
                parts = [*shown, *(part for _, group in opening for part in group), *question["content"]]
                first = {"role": "user", "content": parts}
                sample.messages = [*system, first, *answers, *(message for one in others for message in one)]
                counts = self.processor.count_tokens(sample.messages, sample.layout, sample.frame_choice)
                length, cut = counts.total, sum(counts.cut_regions)
                if length <= self.max_length and not cut:
                    if count < len(rounds):
                        sample.left_out[TOO_LONG] = len(rounds) - count
                    return
        problem = f"takes {length} tokens with its first round alone, the context has {self.max_length}"
        if cut:
            problem = (
                f"has a first question that is too long for the Q-Former to read all of its regions: {cut} are cut"
            )
        raise DataError(problem, field="messages", source=sample.source, index=sample.id)

    def _add_targets(self, masks: "_Masks", sample: Sample, rng: np.random.Generator) -> None:
        """The masks behind the [SEG]s of the answers, in the order of the text, on the prompted frames and those that
        are drawn for memory."""
        parts = [part for message in sample.messages for part in message["content"] if part["type"] == "grounded"]
        sample.objects = [name for part in parts for name in part["objects"]]
        if sample.objects:
            sample.prompted = list(sample.frame_choice.prompted)
            sample.frames = sample.prompted
            if self.settings.memory_frames:
                others = sorted({*range(len(sample.video))} - {*sample.prompted})
                drawn = rng.choice(others, min(self.settings.memory_frames, len(others)), replace=False)
                sample.frames = sorted({*sample.prompted, *(int(frame) for frame in drawn)})
            decoded = {name: masks.decode(name, sample.frames) for name in dict.fromkeys(sample.objects)}
            sample.targets = np.stack([decoded[name] for name in sample.objects])


class _Masks:
    """The masks of a record's objects, each object looked up once."""

    def __init__(self, record: dict, video: SamaVideo | None, lookup: Callable):
        self.record, self.video, self._lookup, self._found = record, video, lookup, {}

    def _once(self, store: str, key: str) -> list:
        if (store, key) not in self._found:
            self._found[store, key] = self._lookup(store, key)
        return self._found[store, key]

    def decode(self, name: str, frames: Sequence[int]) -> np.ndarray:
        """Bool array of shape `(len(frames), height, width)`."""
        size = (self.video.height, self.video.width)
        return decode_object(self.record, name, size, len(self.video), self._once, frames)

    def visible(self, name: str, frames: Sequence[int], rng: np.random.Generator) -> tuple[int, np.ndarray] | None:
        """The first of the frames on which the object is seen, else a random other one, and its mask there."""
        number = len(self.video)
        codes = object_masks(self.record, name, number, self._once)
        others = [int(frame) for frame in rng.permutation(number) if frame not in frames]
        for frame in (*frames, *others):
            if codes[frame] is not None:
                mask = self.decode(name, [frame])[0]
                if tight_box(mask) is not None:
                    return frame, mask
        return None


def split_rounds(messages: Sequence[dict], left_out: dict[str, int]) -> Rounds:
    """
    The rounds: a question with the answer behind it. Questions without one are counted in `left_out`: there is nothing
    to learn from them.
    """
    rounds: Rounds = []
    for message in messages:
        if message["role"] == "user":
            rounds.append([message])
        elif message["role"] == "assistant" and rounds:
            rounds[-1].append(message)
    answered = [one for one in rounds if len(one) > 1]
    if len(answered) < len(rounds):
        left_out[UNANSWERED] = len(rounds) - len(answered)
    return answered


def segment_frames(number: int, rng: np.random.Generator) -> FrameChoice:
    """The release's frames for ChatUniVi: a random one of each of 32 segments; a short video is repeated."""
    if number >= SEGMENTS:
        bounds = np.linspace(0, number, SEGMENTS + 1).astype(int)
        context = [int(rng.integers(low, high)) for low, high in zip(bounds, bounds[1:], strict=False)]
    else:
        rest = SEGMENTS % number
        spread = [i * number // rest for i in range(rest)]
        context = [*range(number)] * (SEGMENTS // number) + spread
    bounds = np.linspace(0, SEGMENTS, DENSE_SEGMENTS + 1).astype(int)
    dense = [context[rng.integers(low, high)] for low, high in zip(bounds, bounds[1:], strict=False)]
    return FrameChoice(context=context, dense=dense, prompted=dense)


def _named_groups(preamble: list[tuple], rounds: Rounds) -> list[tuple]:
    """The groups of a preamble that the rounds name, and those that are about no region."""
    words = " ".join(_words(message["content"]) for one in rounds for message in one)
    first = next((name for name, _ in preamble if name is not None), None)
    kept = []
    for name, parts in preamble:
        named = name is None or re.search(rf"\b{region_word(name)}\b", words)
        # The words in front of the first region say what the list is
        kept.append((name, parts if named else parts[: int(name == first)]))
    return kept


def _stripped(content: list[dict]) -> list[dict]:
    """A question without blanks and newlines at its ends."""
    for position, strip in ((0, str.lstrip), (-1, str.rstrip)):
        if content and content[position]["type"] == "text":
            content[position]["text"] = strip(content[position]["text"])
    return [part for part in content if part["type"] != "text" or part["text"]]


def _first_question(record: dict) -> dict | None:
    return next((message for message in record["messages"] if message["role"] == "user"), None)


def _grounded_names(messages: list[dict]) -> list[str]:
    parts = [part for message in messages for part in message["content"] if part["type"] == "grounded"]
    return [name for part in parts for name in part["objects"]]


def _words(content: list[dict]) -> str:
    return "".join(part.get("text", "") for part in content)


def _names(record: dict) -> dict:
    return {"source": record["source"], "index": record["id"]}
