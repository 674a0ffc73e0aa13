"""What reinforcement trains on: prompts that end with a question, and references that its answers are judged by.

A sample of a mixture becomes a prompt by one of its answers: the conversation up to the question, with the reference
answers of the earlier turns, and the answer with its masks as the reference.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from sama.data.collator import Collator, blank_sample
from sama.data.mixture import Mixture
from sama.data.records import DataError
from sama.data.rendering import Sample
from sama.prompts_sama import REGION_WORD, ground_phrase, parse_tagged_text


RECORDS_LOOKED_AT = 200  # of a source, for the kinds of its questions
MAX_DRAWS = 100  # of a record with a question of these kinds


def no_masks() -> np.ndarray:
    """The masks of no object."""
    return np.zeros((0, 0, 0, 0), dtype=bool)


@dataclass(frozen=True)
class TaggedText:
    """Words with `<p> ... </p> [SEG]`."""

    tagged_text: str

    @property
    def text(self) -> str:
        """The words alone."""
        return parse_tagged_text(self.tagged_text)[0]

    @property
    def phrases(self) -> list[tuple[str, tuple[int, int]]]:
        """For each [SEG] the phrase that it stands for, and its characters in the words."""
        return parse_tagged_text(self.tagged_text)[1]


@dataclass(frozen=True)
class Reference(TaggedText):
    """
    The answer that a prompt should get.

    Attributes:
        tagged_text (`str`): Its words with `<p> ... </p> [SEG]`.
        masks (`np.ndarray`): Bool, of shape `(num_objects, num_frames, height, width)`: one object for each [SEG].
        info (`dict`): What the record says about it, such as `kind`, and for a question with a closed set of answers
            the set, `choices`, and the right one, `answer`.
        num_tokens (`int`): Tokens of the answer.
    """

    masks: np.ndarray = field(default_factory=no_masks)
    info: Mapping = field(default_factory=dict)
    num_tokens: int = 0


@dataclass(frozen=True)
class Prompt:
    """
    A conversation that ends with a question.

    Attributes:
        source (`str`), id (`str`): Of the record.
        question (`str`): The words of the last question, with `<region>` for each region.
        regions (`list[Region]`): What they point at.
        frames (`list[int]`): The frames of the video that have masks.
        prompted (`list[int]`): Places among `frames` of those on which [SEG] prompts SAM 2.
        pictures (`np.ndarray`): These frames, uint8 of shape `(num_frames, height, width, 3)`.
        reference ([`Reference`], *optional*): `None` if nothing is to be learned from it.
    """

    source: str
    id: str
    question: str
    regions: list = field(default_factory=list)
    frames: list[int] = field(default_factory=list)
    prompted: list[int] = field(default_factory=list)
    pictures: np.ndarray = field(default_factory=lambda: np.zeros((0, 1, 1, 3), dtype=np.uint8))
    reference: Reference | None = None


def answer_turns(sample: Sample) -> list[int]:
    """Positions among the messages of a sample of the answers that follow a question directly."""
    roles = [message["role"] for message in sample.messages]
    return [i for i in range(1, len(roles)) if roles[i - 1 : i + 1] == ["user", "assistant"]]


def count_objects(messages: Sequence[Mapping]) -> int:
    """Number of [SEG]s of messages."""
    return sum(len(part.get("objects", ())) for message in messages for part in message["content"])


def info_of(sample: Sample, turn: int) -> dict:
    """What the record says about the answer at position `turn` beside its content, or about its question: most readers
    put it there."""
    return {key: value for info in sample.info[max(turn - 1, 0) : turn + 1] for key, value in info.items()}


def cut_behind(sample: Sample, turn: int) -> Sample:
    """The sample up to the answer at position `turn`, with the masks of what is left."""
    messages = sample.messages[: turn + 1]
    count = count_objects(messages)
    targets = sample.targets[:count] if count else no_masks()
    kept = {"frames": sample.frames, "prompted": sample.prompted} if count else {"frames": [], "prompted": []}
    return replace(
        sample,
        messages=messages,
        info=sample.info[: turn + 1],
        targets=targets,
        objects=sample.objects[:count],
        **kept,
    )


class TurnMixture(Mixture):
    """
    A mixture whose samples end with one of their answers, drawn at random.

    Args:
        mixture ([`Mixture`]): Where the samples come from.
        kinds (sequence of `str`): Only answers of these kinds, as the `info` of the records names them; all if empty.
            For a record without any, another one of its source is drawn, see [`locate`]. Samples that have none even
            so are skipped.

    Raises:
        DataError: if none of these kinds is found in the first records of the sources, as after a typing mistake.
    """

    def __init__(self, mixture: Mixture, kinds: Sequence[str] = ()):
        pairs = list(zip(mixture.sources, mixture.weights, strict=True))
        super().__init__(pairs, mixture.renderer, mixture.seed, mixture.on_error)
        self.kinds = tuple(kinds)
        if kinds:
            self._check_kinds()

    def _check_kinds(self) -> None:
        known: set[str] = set()
        for source in self.sources:
            for index in range(min(len(source), RECORDS_LOOKED_AT)):
                known |= kinds_of(source.record(index))
                if known & set(self.kinds):
                    return
        raise DataError(
            f"none of the first {RECORDS_LOOKED_AT} records of each source has a question of the kinds "
            f"{', '.join(self.kinds)}; found are {', '.join(sorted(known)) or 'none'}",
            field="question_kinds",
        )

    def locate(self, index: int) -> tuple[int, int]:
        """As in [`Mixture`]; in place of a record without a question of these kinds one with such a question, drawn at
        random from the same source. It depends on the seed, the epoch and the index alone. After `MAX_DRAWS` draws
        the last one is taken."""
        number, record = super().locate(index)
        if self.kinds:
            source = self.sources[number]
            # Five numbers: rendering draws with three, the choice of the answer with four
            rng = np.random.default_rng([self.seed, *divmod(index, len(self)), 0, 1])
            for _ in range(MAX_DRAWS):
                if self._has_kind(source, record):
                    break
                record = int(rng.integers(len(source)))
        return number, record

    def _has_kind(self, source, record: int) -> bool:
        """Whether a record has a question of these kinds. One that cannot be read counts: rendering it raises the
        error, or skips the sample."""
        try:
            return not kinds_of(source.record(record)).isdisjoint(self.kinds)
        except DataError:
            return True

    def __getitem__(self, index: int) -> Sample | None:
        """
        The conversation up to one of its answers; `None` if it was skipped.

        Raises:
            DataError: for a broken sample if `on_error` is "raise".
            IndexError: for a negative index.
        """
        sample = super().__getitem__(index)
        if sample is None:
            return None
        turns = answer_turns(sample)
        if self.kinds:
            turns = [turn for turn in turns if info_of(sample, turn).get("kind") in self.kinds]
        if not turns:
            self._count(sample.source_number, {"read": -1, "skipped": 1})
            return None
        rng = np.random.default_rng([self.seed, *divmod(index, len(self)), len(turns)])
        return cut_behind(sample, turns[int(rng.integers(len(turns)))])

    def resolved(self) -> dict:
        """As in [`Mixture`], with the kinds and how often they are looked for among the settings of rendering."""
        found = super().resolved()
        own = {"kinds": list(self.kinds)} | ({"max_draws": MAX_DRAWS} if self.kinds else {})
        return found | {"rendering": {**found["rendering"], **own}}


def kinds_of(record: Mapping) -> set[str]:
    """The kinds of the questions of a record."""
    infos = (message.get("info", {}) for message in record["messages"])
    return {info["kind"] for info in infos if "kind" in info}


def prompt_of(sample: Sample, tokenizer) -> Prompt:
    """
    A sample that ends with an answer as a prompt.

    Raises:
        DataError: if the sample does not end with an answer.
    """
    if not sample.messages or sample.messages[-1]["role"] != "assistant":
        raise DataError("does not end with an answer", source=sample.source, index=sample.id, field="messages")
    question, answer = sample.messages[-2:]
    tagged = "".join(ground_phrase(part["text"], len(part.get("objects", ()))) for part in answer["content"])
    count = count_objects([answer])
    info = info_of(sample, len(sample.messages) - 1)
    num_tokens = len(tokenizer(tagged, add_special_tokens=False)["input_ids"]) + 1  # and the end mark
    masks = sample.targets[len(sample.targets) - count :]
    frames = [sample.video[frame] for frame in sample.frames]
    return Prompt(
        sample.source,
        sample.id,
        "".join(REGION_WORD if part["type"] == "region" else part.get("text", "") for part in question["content"]),
        [part["region"] for part in question["content"] if part["type"] == "region"],
        list(sample.frames),
        [sample.frames.index(frame) for frame in sample.prompted],
        *([np.stack(frames)] if frames else []),
        reference=Reference(tagged, masks, info, num_tokens),
    )


class PromptCollator(Collator):
    """
    Collates samples that end with an answer:

        inputs       what `SamaProcessor.apply_chat_template` makes of the conversations without their last answers
        prompts      list of [`Prompt`]
        sam_frames   list of float tensors `(num_frames, 3, S, S)`: the frames of each prompt as SAM 2 inputs

    Skipped samples (`None`) are replaced, at the end of the batch, by a blank question without a reference: every
    process of a run has equally many prompts, since trl gathers tensors of answers without padding.

    Args:
        processor, leave_out: As in [`Collator`].
    """

    def collate(self, samples: Sequence[Sample], size: int) -> dict:
        prompts = [prompt_of(sample, self.processor.tokenizer) for sample in samples]
        asked = [replace(sample, messages=sample.messages[:-1]) for sample in samples]
        for blank in [blank_sample()] * (size - len(samples)):
            asked.append(blank)
            prompts.append(Prompt("", "", blank.messages[0]["content"][0]["text"]))
        inputs = self.processor.apply_chat_template(
            [sample.messages for sample in asked],
            turn_format=[sample.turn_format for sample in asked],
            frames=[sample.frame_choice for sample in asked],
        )
        return {"inputs": dict(inputs), "prompts": prompts, "sam_frames": [self.sam_frames(one) for one in prompts]}

    def sam_frames(self, prompt: Prompt) -> torch.Tensor:
        """The frames of a prompt as SAM 2 inputs."""
        side = self.processor.sam_image_size
        frames = [self.processor.sam_pixel_values(picture) for picture in prompt.pictures]
        return torch.stack(frames) if frames else torch.zeros(0, 3, side, side)
