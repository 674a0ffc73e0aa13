"""Stage 3: statements about each object, with the frames that show them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from pydantic import BaseModel

from . import prompts
from .calls import VideoCalls
from .checks import CheckLimits, VideoFacts, check_descriptions
from .refine import ByItem, Settled, settle
from .render import Rendering
from .schema import Descriptions, ObjectDescription
from .tags import object_number
from .verify import Claim, verify_claims


@dataclass(frozen=True)
class DescriptionForm:
    """Descriptions as items by the number of their object; see [`ReplyForm`]."""

    calls: VideoCalls
    rendering: Rendering
    facts: VideoFacts
    limits: CheckLimits
    model: ClassVar[type[BaseModel]] = Descriptions
    noun: ClassVar[str] = "objects"

    def items(self, value: Descriptions, places: Sequence[int] | None) -> dict[int, list[ObjectDescription]]:
        """All entries of each object: two entries are a mistake that the check reports."""
        found: dict[int, list[ObjectDescription]] = {}
        for one in value.objects:
            number = object_number(one.object, self.facts.num_objects)
            # 0 collects entries of unknown objects
            if places is None or number in places:
                found.setdefault(number or 0, []).append(one)
        return found

    def check(self, items: Mapping[int, list[ObjectDescription]], corrected: Collection[int] = ()) -> ByItem:
        """The exact checks, in the order of the objects."""
        listed = [one for number in sorted(items) for one in items[number]]
        return check_descriptions(Descriptions(objects=listed), self.facts, self.limits)

    def verify(self, items: Mapping[int, list[ObjectDescription]]) -> ByItem:
        """One claim for each statement."""
        claims = [
            Claim(number, (number,), statement.text, f"obj{number}.statements[{index}]")
            for number, entries in sorted(items.items())
            for index, statement in enumerate(entries[0].statements)
        ]
        return {**verify_claims(self.calls, self.rendering, claims)}


def describe(
    calls: VideoCalls, rendering: Rendering, facts: VideoFacts, limits: CheckLimits, rounds: int
) -> Settled[list[ObjectDescription]]:
    """
    Descriptions of all objects of a video, checked and corrected.

    Args:
        calls ([`VideoCalls`]): Asks the models.
        rendering ([`Rendering`]): The pictures.
        facts ([`VideoFacts`]): What the checks need to know.
        limits ([`CheckLimits`]): Lengths.
        rounds (`int`): How often corrections are asked for.
    """
    form = DescriptionForm(calls, rendering, facts, limits)

    def ask(messages: prompts.Messages, round: int):
        return calls.ask("refine" if round else "describe", "writer", messages, Descriptions)

    return settle(ask, prompts.describe(rendering, facts.expressions), form, rounds)
