"""Stage 5: another model than the writer says whether the plain frames show what a text claims."""

from collections.abc import Sequence
from dataclasses import dataclass

from . import prompts
from .calls import VideoCalls
from .problems import Problem
from .render import Rendering
from .replies import read_reply
from .schema import Verdicts


@dataclass(frozen=True)
class Claim:
    """A text, the objects that it is about, the item that it belongs to, and its place in the reply."""

    item: int
    objects: tuple[int, ...]
    text: str
    at: str


def verify_claims(calls: VideoCalls, rendering: Rendering, claims: Sequence[Claim]) -> dict[int, list[Problem]]:
    """
    The claims that the verifying model does not confirm, by item. "false" is sent back for correction; "unseen", and
    claims without a verdict because the model's reply cannot be used, are for a person to decide.
    """
    messages = prompts.verify(rendering, [(claim.objects, claim.text) for claim in claims])
    completion = calls.ask("verify", "verifier", messages, Verdicts).completion
    value, problems = read_reply(completion, Verdicts)
    verdicts: dict[int, set[str]] = {}
    for one in () if value is None else value.verdicts:
        verdicts.setdefault(one.claim, set()).add(one.verdict)
    found: dict[int, list[Problem]] = {}
    for number, claim in enumerate(claims, start=1):
        given = verdicts.get(number, set())
        verdict = min(given, default=None)
        if len(given) > 1:
            detail = f"there are different verdicts ({', '.join(sorted(given))}): {claim.text[:120]!r}"
            problem = Problem("unseen", claim.at, detail, review=True)
        elif verdict is None:
            reason = problems[0].detail if problems else "the claim is not in its reply"
            problem = Problem("unseen", claim.at, f"there is no verdict: {reason}", review=True)
        elif verdict == "unseen":
            problem = Problem("unseen", claim.at, f"not seen: {claim.text[:120]!r}", review=True)
        elif verdict == "false":
            problem = Problem("false", claim.at, f"not what the frames show: {claim.text[:120]!r}")
        else:
            continue
        found.setdefault(claim.item, []).append(problem)
    return found
