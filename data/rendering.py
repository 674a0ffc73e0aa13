"""
A record and a random generator -> what the processor takes: messages, and the masks of the objects in the answers.

The processor is the one that chat and evaluation use. This file only draws what a record leaves open: which rounds,
which template of a set, and the shape and frame of each region. A round is a question with its answer.
"""

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from sama.configuration_sama import check_preset
from sama.objects_sama import Region
from sama.prompts_sama import without_region_word
from sama.video_sama import FrameChoice, SamaVideo

from . import published
from .lengths import LengthBound
from .masks import filled_box, jitter_box, tight_box
from .records import DataError, decode_object, is_no_target, no_target_content, object_masks
from .wording import MASK_REQUEST, MASK_REQUEST_MARK, NO_TARGET_ANSWERS, TEMPLATES, region_word


SHAPES = ("box", "mask", "jitter")
REGIONS = (*SHAPES, "mixed", "source")
POINT_SEEDS = 2**31
# Why a sample has fewer rounds than its record
TOO_LONG = "rounds that did not fit the context"
UNSEEN = "rounds about regions that are visible in no frame"
UNANSWERED = "questions without an answer"
NO_TARGET = "questions that nothing fits, which the preset published leaves out"

Rounds = list[list[dict]]
# The parts in front of the first question, in groups: name of the region that a group is about, or None, and its parts
Preamble = list[tuple[str | None, list[dict]]]


@dataclass(frozen=True)
class RenderSettings:
    """
    How records become samples.

    Args:
        preset (`str`): "consistent", or "published" for the language of the published checkpoints: expressions drawn
            with replacement, questions about videos that say "image", the newlines of each source, regions as the
            source shows them. The names before version 0.2, "default" and "release", are read as well.
        regions (`str`, *optional*): Shape of a region: "box" (its filled bounding box), "mask", "jitter" (a box as
            drawn by hand), "mixed" (one of these three at random), "source" (as in the published training). Default:
            "mixed", or "source" with the preset `published`.
        turns (`int`, *optional*): Most rounds of a sample. They are drawn where the record asks for sampling and the
            first ones elsewhere.
        max_length (`int`, *optional*): Most tokens of a sample, where that is less than the tokenizer's own limit.
        memory_frames (`int`, defaults to 0): Frames of a video that have targets in addition to the prompted ones, for
            training with memory.
    """

    preset: str = "consistent"
    regions: str | None = None
    turns: int | None = None
    max_length: int | None = None
    memory_frames: int = 0

    def __post_init__(self):
        object.__setattr__(self, "preset", check_preset("consistent" if self.preset == "default" else self.preset))
        if self.regions is not None and self.regions not in REGIONS:
            raise ValueError(f"regions={self.regions!r} is unknown, expected one of {', '.join(REGIONS)}")
        for name, value in (("turns", self.turns), ("max_length", self.max_length)):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        if not isinstance(self.memory_frames, int) or self.memory_frames < 0:
            raise ValueError(f"memory_frames must be a whole number of at least 0, got {self.memory_frames!r}")


class NothingToAskError(DataError):
    """A record of which the settings leave no question, although nothing is wrong with it."""


@dataclass
class Sample:
    """
    A rendered record.

    Attributes:
        source (`str`), id (`str`): Of the record.
        messages (`list[dict]`): For `SamaProcessor.apply_chat_template`; the video is opened but not decoded.
        turn_format (`str`, *optional*): Turn format of the text; `None` for the processor's own.
        frame_choice ([`FrameChoice`], *optional*): Which frames of the video are used for what.
        video ([`SamaVideo`], *optional*): The video or image of the conversation.
        frames (`list[int]`): The frames that have targets.
        prompted (`list[int]`): Those of them on which [SEG] prompts SAM 2: all of them without memory frames.
        targets (`np.ndarray`): Bool, of shape `(num_objects, num_frames, height, width)`: one object for each [SEG],
            in the order of the text. Without [SEG] every dimension is 0.
        objects (`list[str]`): Names of these objects in the record.
        info (`list[dict]`): Of each message, what the record says about it beside its content.
        left_out (`dict[str, int]`): Number of rounds that were left out, by reason.
        point_seed (`int`): Seed of the points at which the masks are compared in training.
        source_number (`int`, *optional*): Number of its source in the mixture that it is from.
    """

    source: str
    id: str
    messages: list[dict]
    turn_format: str | None = None
    video: SamaVideo | None = None
    frame_choice: FrameChoice | None = None
    frames: list[int] = field(default_factory=list)
    prompted: list[int] = field(default_factory=list)
    targets: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 0, 0), dtype=bool))
    objects: list[str] = field(default_factory=list)
    info: list[dict] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
    point_seed: int = 0
    source_number: int | None = None


class Renderer:
    """
    Renders records for one processor.

    Args:
        processor ([`SamaProcessor`]): Chooses frames and counts tokens.
        settings ([`RenderSettings`], *optional*): What is drawn and how.
    """

    def __init__(self, processor, settings: RenderSettings | None = None):
        self.processor, self.settings = processor, settings or RenderSettings()
        limit = processor.tokenizer.model_max_length
        self.max_length = min(limit, self.settings.max_length or limit)
        self._length_bound = LengthBound(processor)

    @property
    def published(self) -> bool:
        """Whether the preset is `published`."""
        return self.settings.preset == "published"

    def __call__(self, record: dict, video: SamaVideo | None, lookup: Callable, rng: np.random.Generator) -> Sample:
        """
        A sample of a record.

        Args:
            record (`dict`): A valid record.
            video ([`SamaVideo`], *optional*): Its video or image, opened.
            lookup (`callable`): `lookup(store, key)` returns the masks of an object in a mask file.
            rng (`np.random.Generator`): All random choices are drawn from it.

        Raises:
            DataError: if the record has no answered question, none about a visible region, or none that fits the
                context; or if its masks are broken.
        """
        frames = self._choose_frames(record, video, rng)
        masks = _ObjectMasks(record, video, lookup, frames)
        sample = Sample(record["source"], record["id"], [], self._turn_format(record), video, frames)
        rounds = split_rounds(record["messages"], sample.left_out)
        if self.published:
            answered, rounds = rounds, without_no_target(rounds, sample.left_out)
            if answered and not rounds:
                problem = f"has only {NO_TARGET}"
                raise NothingToAskError(problem, field="messages", **_place(record))
        if not rounds:
            raise DataError("has no question with an answer", field="messages", **_place(record))
        drawn = [self._write(messages, record, rng) for messages in self._draw(rounds, record, rng)]
        visible = [one for one in drawn if self._place_regions(one[0]["content"], masks, rng)]
        if len(visible) < len(drawn):
            sample.left_out[UNSEEN] = len(drawn) - len(visible)
        if not visible:
            raise DataError(
                "has only questions about regions that are never visible", field="objects", **_place(record)
            )
        self._fit(record, visible, self._preamble(record, masks, rng), frames, sample)
        sample.info = [message.pop("info", {}) for message in sample.messages]
        self._add_targets(masks, sample, rng)
        sample.point_seed = int(rng.integers(POINT_SEEDS))
        return sample

    def _turn_format(self, record: dict) -> str | None:
        return record.get("layout", "published") if self.published else None

    def _choose_frames(self, record: dict, video: SamaVideo | None, rng: np.random.Generator) -> FrameChoice | None:
        if video is None:
            return None
        if self.published and record.get("frame_policy") == "segments":
            return published.segment_frames(len(video), rng)
        return self.processor.choose_frames(video)

    # Rounds and their text

    def _draw(self, rounds: Rounds, record: dict, rng: np.random.Generator) -> Rounds:
        """The rounds of this sample, in the order in which they are drawn: all, or as many as the record samples."""
        sampling, limit = record.get("sampling"), self.settings.turns
        if sampling is None:
            return rounds[:limit]
        count = min(sampling["turns"], limit or sampling["turns"])
        groups = [[one] for one in rounds]
        if sampling.get("unit") == "object":
            by_object: dict[tuple, Rounds] = {}
            for position, one in enumerate(rounds):
                # What fits nothing has no object in common with anything else
                by_object.setdefault(tuple(_grounded_names(one)) or (position,), []).append(one)
            groups = list(by_object.values())
        replace = self.published and sampling.get("replace", False)
        drawn = rng.choice(len(groups), count if replace else min(count, len(groups)), replace=replace)
        return [groups[i][rng.integers(len(groups[i]))] for i in drawn]

    def _write(self, messages: list[dict], record: dict, rng: np.random.Generator) -> list[dict]:
        """The messages of one round, with role, content and info alone."""
        visual = "image" if "image" in record else "video"
        written = [
            {
                "role": message["role"],
                "content": self._content(message, visual, rng),
                "info": message.get("info", {}),
            }
            for message in messages
        ]
        if not any(part["type"] == "region" or part.get("text", "").strip() for part in written[0]["content"]):
            raise DataError("has a question without words or regions", field="messages", **_place(record))
        if self.published and record.get("layout") in published.SINGLE_LINE_LAYOUTS:
            if messages[0] is _first_question(record):
                written[0]["content"] = published.join_lines(written[0]["content"])
        return written

    def _content(self, message: dict, visual: str, rng: np.random.Generator) -> list[dict]:
        """
        The parts of a message: template filled, request for masks appended. An answer that nothing fits becomes plain
        text: its own words, or a sentence for this kind of visual ("image" or "video").
        """
        content = [copied_part(part) for part in message["content"]]
        if is_no_target(message):
            content = no_target_content(content)
        if content is None:
            answers = NO_TARGET_ANSWERS[visual]
            content = [{"type": "text", "text": answers[rng.integers(len(answers))]}]
        elif "templates" in message:
            content = fill_template(self._draw_template(message["templates"], rng), content)
        if message.get("wants_masks") and MASK_REQUEST_MARK not in _text(content):
            content.append({"type": "text", "text": MASK_REQUEST})
        if message["role"] == "user" and not self.published:
            content = _strip(content)
        return content

    def _draw_template(self, name: str, rng: np.random.Generator) -> str:
        if self.published:
            name = published.TEMPLATE_SETS.get(name, name)
        return TEMPLATES[name][rng.integers(len(TEMPLATES[name]))]

    # Regions

    def _place_regions(self, content: list[dict], masks: "_ObjectMasks", rng: np.random.Generator) -> bool:
        """Replace the object of each region part by a [`Region`]; `False` if one of them is visible in no frame."""
        parts = [part for part in content if part["type"] == "region"]
        if not parts:
            return True
        # One order for all regions of a question, so that they lie on the same frame where possible
        order = [int(frame) for frame in rng.permutation(masks.frames.dense)]
        found = {name: masks.visible(name, order, rng) for name in dict.fromkeys(part["object"] for part in parts)}
        regions = {
            name: Region(frame=seen[0], mask=self._shape(seen[1], masks.record, rng))
            for name, seen in found.items()
            if seen is not None
        }
        for part in parts:
            part["region"] = regions.get(part.pop("object"))
            part.pop("name", None)
        return len(regions) == len(found)

    def _shape(self, mask: np.ndarray, record: dict, rng: np.random.Generator) -> np.ndarray:
        shape = self.settings.regions or ("source" if self.published else "mixed")
        if shape == "source":
            shape = record.get("region_shape", "mask")
        elif shape == "mixed":
            shape = SHAPES[rng.integers(len(SHAPES))]
        if shape == "mask":
            return mask
        return filled_box(mask) if shape == "box" else jitter_box(mask, rng)

    def _preamble(self, record: dict, masks: "_ObjectMasks", rng: np.random.Generator) -> Preamble:
        """The parts in front of the first question. A region that is visible nowhere keeps only its text."""
        groups, parts = [], []
        for part in (part for message in record["messages"] for part in message.get("preamble", [])):
            parts.append(copied_part(part))
            if part["type"] == "region":
                name, visible = part["object"], self._place_regions(parts, masks, rng)
                groups.append((name, parts if visible else parts[:-1]))
                parts = []
        if parts:
            groups.append((None, parts))
        if groups and self.published:
            groups.insert(0, (None, [{"type": "text", "text": published.REGION_LIST_PREFIX}]))
        return groups

    # Length

    def _fit(
        self, record: dict, rounds: Rounds, preamble: Preamble, frames: FrameChoice | None, sample: Sample
    ) -> None:
        """Set the messages of a sample: the first rounds, as many as fit the context."""

        def fitted(count: int) -> list[dict] | None:
            drafts = self._drafts(record, rounds[:count], preamble, sample.video)
            return next((messages for messages in drafts if self._fits(messages, frames, sample)), None)

        count, messages = len(rounds), fitted(len(rounds))
        if messages is None:
            # Fewer rounds are never longer
            count = bisect_left(range(1, len(rounds)), True, key=lambda number: fitted(number) is None)
            messages = fitted(count) if count else None
        if messages is None:
            *_, shortest = self._drafts(record, rounds[:1], preamble, sample.video)
            length, cut = self._count(shortest, sample)
            problem = f"takes {length} tokens with its first round alone, the context has {self.max_length}"
            if cut:
                problem = f"has a first question that is too long for the Q-Former: {cut} of its regions are cut off"
            raise DataError(problem, field="messages", **_place(record))
        sample.messages = messages
        if count < len(rounds):
            sample.left_out[TOO_LONG] = len(rounds) - count

    def _drafts(
        self, record: dict, rounds: Rounds, preamble: Preamble, video: SamaVideo | None
    ) -> Iterator[list[dict]]:
        """The conversation with its whole preamble; then, if there is one, with only the regions that rounds name."""
        system = [
            {"role": "system", "content": [copied_part(part) for part in message["content"]]}
            for message in record["messages"]
            if message["role"] == "system"
        ]
        kind = "image" if "image" in record else "video"
        shown = [] if video is None else [{"type": kind, kind: video}]
        (question, *answers), *others = rounds
        for groups in [preamble, named_groups(preamble, rounds)] if preamble else [preamble]:
            parts = [*shown, *(part for _, group in groups for part in group), *question["content"]]
            later = [message for one in others for message in one]
            yield [*system, {**question, "content": parts}, *answers, *later]

    def _count(self, messages: list[dict], sample: Sample) -> tuple[int, int]:
        """Tokens of the messages, and how many of their regions the Q-Former cannot read."""
        counts = self.processor.count_tokens(messages, sample.turn_format, sample.frame_choice)
        return counts.total, sum(counts.cut_regions)

    def _fits(self, messages: list[dict], frames: FrameChoice | None, sample: Sample) -> bool:
        bound = self._length_bound
        if bound.max_tokens(messages, frames) <= self.max_length and bound.regions_fit(messages):
            return True
        length, cut = self._count(messages, sample)
        return length <= self.max_length and not cut

    # Targets

    def _add_targets(self, masks: "_ObjectMasks", sample: Sample, rng: np.random.Generator) -> None:
        """Set the masks of the [SEG]s of the answers, on the prompted frames and those drawn for memory."""
        sample.objects = _grounded_names(sample.messages)
        if not sample.objects:
            return
        sample.prompted = list(masks.frames.prompted)
        sample.frames = sample.prompted
        if self.settings.memory_frames:
            others = sorted({*range(len(sample.video))} - {*sample.prompted})
            drawn = rng.choice(others, min(self.settings.memory_frames, len(others)), replace=False)
            sample.frames = sorted({*sample.prompted, *(int(frame) for frame in drawn)})
        decoded = {name: masks.decode(name, sample.frames) for name in dict.fromkeys(sample.objects)}
        sample.targets = np.stack([decoded[name] for name in sample.objects])


class _ObjectMasks:
    """The masks of a record's objects; each object is looked up once."""

    def __init__(self, record: dict, video: SamaVideo | None, lookup: Callable, frames: FrameChoice | None):
        self.record, self.video, self.frames = record, video, frames
        self._lookup, self._found = lookup, {}

    def _lookup_once(self, store: str, key: str) -> list:
        if (store, key) not in self._found:
            self._found[store, key] = self._lookup(store, key)
        return self._found[store, key]

    def decode(self, name: str, frames: Sequence[int]) -> np.ndarray:
        """Bool array of shape `(len(frames), height, width)`."""
        size = (self.video.height, self.video.width)
        return decode_object(self.record, name, size, len(self.video), self._lookup_once, frames)

    def visible(self, name: str, frames: Sequence[int], rng: np.random.Generator) -> tuple[int, np.ndarray] | None:
        """The first of `frames` in which the object is visible, else a random other frame, and its mask there."""
        number = len(self.video)
        codes = object_masks(self.record, name, number, self._lookup_once)
        others = [int(frame) for frame in rng.permutation(number) if frame not in frames]
        for frame in (*frames, *others):
            if codes[frame] is not None:
                mask = self.decode(name, [frame])[0]
                if tight_box(mask) is not None:
                    return frame, mask
        return None


def copied_part(part: dict) -> dict:
    """A copy of a part without `<region>` in its text. All other tags in it are words to the processor."""
    return {**part, "text": without_region_word(part["text"])} if "text" in part else dict(part)


def split_rounds(messages: Sequence[dict], left_out: dict[str, int]) -> Rounds:
    """
    The rounds of a conversation. A question without an answer teaches nothing: it is left out and counted in
    `left_out`.
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


def without_no_target(rounds: Rounds, left_out: dict[str, int]) -> Rounds:
    """The rounds whose question fits something; the others are counted in `left_out`. The release trains no answer
    without [SEG] to a request for masks."""
    kept = [one for one in rounds if not any(is_no_target(message) for message in one)]
    if len(kept) < len(rounds):
        left_out[NO_TARGET] = len(rounds) - len(kept)
    return kept


def fill_template(template: str, content: list[dict]) -> list[dict]:
    """A template with `content` in the place of its `{}`. A template without one replaces the content."""
    before, slot, after = template.partition("{}")
    parts = [{"type": "text", "text": before}, *(content if slot else []), {"type": "text", "text": after}]
    return _without_empty_text(parts)


def named_groups(preamble: Preamble, rounds: Rounds) -> Preamble:
    """The groups of a preamble whose regions the rounds name, and those that are about no region."""
    text = " ".join(_text(message["content"]) for one in rounds for message in one)
    first = next((name for name, _ in preamble if name is not None), None)
    kept = []
    for name, parts in preamble:
        is_named = name is None or re.search(rf"\b{re.escape(region_word(name))}\b", text)
        # The text in front of the first region introduces the list, so it stays
        kept.append((name, parts if is_named else parts[: int(name == first)]))
    return kept


def _strip(content: list[dict]) -> list[dict]:
    """A question without blanks and newlines at its ends."""
    for position, strip in ((0, str.lstrip), (-1, str.rstrip)):
        if content and content[position]["type"] == "text":
            content[position]["text"] = strip(content[position]["text"])
    return _without_empty_text(content)


def _without_empty_text(content: list[dict]) -> list[dict]:
    return [part for part in content if part["type"] != "text" or part["text"]]


def _first_question(record: dict) -> dict | None:
    return next((message for message in record["messages"] if message["role"] == "user"), None)


def _grounded_names(messages: list[dict]) -> list[str]:
    parts = [part for message in messages for part in message["content"] if part["type"] == "grounded"]
    return [name for part in parts for name in part["objects"]]


def _text(content: list[dict]) -> str:
    return "".join(part.get("text", "") for part in content)


def _place(record: dict) -> dict:
    return {"source": record["source"], "index": record["id"]}
