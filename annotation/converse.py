"""Stage 4: questions about one or two objects, and answers whose phrases are tagged with theirs."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from pydantic import BaseModel

from . import prompts
from .calls import VideoCalls
from .checks import CheckedTurn, CheckLimits, VideoFacts, check_dialogue
from .refine import ByItem, Settled, settle
from .render import Rendering
from .schema import Dialogue, Statement, Turn
from .tags import answer_from_spans, write_answer
from .verify import Claim, verify_claims


@dataclass(frozen=True)
class DialogueForm:
    """Turns as items by their place in the dialogue, counted from 1; see [`ReplyForm`]."""

    calls: VideoCalls
    rendering: Rendering
    facts: VideoFacts
    limits: CheckLimits
    model: ClassVar[type[BaseModel]] = Dialogue
    noun: ClassVar[str] = "turns"

    def items(self, value: Dialogue, places: Sequence[int] | None) -> dict[int, Turn]:
        """Of a whole dialogue by place, of corrected turns by the number that they state."""
        if places is None:
            return dict(enumerate(value.turns, start=1))
        corrected: dict[int, list[Turn]] = {}
        for turn in value.turns:
            corrected.setdefault(turn.turn, []).append(turn)
        # Of two different ones with one number none is taken: the turn stays as it was, and fails
        return {
            place: turns[0]
            for place, turns in corrected.items()
            if place in places and turns.count(turns[0]) == len(turns)
        }

    def checked(self, items: Mapping[int, Turn], corrected: Collection[int] = ()) -> tuple[list[CheckedTurn], ByItem]:
        """The turns in order, read, and all problems."""
        dialogue = Dialogue(turns=[items[place] for place in sorted(items)])
        turns, whole = check_dialogue(dialogue, self.facts, self.limits, [place - 1 for place in corrected])
        found: ByItem = {place: one.problems for place, one in enumerate(turns, start=1) if one.problems}
        return turns, found | ({None: whole} if whole else {})

    def check(self, items: Mapping[int, Turn], corrected: Collection[int] = ()) -> ByItem:
        """The exact checks."""
        return self.checked(items, corrected)[1]

    def verify(self, items: Mapping[int, Turn]) -> ByItem:
        """One claim for each turn: its question with its answer."""
        claims = []
        for place, turn in sorted(items.items()):
            answer = turn.answer
            if turn.phrases:  # the answer itself does not say which object a phrase means
                answer = write_answer(answer_from_spans(answer, turn.phrases, self.facts.num_objects).parts)
            objects = [int(number) for number in re.findall(r"<obj([0-9]+)>", turn.question + answer)]
            text = f"{turn.question} {re.sub(r'</?p>', '', answer)}"
            claims.append(Claim(place, tuple(dict.fromkeys(objects)), " ".join(text.split()), f"turns[{place - 1}]"))
        return {**verify_claims(self.calls, self.rendering, claims)}


def converse(
    calls: VideoCalls,
    rendering: Rendering,
    facts: VideoFacts,
    statements: Mapping[int, Sequence[Statement]],
    limits: CheckLimits,
    rounds: int,
) -> tuple[Settled[Turn], list[CheckedTurn]]:
    """
    A dialogue about a video, checked and corrected, and its turns with their tags read.

    Args:
        calls, rendering, facts, limits, rounds: As for [`describe`].
        statements (`dict[int, list[Statement]]`): By object, what its description says.
    """
    form = DialogueForm(calls, rendering, facts, limits)

    def ask(messages: prompts.Messages, round: int):
        return calls.ask("refine" if round else "converse", "writer", messages, Dialogue)

    messages = prompts.converse(rendering, facts.expressions, dict(statements), limits.turns_for(facts.num_objects))
    settled = settle(ask, messages, form, rounds)
    return settled, form.checked(settled.items)[0]
