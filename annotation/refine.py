"""
Stage 6: a reply is checked, and what fails is sent back with the broken rules; what then still fails is not used.

A reply consists of items: turns of a dialogue, or descriptions of objects, by their numbers. Only items that fail are
asked for again, and only they are taken from the new reply.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from pydantic import BaseModel

from .problems import Problem
from .prompts import Messages, refine
from .replies import read_reply
from .store import StoredReply


Item = TypeVar("Item")
ByItem = dict[int | None, list[Problem]]  # problems by number of the item; None: of the reply as a whole


class ReplyForm(Protocol[Item]):
    """What a kind of reply consists of, and its checks."""

    model: ClassVar[type[BaseModel]]  # of the whole reply
    noun: ClassVar[str]  # what items are called: "turns"

    def items(self, value: Any, places: Sequence[int] | None) -> dict[int, Item]:
        """The items of a reply by number. `places`: the items that were asked for again; `None`: all of them."""
        ...

    def check(self, items: Mapping[int, Item], corrected: Collection[int]) -> ByItem:
        """The exact checks. `corrected`: the items that are new, the others were checked before."""
        ...

    def verify(self, items: Mapping[int, Item]) -> ByItem:
        """The checks by another model, of items that pass the exact ones."""
        ...


@dataclass(frozen=True)
class Finding:
    """A problem, the round of corrections in which it was found, and the item that has it."""

    round: int
    item: int | None
    problem: Problem


@dataclass
class Settled(Generic[Item]):
    """
    What a reply came to.

    Attributes:
        items (`dict[int, Item]`): All items, also those that failed.
        failed ([`ByItem`]): What is still wrong. Under `None`: the reply as a whole cannot be used.
        doubtful (`dict[int, list[Problem]]`): What a person should decide, of items that have not failed.
        findings (`list[Finding]`): Everything that was found in any round.
        refined (`set[int]`): Items that were taken from a correction.
    """

    items: dict[int, Item] = field(default_factory=dict)
    failed: ByItem = field(default_factory=dict)
    doubtful: dict[int, list[Problem]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    refined: set[int] = field(default_factory=set)

    @property
    def kept(self) -> dict[int, Item]:
        """The items that passed all checks; doubtful ones are among them."""
        if None in self.failed:
            return {}
        return {number: item for number, item in self.items.items() if number not in self.failed}


def settle(
    ask: Callable[[Messages, int], StoredReply], messages: Messages, form: ReplyForm[Item], rounds: int
) -> Settled[Item]:
    """
    Asks for a reply, checks it, and has its mistakes corrected.

    Args:
        ask (`Callable`): `ask(messages, round)` returns the reply; round 0 is the first request.
        messages (`list[dict]`): The first request.
        form ([`ReplyForm`]): The kind of reply.
        rounds (`int`): How often corrections are asked for. A refusal is final.
    """
    settled: Settled[Item] = Settled()
    checker = _Checker(form, settled)
    reply = ask(messages, 0)
    settled.failed = checker.read(reply, None, 0)
    for number in range(1, rounds + 1):
        # 0 has what belongs to no item: there is nothing to ask for again
        failed = {item: problems for item, problems in settled.failed.items() if problems and item != 0}
        if not failed or any(one.code == "refusal" for problems in failed.values() for one in problems):
            break
        places = None if None in failed else sorted(item for item in failed if item is not None)
        what = "the whole reply" if places is None else f"only {form.noun} {', '.join(map(str, places))}"
        problems = [one for listed in failed.values() for one in listed]
        reply = ask(refine(messages, reply.completion.text, what, problems), number)
        settled.failed = checker.read(reply, places, number)
    return settled


class _Checker:
    """Reads replies into the items of a [`Settled`] and checks them; items that did not change are verified once."""

    def __init__(self, form: ReplyForm, settled: Settled):
        self.form, self.settled = form, settled
        self.verified: dict[int, tuple[Any, list[Problem]]] = {}

    def read(self, reply: StoredReply, places: Sequence[int] | None, round: int) -> ByItem:
        """Takes the items of a reply over; returns everything that is wrong afterwards."""
        settled = self.settled
        value, problems = read_reply(reply.completion, self.form.model)
        if value is None:
            settled.findings += [Finding(round, None, problem) for problem in problems]
            if places is None:
                settled.items = {}
                return {None: problems}
            # What was to be corrected stays as it was, and its problems with it, and so does what belongs to no item
            return settled.failed | {item: [*settled.failed[item], *problems] for item in places}
        taken = self.form.items(value, places)
        settled.refined |= set(taken) if round else set()
        settled.items = taken if places is None else settled.items | taken
        before = settled.failed
        found = self.check(places or ())
        new = None if places is None else set(places)
        for item, listed in found.items():
            if new is None or item is None or item in new:
                settled.findings += [Finding(round, item, problem) for problem in listed]
            else:  # of the others what was not found before
                known = before.get(item, []) + settled.doubtful.get(item, [])
                settled.findings += [Finding(round, item, problem) for problem in listed if problem not in known]
        return self._split(found)

    def check(self, corrected: Collection[int] = ()) -> ByItem:
        """The problems of all items: of the exact checks, and of the verifying model where those find nothing."""
        items = self.settled.items
        found = self.form.check(items, corrected)
        passing = {
            number: item for number, item in items.items() if all(one.review for one in found.get(number, ()))
        } if None not in found else {}  # fmt: skip
        changed = {
            number: item
            for number, item in passing.items()
            if number not in self.verified or self.verified[number][0] != item
        }
        verdicts = self.form.verify(changed) if changed else {}
        for number, item in changed.items():
            self.verified[number] = item, verdicts.get(number, [])
        for number in passing:
            if self.verified[number][1]:
                found[number] = [*found.get(number, []), *self.verified[number][1]]
        return found

    def _split(self, found: ByItem) -> ByItem:
        """Sets aside what a person should decide; returns the rest."""
        failed = {item: [one for one in listed if not one.review] for item, listed in found.items()}
        failed = {item: listed for item, listed in failed.items() if listed}
        self.settled.doubtful = {
            item: [one for one in listed if one.review]
            for item, listed in found.items()
            if item is not None and item not in failed
        }
        return failed
